package node

import (
	"bytes"
	"compress/lzw"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/node/link"
)

const (
	// badPeerDeadline is by when a stream with bad content has ended; gossip waits 3 s for what was announced.
	badPeerDeadline = 15 * time.Second
	// badPeerHeap is how much more than before may be held while a peer sends bad messages.
	badPeerHeap = 256 << 20
)

// badMessage is what a member that is wrong says on one stream.
type badMessage struct {
	name  string
	kind  link.Kind
	class link.Class
	bytes []byte
	hold  bool // keep the stream open: more was announced
	times int  // at once; 0 means 1
}

// TestB26MemberThatIsWrong lets a member of the ring, with a certificate of the ring, send garbage, oversized, truncated and
// changed messages on every kind of stream, and as datagrams (B26). No process of the ring ends, no handler panics, memory is
// bounded, each stream ends by its deadline, and the ring goes on.
func TestB26MemberThatIsWrong(t *testing.T) {
	a, b := startPair(t)
	before := heap()
	var peak atomic.Uint64
	sampled := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*testPatience)
	defer cancel()
	var sampler sync.WaitGroup
	sampler.Go(func() {
		for {
			select {
			case <-sampled:
				return
			case <-time.After(20 * time.Millisecond):
				peak.Store(max(peak.Load(), heap()))
			}
		}
	})
	all := badMessages(rand.New(rand.NewPCG(26, 26)), a.id.Incarnation)
	var sending sync.WaitGroup
	places := make(chan struct{}, 48)
	for _, m := range all {
		for range max(m.times, 1) {
			places <- struct{}{}
			sending.Go(func() {
				defer func() { <-places }()
				if err := sendBad(ctx, b.link, a, m); err != nil {
					t.Errorf("%s: %v", m.name, err)
				}
			})
		}
	}
	for _, d := range badDatagrams() {
		for range 16 {
			if err := b.link.SendDatagram(a.id.Node, d); err != nil {
				t.Errorf("datagram: %v", err)
			}
		}
	}
	sending.Wait()
	close(sampled)
	sampler.Wait()
	if grown := int64(peak.Load()) - int64(before); grown > badPeerHeap {
		t.Errorf("%d MiB more in memory while a peer sent bad messages, at most %d", grown>>20, badPeerHeap>>20)
	} else {
		t.Logf("%d messages, at most %d MiB more in memory", len(all), grown>>20)
	}
	for _, n := range []*running{a, b} {
		if p := n.link.Stats().Panics; p != 0 {
			t.Errorf("%d handlers panicked", p)
		}
	}
	// The ring goes on: it commits, both nodes are listed where they are, and both store.
	await(t, "the ring commits", func() bool { _, err := a.CreateToken(ctx, "b", time.Hour); return err == nil })
	for _, m := range a.topo.nodes() {
		if want := map[bool]string{true: a.cfg.Link.Advertise, false: b.cfg.Link.Advertise}[m.ID == a.id.Node]; m.Address != want {
			t.Errorf("node %s is listed at %q, want %q", m.Name, m.Address, want)
		}
	}
	for i, n := range []*running{a, b} {
		await(t, "an instance is stored", func() bool { return put(n.Node, 100+i) == nil })
	}
	await(t, "both nodes know both instances", func() bool {
		for _, n := range []*running{a, b} {
			if s, err := n.Archive().Study(ctx, "2.25.1"); err != nil || s.Instances != 2 {
				return false
			}
		}
		return true
	})
	a.end(t)
	b.end(t)
}

