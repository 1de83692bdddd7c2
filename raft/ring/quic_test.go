package ring

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/vault"
)

var _ Link = (*link.Link)(nil)

// site is a ring of nodes on real disks, with real keys, over real QUIC on loopback.
type site struct {
	ring  place.RingID
	ca    *link.CA
	dir   string
	root  vault.RootKey
	addrs map[place.NodeID]string
	boot  *vault.Vault
}

type realNode struct {
	id    place.NodeID
	link  *link.Link
	vault *vault.Vault
	fsm   *ledger
	ring  *Ring
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), addrs: map[place.NodeID]string{}}
	var err error
	if s.ring, err = place.NewRingID(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if s.ca, err = link.NewCA(s.ring, rand.Reader, time.Now); err != nil {
		t.Fatal(err)
	}
	if s.root, err = vault.CreateRootKeyFile(vfs.Default, filepath.Join(s.dir, "root.key"), rand.Reader); err != nil {
		t.Fatal(err)
	}
	return s
}

// identity enrols a node with the site's CA.
func (s *site) identity(t testing.TB, node place.NodeID) link.Identity {
	t.Helper()
	key, err := link.NewNodeKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := link.NewCSR(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := s.ca.Sign(csr, node, "a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := link.NewIdentity(s.ca.Certificate().Raw, der, key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// prepare gives a node its socket, link and vault.
func (s *site) prepare(t testing.TB, n int) *realNode {
	t.Helper()
	r := &realNode{id: nodeID(n)}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s.addrs[r.id] = conn.LocalAddr().String()
	r.link, err = link.Open(link.Config{
		Conn: conn, Identity: s.identity(t, r.id), Now: time.Now, Rand: rand.Reader,
		Resolve: func(id place.NodeID) (string, bool) { a, ok := s.addrs[id]; return a, ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := vault.Config{FS: vfs.Default, Dir: filepath.Join(s.dir, fmt.Sprint(n), "vault"), Ring: s.ring, Root: s.root, Rand: rand.Reader}
	if s.boot == nil {
		s.boot, err = vault.Create(cfg)
		r.vault = s.boot
	} else {
		r.vault, err = vault.Install(cfg, s.boot.Bundle())
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *site) config(r *realNode) Config {
	return Config{
		FS: r.vault.FS(), PlainFS: vfs.Default, Dir: filepath.Join(s.dir, fmt.Sprint(r.id[15]), "raft"), Self: r.id, Incarnation: 1,
		Link: r.link, MAC: func(parts ...[]byte) [32]byte { return r.vault.MAC("raft", parts...) }, Now: time.Now,
	}
}

// start makes a ring of n voters.
func (s *site) start(t testing.TB, n int, tune func(*Config)) []*realNode {
	t.Helper()
	var nodes []*realNode
	for i := range n {
		nodes = append(nodes, s.prepare(t, i+1))
	}
	for i, r := range nodes {
		cfg := s.config(r)
		if tune != nil {
			tune(&cfg)
		}
		r.fsm = openLedger(t, r.vault.FS(), filepath.Join(s.dir, fmt.Sprint(r.id[15]), "fsm"))
		var err error
		if r.ring, err = Open(cfg, r.fsm); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = r.ring.Bootstrap()
		} else {
			p, q := &peer{ring: nodes[0].ring, id: nodes[0].id}, &peer{ring: r.ring, fsm: r.fsm, id: r.id, inc: 1}
			join(t, p, q)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

func stop(t testing.TB, nodes []*realNode) {
	t.Helper()
	for _, r := range nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := r.ring.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		cancel()
		if err := r.link.Close(); err != nil {
			t.Errorf("close link: %v", err)
		}
	}
}

// TestRealNodes runs three nodes on real parts: forwarding, a snapshot to a new node, linearizable reads, hand-over; and
// no command is readable on disk.
func TestRealNodes(t *testing.T) {
	s := newSite(t)
	nodes := s.start(t, 3, short)
	canary := "CANARY patient text"
	var last uint64
	for i := range 50 {
		index, _, err := nodes[i%3].ring.Propose(t.Context(), fmt.Appendf(nil, "%s %d", canary, i))
		if err != nil {
			t.Fatal(err)
		}
		last = index
	}
	if err := nodes[0].ring.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := s.prepare(t, 4)
	late.fsm = openLedger(t, late.vault.FS(), filepath.Join(s.dir, "4", "fsm"))
	var err error
	if late.ring, err = Open(s.config(late), late.fsm); err != nil {
		t.Fatal(err)
	}
	nodes = append(nodes, late)
	if err := nodes[1].ring.AddNonvoter(t.Context(), late.id, 1); err != nil {
		t.Fatal(err)
	}
	until(t, "the new node caught up", func() bool { return late.fsm.Applied() >= last })
	for _, r := range nodes {
		index, err := r.ring.ReadIndex(t.Context())
		if err != nil || index < last {
			t.Errorf("read index at %s: got %d, %v; want at least %d", r.id, index, err, last)
		}
		until(t, "applied", func() bool { return r.fsm.Applied() >= index })
		if !slices.Equal(r.fsm.list(), nodes[0].fsm.list()) {
			t.Errorf("%s differs", r.id)
		}
	}
	stop(t, nodes)
	for n := 1; n <= 4; n++ {
		checkNoPlaintext(t, filepath.Join(s.dir, fmt.Sprint(n)), []byte("CANARY"))
	}
}

func checkNoPlaintext(t *testing.T, dir string, canary []byte) {
	t.Helper()
	names, err := vfs.Default.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := vfs.Default.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			checkNoPlaintext(t, path, canary)
			continue
		}
		if b, err := readAll(vfs.Default, path); err != nil || bytes.Contains(b, canary) {
			t.Errorf("%s: plaintext on disk, or %v", path, err)
		}
	}
}

// BenchmarkPropose measures 64 KiB commands, the size of a catalog batch, on real disks and links.
func BenchmarkPropose(b *testing.B) {
	for _, n := range []int{1, 3} {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("nodes=%d/callers=%d", n, callers), func(b *testing.B) {
				s := newSite(b)
				nodes := s.start(b, n, nil)
				for _, r := range nodes {
					r.fsm.forget = true
				}
				data := bytes.Repeat([]byte("0123456789abcdef"), 4096)
				b.SetBytes(int64(len(data)))
				b.SetParallelism(callers)
				b.ResetTimer()
				propose := func() {
					if _, _, err := nodes[0].ring.Propose(context.Background(), data); err != nil {
						b.Error(err)
					}
				}
				if callers == 1 {
					for b.Loop() {
						propose()
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							propose()
						}
					})
				}
				b.StopTimer()
				stop(b, nodes)
			})
		}
	}
}

// BenchmarkReadIndex measures a linearizable read's price at the leader and at a follower.
func BenchmarkReadIndex(b *testing.B) {
	s := newSite(b)
	nodes := s.start(b, 3, nil)
	for i, name := range []string{"leader", "follower"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := nodes[i].ring.ReadIndex(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	stop(b, nodes)
}

// BenchmarkMark measures what the mark adds to a batch of one 64 KiB entry.
func BenchmarkMark(b *testing.B) {
	cfg := storeConfig(vfs.Default)
	cfg.Dir = b.TempDir()
	s, err := openLogStore(cfg, func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	b.Run("mark", func(b *testing.B) {
		for b.Loop() {
			if err := s.mark.write(s.pos); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("append", func(b *testing.B) {
		for b.Loop() {
			_, last := s.bounds()
			l := entries(1, last+1, last+1)
			l[0].Data = make([]byte, 64<<10)
			if err := s.StoreLogs(l); err != nil {
				b.Fatal(err)
			}
		}
	})
}
