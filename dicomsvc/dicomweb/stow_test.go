package dicomweb

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// two instances of one series, and one of another study.
const (
	fileCT1   = "dcmqi/ct-3slice/01.dcm"
	fileCT2   = "dcmqi/ct-3slice/02.dcm"
	fileOther = "dcmjs-dimse/j2k.dcm"
)

// Behaviours 52, 54, 62.
func TestStoreAndRetrieveEveryCorpusFile(t *testing.T) {
	s := newService(t, nil)
	sent := map[string][]byte{}
	files := corpusNames(t)
	for _, name := range files {
		f := corpusFile(t, name)
		r := s.stow(t, "/studies", multipartBody("XX", f))
		answer := r.object(t)
		if r.StatusCode != http.StatusOK {
			// Whatever it is, each part gets one outcome.
			n := len(answer["00081198"].Value) + len(answer["0008119A"].Value) + len(answer["00081199"].Value)
			if n != 1 || r.StatusCode != 202 && (r.StatusCode < 400 || r.StatusCode > 499) {
				t.Errorf("status %d with %d outcomes: %s", r.StatusCode, n, clip(r.body))
			}
			continue
		}
		item := answer.items(t, "00081199")[0]
		body, _ := dataset(t, f)
		sent[item.first("00081190")] = body
	}
	t.Logf("%d files sent, %d distinct instances stored", len(files), len(sent))
	if len(sent) < 150 {
		t.Errorf("only %d instances stored of %d files", len(sent), len(files))
	}
	for url, want := range sent {
		r := s.get(t, url, "Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`).want(t, 200)
		parts := r.pieces(t)
		if len(parts) != 1 {
			t.Fatalf("%d parts", len(parts))
		}
		got, syntax := dataset(t, parts[0].body)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: data set of %d bytes came back as %d others", url, len(want), len(got))
		}
		if want := "application/dicom; transfer-syntax=" + syntax; parts[0].header.Get("Content-Type") != want {
			t.Errorf("part is %q, want %q", parts[0].header.Get("Content-Type"), want)
		}
		if location := parts[0].header.Get("Content-Location"); location != url {
			t.Errorf("Content-Location %q, want %q", location, url)
		}
	}
}

