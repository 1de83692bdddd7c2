package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Spooled is one instance that was acknowledged here and that no second site has yet.
type Spooled struct {
	// Sequence orders the entries by arrival; it rises for the life of the entry's database.
	Sequence uint64
	Key      [32]byte
	Body     []byte
}

func spoolKey(sequence uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableSpool}, sequence)
}

func spoolIndexKey(key [32]byte) []byte { return append([]byte{tableKey}, key[:]...) }

// AddSpooled enters an instance at the end of the spool and returns after the fsync. An instance that is in it already keeps
// its place and its body. ErrTooLarge when body is longer than ValueBytesMax.
func (d *DB) AddSpooled(key [32]byte, body []byte) error {
	if len(body) > ValueBytesMax {
		return fmt.Errorf("spool entry of %d bytes: %w", len(body), ErrTooLarge)
	}
	d.spool.Lock()
	defer d.spool.Unlock()
	if _, err := d.get(spoolIndexKey(key)); !errors.Is(err, ErrNotFound) {
		return err
	}
	sequence := d.last + 1
	value := append(append([]byte{recordVersion}, key[:]...), body...)
	err := d.write(func(b *pebble.Batch) error {
		return errors.Join(b.Set(spoolKey(sequence), value, nil),
			b.Set(spoolIndexKey(key), binary.LittleEndian.AppendUint64([]byte{recordVersion}, sequence), nil))
	})
	if err == nil {
		d.last, d.spooling = sequence, d.spooling+1
	}
	return err
}

// RemoveSpooled takes instances out of the spool, in one write; those not in it are passed over.
func (d *DB) RemoveSpooled(keys ...[32]byte) error {
	d.spool.Lock()
	defer d.spool.Unlock()
	removed := 0
	sequences := make(map[[32]byte]uint64, len(keys))
	for _, key := range keys {
		value, err := d.get(spoolIndexKey(key))
		switch {
		case errors.Is(err, ErrNotFound):
			continue
		case err != nil:
			return err
		case len(value) != 9 || value[0] != recordVersion:
			return fmt.Errorf("%w: spool index", ErrFormat)
		}
		sequences[key] = binary.LittleEndian.Uint64(value[1:])
	}
	if len(sequences) == 0 {
		return nil
	}
	err := d.write(func(b *pebble.Batch) error {
		for key, sequence := range sequences {
			removed++
			if err := errors.Join(b.Delete(spoolKey(sequence), nil), b.Delete(spoolIndexKey(key), nil)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		d.spooling -= removed
	}
	return err
}

// SpooledAfter returns up to limit entries in order of arrival, those behind the given sequence; 0 is the start.
func (d *DB) SpooledAfter(sequence uint64, limit int) ([]Spooled, error) {
	var out []Spooled
	if limit <= 0 {
		return nil, nil
	}
	err := d.scan([]byte{tableSpool}, spoolKey(sequence), func(key, value []byte) (bool, error) {
		if len(key) != 9 || len(value) < 33 || value[0] != recordVersion {
			return false, fmt.Errorf("%w: spool entry", ErrFormat)
		}
		e := Spooled{Sequence: binary.BigEndian.Uint64(key[1:]), Body: bytes.Clone(value[33:])}
		copy(e.Key[:], value[1:])
		out = append(out, e)
		return len(out) < limit, nil
	})
	return out, err
}

// SpooledCount returns how many instances are in the spool.
func (d *DB) SpooledCount() int {
	d.spool.Lock()
	defer d.spool.Unlock()
	return d.spooling
}
