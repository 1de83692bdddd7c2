package dicom

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/suyashkumar/dicom/pkg/tag"
	"github.com/suyashkumar/dicom/pkg/uid"
)

// TestDictionaryAgrees compares the generated dictionary with an independent one.
func TestDictionaryAgrees(t *testing.T) {
	compared := 0
	for i, e := range dictionary {
		if i > 0 && dictionary[i-1].tag >= e.tag {
			t.Fatalf("dictionary is out of order at %v", e.tag)
		}
		info, err := tag.Find(tag.Tag{Group: e.tag.Group(), Element: e.tag.Element()})
		if err != nil || e.vr == vrNone || e.keyword == "" || info.Keyword == "" || masked(e.tag) != e.tag || e.tag.Group()>>8 == 0x60 {
			continue
		}
		compared++
		if info.Keyword != e.keyword && !reworded[e.tag] {
			t.Errorf("%v: keyword %s, other dictionary %s", e.tag, e.keyword, info.Keyword)
		}
		ok := false
		for _, vr := range info.VRs {
			ok = ok || vr == e.vr.String()
		}
		if !ok && !reworded[e.tag] {
			t.Errorf("%v %s: VR %v, other dictionary %v", e.tag, e.keyword, e.vr, info.VRs)
		}
	}
	if compared < 4500 {
		t.Errorf("only %d tags compared", compared)
	}
}

// reworded are tags that the other dictionary names in its own way.
var reworded = map[Tag]bool{CommandGroupLength: true}

func TestUIDsAgree(t *testing.T) {
	for s := range TransferSyntaxes {
		if info, err := uid.Lookup(s.UID); err == nil && info.Type != uid.TypeTransferSyntax {
			t.Errorf("%s %s: other table has a %s", s.UID, s.Name, info.Type)
		}
		if !ValidUID(s.UID) {
			t.Errorf("%s: not a UID", s.UID)
		}
	}
	n := 0
	for u, name := range StorageClasses {
		n++
		if !ValidUID(u) || name == "" || SOPClassName(u) != name {
			t.Errorf("%s %q", u, name)
		}
	}
	if n < 175 {
		t.Errorf("%d storage classes", n)
	}
}

func TestTags(t *testing.T) {
	for _, c := range []struct {
		tag     Tag
		vr      VR
		keyword string
	}{
		{PatientID, LO, "PatientID"},
		{0x60023000, OW, "OverlayData"},
		{0x60FE0010, US, "OverlayRows"},
		{0x50040005, US, "CurveDimensions"},
		{0x00203142, CS, "SourceImageIDs"},
		{0x00090010, LO, ""},
		{0x00091010, UN, ""},
		{0x60010010, LO, ""},
		{0x00080000, UL, ""},
		{PixelData, OW, "PixelData"},
		{SmallestImagePixelValue, US, "SmallestImagePixelValue"},
		{CommandField, US, "CommandField"},
		{0x0010FFFF, UN, ""},
	} {
		if vr := VROf(c.tag); vr != c.vr || c.tag.Keyword() != c.keyword {
			t.Errorf("%v: got %v %q, want %v %q", c.tag, vr, c.tag.Keyword(), c.vr, c.keyword)
		}
	}
	for _, s := range []string{"PatientID", "00100020", "(0010,0020)"} {
		if tag, ok := ParseTag(s); !ok || tag != PatientID {
			t.Errorf("%s: got %v %v", s, tag, ok)
		}
	}
	for _, s := range []string{"", "PatientId", "0010002", "0010002G", "(0010;0020)"} {
		if tag, ok := ParseTag(s); ok {
			t.Errorf("%s: got %v", s, tag)
		}
	}
	if PatientID.String() != "(0010,0020)" || PatientID.Hex() != "00100020" {
		t.Errorf("got %v %v", PatientID, PatientID.Hex())
	}
}

func TestValidUID(t *testing.T) {
	long := "1"
	for len(long) < 64 {
		long += "0"
	}
	for s, want := range map[string][2]bool{
		"1.2.3": {true, true}, "0": {true, true}, "1.0.3": {true, true}, long: {true, true},
		"1.02": {false, true}, "1.2a": {false, true}, "ad111191-79e4-4892-9b91-2f84967a4b23": {false, true}, "dccc95_9": {false, true},
		long + "0": {}, "": {}, ".": {}, "1.": {}, ".1": {}, "1..2": {}, "..": {}, "1.2*": {}, "1?": {}, `1\2`: {}, "1,2": {}, "1%2e": {}, "../../x": {}, "/etc/x": {}, "1.2\x003": {}, " 1.2": {}, "１.２": {},
	} {
		if got := [2]bool{ValidUID(s), UsableUID(s)}; got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

// TestGenerated runs the generator on the standard's tables, where they lie beside the repository, and wants the committed files.
func TestGenerated(t *testing.T) {
	const tables = "../../../shared/standard"
	if _, err := os.Stat(tables); err != nil || testing.Short() {
		t.Skip("no tables beside the repository, or tests are to be short")
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", "gen.go", tables, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"dict_gen.go", "sopclass_gen.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what gen.go makes: run it again (%v)", name, err)
		}
	}
}
