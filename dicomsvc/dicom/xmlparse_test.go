package dicom

import (
	"errors"
	"strings"
	"testing"
)

const xmlHead = `<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">`

func TestParseXML(t *testing.T) {
	d, err := ParseXML([]byte(xmlHead+`
		<DicomAttribute tag="7FE00010" vr="OW" keyword="PixelData"><BulkData uri="http://x/?a&amp;b"/></DicomAttribute>
		<DicomAttribute Tag="00280010" VR="US" Keyword="Rows"><Value number="1">512</Value></DicomAttribute>
		<DicomAttribute tag="00100010" vr="PN"><PersonName number="1"><Alphabetic><FamilyName>Müller</FamilyName><NamePrefix>Dr.</NamePrefix></Alphabetic>
			<Ideographic><FamilyName>山田</FamilyName><GivenName>太郎</GivenName></Ideographic></PersonName></DicomAttribute>
		<DicomAttribute tag="00080008" vr="CS"><Value number="3">AXIAL</Value><Value number="1">ORIGINAL</Value></DicomAttribute>
		<DicomAttribute tag="00081140" vr="SQ"><Item number="1"><DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2</Value></DicomAttribute></Item><Item number="2"/></DicomAttribute>
		<DicomAttribute tag="00090001" vr="LO" privateCreator="ACME 2"><Value number="1">two</Value></DicomAttribute>
		<DicomAttribute tag="00090010" vr="LO"><Value number="1">ACME 1</Value></DicomAttribute>
		<DicomAttribute tag="00090002" vr="UN" privateCreator="ACME 1"><InlineBinary> AQID
			BA== </InlineBinary></DicomAttribute>
		<DicomAttribute tag="00080050" vr="SH"/><Unknown><x/></Unknown></NativeDicomModel> <!-- end -->`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[Tag]string{
		Rows: "512", PatientName: "Müller^^^Dr.=山田^太郎", 0x00090010: "ACME 1", 0x00090011: "ACME 2", 0x00091101: "two", SpecificCharacterSet: "ISO_IR 192",
	} {
		if got := d.String(tag); got != want {
			t.Errorf("%v: got %q, want %q", tag, got, want)
		}
	}
	if got := string(d.Get(0x00091002).Value); got != "\x01\x02\x03\x04" {
		t.Errorf("inline %q", got)
	}
	if got := strings.Join(d.Strings(ImageType), "/"); got != "ORIGINAL//AXIAL" {
		t.Errorf("image type %q", got)
	}
	if items := d.Get(ReferencedImageSequence).Items; len(items) != 2 || items[0].String(ReferencedSOPInstanceUID) != "1.2" || items[0].Charset() != utf8Term {
		t.Errorf("items %v", items)
	}
	if el := d.Get(PixelData); el.Bulk == nil || el.Bulk.URI != "http://x/?a&b" {
		t.Errorf("bulk %+v", el)
	}
	if el := d.Get(AccessionNumber); el == nil || !el.IsEmpty() {
		t.Errorf("empty element %+v", el)
	}
	for i := 1; i < d.Len(); i++ {
		if d.Elements[i-1].Tag >= d.Elements[i].Tag {
			t.Errorf("%v before %v", d.Elements[i-1].Tag, d.Elements[i].Tag)
		}
	}
}

func TestParseXMLRefuses(t *testing.T) {
	attribute := func(s string) string {
		return xmlHead + `<DicomAttribute ` + s + `</DicomAttribute></NativeDicomModel>`
	}
	deep := func(n int) string {
		return xmlHead + strings.Repeat(`<DicomAttribute tag="00081140" vr="SQ"><Item number="1">`, n) + strings.Repeat(`</Item></DicomAttribute>`, n) + `</NativeDicomModel>`
	}
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", ErrMalformed},
		{"<html></html>", ErrMalformed},
		{xmlHead, ErrMalformed},
		{xmlHead + "</NativeDicomModel><more/>", ErrMalformed},
		{attribute(`tag="0010001" vr="PN">`), ErrMalformed},
		{attribute(`tag="00100010" vr="ZZ">`), ErrMalformed},
		{attribute(`tag="00280010" vr="US"><Value number="1">CANARY</Value>`), ErrMalformed},
		{attribute(`tag="00280010" vr="US"><Value number="0">1</Value>`), ErrMalformed},
		{attribute(`tag="00080008" vr="CS"><Value number="90000">X</Value>`), ErrLimit},
		{attribute(`tag="7FE00010" vr="OW"><InlineBinary>CANARY!</InlineBinary>`), ErrMalformed},
		{attribute(`tag="00100010" vr="PN"><PersonName><Alphabetic><FamilyName><b>CANARY</b></FamilyName></Alphabetic></PersonName>`), ErrMalformed},
		{attribute(`tag="00100010" vr="LO"><Value number="1">&canary;</Value>`), ErrMalformed},                                                              // no entity is declared or fetched
		{`<!DOCTYPE x [<!ENTITY a "CANARY"><!ENTITY b "&a;&a;&a;&a;">]>` + attribute(`tag="00100010" vr="LO"><Value number="1">&b;</Value>`), ErrMalformed}, // B24
		{`<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>` + attribute(`tag="00100010" vr="LO"><Value number="1">&a;</Value>`), ErrMalformed},
		{attribute(`tag="00100010" vr="LO"` + strings.Repeat(` a="1"`, 1_000_000) + `>`), ErrLimit},
		{attribute(`tag="00100010" vr="LO" a="` + strings.Repeat(`>`, xmlTagBytesMax) + `">`), ErrLimit},
		{attribute("tag=\"00100010\" vr=\"LO\"><Value number=\"1\">CANARY\xff</Value>"), ErrMalformed},
		{attribute("tag=\"00100010\" vr=\"LO\"><Value number=\"1\">CANARY\x00</Value>"), ErrMalformed},
		{attribute(`tag="7FE00010" vr="OB"><!-- it's > "` + `--><InlineBinary>` + strings.Repeat("AAAA", xmlTagBytesMax) + `</InlineBinary>`), nil},
		{deep(64), nil},
		{deep(65), ErrLimit},
		{deep(100_000), ErrLimit},
		{xmlHead + strings.Repeat("<x>", 100_000), ErrLimit},
	} {
		_, err := ParseXML([]byte(c.in), Limits{})
		if !errors.Is(err, c.want) {
			t.Errorf("%.120s: %v, want %v", c.in, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("the error repeats a value: %v", err)
		}
	}
}

// Elements in the worst order cost no more than a sort.
func TestParseModelsInDescendingOrder(t *testing.T) {
	var x, j strings.Builder
	x.WriteString(xmlHead)
	j.WriteString("{")
	const n = 50_000
	for i := n; i > 0; i-- {
		tag := Tag(0x00200000 + uint32(i)).Hex()
		x.WriteString(`<DicomAttribute tag="` + tag + `" vr="CS"/>`)
		j.WriteString(`"` + tag + `":{"vr":"CS"}`)
		if i > 1 {
			j.WriteString(",")
		}
	}
	x.WriteString("</NativeDicomModel>")
	j.WriteString("}")
	a, err := ParseXML([]byte(x.String()), Limits{})
	if err != nil || a.Len() != n {
		t.Fatal(a.Len(), err)
	}
	b, err := ParseJSON([]byte(j.String()), Limits{})
	if err != nil || b.Len() != n || b.Elements[0].Tag != 0x00200001 {
		t.Fatal(b.Len(), err)
	}
}
