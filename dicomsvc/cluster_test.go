package dicomsvc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
	"osteon/raft/ring"
	"osteon/raft/vault"
)

// cluster is a ring of archives in one process: real journals, catalogs and shards, an in-memory mesh
// between them, and a log that every reachable catalog applies at once.
type cluster struct {
	t     testing.TB
	ring  place.RingID
	nodes []*member

	mu      sync.Mutex
	entries []ring.Entry
	quorum  bool
	cut     map[[2]place.NodeID]bool // pairs that cannot talk
}

// member is one node of a cluster.
type member struct {
	c       *cluster
	t       testing.TB
	place   place.Node
	dir     string
	vault   *vault.Vault
	fs      vfs.FS
	cat     *catalog.Catalog
	archive *dicomsvc.Archive
	adjust  func(*dicomsvc.Config, *erasure.Config)
	stop    context.CancelFunc

	mu       sync.Mutex
	up       bool
	deaf     bool // believed to be alive, and cannot be reached
	handlers map[link.Kind]func(context.Context, link.Stream)
	streams  map[*memStream]bool
	serving  sync.WaitGroup
}

// newCluster opens a ring with one node a site named; sites may repeat. adjust may change what each node
// is opened with.
func newCluster(t testing.TB, sites []string, adjust func(*dicomsvc.Config, *erasure.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, quorum: true, cut: map[[2]place.NodeID]bool{}}
	c.ring, _ = place.NewRingID(rand.Reader)
	var first *vault.Vault
	for i, site := range sites {
		m := &member{c: c, t: t, dir: t.TempDir(), fs: vfs.Default, adjust: adjust}
		id, _ := place.NewNodeID(rand.Reader)
		disk, _ := place.NewDiskID(rand.Reader)
		m.place = place.Node{ID: id, Name: fmt.Sprintf("%s%d", site, i), Site: place.SiteID(site), Disk: disk, Data: true}
		root, err := vault.CreateRootKeyFile(vfs.Default, m.dir+"/root.key", rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		vcfg := vault.Config{FS: vfs.Default, Dir: m.dir + "/vault", Ring: c.ring, Root: root, Rand: rand.Reader}
		if err := os.MkdirAll(vcfg.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			m.vault, err = vault.Create(vcfg)
			first = m.vault
		} else {
			m.vault, err = vault.Install(vcfg, first.Bundle())
		}
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, m)
	}
	for _, m := range c.nodes {
		m.start()
	}
	t.Cleanup(func() {
		for _, m := range c.nodes {
			m.shut()
		}
	})
	return c
}

// start opens the node; its catalog catches up with the log.
func (m *member) start() {
	m.t.Helper()
	var err error
	if m.cat, err = catalog.Open(catalog.Config{FS: m.vault.FS(), Dir: m.dir + "/catalog", MAC: m.vault.MAC, Now: time.Now}); err != nil {
		m.t.Fatal(err)
	}
	m.cat.SetProposer(proposer{m})
	m.mu.Lock()
	m.handlers, m.streams, m.up = map[link.Kind]func(context.Context, link.Stream){}, map[*memStream]bool{}, true
	m.mu.Unlock()
	m.catchUp()
	cfg := dicomsvc.Config{
		Ring: m.c.ring, Self: m.place.ID, Catalog: m.cat, Vault: m.vault, Topology: m.topology,
		Survive: func() place.Survive { return "" },
		Seal:    dicomsvc.SealPolicy{Quiet: time.Hour, Old: time.Hour}, Now: time.Now, Rand: rand.Reader,
	}
	ecfg := erasure.Config{
		FS: m.fs, Dir: m.dir, Ring: m.c.ring, Self: m.place.ID, Site: m.place.Site, Disk: m.place.Disk, Vault: m.vault,
		Mesh: m, Topology: m.topology, Now: time.Now, Rand: rand.Reader,
	}
	if m.adjust != nil {
		m.adjust(&cfg, &ecfg)
	}
	cfg.Store = func(cb dicomsvc.Callbacks) (*erasure.Store, error) {
		ecfg.Held = func(k journal.Key, note []byte, from place.NodeID) { cb.Held(k, note, from) }
		ecfg.BadShard = cb.BadShard
		return erasure.Open(ecfg)
	}
	if m.archive, err = dicomsvc.Open(cfg); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.archive.Run(ctx)
}

