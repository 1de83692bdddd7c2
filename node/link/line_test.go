package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func bulkPair(t *testing.T, bulk Bulk) (r *ringTest, a, b *Link) {
	t.Helper()
	r = newRing(t)
	r.bulk = bulk
	a, b = r.open(newNode(t), nil), r.open(newNode(t), nil)
	b.Handle(KindAdmin, echo)
	return r, a, b
}

// lines waits until l has want lines to its one peer that rest, and returns how many there are.
func restingLines(ctx context.Context, l *Link, want int) (all int) {
	for {
		l.mu.Lock()
		idle := 0
		all = 0
		for _, p := range l.peers {
			idle += len(p.idle)
			all += len(p.lines)
		}
		l.mu.Unlock()
		if idle == want || ctx.Err() != nil {
			return all
		}
		runtime.Gosched()
	}
}

func TestALineIsUsedAgainAfterACleanEnd(t *testing.T) {
	_, a, b := bulkPair(t, BulkTCP)
	ctx := testContext(t)
	for i := range 20 {
		if got, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x"); got != "x" || err != nil {
			t.Fatalf("round %d: %q, %v", i, got, err)
		}
		if all := restingLines(ctx, a, 1); all != 1 {
			t.Fatalf("round %d: %d lines", i, all)
		}
	}
	unused, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
	must(t, err)
	must(t, unused.Close())
	if all := restingLines(ctx, a, 1); all != 1 || a.Stats().Dials != 1 {
		t.Errorf("%d lines after %d dials, want one", all, a.Stats().Dials)
	}
	if s := a.Stats().Peers[0]; s.Lines != 1 || s.Conns[ClassBulk] != 0 || s.BytesSent == 0 || s.BytesReceived == 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestLinesBeyondTheBoundAreClosed(t *testing.T) {
	_, a, b := bulkPair(t, BulkTCP)
	ctx := testContext(t)
	var open []Stream
	for range linesIdleMax + 4 {
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
		must(t, err)
		open = append(open, s)
	}
	for _, s := range open {
		_ = s.Close()
	}
	for restingLines(ctx, a, linesIdleMax) > linesIdleMax && ctx.Err() == nil {
		runtime.Gosched()
	}
	must(t, ctx.Err())
}

func TestAWornLineIsNotUsedAgain(t *testing.T) {
	_, a, b := bulkPair(t, BulkTCP)
	ctx := testContext(t)
	s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
	must(t, err)
	if Worn(s) {
		t.Error("a fresh line is worn")
	}
	s.(*lineStream).line.out.sent.Add(lineBytesMax)
	_, err = s.Write([]byte("x"))
	must(t, err)
	if !Worn(s) {
		t.Error("a line that has sent much is not worn")
	}
	must(t, s.CloseWrite())
	_, err = io.ReadAll(s)
	must(t, err)
	must(t, s.Close())
	for restingLines(ctx, a, 0) > 0 && ctx.Err() == nil {
		runtime.Gosched()
	}
	must(t, ctx.Err())
}

func TestAutoTakesQUICWhereTCPDoesNotAnswer(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, c *Config){
		"nobody listens": func(t *testing.T, c *Config) { _ = c.Listener.Close(); c.Listener = nil },
		"no answer":      func(t *testing.T, c *Config) { c.Listener = deaf(t, c.Listener) },
		"another server": func(t *testing.T, c *Config) { c.Listener = strange(t, c.Listener) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.bulk = BulkAuto
			ctx := testContext(t)
			a := r.open(newNode(t), nil)
			b := r.open(newNode(t), func(c *Config) {
				c.Conn, c.Listener, c.Dial = udpAndTCP(t)
				spoil(t, c)
				if c.Listener == nil {
					c.Listener = unused{}
				}
			})
			b.Handle(KindAdmin, echo)
			start := time.Now()
			for i := range 10 {
				if got, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x"); got != "x" || err != nil {
					t.Fatalf("round %d: %q, %v", i, got, err)
				}
			}
			if took := time.Since(start); took > 5*linePatience { // ten waits would be twice that
				t.Errorf("ten streams took %v: TCP is tried each time", took)
			}
			if s := a.Stats().Peers[0]; s.Conns[ClassBulk] != 1 || s.Lines != 0 {
				t.Errorf("stats: %+v, want bulk over QUIC", s)
			}
		})
	}
}

