package dimse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

func TestLimits(t *testing.T) {
	s := start(t, &archive{}, func(c *ServerConfig) {
		c.MaxAssociations, c.MaxPerAE, c.Reserve = 6, 3, 2
		c.Known = func(r *dul.Request) bool { return strings.HasPrefix(r.CallingAE, "KNOWN") }
	})
	try := func(ae string) error {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.dialConfig()
		cfg.Association.CallingAE = ae
		c, err := Dial(t.Context(), conn, cfg)
		if err == nil {
			t.Cleanup(func() { conn.Close(); c.Close() })
		}
		return err
	}
	for i, c := range []struct {
		ae string
		ok bool
	}{{"A", true}, {"A", true}, {"A", true}, {"A", false}, {"B", true}, {"C", false}, {"KNOWN1", true}, {"KNOWN2", true}, {"KNOWN3", false}} {
		err := try(c.ae)
		var rej *dul.Rejection
		if c.ok && err != nil || !c.ok && (!errors.As(err, &rej) || *rej != *dul.RejectLocalLimit()) {
			t.Errorf("association %d of %s: got %v, want ok %v", i, c.ae, err, c.ok)
		}
	}
	if n := s.Stats().Limited.Load(); n != 3 {
		t.Errorf("%d counted as limited", n)
	}
}

// F45: a process short of descriptors lets nobody in, known or not, and lets them in again when it is short no longer.
func TestF45ShortRejectsAssociations(t *testing.T) {
	var short atomic.Bool
	s := start(t, &archive{}, func(c *ServerConfig) {
		c.Short = short.Load
		c.Known = func(*dul.Request) bool { return true }
	})
	for _, now := range []bool{false, true, false} {
		short.Store(now)
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(t.Context(), conn, s.dialConfig())
		var rej *dul.Rejection
		if !now && err != nil || now && (!errors.As(err, &rej) || rej.Code() != "2/3/2") {
			t.Errorf("short %v: got %v", now, err)
		}
		if err == nil {
			c.Close()
		}
		conn.Close()
	}
}

// A place comes back when its association ends.
func TestLimitsGivenBack(t *testing.T) {
	s := start(t, &archive{}, func(c *ServerConfig) { c.MaxAssociations = 1 })
	for range 20 {
		c := s.dial(t, s.dialConfig())
		if err := c.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait(t, "the association to end", func() bool { return s.Stats().Open.Load() == 0 })
		s.mu.Lock()
		total := s.total
		s.mu.Unlock()
		if total != 0 {
			wait(t, "the place", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.total == 0 })
		}
	}
}

// F46: silent connections do not keep a modality out.
func TestFloodOfSilentConnections(t *testing.T) {
	s := start(t, &archive{}, func(c *ServerConfig) { c.MaxLobby, c.MaxLobbyPerHost = 20, 10 })
	var conns []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for range 20 {
		c := s.dial(t, s.dialConfig())
		if err := c.Echo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wait(t, "the lobby to shrink", func() bool { return s.Stats().Lobby.Load() <= 11 })
	for _, c := range conns {
		c.Close()
	}
}

// F45: a listener out of descriptors is tried again.
func TestAcceptErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, &exhausted{Listener: l, left: 3}, ServerConfig{Handler: &archive{}}) }()
	s := &service{addr: l.Addr().String()}
	c := s.dial(t, s.dialConfig())
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// exhausted fails like a process without descriptors, a few times.
type exhausted struct {
	net.Listener
	left int
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.left--; l.left >= 0 {
		return nil, syscall.EMFILE
	}
	return l.Listener.Accept()
}

// A peer that releases while its query runs gets its reply, and the handler
// ends.
func TestReleaseWhileRunning(t *testing.T) {
	ended := make(chan error, 1)
	s := start(t, &archive{finding: func(ctx context.Context, _ *FindRequest, _ func(*dicom.Dataset, uint16) error) Result {
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return Result{Status: StatusProcessingFailure}
	}})
	c := s.dial(t, s.dialConfig())
	id, _ := identifier("STUDY", "").Encode(nil, ExplicitLittleEndian)
	if err := c.conn.Write(5, &Command{Field: CFindRQ, MessageID: 1, AffectedClass: StudyRootFind}, bytes.NewReader(id)); err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || errors.Is(err, ErrCancelled) {
		t.Errorf("handler saw %v", err)
	}
}

// B19: refused associations leave neither goroutines nor memory.
func TestManyRejections(t *testing.T) {
	s := start(t, &archive{associate: func(*dul.Request) *dul.Rejection { return dul.RejectCallingAE() }},
		func(c *ServerConfig) { c.MaxFruitless = 2 * rejections })
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	knock := func(n int) {
		for range n {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Dial(t.Context(), conn, s.dialConfig()); !dul.IsRejected(err) {
				t.Fatalf("got %v", err)
			}
		}
		wait(t, "the lobby to empty", func() bool { return s.Stats().Lobby.Load() == 0 })
	}
	knock(100)
	before := heap()
	knock(rejections)
	if after := heap(); after > before+before/20+256<<10 {
		t.Errorf("heap grew from %d to %d bytes", before, after)
	}
}

const rejections = 1000