// shut closes the node; its streams break as they would on a crash.
func (m *member) shut() {
	m.mu.Lock()
	was := m.up
	m.up = false
	for s := range m.streams {
		s.Abort()
	}
	m.mu.Unlock()
	if !was {
		return
	}
	m.stop()
	if err := m.archive.Close(); err != nil {
		m.t.Logf("close archive: %v", err)
	}
	m.serving.Wait()
	if err := m.cat.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *member) isUp() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}

func (m *member) topology() []place.Node {
	out := make([]place.Node, 0, len(m.c.nodes))
	for _, n := range m.c.nodes {
		p := n.place
		p.Live = n == m || n.isUp() && !m.c.apart(m, n)
		out = append(out, p)
	}
	return out
}

// separate cuts the talk between a node and all others, or mends it.
func (c *cluster) separate(m *member, apart bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		c.cut[[2]place.NodeID{m.place.ID, n.place.ID}] = apart
		c.cut[[2]place.NodeID{n.place.ID, m.place.ID}] = apart
	}
}

func (c *cluster) apart(a, b *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[[2]place.NodeID{a.place.ID, b.place.ID}]
}

func (c *cluster) setQuorum(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.quorum = yes
}

// proposer orders what a member proposes and lets every member that is up apply it.
type proposer struct{ m *member }

func (p proposer) Propose(_ context.Context, data []byte) (uint64, []byte, error) {
	c := p.m.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.quorum {
		return 0, nil, errors.New("no quorum")
	}
	e := ring.Entry{Index: uint64(len(c.entries) + 1), Term: 1, Data: data}
	c.entries = append(c.entries, e)
	var result []byte
	for _, m := range c.nodes {
		if m.isUp() {
			if r := m.apply(c.entries); m == p.m {
				result = r
			}
		}
	}
	return e.Index, result, nil
}

func (m *member) catchUp() {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.apply(m.c.entries)
}

func (m *member) apply(all []ring.Entry) (last []byte) {
	if from := int(m.cat.Applied()); from < len(all) {
		results := m.cat.Apply(all[from:])
		last = results[len(results)-1]
	}
	return last
}

func (m *member) Handle(kind link.Kind, h func(context.Context, link.Stream)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers[kind] = h
}

func (m *member) OpenStream(_ context.Context, node place.NodeID, _ link.Class, kind link.Kind) (link.Stream, error) {
	for _, to := range m.c.nodes {
		if to.place.ID != node {
			continue
		}
		if m.c.apart(m, to) {
			return nil, link.ErrUnreachable
		}
		return to.accept(m, kind)
	}
	return nil, link.ErrUnreachable
}

func (m *member) accept(from *member, kind link.Kind) (link.Stream, error) {
	there, here := streamPair(from.place, m.place)
	m.mu.Lock()
	h := m.handlers[kind]
	if !m.up || m.deaf || h == nil {
		m.mu.Unlock()
		return nil, link.ErrUnreachable
	}
	m.streams[here] = true
	m.serving.Add(1)
	m.mu.Unlock()
	go func() { // the handler ends when either side closes the stream
		defer m.serving.Done()
		h(context.Background(), here)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.streams, here)
	}()
	return there, nil
}

// memStream is one end of an in-memory stream.
type memStream struct {
	in, out *half
	peer    link.Peer
}

func streamPair(a, b place.Node) (atA, atB *memStream) {
	ab, ba := newHalf(), newHalf()
	return &memStream{in: ba, out: ab, peer: link.Peer{Node: b.ID, Site: b.Site}},
		&memStream{in: ab, out: ba, peer: link.Peer{Node: a.ID, Site: a.Site}}
}

