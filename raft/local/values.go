package local

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"osteon/erasure/place"
)

// ScrubCursor is how far the patrol over this node's shards has come.
type ScrubCursor struct {
	Round        uint64 // the pass under way, from 1
	Pack         place.PackID
	Encode       place.EncodeID
	Index        int    // of the last shard verified; the zero pack: none in this round
	Checked, Bad uint64 // shards in this round
	Started      time.Time
	Updated      time.Time
}

const cursorBytes = 1 + 8 + 16 + 16 + 2 + 8 + 8 + 8 + 8

// SetScrubCursor records the cursor and returns after the fsync. Call it every few seconds, not for each shard.
func (d *DB) SetScrubCursor(c ScrubCursor) error {
	if c.Index < 0 || c.Index > 0xffff {
		return fmt.Errorf("shard index %d: %w", c.Index, ErrTooLarge)
	}
	return d.write(func(b *pebble.Batch) error { return b.Set([]byte{tableCursor}, c.encode(), nil) })
}

// ScrubCursor returns the recorded cursor. ErrNotFound before the first one.
func (d *DB) ScrubCursor() (ScrubCursor, error) {
	value, err := d.get([]byte{tableCursor})
	if err != nil {
		return ScrubCursor{}, err
	}
	return decodeCursor(value)
}

func (c ScrubCursor) encode() []byte {
	v := make([]byte, 0, cursorBytes)
	v = append(v, recordVersion)
	v = binary.LittleEndian.AppendUint64(v, c.Round)
	v = append(v, c.Pack[:]...)
	v = append(v, c.Encode[:]...)
	v = binary.LittleEndian.AppendUint16(v, uint16(c.Index))
	v = binary.LittleEndian.AppendUint64(v, c.Checked)
	v = binary.LittleEndian.AppendUint64(v, c.Bad)
	v = binary.LittleEndian.AppendUint64(v, uint64(unixNano(c.Started)))
	return binary.LittleEndian.AppendUint64(v, uint64(unixNano(c.Updated)))
}

func decodeCursor(v []byte) (ScrubCursor, error) {
	if len(v) != cursorBytes || v[0] != recordVersion {
		return ScrubCursor{}, fmt.Errorf("%w: scrub cursor", ErrFormat)
	}
	c := ScrubCursor{
		Round:   binary.LittleEndian.Uint64(v[1:]),
		Index:   int(binary.LittleEndian.Uint16(v[41:])),
		Checked: binary.LittleEndian.Uint64(v[43:]),
		Bad:     binary.LittleEndian.Uint64(v[51:]),
		Started: fromUnixNano(int64(binary.LittleEndian.Uint64(v[59:]))),
		Updated: fromUnixNano(int64(binary.LittleEndian.Uint64(v[67:]))),
	}
	copy(c.Pack[:], v[9:])
	copy(c.Encode[:], v[25:])
	return c, nil
}

// unixNano maps the zero time to 0, which no scrub ever starts at.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// Put keeps a small value under a name and returns after the fsync. ErrTooLarge beyond KeyBytesMax and ValueBytesMax.
func (d *DB) Put(name string, value []byte) error {
	if len(name) > KeyBytesMax || len(value) > ValueBytesMax {
		return fmt.Errorf("name of %d bytes, value of %d: %w", len(name), len(value), ErrTooLarge)
	}
	return d.write(func(b *pebble.Batch) error {
		return b.Set(namedKey(name), append([]byte{recordVersion}, value...), nil)
	})
}

// Get returns the value kept under a name. ErrNotFound.
func (d *DB) Get(name string) ([]byte, error) {
	value, err := d.get(namedKey(name))
	if err != nil {
		return nil, err
	}
	if len(value) == 0 || value[0] != recordVersion {
		return nil, fmt.Errorf("%w: named value", ErrFormat)
	}
	return value[1:], nil
}

// Delete forgets a name. No value is no error.
func (d *DB) Delete(name string) error {
	return d.write(func(b *pebble.Batch) error { return b.Delete(namedKey(name), nil) })
}

// Names returns the names that begin with prefix, in order.
func (d *DB) Names(prefix string) ([]string, error) {
	var names []string
	start := namedKey(prefix)
	err := d.scan(start, nil, func(key, _ []byte) (bool, error) {
		if !bytes.HasPrefix(key, start) {
			return false, nil
		}
		names = append(names, string(key[1:]))
		return true, nil
	})
	return names, err
}

func namedKey(name string) []byte { return append([]byte{tableNamed}, name...) }
