package dicomweb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/refusal"
)

// said is a log that is read while it is written.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func sampleFile(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../../testdata/samples/ct-small.dcm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const related = `multipart/related; type="application/dicom"; boundary=XX`

// TestRefusals: every refusal says in its body what, where and what to do, leaves one line in the log, and an
// event with the same code, why and do for `osteon ae log`; none repeats a value of the request.
func TestRefusals(t *testing.T) {
	sample := sampleFile(t)
	const canary = "CANARY^DOE"
	type row struct {
		name    string
		tokens  []Token
		archive func(*fakeArchive)
		method  string
		path    string
		body    []byte
		header  []string

		status int
		what   string // service of the event
		code   string // of the event; empty: the status
		why    string // a piece of it
	}
	store := func(err error) func(*fakeArchive) {
		return func(a *fakeArchive) { a.put = func(int) error { return fmt.Errorf("put: %w", err) } }
	}
	put := func(name string, err error, status int, code string) row {
		return row{name: name, archive: store(err), method: "POST", path: "/studies", body: multipartBody("XX", sample),
			header: []string{"Content-Type", related}, status: status, what: "STOW-RS", code: code, why: err.Error()}
	}
	rows := []row{
		{name: "no token", tokens: []Token{NewToken("viewer", "0123456789abcdef")}, path: "/studies",
			status: 401, what: "DICOMweb", why: "a bearer token is required"},
		{name: "another token", tokens: []Token{NewToken("viewer", "0123456789abcdef")}, path: "/studies",
			header: []string{"Authorization", "Bearer nonsense"}, status: 401, what: "DICOMweb", why: "the bearer token is not known"},
		{name: "another host", path: "/studies", header: []string{"Host", "evil.example"},
			status: 403, what: "DICOMweb", why: "the Host field does not name this machine"},
		{name: "a method that is not offered", method: "DELETE", path: "/studies/1.2.3",
			status: 405, what: "WADO-RS", why: "the method cannot be used"},
		{name: "a URL that is too long", path: "/studies?StudyInstanceUID=" + strings.Repeat("1", urlBytesMax),
			status: 414, what: "DICOMweb", why: "the URL is too long"},
		{name: "a UID that is none", path: "/studies/..%2F..%2Fetc", status: 400, what: "DICOMweb", why: "is not a UID"},
		{name: "an attribute that is none", path: "/studies?" + canary + "=1", status: 400, what: "QIDO-RS", why: "neither an attribute nor a parameter"},
		{name: "a limit that is no number", path: "/studies?limit=many", status: 400, what: "QIDO-RS", why: "is not a number"},
		{name: "a media type that is not sent", path: "/studies", header: []string{"Accept", "image/png"}, status: 406, what: "QIDO-RS", why: "media types"},
		{name: "a query that fails", archive: func(a *fakeArchive) {
			a.search = func(int) error { return fmt.Errorf("catalog: %w", dicomsvc.ErrResources) }
		}, path: "/studies", status: 503, what: "QIDO-RS", why: "out of resources"},
		{name: "a body of another type", method: "POST", path: "/studies", body: []byte(canary), header: []string{"Content-Type", "text/plain"},
			status: 415, what: "STOW-RS", why: "objects are stored from application/dicom"},
		{name: "a body without an object", method: "POST", path: "/studies", body: []byte("--XX--\r\n"), header: []string{"Content-Type", related},
			status: 400, what: "STOW-RS", why: "the request holds no object"},
		{name: "a compressed body", method: "POST", path: "/studies", header: []string{"Content-Type", related, "Content-Encoding", "gzip"},
			status: 415, what: "STOW-RS", why: "a compressed request body"},
		{name: "draining", archive: func(a *fakeArchive) { a.ready = dicomsvc.ErrDraining }, method: "POST", path: "/studies",
			body: multipartBody("XX", sample), header: []string{"Content-Type", related}, status: 503, what: "STOW-RS", why: "shutting down"},
		{name: "junk for an object", method: "POST", path: "/studies", body: multipartBody("XX", []byte(canary)),
			header: []string{"Content-Type", related}, status: 400, what: "STOW-RS", code: "C000", why: "the object cannot be understood"},
		{name: "metadata without their bulk data", method: "POST", path: "/studies", body: []byte("[" + imageJSON("1.1", bulk("7FE00010", "OW", canary)) + "]"),
			header: []string{"Content-Type", mediaDICOMJSON}, status: 400, what: "STOW-RS", code: "C000", why: "the object cannot be understood"},
		{name: "de-identification", path: "/wado?requestType=WADO&studyUID=1.2&seriesUID=1.2&objectUID=1.2&anonymize=" + canary, status: 400, what: "WADO-URI", why: "not de-identified"},
		put("no space", dicomsvc.ErrFull, 507, "A700"),
		put("no resources", dicomsvc.ErrResources, 503, "A700"),
		put("no partner", dicomsvc.ErrUnavailable, 503, "A700"),
		put("not allowed", dicomsvc.ErrDenied, 403, "0124"),
		put("another study", dicomsvc.ErrMismatch, 409, "A900"),
		put("beyond a limit", dicomsvc.ErrLimit, 400, "C000"),
		put("set aside", dicomsvc.ErrPoison, 409, "C0F0"),
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			var lines said
			log := refusal.NewLog(refusal.Config{Now: time.Now, Log: slog.New(slog.NewTextHandler(&lines, nil))})
			s := newService(t, func(c *Config, a *fakeArchive) {
				c.Refusals, c.Tokens = log, tt.tokens
				_, syntax, body, _ := dicom.ReadPart10(bytes.NewReader(sample))
				a.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: syntax, Body: body})
				if tt.archive != nil {
					tt.archive(a)
				}
			})
			if tt.method == "" {
				tt.method = "GET"
			}
			var body io.Reader
			if tt.body != nil {
				body = bytes.NewReader(tt.body)
			}
			r := s.do(t, tt.method, tt.path, body, tt.header...)
			if r.StatusCode != tt.status {
				t.Fatalf("status %d, want %d: %s", r.StatusCode, tt.status, clip(r.body))
			}
			if tt.code == "" {
				tt.code = fmt.Sprint(tt.status)
				checkProblem(t, r)
			} else if reason := failureReason(t, r); reason != tt.code {
				t.Errorf("Failure Reason %s, want %s", reason, tt.code)
			}
			var found []refusal.Event
			for _, e := range log.Events(time.Time{}, "") {
				if e.What == tt.what && e.Code == tt.code && strings.Contains(e.Why, tt.why) && e.Do != "" && e.Words != "" && e.From == "127.0.0.1" {
					found = append(found, e)
				}
				if strings.Contains(fmt.Sprint(e), canary) {
					t.Errorf("the event repeats the request: %+v", e)
				}
			}
			if len(found) != 1 {
				t.Errorf("want one event of %s with code %s, got %+v", tt.what, tt.code, log.Events(time.Time{}, ""))
			}
			if text := lines.String(); !strings.Contains(text, "code="+tt.code) || !strings.Contains(text, "do=") || strings.Contains(text, canary) {
				t.Errorf("log: %s", text)
			}
		})
	}
}

