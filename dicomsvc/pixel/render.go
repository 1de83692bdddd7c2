package pixel

import (
	"context"
	"fmt"
	"image"
)

// View is what a rendered image shall show. Its zero value shows a whole frame pixel by pixel.
type View struct {
	// Window replaces the window of a gray image; nil: the image's own or, for want of one, all values of the frame.
	Window *Window
	// Columns and Rows are the box into which the part is fitted, its aspect ratio kept; 0: the size of the part.
	Columns, Rows int
	// Part is the rectangle of the frame to show; empty: all of it.
	Part image.Rectangle
	// Mirror and Flip turn left into right and top into bottom.
	Mirror, Flip bool
}

// Size returns the columns and rows of a rendered frame of this format. Fails with ErrMalformed for a part outside of the frame, and
// with ErrLimit for a box beyond the limits.
func (v View) Size(f Format) (columns, rows int, err error) {
	part, err := v.part(f)
	if err != nil {
		return 0, 0, err
	}
	if v.Columns < 0 || v.Rows < 0 || v.Columns > ViewSideMax || v.Rows > ViewSideMax || v.Columns*v.Rows > viewPixelsMax {
		return 0, 0, fmt.Errorf("%w: a viewport of %d x %d pixels", ErrLimit, v.Columns, v.Rows)
	}
	w, h := part.Dx(), part.Dy()
	columns, rows = v.Columns, v.Rows
	switch {
	case columns == 0 && rows == 0:
		columns, rows = w, h
	case columns == 0:
		columns = w * rows / h
	case rows == 0:
		rows = h * columns / w
	case w*rows > h*columns: // the width decides
		rows = h * columns / w
	default:
		columns = w * rows / h
	}
	columns, rows = max(columns, 1), max(rows, 1)
	if columns > ViewSideMax || rows > ViewSideMax || columns*rows > viewPixelsMax {
		return 0, 0, fmt.Errorf("%w: a rendered image of %d x %d pixels", ErrLimit, columns, rows)
	}
	return columns, rows, nil
}

func (v View) part(f Format) (image.Rectangle, error) {
	whole := image.Rect(0, 0, f.Columns, f.Rows)
	if v.Part.Empty() {
		return whole, nil
	}
	part := v.Part.Intersect(whole)
	if part.Empty() {
		return part, fmt.Errorf("%w: the part to show lies outside of the image", ErrMalformed)
	}
	return part, nil
}

// Render reads frame i, from 0, and renders it in 8 bits: an *image.Gray or *image.RGBA. Errors are those of Frame and View.Size.
func (im *Image) Render(ctx context.Context, i int, v View) (image.Image, error) {
	columns, rows, err := v.Size(im.Format)
	if err != nil {
		return nil, err
	}
	f, err := im.Frame(ctx, i)
	if err != nil {
		return nil, err
	}
	part, err := v.part(f.Format)
	if err != nil {
		return nil, err
	}
	r, err := im.raster(ctx, f, i, part, v.Window)
	if err != nil {
		return nil, fmt.Errorf("frame %d: %w", i+1, err)
	}
	if r, err = r.scaled(ctx, columns, rows); err != nil {
		return nil, err
	}
	r.turn(v.Mirror, v.Flip)
	return r.image(), nil
}

// raster is an image of 8-bit values, one or three to a pixel.
type raster struct {
	columns, rows, channels int
	pix                     []uint8
}

func newRaster(columns, rows, channels int) *raster {
	return &raster{columns: columns, rows: rows, channels: channels, pix: make([]uint8, columns*rows*channels)}
}

// raster renders the part of a frame.
func (im *Image) raster(ctx context.Context, f *Frame, i int, part image.Rectangle, w *Window) (*raster, error) {
	paint, channels, err := im.painter(f, i, w)
	if err != nil {
		return nil, err
	}
	r := newRaster(part.Dx(), part.Dy(), channels)
	to, n := r.pix, f.Format.Samples
	for y := part.Min.Y; y < part.Max.Y; y++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		row := f.Samples[y*f.Format.Columns*n:]
		for x := part.Min.X; x < part.Max.X; x++ {
			paint(to, row[x*n:x*n+n])
			to = to[channels:]
		}
	}
	return r, nil
}

