package scp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
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
	dimse *dimse.Server
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
	s := &Server{cfg: cfg}
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
	case s.cfg.Archive.Ready() != nil:
		return dimse.Decision{Rejection: dul.RejectLocalLimit()}
	case s.cfg.StrictCalled && r.CalledAE != s.cfg.AETitle:
		return dimse.Decision{Rejection: dul.RejectCalledAE()}
	case !s.cfg.Promiscuous && !s.cfg.Known(r.CallingAE):
		return dimse.Decision{Rejection: dul.RejectCallingAE()}
	}
	relational := map[string]bool{}
	answer := s.negotiate(r, relational)
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

// models are the query/retrieve SOP classes served here.
var models = []string{
	dimse.PatientRootFind, dimse.PatientRootMove, dimse.PatientRootGet,
	dimse.StudyRootFind, dimse.StudyRootMove, dimse.StudyRootGet,
}

// notStored are prefixes of abstract syntaxes that are services, not storage; whatever else is proposed is
// taken for a storage SOP class, private ones too (PS3.4 §B.1).
var notStored = []string{
	"1.2.840.10008.1.", // verification, storage commitment, directory, notification
	"1.2.840.10008.3.1.2.", "1.2.840.10008.5.1.1.4.", "1.2.840.10008.5.1.1.1", "1.2.840.10008.5.1.1.2",
	"1.2.840.10008.5.1.1.9", "1.2.840.10008.5.1.1.14", "1.2.840.10008.5.1.1.15", "1.2.840.10008.5.1.1.16",
	"1.2.840.10008.5.1.1.18", "1.2.840.10008.5.1.1.23", "1.2.840.10008.5.1.1.25", "1.2.840.10008.5.1.1.26",
	"1.2.840.10008.5.1.1.31", "1.2.840.10008.5.1.1.32", "1.2.840.10008.5.1.1.33", "1.2.840.10008.5.1.1.40",
	"1.2.840.10008.5.1.4.1.2.", "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.4.32", "1.2.840.10008.5.1.4.33",
	"1.2.840.10008.5.1.4.34.", "1.2.840.10008.5.1.4.37.", "1.2.840.10008.5.1.4.38.", "1.2.840.10008.5.1.4.39.",
	"1.2.840.10008.5.1.4.41", "1.2.840.10008.5.1.4.42", "1.2.840.10008.5.1.4.43.", "1.2.840.10008.5.1.4.44.",
	"1.2.840.10008.5.1.4.45.",
}

// mediaDirectory is the class of DICOMDIR files, which exist on media only (PS3.4 Annex I).
const mediaDirectory = "1.2.840.10008.1.3.10"

func isStorage(abstract string) bool {
	if abstract == mediaDirectory {
		return false
	}
	if name := dicom.SOPClassName(abstract); name != "" && strings.HasSuffix(name, "Storage") {
		return true
	}
	for _, prefix := range notStored {
		if abstract == strings.TrimSuffix(prefix, ".") || strings.HasPrefix(abstract, prefix) {
			return false
		}
	}
	return dicom.ValidUID(abstract)
}

// negotiate answers every proposed context (PS3.8 §9.3.3.2), the role selections (PS3.7 §D.3.3.4) and the
// extended negotiation of relational queries (PS3.4 §C.5.1).
func (s *Server) negotiate(r *dul.Request, relational map[string]bool) *dul.Acceptance {
	a := &dul.Acceptance{}
	for _, pc := range r.Contexts {
		a.Contexts = append(a.Contexts, answerContext(pc))
	}
	for _, role := range r.User.Roles {
		if isStorage(role.SOPClass) {
			a.Roles = append(a.Roles, role)
		}
	}
	for _, e := range r.User.Extended {
		if !slices.Contains(models, e.SOPClass) || len(e.Info) == 0 {
			continue
		}
		info := make([]byte, len(e.Info)) // what is not agreed to is answered 0
		info[0] = e.Info[0] & 1
		relational[e.SOPClass] = info[0] == 1
		a.Extended = append(a.Extended, dul.ExtendedNegotiation{SOPClass: e.SOPClass, Info: info})
	}
	return a
}

