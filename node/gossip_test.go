package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	stdflag "flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"osteon/erasure/place"
	"osteon/node/link"
)

var updateGossip = stdflag.Bool("update-gossip", false, "rewrite the gossip golden file")

// gossipRing is a ring of links with gossip in one process.
type gossipRing struct {
	t    *testing.T
	ca   *link.CA
	mu   sync.Mutex
	at   map[place.NodeID]string
	all  []place.NodeID
	cut  map[place.NodeID]int // nodes of different values do not resolve each other
	gone atomic.Pointer[place.NodeID]
}

type gossipNode struct {
	*Gossip
	link *link.Link
	conn *net.UDPConn
	id   link.Identity

	mu     sync.Mutex
	events []GossipEvent
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newGossipRing(t *testing.T) *gossipRing {
	t.Cleanup(func() {
		goleak.VerifyNone(t, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
	})
	ringID, err := place.NewRingID(rand.Reader)
	fatal(t, err)
	ca, err := link.NewCA(ringID, rand.Reader, time.Now)
	fatal(t, err)
	return &gossipRing{t: t, ca: ca, at: map[place.NodeID]string{}, cut: map[place.NodeID]int{}}
}

func (r *gossipRing) newIdentity() link.Identity {
	r.t.Helper()
	id, err := place.NewNodeID(rand.Reader)
	fatal(r.t, err)
	key, err := link.NewNodeKey(rand.Reader)
	fatal(r.t, err)
	csr, err := link.NewCSR(rand.Reader, key)
	fatal(r.t, err)
	cert, err := r.ca.Sign(csr, id, "north", time.Hour)
	fatal(r.t, err)
	identity, err := link.NewIdentity(r.ca.Certificate().Raw, cert, key)
	fatal(r.t, err)
	return identity
}

func (r *gossipRing) peers() []place.NodeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]place.NodeID(nil), r.all...)
}

// start runs a node. boot is 1 for a new node; a restart counts on.
func (r *gossipRing) start(id link.Identity, boot uint64) *gossipNode {
	r.t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	fatal(r.t, err)
	n := &gossipNode{conn: conn, id: id}
	self := id.Node
	n.link, err = link.Open(link.Config{Conn: conn, Identity: id, Boot: boot, Rand: rand.Reader, Now: time.Now,
		Resolve: func(to place.NodeID) (string, bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			at, ok := r.at[to]
			return at, ok && r.cut[self] == r.cut[to]
		},
		Allowed: func(from link.Peer) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.cut[self] != r.cut[from.Node] {
				return errors.New("partitioned")
			}
			return nil
		}})
	fatal(r.t, err)
	r.mu.Lock()
	r.at[self] = conn.LocalAddr().String()
	if boot == 1 {
		r.all = append(r.all, self)
	}
	r.mu.Unlock()
	n.Gossip, err = OpenGossip(GossipConfig{
		Link: n.link, Peers: r.peers, Self: GossipInfo{Node: self, Site: "north", Name: "n", Free: 1 << 40},
		Allowed: func(p link.Peer) error {
			if gone := r.gone.Load(); gone != nil && *gone == p.Node {
				return errors.New("removed")
			}
			return nil
		},
		Events: func(e GossipEvent) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, e)
		},
	})
	fatal(r.t, err)
	r.t.Cleanup(n.stop)
	return n
}

func (n *gossipNode) stop() {
	_ = n.Gossip.Close()
	_ = n.link.Close()
}

func (n *gossipNode) count(kind GossipEventKind) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := 0
	for _, e := range n.events {
		if e.Kind == kind {
			c++
		}
	}
	return c
}

// wait polls until ok; it returns how long that took.
func (r *gossipRing) wait(what string, ok func() bool) time.Duration {
	r.t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		<-tick.C
		if time.Since(start) > 20*time.Second {
			r.t.Fatalf("%s: not within 20 s", what)
		}
	}
	return time.Since(start)
}

func (r *gossipRing) ring(n int) []*gossipNode {
	r.t.Helper()
	var nodes []*gossipNode
	for range n {
		nodes = append(nodes, r.start(r.newIdentity(), 1))
	}
	took := r.wait("everybody sees everybody", func() bool { return r.see(nodes, nodes) })
	r.t.Logf("%d nodes saw each other after %v", n, took)
	return nodes
}

