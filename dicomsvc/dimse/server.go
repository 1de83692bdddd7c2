package dimse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

// ServerConfig configures a Server. Handler is required; every other zero
// value is good.
type ServerConfig struct {
	Handler Handler

	// MaxAssociations bounds the associations in all. Default 200.
	MaxAssociations int
	// MaxPerAE bounds those of one calling AE title. Default 64.
	MaxPerAE int
	// MaxPerHost bounds those of one address, of callers that are not Known. Default 128.
	MaxPerHost int
	// Reserve is how many of MaxAssociations only known callers may take.
	// Default 5 %; it has no effect without Known.
	Reserve int
	// Known says whether a caller is one of ours. It must be quick.
	Known func(r *dul.Request) bool
	// Verify checks the user identity of a request that has one (PS3.7 §D.3.3.7) and gives the server response for
	// it; an error refuses the association. Nil: nothing can be verified, see identify.
	Verify func(ctx context.Context, r *dul.Request) (response []byte, err error)
	// Short says that the process is short of what associations need, such as file descriptors: while it does, none is
	// let in. Nil: never.
	Short func() bool
	// MaxLobby bounds the connections whose association is not open yet, in
	// all and per address. Default 256 and 64.
	MaxLobby, MaxLobbyPerHost int
	// MaxFruitless is how many connections of one address may come to nothing before further ones are closed
	// at once; fruitlessForgiven of them are forgotten each second. Addresses at which a Known caller was let
	// in are not held back. Default 200.
	MaxFruitless int

	// MaxOperations is the asynchronous operations window agreed to in each direction of an association where the peer
	// proposes one (PS3.7 §D.3.3.3): never more than was proposed, and this where it proposed any number. The handler may agree to
	// less. 1 has everything done one after another. Default 8.
	MaxOperations int
	// MaxOverlap bounds, over all associations, the stores under way beyond the first of each association; where none
	// is left an association's stores run one after another, whatever window it has. Default 256.
	MaxOverlap int

	// Grace is how long open associations may go on after the end of Serve's
	// context. Default 30 s.
	Grace time.Duration
	// ResponseTime is how long a peer may take to answer a sub-operation or an
	// event report. Default 60 s.
	ResponseTime time.Duration
	Timers       dul.Timers
	MaxPDU       uint32 // announced; dul.AdvertisedPDU if 0
	// Refusals takes whatever is refused or fails: associations, operations, connections. Nil: none are kept.
	Refusals *refusal.Log
	// Log gets what is no refusal; never a title, a UID or an address. Nil
	// discards.
	Log *slog.Logger
}

// Validate reports everything that is wrong.
func (c *ServerConfig) Validate() error {
	var errs []error
	if c.Handler == nil {
		errs = append(errs, errors.New("dimse server: Handler is required"))
	}
	for _, n := range []int{c.MaxAssociations, c.MaxPerAE, c.MaxPerHost, c.Reserve, c.MaxLobby, c.MaxLobbyPerHost, c.MaxFruitless, c.MaxOperations, c.MaxOverlap} {
		if n < 0 {
			errs = append(errs, errors.New("dimse server: a limit is negative"))
			break
		}
	}
	if c.MaxAssociations > 0 && c.Reserve >= c.MaxAssociations {
		errs = append(errs, errors.New("dimse server: Reserve leaves no association to others"))
	}
	return errors.Join(errs...)
}

func (c ServerConfig) withDefaults() ServerConfig {
	set := func(n *int, d int) {
		if *n == 0 {
			*n = d
		}
	}
	set(&c.MaxAssociations, associationsDefault)
	set(&c.MaxPerAE, perAEDefault)
	set(&c.MaxPerHost, perHostDefault)
	set(&c.MaxLobby, lobbyDefault)
	set(&c.MaxLobbyPerHost, lobbyPerHostDefault)
	set(&c.MaxFruitless, fruitlessDefault)
	set(&c.MaxOperations, windowDefault)
	c.MaxOperations = min(c.MaxOperations, windowMax)
	set(&c.MaxOverlap, overlapDefault)
	set(&c.Reserve, c.MaxAssociations*reservePercent/100)
	if c.Grace == 0 {
		c.Grace = graceDefault
	}
	if c.ResponseTime == 0 {
		c.ResponseTime = responseDefault
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Stats counts what a server did since it was made. All fields are live.
type Stats struct {
	Connections   atomic.Int64 // accepted by the listener
	Dropped       atomic.Int64 // ended without an association and without a rejection
	Evicted       atomic.Int64 // of these, closed to make room in the lobby
	HeldBack      atomic.Int64 // closed at once: too many from there came to nothing
	Accepted      atomic.Int64
	Rejected      atomic.Int64 // by decision
	Limited       atomic.Int64 // by a limit
	Open          atomic.Int64 // associations now
	Lobby         atomic.Int64 // connections without association now
	Released      atomic.Int64
	Broken        atomic.Int64 // ended by an abort, a time-out or the network
	Echoes        atomic.Int64
	Stores        atomic.Int64 // answered with success or warning
	StoresRefused atomic.Int64
	StoresBroken  atomic.Int64 // data set cut short
	Finds         atomic.Int64
	Matches       atomic.Int64
	Moves         atomic.Int64
	Gets          atomic.Int64
	SubOperations atomic.Int64 // of C-GET
	Cancels       atomic.Int64
	Notifications atomic.Int64 // N- services
	Panics        atomic.Int64 // faults of this program, each of which cost an association
}

// Server serves DIMSE on any number of listeners. It is safe for concurrent
// use.
type Server struct {
	cfg   ServerConfig
	stats Stats
	ids   atomic.Uint64
	// overlapping is full while MaxOverlap stores run beside others of their association.
	overlapping chan struct{}

	mu       sync.Mutex
	sessions map[*Session]struct{}
	lobby    lobby
	total    int
	perAE    map[string]int
	perHost  map[string]int // of callers that are not known
	draining int            // Serve calls whose context has ended
	throttle throttle
}

// NewServer checks the configuration and makes a server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Server{
		cfg: cfg, overlapping: make(chan struct{}, cfg.MaxOverlap), sessions: map[*Session]struct{}{},
		perAE: map[string]int{}, perHost: map[string]int{}, throttle: newThrottle(),
	}, nil
}

