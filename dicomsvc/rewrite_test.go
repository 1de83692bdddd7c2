package dicomsvc_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// held is a stored object in memory.
type held struct {
	data   []byte
	syntax string
	fails  error // of WriteTo, after half of data
}

func (h held) Size() int64 { return int64(len(h.data)) }

func (h held) WriteTo(w io.Writer) (int64, error) {
	if h.fails != nil {
		n, _ := w.Write(h.data[:len(h.data)/2])
		return int64(n), h.fails
	}
	n, err := w.Write(h.data)
	return int64(n), err
}

func (h held) Section(off, n int64) io.Reader {
	plain := h.data
	if dicom.SyntaxOf(h.syntax).Deflated {
		plain, _ = io.ReadAll(flate.NewReader(bytes.NewReader(h.data)))
	}
	return io.NewSectionReader(bytes.NewReader(plain), off, n)
}

var nativeSyntaxes = []string{
	dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian,
}

var rewriteTargets = []string{dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian}

// mixed has values of every width, text that is not ASCII, a sequence, and pixels of n bytes.
func mixed(n int) *dicom.Dataset {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SpecificCharacterSet, "ISO_IR 100")
	d.SetStrings(dicom.SOPInstanceUID, "1.2.3")
	d.Set(dicom.Element{Tag: dicom.PatientName, VR: dicom.PN, Value: []byte("M\xfcller^J ")})
	d.SetInt(dicom.Rows, 513)
	d.Set(dicom.Element{Tag: dicom.FrameIncrementPointer, VR: dicom.AT, Value: []byte{0x18, 0, 0x63, 0x10}})
	d.Set(dicom.Element{Tag: dicom.RealWorldValueSlope, VR: dicom.FD, Value: []byte{1, 2, 3, 4, 5, 6, 7, 8}})
	item := new(dicom.Dataset)
	item.SetInt(dicom.SimpleFrameList, 0x01020304)
	d.Set(dicom.Element{Tag: dicom.RequestAttributesSequence, VR: dicom.SQ, Items: []*dicom.Dataset{item, {}}})
	pixels := make([]byte, n&^1)
	rand.Read(pixels)
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: pixels})
	signature := new(dicom.Dataset)
	signature.SetInt(dicom.MACIDNumber, 258)
	d.Set(dicom.Element{Tag: dicom.DigitalSignaturesSequence, VR: dicom.SQ, Items: []*dicom.Dataset{signature}})
	return d
}