func answerContext(pc dul.ProposedContext) dul.ContextResult {
	res := dul.ContextResult{ID: pc.ID, Result: dul.ContextTransferSyntaxes}
	switch {
	case pc.AbstractSyntax == dimse.VerificationClass || slices.Contains(models, pc.AbstractSyntax):
		for _, syntax := range pc.TransferSyntaxes {
			if known, ok := dicom.LookupSyntax(syntax); ok && !known.Encapsulated {
				res.Result, res.TransferSyntax = dul.ContextAccepted, syntax
				break
			}
		}
	case isStorage(pc.AbstractSyntax):
		if syntax := preferred(pc.TransferSyntaxes); syntax != "" {
			res.Result, res.TransferSyntax = dul.ContextAccepted, syntax
		}
	default:
		res.Result = dul.ContextAbstractSyntax
	}
	return res
}

// preferred takes the sender's first choice, private ones too, but explicit before implicit VR where both
// are offered: only explicit VR keeps the types of private elements.
func preferred(proposed []string) string {
	for i, syntax := range proposed {
		switch {
		case !dicom.ValidUID(syntax):
		case syntax == dicom.ImplicitVRLittleEndian && slices.Contains(proposed[i:], dicom.ExplicitVRLittleEndian):
			return dicom.ExplicitVRLittleEndian
		default:
			return syntax
		}
	}
	return ""
}

// Echo answers C-ECHO (PS3.7 §9.1.5).
func (s *Server) Echo(context.Context, *dimse.EchoRequest) uint16 { return dimse.StatusSuccess }

// Store answers C-STORE (PS3.4 §B.2): success follows the archive's durable acknowledgement.
func (s *Server) Store(ctx context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
	if !isStorage(r.SOPClass) {
		return dimse.StoreResponse{Status: dimse.StatusClassNotSupported}
	}
	from := callerOf(r.Session)
	result, err := s.cfg.Archive.Put(ctx, dicomsvc.PutRequest{
		Principal: from.principal, SOPClassUID: r.SOPClass, SOPInstanceUID: r.SOPInstance,
		TransferSyntaxUID: r.Syntax, Body: r.Data, CallingAE: from.title,
	})
	if err != nil {
		s.cfg.Log.Warn("object refused", "session", r.Session.ID, "err", err)
		return dimse.StoreResponse{Status: dicomsvc.DIMSEStatus(err), ErrorComment: comment(err), OffendingElements: offending(err)}
	}
	response := dimse.StoreResponse{Status: dimse.StatusSuccess}
	if result.Outcome == dicomsvc.OutcomeFurtherVersion || result.Outcome == dicomsvc.OutcomeLimbo {
		response.Status, response.ErrorComment = dimse.StatusCoerced, result.Comment
	}
	return response
}

// Notify refuses the N- services, none of which is offered.
func (s *Server) Notify(context.Context, *dimse.NRequest) dimse.NResponse {
	return dimse.NResponse{Status: dimse.StatusClassNotSupported}
}

const commentMax = 64 // Error Comment (0000,0902) is an LO

// comment turns an error into an Error Comment. Of a text that is too long the last parts are kept: they
// name the element and the offset, the first ones what the status says already.
func comment(err error) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '\\' {
			return ' '
		}
		return r
	}, err.Error())
	for len(text) > commentMax {
		_, rest, more := strings.Cut(text, ": ")
		if !more {
			return text[:commentMax]
		}
		text = rest
	}
	return text
}

// offending names the element of a data set that made it unacceptable (PS3.4 §B.2.3).
func offending(err error) []dicom.Tag {
	var attribute *dicom.AttributeError
	var parse *dicom.ParseError
	switch {
	case errors.As(err, &attribute):
		return []dicom.Tag{attribute.Tag}
	case errors.As(err, &parse) && parse.Tag != 0:
		return []dicom.Tag{parse.Tag}
	}
	return nil
}
