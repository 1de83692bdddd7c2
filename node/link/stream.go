package link

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"osteon/erasure/place"
)

// Stream is a two-way byte stream to a peer. One goroutine may read while another writes; Close, CloseWrite and the deadlines may be
// called at any time. Errors: ErrLost, ErrReset, ErrUnknownKind, ErrClosed, os.ErrDeadlineExceeded, and io.EOF
// once the peer has closed its writing side. A peer that dies never looks like io.EOF.
type Stream interface {
	io.Reader
	io.Writer
	// CloseWrite says that nothing more will be written: the peer reads io.EOF after the last byte.
	CloseWrite() error
	// Close ends both directions: what was written is still delivered, unless a Write is under way, and
	// what the peer still sends is refused.
	Close() error
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Peer returns the node at the other end.
	Peer() Peer
}

// Abort ends both directions of s such that the peer sees ErrReset, never io.EOF. Use it when what was written is not whole.
// It may be called during a Read or Write, which then fail. Streams that know no abort are closed.
func Abort(s Stream) {
	if a, ok := s.(interface{ Abort() }); ok {
		a.Abort()
		return
	}
	_ = s.Close()
}

// WriteParts writes head, which is small, and body, in one go where the transport can: a frame of a protocol and its payload cost one
// system call and wake the peer once.
func WriteParts(s Stream, head, body []byte) error {
	if l, ok := s.(*lineStream); ok && len(head) <= writeCoalesce {
		_, err := l.writeParts(head, body)
		return err
	}
	if _, err := s.Write(head); err != nil || len(body) == 0 {
		return err
	}
	_, err := s.Write(body)
	return err
}

// Worn says that a stream which is used for message after message should be closed and opened anew, because its connection has
// encrypted much under one key.
func Worn(s Stream) bool {
	l, ok := s.(*lineStream)
	return ok && l.line.worn()
}

// stream is a QUIC stream that sends its kind byte with the first bytes.
type stream struct {
	q       *quic.Stream
	peer    Peer
	kind    Kind
	started atomic.Bool // the kind byte was sent, or this is the accepting side

	wmu    sync.Mutex // held over a Write, so that Close knows whether one is under way
	closed bool       // the write side was closed
}

func (s *stream) Peer() Peer { return s.peer }

// Context ends when the peer gives the stream up, and with its connection.
func (s *stream) Context() context.Context { return s.q.Context() }

func (s *stream) Read(p []byte) (int, error) {
	if !s.started.Load() {
		s.wmu.Lock()
		err := s.start()
		s.wmu.Unlock()
		if err != nil {
			return 0, err
		}
	}
	n, err := s.q.Read(p)
	return n, streamError(err)
}

func (s *stream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if !s.started.Load() && len(p) <= writeCoalesce {
		s.started.Store(true)
		n, err := s.q.Write(append(append(make([]byte, 0, 1+len(p)), byte(s.kind)), p...))
		return max(n-1, 0), streamError(err)
	}
	if err := s.start(); err != nil {
		return 0, err
	}
	n, err := s.q.Write(p)
	return n, streamError(err)
}

// start sends the kind byte if it was not sent yet: a stream is invisible to the peer until bytes flow. wmu is held.
func (s *stream) start() error {
	if s.started.Swap(true) {
		return nil
	}
	_, err := s.q.Write([]byte{byte(s.kind)})
	return streamError(err)
}

func (s *stream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.closed {
		return nil
	}
	if err := s.start(); err != nil {
		return err
	}
	s.closed = true
	if err := s.q.Close(); err != nil {
		// quic-go says only that the stream was cancelled; the cause tells by whom and with what code.
		return streamError(context.Cause(s.q.Context()))
	}
	return nil
}

func (s *stream) Close() error {
	s.q.CancelRead(resetClosed)
	if !s.wmu.TryLock() { // quic-go forbids Close during a Write: make that Write fail instead
		s.q.CancelWrite(resetClosed)
		return nil
	}
	defer s.wmu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if !s.started.Load() {
		s.q.CancelWrite(resetClosed) // never used: nothing to deliver
		return nil
	}
	_ = s.q.Close() // fails only on a stream or connection that has ended already
	return nil
}

// Abort makes the peer see a reset.
func (s *stream) Abort() { s.reset(resetAborted) }

func (s *stream) reset(code quic.StreamErrorCode) {
	s.q.CancelRead(code)
	s.q.CancelWrite(code)
}

func (s *stream) SetDeadline(t time.Time) error      { return s.q.SetDeadline(t) }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.q.SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.q.SetWriteDeadline(t) }

// NodeAddr is a net.Addr that names a node instead of a place on the network.
type NodeAddr place.NodeID

// Network returns "osteon".
func (NodeAddr) Network() string { return "osteon" }

// String returns the node's UUID.
func (a NodeAddr) String() string { return place.NodeID(a).String() }

// NetConn makes a net.Conn of a stream for libraries that want one. local is this node.
func NetConn(s Stream, local place.NodeID) net.Conn { return netConn{s, local} }

type netConn struct {
	Stream
	local place.NodeID
}

func (c netConn) LocalAddr() net.Addr  { return NodeAddr(c.local) }
func (c netConn) RemoteAddr() net.Addr { return NodeAddr(c.Peer().Node) }

// Abort passes on to the stream.
func (c netConn) Abort() { Abort(c.Stream) }
