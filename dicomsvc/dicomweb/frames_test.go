package dicomweb

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// Behaviours 37, 53, 54, 64.
func TestFrameNegotiation(t *testing.T) {
	const octets = `multipart/related; type="application/octet-stream"`
	tests := []struct {
		stored, accept, frames string
		status                 int
		kind                   string // Content-Type of a part, or of the body when single
		single                 bool
	}{
		{dicom.ExplicitVRLittleEndian, octets, "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.ImplicitVRLittleEndian, octets, "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.ExplicitVRBigEndian, octets, "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.DeflatedExplicitVRLittleEndian, octets, "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.ExplicitVRLittleEndian, "", "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.ExplicitVRLittleEndian, "application/octet-stream", "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", true},
		{dicom.ExplicitVRLittleEndian, "application/octet-stream", "1,1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.ExplicitVRLittleEndian, `multipart/related; type="image/jpeg"`, "1", 406, "", false},
		{dicom.JPEG2000Lossless, octets, "1", 406, "", false},
		// What OHIF sends, also as one combined header.
		{dicom.JPEG2000Lossless, "multipart/related; type=application/octet-stream; transfer-syntax=*", "1", 200, "application/octet-stream; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, `multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80, multipart/related; type=application/octet-stream; transfer-syntax=*`, "1", 200, "application/octet-stream; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, "application/octet-stream; transfer-syntax=*", "1", 200, "application/octet-stream; transfer-syntax=" + dicom.JPEG2000Lossless, true},
		{dicom.JPEG2000Lossless, `multipart/related; type="image/jp2"`, "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, `multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90`, "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, `multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.91`, "1", 406, "", false},
		{dicom.JPEG2000Lossless, `multipart/related; type="image/*"`, "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, "image/jp2", "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, true},
		{dicom.JPEG2000Lossless, "*/*", "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEG2000Lossless, octets + ", */*;q=0.1", "1", 200, "image/jp2; transfer-syntax=" + dicom.JPEG2000Lossless, false},
		{dicom.JPEGBaseline8Bit, "image/jpeg", "1", 200, "image/jpeg; transfer-syntax=" + dicom.JPEGBaseline8Bit, true},
		{dicom.RLELossless, "image/dicom-rle", "1", 200, "image/dicom-rle; transfer-syntax=" + dicom.RLELossless, true},
		// Compressed without loss, asked for in the default syntax: decoded.
		{dicom.RLELossless, octets, "1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.RLELossless, "application/octet-stream", "1,1", 200, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1", false},
		{dicom.RLELossless, octets + "; transfer-syntax=*", "1", 200, "application/octet-stream; transfer-syntax=" + dicom.RLELossless, false},
		{dicom.JPEGBaseline8Bit, octets, "1", 406, "", false},
		{dicom.ExplicitVRLittleEndian, octets, "2", 404, "", false},
		{dicom.ExplicitVRLittleEndian, octets, "1,2", 404, "", false},
	}
	for _, tt := range tests {
		s := newService(t, nil)
		in := s.load(t, bySyntax[tt.stored])[0]
		header := []string{"Accept", tt.accept}
		if tt.accept == "" {
			header = nil
		}
		name := tt.stored + " as " + tt.accept
		r := s.get(t, urlOf(in)+"/frames/"+tt.frames, header...)
		if r.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", name, r.StatusCode, tt.status, clip(r.body[:min(len(r.body), 300)]))
			continue
		}
		if tt.status != 200 {
			continue
		}
		kind, body := r.Header.Get("Content-Type"), r.body
		if !tt.single {
			parts := r.pieces(t)
			if want := 1 + strings.Count(tt.frames, ","); len(parts) != want {
				t.Errorf("%s: %d parts, want %d", name, len(parts), want)
			}
			kind, body = parts[0].header.Get("Content-Type"), parts[0].body
		}
		if kind != tt.kind {
			t.Errorf("%s: sent as %q, want %q", name, kind, tt.kind)
		}
		want := frameOf(t, s.archive.items[0], 0)
		if tt.stored == dicom.RLELossless && strings.HasSuffix(tt.kind, dicom.ExplicitVRLittleEndian) {
			want = decodedPixels(t, s.archive.items[0], &dicom.Dataset{})
		}
		if !bytes.Equal(body, want) {
			t.Errorf("%s: frame of %d bytes, want %d", name, len(body), len(want))
		}
	}
}

// frameOf reads frame i of a stored item its own way.
func frameOf(t *testing.T, it *fakeItem, i int) []byte {
	t.Helper()
	data := it.data
	if it.in.TransferSyntaxUID == dicom.DeflatedExplicitVRLittleEndian {
		data = inflate(data)
	}
	extents, err := it.frames.Frame(nil, i)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, e := range extents {
		out = append(out, data[e.Offset:e.Offset+e.Length]...)
	}
	if it.in.TransferSyntaxUID == dicom.ExplicitVRBigEndian && it.set.Get(dicom.PixelData).VR == dicom.OW {
		for j := 0; j+1 < len(out); j += 2 {
			out[j], out[j+1] = out[j+1], out[j]
		}
	}
	return out
}

// Behaviour 64.
func TestFramesOfMultiFrame(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, "dcmqi/liver.dcm")[0]
	it := s.archive.items[0]
	if it.frames.Len() != 3 {
		t.Fatalf("%d frames", it.frames.Len())
	}
	length, _ := it.frames.FrameBits(0)
	t.Logf("frames of %d bits", length)
	parts := s.get(t, urlOf(in)+"/frames/3,1,1", "Accept", `multipart/related; type="application/octet-stream"`).want(t, 200).pieces(t)
	for i, n := range []int{3, 1, 1} { // order kept, repeats allowed (64)
		if want := frameOf(t, it, n-1); !bytes.Equal(parts[i].body, want) {
			t.Errorf("part %d is not frame %d", i, n)
		}
		if got := parts[i].header.Get("Content-Location"); got != s.root+urlOf(in)+fmt.Sprintf("/frames/%d", n) {
			t.Errorf("Content-Location %q", got)
		}
	}
	if n := len(s.get(t, urlOf(in)+"/pixeldata").want(t, 200).pieces(t)); n != 3 {
		t.Errorf("pixeldata has %d parts", n)
	}
	if head := s.do(t, http.MethodHead, urlOf(in)+"/frames/2", nil, "Accept", "application/octet-stream").want(t, 200); head.ContentLength != length/8 {
		t.Errorf("HEAD: length %d", head.ContentLength)
	}
	s.get(t, urlOf(in)+"/frames/4").want(t, 404)
	s.get(t, urlOf(in)+"/frames/1"+strings.Repeat(",1", partsMax)).want(t, 400)
}

// TestPackedFrames: frames of 1-bit pixels that begin inside a byte (behaviour 64, PS3.5 §8.1.1).
//
// Behaviour 64.
func TestPackedFrames(t *testing.T) {
	const rows, columns, frames = 3, 5, 7 // 15 bits a frame
	bit := func(frame, i int) bool { return (frame*31+i*i+i/3)%3 == 0 }
	packed := make([]byte, (rows*columns*frames+7)/8+1)
	for f := range frames {
		for i := range rows * columns {
			if n := f*rows*columns + i; bit(f, i) {
				packed[n/8] |= 1 << (n % 8)
			}
		}
	}
	packed = packed[:len(packed)/2*2]
	d := &dicom.Dataset{}
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: "1.2.840.10008.5.1.4.1.1.66.4", dicom.SOPInstanceUID: "1.2.3.4", dicom.StudyInstanceUID: "1.2",
		dicom.SeriesInstanceUID: "1.2.3", dicom.NumberOfFrames: fmt.Sprint(frames),
	} {
		d.SetStrings(tag, value)
	}
	for tag, n := range map[dicom.Tag]int{dicom.Rows: rows, dicom.Columns: columns, dicom.BitsAllocated: 1, dicom.SamplesPerPixel: 1} {
		d.SetInt(tag, n)
	}
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Value: packed})
	body, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, nil)
	if _, err := s.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(body)}); err != nil {
		t.Fatal(err)
	}
	in := s.archive.items[0].in
	for f := range frames {
		r := s.get(t, fmt.Sprintf("%s/frames/%d", urlOf(in), f+1), "Accept", "application/octet-stream").want(t, 200)
		want := make([]byte, (rows*columns+7)/8)
		for i := range rows * columns {
			if bit(f, i) {
				want[i/8] |= 1 << (i % 8)
			}
		}
		if !bytes.Equal(r.body, want) {
			t.Errorf("frame %d is %x, want %x", f+1, r.body, want)
		}
	}
}

// Behaviour 60.
func TestBulkDataRanges(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileCT1)[0]
	el := s.archive.items[0].set.Get(dicom.PixelData)
	pixels := s.archive.items[0].data[el.Bulk.Offset:][:el.Bulk.Length]
	size := len(pixels)
	path := urlOf(in) + "/bulkdata/7FE00010"
	etag := s.get(t, path).want(t, 200).Header.Get("ETag")
	tests := []struct {
		spec, ifRange string
		status        int
		from, to      int
	}{
		{"bytes=0-0", "", 206, 0, 1},
		{"bytes=10-19", "", 206, 10, 20},
		{"bytes=10-", "", 206, 10, size},
		{"bytes=-10", "", 206, size - 10, size},
		{"bytes=-99999999999", "", 206, 0, size},
		{"bytes=5-99999999999", "", 206, 5, size},
		{fmt.Sprintf("bytes=%d-", size), "", 416, 0, 0},
		{"bytes=-0", "", 416, 0, 0},
		{"bytes=3-2", "", 200, 0, size},
		{"bytes=a-b", "", 200, 0, size},
		{"bytes=0-1,5-6", "", 200, 0, size},
		{"items=0-1", "", 200, 0, size},
		{"bytes=0-1", etag, 206, 0, 2},
		{"bytes=0-1", `"other"`, 200, 0, size},
		{"bytes=99999999999999999999-", "", 200, 0, size},
	}
	for _, tt := range tests {
		header := []string{"Range", tt.spec}
		if tt.ifRange != "" {
			header = append(header, "If-Range", tt.ifRange)
		}
		r := s.get(t, path, header...).want(t, tt.status)
		if tt.status == 416 {
			if got := r.Header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", size) {
				t.Errorf("%s: Content-Range %q", tt.spec, got)
			}
			continue
		}
		if !bytes.Equal(r.body, pixels[tt.from:tt.to]) {
			t.Errorf("%s: %d bytes, want %d", tt.spec, len(r.body), tt.to-tt.from)
		}
		if got := r.Header.Get("Content-Range"); tt.status == 206 && got != fmt.Sprintf("bytes %d-%d/%d", tt.from, tt.to-1, size) {
			t.Errorf("%s: Content-Range %q", tt.spec, got)
		}
		if got := r.Header.Get("Content-Type"); got != "application/octet-stream" {
			t.Errorf("%s: Content-Type %q", tt.spec, got)
		}
		if r.Header.Get("Content-Disposition") != "attachment" {
			t.Errorf("%s: not an attachment (B22)", tt.spec)
		}
	}
	s.get(t, path, "If-None-Match", etag).want(t, 304)
	if head := s.do(t, http.MethodHead, path, nil).want(t, 200); head.ContentLength != int64(size) || len(head.body) != 0 {
		t.Errorf("HEAD: length %d", head.ContentLength)
	}
	if p := s.get(t, path, "Accept", `multipart/related; type="application/octet-stream"`).want(t, 200).pieces(t); !bytes.Equal(p[0].body, pixels) {
		t.Errorf("the part is not the pixel data")
	}
	s.get(t, path, "Accept", "text/html").want(t, 406)
	s.get(t, urlOf(in)+"/bulkdata/00081234").want(t, 404)
	s.get(t, urlOf(in)+"/bulkdata/00081140/1/7FE00010").want(t, 404)
}

// TestEncapsulatedDocumentIsNoPage: an HTML or PDF document leaves as octets to save (B22).
func TestEncapsulatedDocumentIsNoPage(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, "dcmjs-dimse/pdf.dcm")[0]
	r := s.get(t, urlOf(in)+"/bulkdata/00420011", "Accept", "application/pdf, text/html, */*").want(t, 200)
	if r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("Content-Disposition") != "attachment" ||
		!strings.Contains(r.Header.Get("Content-Security-Policy"), "sandbox") || !bytes.HasPrefix(r.body, []byte("%PDF")) {
		t.Errorf("header %v, body %q", r.Header, r.body[:min(len(r.body), 10)])
	}
	s.get(t, urlOf(in)+"/frames/1").want(t, 404)
}

// Behaviour 66.
func TestTokens(t *testing.T) {
	s := newService(t, func(c *Config, _ *fakeArchive) {
		c.Tokens = []Token{NewToken("viewer", "secret-1"), NewToken("modality", "secret-2")}
	})
	in := s.load(t, fileCT1)[0]
	routes := []string{"/studies", "/series", "/instances", "/studies/1.2", "/studies/1.2/metadata", "/studies/1.2/series", "/studies/1.2/instances",
		"/studies/1.2/series/1.3", "/studies/1.2/series/1.3/metadata", "/studies/1.2/series/1.3/instances", urlOf(in), urlOf(in) + "/metadata",
		urlOf(in) + "/frames/1", urlOf(in) + "/pixeldata", urlOf(in) + "/bulkdata/7FE00010", "/nonsense", "/studies/x"}
	for _, path := range routes { // B01
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete} {
			for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer secret-3", "Basic c2VjcmV0LTE=", "secret-1", "Bearer secret-1secret-2", "Bearer " + strings.Repeat("x", tokenBytesMax)} {
				header := []string{"Authorization", authorization}
				if authorization == "" {
					header = nil
				}
				r := s.do(t, method, path, nil, header...).want(t, 401)
				if !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer") {
					t.Errorf("%s: WWW-Authenticate %q", path, r.Header.Get("WWW-Authenticate"))
				}
			}
		}
	}
	if n := len(s.archive.principal); n != 1 { // load's own
		t.Errorf("the archive was asked %d times without a token", n-1)
	}
	s.get(t, "/studies", "Authorization", "Bearer secret-2").want(t, 200)
	s.get(t, "/studies", "Authorization", "bearer  secret-1 ").want(t, 200)
	last := s.archive.principal[len(s.archive.principal)-2:]
	if last[0].Kind != dicomsvc.PrincipalToken || last[0].Name != "modality" || last[1].Name != "viewer" {
		t.Errorf("principals %+v", last)
	}
}

func TestAnonymousOverLoopbackOnly(t *testing.T) {
	s := newService(t, nil)
	s.get(t, "/studies").want(t, 200)
	if p := s.archive.principal[0]; p.Kind != dicomsvc.PrincipalAnonymous {
		t.Errorf("principal %+v", p)
	}
	s.get(t, "/studies", "Host", "localhost:8104").want(t, 200)
	s.get(t, "/studies", "Host", "[::1]:8104").want(t, 200)
	s.get(t, "/studies", "Host", "evil.example").want(t, 403) // a rebound name (B23)
	s = newService(t, func(c *Config, _ *fakeArchive) { c.PublicRoot = "https://pacs.example.org/dicom-web" })
	s.get(t, "/studies", "Host", "pacs.example.org").want(t, 200)

	// The same server on another address of this machine serves nobody.
	address := ""
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && ip.IP.To4() != nil {
			address = ip.IP.String()
		}
	}
	if address == "" {
		t.Skip("no other address here")
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Skip(err)
	}
	srv := &http.Server{Handler: s.Config.Handler}
	go srv.Serve(l)
	defer srv.Close()
	s.get(t, "http://"+l.Addr().String()+"/dicom-web/studies").want(t, 401)
}

