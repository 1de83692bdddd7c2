package scp

import (
	"context"
	"errors"
	"log/slog"
	"net"
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
	// StrictCalled rejects associations that call another title.
	StrictCalled bool
	// Known reports whether a calling title is registered; nil: none is.
	Known func(title string) bool
	// Promiscuous lets callers in that are not Known.
	Promiscuous bool
	// Destination resolves a C-MOVE destination to host:port; nil: none is known.
	Destination func(title string) (address string, ok bool)
	// Dial connects to a C-MOVE destination.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Relational answers queries that lack the unique keys of upper levels although the caller did not
	// negotiate it (PS3.4 §C.5.1); some callers expect that.
	Relational bool
	// AssociationsMax bounds the associations open at once, PerAEMax those of one calling title, PerHostMax those
	// of one address whose callers are not Known; 0: the defaults of package dimse.
	AssociationsMax, PerAEMax, PerHostMax int
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
	if cfg.Known == nil {
		cfg.Known = func(string) bool { return false }
	}
	if cfg.Destination == nil {
		cfg.Destination = func(string) (string, bool) { return "", false }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, waits: defaultWaits(), turns: map[string]chan struct{}{}}
	srv, err := dimse.NewServer(dimse.ServerConfig{
		Handler: s, MaxAssociations: cfg.AssociationsMax, MaxPerAE: cfg.PerAEMax, MaxPerHost: cfg.PerHostMax,
		Short: cfg.Short, Grace: cfg.Grace, Refusals: cfg.Refusals, Log: cfg.Log,
		Known: func(r *dul.Request) bool { return cfg.Known(r.CallingAE) },
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
	switch {
	case errors.Is(s.cfg.Archive.Ready(), dicomsvc.ErrDraining): // a full disk refuses objects, not reads
		return dimse.Decision{Rejection: dul.RejectCongestion(), Advice: dimse.Advice{
			Why: dicomsvc.ErrDraining.Error(), Do: dicomsvc.Remedy(dicomsvc.ErrDraining)}}
	case s.cfg.StrictCalled && r.CalledAE != s.cfg.AETitle:
		return dimse.Decision{Rejection: dul.RejectCalledAE(), Advice: dimse.Advice{
			Why: "the called title is not this node's",
			Do:  "let the peer call " + s.cfg.AETitle + ", or set dimse.strict_called: false in the configuration"}}
	case !s.cfg.Promiscuous && !s.cfg.Known(r.CallingAE):
		return dimse.Decision{Rejection: dul.RejectCallingAE(), Advice: dimse.Advice{
			Why: "the calling title is not configured",
			Do:  "add the AE to aes: in the configuration, or set promiscuous where only this machine can call"}}
	}
	answer, relational := negotiate(r)
	s.noteContexts(r, answer)
	return dimse.Decision{Acceptance: answer, Value: &caller{
		principal:  dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: r.CallingAE},
		title:      r.CallingAE,
		relational: relational,
	}}
}

// noteContexts notes an association of which no context was accepted: it opens and cannot do anything
// (PS3.8 §9.3.3.2).
func (s *Server) noteContexts(r *dul.Request, answer *dul.Acceptance) {
	why := dimse.Advice{Why: "none of the proposed SOP classes is offered", Do: "see the conformance statement for what is offered"}
	code, words := "3", "abstract-syntax-not-supported (provider rejection)"
	for _, c := range answer.Contexts {
		switch c.Result {
		case dul.ContextAccepted:
			return
		case dul.ContextTransferSyntaxes:
			code, words = "4", "transfer-syntaxes-not-supported (provider rejection)"
			why = dimse.Advice{Why: "none of the proposed transfer syntaxes is taken", Do: "let the peer propose Explicit or Implicit VR Little Endian"}
		}
	}
	host := ""
	if r.RemoteAddr != nil {
		host, _, _ = net.SplitHostPort(r.RemoteAddr.String())
	}
	s.cfg.Refusals.Note(refusal.Event{What: "presentation contexts", Calling: r.CallingAE, Called: r.CalledAE, From: host,
		Code: code, Words: words, Why: why.Why, Do: why.Do})
}

// caller is what a session remembers of its peer.
type caller struct {
	principal  dicomsvc.Principal
	title      string
	relational map[string]bool // SOP classes for which relational queries were agreed
}

func callerOf(session *dimse.Session) *caller {
	c, _ := session.Value.(*caller)
	return c
}
