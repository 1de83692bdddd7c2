package dicom

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

var fuzzSyntaxes = [...]string{ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGBaseline8Bit, RLELossless,
	MPEG2MPML, "1.2.3", DeflatedExplicitVRLittleEndian}

// seedSets are data sets in Explicit VR Little Endian that between them reach most of the parser.
func seedSets(t testing.TB) [][]byte {
	header := ctHeader(t)
	seeds := [][]byte{nil, header, append(bytes.Clone(header), encapsulatedValue([]byte{}, []byte{0xFF, 0xD8, 1, 2}, []byte{3, 4})...)}
	for _, s := range []string{
		"\x08\x00\x40\x11UN\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\x0a\x00\x00\x00\x08\x00\x50\x11\x02\x00\x00\x001\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00",
		"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x50\x11UI\x02\x001\x00\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00",
		"\x08\x00\x40\x11SQ\x00\x00\x08\x00\x00\x00\xfe\xff\x00\xe0\x00\x00\x00\x00",
		"\x08\x00\x05\x00CS\x10\x00\\ISO 2022 IR 87 \x10\x00\x10\x00PN\x0a\x00\x1b$B\x3b\x5c\x1b(B\\B",
		"\x08\x00\x16\x00??\x02\x001\x00\x09\x00\x01\x00ZZ\x00\x00\x02\x00\x00\x00ab\xfc\xff\xfc\xffOB\x00\x00\x02\x00\x00\x00\x00\x00",
	} {
		seeds = append(seeds, []byte(s))
	}
	return seeds
}

func encapsulatedValue(items ...[]byte) []byte {
	b := AppendElementHeader(nil, true, false, PixelData, OB, undefinedLength)
	for _, item := range items {
		b = AppendElementHeader(b, true, false, Item, 0, uint32(len(item)))
		b = append(b, item...)
	}
	return AppendElementHeader(b, true, false, SequenceDelimitationItem, 0, 0)
}

// FuzzDataset decodes in every syntax, as a whole and through the scanner byte by byte, and holds the results against each other; what decodes is
// encoded, decoded again and written as JSON.
func FuzzDataset(f *testing.F) {
	for _, b := range seedSets(f) {
		for i := range fuzzSyntaxes {
			f.Add(b, uint8(i))
		}
	}
	lim := Limits{Elements: 2000, Items: 500, InflateBytes: 1 << 20}
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		syntax := fuzzSyntaxes[int(n)%len(fuzzSyntaxes)]
		whole, err := Decode(b, syntax, lim)
		s := NewScanner(iotest.OneByteReader(bytes.NewReader(b)), syntax, lim)
		_, err2 := s.Header()
		if err2 == nil {
			err2 = s.Rest()
		}
		if (err == nil) != (err2 == nil) {
			t.Fatalf("Decode: %v; Scanner: %v", err, err2)
		}
		if err != nil {
			checkKind(t, err)
			checkKind(t, err2)
			return
		}
		if !SyntaxOf(syntax).Deflated && s.Offset() != int64(len(b)) {
			t.Fatalf("scanner stopped at %d of %d", s.Offset(), len(b))
		}
		checkFrames(t, s.Frames(), s.Offset())
		sameHeader(t, whole, s.Dataset())
		checkEncode(t, whole)
		checkJSON(t, whole)
		_, _ = ExtractFacts(whole)
		whole.Clone().ToUTF8()
	})
}

func checkKind(t *testing.T, err error) {
	t.Helper()
	var e *ParseError
	if !errors.As(err, &e) || !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrNotDICOM) {
		t.Fatalf("error of no kind: %v", err)
	}
}

func checkFrames(t *testing.T, table *FrameTable, end int64) {
	t.Helper()
	if table == nil {
		return
	}
	var ex []Extent
	for i := range min(table.Len(), 1000) {
		var err error
		if ex, err = table.Frame(ex[:0], i); err != nil || len(ex) == 0 {
			t.Fatalf("frame %d of %d: %v %v", i, table.Len(), ex, err)
		}
		for _, x := range ex {
			if x.Offset < 0 || x.Length < 0 || x.Offset+x.Length > end {
				t.Fatalf("frame %d outside the stream of %d bytes: %v", i, end, x)
			}
		}
	}
	raw, err := table.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseFrameTable(raw)
	if err != nil || !reflect.DeepEqual(back, table) {
		t.Fatalf("frame table %+v came back as %+v, %v", table, back, err)
	}
}

// sameHeader compares tags, VRs and values, of repeated elements the first; the scanner keeps pixel data outside.
func sameHeader(t *testing.T, whole, scanned *Dataset) {
	t.Helper()
	i := 0
	for n, el := range scanned.Elements {
		if n > 0 && scanned.Elements[n-1].Tag == el.Tag {
			continue
		}
		for i < len(whole.Elements) && whole.Elements[i].Tag < el.Tag {
			t.Fatalf("scanner lost %v", whole.Elements[i].Tag)
		}
		if i == len(whole.Elements) || whole.Elements[i].Tag != el.Tag {
			t.Fatalf("scanner has %v too much", el.Tag)
		}
		w := whole.Elements[i]
		if !isPixelData(el.Tag) && (w.VR != el.VR || !bytes.Equal(w.Value, el.Value) || len(w.Items) != len(el.Items)) {
			t.Fatalf("%v differs: %v and %v", el.Tag, w, el)
		}
		for i++; i < len(whole.Elements) && whole.Elements[i].Tag == el.Tag; i++ {
		}
	}
}

