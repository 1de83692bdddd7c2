package pixel

import (
	"fmt"
)

// blocks decodes the blocks of a sequential or progressive scan (ISO 10918-1 §A.2, §F.2, §G.2).
func (d *jpeg) blocks(h scanHeader, in *bits) error {
	s := &blockScan{scanHeader: h, in: in, progressive: d.kind == markSOF2}
	alone := len(h.components) == 1
	across, down := divUp(d.columns, 8*d.maxH), divUp(d.rows, 8*d.maxV)
	if alone {
		across, down = divUp(h.components[0].columns, 8), divUp(h.components[0].rows, 8)
	}
	left := d.restart
	for y := range down {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		for x := range across {
			if d.restart > 0 && left == 0 {
				if err := s.again(); err != nil {
					return err
				}
				left = d.restart
			}
			left--
			for _, c := range h.components {
				if alone {
					s.block(c, x, y)
					continue
				}
				for i := range c.h * c.v {
					s.block(c, x*c.h+i%c.h, y*c.v+i/c.h)
				}
			}
			if in.over() {
				return fmt.Errorf("%w: the scan ends early or has a code that is in no table", ErrMalformed)
			}
		}
	}
	return nil
}

// blockScan is the state of one scan of blocks.
type blockScan struct {
	scanHeader
	in          *bits
	progressive bool
	endRun      int // blocks still to come without further coefficients (ISO 10918-1 §G.1.2.2)
}

func (s *blockScan) again() error {
	s.endRun = 0
	for _, c := range s.components {
		c.previous = 0
	}
	return s.in.restart()
}

func (s *blockScan) block(c *component, x, y int) {
	b := c.coefficients[64*(y*c.wide+x):][:64]
	switch {
	case !s.progressive:
		s.sequential(c, b)
	case s.first == 0 && s.high == 0:
		c.previous += s.in.extend(min(s.in.code(c.dc), 16))
		b[0] = int16(c.previous << s.low)
	case s.first == 0:
		b[0] |= int16(s.in.take(1) << s.low)
	case s.high == 0:
		s.firstPass(c, b)
	default:
		s.refine(c, b)
	}
}

// sequential decodes all coefficients of a block (ISO 10918-1 §F.2.2).
func (s *blockScan) sequential(c *component, b []int16) {
	c.previous += s.in.extend(min(s.in.code(c.dc), 16))
	b[0] = int16(c.previous)
	for k := 1; k < 64; k++ {
		rs := s.in.code(c.ac)
		run, size := rs>>4, rs&15
		if size == 0 {
			if run < 15 {
				return
			}
			k += 15
			continue
		}
		k += run
		v := s.in.extend(size)
		if k > 63 {
			return
		}
		b[zigzag[k]] = int16(v)
	}
}

// firstPass decodes the high bits of some coefficients (ISO 10918-1 §G.1.2.2).
func (s *blockScan) firstPass(c *component, b []int16) {
	if s.endRun > 0 {
		s.endRun--
		return
	}
	for k := s.first; k <= s.last; k++ {
		rs := s.in.code(c.ac)
		run, size := rs>>4, rs&15
		if size == 0 {
			if run < 15 {
				s.endRun = 1<<run - 1 + s.in.take(run)
				return
			}
			k += 15
			continue
		}
		k += run
		v := s.in.extend(size)
		if k > s.last {
			return
		}
		b[zigzag[k]] = int16(v << s.low)
	}
}

// refine decodes one more bit of some coefficients (ISO 10918-1 §G.1.2.3).
func (s *blockScan) refine(c *component, b []int16) {
	k, bit := s.first, int16(1)<<s.low
	for s.endRun == 0 && k <= s.last {
		rs := s.in.code(c.ac)
		run, size := rs>>4, rs&15
		value := int16(0)
		switch {
		case size > 0:
			if value = bit; s.in.take(1) == 0 {
				value = -bit
			}
		case run < 15:
			s.endRun = 1<<run + s.in.take(run)
			run = 64
		}
		if s.endRun > 0 {
			break
		}
		k = s.skip(b, k, run, bit)
		if value != 0 && k <= s.last {
			b[zigzag[k]] = value
		}
		k++
	}
	if s.endRun > 0 {
		s.endRun--
		s.skip(b, k, 64, bit)
	}
}

// skip passes over run coefficients that are zero so far, refines the others on the way, and returns where it stopped.
func (s *blockScan) skip(b []int16, k, run int, bit int16) int {
	for ; k <= s.last; k++ {
		v := &b[zigzag[k]]
		if *v == 0 {
			if run == 0 {
				return k
			}
			run--
			continue
		}
		if s.in.take(1) == 1 && *v&bit == 0 {
			if *v > 0 {
				*v += bit
			} else {
				*v -= bit
			}
		}
	}
	return k
}

// reconstruct turns coefficients into samples: dequantization, inverse transform, level shift, and chrominance brought to every pixel.
func (d *jpeg) reconstruct() error {
	for i := range d.components {
		c := &d.components[i]
		plane, err := d.plane(c)
		if err != nil {
			return err
		}
		c.coefficients = nil
		if err := d.upsample(c, plane, i); err != nil {
			return err
		}
	}
	return nil
}

