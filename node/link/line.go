package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// lineOp says what a frame of a line is.
type lineOp byte

// The frames of a line; the package comment draws them.
const (
	lineOpen  lineOp = 1 // kind u8: the side that dialled begins a stream
	lineData  lineOp = 2 // bytes of the stream
	lineEnd   lineOp = 3 // this direction is over and whole
	lineReset lineOp = 4 // code u8: this direction is over and not whole
	lineStop  lineOp = 5 // code u8: the sender of this frame reads no more
	lineBye   lineOp = 6 // code u8, text: the connection ends, and why
)

const lineHead = 4

// appendLineHead writes the head of a frame of n bytes.
func appendLineHead(dst []byte, op lineOp, n int) []byte {
	return append(dst, byte(op), byte(n), byte(n>>8), byte(n>>16))
}

// parseLineHead reads what appendLineHead wrote and holds each kind of frame to its size. Errors wrap ErrMalformed.
func parseLineHead(b [lineHead]byte) (op lineOp, n int, err error) {
	op, n = lineOp(b[0]), int(b[1])|int(b[2])<<8|int(b[3])<<16
	least, most := 1, 1
	switch op {
	case lineData:
		most = lineDataBytesMax
	case lineEnd:
		least, most = 0, 0
	case lineBye:
		most = 1 + refusalTextBytesMax
	case lineOpen, lineReset, lineStop:
	default:
		return 0, 0, fmt.Errorf("%w: frame of type %d on a line", ErrMalformed, op)
	}
	if n < least || n > most {
		return 0, 0, fmt.Errorf("%w: frame of type %d and %d bytes on a line", ErrMalformed, op, n)
	}
	return op, n, nil
}

// line is one TCP connection under TLS, which carries one stream at a time. One goroutine, run, reads the heads of frames for as
// long as the line lives, so that resets and a dead peer are seen at once; the bytes of a data frame are read by
// the stream's reader itself, straight from TLS, while run waits.
type line struct {
	raw    net.Conn
	tls    io.ReadWriter // the *tls.Conn over out
	out    *gather
	now    func() time.Time
	spawn  func(func()) bool       // starts a goroutine that Link.Close waits for
	serve  func(*lineStream)       // runs the handler of a stream that the peer opened; nil on the side that dialled
	rested func()                  // told when a stream is over at both ends
	ctx    context.Context         // ends with the line; its cause says why
	cancel context.CancelCauseFunc // ends ctx, nothing else: see fail
	served sync.WaitGroup          // the streams that run has handed to serve
	frames atomic.Uint64           // received
	wmu    sync.Mutex              // held over what goes to tls and out; never asked for with mu held

	mu   sync.Mutex
	turn *sync.Cond  // on mu: run waits for the stream's reader, or for the stream before to be over
	cur  *lineStream // nil between streams
}

// newLine makes a line of a connection. It lives until fail or end is called.
func newLine(raw net.Conn, tls io.ReadWriter, out *gather, now func() time.Time, spawn func(func()) bool) *line {
	c := &line{raw: raw, tls: tls, out: out, now: now, spawn: spawn}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.turn = sync.NewCond(&c.mu)
	return c
}

// run serves the line until it breaks or is ended; ctx's cause tells why.
func (c *line) run() {
	defer context.AfterFunc(c.ctx, func() { c.fail(context.Cause(c.ctx)) })() // a reader found the line broken
	for {
		if err := c.next(); err != nil {
			c.fail(err)
			break
		}
	}
	c.served.Wait()
}

// next reads one frame.
func (c *line) next() error {
	var head [lineHead]byte
	if _, err := io.ReadFull(c.tls, head[:]); err != nil {
		return err
	}
	op, n, err := parseLineHead(head)
	if err != nil {
		return err
	}
	c.frames.Add(1)
	if op == lineData {
		return c.deliver(n)
	}
	var small [1 + refusalTextBytesMax]byte
	if _, err := io.ReadFull(c.tls, small[:n]); err != nil {
		return err
	}
	switch op {
	case lineOpen:
		return c.opened(Kind(small[0]))
	case lineBye:
		return &RefusedError{Code: Refusal(small[0]), Text: string(small[1:n]), Remote: true}
	case lineStop:
		return c.stopped(small[0])
	case lineReset:
		return c.ended(resetError(uint64(small[0])))
	}
	return c.ended(io.EOF)
}

// opened begins a stream of the peer's, once this side has let go of the one before.
func (c *line) opened(kind Kind) error {
	if c.serve == nil {
		return fmt.Errorf("%w: a stream opened by the side that was called", ErrMalformed)
	}
	c.mu.Lock()
	if c.cur != nil && !c.cur.recvOver {
		c.mu.Unlock()
		return fmt.Errorf("%w: a stream opened within another", ErrMalformed)
	}
	for c.cur != nil && c.ctx.Err() == nil {
		c.turn.Wait()
	}
	s := newLineStream(c, kind)
	s.announced = true
	c.cur = s
	c.mu.Unlock()
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	c.served.Add(1)
	if !c.spawn(func() { defer c.served.Done(); c.serve(s) }) {
		c.served.Done()
		return fmt.Errorf("link %w", ErrClosed)
	}
	return nil
}

