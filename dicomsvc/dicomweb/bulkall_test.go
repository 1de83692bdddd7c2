package dicomweb

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestBulkDataOfMany: the bulk data of a study, series or instance are all that the metadata name, each under its BulkDataURI and as it is there.
//
// Behaviours 54, 60.
func TestBulkDataOfMany(t *testing.T) {
	s := newService(t, nil)
	ct := s.load(t, fileCT1, fileCT2)[0]
	s.load(t, fileOther)
	accept := []string{"Accept", `multipart/related; type="application/octet-stream"; transfer-syntax=*`}
	study := "/studies/" + ct.StudyInstanceUID
	for path, n := range map[string]int{study: 2, study + "/series/" + ct.SeriesInstanceUID: 2, urlOf(ct): 1} {
		r := s.get(t, path+"/bulkdata", accept...).want(t, 200)
		parts := r.pieces(t)
		var want []string
		for _, found := range uris.FindAllSubmatch(s.get(t, path+"/metadata").want(t, 200).body, -1) {
			want = append(want, string(found[1]))
		}
		var got []string
		for _, p := range parts {
			uri := p.header.Get("Content-Location")
			got = append(got, uri)
			if alone := s.get(t, uri).want(t, 200); !bytes.Equal(alone.body, p.body) {
				t.Errorf("%s: %d bytes, alone %d", uri, len(p.body), len(alone.body))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || len(got) != n {
			t.Errorf("%s: parts %q, metadata name %q", path, got, want)
		}
		s.get(t, path+"/bulkdata", append(accept, "If-None-Match", r.Header.Get("ETag"))...).want(t, 304)
		if head := s.do(t, http.MethodHead, path+"/bulkdata", nil, accept...).want(t, 200); len(head.body) != 0 {
			t.Errorf("HEAD with a body")
		}
		s.get(t, path+"/bulkdata", "Accept", "text/html").want(t, 406)
		for _, p := range s.get(t, path+"/pixeldata", accept...).want(t, 200).pieces(t) {
			if want := "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"; p.header.Get("Content-Type") != want || !strings.HasSuffix(p.header.Get("Content-Location"), "/frames/1") {
				t.Errorf("%s: part %v, want %s", path, p.header, want)
			}
		}
	}
	s.get(t, "/studies/1.2.3/bulkdata").want(t, 404)
	s.get(t, "/studies/1.2.3/pixeldata").want(t, 404)
}

// TestBulkDataOfCompressed: compressed pixel data come frame by frame with their syntax, or the request is refused as a whole.
//
// Behaviours 53, 54, 64.
func TestBulkDataOfCompressed(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileOther)[0]
	for _, path := range []string{"/studies/" + in.StudyInstanceUID, "/studies/" + in.StudyInstanceUID + "/series/" + in.SeriesInstanceUID} {
		for _, resource := range []string{"/bulkdata", "/pixeldata"} {
			r := s.get(t, path+resource, "Accept", `multipart/related; type="image/jp2"; transfer-syntax=*, multipart/related; type="application/octet-stream"; q=0.5`).want(t, 200)
			frame := s.get(t, urlOf(in)+"/frames/1", "Accept", `image/jp2; transfer-syntax=*`).want(t, 200)
			parts := r.pieces(t)
			if len(parts) != 1 || !bytes.Equal(parts[0].body, frame.body) || parts[0].header.Get("Content-Type") != "image/jp2; transfer-syntax="+in.TransferSyntaxUID {
				t.Errorf("%s: %d parts, %v", path+resource, len(parts), parts[0].header)
			}
			s.get(t, path+resource, "Accept", `multipart/related; type="application/octet-stream"`).want(t, 406)
		}
	}
	pdf := s.load(t, "dcmjs-dimse/pdf.dcm")[0]
	s.get(t, "/studies/"+pdf.StudyInstanceUID+"/pixeldata", "Accept", "*/*").want(t, 404)
	if parts := s.get(t, "/studies/"+pdf.StudyInstanceUID+"/bulkdata", "Accept", "*/*").want(t, 200).pieces(t); !bytes.HasPrefix(parts[0].body, []byte("%PDF")) {
		t.Errorf("no document")
	}
}
