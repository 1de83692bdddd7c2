package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"log/slog"
	"math/bits"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"osteon/erasure/place"
	"osteon/node/link"
)

// Timing of the gossip. A node killed without a word is marked dead after, on the average, half a probe interval until
// somebody asks it, one interval until it is suspected, and three until nobody has heard from it: about 2 s.
const (
	gossipProbe       = 400 * time.Millisecond
	gossipSuspicion   = 3 // probe intervals in which a suspected node may speak up
	gossipUnconfirmed = 2 // times that, while no second node has confirmed the suspicion
	gossipSilence     = 2 // probe intervals without a packet before a node that memberlist gave up is down
	gossipStreamTime  = 3 * time.Second
	gossipPushPull    = 15 * time.Second
	gossipTick        = time.Second
	gossipRejoin      = 3 * time.Second // between two attempts to reach a member that is not alive
	gossipAnnounce    = 5 * time.Second // between two announcements of changed facts
	gossipLeave       = time.Second
	gossipPort        = 7400                   // memberlist wants one; the link does the addressing
	gossipPackets     = 256                    // received datagrams waiting; more are dropped, as a network would
	gossipEventsMax   = 4096                   // events waiting for a slow receiver; the oldest are dropped
	gossipMembersMax  = 1024                   // far above any ring; a bound on what a broken peer can make us hold
	gossipStreamBytes = gossipMembersMax << 10 // of one exchange: memberlist's 512 of metadata a node, its name, address and state
	gossipInfoVersion = 1
	gossipTextMax     = 80 // bytes of a name or an address in the metadata
)

// GossipInfo is what a node tells the others about itself. It is a hint: the catalog holds the truth about members.
//
// On the wire it is at most 512 bytes:
//
//	0 version u8 = 1 | flags u8 (1: leaving) | free u8 (see FreeBucket)
//	3 node 16 bytes
//	19 applied uvarint
//	   site, name, dimse, http: each length u8 and bytes
//	   crc32c u32 of everything before
type GossipInfo struct {
	Node  place.NodeID
	Site  place.SiteID
	Name  string
	DIMSE string // host:port, empty when not served
	HTTP  string
	// Free is the free space for shards in bytes, rounded down to a quarter of a power of two; 0 when not known.
	Free int64
	// Applied is the index of the last catalog entry applied there, a few seconds old.
	Applied uint64

	leaving bool // goes away on purpose: not to be doubted
}

// GossipMember is a node as gossip sees it.
type GossipMember struct {
	GossipInfo
	Alive bool
	Since time.Time // of Alive's last change, by this node's clock

	doubted bool // memberlist gave the node up, but its packets still arrive
	packets uint64
	heard   time.Time // when packets changed last
}

// GossipEventKind says what happened to a node.
type GossipEventKind int

// The kinds of event.
const (
	GossipUp GossipEventKind = iota + 1
	GossipDown
	// GossipChanged: a node that is up tells new facts about itself.
	GossipChanged
)

// GossipEvent is a change of one node.
type GossipEvent struct {
	Kind GossipEventKind
	Info GossipInfo
}

// GossipConfig is what OpenGossip needs.
type GossipConfig struct {
	Link *link.Link
	// Self is told to the others; Node and Site must be the link's.
	Self GossipInfo
	// Peers lists the nodes that should be members; those not alive are contacted again and again, so that the
	// halves of a ring find each other after a partition. nil: only Join makes contact.
	Peers func() []place.NodeID
	// Allowed, when set, keeps removed nodes out even if others still speak of them.
	Allowed func(link.Peer) error
	// Events receives changes of other nodes in order, from one goroutine. It may block and may call Gossip, but not Close.
	Events func(GossipEvent)
	// Probe is the time between two probes, 400 ms if zero. Raise it where round trips take longer than 100 ms.
	Probe time.Duration
	Log   *slog.Logger
}

