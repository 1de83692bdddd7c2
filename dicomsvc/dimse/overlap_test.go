package dimse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// What is agreed to is the least of proposal, handler and configuration; 0 is any number.
// Behaviour 12.
func TestBehaviour12AgreedWindow(t *testing.T) {
	for _, c := range []struct {
		proposed   *dul.AsyncOps
		handler    uint16
		configured int
		want       dul.AsyncOps
	}{
		{nil, 0, 0, dul.AsyncOps{Invoked: 1, Performed: 1}},
		{&dul.AsyncOps{}, 0, 0, dul.AsyncOps{Invoked: windowDefault, Performed: windowDefault}},
		{&dul.AsyncOps{Invoked: 3, Performed: 0}, 0, 5, dul.AsyncOps{Invoked: 3, Performed: 5}},
		{&dul.AsyncOps{Invoked: 0, Performed: 9}, 4, 6, dul.AsyncOps{Invoked: 4, Performed: 4}},
		{&dul.AsyncOps{}, 0, 1, dul.AsyncOps{Invoked: 1, Performed: 1}},
		{&dul.AsyncOps{}, 0, 1 << 20, dul.AsyncOps{Invoked: windowMax, Performed: windowMax}},
	} {
		g := newGatedStores(c.handler)
		s := start(t, g, func(cfg *ServerConfig) { cfg.MaxOperations = c.configured })
		if got := s.async(t, c.proposed).assoc.AsyncOps(); got != c.want {
			t.Errorf("proposed %v, handler %d, configured %d: agreed to %v, want %v", c.proposed, c.handler, c.configured, got, c.want)
		}
	}
}

// gatedStores is a handler whose stores read everything and then wait for leave, as one waits for its syncs.
type gatedStores struct {
	archive
	window dul.AsyncOps // the largest agreed to

	leave        chan struct{}
	inside, most atomic.Int64
	mu           sync.Mutex
	entered      []uint16 // message IDs in the order in which their data sets were complete
	held         map[uint16]chan struct{}
}

func newGatedStores(window uint16) *gatedStores {
	g := &gatedStores{window: dul.AsyncOps{Invoked: window, Performed: window}, leave: make(chan struct{}, 100), held: map[uint16]chan struct{}{}}
	g.storing = g.gated
	return g
}

func (g *gatedStores) Associate(ctx context.Context, r *dul.Request) Decision {
	d := g.archive.Associate(ctx, r)
	window := g.window
	d.Acceptance.AsyncOps = &window
	return d
}

func (g *gatedStores) gated(_ context.Context, r *StoreRequest) StoreResponse {
	if _, err := io.Copy(io.Discard, r.Data); err != nil {
		return StoreResponse{Status: StatusOutOfResources}
	}
	g.mu.Lock()
	g.entered = append(g.entered, r.MessageID)
	own := g.held[r.MessageID]
	g.mu.Unlock()
	n := g.inside.Add(1)
	defer g.inside.Add(-1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
	select {
	case <-g.leave:
	case <-own: // nil for most
	}
	return StoreResponse{}
}

// hold makes the store of one message wait for a channel of its own.
func (g *gatedStores) hold(id uint16) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[id] = make(chan struct{})
	return g.held[id]
}

// asyncPeer writes requests and reads responses by hand, as a client with several operations under way does.
type asyncPeer struct {
	*Conn
	t testing.TB
}

func (s *service) async(t testing.TB, window *dul.AsyncOps) *asyncPeer {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.dialConfig().Association
	cfg.AsyncOps = window
	cfg.Roles = []dul.Role{{SOPClass: ctStorage, SCU: true, SCP: true}}
	a, err := dul.Connect(context.Background(), conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return &asyncPeer{NewConn(a), t}
}

func (p *asyncPeer) pc(class string) byte {
	pc, ok := findContext(p.assoc.Contexts(), class, "")
	if !ok {
		p.t.Fatalf("no context for %s", class)
	}
	return pc.ID
}

// store sends a C-STORE-RQ of n bytes and does not wait for its response.
func (p *asyncPeer) store(id uint16, n int) {
	p.t.Helper()
	a := StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(int(id)), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(make([]byte, n))}
	if err := a.write(p.Conn, p.pc(ctStorage), id); err != nil {
		p.t.Fatalf("store %d: %v", id, err)
	}
}

func (p *asyncPeer) ask(field, id uint16, model string) {
	p.t.Helper()
	b, err := identifier("STUDY", "").Encode(nil, ExplicitLittleEndian)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.Write(p.pc(model), &Command{Field: field, MessageID: id, AffectedClass: model}, bytes.NewReader(b)); err != nil {
		p.t.Fatal(err)
	}
}

