package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// lineStream is a stream on a line. The line's mu guards what has no note of its own.
type lineStream struct {
	line   *line
	peer   Peer
	kind   Kind
	ctx    context.Context // ends when the peer gives the stream up, with the stream and with the line
	cancel context.CancelCauseFunc
	ready  chan struct{} // holds a token when something changed for the reader

	rmu sync.Mutex // held over a Read

	announced bool // the peer knows of the stream; changed with the line's wmu held too
	avail     int  // bytes of the data frame under way that nobody has read
	reading   bool // the reader is inside TLS
	readBy    time.Time
	recvOver  bool // the peer's direction is over
	recvErr   error
	stop      error // the peer reads no more
	ended     bool  // CloseWrite was called
	closed    bool  // Close or Abort was called: nobody reads or writes any more
	aborted   bool
	code      byte        // of the reset
	finished  bool        // the last frames were handed to the line
	sentOver  bool        // and have gone out
	dropped   int         // bytes that came after closed
	late      *time.Timer // ends the line of an aborted stream
}

func newLineStream(c *line, kind Kind) *lineStream {
	s := &lineStream{line: c, kind: kind, ready: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(c.ctx)
	return s
}

func (s *lineStream) Peer() Peer { return s.peer }

// Context ends when the peer gives the stream up, with the stream and with its line.
func (s *lineStream) Context() context.Context { return s.ctx }

// wake makes a waiting reader look again. The line's mu is held.
func (s *lineStream) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *lineStream) Read(p []byte) (int, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if err := s.announce(); err != nil {
		return 0, err
	}
	for {
		n, until, err := s.read(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if until.IsZero() {
			<-s.ready
			continue
		}
		timer := time.NewTimer(until.Sub(s.line.now()))
		select {
		case <-s.ready:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// read returns what is there, the error that is, or neither and until when to wait.
func (s *lineStream) read(p []byte) (n int, until time.Time, err error) {
	c := s.line
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.closed:
		return 0, until, fmt.Errorf("stream %w", ErrClosed)
	case !s.readBy.IsZero() && !c.now().Before(s.readBy):
		return 0, until, os.ErrDeadlineExceeded
	case s.avail > 0 && len(p) > 0 && c.ctx.Err() == nil:
		n, err = s.take(p[:min(len(p), s.avail)])
		return n, s.readBy, err
	case s.recvOver:
		return 0, until, s.recvErr
	case c.ctx.Err() != nil:
		return 0, until, c.lost()
	}
	return 0, s.readBy, nil
}

// take reads bytes of the frame under way. The line's mu is held, but not over the read.
func (s *lineStream) take(p []byte) (int, error) {
	c := s.line
	s.reading = true
	if !s.readBy.IsZero() {
		_ = c.raw.SetReadDeadline(s.readBy) // fails on a dead line only, as the read will
	}
	c.mu.Unlock()
	n, err := c.tls.Read(p)
	c.mu.Lock()
	s.reading = false
	s.avail -= n
	if !s.readBy.IsZero() || err != nil {
		_ = c.raw.SetReadDeadline(time.Time{})
	}
	if s.avail == 0 || s.closed || err != nil {
		c.turn.Broadcast()
	}
	if n > 0 || err == nil {
		return n, nil
	}
	s.wake() // look again: closed, out of time, or the time was moved
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	c.cancel(err) // run, which waits for this frame, ends the line
	return 0, c.lost()
}

// announce sends the frame that opens the stream if it was not sent yet.
func (s *lineStream) announce() error {
	c := s.line
	c.mu.Lock()
	known := s.announced || s.closed
	c.mu.Unlock()
	if known {
		return nil
	}
	_, err := s.Write(nil)
	return err
}

func (s *lineStream) Write(p []byte) (int, error) { return s.writeParts(nil, p) }

// writeParts writes first, of at most writeCoalesce bytes, and p with it. n counts both.
func (s *lineStream) writeParts(first, p []byte) (n int, err error) {
	c := s.line
	c.wmu.Lock()
	defer s.unlockWrite()
	for {
		head, err := s.writable()
		if err != nil {
			return n, err
		}
		chunk := p[:min(len(p), lineChunkBytes-len(first))]
		p = p[len(chunk):]
		size := len(first) + len(chunk)
		if size > 0 {
			head = append(appendLineHead(head, lineData, size), first...)
		}
		if size <= writeCoalesce {
			head, chunk = append(head, chunk...), nil
		}
		if err := s.put(head, chunk); err != nil {
			return n, err
		}
		n, first = n+size, nil
		if err := s.flush(); err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// writable says whether bytes may be written, and returns the frame that must go before the first of them.
// What an earlier write left behind goes out first. The line's wmu is held.
func (s *lineStream) writable() (head []byte, err error) {
	if err := s.flush(); err != nil {
		return nil, err
	}
	c := s.line
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.closed || s.ended:
		return nil, fmt.Errorf("stream %w", ErrClosed)
	case c.ctx.Err() != nil:
		return nil, c.lost()
	case s.stop != nil:
		return nil, s.stop
	}
	head = make([]byte, 0, 2*lineHead+1+writeCoalesce)
	if !s.announced {
		s.announced = true
		head = append(appendLineHead(head, lineOpen, 1), byte(s.kind))
	}
	return head, nil
}

// put hands bytes to TLS, which encrypts them into the line's buffer. The line's wmu is held.
func (s *lineStream) put(parts ...[]byte) error {
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if _, err := s.line.tls.Write(p); err != nil { // TLS itself is broken: the buffer takes everything
			s.line.fail(err)
			return s.line.lost()
		}
	}
	return nil
}

// flush sends the line's buffer. After an expired deadline what is left goes with the next write. The line's wmu is held.
func (s *lineStream) flush() error {
	c := s.line
	err := c.out.flush()
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail(err)
		return c.lost()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed {
		return fmt.Errorf("stream %w", ErrClosed)
	}
	return os.ErrDeadlineExceeded
}

// unlockWrite ends a Write. When the stream was closed meanwhile it sends the last frames in Close's stead.
func (s *lineStream) unlockWrite() {
	c := s.line
	c.wmu.Unlock()
	c.mu.Lock()
	pending := s.closed && !s.finished
	c.mu.Unlock()
	if pending && c.wmu.TryLock() { // else the Write that has the lock comes by here
		s.finish()
	}
}

func (s *lineStream) CloseWrite() error {
	c := s.line
	c.wmu.Lock()
	defer s.unlockWrite()
	c.mu.Lock()
	done := s.ended || s.closed
	c.mu.Unlock()
	if done {
		return nil
	}
	head, err := s.writable()
	if err != nil {
		return err
	}
	if err := s.put(appendLineHead(head, lineEnd, 0)); err != nil {
		return err
	}
	c.mu.Lock()
	s.ended = true
	c.mu.Unlock()
	return s.flush()
}

func (s *lineStream) Close() error {
	s.shut(false, byte(resetClosed))
	return nil
}

// Abort makes the peer see a reset.
func (s *lineStream) Abort() { s.shut(true, byte(resetAborted)) }

// shut ends both directions. A Read or Write under way fails.
func (s *lineStream) shut(abort bool, code byte) {
	c := s.line
	c.mu.Lock()
	if s.finished || (s.closed && !abort) {
		c.mu.Unlock()
		return
	}
	s.closed = true
	if abort {
		s.aborted, s.code = true, code
	}
	if s.reading {
		_ = c.raw.SetReadDeadline(c.now().Add(-time.Second))
	}
	s.wake()
	c.turn.Broadcast()
	c.mu.Unlock()
	if c.wmu.TryLock() {
		s.finish()
		return
	}
	c.mu.Lock()
	if !s.finished { // a Write is under way: make it fail, and say that what was written is not whole
		s.aborted, s.code = true, code
		_ = c.raw.SetWriteDeadline(c.now().Add(-time.Second))
	}
	c.mu.Unlock()
	s.unlockRetry()
}

// unlockRetry covers a Write that ended between a failed TryLock and now.
func (s *lineStream) unlockRetry() {
	if s.line.wmu.TryLock() {
		s.finish()
	}
}

// finish sends the last frames of a closed stream, in a goroutine of its own if they do not go out at once. wmu is held, and
// let go.
func (s *lineStream) finish() {
	c := s.line
	last, ok := s.lastFrames()
	if !ok || s.put(last) != nil {
		c.wmu.Unlock()
		return
	}
	_ = c.raw.SetWriteDeadline(c.now().Add(lineSoon))
	err := c.out.flush()
	if errors.Is(err, os.ErrDeadlineExceeded) && c.spawn(func() { s.finishSlowly() }) {
		return
	}
	s.finishEnd(err)
}

// finishSlowly goes on with finish, as long as the peer takes to read what was written before; after an abort lineCloseTime at most.
// It ends early when the line does.
func (s *lineStream) finishSlowly() {
	var until time.Time
	if s.line.isAborted(s) {
		until = s.line.now().Add(lineCloseTime)
	}
	_ = s.line.raw.SetWriteDeadline(until) // fails on a dead line only, as flush will
	s.finishEnd(s.line.out.flush())
}

func (c *line) isAborted(s *lineStream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.aborted
}

// finishEnd lets go of wmu, and of the line if the peer's direction is over too. Else the peer may take its time to read what was
// written, but lineCloseTime only where that was given up.
func (s *lineStream) finishEnd(err error) {
	c := s.line
	c.wmu.Unlock()
	if err != nil {
		c.fail(err)
		return
	}
	c.mu.Lock()
	s.sentOver = true
	over := c.settle(s)
	if !over && s.aborted && c.cur == s {
		s.late = time.AfterFunc(lineCloseTime, func() { c.fail(errLate) })
	}
	c.mu.Unlock()
	if over {
		c.rest()
	}
}

// lastFrames decides how the stream ends; false when it has ended already.
func (s *lineStream) lastFrames() ([]byte, bool) {
	c := s.line
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.finished {
		return nil, false
	}
	s.finished = true
	if !s.announced { // the peer never heard of it
		s.recvOver = true
		return nil, true
	}
	var b []byte
	if !s.recvOver { // before the end, behind which the peer may open the next stream
		b = append(appendLineHead(b, lineStop, 1), s.code)
	}
	switch {
	case s.aborted && !s.ended:
		b = append(appendLineHead(b, lineReset, 1), s.code)
	case !s.ended:
		b = appendLineHead(b, lineEnd, 0)
	}
	return b, true
}

func (s *lineStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *lineStream) SetReadDeadline(t time.Time) error {
	c := s.line
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.readBy.Equal(t) {
		return nil
	}
	s.readBy = t
	if s.reading {
		_ = c.raw.SetReadDeadline(t) // fails on a dead line only, as the read will
	}
	s.wake()
	return nil
}

func (s *lineStream) SetWriteDeadline(t time.Time) error {
	c := s.line
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.closed {
		_ = c.raw.SetWriteDeadline(t) // fails on a dead line only, as the write will
	}
	return nil
}

// errLate ends a line whose peer goes on with a stream that this side has given up.
var errLate = errors.New("the peer went on with a closed stream")