// Gossip tells which nodes are alive. It rides on the link: packets are its datagrams, state exchanges its streams, so
// everybody who gossips has a certificate of the ring. memberlist's verdict is checked against the link's: a node whose packets still
// arrive is slow, not dead. When a node is found dead its connections are closed (link.MarkDown), so
// that nothing waits for it. Everything it says is a hint about liveness, never a decision about membership. All
// methods are safe for concurrent use.
type Gossip struct {
	cfg  GossipConfig
	log  *slog.Logger
	list *memberlist.Memberlist
	net  *gossipNet
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	wake chan struct{} // cap 1: events are waiting

	mu        sync.Mutex
	self      GossipInfo
	announced GossipInfo
	at        time.Time // of the last announcement
	members   map[place.NodeID]*GossipMember
	tried     map[place.NodeID]time.Time
	trying    map[place.NodeID]bool
	events    []GossipEvent
	closed    bool
}

// OpenGossip starts to gossip; Join or Config.Peers make contact. It registers itself with the link for link.KindGossip and
// datagrams, so a link carries one Gossip. Close it before the link.
func OpenGossip(cfg GossipConfig) (*Gossip, error) {
	if cfg.Link == nil {
		return nil, errors.New("gossip: a link is needed")
	}
	if self := cfg.Link.Self(); self.Node != cfg.Self.Node || self.Site != cfg.Self.Site {
		return nil, fmt.Errorf("gossip: self is node %s at %q, the link's certificate is for %s at %q",
			cfg.Self.Node, cfg.Self.Site, self.Node, self.Site)
	}
	if _, err := cfg.Self.encode(); err != nil {
		return nil, err
	}
	if cfg.Probe == 0 {
		cfg.Probe = gossipProbe
	}
	g := &Gossip{
		cfg: cfg, log: cfg.Log, self: cfg.Self, announced: cfg.Self, wake: make(chan struct{}, 1),
		members: make(map[place.NodeID]*GossipMember), tried: make(map[place.NodeID]time.Time), trying: make(map[place.NodeID]bool),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.net = newGossipNet(cfg.Link)
	list, err := memberlist.Create(g.listConfig())
	if err != nil {
		g.stop()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g.list = list
	g.wg.Go(g.deliver)  // all three end with g.ctx
	g.wg.Go(g.maintain) //
	g.wg.Go(g.listen)   //
	return g, nil
}

func (g *Gossip) listConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Self.Node.String()
	c.Transport = g.net
	c.Delegate, c.Events, c.Alive = gossipDelegate{g}, gossipDelegate{g}, gossipDelegate{g}
	c.Logger = log.New(gossipLog{g.log}, "", 0)
	c.ProbeInterval = g.cfg.Probe
	c.ProbeTimeout = g.cfg.Probe / 2
	c.SuspicionMult = gossipSuspicion
	c.SuspicionMaxTimeoutMult = gossipUnconfirmed
	c.AwarenessMaxMultiplier = 4
	c.TCPTimeout = gossipStreamTime
	c.PushPullInterval = gossipPushPull
	c.GossipInterval = g.cfg.Probe / 4
	c.UDPBufferSize = link.DatagramBytesMax
	c.EnableCompression = false
	c.DeadNodeReclaimTime = time.Second
	c.RequireNodeNames = true
	return c
}

// Join exchanges states with the given nodes, all at once, and returns how many answered. The error, when none did, is one of
// theirs. It returns at the latest when ctx ends.
func (g *Gossip) Join(ctx context.Context, seeds []place.NodeID) (int, error) {
	results := make(chan error, len(seeds))
	for _, seed := range seeds {
		if !g.spawn(func() { results <- g.contact(seed) }) { // bounded by gossipStreamTime
			return 0, errors.New("gossip: closed")
		}
	}
	joined, last := 0, error(nil)
	for range seeds {
		select {
		case err := <-results:
			if err != nil {
				last = err
				continue
			}
			joined++
		case <-ctx.Done():
			if joined > 0 {
				return joined, nil
			}
			return 0, fmt.Errorf("gossip: join: %w", ctx.Err())
		}
	}
	if joined == 0 && last != nil {
		return 0, fmt.Errorf("gossip: join: %w", last)
	}
	return joined, nil
}

// contact exchanges states with one node.
func (g *Gossip) contact(node place.NodeID) error {
	if node == g.cfg.Self.Node {
		return nil
	}
	_, err := g.list.Join([]string{node.String() + "/" + net.JoinHostPort(gossipAddr(node).String(), fmt.Sprint(gossipPort))})
	return err
}

func (g *Gossip) spawn(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

// Alive reports whether a node is believed to be up. This node always is.
func (g *Gossip) Alive(node place.NodeID) bool {
	if node == g.cfg.Self.Node {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.members[node]
	return m != nil && m.Alive
}

// trusts reports whether a node is alive beyond doubt.
func (g *Gossip) trusts(node place.NodeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.members[node]
	return m != nil && m.Alive && !m.doubted
}

// Free returns what a node last said about its free bytes; 0 when not known.
func (g *Gossip) Free(node place.NodeID) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if node == g.cfg.Self.Node {
		return g.self.Free
	}
	if m := g.members[node]; m != nil {
		return m.Free
	}
	return 0
}

// Members returns every other node that gossip has heard of since it started, in order of node ID, dead ones too.
func (g *Gossip) Members() []GossipMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]GossipMember, 0, len(g.members))
	for _, m := range g.members {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b GossipMember) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return all
}