// painter returns what turns the samples of a pixel into displayed values, and how many those are (PS3.3 §C.7.6.3.1.2).
func (im *Image) painter(f *Frame, i int, w *Window) (paint func(to []uint8, from []int32), channels int, err error) {
	switch format := f.Format; {
	case format.Samples == 1 && format.Photometric == PaletteColor:
		p, err := im.palette()
		return p.paint, 3, err
	case format.Samples == 1 && (format.Photometric == Monochrome1 || format.Photometric == Monochrome2):
		gray, err := im.gray(f, i, w)
		return func(to []uint8, from []int32) { to[0] = gray(from[0]) }, 1, err
	case format.Samples == 3 && format.Photometric == RGB:
		return format.rgb, 3, nil
	case format.Samples == 3 && format.Photometric == YBRFull:
		return format.ybr, 3, nil
	default:
		return nil, 0, fmt.Errorf("%w: photometric interpretation %q with %d samples per pixel cannot be shown", ErrUnsupportedSyntax, printable(format.Photometric), format.Samples)
	}
}

// printable returns a short code string as it may be shown.
func printable(s string) string {
	if len(s) > 16 {
		return "?"
	}
	return s
}

func (p palette) paint(to []uint8, from []int32) {
	for c, t := range p {
		to[c] = uint8(t.at(int(from[0])) >> (t.bits - 8))
	}
}

// eight reduces a colour sample to 8 bits.
func (f Format) eight(v int32) int32 {
	switch {
	case f.Signed:
		v += 1 << (f.BitsStored - 1)
	case f.BitsStored == 32:
		return int32(uint32(v) >> 24)
	}
	if f.BitsStored >= 8 {
		return v >> (f.BitsStored - 8) & 0xFF
	}
	return v * 255 / (1<<f.BitsStored - 1)
}

func (f Format) rgb(to []uint8, from []int32) {
	for c := range 3 {
		to[c] = uint8(f.eight(from[c]))
	}
}

// ybr converts YBR_FULL to RGB (PS3.3 §C.7.6.3.1.2), in 16-bit fixed point.
func (f Format) ybr(to []uint8, from []int32) {
	const half = 1 << 15
	y, cb, cr := f.eight(from[0]), f.eight(from[1])-128, f.eight(from[2])-128
	to[0] = clip8(y + (91881*cr+half)>>16)
	to[1] = clip8(y + (-22554*cb-46802*cr+half)>>16)
	to[2] = clip8(y + (116130*cb+half)>>16)
}

func clip8(v int32) uint8 { return uint8(min(max(v, 0), 255)) }

// turn mirrors the raster left to right, top to bottom, or both.
func (r *raster) turn(mirror, flip bool) {
	n := r.columns * r.rows
	swap := func(i, j int) {
		for c := range r.channels {
			a, b := i*r.channels+c, j*r.channels+c
			r.pix[a], r.pix[b] = r.pix[b], r.pix[a]
		}
	}
	for y := 0; mirror && y < r.rows; y++ {
		for x := range r.columns / 2 {
			swap(y*r.columns+x, (y+1)*r.columns-1-x)
		}
	}
	for i := 0; flip && i < r.rows/2*r.columns; i++ {
		swap(i, n-(i/r.columns+1)*r.columns+i%r.columns)
	}
}

func (r *raster) image() image.Image {
	bounds := image.Rect(0, 0, r.columns, r.rows)
	if r.channels == 1 {
		return &image.Gray{Pix: r.pix, Stride: r.columns, Rect: bounds}
	}
	out := image.NewRGBA(bounds)
	for i, j := 0, 0; i < len(r.pix); i, j = i+3, j+4 {
		out.Pix[j], out.Pix[j+1], out.Pix[j+2], out.Pix[j+3] = r.pix[i], r.pix[i+1], r.pix[i+2], 0xFF
	}
	return out
}
