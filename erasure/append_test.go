package erasure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/vault"
)

// fault is what a node does when another brings it a copy.
type fault int

const (
	healthy         fault = iota
	refuses               // no stream can be opened
	silent                // the opening never ends: packets get lost
	stalls                // takes faultAfter bytes and reads no more
	dies                  // takes faultAfter bytes, then the connection breaks
	diesDurable           // has fsynced the copy when the connection breaks, before its answer arrives
	mute                  // has fsynced the copy; its answer never arrives
	full                  // answers that its journal cannot take it
	refusesOnce           // the first stream cannot be opened
	diesOnce              // as dies, on the first stream
	diesOnceDurable       // as diesDurable, on the first stream
)

const faultAfter = 300_000

// testStore is one node of a ring in memory.
type testStore struct {
	*Store
	node  place.Node
	mesh  *testMesh
	fault fault

	mu       sync.Mutex
	handlers map[link.Kind]func(context.Context, link.Stream)
	held     int
	opened   int // streams that others opened to this node
	streams  []net.Conn
}

// testMesh joins stores in one process; a stream is a pipe, and faults are the receiver's.
type testMesh struct {
	t     testing.TB
	nodes []*testStore
	wait  sync.WaitGroup

	mu   sync.Mutex
	list []place.Node
}

// topology is what gossip tells every node.
func (m *testMesh) topology() []place.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

// turn says that gossip believes a node to be alive, or not.
func (m *testMesh) turn(n *testStore, live bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.list, func(p place.Node) bool { return p.ID == n.node.ID })
	m.list[i].Live = live
}

// meshOf is the mesh as one node sees it.
type meshOf struct {
	mesh *testMesh
	self *testStore
}

func (m meshOf) Handle(kind link.Kind, h func(context.Context, link.Stream)) {
	m.self.handlers[kind] = h
}

func (m meshOf) OpenStream(ctx context.Context, id place.NodeID, _ link.Class, kind link.Kind) (link.Stream, error) {
	to := m.mesh.node(id)
	f := to.faultOf()
	switch f {
	case refuses:
		return nil, link.ErrUnreachable
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	to.mu.Lock()
	to.streams = append(to.streams, near, far)
	handle := to.handlers[kind]
	to.mu.Unlock()
	m.mesh.wait.Go(func() { // ends with the stream
		handle(context.Background(), faulty(f, &testStream{Conn: far, peer: m.self.node}))
	})
	return &testStream{Conn: near, peer: to.node}, nil
}

// faultOf counts a stream that is opened to the node, and returns what will go wrong with it.
func (s *testStore) faultOf() fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	once := map[fault]fault{refusesOnce: refuses, diesOnce: dies, diesOnceDurable: diesDurable}
	f, ok := once[s.fault]
	switch {
	case !ok:
		return s.fault
	case s.opened > 1:
		return healthy
	default:
		return f
	}
}

func (m *testMesh) node(id place.NodeID) *testStore {
	i := slices.IndexFunc(m.nodes, func(n *testStore) bool { return n.node.ID == id })
	return m.nodes[i]
}

type testStream struct {
	net.Conn
	peer place.Node
}

// CloseWrite fails as it does when the peer has said all it will and gone.
func (s *testStream) CloseWrite() error { return link.ErrReset }
func (s *testStream) Peer() link.Peer   { return link.Peer{Node: s.peer.ID, Site: s.peer.Site} }

// faultyStream is the receiver's end of a stream with a fault.
type faultyStream struct {
	*testStream
	fault fault
	left  int
}

func faulty(f fault, s *testStream) link.Stream {
	return &faultyStream{testStream: s, fault: f, left: faultAfter}
}

