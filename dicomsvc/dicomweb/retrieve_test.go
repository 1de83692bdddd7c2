package dicomweb

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
)

func urlOf(in *dicomsvc.Instance) string {
	return instanceURL("", in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID)
}

const cornerstone = "cornerstoneWADOImageLoader/CTImage.dcm_"

// files by stored transfer syntax.
var bySyntax = map[string]string{
	dicom.ImplicitVRLittleEndian:         fileCT1,
	dicom.ExplicitVRLittleEndian:         "dcm_qa_nih/epi_pe_ap-00001.dcm",
	dicom.ExplicitVRBigEndian:            cornerstone + "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
	dicom.DeflatedExplicitVRLittleEndian: cornerstone + "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm",
	dicom.JPEG2000Lossless:               fileOther,
	dicom.JPEGBaseline8Bit:               cornerstone + "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm",
	dicom.RLELossless:                    cornerstone + "RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
}

// TestRetrieveNegotiation is the table of the conformance statement: what is stored, what is asked for,
// what is sent (behaviour 53).
//
// Behaviour 53.
func TestRetrieveNegotiation(t *testing.T) {
	const (
		implicit = dicom.ImplicitVRLittleEndian
		explicit = dicom.ExplicitVRLittleEndian
		big      = dicom.ExplicitVRBigEndian
		deflated = dicom.DeflatedExplicitVRLittleEndian
		j2k      = dicom.JPEG2000Lossless
		jpeg     = dicom.JPEGBaseline8Bit
		rle      = dicom.RLELossless
		multi    = `multipart/related; type="application/dicom"`
	)
	tests := []struct {
		stored, accept, query string
		status                int
		syntax                string
		single                bool
	}{
		{explicit, multi, "", 200, explicit, false},
		{explicit, "", "", 200, explicit, false},
		{explicit, "*/*", "", 200, explicit, false},
		{explicit, "application/dicom", "", 200, explicit, true},
		{explicit, `multipart/related;type=application/dicom`, "", 200, explicit, false},
		{explicit, `multipart/related`, "", 200, explicit, false},
		{explicit, `multipart/*`, "", 200, explicit, false},
		{explicit, `application/*`, "", 200, explicit, true},
		{explicit, "image/jpeg", "", 406, "", false},
		{explicit, "image/jpeg, */*;q=0.1", "", 200, explicit, false},
		{explicit, multi + "; q=0", "", 406, "", false},
		{explicit, "application/dicom;q=0.1, " + multi, "", 200, explicit, false},
		{explicit, "application/dicom, " + multi + ";q=0.1", "", 200, explicit, true},
		{explicit, "text/html, " + multi + ", application/dicom", "", 200, explicit, false},
		{explicit, multi + "; transfer-syntax=" + j2k, "", 406, "", false},
		{explicit, multi + "; transfer-syntax=" + j2k + ", " + multi, "", 200, explicit, false},
		{explicit, "text/html", "accept=application/dicom", 200, explicit, true},
		{explicit, "text/html", `accept=multipart/related;type="application/dicom"`, 200, explicit, false},
		{explicit, multi, "accept=text/html", 200, explicit, false},
		{implicit, multi, "", 200, explicit, false},
		{implicit, "*/*", "", 200, explicit, false},
		{implicit, multi + "; transfer-syntax=*", "", 200, implicit, false},
		{implicit, multi + "; transfer-syntax=" + implicit, "", 200, implicit, false},
		{implicit, multi + "; transfer-syntax=*;q=0.5, " + multi, "", 200, explicit, false},
		{big, multi, "", 200, explicit, false},
		{big, multi + `; transfer-syntax="*"`, "", 200, big, false},
		{deflated, multi, "", 200, explicit, false},
		{deflated, multi + "; transfer-syntax=*", "", 200, deflated, false},
		{j2k, multi, "", 406, "", false},
		{j2k, "application/dicom", "", 406, "", false},
		{j2k, multi + "; transfer-syntax=*", "", 200, j2k, false},
		{j2k, multi + "; transfer-syntax=" + j2k, "", 200, j2k, false},
		{j2k, "*/*", "", 200, j2k, false},
		{j2k, "", "", 200, j2k, false},
		{j2k, "application/dicom; transfer-syntax=*", "", 200, j2k, true},
		{j2k, "", "accept=application/dicom;transfer-syntax=*", 200, j2k, true},
		{rle, multi, "", 200, explicit, false},
		{rle, multi + "; transfer-syntax=*", "", 200, rle, false},
		{jpeg, multi, "", 200, jpeg, false}, // lossy: PS3.18 §8.7.3 makes an exception
		{jpeg, multi + "; transfer-syntax=" + j2k, "", 406, "", false},
	}
	for _, tt := range tests {
		s := newService(t, nil)
		in := s.load(t, bySyntax[tt.stored])[0]
		if in.TransferSyntaxUID != tt.stored {
			t.Fatalf("%s is stored in %s", bySyntax[tt.stored], in.TransferSyntaxUID)
		}
		header := []string{"Accept", tt.accept}
		if tt.accept == "" {
			header = nil
		}
		path := urlOf(in)
		if tt.query != "" {
			path += "?" + tt.query
		}
		r := s.get(t, path, header...)
		name := tt.stored + " as " + tt.accept + " " + tt.query
		if r.StatusCode != tt.status {
			t.Errorf("%s: status %d, want %d: %s", name, r.StatusCode, tt.status, clip(r.body[:min(len(r.body), 300)]))
			continue
		}
		if tt.status != 200 {
			if !strings.Contains(string(r.body), "transfer-syntax=*") {
				t.Errorf("%s: the refusal does not say what to do: %s", name, r.body)
			}
			continue
		}
		file, kind := r.body, r.Header.Get("Content-Type")
		if !tt.single {
			parts := r.pieces(t)
			file, kind = parts[0].body, parts[0].header.Get("Content-Type")
		}
		if kind != "application/dicom; transfer-syntax="+tt.syntax {
			t.Errorf("%s: sent as %q, want syntax %s", name, kind, tt.syntax)
		}
		checkFile(t, name, s.archive.items[0], file, tt.syntax)
	}
}

