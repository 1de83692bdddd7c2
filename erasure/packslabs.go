package erasure

import (
	"math/bits"
	"sync"
)

const (
	slabLeast   = 12 // log2 of the smallest pooled buffer: below it the allocator is as fast
	slabClasses = 13 // up to 16 MiB, beyond any segment
)

// slabs pools byte buffers by powers of two. The zero value works. Safe for concurrent use.
type slabs struct {
	pools [slabClasses]sync.Pool
}

// get returns a buffer of n bytes, whatever they were before.
func (s *slabs) get(n int) *[]byte {
	class := max(bits.Len(uint(max(n, 1)-1))-slabLeast, 0)
	if class >= slabClasses {
		b := make([]byte, n)
		return &b
	}
	b, ok := s.pools[class].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 1<<(class+slabLeast))
		b = &fresh
	}
	*b = (*b)[:n]
	return b
}

// put takes a buffer back that get made.
func (s *slabs) put(b *[]byte) {
	class := bits.Len(uint(max(cap(*b), 1)-1)) - slabLeast
	if class >= 0 && class < slabClasses && cap(*b) == 1<<(class+slabLeast) {
		s.pools[class].Put(b)
	}
}
