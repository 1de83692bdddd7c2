package dul

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Timers are the times an association waits. Zero values mean the defaults.
type Timers struct {
	// ARTIM runs from the open transport to the complete A-ASSOCIATE-RQ, and on
	// the calling side to the answer. Default 30 s.
	ARTIM time.Duration
	// Linger is the ARTIM time after an abort, a rejection or a release, while
	// the peer closes the transport. Default 5 s.
	Linger time.Duration
	// Idle is the longest silence between PDUs while no work is under way; on
	// the calling side the longest wait for a response. Default 120 s.
	Idle time.Duration
	// Window is the time over which a peer inside a PDU must average 1 KiB/s.
	// Default 10 s.
	Window time.Duration
	// Write is the longest time one write (at most 128 KiB) may take. Default
	// 60 s.
	Write time.Duration
}

func (t Timers) withDefaults() Timers {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.ARTIM, defaultARTIM)
	set(&t.Linger, defaultLinger)
	set(&t.Idle, defaultIdle)
	set(&t.Window, defaultWindow)
	set(&t.Write, defaultWrite)
	return t
}

// phase is what a read waits for.
type phase uint64

const (
	phaseNone   phase = iota
	phaseARTIM        // the transport is open, no association yet
	phaseIdle         // between PDUs
	phaseBody         // inside a PDU
	phaseLinger       // waiting for the peer to close
	phaseCount
)

const (
	phaseBits = 4
	beatsPer  = 10 // a time is kept to a tenth
	beatMin   = time.Millisecond
	beatMax   = time.Second
	longAgo   = 1 // a deadline in the past, in seconds of Unix time
)

// errWriteStalled is the ErrStalled of a peer that does not read.
var errWriteStalled = fmt.Errorf("peer does not read: %w", ErrStalled)

// watch ends reads and writes that take too long. It counts beats of one
// timer instead of asking a clock, and counts only beats at which the reader
// was blocked on the network: a peer is not blamed for the slowness of whoever
// consumes its data. The reader pays two atomic stores a read.
type watch struct {
	conn   net.Conn
	beat   time.Duration
	limits [phaseCount]int // beats
	write  int             // beats
	need   int64           // bytes a window must bring

	phase    atomic.Uint64 // sequence number << phaseBits | phase
	reading  atomic.Bool
	received atomic.Int64
	writing  atomic.Uint64 // odd while a write is under way
	work     atomic.Int64
	cause    atomic.Pointer[error]

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool

	// Owned by the timer function.
	seen         uint64
	blocked      int
	mark         int64
	seenWrite    uint64
	blockedWrite int
}

func newWatch(conn net.Conn, t Timers) *watch {
	beat := min(t.ARTIM, t.Linger, t.Idle, t.Window, t.Write) / beatsPer
	beat = min(max(beat, beatMin), beatMax)
	w := &watch{conn: conn, beat: beat}
	beats := func(d time.Duration) int { return int((d + beat - 1) / beat) }
	w.limits[phaseARTIM] = beats(t.ARTIM)
	w.limits[phaseLinger] = beats(t.Linger)
	w.limits[phaseIdle] = beats(t.Idle)
	w.limits[phaseBody] = beats(t.Window)
	w.write = beats(t.Write)
	w.need = max(1, int64(t.Window.Seconds()*progressBytesPerSecond))
	w.mu.Lock()
	w.timer = time.AfterFunc(beat, w.onBeat)
	w.mu.Unlock()
	return w
}

// enter starts a phase and its count.
func (w *watch) enter(p phase) {
	seq := w.phase.Load() >> phaseBits
	w.phase.Store((seq+1)<<phaseBits | uint64(p))
}

// stop ends the timer for good.
func (w *watch) stop() {
	w.mu.Lock()
	w.stopped = true
	w.timer.Stop()
	w.mu.Unlock()
}

// err is why the watch ended the connection, or nil.
func (w *watch) err() error {
	if p := w.cause.Load(); p != nil {
		return *p
	}
	return nil
}

func (w *watch) onBeat() {
	w.checkRead()
	w.checkWrite()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(w.beat)
	}
}

func (w *watch) checkRead() {
	at := w.phase.Load()
	got := w.received.Load()
	p := phase(at & (1<<phaseBits - 1))
	if at != w.seen {
		w.seen, w.blocked, w.mark = at, 0, got
	}
	if p == phaseNone || p >= phaseCount {
		return
	}
	if p == phaseIdle && w.work.Load() > 0 || p == phaseBody && got-w.mark >= w.need {
		w.blocked, w.mark = 0, got
		return
	}
	if w.reading.Load() {
		w.blocked++
	}
	if w.blocked <= w.limits[p] {
		return
	}
	switch p {
	case phaseIdle:
		w.expire(ErrIdle)
	case phaseBody:
		w.expire(ErrStalled)
	default:
		w.expire(ErrARTIM)
	}
}

func (w *watch) checkWrite() {
	seq := w.writing.Load()
	if seq != w.seenWrite || seq%2 == 0 {
		w.seenWrite, w.blockedWrite = seq, 0
		return
	}
	if w.blockedWrite++; w.blockedWrite > w.write {
		w.expire(errWriteStalled)
	}
}

// expire makes every read and write on the connection fail with err.
func (w *watch) expire(err error) {
	w.cause.CompareAndSwap(nil, &err)
	interrupt(w.conn)
}

// interrupt fails pending and later reads and writes.
func interrupt(conn net.Conn) {
	past := time.Unix(longAgo, 0)
	conn.SetDeadline(past)
}