// Behaviours 62, 63.
func TestStoreOutcomes(t *testing.T) {
	ct1, ct2, other := corpusFile(t, fileCT1), corpusFile(t, fileCT2), corpusFile(t, fileOther)
	s := newService(t, nil)
	facts := s.load(t, fileCT1)[0]
	changed := bytes.Clone(ct1)
	copy(changed[len(changed)-8:], "otherpix")
	junk := []byte("<html>not an object</html>")
	header := "Content-Type: application/dicom\r\n"
	part := func(h string, b []byte) []byte {
		return append([]byte("--XX\r\n"+h+"\r\n"), append(b, "\r\n"...)...)
	}
	closing := []byte("--XX--\r\n")
	join := func(list ...[]byte) []byte { return bytes.Join(list, nil) }
	tests := []struct {
		name, path               string
		body                     []byte
		status                   int
		good, warned, bad, other int
		reason                   string // of the first failure
	}{
		{"identical again (63)", "/studies", multipartBody("XX", ct1), 200, 1, 0, 0, 0, ""},
		{"new", "/studies", multipartBody("XX", ct2), 200, 1, 0, 0, 0, ""},
		{"into its study", "/studies/" + facts.StudyInstanceUID, multipartBody("XX", ct1, ct2), 200, 2, 0, 0, 0, ""},
		{"other bytes under the same UID", "/studies", multipartBody("XX", changed), 202, 1, 1, 0, 0, ""},
		{"into another study", "/studies/1.2.3", multipartBody("XX", ct1), 409, 0, 0, 1, 0, "43264"},
		{"one of two into another study", "/studies/" + facts.StudyInstanceUID, multipartBody("XX", other, ct1), 202, 1, 0, 1, 0, "43264"},
		{"junk", "/studies", multipartBody("XX", junk), 400, 0, 0, 0, 1, "49152"},
		{"one bad part loses no good one (62)", "/studies", multipartBody("XX", ct1, junk, ct2), 202, 2, 0, 0, 1, "49152"},
		{"truncated object", "/studies", multipartBody("XX", ct1[:len(ct1)-100]), 400, 0, 0, 1, 0, "49152"},
		{"part of another type", "/studies", join(part("Content-Type: text/html\r\n", junk), part(header, ct1), closing), 202, 1, 0, 0, 1, "290"},
		{"only parts of another type", "/studies", join(part("Content-Type: text/html\r\n", junk), closing), 415, 0, 0, 0, 1, "290"},
		{"part without a type", "/studies", join(part("", ct1), closing), 200, 1, 0, 0, 0, ""},
		{"part with a syntax", "/studies", join(part("content-type: application/dicom; transfer-syntax=1.2.840.10008.1.2\r\nContent-ID: <1>\r\n", ct1), closing), 200, 1, 0, 0, 0, ""},
		{"part in base64", "/studies", join(part(header+"Content-Transfer-Encoding: base64\r\n", ct1), closing), 415, 0, 0, 0, 1, "290"},
		{"header too long", "/studies", join(part(header+"A: "+strings.Repeat("x", partHeaderBytesMax)+"\r\n", ct1), part(header, ct2), closing), 202, 1, 0, 0, 1, "49152"},
		{"cut off behind one object", "/studies", join(part(header, ct1), part(header, ct2[:5000])), 202, 1, 0, 1, 0, "49152"},
	}
	for _, tt := range tests {
		r := s.stow(t, tt.path, tt.body)
		if r.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, r.StatusCode, tt.status, clip(r.body))
			continue
		}
		answer := r.object(t)
		warned := 0
		var good, bad, rest []attributes
		if len(answer["00081199"].Value) > 0 {
			good = answer.items(t, "00081199")
		}
		if len(answer["00081198"].Value) > 0 {
			bad = answer.items(t, "00081198")
		}
		if len(answer["0008119A"].Value) > 0 {
			rest = answer.items(t, "0008119A")
		}
		for _, item := range good {
			if item.first("00081196") == "45056" {
				warned++
			}
			if !strings.HasPrefix(item.first("00081190"), s.root+"/studies/") || item.first("00081155") == "" || item.first("00081150") == "" {
				t.Errorf("%s: stored item %v", tt.name, item)
			}
		}
		if len(good) != tt.good || warned != tt.warned || len(bad) != tt.bad || len(rest) != tt.other {
			t.Errorf("%s: %d stored, %d warned, %d failed, %d unknown; want %d, %d, %d, %d\n%s", tt.name,
				len(good), warned, len(bad), len(rest), tt.good, tt.warned, tt.bad, tt.other, clip(r.body))
			continue
		}
		for _, item := range append(bad, rest...) {
			if got := item.first("00081197"); got != tt.reason {
				t.Errorf("%s: failure reason %s, want %s", tt.name, got, tt.reason)
			}
		}
		if _, have := answer["00081190"]; !have {
			t.Errorf("%s: no Retrieve URL (type 2)", tt.name)
		}
		if tt.status == 202 && (tt.warned > 0 || strings.HasPrefix(tt.name, "cut")) && r.Header.Get("Warning") == "" {
			t.Errorf("%s: no Warning", tt.name)
		}
	}
}