func checkEncode(t *testing.T, d *Dataset) {
	t.Helper()
	for _, syntax := range fuzzSyntaxes {
		b, err := d.Encode(nil, syntax)
		if err != nil {
			if !errors.Is(err, ErrNotLoaded) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("encode: %v", err)
			}
			continue
		}
		back, err := Decode(b, syntax, Limits{})
		if err != nil {
			t.Fatalf("%s: what was encoded does not decode: %v", syntax, err)
		}
		if SyntaxOf(syntax).Explicit {
			again, err := back.Encode(nil, syntax)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%s: encoding is not stable (%v)\n%x\n%x", syntax, err, b, again)
			}
		}
	}
}

func checkJSON(t *testing.T, d *Dataset) {
	t.Helper()
	b, err := AppendJSON(nil, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) || !utf8.Valid(b) {
		t.Fatalf("not JSON: %q", b)
	}
	back, err := ParseJSON(b, Limits{})
	if err != nil {
		t.Fatalf("own JSON does not parse: %v\n%s", err, b)
	}
	again, err := AppendJSON(nil, back, nil)
	if err != nil {
		t.Fatal(err)
	}
	third, err := ParseJSON(again, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if more, _ := AppendJSON(nil, third, nil); !bytes.Equal(more, again) {
		t.Fatalf("JSON is not stable\n%s\n%s", again, more)
	}
}

func FuzzPart10(f *testing.F) {
	for _, name := range []string{"chrH32.dcm", "chrSQEncoding.dcm"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[132:])
		f.Add(b[400:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := scan(b)
		if err != nil {
			checkKind(t, err)
			return
		}
		checkFrames(t, s.Frames(), s.Offset())
	})
}

// FuzzFragments gives frames and fragments in every arrangement to the frame table.
func FuzzFragments(f *testing.F) {
	f.Add("2", []byte{0, 0, 0, 0, 12, 0, 0, 0}, []byte{4, 4, 2}, uint8(0))
	f.Add("3", []byte{}, []byte{4, 4, 2}, uint8(1))
	f.Fuzz(func(t *testing.T, frames string, offsets, lengths []byte, n uint8) {
		if len(lengths) > 300 {
			return
		}
		d := &Dataset{}
		d.Set(Element{Tag: NumberOfFrames, VR: IS, Value: padded([]byte(frames), IS)})
		b, err := d.Encode(nil, ExplicitVRLittleEndian)
		if err != nil {
			t.Skip()
		}
		items := [][]byte{padded(offsets, OB)}
		for _, l := range lengths {
			items = append(items, append([]byte{0xFF, 0xD8 | l&1}, make([]byte, l&0xFE)...))
		}
		b = append(b, encapsulatedValue(items...)...)
		s := NewScanner(bytes.NewReader(b), fuzzSyntaxes[int(n)%len(fuzzSyntaxes)], Limits{})
		if err := s.Rest(); err != nil {
			return
		}
		checkFrames(t, s.Frames(), s.Offset())
	})
}

func FuzzFrameTable(f *testing.F) {
	f.Add([]byte("\x01\x02\x01\x10\x0a\x00\x00\x02\x02\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := ParseFrameTable(b)
		if err != nil {
			return
		}
		var ex []Extent
		for i := range min(table.Len(), 1000) {
			if ex, err = table.Frame(ex[:0], i); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`{"00100010":{"vr":"PN","Value":[{"Alphabetic":"A^B"}]},"00081140":{"vr":"SQ","Value":[{"00080018":{"vr":"UI"}},{}]}}`))
	f.Add([]byte(`{"7FE00010":{"vr":"OW","BulkDataURI":"x"},"00280010":{"Value":[1],"vr":"US"},"00091001":{"vr":"UN","InlineBinary":"AAE="}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseJSON(b, Limits{Elements: 2000})
		if err != nil {
			checkKind(t, err)
			return
		}
		out, err := AppendJSON(nil, d, nil)
		if err != nil || !json.Valid(out) {
			t.Fatalf("%v: %q", err, out)
		}
		checkEncode(t, d)
	})
}

func FuzzParseXML(f *testing.F) {
	f.Add([]byte(xmlHead + `<DicomAttribute tag="00090002" vr="UN" privateCreator="A"><InlineBinary>AAE=</InlineBinary></DicomAttribute></NativeDicomModel>`))
	f.Add([]byte(xmlHead + `<DicomAttribute tag="00081140" vr="SQ"><Item number="1"><DicomAttribute tag="00100010" vr="PN"><PersonName number="2"><Alphabetic><FamilyName>A</FamilyName></Alphabetic></PersonName></DicomAttribute></Item></DicomAttribute></NativeDicomModel>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseXML(b, Limits{Elements: 2000, Items: 2000})
		if err != nil {
			checkKind(t, err)
			return
		}
		out, err := AppendJSON(nil, d, nil)
		if err != nil || !json.Valid(out) {
			t.Fatalf("%v: %q", err, out)
		}
		checkEncode(t, d)
	})
}

func FuzzDecodeText(f *testing.F) {
	f.Add("ISO 2022 IR 13\\ISO 2022 IR 87", []byte("\xd4\xcf=\x1b$B;3\x1b(J^"), true)
	f.Add("\\ISO 2022 IR 149", []byte("\x1b$)C\xfb\xf3"), false)
	f.Add("GB18030", []byte("\x81\x5c\\"), false)
	f.Add("ISO_IR 192", []byte("\xff\xc3"), false)
	f.Fuzz(func(t *testing.T, set string, b []byte, pn bool) {
		vr := LO
		if pn {
			vr = PN
		}
		s := decodeText(b, func() string { return set }, vr)
		if !utf8.ValidString(s) {
			t.Fatalf("%q is not UTF-8", s)
		}
		FoldName(s)
		if e, ok := charsetOf(set).encode(s, vr); ok {
			_ = decodeText(e, func() string { return set }, vr)
		}
	})
}