func checkProblem(t *testing.T, r *response) {
	t.Helper()
	var p struct{ Detail, Where, Remedy string }
	if err := json.Unmarshal(r.body, &p); err != nil || p.Detail == "" || p.Where == "" || p.Remedy == "" {
		t.Errorf("body does not say what, where and what to do: %s", clip(r.body))
	}
}

// failureReason is the Failure Reason (0008,1197) of the one object of a store request.
func failureReason(t *testing.T, r *response) string {
	t.Helper()
	for _, sequence := range []string{"00081198", "0008119A"} {
		for _, item := range r.object(t).items(t, sequence) {
			var n int
			fmt.Sscan(item.first("00081197"), &n)
			return fmt.Sprintf("%04X", n)
		}
	}
	t.Errorf("no failed object in %s", clip(r.body))
	return ""
}

// F56: a panic in a handler costs its request, is counted and noted, and is logged by its place alone.
func TestF56PanicCostsOneRequest(t *testing.T) {
	const secret = "CANARY^DOE"
	var lines said
	log := refusal.NewLog(refusal.Config{Now: time.Now})
	var server *Server
	s := newService(t, func(c *Config, a *fakeArchive) {
		c.Refusals, c.Log = log, slog.New(slog.NewTextHandler(&lines, nil))
		a.put = func(n int) error {
			if n == 0 {
				panic("cannot decode " + secret)
			}
			return nil
		}
	})
	server = s.Config.Handler.(*Server)
	sample := sampleFile(t)
	send := func() *response {
		return s.do(t, http.MethodPost, "/studies", bytes.NewReader(multipartBody("XX", sample)), "Content-Type", related)
	}
	r := send()
	if r.StatusCode != 500 || strings.Contains(string(r.body), secret) {
		t.Errorf("status %d: %s", r.StatusCode, clip(r.body))
	}
	checkProblem(t, r)
	if r := send(); r.StatusCode != 200 {
		t.Errorf("the next request: status %d: %s", r.StatusCode, clip(r.body))
	}
	if n := server.Panics(); n != 1 {
		t.Errorf("%d panics counted", n)
	}
	if text := lines.String(); strings.Contains(text, secret) || !strings.Contains(text, "TestF56PanicCostsOneRequest") {
		t.Errorf("log: want the place and no text of the panic: %s", text)
	}
	if e := log.Events(time.Time{}, ""); len(e) != 1 || e[0].Code != "500" {
		t.Errorf("events %+v", e)
	}
}