// next reads one message, without its data set.
func (p *asyncPeer) next() *Command {
	p.t.Helper()
	m, err := p.Read()
	if err != nil {
		p.t.Fatalf("read: %v", err)
	}
	return m.Command
}

// While one store waits to be made safe the next is received; the responses come in the order in which the stores end,
// each with the ID of its message.
// Behaviour 12.
func TestBehaviour12StoresOverlap(t *testing.T) {
	g := newGatedStores(4)
	s := start(t, g)
	p := s.async(t, &dul.AsyncOps{})
	if got, want := p.assoc.AsyncOps(), (dul.AsyncOps{Invoked: 4, Performed: 4}); got != want {
		t.Fatalf("window %v, want %v: unlimited is cut", got, want)
	}
	first, second := g.hold(1), g.hold(2)
	p.store(1, 300_000)
	p.store(2, 8<<20) // more than sockets hold: it was taken while the first waits
	wait(t, "two stores at once", func() bool { return g.inside.Load() == 2 })
	close(second)
	if c := p.next(); c.RespondedTo != 2 || c.Status != StatusSuccess || c.AffectedInstance != uidOf(2) {
		t.Errorf("first response %+v, want that to message 2", c)
	}
	close(first)
	if c := p.next(); c.RespondedTo != 1 || c.Status != StatusSuccess || c.AffectedInstance != uidOf(1) {
		t.Errorf("second response %+v, want that to message 1", c)
	}
	if n := s.Stats().Stores.Load(); n != 2 {
		t.Errorf("%d stores counted", n)
	}
}

// Never more stores run than were agreed to, however many are sent; without an agreement it is one.
// Behaviour 12.
func TestBehaviour12Window(t *testing.T) {
	for name, c := range map[string]struct {
		proposed *dul.AsyncOps
		want     int64
	}{
		"none":    {nil, 1},
		"one":     {&dul.AsyncOps{Invoked: 1, Performed: 1}, 1},
		"three":   {&dul.AsyncOps{Invoked: 3, Performed: 1}, 3},
		"too big": {&dul.AsyncOps{Invoked: 100, Performed: 1}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGatedStores(5)
			s := start(t, g)
			p := s.async(t, c.proposed)
			const stores = 12
			for id := range uint16(stores) {
				p.store(id+1, 1000)
			}
			wait(t, "a full window", func() bool { return g.inside.Load() == c.want })
			var answered []uint16
			for range stores {
				g.leave <- struct{}{}
				answered = append(answered, p.next().RespondedTo)
			}
			if most := g.most.Load(); most != c.want {
				t.Errorf("%d stores at once, want %d", most, c.want)
			}
			if c.want == 1 && !slices.IsSorted(answered) {
				t.Errorf("answered in the order %v", answered)
			}
			slices.Sort(answered)
			if len(slices.Compact(answered)) != stores {
				t.Errorf("answered %v", answered)
			}
		})
	}
}

// A store beyond the first of its association needs a place that the server has: without one they run one after
// another, and all are done.
// Behaviour 12.
func TestBehaviour12OverlapIsBounded(t *testing.T) {
	g := newGatedStores(8)
	s := start(t, g, func(c *ServerConfig) { c.MaxOverlap = 2 })
	var peers []*asyncPeer
	for range 3 {
		p := s.async(t, &dul.AsyncOps{})
		for id := range uint16(4) {
			p.store(id+1, 1000)
		}
		peers = append(peers, p)
	}
	wait(t, "three stores and two beyond", func() bool { return g.inside.Load() == 5 })
	for range 12 {
		g.leave <- struct{}{}
	}
	for _, p := range peers {
		for range 4 {
			if c := p.next(); c.Status != StatusSuccess {
				t.Errorf("status %04X", c.Status)
			}
		}
	}
	if most := g.most.Load(); most > 5 {
		t.Errorf("%d stores at once, want 5 at most", most)
	}
}

