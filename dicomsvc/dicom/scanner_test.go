package dicom

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// sample is a data set with nested sequences and every VR, in a form all syntaxes can carry.
func sample() *Dataset {
	inner := &Dataset{}
	inner.SetStrings(ReferencedSOPInstanceUID, "1.2.3")
	outer := &Dataset{}
	outer.Set(Element{Tag: ReferencedSOPSequence, VR: SQ, Items: []*Dataset{inner, {}}})
	d := &Dataset{}
	d.SetStrings(SOPClassUID, "1.2.840.10008.5.1.4.1.1.2")
	d.SetStrings(SOPInstanceUID, "1.2.3.4")
	d.SetStrings(PatientName, "Doe^Jane")
	d.SetStrings(StudyInstanceUID, "1.2.3.4.5")
	d.SetStrings(SeriesInstanceUID, "1.2.3.4.5.6")
	d.SetInt(Rows, 2)
	d.SetInt(Columns, 3)
	d.SetInt(BitsAllocated, 16)
	d.Set(Element{Tag: ReferencedSeriesSequence, VR: SQ, Items: []*Dataset{outer}})
	d.Set(Element{Tag: FrameIncrementPointer, VR: AT, Value: []byte{0x18, 0, 0x63, 0x10}})
	d.Set(Element{Tag: RecommendedDisplayFrameRateInFloat, VR: FL, Value: binary.LittleEndian.AppendUint32(nil, 0x3fc00000)})
	d.Set(Element{Tag: EventTimeOffset, VR: FD, Value: binary.LittleEndian.AppendUint64(nil, 0x3ff8000000000000)})
	d.Set(Element{Tag: RedPaletteColorLookupTableData, VR: OW, Value: []byte{1, 2, 3, 4}})
	d.Set(Element{Tag: NewTag(9, 0x10), VR: LO, Value: []byte("ACME")})
	return d
}

func TestSyntaxes(t *testing.T) {
	d := sample()
	if len(d.Elements) != 14 {
		t.Fatalf("sample has %d elements", len(d.Elements))
	}
	for _, syntax := range []string{ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000, "1.2.3.private"} {
		b, err := d.Encode([]byte("x"), syntax)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(b[1:], syntax, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", syntax, err)
		}
		sameSet(t, syntax, back, d)
	}
}

func sameSet(t *testing.T, what string, got, want *Dataset) {
	t.Helper()
	if len(got.Elements) != len(want.Elements) {
		t.Fatalf("%s: got %d elements, want %d", what, len(got.Elements), len(want.Elements))
	}
	for i, g := range got.Elements {
		w := want.Elements[i]
		if g.Tag != w.Tag || g.VR != w.VR || !bytes.Equal(g.Value, w.Value) || len(g.Items) != len(w.Items) {
			t.Errorf("%s: got %v, want %v", what, g, w)
			continue
		}
		for n := range g.Items {
			sameSet(t, what+" item of "+g.Tag.String(), g.Items[n], w.Items[n])
		}
	}
}

// TestTruncation cuts an object at every byte: what is no whole data set must not be called one.
func TestTruncation(t *testing.T) {
	for _, syntax := range []string{ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit} {
		b, err := sample().Encode(nil, syntax)
		if err != nil {
			t.Fatal(err)
		}
		if syntax == JPEGBaseline8Bit {
			b = append(b, encapsulatedValue([]byte{0, 0, 0, 0}, []byte("abcdef"))...)
		}
		ends := elementEnds(t, b, syntax)
		for cut := range len(b) {
			s := NewScanner(iotest.HalfReader(bytes.NewReader(b[:cut])), syntax, Limits{})
			err := s.Rest()
			if _, err2 := Decode(b[:cut], syntax, Limits{}); (err == nil) != (err2 == nil) {
				t.Fatalf("%s cut at %d: Scanner %v, Decode %v", syntax, cut, err, err2)
			}
			if ends[cut] {
				if err != nil {
					t.Errorf("%s cut at %d, an element's end: %v", syntax, cut, err)
				}
			} else if !errors.Is(err, ErrTruncated) {
				t.Errorf("%s cut at %d: got %v", syntax, cut, err)
			}
		}
	}
}