// startPair founds a ring of two nodes in this process.
func startPair(t *testing.T) (a, b *running) {
	t.Helper()
	root := t.TempDir()
	first, second := testConfig(t, filepath.Join(root, "a1")), testConfig(t, filepath.Join(root, "b1"))
	if _, err := Init(t.Context(), first, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); err != nil {
		t.Fatal(err)
	}
	a = startNode(t, first)
	await(t, "first node ready", func() bool { return a.Ready() == nil })
	token, err := a.CreateToken(t.Context(), "b", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), second, Env{}, JoinRequest{Token: token, NodeName: "b1"}); err != nil {
		t.Fatal(err)
	}
	b = startNode(t, second)
	await(t, "second node ready", func() bool { return b.Ready() == nil })
	return a, b
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// sendBad says m to a node and waits for the end of the stream, whichever it is.
func sendBad(ctx context.Context, from *link.Link, to *running, m badMessage) error {
	s, err := from.OpenStream(ctx, to.id.Node, m.class, m.kind)
	if err != nil {
		return fmt.Errorf("not opened: %w", err)
	}
	defer link.Abort(s)
	if err := s.SetDeadline(time.Now().Add(badPeerDeadline)); err != nil {
		return err
	}
	if _, err := s.Write(m.bytes); err == nil && !m.hold {
		_ = s.CloseWrite() // fails when the peer has ended the stream already, as it should
	}
	n, err := io.Copy(io.Discard, io.LimitReader(s, 1<<20))
	if n == 1<<20 {
		return fmt.Errorf("answered with more than a megabyte")
	}
	if timeout, ok := err.(interface{ Timeout() bool }); ok && timeout.Timeout() {
		return fmt.Errorf("stream still open after %v", badPeerDeadline)
	}
	return nil
}