func TestDrain(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	a := &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		close(entered)
		<-finish
		return StoreResponse{}
	}}
	s := start(t, a)
	idle, busy := s.dial(t, s.dialConfig()), s.dial(t, s.dialConfig())
	answer := make(chan error, 1)
	go func() {
		_, err := busy.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: strings.NewReader("x")})
		answer <- err
	}()
	<-entered
	s.stop()
	var abort *dul.AbortError
	if err := idle.Wait(t.Context()); !errors.As(err, &abort) || !abort.Remote {
		t.Errorf("idle association: got %v, want an abort", err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("still listening")
	}
	close(finish)
	if err := <-answer; err != nil {
		t.Errorf("running store: %v", err)
	}
	if err := busy.Echo(t.Context()); err != nil {
		t.Errorf("the sender's next request: %v", err)
	}
	if err := busy.Wait(t.Context()); !errors.As(err, &abort) {
		t.Errorf("then: got %v, want an abort", err)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
}

func TestDrainGraceEnds(t *testing.T) {
	entered := make(chan struct{})
	a := &archive{storing: func(ctx context.Context, r *StoreRequest) StoreResponse {
		close(entered)
		<-ctx.Done()
		return StoreResponse{Status: StatusOutOfResources}
	}}
	s := start(t, a, func(c *ServerConfig) { c.Grace = 50 * time.Millisecond })
	c := s.dial(t, s.dialConfig())
	answer := make(chan error, 1)
	go func() {
		res, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: strings.NewReader("x")})
		if err == nil && res.Status == StatusSuccess {
			err = errors.New("success after the grace")
		} else {
			err = nil // aborted, or the handler's refusal was the quicker
		}
		answer <- err
	}()
	<-entered
	s.stop()
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

// A slow handler slows its sender: the data set is not read ahead.
func TestBackPressure(t *testing.T) {
	release := make(chan struct{})
	a := &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		<-release
		io.Copy(io.Discard, r.Data)
		return StoreResponse{}
	}}
	s := start(t, a)
	c := s.dial(t, s.dialConfig())
	src := &counted{r: io.LimitReader(zeros{}, 64<<20)}
	answer := make(chan error, 1)
	go func() {
		_, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: src})
		answer <- err
	}()
	var last int64 = -1
	wait(t, "the sender to stop", func() bool {
		time.Sleep(20 * time.Millisecond)
		n := src.count()
		stopped := n > 0 && n == last
		last = n
		return stopped
	})
	if last == 64<<20 {
		t.Error("64 MiB were taken although nobody reads")
	}
	close(release)
	if err := <-answer; err != nil || src.count() != 64<<20 {
		t.Errorf("got %v after %d bytes", err, src.count())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counted struct {
	r  io.Reader
	mu sync.Mutex
	n  int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.mu.Lock()
	c.n += int64(n)
	c.mu.Unlock()
	return n, err
}

func (c *counted) count() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// The ended callback comes once for each accepted association.
func TestEnded(t *testing.T) {
	ends := make(chan error, 10)
	s := start(t, &archive{ended: func(err error) { ends <- err }})
	c := s.dial(t, s.dialConfig())
	c.Release(t.Context())
	if err := <-ends; err != nil {
		t.Errorf("after a release: %v", err)
	}
	c = s.dial(t, s.dialConfig())
	c.Abort()
	if err := <-ends; err == nil {
		t.Error("after an abort: nil")
	}
	conn, _ := net.Dial("tcp", s.addr)
	conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	io.Copy(io.Discard, conn)
	conn.Close()
	wait(t, "the drop", func() bool { return s.Stats().Dropped.Load() == 1 })
	if len(ends) != 0 {
		t.Error("ended without an association")
	}
}

// The peer of a C-GET that never answers a sub-operation is aborted.
func TestSilentSubOperation(t *testing.T) {
	got := make(chan error, 1)
	a := &archive{getting: func(_ context.Context, _ *GetRequest, g *Getter) Result {
		_, err := g.Store(StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: strings.NewReader("x")})
		got <- err
		return Result{Status: StatusSubOperations}
	}}
	s := start(t, a, func(c *ServerConfig) { c.ResponseTime = 30 * time.Millisecond })
	c := s.dial(t, getConfig(s))
	id, _ := identifier("STUDY", "").Encode(nil, ExplicitLittleEndian)
	c.conn.Write(1, &Command{Field: CGetRQ, MessageID: 1, AffectedClass: StudyRootGet}, bytes.NewReader(id))
	if err := <-got; !errors.Is(err, ErrNoResponse) {
		t.Errorf("got %v", err)
	}
}

func TestIdentifierLimit(t *testing.T) {
	s := start(t, &archive{})
	c := s.dial(t, s.dialConfig())
	cmd := &Command{Field: CFindRQ, MessageID: 1, AffectedClass: StudyRootFind}
	if err := c.conn.Write(5, cmd, io.LimitReader(zeros{}, identifierBytesMax+1)); err != nil {
		t.Fatal(err)
	}
	m, err := c.conn.Read()
	if err != nil || m.Command.Status != StatusCannotUnderstand {
		t.Errorf("got %+v, %v", m, err)
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}
}
