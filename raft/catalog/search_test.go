package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"osteon/dicomsvc/dicom"
)

func TestSearch(t *testing.T) {
	c := openTest(t)
	var shots []shot
	for i := 1; i <= 3; i++ {
		for n := 1; n <= 2; n++ {
			s := ct(i, n, 1)
			if i == 2 && n == 2 {
				s.modality = "SR"
			}
			shots = append(shots, s)
		}
	}
	yamada := ct(4, 1, 1)
	yamada.name, yamada.date, yamada.accession = "Yamada^Tarou=山田^太郎", "", ""
	shots = append(shots, yamada)
	apply(t, c, at(0), items(t, shots...))
	study := func(n int) string { return ct(n, 0, 0).studyUID() }
	for _, tc := range []struct {
		name string
		q    Query
		want []string
	}{
		{"all studies, newest first", Query{Level: LevelStudy}, []string{study(3), study(2), study(1), study(4)}},
		{"offset and limit", Query{Level: LevelStudy, Offset: 1, Limit: 2}, []string{study(2), study(1)}},
		{"by ID", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "P2")}}, []string{study(2)}},
		{"by IDs", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "P3", "P2")}}, []string{study(2), study(3)}},
		{"by start of ID", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "P*")}}, []string{study(1), study(2), study(3), study(4)}},
		{"by end of ID", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "*2")}}, []string{study(2)}},
		{"by name", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientName, "MULLER2^ANNA")}}, []string{study(2)}},
		{"by start of name", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientName, "Müller*")}}, []string{study(1), study(2), study(3)}},
		{"by ideographic name", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientName, "山田*")}}, []string{study(4)}},
		{"by both names", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientName, "Yamada^Tarou=山田^太郎")}}, []string{study(4)}},
		{"by part of name", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientName, "*TAROU*")}}, []string{study(4)}},
		{"by dates", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyDate, "20260103-20260103")}}, []string{study(2)}},
		{"by date", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyDate, "20260102")}}, []string{study(1)}},
		{"since", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyDate, "20260103-")}}, []string{study(3), study(2)}},
		{"until", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyDate, "-20260103")}}, []string{study(2), study(1)}},
		{"by accession", Query{Level: LevelStudy, Keys: []Key{key(dicom.AccessionNumber, "A3")}}, []string{study(3)}},
		{"by modality", Query{Level: LevelStudy, Keys: []Key{key(dicom.ModalitiesInStudy, "SR")}}, []string{study(2)}},
		{"by modalities", Query{Level: LevelStudy, Keys: []Key{key(dicom.ModalitiesInStudy, "SR", "CT")}}, []string{study(3), study(2), study(1), study(4)}},
		{"by modality and date", Query{Level: LevelStudy, Keys: []Key{key(dicom.Modality, "CT"), key(dicom.StudyDate, "-20260103")}}, []string{study(2), study(1)}},
		{"by UIDs", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyInstanceUID, study(3), study(1), "9.9")}}, []string{study(1), study(3)}},
		{"by UID and other patient", Query{Level: LevelStudy, Keys: []Key{key(dicom.StudyInstanceUID, study(3)), key(dicom.PatientID, "P1")}}, nil},
		{"by count", Query{Level: LevelStudy, Keys: []Key{key(dicom.NumberOfStudyRelatedInstances, "1")}}, []string{study(4)}},
		{"ignored keys", Query{Level: LevelStudy, Keys: []Key{key(dicom.Tag(0x00080000), "12"), key(dicom.SpecificCharacterSet, "x"),
			key(dicom.SeriesNumber, "77"), key(dicom.Tag(0x00091001), "x"), key(dicom.PatientID, "P1")}}, []string{study(1)}},
		{"stars everywhere", Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "*"), key(dicom.StudyDate, "*"), key(dicom.PatientName, "*"),
			key(dicom.AccessionNumber, "A1")}}, []string{study(1)}},
		{"absent attribute", Query{Level: LevelStudy, Keys: []Key{key(dicom.ReferringPhysicianName, "X")}}, nil},
		{"series", Query{Level: LevelSeries, Keys: []Key{key(dicom.StudyInstanceUID, study(2))}}, []string{ct(2, 1, 1).seriesUID(), ct(2, 2, 1).seriesUID()}},
		{"series by modality", Query{Level: LevelSeries, Keys: []Key{key(dicom.Modality, "SR")}}, []string{ct(2, 2, 1).seriesUID()}},
		{"series by number and patient", Query{Level: LevelSeries, Keys: []Key{key(dicom.SeriesNumber, "2"), key(dicom.PatientID, "P1")}}, []string{ct(1, 2, 1).seriesUID()}},
		{"series by UID", Query{Level: LevelSeries, Keys: []Key{key(dicom.SeriesInstanceUID, ct(3, 2, 1).seriesUID())}}, []string{ct(3, 2, 1).seriesUID()}},
		{"series of another study", Query{Level: LevelSeries, Keys: []Key{key(dicom.StudyInstanceUID, study(1)),
			key(dicom.SeriesInstanceUID, ct(3, 2, 1).seriesUID())}}, nil},
		{"instances", Query{Level: LevelImage, Keys: []Key{key(dicom.StudyInstanceUID, study(3))}}, []string{ct(3, 1, 1).uid(), ct(3, 2, 1).uid()}},
		{"instance by UID", Query{Level: LevelImage, Keys: []Key{key(dicom.SOPInstanceUID, ct(3, 2, 1).uid(), "1.2")}}, []string{ct(3, 2, 1).uid()}},
		{"instance by UID in another study", Query{Level: LevelImage, Keys: []Key{key(dicom.SOPInstanceUID, ct(3, 2, 1).uid()),
			key(dicom.StudyInstanceUID, study(1))}}, nil},
		{"patients", Query{Level: LevelPatient}, []string{"P1", "P2", "P3", "P4"}},
		{"patient by ID", Query{Level: LevelPatient, Keys: []Key{key(dicom.PatientID, "P2")}}, []string{"P2"}},
		{"patients by name", Query{Level: LevelPatient, Keys: []Key{key(dicom.PatientName, "müller*")}}, []string{"P1", "P2", "P3"}},
		{"patient by ideographic name", Query{Level: LevelPatient, Keys: []Key{key(dicom.PatientName, "山田^太郎")}}, []string{"P4"}},
	} {
		if got, _ := find(t, c.Reader, tc.q); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestMatchAttributes(t *testing.T) {
	c := openTest(t)
	umlaut, second := ct(1, 1, 1), ct(1, 2, 2)
	second.modality = "SR"
	apply(t, c, at(0), items(t, umlaut, ct(1, 1, 2), second, ct(8, 1, 1)))
	q := Query{Level: LevelImage, Relational: true, Keys: []Key{key(dicom.SOPInstanceUID, umlaut.uid()), key(dicom.NumberOfPatientRelatedStudies)}}
	for m, err := range c.Search(context.Background(), Principal{}, &q) {
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			tag  dicom.Tag
			want string
		}{
			{dicom.SpecificCharacterSet, "ISO_IR 192"},
			{dicom.PatientName, "Müller1^Anna"},
			{dicom.PatientID, "P1"},
			{dicom.NumberOfPatientRelatedStudies, "2"},
			{dicom.StudyInstanceUID, umlaut.studyUID()},
			{dicom.ModalitiesInStudy, `CT\SR`},
			{dicom.SOPClassesInStudy, "1.2.840.10008.5.1.4.1.1.2"},
			{dicom.NumberOfStudyRelatedSeries, "2"},
			{dicom.NumberOfStudyRelatedInstances, "3"},
			{dicom.NumberOfSeriesRelatedInstances, "2"},
			{dicom.Modality, "CT"},
			{dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2"},
			{dicom.AvailableTransferSyntaxUID, "1.2.840.10008.1.2.1"},
			{dicom.InstanceAvailability, "ONLINE"},
			{dicom.InstanceNumber, "1"},
			{dicom.SliceLocation, "1.5"},
			{dicom.StudyDescription, "Thorax"},
		} {
			if got := strings.Join(m.Attributes.Strings(tc.tag), `\`); got != tc.want {
				t.Errorf("%v: got %q, want %q", tc.tag, got, tc.want)
			}
		}
		if !slices.IsSortedFunc(m.Attributes.Elements, func(a, b dicom.Element) int { return int(int64(a.Tag) - int64(b.Tag)) }) {
			t.Error("elements are not in order")
		}
	}
}

func TestSearchRefusals(t *testing.T) {
	c := openTest(t)
	deep := []Key{{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ}}
	for range maxDepth + 2 {
		deep = []Key{{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Item: deep}}
	}
	for i, q := range []Query{
		{},
		{Level: 9},
		{Level: LevelStudy, Limit: -1},
		{Level: LevelSeries},
		{Level: LevelSeries, Keys: []Key{key(dicom.StudyInstanceUID, "1", "2")}},
		{Level: LevelImage, Keys: []Key{key(dicom.StudyInstanceUID, "1")}},
		{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, strings.Repeat("x", maxPatternBytes+1))}},
		{Level: LevelStudy, Keys: []Key{key(dicom.StudyInstanceUID, make([]string, maxQueryValues)...)}},
		{Level: LevelStudy, Relational: true, Keys: deep},
	} {
		_, err := collect(c.Search(context.Background(), Principal{}, &q))
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("query %d: got %v, want ErrInvalid", i, err)
		}
	}
	for _, q := range []Query{
		{Level: LevelSeries, Keys: []Key{key(dicom.StudyInstanceUID, "1")}},
		{Level: LevelImage, Keys: []Key{key(dicom.StudyInstanceUID, "1"), key(dicom.SeriesInstanceUID, "2")}},
	} {
		if _, err := collect(c.Search(context.Background(), Principal{}, &q)); err != nil {
			t.Errorf("got %v", err)
		}
	}
}

func TestSearchIsCancelled(t *testing.T) {
	c := openTest(t)
	var add Add
	for i := range 300 {
		add.Items = append(add.Items, ct(i, 1, 1).item(t))
	}
	apply(t, c, at(0), add)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	var last error
	for _, err := range c.Search(ctx, Principal{}, &Query{Level: LevelStudy}) {
		last = err
		if n++; n == 5 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) || n > 5+checkEvery {
		t.Errorf("ended with %v after %d", last, n)
	}
}

// modelStudy is what a naive catalog knows of a study.
type modelStudy struct {
	shots  []shot // served
	series map[string][]shot
}

// TestSearchModel compares Search over random instances, sealed, unsealed and pending, with a naive map.
func TestSearchModel(t *testing.T) {
	base := openTest(t)
	index := uint64(0)
	rapid.Check(t, func(rt *rapid.T) {
		// One database serves all runs; a run's UIDs and patients carry its number.
		index++
		run := int(index) * 100
		draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		random := func() shot {
			s := ct(run+draw(5), draw(3), draw(4))
			s.patient = fmt.Sprintf("R%d-%d", run, s.study%3)
			s.name = []string{"Smith^John", "SMITH^Jane", "Müller^Anna", "山田^太郎"}[s.study%4]
			s.date = []string{"20260101", "20260115", "", "20260201"}[s.study%4]
			s.modality = []string{"CT", "MR", "SR"}[s.series]
			s.content = byte(draw(2))
			return s
		}
		model := map[string]*modelStudy{}
		served := map[string]byte{}
		remember := func(s shot) {
			if _, known := served[s.uid()]; known {
				return
			}
			served[s.uid()] = s.content
			m := model[s.studyUID()]
			if m == nil {
				m = &modelStudy{series: map[string][]shot{}}
				model[s.studyUID()] = m
			}
			m.shots = append(m.shots, s)
			m.series[s.seriesUID()] = append(m.series[s.seriesUID()], s)
		}
		var pending []AddItem
		packs := byte(0)
		for range 1 + draw(6) {
			var shots []shot
			for range 1 + draw(6) {
				shots = append(shots, random())
			}
			add := items(t, shots...)
			apply(t, base, at(int(index)), add)
			for _, s := range shots {
				remember(s)
			}
			if draw(2) == 0 {
				packs++
				sealSome(t, base, index, packs, shots[0].studyUID())
			}
		}
		for range draw(4) {
			s := random()
			pending = append(pending, s.item(t))
			remember(s)
		}
		reader, err := base.With(pending)
		if err != nil {
			rt.Fatal(err)
		}
		defer reader.Close()
		checkModel(rt, reader, run, model, draw)
	})
}

// sealSome seals all unsealed versions of a study.
func sealSome(t *testing.T, c *Catalog, run uint64, n byte, study string) {
	var list []AddItem
	for l, err := range c.Versions(context.Background(), study, "") {
		if err != nil {
			t.Fatal(err)
		}
		if l.State == VersionJournalled {
			list = append(list, AddItem{Instance: l.Instance})
		}
	}
	if len(list) == 0 {
		return
	}
	begin, seal := sealOf(n, list)
	begin.Encode[8], begin.Encode[9], begin.Pack[8], begin.Pack[9] = byte(run), byte(run>>8), byte(run), byte(run>>8)
	seal.Encode = begin.Encode
	mustOK(t, apply(t, c, at(int(run)), begin, seal))
}

func checkModel(t *rapid.T, r *Reader, run int, model map[string]*modelStudy, draw func(int) int) {
	level := []Level{LevelStudy, LevelSeries, LevelImage}[draw(3)]
	keys := []Key{key(dicom.PatientID, fmt.Sprintf("R%d-*", run))}
	name := []string{"", "smith*", "SMITH^JOHN", "muller^*", "山田*", "*an*"}[draw(6)]
	date := []string{"", "20260101", "20260102-20260131", "-20260115", "20260115-"}[draw(5)]
	modality := []string{"", "CT", "MR"}[draw(3)]
	if draw(4) == 0 {
		keys[0] = key(dicom.PatientID, fmt.Sprintf("R%d-1", run))
	}
	keys = append(keys, key(dicom.PatientName, name), key(dicom.StudyDate, date), key(dicom.Modality, modality))
	if draw(2) == 0 { // another plan
		keys = append(keys[1:], keys[0])
		keys[len(keys)-1].Values[0] = "*" + keys[len(keys)-1].Values[0]
	}
	tests := make([]matcher, len(keys))
	for i := range keys {
		tests[i] = compile(keys[i])
	}
	matches := func(s shot, modalities string) bool {
		for i, value := range []string{s.patient, s.name, s.date, modalities} {
			tag := []dicom.Tag{dicom.PatientID, dicom.PatientName, dicom.StudyDate, dicom.Modality}[i]
			for k := range tests {
				if keys[k].Tag == tag && !tests[k].matches(attribute{vr: dicom.VROf(tag), value: []byte(value)}) {
					return false
				}
			}
		}
		return true
	}
	want := map[string]string{}
	for uid, m := range model {
		mods := map[string]bool{}
		for _, s := range m.shots {
			mods[s.modality] = true
		}
		var list []string
		for k := range mods {
			list = append(list, k)
		}
		sort.Strings(list)
		counts := fmt.Sprintf("%s series %d instances %d", strings.Join(list, `\`), len(m.series), len(m.shots))
		if level == LevelStudy && matches(m.shots[0], strings.Join(list, `\`)) {
			want[uid] = counts
		}
		for series, shots := range m.series {
			if level == LevelSeries && matches(shots[0], shots[0].modality) {
				want[series] = counts + fmt.Sprintf(" of series %d", len(shots))
			}
			for _, s := range shots {
				if level == LevelImage && matches(s, s.modality) {
					want[s.uid()] = counts + fmt.Sprintf(" of series %d", len(shots))
				}
			}
		}
	}
	got := map[string]string{}
	for m, err := range r.Search(context.Background(), Principal{}, &Query{Level: level, Keys: keys, Relational: true}) {
		if err != nil {
			t.Fatal(err)
		}
		d := m.Attributes
		text := fmt.Sprintf("%s series %s instances %s", strings.Join(d.Strings(dicom.ModalitiesInStudy), `\`),
			d.String(dicom.NumberOfStudyRelatedSeries), d.String(dicom.NumberOfStudyRelatedInstances))
		uid := m.StudyInstanceUID
		if level >= LevelSeries {
			uid = m.SeriesInstanceUID
			text += " of series " + d.String(dicom.NumberOfSeriesRelatedInstances)
		}
		if level == LevelImage {
			uid = m.SOPInstanceUID
		}
		if _, twice := got[uid]; twice {
			t.Fatalf("%s came twice", uid)
		}
		got[uid] = text
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%v %+v:\n got %v\nwant %v", level, keys, got, want)
	}
}

// TestStudyQueryExaminesLittle shows that a query for studies reads no more than its hits call for, among
// 100,000 instances in 5,000 studies, some of which are sealed.
func TestStudyQueryExaminesLittle(t *testing.T) {
	studies := 5000
	if testing.Short() {
		studies = 1000
	}
	c := openTest(t)
	fillStudies(t, c, studies)
	for _, q := range []Query{
		{Keys: []Key{key(dicom.PatientID, "PAT0100")}},
		{Keys: []Key{key(dicom.PatientID, "PAT0100"), key(dicom.NumberOfPatientRelatedStudies), key(dicom.NumberOfStudyRelatedInstances)}},
		{Keys: []Key{key(dicom.PatientID, "PAT010*")}},
		{Keys: []Key{key(dicom.AccessionNumber, "A77")}},
		{Keys: []Key{key(dicom.StudyDate, "20260103"), key(dicom.ModalitiesInStudy, "CT")}},
		{Keys: []Key{key(dicom.StudyDate, "20260103"), key(dicom.Modality, "MR")}},
		{Keys: []Key{key(dicom.StudyDate, "20260103-20260105"), key(dicom.Modality, "CT")}},
		{Keys: []Key{key(dicom.StudyInstanceUID, ct(77, 0, 0).studyUID())}},
		{Keys: []Key{key(dicom.PatientName, "muller3*")}},
		{Limit: 50},
	} {
		q.Level = LevelStudy
		got, stats := find(t, c.Reader, q)
		if len(got) == 0 || stats.Examined > 3*len(got) {
			t.Errorf("%+v: examined %d rows for %d hits", q.Keys, stats.Examined, len(got))
		}
	}
}

// fillStudies adds studies of 20 instances in two series, every third an MR, of half as many patients, and
// seals the first studies.
func fillStudies(t *testing.T, c *Catalog, studies int) {
	random := rand.New(rand.NewSource(1))
	var add Add
	flush := func() {
		mustOK(t, apply(t, c, at(0), add))
		add.Items = nil
	}
	for i := range studies {
		first := len(add.Items)
		patient := fmt.Sprintf("PAT%04d", random.Intn(studies/2))
		for n := range 20 {
			s := ct(i, 1+n/10, n)
			if s.patient = patient; i%3 == 2 {
				s.modality = "MR"
			}
			add.Items = append(add.Items, s.item(t))
		}
		if i < 50 {
			list := slices.Clone(add.Items[first:])
			flush()
			begin, seal := sealOf(byte(i+1), list)
			mustOK(t, apply(t, c, at(1), begin, seal))
		} else if len(add.Items)+20 > MaxBatchItems {
			flush()
		}
	}
	if len(add.Items) > 0 {
		flush()
	}
}