// plane returns the samples of a component, in rows of 8*wide.
func (d *jpeg) plane(c *component) ([]uint16, error) {
	plane := make([]uint16, 64*c.wide*c.high)
	pass1 := 2
	if d.precision > 8 {
		pass1 = 1
	}
	t := transform{quant: &d.quants[c.quant], pass1: pass1, center: 1 << (d.precision - 1), stride: 8 * c.wide}
	for y := range c.high {
		if err := d.ctx.Err(); err != nil {
			return nil, err
		}
		for x := range c.wide {
			t.inverse(c.coefficients[64*(y*c.wide+x):][:64], plane[64*y*c.wide+8*x:])
		}
	}
	return plane, nil
}

// transform is the inverse DCT in integers of Loeffler, Ligtenberg and Moschytz, rounded as the reference implementation of the
// Independent JPEG Group rounds it, so that samples are the same to the bit.
type transform struct {
	quant         *[64]int32
	pass1, center int
	stride        int
}

const dctBits = 13

func (t *transform) inverse(in []int16, out []uint16) {
	var w [64]int
	for i, v := range in {
		w[i] = int(v) * int(t.quant[i])
	}
	for x := range 8 {
		butterfly(w[x:], 8, dctBits-t.pass1)
	}
	top := 2*t.center - 1
	for y := range 8 {
		row := w[8*y : 8*y+8]
		butterfly(row, 1, dctBits+t.pass1+3)
		for x, v := range row {
			out[y*t.stride+x] = uint16(min(max(v+t.center, 0), top))
		}
	}
}

// butterfly transforms eight values in place and divides by 2^shift, rounding.
func butterfly(v []int, step, shift int) {
	_ = v[7*step]
	half := 1 << (shift - 1)
	z1 := (v[2*step] + v[6*step]) * 4433
	t2, t3 := z1-v[6*step]*15137, z1+v[2*step]*6270
	t0, t1 := (v[0]+v[4*step])<<dctBits, (v[0]-v[4*step])<<dctBits
	e0, e3, e1, e2 := t0+t3, t0-t3, t1+t2, t1-t2

	o0, o1, o2, o3 := v[7*step], v[5*step], v[3*step], v[step]
	z1, z2, z3, z4 := -(o0+o3)*7373, -(o1+o2)*20995, o0+o2, o1+o3
	z5 := (z3 + z4) * 9633
	z3, z4 = z5-z3*16069, z5-z4*3196
	o0, o1, o2, o3 = o0*2446+z1+z3, o1*16819+z2+z4, o2*25172+z2+z3, o3*12299+z1+z4

	v[0], v[7*step] = (e0+o3+half)>>shift, (e0-o3+half)>>shift
	v[step], v[6*step] = (e1+o2+half)>>shift, (e1-o2+half)>>shift
	v[2*step], v[5*step] = (e2+o1+half)>>shift, (e2-o1+half)>>shift
	v[3*step], v[4*step] = (e3+o0+half)>>shift, (e3-o0+half)>>shift
}

// upsample writes component c as sample i of the pixels. Chrominance halved in columns, or in both directions, is interpolated
// with weights 3:1 as the reference implementation does; other proportions repeat samples.
func (d *jpeg) upsample(c *component, plane []uint16, i int) error {
	h, v, n := d.maxH/c.h, d.maxV/c.v, d.f.Samples
	if d.maxH%c.h != 0 || d.maxV%c.v != 0 {
		return fmt.Errorf("%w: JPEG components in odd proportions", ErrUnsupportedSyntax)
	}
	smooth := h == 2 && v <= 2 && c.columns > 2
	stride := 8 * c.wide
	for y := range d.rows {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		near := plane[y/v*stride:][:c.columns]
		to := d.out.Samples[y*d.columns*n+i:]
		switch {
		case smooth && v == 1:
			for x := range d.columns {
				to[x*n] = d.f.extend(uint32(between(near, x)))
			}
		case smooth:
			other := y/v - 1 + 2*(y%v)
			far := plane[min(max(other, 0), c.rows-1)*stride:][:c.columns]
			for x := range d.columns {
				to[x*n] = d.f.extend(uint32(amid(near, far, x)))
			}
		default:
			for x := range d.columns {
				to[x*n] = d.f.extend(uint32(near[x/h]))
			}
		}
	}
	return nil
}

// between interpolates pixel x in a row of samples for two pixels each.
func between(row []uint16, x int) int {
	i := x / 2
	v := 3 * int(row[i])
	switch {
	case x == 0 || x == 2*len(row)-1:
		return int(row[i])
	case x%2 == 0:
		return (v + int(row[i-1]) + 1) >> 2
	}
	return (v + int(row[i+1]) + 2) >> 2
}

// amid interpolates pixel x from samples for two by two pixels: near is the row that it lies in, far the next one on its side.
func amid(near, far []uint16, x int) int {
	i := x / 2
	sum := func(i int) int { return 3*int(near[i]) + int(far[i]) }
	v := sum(i)
	switch {
	case x == 0:
		return (4*v + 8) >> 4
	case x == 2*len(near)-1:
		return (4*v + 7) >> 4
	case x%2 == 0:
		return (3*v + sum(i-1) + 8) >> 4
	}
	return (3*v + sum(i+1) + 7) >> 4
}
