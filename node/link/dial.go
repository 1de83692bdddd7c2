package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"osteon/erasure/place"
)

// peer is what the link remembers of one other node. Link.mu guards it.
type peer struct {
	conns   [classes][]*conn
	turn    [classes]int   // round robin over conns
	dialing [classes]*dial // at most one attempt of a class at a time
	pending [][]byte       // datagrams waiting for the first control connection
	backoff                // of all dials

	lines       []*conn       // every line, dialled or accepted
	idle        []*conn       // of lines: dialled and between two streams, the one used last at the end
	lineDials   int           // under way
	lineWaiters int           // callers that wait for a line
	lineFreed   chan struct{} // closed when a line rests or ends; nil while nobody waits
	lineRest    backoff       // of dials of lines

	boot     uint64 // of the process that was last admitted
	instance [16]byte
}

// dial is one attempt, which several callers may wait for.
type dial struct {
	once sync.Once
	done chan struct{}
	c    *conn
	err  error

	cancel  func() // ends what is under way; Link.mu guards it and renewed
	renewed bool   // the attempt begins anew
}

func (d *dial) finish(c *conn, err error) {
	d.once.Do(func() {
		d.c, d.err = c, err
		close(d.done)
	})
}

// renew begins the dials under way anew: they were meant for a process that has ended, and a handshake's packets follow
// each other ever more slowly. mu is held.
func (p *peer) renew() {
	for _, d := range p.dialing {
		if d != nil && d.cancel != nil {
			d.renewed = true
			d.cancel()
		}
	}
}

func (p *peer) all() []*conn {
	var all []*conn
	for _, cs := range p.conns {
		all = append(all, cs...)
	}
	return append(all, p.lines...)
}

// pick returns a live connection of a class, each in turn; nil if there is none.
func (p *peer) pick(class Class) *conn {
	cs := p.conns[class]
	for range cs {
		p.turn[class] = (p.turn[class] + 1) % len(cs)
		if c := cs[p.turn[class]]; c.alive() {
			return c
		}
	}
	return nil
}

// backoff spaces out attempts that fail.
type backoff struct {
	failed  error // of the last dial; nil after contact
	wait    time.Duration
	blocked time.Time // dials fail at once until then
}

// backOff notes a failed dial; the next waits longer, up to most.
func (b *backoff) backOff(now time.Time, most time.Duration, err error) {
	b.failed = err
	b.wait = min(max(2*b.wait, backoffFirst), most)
	b.blocked = now.Add(b.wait)
}

// rests returns why no attempt is made now, or nil.
func (b *backoff) rests(now time.Time) error {
	if b.failed != nil && now.Before(b.blocked) {
		return fmt.Errorf("last attempt failed, waiting %v: %w", b.wait, b.failed)
	}
	return nil
}

// contact forgets failed dials.
func (b *backoff) contact() { *b = backoff{} }

// peer returns the record of a node, made at first use. mu is held.
func (l *Link) peer(node place.NodeID) *peer {
	p := l.peers[node]
	if p == nil {
		p = &peer{}
		l.peers[node] = p
	}
	return p
}

// conns returns every connection there is.
func (l *Link) conns() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*conn
	for _, p := range l.peers {
		all = append(all, p.all()...)
	}
	return all
}

// OpenStream opens a stream of the given kind to a node, over a connection of the class, which is dialled if there is
// none. ErrUnreachable (nothing was sent) wraps the cause: ErrRefused, ErrWrongNode, ErrIdentity, the network's, or ctx's. After a
// failed dial it fails at once for a while. The stream shows at the peer when something is written or read.
// The caller closes it. ctx bounds the opening only.
func (l *Link) OpenStream(ctx context.Context, node place.NodeID, class Class, kind Kind) (Stream, error) {
	if class == ClassBulk && l.cfg.Bulk != BulkQUIC {
		return l.openBulk(ctx, node, kind)
	}
	return l.openQUIC(ctx, node, class, kind)
}