// see reports whether all of the viewers take all of the viewed for alive.
func (r *gossipRing) see(viewers, viewed []*gossipNode) bool {
	for _, a := range viewers {
		for _, b := range viewed {
			if !a.Alive(b.id.Node) {
				return false
			}
		}
	}
	return true
}

func (r *gossipRing) seeNone(viewers []*gossipNode, node place.NodeID) bool {
	for _, a := range viewers {
		if a.Alive(node) {
			return false
		}
	}
	return true
}

func TestGossipNoticesDeathAndReturn(t *testing.T) {
	r := newGossipRing(t)
	nodes := r.ring(5)
	victim, rest := nodes[4], nodes[:4]
	blocked := make(chan error, 1)
	victim.link.Handle(link.KindAdmin, func(ctx context.Context, s link.Stream) { <-ctx.Done(); link.Abort(s) })
	s, err := rest[0].link.OpenStream(t.Context(), victim.id.Node, link.ClassBulk, link.KindAdmin)
	fatal(t, err)
	_, err = io.WriteString(s, "x")
	fatal(t, err)
	go func() { _, err := s.Read(make([]byte, 1)); blocked <- err }()

	_ = victim.conn.Close()
	took := r.wait("death noticed", func() bool { return r.seeNone(rest, victim.id.Node) })
	t.Logf("all noticed the death after %v", took)
	if took > 5*time.Second {
		t.Errorf("death noticed after %v, want about 2 s", took)
	}
	if err := <-blocked; !errors.Is(err, link.ErrLost) {
		t.Errorf("stream to the dead node: %v, want ErrLost", err)
	}
	victim.stop()

	again := r.start(victim.id, 2) // at another port
	took = r.wait("return noticed", func() bool {
		return r.see(rest, []*gossipNode{again}) && r.see([]*gossipNode{again}, rest)
	})
	t.Logf("all noticed the return after %v", took)
	r.wait("events delivered", func() bool { return rest[0].count(GossipDown) == 1 && rest[0].count(GossipUp) == 5 })
}

func TestGossipLeaveAndUpdate(t *testing.T) {
	r := newGossipRing(t)
	nodes := r.ring(3)
	fatal(t, nodes[0].Update(GossipInfo{Name: "renamed", HTTP: "127.0.0.1:8104", Free: 1 << 20, Applied: 99}))
	took := r.wait("facts spread", func() bool {
		for _, n := range nodes[1:] {
			for _, m := range n.Members() {
				if m.Node == nodes[0].id.Node && (m.Name != "renamed" || m.Applied != 99 || m.Site != "north") {
					return false
				}
			}
		}
		return true
	})
	t.Logf("facts spread after %v", took)
	if free := nodes[1].Free(nodes[0].id.Node); free != 1<<20 {
		t.Errorf("free bytes: %d", free)
	}
	if err := nodes[0].Update(GossipInfo{HTTP: string(make([]byte, 100))}); err == nil {
		t.Errorf("a text that is too long was taken")
	}
	fatal(t, nodes[2].Leave())
	took = r.wait("leave noticed", func() bool { return r.seeNone(nodes[:2], nodes[2].id.Node) })
	if took > time.Second {
		t.Errorf("leave noticed after %v", took)
	}
	fatal(t, nodes[2].Gossip.Close())
	fatal(t, nodes[2].Leave())
}

func TestGossipHalvesFindEachOther(t *testing.T) {
	r := newGossipRing(t)
	nodes := r.ring(4)
	r.mu.Lock()
	for i, n := range nodes {
		r.cut[n.id.Node] = i % 2
	}
	r.mu.Unlock()
	for _, a := range nodes {
		for _, b := range nodes {
			if r.cut[a.id.Node] != r.cut[b.id.Node] {
				a.link.DropPeer(b.id.Node)
			}
		}
	}
	even, odd := []*gossipNode{nodes[0], nodes[2]}, []*gossipNode{nodes[1], nodes[3]}
	r.wait("halves lose each other", func() bool {
		return r.seeNone(even, odd[0].id.Node) && r.seeNone(even, odd[1].id.Node) && r.seeNone(odd, even[0].id.Node) && r.seeNone(odd, even[1].id.Node)
	})
	if !r.see(even, even) || !r.see(odd, odd) {
		t.Errorf("nodes of one half lost each other")
	}
	r.mu.Lock()
	clear(r.cut)
	r.mu.Unlock()
	took := r.wait("halves find each other", func() bool { return r.see(nodes, nodes) })
	t.Logf("healed after %v", took)
}

