package stripe

import (
	"sync"

	"osteon/erasure/place"
)

// cellAlign keeps cells on cache lines, where the vectorised kernels are fastest.
const cellAlign = 64

// Buffers pools the memory of whole stripes of one geometry and cell size. Safe for concurrent use.
// Buffers that are not given back are left to the garbage collector.
type Buffers struct {
	g         place.Geometry
	cellBytes int
	pool      sync.Pool
}

// NewBuffers returns a pool of stripes of g.N() cells of at most cellBytes bytes. It trusts its
// arguments, which come from a checked header or from this program's own defaults.
func NewBuffers(g place.Geometry, cellBytes int) *Buffers {
	return &Buffers{g: g, cellBytes: cellBytes}
}

// Get returns a stripe whose bytes are undefined.
func (b *Buffers) Get() *Stripe {
	if s, ok := b.pool.Get().(*Stripe); ok {
		return s
	}
	data := b.g.K * b.cellBytes
	room := (b.cellBytes + cellAlign - 1) / cellAlign * cellAlign
	s := &Stripe{
		g:      b.g,
		data:   make([]byte, data),
		parity: make([]byte, b.g.M*room),
		cells:  make([][]byte, b.g.N()),
		room:   room,
	}
	return s
}

// Put gives s back; it must not be used afterwards.
func (b *Buffers) Put(s *Stripe) { b.pool.Put(s) }

// Stripe is the memory of one stripe: the data cells follow each other without a gap, so that they
// are filled and read as one stretch of the stream. Owned by one goroutine at a time.
type Stripe struct {
	g      place.Geometry
	data   []byte
	parity []byte
	cells  [][]byte
	room   int
}

// Data returns the room of all K data cells at full length.
func (s *Stripe) Data() []byte { return s.data }

// Cells returns the N cells at a length of cellBytes, at most that of the pool. Data cell i is
// Data()[i*cellBytes:][:cellBytes]. The result is valid until the next call or Put.
func (s *Stripe) Cells(cellBytes int) [][]byte {
	for i := range s.cells {
		if i < s.g.K {
			s.cells[i] = s.data[i*cellBytes : (i+1)*cellBytes : (i+1)*cellBytes]
			continue
		}
		at := (i - s.g.K) * s.room
		s.cells[i] = s.parity[at : at+cellBytes : at+cellBytes]
	}
	return s.cells
}