// openQUIC is open for callers that want the interface, where a nil *stream must not hide.
func (l *Link) openQUIC(ctx context.Context, node place.NodeID, class Class, kind Kind) (Stream, error) {
	s, err := l.open(ctx, node, class, kind)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (l *Link) open(ctx context.Context, node place.NodeID, class Class, kind Kind) (*stream, error) {
	var last error
	for range 3 { // a connection may die between being picked and being used
		c, err := l.connect(ctx, node, class)
		if err != nil {
			return nil, fmt.Errorf("%w: node %s: %w", ErrUnreachable, node, err)
		}
		q, err := c.q.OpenStreamSync(ctx)
		if err == nil {
			return &stream{q: q, peer: c.peer, kind: kind}, nil
		}
		last = connCause(err)
		if ctx.Err() != nil {
			last = ctx.Err()
			break
		}
		l.drop(c)
	}
	return nil, fmt.Errorf("%w: node %s: %w", ErrUnreachable, node, last)
}

// connect returns a live connection, waiting for a dial if need be.
func (l *Link) connect(ctx context.Context, node place.NodeID, class Class) (*conn, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("link %w", ErrClosed)
	}
	if node == l.identity.Load().Node {
		l.mu.Unlock()
		return nil, errors.New("this is the node itself")
	}
	p := l.peer(node)
	c := p.pick(class)
	d, err := l.dialMore(p, node, class, c != nil)
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-d.done:
		return d.c, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialMore starts a dial when the class has too few connections, unless one is under way or the peer failed
// lately. It returns the dial to wait for, or why there is none. mu is held.
func (l *Link) dialMore(p *peer, node place.NodeID, class Class, served bool) (*dial, error) {
	want := 1
	if class == ClassBulk {
		want = l.cfg.BulkConns
	}
	if served && len(p.conns[class]) >= want {
		return nil, nil
	}
	if d := p.dialing[class]; d != nil {
		return d, nil
	}
	if err := p.rests(l.cfg.Now()); err != nil {
		return nil, err
	}
	d := &dial{done: make(chan struct{})}
	p.dialing[class] = d
	l.wg.Add(1)
	go func() { // ends within dialTime, or serves the connection until it ends
		defer l.wg.Done()
		l.runDial(d, node, class)
	}()
	return d, nil
}

// runDial makes one attempt, tells who waits for it, and serves the connection.
func (l *Link) runDial(d *dial, node place.NodeID, class Class) {
	c, err := l.attempt(d, node, class)
	l.mu.Lock()
	p := l.peer(node)
	p.dialing[class] = nil
	if err != nil {
		l.counters.dialsFailed.Add(1)
		if p.pick(class) == nil {
			p.backOff(l.cfg.Now(), backoffMax, err)
			p.pending = nil
		}
	}
	l.mu.Unlock()
	d.finish(c, err)
	if err != nil {
		l.log.Debug("dial failed", "node", node, "class", class, "err", err)
		return
	}
	l.serve(c)
}

// attempt dials, again whenever the peer turns out to be a new process meanwhile.
func (l *Link) attempt(d *dial, node place.NodeID, class Class) (*conn, error) {
	for {
		l.counters.dials.Add(1)
		c, err := l.dialPeer(d, node, class)
		l.mu.Lock()
		again := err != nil && d.renewed
		d.renewed = false
		l.mu.Unlock()
		if !again {
			return c, err
		}
	}
}

// handshake connects; until the peer has answered the dial can be begun anew.
func (l *Link) handshake(ctx context.Context, d *dial, addr net.Addr, node place.NodeID, class Class, verdict *error) (*quic.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	d.cancel = cancel
	l.mu.Unlock()
	q, err := l.tr.Dial(ctx, addr, l.clientTLS(protocolMesh, node, verdict), l.quicConfig(class))
	l.mu.Lock()
	d.cancel = nil
	l.mu.Unlock()
	return q, err
}

// dialPeer connects, checks who answers, and exchanges hellos.
func (l *Link) dialPeer(d *dial, node place.NodeID, class Class) (*conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, dialTime)
	defer cancel()
	addr, err := l.resolve(ctx, node)
	if err != nil {
		return nil, err
	}
	var verdict error
	q, err := l.handshake(ctx, d, addr, node, class, &verdict)
	if err != nil {
		if verdict != nil {
			return nil, verdict
		}
		return nil, dialError(ctx, err)
	}
	c, err := l.greetPeer(ctx, q, class)
	if err == nil {
		return c, nil
	}
	var refused *RefusedError
	if errors.As(err, &refused) {
		l.refuse(q, err)
		return nil, err
	}
	if cause := context.Cause(q.Context()); cause != nil {
		err = cause // a refusal by the peer says more than the broken stream
	}
	_ = q.CloseWithError(0, "")
	if errors.Is(err, ErrMalformed) {
		return nil, err
	}
	return nil, dialError(ctx, err)
}

// resolve finds the address of a node in the family of our socket.
func (l *Link) resolve(ctx context.Context, node place.NodeID) (*net.UDPAddr, error) {
	text, err := l.address(node)
	if err != nil {
		return nil, err
	}
	local, _ := l.Addr().(*net.UDPAddr)
	return lookup(ctx, text, local)
}

// address returns "host:port" of a node.
func (l *Link) address(node place.NodeID) (string, error) {
	if l.cfg.Resolve != nil {
		if text, ok := l.cfg.Resolve(node); ok {
			return text, nil
		}
	}
	return "", errors.New("no address known")
}

