package dicom

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func readFile(t testing.TB, name string) *Dataset {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	s, err := scan(b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s.Dataset()
}

// Behaviour 50.
func TestCharsetFiles(t *testing.T) {
	japanese := "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"
	for _, c := range []struct {
		file, want string
		nested     bool
	}{
		{"chrArab.dcm", "قباني^لنزار", false},
		{"chrFren.dcm", "Buc^Jérôme", false},
		{"chrGerm.dcm", "Äneas^Rüdiger", false},
		{"chrH31.dcm", "Yamada^Tarou=山田^太郎=やまだ^たろう", false},
		{"chrH32.dcm", japanese, false},
		{"chrI2.dcm", "Hong^Gildong=洪^吉洞=홍^길동", false},
		{"chrX2.dcm", "Wang^XiaoDong=王^小东=", false},
		{"chrSQEncoding.dcm", japanese, true},
		{"chrSQEncoding1.dcm", japanese, true},
	} {
		d := readFile(t, c.file)
		if c.nested {
			d = d.Get(RequestedProcedureCodeSequence).Items[0]
		}
		if got := d.String(PatientName); got != c.want {
			t.Errorf("%s: got %q, want %q", c.file, got, c.want)
		}
		u := d.Clone()
		u.ToUTF8()
		if got := u.String(PatientName); got != c.want || u.Charset() != utf8Term {
			t.Errorf("%s in UTF-8: got %q in %q, want %q", c.file, got, u.Charset(), c.want)
		}
	}
}

func TestDecodeText(t *testing.T) {
	for _, c := range []struct {
		name, charset, in, want string
		vr                      VR
	}{
		{"latin 1", "ISO_IR 100", "J\xe9r\xf4me", "Jérôme", LO},
		{"latin 2", "ISO_IR 101", "Wa\xb3\xeasa", "Wałęsa", LO},
		{"cyrillic", "ISO_IR 144", "\xbb\xee\xdacee\xdc\xd1yp\xd3", "Люкceeмбypг", LO},
		{"greek", "ISO_IR 126", "\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος", LO},
		{"hebrew", "ISO_IR 138", "\xf9\xf8\xe5\xef", "שרון", LO},
		{"latin 5", "ISO_IR 148", "\xc7avu\xfeo\xf0lu", "Çavuşoğlu", LO},
		{"latin 9", "ISO_IR 203", "\xa4 \xbcuvre", "€ Œuvre", LO},
		{"thai", "ISO_IR 166", "\xb9\xd2", "นา", LO},
		{"katakana", "ISO_IR 13", "\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ", LO},
		{"utf-8", "ISO_IR 192", "王", "王", LO},
		{"bad utf-8", "ISO_IR 192", "a\xffb", "a\uFFFDb", LO},
		{"gbk", "GBK", "\xcd\xf5^\xd0\xa1\xb6\xab", "王^小东", PN},
		{"gb18030 four bytes", "GB18030", "\x81\x30\x81\x30", "\u0080", LO},
		{"gb2312 escaped", `\ISO 2022 IR 58`, "Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东=", PN},
		{"gb2312 without escape", `\ISO 2022 IR 58`, "\xd5\xc5", "张", PN},
		{"greek and cyrillic by escape", `ISO 2022 IR 100\ISO 2022 IR 144\ISO 2022 IR 126`, "Dionysios=\x1b-F\xc4\xe9\x1b-L\xbb\xee^\xe9", "Dionysios=ΔιЛю^é", PN},
		{"reset at caret", `ISO 2022 IR 100\ISO 2022 IR 144`, "\x1b-L\xbb^\xe9", "Л^é", PN},
		{"no reset at caret outside PN", `ISO 2022 IR 100\ISO 2022 IR 144`, "\x1b-L\xbb^\xee", "Л^ю", LO},
		{"reset at line end", `ISO 2022 IR 100\ISO 2022 IR 144`, "\x1b-L\xbb\r\n\xe9", "Л\r\né", ST},
		{"supplement kanji", `\ISO 2022 IR 159`, "\x1b$(D\x30\x21\x1b(B", "丂", LO},
		{"no charset, utf-8", "", "Jérôme", "Jérôme", LO},
		{"no charset, latin 1", "", "J\xe9r", "Jér", LO},
		{"unknown charset", "X-MAC", "J\xe9r", "Jér", LO},
		{"misspelt", "ISO-IR 100", "J\xe9r", "Jér", LO},
		{"misspelt 2022", "ISO 2022-IR 100", "J\xe9r", "Jér", LO},
		{"unknown escape stays", `\ISO 2022 IR 87`, "a\x1b%Gb", "a\x1b%Gb", LO},
		{"escape at the end", `\ISO 2022 IR 87`, "a\x1b$B", "a", LO},
		{"half a character", `\ISO 2022 IR 87`, "\x1b$B\x3b", "\uFFFD", LO},
	} {
		if got := decodeText([]byte(c.in), func() string { return c.charset }, c.vr); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestSplitAfterDecode has characters whose second byte is a backslash.
// Behaviour 50.
func TestSplitAfterDecode(t *testing.T) {
	for _, c := range []struct{ charset, in, first string }{
		{"GBK", "\x81\x5c\\B", "乗"},
		{`\ISO 2022 IR 87`, "\x1b$B\x3b\x5c\x1b(B\\B", "七"},
	} {
		d := &Dataset{}
		d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte(c.charset)})
		d.Set(Element{Tag: OtherPatientNames, VR: PN, Value: []byte(c.in)})
		got := d.Strings(OtherPatientNames)
		if len(got) != 2 || got[1] != "B" || len([]rune(got[0])) != 1 {
			t.Errorf("%s: got %q", c.charset, got)
		}
	}
}

func TestEncodeCharset(t *testing.T) {
	for _, c := range []struct{ charset, text string }{
		{"ISO_IR 100", "Jérôme"},
		{"ISO_IR 144", "Люксембург"},
		{"ISO_IR 192", "王^小东=Ж"},
		{"GB18030", "王^小东"},
		{"GBK", "王^小东"},
		{`\ISO 2022 IR 87`, "Yamada^Tarou=山田^太郎=やまだ^たろう"},
		{`ISO 2022 IR 13\ISO 2022 IR 87`, "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"},
		{`\ISO 2022 IR 149`, "Hong^Gildong=洪^吉洞=홍^길동"},
		{`\ISO 2022 IR 58`, "Zhang^XiaoDong=张^小东"},
		{`\ISO 2022 IR 87\ISO 2022 IR 159`, "丂山^丂"},
		{`ISO 2022 IR 100\ISO 2022 IR 144\ISO 2022 IR 126`, "é=ΔЛé^é"},
	} {
		d := &Dataset{}
		d.SetStrings(PatientName, c.text)
		item := &Dataset{}
		d.Set(Element{Tag: ReferencedStudySequence, VR: SQ, Items: []*Dataset{item}})
		item.SetStrings(PatientComments, c.text)
		b, err := d.EncodeCharset(nil, ExplicitVRLittleEndian, c.charset)
		if err != nil {
			t.Errorf("%s: %v", c.charset, err)
			continue
		}
		back, err := Decode(b, ExplicitVRLittleEndian, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := back.String(PatientName); got != c.text || back.Charset() != c.charset {
			t.Errorf("%s: got %q in %q, want %q", c.charset, got, back.Charset(), c.text)
		}
		if got := back.Get(ReferencedStudySequence).Items[0].String(PatientComments); got != c.text {
			t.Errorf("%s in item: got %q, want %q", c.charset, got, c.text)
		}
	}
	d := &Dataset{}
	d.SetStrings(PatientName, "王")
	if _, err := d.EncodeCharset(nil, ExplicitVRLittleEndian, "ISO_IR 100"); !errors.Is(err, ErrCharset) {
		t.Errorf("Chinese in Latin-1: got %v", err)
	}
}

func TestFoldName(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Buc^Jérôme", "buc^jerome"},
		{"BUC^JEROME", "buc^jerome"},
		{"Äneas^Rüdiger^^^", "aneas^rudiger"},
		{"Straße", "strasse"},
		{"  Doe ^ John  =", "doe^john="},
		{"Doe^J*", "doe^j*"},
		{"ガンダム", "ガンダム"},
		{"홍^길동", "홍^길동"},
		{"Ελλάς", "ελλασ"},
		{"", ""},
	} {
		if got := FoldName(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestStrings(t *testing.T) {
	d := &Dataset{}
	d.Set(Element{Tag: ImageType, VR: CS, Value: []byte("ORIGINAL\\PRIMARY\\ AXIAL \x00")})
	if got, want := d.Strings(ImageType), []string{"ORIGINAL", "PRIMARY", "AXIAL"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := d.String(ImageType); got != "ORIGINAL" {
		t.Errorf("first value: got %q", got)
	}
	d.Set(Element{Tag: PatientComments, VR: LT, Value: []byte(" a\\b ")})
	if got := d.Strings(PatientComments); len(got) != 1 || got[0] != ` a\b` {
		t.Errorf("LT: got %q", got)
	}
	d.Set(Element{Tag: PatientID, VR: UN, Value: []byte("P1 ")})
	if got := d.String(PatientID); got != "P1" {
		t.Errorf("UN read by the dictionary: got %q", got)
	}
	d.Set(Element{Tag: Rows, VR: US, Value: []byte{0, 2}})
	if n, ok := d.Int(Rows); n != 512 || !ok || d.String(Rows) != "512" {
		t.Errorf("Rows: got %d %v %q", n, ok, d.String(Rows))
	}
	d.SetInt(NumberOfFrames, 12)
	if n, ok := d.Int(NumberOfFrames); n != 12 || !ok {
		t.Errorf("NumberOfFrames: got %d %v", n, ok)
	}
	if _, ok := d.Int(Columns); ok {
		t.Error("absent Columns has a number")
	}
	d.Remove(Rows)
	if d.Get(Rows) != nil || d.Len() != 4 {
		t.Errorf("after Remove: %d elements", d.Len())
	}
}