// badMessages is for every kind: nothing, noise, and frames of the kind that lie, are cut, or hold noise.
func badMessages(rng *rand.Rand, incarnation uint64) []badMessage {
	var all []badMessage
	classes := map[link.Kind]link.Class{
		link.KindRaft: link.ClassRaft, link.KindJournalAppend: link.ClassBulk, link.KindJournalRead: link.ClassBulk,
		link.KindShardWrite: link.ClassBulk, link.KindShardRead: link.ClassBulk,
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for kind := range link.KindReadIndex + 2 { // kinds without a handler, too
		add := func(name string, b []byte, hold bool) {
			all = append(all, badMessage{fmt.Sprintf("kind %d, %s", kind, name), kind, classes[kind], b, hold, 0})
		}
		if kind == 0 {
			continue
		}
		add("nothing", nil, false)
		for _, n := range []int{1, 7, 100, 5000, 300_000} {
			add(fmt.Sprintf("%d bytes of noise", n), noise(n), false)
		}
		for i, f := range framesOf(kind, incarnation, noise) {
			add(fmt.Sprintf("frame %d", i), f, false)
			add(fmt.Sprintf("frame %d, cut", i), f[:len(f)*2/3], false)
			for range 6 {
				changed := bytes.Clone(f)
				changed[rng.IntN(len(changed))] ^= 1 << rng.IntN(8)
				add(fmt.Sprintf("frame %d, changed", i), changed, false)
			}
		}
	}
	return append(all, gossipClaims()...)
}

// framesOf returns frames that are right as far as their heads go.
func framesOf(kind link.Kind, incarnation uint64, noise func(int) []byte) [][]byte {
	le, be := binary.LittleEndian, binary.BigEndian
	huge := func(of ...byte) []byte { return be.AppendUint32(of, 1<<32-1) }
	switch kind {
	case link.KindRaft: // the greeting, then msgpack of one request
		hello := le.AppendUint64(append([]byte("OSRG"), 1, 0, 0, 0), incarnation)
		hello = le.AppendUint64(hello, 1)
		var frames [][]byte
		for rpc := range byte(6) {
			frames = append(frames, append(append(bytes.Clone(hello), rpc), noise(60)...))
			entries := append(append(bytes.Clone(hello), rpc, 0x81, 0xa7), "Entries"...)
			frames = append(frames, append(entries, huge(0xdd)...)) // 2^32-1 of them
			data := append(append(bytes.Clone(hello), rpc, 0x81, 0xa7), "Entries"...)
			data = append(append(data, 0x91, 0x81, 0xa4), "Data"...)
			frames = append(frames, append(data, huge(0xc6)...)) // one of 4 GiB
		}
		return frames
	case link.KindForward, link.KindReadIndex:
		var frames [][]byte
		for verb := range byte(9) {
			for _, n := range []int{0, 15, 400} { // 16 are a node's ID
				f := le.AppendUint64(append([]byte("OSRF"), 1, verb, 0, 0), uint64(n))
				f = append(le.AppendUint32(f, uint32(n)), noise(n)...)
				frames = append(frames, le.AppendUint32(f, crc32.Checksum(f, crc32.MakeTable(crc32.Castagnoli))))
			}
			f := le.AppendUint64(append([]byte("OSRF"), 1, verb, 0, 0), 1)
			frames = append(frames, le.AppendUint32(f, 1<<32-1), le.AppendUint32(bytes.Clone(f), 1<<20-1))
		}
		return frames
	case link.KindAdmin:
		var frames [][]byte
		for _, text := range []string{`{}`, `{"sighting":{}}`, `{"sighting":{"boot":-1}}`, `{"return":1}`, `[[[[`, `"`, string(bytes.Repeat([]byte("["), 200_000))} {
			f := le.AppendUint32(append([]byte("OS"), 1, 1, 0, 0, 0, 0), uint32(len(text)))
			f = append(f, text...)
			frames = append(frames, le.AppendUint32(f, crc32.Checksum(f, crc32.MakeTable(crc32.Castagnoli))))
		}
		return append(frames, le.AppendUint32(append([]byte("OS"), 1, 1, 0, 0, 0, 0), 16<<20), le.AppendUint32(append([]byte("OS"), 1, 1, 0, 0, 0, 0), 16<<20+1))
	case link.KindJournalAppend, link.KindJournalRead, link.KindShardWrite, link.KindShardRead:
		var frames [][]byte
		for op := range byte(5) { // version, then an operation and its length, or a request
			frames = append(frames, le.AppendUint32([]byte{1, op}, 1<<32-1), append([]byte{1, op}, noise(400)...))
		}
		return frames
	case link.KindGossip:
		return [][]byte{{0}, {6, 0x83}, append([]byte{6}, stateHead(3, 0)...), append([]byte{6}, noise(200)...), append([]byte{0}, noise(200)...)}
	}
	return nil
}

// stateHead is the head of an exchange of gossip states.
func stateHead(nodes, user uint32) []byte {
	b := append([]byte{0x83, 0xa5}, "Nodes"...)
	b = binary.BigEndian.AppendUint32(append(b, 0xce), nodes)
	b = append(append(b, 0xac), "UserStateLen"...)
	b = binary.BigEndian.AppendUint32(append(b, 0xce), user)
	return append(append(append(b, 0xa4), "Join"...), 0xc2)
}

// gossipClaims are a few bytes each that ask for much memory, many at once, on streams that stay open.
func gossipClaims() []badMessage {
	user := binary.BigEndian.AppendUint32(append(append([]byte{8, 0x81, 0xaa}, "UserMsgLen"...), 0xce), 20<<20)
	claims := []badMessage{
		{name: "gossip: a million nodes", bytes: append([]byte{6}, stateHead(1<<20, 0)...)},
		{name: "gossip: a large user state", bytes: append([]byte{6}, stateHead(0, 20<<20)...)},
		{name: "gossip: a large user message", bytes: user},
		{name: "gossip: compressed", bytes: compressedGossip(36<<20, 6)},
	}
	for i := range claims {
		claims[i].kind, claims[i].hold, claims[i].times = link.KindGossip, true, 24
	}
	return claims
}

// compressedGossip is a compressed message that begins with kind and becomes n bytes.
func compressedGossip(n int, kind byte) []byte {
	var packed bytes.Buffer
	w := lzw.NewWriter(&packed, lzw.LSB, 8)
	_, _ = w.Write([]byte{kind})
	_, _ = w.Write(make([]byte, n-1))
	_ = w.Close()
	b := append(append([]byte{9, 0x82, 0xa4}, "Algo"...), 0)
	b = append(append(b, 0xa3), "Buf"...)
	b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(packed.Len()))
	return append(b, packed.Bytes()...)
}

// badDatagrams are what memberlist reads from packets, wrong, cut, nested and compressed.
func badDatagrams() [][]byte {
	all := [][]byte{{}, {7}, {7, 255}, {12}, {12, 1, 2, 3, 4, 5}, {244, 255}, {4, 0x81}, {4, 0xdf, 255, 255, 255, 255}, compressedGossip(200_000, 8)}
	for kind := range byte(20) {
		noise := make([]byte, 200)
		for i := range noise {
			noise[i] = byte(i*31) ^ kind
		}
		all = append(all, append([]byte{kind}, noise...), append([]byte{7, 1, 0, 201, kind}, noise...))
	}
	return all
}

