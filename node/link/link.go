// Package link is the mesh between the nodes of a ring: QUIC with mutual TLS on one UDP port a node, and TCP at the same number for
// bulk. It hides connections, dialling, certificates and back-off; its one door is Link, which opens streams to a node by ID.
//
//	l, err := link.Open(link.Config{Conn: udp, Identity: id, Resolve: addresses, Now: clock})
//	l.Handle(link.KindShardRead, serveShard)
//	s, err := l.OpenStream(ctx, node, link.ClassBulk, link.KindShardRead)
//
// # Connections
//
// Two nodes share up to one connection of class control, one of class raft and Config.BulkConns of class bulk, so
// that a bulk transfer never stands before a heartbeat. Whoever dials, both sides open streams on it; when both dial at once both
// connections live. A node that cannot be reached fails fast: after a failed dial the next attempts fail at once for
// 250 ms, growing to 2 s, until the peer itself makes contact.
//
// # Lines
//
// Streams of class bulk travel over TCP (Config.Bulk), which costs a third of QUIC's processor time. A line is a TCP connection under
// TLS 1.3 (protocol osteon-bulk/1) that carries one stream at a time, opened by the side that dialled. When a stream has ended cleanly
// at both ends the line rests for the next one. Identities, hello, admission and the ends of connections are those of QUIC. Where no line
// comes about, BulkAuto takes QUIC, and tries again later. After the hellos both sides send frames:
//
//	0 op u8 | length u24
//	4 payload
//
//	1 open  kind u8              2 data  1 byte to 1 MiB      3 end    this direction is whole
//	4 reset code u8: it is not   5 stop  code u8: no more is read   6 bye  code u8, text: why the connection ends
//
// In the place of a welcome a bye is a refusal. TLS protects the frames: they have no checksum of their own.
//
// # Who may talk
//
// TLS 1.3 only. Both sides show a certificate signed by the ring's CA, which names ring, node and site in
// one URI: osteon://ring/<ring>/node/<node>?site=<site>. The side that dials also checks that the
// node is the one it asked for. Then both exchange a hello; no other stream is served before it was accepted:
//
//	 0 magic "OSLK"  (the answer: "OSLW")
//	 4 version u8 = 1 | class u8 | zero u16
//	 8 features u32          bits a release may use; unknown bits are ignored
//	12 ring     16 bytes
//	28 ring epoch u64        bumped by an unsafe recovery; both sides must agree
//	36 boot     u64          how often this node was started; 0 when not kept
//	44 instance 16 bytes     drawn at each start
//	60 crc32c   u32          of the 60 bytes before
//
// All integers are little-endian. A refusal is a closed connection whose code and text say why. Of two processes that
// run under one node ID the one started later is served; the other is refused with the reason.
//
// An outsider without certificate can speak one protocol, osteon-join/1: one bounded request, one bounded
// response, a few at a time, on connections that are closed after it.
//
// # Streams
//
// Each stream begins with a kind byte, sent with the first write (or before the first read). Handlers run in goroutines
// that Close waits for. The calls of Call and HandleCall, and the join, are frames on such a stream:
//
//	 0 magic "OS" | version u8 = 1 | type u8 (1 request, 2 response, 3 error)
//	 4 code u8 (errors) | zero 3 bytes
//	 8 length u32
//	12 payload
//	   crc32c u32 of everything before
//
// What the package does not do: it knows no membership (Resolve and Allowed do), keeps nothing on disk, and never repeats a
// request by itself.
package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/semaphore"

	"osteon/erasure/place"
)

// Kind is the first byte of each stream and says which handler takes it.
type Kind byte

// The kinds of stream. A number is never used again for something else.
const (
	KindRaft          Kind = 1
	KindGossip        Kind = 2
	KindForward       Kind = 3
	KindJournalAppend Kind = 4
	KindJournalRead   Kind = 5
	KindShardWrite    Kind = 6
	KindShardRead     Kind = 7
	KindShardControl  Kind = 8
	KindSeal          Kind = 9
	KindAdmin         Kind = 10
	KindReadIndex     Kind = 11
)

