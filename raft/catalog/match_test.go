package catalog

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"osteon/dicomsvc/dicom"
)

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		vr    dicom.VR
		key   string // values split at the backslash
		value string
		want  bool
	}{
		// Single value and universal.
		{dicom.LO, "", "anything", true},
		{dicom.LO, "", "", true},
		{dicom.LO, "*", "", true},
		{dicom.LO, "**", "x", true},
		{dicom.LO, "Head", "Head", true},
		{dicom.LO, "Head", "HEAD", false},
		{dicom.LO, "Head", "Head ", true},
		{dicom.LO, "Head", "", false},
		{dicom.LO, "Head", `Neck\Head`, true},
		{dicom.CS, `CT\MR`, "MR", true},
		{dicom.CS, `CT\MR`, "US", false},
		// Wild cards.
		{dicom.LO, "H*d", "Head", true},
		{dicom.LO, "H?d", "Head", false},
		{dicom.LO, "H??d", "Head", true},
		{dicom.LO, "*ea*", "Head", true},
		{dicom.LO, "*ea", "Head", false},
		{dicom.LO, "?*", "", false},
		{dicom.LO, "*?*?*", "ä", false},
		{dicom.LO, "?", "ä", true},
		{dicom.LO, "a*b*c", "abbc", true},
		{dicom.LO, "a*b*c", "abcb", false},
		{dicom.UI, "1.2*", "1.2.3", false},
		{dicom.UI, `1.2\1.3`, "1.3", true},
		// Names.
		{dicom.PN, "smith^JOHN", "Smith^John", true},
		{dicom.PN, "SMITH", "SMITH^JOHN", false},
		{dicom.PN, "SMITH*", "SMITH^JOHN", true},
		{dicom.PN, "SMITH^*", "SMITH", true},
		{dicom.PN, "SMITH", "SMITH^^^", true},
		{dicom.PN, "SMITH^^", "SMITH", true},
		{dicom.PN, "Harris^", "^Harris", false},
		{dicom.PN, "^Harris", "^Harris", true},
		{dicom.PN, "muller*", "Müller^Anna", true},
		{dicom.PN, "МЮЛЛЕР*", "Мюллер^Анна", true},
		{dicom.PN, "山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", true},
		{dicom.PN, "yamada^tarou", "Yamada^Tarou=山田^太郎", true},
		{dicom.PN, "yamada*=山*", "Yamada^Tarou=山田^太郎", true},
		{dicom.PN, "yamada*=田*", "Yamada^Tarou=山田^太郎", false},
		{dicom.PN, "=山田*", "Yamada^Tarou=山田^太郎", true},
		{dicom.PN, "=山田*", "Yamada^Tarou", false},
		// Dates and times.
		{dicom.DA, "20260101", "20260101", true},
		{dicom.DA, "20260101", "2026.01.01", true},
		{dicom.DA, "*", "20260101", true},
		{dicom.DA, "202601*", "20260131", true},
		{dicom.DA, "20260101-20260131", "20260131", true},
		{dicom.DA, "20260101-20260131", "20260201", false},
		{dicom.DA, "20260101-", "20270101", true},
		{dicom.DA, "20260101-", "20251231", false},
		{dicom.DA, "-20260101", "20260101", true},
		{dicom.DA, "-20260101", "", false},
		{dicom.DA, "20260131-20260101", "20260115", false},
		{dicom.TM, "10-11", "105959.999", true},
		{dicom.TM, "1000-1100", "110030", true},
		{dicom.TM, "1000-1100", "110100", false},
		{dicom.TM, "101500", "101500.000000", true},
		{dicom.TM, "10:15:00", "101500", true},
		{dicom.DT, "20260101", "20260101120000.000+0100", true},
		{dicom.DT, "20260101-20260102", "20260102235959", true},
		{dicom.DT, "20260101120000-0500", "20260101120000-0500", true},
		{dicom.DT, "20260101120000-0500-20260103", "20260102", true},
		{dicom.DT, "-20260103", "20260104", false},
		{dicom.DT, "2019-2020", "20200505", true},
		// Numbers.
		{dicom.IS, "1", "01", true},
		{dicom.IS, "1", "2", false},
		{dicom.DS, "1.50", "1.5", true},
		{dicom.IS, "x", "1", false},
	} {
		m := compile(Key{Tag: 1, VR: tc.vr, Values: strings.Split(tc.key, `\`)})
		if got := m.matches(attribute{vr: tc.vr, value: []byte(tc.value)}); got != tc.want {
			t.Errorf("%v key %q, value %q: got %v, want %v", tc.vr, tc.key, tc.value, got, tc.want)
		}
	}
	us := compile(Key{VR: dicom.US, Values: []string{"512"}})
	if !us.matches(attribute{vr: dicom.US, value: []byte{0, 2}}) || us.matches(attribute{vr: dicom.US, value: []byte{0, 3}}) {
		t.Error("US 512 does not match as a number")
	}
}

func TestMatchSequence(t *testing.T) {
	d := &dicom.Dataset{}
	for _, id := range []string{"R1", "R2"} {
		item := &dicom.Dataset{}
		item.SetStrings(dicom.RequestedProcedureID, id)
		item.SetStrings(dicom.ScheduledProcedureStepID, "S"+id)
		el := dicom.Element{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Items: []*dicom.Dataset{item}}
		if old := d.Get(dicom.RequestAttributesSequence); old != nil {
			el.Items = append(old.Items, item)
		}
		d.Set(el)
	}
	defined, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	undefined := undefine(t, defined)
	for _, tc := range []struct {
		item []Key
		want bool
	}{
		{nil, true},
		{[]Key{key(dicom.RequestedProcedureID)}, true},
		{[]Key{key(dicom.RequestedProcedureID, "R2")}, true},
		{[]Key{key(dicom.RequestedProcedureID, "R2"), key(dicom.ScheduledProcedureStepID, "SR2")}, true},
		{[]Key{key(dicom.RequestedProcedureID, "R2"), key(dicom.ScheduledProcedureStepID, "SR1")}, false},
		{[]Key{key(dicom.RequestedProcedureID, "R3")}, false},
		{[]Key{key(dicom.Tag(0x00400000), "9")}, true}, // group length
	} {
		m := compile(Key{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Item: tc.item})
		for i, set := range [][]byte{defined, undefined} {
			a, ok := findAttribute(set, dicom.RequestAttributesSequence)
			if !ok {
				t.Fatalf("encoding %d: no sequence", i)
			}
			if got := m.matches(a); got != tc.want {
				t.Errorf("encoding %d: %+v: got %v, want %v", i, tc.item, got, tc.want)
			}
		}
	}
	absent := compile(Key{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Item: []Key{key(dicom.RequestedProcedureID, "R1")}})
	if absent.matches(attribute{}) {
		t.Error("matched without a sequence")
	}
}

// undefine rewrites the sequence that a set consists of with undefined lengths throughout.
func undefine(t *testing.T, set []byte) []byte {
	t.Helper()
	a, _, ok := nextAttribute(set)
	if !ok {
		t.Fatal("no sequence")
	}
	out := append([]byte(nil), set[:8]...)
	out = append(out, 0xFF, 0xFF, 0xFF, 0xFF)
	eachItem(a.value, func(item []byte) bool {
		out = append(out, 0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF)
		out = append(out, item...)
		out = append(out, 0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0)
		return true
	})
	return append(out, 0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0)
}

// naiveMatch is the definition of wild cards.
func naiveMatch(p, s []rune) bool {
	if len(p) == 0 {
		return len(s) == 0
	}
	if p[0] == '*' {
		return naiveMatch(p[1:], s) || len(s) > 0 && naiveMatch(p, s[1:])
	}
	return len(s) > 0 && (p[0] == '?' || p[0] == s[0]) && naiveMatch(p[1:], s[1:])
}

func TestWildcardModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringOfN(rapid.SampledFrom([]rune("ab*?ä")), 0, 8, -1).Draw(t, "pattern")
		s := rapid.StringOfN(rapid.SampledFrom([]rune("abä")), 0, 10, -1).Draw(t, "text")
		if got, want := parsePattern(p).match(s), naiveMatch([]rune(p), []rune(s)); got != want {
			t.Fatalf("%q on %q: got %v, want %v", p, s, got, want)
		}
	})
}

func TestWildcardIsBounded(t *testing.T) {
	start := time.Now()
	for _, pattern := range []string{
		strings.Repeat("*?", 5000), strings.Repeat("a*", 500) + "b", strings.Repeat("*a", 5000), strings.Repeat("?*", 500) + "b",
	} {
		m := compile(Key{VR: dicom.LO, Values: []string{pattern}})
		for range 20 {
			m.matches(attribute{vr: dicom.LO, value: []byte(strings.Repeat("a", 1024))})
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("80 matches took %v", took)
	}
}

func TestKeyStrings(t *testing.T) {
	text := rapid.StringOf(rapid.SampledFrom([]rune{0, 1, 2, 'a', 0xFF, 0x101}))
	rapid.Check(t, func(t *rapid.T) {
		a, b := text.Draw(t, "a"), text.Draw(t, "b")
		ka, kb := string(appendKeyString(nil, a)), string(appendKeyString(nil, b))
		if strings.Compare(a, b) != strings.Compare(ka, kb) {
			t.Fatalf("%q and %q: order differs", a, b)
		}
		if a != b && strings.HasPrefix(ka, kb) {
			t.Fatalf("%q begins with %q", ka, kb)
		}
		got, rest, ok := cutKeyString([]byte(ka + kb))
		if !ok || got != a || string(rest) != kb {
			t.Fatalf("%q came back as %q, %q, %v", a, got, rest, ok)
		}
		low, high := appendKeyPrefix(nil, a), after(appendKeyPrefix(nil, a))
		within := ka >= string(low) && (high == nil || ka < string(high))
		if !within {
			t.Fatalf("%q is not in its own prefix range", a)
		}
	})
}

func TestKeyInts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int32().Draw(t, "a"), rapid.Int32().Draw(t, "b")
		ka, kb := string(appendKeyInt(nil, a)), string(appendKeyInt(nil, b))
		if (a < b) != (ka < kb) {
			t.Fatalf("%d and %d: order differs", a, b)
		}
	})
}

func TestTrimAttributes(t *testing.T) {
	small := set(t, dicom.StudyID, "1", dicom.AccessionNumber, "A1")
	long := set(t, dicom.StudyID, "1", dicom.AccessionNumber, "A1", dicom.ImageComments, strings.Repeat("x", 5000))
	for _, tc := range []struct {
		name string
		set  []byte
		want []byte
	}{
		{"fits", small, small},
		{"too long", long, small},
		{"torn", small[:len(small)-1], set(t, dicom.AccessionNumber, "A1")},
		{"none", nil, nil},
	} {
		if got := trimAttributes(tc.set, 4096); string(got) != string(tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
