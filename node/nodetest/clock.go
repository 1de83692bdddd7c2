package nodetest

import (
	"sync"
	"time"
	"unsafe"
)

// Clock is a node's clock: it may be wrong, jump and stand still, while elapsed time stays right, as with a real
// machine whose wall clock is set under a running process.
type Clock struct {
	mu sync.Mutex

	offset time.Duration
	frozen time.Time // zero: it goes
}

// NewClock returns a clock that is right.
func NewClock() *Clock { return new(Clock) }

// Now returns the time that the clock shows. Between two of its times Sub tells the time that really passed.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wall := now.Add(c.offset)
	if !c.frozen.IsZero() {
		wall = c.frozen
	}
	return withMonotonic(wall, now)
}

// Set makes the clock wrong by offset, and go again if it stood still.
func (c *Clock) Set(offset time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.frozen = offset, time.Time{}
}

// Freeze stops the clock.
func (c *Clock) Freeze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = time.Now().Add(c.offset)
}

// origin is a time of the real clock, with a monotonic reading. Libraries measure from such a time, so those of all
// clocks are counted from it.
var origin = time.Now()

// layout is that of time.Time.
type layout struct {
	wall uint64
	ext  int64
	loc  *time.Location
}

// withMonotonic returns wall with the monotonic reading of now. Package time offers no way to say that the wall clock
// and the monotonic clock disagree, and inside a synctest bubble its times have no monotonic reading at all; a layout
// other than the one assumed here fails TestClockJumps.
func withMonotonic(wall, now time.Time) time.Time {
	const (
		hasMonotonic   = 1 << 63
		nsecShift      = 30
		wallToInternal = (1884*365 + 1884/4 - 1884/100 + 1884/400) * 86400
		unixToInternal = (1969*365 + 1969/4 - 1969/100 + 1969/400) * 86400
	)
	t := layout{
		wall: hasMonotonic | uint64(wall.Unix()+unixToInternal-wallToInternal)<<nsecShift | uint64(wall.Nanosecond()),
		ext:  (*layout)(unsafe.Pointer(&origin)).ext + int64(now.Sub(origin)),
		loc:  time.Local,
	}
	return *(*time.Time)(unsafe.Pointer(&t))
}
