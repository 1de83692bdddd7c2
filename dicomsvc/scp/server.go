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
	// AssociationsMax bounds the associations open at once; 0: the default of package dimse.
	AssociationsMax int
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
		Handler: s, MaxAssociations: cfg.AssociationsMax, Grace: cfg.Grace, Log: cfg.Log,
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
		return dimse.Decision{Rejection: dul.RejectCongestion()}
	case s.cfg.StrictCalled && r.CalledAE != s.cfg.AETitle:
		return dimse.Decision{Rejection: dul.RejectCalledAE()}
	case !s.cfg.Promiscuous && !s.cfg.Known(r.CallingAE):
		return dimse.Decision{Rejection: dul.RejectCallingAE()}
	}
	answer, relational := negotiate(r)
	return dimse.Decision{Acceptance: answer, Value: &caller{
		principal:  dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: r.CallingAE},
		title:      r.CallingAE,
		relational: relational,
	}}
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