func encoded(t testing.TB, d *dicom.Dataset, syntax string) []byte {
	t.Helper()
	b, err := d.Encode(nil, syntax)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rewritten(t testing.TB, h held, to string) []byte {
	t.Helper()
	r, err := dicomsvc.Rewrite(h, h.syntax, to)
	if err != nil {
		t.Fatalf("%s to %s: %v", h.syntax, to, err)
	}
	var first, again bytes.Buffer
	n, err := r.WriteTo(&first)
	if err != nil || n != int64(first.Len()) || n != r.Size() {
		t.Fatalf("%s to %s: wrote %d of %d bytes, said %d, %v", h.syntax, to, first.Len(), r.Size(), n, err)
	}
	if _, err := r.WriteTo(&again); err != nil || !bytes.Equal(first.Bytes(), again.Bytes()) {
		t.Errorf("%s to %s: the second time it differs, %v", h.syntax, to, err)
	}
	return first.Bytes()
}

// TestBehaviour37RewriteBetweenNativeSyntaxes: what is sent in another native syntax is what would have been
// encoded in it, whatever it is stored in, and whether it is kept in memory or not.
// Behaviour 37.
func TestBehaviour37RewriteBetweenNativeSyntaxes(t *testing.T) {
	for _, size := range []int{0, 4000, 6 << 20} {
		d := mixed(size)
		for _, from := range nativeSyntaxes {
			for _, to := range rewriteTargets {
				if from == to {
					continue
				}
				got := rewritten(t, held{data: encoded(t, d, from), syntax: from}, to)
				if want := encoded(t, d, to); !bytes.Equal(got, want) {
					t.Errorf("%d bytes of pixels, %s to %s: %d bytes differ from the %d expected", size, from, to, len(got), len(want))
				}
			}
		}
	}
}

// TestBehaviour48RewriteSamples rewrites real objects there and back again.
// Behaviour 48.
func TestBehaviour48RewriteSamples(t *testing.T) {
	files, _ := filepath.Glob("../testdata/samples/*.dcm")
	n := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, from, body, err := dicom.ReadPart10(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(body)
		for _, to := range rewriteTargets {
			if !dicomsvc.Rewritable(from, to) {
				continue
			}
			n++
			out := rewritten(t, held{data: data, syntax: from}, to)
			if got, want := meaning(t, out, to), meaning(t, data, from); !bytes.Equal(got, want) {
				t.Errorf("%s: %s to %s: attributes changed", filepath.Base(name), from, to)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d objects rewritten", n)
	}
}

// meaning is a data set in Implicit VR Little Endian, without what rewriting may change.
func meaning(t *testing.T, b []byte, syntax string) []byte {
	t.Helper()
	s := dicom.NewScanner(bytes.NewReader(b), syntax, dicom.Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	d := s.Dataset()
	if px := d.Get(dicom.PixelData); px != nil {
		h := held{data: b, syntax: syntax}
		v, _ := io.ReadAll(h.Section(px.Bulk.Offset, px.Bulk.Length))
		var swapped bytes.Buffer
		width := 1
		if dicom.SyntaxOf(syntax).BigEndian {
			width = px.VR.Width()
		}
		w := dicomsvc.NewSwapper(&swapped, width)
		w.Write(v)
		w.Flush()
		d.Set(dicom.Element{Tag: px.Tag, VR: dicom.OW, Value: swapped.Bytes()})
	}
	return encoded(t, d, dicom.ImplicitVRLittleEndian)
}

// TestBehaviour45RewriteBulkInsideSequences: a waveform or a document of many megabytes inside an item flows
// by like pixels do.
// Behaviour 45.
func TestBehaviour45RewriteBulkInsideSequences(t *testing.T) {
	wave := make([]byte, 5<<20)
	rand.Read(wave)
	inner := new(dicom.Dataset)
	inner.SetInt(dicom.NumberOfWaveformChannels, 12)
	inner.Set(dicom.Element{Tag: dicom.WaveformData, VR: dicom.OW, Value: wave})
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPInstanceUID, "1.2.3")
	d.Set(dicom.Element{Tag: dicom.WaveformSequence, VR: dicom.SQ, Items: []*dicom.Dataset{inner, {}, inner.Clone()}})
	for _, from := range nativeSyntaxes {
		for _, to := range rewriteTargets {
			if from == to {
				continue
			}
			out := rewritten(t, held{data: encoded(t, d, from), syntax: from}, to)
			got, err := dicom.Decode(out, to, dicom.Limits{ValueBytes: 16 << 20, HeaderBytes: 64 << 20})
			if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			if !bytes.Equal(encoded(t, got, to), encoded(t, d, to)) {
				t.Errorf("%s to %s: the sequence changed", from, to)
			}
		}
	}
}

func TestRewriteRefusals(t *testing.T) {
	good := encoded(t, mixed(4000), dicom.ImplicitVRLittleEndian)
	encapsulated := append(encoded(t, new(dicom.Dataset), dicom.ExplicitVRLittleEndian),
		0xe0, 0x7f, 0x10, 0, 'O', 'B', 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0, 0xe0, 0, 0, 0, 0, 0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0)
	for _, tt := range []struct {
		name     string
		h        held
		from, to string
		want     error
	}{
		{"fails its check", held{data: good, fails: dicomsvc.ErrCorrupt}, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRLittleEndian, dicomsvc.ErrCorrupt},
		{"cannot be reached", held{data: good, fails: dicomsvc.ErrUnavailable}, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRLittleEndian, dicomsvc.ErrUnavailable},
		{"cut short", held{data: good[:len(good)-2]}, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRLittleEndian, dicomsvc.ErrCorrupt},
		{"compressed, not decoded here", held{data: good}, dicom.JPEG2000, dicom.ExplicitVRLittleEndian, dicomsvc.ErrUnsupported},
		{"to big endian", held{data: good}, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRBigEndian, dicomsvc.ErrUnsupported},
		{"compressed under a native name", held{data: encapsulated}, dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian, dicomsvc.ErrUnsupported},
	} {
		if _, err := dicomsvc.Rewrite(tt.h, tt.from, tt.to); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	for from, want := range map[string]bool{
		dicom.ImplicitVRLittleEndian: true, dicom.ExplicitVRLittleEndian: false, "1.2.840.113619.5.2": false,
		dicom.RLELossless: false, "1.2.3": false,
	} {
		if got := dicomsvc.Rewritable(from, dicom.ExplicitVRLittleEndian); got != want {
			t.Errorf("rewritable from %s: got %v, want %v", from, got, want)
		}
	}
}
