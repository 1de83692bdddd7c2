package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// errDecode is the one reason that a decoder gives: what it read is not what encoders write.
var errDecode = errors.New("not an encoding of this package")

// The append functions write the values that decoder reads back. Integers are LEB128 varints,
// strings and byte fields carry their length, times are nanoseconds since 1970 in UTC.

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

func appendInt(b []byte, v int64) []byte { return binary.AppendVarint(b, v) }

func appendString(b []byte, s string) []byte { return append(appendUint(b, uint64(len(s))), s...) }

func appendBytes(b, v []byte) []byte { return append(appendUint(b, uint64(len(v))), v...) }

// appendTime writes t, and 0 for the zero time.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return appendInt(b, 0)
	}
	return appendInt(b, t.UnixNano())
}

// decoder reads values from the front of b. After the first fault every read returns a zero
// value, so callers check err once at the end. Byte fields alias b.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

// err returns errDecode after a fault or when bytes are left over.
func (d *decoder) err() error {
	if d.bad || len(d.b) != 0 {
		return errDecode
	}
	return nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// size reads a length or a count of at most max.
func (d *decoder) size(max int) int {
	v := d.uint()
	if v > uint64(max) {
		d.fail()
		return 0
	}
	return int(v)
}

// count reads the count of things that take at least a byte each, at most max.
func (d *decoder) count(max int) int {
	n := d.size(max)
	if n > len(d.b) {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// take returns the next n bytes, which alias the input.
func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(max int) []byte {
	n := d.size(max)
	if n == 0 {
		return nil
	}
	return d.take(n)
}

func (d *decoder) string(max int) string { return string(d.take(d.size(max))) }

// fixed fills dst, an identifier or a digest.
func (d *decoder) fixed(dst []byte) {
	if v := d.take(len(dst)); v != nil {
		copy(dst, v)
	}
}

func (d *decoder) time() time.Time {
	n := d.int()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// version reads the version byte that rows begin with and fails unless it is want.
func (d *decoder) version(want byte) {
	if d.byte() != want {
		d.fail()
	}
}

// rowError returns an ErrMalformed that names the kind of row, or nil.
func rowError(kind string, d *decoder) error {
	if err := d.err(); err != nil {
		return fmt.Errorf("%w %s row: %w", ErrMalformed, kind, err)
	}
	return nil
}