// While stores wait, queries are answered and cancelled, and a C-ECHO is.
// Behaviours 12, 31.
func TestBehaviour12And31OthersBesideStores(t *testing.T) {
	g := newGatedStores(4)
	finding := make(chan struct{})
	g.finding = func(ctx context.Context, _ *FindRequest, yield func(*dicom.Dataset, uint16) error) Result {
		close(finding)
		for yield(identifier("STUDY", ""), StatusPending) == nil {
		}
		return Result{Status: StatusProcessingFailure}
	}
	s := start(t, g)
	p := s.async(t, &dul.AsyncOps{})
	p.store(1, 1000)
	p.store(2, 1000)
	wait(t, "two stores", func() bool { return g.inside.Load() == 2 })
	p.ask(CFindRQ, 3, StudyRootFind)
	<-finding
	if c := p.next(); c.RespondedTo != 3 || c.Status != StatusPending {
		t.Errorf("got %+v, want a match", c)
	}
	if err := p.Write(p.pc(StudyRootFind), &Command{Field: CCancelRQ, RespondedTo: 3}, nil); err != nil {
		t.Fatal(err)
	}
	c := p.next()
	for c.Status == StatusPending {
		c = p.next()
	}
	if c.RespondedTo != 3 || c.Status != StatusCancel || g.inside.Load() != 2 {
		t.Errorf("got %+v with %d stores waiting, want FE00 beside two", c, g.inside.Load())
	}
	if err := p.Write(p.pc(VerificationClass), &Command{Field: CEchoRQ, MessageID: 4, AffectedClass: VerificationClass}, nil); err != nil {
		t.Fatal(err)
	}
	if c := p.next(); c.Field != CEchoRQ|responseBit || c.RespondedTo != 4 {
		t.Errorf("got %+v, want the echo", c)
	}
	close(g.leave)
	for range 2 {
		p.next()
	}
}

// A message ID of a store under way is refused, and the store goes on.
// Behaviour 12.
func TestBehaviour12MessageIDTwice(t *testing.T) {
	g := newGatedStores(4)
	s := start(t, g)
	p := s.async(t, &dul.AsyncOps{})
	p.store(7, 1000)
	wait(t, "the store", func() bool { return g.inside.Load() == 1 })
	p.store(7, 200_000)
	if c := p.next(); c.RespondedTo != 7 || c.Status != StatusDuplicateInvoke {
		t.Errorf("got %+v, want 0210", c)
	}
	p.ask(CFindRQ, 7, StudyRootFind)
	if c := p.next(); c.Field != CFindRQ|responseBit || c.Status != StatusDuplicateInvoke {
		t.Errorf("got %+v, want 0210", c)
	}
	close(g.leave)
	if c := p.next(); c.RespondedTo != 7 || c.Status != StatusSuccess {
		t.Errorf("got %+v, want success", c)
	}
	p.store(7, 1000) // free again
	if c := p.next(); c.Status != StatusSuccess {
		t.Errorf("got %+v, want success", c)
	}
}

