package pixel

import (
	"fmt"
	mathbits "math/bits"
)

// lsRuns is the order of run lengths by index (ISO 14495-1 §A.2.1).
var lsRuns = [32]int{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15}

const (
	lsContexts  = 365 // of regular mode; two of run interruptions follow
	lsResetOwn  = 64  // RESET by default
	lsBiasLimit = 128
)

// lsContext is what is known of one kind of neighbourhood: A, B, C and N; B is Nn for run interruptions.
type lsContext struct{ a, b, c, n int }

// lsScan is the state of one scan; its names follow ISO 14495-1 Annex A.
type lsScan struct {
	in                                 lsBits
	max, near, step, span, wide, limit int
	t1, t2, t3, reset                  int
	contexts                           [lsContexts + 2]lsContext
}

// newLSScan sets the parameters of a scan (ISO 14495-1 §A.2.1, §C.2.4.1.1).
func newLSScan(precision, near int, p lsPreset) (*lsScan, error) {
	s := &lsScan{max: 1<<precision - 1, near: near, reset: lsResetOwn}
	if p.max > 0 {
		s.max = min(p.max, s.max)
	}
	if near > min(255, s.max/2) {
		return nil, fmt.Errorf("%w: NEAR %d with samples up to %d", ErrMalformed, near, s.max)
	}
	if p.reset > 0 {
		s.reset = max(p.reset, 3)
	}
	s.thresholds(p)
	if s.t1 < near+1 || s.t2 < s.t1 || s.t3 < s.t2 || s.t3 > s.max {
		return nil, fmt.Errorf("%w: thresholds %d, %d, %d", ErrMalformed, s.t1, s.t2, s.t3)
	}
	s.step = 2*near + 1
	s.span = (s.max+2*near)/s.step + 1
	s.wide = mathbits.Len(uint(s.span - 1))
	bpp := max(2, mathbits.Len(uint(s.max)))
	s.limit = 2 * (bpp + max(8, bpp))
	for i := range s.contexts {
		s.contexts[i] = lsContext{a: max(2, (s.span+32)/64), n: 1}
	}
	return s, nil
}

func (s *lsScan) thresholds(p lsPreset) {
	clamp := func(v, low int) int {
		if v > s.max || v < low {
			return low
		}
		return v
	}
	if factor := (min(s.max, 4095) + 128) / 256; s.max >= 128 {
		s.t1 = clamp(factor+2+3*s.near, s.near+1)
		s.t2 = clamp(4*factor+3+5*s.near, s.t1)
		s.t3 = clamp(17*factor+4+7*s.near, s.t2)
	} else {
		factor = 256 / (s.max + 1)
		s.t1 = clamp(max(2, 3/factor+3*s.near), s.near+1)
		s.t2 = clamp(max(3, 7/factor+5*s.near), s.t1)
		s.t3 = clamp(max(4, 21/factor+7*s.near), s.t2)
	}
	for _, t := range []struct {
		to  *int
		set int
	}{{&s.t1, p.t1}, {&s.t2, p.t2}, {&s.t3, p.t3}} {
		if t.set > 0 {
			*t.to = t.set
		}
	}
}

// quantize is the region of a gradient (ISO 14495-1 §A.3.3).
func (s *lsScan) quantize(d int) int {
	sign := 1
	if d < 0 {
		d, sign = -d, -1
	}
	switch {
	case d <= s.near:
		return 0
	case d < s.t1:
		return sign
	case d < s.t2:
		return 2 * sign
	case d < s.t3:
		return 3 * sign
	}
	return 4 * sign
}

// context returns the number of the neighbourhood at x, from 1: negative when its sign is, 0 where a run begins.
func (s *lsScan) context(l *lsLine, x int) int {
	a, b, c, d := l.now[x-1], l.above[x], l.above[x-1], l.above[x+1]
	return 81*s.quantize(d-b) + 9*s.quantize(b-c) + s.quantize(c-a)
}

// line decodes a line of one component, or of all that are interleaved by sample.
func (s *lsScan) line(lines []lsLine, w int) {
	for x := 1; x <= w; {
		var found [samplesPerPixelMax]int
		flat := true
		for i := range lines {
			found[i] = s.context(&lines[i], x)
			flat = flat && found[i] == 0
		}
		if flat {
			x = s.run(lines, x, w)
			continue
		}
		for i := range lines {
			lines[i].now[x] = s.regular(&lines[i], x, found[i])
		}
		x++
	}
}