// Behaviours 52, 62.
func TestStoreRefusesRequests(t *testing.T) {
	ct1 := corpusFile(t, fileCT1)
	s := newService(t, nil)
	tests := []struct {
		name, contentType, coding string
		body                      []byte
		status                    int
	}{
		{"no metadata", `application/dicom+json`, "", []byte("[]"), 400},
		{"no parts of metadata", `multipart/related; type="application/dicom+json"; boundary=XX`, "", []byte("--XX--"), 400},
		{"other JSON", `application/json`, "", []byte("[]"), 415},
		{"other multipart", `multipart/related; type="application/json"; boundary=XX`, "", []byte("--XX--"), 415},
		{"no type at all", "", "", ct1, 415},
		{"form", "multipart/form-data; boundary=XX", "", multipartBody("XX", ct1), 415},
		{"no boundary", `multipart/related; type="application/dicom"`, "", multipartBody("XX", ct1), 400},
		{"wrong boundary", `multipart/related; type="application/dicom"; boundary=YY`, "", multipartBody("XX", ct1), 400},
		{"gzip body (B17)", `multipart/related; type="application/dicom"; boundary=XX`, "gzip", gzipped(multipartBody("XX", ct1)), 415},
		{"empty", `multipart/related; type="application/dicom"; boundary=XX`, "", nil, 400},
		{"no parts", `multipart/related; type="application/dicom"; boundary=XX`, "", []byte("--XX--\r\n"), 400},
		{"quoted (52)", `multipart/related; type="application/dicom"; boundary="XX"`, "", multipartBody("XX", ct1), 200},
		{"unquoted (52)", `multipart/related;type=application/dicom;boundary=XX`, "", multipartBody("XX", ct1), 200},
		{"odd case and order", `Multipart/Related; Boundary=XX; TYPE="Application/DICOM"`, "", multipartBody("XX", ct1), 200},
		{"no inner type", `multipart/related; boundary=XX`, "", multipartBody("XX", ct1), 200},
		{"single object", `application/dicom`, "", ct1, 200},
		{"single object that is none", `application/dicom`, "", []byte("hello"), 400},
		{"single object cut off", `application/dicom`, "", ct1[:len(ct1)/2], 400},
	}
	for _, tt := range tests {
		header := []string{"Content-Encoding", tt.coding}
		if tt.coding == "" {
			header = nil
		}
		if tt.contentType != "" {
			header = append(header, "Content-Type", tt.contentType)
		}
		r := s.do(t, http.MethodPost, "/studies", bytes.NewReader(tt.body), header...)
		if r.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, r.StatusCode, tt.status, clip(r.body))
		}
	}
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// Behaviour 62.
func TestStoreAnswersInXML(t *testing.T) {
	s := newService(t, nil)
	r := s.stow(t, "/studies", multipartBody("XX", corpusFile(t, fileCT1), []byte("junk")), "Accept", "application/dicom+xml").want(t, 202)
	if got := r.Header.Get("Content-Type"); got != "application/dicom+xml" {
		t.Errorf("Content-Type %q", got)
	}
	var doc struct {
		XMLName    xml.Name `xml:"http://dicom.nema.org/PS3.19/models/NativeDICOM NativeDicomModel"`
		Attributes []struct {
			Tag     string `xml:"tag,attr"`
			VR      string `xml:"vr,attr"`
			Keyword string `xml:"keyword,attr"`
			Items   []struct {
				Number     int `xml:"number,attr"`
				Attributes []struct {
					Tag   string `xml:"tag,attr"`
					Value string `xml:"Value"`
				} `xml:"DicomAttribute"`
			} `xml:"Item"`
		} `xml:"DicomAttribute"`
	}
	if err := xml.Unmarshal(r.body, &doc); err != nil {
		t.Fatalf("%v\n%s", err, r.body)
	}
	if len(doc.Attributes) != 3 || doc.Attributes[1].Tag != "00081199" || doc.Attributes[1].VR != "SQ" || doc.Attributes[1].Keyword != "ReferencedSOPSequence" ||
		len(doc.Attributes[1].Items) != 1 || doc.Attributes[1].Items[0].Number != 1 || len(doc.Attributes[1].Items[0].Attributes) != 3 {
		t.Errorf("document %+v", doc)
	}
	// An object is stored whatever the client accepts.
	s.stow(t, "/studies", multipartBody("XX", corpusFile(t, fileCT2)), "Accept", "text/html").want(t, 200)
}

func TestStoreWhenNothingCanBeStored(t *testing.T) {
	ct1, ct2 := corpusFile(t, fileCT1), corpusFile(t, fileCT2)
	for _, tt := range []struct {
		err    error
		status int
	}{{dicomsvc.ErrFull, 507}, {dicomsvc.ErrResources, 503}, {dicomsvc.ErrDraining, 503}, {dicomsvc.ErrDenied, 403}} {
		s := newService(t, func(_ *Config, a *fakeArchive) {
			a.put = func(int) error { return fmt.Errorf("put: %w", tt.err) }
		})
		r := s.stow(t, "/studies", multipartBody("XX", ct1, ct2)).want(t, tt.status)
		if tt.status >= 500 && r.Header.Get("Retry-After") == "" {
			t.Errorf("%v: no Retry-After", tt.err)
		}
	}
	s := newService(t, func(_ *Config, a *fakeArchive) {
		a.put = func(n int) error {
			if n == 1 {
				return dicomsvc.ErrResources
			}
			return nil
		}
	})
	answer := s.stow(t, "/studies", multipartBody("XX", ct1, ct2)).want(t, 202).object(t)
	if got := answer.items(t, "00081198")[0].first("00081197"); got != "42752" {
		t.Errorf("failure reason %s, want A700", got)
	}
	// Not ready: told before the body is sent (F18).
	s = newService(t, func(_ *Config, a *fakeArchive) { a.ready = dicomsvc.ErrFull })
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4294967296\r\n"+
		"Content-Type: multipart/related; type=\"application/dicom\"; boundary=XX\r\n\r\n")
	b, _ := io.ReadAll(io.LimitReader(conn, 20))
	if !strings.HasPrefix(string(b), "HTTP/1.1 507") {
		t.Errorf("the answer begins %q, want 507 without 100 Continue", b)
	}
}

