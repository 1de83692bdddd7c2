package node

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
	"osteon/erasure/place"
	"osteon/raft/ring"
)

// The admin API is JSON over HTTP on DIR/admin.sock (0600): whoever may open the socket is an admin.

const (
	tokenValidityMax = 30 * 24 * time.Hour
	studiesMax       = 10000
	// quorumPatience is how long a call that changes something waits for the ring to answer: longer than
	// elections take, shorter than an admin at a terminal does.
	quorumPatience = 5 * time.Second
)

func (n *Node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(func(r *http.Request) (any, error) { return n.Status(r.Context()) }))
	mux.HandleFunc("GET /v1/studies", answer(n.adminStudies))
	mux.HandleFunc("GET /v1/studies/{uid}", answer(func(r *http.Request) (any, error) {
		return n.Study(r.Context(), r.PathValue("uid"))
	}))
	mux.HandleFunc("POST /v1/studies/{uid}/verify", answer(func(r *http.Request) (any, error) {
		return n.Verify(r.Context(), n.admin(), r.PathValue("uid"))
	}))
	mux.HandleFunc("POST /v1/studies/{uid}/seal", answer(func(r *http.Request) (any, error) {
		return struct{}{}, n.adminSeal(r)
	}))
	mux.HandleFunc("GET /v1/studies/{uid}/export", n.adminExport)
	mux.HandleFunc("POST /v1/tokens", answer(n.adminToken))
	mux.HandleFunc("POST /v1/snapshot", answer(func(r *http.Request) (any, error) {
		return struct{}{}, n.ring.Snapshot(r.Context())
	}))
	mux.HandleFunc("GET /v1/state", answer(func(r *http.Request) (any, error) { return n.state(r.Context()) }))
	n.aeRoutes(mux)
	n.bearerRoutes(mux)
	n.healthRoutes(mux)
	debugRoutes(mux)
	return mux
}

// StateReport is the node's whole catalog in one number.
type StateReport struct {
	Applied uint64 `json:"applied"`
	Hash    string `json:"sha256"`
}

// state reads the whole catalog.
func (n *Node) state(ctx context.Context) (StateReport, error) {
	hash, index, err := n.cat.StateHash(ctx)
	return StateReport{Applied: index, Hash: fmt.Sprintf("%x", hash)}, err
}

// awaitQuorum returns at once when the ring can decide something, else ring.ErrNoQuorum after a while.
func (n *Node) awaitQuorum(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quorumPatience)
	defer cancel()
	if _, err := n.ring.ReadIndex(ctx); err != nil {
		return fmt.Errorf("the ring cannot decide anything now: %w", err)
	}
	return nil
}

func (n *Node) adminSeal(r *http.Request) error {
	if _, err := n.archive.Study(r.Context(), r.PathValue("uid")); err != nil {
		return err
	}
	if err := n.awaitQuorum(r.Context()); err != nil {
		return err
	}
	return n.archive.SealNow(r.Context(), r.PathValue("uid"))
}

func (n *Node) admin() dicomsvc.Principal {
	return dicomsvc.Principal{Kind: dicomsvc.PrincipalPerson, Name: "admin socket", Node: n.id.Node}
}

// adminError is what a failed call answers with.
type adminError struct {
	Code  string `json:"code"`
	Error string `json:"error"`
}

var (
	// ErrNotFound, ErrRing and ErrUsage tell the command line which exit code to take.
	ErrNotFound = errors.New("not found")
	ErrRing     = errors.New("ring unavailable")
	ErrUsage    = errors.New("wrong request")
)

func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		value, err := f(r)
		if err != nil {
			writeAdminError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(value) // a client that went away is nobody's fault
	}
}

