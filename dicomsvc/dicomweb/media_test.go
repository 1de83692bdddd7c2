package dicomweb

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

// Behaviours 52, 53.
func TestParseMedia(t *testing.T) {
	tests := []struct{ in, kind, params string }{
		{`multipart/related; type="application/dicom"; boundary="a;b,c"`, "multipart/related", "a;b,c application/dicom"},
		{`multipart/related;type=application/dicom;boundary=x=y`, "multipart/related", "x=y application/dicom"},
		{`Multipart/Related; TYPE="a\"b"; boundary=z; boundary=y`, "multipart/related", `z a"b`},
		{`application/dicom`, "application/dicom", " "},
	}
	for _, tt := range tests {
		m, ok := parseMedia(tt.in)
		if got := m.param("boundary") + " " + m.param("type"); !ok || m.kind != tt.kind || got != tt.params {
			t.Errorf("%s: %v %+v", tt.in, ok, m)
		}
	}
	for _, in := range []string{"", "x", "/", "a/", "/b", "a b/c", `"a/b"`} {
		if m, ok := parseMedia(in); ok {
			t.Errorf("%q passes as %+v", in, m)
		}
	}
	if n := len(parseMediaRanges(strings.Repeat("a/b,", 1000))); n != acceptRangesMax {
		t.Errorf("%d ranges", n)
	}
	if q := parseMediaRanges("a/b;q=0.25, c/d;q=x, e/f;q=2")[0].quality; q != 250 {
		t.Errorf("quality %d", q)
	}
}

// Behaviour 66.
func TestGzipAccepted(t *testing.T) {
	for value, want := range map[string]bool{"": false, "gzip": true, "br, gzip;q=0.5": true, "gzip;q=0": false, "*": true, "*;q=0": false, "gzip;q=0, *": false, "deflate": false, "X-GZIP": true} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", value)
		if got := gzipAccepted(r); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

// Behaviour 57.
func TestXMLDocument(t *testing.T) {
	d := &dicom.Dataset{}
	d.SetStrings(dicom.SpecificCharacterSet, "ISO_IR 192")
	d.SetStrings(dicom.PatientName, `Müller^Anna "x"^^Dr. <b>=山田^太郎`)
	d.SetStrings(dicom.ImageType, "ORIGINAL", "", "AXIAL & <x>")
	d.SetStrings(dicom.StudyDescription, "bad\x01char\tend")
	d.SetInt(dicom.Rows, 512)
	d.Set(dicom.Element{Tag: dicom.StudyDate, VR: dicom.DA})
	d.Set(dicom.Element{Tag: 0x00090010, VR: dicom.LO, Value: []byte(`ACME "1"`)})
	d.Set(dicom.Element{Tag: 0x00091001, VR: dicom.UN, Value: []byte{1, 2, 3, 4}})
	d.Set(dicom.Element{Tag: 0x00091002, VR: dicom.OB, Bulk: &dicom.Bulk{Offset: 1, Length: 2}})
	item := &dicom.Dataset{}
	item.SetStrings(dicom.ReferencedSOPInstanceUID, "1.2.3")
	item.Set(dicom.Element{Tag: 0x00091003, VR: dicom.OB, Bulk: &dicom.Bulk{Offset: 1, Length: 2}})
	d.Set(dicom.Element{Tag: dicom.ReferencedStudySequence, VR: dicom.SQ, Items: []*dicom.Dataset{item}})
	var paths []string
	got := string(appendXML(nil, d, func(path []dicom.PathStep, el *dicom.Element) string {
		if el.Bulk == nil {
			return ""
		}
		name := "http://x/?a&b"
		for _, step := range path {
			name += "/" + step.Tag.Hex()
		}
		paths = append(paths, name+"/"+el.Tag.Hex())
		return name
	}))
	for _, want := range []string{
		`<DicomAttribute tag="00080005" vr="CS" keyword="SpecificCharacterSet"><Value number="1">ISO_IR 192</Value></DicomAttribute>`,
		`<DicomAttribute tag="00080008" vr="CS" keyword="ImageType"><Value number="1">ORIGINAL</Value><Value number="3">AXIAL &amp; &lt;x&gt;</Value></DicomAttribute>`,
		`<DicomAttribute tag="00080020" vr="DA" keyword="StudyDate"/>`,
		"bad\uFFFDchar&#9;end",
		`<PersonName number="1"><Alphabetic><FamilyName>Müller</FamilyName><GivenName>Anna &quot;x&quot;</GivenName><NamePrefix>Dr. &lt;b&gt;</NamePrefix></Alphabetic><Ideographic><FamilyName>山田</FamilyName><GivenName>太郎</GivenName></Ideographic></PersonName>`,
		`<DicomAttribute tag="00280010" vr="US" keyword="Rows"><Value number="1">512</Value></DicomAttribute>`,
		`<DicomAttribute tag="00091001" vr="UN" privateCreator="ACME &quot;1&quot;"><InlineBinary>AQIDBA==</InlineBinary></DicomAttribute>`,
		`<DicomAttribute tag="00091002" vr="OB" privateCreator="ACME &quot;1&quot;"><BulkData uri="http://x/?a&amp;b"/></DicomAttribute>`,
		`<Item number="1"><DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID"><Value number="1">1.2.3</Value></DicomAttribute>`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if len(paths) != 2 || paths[0] != "http://x/?a&b/00081110/00091003" {
		t.Errorf("paths %q", paths)
	}
	dec := xml.NewDecoder(bytes.NewReader([]byte(got)))
	for {
		if _, err := dec.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzAccept(f *testing.F) {
	f.Add(`multipart/related; type="application/dicom"; transfer-syntax=*, */*;q=0.1`, "1.2.840.10008.1.2.1")
	f.Add(`application/octet-stream;transfer-syntax="`, "x")
	f.Fuzz(func(t *testing.T, accept, syntax string) {
		a := acceptable{tiers: [][]mediaRange{parseMediaRanges(accept)}}
		offers := []offer{
			{media: mediaDICOM, multipart: true, syntax: syntax}, {media: mediaDICOM, syntax: syntax},
			{media: mediaOctets, multipart: true, syntax: syntax, list: true}, {media: mediaDICOMJSON, list: true},
		}
		chosen, ok := a.choose(offers)
		best := 0
		for _, o := range offers {
			quality, _ := qualityOf(a.tiers[0], o)
			best = max(best, quality)
		}
		if got, _ := qualityOf(a.tiers[0], chosen); ok != (best > 0) || ok && got != best || best > 10000 {
			t.Fatalf("%q: chose %+v (%v) of quality %d, best is %d", accept, chosen, ok, got, best)
		}
	})
}
