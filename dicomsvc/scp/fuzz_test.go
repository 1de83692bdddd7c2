package scp

import (
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// FuzzIdentifier reads whatever bytes decode to an identifier and answers it: no panic, and an answer that can be
// encoded and holds each element once.
func FuzzIdentifier(f *testing.F) {
	for _, id := range []*dicom.Dataset{
		identifier("STUDY", dicom.StudyInstanceUID, `1.2\1.3`, dicom.PatientName, "A*"),
		identifier("IMAGE", dicom.StudyInstanceUID, "1.2", dicom.SeriesInstanceUID, "1.3", dicom.SOPInstanceUID, ""),
		twoItems(), twice("1.2", "1.2"), twice("1.2", "1.3"),
	} {
		b, err := id.Encode(nil, explicit)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x40, 0, 0x75, 2, 'U', 'N', 0, 0, 8, 0, 0, 0, 0xfe, 0xff, 0, 0xe0, 0, 0, 0, 0})
	s := &Server{cfg: Config{AETitle: "OSTEON", Relational: true}}
	known := image("1.2.3", "1.2.3.1", "1.2.3.1.1", 0, requested("1.2", "RP"), text(dicom.PatientName, "ISO_IR 192", "Müller^山田"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := dicom.Decode(b, explicit, dicom.Limits{})
		if err != nil {
			return
		}
		r := &dimse.FindRequest{SOPClass: dimse.PatientRootFind, Identifier: id}
		if _, err := s.selection(&caller{}, r); err != nil && comment(err) == "" {
			t.Error("refused without a comment")
		}
		q, err := s.parse(&caller{}, r)
		if err != nil {
			return
		}
		if _, err := keysOf(q.id); err != nil {
			return
		}
		q.supported()
		out := s.answer(q, &dicomsvc.Match{Attributes: known.Clone()})
		for i := 1; i < out.Len(); i++ {
			if out.Elements[i-1].Tag >= out.Elements[i].Tag {
				t.Errorf("%v follows %v", out.Elements[i].Tag, out.Elements[i-1].Tag)
			}
		}
		if _, err := out.Encode(nil, implicit); err != nil {
			t.Errorf("encode: %v", err)
		}
	})
}
