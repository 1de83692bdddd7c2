// Package stripe turns the K data cells of a stripe into its M parity cells and back.
//
// It is the one gate to the Reed-Solomon library; no type of that library shows at its door. A
// [Coder] is made once for a geometry and shared; [Buffers] pools the memory of whole stripes.
//
//	c, _ := stripe.New(place.Geometry{K: 5, M: 4})
//	s := pool.Get()               // 9 cells in one stretch of memory
//	copy(s.Data(), plain)
//	err := c.Encode(s.Cells(cellBytes))
//
// Invariants: the code is maximum distance separable (any K cells give all others); with K = 1 every
// cell is a copy of the first, and with M = 0 there is nothing to compute. A Coder keeps no state
// that calls change and is safe for concurrent use; it starts no goroutines, callers run stripes in
// parallel. It trusts the bytes it gets: a corrupt input cell gives corrupt output without an error,
// so cells are checked against their block checksums first (package shard).
package stripe

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/klauspost/reedsolomon"

	"osteon/erasure/place"
)

// ErrTooFew: fewer than K cells are present.
var ErrTooFew = errors.New("too few cells to decode the stripe")

// ErrCells: the cells do not fit the geometry or differ in length.
var ErrCells = errors.New("cells do not fit the geometry")

// Coder encodes and decodes stripes of one geometry.
type Coder struct {
	g    place.Geometry
	code reedsolomon.Encoder // nil for copies and for M = 0
}

// New returns the coder of g, or an error when g is out of bounds. It builds tables and caches
// decoding matrices, so keep it for as long as the geometry is in use.
func New(g place.Geometry) (*Coder, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	c := &Coder{g: g}
	if g.K == 1 || g.M == 0 {
		return c, nil
	}
	code, err := reedsolomon.New(g.K, g.M, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("make coder %v: %w", g, err)
	}
	c.code = code
	return c, nil
}

// Geometry returns what New was given.
func (c *Coder) Geometry() place.Geometry { return c.g }

// Encode overwrites the M cells behind the K data cells with their parity. All N cells have one
// length, not zero, and do not overlap; else [ErrCells].
func (c *Coder) Encode(cells [][]byte) error {
	_, present := measure(cells)
	if len(cells) != c.g.N() || present != len(cells) { // an empty cell is a missing one
		return fmt.Errorf("encode %d cells as %v: %w", len(cells), c.g, ErrCells)
	}
	if c.g.M == 0 {
		return nil
	}
	if c.g.K == 1 {
		for _, p := range cells[1:] {
			copy(p, cells[0])
		}
		return nil
	}
	if err := c.code.Encode(cells); err != nil {
		return fmt.Errorf("encode stripe %v: %w", c.g, err)
	}
	return nil
}

// Reconstruct fills in every missing cell. A missing cell has length zero; when its capacity
// suffices the bytes are written in place, else it is allocated. Errors: [ErrTooFew], [ErrCells].
func (c *Coder) Reconstruct(cells [][]byte) error {
	return c.rebuild(cells, func(int) bool { return true })
}

// ReconstructData fills in the missing ones of the first K cells and leaves parity alone.
func (c *Coder) ReconstructData(cells [][]byte) error {
	return c.rebuild(cells, func(i int) bool { return i < c.g.K })
}

// ReconstructSome fills in the missing cells for which want, of length N, is true.
func (c *Coder) ReconstructSome(cells [][]byte, want []bool) error {
	if len(want) != c.g.N() {
		return fmt.Errorf("reconstruct %d of %v: %w", len(want), c.g, ErrCells)
	}
	return c.rebuild(cells, func(i int) bool { return want[i] })
}

func (c *Coder) rebuild(cells [][]byte, want func(int) bool) error {
	size, present := measure(cells)
	if len(cells) != c.g.N() || size < 0 {
		return fmt.Errorf("reconstruct %d cells as %v: %w", len(cells), c.g, ErrCells)
	}
	if present < c.g.K {
		return fmt.Errorf("reconstruct from %d cells of %v: %w", present, c.g, ErrTooFew)
	}
	required := make([]bool, len(cells))
	needed := false
	for i := range cells {
		required[i] = len(cells[i]) == 0 && want(i)
		needed = needed || required[i]
	}
	if !needed {
		return nil
	}
	if c.g.K == 1 {
		copyMissing(cells, required)
		return nil
	}
	// Without parity all K cells are present by now, so there is nothing to do above.
	if err := c.code.ReconstructSome(cells, required); err != nil {
		return fmt.Errorf("reconstruct stripe %v: %w", c.g, err)
	}
	return nil
}

