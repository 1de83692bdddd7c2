package dicom

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestExtractFacts(t *testing.T) {
	h := sample()
	h.Set(Element{Tag: StudyInstanceUID, VR: UI, Value: []byte("1.2.3.4.5 \x00")})
	h.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte("ISO_IR 100")})
	h.Set(Element{Tag: PatientName, VR: PN, Value: []byte("Buc^J\xe9r\xf4me ")})
	h.Set(Element{Tag: PatientID, VR: UN, Value: []byte(" P1 ")})
	h.SetStrings(IssuerOfPatientID, "HOSP")
	h.SetStrings(StudyDescription, strings.Repeat("x", 5000))
	h.SetStrings(TimezoneOffsetFromUTC, "+0100")
	item := &Dataset{}
	item.SetStrings(CodeValue, "T-1")
	item.Set(Element{Tag: CodeMeaning, VR: LO, Value: []byte("T\xeate")})
	h.Set(Element{Tag: ProcedureCodeSequence, VR: SQ, Items: []*Dataset{item}})
	f, err := ExtractFacts(h)
	if err != nil {
		t.Fatal(err)
	}
	if f.StudyInstanceUID != "1.2.3.4.5" || f.SeriesInstanceUID != "1.2.3.4.5.6" || f.SOPInstanceUID != "1.2.3.4" ||
		f.SOPClassUID != "1.2.840.10008.5.1.4.1.1.2" || f.PatientID != "P1" || f.Issuer != "HOSP" || f.Frames != 1 {
		t.Errorf("got %+v", f)
	}
	if got := f.Patient.String(PatientName); got != "Buc^Jérôme" || f.Patient.Charset() != utf8Term {
		t.Errorf("name %q in %q", got, f.Patient.Charset())
	}
	if !bytes.Equal(f.Patient.Get(PatientName).Value, []byte("Buc^Jérôme")) || f.Patient.Get(PatientID).VR != LO {
		t.Errorf("value %q, VR of ID %v", f.Patient.Get(PatientName).Value, f.Patient.Get(PatientID).VR)
	}
	if got := f.Study.Get(ProcedureCodeSequence).Items[0].String(CodeMeaning); got != "Tête" || f.Study.Charset() != utf8Term {
		t.Errorf("code meaning %q in %q", got, f.Study.Charset())
	}
	if n := len(f.Study.String(StudyDescription)); n != factBytesMax {
		t.Errorf("description of %d bytes", n)
	}
	if f.Series.Charset() != "" || f.Series.String(TimezoneOffsetFromUTC) != "+0100" || f.Instance.String(Rows) != "2" {
		t.Errorf("series charset %q, offset %q, rows %q", f.Series.Charset(), f.Series.String(TimezoneOffsetFromUTC), f.Instance.String(Rows))
	}
}

func TestFactsRefused(t *testing.T) {
	for _, c := range []struct {
		tag   Tag
		value string
		want  error
	}{
		{SOPClassUID, "", ErrMissing},
		{SOPInstanceUID, " \x00", ErrMissing},
		{StudyInstanceUID, "../../etc/passwd", ErrBadUID},
		{SeriesInstanceUID, strings.Repeat("1", 65), ErrBadUID},
		{SeriesInstanceUID, "1.2\x003", ErrBadUID},
		{StudyInstanceUID, "1.02", nil},
		{SeriesInstanceUID, "US", ErrBadUID}, // B11: 21333 as a number, which would pass for a UID
	} {
		h := sample()
		vr := UI
		if c.value == "US" {
			vr = US
		}
		h.Set(Element{Tag: c.tag, VR: vr, Value: []byte(c.value)})
		_, err := ExtractFacts(h)
		var e *AttributeError
		if !errors.Is(err, c.want) || c.want != nil && (!errors.As(err, &e) || e.Tag != c.tag) {
			t.Errorf("%v %q: got %v, want %v", c.tag, c.value, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "etc") {
			t.Errorf("%v: error holds the value: %v", c.tag, err)
		}
	}
}

func TestFactsSequenceBounded(t *testing.T) {
	h := sample()
	var items []*Dataset
	for range 200 {
		item := &Dataset{}
		item.SetStrings(ReferencedSOPInstanceUID, "1.2.840.113619.2.55.3")
		items = append(items, item)
	}
	h.Set(Element{Tag: RequestAttributesSequence, VR: SQ, Items: items})
	f, err := ExtractFacts(h)
	if err != nil {
		t.Fatal(err)
	}
	if f.Series.Get(RequestAttributesSequence) != nil {
		t.Error("a sequence of 200 items is in the index")
	}
}

func TestFactLists(t *testing.T) {
	for _, list := range [][]Tag{patientAttributes[:], studyAttributes[:], seriesAttributes[:], instanceAttributes[:]} {
		if !slices.IsSorted(list) || len(list) > len(instanceAttributes) {
			t.Errorf("list of %d tags from %v is not in order or too long", len(list), list[0])
		}
	}
}