// unused is a listener at which nobody arrives.
type unused struct{}

func (unused) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (unused) Close() error              { return nil }
func (unused) Addr() net.Addr            { return &net.TCPAddr{} }

// deaf takes connections and says nothing; the link gets none of them.
func deaf(t *testing.T, ln net.Listener) net.Listener {
	return stolen(t, ln, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
}

// strange speaks another protocol.
func strange(t *testing.T, ln net.Listener) net.Listener {
	return stolen(t, ln, func(c net.Conn) { _, _ = io.WriteString(c, "220 mail.example ESMTP\r\n") })
}

func stolen(t *testing.T, ln net.Listener, serve func(net.Conn)) net.Listener {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return unused{}
}

func TestAutoComesBackToTCPAfterARestart(t *testing.T) {
	r := newRing(t)
	r.bulk = BulkAuto
	ctx := testContext(t)
	a := r.open(newNode(t), nil)
	node := newNode(t)
	id := r.identity(node, "south", time.Hour)
	conn, free, _ := udpAndTCP(t)
	must(t, free.Close())
	port := conn.LocalAddr().(*net.UDPAddr).Port
	b := r.open(node, func(c *Config) { c.Conn, c.Identity, c.Boot, c.Listener = conn, id, 1, unused{} })
	b.Handle(KindAdmin, echo)
	_, err := roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x")
	must(t, err)
	must(t, b.Close())
	b = r.open(node, func(c *Config) { c.Conn, c.Identity, c.Boot = udp(t, port), id, 2 })
	b.Handle(KindAdmin, echo)
	for a.Stats().DialsFailed > 0 && ctx.Err() == nil {
		_, _ = roundTrip(ctx, a, node, ClassControl, KindAdmin, "x") // until a knows the new process
		_, _ = roundTrip(ctx, a, node, ClassBulk, KindAdmin, "x")
		if s := a.Stats().Peers; len(s) == 1 && s[0].Lines > 0 {
			return
		}
	}
	t.Errorf("bulk stays on QUIC: %+v", a.Stats())
}

func TestAnOutsiderOverTCPGetsNothing(t *testing.T) {
	r, _, b := bulkPair(t, BulkTCP)
	var served atomic.Int32
	b.Handle(KindSeal, func(_ context.Context, s Stream) { served.Add(1); Abort(s) })
	stranger := newNode(t)
	own := r.identity(stranger, "south", time.Hour)
	for name, tt := range map[string]struct {
		protocol string
		cert     []tls.Certificate
	}{
		"no certificate": {protocolLine, nil},
		"join":           {protocolJoin, nil},
		"mesh protocol":  {protocolMesh, []tls.Certificate{own.Cert}},
		"other ring":     {protocolLine, []tls.Certificate{identityOf(t, newRing(t).ca, stranger, "south", time.Hour).Cert}},
		"no hello":       {protocolLine, []tls.Certificate{own.Cert}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{InsecureSkipVerify: true,
				NextProtos: []string{tt.protocol}, MinVersion: tls.VersionTLS13, Certificates: tt.cert})
			if err == nil {
				defer c.Close()
				must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
				_, _ = c.Write(append(bytes.Repeat([]byte{0}, helloBytes), byte(lineOpen), 1, 0, 0, byte(KindSeal)))
				var said []byte
				said, err = io.ReadAll(c)
				if name == "no hello" && !strings.Contains(string(said), "hello not understood") {
					t.Errorf("said %q, %v", said, err)
				}
				if name == "no hello" {
					return
				}
			}
			if err == nil || errors.Is(err, errNoLines) {
				t.Errorf("got %v, want a broken connection", err)
			}
		})
	}
	if served.Load() != 0 {
		t.Errorf("an outsider's stream was served")
	}
}