// copyMissing serves copies: any present cell is every cell.
func copyMissing(cells [][]byte, required []bool) {
	var from []byte
	for _, cell := range cells {
		if len(cell) > 0 {
			from = cell
			break
		}
	}
	for i := range cells {
		if required[i] {
			cells[i] = append(cells[i][:0], from...)
		}
	}
}

// Check proves that the cells listed in lost can be computed from K of the others and come out as
// they are: it decodes them into scratch, which holds a buffer of at least the cell's length for
// each lost cell. It reports the first that differs by a [MismatchError].
func (c *Coder) Check(cells [][]byte, lost []int, scratch [][]byte) error {
	_, present := measure(cells)
	if len(cells) != c.g.N() || present != len(cells) || len(lost) > c.g.M || len(scratch) < len(lost) {
		return fmt.Errorf("check stripe %v without %d cells: %w", c.g, len(lost), ErrCells)
	}
	var room [place.ShardsMax][]byte
	trial := room[:len(cells)]
	copy(trial, cells)
	for n, i := range lost {
		trial[i] = scratch[n][:0]
	}
	if err := c.Reconstruct(trial); err != nil {
		return err
	}
	for _, i := range lost {
		if !bytes.Equal(trial[i], cells[i]) {
			return MismatchError{Cell: i}
		}
	}
	return nil
}

// MismatchError says that a cell decoded from others is not the cell that was encoded: broken
// memory or a broken processor. It names the cell.
type MismatchError struct{ Cell int }

// Error implements error.
func (e MismatchError) Error() string {
	return fmt.Sprintf("cell %d decodes to other bytes than were encoded: distrust this machine's memory", e.Cell)
}

// Partial adds what the present cells of one place contribute to the lost ones, so that a site
// sends one sum for each lost cell over the wide area instead of all its cells. have and lost are
// lists of cell numbers; have of all the sums that will be added together is exactly K long.
// mine holds the cells of this place under their numbers (the others empty) and sums one buffer
// of the cell's length for each of lost. sums are overwritten. Add partial sums with [Add]; the
// total is the lost cells. Copies have no sums: [ErrCells].
func (c *Coder) Partial(sums [][]byte, lost, have []int, mine [][]byte) error {
	if c.code == nil || len(have) != c.g.K || len(sums) != len(lost) || len(mine) != c.g.N() {
		return fmt.Errorf("partial sum for %d cells of %v: %w", len(lost), c.g, ErrCells)
	}
	dst := make([][]byte, c.g.N())
	expect := make([]bool, c.g.N())
	for n, i := range lost {
		if i < 0 || i >= c.g.N() {
			return fmt.Errorf("partial sum for cell %d of %v: %w", i, c.g, ErrCells)
		}
		clear(sums[n])
		dst[i] = sums[n]
	}
	for _, i := range have {
		if i < 0 || i >= c.g.N() {
			return fmt.Errorf("partial sum from cell %d of %v: %w", i, c.g, ErrCells)
		}
		expect[i] = true
	}
	input := make([][]byte, len(mine))
	for i, cell := range mine {
		if len(cell) > 0 {
			input[i] = cell
		}
	}
	summer, ok := c.code.(reedsolomon.Extensions)
	if !ok {
		return fmt.Errorf("partial sum of %v: %w", c.g, ErrCells)
	}
	if err := summer.DecodeIdx(dst, expect, input); err != nil {
		return fmt.Errorf("partial sum of stripe %v: %w", c.g, err)
	}
	return nil
}

// Add adds the partial sum from to sum, bytewise in the field; both have one length.
func Add(sum, from []byte) error {
	if len(sum) != len(from) {
		return fmt.Errorf("add partial sums of %d and %d bytes: %w", len(sum), len(from), ErrCells)
	}
	for i := range sum {
		sum[i] ^= from[i]
	}
	return nil
}

// measure returns the common length of the present (non-empty) cells, -1 when they differ, and
// how many are present.
func measure(cells [][]byte) (size, present int) {
	for _, cell := range cells {
		switch {
		case len(cell) == 0:
			continue
		case size == 0:
			size = len(cell)
		case size != len(cell):
			return -1, 0
		}
		present++
	}
	return size, present
}