func writeAdminError(w http.ResponseWriter, err error) {
	code, status := "failed", http.StatusInternalServerError
	switch {
	case errors.Is(err, dicomsvc.ErrNotFound), errors.Is(err, ErrNotFound):
		code, status = "not-found", http.StatusNotFound
	case errors.Is(err, ErrUsage):
		code, status = "usage", http.StatusBadRequest
	case errors.Is(err, ring.ErrNoQuorum), errors.Is(err, ring.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
		code, status = "ring", http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(adminError{Code: code, Error: err.Error()})
}

// StudyLine is one study in `study list`. It names no patient.
type StudyLine struct {
	Study     string `json:"study"`
	Date      string `json:"date"`
	Modality  string `json:"modalities"`
	Series    int    `json:"series"`
	Instances int    `json:"instances"`
	State     string `json:"state"`
}

func (n *Node) adminStudies(r *http.Request) (any, error) {
	limit := 100
	if text := r.URL.Query().Get("limit"); text != "" {
		v, err := strconv.Atoi(text)
		if err != nil || v < 1 || v > studiesMax {
			return nil, fmt.Errorf("%w: limit %.20q: want 1 to %d", ErrUsage, text, studiesMax)
		}
		limit = v
	}
	q := &dicomsvc.Query{Level: dicomsvc.LevelStudy, Limit: limit}
	lines := []StudyLine{}
	for m, err := range n.archive.Search(r.Context(), n.admin(), q) {
		if err != nil {
			return nil, err
		}
		line := StudyLine{Study: m.StudyInstanceUID, Date: m.Attributes.String(dicom.StudyDate), State: "sealed"}
		study, err := n.archive.Study(r.Context(), m.StudyInstanceUID)
		if err != nil {
			return nil, err
		}
		line.Series, line.Instances = study.Series, study.Instances
		for i, modality := range study.Modalities {
			if i > 0 {
				line.Modality += "/"
			}
			line.Modality += modality
		}
		switch {
		case study.Spooled > 0:
			line.State = "spooled"
		case study.Unsealed > 0:
			line.State = "journalled"
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func (n *Node) adminToken(r *http.Request) (any, error) {
	var req struct {
		Site  place.SiteID `json:"site"`
		Valid Duration     `json:"valid"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&req); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if req.Site != "" {
		if err := checkName(string(req.Site)); err != nil {
			return nil, fmt.Errorf("site: %w", err)
		}
	}
	valid := time.Duration(req.Valid)
	if valid <= 0 || valid > tokenValidityMax {
		return nil, fmt.Errorf("%w: validity %s: want up to %s", ErrUsage, valid, tokenValidityMax)
	}
	if err := n.awaitQuorum(r.Context()); err != nil {
		return nil, err
	}
	t, err := n.CreateToken(r.Context(), req.Site, valid)
	if err != nil {
		return nil, err
	}
	return TokenResult{Token: t.String(), Expires: t.Expires, Site: t.Site}, nil
}

// TokenResult is what `token create` prints.
type TokenResult struct {
	Token   string       `json:"token"`
	Expires time.Time    `json:"expires"`
	Site    place.SiteID `json:"site,omitempty"`
}

// adminExport answers with a tar of Part 10 files, in order of series and instance.
func (n *Node) adminExport(w http.ResponseWriter, r *http.Request) {
	sel := dicomsvc.Selection{StudyInstanceUIDs: []string{r.PathValue("uid")}}
	sent := &started{ResponseWriter: w}
	out := tar.NewWriter(sent)
	count := 0
	for in, err := range n.archive.Instances(r.Context(), n.admin(), sel) {
		if err == nil {
			count++
			err = n.exportInstance(r.Context(), out, in, count)
		}
		if err != nil {
			if !sent.yes {
				writeAdminError(w, err)
				return
			}
			n.env.Log.Error("export broke off", "err", err)
			panic(http.ErrAbortHandler) // a part must not pass for the whole
		}
	}
	if count == 0 {
		writeAdminError(w, dicomsvc.ErrNotFound)
		return
	}
	if err := out.Close(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// started remembers whether anything of the answer has left.
type started struct {
	http.ResponseWriter
	yes bool
}

func (s *started) Write(p []byte) (int, error) {
	s.yes = true
	return s.ResponseWriter.Write(p)
}

func (n *Node) exportInstance(ctx context.Context, out *tar.Writer, in *dicomsvc.Instance, number int) error {
	o, err := n.archive.Open(ctx, n.admin(), in)
	if err != nil {
		return err
	}
	defer o.Close()
	meta := dicom.AppendMeta(nil, in.SOPClassUID, in.SOPInstanceUID, in.TransferSyntaxUID, dul.ImplementationClassUID, dul.ImplementationVersion, "")
	header := &tar.Header{
		Name: fmt.Sprintf("%08d.dcm", number), Mode: 0o600, Size: int64(len(meta)) + in.Size, Format: tar.FormatPAX,
	}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if _, err := out.Write(meta); err != nil {
		return err
	}
	_, err = o.WriteTo(out)
	return err
}

// Admin is a client of one node's admin socket. It is safe for concurrent use.
type Admin struct{ http *http.Client }

// Dial returns a client of the node that serves dir. Nothing is connected yet.
func Dial(dir string) *Admin {
	return &Admin{http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // nobody closes an Admin: a connection left idle would hold a descriptor here and at the node
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", AdminSocket(dir))
			if err != nil {
				return nil, fmt.Errorf("%w: no node answers on %s (is osteon serve running there?): %w", ErrRing, AdminSocket(dir), err)
			}
			return conn, nil
		},
	}}}
}

func (a *Admin) call(ctx context.Context, method, path string, body, into any) error {
	response, err := a.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read the node's answer: %w", err)
	}
	return nil
}

func (a *Admin) open(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://node"+path, payload)
	if err != nil {
		return nil, err
	}
	response, err := a.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var failure adminError
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&failure); err != nil {
		return nil, fmt.Errorf("the node answered %s", response.Status)
	}
	switch failure.Code {
	case "not-found":
		return nil, fmt.Errorf("%w: %s", ErrNotFound, failure.Error)
	case "usage":
		return nil, fmt.Errorf("%w: %s", ErrUsage, failure.Error)
	case "ring":
		return nil, fmt.Errorf("%w: %s", ErrRing, failure.Error)
	default:
		return nil, errors.New(failure.Error)
	}
}

// Status returns the node's status.
func (a *Admin) Status(ctx context.Context) (s Status, err error) {
	return s, a.call(ctx, "GET", "/v1/status", nil, &s)
}

// Studies lists up to limit studies.
func (a *Admin) Studies(ctx context.Context, limit int) (list []StudyLine, err error) {
	return list, a.call(ctx, "GET", "/v1/studies?limit="+strconv.Itoa(limit), nil, &list)
}

// Study reports one study. Errors: ErrNotFound.
func (a *Admin) Study(ctx context.Context, uid string) (r StudyReport, err error) {
	return r, a.call(ctx, "GET", "/v1/studies/"+url.PathEscape(uid), nil, &r)
}

// Verify reads every instance of a study and compares digests. Errors: ErrNotFound.
func (a *Admin) Verify(ctx context.Context, uid string) (r VerifyReport, err error) {
	return r, a.call(ctx, "POST", "/v1/studies/"+url.PathEscape(uid)+"/verify", nil, &r)
}

// Seal seals a study now instead of when it has been quiet.
func (a *Admin) Seal(ctx context.Context, uid string) error {
	var none struct{}
	return a.call(ctx, "POST", "/v1/studies/"+url.PathEscape(uid)+"/seal", nil, &none)
}

// CreateToken issues a join token for site, or for any when empty.
func (a *Admin) CreateToken(ctx context.Context, site place.SiteID, valid time.Duration) (t TokenResult, err error) {
	return t, a.call(ctx, "POST", "/v1/tokens", map[string]any{"site": site, "valid": Duration(valid)}, &t)
}

// Snapshot makes the node take a Raft snapshot now, as before a backup.
func (a *Admin) Snapshot(ctx context.Context) error {
	var none struct{}
	return a.call(ctx, "POST", "/v1/snapshot", nil, &none)
}

// State returns a hash over the node's catalog and the index it belongs to: the same at every node of a ring at the same
// index. The node reads its whole catalog for it.
func (a *Admin) State(ctx context.Context) (s StateReport, err error) {
	return s, a.call(ctx, "GET", "/v1/state", nil, &s)
}

// Export returns a tar stream of a study's Part 10 files; the caller closes it. It breaks off with an
// error, never at a clean end, when it is not whole. Errors: ErrNotFound.
func (a *Admin) Export(ctx context.Context, uid string) (io.ReadCloser, error) {
	response, err := a.open(ctx, "GET", "/v1/studies/"+url.PathEscape(uid)+"/export", nil)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}