func TestGossipKeepsRemovedNodesOut(t *testing.T) {
	r := newGossipRing(t)
	removed := r.newIdentity()
	r.gone.Store(&removed.Node)
	nodes := r.ring(2)
	out := r.start(removed, 1)
	_, _ = out.Join(t.Context(), []place.NodeID{nodes[0].id.Node, nodes[1].id.Node})
	for range 20 {
		if nodes[0].Alive(removed.Node) || nodes[1].Alive(removed.Node) {
			t.Fatal("a removed node is a member again")
		}
		_, _ = nodes[0].Join(t.Context(), []place.NodeID{nodes[1].id.Node})
	}
}

func TestGossipJoinErrors(t *testing.T) {
	r := newGossipRing(t)
	n := r.start(r.newIdentity(), 1)
	stranger, err := place.NewNodeID(rand.Reader)
	fatal(t, err)
	if joined, err := n.Join(t.Context(), []place.NodeID{stranger}); joined != 0 || err == nil {
		t.Errorf("joined %d, %v", joined, err)
	}
	if joined, err := n.Join(t.Context(), nil); joined != 0 || err != nil {
		t.Errorf("no seeds: joined %d, %v", joined, err)
	}
	if n.Alive(stranger) || !n.Alive(n.id.Node) {
		t.Errorf("a stranger is alive, or this node is not")
	}
}

func sampleGossipInfo() GossipInfo {
	i := GossipInfo{Site: "north", Name: "north-1", DIMSE: "10.0.0.1:11112", HTTP: "10.0.0.1:8104", Free: 5 << 38, Applied: 123456789}
	for at := range i.Node {
		i.Node[at] = byte(at)
	}
	return i
}

func TestGossipInfoGolden(t *testing.T) {
	path := filepath.Join("testdata", "gossip-v1.bin")
	got, err := sampleGossipInfo().encode()
	fatal(t, err)
	if *updateGossip {
		fatal(t, os.MkdirAll("testdata", 0o755))
		fatal(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	fatal(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("wrote %x, the format is %x", got, want)
	}
	if i, err := decodeGossipInfo(want); err != nil || i != sampleGossipInfo() {
		t.Errorf("reads as %+v, %v", i, err)
	}
	long := GossipInfo{Applied: 1 << 63}
	for _, text := range []*string{&long.Name, &long.DIMSE, &long.HTTP} {
		*text = string(bytes.Repeat([]byte("x"), gossipTextMax))
	}
	long.Site = place.SiteID(long.Name)
	if b, err := long.encode(); err != nil || len(b) > 512 {
		t.Errorf("longest metadata: %d bytes, %v", len(b), err)
	}
}

func TestFreeBucket(t *testing.T) {
	for _, free := range []int64{1, 2, 3, 4, 5, 1000, 1 << 20, 5 << 38, 7<<40 + 1, 1<<63 - 1} {
		low := BucketFree(FreeBucket(free))
		if low > free || (free >= 4 && free-low > free/4) {
			t.Errorf("%d bytes are told as %d", free, low)
		}
	}
	if FreeBucket(0) != 0 || FreeBucket(-1) != 0 || BucketFree(0) != 0 {
		t.Errorf("zero is not \"not known\"")
	}
}

func FuzzGossipInfo(f *testing.F) {
	b, _ := sampleGossipInfo().encode()
	f.Add(b)
	f.Add([]byte{1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decodeGossipInfo(b)
		if err != nil {
			return
		}
		again, err := i.encode()
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", i, err)
		}
		if j, err := decodeGossipInfo(again); err != nil || i != j {
			t.Errorf("%+v reads again as %+v, %v", i, j, err)
		}
	})
}