// regular decodes a sample in its context (ISO 14495-1 §A.4 to §A.6). q is negative for a context whose signs are turned. A context of 0 occurs
// among samples that are interleaved.
func (s *lsScan) regular(l *lsLine, x, q int) int {
	a, b, c := l.now[x-1], l.above[x], l.above[x-1]
	sign := 1
	if q < 0 {
		q, sign = -q, -1
	}
	ctx := &s.contexts[q]
	guess := a + b - c
	if c >= max(a, b) {
		guess = min(a, b)
	} else if c <= min(a, b) {
		guess = max(a, b)
	}
	guess = min(max(guess+sign*ctx.c, 0), s.max)
	k := ctx.order(ctx.a)
	mapped := s.in.golomb(k, s.limit, s.wide)
	e := mapped >> 1
	if mapped&1 == 1 {
		e = -e - 1
	}
	if s.near == 0 && k == 0 && 2*ctx.b <= -ctx.n {
		e = -e - 1
	}
	ctx.learn(e, s.step, s.reset)
	return s.restore(guess + sign*e*s.step)
}

// order is the parameter k of a Golomb code.
func (c *lsContext) order(a int) int {
	k := 0
	for c.n<<k < a && k < 24 {
		k++
	}
	return k
}

// learn takes an error into the context and corrects its bias (ISO 14495-1 §A.6).
func (c *lsContext) learn(e, step, reset int) {
	c.b += e * step
	c.a += max(e, -e)
	if c.n == reset {
		c.a, c.b, c.n = c.a>>1, c.b>>1, c.n>>1
	}
	c.n++
	switch {
	case c.b <= -c.n:
		c.b = max(c.b+c.n, -c.n+1)
		c.c = max(c.c-1, -lsBiasLimit)
	case c.b > 0:
		c.b = min(c.b-c.n, 0)
		c.c = min(c.c+1, lsBiasLimit-1)
	}
}

// restore brings a sample back into its range (ISO 14495-1 §A.4.5).
func (s *lsScan) restore(v int) int {
	if v < -s.near {
		v += s.span * s.step
	} else if v > s.max+s.near {
		v -= s.span * s.step
	}
	return min(max(v, 0), s.max)
}

// run decodes a run from x on and the sample that ends it, and returns where it goes on (ISO 14495-1 §A.7).
func (s *lsScan) run(lines []lsLine, x, w int) int {
	first := &lines[0] // its run index is the one of all
	from := x
	for {
		length := 1 << lsRuns[first.runIndex]
		if s.in.take(1) == 0 {
			x += s.in.take(lsRuns[first.runIndex])
			break
		}
		x += length
		if x <= w+1 && first.runIndex < 31 {
			first.runIndex++
		}
		if x > w {
			break
		}
	}
	ended := x > w
	x = min(x, w+1)
	for i := range lines {
		l := &lines[i]
		for j := from; j < x; j++ {
			l.now[j] = l.now[from-1]
		}
	}
	if ended {
		return x
	}
	for i := range lines {
		lines[i].now[x] = s.interruption(&lines[i], x, lsRuns[first.runIndex], len(lines) > 1)
	}
	if first.runIndex > 0 {
		first.runIndex--
	}
	return x + 1
}

// interruption decodes the sample behind a run (ISO 14495-1 §A.7.2).
func (s *lsScan) interruption(l *lsLine, x, order int, together bool) int {
	a, b := l.now[x-1], l.above[x]
	kind, guess, sign := 0, b, 1
	if max(a-b, b-a) <= s.near && !together {
		kind, guess = 1, a
	} else if a > b {
		sign = -1
	}
	ctx := &s.contexts[lsContexts+kind]
	k := ctx.order(ctx.a + kind*(ctx.n>>1))
	mapped := s.in.golomb(k, s.limit-order-1, s.wide)
	odd := (mapped + kind) & 1
	e := (mapped + kind + odd) / 2
	if (k != 0 || 2*ctx.b >= ctx.n) == (odd == 1) {
		e = -e
	}
	if e < 0 {
		ctx.b++
	}
	ctx.a += (mapped + 1 - kind) >> 1
	if ctx.n == s.reset {
		ctx.a, ctx.b, ctx.n = ctx.a>>1, ctx.b>>1, ctx.n>>1
	}
	ctx.n++
	return s.restore(guess + sign*e*s.step)
}
