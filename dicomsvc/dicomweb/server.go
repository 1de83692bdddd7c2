package dicomweb

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
	"osteon/dicomsvc/refusal"
)

// Config is what a Server is made of.
type Config struct {
	// Archive is what is served. Required.
	Archive *dicomsvc.Archive
	// Prefix is the path under which the handler is mounted, "/dicom-web" by default. Requests come with it.
	Prefix string
	// PublicRoot is the absolute URL of Prefix as clients see it, for example
	// "https://pacs.example.org/dicom-web". Empty: what proxies and requests say is used.
	PublicRoot string
	// Tokens are bearer tokens that are let in, and Registered those of a registry, asked for at each request. With
	// neither and without Authenticate only requests over a loopback address are let in.
	Tokens     []Token
	Registered func() []Token
	// Authenticate asks for a token over a loopback address, too; else it is asked for there only where Tokens are. A token
	// that is shown is always looked at.
	Authenticate bool
	// Origins are the web origins whose pages may read answers (CORS); "*" is any. Empty: none.
	Origins []string
	// EmptyAs204 makes a search without results answer 204 without a body, as editions before 2019 said,
	// in place of 200 and an empty list.
	EmptyAs204 bool

	// Refusals takes whatever is refused or fails. Nil: none is kept.
	Refusals *refusal.Log
	// Now tells the time, for the pace of slow clients and the log. Required.
	Now func() time.Time
	// Rand is a source of unpredictable bytes for multipart boundaries. Required.
	Rand io.Reader
	// Log takes one debug line per request, without UIDs. Nil: none.
	Log *slog.Logger
}

// Validate returns all faults of the configuration at once.
func (c Config) Validate() error {
	var faults []error
	if c.Archive == nil {
		faults = append(faults, errors.New("dicomweb: Archive is required"))
	}
	return errors.Join(append(faults, c.check()...)...)
}

func (c Config) check() (faults []error) {
	if c.Now == nil || c.Rand == nil {
		faults = append(faults, errors.New("dicomweb: Now and Rand are required"))
	}
	if c.Prefix != "" && (!isPath(c.Prefix) || strings.HasSuffix(c.Prefix, "/")) {
		faults = append(faults, errors.New("dicomweb: Prefix must begin with a slash and not end with one"))
	}
	if c.PublicRoot != "" {
		u, err := url.Parse(c.PublicRoot)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			faults = append(faults, errors.New("dicomweb: PublicRoot must be an absolute http or https URL without query"))
		}
	}
	for i, token := range c.Tokens {
		if token.Name == "" {
			faults = append(faults, fmt.Errorf("dicomweb: token %d has no name", i))
		}
	}
	return faults
}