// checkFile holds a file that was retrieved against what was stored: the same bytes in the stored syntax,
// the same attributes and pixels in another.
func checkFile(t *testing.T, name string, stored *fakeItem, file []byte, syntax string) {
	t.Helper()
	body, said := dataset(t, file)
	if said != syntax {
		t.Errorf("%s: the file says %s, want %s", name, said, syntax)
	}
	if syntax == stored.in.TransferSyntaxUID {
		if !bytes.Equal(body, stored.data) {
			t.Errorf("%s: the data set is not the stored one", name)
		}
		return
	}
	scanner := dicom.NewScanner(bytes.NewReader(body), syntax, dicom.Limits{})
	if err := scanner.Rest(); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	got, want := scanner.Dataset(), stored.set.Clone()
	pixels := got.Get(dicom.PixelData)
	old := want.Get(dicom.PixelData)
	a := body[pixels.Bulk.Offset:][:pixels.Bulk.Length]
	raw := stored.data
	if stored.in.TransferSyntaxUID == dicom.DeflatedExplicitVRLittleEndian {
		raw = inflate(raw)
	}
	var b []byte
	if old.Bulk.Encapsulated {
		b = decodedPixels(t, stored, want)
	} else {
		b = bytes.Clone(raw[old.Bulk.Offset:][:old.Bulk.Length])
	}
	if stored.in.TransferSyntaxUID == dicom.ExplicitVRBigEndian && old.VR == dicom.OW {
		for i := 0; i+1 < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], binary.BigEndian.Uint16(b[i:]))
		}
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s: pixels changed", name)
	}
	got.Remove(dicom.PixelData)
	want.Remove(dicom.PixelData)
	x, err1 := dicom.AppendJSON(nil, got, nil)
	y, err2 := dicom.AppendJSON(nil, want, nil)
	if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
		t.Errorf("%s: attributes changed (%v, %v)", name, err1, err2)
	}
}

