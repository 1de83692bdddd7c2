package ring

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
	"osteon/node/link"
)

func testMAC(parts ...[]byte) [32]byte {
	h := hmac.New(sha256.New, []byte("test key"))
	for _, p := range parts {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

func nodeID(n int) place.NodeID {
	var id place.NodeID
	id[15] = byte(n)
	return id
}

// mesh is an in-memory network of links whose directions can be cut: what is written in a cut direction stays away, as with a
// firewall that drops.
type mesh struct {
	mu      sync.Mutex
	nodes   map[place.NodeID]*memLink
	cuts    map[[2]place.NodeID]bool
	changed chan struct{}
}

func newMesh() *mesh {
	return &mesh{nodes: map[place.NodeID]*memLink{}, cuts: map[[2]place.NodeID]bool{}, changed: make(chan struct{})}
}

func (m *mesh) set(cut bool, from, to place.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cuts[[2]place.NodeID{from, to}] = cut
	close(m.changed)
	m.changed = make(chan struct{})
}

// both cuts or heals both directions between a and each of others.
func (m *mesh) both(cut bool, a place.NodeID, others ...place.NodeID) {
	for _, b := range others {
		m.set(cut, a, b)
		m.set(cut, b, a)
	}
}

func (m *mesh) cut(from, to place.NodeID) (bool, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cuts[[2]place.NodeID{from, to}], m.changed
}

// memLink is one node's end of a mesh.
type memLink struct {
	mesh   *mesh
	self   place.NodeID
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	handlers map[link.Kind]func(context.Context, link.Stream)
	streams  map[*memStream]struct{}
}

func (m *mesh) link(self place.NodeID) *memLink {
	l := &memLink{mesh: m, self: self, handlers: map[link.Kind]func(context.Context, link.Stream){}, streams: map[*memStream]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	m.mu.Lock()
	m.nodes[self] = l
	m.mu.Unlock()
	return l
}

func (l *memLink) Handle(kind link.Kind, h func(context.Context, link.Stream)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handlers[kind] = h
}

// close ends the link: all its streams break.
func (l *memLink) close() {
	l.mesh.mu.Lock()
	if l.mesh.nodes[l.self] == l {
		delete(l.mesh.nodes, l.self)
	}
	l.mesh.mu.Unlock()
	l.cancel()
	l.mu.Lock()
	streams := l.streams
	l.streams = map[*memStream]struct{}{}
	l.mu.Unlock()
	for s := range streams {
		s.Close()
	}
	l.wg.Wait()
}

func (l *memLink) OpenStream(ctx context.Context, node place.NodeID, _ link.Class, kind link.Kind) (link.Stream, error) {
	for {
		out, changed := l.mesh.cut(l.self, node)
		in, _ := l.mesh.cut(node, l.self)
		if !out && !in {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", link.ErrUnreachable, ctx.Err())
		case <-l.ctx.Done():
			return nil, link.ErrUnreachable
		}
	}
	l.mesh.mu.Lock()
	peer := l.mesh.nodes[node]
	l.mesh.mu.Unlock()
	if peer == nil || l.ctx.Err() != nil {
		return nil, link.ErrUnreachable
	}
	r1, w1 := net.Pipe()
	r2, w2 := net.Pipe()
	mine := &memStream{l: l, peer: node, r: r1, w: w2, done: make(chan struct{})}
	theirs := &memStream{l: peer, peer: l.self, r: r2, w: w1, done: make(chan struct{})}
	mine.other, theirs.other = theirs, mine
	l.mu.Lock()
	l.streams[mine] = struct{}{}
	l.mu.Unlock()
	peer.mu.Lock()
	h := peer.handlers[kind]
	peer.streams[theirs] = struct{}{}
	peer.mu.Unlock()
	if h == nil || peer.ctx.Err() != nil {
		mine.Close()
		return nil, link.ErrUnreachable
	}
	peer.wg.Go(func() { h(peer.ctx, theirs) })
	return mine, nil
}

type memStream struct {
	l     *memLink
	peer  place.NodeID
	other *memStream
	r, w  net.Conn
	once  sync.Once
	done  chan struct{}

	mu       sync.Mutex
	deadline time.Time
}

func (s *memStream) Peer() link.Peer { return link.Peer{Node: s.peer} }

func (s *memStream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *memStream) Write(p []byte) (int, error) {
	for {
		cut, changed := s.l.mesh.cut(s.l.self, s.peer)
		if !cut {
			return s.w.Write(p)
		}
		s.mu.Lock()
		deadline := s.deadline
		s.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
		case <-late:
			return 0, os.ErrDeadlineExceeded
		case <-s.done:
			return 0, link.ErrClosed
		}
	}
}

func (s *memStream) CloseWrite() error { return s.w.Close() }

func (s *memStream) Close() error {
	s.once.Do(func() { close(s.done) })
	s.l.mu.Lock()
	delete(s.l.streams, s)
	s.l.mu.Unlock()
	return errors.Join(s.r.Close(), s.w.Close())
}

func (s *memStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}
func (s *memStream) SetReadDeadline(t time.Time) error { return s.r.SetReadDeadline(t) }
func (s *memStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	s.deadline = t
	s.mu.Unlock()
	return s.w.SetWriteDeadline(t)
}

// ledger is a state machine: the list of all commands. It is durable only as of its last checkpoint or restore, the worst that
// a database written without fsync may do.
type ledger struct {
	fs  vfs.FS
	dir string

	mu       sync.Mutex
	applied  uint64
	commands []string
	calls    int
	forget   bool // keep no commands
	stuck    bool // do not record the index any more
	restores int
	before   func() // called before a restore takes effect
}

func openLedger(t testing.TB, fs vfs.FS, dir string) *ledger {
	t.Helper()
	if err := makeDir(fs, dir); err != nil {
		t.Fatal(err)
	}
	l := &ledger{fs: fs, dir: dir}
	if b, err := readAll(fs, fs.PathJoin(dir, "STATE")); err == nil {
		l.load(b)
	}
	return l
}

func readAll(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (l *ledger) load(b []byte) {
	l.applied = binary.LittleEndian.Uint64(b)
	l.commands = nil
	for _, c := range strings.Split(string(b[8:]), "\n") {
		if c != "" {
			l.commands = append(l.commands, c)
		}
	}
}

func (l *ledger) Apply(entries []Entry) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	var out [][]byte
	for _, e := range entries {
		if e.Data != nil && !l.forget {
			l.commands = append(l.commands, string(e.Data))
		}
		if !l.stuck {
			l.applied = e.Index
		}
		out = append(out, fmt.Appendf(nil, "done %.100s", e.Data))
	}
	return out
}

func (l *ledger) Applied() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}

func (l *ledger) state() []byte {
	b := binary.LittleEndian.AppendUint64(nil, l.applied)
	return append(b, strings.Join(l.commands, "\n")...)
}

func (l *ledger) Checkpoint(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := writeAtomic(l.fs, l.fs.PathJoin(l.dir, "STATE"), l.state()); err != nil {
		return err
	}
	if err := l.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range map[string][]byte{"STATE": l.state(), "000001.sst": []byte("never changes"), "marker.000001": nil} {
		if err := writeAtomic(l.fs, l.fs.PathJoin(dir, name), b); err != nil {
			return err
		}
	}
	return nil
}

func (l *ledger) Restore(dir string) error {
	if l.before != nil {
		l.before()
	}
	b, err := readAll(l.fs, l.fs.PathJoin(dir, "STATE"))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restores++
	l.load(b)
	return writeAtomic(l.fs, l.fs.PathJoin(l.dir, "STATE"), b)
}

func (l *ledger) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.commands...)
}

