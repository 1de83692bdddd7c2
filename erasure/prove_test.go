package erasure

import (
	"errors"
	"testing"

	"osteon/erasure/place"
	"osteon/erasure/stripe"
)

// A bit that flips in any cell of a stripe, parity or data, after it was coded, is found before the stripe goes out:
// at once in the first stripe, which may be the only one.
func TestProofFindsAFlippedBit(t *testing.T) {
	for _, g := range []place.Geometry{{K: 2, M: 1}, {K: 3, M: 3}, {K: 5, M: 4}, {K: 1, M: 2}} {
		coder, err := stripe.New(g)
		if err != nil {
			t.Fatal(err)
		}
		for first := range g.N() {
			e := &encoder{spec: EncodeSpec{Geometry: g}, coder: coder}
			e.spec.Encode[15] = byte(first)
			for bad := range g.N() {
				cells := make([][]byte, g.N())
				for i := range cells {
					cells[i] = make([]byte, 4096)
					for at := range cells[i] {
						cells[i][at] = byte(i*31 + at*7 + at>>8)
					}
				}
				if err := coder.Encode(cells); err != nil {
					t.Fatal(err)
				}
				scratch := make([][]byte, g.M)
				if err := e.prove(cells, 0, scratch); err != nil {
					t.Fatalf("%v: proof of a good stripe: %v", g, err)
				}
				cells[bad][1000] ^= 4
				var mismatch stripe.MismatchError
				if err := e.prove(cells, 0, scratch); !errors.As(err, &mismatch) {
					t.Errorf("%v from %d: flipped bit in cell %d: %v, want a mismatch", g, first, bad, err)
				}
			}
		}
	}
}
