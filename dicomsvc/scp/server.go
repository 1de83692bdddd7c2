package scp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

// Config is what a Server is made of. Archive, AETitle and Now are required.
type Config struct {
	Archive *dicomsvc.Archive
	// AETitle is this node's title: Retrieve AE Title in answers, calling title of C-MOVE.
	AETitle string
	// StrictCalled rejects associations that call another title, unless it is an alias that the caller may use.
	StrictCalled bool
	// LaxTitles compares called titles regardless of case.
	LaxTitles bool
	// Peer tells what is known of a calling title at an address, the zero address where there is none. It must be quick.
	// Nil: all are strangers.
	Peer func(title string, from netip.Addr) Peer
	// Promiscuous lets strangers in.
	Promiscuous bool
	// Settled reports whether Peer knows all that the ring does; while it does not, strangers are told to come again.
	// Nil: always.
	Settled func() bool
	// Destination resolves a C-MOVE destination to host:port, several in the order in which to try them, none where it
	// is not known; nil: none is known.
	Destination func(title string) []string
	// Dial connects to a C-MOVE destination.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Relational answers queries that lack the unique keys of upper levels although the caller did not
	// negotiate it (PS3.4 §C.5.1); some callers expect that.
	Relational bool
	// AssociationsMax bounds the associations open at once, PerAEMax those of one calling title, PerHostMax those
	// of one address whose callers are strangers; 0: the defaults of package dimse.
	AssociationsMax, PerAEMax, PerHostMax int
	// OperationsMax is the asynchronous operations window agreed to in each direction of an association (PS3.7
	// §D.3.3.3), 1 for none; 0: the default of package dimse.
	OperationsMax int
	// Refusals takes whatever is refused or fails; nil: none is kept.
	Refusals *refusal.Log
	// Short says that the process is short of file descriptors: new associations are told to come again. Nil: never.
	Short func() bool
	// Grace is how long open associations may go on once Serve is told to end; 0: the default of package
	// dimse.
	Grace time.Duration

	Now func() time.Time
	Log *slog.Logger
}

// Server serves the archive to DICOM peers. It is safe for concurrent use.
type Server struct {
	cfg   Config
	waits waits
	dimse *dimse.Server

	mu sync.Mutex

	turns map[string]chan struct{} // by destination: one place for each association that may be open
}

// New returns a server; it serves nothing before Serve.
func New(cfg Config) (*Server, error) {
	if cfg.Archive == nil || cfg.AETitle == "" || cfg.Now == nil {
		return nil, errors.New("scp: Archive, AETitle and Now are required")
	}
	if cfg.Peer == nil {
		cfg.Peer = func(string, netip.Addr) Peer { return Peer{} }
	}
	if cfg.Settled == nil {
		cfg.Settled = func() bool { return true }
	}
	if cfg.Destination == nil {
		cfg.Destination = func(string) []string { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, waits: defaultWaits(), turns: map[string]chan struct{}{}}
	srv, err := dimse.NewServer(dimse.ServerConfig{
		Handler: s, MaxAssociations: cfg.AssociationsMax, MaxPerAE: cfg.PerAEMax, MaxPerHost: cfg.PerHostMax,
		MaxOperations: cfg.OperationsMax,
		Short:         cfg.Short, Grace: cfg.Grace, Refusals: cfg.Refusals, Log: cfg.Log,
		Known: func(r *dul.Request) bool { return s.peer(r).Known },
	})
	if err != nil {
		return nil, err
	}
	s.dimse = srv
	return s, nil
}

// Serve accepts associations on l until ctx ends, then lets running operations finish and closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.dimse.Serve(ctx, l) }

// Stats returns the live counters of the DIMSE server.
func (s *Server) Stats() *dimse.Stats { return s.dimse.Stats() }

// Associate lets an association in or rejects it with the standard's triple (PS3.8 §9.3.4).
func (s *Server) Associate(_ context.Context, r *dul.Request) dimse.Decision {
	peer := s.peer(r)
	if refused := s.judge(r, peer); refused != nil {
		return *refused
	}
	principal := dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: r.CallingAE}
	answer, relational := negotiate(r)
	restrict(r, answer, s.permitted(principal))
	s.noteContexts(r, answer)
	return dimse.Decision{Acceptance: answer, Value: &caller{
		principal:  principal,
		title:      r.CallingAE,
		issuer:     peer.Issuer,
		relational: relational,
	}}
}

// noteContexts notes an association of which no context was accepted: it opens and cannot do anything
// (PS3.8 §9.3.3.2); and one of which a context was refused because the caller may not use the service.
func (s *Server) noteContexts(r *dul.Request, answer *dul.Acceptance) {
	why := dimse.Advice{Why: "none of the proposed SOP classes is offered", Do: "see the conformance statement for what is offered"}
	code, words, accepted := "3", "abstract-syntax-not-supported (provider rejection)", false
	for _, c := range answer.Contexts {
		switch c.Result {
		case dul.ContextAccepted:
			accepted = true
		case dul.ContextUserRejection:
			s.notePresentation(r, "1", "user-rejection", dimse.Advice{Why: "a service that this AE may not use was asked for",
				Do: "if it may, allow it: osteon ae add --replace with --allow"})
			return
		case dul.ContextTransferSyntaxes:
			code, words = "4", "transfer-syntaxes-not-supported (provider rejection)"
			why = dimse.Advice{Why: "none of the proposed transfer syntaxes is taken", Do: "let the peer propose Explicit or Implicit VR Little Endian"}
		}
	}
	if !accepted {
		s.notePresentation(r, code, words, why)
	}
}

func (s *Server) notePresentation(r *dul.Request, code, words string, why dimse.Advice) {
	s.cfg.Refusals.Note(refusal.Event{What: "presentation contexts", Calling: r.CallingAE, Called: r.CalledAE, From: hostOf(r.RemoteAddr),
		Code: code, Words: words, Why: why.Why, Do: why.Do})
}

// caller is what a session remembers of its peer.
type caller struct {
	principal  dicomsvc.Principal
	title      string
	issuer     string          // of patient IDs that name none
	relational map[string]bool // SOP classes for which relational queries were agreed
}

func callerOf(session *dimse.Session) *caller {
	c, _ := session.Value.(*caller)
	return c
}
