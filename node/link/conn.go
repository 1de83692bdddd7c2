package link

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// quicClientInfo keeps the engine's name out of the other files.
type quicClientInfo = quic.ClientInfo

func onceFunc(f func()) func() { return sync.OnceFunc(f) }

// conn is one accepted or dialled connection whose hello was accepted.
type conn struct {
	q      *quic.Conn // nil when line is set
	line   *line      // bulk over TCP
	peer   Peer
	class  Class
	dialed bool
	hello  hello // the peer's
	since  time.Time
	out    chan []byte // datagrams to send; control connections only
	ends   time.Time   // when the first of the two certificates runs out
	expiry *time.Timer // ends the connection then

	resting *time.Timer // of a line in peer.idle; Link.mu guards it
}

// alive reports whether the connection was open a moment ago.
func (c *conn) alive() bool { return c.context().Err() == nil }

// context ends with the connection.
func (c *conn) context() context.Context {
	if c.line != nil {
		return c.line.ctx
	}
	return c.q.Context()
}

// end closes the connection and tells the peer why.
func (c *conn) end(code Refusal, text string) {
	if len(text) > refusalTextBytesMax {
		text = text[:refusalTextBytesMax]
	}
	if c.line != nil {
		c.line.end(code, text)
		return
	}
	_ = c.q.CloseWithError(quic.ApplicationErrorCode(code), text) // it always succeeds or finds the connection closed
}

// acceptLoop hands each inbound connection to a goroutine of its own.
func (l *Link) acceptLoop() {
	defer l.wg.Done()
	for {
		q, err := l.ln.Accept(l.ctx)
		if err != nil {
			return // the listener was closed
		}
		if !l.spawn(func() { l.serveInbound(q) }) {
			return
		}
	}
}

// serveInbound greets one caller and serves it until the connection ends.
func (l *Link) serveInbound(q *quic.Conn) {
	if done, ok := q.Context().Value(handshakeKey{}).(func()); ok {
		done()
	}
	if q.ConnectionState().TLS.NegotiatedProtocol == protocolJoin {
		l.serveJoin(q)
		return
	}
	c, err := l.greetCaller(q)
	if err != nil {
		l.refuse(q, err)
		return
	}
	l.serve(c)
}

// refuse closes a connection that did not pass the hello.
func (l *Link) refuse(q *quic.Conn, err error) {
	refused := l.refusal(err)
	(&conn{q: q}).end(refused.Code, refused.Text)
}

// refusal says what the other side is told when err kept a connection from being used.
func (l *Link) refusal(err error) *RefusedError {
	refused := &RefusedError{Code: RefusalMalformed, Text: "hello not understood"}
	if l.ctx.Err() != nil {
		refused = &RefusedError{Code: RefusalClosed, Text: "node is stopping"}
	}
	errors.As(err, &refused)
	l.counters.refused.Add(1)
	l.log.Warn("peer refused", "reason", refused.Text, "code", refused.Code)
	return refused
}

// ours is what this node says in a hello.
func (l *Link) ours(class Class) hello {
	return hello{Class: class, Ring: l.identity.Load().Ring, Epoch: l.epoch.Load(), Boot: l.cfg.Boot, Instance: l.instance}
}

// greetCaller reads the caller's hello and answers it once the caller was admitted.
func (l *Link) greetCaller(q *quic.Conn) (*conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, helloTime)
	defer cancel()
	s, err := q.AcceptStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: no hello: %v", ErrMalformed, err)
	}
	defer context.AfterFunc(ctx, func() { s.CancelRead(resetTimeout); s.CancelWrite(resetTimeout) })()
	theirs, err := readHello(s, helloMagic)
	if err != nil {
		return nil, err
	}
	c, err := l.newConn(q.ConnectionState().TLS.PeerCertificates, theirs.Class, theirs)
	if err != nil {
		return nil, err
	}
	c.q = q
	// Admit before the answer goes out: the caller may use the connection as soon as it has it.
	if err := l.admit(c); err != nil {
		return nil, err
	}
	if _, err := s.Write(l.ours(theirs.Class).append(nil, welcomeMagic)); err != nil {
		l.drop(c)
		return nil, fmt.Errorf("answer hello: %w", err)
	}
	s.CancelRead(resetClosed)
	_ = s.Close() // the answer is delivered, or the connection breaks and everything shows it
	return c, nil
}

// greetPeer says hello on a connection just dialled and waits for the welcome.
func (l *Link) greetPeer(ctx context.Context, q *quic.Conn, class Class) (*conn, error) {
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { s.CancelRead(resetTimeout); s.CancelWrite(resetTimeout) })()
	if _, err := s.Write(l.ours(class).append(nil, helloMagic)); err != nil {
		return nil, err
	}
	_ = s.Close()
	theirs, err := readHello(s, welcomeMagic)
	if err != nil {
		return nil, err
	}
	c, err := l.newConn(q.ConnectionState().TLS.PeerCertificates, class, theirs)
	if err != nil {
		return nil, err
	}
	c.q, c.dialed = q, true
	return c, l.admit(c)
}

