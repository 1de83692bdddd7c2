package place

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// Rendezvous returns nodes in the order of their highest random weight for key: every caller with
// the same key and set agrees, a node that goes away changes nothing among the others, and each
// node comes first for an equal share of keys. The argument is not changed.
func Rendezvous(key []byte, nodes []NodeID) []NodeID {
	return ranked(key, nodes, func(id NodeID) ([]byte, float64) { return id[:], 1 })
}

// ranked sorts a copy of items by weighted rendezvous for key: an item of weight 2 comes before one
// of weight 1 for twice as many keys. name must be distinct between items.
func ranked[T any](key []byte, items []T, name func(T) (label []byte, weight float64)) []T {
	type scored struct {
		item  T
		label []byte
		score float64
	}
	all := make([]scored, len(items))
	for i, it := range items {
		label, weight := name(it)
		all[i] = scored{it, label, weight / exponential(key, label)}
	}
	slices.SortFunc(all, func(a, b scored) int {
		if c := cmp.Compare(b.score, a.score); c != 0 {
			return c
		}
		return bytes.Compare(a.label, b.label)
	})
	out := make([]T, len(all))
	for i := range all {
		out[i] = all[i].item
	}
	return out
}

// exponential draws an exponentially distributed number > 0 from the hash of (key, label): the
// smallest of several, each divided by its weight, is each one with chance weight/sum.
func exponential(key, label []byte) float64 {
	h := sha256.New()
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(key)))
	h.Write(n[:])
	h.Write(key)
	h.Write(label)
	// 53 bits, moved by a half so that neither 0 nor 1 is drawn.
	u := (float64(binary.LittleEndian.Uint64(h.Sum(nil))>>11) + 0.5) / (1 << 53)
	return -math.Log(u)
}
