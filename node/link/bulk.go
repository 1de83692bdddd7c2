package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"osteon/erasure/place"
)

// Bulk says how streams of ClassBulk travel.
type Bulk int

const (
	// BulkAuto takes TCP while the peer's answers, which costs a third of QUIC's processor time, and else QUIC.
	BulkAuto Bulk = iota
	// BulkQUIC takes QUIC always.
	BulkQUIC
	// BulkTCP takes TCP always; a peer that cannot be reached over it is unreachable for bulk.
	BulkTCP
)

// String returns auto, quic or tcp.
func (b Bulk) String() string { return [...]string{"auto", "quic", "tcp"}[b] }

// ParseBulk reads auto, quic or tcp.
func ParseBulk(text string) (Bulk, error) {
	switch text {
	case "auto":
		return BulkAuto, nil
	case "quic":
		return BulkQUIC, nil
	case "tcp":
		return BulkTCP, nil
	}
	return 0, fmt.Errorf("%.40q is none of auto, quic and tcp", text)
}

var (
	errNoLines   = errors.New("this node has no TCP")
	errManyLines = fmt.Errorf("%d TCP connections to the node are in use", linesPeerMax)
)

// openBulk opens a stream over TCP, or over QUIC where that may be and TCP does not answer.
func (l *Link) openBulk(ctx context.Context, node place.NodeID, kind Kind) (Stream, error) {
	s, err := l.openLine(ctx, node, kind)
	switch {
	case err == nil:
		return s, nil
	case l.cfg.Bulk == BulkTCP || ctx.Err() != nil || l.ctx.Err() != nil:
		return nil, fmt.Errorf("%w: node %s: over TCP: %w", ErrUnreachable, node, err)
	}
	return l.openQUIC(ctx, node, ClassBulk, kind)
}

// openLine opens a stream on a line that rests, or on a new one.
func (l *Link) openLine(ctx context.Context, node place.NodeID, kind Kind) (*lineStream, error) {
	if l.cfg.Dial == nil {
		return nil, errNoLines
	}
	var patience <-chan time.Time
	if l.cfg.Bulk == BulkAuto {
		timer := time.NewTimer(linePatience)
		defer timer.Stop()
		patience = timer.C
	}
	for waited := false; ; waited = true {
		c, changed, err := l.takeLine(node, waited)
		if err != nil {
			return nil, err
		}
		if c != nil {
			if s := c.line.open(kind); s != nil {
				s.peer = c.peer
				return s, nil
			}
			continue // it died meanwhile
		}
		select {
		case <-changed:
		case <-patience: // a line that comes later is for the next one
			err = fmt.Errorf("no answer within %v", linePatience)
		case <-ctx.Done():
			err = ctx.Err()
		case <-l.ctx.Done():
			err = fmt.Errorf("link %w", ErrClosed)
		}
		if err != nil {
			l.leaveLine(node)
			return nil, err
		}
	}
}

// takeLine returns a line that rests. When there is none it sees to it that enough are dialled, counts the caller among those who
// wait, and returns a channel that is closed when it is worth to look again; waited says that the caller was counted before.
func (l *Link) takeLine(node place.NodeID, waited bool) (*conn, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peer(node)
	if waited {
		p.lineWaiters--
	}
	if l.closed {
		return nil, nil, fmt.Errorf("link %w", ErrClosed)
	}
	if node == l.identity.Load().Node {
		return nil, nil, errors.New("this is the node itself")
	}
	if c := p.restingLine(); c != nil {
		return c, nil, nil
	}
	now := l.cfg.Now()
	if err := p.rests(now); err != nil {
		return nil, nil, err
	}
	dialed := p.dialedLines()
	rests := p.lineRest.rests(now)
	if rests != nil && dialed == 0 {
		return nil, nil, rests
	}
	full := p.lineDials+dialed >= linesPeerMax
	if full && l.cfg.Bulk == BulkAuto {
		return nil, nil, errManyLines
	}
	p.lineWaiters++
	if !full && rests == nil && p.lineDials < min(p.lineWaiters, lineDialsMax) {
		p.lineDials++
		l.wg.Add(1)
		go func() { // ends within dialTime, or serves the line until it ends
			defer l.wg.Done()
			l.runLineDial(node)
		}()
	}
	if p.lineFreed == nil {
		p.lineFreed = make(chan struct{})
	}
	return nil, p.lineFreed, nil
}

// leaveLine counts a caller out that waits no more.
func (l *Link) leaveLine(node place.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peer(node).lineWaiters--
}

// restingLine takes the line that was used last. Link.mu is held.
func (p *peer) restingLine() *conn {
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if c.alive() {
			c.resting.Stop()
			return c
		}
	}
	return nil
}

// freeLine wakes who waits for a line. Link.mu is held.
func (p *peer) freeLine() {
	if p.lineFreed != nil {
		close(p.lineFreed)
		p.lineFreed = nil
	}
}

func (l *Link) wakeLineWaiters(node place.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peer(node).freeLine()
}

func (p *peer) dialedLines() int {
	n := 0
	for _, c := range p.lines {
		if c.dialed {
			n++
		}
	}
	return n
}