// Update changes what this node tells about itself. Node and Site stay. The others hear of it within a few seconds; calling it
// often costs nothing.
func (g *Gossip) Update(info GossipInfo) error {
	info.Node, info.Site = g.cfg.Self.Node, g.cfg.Self.Site
	if _, err := info.encode(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	info.leaving = g.self.leaving
	g.self = info
	return nil
}

// Leave tells the others that this node goes away on purpose, so that nobody suspects it first. Close afterwards.
func (g *Gossip) Leave() error {
	g.mu.Lock()
	closed := g.closed
	g.self.leaving = true
	g.mu.Unlock()
	if closed {
		return nil
	}
	_ = g.list.UpdateNode(gossipLeave) // the word itself; what follows is memberlist's
	if err := g.list.Leave(gossipLeave); err != nil {
		return fmt.Errorf("gossip: leave: %w", err)
	}
	return nil
}

// Close stops the gossip and waits for it; a probe that is under way ends by itself within four probe intervals.
// Without Leave the others take this node for dead.
func (g *Gossip) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.mu.Unlock()
	g.stop()
	err := g.list.Shutdown()
	g.wg.Wait()
	return err
}

// maintain contacts members that are not alive and announces changed facts.
func (g *Gossip) maintain() {
	tick := time.NewTicker(gossipTick)
	defer tick.Stop()
	for {
		g.rejoin()
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			return
		}
		if g.mustAnnounce() {
			_ = g.list.UpdateNode(gossipLeave) // a timeout means that it is still on its way
		}
	}
}

func (g *Gossip) mustAnnounce() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, _ := g.announced.encode()
	now, _ := g.self.encode()
	if string(before) == string(now) || time.Since(g.at) < gossipAnnounce {
		return false
	}
	g.at = time.Now()
	return true
}

// rejoin starts an attempt for every wanted node that is not alive and has not been tried lately.
func (g *Gossip) rejoin() {
	if g.cfg.Peers == nil {
		return
	}
	for _, node := range g.cfg.Peers() {
		if node == g.cfg.Self.Node || g.trusts(node) || !g.mayTry(node) {
			continue
		}
		g.spawn(func() { // bounded by gossipStreamTime; one at a time for each node
			if err := g.contact(node); err != nil {
				g.log.Debug("member not reached", "node", node, "err", err)
			}
			g.mu.Lock()
			delete(g.trying, node)
			g.mu.Unlock()
		})
	}
}

