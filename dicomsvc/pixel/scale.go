package pixel

import (
	"context"
	"math"
)

// tap is the share of the pixels from first on in one pixel of a scaled row.
type tap struct {
	first   int
	weights []float32
}

// taps spreads a triangle over every pixel of a scaled row: as wide as a pixel of the source when it grows, which is linear
// interpolation, and as a pixel of the result when it shrinks, so that every pixel of the source counts.
func taps(from, to int) []tap {
	scale := float64(from) / float64(to)
	radius := max(scale, 1)
	out := make([]tap, to)
	for i := range out {
		center := (float64(i)+0.5)*scale - 0.5
		first, last := max(int(math.Ceil(center-radius)), 0), min(int(math.Floor(center+radius)), from-1)
		t := tap{first: first, weights: make([]float32, last-first+1)}
		sum := float32(0)
		for j := range t.weights {
			t.weights[j] = float32(max(radius-math.Abs(float64(first+j)-center), 0))
			sum += t.weights[j]
		}
		for j := range t.weights {
			t.weights[j] /= sum
		}
		out[i] = t
	}
	return out
}

// scaled returns r in another size, or r itself when that is its own.
func (r *raster) scaled(ctx context.Context, columns, rows int) (*raster, error) {
	if columns == r.columns && rows == r.rows {
		return r, nil
	}
	wide := newRaster(columns, r.rows, r.channels)
	across := taps(r.columns, columns)
	for y := range r.rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.blend(wide, across, y)
	}
	out := newRaster(columns, rows, r.channels)
	for y, t := range taps(r.rows, rows) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		wide.stack(out.pix[y*columns*r.channels:(y+1)*columns*r.channels], t)
	}
	return out, nil
}

// blend scales row y across into wide.
func (r *raster) blend(wide *raster, across []tap, y int) {
	n := r.channels
	from, to := r.pix[y*r.columns*n:(y+1)*r.columns*n], wide.pix[y*wide.columns*n:]
	for x, t := range across {
		for c := range n {
			sum := float32(0.5)
			for j, w := range t.weights {
				sum += w * float32(from[(t.first+j)*n+c])
			}
			to[x*n+c] = uint8(min(sum, 255))
		}
	}
}

// stack blends the rows that t names into one.
func (r *raster) stack(to []uint8, t tap) {
	stride := r.columns * r.channels
	for i := range to {
		sum := float32(0.5)
		for j, w := range t.weights {
			sum += w * float32(r.pix[(t.first+j)*stride+i])
		}
		to[i] = uint8(min(sum, 255))
	}
}
