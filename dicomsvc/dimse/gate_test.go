package dimse

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

func newRefusals() *refusal.Log { return refusal.NewLog(refusal.Config{Now: time.Now}) }

// tryAs opens an association under a title; the caller closes it.
func (s *service) tryAs(t *testing.T, title string) (*Client, error) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	cfg := s.dialConfig()
	cfg.Association.CallingAE = title
	c, err := Dial(t.Context(), conn, cfg)
	if err == nil {
		t.Cleanup(func() { conn.Close(); c.Close() })
	}
	return c, err
}

// A stranger is told so for good while all places are taken, not to come again (PS3.8 §9.3.4).
func TestStrangersAreRejectedBeforeLimits(t *testing.T) {
	s := start(t, &archive{associate: func(r *dul.Request) *dul.Rejection {
		if r.CallingAE == "STRANGER" {
			return dul.RejectCallingAE()
		}
		return nil
	}}, func(c *ServerConfig) { c.MaxAssociations = 1 })
	if _, err := s.tryAs(t, "A"); err != nil {
		t.Fatal(err)
	}
	var rej *dul.Rejection
	if _, err := s.tryAs(t, "STRANGER"); !errors.As(err, &rej) || rej.Code() != "1/1/3" {
		t.Errorf("stranger: got %v, want 1/1/3", err)
	}
	if _, err := s.tryAs(t, "B"); !errors.As(err, &rej) || rej.Code() != "2/3/2" {
		t.Errorf("one too many: got %v, want 2/3/2", err)
	}
}

// F46: the limit of one address is for callers that nobody named.
func TestF46AddressLimitIsForStrangers(t *testing.T) {
	s := start(t, &archive{}, func(c *ServerConfig) {
		c.MaxPerHost = 2
		c.Known = func(r *dul.Request) bool { return strings.HasPrefix(r.CallingAE, "KNOWN") }
	})
	for i, c := range []struct {
		ae string
		ok bool
	}{{"KNOWN1", true}, {"KNOWN1", true}, {"KNOWN2", true}, {"A", true}, {"B", true}, {"C", false}, {"KNOWN3", true}} {
		if _, err := s.tryAs(t, c.ae); (err == nil) != c.ok {
			t.Errorf("association %d of %s: got %v, want ok %v", i, c.ae, err, c.ok)
		}
	}
}

// F46: an address whose connections come to nothing is held back, unless a known caller was let in from there.
func TestF46FruitlessAddressIsHeldBack(t *testing.T) {
	log := newRefusals()
	s := start(t, &archive{associate: func(r *dul.Request) *dul.Rejection {
		if strings.HasPrefix(r.CallingAE, "X") {
			return dul.RejectCallingAE()
		}
		return nil
	}}, func(c *ServerConfig) {
		c.MaxFruitless, c.Refusals = 10, log
		c.Known = func(r *dul.Request) bool { return r.CallingAE == "KNOWN" }
	})
	flood := func() {
		for range 200 {
			s.tryAs(t, "X")
		}
	}
	flood()
	held := s.Stats().HeldBack.Load()
	if held < 100 {
		t.Errorf("%d of 200 fruitless connections were held back", held)
	}
	rejected := s.Stats().Rejected.Load()
	wait(t, "being let in again after a while", func() bool {
		_, err := s.tryAs(t, "KNOWN")
		return err == nil
	})
	flood()
	if _, err := s.tryAs(t, "KNOWN"); err != nil {
		t.Errorf("known caller at the flood's address: %v", err)
	}
	if more := s.Stats().Rejected.Load() - rejected; more < 200 {
		t.Errorf("%d of 200 were rejected with a reason after a known caller was let in from there", more)
	}
	seen := false
	for _, e := range log.Events(time.Time{}, "") {
		seen = seen || e.What == "connection" && e.From == "127.0.0.1" && e.Count >= 100
	}
	if !seen {
		t.Errorf("no event tells of it: %+v", log.Events(time.Time{}, ""))
	}
}

// F46: when the lobby is full the address with most in it makes room.
func TestF46CrowdedAddressMakesRoom(t *testing.T) {
	s, err := NewServer(ServerConfig{Handler: &archive{}, MaxLobby: 10, MaxLobbyPerHost: 10})
	if err != nil {
		t.Fatal(err)
	}
	closed := map[string]int{}
	enter := func(host string) { s.enterLobby(&closing{host: host, closed: closed}, host) }
	enter("modality")
	for range 6 {
		enter("flood")
	}
	for range 3 {
		enter("other")
	}
	for range 5 {
		enter("late")
	}
	if closed["modality"] != 0 || closed["flood"] == 0 {
		t.Errorf("closed %v: want those of the crowded addresses, the modality's not", closed)
	}
}

type closing struct {
	net.Conn
	host   string
	closed map[string]int
}

func (c *closing) Close() error { c.closed[c.host]++; return nil }

// F56: a panic in a handler costs the association it happened on, is counted, logged by its place alone, and
// noted; others go on.
func TestF56PanicCostsOneAssociation(t *testing.T) {
	const secret = "CANARY^PATIENT"
	var said lockedText
	log := newRefusals()
	a := &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		io.Copy(io.Discard, r.Data)
		if r.SOPInstance == "6.6.6" {
			panic("cannot decode " + secret)
		}
		return StoreResponse{}
	}}
	s := start(t, a, func(c *ServerConfig) {
		c.Refusals, c.Log = log, slog.New(slog.NewTextHandler(&said, nil))
	})
	other := s.dial(t, s.dialConfig())
	poisoned := s.dial(t, s.dialConfig())
	args := func(uid string) StoreArgs {
		return StoreArgs{SOPClass: ctStorage, SOPInstance: uid, Syntax: ExplicitLittleEndian, Data: strings.NewReader("xx")}
	}
	var abort *dul.AbortError
	if _, err := poisoned.Store(t.Context(), args("6.6.6")); !errors.As(err, &abort) || !abort.Remote {
		t.Errorf("poisoned store: got %v, want an abort by the server", err)
	}
	if res, err := other.Store(t.Context(), args("1.2")); err != nil || res.Status != StatusSuccess {
		t.Errorf("the other association: %v, %04X", err, res.Status)
	}
	if n := s.Stats().Panics.Load(); n != 1 {
		t.Errorf("%d panics counted", n)
	}
	if text := said.String(); strings.Contains(text, secret) || !strings.Contains(text, "TestF56PanicCostsOneAssociation") {
		t.Errorf("log: want the place and no text of the panic: %s", text)
	}
	wait(t, "the event", func() bool {
		for _, e := range log.Events(time.Time{}, "") {
			if e.Why == panicAdvice.Why {
				return true
			}
		}
		return false
	})
}

type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
