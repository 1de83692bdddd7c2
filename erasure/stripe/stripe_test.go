package stripe

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"

	"osteon/erasure/place"
)

func encoded(t testing.TB, c *Coder, cellBytes int) [][]byte {
	t.Helper()
	cells := NewBuffers(c.Geometry(), cellBytes).Get().Cells(cellBytes)
	rng := rand.New(rand.NewPCG(1, uint64(cellBytes)))
	for _, cell := range cells {
		for i := range cell {
			cell[i] = byte(rng.Uint32())
		}
	}
	if err := c.Encode(cells); err != nil {
		t.Fatal(err)
	}
	return cells
}

// Any K cells give all others: the claim that package place builds on. Every subset of K is tried, for
// every geometry of up to nine cells and for the wide ones that rings use.
func TestEveryKCellsGiveAll(t *testing.T) {
	var geometries []place.Geometry
	for k := 1; k <= 8; k++ {
		for m := 0; k+m <= 9; m++ {
			geometries = append(geometries, place.Geometry{K: k, M: m})
		}
	}
	geometries = append(geometries, []place.Geometry{{K: 8, M: 4}, {K: 9, M: 3}, {K: 10, M: 2}, {K: 10, M: 3}, {K: 10, M: 4}, {K: 6, M: 4}}...)
	for _, g := range geometries {
		c, err := New(g)
		if err != nil {
			t.Fatal(err)
		}
		cells := encoded(t, c, 65)
		for keep := range 1 << g.N() {
			if bits.OnesCount(uint(keep)) != g.K {
				continue
			}
			trial := make([][]byte, g.N())
			for i := range trial {
				if keep>>i&1 == 1 {
					trial[i] = cells[i]
				}
			}
			if err := c.Reconstruct(trial); err != nil {
				t.Fatalf("%v from %b: %v", g, keep, err)
			}
			for i := range trial {
				if !bytes.Equal(trial[i], cells[i]) {
					t.Fatalf("%v from %b: cell %d differs", g, keep, i)
				}
			}
		}
	}
}

func TestErrors(t *testing.T) {
	for _, g := range []place.Geometry{{K: 0, M: 1}, {K: 11, M: 1}, {K: 3, M: -1}, {K: 3, M: 11}} {
		if _, err := New(g); err == nil {
			t.Errorf("New(%v) accepted", g)
		}
	}
	c, _ := New(place.Geometry{K: 3, M: 2})
	cells := encoded(t, c, 64)
	few := [][]byte{cells[0], nil, nil, cells[3], nil}
	if err := c.Reconstruct(few); !errors.Is(err, ErrTooFew) {
		t.Errorf("two of 3+2: got %v", err)
	}
	uneven := [][]byte{cells[0], cells[1][:63], cells[2], nil, nil}
	if err := c.Reconstruct(uneven); !errors.Is(err, ErrCells) {
		t.Errorf("uneven: got %v", err)
	}
	if err := c.Encode(cells[:4]); !errors.Is(err, ErrCells) {
		t.Errorf("encode four of 3+2: got %v", err)
	}
	plain, _ := New(place.Geometry{K: 2})
	if err := plain.Reconstruct([][]byte{cells[0], nil}); !errors.Is(err, ErrTooFew) {
		t.Errorf("2+0 with one missing: got %v", err)
	}
}

func TestReconstructDataAndSomeLeaveOthersAlone(t *testing.T) {
	c, _ := New(place.Geometry{K: 4, M: 3})
	cells := encoded(t, c, 128)
	trial := [][]byte{cells[0], nil, cells[2], nil, cells[4], cells[5], nil}
	if err := c.ReconstructData(trial); err != nil || !bytes.Equal(trial[1], cells[1]) || !bytes.Equal(trial[3], cells[3]) || trial[6] != nil {
		t.Errorf("data: %v", err)
	}
	room := make([]byte, 0, 128)
	trial = [][]byte{cells[0], nil, cells[2], nil, cells[4], cells[5], room}
	want := make([]bool, 7)
	want[6] = true
	if err := c.ReconstructSome(trial, want); err != nil || !bytes.Equal(trial[6], cells[6]) || trial[1] != nil || &trial[6][0] != &room[:1][0] {
		t.Errorf("some: %v", err)
	}
}

func TestCheckFindsFlippedBit(t *testing.T) {
	for _, g := range []place.Geometry{{K: 5, M: 4}, {K: 1, M: 2}} {
		c, _ := New(g)
		cells := encoded(t, c, 256)
		scratch := make([][]byte, g.M)
		for i := range scratch {
			scratch[i] = make([]byte, 256)
		}
		for bad := range cells {
			found := 0
			for first := range cells {
				var lost []int
				for i := range g.M {
					lost = append(lost, (first+i)%g.N())
				}
				if err := c.Check(cells, lost, scratch); err != nil {
					t.Fatalf("%v sound stripe without %v: %v", g, lost, err)
				}
				cells[bad][100] ^= 4
				var mismatch MismatchError
				if err := c.Check(cells, lost, scratch); errors.As(err, &mismatch) {
					found++
				}
				cells[bad][100] ^= 4
			}
			if found == 0 {
				t.Errorf("%v: a flipped bit in cell %d passes every rotation", g, bad)
			}
		}
	}
}

func TestPartialSums(t *testing.T) {
	g := place.Geometry{K: 5, M: 4}
	c, _ := New(g)
	cells := encoded(t, c, 320)
	lost, have := []int{1, 7}, []int{0, 2, 4, 6, 8}
	total := [][]byte{make([]byte, 320), make([]byte, 320)}
	for _, group := range [][]int{{0, 2}, {4}, {6, 8}} {
		mine := make([][]byte, g.N())
		for _, i := range group {
			mine[i] = cells[i]
		}
		sums := [][]byte{bytes.Repeat([]byte{9}, 320), make([]byte, 320)}
		if err := c.Partial(sums, lost, have, mine); err != nil {
			t.Fatal(err)
		}
		for i := range total {
			if err := Add(total[i], sums[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n, i := range lost {
		if !bytes.Equal(total[n], cells[i]) {
			t.Errorf("cell %d: the sum of the sites' sums differs", i)
		}
	}
	if err := c.Partial(total, lost, have[:4], make([][]byte, 9)); !errors.Is(err, ErrCells) {
		t.Errorf("four of five: got %v", err)
	}
	if err := Add(total[0], total[1][:1]); !errors.Is(err, ErrCells) {
		t.Errorf("uneven sums: got %v", err)
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, g := range []place.Geometry{{K: 4, M: 2}, {K: 5, M: 4}, {K: 10, M: 4}} {
		b.Run(fmt.Sprint(g), func(b *testing.B) {
			c, _ := New(g)
			cells := encoded(b, c, 256<<10)
			b.SetBytes(int64(g.K) * 256 << 10)
			for b.Loop() {
				if err := c.Encode(cells); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