// Behaviour 60.
func TestPublicRoot(t *testing.T) {
	s := newService(t, nil)
	s.load(t, fileCT1)
	tests := []struct {
		header []string
		want   string
	}{
		{nil, s.root},
		{[]string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "pacs.example.org"}, "https://pacs.example.org/dicom-web"},
		{[]string{"X-Forwarded-Proto", "https, http", "X-Forwarded-Host", "pacs.example.org, inner"}, "https://pacs.example.org/dicom-web"},
		{[]string{"X-Forwarded-Host", "pacs.example.org", "X-Forwarded-Port", "8443"}, "http://pacs.example.org:8443/dicom-web"},
		{[]string{"X-Forwarded-Host", "pacs.example.org", "X-Forwarded-Prefix", "/a/b/"}, "http://pacs.example.org/a/b/dicom-web"},
		{[]string{"Forwarded", `for=1.2.3.4;proto=https;host="pacs.example.org:444", for=5.6.7.8`}, "https://pacs.example.org:444/dicom-web"},
		{[]string{"X-Forwarded-Host", `evil"><script>`, "X-Forwarded-Proto", "javascript", "X-Forwarded-Prefix", "//evil"}, s.root},
		{[]string{"Forwarded", `host="a/b"; proto=file`}, s.root},
	}
	for _, tt := range tests {
		url := s.get(t, "/studies", tt.header...).want(t, 200).list(t)[0].first("00081190")
		if !strings.HasPrefix(url, tt.want+"/studies/") {
			t.Errorf("%v: %s, want %s/studies/", tt.header, url, tt.want)
		}
	}
	s = newService(t, func(c *Config, _ *fakeArchive) { c.PublicRoot = "https://pacs.example.org/x/" })
	s.load(t, fileCT1)
	if url := s.get(t, "/studies", "X-Forwarded-Host", "other").list(t)[0].first("00081190"); !strings.HasPrefix(url, "https://pacs.example.org/x/studies/") {
		t.Errorf("Retrieve URL %s", url)
	}
}

