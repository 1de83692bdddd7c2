package dicomweb

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

func inflate(b []byte) []byte {
	plain, _ := io.ReadAll(flate.NewReader(bytes.NewReader(b)))
	return plain
}

// response is a whole answer.
type response struct {
	*http.Response
	body []byte
}

// do sends a request; header holds names and values in turn.
func (s *service) do(t testing.TB, method, path string, body io.Reader, header ...string) *response {
	t.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = s.root + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	s.dial.Do(func() {
		s.transport = &http.Transport{DisableCompression: true}
		t.Cleanup(s.transport.CloseIdleConnections)
	})
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		b = nil
		resp.Header.Set("X-Broken-Off", err.Error())
	}
	return &response{Response: resp, body: b}
}

func (s *service) get(t testing.TB, path string, header ...string) *response {
	t.Helper()
	return s.do(t, http.MethodGet, path, nil, header...)
}

func (r *response) want(t testing.TB, status int) *response {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d\n%s", r.Request.Method, r.Request.URL, r.StatusCode, status, clip(r.body))
	}
	if got := r.Header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("%s: X-Content-Type-Options is %q", r.Request.URL, got)
	}
	if !strings.Contains(r.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%s: no Content-Security-Policy", r.Request.URL)
	}
	return r
}

func clip(b []byte) string {
	if len(b) > 2000 {
		b = b[:2000]
	}
	return string(b)
}

// attributes is a DICOM JSON object.
type attributes map[string]struct {
	VR          string `json:"vr"`
	Value       []any  `json:"Value"`
	BulkDataURI string `json:"BulkDataURI"`
}

// first returns the first value of an attribute as text.
func (a attributes) first(tag string) string {
	if len(a[tag].Value) == 0 {
		return ""
	}
	switch v := a[tag].Value[0].(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case map[string]any:
		s, _ := v["Alphabetic"].(string)
		return s
	}
	return ""
}

// items returns the items of a sequence.
func (a attributes) items(t testing.TB, tag string) []attributes {
	t.Helper()
	b, _ := json.Marshal(a[tag].Value)
	var list []attributes
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatalf("sequence %s: %v", tag, err)
	}
	return list
}

func (r *response) list(t testing.TB) []attributes {
	t.Helper()
	var list []attributes
	if err := json.Unmarshal(r.body, &list); err != nil {
		t.Fatalf("%s: not a JSON array: %v\n%s", r.Request.URL, err, clip(r.body))
	}
	if list == nil {
		t.Fatalf("%s: null in place of an array", r.Request.URL)
	}
	return list
}

func (r *response) object(t testing.TB) attributes {
	t.Helper()
	var a attributes
	if err := json.Unmarshal(r.body, &a); err != nil {
		t.Fatalf("%s: not a JSON object: %v\n%s", r.Request.URL, err, clip(r.body))
	}
	return a
}

// piece is a part as a strict client reads it.
type piece struct {
	header http.Header
	body   []byte
}

// pieces reads a multipart answer by the letter of RFC 2046 and RFC 2387: boundary and type in
// Content-Type, no preamble, CRLF everywhere, a whole header in every part, a length that is right where
// one is given, nothing behind the closing boundary but its line end.
func (r *response) pieces(t testing.TB) []piece {
	t.Helper()
	m, ok := parseMedia(r.Header.Get("Content-Type"))
	if !ok || m.kind != "multipart/related" || m.param("boundary") == "" || m.param("type") == "" {
		t.Fatalf("Content-Type %q is no multipart/related with type and boundary", r.Header.Get("Content-Type"))
	}
	line := "--" + m.param("boundary")
	rest, found := strings.CutPrefix(string(r.body), line+"\r\n")
	if !found {
		t.Fatalf("the body does not begin with a boundary: %q", clip(r.body[:min(len(r.body), 80)]))
	}
	rest, found = strings.CutSuffix(rest, "\r\n"+line+"--\r\n")
	if !found {
		t.Fatalf("the body does not end with the closing boundary")
	}
	var out []piece
	for raw := range strings.SplitSeq(rest, "\r\n"+line+"\r\n") {
		head, body, found := strings.Cut(raw, "\r\n\r\n")
		if !found {
			t.Fatalf("a part has no empty line behind its header")
		}
		p := piece{header: http.Header{}, body: []byte(body)}
		for field := range strings.SplitSeq(head, "\r\n") {
			name, value, found := strings.Cut(field, ": ")
			if !found {
				t.Fatalf("header line %q", field)
			}
			p.header.Add(name, value)
		}
		part, ok := parseMedia(p.header.Get("Content-Type"))
		if !ok || part.kind != m.param("type") {
			t.Fatalf("part is %q in a multipart of %q", p.header.Get("Content-Type"), m.param("type"))
		}
		if n := p.header.Get("Content-Length"); n != "" && n != strconv.Itoa(len(body)) {
			t.Fatalf("part says Content-Length %s and has %d bytes", n, len(body))
		}
		out = append(out, p)
	}
	return out
}

// dataset returns the data set bytes and the transfer syntax of a PS3.10 file.
func dataset(t testing.TB, file []byte) (body []byte, syntax string) {
	t.Helper()
	_, syntax, r, err := dicom.ReadPart10(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if body, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return body, syntax
}

// multipart writes a store request by hand.
func multipartBody(boundary string, files ...[]byte) []byte {
	var b bytes.Buffer
	for _, f := range files {
		b.WriteString("--" + boundary + "\r\nContent-Type: application/dicom\r\n\r\n")
		b.Write(f)
		b.WriteString("\r\n")
	}
	b.WriteString("--" + boundary + "--\r\n")
	return b.Bytes()
}

func (s *service) stow(t testing.TB, path string, body []byte, header ...string) *response {
	t.Helper()
	header = append([]string{"Content-Type", `multipart/related; type="application/dicom"; boundary=XX`}, header...)
	return s.do(t, http.MethodPost, path, bytes.NewReader(body), header...)
}