func (s *faultyStream) Read(p []byte) (int, error) {
	if s.fault != stalls && s.fault != dies {
		return s.testStream.Read(p)
	}
	if s.left <= 0 {
		if s.fault == dies {
			s.Conn.Close()
			return 0, link.ErrLost
		}
		var none [1]byte
		s.SetReadDeadline(time.Time{})
		for { // the sender's Close ends it: a write into the pipe is never taken whole before
			if _, err := s.Conn.Read(none[:0]); err != nil {
				return 0, err
			}
			time.Sleep(time.Millisecond)
		}
	}
	n, err := s.testStream.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

func (s *faultyStream) Write(p []byte) (int, error) {
	switch s.fault {
	case diesDurable:
		s.Conn.Close()
		return 0, link.ErrLost
	case mute:
		return len(p), nil
	case full:
		return s.testStream.Write([]byte{answerFull, 0, 0})
	}
	return s.testStream.Write(p)
}

// A second partner is tried early enough for a quick test, and late enough that a busy machine's healthy
// partners have answered.
var testAck = Ack{Wait: 2500 * time.Millisecond, SecondAfter: 300 * time.Millisecond}

// openStores opens a ring whose nodes are at the sites that layout names, one letter a node; the first
// node's rule is ack. A capital letter is a node that gossip believes to be dead, '-' a witness.
func openStores(t testing.TB, layout string, ack Ack) *testMesh {
	t.Helper()
	fs := vfs.NewMem()
	ringID, _ := place.NewRingID(rand.Reader)
	root, err := vault.CreateRootKeyFile(fs, "root.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll("vault", 0o700); err != nil {
		t.Fatal(err)
	}
	keys, err := vault.Create(vault.Config{FS: fs, Dir: "vault", Ring: ringID, Root: root, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	m := &testMesh{t: t}
	for i, c := range layout {
		n := place.Node{Name: fmt.Sprint(i), Site: place.SiteID(strings.ToLower(string(c))), Live: c >= 'a' || c == '-', Data: c != '-'}
		n.ID, _ = place.NewNodeID(rand.Reader)
		n.Disk, _ = place.NewDiskID(rand.Reader)
		m.list = append(m.list, n)
		m.nodes = append(m.nodes, &testStore{node: n, mesh: m, handlers: map[link.Kind]func(context.Context, link.Stream){}})
	}
	for i, s := range m.nodes {
		s.Store, err = Open(Config{
			FS: fs, Dir: fmt.Sprint(i), Ring: ringID, Self: s.node.ID, Site: s.node.Site, Disk: s.node.Disk, Vault: keys,
			Mesh: meshOf{m, s}, Ack: ack, Topology: m.topology,
			Journal: JournalLimits{SegmentBytes: 32 << 20},
			Held: func(journal.Key, []byte, place.NodeID) {
				s.mu.Lock()
				s.held++
				s.mu.Unlock()
			},
			Now: time.Now, Rand: rand.Reader,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(m.close)
	return m
}

func (m *testMesh) close() {
	for _, s := range m.nodes {
		s.breakStreams()
		if err := s.Store.Close(); err != nil {
			m.t.Error(err)
		}
	}
	m.wait.Wait()
}

// breakStreams ends every stream to the node, as its death does.
func (s *testStore) breakStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.streams {
		c.Close()
	}
	s.streams = nil
}

func (s *testStore) count() (held, opened int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, s.opened
}

func testObject(size int) (data []byte, key journal.Key, note []byte) {
	data = make([]byte, size)
	rand.Read(data)
	key = sha256.Sum256(data)
	return data, key, []byte("note of the object")
}

// put appends one object at the first node.
func (m *testMesh) put(study, data []byte, key journal.Key, note []byte) (Acked, error) {
	a := m.nodes[0].Begin(context.Background(), study)
	defer a.Abort()
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 50_000)
		if _, err := a.Write(rest[:n]); err != nil {
			return Acked{}, err
		}
		rest = rest[n:]
	}
	return a.Commit(context.Background(), key, note)
}

// check reads the object from the journal of every node that the acknowledgement names.
func (m *testMesh) check(acked Acked, data []byte, key journal.Key, note []byte) {
	m.t.Helper()
	for _, id := range acked.Holders {
		s := m.node(id)
		o, err := s.Journal().OpenObject(key)
		if err != nil {
			m.t.Errorf("object at node %s: %v", s.node.Name, err)
			continue
		}
		var got bytes.Buffer
		_, err = o.WriteTo(&got)
		if err != nil || !bytes.Equal(got.Bytes(), data) {
			m.t.Errorf("object at node %s: %d bytes, %v, want the %d sent", s.node.Name, got.Len(), err, len(data))
		}
		o.Close()
		if n, err := s.Journal().Note(key); err != nil || !bytes.Equal(n, note) {
			m.t.Errorf("note at node %s: %q, %v", s.node.Name, n, err)
		}
	}
}

// ask returns the nodes in the order in which the first node asks them for a study's copies.
func (m *testMesh) ask(study []byte) (order []*testStore) {
	for _, n := range m.nodes[0].partners(study) {
		order = append(order, m.node(n.ID))
	}
	return order
}

func sitesOf(m *testMesh, acked Acked) (sites string) {
	for _, id := range acked.Holders {
		sites += string(m.node(id).node.Site)
	}
	return sites
}

// synctested runs a test on a virtual clock, beside the others.
func synctested(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, test)
	}
}

func TestAppend(t *testing.T) {
	refuse := Ack{Wait: testAck.Wait, SecondAfter: testAck.SecondAfter, Degraded: AckRefuse}
	single := Ack{Wait: testAck.Wait, SecondAfter: testAck.SecondAfter, Single: true}
	const small, large = 20_000, 3 << 20 // large is more than a partner's queue holds
	for _, tc := range []struct {
		name   string
		layout string // sites; the first node receives
		ack    Ack
		faults []fault // in the order in which partners are asked
		size   int
		sites  string // of the holders
		want   Acked  // its flags
		err    error
		under  time.Duration
		over   time.Duration
	}{
		{name: "other site", layout: "aabb", ack: testAck, size: small, sites: "ab", under: testAck.SecondAfter},
		{name: "other site, large", layout: "aabb", ack: testAck, size: large, sites: "ab"},
		{name: "empty object", layout: "aabb", ack: testAck, size: 0, sites: "ab"},
		{name: "first refuses", layout: "aabc", ack: testAck, faults: []fault{refuses}, size: small, sites: "a?", under: testAck.SecondAfter},
		{name: "first refuses, large", layout: "aabc", ack: testAck, faults: []fault{refuses}, size: large, sites: "a?"},
		{name: "first cannot be reached", layout: "aabc", ack: testAck, faults: []fault{silent}, size: small, sites: "a?", over: testAck.SecondAfter, under: testAck.Wait},
		{name: "first cannot be reached, large", layout: "aabc", ack: testAck, faults: []fault{silent}, size: large, sites: "a?", over: testAck.SecondAfter, under: testAck.Wait},
		{name: "first stalls in the middle", layout: "aabc", ack: testAck, faults: []fault{stalls}, size: large, sites: "a?", over: testAck.SecondAfter, under: testAck.Wait},
		{name: "first dies in the middle", layout: "aabc", ack: testAck, faults: []fault{dies}, size: large, sites: "a?", under: testAck.Wait},
		{name: "first dies before its answer", layout: "aabc", ack: testAck, faults: []fault{diesDurable}, size: small, sites: "a?", under: testAck.SecondAfter},
		{name: "first never answers", layout: "aabc", ack: testAck, faults: []fault{mute}, size: small, sites: "a?", over: testAck.SecondAfter, under: testAck.Wait},
		{name: "first is full", layout: "aabc", ack: testAck, faults: []fault{full}, size: small, sites: "a?", under: testAck.SecondAfter},
		{name: "first and second never answer", layout: "aabcd", ack: testAck, faults: []fault{mute, mute}, size: small, sites: "a?", over: 2 * testAck.SecondAfter, under: testAck.Wait},
		{name: "no other site takes it", layout: "aabb", ack: testAck, faults: []fault{dies, refuses}, size: large, sites: "aa", want: Acked{Spooled: true}, under: testAck.Wait},
		{name: "no other site answers", layout: "aabb", ack: testAck, faults: []fault{mute, mute}, size: small, sites: "aa", want: Acked{Spooled: true}, over: 2 * testAck.SecondAfter, under: testAck.Wait},
		{name: "many nodes of other sites never answer", layout: "aabbbcccddd", ack: testAck, faults: []fault{mute, mute, mute, mute, mute, mute, mute, mute, mute}, size: small, sites: "aa", want: Acked{Spooled: true}, under: testAck.Wait},
		{name: "many never answer, one here refuses", layout: "aaabbbcccddd", ack: testAck, faults: []fault{mute, mute, mute, mute, mute, mute, mute, mute, mute, refuses}, size: small, sites: "aa", want: Acked{Spooled: true}, under: testAck.Wait},
		{name: "other site known to be down", layout: "aaBB", ack: testAck, size: small, sites: "aa", want: Acked{Spooled: true}, under: testAck.SecondAfter},
		{name: "refuse rule", layout: "aabb", ack: refuse, faults: []fault{refuses, refuses}, size: small, err: ErrNoPartner, under: testAck.Wait},
		{name: "refuse rule, other site known to be down", layout: "aaBB", ack: refuse, size: small, err: ErrNoPartner, under: testAck.Wait},
		{name: "refuse rule, one site", layout: "aa", ack: refuse, size: small, sites: "aa"},
		{name: "one site", layout: "aaa", ack: testAck, faults: []fault{refuses}, size: small, sites: "aa", under: testAck.SecondAfter},
		{name: "nobody", layout: "aab", ack: testAck, faults: []fault{refuses, refuses}, size: small, err: ErrNoPartner, under: testAck.Wait},
		{name: "nobody answers", layout: "aab", ack: testAck, faults: []fault{mute, silent}, size: small, err: ErrNoPartner, over: testAck.Wait * 9 / 10, under: testAck.Wait},
		{name: "every connection breaks once", layout: "abc", ack: testAck, faults: []fault{diesOnceDurable, refusesOnce}, size: small, sites: "a?", under: testAck.SecondAfter},
		{name: "every connection breaks once, large", layout: "aabc", ack: refuse, faults: []fault{diesOnce, refusesOnce, diesOnce}, size: large, sites: "a?", under: testAck.SecondAfter},
		{name: "one breaks once, the other is mute", layout: "abc", ack: testAck, faults: []fault{refusesOnce, mute}, size: small, sites: "a?", under: testAck.Wait / 2},
		{name: "nobody, single allowed", layout: "aab", ack: single, faults: []fault{refuses, refuses}, size: small, sites: "a", want: Acked{Single: true, Spooled: true}},
		{name: "nobody alive, single allowed", layout: "aABB", ack: single, size: small, sites: "a", want: Acked{Single: true, Spooled: true}},
		{name: "single node", layout: "a", ack: testAck, size: small, sites: "a", want: Acked{Single: true}},
		{name: "single node and a witness", layout: "a-", ack: testAck, size: small, sites: "a", want: Acked{Single: true}},
	} {
		t.Run(tc.name, synctested(func(t *testing.T) {
			m := openStores(t, tc.layout, tc.ack)
			study := []byte("study " + tc.name)
			order := m.ask(study)
			for i, f := range tc.faults {
				order[i].fault = f
			}
			data, key, note := testObject(tc.size)
			began := time.Now()
			acked, err := m.put(study, data, key, note)
			took := time.Since(began)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if tc.under > 0 && took > tc.under || took < tc.over {
				t.Errorf("took %s, want between %s and %s", took, tc.over, tc.under)
			}
			if err != nil {
				return
			}
			if acked.Spooled != tc.want.Spooled || acked.Single != tc.want.Single {
				t.Errorf("spooled %v, single %v, want %v, %v", acked.Spooled, acked.Single, tc.want.Spooled, tc.want.Single)
			}
			got := sitesOf(m, acked)
			if strings.HasSuffix(tc.sites, "?") { // any other site
				if len(got) != 2 || got[0] == got[1] {
					t.Errorf("holders at sites %q, want two sites", got)
				}
			} else if got != tc.sites {
				t.Errorf("holders at sites %q, want %q", got, tc.sites)
			}
			m.check(acked, data, key, note)
		}))
	}
}

// A partner that failed or was slow once is asked last for a while: only one store waits for it.
func TestAppendAvoidsSlowPartner(t *testing.T) {
	for _, f := range []fault{mute, silent, stalls, refuses} {
		m := openStores(t, "aabc", testAck)
		study := []byte("study")
		first := m.ask(study)[0]
		first.fault = f
		for i := range 3 {
			data, key, note := testObject(2 << 20)
			if i > 0 && m.ask(study)[0] == first {
				t.Errorf("fault %d, store %d asks the bad partner first again", f, i)
			}
			acked, err := m.put(study, data, key, note)
			if err != nil || acked.Spooled {
				t.Fatalf("fault %d, store %d: %+v, %v", f, i, acked, err)
			}
			m.check(acked, data, key, note)
		}
	}
}

// A partner that failed is asked first again once gossip has seen it go and come back.
func TestAppendTrustsRestartedPartner(t *testing.T) {
	m := openStores(t, "aabc", testAck)
	study := []byte("study")
	first := m.ask(study)[0]
	first.fault = refuses
	put := func() Acked {
		t.Helper()
		data, key, note := testObject(1000)
		acked, err := m.put(study, data, key, note)
		if err != nil {
			t.Fatal(err)
		}
		m.check(acked, data, key, note)
		return acked
	}
	put()
	m.turn(first, false)
	put()
	first.fault = healthy
	m.turn(first, true)
	if acked := put(); !slices.Contains(acked.Holders, first.node.ID) {
		t.Errorf("holders %v, want the restarted node %s among them", acked.Holders, first.node.ID)
	}
}

// Streams are used for one object after another; when they broke while they were idle the partner is as
// good as before.
func TestAppendReplacesBrokenIdleStreams(t *testing.T) {
	m := openStores(t, "ab", testAck)
	partner := m.nodes[1]
	store := func() {
		t.Helper()
		data, key, note := testObject(200_000)
		acked, err := m.put([]byte("study"), data, key, note)
		if err != nil || acked.Spooled || acked.Single {
			t.Fatalf("%+v, %v", acked, err)
		}
		m.check(acked, data, key, note)
	}
	store()
	store()
	if _, opened := partner.count(); opened != 1 {
		t.Errorf("%d streams opened for two objects, want 1", opened)
	}
	partner.breakStreams()
	store()
	if m.nodes[0].isSuspect(partner.node.ID) {
		t.Error("the partner is suspected for a stream that broke while it was idle")
	}
	if held, _ := partner.count(); held != 3 {
		t.Errorf("the partner was told of %d objects, want 3", held)
	}
}

// An aborted object leaves nothing behind and the stream usable.
func TestAppendAbort(t *testing.T) {
	m := openStores(t, "ab", testAck)
	data, key, note := testObject(300_000)
	a := m.nodes[0].Begin(context.Background(), []byte("study"))
	if _, err := a.Write(data); err != nil {
		t.Fatal(err)
	}
	a.Abort()
	a.Abort()
	acked, err := m.put([]byte("study"), data[:1000], key, note)
	if err != nil {
		t.Fatal(err)
	}
	m.check(acked, data[:1000], key, note)
	a.Abort()
	for _, s := range m.nodes {
		n := 0
		for range s.Journal().Keys {
			n++
		}
		if n != 1 {
			t.Errorf("node %s has %d objects, want 1", s.node.Name, n)
		}
	}
}

// A holder answers with a failure, and keeps nothing, when what arrived is not what was sent.
func TestHolderRefusesAlteredObject(t *testing.T) {
	m := openStores(t, "ab", testAck)
	for name, alter := range map[string]func(size int64, sum uint32) (int64, uint32){
		"checksum": func(size int64, sum uint32) (int64, uint32) { return size, sum + 1 },
		"size":     func(size int64, sum uint32) (int64, uint32) { return size + 1, sum },
	} {
		data, key, note := testObject(10_000)
		p := m.nodes[0].startPartner(context.Background(), m.nodes[1].node)
		p.write(data)
		size, sum := alter(int64(len(data)), crc32.Checksum(data, castagnoli))
		p.commit(key, size, sum, note)
		if err := p.wait(); err == nil {
			t.Errorf("%s: the holder took it", name)
		}
		if _, ok := m.nodes[1].Journal().Stat(key); ok {
			t.Errorf("%s: the holder kept it", name)
		}
	}
}

// A read that meets a dead or lying holder goes on at the next.
func TestOpenJournalledGoesOn(t *testing.T) {
	m := openStores(t, "aabc", testAck)
	study := []byte("study")
	data, key, note := testObject(500_000)
	acked, err := m.put(study, data, key, note)
	if err != nil {
		t.Fatal(err)
	}
	var reader *testStore
	for _, s := range m.nodes {
		if !slices.Contains(acked.Holders, s.node.ID) {
			reader = s
		}
	}
	m.nodes[0].fault = refuses
	o, err := reader.OpenJournalled(context.Background(), key, int64(len(data)), acked.Holders)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var got bytes.Buffer
	if err := o.CopyRange(context.Background(), &got, 0, o.Size()); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("read %d bytes, %v", got.Len(), err)
	}
	m.node(acked.Holders[1]).fault = refuses
	if err := o.CopyRange(context.Background(), io.Discard, 0, o.Size()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without holders: %v, want %v", err, ErrUnavailable)
	}
}

// A read does not wait for a holder that does not answer while another may.
func TestOpenJournalledLeavesSilentHolder(t *testing.T) {
	for _, f := range []fault{silent, mute} {
		m := openStores(t, "abc", testAck)
		data, key, note := testObject(100_000)
		acked, err := m.put([]byte("study"), data, key, note)
		if err != nil {
			t.Fatal(err)
		}
		reader := m.nodes[slices.IndexFunc(m.nodes, func(s *testStore) bool { return !slices.Contains(acked.Holders, s.node.ID) })]
		m.nodes[0].fault = f
		began := time.Now()
		o, err := reader.OpenJournalled(context.Background(), key, int64(len(data)), acked.Holders)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := o.CopyRange(context.Background(), &got, 0, o.Size()); err != nil || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("fault %d: read %d bytes, %v", f, got.Len(), err)
		}
		if took := time.Since(began); took > 2*answerSoon+time.Second {
			t.Errorf("fault %d: the read took %s", f, took)
		}
		o.Close()
	}
}