// decodedPixels returns the native form of compressed pixel data, and makes header describe it.
func decodedPixels(t *testing.T, stored *fakeItem, header *dicom.Dataset) []byte {
	t.Helper()
	img, err := pixel.Open(stored.set, stored.frames, stored.in.TransferSyntaxUID, &fakeObject{item: stored})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := img.WriteNative(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	img.NativeFormat().Describe(header)
	return b.Bytes()
}

// TestRetrieveExplicitWholeCorpus sends every native or losslessly compressed object of the corpus in Explicit VR Little Endian.
//
// Behaviours 48, 53.
func TestRetrieveExplicitWholeCorpus(t *testing.T) {
	s := newService(t, nil)
	n := 0
	for _, name := range corpusNames(t) {
		_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(corpusFile(t, name)))
		if err != nil || !explicitable(syntax) || syntax == dicom.ExplicitVRLittleEndian {
			continue
		}
		s.archive.items = nil
		if _, err := s.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: syntax, Body: body}); err != nil {
			continue
		}
		it := s.archive.items[0]
		r := s.get(t, urlOf(it.in), "Accept", "application/dicom")
		if strings.HasSuffix(name, "/liver_rle.dcm") { // 1-bit pixels, which PS3.5 Annex G does not have
			r.want(t, 406)
			continue
		}
		if r.StatusCode != 200 {
			t.Errorf("%s: status %d: %s", name, r.StatusCode, clip(r.body))
			continue
		}
		if it.set.Get(dicom.PixelData) == nil {
			continue
		}
		n++
		checkFile(t, name, it, r.body, dicom.ExplicitVRLittleEndian)
	}
	t.Logf("%d objects rewritten", n)
}

// Behaviour 52.
func TestRetrieveStudyAndSeries(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileCT1, fileCT2)[0]
	s.load(t, fileOther)
	for _, path := range []string{"/studies/" + in.StudyInstanceUID, "/studies/" + in.StudyInstanceUID + "/series/" + in.SeriesInstanceUID} {
		r := s.get(t, path, "Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`).want(t, 200)
		parts := r.pieces(t)
		if len(parts) != 2 {
			t.Fatalf("%s: %d parts", path, len(parts))
		}
		for i, p := range parts {
			checkFile(t, path, s.archive.items[i], p.body, in.TransferSyntaxUID)
		}
		if r := s.get(t, path, "Accept", "application/dicom").want(t, 200); len(r.pieces(t)) != 2 {
			t.Errorf("%s: not a multipart", path)
		}
		etag := r.Header.Get("ETag")
		if etag == "" {
			t.Fatalf("%s: no ETag", path)
		}
		again := s.get(t, path, "Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`, "If-None-Match", `"x", `+etag).want(t, 304)
		if len(again.body) != 0 {
			t.Errorf("304 with a body")
		}
		if head := s.do(t, http.MethodHead, path, nil).want(t, 200); len(head.body) != 0 || head.Header.Get("ETag") == "" {
			t.Errorf("%s: HEAD %v", path, head.Header)
		}
	}
	s.get(t, "/studies/"+in.StudyInstanceUID+"/series/1.2.3").want(t, 404)
}

// TestRetrieveBrokenObject: an object that fails its check is never taken for whole.
func TestRetrieveBrokenObject(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileCT1, fileCT2)[0]
	s.archive.cut = 100 << 10
	for _, accept := range []string{"application/dicom; transfer-syntax=*", `multipart/related; type="application/dicom"; transfer-syntax=*`} {
		if r := s.get(t, urlOf(in), "Accept", accept).want(t, 200); r.Header.Get("X-Broken-Off") == "" {
			t.Errorf("%s: a broken object looks whole", accept)
		}
	}
	// Rewritten, it is checked before anything is sent.
	s.get(t, urlOf(in), "Accept", "application/dicom").want(t, 500)
	s.get(t, urlOf(in)+"/frames/1").want(t, 200)
	s.archive.cut = 100
	s.get(t, urlOf(in), "Accept", "application/dicom; transfer-syntax=*").want(t, 500)
	s.get(t, urlOf(in)+"/frames/1").want(t, 500)
	s.archive.cut = 0
	s.archive.open = func(n int) error {
		if n%2 == 1 {
			return dicomsvc.ErrUnavailable
		}
		return nil
	}
	s.archive.opens = 1
	if r := s.get(t, urlOf(in)).want(t, 503); r.Header.Get("ETag") != "" || r.Header.Get("Content-Length") == "" {
		t.Errorf("header %v", r.Header)
	}
	s.archive.opens = 0
	if r := s.get(t, "/studies/"+in.StudyInstanceUID, "Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`).want(t, 200); r.Header.Get("X-Broken-Off") == "" {
		t.Errorf("half a study looks whole")
	}
}