// has counts a command; a proposal repeated over an election may be there twice.
func (l *ledger) has(command string) int {
	n := 0
	for _, c := range l.list() {
		if c == command {
			n++
		}
	}
	return n
}

// peer is one node of a test ring.
type peer struct {
	id   place.NodeID
	inc  uint64
	fs   *vfs.MemFS
	mesh *mesh
	link *memLink
	fsm  *ledger
	ring *Ring
	tune func(*Config)
}

func newPeer(m *mesh, n int, tune func(*Config)) *peer {
	return &peer{id: nodeID(n), inc: 1, fs: vfs.NewCrashableMem(), mesh: m, tune: tune}
}

func (p *peer) config() Config {
	c := Config{FS: p.fs, PlainFS: p.fs, Dir: "node/raft", Self: p.id, Incarnation: p.inc, Link: p.link, MAC: testMAC, Now: time.Now}
	if p.tune != nil {
		p.tune(&c)
	}
	return c
}

func (p *peer) open(t testing.TB) error {
	t.Helper()
	p.link = p.mesh.link(p.id)
	p.fsm = openLedger(t, p.fs, "node/fsm")
	var err error
	if p.ring, err = Open(p.config(), p.fsm); err != nil {
		p.link.close()
		p.ring = nil
	}
	return err
}