// Behaviour 66.
func TestCORS(t *testing.T) {
	s := newService(t, func(c *Config, _ *fakeArchive) {
		c.Origins = []string{"https://viewer.example.org"}
		c.Tokens = []Token{NewToken("viewer", "secret")}
	})
	preflight := []string{"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization"}
	r := s.do(t, http.MethodOptions, "/studies", nil, append(preflight, "Origin", "https://viewer.example.org")...).want(t, 204)
	if r.Header.Get("Access-Control-Allow-Origin") != "https://viewer.example.org" || !strings.Contains(r.Header.Get("Access-Control-Allow-Headers"), "Authorization") ||
		!strings.Contains(r.Header.Get("Access-Control-Allow-Methods"), "POST") || r.Header.Get("Access-Control-Max-Age") == "" {
		t.Errorf("header %v", r.Header)
	}
	r = s.do(t, http.MethodOptions, "/studies", nil, append(preflight, "Origin", "https://evil.example")...).want(t, 204)
	if r.Header.Get("Access-Control-Allow-Origin") != "" || r.Header.Get("Access-Control-Allow-Methods") != "" {
		t.Errorf("header %v", r.Header)
	}
	r = s.get(t, "/studies", "Origin", "https://viewer.example.org", "Authorization", "Bearer secret").want(t, 200)
	if r.Header.Get("Access-Control-Allow-Origin") != "https://viewer.example.org" || !strings.Contains(strings.Join(r.Header.Values("Vary"), ","), "Origin") {
		t.Errorf("header %v", r.Header)
	}
	// A page must be able to read why it was refused.
	if r := s.get(t, "/studies", "Origin", "https://viewer.example.org").want(t, 401); r.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("header %v", r.Header)
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{Now: time.Now, Rand: rand.Reader}
	if err := good.check(); len(err) != 0 {
		t.Errorf("%v", err)
	}
	bad := Config{Prefix: "x/", PublicRoot: "ftp://x", Tokens: []Token{{}}}
	if faults := bad.check(); len(faults) != 4 {
		t.Errorf("%d faults: %v", len(faults), faults)
	}
	if _, err := New(Config{}); err == nil {
		t.Errorf("New without an archive succeeds")
	}
}

// TestSlowSenderIsCutOff: one byte now and then is no way to send an object (F48).
func TestSlowSenderIsCutOff(t *testing.T) {
	past := time.Now().Add(-rateWindow - time.Second)
	s := newService(t, func(c *Config, _ *fakeArchive) { c.Now = func() time.Time { return past } })
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"+
		"Content-Type: multipart/related; type=\"application/dicom\"; boundary=XX\r\n\r\n--XX\r\n")
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 1000)
	if n, err := conn.Read(b); n > 0 && !strings.Contains(string(b[:n]), " 400 ") || err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

func TestBudget(t *testing.T) {
	var b budget
	for range 1000 {
		b.spend(rateBytes/10, rateWindow/11)
		if b.left() <= 0 {
			t.Fatalf("a peer above the pace has %v left", b.left())
		}
	}
	b = budget{}
	for range 31 {
		b.spend(1, time.Second)
	}
	if b.left() > 0 {
		t.Errorf("a peer below the pace has %v left", b.left())
	}
}
