package pixel

import (
	"context"
	"encoding/binary"
	"fmt"
	mathbits "math/bits"
)

// Markers of JPEG-LS (ISO 14495-1 Table C.1).
const (
	markSOF55 = 0xF7
	markLSE   = 0xF8
	markAPP8  = 0xE8
)

// Interleave modes of a JPEG-LS scan (ISO 14495-1 §C.2.3).
const (
	interleaveNone = iota
	interleaveLine
	interleaveSample
)

// jpegLS decodes JPEG-LS, lossless and near-lossless (ISO 14495-1).
type jpegLS struct {
	ctx       context.Context
	f         Format
	in        segments
	precision int
	ids       []byte
	preset    lsPreset
	seen      int // components decoded
	out       *Frame
}

// lsPreset is what an LSE segment of type 1 sets; 0 stands for the default (ISO 14495-1 §C.2.4.1.1).
type lsPreset struct{ max, t1, t2, t3, reset int }

func decodeJPEGLS(ctx context.Context, f Format, data []byte) (*Frame, error) {
	d := &jpegLS{ctx: ctx, f: f, in: segments{data: data}}
	for {
		mark, body, err := d.in.next()
		if err == nil && mark == markEOI {
			break
		}
		if err == nil {
			err = d.segment(mark, body)
		}
		if err != nil {
			return nil, fmt.Errorf("JPEG-LS: %w", err)
		}
	}
	if d.seen < f.Samples {
		return nil, fmt.Errorf("JPEG-LS: %w: %d components of %d", ErrMalformed, d.seen, f.Samples)
	}
	return d.out, nil
}

func (d *jpegLS) segment(mark byte, b []byte) error {
	switch mark {
	case markSOF55:
		return d.frame(b)
	case markLSE:
		return d.presets(b)
	case markSOS:
		return d.scan(b)
	case markDRI:
		for _, v := range b {
			if v != 0 {
				return fmt.Errorf("%w: restart intervals", ErrUnsupportedSyntax)
			}
		}
	case markAPP8:
		if len(b) >= 5 && string(b[:4]) == "mrfx" && b[4] != 0 {
			return fmt.Errorf("%w: a colour transformation that DICOM does not have", ErrUnsupportedSyntax)
		}
	}
	if mark >= markSOF0 && mark <= markSOF15 && mark != markDHT && mark != markJPG && mark != markDAC {
		return fmt.Errorf("%w: the stream is JPEG, not JPEG-LS", ErrMalformed)
	}
	return nil
}

// frame reads the frame header, which must say what the data set says.
func (d *jpegLS) frame(b []byte) error {
	if d.ids != nil || len(b) < 6 || len(b) < 6+3*int(b[5]) {
		return fmt.Errorf("%w: a frame header", ErrMalformed)
	}
	d.precision = int(b[0])
	rows, columns := int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
	if rows != d.f.Rows || columns != d.f.Columns || int(b[5]) != d.f.Samples || d.precision < 2 || d.precision > min(16, d.f.BitsAllocated) {
		return fmt.Errorf("%w: the stream has %d components of %d x %d and %d bits, the data set %d of %d x %d", ErrMalformed,
			b[5], columns, rows, d.precision, d.f.Samples, d.f.Columns, d.f.Rows)
	}
	for i := range int(b[5]) {
		if b[7+3*i] != 0x11 {
			return fmt.Errorf("%w: components of several sizes", ErrUnsupportedSyntax)
		}
		d.ids = append(d.ids, b[6+3*i])
	}
	d.out = newFrame(d.f)
	return nil
}

func (d *jpegLS) presets(b []byte) error {
	if len(b) < 11 || b[0] != 1 {
		return fmt.Errorf("%w: mapping tables or sizes of their own", ErrUnsupportedSyntax)
	}
	n := func(i int) int { return int(binary.BigEndian.Uint16(b[1+2*i:])) }
	d.preset = lsPreset{n(0), n(1), n(2), n(3), n(4)}
	return nil
}