// elementEnds returns the offsets at which a top-level element ends, where a cut cannot be seen.
func elementEnds(t *testing.T, b []byte, syntax string) map[int]bool {
	ends := map[int]bool{}
	syn := SyntaxOf(syntax)
	if syn.Deflated {
		ends[len(b)-1] = b[len(b)-1] == 0 // the pad byte
		return ends
	}
	ends[0] = true
	p := parser{alias: true, src: source{buf: b, w: len(b)}}
	p.start(syn, Limits{})
	err := p.run(func(Tag) bool { ends[int(p.src.off)] = true; return false })
	if err != nil {
		t.Fatal(err)
	}
	return ends
}

func TestDeflateTrailer(t *testing.T) {
	plain, err := sample().Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	b, err := deflated(nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	s := NewScanner(io.TeeReader(bytes.NewReader(append(b, 0, 0)), &seen), DeflatedExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); err != nil || seen.Len() != len(b)+2 || s.Offset() != int64(len(plain)) {
		t.Errorf("got %v, saw %d of %d bytes, offset %d of %d", err, seen.Len(), len(b)+2, s.Offset(), len(plain))
	}
	if _, err := Decode([]byte("\xff\xff\xff"), DeflatedExplicitVRLittleEndian, Limits{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("corrupt: got %v", err)
	}
}

// zeros yields n zero bytes, counting them.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.n)
	clear(p[:n])
	z.n -= n
	return int(n), nil
}

func TestInflateBomb(t *testing.T) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(AppendElementHeader(nil, true, false, PixelData, OW, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, &zeros{64 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s := NewScanner(&b, DeflatedExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); !errors.Is(err, ErrLimit) {
		t.Errorf("ratio %d: got %v", (64<<20)/b.Len(), err)
	}
	one, err := sample().Encode(nil, DeflatedExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(one, DeflatedExplicitVRLittleEndian, Limits{InflateBytes: 100}); !errors.Is(err, ErrLimit) {
		t.Errorf("absolute: got %v", err)
	}
}

// F57: the longest native value there can be passes through the scanner.
// Behaviour 51.
func TestF57LongestValue(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 4 GiB of zeros")
	}
	const size = 0xFFFFFFFE
	head := AppendElementHeader(nil, true, false, PixelData, OW, size)
	tail, err := (&Dataset{Elements: []Element{{Tag: DataSetTrailingPadding, VR: OB, Value: []byte{0, 0}}}}).Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	s := NewScanner(io.MultiReader(bytes.NewReader(head), &zeros{size}, bytes.NewReader(tail)), ExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	if want := int64(len(head)) + size + int64(len(tail)); s.Offset() != want {
		t.Errorf("offset %d, want %d", s.Offset(), want)
	}
	s = NewScanner(io.MultiReader(bytes.NewReader(head), &zeros{1 << 20}), ExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); !errors.Is(err, ErrTruncated) {
		t.Errorf("cut short: got %v", err)
	}
}

func TestLimits(t *testing.T) {
	nested := func(depth int) []byte {
		var b []byte
		for range depth {
			b = AppendElementHeader(b, true, false, ReferencedStudySequence, SQ, undefinedLength)
			b = AppendElementHeader(b, true, false, Item, 0, undefinedLength)
		}
		for range depth {
			b = AppendElementHeader(b, true, false, ItemDelimitationItem, 0, 0)
			b = AppendElementHeader(b, true, false, SequenceDelimitationItem, 0, 0)
		}
		return b
	}
	items := func(n int) []byte {
		b := AppendElementHeader(nil, true, false, ReferencedStudySequence, SQ, uint32(8*n))
		for range n {
			b = AppendElementHeader(b, true, false, Item, 0, 0)
		}
		return b
	}
	elements := func(n int) []byte {
		var b []byte
		for i := range n {
			b = AppendElementHeader(b, true, false, NewTag(9, uint16(i)+0x1000), UN, 0)
		}
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		lim  Limits
		want error
	}{
		{"depth 64", nested(64), Limits{}, nil},
		{"depth 65", nested(65), Limits{}, ErrLimit},
		{"depth 100,000", nested(100_000), Limits{}, ErrLimit},
		{"100 items", items(100), Limits{Items: 100}, nil},
		{"101 items", items(101), Limits{Items: 100}, ErrLimit},
		{"100 elements", elements(100), Limits{Elements: 100}, nil},
		{"101 elements", elements(101), Limits{Elements: 100}, ErrLimit},
		{"length beyond the stream", AppendElementHeader(nil, true, false, PatientComments, UT, 0xFFFFFFFE), Limits{}, ErrTruncated},
		{"many small values", bytes.Repeat(append(AppendElementHeader(nil, true, false, PatientID, LO, 1000), make([]byte, 1000)...), 50), Limits{HeaderBytes: 10_000}, ErrLimit},
		{"item longer than its sequence", append(AppendElementHeader(nil, true, false, ReferencedStudySequence, SQ, 8), "\xfe\xff\x00\xe0\x10\x00\x00\x00"...), Limits{}, ErrMalformed},
		{"element longer than its item", append(AppendElementHeader(nil, true, false, ReferencedStudySequence, SQ, 16), "\xfe\xff\x00\xe0\x08\x00\x00\x00\x10\x00\x20\x00LO\x02\x00"...), Limits{}, ErrMalformed},
		{"undefined length text", AppendElementHeader(nil, true, false, PatientComments, UT, undefinedLength), Limits{}, ErrMalformed},
		{"item without sequence", []byte("\xfe\xff\x00\xe0\x00\x00\x00\x00"), Limits{}, ErrMalformed},
		{"delimiter too many", []byte("\xfe\xff\xdd\xe0\x00\x00\x00\x00"), Limits{}, nil},
		{"sequence of no items", []byte("\x08\x00\x40\x11SQ\x00\x00\x08\x00\x00\x00\x10\x00\x20\x00LO\x00\x00"), Limits{}, ErrMalformed},
		{"fragment of undefined length", append(AppendElementHeader(nil, true, false, PixelData, OB, undefinedLength), "\xfe\xff\x00\xe0\xff\xff\xff\xff"...), Limits{}, ErrMalformed},
	} {
		s := NewScanner(bytes.NewReader(c.b), ExplicitVRLittleEndian, c.lim)
		if err := s.Rest(); !errors.Is(err, c.want) {
			t.Errorf("%s, scanner: got %v, want %v", c.name, err, c.want)
		}
		if _, err := Decode(c.b, ExplicitVRLittleEndian, c.lim); !errors.Is(err, c.want) {
			t.Errorf("%s, decode: got %v, want %v", c.name, err, c.want)
		}
	}
}

// TestAllocation: a stream that claims much and brings little costs little.
func TestAllocation(t *testing.T) {
	b := append(AppendElementHeader(nil, true, false, PatientComments, UT, 3<<20), make([]byte, 100<<10)...)
	bytesPer := testing.Benchmark(func(b2 *testing.B) {
		b2.ReportAllocs()
		for b2.Loop() {
			if err := NewScanner(bytes.NewReader(b), ExplicitVRLittleEndian, Limits{}).Rest(); !errors.Is(err, ErrTruncated) {
				b2.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if bytesPer > 512<<10 {
		t.Errorf("100 KiB that claim 3 MiB cost %d bytes of memory", bytesPer)
	}
}

func TestSpill(t *testing.T) {
	big := &Dataset{}
	big.Set(Element{Tag: EncapsulatedDocument, VR: OB, Value: make([]byte, 5000)})
	big.SetStrings(PatientID, "P")
	b, err := big.Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Decode(b, ExplicitVRLittleEndian, Limits{ValueBytes: 4999})
	if err != nil {
		t.Fatal(err)
	}
	el := d.Get(EncapsulatedDocument)
	if el.Bulk == nil || el.Bulk.Length != 5000 || el.Bulk.Offset != int64(len(b))-5000 || d.String(PatientID) != "P" {
		t.Errorf("got %+v", el)
	}
	if _, err := d.Encode(nil, ExplicitVRLittleEndian); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("encode: got %v", err)
	}
}

// TestTolerance: what deviates but has one meaning is taken.
// Behaviours 43, 49.
func TestTolerance(t *testing.T) {
	for _, c := range []struct {
		name, syntax, in string
		tag              Tag
		want             string
	}{
		{"odd length", ExplicitVRLittleEndian, "\x10\x00\x20\x00LO\x03\x00ABC\x10\x00\x30\x00DA\x00\x00", PatientID, "ABC"},
		{"NUL padded text", ExplicitVRLittleEndian, "\x10\x00\x20\x00LO\x04\x00ABC\x00", PatientID, "ABC"},
		{"space padded UID", ExplicitVRLittleEndian, "\x08\x00\x18\x00UI\x06\x001.2.3 ", SOPInstanceUID, "1.2.3"},
		{"out of order", ExplicitVRLittleEndian, "\x10\x00\x20\x00LO\x02\x00AB\x08\x00\x18\x00UI\x02\x001\x00", PatientID, "AB"},
		{"group length dropped", ExplicitVRLittleEndian, "\x10\x00\x00\x00UL\x04\x00\x09\x00\x00\x00\x10\x00\x20\x00LO\x02\x00AB", NewTag(0x10, 0), ""},
		{"blank VR", ExplicitVRLittleEndian, "\x10\x00\x20\x00  \x02\x00AB", PatientID, "AB"},
		{"question marks for VR", ExplicitVRLittleEndian, "\x10\x00\x20\x00??\x02\x00AB", PatientID, "AB"},
		{"VR of the future", ExplicitVRLittleEndian, "\x09\x00\x20\x10ZZ\x00\x00\x02\x00\x00\x00AB", NewTag(9, 0x1020), "AB"},
		{"implicit element among explicit ones", ExplicitVRLittleEndian, "\x10\x00\x20\x00\x02\x00\x00\x00AB\x10\x00\x30\x00DA\x00\x00", PatientID, "AB"},
		{"implicit under an explicit name", ExplicitVRLittleEndian, "\x08\x00\x16\x00\x02\x00\x00\x001\x00\x10\x00\x20\x00\x02\x00\x00\x00AB\x10\x00\x00\x40\x00\x00\x01\x00" + strings.Repeat("x", 1<<16), PatientID, "AB"},
		{"trailing padding", ExplicitVRLittleEndian, "\x10\x00\x20\x00LO\x02\x00AB\xfc\xff\xfc\xffOB\x00\x00\x02\x00\x00\x00\x00\x00", PatientID, "AB"},
		{"private implicit", ImplicitVRLittleEndian, "\x09\x00\x10\x00\x04\x00\x00\x00ACME", NewTag(9, 0x10), "ACME"},
		{"big endian US", ExplicitVRBigEndian, "\x00\x28\x00\x10US\x00\x02\x02\x01", Rows, "513"},
		{"big endian AT", ExplicitVRBigEndian, "\x00\x28\x00\x09AT\x00\x04\x00\x18\x10\x63", FrameIncrementPointer, "00181063"},
		{"signed by pixel representation", ImplicitVRLittleEndian, "\x28\x00\x03\x01\x02\x00\x00\x00\x01\x00\x28\x00\x06\x01\x02\x00\x00\x00\xff\xff", SmallestImagePixelValue, "-1"},
	} {
		d, err := Decode([]byte(c.in), c.syntax, Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := d.String(c.tag); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestUnknownSequence is CP-246: UN of undefined length is a sequence in Implicit VR Little Endian, whatever surrounds it.
// Behaviour 44.
func TestUnknownSequence(t *testing.T) {
	item := "\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x50\x11\x04\x00\x00\x001.2\x00\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
	for syntax, in := range map[string]string{
		ExplicitVRLittleEndian: "\x08\x00\x40\x11UN\x00\x00\xff\xff\xff\xff" + item + "\x10\x00\x20\x00LO\x02\x00AB",
		ExplicitVRBigEndian:    "\x00\x08\x11\x40UN\x00\x00\xff\xff\xff\xff" + item + "\x00\x10\x00\x20LO\x00\x02AB",
	} {
		d, err := Decode([]byte(in), syntax, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", syntax, err)
		}
		seq := d.Get(ReferencedImageSequence)
		if seq == nil || seq.VR != SQ || len(seq.Items) != 1 || seq.Items[0].String(ReferencedSOPClassUID) != "1.2" || d.String(PatientID) != "AB" {
			t.Errorf("%s: got %+v", syntax, seq)
		}
	}
}

// Behaviour 44.
func TestLongShortVR(t *testing.T) {
	d := &Dataset{}
	d.Set(Element{Tag: PixelSpacing, VR: DS, Value: bytes.Repeat([]byte("1\\"), 40_000)})
	d.Set(Element{Tag: BitsAllocated, VR: US, Value: bytes.Repeat([]byte{1, 2}, 40_000)})
	for _, syntax := range []string{ExplicitVRLittleEndian, ExplicitVRBigEndian} {
		b, err := d.Encode(nil, syntax)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(b, syntax, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for i, el := range back.Elements {
			if el.VR != UN || !bytes.Equal(el.Value, d.Elements[i].Value) {
				t.Errorf("%s: %v came back as %v", syntax, el.Tag, el.VR)
			}
		}
	}
}

type frameCase struct {
	name, syntax string
	frames       int
	items        [][]byte
	header       func(*Dataset)
	want         string // extents of the frames, relative to the first fragment's item header
}

func jpeg(n int) []byte { return append([]byte{0xFF, 0xD8}, make([]byte, n-2)...) }

func frameCases() []frameCase {
	rest := func(n int) []byte { return make([]byte, n) }
	bot := func(offsets ...uint32) (b []byte) {
		for _, o := range offsets {
			b = binary.LittleEndian.AppendUint32(b, o)
		}
		return b
	}
	return []frameCase{
		{"one fragment each, empty BOT", JPEGBaseline8Bit, 2, [][]byte{nil, jpeg(4), jpeg(6)}, nil, "[{8 4}] [{20 6}]"},
		{"one fragment each, wrong BOT", JPEGBaseline8Bit, 2, [][]byte{bot(0, 99), jpeg(4), jpeg(6)}, nil, "[{8 4}] [{20 6}]"},
		{"one frame, many fragments", JPEGBaseline8Bit, 1, [][]byte{bot(0), jpeg(4), rest(2)}, nil, "[{8 4} {20 2}]"},
		{"BOT groups", RLELossless, 2, [][]byte{bot(0, 24), rest(4), rest(4), rest(2)}, nil, "[{8 4} {20 4}] [{32 2}]"},
		{"no BOT, marks group", JPEGBaseline8Bit, 2, [][]byte{nil, jpeg(4), rest(4), jpeg(2)}, nil, "[{8 4} {20 4}] [{32 2}]"},
		{"wrong BOT, marks group", JPEGBaseline8Bit, 2, [][]byte{bot(0, 25), jpeg(4), rest(4), jpeg(2)}, nil, "[{8 4} {20 4}] [{32 2}]"},
		{"no BOT, no marks", RLELossless, 2, [][]byte{nil, rest(4), rest(4), rest(2)}, nil, "neither the offset table nor the fragments say where frames begin"},
		{"fewer fragments than frames", RLELossless, 3, [][]byte{nil, rest(4)}, nil, "there are fewer fragments than frames"},
		{"no fragments", RLELossless, 1, [][]byte{nil}, nil, "the instance has no frames"},
		{"video in two fragments", MPEG2MPML, 100, [][]byte{nil, rest(4), rest(2)}, nil, "[{8 4} {20 2}]"},
		{"extended offsets, odd frame", HTJ2K, 2, [][]byte{nil, rest(4), rest(6)}, func(d *Dataset) {
			d.Set(Element{Tag: ExtendedOffsetTable, VR: OV, Value: binary.LittleEndian.AppendUint64(make([]byte, 8), 12)})
			d.Set(Element{Tag: ExtendedOffsetTableLengths, VR: OV, Value: binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 3), 6)})
		}, "[{8 3}] [{20 6}]"},
	}
}

// Behaviour 46.
func TestEncapsulatedFrames(t *testing.T) {
	for _, c := range frameCases() {
		d := &Dataset{}
		d.SetInt(NumberOfFrames, c.frames)
		if c.header != nil {
			c.header(d)
		}
		b, err := d.Encode(nil, c.syntax)
		if err != nil {
			t.Fatal(err)
		}
		first := int64(len(b) + 12 + 8 + len(c.items[0]))
		b = append(b, encapsulatedValue(c.items...)...)
		b = append(b, "\xfc\xff\xfc\xffOB\x00\x00\x02\x00\x00\x00\x00\x00"...)
		s := NewScanner(iotest.HalfReader(bytes.NewReader(b)), c.syntax, Limits{})
		if err := s.Rest(); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		checkFrames(t, s.Frames(), s.Offset())
		if got := describe(s.Frames(), first); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func describe(table *FrameTable, base int64) string {
	if table.Len() == 0 {
		return table.Reason()
	}
	var parts []string
	for i := range table.Len() {
		ex, err := table.Frame(nil, i)
		if err != nil {
			return err.Error()
		}
		for n := range ex {
			ex[n].Offset -= base
		}
		parts = append(parts, fmt.Sprint(ex))
	}
	return strings.Join(parts, " ")
}

func TestNativeFrames(t *testing.T) {
	for _, c := range []struct {
		name                                      string
		rows, columns, samples, allocated, frames int
		photometric                               string
		tag                                       Tag
		size                                      int
		want                                      string
	}{
		{"two of 16 bits", 2, 3, 1, 16, 2, "MONOCHROME2", PixelData, 24, "[{0 12}] [{12 12}]"},
		{"padded to even", 1, 3, 1, 8, 1, "MONOCHROME2", PixelData, 4, "[{0 3}]"},
		{"RGB", 1, 2, 3, 8, 2, "RGB", PixelData, 12, "[{0 6}] [{6 6}]"},
		{"422", 1, 4, 3, 8, 2, "YBR_FULL_422", PixelData, 16, "[{0 8}] [{8 8}]"},
		{"one bit, frames inside bytes", 1, 12, 1, 1, 2, "MONOCHROME2", PixelData, 4, "[{0 2}] [{1 2}]"},
		{"float", 1, 2, 1, 0, 2, "MONOCHROME2", FloatPixelData, 16, "[{0 8}] [{8 8}]"},
		{"double", 1, 1, 1, 0, 2, "MONOCHROME2", DoubleFloatPixelData, 16, "[{0 8}] [{8 8}]"},
		{"short, one frame", 9, 9, 1, 16, 1, "MONOCHROME2", PixelData, 10, "[{0 10}]"},
		{"short, two frames", 9, 9, 1, 16, 2, "MONOCHROME2", PixelData, 10, "the length of the pixel data does not match rows, columns and number of frames"},
		{"empty", 1, 1, 1, 8, 1, "MONOCHROME2", PixelData, 0, "the instance has no frames"},
	} {
		d := &Dataset{}
		d.SetInt(Rows, c.rows)
		d.SetInt(Columns, c.columns)
		d.SetInt(SamplesPerPixel, c.samples)
		d.SetInt(BitsAllocated, c.allocated)
		d.SetInt(NumberOfFrames, c.frames)
		d.SetStrings(PhotometricInterpretation, c.photometric)
		b, err := d.Encode(nil, ExplicitVRLittleEndian)
		if err != nil {
			t.Fatal(err)
		}
		b = AppendElementHeader(b, true, false, c.tag, VROf(c.tag), uint32(c.size))
		base := int64(len(b))
		s := NewScanner(bytes.NewReader(append(b, make([]byte, c.size)...)), ExplicitVRLittleEndian, Limits{})
		if err := s.Rest(); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		checkFrames(t, s.Frames(), s.Offset())
		if got := describe(s.Frames(), base); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// TestFrameTableGolden holds the form of version 1 fast.
func TestFrameTableGolden(t *testing.T) {
	table := &FrameTable{kind: frameEncapsulated, count: 2, base: 1000, size: 36, list: []byte{2 << 1, 4, 4, 1<<1 | 1, 4, 1}}
	if !table.index() {
		t.Fatal("table is not sound")
	}
	b, err := table.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "frametable_v1.golden", b)
	back, err := ParseFrameTable(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := describe(back, 1000), "[{8 4} {20 4}] [{32 3}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestManyFrames(t *testing.T) {
	items := [][]byte{nil}
	for i := range 1000 {
		items = append(items, jpeg(2+2*(i%50)))
	}
	d := &Dataset{}
	d.SetInt(NumberOfFrames, 1000)
	b, err := d.Encode(nil, JPEGBaseline8Bit)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, encapsulatedValue(items...)...)
	s := NewScanner(bytes.NewReader(b), JPEGBaseline8Bit, Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		ex, err := s.Frames().Frame(nil, i)
		if err != nil || len(ex) != 1 || !bytes.Equal(b[ex[0].Offset:ex[0].Offset+ex[0].Length], items[i+1]) {
			t.Fatalf("frame %d: %v %v", i, ex, err)
		}
	}
	if _, err := s.Frames().Frame(nil, 1000); !errors.Is(err, ErrNoFrames) {
		t.Errorf("frame beyond the last: got %v", err)
	}
}

func TestTrailing(t *testing.T) {
	b := AppendElementHeader(nil, true, false, PixelData, OW, 4)
	b = append(b, 1, 2, 3, 4)
	b = append(b, "\xfa\xff\xfa\xffSQ\x00\x00\x00\x00\x00\x00"...)
	s := NewScanner(bytes.NewReader(b), ExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	if s.Trailing().Get(DigitalSignaturesSequence) == nil || s.PixelElement().Bulk.Offset != 12 || s.Dataset().Len() != 2 {
		t.Errorf("got %v, %+v", s.Trailing(), s.PixelElement())
	}
}

func TestReaderError(t *testing.T) {
	broken := errors.New("cable pulled")
	b, err := sample().Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	s := NewScanner(io.MultiReader(bytes.NewReader(b[:40]), iotest.ErrReader(broken)), ExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
		t.Errorf("got %v", err)
	}
	if err := s.Rest(); !errors.Is(err, broken) {
		t.Errorf("asked again: got %v", err)
	}
}

func TestScannerReuse(t *testing.T) {
	b, err := sample().Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	var s Scanner
	s.Reset(bytes.NewReader(b), ExplicitVRLittleEndian, Limits{})
	first, err := s.Header()
	if err != nil {
		t.Fatal(err)
	}
	kept := first.Clone()
	s.Reset(bytes.NewReader(bytes.ReplaceAll(b, []byte("Doe"), []byte("Roe"))), ExplicitVRLittleEndian, Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	sameSet(t, "header of the first", first, kept)
	sameSet(t, "header of the first", first, sample())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %x, want %x; run with -update if that is meant", name, got, want)
	}
}

// TestCommand: a command set has a group length, and it is exact (PS3.7 6.3.1).
func TestCommand(t *testing.T) {
	d := &Dataset{}
	d.SetInt(CommandGroupLength, 0)
	d.SetStrings(AffectedSOPClassUID, VerificationSOPClass)
	d.SetInt(CommandField, 0x30)
	d.SetStrings(PatientID, "P")
	b, err := d.Encode(nil, ImplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint32(b[8:]); int(n) != 8+18+8+2 {
		t.Errorf("group length %d", n)
	}
	back, err := Decode(b, ImplicitVRLittleEndian, Limits{})
	if err != nil || back.Len() != 4 || back.String(AffectedSOPClassUID) != VerificationSOPClass {
		t.Errorf("got %v, %v", back, err)
	}
}