// deliver lets the stream's reader take n bytes, or throws them away when nobody wants them.
func (c *line) deliver(n int) error {
	c.mu.Lock()
	s := c.cur
	if s == nil || s.recvOver || !s.announced {
		c.mu.Unlock()
		return fmt.Errorf("%w: data outside of a stream", ErrMalformed)
	}
	s.avail = n
	s.wake()
	for s.reading || (s.avail > 0 && !s.closed && c.ctx.Err() == nil) {
		c.turn.Wait()
	}
	n, s.avail = s.avail, 0
	s.dropped += n
	late := s.dropped > lineDropBytesMax
	c.mu.Unlock()
	switch {
	case n == 0:
		return nil
	case late:
		return errLate
	}
	_, err := io.CopyN(io.Discard, c.tls, int64(n))
	return err
}

// ended notes that the peer writes no more; err is what the reader finds behind the last byte.
func (c *line) ended(err error) error {
	c.mu.Lock()
	s := c.cur
	if s == nil || s.recvOver || !s.announced {
		c.mu.Unlock()
		return fmt.Errorf("%w: end outside of a stream", ErrMalformed)
	}
	s.recvOver, s.recvErr = true, err
	s.wake()
	over := c.settle(s)
	c.mu.Unlock()
	if over {
		c.rest()
	}
	return nil
}

// stopped notes that the peer reads no more. A stop that finds no stream crossed the stream's end on the way.
func (c *line) stopped(code byte) error {
	c.mu.Lock()
	s := c.cur
	if s != nil && s.announced && s.stop == nil {
		s.stop = resetError(uint64(code))
		s.cancel(s.stop)
	}
	c.mu.Unlock()
	return nil
}

// settle frees the line when s is over in both directions and at this side's user. mu is held; when it returns true the
// caller calls rest afterwards.
func (c *line) settle(s *lineStream) bool {
	if c.cur != s || !s.sentOver || !s.recvOver {
		return false
	}
	c.cur = nil
	if s.late != nil {
		s.late.Stop()
	}
	_ = c.raw.SetWriteDeadline(time.Time{}) // fails on a dead line only, as the next write will
	s.cancel(ErrClosed)
	c.turn.Broadcast()
	return true
}

// rest tells the dialling side that the line is free.
func (c *line) rest() {
	if c.rested != nil {
		c.rested()
	}
}

// open begins a stream of this side's; nil when the line has died.
func (c *line) open(kind Kind) *lineStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil || c.cur != nil {
		return nil
	}
	c.cur = newLineStream(c, kind)
	return c.cur
}

// fail ends the line at once; the first cause given is the one that shows.
func (c *line) fail(cause error) {
	if errors.Is(cause, io.EOF) || errors.Is(cause, io.ErrUnexpectedEOF) {
		cause = errors.New("the peer closed the connection")
	}
	c.cancel(cause)
	_ = c.raw.Close() // its error says only that it is closed
	c.mu.Lock()
	if c.cur != nil {
		c.cur.wake()
	}
	c.turn.Broadcast()
	c.mu.Unlock()
}

// end tells the peer why the line ends, if that can be said at once, and ends it.
func (c *line) end(code Refusal, text string) {
	cause := error(&RefusedError{Code: code, Text: text})
	if code == RefusalClosed {
		cause = fmt.Errorf("link %w", ErrClosed)
	}
	if c.ctx.Err() == nil && c.wmu.TryLock() {
		b := append(appendLineHead(nil, lineBye, 1+len(text)), byte(code))
		_ = c.raw.SetWriteDeadline(c.now().Add(lineSoon))
		if _, err := c.tls.Write(append(b, text...)); err == nil {
			_ = c.out.flush() // the peer sees a broken connection instead of the reason
		}
		c.wmu.Unlock()
	}
	c.fail(cause)
}

// worn reports whether the line's keys have been used enough.
func (c *line) worn() bool { return c.out.sent.Load()+c.out.received.Load() > lineBytesMax }

// lost is the error of a stream whose line has ended.
func (c *line) lost() error {
	cause := context.Cause(c.ctx)
	var refused *RefusedError
	if errors.As(cause, &refused) || errors.Is(cause, ErrClosed) || errors.Is(cause, ErrMalformed) {
		return fmt.Errorf("%w: %w", ErrLost, cause)
	}
	// As text only: a timeout of the network would pass for an expired deadline of the caller.
	return fmt.Errorf("%w: %v", ErrLost, cause)
}

// gather lies between TLS and the network. TLS writes a record of 16 KiB at a time: gather collects them and flush sends them
// with one system call. A deadline that strikes in flush breaks no record: the next flush goes on.
type gather struct {
	net.Conn
	direct   bool // during the handshake, whose messages TLS sends by itself
	buffers  *sync.Pool
	received atomic.Uint64
	sent     atomic.Uint64

	mu   sync.Mutex
	next []byte // what TLS has written since the last flush

	out  []byte // of the flushing goroutine: what the network has to take
	done int    // of out
}

func (g *gather) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.received.Add(uint64(n))
	return n, err
}

func (g *gather) Write(p []byte) (int, error) {
	if g.direct {
		return g.Conn.Write(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = (*g.buffers.Get().(*[]byte))[:0]
	}
	g.next = append(g.next, p...)
	return len(p), nil
}

// flush sends what was gathered. One goroutine at a time.
func (g *gather) flush() error {
	for {
		if g.out == nil {
			g.mu.Lock()
			g.out, g.next, g.done = g.next, nil, 0
			g.mu.Unlock()
		}
		if g.out == nil {
			return nil
		}
		n, err := g.Conn.Write(g.out[g.done:])
		g.done += n
		g.sent.Add(uint64(n))
		if err != nil {
			return err
		}
		if cap(g.out) <= 2*lineBufferBytes {
			b := g.out
			g.buffers.Put(&b)
		}
		g.out = nil
	}
}

func newGatherPool() *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, 0, lineBufferBytes)
		return &b
	}}
}