// scan decodes one scan.
func (d *jpegLS) scan(b []byte) error {
	n := 0
	if len(b) > 0 {
		n = int(b[0])
	}
	if d.ids == nil || n < 1 || len(b) < 4+2*n || d.seen+n > d.f.Samples {
		return fmt.Errorf("%w: a scan header", ErrMalformed)
	}
	samples := make([]int, n)
	for i := range samples {
		samples[i] = -1
		for s, id := range d.ids {
			if id == b[1+2*i] {
				samples[i] = s
			}
		}
		if samples[i] < 0 {
			return fmt.Errorf("%w: a component of the scan header", ErrMalformed)
		}
		if b[2+2*i] != 0 {
			return fmt.Errorf("%w: mapping tables", ErrUnsupportedSyntax)
		}
	}
	near, mode, transform := int(b[1+2*n]), int(b[2+2*n]), b[3+2*n]
	if transform != 0 {
		return fmt.Errorf("%w: a point transform", ErrUnsupportedSyntax)
	}
	if mode > interleaveSample || mode == interleaveNone && n > 1 {
		return fmt.Errorf("%w: interleave mode %d of %d components", ErrMalformed, mode, n)
	}
	s, err := newLSScan(d.precision, near, d.preset)
	if err != nil {
		return err
	}
	s.in = lsBits{data: d.in.data, pos: d.in.pos}
	d.seen += n
	err = d.lines(s, samples, mode == interleaveSample && n > 1)
	for d.in.pos = s.in.pos; d.in.pos+1 < len(d.in.data) && (d.in.data[d.in.pos] != 0xFF || d.in.data[d.in.pos+1] < 0x80); d.in.pos++ {
	}
	return err
}

// lines decodes the lines of a scan: of its components by turns, or of all at once.
func (d *jpegLS) lines(s *lsScan, samples []int, together bool) error {
	w := d.f.Columns
	lines := make([]lsLine, len(samples))
	for i := range lines {
		lines[i] = lsLine{now: make([]int, w+2), above: make([]int, w+2)}
	}
	for y := range d.f.Rows {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		for i := range lines {
			l := &lines[i]
			l.now, l.above = l.above, l.now
			l.now[0], l.above[w+1] = l.above[1], l.above[w]
			if !together {
				s.line(lines[i:i+1], w)
			}
		}
		if together {
			s.line(lines, w)
		}
		if s.in.over() {
			return fmt.Errorf("%w: the scan ends early", ErrMalformed)
		}
		for i, sample := range samples {
			to := d.out.Samples[y*w*d.f.Samples+sample:]
			for x, v := range lines[i].now[1 : w+1] {
				to[x*d.f.Samples] = d.f.extend(uint32(v))
			}
		}
	}
	return nil
}

// lsLine is a line of one component and the one above, with a sample more at both ends.
type lsLine struct {
	now, above []int
	runIndex   int
}

// lsBits reads the bits of a JPEG-LS scan: a byte behind 0xFF has seven (ISO 14495-1 §A.1). At a marker or the end it gives zeros and counts them.
type lsBits struct {
	data []byte
	pos  int
	acc  uint64
	n    int
	fake int
	full bool // the byte before was 0xFF
}

func (b *lsBits) fill() {
	for b.n <= 48 {
		if b.pos >= len(b.data) || b.full && b.data[b.pos] >= 0x80 || !b.full && b.data[b.pos] == 0xFF && b.ends() {
			b.acc <<= 8
			b.n += 8
			b.fake += 8
			continue
		}
		v, width := b.data[b.pos], 8
		if b.full {
			width = 7
		}
		b.full = v == 0xFF
		b.pos++
		b.acc = b.acc<<width | uint64(v)
		b.n += width
	}
}

// ends tells whether the 0xFF ahead begins a marker.
func (b *lsBits) ends() bool { return b.pos+1 >= len(b.data) || b.data[b.pos+1] >= 0x80 }

func (b *lsBits) over() bool { return b.fake > b.n }

// take returns the next n bits, at most 32.
func (b *lsBits) take(n int) int {
	if b.n < n {
		b.fill()
	}
	b.n -= n
	return int(b.acc>>b.n) & (1<<n - 1)
}

// zeros counts the zeros up to the next one, which is taken too; most are more than any code has.
func (b *lsBits) zeros(most int) int {
	count := 0
	for count <= most {
		if b.n == 0 {
			b.fill()
		}
		ahead := b.acc << (64 - b.n)
		if ahead != 0 {
			z := mathbits.LeadingZeros64(ahead)
			b.n -= z + 1
			return count + z
		}
		count += b.n
		b.n = 0
	}
	return count
}

// golomb decodes a code of limited length (ISO 14495-1 §A.5.3).
func (b *lsBits) golomb(k, limit, wide int) int {
	z := b.zeros(limit)
	if z < limit-wide-1 {
		return z<<k | b.take(k)
	}
	return b.take(wide) + 1
}