// Class says which connection to a peer carries a stream. Streams of different classes do not wait for each other.
type Class int

// The classes of connections.
const (
	// ClassControl carries calls, gossip and other small things; a dead peer is noticed within idleControl.
	ClassControl Class = iota
	// ClassRaft carries Raft's own traffic.
	ClassRaft
	// ClassBulk carries instances and shards, over Config.BulkConns connections in turn.
	ClassBulk

	classes = 3
)

// String returns "control", "raft" or "bulk".
func (c Class) String() string {
	switch c {
	case ClassControl:
		return "control"
	case ClassRaft:
		return "raft"
	case ClassBulk:
		return "bulk"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Peer is another node as its certificate names it.
type Peer struct {
	Node place.NodeID
	Site place.SiteID
}

// Windows are the flow-control windows in bytes: how much a peer may send ahead of our reading.
// Zero fields mean 2 MiB, 8 MiB and 24 MiB; long fat lines want more, at the price of memory.
type Windows struct {
	StreamInitial uint64
	StreamMax     uint64
	ConnMax       uint64
}

// Config is what Open needs. Conn, Identity and Now are required.
type Config struct {
	// Conn is the node's UDP socket. The link owns it and closes it. A real socket is not to be wrapped: only a
	// bare *net.UDPConn can use segmentation offload, which halves the cost of sending. Simulated networks give
	// their own, with addresses of type *net.UDPAddr.
	Conn net.PacketConn
	// Identity is this node's certificate and its ring's CA; SetIdentity replaces it while running.
	Identity Identity
	// ResetKey lets a peer notice a restart on the same port at once. Keep it over restarts; zero turns it off.
	ResetKey [32]byte
	// RingEpoch is carried by every handshake; nodes of different epochs refuse each other. See SetRingEpoch.
	RingEpoch uint64
	// Boot counts the starts of this node (1, 2, ...), kept on its disk; 0 when not known. It decides
	// which of two processes with one node ID is the later one.
	Boot uint64
	// Rand, when set, draws this process's instance ID, by which peers tell a restart from a second process.
	Rand io.Reader
	// Resolve returns "host:port" of a node. nil, or false, means that only a connection made by the peer can be used.
	Resolve func(place.NodeID) (string, bool)
	// Allowed, when set, refuses nodes that the ring has removed or revoked; its text is told to the peer.
	Allowed func(Peer) error
	// Join, when set, answers one request of a node without certificate; nil response or error: refused.
	// Only the text of a *RemoteError is told to the outsider. It runs concurrently, at most joinsMax at once.
	Join func(ctx context.Context, request []byte) (response []byte, err error)
	// Bulk says how streams of ClassBulk travel; the zero value is BulkAuto.
	Bulk Bulk
	// Listener takes the TCP connections of peers for bulk, best at the port of Conn, where peers look for it. The link owns
	// it and closes it. nil: peers reach this node over QUIC only.
	Listener net.Listener
	// Dial makes a TCP connection to a node's address; nil: this node sends bulk over QUIC only.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// BulkConns is how many bulk connections are kept to each peer, 1 to BulkConnsMax; 0 means 1.
	BulkConns int
	Windows   Windows
	// Now is the clock for certificates and back-off.
	Now func() time.Time
	// Log receives the link's events; nil discards them.
	Log *slog.Logger
}

// Link is one node's end of the mesh. All methods are safe for concurrent use. Close it to let go of the socket.
type Link struct {
	cfg      Config
	log      *slog.Logger
	tr       *quic.Transport
	ln       *quic.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // every goroutine of this link
	instance [16]byte
	inbound  *semaphore.Weighted // bytes of large requests
	joins    chan struct{}       // a token per outsider being served
	half     atomic.Int64        // unfinished inbound handshakes
	identity atomic.Pointer[Identity]
	epoch    atomic.Uint64
	seen     atomic.Uint64 // highest ring epoch shown by a peer
	handlers handlers
	counters counters
	callers  callers    // unfinished handshakes over TCP
	buffers  *sync.Pool // of gather

	mu     sync.Mutex
	peers  map[place.NodeID]*peer
	closed bool
}

// Validate reports all faults of the configuration at once.
func (c *Config) Validate() error {
	var faults []error
	if c.Conn == nil {
		faults = append(faults, errors.New("link: Conn: a UDP socket is needed"))
	}
	if c.Now == nil {
		faults = append(faults, errors.New("link: Now: a clock is needed"))
	}
	switch c.Bulk {
	case BulkAuto, BulkQUIC:
	case BulkTCP:
		if c.Dial == nil || c.Listener == nil {
			faults = append(faults, errors.New("link: Bulk: TCP alone needs Listener and Dial"))
		}
	default:
		faults = append(faults, fmt.Errorf("link: Bulk is %d: want BulkAuto, BulkQUIC or BulkTCP", c.Bulk))
	}
	if c.BulkConns < 0 || c.BulkConns > BulkConnsMax {
		faults = append(faults, fmt.Errorf("link: BulkConns is %d: want 1 to %d", c.BulkConns, BulkConnsMax))
	}
	if err := c.Identity.check(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// Open starts to listen and returns at once; nothing is dialled before it is needed. It fails with ErrIdentity when the
// certificate, its key and the named ring, node and site do not belong together. An expired
// certificate is no error here (peers will refuse it, and it may be renewed with SetIdentity), only a warning.
// Register the handlers straight after Open.
func Open(cfg Config) (*Link, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.BulkConns == 0 {
		cfg.BulkConns = 1
	}
	l := &Link{
		cfg: cfg, log: cfg.Log, peers: make(map[place.NodeID]*peer),
		inbound: semaphore.NewWeighted(inboundBytesMax), joins: make(chan struct{}, joinsMax),
		buffers: newGatherPool(),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand != nil {
		if _, err := io.ReadFull(cfg.Rand, l.instance[:]); err != nil {
			return nil, fmt.Errorf("link: draw instance: %w", err)
		}
	}
	l.identity.Store(&cfg.Identity)
	l.epoch.Store(cfg.RingEpoch)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.handlers.init()
	l.tr = &quic.Transport{
		Conn:                cfg.Conn,
		VerifySourceAddress: func(net.Addr) bool { return l.half.Load() >= handshakesVerifyMin },
		ConnContext:         l.countHandshake,
	}
	if cfg.ResetKey != ([32]byte{}) {
		l.tr.StatelessResetKey = (*quic.StatelessResetKey)(&cfg.ResetKey)
	}
	ln, err := l.tr.Listen(l.serverTLS(), l.quicConfig(ClassBulk))
	if err != nil {
		l.cancel()
		return nil, fmt.Errorf("link: listen: %w", err)
	}
	l.ln = ln
	l.wg.Add(1)
	go l.acceptLoop() // ends when Close closes the listener
	if cfg.Listener != nil {
		l.wg.Add(1)
		go l.acceptLines() // the same
	}
	if left := l.CertificateExpiry().Sub(cfg.Now()); left < 30*24*time.Hour {
		l.log.Warn("node certificate runs out soon", "left", left.Round(time.Hour))
	}
	return l, nil
}

// Close ends every connection with a word to the peer, waits for all handlers to return, and closes the socket.
// It must not be called from a handler. A second call returns nil.
func (l *Link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var all []*conn
	for _, p := range l.peers {
		all = append(all, p.all()...)
	}
	l.mu.Unlock()

	l.cancel()
	l.handlers.close()
	_ = l.ln.Close() // its error only says that it is closed
	if l.cfg.Listener != nil {
		_ = l.cfg.Listener.Close() // the same
	}
	for _, c := range all {
		c.end(RefusalClosed, "node is stopping")
	}
	l.wg.Wait()
	_ = l.tr.Close()
	return l.cfg.Conn.Close()
}

// Addr returns the address of the UDP socket.
func (l *Link) Addr() net.Addr { return l.cfg.Conn.LocalAddr() }

// Self returns this node as its certificate names it.
func (l *Link) Self() Peer {
	id := l.identity.Load()
	return Peer{Node: id.Node, Site: id.Site}
}

// RingEpoch returns the epoch that this node shows in its handshakes.
func (l *Link) RingEpoch() uint64 { return l.epoch.Load() }

// SetRingEpoch changes the epoch shown in handshakes. Connections made under another one are closed.
func (l *Link) SetRingEpoch(epoch uint64) {
	if l.epoch.Swap(epoch) == epoch {
		return
	}
	for _, c := range l.conns() {
		if c.hello.Epoch != epoch {
			c.end(RefusalEpoch, epochText(epoch, c.hello.Epoch))
		}
	}
}

// SeenRingEpoch returns the highest ring epoch that a peer with a valid certificate has shown. When it is above
// RingEpoch this node was left behind by an unsafe recovery, has no ring to talk to, and must be joined again.
func (l *Link) SeenRingEpoch() uint64 { return max(l.seen.Load(), l.epoch.Load()) }

// SetIdentity replaces certificate, key and CAs (renewal, rotation) for handshakes from now on; running connections go on
// until the certificates they were made with run out. Ring and node cannot change: ErrIdentity.
func (l *Link) SetIdentity(id Identity) error {
	if err := id.check(); err != nil {
		return err
	}
	if old := l.identity.Load(); id.Ring != old.Ring || id.Node != old.Node {
		return fmt.Errorf("%w: certificate is for node %s of ring %s, this is node %s of ring %s",
			ErrIdentity, id.Node, id.Ring, old.Node, old.Ring)
	}
	l.identity.Store(&id)
	return nil
}

// Verify returns whom a node's certificate (DER) names. ErrIdentity when it is not one of this ring's that is valid now.
func (l *Link) Verify(certificate []byte) (Peer, error) {
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: certificate: %v", ErrIdentity, err)
	}
	return l.identity.Load().verify([]*x509.Certificate{parsed}, l.cfg.Now())
}

// CertificateExpiry returns when this node's certificate runs out.
func (l *Link) CertificateExpiry() time.Time { return l.identity.Load().leaf().NotAfter }

// spawn runs f in a goroutine that Close waits for, unless the link is closed.
func (l *Link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Add(1)
	go func() { // f ends on l.ctx or on the end of the connection it serves
		defer l.wg.Done()
		f()
	}()
	return true
}

// quicConfig returns the transport settings of one class. The idle time that counts is the lesser of both sides', so the
// listener, which does not know the class yet, takes the longest.
func (l *Link) quicConfig(class Class) *quic.Config {
	w := l.cfg.Windows
	or := func(v, standard uint64) uint64 {
		if v == 0 {
			return standard
		}
		return v
	}
	c := &quic.Config{
		HandshakeIdleTimeout:           dialTime,
		MaxIdleTimeout:                 idleBulk,
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     or(w.StreamInitial, windowStreamInitial),
		MaxStreamReceiveWindow:         or(w.StreamMax, windowStreamMax),
		InitialConnectionReceiveWindow: 2 * or(w.StreamInitial, windowStreamInitial),
		MaxConnectionReceiveWindow:     or(w.ConnMax, windowConnMax),
		MaxIncomingStreams:             streamsIncomingMax,
		MaxIncomingUniStreams:          -1,
		EnableDatagrams:                true,
	}
	if class == ClassControl {
		c.MaxIdleTimeout = idleControl
		c.KeepAlivePeriod = keepAliveClose
	}
	return c
}

// tlsBase is what every handshake of this package shares.
func (l *Link) tlsBase(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true, // every connection proves its certificate anew
		Time:                   l.cfg.Now,
	}
}

// poolOf returns a certificate pool of the CAs that this node trusts: the ring's own and those being rotated out or in.
func poolOf(cas ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca)
	}
	return pool
}