// TestStoreAbortedConnection: a body that ends early is never taken for an object (behaviour 9, B15).
//
// Behaviours 9, 62.
func TestStoreAbortedConnection(t *testing.T) {
	s := newService(t, nil)
	body := multipartBody("XX", corpusFile(t, fileCT1))
	random := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"+
			"Content-Type: multipart/related; type=\"application/dicom\"; boundary=XX\r\n\r\n", 4<<30)
		conn.Write(body[:random.IntN(len(body)-30)])
		conn.(*net.TCPConn).CloseWrite()
		io.ReadAll(conn)
		conn.Close()
	}
	if n := len(s.archive.chosen(dicomsvc.Selection{})); n != 0 {
		t.Errorf("%d instances stored from bodies that were cut off", n)
	}
}

// TestStorePolyglot: preamble and meta information do not survive (B25).
//
// Behaviour 42.
func TestStorePolyglot(t *testing.T) {
	s := newService(t, nil)
	f := bytes.Clone(corpusFile(t, fileCT1))
	copy(f, "MZ\x90\x00#!/bin/sh")
	url := s.stow(t, "/studies", multipartBody("XX", f)).want(t, 200).object(t).items(t, "00081199")[0].first("00081190")
	out := s.get(t, url, "Accept", "application/dicom; transfer-syntax=*").want(t, 200)
	if !bytes.Equal(out.body[:128], make([]byte, 128)) || string(out.body[128:132]) != "DICM" {
		t.Errorf("preamble %q", out.body[:132])
	}
	if want := "attachment"; !strings.HasPrefix(out.Header.Get("Content-Disposition"), want) {
		t.Errorf("Content-Disposition %q", out.Header.Get("Content-Disposition"))
	}
}

// TestStoreHugeObject streams an object of 2 GB in and out (behaviour 51, P9).
//
// Behaviour 51.
func TestStoreHugeObject(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 2 GB")
	}
	s := newService(t, func(_ *Config, a *fakeArchive) { a.discard = true })
	const size = 2 << 30
	head := headOf(t, size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	body := io.MultiReader(strings.NewReader("--XX\r\nContent-Type: application/dicom\r\n\r\n"), bytes.NewReader(head),
		io.LimitReader(zeros{}, size), strings.NewReader("\r\n--XX--\r\n"))
	r := s.do(t, http.MethodPost, "/studies", body, "Content-Type", `multipart/related; type="application/dicom"; boundary=XX`).want(t, 200)
	url := r.object(t).items(t, "00081199")[0].first("00081190")
	s.archive.items[0].virtual = size
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	req.Header.Set("Accept", "application/dicom; transfer-syntax=*")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n < size || n != resp.ContentLength {
		t.Errorf("%d bytes of %d, %v", n, resp.ContentLength, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("%d MiB were allocated for 2 GiB in and out", used>>20)
	}
}

// headOf returns a PS3.10 file up to the value of a Pixel Data element of the given length.
func headOf(t testing.TB, size uint32) []byte {
	t.Helper()
	d := &dicom.Dataset{}
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2")
	d.SetStrings(dicom.SOPInstanceUID, "1.2.3.4")
	d.SetStrings(dicom.StudyInstanceUID, "1.2")
	d.SetStrings(dicom.SeriesInstanceUID, "1.2.3")
	out := dicom.AppendMeta(nil, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", dicom.ExplicitVRLittleEndian, "1.2.3", "", "")
	out, err := d.Encode(out, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return dicom.AppendElementHeader(out, true, false, dicom.PixelData, dicom.OW, size)
}