// Only what nodes of a ring send each other reaches memberlist (B26), at the limit and beyond it.
func TestB26GossipGuard(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes []byte
		ok    bool
	}{
		{"a ping", []byte{0, 0x80}, true},
		{"an answer", []byte{2, 0x80}, true},
		{"an error", []byte{13, 0x80}, true},
		{"states of as many nodes as are known", append([]byte{6}, stateHead(gossipMembersMax, 0)...), true},
		{"one more", append([]byte{6}, stateHead(gossipMembersMax+1, 0)...), false},
		{"a user state of a byte", append([]byte{6}, stateHead(1, 1)...), false},
		{"a cut head", append([]byte{6}, stateHead(1, 0)[:20]...), false},
		{"an alive message", []byte{4, 0x80}, false},
		{"a user message", []byte{8, 0x80}, false},
		{"compressed", compressedGossip(10, 0), false},
		{"encrypted", []byte{10, 0, 0, 0, 1}, false},
		{"labelled", []byte{244, 1, 'x'}, false},
	} {
		s := &gossipStream{Conn: link.NetConn(scriptedStream{Reader: bytes.NewReader(c.bytes)}, [16]byte{})}
		got, err := io.ReadAll(s)
		if (err == nil) != c.ok || c.ok && !bytes.Equal(got, c.bytes) {
			t.Errorf("%s: %d of %d bytes passed, %v", c.name, len(got), len(c.bytes), err)
		}
	}
	long := append(append([]byte{6}, stateHead(1, 0)...), make([]byte, gossipStreamBytes+1)...)
	s := &gossipStream{Conn: link.NetConn(scriptedStream{Reader: bytes.NewReader(long)}, [16]byte{})}
	if got, err := io.ReadAll(s); err != nil || len(got) != len(long)-1 {
		t.Errorf("%d of %d bytes passed, %v: want one less", len(got), len(long), err)
	}
	for _, c := range []struct {
		bytes []byte
		ok    bool
	}{
		{nil, false}, {[]byte{0}, true}, {[]byte{5, 1}, true}, {[]byte{11}, true}, {[]byte{6}, false}, {[]byte{8}, false}, {[]byte{9, 1}, false},
		{[]byte{10}, false}, {[]byte{13}, false}, {[]byte{244, 1, 'x', 0}, false}, {[]byte{12, 1, 2, 3, 4, 3, 0x80}, true},
		{[]byte{12, 1, 2, 3, 4, 9, 0x80}, false}, {[]byte{7, 2, 0, 1, 0, 1, 3, 4}, true}, {[]byte{7, 2, 0, 1, 0, 1, 3, 9}, false},
		{[]byte{7, 2, 0, 1, 0, 2, 3, 4}, false}, {[]byte{7, 1, 0, 4, 7, 1, 0, 0}, false}, {[]byte{7, 255}, false},
		{[]byte{12, 1, 2, 3, 4, 7, 1, 0, 1, 4}, true},
	} {
		if got := gossipPacketFits(c.bytes); got != c.ok {
			t.Errorf("datagram % x: taken %v", c.bytes, got)
		}
	}
}

// scriptedStream is a peer that says what it has to say at once.
type scriptedStream struct {
	link.Stream
	io.Reader
}

func (s scriptedStream) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// B26: what a member says when it returns is recorded only when the others can use it: an address, and a certificate of its own.
func TestB26ReturnIsChecked(t *testing.T) {
	a, b := startPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	for _, r := range []peerRequest{
		{Return: 1},
		{Return: 1, Address: b.cfg.Link.Advertise},
		{Return: 1, Address: "nowhere", Certificate: b.certificate()},
		{Return: 1, Address: b.cfg.Link.Advertise, Certificate: a.certificate()},
		{Return: 1, Address: b.cfg.Link.Advertise, Certificate: []byte("none")},
	} {
		request, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var refused *link.RemoteError
		if _, err := b.link.Call(ctx, a.id.Node, link.KindAdmin, request); !errors.As(err, &refused) || refused.Code != joinRefused {
			t.Errorf("%.60q: got %v, want a refusal", request, err)
		}
	}
	nodes, err := a.cat.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range nodes {
		if m.ID == b.id.Node && (m.Address != b.cfg.Link.Advertise || m.CertFingerprint != fingerprint(b.certificate())) {
			t.Errorf("the returning node is listed at %q", m.Address)
		}
	}
	a.end(t)
	b.end(t)
}