func (g *Gossip) mayTry(node place.NodeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trying[node] || time.Since(g.tried[node]) < gossipRejoin || len(g.tried) > gossipMembersMax {
		return false
	}
	g.tried[node], g.trying[node] = time.Now(), true
	return true
}

// deliver hands events to the link and the caller, outside memberlist's locks.
func (g *Gossip) deliver() {
	for {
		select {
		case <-g.wake:
		case <-g.ctx.Done():
			return
		}
		g.mu.Lock()
		events := g.events
		g.events = nil
		g.mu.Unlock()
		for _, e := range events {
			switch alive := g.Alive(e.Info.Node); {
			case e.Kind == GossipUp && alive:
				g.log.Info("node is up", "node", e.Info.Node, "name", e.Info.Name, "site", e.Info.Site)
				g.cfg.Link.MarkUp(e.Info.Node)
			case e.Kind == GossipDown && !alive: // it may have come back in the meantime
				g.log.Warn("node is down", "node", e.Info.Node, "name", e.Info.Name, "site", e.Info.Site)
				g.cfg.Link.MarkDown(e.Info.Node)
			}
			if g.cfg.Events != nil {
				g.cfg.Events(e)
			}
		}
	}
}

// listen notes from whom packets arrive, and gives up doubted nodes that have fallen silent.
func (g *Gossip) listen() {
	tick := time.NewTicker(g.cfg.Probe / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			return
		}
		g.mu.Lock()
		for node, m := range g.members {
			if n := g.cfg.Link.PacketsReceived(node); n != m.packets {
				m.packets = n
				if n != 0 {
					m.heard = time.Now()
				}
			}
			if m.doubted && time.Since(m.heard) >= gossipSilence*g.cfg.Probe {
				g.turn(m, GossipDown)
			}
		}
		g.mu.Unlock()
	}
}

