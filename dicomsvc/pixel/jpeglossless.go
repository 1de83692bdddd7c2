package pixel

import "fmt"

// lossless decodes a scan of JPEG lossless (ISO 10918-1 Annex H): every sample is the sum, modulo 2^16, of a difference and what the
// predictor makes of its neighbours to the left, above, and above left.
func (d *jpeg) lossless(h scanHeader, in *bits) error {
	if h.first < 1 || h.first > 7 || h.low >= d.precision {
		return fmt.Errorf("%w: predictor %d, point transform %d", ErrMalformed, h.first, h.low)
	}
	s := losslessScan{predictor: h.first, center: 1 << (d.precision - h.low - 1)}
	lines := make([]losslessLine, len(h.components))
	for i, c := range h.components {
		lines[i] = losslessLine{
			table: c.dc, sample: d.index(c), now: make([]uint16, d.columns), above: make([]uint16, d.columns),
		}
	}
	left := d.restart
	for y := range d.rows {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		fresh := y == 0
		from := 0 // where the line begins anew
		for x := range d.columns {
			if d.restart > 0 && left == 0 {
				if err := in.restart(); err != nil {
					return err
				}
				left, fresh, from = d.restart, true, x
			}
			left--
			for i := range lines {
				l := &lines[i]
				l.now[x] = uint16(s.predict(l, x, from, fresh) + in.difference(l.table))
			}
			if in.over() {
				return fmt.Errorf("%w: the scan ends early or has a code that is in no table", ErrMalformed)
			}
		}
		for i := range lines {
			d.putLine(&lines[i], y, h.low)
		}
	}
	return nil
}

type losslessScan struct{ predictor, center int }

// losslessLine is the line being decoded of one component.
type losslessLine struct {
	table      *huffman
	sample     int
	now, above []uint16
}

// difference decodes one difference (ISO 10918-1 §H.1.2.2).
func (b *bits) difference(h *huffman) int {
	size := b.code(h)
	if size >= 16 {
		return 32768
	}
	return b.extend(size)
}

// predict is Table H.1. The first line, and one that begins behind a restart, knows only the sample to the left.
func (s *losslessScan) predict(l *losslessLine, x, from int, fresh bool) int {
	switch {
	case fresh && x == from:
		return s.center
	case fresh:
		return int(l.now[x-1])
	case x == 0:
		return int(l.above[0])
	}
	a, b, c := int(l.now[x-1]), int(l.above[x]), int(l.above[x-1])
	switch s.predictor {
	case 1:
		return a
	case 2:
		return b
	case 3:
		return c
	case 4:
		return a + b - c
	case 5:
		return a + (b-c)>>1
	case 6:
		return b + (a-c)>>1
	}
	return (a + b) >> 1
}

// index is which sample of a pixel component c is.
func (d *jpeg) index(c *component) int {
	for i := range d.components {
		if &d.components[i] == c {
			return i
		}
	}
	return 0
}

// putLine writes a decoded line into the frame and makes it the line above.
func (d *jpeg) putLine(l *losslessLine, y, shift int) {
	n := d.f.Samples
	to := d.out.Samples[y*d.columns*n+l.sample:]
	for x, v := range l.now {
		to[x*n] = d.f.extend(uint32(v) << shift)
	}
	l.now, l.above = l.above, l.now
}
