package link

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"osteon/erasure/place"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ringTest is a ring of links in one process.
type ringTest struct {
	t    *testing.T
	ring place.RingID
	ca   *CA
	bulk Bulk // unless a test changes it: QUIC

	mu    sync.Mutex
	addrs map[place.NodeID]string
}

func newRing(t *testing.T) *ringTest {
	t.Helper()
	ring, err := place.NewRingID(rand.Reader)
	must(t, err)
	ca, err := NewCA(ring, rand.Reader, time.Now)
	must(t, err)
	return &ringTest{t: t, ring: ring, ca: ca, bulk: BulkQUIC, addrs: make(map[place.NodeID]string)}
}

// onBoth runs one test of streams of class bulk over QUIC and over TCP: what they promise is the same.
func onBoth(t *testing.T, f func(*testing.T, *ringTest)) {
	for _, bulk := range []Bulk{BulkQUIC, BulkTCP} {
		t.Run(bulk.String(), func(t *testing.T) {
			r := newRing(t)
			r.bulk = bulk
			f(t, r)
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNode(t testing.TB) place.NodeID {
	t.Helper()
	node, err := place.NewNodeID(rand.Reader)
	must(t, err)
	return node
}

func (r *ringTest) identity(node place.NodeID, site place.SiteID, validity time.Duration) Identity {
	r.t.Helper()
	return identityOf(r.t, r.ca, node, site, validity)
}

func identityOf(t testing.TB, ca *CA, node place.NodeID, site place.SiteID, validity time.Duration) Identity {
	t.Helper()
	key, err := NewNodeKey(rand.Reader)
	must(t, err)
	csr, err := NewCSR(rand.Reader, key)
	must(t, err)
	cert, err := ca.Sign(csr, node, site, validity)
	must(t, err)
	id, err := NewIdentity(ca.Certificate().Raw, cert, key)
	must(t, err)
	return id
}

func udp(t testing.TB, port int) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	must(t, err)
	return c
}

type dialTCP = func(context.Context, string) (net.Conn, error)

// tcp listens at the port of conn, and dials.
func tcp(t testing.TB, conn net.PacketConn) (net.Listener, dialTCP) {
	t.Helper()
	ln, err := net.Listen("tcp", conn.LocalAddr().String())
	must(t, err)
	return ln, dialOut
}

func dialOut(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// udpAndTCP finds a port that is free for both.
func udpAndTCP(t testing.TB) (*net.UDPConn, net.Listener, dialTCP) {
	t.Helper()
	for {
		conn := udp(t, 0)
		ln, err := net.Listen("tcp", conn.LocalAddr().String())
		if err == nil {
			return conn, ln, dialOut
		}
		must(t, conn.Close())
		if !errors.Is(err, syscall.EADDRINUSE) {
			must(t, err)
		}
	}
}

func (r *ringTest) resolve(node place.NodeID) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	addr, ok := r.addrs[node]
	return addr, ok
}

func (r *ringTest) set(node place.NodeID, addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addrs[node] = addr
}

// open starts a link for a node of the ring; change may alter its configuration.
func (r *ringTest) open(node place.NodeID, change func(*Config)) *Link {
	r.t.Helper()
	cfg := Config{Conn: nil, Identity: r.identity(node, "north", time.Hour), Resolve: r.resolve, Now: time.Now, Rand: rand.Reader, Bulk: r.bulk}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{r.t}, nil))
	}
	if change != nil {
		change(&cfg)
	}
	switch {
	case cfg.Conn == nil && cfg.Bulk == BulkQUIC:
		cfg.Conn = udp(r.t, 0)
	case cfg.Conn == nil:
		cfg.Conn, cfg.Listener, cfg.Dial = udpAndTCP(r.t)
	case cfg.Bulk != BulkQUIC && cfg.Listener == nil:
		cfg.Listener, cfg.Dial = tcp(r.t, cfg.Conn)
	}
	l, err := Open(cfg)
	must(r.t, err)
	r.set(node, l.Addr().String())
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo answers a stream with what it reads.
func echo(_ context.Context, s Stream) {
	defer s.Close()
	_, _ = io.Copy(s, s)
}

func roundTrip(ctx context.Context, l *Link, node place.NodeID, class Class, kind Kind, text string) (string, error) {
	s, err := l.OpenStream(ctx, node, class, kind)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if _, err := io.WriteString(s, text); err != nil {
		return "", err
	}
	if err := s.CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(s)
	return string(b), err
}

func TestThreeNodesTalk(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	var links []*Link
	for range 3 {
		l := r.open(newNode(t), nil)
		l.Handle(KindAdmin, echo)
		l.HandleCall(KindForward, func(_ context.Context, from Peer, req []byte) ([]byte, error) {
			return append([]byte(from.Node.String()+" "), req...), nil
		})
		links = append(links, l)
	}
	for _, a := range links {
		for _, b := range links {
			if a == b {
				if _, err := a.Call(ctx, a.Self().Node, KindForward, nil); !errors.Is(err, ErrUnreachable) {
					t.Errorf("call to itself: %v, want ErrUnreachable", err)
				}
				continue
			}
			for class := range Class(classes) {
				got, err := roundTrip(ctx, a, b.Self().Node, class, KindAdmin, "hello "+class.String())
				if err != nil || got != "hello "+class.String() {
					t.Errorf("class %v: got %q, %v", class, got, err)
				}
			}
			got, err := a.Call(ctx, b.Self().Node, KindForward, []byte("x"))
			if want := a.Self().Node.String() + " x"; err != nil || string(got) != want {
				t.Errorf("call: got %q, %v, want %q", got, err, want)
			}
			if rtt, ok := a.RTT(b.Self().Node); !ok || rtt <= 0 {
				t.Errorf("RTT: got %v %v", rtt, ok)
			}
		}
	}
	if s := links[0].Stats(); len(s.Peers) != 2 || s.Panics != 0 {
		t.Errorf("stats: %+v, want two peers", s)
	}
}

func TestIdentityRefusals(t *testing.T) {
	r, other := newRing(t), newRing(t)
	ctx := testContext(t)
	server := r.open(newNode(t), nil)
	server.Handle(KindAdmin, echo)
	target := server.Self().Node
	stranger := newNode(t)

	// A CA that stole the ring's name but not its key.
	fake, err := NewCA(r.ring, rand.Reader, time.Now)
	must(t, err)

	tests := []struct {
		name   string
		id     func() Identity
		target place.NodeID
		want   error
	}{
		{"good", func() Identity { return r.identity(newNode(t), "south", time.Hour) }, target, nil},
		{"other ring", func() Identity { return identityOf(t, other.ca, newNode(t), "south", time.Hour) }, target, ErrIdentity},
		{"forged CA, server not checked", func() Identity {
			id := identityOf(t, fake, newNode(t), "south", time.Hour)
			id.AlsoTrusted = append(id.AlsoTrusted, r.ca.cert)
			return id
		}, target, ErrRefused},
		{"same CA, other ring", func() Identity {
			sibling := &CA{cert: r.ca.cert, key: r.ca.key, ring: other.ring, rand: rand.Reader, now: time.Now}
			return identityOf(t, sibling, newNode(t), "south", time.Hour)
		}, target, ErrIdentity},
		{"expired", func() Identity { return r.identity(newNode(t), "south", -time.Minute) }, target, ErrRefused},
		{"wrong node", func() Identity { return r.identity(newNode(t), "south", time.Hour) }, stranger, ErrWrongNode},
	}
	r.set(stranger, server.Addr().String())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := tt.id()
			conn := udp(t, 0)
			l, err := Open(Config{Conn: conn, Identity: id, Resolve: r.resolve, Now: time.Now})
			must(t, err)
			defer l.Close()
			_, err = roundTrip(ctx, l, tt.target, ClassControl, KindAdmin, "x")
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if tt.want != nil && !errors.Is(err, ErrUnreachable) {
				t.Errorf("got %v, want ErrUnreachable", err)
			}
			if errors.Is(err, ErrLost) {
				t.Errorf("%v claims that the outcome is unknown", err)
			}
		})
	}
}
