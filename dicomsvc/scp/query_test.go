package scp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

func text(tag dicom.Tag, charset, raw string) func(*dicom.Dataset) {
	return func(d *dicom.Dataset) {
		d.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte(charset)})
		d.Set(dicom.Element{Tag: tag, VR: dicom.VROf(tag), Value: []byte(raw)})
	}
}

func set(tag dicom.Tag, values ...string) func(*dicom.Dataset) {
	return func(d *dicom.Dataset) { d.SetStrings(tag, values...) }
}

// people fills the archive with a handful of studies.
func people(s *service) {
	s.t.Helper()
	s.put(image("1.2.1", "1.2.1.1", "1.2.1.1.1", 100, text(dicom.PatientName, "ISO_IR 100", "M\xfcller^J\xf6rg "), set(dicom.PatientID, "P1"),
		set(dicom.StudyTime, "081500"), set(dicom.AccessionNumber, "A1"), set(dicom.SeriesDescription, "Thorax")), explicit)
	s.put(image("1.2.2", "1.2.2.1", "1.2.2.1.1", 100, text(dicom.PatientName, "ISO_IR 144", "\xb8\xd2\xd0\xdd\xde\xd2^\xb8\xd2\xd0\xdd "), set(dicom.PatientID, "P2"),
		set(dicom.StudyDate, "20250301"), set(dicom.StudyTime, "233000"), set(dicom.Modality, "MR")), implicit)
	s.put(image("1.2.3", "1.2.3.1", "1.2.3.1.1", 100, set(dicom.PatientName, "SMITH^JOHN"), set(dicom.PatientID, "P3"), set(dicom.StudyDate, "20240615"), set(dicom.AccessionNumber, "A3"), requested("1.2.840.1", "RP-7")), explicit)
	s.put(image("1.2.3", "1.2.3.2", "1.2.3.2.1", 100, set(dicom.PatientName, "SMITH^JOHN"), set(dicom.PatientID, "P3"), set(dicom.StudyDate, "20240615"), set(dicom.AccessionNumber, "A3"), set(dicom.Modality, "SR"),
		set(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.88.11")), explicit)
}

func requested(study, id string) func(*dicom.Dataset) {
	return func(d *dicom.Dataset) {
		item := new(dicom.Dataset)
		item.SetStrings(dicom.StudyInstanceUID, study)
		item.SetStrings(dicom.RequestedProcedureID, id)
		item.SetStrings(dicom.ScheduledProcedureStepID, "SPS-1")
		d.Set(dicom.Element{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Items: []*dicom.Dataset{item}})
	}
}

func uids(list []*dicom.Dataset, tag dicom.Tag) string {
	var out []string
	for _, d := range list {
		out = append(out, d.String(tag))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestBehaviour24To27Matching asks for studies over an association, with keys in their own character sets.
// Behaviours 24, 25, 26, 27.
func TestBehaviour24To27Matching(t *testing.T) {
	s := start(t)
	people(s)
	all := "1.2.1 1.2.2 1.2.3"
	for _, tt := range []struct {
		name string
		keys []any
		raw  func(*dicom.Dataset)
		want string
	}{
		{"universal", []any{dicom.PatientName, ""}, nil, all},
		{"stars everywhere", []any{dicom.PatientName, "*", dicom.StudyDate, "*", dicom.AccessionNumber, "*", dicom.StudyTime, "*", dicom.ModalitiesInStudy, "*"}, nil, all},
		{"list of UIDs", []any{dicom.StudyInstanceUID, `1.2.1\1.2.3\1.2.9`}, nil, "1.2.1 1.2.3"},
		{"UID is no prefix", []any{dicom.StudyInstanceUID, "1.2"}, nil, ""},
		{"date", []any{dicom.StudyDate, "20250102"}, nil, "1.2.1"},
		{"range", []any{dicom.StudyDate, "20250101-20250301"}, nil, "1.2.1 1.2.2"},
		{"range open above", []any{dicom.StudyDate, "20250103-"}, nil, "1.2.2"},
		{"range open below", []any{dicom.StudyDate, "-20241231"}, nil, "1.2.3"},
		{"date and time ranges are independent", []any{dicom.StudyDate, "20250101-20250301", dicom.StudyTime, "2200-2359"}, nil, "1.2.2"},
		{"wild card", []any{dicom.PatientName, "Smi*"}, nil, "1.2.3"},
		{"question mark", []any{dicom.PatientID, "P?"}, nil, all},
		{"name without case", []any{dicom.PatientName, "smith^john"}, nil, "1.2.3"},
		{"name is not fuzzy", []any{dicom.PatientName, "SMITH"}, nil, ""},
		{"ID with case", []any{dicom.PatientID, "p3"}, nil, ""},
		{"accession number", []any{dicom.AccessionNumber, "A3"}, nil, "1.2.3"},
		{"modality in study", []any{dicom.ModalitiesInStudy, "SR"}, nil, "1.2.3"},
		{"list of modalities", []any{dicom.ModalitiesInStudy, `SR\MR`}, nil, "1.2.2 1.2.3"},
		{"SOP class in study", []any{dicom.SOPClassesInStudy, "1.2.840.10008.5.1.4.1.1.88.11"}, nil, "1.2.3"},
		{"time zone is no key", []any{dicom.TimezoneOffsetFromUTC, "+0900"}, nil, all},
		{"availability is no key", []any{dicom.InstanceAvailability, "OFFLINE"}, nil, all},
		{"name in Latin-1", nil, text(dicom.PatientName, "ISO_IR 100", "M\xdcLLER*"), "1.2.1"},
		{"name in UTF-8", nil, text(dicom.PatientName, "ISO_IR 192", "müller^jörg"), "1.2.1"},
		{"name in Cyrillic", nil, text(dicom.PatientName, "ISO_IR 144", "\xd8\xd2\xd0\xdd\xde\xd2*"), "1.2.2"},
		{"Cyrillic in UTF-8", nil, text(dicom.PatientName, "ISO_IR 192", "Иванов*"), "1.2.2"},
		{"known key under UN", nil, func(d *dicom.Dataset) {
			d.Set(dicom.Element{Tag: dicom.PatientID, VR: dicom.UN, Value: []byte("P3")})
		}, "1.2.3"},
	} {
		id := identifier("STUDY", append([]any{dicom.StudyInstanceUID, ""}, tt.keys...)...)
		if tt.raw != nil {
			tt.raw(id)
		}
		list, status := s.find(dimse.StudyRootFind, id)
		if got := uids(list, dicom.StudyInstanceUID); got != tt.want || status != nil {
			t.Errorf("%s: got %q %v, want %q", tt.name, got, status, tt.want)
		}
	}
	// One item of a sequence (PS3.4 §C.2.2.2.6), and what it is cut to.
	series := func(item *dicom.Dataset) []*dicom.Dataset {
		id := identifier("SERIES", dicom.StudyInstanceUID, "1.2.3", dicom.SeriesInstanceUID, "")
		el := dicom.Element{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ}
		if item != nil {
			el.Items = []*dicom.Dataset{item}
		}
		id.Set(el)
		list, status := s.find(dimse.StudyRootFind, id)
		if status != nil {
			t.Fatal(status)
		}
		return list
	}
	asked := func(id string) *dicom.Dataset {
		return identifier("", dicom.RequestedProcedureID, id, dicom.RequestedProcedureDescription, "")
	}
	if got := uids(series(asked("RP-7")), dicom.SeriesInstanceUID); got != "1.2.3.1" {
		t.Errorf("sequence matching: got %q", got)
	}
	if got := series(asked("RP-8")); len(got) != 0 {
		t.Errorf("sequence matching: %d series of another procedure", len(got))
	}
	items := series(asked("RP-7"))[0].Get(dicom.RequestAttributesSequence).Items
	if len(items) != 1 || items[0].Len() != 2 || items[0].Get(dicom.RequestedProcedureDescription) == nil {
		t.Errorf("the item is not what was asked for: %v", items)
	}
	for _, d := range series(nil) {
		if el := d.Get(dicom.RequestAttributesSequence); d.String(dicom.SeriesInstanceUID) == "1.2.3.1" && (len(el.Items) != 1 || el.Items[0].Len() != 3) {
			t.Errorf("universal sequence: got %v, want all of the item", el.Items)
		}
	}
}

// TestBehaviour23AnswersHold looks at what an answer has to hold.
// Behaviour 23.
func TestBehaviour23AnswersHold(t *testing.T) {
	s := start(t)
	people(s)
	private := func(d *dicom.Dataset) {
		d.Set(dicom.Element{Tag: 0x00090010, VR: dicom.LO, Value: []byte("ACME 1.0")})
		d.Set(dicom.Element{Tag: 0x00091001, VR: dicom.DS})
	}
	for _, model := range []string{dimse.StudyRootFind, dimse.PatientRootFind} {
		id := identifier("IMAGE", dicom.PatientID, "P1", dicom.StudyInstanceUID, "1.2.1", dicom.SeriesInstanceUID, "1.2.1.1",
			dicom.PatientName, "", dicom.Rows, "", dicom.AcquisitionDeviceProcessingDescription, "", dicom.RequestAttributesSequence, "")
		private(id)
		list, status := s.find(model, id)
		if status != nil || len(list) != 1 {
			t.Fatalf("%d answers, %v", len(list), status)
		}
		got := list[0]
		for tag, want := range map[dicom.Tag]string{
			dicom.QueryRetrieveLevel: "IMAGE", dicom.RetrieveAETitle: "OSTEON", dicom.StudyInstanceUID: "1.2.1", dicom.SeriesInstanceUID: "1.2.1.1",
			dicom.SOPInstanceUID: "1.2.1.1.1", dicom.PatientID: "P1", dicom.PatientName: "Müller^Jörg", 0x00090010: "ACME 1.0",
			dicom.SpecificCharacterSet: "ISO_IR 192",
		} {
			if v := got.String(tag); v != want {
				t.Errorf("%v: got %q, want %q", tag, v, want)
			}
		}
		for _, tag := range []dicom.Tag{dicom.Rows, dicom.AcquisitionDeviceProcessingDescription, dicom.RequestAttributesSequence, 0x00091001} {
			if el := got.Get(tag); el == nil || !el.IsEmpty() {
				t.Errorf("%v: got %v, want it empty", tag, el)
			}
		}
	}
	// The unique keys down to the level come unasked; (0008,0005) only where it is needed.
	list, _ := s.find(dimse.PatientRootFind, identifier("SERIES", dicom.PatientID, "P3", dicom.StudyInstanceUID, "1.2.3", dicom.Modality, "SR"))
	if len(list) != 1 || list[0].String(dicom.SeriesInstanceUID) != "1.2.3.2" || list[0].String(dicom.PatientID) != "P3" || list[0].Has(dicom.SpecificCharacterSet) {
		t.Errorf("got %v", list)
	}
}

// TestBehaviour26CharacterSetOfAnswers: the one asked for when it can carry the text, else UTF-8.
// Behaviour 26.
func TestBehaviour26CharacterSetOfAnswers(t *testing.T) {
	s := start(t)
	people(s)
	for _, tt := range []struct{ study, asked, want string }{
		{"1.2.1", "", "ISO_IR 192"},
		{"1.2.1", "ISO_IR 100", "ISO_IR 100"},
		{"1.2.1", "ISO_IR 144", "ISO_IR 192"},
		{"1.2.1", `\ISO 2022 IR 100`, `\ISO 2022 IR 100`},
		{"1.2.1", "GB18030", "GB18030"},
		{"1.2.1", "NONSENSE", "ISO_IR 192"},
		{"1.2.2", "ISO_IR 144", "ISO_IR 144"},
		{"1.2.2", "ISO_IR 100", "ISO_IR 192"},
		{"1.2.3", "ISO_IR 100", ""},
		{"1.2.3", "ISO_IR 192", ""},
	} {
		id := identifier("STUDY", dicom.StudyInstanceUID, tt.study, dicom.PatientName, "")
		if tt.asked != "" {
			id.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte(tt.asked)})
		}
		list, status := s.find(dimse.StudyRootFind, id)
		if status != nil || len(list) != 1 {
			t.Fatalf("%v: %d answers, %v", tt, len(list), status)
		}
		name := map[string]string{"1.2.1": "Müller^Jörg", "1.2.2": "Иванов^Иван", "1.2.3": "SMITH^JOHN"}[tt.study]
		if tt.study == "1.2.2" {
			name = list[0].String(dicom.PatientName) // what the bytes of the file say
			if !strings.Contains(name, "ван") {
				t.Errorf("%v: name %q", tt, name)
			}
		}
		if got := list[0].Charset(); got != tt.want || list[0].String(dicom.PatientName) != name {
			t.Errorf("%s asked in %q: got %q in %q, want %q", tt.study, tt.asked, list[0].String(dicom.PatientName), got, tt.want)
		}
	}
	// A key in one set finds text stored in another, and a sequence of them (PS3.5 §6.1.2.5).
	x := samples(t, "sc-japanese.dcm")[0]
	s.putBytes(x.data, x.syntax)
	id := identifier("STUDY", dicom.StudyInstanceUID, x.study, dicom.PatientName, "")
	id.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte(`ISO 2022 IR 13\ISO 2022 IR 87`)})
	list, _ := s.find(dimse.StudyRootFind, id)
	if len(list) != 1 || list[0].Charset() != `ISO 2022 IR 13\ISO 2022 IR 87` || !strings.Contains(list[0].String(dicom.PatientName), "山田") {
		t.Errorf("Japanese: got %v", list)
	}
}

// TestBehaviour28LevelRules holds the level and unique key rules, with the element at fault.
// Behaviour 28.
func TestBehaviour28LevelRules(t *testing.T) {
	strict := start(t)
	people(strict)
	lenient := start(t, func(c *Config) { c.Relational = true })
	people(lenient)
	U, S, I := dicom.StudyInstanceUID, dicom.SeriesInstanceUID, dicom.SOPInstanceUID
	for _, tt := range []struct {
		name      string
		model     string
		id        *dicom.Dataset
		offending dicom.Tag // 0: answered
		relaxed   int       // answers where relational queries are allowed, -1: refused there too
	}{
		{"no level", dimse.StudyRootFind, identifier("", U, ""), dicom.QueryRetrieveLevel, -1},
		{"unknown level", dimse.StudyRootFind, identifier("FRAME", U, ""), dicom.QueryRetrieveLevel, -1},
		{"PATIENT in Study Root", dimse.StudyRootFind, identifier("PATIENT", dicom.PatientID, ""), dicom.QueryRetrieveLevel, -1},
		{"PATIENT", dimse.PatientRootFind, identifier("PATIENT", dicom.PatientID, ""), 0, 3},
		{"INSTANCE is IMAGE", dimse.StudyRootFind, identifier("INSTANCE", U, "1.2.3", S, "1.2.3.1", I, ""), 0, 1},
		{"small letters", dimse.StudyRootFind, identifier("study", U, ""), 0, 3},
		{"STUDY without patient", dimse.PatientRootFind, identifier("STUDY", U, ""), dicom.PatientID, 3},
		{"SERIES without study", dimse.StudyRootFind, identifier("SERIES", S, ""), U, 4},
		{"SERIES with an empty study", dimse.StudyRootFind, identifier("SERIES", U, "", S, ""), U, 4},
		{"SERIES of two studies", dimse.StudyRootFind, identifier("SERIES", U, `1.2.1\1.2.3`, S, ""), U, 3},
		{"SERIES of any study", dimse.StudyRootFind, identifier("SERIES", U, "*", S, ""), U, 4},
		{"IMAGE without series", dimse.StudyRootFind, identifier("IMAGE", U, "1.2.3", I, ""), S, 2},
		{"IMAGE without study", dimse.StudyRootFind, identifier("IMAGE", S, "1.2.3.1", I, ""), U, 1},
		{"two items", dimse.StudyRootFind, twoItems(), dicom.RequestAttributesSequence, -1},
		{"twice the same", dimse.StudyRootFind, twice("1.2.3", "1.2.3"), 0, 1},
		{"twice and different", dimse.StudyRootFind, twice("1.2.3", "1.2.1"), U, -1},
	} {
		list, status := strict.find(tt.model, tt.id)
		switch {
		case tt.offending == 0 && (status != nil || len(list) != tt.relaxed):
			t.Errorf("%s: %d answers, %v", tt.name, len(list), status)
		case tt.offending != 0 && status == nil:
			t.Errorf("%s: answered", tt.name)
		case tt.offending != 0 && (status.Status != dimse.StatusMismatch || !slices.Equal(status.OffendingElements, []dicom.Tag{tt.offending}) || status.ErrorComment == ""):
			t.Errorf("%s: %04X %v %q", tt.name, status.Status, status.OffendingElements, status.ErrorComment)
		}
		list, status = lenient.find(tt.model, tt.id)
		if tt.relaxed < 0 && status == nil || tt.relaxed >= 0 && len(list) != tt.relaxed {
			t.Errorf("%s, relational: %d answers %v, want %d", tt.name, len(list), status, tt.relaxed)
		}
	}
}

func twoItems() *dicom.Dataset {
	id := identifier("STUDY", dicom.StudyInstanceUID, "")
	id.Set(dicom.Element{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Items: []*dicom.Dataset{{}, {}}})
	return id
}

func twice(a, b string) *dicom.Dataset {
	id := identifier("STUDY", dicom.StudyInstanceUID, a)
	other := identifier("", dicom.StudyInstanceUID, b)
	id.Elements = append(id.Elements, other.Elements...)
	return id
}

// raw sends a query whose identifier is given as bytes and returns the final status and the pending ones.
func (s *service) raw(model string, id []byte) (final uint16, pending []uint16) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := dul.Connect(context.Background(), conn, dul.RequestorConfig{CallingAE: "TESTSCU", CalledAE: "OSTEON",
		Contexts: []dul.ProposedContext{{ID: 1, AbstractSyntax: model, TransferSyntaxes: []string{explicit}}}, Timers: dul.Timers{Linger: 1}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Close()
	c := dimse.NewConn(a)
	if err := c.Write(1, &dimse.Command{Field: dimse.CFindRQ, MessageID: 1, AffectedClass: model}, bytes.NewReader(id)); err != nil {
		s.t.Fatal(err)
	}
	for {
		m, err := c.Read()
		if err != nil {
			s.t.Fatal(err)
		}
		if m.Data != nil {
			io.Copy(io.Discard, m.Data)
		}
		if !dimse.IsPending(m.Command.Status) {
			return m.Command.Status, pending
		}
		pending = append(pending, m.Command.Status)
	}
}

// TestBehaviour29GroupLengthsAreNoKeys: some senders put them into identifiers, wrong ones too.
// Behaviour 29.
func TestBehaviour29GroupLengthsAreNoKeys(t *testing.T) {
	s := start(t)
	people(s)
	id := encode(t, identifier("STUDY", dicom.StudyInstanceUID, "1.2.3"), explicit)
	length := func(group uint16) []byte {
		b := binary.LittleEndian.AppendUint16(nil, group)
		return append(b, 0, 0, 'U', 'L', 4, 0, 99, 0, 0, 0)
	}
	at := bytes.Index(id, []byte{0x20, 0, 0x0d, 0})
	if at < 0 {
		t.Fatal("no group 0020")
	}
	whole := slices.Concat(length(8), id[:at], length(0x20), id[at:])
	if final, pending := s.raw(dimse.StudyRootFind, whole); final != 0 || !slices.Equal(pending, []uint16{dimse.StatusPending}) {
		t.Errorf("got %04X after %04X", final, pending)
	}
	if final, _ := s.raw(dimse.StudyRootFind, []byte("not a data set at all")); final != dimse.StatusCannotUnderstand {
		t.Errorf("nonsense: got %04X, want C000", final)
	}
}

// TestBehaviour23UnsupportedKeysAreTold: FF01 where a key is not matched or not known at the level.
// Behaviour 23.
func TestBehaviour23UnsupportedKeysAreTold(t *testing.T) {
	s := start(t)
	people(s)
	for _, tt := range []struct {
		name string
		id   *dicom.Dataset
		want uint16
	}{
		{"required keys", identifier("STUDY", dicom.StudyInstanceUID, "1.2.3", dicom.PatientName, "", dicom.StudyDate, "", dicom.ModalitiesInStudy, "",
			dicom.RetrieveAETitle, "", dicom.InstanceAvailability, "", dicom.NumberOfStudyRelatedSeries, "", dicom.NumberOfPatientRelatedStudies, ""), dimse.StatusPending},
		{"a key of another level", identifier("STUDY", dicom.StudyInstanceUID, "1.2.3", dicom.SeriesDescription, ""), dimse.StatusPendingWarning},
		{"an unknown key", identifier("STUDY", dicom.StudyInstanceUID, "1.2.3", dicom.ExposureTime, ""), dimse.StatusPendingWarning},
		{"a private key", func() *dicom.Dataset {
			id := identifier("STUDY", dicom.StudyInstanceUID, "1.2.3")
			id.Set(dicom.Element{Tag: 0x00090010, VR: dicom.LO, Value: []byte("ACME")})
			id.Set(dicom.Element{Tag: 0x00091001, VR: dicom.UN, Value: []byte{1, 2}})
			return id
		}(), dimse.StatusPendingWarning},
		{"returned, not matched", identifier("STUDY", dicom.StudyInstanceUID, "1.2.3", dicom.InstitutionName, ""), dimse.StatusPending},
		{"matched, not returned", identifier("STUDY", dicom.StudyInstanceUID, "1.2.3", dicom.InstitutionName, "X"), dimse.StatusPendingWarning},
	} {
		final, pending := s.raw(dimse.StudyRootFind, encode(t, tt.id, explicit))
		if final != 0 || !slices.Equal(pending, []uint16{tt.want}) {
			t.Errorf("%s: %04X after %04X, want %04X", tt.name, final, pending, tt.want)
		}
	}
}

// TestBehaviour30CountsAreRightAtOnce asks after every store.
// Behaviour 30.
func TestBehaviour30CountsAreRightAtOnce(t *testing.T) {
	s := start(t)
	find := s.client([]string{dimse.StudyRootFind, explicit}, []string{ctStorage, explicit}, []string{mrStorage, explicit})
	for i := 1; i <= 6; i++ {
		class, modality := ctStorage, "CT"
		if i%2 == 0 {
			class, modality = mrStorage, "MR"
		}
		sop := fmt.Sprintf("1.2.30.%d.%d", i%2, i)
		b := encode(t, image("1.2.30", fmt.Sprintf("1.2.30.%d", i%2), sop, 50, set(dicom.SOPClassUID, class), set(dicom.Modality, modality)), explicit)
		if r := store(t, find, class, sop, explicit, b); r.Status != 0 {
			t.Fatalf("status %04X", r.Status)
		}
		list, status := findOn(t, find, dimse.StudyRootFind, identifier("STUDY", dicom.StudyInstanceUID, "1.2.30", dicom.ModalitiesInStudy, "", dicom.SOPClassesInStudy, "",
			dicom.NumberOfStudyRelatedSeries, "", dicom.NumberOfStudyRelatedInstances, "", dicom.InstanceAvailability, "", dicom.NumberOfPatientRelatedInstances, ""))
		if status != nil || len(list) != 1 {
			t.Fatalf("after %d: %d answers, %v", i, len(list), status)
		}
		kinds := min(i, 2)
		for tag, want := range map[dicom.Tag]string{
			dicom.NumberOfStudyRelatedInstances: fmt.Sprint(i), dicom.NumberOfStudyRelatedSeries: fmt.Sprint(kinds),
			dicom.NumberOfPatientRelatedInstances: fmt.Sprint(i), dicom.InstanceAvailability: "ONLINE",
		} {
			if got := list[0].String(tag); got != want {
				t.Errorf("after %d: %v is %q, want %q", i, tag, got, want)
			}
		}
		if m, c := list[0].Strings(dicom.ModalitiesInStudy), list[0].Strings(dicom.SOPClassesInStudy); len(m) != kinds || len(c) != kinds {
			t.Errorf("after %d: modalities %v, classes %v", i, m, c)
		}
	}
}

// TestBehaviour31And32FindIsCancelledAndNeverCut: a cancelled query ends with FE00, another gives all it has.
// Behaviours 31, 32.
func TestBehaviour31And32FindIsCancelledAndNeverCut(t *testing.T) {
	s := start(t)
	const n = 150
	for i := range n {
		s.put(image("1.2.31", "1.2.31.1", fmt.Sprintf("1.2.31.1.%d", i+1), 10), explicit)
	}
	id := identifier("IMAGE", dicom.StudyInstanceUID, "1.2.31", dicom.SeriesInstanceUID, "1.2.31.1", dicom.SOPInstanceUID, "")
	if list, status := s.find(dimse.StudyRootFind, id); len(list) != n || status != nil {
		t.Errorf("%d answers, %v", len(list), status)
	}
	session := &dimse.Session{Value: &caller{title: "TESTSCU"}}
	got := 0
	r := s.Find(t.Context(), &dimse.FindRequest{Session: session, SOPClass: dimse.StudyRootFind, Identifier: id}, func(*dicom.Dataset, uint16) error {
		if got++; got == 3 {
			return dimse.ErrCancelled
		}
		return nil
	})
	if r.Status != dimse.StatusCancel || got != 3 {
		t.Errorf("status %04X after %d answers, want FE00 after 3", r.Status, got)
	}
	// The client stops listening; the association goes on to serve it.
	c := s.client([]string{dimse.StudyRootFind, explicit}, []string{dimse.VerificationClass, implicit})
	for range c.Find(t.Context(), dimse.QueryArgs{SOPClass: dimse.StudyRootFind, Identifier: id}) {
		break
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestBehaviour30AnswersOutliveSealing: what is said to be supported is answered and matched alike before and after
// the study was sealed.
// Behaviour 30.
func TestBehaviour30AnswersOutliveSealing(t *testing.T) {
	s := start(t)
	x := samples(t, "mr-epi-001.dcm")[0]
	s.putBytes(x.data, x.syntax)
	header, err := dicom.NewScanner(bytes.NewReader(x.data), x.syntax, dicom.Limits{}).Header()
	if err != nil {
		t.Fatal(err)
	}
	id := identifier("IMAGE", dicom.StudyInstanceUID, x.study, dicom.SeriesInstanceUID, header.String(dicom.SeriesInstanceUID))
	var keys []dicom.Tag
	for i := range header.Elements {
		tag := header.Elements[i].Tag
		if _, returned := dicomsvc.Supports(tag, dicomsvc.LevelImage); returned && id.Get(tag) == nil && tag != dicom.SpecificCharacterSet {
			id.Set(dicom.Element{Tag: tag, VR: header.Elements[i].VR})
			keys = append(keys, tag)
		}
	}
	ask := func() *dicom.Dataset {
		list, status := s.find(dimse.StudyRootFind, id)
		if len(list) != 1 || status != nil {
			t.Fatalf("%d answers, %v", len(list), status)
		}
		return list[0]
	}
	before := ask()
	for _, tag := range keys {
		if got, want := before.String(tag), header.String(tag); got != want {
			t.Errorf("%v: got %q, want %q", tag, got, want)
		}
	}
	if err := s.archive.SealNow(t.Context(), x.study); err != nil {
		t.Fatal(err)
	}
	after := ask()
	if !bytes.Equal(encode(t, before, explicit), encode(t, after, explicit)) {
		for _, tag := range keys {
			if before.String(tag) != after.String(tag) {
				t.Errorf("%v was answered before sealing, and is not now", tag)
			}
		}
	}
	for _, tag := range keys {
		value := before.String(tag)
		if matched, _ := dicomsvc.Supports(tag, dicomsvc.LevelImage); !matched || value == "" || before.Get(tag).VR == dicom.SQ {
			continue
		}
		other := identifier("IMAGE", dicom.StudyInstanceUID, x.study, dicom.SeriesInstanceUID, header.String(dicom.SeriesInstanceUID))
		other.Set(*before.Get(tag))
		if list, _ := s.find(dimse.StudyRootFind, other); len(list) != 1 {
			t.Errorf("%v does not match its own value", tag)
		}
	}
	if len(keys) < 30 {
		t.Errorf("%d keys asked for", len(keys))
	}
}

// TestBehaviour57AnswersAreWellFormed: no element twice, ascending tags, even lengths, nothing that was not asked for.
func TestBehaviour57AnswersAreWellFormed(t *testing.T) {
	s := start(t)
	people(s)
	id := identifier("SERIES", dicom.StudyInstanceUID, "1.2.3", dicom.SeriesInstanceUID, "", dicom.Modality, "")
	list, _ := s.find(dimse.StudyRootFind, id)
	for _, d := range list {
		var tags []dicom.Tag
		for _, el := range d.Elements {
			tags = append(tags, el.Tag)
			if len(el.Value)%2 != 0 {
				t.Errorf("%v has an odd length", el.Tag)
			}
		}
		want := []dicom.Tag{dicom.QueryRetrieveLevel, dicom.RetrieveAETitle, dicom.Modality, dicom.StudyInstanceUID, dicom.SeriesInstanceUID}
		if !slices.Equal(tags, want) {
			t.Errorf("got %v, want %v", tags, want)
		}
	}
}

func TestDCMTKFind(t *testing.T) {
	s := start(t)
	people(s)
	out := s.tool("findscu", "-S", "-aec", "OSTEON", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=smith*", "-k", "StudyInstanceUID", "-k", "NumberOfStudyRelatedInstances")
	if !strings.Contains(out, "[1.2.3") || !strings.Contains(out, "[2 ]") || strings.Count(out, "StudyInstanceUID") != 1 {
		t.Errorf("got %s", out)
	}
	out = s.tool("findscu", "-v", "-P", "-xi", "-aec", "OSTEON", "-k", "QueryRetrieveLevel=SERIES", "-k", "SeriesInstanceUID")
	if !strings.Contains(out, "DoesNotMatchSOPClass") {
		t.Errorf("a query without unique keys: %s", out)
	}
	for _, syntax := range []string{"-xe", "-xb", "-xi", "-xd"} {
		out := s.tool("findscu", "-S", syntax, "-aec", "OSTEON", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID")
		_ = out
		out = s.tool("findscu", "-P", syntax, "-aec", "OSTEON", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=P3", "-k", "PatientName")
		if !strings.Contains(out, "SMITH^JOHN") {
			t.Errorf("%s: got %s", syntax, out)
		}
	}
}