// archive is what the handlers need of dicomsvc.Archive; tests put faults behind it.
type archive interface {
	Ready() error
	Authorize(ctx context.Context, p dicomsvc.Principal, act dicomsvc.Action) error
	Put(ctx context.Context, req dicomsvc.PutRequest) (dicomsvc.PutResult, error)
	Search(ctx context.Context, p dicomsvc.Principal, q *dicomsvc.Query) iter.Seq2[*dicomsvc.Match, error]
	Instances(ctx context.Context, p dicomsvc.Principal, sel dicomsvc.Selection) iter.Seq2[*dicomsvc.Instance, error]
	Open(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (object, error)
	Headers(ctx context.Context, p dicomsvc.Principal, sel dicomsvc.Selection) iter.Seq2[*dicomsvc.Described, error]
	Frames(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (*dicom.FrameTable, error)
}

// object is an open dicomsvc.Object.
type object interface {
	io.WriterTo
	io.Closer
	Size() int64
	Section(off, n int64) io.Reader
}

// opened makes Open of a dicomsvc.Archive return the interface.
type opened struct{ *dicomsvc.Archive }

func (o opened) Open(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (object, error) {
	obj, err := o.Archive.Open(ctx, p, in)
	if err != nil {
		return nil, err
	}
	return obj, nil
}

// Server answers the DICOMweb requests of PS3.18 §10. It is an http.Handler, safe for concurrent use.
type Server struct {
	cfg     Config
	archive archive
	log     *slog.Logger
	panics  atomic.Int64
	zippers sync.Pool // of *gzip.Writer
	buffers sync.Pool // of *[]byte, copyBytes long
	// assembling holds a token for each request that holds bulk data in memory.
	assembling chan struct{}
	// painters holds a token for every frame being rendered.
	painters chan struct{}
}

// New returns a Server over cfg.Archive, or what Validate says of cfg.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return newServer(cfg, opened{cfg.Archive}), nil
}

func newServer(cfg Config, a archive) *Server {
	if cfg.Prefix == "" {
		cfg.Prefix = "/dicom-web"
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: cfg, archive: a, log: log, painters: make(chan struct{}, paintersMax), assembling: make(chan struct{}, assembliesMax),
		zippers: sync.Pool{New: func() any {
			z, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
			return z
		}},
		buffers: sync.Pool{New: func() any {
			b := make([]byte, copyBytes)
			return &b
		}},
	}
}

// request is one request on its way through the handlers.
type request struct {
	*http.Request
	target
	who    dicomsvc.Principal
	params []parameter
	accept acceptable
	root   string // absolute URL of the service, without a slash at the end
}

// selection names what the path names.
func (r *request) selection() dicomsvc.Selection {
	var sel dicomsvc.Selection
	for _, level := range []struct {
		to  *[]string
		uid string
	}{{&sel.StudyInstanceUIDs, r.study}, {&sel.SeriesInstanceUIDs, r.series}, {&sel.SOPInstanceUIDs, r.instance}} {
		if level.uid != "" {
			*level.to = []string{level.uid}
		}
	}
	return sel
}

// ServeHTTP answers one request. A failure after the first byte of an answer breaks the connection, so
// that a part is never taken for the whole.
func (s *Server) ServeHTTP(plain http.ResponseWriter, r *http.Request) {
	pace := &pacer{control: http.NewResponseController(plain), now: s.cfg.Now}
	defer pace.release()
	w := &pacedWriter{ResponseWriter: plain, pace: pace}
	if r.Body != nil && r.Body != http.NoBody {
		body := r.Body
		r = r.WithContext(r.Context()) // a copy: net/http looks at its own Body again, for 100 Continue
		r.Body = &pacedBody{body: body, pace: pace}
	}
	start := s.cfg.Now()
	defer s.guard(w, r)
	t, bad := s.serve(w, r)
	if bad != nil {
		bad.write(w, r, t.place())
		s.noteProblem(r, t, bad)
		if bad.cause != nil {
			s.log.Error("request failed", "route", t.route(), "err", bad.cause)
		}
	}
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request answered",
		slog.String("method", r.Method), slog.String("route", t.route()), slog.Int("status", w.status),
		slog.Int64("bytes", w.sent), slog.Int64("ms", s.cfg.Now().Sub(start).Milliseconds()))
}

// place says where a problem lies, without a UID.
func (t target) place() string {
	if t.resource == "" {
		return "the path"
	}
	return "the resource " + t.route()
}

// serve routes the request. A problem that it returns was not answered yet.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) (target, *problem) {
	h := w.Header()
	// Nothing that is served here is a page: no browser may sniff or run it (stored XSS).
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	s.cors(h, r)
	if len(r.URL.Path)+len(r.URL.RawQuery) > urlBytesMax {
		return target{}, newProblem(http.StatusRequestURITooLong, "the URL is too long", "split lists of UIDs over several requests")
	}
	below, found := strings.CutPrefix(r.URL.Path, s.cfg.Prefix)
	if !found || below != "" && below[0] != '/' {
		return target{}, noSuchResource()
	}
	if r.Method == http.MethodOptions {
		t, _ := parseTarget(below)
		return t, s.options(w, r, t)
	}
	who, bad := s.authenticate(r)
	if bad != nil {
		return target{}, bad
	}
	t, bad := parseTarget(below)
	if bad != nil {
		return t, bad
	}
	params, bad := parseQuery(r.URL.RawQuery)
	if bad != nil {
		return t, bad
	}
	if bad := s.authorize(r, who, t); bad != nil {
		return t, bad
	}
	h.Set("Cache-Control", "private, no-cache")
	h.Add("Vary", "Accept, Authorization")
	return t, s.dispatch(w, &request{
		Request: r, target: t, who: who, params: params,
		accept: acceptOf(r, valuesOf(params, "accept")), root: s.rootOf(r),
	})
}