// note enters what memberlist says about a node. It runs under memberlist's lock: no call back into it.
func (g *Gossip) note(n *memberlist.Node, kind GossipEventKind) {
	info, err := decodeGossipInfo(n.Meta)
	if err != nil || info.Node == g.cfg.Self.Node || info.Node.String() != n.Name {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.members[info.Node]
	if m == nil {
		m = &GossipMember{}
		g.members[info.Node] = m
	}
	m.GossipInfo = info
	switch {
	case info.leaving || kind == GossipDown && !m.Alive:
		if m.Alive {
			g.turn(m, GossipDown)
		}
		return
	case kind == GossipDown && time.Since(m.heard) < gossipSilence*g.cfg.Probe:
		m.doubted = true // listen decides
		return
	case kind == GossipUp && m.doubted:
		kind = GossipChanged // nobody was told that it was down
	}
	g.turn(m, kind)
}

// turn enters a change and queues its event. mu is held.
func (g *Gossip) turn(m *GossipMember, kind GossipEventKind) {
	m.doubted = false
	if alive := kind != GossipDown; alive != m.Alive {
		m.Alive, m.Since = alive, time.Now()
	}
	if len(g.events) == gossipEventsMax {
		g.events = slices.Delete(g.events, 0, 1)
	}
	g.events = append(g.events, GossipEvent{Kind: kind, Info: m.GossipInfo})
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// gossipDelegate is what memberlist calls. None of it blocks.
type gossipDelegate struct{ g *Gossip }

func (d gossipDelegate) NodeMeta(limit int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	d.g.announced = d.g.self
	meta, err := d.g.self.encode()
	if err != nil || len(meta) > limit { // Update and OpenGossip have checked it
		return nil
	}
	return meta
}

func (gossipDelegate) NotifyMsg([]byte)                {}
func (gossipDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (gossipDelegate) LocalState(bool) []byte          { return nil }
func (gossipDelegate) MergeRemoteState([]byte, bool)   {}

func (d gossipDelegate) NotifyJoin(n *memberlist.Node)   { d.g.note(n, GossipUp) }
func (d gossipDelegate) NotifyLeave(n *memberlist.Node)  { d.g.note(n, GossipDown) }
func (d gossipDelegate) NotifyUpdate(n *memberlist.Node) { d.g.note(n, GossipChanged) }

// NotifyAlive keeps out what is no node of this ring.
func (d gossipDelegate) NotifyAlive(n *memberlist.Node) error {
	info, err := decodeGossipInfo(n.Meta)
	switch {
	case err != nil:
		return err
	case info.Node.String() != n.Name || !n.Addr.Equal(gossipAddr(info.Node)) || n.Port != gossipPort:
		return errors.New("name and facts differ")
	case info.Node == d.g.cfg.Self.Node:
		return nil
	}
	d.g.mu.Lock()
	full := d.g.members[info.Node] == nil && len(d.g.members) >= gossipMembersMax
	d.g.mu.Unlock()
	if full {
		return errors.New("too many members")
	}
	if d.g.cfg.Allowed != nil {
		return d.g.cfg.Allowed(link.Peer{Node: info.Node, Site: info.Site})
	}
	return nil
}

// gossipLog turns memberlist's log lines into debug events: what matters is logged as an event of ours.
type gossipLog struct{ log *slog.Logger }

func (w gossipLog) Write(p []byte) (int, error) {
	w.log.Debug("memberlist", "line", strings.TrimSpace(string(p)))
	return len(p), nil
}

var _ io.Writer = gossipLog{}

// FreeBucket rounds free bytes down to a quarter of a power of two, in one byte; 0 is "not known".
func FreeBucket(free int64) uint8 {
	if free <= 0 {
		return 0
	}
	exp := bits.Len64(uint64(free)) // 1 to 63
	return uint8(exp*4 + int(uint64(free)<<(64-exp)>>61&3))
}

// BucketFree returns the least number of free bytes in a bucket.
func BucketFree(b uint8) int64 {
	if b < 4 {
		return 0
	}
	return int64((4 | uint64(b&3)) << 61 >> (64 - b/4))
}

// encode writes the metadata. The error says which text is too long.
func (i GossipInfo) encode() ([]byte, error) {
	b := make([]byte, 0, memberlist.MetaMaxSize)
	var flags byte
	if i.leaving {
		flags = 1
	}
	b = append(b, gossipInfoVersion, flags, FreeBucket(i.Free))
	b = append(b, i.Node[:]...)
	b = binary.AppendUvarint(b, i.Applied)
	for _, text := range []string{string(i.Site), i.Name, i.DIMSE, i.HTTP} {
		if len(text) > gossipTextMax {
			return nil, fmt.Errorf("gossip: %.20q... has %d bytes, at most %d are allowed", text, len(text), gossipTextMax)
		}
		b = append(b, byte(len(text)))
		b = append(b, text...)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), nil
}

var errGossipInfo = errors.New("gossip: metadata cannot be read")

// decodeGossipInfo reads what encode wrote.
func decodeGossipInfo(b []byte) (GossipInfo, error) {
	end := len(b) - 4
	if end < 19 || b[0] != gossipInfoVersion || b[1] > 1 ||
		binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], crc32.MakeTable(crc32.Castagnoli)) {
		return GossipInfo{}, errGossipInfo
	}
	i := GossipInfo{Free: BucketFree(b[2]), leaving: b[1] == 1}
	copy(i.Node[:], b[3:19])
	rest := b[19:end]
	applied, n := binary.Uvarint(rest)
	if n <= 0 {
		return GossipInfo{}, errGossipInfo
	}
	i.Applied, rest = applied, rest[n:]
	var site string
	for _, text := range []*string{&site, &i.Name, &i.DIMSE, &i.HTTP} {
		if len(rest) == 0 || int(rest[0]) > gossipTextMax || len(rest) < 1+int(rest[0]) {
			return GossipInfo{}, errGossipInfo
		}
		*text = string(rest[1 : 1+rest[0]])
		rest = rest[1+rest[0]:]
	}
	if len(rest) != 0 {
		return GossipInfo{}, errGossipInfo
	}
	i.Site = place.SiteID(site)
	return i, nil
}