// runLineDial makes one attempt, lets the new line rest for whoever is first to take it, and serves it.
func (l *Link) runLineDial(node place.NodeID) {
	l.counters.dials.Add(1)
	c, err := l.dialLine(node)
	l.mu.Lock()
	p := l.peer(node)
	p.lineDials--
	p.freeLine()
	if err != nil {
		l.counters.dialsFailed.Add(1)
		p.lineRest.backOff(l.cfg.Now(), l.lineRestMax(), err)
		time.AfterFunc(p.lineRest.wait, func() { l.wakeLineWaiters(node) }) // whoever waits for other lines may dial again
	} else {
		p.lineRest.contact()
	}
	l.mu.Unlock()
	if err != nil {
		l.log.Debug("dial over TCP failed", "node", node, "err", err)
		return
	}
	l.restLine(c)
	c.line.run()
	l.dropLine(c)
}

// lineRestMax is how long dials that fail are spaced out: with TCP alone they are a node's only way to send.
func (l *Link) lineRestMax() time.Duration {
	if l.cfg.Bulk == BulkTCP {
		return backoffMax
	}
	return lineRestMax
}

// restLine puts a line that is between two streams where openLine finds it.
func (l *Link) restLine(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[c.peer.Node]
	if p == nil || !c.alive() {
		return
	}
	p.idle = append(p.idle, c)
	p.freeLine()
	rest := lineIdleTime
	if len(p.idle) > linesIdleMax || c.line.worn() {
		rest = 0
	}
	c.resting = time.AfterFunc(rest, func() { l.retireLine(c) })
}

// retireLine closes a line that has rested long enough, unless it was taken at this moment.
func (l *Link) retireLine(c *conn) {
	l.mu.Lock()
	p := l.peers[c.peer.Node]
	before := len(p.idle)
	p.idle = without(p.idle, c)
	found := len(p.idle) < before
	l.mu.Unlock()
	if found {
		c.end(RefusalClosed, "not needed")
	}
}

func (l *Link) dropLine(c *conn) {
	l.drop(c)
	l.log.Debug("line ended", "node", c.peer.Node, "dialed", c.dialed, "reason", context.Cause(c.line.ctx))
}

// dialLine connects over TCP, checks who answers, and exchanges hellos.
func (l *Link) dialLine(node place.NodeID) (*conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, dialTime)
	defer cancel()
	address, err := l.address(node)
	if err != nil {
		return nil, err
	}
	raw, err := l.cfg.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	var verdict error
	out := &gather{Conn: raw, direct: true, buffers: l.buffers}
	c, err := l.greetLine(ctx, out, tls.Client(out, l.lineClientTLS(node, &verdict)))
	switch {
	case err == nil:
		return c, nil
	case verdict != nil:
		err = verdict
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %v", dialTime)
	}
	_ = raw.Close() // the cause is known already
	return nil, err
}

func (l *Link) lineClientTLS(node place.NodeID, verdict *error) *tls.Config {
	c := l.clientTLS(protocolLine, node, verdict)
	c.DynamicRecordSizingDisabled = true // small first records help browsers, not bulk
	return c
}

// shakeHands does the handshake and lets out gather from then on. The connection is closed when ctx ends, until stop is called.
func shakeHands(ctx context.Context, out *gather, t *tls.Conn) (stop func() bool, err error) {
	limitSilence(out.Conn)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, tlsRefusal(err)
	}
	out.direct = false
	return context.AfterFunc(ctx, func() { _ = out.Conn.Close() }), nil
}

// tlsRefusal names a peer's alert: it did not accept this node's certificate.
func tlsRefusal(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fmt.Errorf("%w: the peer did not accept this node's certificate (%v): it has expired, was revoked or is another ring's", ErrRefused, op.Err)
	}
	return err
}

// greetLine says hello on a line just dialled and waits for the welcome.
func (l *Link) greetLine(ctx context.Context, out *gather, t *tls.Conn) (*conn, error) {
	stop, err := shakeHands(ctx, out, t)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := writeLine(out, t, l.ours(ClassBulk).append(nil, helloMagic)); err != nil {
		return nil, tlsRefusal(err)
	}
	theirs, err := readWelcome(t)
	if err != nil {
		return nil, tlsRefusal(err)
	}
	c, err := l.newConn(t.ConnectionState().PeerCertificates, ClassBulk, theirs)
	if err == nil {
		c.dialed = true
		c.line = newLine(out.Conn, t, out, l.cfg.Now, l.spawn)
		c.line.rested = func() { l.restLine(c) }
		err = l.admit(c)
	}
	if err != nil {
		l.refuseLine(out, t, err)
		return nil, err
	}
	if !stop() {
		c.line.fail(ctx.Err())
		l.drop(c)
		return nil, ctx.Err()
	}
	return c, nil
}

func writeLine(out *gather, t io.Writer, b []byte) error {
	if _, err := t.Write(b); err != nil {
		return err
	}
	return out.flush()
}

