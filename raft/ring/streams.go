package ring

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"osteon/erasure/place"
	"osteon/node/link"
)

const (
	greetingMagic = "OSRG"
	greetingBytes = 24
)

// streamLayer carries the library's streams over the link. A server is addressed by its server ID.
type streamLayer struct {
	link     Link
	self     place.NodeID
	own      uint64 // incarnation
	patience time.Duration
	inbound  chan *raftConn
	open     chan struct{}   // closed once this server takes part: see Ring.Release
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	handlers sync.WaitGroup

	mu     sync.Mutex
	conns  map[*raftConn]struct{}
	closed bool
}

func newStreamLayer(cfg Config) *streamLayer {
	l := &streamLayer{
		link: cfg.Link, self: cfg.Self, own: cfg.Incarnation, patience: cfg.RPCTimeout,
		inbound: make(chan *raftConn, acceptBacklog), conns: map[*raftConn]struct{}{}, open: make(chan struct{}),
	}
	if !cfg.Gated {
		close(l.open)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// raftConn is one stream as the library sees it. The library closes it; the layer cuts it.
type raftConn struct {
	net.Conn
	layer *streamLayer
	once  sync.Once
	done  chan struct{} // closed by the library's Close
}

// Close implements net.Conn.
func (c *raftConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// track wraps s, or returns false after Close.
func (l *streamLayer) track(s link.Stream) (*raftConn, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, false
	}
	c := &raftConn{Conn: link.NetConn(s, l.self), layer: l, done: make(chan struct{})}
	l.conns[c] = struct{}{}
	return c, true
}

// Addr implements net.Listener.
func (l *streamLayer) Addr() net.Addr { return serverAddr(serverID(l.self, l.own)) }

// serverAddr is a server ID as an address.
type serverAddr raft.ServerID

func (serverAddr) Network() string  { return "osteon" }
func (a serverAddr) String() string { return string(a) }

// ServerAddr implements raft.ServerAddressProvider: a server's address is its ID, whatever old configurations say.
func (l *streamLayer) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

// Dial implements raft.StreamLayer.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	node, incarnation, err := parseServerID(raft.ServerID(address))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	select { // outlasting the timeout here keeps the library from trying, and complaining, without a pause
	case <-l.open:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: this server is kept out of the ring", ErrRefused)
	}
	s, err := l.link.OpenStream(ctx, node, link.ClassRaft, link.KindRaft)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // the write below reports it
	defer stop()
	if _, err := s.Write(greeting(incarnation, l.own)); err != nil {
		_ = s.Close() // the stream is lost already
		return nil, fmt.Errorf("greet %s: %w", address, err)
	}
	c, ok := l.track(s)
	if !ok {
		_ = s.Close() // nothing was said on it
		return nil, ErrClosed
	}
	return c, nil
}

// greeting names the incarnation that a stream is meant for and the one that opened it.
func greeting(meant, own uint64) []byte {
	b := append([]byte(greetingMagic), formatVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, meant)
	return binary.LittleEndian.AppendUint64(b, own)
}

// serve takes one stream of another node. It returns when the stream is closed.
func (l *streamLayer) serve(ctx context.Context, s link.Stream) {
	defer func() { _ = s.Close() }() // both sides have said what they had to say
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.handlers.Add(1)
	l.mu.Unlock()
	defer l.handlers.Done()

	if !l.released() || !l.welcome(ctx, s) {
		return
	}
	c, ok := l.track(s)
	if !ok {
		return
	}
	select {
	case l.inbound <- c:
	case <-ctx.Done():
		return
	case <-l.ctx.Done():
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	case <-l.ctx.Done():
	}
}

// welcome reads the greeting of s and reports whether the stream is meant for this incarnation. A successor must not answer for its
// predecessor: it does not have what that one acknowledged.
func (l *streamLayer) welcome(ctx context.Context, s link.Stream) bool {
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	var b [greetingBytes]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return false
	}
	return string(b[:4]) == greetingMagic && b[4] == formatVersion && binary.LittleEndian.Uint64(b[8:]) == l.own
}

// released reports whether this server takes part in the ring.
func (l *streamLayer) released() bool {
	select {
	case <-l.open:
		return true
	default:
		return false
	}
}

// Accept implements net.Listener.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.inbound:
		return c, nil
	case <-l.ctx.Done():
		return nil, ErrClosed
	}
}

// Close implements net.Listener: it cuts every stream in both directions. It may be called more than once.
func (l *streamLayer) Close() error {
	l.mu.Lock()
	l.closed = true
	cut := make([]*raftConn, 0, len(l.conns))
	for c := range l.conns {
		cut = append(cut, c)
	}
	l.mu.Unlock()
	l.cancel()
	for _, c := range cut {
		_ = c.Conn.Close() // the library sees it and closes its side
	}
	return nil
}
