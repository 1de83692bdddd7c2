package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

func TestOutsiderWithoutCertificateGetsNothing(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	server := r.open(newNode(t), nil)
	var served atomic.Int32
	server.Handle(KindAdmin, func(_ context.Context, s Stream) { served.Add(1); Abort(s) })
	for _, protocol := range []string{protocolMesh, protocolJoin, "h3"} {
		t.Run(protocol, func(t *testing.T) {
			q, err := quic.DialAddr(ctx, server.Addr().String(),
				&tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}, &quic.Config{})
			if err == nil { // a client learns only afterwards what the server thinks of its missing certificate
				defer q.CloseWithError(0, "")
				var s *quic.Stream
				if s, err = q.OpenStreamSync(ctx); err == nil {
					_, _ = s.Write([]byte{byte(KindAdmin), 1, 2, 3})
					_, err = io.ReadAll(s)
				}
			}
			var transport *quic.TransportError
			if !errors.As(err, &transport) || !transport.ErrorCode.IsCryptoError() {
				t.Errorf("got %v, want a TLS alert", err)
			}
		})
	}
	if served.Load() != 0 {
		t.Errorf("an outsider's stream was served")
	}
}

func TestStreamKinds(t *testing.T) { onBoth(t, checkStreamKinds) }

func checkStreamKinds(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	to := b.Self().Node
	b.Handle(KindShardWrite, echo)
	b.Handle(KindShardRead, func(_ context.Context, s Stream) { // speaks first
		_, _ = io.WriteString(s, "first")
		_ = s.Close()
	})
	b.Handle(KindSeal, func(context.Context, Stream) { panic("planted") })
	b.Handle(KindJournalRead, func(_ context.Context, s Stream) {
		_, _ = io.WriteString(s, "half")
		Abort(s)
	})
	b.handlers.close() // the time of grace is over

	if got, err := roundTrip(ctx, a, to, ClassBulk, KindShardWrite, "bytes"); got != "bytes" || err != nil {
		t.Errorf("echo: %q, %v", got, err)
	}
	if got, err := roundTrip(ctx, a, to, ClassBulk, KindShardWrite, ""); got != "" || err != nil {
		t.Errorf("echo of nothing: %q, %v", got, err)
	}
	s, err := a.OpenStream(ctx, to, ClassBulk, KindShardRead)
	must(t, err)
	if got, err := io.ReadAll(s); string(got) != "first" || err != nil {
		t.Errorf("handler speaks first: %q, %v", got, err)
	}
	_ = s.Close()
	if _, err := roundTrip(ctx, a, to, ClassBulk, 200, "x"); !errors.Is(err, ErrUnknownKind) {
		t.Errorf("unknown kind: %v, want ErrUnknownKind", err)
	}
	if _, err := roundTrip(ctx, a, to, ClassBulk, KindSeal, "x"); !errors.Is(err, ErrReset) {
		t.Errorf("handler that panics: %v, want ErrReset", err)
	}
	if _, err := roundTrip(ctx, a, to, ClassBulk, KindJournalRead, "x"); !errors.Is(err, ErrReset) {
		t.Errorf("aborted stream: %v, want ErrReset, never io.EOF", err)
	}
	if n := b.Stats().Panics; n != 1 {
		t.Errorf("panics counted: %d, want 1", n)
	}
}

func TestHandlerRegisteredLate(t *testing.T) { onBoth(t, checkHandlerRegisteredLate) }

func checkHandlerRegisteredLate(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
	must(t, err)
	_, err = io.WriteString(s, "early")
	must(t, err)
	must(t, s.CloseWrite())
	b.Handle(KindAdmin, echo)
	if got, err := io.ReadAll(s); string(got) != "early" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	_ = s.Close()
}

func TestCloseDuringWriteAndDeadlines(t *testing.T) { onBoth(t, checkCloseDuringWriteAndDeadlines) }