// readWelcome reads the answer to a hello: a welcome, or the frame that says why not.
func readWelcome(r io.Reader) (hello, error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:lineHead]); err != nil {
		return hello{}, err
	}
	if string(b[:lineHead]) == string(welcomeMagic) {
		if _, err := io.ReadFull(r, b[lineHead:]); err != nil {
			return hello{}, err
		}
		return parseHello(b[:], welcomeMagic)
	}
	op, n, err := parseLineHead([lineHead]byte(b[:]))
	if err != nil || op != lineBye {
		return hello{}, fmt.Errorf("%w: not a welcome", ErrMalformed)
	}
	said := make([]byte, n)
	if _, err := io.ReadFull(r, said); err != nil {
		return hello{}, err
	}
	return hello{}, &RefusedError{Code: Refusal(said[0]), Text: string(said[1:]), Remote: true}
}

// refuseLine says why a connection is not used, if the other side has not said so itself. The caller closes it.
func (l *Link) refuseLine(out *gather, t io.Writer, err error) {
	refused := l.refusal(err)
	text := refused.Text[:min(len(refused.Text), refusalTextBytesMax)]
	b := append(appendLineHead(nil, lineBye, 1+len(text)), byte(refused.Code))
	_ = out.SetWriteDeadline(l.cfg.Now().Add(lineSoon))
	_ = writeLine(out, t, append(b, text...)) // the peer sees a broken connection instead of the reason
}

// acceptLines hands each inbound TCP connection to a goroutine of its own.
func (l *Link) acceptLines() {
	defer l.wg.Done()
	for {
		raw, err := l.cfg.Listener.Accept()
		if err == nil {
			if !l.spawn(func() { l.serveLine(raw) }) { // ends with the connection
				_ = raw.Close()
				return
			}
			continue
		}
		if l.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		l.log.Warn("accept over TCP failed", "err", err)
		select {
		case <-time.After(lineAcceptPause):
		case <-l.ctx.Done():
			return
		}
	}
}

// serveLine greets one caller and serves it until the line ends.
func (l *Link) serveLine(raw net.Conn) {
	c := l.greetLineCaller(raw)
	if c == nil {
		_ = raw.Close()
		return
	}
	c.line.run()
	l.dropLine(c)
}

// greetLineCaller returns nil when the caller was not admitted.
func (l *Link) greetLineCaller(raw net.Conn) *conn {
	leave, ok := l.callers.enter(raw.RemoteAddr())
	if !ok {
		l.counters.refused.Add(1)
		return nil
	}
	defer leave()
	ctx, cancel := context.WithTimeout(l.ctx, helloTime)
	defer cancel()
	out := &gather{Conn: raw, direct: true, buffers: l.buffers}
	t := tls.Server(out, l.lineServerTLS())
	stop, err := shakeHands(ctx, out, t)
	if err != nil {
		l.counters.refused.Add(1)
		return nil
	}
	defer stop()
	c, err := l.answerLine(out, t)
	if err != nil {
		l.refuseLine(out, t, err)
		return nil
	}
	c.line.wmu.Lock() // it is in the table: whoever ends it may write
	err = writeLine(out, t, l.ours(ClassBulk).append(nil, welcomeMagic))
	c.line.wmu.Unlock()
	if err != nil || !stop() {
		c.line.fail(errors.New("answer hello"))
		l.drop(c)
		return nil
	}
	return c
}

// answerLine reads a caller's hello and admits it.
func (l *Link) answerLine(out *gather, t *tls.Conn) (*conn, error) {
	theirs, err := readHello(t, helloMagic)
	if err != nil {
		return nil, err
	}
	if theirs.Class != ClassBulk {
		return nil, &RefusedError{Code: RefusalMalformed, Text: fmt.Sprintf("class %v over TCP: only bulk is served there", theirs.Class)}
	}
	c, err := l.newConn(t.ConnectionState().PeerCertificates, ClassBulk, theirs)
	if err != nil {
		return nil, err
	}
	c.line = newLine(out.Conn, t, out, l.cfg.Now, l.spawn)
	c.line.serve = func(s *lineStream) {
		s.peer = c.peer
		l.runHandler(c, s.kind, s, func(code quic.StreamErrorCode) { s.shut(true, byte(code)) })
	}
	l.mu.Lock()
	p := l.peer(c.peer.Node)
	full := len(p.lines)-p.dialedLines() >= linesPeerMax
	l.mu.Unlock()
	if full {
		return nil, &RefusedError{Code: RefusalBusy, Text: "too many TCP connections of this node"}
	}
	return c, l.admit(c)
}

// callers counts unfinished handshakes over TCP, in all and by address.
type callers struct {
	mu   sync.Mutex
	all  int
	from map[string]int
}

// enter takes a caller in until leave is called, unless too many are there.
func (c *callers) enter(addr net.Addr) (leave func(), ok bool) {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		host = addr.String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= handshakesMax || c.from[host] >= lineAddressMax {
		return nil, false
	}
	if c.from == nil {
		c.from = make(map[string]int)
	}
	c.all++
	c.from[host]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.from[host]--; c.from[host] == 0 {
			delete(c.from, host)
		}
	}, true
}
