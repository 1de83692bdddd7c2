package dicomweb

import (
	"bytes"
	"fmt"
	"image/png"
	"net/http"
	"testing"

	"osteon/dicomsvc/dicom"
)

// Behaviour 53.
func TestWADOURI(t *testing.T) {
	s := newService(t, nil)
	ct, j2k, pdf := s.load(t, fileCT1)[0], s.load(t, fileOther)[0], s.load(t, "dcmjs-dimse/pdf.dcm")[0]
	at := func(i int) string {
		in := ct
		if i == 1 {
			in = j2k
		} else if i == 2 {
			in = pdf
		}
		return fmt.Sprintf("/wado?requestType=WADO&studyUID=%s&seriesUID=%s&objectUID=%s", in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID)
	}
	for _, tt := range []struct {
		path, media, syntax string
		status              int
	}{
		{at(0) + "&contentType=application%2Fdicom", "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", dicom.ExplicitVRLittleEndian, 200},
		{at(1) + "&contentType=application/dicom", "application/dicom; transfer-syntax=" + j2k.TransferSyntaxUID, j2k.TransferSyntaxUID, 200},
		{at(1) + "&contentType=application/dicom&transferSyntax=" + j2k.TransferSyntaxUID, "application/dicom; transfer-syntax=" + j2k.TransferSyntaxUID, j2k.TransferSyntaxUID, 200},
		{at(1) + "&contentType=application/dicom&transferSyntax=1.2.840.10008.1.2.1", "", "", 406},
		{at(0) + "&transferSyntax=1.2.840.10008.1.2.1", "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", dicom.ExplicitVRLittleEndian, 200},
		{at(2), "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", dicom.ExplicitVRLittleEndian, 200},
		{at(0), "image/jpeg", "", 200},
		{at(0) + "&contentType=image/png&windowCenter=40&windowWidth=400&rows=64&frameNumber=1", "image/png", "", 200},
		{at(0) + "&contentType=image/jpeg&imageQuality=50", "image/jpeg", "", 200},
		{at(0) + "&contentType=image/jpeg&frameNumber=2", "", "", 404},
		{at(0) + "&contentType=image/jpeg&frameNumber=1,1", "", "", 400},
		{at(0) + "&contentType=image/jpeg&windowCenter=40", "", "", 400},
		{at(0) + "&contentType=image/jpeg&region=0,0,1,1", "", "", 400},
		{at(0) + "&contentType=text/html", "", "", 406},
		{at(0) + "&anonymize=yes", "", "", 400}, // nothing leaves that its reader believes to be de-identified
		{at(0) + "&presentationUID=1.2", "", "", 400},
		{at(0) + "&charset=iso-8859-1", "", "", 406},
		{"/wado", "", "", 400},
		{"/wado?requestType=WADO&studyUID=1.2&seriesUID=1.2", "", "", 400},
		{"/wado?requestType=WADO&studyUID=1.2&seriesUID=1.2&objectUID=..%2Fx", "", "", 400},
		{"/wado?requestType=WADO&studyUID=1.2&seriesUID=1.2&objectUID=1.2", "", "", 404},
		{"/wado/x", "", "", 404},
	} {
		r := s.get(t, tt.path, "Accept", "text/html").want(t, tt.status)
		if tt.status != 200 {
			continue
		}
		if got := r.Header.Get("Content-Type"); got != tt.media {
			t.Errorf("%s: %q, want %q", tt.path, got, tt.media)
		}
		if tt.syntax != "" {
			if _, syntax := dataset(t, r.body); syntax != tt.syntax {
				t.Errorf("%s: file in %s", tt.path, syntax)
			}
		}
		if tt.media == "image/png" {
			if m, err := png.Decode(bytes.NewReader(r.body)); err != nil || m.Bounds().Dy() != 64 {
				t.Errorf("%s: %v", tt.path, err)
			}
		}
		if head := s.do(t, http.MethodHead, tt.path, nil).want(t, 200); len(head.body) != 0 || head.Header.Get("Content-Type") != tt.media {
			t.Errorf("HEAD %s: %v", tt.path, head.Header)
		}
		s.get(t, tt.path, "If-None-Match", r.Header.Get("ETag")).want(t, 304)
	}
	s.do(t, http.MethodPost, "/wado", nil).want(t, 405)
}