func checkCloseDuringWriteAndDeadlines(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	b.Handle(KindShardWrite, func(ctx context.Context, s Stream) { <-ctx.Done(); _ = s.Close() }) // never reads
	s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardWrite)
	must(t, err)
	must(t, s.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	big := make([]byte, 32<<20)
	if _, err := s.Write(big); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("blocked write: %v, want a deadline", err)
	}
	must(t, s.SetWriteDeadline(time.Time{}))
	wrote := make(chan error)
	go func() { _, err := s.Write(big); wrote <- err }()
	var writing *sync.Mutex
	switch s := s.(type) {
	case *stream:
		writing = &s.wmu
	case *lineStream:
		writing = &s.line.wmu
	}
	for writing.TryLock() { // until the writer is at it
		writing.Unlock()
		runtime.Gosched()
	}
	must(t, s.Close())
	if err := <-wrote; !errors.Is(err, ErrClosed) {
		t.Errorf("write during Close: %v, want ErrClosed", err)
	}
}

func TestRestartOnSamePortResumes(t *testing.T) {
	for _, name := range []string{"closed", "killed"} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			ctx := testContext(t)
			a := r.open(newNode(t), nil)
			node := newNode(t)
			id := r.identity(node, "south", time.Hour)
			setup := func(port int, boot uint64) *Link {
				l := r.open(node, func(c *Config) {
					c.Conn, c.Identity, c.ResetKey, c.Boot = udp(t, port), id, [32]byte{7}, boot
				})
				l.Handle(KindAdmin, echo)
				return l
			}
			b := setup(0, 1)
			port := b.Addr().(*net.UDPAddr).Port
			_, err := roundTrip(ctx, a, node, ClassControl, KindAdmin, "x")
			must(t, err)
			hanging, err := a.OpenStream(ctx, node, ClassControl, KindAdmin)
			must(t, err)
			_, err = hanging.Write([]byte("x"))
			must(t, err)
			if name == "killed" {
				_ = b.cfg.Conn.Close() // no word to anybody
			}
			_ = b.Close()
			setup(port, 2)
			start := time.Now()
			var got string
			for got != "again" && ctx.Err() == nil {
				try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
				s, err := a.OpenStream(try, node, ClassControl, KindAdmin)
				if err == nil {
					_ = s.SetDeadline(time.Now().Add(500 * time.Millisecond))
					_, _ = s.Write([]byte("again"))
					_ = s.CloseWrite()
					b, _ := io.ReadAll(s)
					got = string(b)
					_ = s.Close()
				}
				cancel()
			}
			took := time.Since(start)
			if got != "again" || took > 3*time.Second {
				t.Errorf("resumed with %q after %v", got, took)
			}
			t.Logf("resumed after %v", took)
			_, _ = hanging.Read(make([]byte, 1))
			if _, err := hanging.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
				t.Errorf("stream to the old process: %v, want ErrLost", err)
			}
		})
	}
}

func TestFailFastAndContact(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	a := r.open(newNode(t), nil)
	if _, err := a.OpenStream(ctx, newNode(t), ClassControl, KindAdmin); !errors.Is(err, ErrUnreachable) {
		t.Errorf("node without address: %v", err)
	}
	node := newNode(t)
	hole := udp(t, 0) // swallows packets
	defer hole.Close()
	r.set(node, hole.LocalAddr().String())
	start := time.Now()
	_, err := a.OpenStream(ctx, node, ClassControl, KindAdmin)
	if took := time.Since(start); !errors.Is(err, ErrUnreachable) || took > dialTime+time.Second {
		t.Errorf("first dial: %v after %v", err, took)
	}
	start = time.Now()
	_, err = a.OpenStream(ctx, node, ClassBulk, KindAdmin)
	if took := time.Since(start); !errors.Is(err, ErrUnreachable) || took > 100*time.Millisecond {
		t.Errorf("second dial: %v after %v, want it to fail fast", err, took)
	}
	if err := a.SendDatagram(node, []byte("x")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("datagram: %v", err)
	}
	b := r.open(node, nil)
	b.Handle(KindAdmin, echo)
	a.Handle(KindAdmin, echo)
	_, err = roundTrip(ctx, b, a.Self().Node, ClassControl, KindAdmin, "x")
	must(t, err)
	if _, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("after contact by the peer: %v", err)
	}
}