func TestHandshakesOverTCPAreBounded(t *testing.T) {
	r, a, b := bulkPair(t, BulkTCP)
	ctx := testContext(t)
	var silent []net.Conn
	for range lineAddressMax {
		c, err := net.Dial("tcp", b.Addr().String())
		must(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	for entered := 0; entered < lineAddressMax && ctx.Err() == nil; runtime.Gosched() {
		b.callers.mu.Lock()
		entered = b.callers.all
		b.callers.mu.Unlock()
	}
	if _, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("one caller more: %v, want it turned away", err)
	}
	_ = r
	for _, c := range silent { // each is cut off after helloTime
		must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a silent caller: %v, want it cut off", err)
		}
	}
	a.MarkUp(b.Self().Node)
	if _, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "x"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestALineThatSpeaksNonsenseEnds(t *testing.T) {
	r, _, b := bulkPair(t, BulkTCP)
	node := newNode(t)
	id := r.identity(node, "south", time.Hour)
	frame := func(op lineOp, payload ...byte) []byte {
		return append(appendLineHead(nil, op, len(payload)), payload...)
	}
	for name, said := range map[string][]byte{
		"unknown frame":        {99, 0, 0, 0},
		"data without stream":  frame(lineData, 1),
		"end without stream":   frame(lineEnd),
		"stream within stream": append(frame(lineOpen, byte(KindAdmin)), frame(lineOpen, byte(KindAdmin))...),
		"huge frame":           {byte(lineData), 0xff, 0xff, 0xff},
		"data after the end":   bytes.Join([][]byte{frame(lineOpen, byte(KindAdmin)), frame(lineEnd), frame(lineData, 1)}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{InsecureSkipVerify: true,
				NextProtos: []string{protocolLine}, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.Cert}})
			must(t, err)
			defer c.Close()
			must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
			_, err = c.Write(append(hello{Class: ClassBulk, Ring: r.ring}.append(nil, helloMagic), said...))
			must(t, err)
			_, err = io.ReadFull(c, make([]byte, helloBytes))
			must(t, err)
			var timeout net.Error
			if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("the connection lives on")
			}
		})
	}
}

// FuzzLine feeds a line whatever a peer may send, streams and all. It must end with the input, hold nothing, and serve only
// streams that were opened.
func FuzzLine(f *testing.F) {
	open := append(appendLineHead(nil, lineOpen, 1), byte(KindAdmin))
	data := append(appendLineHead(nil, lineData, 3), "abc"...)
	end := appendLineHead(nil, lineEnd, 0)
	reset := append(appendLineHead(nil, lineReset, 1), 4)
	stop := append(appendLineHead(nil, lineStop, 1), 0)
	bye := append(appendLineHead(nil, lineBye, 5), "\x01text"...)
	for _, seed := range [][][]byte{{open, data, end, open, data, data, end, bye}, {open, stop, reset, open, end}, {open, data, open},
		{data}, {open, end, stop, open, reset}, {{byte(lineData), 0xff, 0xff, 0x0f, 1, 2}}} {
		f.Add(bytes.Join(seed, nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		opens := bytes.Count(b, []byte{byte(lineOpen), 1, 0, 0})
		out := &gather{Conn: nowhere{}, buffers: newGatherPool()}
		var wg sync.WaitGroup
		c := newLine(out.Conn, struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), out}, out, time.Now, func(f func()) bool { wg.Go(f); return true })
		served := 0
		c.serve = func(s *lineStream) {
			served++
			got, err := io.ReadAll(s)
			if len(got) > len(b) {
				t.Errorf("%x: read %d bytes", b, len(got))
			}
			if err == nil {
				_, _ = s.Write(got)
			}
			_ = s.Close()
		}
		c.run()
		wg.Wait()
		if served > opens || c.ctx.Err() == nil {
			t.Errorf("%x: served %d of %d streams, ended: %v", b, served, opens, c.ctx.Err())
		}
	})
}

// nowhere is a connection that takes everything.
type nowhere struct{ net.Conn }

func (nowhere) Write(p []byte) (int, error)      { return len(p), nil }
func (nowhere) Close() error                     { return nil }
func (nowhere) SetReadDeadline(time.Time) error  { return nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }

func TestParseBulk(t *testing.T) {
	for _, b := range []Bulk{BulkAuto, BulkQUIC, BulkTCP} {
		if got, err := ParseBulk(b.String()); got != b || err != nil {
			t.Errorf("%v: got %v, %v", b, got, err)
		}
	}
	if _, err := ParseBulk("smoke"); err == nil {
		t.Error("smoke is no transport")
	}
}