// Behaviours 56, 57, 60, 66.
func TestMetadata(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileCT1, fileCT2)[0]
	series := "/studies/" + in.StudyInstanceUID + "/series/" + in.SeriesInstanceUID
	for _, path := range []string{"/studies/" + in.StudyInstanceUID, series, urlOf(in)} {
		list := s.get(t, path+"/metadata", "Accept", "application/dicom+json").want(t, 200).list(t)
		if want := 2 - strings.Count(path, "/instances/"); len(list) != want {
			t.Fatalf("%s: %d instances", path, len(list))
		}
		if got := list[0].first("00083002"); got != in.TransferSyntaxUID {
			t.Errorf("available transfer syntax %q", got)
		}
		uri := list[0]["7FE00010"].BulkDataURI
		r := s.get(t, uri).want(t, 200) // resolvable (60)
		el := s.archive.items[0].set.Get(dicom.PixelData)
		if !bytes.Equal(r.body, s.archive.items[0].data[el.Bulk.Offset:][:el.Bulk.Length]) {
			t.Errorf("%s is not the pixel data", uri)
		}
	}
	r := s.get(t, series+"/metadata", "Accept-Encoding", "gzip", "Accept", "application/json").want(t, 200)
	if r.Header.Get("Content-Encoding") != "gzip" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("header %v", r.Header)
	}
	z, err := gzip.NewReader(bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	if r.body, err = io.ReadAll(z); err != nil || len(r.list(t)) != 2 {
		t.Errorf("gzip: %v", err)
	}
	if vary := strings.Join(r.Header.Values("Vary"), ","); !strings.Contains(vary, "Accept-Encoding") || !strings.Contains(vary, "Authorization") {
		t.Errorf("Vary %q", vary)
	}
	s.get(t, series+"/metadata", "Accept", "application/json", "If-None-Match", r.Header.Get("ETag")).want(t, 304)
	s.get(t, series+"/metadata", "Accept", "application/json", "If-None-Match", r.Header.Get("ETag"), "X-Forwarded-Host", "other").want(t, 200)
	if head := s.do(t, http.MethodHead, series+"/metadata", nil).want(t, 200); len(head.body) != 0 || head.Header.Get("ETag") == "" {
		t.Errorf("HEAD %v", head.Header)
	}
	parts := s.get(t, series+"/metadata", "Accept", `multipart/related; type="application/dicom+xml"`).want(t, 200).pieces(t)
	for _, p := range parts {
		d := xml.NewDecoder(bytes.NewReader(p.body))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Contains(p.body, []byte(`<BulkData uri="`+s.root)) {
			t.Errorf("no BulkData in the XML")
		}
	}
}

// TestMetadataOfCorpus: every document is well formed and every BulkDataURI resolves to what it names.
//
// Behaviours 57, 60.
func TestMetadataOfCorpus(t *testing.T) {
	s := newService(t, nil)
	uris := 0
	for _, name := range corpusNames(t) {
		_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(corpusFile(t, name)))
		if err != nil {
			continue
		}
		s.archive.items = nil
		if _, err := s.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: syntax, Body: body}); err != nil {
			continue
		}
		it := s.archive.items[0]
		list := s.get(t, urlOf(it.in)+"/metadata").want(t, 200).list(t)
		var follow func(a attributes)
		follow = func(a attributes) {
			for tag, v := range a {
				if v.BulkDataURI != "" {
					uris++
					r := s.get(t, v.BulkDataURI, "Accept", "*/*")
					encapsulated := tag == "7FE00010" && it.frames != nil && it.frames.Encapsulated()
					if r.StatusCode != 200 && !(encapsulated && it.frames.Len() == 0) {
						t.Errorf("%s: %s: status %d: %s", name, v.BulkDataURI, r.StatusCode, clip(r.body))
					}
				}
				if v.VR == "SQ" && len(v.Value) > 0 {
					for _, item := range a.items(t, tag) {
						follow(item)
					}
				}
			}
		}
		follow(list[0])
		x := s.get(t, urlOf(it.in)+"/metadata", "Accept", `multipart/related; type="application/dicom+xml"`).want(t, 200).pieces(t)
		d := xml.NewDecoder(bytes.NewReader(x[0].body))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s: XML: %v", name, err)
				break
			}
		}
	}
	t.Logf("%d BulkDataURIs resolved", uris)
}