func readHello(s io.Reader, magic []byte) (hello, error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return hello{}, err
	}
	return parseHello(b[:], magic)
}

// newConn judges a peer by its certificate and hello. The caller gives the result its connection.
func (l *Link) newConn(chain []*x509.Certificate, class Class, theirs hello) (*conn, error) {
	cert := chain[0] // the handshake required and verified one
	_, peer, err := certNames(cert)
	if err != nil {
		return nil, err
	}
	if theirs.Ring == l.identity.Load().Ring {
		raise(&l.seen, theirs.Epoch)
	}
	if refused := theirs.judge(l.ours(class)); refused != nil {
		return nil, refused
	}
	if l.cfg.Allowed != nil {
		if err := l.cfg.Allowed(peer); err != nil {
			return nil, &RefusedError{Code: RefusalNotAllowed, Text: err.Error()}
		}
	}
	c := &conn{peer: peer, class: class, hello: theirs, since: l.cfg.Now()}
	if class == ClassControl {
		c.out = make(chan []byte, datagramQueue)
	}
	c.ends = cert.NotAfter
	if own := l.CertificateExpiry(); own.Before(c.ends) {
		c.ends = own
	}
	return c, nil
}

// serve takes the peer's streams and datagrams until the connection ends. The caller's goroutine is the accept loop.
func (l *Link) serve(c *conn) {
	l.log.Debug("connection opened", "node", c.peer.Node, "site", c.peer.Site, "class", c.class, "dialed", c.dialed)
	var wg sync.WaitGroup
	if c.class == ClassControl {
		wg.Go(func() { l.sendDatagrams(c) })    // both end with the connection
		wg.Go(func() { l.receiveDatagrams(c) }) //
	}
	for {
		s, err := c.q.AcceptStream(l.ctx)
		if err != nil {
			break
		}
		wg.Go(func() { l.serveStream(c, s) }) // ends with its handler
	}
	l.drop(c)
	c.end(RefusalClosed, "")
	l.log.Debug("connection ended", "node", c.peer.Node, "class", c.class, "reason", connError(context.Cause(c.q.Context())))
	wg.Wait()
}

// serveStream reads a stream's kind and runs its handler.
func (l *Link) serveStream(c *conn, q *quic.Stream) {
	s := &stream{q: q, peer: c.peer}
	s.started.Store(true)
	slow := time.AfterFunc(kindTime, func() { s.reset(resetTimeout) })
	var kind [1]byte
	_, err := io.ReadFull(q, kind[:])
	slow.Stop()
	if err != nil {
		s.reset(resetClosed)
		return
	}
	s.kind = Kind(kind[0])
	l.runHandler(c, s.kind, s, s.reset)
}

// runHandler runs the handler of a stream that a peer opened. A panic ends the stream, not the node.
func (l *Link) runHandler(c *conn, kind Kind, s Stream, reset func(quic.StreamErrorCode)) {
	defer func() {
		if v := recover(); v != nil {
			l.counters.panics.Add(1)
			l.log.Error("stream handler panicked", "kind", kind, "node", c.peer.Node, "panic", v, "stack", string(debug.Stack()))
			reset(resetPanicked)
		}
	}()
	h := l.handlers.find(c.context(), kind)
	if h == nil {
		l.log.Debug("stream of unknown kind reset", "kind", kind, "node", c.peer.Node)
		reset(resetUnknownKind)
		return
	}
	l.counters.streams.Add(1)
	h(c.context(), s)
}

// handlers is the table of stream handlers.
type handlers struct {
	mu       sync.Mutex
	byKind   map[Kind]func(context.Context, Stream)
	datagram func(Peer, []byte)
	changed  chan struct{} // closed and replaced at each registration
	settled  chan struct{} // closed when handlerGrace is over or the link closes
	settle   func()
	timer    *time.Timer
}

func (h *handlers) init() {
	h.byKind = make(map[Kind]func(context.Context, Stream))
	h.changed = make(chan struct{})
	h.settled = make(chan struct{})
	h.settle = sync.OnceFunc(func() { close(h.settled) })
	h.timer = time.AfterFunc(handlerGrace, h.settle)
}

func (h *handlers) close() {
	h.timer.Stop()
	h.settle()
}

// find returns the handler of a kind. Shortly after Open it waits for one to be registered: peers may be faster than that.
func (h *handlers) find(ctx context.Context, kind Kind) func(context.Context, Stream) {
	for {
		h.mu.Lock()
		f, changed := h.byKind[kind], h.changed
		h.mu.Unlock()
		if f != nil {
			return f
		}
		select {
		case <-changed:
		case <-h.settled:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// Handle registers the handler of one kind of stream. h owns the stream: it closes or aborts it, or hands it on to someone who does.
// ctx ends with the connection or the link. h must return soon after: Close waits for it.
// Register straight after Open; streams of a kind that is not registered a second after Open are reset.
func (l *Link) Handle(kind Kind, h func(ctx context.Context, s Stream)) {
	l.handlers.mu.Lock()
	defer l.handlers.mu.Unlock()
	l.handlers.byKind[kind] = h
	close(l.handlers.changed)
	l.handlers.changed = make(chan struct{})
}