func (s *Server) dispatch(w http.ResponseWriter, r *request) *problem {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		if r.resource == resStudies || r.resource == resStudy {
			return s.store(w, r)
		}
		fallthrough
	default:
		return newProblem(http.StatusMethodNotAllowed, "the method cannot be used on this resource",
			"use "+strings.Join(r.methods(), ", ")).with("Allow", strings.Join(r.methods(), ", "))
	}
	switch r.resource {
	case resRoot:
		return noSuchResource()
	case resStudies, resSeries, resInstances:
		return s.search(w, r)
	case resStudy, resOneSeries, resInstance:
		return s.retrieve(w, r)
	case resMetadata:
		return s.metadata(w, r)
	case resWADO:
		return s.wadoURI(w, r)
	case resFrames, resPixels:
		if r.instance == "" {
			return s.bulkAll(w, r)
		}
		return s.frames(w, r)
	case resRendered, resThumbnail:
		return s.rendered(w, r)
	default:
		if r.path == nil {
			return s.bulkAll(w, r)
		}
		return s.bulkdata(w, r)
	}
}

// failure turns an error of the archive into a problem. Its text is meant for whoever asked, save that of
// a failure inside, which the log gets.
func failure(err error) *problem {
	for _, kind := range []error{pixel.ErrUnsupportedSyntax, pixel.ErrMalformed, pixel.ErrLimit, pixel.ErrNoImage} {
		if errors.Is(err, kind) { // found only when frames were decoded
			return newProblem(http.StatusNotAcceptable, err.Error(), "ask for transfer-syntax=* to get what is stored")
		}
	}
	status := dicomsvc.HTTPStatus(err)
	p := newProblem(status, err.Error(), remedyFor(status))
	switch status {
	case http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		p.with("Retry-After", strconv.Itoa(retryAfterSeconds))
	case http.StatusInternalServerError:
		p.cause, p.what = err, "the request could not be answered"
		if errors.Is(err, dicomsvc.ErrCorrupt) {
			p.what = dicomsvc.ErrCorrupt.Error()
		}
	}
	return p
}

func remedyFor(status int) string {
	switch status {
	case http.StatusNotFound:
		return "search first, with /studies?StudyInstanceUID=..., to see what is stored"
	case http.StatusForbidden:
		return "ask the administrator for the right, or use another token"
	case http.StatusServiceUnavailable:
		return "try again in a few seconds, or ask another node of the ring"
	case http.StatusInsufficientStorage:
		return "try another node, or have space added"
	case http.StatusRequestEntityTooLarge:
		return "split the request"
	case http.StatusInternalServerError:
		return "tell the administrator; the node's log says more"
	}
	return "correct the request"
}

func notFound() *problem {
	return newProblem(http.StatusNotFound, "nothing is stored under the UIDs in the path", remedyFor(http.StatusNotFound))
}

// abort breaks the connection: the answer has begun and cannot be completed.
func (s *Server) abort(r *request, err error) {
	level := slog.LevelError
	if errors.Is(err, context.Canceled) || errors.Is(err, errPeer) {
		level = slog.LevelDebug
	}
	s.log.Log(r.Context(), level, "answer broken off", "route", r.route(), "err", err)
	panic(http.ErrAbortHandler)
}

// errPeer marks a write to the client that failed: its connection is gone.
var errPeer = errors.New("the client is gone")

// toClient marks the errors of a writer with errPeer.
type toClient struct{ w io.Writer }

func (c toClient) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", errPeer, err)
	}
	return n, err
}

// boundary returns a multipart boundary that no object holds: 128 random bits.
func (s *Server) boundary() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(s.cfg.Rand, b[:]); err != nil {
		return "", fmt.Errorf("draw a boundary: %w", err)
	}
	return "osteon-" + hex.EncodeToString(b[:]), nil
}
