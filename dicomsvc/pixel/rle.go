package pixel

import (
	"context"
	"encoding/binary"
	"fmt"
)

// rleHeaderBytes is the header of an RLE frame: the number of segments and 15 offsets (PS3.5 §G.3).
const rleHeaderBytes = 64

// decodeRLE decodes a frame of RLE Lossless (PS3.5 Annex G): a segment for each byte of each sample, the highest first.
func decodeRLE(ctx context.Context, f Format, data []byte) (*Frame, error) {
	width := f.BitsAllocated / 8
	if width == 0 {
		return nil, fmt.Errorf("%w: RLE with %d bits allocated", ErrUnsupportedSyntax, f.BitsAllocated)
	}
	segments, err := rleSegments(data, width*f.Samples)
	if err != nil {
		return nil, err
	}
	pixels := f.Rows * f.Columns
	for _, s := range segments {
		// Two bytes give at most 128.
		if len(s) < pixels/64 {
			return nil, fmt.Errorf("%w: an RLE segment of %d bytes for %d pixels", ErrMalformed, len(s), pixels)
		}
	}
	if f.subsampled() {
		f.Photometric = YBRFull // RLE has no shared chrominance
	}
	cells := make([]uint32, pixels*f.Samples)
	for i, s := range segments {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		sample, shift := i/width, 8*(width-1-i%width)
		if err := unpack(s, cells, sample, f.Samples, shift); err != nil {
			return nil, fmt.Errorf("RLE segment %d: %w", i+1, err)
		}
	}
	out := newFrame(f)
	for i, v := range cells {
		out.Samples[i] = f.extend(v >> (f.HighBit + 1 - f.BitsStored))
	}
	return out, nil
}

// rleSegments cuts a frame into its segments.
func rleSegments(data []byte, want int) ([][]byte, error) {
	if len(data) < rleHeaderBytes {
		return nil, fmt.Errorf("%w: an RLE frame of %d bytes", ErrMalformed, len(data))
	}
	if n := binary.LittleEndian.Uint32(data); n != uint32(want) || want > 15 {
		return nil, fmt.Errorf("%w: %d RLE segments where there must be %d", ErrMalformed, n, want)
	}
	segments := make([][]byte, want)
	end := uint32(len(data))
	for i := want - 1; i >= 0; i-- {
		from := binary.LittleEndian.Uint32(data[4+4*i:])
		if from < rleHeaderBytes || from > end {
			return nil, fmt.Errorf("%w: RLE segment %d begins outside of its place", ErrMalformed, i+1)
		}
		segments[i], end = data[from:end], from
	}
	return segments, nil
}

// unpack decodes PackBits (PS3.5 §G.3.1) and adds the bytes, shifted, to every step-th of cells from first on. A segment that
// gives too little is refused, what is behind the last pixel is padding.
func unpack(s []byte, cells []uint32, first, step, shift int) error {
	at := first
	for i := 0; at < len(cells); {
		if i >= len(s) {
			return fmt.Errorf("%w: ends early", ErrMalformed)
		}
		n := int(int8(s[i]))
		i++
		switch {
		case n >= 0:
			if i+n >= len(s) {
				return fmt.Errorf("%w: ends early", ErrMalformed)
			}
			for _, b := range s[i : i+n+1] {
				if at >= len(cells) {
					break
				}
				cells[at] |= uint32(b) << shift
				at += step
			}
			i += n + 1
		case n > -128:
			if i >= len(s) {
				return fmt.Errorf("%w: ends early", ErrMalformed)
			}
			for v := uint32(s[i]) << shift; n <= 0 && at < len(cells); n++ {
				cells[at] |= v
				at += step
			}
			i++
		}
	}
	return nil
}