func TestMarkDownFailsBlockedStreams(t *testing.T) { onBoth(t, checkMarkDownFailsBlockedStreams) }

func checkMarkDownFailsBlockedStreams(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	node := b.Self().Node
	b.Handle(KindAdmin, func(ctx context.Context, s Stream) { <-ctx.Done(); _ = s.Close() })
	b.Handle(KindSeal, echo)
	s, err := a.OpenStream(ctx, node, ClassBulk, KindAdmin)
	must(t, err)
	_, err = s.Write([]byte("x"))
	must(t, err)
	failed := make(chan error)
	go func() { _, err := s.Read(make([]byte, 1)); failed <- err }()
	a.MarkDown(node)
	if err := <-failed; !errors.Is(err, ErrLost) {
		t.Errorf("blocked read: %v, want ErrLost", err)
	}
	if _, err := a.OpenStream(ctx, node, ClassBulk, KindSeal); !errors.Is(err, ErrUnreachable) {
		t.Errorf("straight after MarkDown: %v, want ErrUnreachable", err)
	}
	a.MarkUp(node)
	if _, err := roundTrip(ctx, a, node, ClassBulk, KindSeal, "x"); err != nil {
		t.Errorf("after MarkUp: %v", err)
	}
}

func TestRemovedNodeIsCutAndRefused(t *testing.T) { onBoth(t, checkRemovedNodeIsCutAndRefused) }

func checkRemovedNodeIsCutAndRefused(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	var removed atomic.Bool
	a := r.open(newNode(t), func(c *Config) {
		c.Allowed = func(Peer) error {
			if removed.Load() {
				return errors.New("node was removed from the ring: join it again as a new node")
			}
			return nil
		}
	})
	b := r.open(newNode(t), nil)
	a.Handle(KindAdmin, echo)
	b.Handle(KindAdmin, echo)
	_, err := roundTrip(ctx, b, a.Self().Node, ClassBulk, KindAdmin, "x")
	must(t, err)
	removed.Store(true)
	a.DropPeer(b.Self().Node)
	for _, class := range []Class{ClassControl, ClassBulk} {
		var refused *RefusedError
		for refused == nil && ctx.Err() == nil { // the old connection may need a moment to end
			_, err = roundTrip(ctx, b, a.Self().Node, class, KindAdmin, "x")
			errors.As(err, &refused)
		}
		if refused == nil || refused.Code != RefusalNotAllowed || !refused.Remote {
			t.Errorf("class %v: %v, want a refusal with its reason", class, err)
		}
	}
	a.MarkUp(b.Self().Node)
	if _, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin); !errors.Is(err, ErrRefused) {
		t.Errorf("dialled by the one who removed it: %v, want ErrRefused", err)
	}
}

func TestRingEpochs(t *testing.T) { onBoth(t, checkRingEpochs) }

func checkRingEpochs(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	recovered := r.open(newNode(t), func(c *Config) { c.RingEpoch = 2 })
	behind := r.open(newNode(t), func(c *Config) { c.RingEpoch = 1 })
	recovered.Handle(KindAdmin, echo)
	behind.Handle(KindAdmin, echo)
	for _, pair := range [][2]*Link{{behind, recovered}, {recovered, behind}} {
		_, err := roundTrip(ctx, pair[0], pair[1].Self().Node, ClassBulk, KindAdmin, "x")
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Code != RefusalEpoch {
			t.Errorf("got %v, want a refusal by epoch", err)
		}
	}
	if got := behind.SeenRingEpoch(); got != 2 {
		t.Errorf("epoch seen by the node left behind: %d, want 2", got)
	}
	behind.SetRingEpoch(2)
	behind.MarkUp(recovered.Self().Node)
	if _, err := roundTrip(ctx, behind, recovered.Self().Node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("same epoch: %v", err)
	}
	recovered.SetRingEpoch(3)
	var refused *RefusedError
	for !errors.As(context.Cause(ctx), &refused) && ctx.Err() == nil {
		_, err := roundTrip(ctx, behind, recovered.Self().Node, ClassBulk, KindAdmin, "x")
		if errors.As(err, &refused) && refused.Code == RefusalEpoch {
			return
		}
	}
	t.Errorf("connections of the older epoch go on")
}