// Stores under way when the peer asks for the release are finished and answered before it is granted; after an abort
// they end all the same.
// Behaviours 11, 12.
func TestBehaviour12EndWithStoresUnderWay(t *testing.T) {
	t.Run("release", func(t *testing.T) {
		g := newGatedStores(4)
		s := start(t, g)
		p := s.async(t, &dul.AsyncOps{})
		p.store(1, 1000)
		p.store(2, 1000)
		wait(t, "two stores", func() bool { return g.inside.Load() == 2 })
		released := make(chan error, 1)
		go func() { released <- p.assoc.Release(context.Background()) }()
		select {
		case err := <-released:
			t.Fatalf("released while two stores were under way: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		close(g.leave)
		if err := <-released; err != nil {
			t.Error(err)
		}
		wait(t, "the release", func() bool { return s.Stats().Released.Load() == 1 })
		if n := s.Stats().Stores.Load(); n != 2 {
			t.Errorf("%d stores, want 2", n)
		}
	})
	t.Run("abort", func(t *testing.T) {
		g := newGatedStores(4)
		s := start(t, g)
		p := s.async(t, &dul.AsyncOps{})
		p.store(1, 1000)
		wait(t, "the store", func() bool { return g.inside.Load() == 1 })
		p.assoc.Abort()
		close(g.leave)
		wait(t, "the end", func() bool { return s.Stats().Broken.Load() == 1 && s.Stats().Open.Load() == 0 })
	})
	t.Run("panic", func(t *testing.T) {
		g := newGatedStores(4)
		g.storing = func(context.Context, *StoreRequest) StoreResponse { panic("a decoder") }
		s := start(t, g)
		p := s.async(t, &dul.AsyncOps{})
		p.store(1, 100)
		if _, err := p.Read(); err == nil {
			t.Error("the association goes on")
		}
		wait(t, "the end", func() bool { return s.Stats().Panics.Load() == 1 && s.Stats().Open.Load() == 0 })
	})
	t.Run("early answer", func(t *testing.T) { // a handler that reads nothing: the rest is drained, then it is answered
		g := newGatedStores(4)
		g.storing = func(context.Context, *StoreRequest) StoreResponse { return StoreResponse{Status: StatusOutOfResources} }
		s := start(t, g)
		p := s.async(t, &dul.AsyncOps{})
		for id := range uint16(5) {
			p.store(id+1, 2<<20)
			if c := p.next(); c.RespondedTo != id+1 || c.Status != StatusOutOfResources {
				t.Errorf("got %+v", c)
			}
		}
	})
}

// What this side asks of the peer keeps to the window too: two C-GETs at once send one sub-operation at a time where
// only one may be under way.
// Behaviour 12.
func TestBehaviour12SubOperationsKeepToTheWindow(t *testing.T) {
	for _, performed := range []uint16{1, 2} {
		g := newGatedStores(4)
		var asking atomic.Int64
		g.getting = func(_ context.Context, r *GetRequest, get *Getter) Result {
			asking.Add(1)
			_, err := get.Store(StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(int(r.MessageID)), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(make([]byte, 100))})
			if err != nil {
				return Result{Status: StatusSubOperations}
			}
			return Result{}
		}
		s := start(t, g)
		p := s.async(t, &dul.AsyncOps{Invoked: 4, Performed: performed})
		p.ask(CGetRQ, 1, StudyRootGet)
		p.ask(CGetRQ, 2, StudyRootGet)
		var open, most, done int
		answer := func(c *Command) {
			if err := p.Write(p.pc(ctStorage), storeReply(c, StoreResponse{}), nil); err != nil {
				t.Fatal(err)
			}
			open--
		}
		var unanswered []*Command
		for done < 2 {
			c := p.next()
			switch c.Field {
			case CStoreRQ:
				open++
				most = max(most, open)
				unanswered = append(unanswered, c)
			case CGetRQ | responseBit:
				done++
				if c.Status != StatusSuccess {
					t.Errorf("C-GET %d: %04X", c.RespondedTo, c.Status)
				}
			}
			if len(unanswered) > 0 && (performed == 1 || len(unanswered) == 2 || done == 1) {
				wait(t, "both C-GETs", func() bool { return asking.Load() == 2 })
				if done == 0 && performed == 1 {
					time.Sleep(20 * time.Millisecond) // in which a second could leave if it may
					if n := s.Stats().SubOperations.Load(); n > 1 {
						t.Errorf("%d sub-operations under way", n)
					}
				}
				for _, u := range unanswered {
					answer(u)
				}
				unanswered = nil
			}
		}
		if most != int(performed) {
			t.Errorf("%d sub-operations at once, want %d", most, performed)
		}
	}
}

// A store that is cut short leaves the others of its association to end, and is not answered.
// Behaviours 9, 12.
func TestBehaviour12CutStoreBesideAnother(t *testing.T) {
	g := newGatedStores(4)
	cut := make(chan error, 1)
	inner := g.storing
	g.storing = func(ctx context.Context, r *StoreRequest) StoreResponse {
		if r.MessageID == 1 {
			return inner(ctx, r)
		}
		_, err := io.Copy(io.Discard, r.Data)
		cut <- err
		return StoreResponse{}
	}
	s := start(t, g)
	p := s.async(t, &dul.AsyncOps{})
	p.store(1, 1000)
	wait(t, "the first store", func() bool { return g.inside.Load() == 1 })
	a := StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2", Syntax: ExplicitLittleEndian, Data: io.MultiReader(bytes.NewReader(make([]byte, 400_000)), broken{}.reader())}
	if err := a.write(p.Conn, p.pc(ctStorage), 2); err == nil {
		t.Fatal("a data set that broke off was sent")
	}
	if err := <-cut; err == nil {
		t.Error("half a data set looks whole")
	}
	close(g.leave)
	wait(t, "the end", func() bool { return s.Stats().Open.Load() == 0 })
	if ok, bad := s.Stats().Stores.Load(), s.Stats().StoresBroken.Load(); ok != 1 || bad != 1 {
		t.Errorf("%d stored, %d broken; want 1 and 1", ok, bad)
	}
}

func (broken) reader() io.Reader {
	r, w := io.Pipe()
	w.CloseWithError(errors.New("digest differs"))
	return r
}

// A message ID is free from the moment at which its final response is on the way: some clients use one for all.
// Behaviour 12.
func TestBehaviour12SameMessageIDAgainAndAgain(t *testing.T) {
	g := newGatedStores(4)
	close(g.leave)
	s := start(t, g)
	p := s.async(t, &dul.AsyncOps{})
	for i := range 2000 {
		p.store(7, 100)
		if c := p.next(); c.Status != StatusSuccess {
			t.Fatalf("store %d: %04X", i, c.Status)
		}
		p.ask(CFindRQ, 7, StudyRootFind)
		if c := p.next(); c.Status != StatusSuccess {
			t.Fatalf("query %d: %04X", i, c.Status)
		}
	}
}
