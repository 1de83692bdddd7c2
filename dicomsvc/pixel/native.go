package pixel

import (
	"context"
	"fmt"
	"slices"
)

// decodeNative takes samples out of their cells (PS3.5 §8.1.1, §D). A frame that is cut short is refused.
func decodeNative(ctx context.Context, src Source, f Format, data []byte) (*Frame, error) {
	if have := 8*len(data) - src.Bit; have < f.cellBits() {
		return nil, fmt.Errorf("%w: a frame of %d bits in %d", ErrMalformed, f.cellBits(), have)
	}
	if src.Word > 1 {
		data = swapped(data, src.Word)
	}
	out := newFrame(f)
	if f.subsampled() {
		return out, out.spread(ctx, f, data)
	}
	read := f.reader(data, src.Bit)
	plane := f.Rows * f.Columns
	for y := range f.Rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i := y * f.Columns * f.Samples; i < (y+1)*f.Columns*f.Samples; i++ {
			at := i
			if f.Planar {
				at = i%f.Samples*plane + i/f.Samples
			}
			out.Samples[i] = f.extend(read(at) >> (f.HighBit + 1 - f.BitsStored))
		}
	}
	return out, nil
}

// reader returns a function that reads the i-th cell of data.
func (f Format) reader(data []byte, bit int) func(i int) uint32 {
	switch f.BitsAllocated {
	case 1:
		return func(i int) uint32 { i += bit; return uint32(data[i/8]>>(i%8)) & 1 }
	case 8:
		return func(i int) uint32 { return uint32(data[i]) }
	case 16:
		return func(i int) uint32 { return uint32(data[2*i]) | uint32(data[2*i+1])<<8 }
	}
	return func(i int) uint32 {
		b := data[4*i : 4*i+4]
		return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	}
}

// spread gives each pixel of a YBR_FULL_422 frame, stored as Y Y Cb Cr, samples of its own (PS3.3 §C.7.6.3.1.2).
func (out *Frame) spread(ctx context.Context, f Format, data []byte) error {
	read, shift := f.reader(data, 0), f.HighBit+1-f.BitsStored
	pairs := (f.Columns + 1) / 2
	for y := range f.Rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		for x := range f.Columns {
			from, to := 4*(y*pairs+x/2), 3*(y*f.Columns+x)
			for s, at := range [3]int{from + x%2, from + 2, from + 3} {
				out.Samples[to+s] = f.extend(read(at) >> shift)
			}
		}
	}
	return nil
}

// swapped returns data with the bytes of each word in the other order; a last part of a word stays as it is.
func swapped(data []byte, word int) []byte {
	data = slices.Clone(data)
	for i := 0; i+word <= len(data); i += word {
		slices.Reverse(data[i : i+word])
	}
	return data
}