func TestSecondProcessOfOneNodeIsFenced(t *testing.T) { onBoth(t, checkSecondProcessOfOneNodeIsFenced) }

func checkSecondProcessOfOneNodeIsFenced(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	hub := r.open(newNode(t), nil)
	hub.Handle(KindAdmin, echo)
	node := newNode(t)
	id := r.identity(node, "south", time.Hour)
	call := func(l *Link) error {
		_, err := roundTrip(ctx, l, hub.Self().Node, ClassBulk, KindAdmin, "x")
		return err
	}
	first := r.open(node, func(c *Config) { c.Identity, c.Boot = id, 5 })
	must(t, call(first))
	clone := r.open(node, func(c *Config) { c.Identity, c.Boot = id, 5 })
	var refused *RefusedError
	if err := call(clone); !errors.As(err, &refused) || refused.Code != RefusalDuplicate {
		t.Errorf("clone with the same count of starts: %v, want RefusalDuplicate", err)
	}
	must(t, call(first))
	later := r.open(node, func(c *Config) { c.Identity, c.Boot = id, 6 })
	must(t, call(later))
	for ctx.Err() == nil {
		if err := call(first); errors.As(err, &refused) && refused.Code == RefusalDuplicate {
			break
		}
	}
	must(t, ctx.Err())
	must(t, call(later))
}

func TestCertificateRunsOutUnderTraffic(t *testing.T) { onBoth(t, checkCertificateRunsOutUnderTraffic) }

func checkCertificateRunsOutUnderTraffic(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a := r.open(newNode(t), nil)
	node := newNode(t)
	b := r.open(node, func(c *Config) { c.Identity = r.identity(node, "south", 1200*time.Millisecond) })
	b.Handle(KindAdmin, echo)
	a.Handle(KindAdmin, echo)
	s, err := a.OpenStream(ctx, node, ClassBulk, KindAdmin)
	must(t, err)
	defer s.Close()
	_, err = s.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(s, make([]byte, 1))
	must(t, err)
	var refused *RefusedError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &refused) || refused.Code != RefusalExpired {
		t.Errorf("connection outlives its certificate: %v", err)
	}
	a.MarkUp(node)
	if _, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x"); !errors.Is(err, ErrIdentity) {
		t.Errorf("dial to a node with an expired certificate: %v, want ErrIdentity", err)
	}
	must(t, b.SetIdentity(r.identity(node, "south", time.Hour)))
	a.MarkUp(node)
	if _, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("after renewal: %v", err)
	}
	if err := b.SetIdentity(r.identity(newNode(t), "south", time.Hour)); !errors.Is(err, ErrIdentity) {
		t.Errorf("identity of another node: %v, want ErrIdentity", err)
	}
}

func TestRotatedCAOverlaps(t *testing.T) { onBoth(t, checkRotatedCAOverlaps) }

func checkRotatedCAOverlaps(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	next, err := NewCA(r.ring, rand.Reader, time.Now)
	must(t, err)
	a := r.open(newNode(t), func(c *Config) { c.Identity.AlsoTrusted = append(c.Identity.AlsoTrusted, next.Certificate()) })
	node := newNode(t)
	b := r.open(node, func(c *Config) {
		c.Identity = identityOf(t, next, node, "south", time.Hour)
		c.Identity.AlsoTrusted = append(c.Identity.AlsoTrusted, r.ca.Certificate())
	})
	a.Handle(KindAdmin, echo)
	b.Handle(KindAdmin, echo)
	if _, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("old to new: %v", err)
	}
	if _, err := roundTrip(ctx, b, a.Self().Node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("new to old: %v", err)
	}
}

