package local

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"osteon/erasure/place"
)

// Seen is what this node remembers of another one, so that it can tell when that one comes back with an older disk than it
// had, or twice.
type Seen struct {
	// Incarnation, Boot and Instance name the process that was heard of last.
	Incarnation, Boot uint64
	Instance          [16]byte
	// Index and Term are the furthest of that incarnation: it has had every committed entry up to Index.
	Index, Term uint64
}

const seenBytes = 1 + 8 + 8 + 16 + 8 + 8

func seenKey(node place.NodeID) []byte { return append([]byte{tableSeen}, node[:]...) }

// PutSeen remembers s of a node and returns after the fsync.
func (d *DB) PutSeen(node place.NodeID, s Seen) error {
	value := s.encode()
	return d.write(func(b *pebble.Batch) error { return b.Set(seenKey(node), value, nil) })
}

// Seen returns what is remembered of a node, ErrNotFound when nothing is.
func (d *DB) Seen(node place.NodeID) (Seen, error) {
	value, err := d.get(seenKey(node))
	if err != nil {
		return Seen{}, err
	}
	return decodeSeen(value)
}

// ForgetSeen forgets a node that is no longer one of the ring.
func (d *DB) ForgetSeen(node place.NodeID) error {
	if _, err := d.get(seenKey(node)); errors.Is(err, ErrNotFound) {
		return nil
	}
	return d.write(func(b *pebble.Batch) error { return b.Delete(seenKey(node), nil) })
}

func (s Seen) encode() []byte {
	v := make([]byte, 0, seenBytes)
	v = append(v, recordVersion)
	v = binary.LittleEndian.AppendUint64(v, s.Incarnation)
	v = binary.LittleEndian.AppendUint64(v, s.Boot)
	v = append(v, s.Instance[:]...)
	v = binary.LittleEndian.AppendUint64(v, s.Index)
	return binary.LittleEndian.AppendUint64(v, s.Term)
}

func decodeSeen(v []byte) (Seen, error) {
	if len(v) != seenBytes || v[0] != recordVersion {
		return Seen{}, fmt.Errorf("%w: memory of a node", ErrFormat)
	}
	s := Seen{
		Incarnation: binary.LittleEndian.Uint64(v[1:]), Boot: binary.LittleEndian.Uint64(v[9:]),
		Index: binary.LittleEndian.Uint64(v[33:]), Term: binary.LittleEndian.Uint64(v[41:]),
	}
	copy(s.Instance[:], v[17:])
	return s, nil
}