func (s *memStream) Read(p []byte) (int, error)         { return s.in.read(p) }
func (s *memStream) Write(p []byte) (int, error)        { return s.out.write(p) }
func (s *memStream) CloseWrite() error                  { s.out.end(io.EOF); return nil }
func (s *memStream) Close() error                       { s.out.end(io.EOF); s.in.end(link.ErrReset); return nil }
func (s *memStream) Abort()                             { s.out.end(link.ErrReset); s.in.end(link.ErrReset) }
func (s *memStream) SetDeadline(t time.Time) error      { s.in.until(t); s.out.until(t); return nil }
func (s *memStream) SetReadDeadline(t time.Time) error  { s.in.until(t); return nil }
func (s *memStream) SetWriteDeadline(t time.Time) error { s.out.until(t); return nil }
func (s *memStream) Peer() link.Peer                    { return s.peer }

// half carries bytes one way; 256 KiB wait at most.
type half struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      bytes.Buffer
	ended    error
	deadline time.Time
	timer    *time.Timer
}

const halfMax = 256 << 10

func newHalf() *half {
	h := new(half)
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) late() bool { return !h.deadline.IsZero() && !time.Now().Before(h.deadline) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.buf.Len() == 0 {
		switch {
		case h.ended != nil:
			return 0, h.ended
		case h.late():
			return 0, os.ErrDeadlineExceeded
		}
		h.cond.Wait()
	}
	if h.ended == link.ErrReset {
		return 0, h.ended
	}
	h.cond.Broadcast()
	return h.buf.Read(p)
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch room := halfMax - h.buf.Len(); {
		case h.ended != nil:
			return n, link.ErrReset
		case h.late():
			return n, os.ErrDeadlineExceeded
		case room > 0:
			k, _ := h.buf.Write(p[:min(room, len(p))])
			n, p = n+k, p[k:]
			h.cond.Broadcast()
		default:
			h.cond.Wait()
		}
	}
	return n, nil
}

func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == nil || err == link.ErrReset && h.buf.Len() > 0 {
		h.ended = err
	}
	h.cond.Broadcast()
}

func (h *half) until(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	if !t.IsZero() {
		h.timer = time.AfterFunc(time.Until(t), h.cond.Broadcast)
	}
	h.cond.Broadcast()
}

// put stores b at the node.
func (m *member) put(b []byte) (dicomsvc.PutResult, error) {
	return m.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: anyone, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(b), CallingAE: "TEST",
	})
}

// mustPut stores b at the node or fails the test.
func (m *member) mustPut(b []byte) dicomsvc.PutResult {
	m.t.Helper()
	r, err := m.put(b)
	if err != nil {
		m.t.Fatalf("put at %s: %v", m.place.Name, err)
	}
	return r
}

// fetch returns the served bytes of one instance as the node gives them.
func (m *member) fetch(sop string) ([]byte, error) {
	ctx := context.Background()
	for in, err := range m.archive.Instances(ctx, anyone, dicomsvc.Selection{SOPInstanceUIDs: []string{sop}}) {
		if err != nil {
			return nil, err
		}
		o, err := m.archive.Open(ctx, anyone, in)
		if err != nil {
			return nil, err
		}
		defer o.Close()
		var b bytes.Buffer
		_, err = o.WriteTo(&b)
		return b.Bytes(), err
	}
	return nil, dicomsvc.ErrNotFound
}

// located returns the one applied version of an instance.
func (m *member) located(sop string) (catalog.Located, error) {
	list, err := m.cat.Locate(context.Background(), sop)
	if err != nil {
		return catalog.Located{}, err
	}
	return list[0], nil
}

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// settled waits until nothing waits for the catalog at any node that is up.
func (c *cluster) settled() {
	c.t.Helper()
	eventually(c.t, "every offer applied", func() bool {
		for _, m := range c.nodes {
			if m.isUp() && m.archive.Waiting() > 0 {
				return false
			}
		}
		return true
	})
}

func TestClusterStoresSealsAndReadsEverywhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 300_000, "P1")
	r := c.nodes[0].mustPut(b)
	if r.Spooled {
		t.Error("spooled although other sites answer")
	}
	check := func(when string) {
		t.Helper()
		for _, m := range c.nodes {
			got, err := m.fetch("1.2.3.1.1")
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: node %s: %d bytes, %v", when, m.place.Name, len(got), err)
			}
		}
	}
	c.settled()
	check("journalled")
	if err := c.nodes[2].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Fatalf("seal: %v", err)
	}
	check("sealed")
	c.nodes[0].shut()
	c.nodes[0].start()
	check("after a restart")
}