func TestSimultaneousDials(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	a := r.open(newNode(t), func(c *Config) { c.BulkConns = 4 })
	b := r.open(newNode(t), func(c *Config) { c.BulkConns = 4 })
	a.Handle(KindAdmin, echo)
	b.Handle(KindAdmin, echo)
	var wg sync.WaitGroup
	for i := range 64 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		wg.Go(func() {
			if got, err := roundTrip(ctx, from, to.Self().Node, Class(i%classes), KindAdmin, "x"); got != "x" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	for range 20 { // bulk connections are added one at a time
		_, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x")
		must(t, err)
	}
	for ctx.Err() == nil && a.Stats().Peers[0].Conns[ClassBulk] < 4 {
		_, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x")
		must(t, err)
	}
	if n := a.Stats().Peers[0].Conns; n[ClassBulk] < 4 || n[ClassBulk] > 8 || n[ClassControl] > 2 {
		t.Errorf("connections by class: %v", n)
	}
}

func TestDatagrams(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	got := make(chan string, 100)
	b.HandleDatagram(func(from Peer, p []byte) {
		if from.Node != a.Self().Node {
			t.Errorf("datagram from %v", from)
		}
		if len(p) == 1 {
			panic("planted")
		}
		got <- string(p)
	})
	full := make([]byte, DatagramBytesMax)
	must(t, a.SendDatagram(b.Self().Node, full)) // before there is a connection
	must(t, a.SendDatagram(b.Self().Node, []byte("x")))
	must(t, a.SendDatagram(b.Self().Node, []byte("small")))
	for _, want := range []string{string(full), "small"} {
		select {
		case p := <-got:
			if p != want {
				t.Errorf("got %d bytes, want %d", len(p), len(want))
			}
		case <-ctx.Done():
			t.Fatal("datagram lost on loopback")
		}
	}
	if err := a.SendDatagram(b.Self().Node, make([]byte, DatagramBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large datagram: %v, want ErrTooLarge", err)
	}
}

func TestCloseIsFinal(t *testing.T) { onBoth(t, checkCloseIsFinal) }

func checkCloseIsFinal(t *testing.T, r *ringTest) {
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	var left atomic.Bool
	b.Handle(KindAdmin, func(ctx context.Context, s Stream) {
		<-ctx.Done()
		left.Store(true)
		_ = s.Close()
	})
	s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
	must(t, err)
	_, err = s.Write([]byte("x"))
	must(t, err)
	for b.Stats().StreamsServed == 0 && ctx.Err() == nil {
		_, err = s.Write([]byte("x"))
		must(t, err)
	}
	must(t, b.Close())
	if !left.Load() {
		t.Errorf("Close did not wait for the handler")
	}
	must(t, b.Close())
	if _, err := b.OpenStream(ctx, a.Self().Node, ClassBulk, KindAdmin); !errors.Is(err, ErrClosed) {
		t.Errorf("OpenStream after Close: %v, want ErrClosed", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("stream to a closed node: %v, want ErrLost", err)
	}
}

// A dial that was meant for a process that has ended does not run out its time once the peer is heard of again.
func TestDialBeginsAnewWhenThePeerIsBack(t *testing.T) {
	for name, back := range map[string]func(ctx context.Context, a, b *Link) error{
		"it connects": func(ctx context.Context, a, b *Link) error {
			_, err := roundTrip(ctx, b, a.Self().Node, ClassControl, KindAdmin, "x")
			return err
		},
		"gossip tells": func(_ context.Context, a, b *Link) error { a.MarkUp(b.Self().Node); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			r := newRing(t)
			r.bulk = BulkQUIC
			a, node := r.open(newNode(t), nil), newNode(t)
			a.Handle(KindAdmin, echo)
			hole := udp(t, 0) // swallows packets
			defer hole.Close()
			r.set(node, hole.LocalAddr().String())
			opened := make(chan error, 1)
			go func() { // ends with the dial
				_, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x")
				opened <- err
			}()
			for a.Stats().Dials == 0 {
				time.Sleep(time.Millisecond)
			}
			b := r.open(node, nil)
			b.Handle(KindAdmin, echo)
			must(t, back(ctx, a, b))
			if err := <-opened; err != nil {
				t.Errorf("%v, want the dial to reach the new process", err)
			}
		})
	}
}