// Serve makes a server for one listener and serves it.
func Serve(ctx context.Context, l net.Listener, cfg ServerConfig) error {
	s, err := NewServer(cfg)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Stats returns the live counters.
func (s *Server) Stats() *Stats { return &s.stats }

// Serve accepts connections of l, which it closes, until ctx ends. Then it
// drains: an association in use may go on to its release within the grace; one
// that is idle for a second, or still open after the grace, is aborted. It returns nil when all have
// ended, or the listener's error if that failed before ctx ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Operations outlive ctx by the grace.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wait sync.WaitGroup
	closing := context.AfterFunc(ctx, func() { l.Close() })
	defer closing()
	defer l.Close()
	wait.Go(func() { s.forgive(ctx) })

	err := s.acceptLoop(ctx, work, l, &wait)
	if ctx.Err() != nil {
		err = nil
	}
	s.drain(stop, &wait)
	return err
}

func (s *Server) acceptLoop(ctx, work context.Context, l net.Listener, wait *sync.WaitGroup) error {
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if conn != nil {
				conn.Close()
			}
			return err
		}
		if err != nil {
			// Out of descriptors, most likely: those in use come back.
			pause = min(max(2*pause, acceptPauseMin), acceptPauseMax)
			s.cfg.Log.Error("connection not accepted", "err", err, "retry_ms", pause.Milliseconds())
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		s.stats.Connections.Add(1)
		host := hostOf(conn)
		if s.heldBack(host) {
			dismiss(conn)
			continue
		}
		s.enterLobby(conn, host) // here, so that the lobby's order is that of arrival
		wait.Add(1)
		// Ends with its connection, at the latest when work ends.
		go func() {
			defer wait.Done()
			s.serveConn(work, conn, host)
		}()
	}
}

// drainIdle is how long an association may be idle while the server drains.
func (s *Server) drainIdle() time.Duration { return min(drainIdleMax, s.cfg.Grace) }

// drain lets what runs finish and returns when everything has ended.
func (s *Server) drain(stop context.CancelFunc, wait *sync.WaitGroup) {
	s.mu.Lock()
	s.draining++
	all := make([]*Session, 0, len(s.sessions))
	for one := range s.sessions {
		all = append(all, one)
	}
	s.clearLobby()
	s.mu.Unlock()
	for _, one := range all {
		one.drain()
	}
	grace := time.AfterFunc(s.cfg.Grace, stop)
	defer grace.Stop()
	wait.Wait()
	s.mu.Lock()
	s.draining--
	s.mu.Unlock()
}

// serveConn runs one connection, which is in the lobby, to its end.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, host string) {
	g := &gate{s: s, conn: conn, host: host, peer: peer{host: host}}
	assoc, err := dul.Accept(ctx, conn, dul.AcceptorConfig{Negotiate: g.negotiate, Seen: g.seen, MaxPDU: s.cfg.MaxPDU, Timers: s.cfg.Timers, Log: s.cfg.Log})
	s.leaveLobby(conn)
	if err != nil {
		g.leave()
		g.ended(err)
		g.notOpened(err)
		return
	}
	s.stats.Accepted.Add(1)
	s.stats.Open.Add(1)
	session := &Session{ID: s.ids.Add(1), Value: g.decision.Value, conn: NewConn(assoc), server: s, peer: g.peer}
	s.addSession(session)
	err = session.run(ctx)
	if err != nil {
		session.noteBroken(err) // before the peer takes its time to close
	}
	assoc.Close()
	s.removeSession(session)
	g.leave()
	s.stats.Open.Add(-1)
	if err == nil {
		s.stats.Released.Add(1)
	} else {
		s.stats.Broken.Add(1)
		s.cfg.Log.Debug("association broken", "association", session.ID, "err", err)
	}
	g.ended(err)
}

func (s *Server) addSession(one *Session) {
	s.mu.Lock()
	s.sessions[one] = struct{}{}
	draining := s.draining > 0
	s.mu.Unlock()
	if draining {
		one.drain()
	}
}

func (s *Server) removeSession(one *Session) {
	s.mu.Lock()
	delete(s.sessions, one)
	s.mu.Unlock()
}

func hostOf(conn net.Conn) string {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.IP.String()
	}
	return fmt.Sprint(conn.RemoteAddr())
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining > 0
}