// lookup turns "host:port" into an address that a socket bound to local can reach.
func lookup(ctx context.Context, text string, local *net.UDPAddr) (*net.UDPAddr, error) {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return net.UDPAddrFromAddrPort(ap), nil
	}
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: want host:port", text)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %w", text, err)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %w", text, err)
	}
	only4 := local != nil && local.IP.To4() != nil
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() || !only4 {
			return net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port))), nil
		}
	}
	return nil, fmt.Errorf("address %.80q: has no IPv4 address, and the link listens on IPv4", text)
}

// admit enters a connection into the table, or refuses a second process under one node ID. A newer process of a node
// ends what is left of the older one.
func (l *Link) admit(c *conn) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &RefusedError{Code: RefusalClosed, Text: "node is stopping"}
	}
	p := l.peer(c.peer.Node)
	ends, refused := p.fence(c.hello)
	if refused != nil {
		l.mu.Unlock()
		return refused
	}
	p.contact()
	c.expiry = time.AfterFunc(c.ends.Sub(l.cfg.Now()), func() { c.end(RefusalExpired, "a certificate ran out") })
	if c.line != nil {
		p.lines = append(p.lines, c)
		l.mu.Unlock()
		endAll(ends, RefusalSuperseded, "a newer process took over")
		return nil
	}
	p.conns[c.class] = append(p.conns[c.class], c)
	if cs := p.conns[c.class]; len(cs) > peerConnsMax {
		ends = append(ends, cs[0])
	}
	if d := p.dialing[c.class]; d != nil {
		d.finish(c, nil) // whoever waits for our dial may use the peer's
	}
	var pending [][]byte
	if c.class == ClassControl {
		pending, p.pending = p.pending, nil
	}
	l.mu.Unlock()
	endAll(ends, RefusalSuperseded, "a newer connection took over")
	for _, b := range pending {
		c.queue(b)
	}
	return nil
}

// fence decides between processes that claim to be one node. It returns the connections of the loser. mu is held.
func (p *peer) fence(h hello) ([]*conn, *RefusedError) {
	if h.Instance == p.instance && h.Boot == p.boot {
		return nil, nil
	}
	var live []*conn
	for _, c := range p.all() {
		if c.alive() {
			live = append(live, c)
		}
	}
	if len(live) > 0 && h.Boot != 0 && h.Boot <= p.boot {
		return nil, &RefusedError{Code: RefusalDuplicate, Text: "another process with this node ID is connected (started later or a copy): stop one of them"}
	}
	p.boot, p.instance = h.Boot, h.Instance
	p.lineRest.contact()
	p.renew()
	return live, nil
}

// drop takes a connection out of the table.
func (l *Link) drop(c *conn) {
	c.expiry.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[c.peer.Node]
	if p == nil {
		return
	}
	if c.line != nil {
		if c.resting != nil {
			c.resting.Stop()
		}
		p.lines, p.idle = without(p.lines, c), without(p.idle, c)
		p.freeLine()
		return
	}
	p.conns[c.class] = without(p.conns[c.class], c)
}

func without(conns []*conn, c *conn) []*conn {
	if i := slices.Index(conns, c); i >= 0 {
		return append(conns[:i:i], conns[i+1:]...)
	}
	return conns
}

func endAll(conns []*conn, code Refusal, text string) {
	for _, c := range conns {
		c.end(code, text)
	}
}

// MarkDown closes every connection to a node that is believed dead, so that streams blocked on it fail at once, and makes dials
// fail fast for a moment. A node that is alive after all may connect again at any time.
func (l *Link) MarkDown(node place.NodeID) {
	l.endAll(node, RefusalDown, "believed to be down", errors.New("marked down"))
}

// MarkUp lets the next dial to a node go out at once, whatever failed before.
func (l *Link) MarkUp(node place.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.peers[node]; p != nil {
		p.contact()
		p.lineRest.contact()
		p.renew()
	}
}

// DropPeer closes every connection to a node that Config.Allowed refuses from now on.
func (l *Link) DropPeer(node place.NodeID) {
	l.endAll(node, RefusalNotAllowed, "removed from the ring", errors.New("removed from the ring"))
}

func (l *Link) endAll(node place.NodeID, code Refusal, text string, failed error) {
	l.mu.Lock()
	p := l.peers[node]
	if p == nil {
		l.mu.Unlock()
		return
	}
	all := p.all()
	p.pending = nil
	p.backOff(l.cfg.Now(), backoffMax, failed)
	l.mu.Unlock()
	endAll(all, code, text)
}

// raise lifts v to at least n.
func raise(v *atomic.Uint64, n uint64) {
	for old := v.Load(); old < n; old = v.Load() {
		if v.CompareAndSwap(old, n) {
			return
		}
	}
}
