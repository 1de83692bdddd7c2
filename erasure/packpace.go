package erasure

import (
	"slices"
	"sync"
	"time"
)

// Pace remembers how long the last reads from one source took. The zero value works. Safe for concurrent
// use.
type Pace struct {
	mu   sync.Mutex
	last [paceSamples]time.Duration
	n    int // samples ever taken
}

// Record adds the time that a read took.
func (p *Pace) Record(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[p.n%paceSamples] = d
	p.n++
}

// P95 returns the 95th percentile of the last reads, and false while there are too few to tell.
func (p *Pace) P95() (time.Duration, bool) {
	p.mu.Lock()
	n := min(p.n, paceSamples)
	samples := p.last
	p.mu.Unlock()
	if n < paceSamples/4 {
		return 0, false
	}
	slices.Sort(samples[:n])
	return samples[(n*95+99)/100-1], true
}

// hedgeAfter returns how long to wait for a source before reading elsewhere too.
func (s Source) hedgeAfter(fixed time.Duration) time.Duration {
	if fixed > 0 {
		return fixed
	}
	if s.Pace != nil {
		if d, ok := s.Pace.P95(); ok {
			return min(max(d, hedgeLeast), hedgeMost)
		}
	}
	return hedgeUsual
}
