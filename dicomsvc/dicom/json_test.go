package dicom

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func le16(n ...uint16) (b []byte) {
	for _, v := range n {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

func le64(n ...uint64) (b []byte) {
	for _, v := range n {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func TestJSONElements(t *testing.T) {
	for _, c := range []struct {
		vr    VR
		value string
		want  string
	}{
		{AE, " STORE ", `"Value":["STORE"]`},
		{AS, "030Y", `"Value":["030Y"]`},
		{AT, "\x18\x00\x63\x10\x28\x00\x09\x00", `"Value":["00181063","00280009"]`},
		{CS, "A\\\\B ", `"Value":["A",null,"B"]`},
		{CS, "", ``},
		{CS, "\\ ", ``},
		{DA, "20260101", `"Value":["20260101"]`},
		{DS, "1.50\\-.5\\+2\\3.\\007\\1E5\\1e-3", `"Value":[1.50,-0.5,2,3,7,1E5,1e-3]`},
		{DS, "1.2.3\\abc\\0x1\\1e\\-", `"Value":["1.2.3","abc","0x1","1e","-"]`},
		{DS, "1e999\\1e9999", `"Value":[1e999,"1e9999"]`},
		{DT, "20260101120000.5+0100 ", `"Value":["20260101120000.5+0100"]`},
		{FD, string(le64(math.Float64bits(1.5), math.Float64bits(math.NaN()), math.Float64bits(math.Inf(-1)))), `"Value":[1.5,"NaN","-Inf"]`},
		{FL, string(binary.LittleEndian.AppendUint32(nil, math.Float32bits(0.1))), `"Value":[0.1]`},
		{IS, "12\\ 3 \\1.5", `"Value":[12,3,1.5]`},
		{LO, `a"b`, `"Value":["a\"b"]`},
		{LT, " a\\b\r\n\t\x1b ", `"Value":[" a\\b\r\n\t\u001b"]`},
		{OB, "\x01\x02", `"InlineBinary":"AQI="`},
		{OD, string(le64(1)), `"InlineBinary":"AQAAAAAAAAA="`},
		{OF, "\x01\x02\x03\x04", `"InlineBinary":"AQIDBA=="`},
		{OL, "\x01\x02\x03\x04", `"InlineBinary":"AQIDBA=="`},
		{OV, string(le64(1)), `"InlineBinary":"AQAAAAAAAAA="`},
		{OW, "\x01\x02", `"InlineBinary":"AQI="`},
		{PN, "Doe^John=ideo=phon\\=x", `"Value":[{"Alphabetic":"Doe^John","Ideographic":"ideo","Phonetic":"phon"},{"Ideographic":"x"}]`},
		{PN, "A\\\\B", `"Value":[{"Alphabetic":"A"},null,{"Alphabetic":"B"}]`},
		{PN, "^^^^", ``},
		{PN, "A^B^^= ^=C^", `"Value":[{"Alphabetic":"A^B","Phonetic":"C"}]`},
		{SH, "x<y ", `"Value":["x<y"]`},
		{SL, "\xff\xff\xff\xff", `"Value":[-1]`},
		{SQ, "", ``},
		{SS, "\xff\xff\x01\x00", `"Value":[-1,1]`},
		{ST, "x", `"Value":["x"]`},
		{SV, string(le64(1<<53-1, 1<<53, math.MaxUint64)), `"Value":[9007199254740991,"9007199254740992",-1]`},
		{TM, "1200", `"Value":["1200"]`},
		{UC, "a\\b", `"Value":["a","b"]`},
		{UI, "1.2\\1.3\x00", `"Value":["1.2","1.3"]`},
		{UL, "\xff\xff\xff\xff", `"Value":[4294967295]`},
		{UN, "\x00", `"InlineBinary":"AA=="`},
		{UR, "http://x/a\\b", `"Value":["http://x/a\\b"]`},
		{US, string(le16(1, 65535)), `"Value":[1,65535]`},
		{US, "\x01", `"InlineBinary":"AQ=="`},
		{UT, "x ", `"Value":["x"]`},
		{UV, string(le64(1, math.MaxUint64)), `"Value":[1,"18446744073709551615"]`},
	} {
		d := &Dataset{}
		tag := NewTag(9, 0x1001)
		d.Set(Element{Tag: tag, VR: c.vr, Value: []byte(c.value)})
		got, err := AppendJSON(nil, d, nil)
		if err != nil {
			t.Fatal(err)
		}
		vr := c.vr
		if c.vr == US && len(c.value)%2 == 1 {
			vr = UN
		}
		want := fmt.Sprintf(`{"00091001":{"vr":"%v"`, vr)
		if c.want != "" {
			want += "," + c.want
		}
		if want += "}}"; string(got) != want {
			t.Errorf("%v %q: got %s, want %s", c.vr, c.value, got, want)
		}
		checkJSON(t, d)
	}
}

func TestJSONBulk(t *testing.T) {
	icon := &Dataset{}
	icon.Set(Element{Tag: PixelData, VR: OB, Value: []byte{1, 2}})
	d := &Dataset{}
	d.Set(Element{Tag: IconImageSequence, VR: SQ, Items: []*Dataset{{}, icon}})
	d.Set(Element{Tag: PatientComments, VR: LT, Bulk: &Bulk{Offset: 4, Length: 9}})
	d.Set(Element{Tag: PixelData, VR: OW, Bulk: &Bulk{Length: -1, Encapsulated: true}})
	got, err := AppendJSON(nil, d, func(path []PathStep, el *Element) string {
		s := "u"
		for _, p := range path {
			s += fmt.Sprintf("/%s/%d", p.Tag.Hex(), p.Item)
		}
		return s + "/" + el.Tag.Hex()
	})
	want := `{"00104000":{"vr":"LT","BulkDataURI":"u/00104000"},"00880200":{"vr":"SQ","Value":[{},{"7FE00010":{"vr":"OB","BulkDataURI":"u/00880200/1/7FE00010"}}]},` +
		`"7FE00010":{"vr":"OW","BulkDataURI":"u/7FE00010"}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, want %s, %v", got, want, err)
	}
	if got, _ = AppendJSON(nil, d, nil); strings.Contains(string(got), "00104000") || !strings.Contains(string(got), "AQI=") {
		t.Errorf("without URIs: got %s", got)
	}
	back, err := ParseJSON([]byte(want), Limits{})
	if err != nil || back.Get(PixelData).Bulk.URI != "u/7FE00010" {
		t.Errorf("parsed: %+v, %v", back, err)
	}
	again, err := AppendJSON(nil, back, nil)
	if err != nil || string(again) != want {
		t.Errorf("again: got %s, %v", again, err)
	}
}

func TestParseJSON(t *testing.T) {
	d, err := ParseJSON([]byte(`{
		"00280010": {"Value": [512], "vr": "US"},
		"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"}, null]},
		"00080018": {"vr": "UI", "Value": ["1.2.3"], "other": [{"x": [1]}]},
		"00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}, {}, null]},
		"00189087": {"vr": "FD", "Value": [1.5, "NaN"]},
		"0020930A": {"vr": "SV", "Value": ["9007199254740993"]},
		"00280009": {"vr": "AT", "Value": ["00181063"]}}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[Tag]string{
		Rows: "512", PatientName: "Wang^XiaoDong=王^小东", SOPInstanceUID: "1.2.3", DiffusionBValue: "1.5", 0x0020930A: "9007199254740993",
		FrameIncrementPointer: "00181063", SpecificCharacterSet: "ISO_IR 192",
	} {
		if got := d.String(tag); got != want {
			t.Errorf("%v: got %q, want %q", tag, got, want)
		}
	}
	if items := d.Get(ReferencedImageSequence).Items; len(items) != 3 || items[0].String(ReferencedSOPInstanceUID) != "1.2" || items[0].Charset() != utf8Term {
		t.Errorf("got %v", items)
	}
	deep := func(n int) string {
		return strings.Repeat(`{"00081140":{"vr":"SQ","Value":[`, n) + "{}" + strings.Repeat(`]}}`, n)
	}
	for _, c := range []struct {
		in   string
		want error
	}{
		{deep(64), nil},
		{deep(65), ErrLimit},
		{deep(100_000), ErrLimit},
		{`{"00100020":{"vr":"LO","x":` + strings.Repeat("[", 100_000), ErrLimit},
		{``, ErrMalformed},
		{`[]`, ErrMalformed},
		{`{}{}`, ErrMalformed},
		{`{"PatientID":{"vr":"LO"}}`, ErrMalformed},
		{`{"FFFEE000":{"vr":"LO"}}`, ErrMalformed},
		{`{"00100020":{"vr":"XX"}}`, ErrMalformed},
		{`{"00100020":{"vr":"LO","Value":"x"}}`, ErrMalformed},
		{`{"00100020":{"vr":"LO","Value":[["x"]]}}`, ErrMalformed},
		{`{"00100020":{"vr":"LO","Value":[true]}}`, ErrMalformed},
		{`{"00280010":{"vr":"US","Value":[65536]}}`, ErrMalformed},
		{`{"00280010":{"vr":"US","Value":[-1]}}`, ErrMalformed},
		{`{"00280010":{"vr":"US","Value":[{"00080018":{"vr":"UI"}}]}}`, ErrMalformed},
		{`{"7FE00010":{"vr":"OW","InlineBinary":"!"}}`, ErrMalformed},
		{`{"7FE00010":{"vr":"OW","InlineBinary":"AQI=","BulkDataURI":"x","Value":[1]}}`, ErrMalformed},
	} {
		if _, err := ParseJSON([]byte(c.in), Limits{}); !errors.Is(err, c.want) {
			t.Errorf("%.80s: got %v, want %v", c.in, err, c.want)
		}
	}
}

// TestJSONAgainstDCMTK compares with dcm2json over the corpus, where both are there.
func TestJSONAgainstDCMTK(t *testing.T) {
	tool, err := exec.LookPath("dcm2json")
	if err != nil || testing.Short() {
		t.Skip("dcm2json is not installed, or tests are to be short")
	}
	compared := 0
	for _, rel := range corpusFiles(t) {
		path := filepath.Join(corpusDir, rel)
		info, err := os.Stat(path)
		if err != nil || info.Size() > 100<<10 {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := scan(b)
		if err != nil {
			continue
		}
		theirs, err := exec.Command(tool, "-fc", path).Output()
		if err != nil {
			continue
		}
		ours, err := AppendJSON(nil, s.Dataset(), func([]PathStep, *Element) string { return "" })
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			continue
		}
		var a, o map[string]any
		if json.Unmarshal(theirs, &o) != nil {
			continue // dcm2json writes some files as JSON that is none
		}
		if err := json.Unmarshal(ours, &a); err != nil {
			t.Errorf("%s: %v", rel, err)
			continue
		}
		if filepath.Base(rel) == "chrSQEncoding.dcm" {
			continue // dcm2json does not convert an item's own character set
		}
		compared++
		differences(t, rel, a, o)
	}
	t.Logf("%d files compared", compared)
}

// differences compares two data sets; dcm2json writes pixel data where we were told not to, does not say UTF-8 in every item, and pads odd values.
func differences(t *testing.T, where string, ours, theirs map[string]any) {
	for key, want := range theirs {
		if strings.HasPrefix(key, "7FE0") || key == "FFFCFFFC" || key == "00080005" || strings.HasSuffix(key, "0000") {
			continue
		}
		at := where + " " + key
		got, ok := ours[key].(map[string]any)
		if !ok {
			t.Errorf("%s: missing, theirs %.200v", at, want)
			continue
		}
		w := want.(map[string]any)
		if got["vr"] != w["vr"] || !sameInline(got["InlineBinary"], w["InlineBinary"]) {
			t.Errorf("%s: got %.200v, theirs %.200v", at, got, want)
		}
		sameValues(t, at, got["Value"], w["Value"])
	}
	for key := range ours {
		if _, ok := theirs[key]; !ok && key != "00080005" && !strings.HasPrefix(key, "7FE0") {
			t.Errorf("%s %s: only ours, %.200v", where, key, ours[key])
		}
	}
}

func sameInline(got, want any) bool {
	if got == want {
		return true
	}
	g, ok1 := got.(string)
	w, ok2 := want.(string)
	b1, err1 := base64.StdEncoding.DecodeString(g)
	b2, err2 := base64.StdEncoding.DecodeString(w)
	return ok1 && ok2 && err1 == nil && err2 == nil && bytes.Equal(append(b1, 0), b2)
}

func sameValues(t *testing.T, where string, got, want any) {
	g, _ := got.([]any)
	w, _ := want.([]any)
	if len(g) != len(w) {
		t.Errorf("%s: got %.200v, theirs %.200v", where, got, want)
		return
	}
	for i := range g {
		item, isItem := g[i].(map[string]any)
		other, otherItem := w[i].(map[string]any)
		a, isNumber := g[i].(float64)
		b, otherNumber := w[i].(float64)
		switch {
		case isNumber && otherNumber:
			// FL is written with the digits that tell one float from its neighbours.
			if float32(a) != float32(b) {
				t.Errorf("%s: got %v, theirs %v", where, a, b)
			}
		case isItem && otherItem && item["Alphabetic"] == nil && item["Ideographic"] == nil:
			differences(t, fmt.Sprintf("%s[%d]", where, i), item, other)
		case !reflect.DeepEqual(g[i], w[i]):
			t.Errorf("%s: got %.200v, theirs %.200v", where, g[i], w[i])
		}
	}
}