func (p *peer) mustOpen(t testing.TB) {
	t.Helper()
	if err := p.open(t); err != nil {
		t.Fatal(err)
	}
}

func (p *peer) close(t testing.TB) {
	t.Helper()
	if p.ring == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.ring.Close(ctx); err != nil {
		t.Errorf("close %s: %v", p.id, err)
	}
	p.link.close()
	p.ring = nil
}

// crash stops the node as if the power had gone: unsynced bytes are lost.
func (p *peer) crash(t testing.TB) {
	t.Helper()
	p.link.close()
	clone := p.fs.CrashClone(vfs.CrashCloneCfg{})
	p.close(t)
	p.fs = clone
}

func propose(t testing.TB, p *peer, command string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	index, result, err := p.ring.Propose(ctx, []byte(command))
	if err != nil {
		t.Fatalf("propose %.100q at %s: %v", command, p.id, err)
	}
	if want := fmt.Appendf(nil, "done %.100s", command); !bytes.Equal(result, want) {
		t.Fatalf("propose %.100q: got result %q, want %q", command, result, want)
	}
	return index
}

// until waits for ok, looking again every few milliseconds of the bubble's (or the real) time.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// form makes a ring of n voters.
func form(t testing.TB, n int, tune func(*Config)) []*peer {
	t.Helper()
	m := newMesh()
	var peers []*peer
	for i := range n {
		p := newPeer(m, i+1, tune)
		p.mustOpen(t)
		peers = append(peers, p)
		if i == 0 {
			if err := p.ring.Bootstrap(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		join(t, peers[0], p)
	}
	// A voter that has not heard of a promotion yet refuses the new voter its vote: wait until all know.
	until(t, "all know all voters", func() bool {
		for _, p := range peers {
			voters := 0
			for _, s := range p.ring.Servers() {
				if s.Voter {
					voters++
				}
			}
			if voters < n {
				return false
			}
		}
		return true
	})
	return peers
}

// join adds p as a voter through via.
func join(t testing.TB, via, p *peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := via.ring.AddNonvoter(ctx, p.id, p.inc); err != nil {
		t.Fatal(err)
	}
	index := propose(t, via, fmt.Sprintf("welcome %d.%d", p.id[15], p.inc))
	until(t, "the new node caught up", func() bool { return p.fsm.Applied() >= index })
	if err := via.ring.Promote(ctx, p.id); err != nil {
		t.Fatal(err)
	}
}

func closeAll(t testing.TB, peers []*peer) {
	for _, p := range peers {
		p.close(t)
	}
}

// leaderOf returns the peer that leads according to all that are asked.
func leaderOf(t testing.TB, peers ...*peer) *peer {
	t.Helper()
	var leader *peer
	until(t, "all follow one leader", func() bool {
		leader = nil
		for _, p := range peers {
			id, ok := p.ring.Leader()
			if !ok {
				return false
			}
			for _, q := range peers {
				if q.id == id && q.ring.IsLeader() {
					if leader != nil && leader != q {
						return false
					}
					leader = q
				}
			}
		}
		return leader != nil
	})
	return leader
}

func others(peers []*peer, not *peer) (out []*peer) {
	for _, p := range peers {
		if p != not {
			out = append(out, p)
		}
	}
	return out
}

func ids(peers []*peer) (out []place.NodeID) {
	for _, p := range peers {
		out = append(out, p.id)
	}
	return out
}
