package dicom

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// The budgets of the parser as they are set for everybody: each is used up to the limit, and exceeded by one.

// repeated reads b n times.
type repeated struct {
	b    []byte
	n    int
	rest []byte
}

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.n == 0 {
			return 0, io.EOF
		}
		r.n--
		r.rest = r.b
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func restOf(r ...io.Reader) error {
	return NewScanner(io.MultiReader(r...), ExplicitVRLittleEndian, Limits{}).Rest()
}

func TestBudgetElements(t *testing.T) {
	element := AppendElementHeader(nil, true, false, NewTag(9, 0x1000), UN, 0)
	if err := restOf(&repeated{b: element, n: elementsMax}); err != nil {
		t.Errorf("%d elements: %v", elementsMax, err)
	}
	if err := restOf(&repeated{b: element, n: elementsMax + 1}); !errors.Is(err, ErrLimit) {
		t.Errorf("%d elements: %v", elementsMax+1, err)
	}
}

func TestBudgetItems(t *testing.T) {
	for n, want := range map[int]error{itemsMax: nil, itemsMax + 1: ErrLimit} {
		head := AppendElementHeader(nil, true, false, ReferencedStudySequence, SQ, uint32(8*n))
		item := AppendElementHeader(nil, true, false, Item, 0, 0)
		if err := restOf(bytes.NewReader(head), &repeated{b: item, n: n}); !errors.Is(err, want) {
			t.Errorf("%d items: got %v, want %v", n, err, want)
		}
	}
}

// A longer value is not refused: it stays in the stream.
func TestBudgetValueBytes(t *testing.T) {
	for n, bulk := range map[int]bool{valueBytesMax: false, valueBytesMax + 1: true} {
		b := append(AppendElementHeader(nil, true, false, EncapsulatedDocument, OB, uint32(n)), make([]byte, n)...)
		d, err := Decode(b, ExplicitVRLittleEndian, Limits{})
		if err != nil {
			t.Fatalf("value of %d bytes: %v", n, err)
		}
		if el := d.Get(EncapsulatedDocument); (el.Bulk != nil) != bulk || bulk && el.Bulk.Length != int64(n) || !bulk && len(el.Value) != n {
			t.Errorf("value of %d bytes: left in the stream %v, want %v", n, el.Bulk != nil, bulk)
		}
	}
}

// Once headerBytesMax are held, values above spillBytes stay in the stream; smaller ones go on to headerBytesHard.
func TestBudgetHeaderBytes(t *testing.T) {
	value := func(tag Tag, n int) []byte {
		return append(AppendElementHeader(nil, true, false, tag, OB, uint32(n)), make([]byte, n)...)
	}
	var b []byte
	const parts = headerBytesMax / valueBytesMax
	for i := range parts {
		b = append(b, value(NewTag(9, 0x1000+uint16(i)), valueBytesMax)...)
	}
	b = append(b, value(NewTag(9, 0x1100), spillBytes)...)
	b = append(b, value(NewTag(9, 0x1101), spillBytes+1)...)
	d, err := Decode(b, ExplicitVRLittleEndian, Limits{})
	if err != nil || len(d.Elements) != parts+2 {
		t.Fatalf("%d elements, %v", len(d.Elements), err)
	}
	for i, el := range d.Elements {
		if bulk := i == parts+1; (el.Bulk != nil) != bulk {
			t.Errorf("value %d of %d bytes: left in the stream %v, want %v", i, len(el.Value), el.Bulk != nil, bulk)
		}
	}
	small := value(NewTag(9, 0x1000), spillBytes)
	if err := restOf(&repeated{b: small, n: headerBytesHard / spillBytes}); err != nil {
		t.Errorf("%d bytes in small values: %v", headerBytesHard, err)
	}
	one := value(NewTag(9, 0x1001), 1)
	if err := restOf(&repeated{b: small, n: headerBytesHard / spillBytes}, bytes.NewReader(one)); !errors.Is(err, ErrLimit) {
		t.Errorf("%d bytes in small values: %v", headerBytesHard+1, err)
	}
}

func TestBudgetUIDLength(t *testing.T) {
	at := "1." + strings.Repeat("2", uidBytesMax-2)
	if uidBytesMax != 64 || !ValidUID(at) || !UsableUID(at) {
		t.Errorf("a UID of %d characters is refused", len(at))
	}
	if ValidUID(at+"2") || UsableUID(at+"2") {
		t.Errorf("a UID of %d characters is taken", len(at)+1)
	}
}

// deflatedOf is an object in Deflated Explicit VR whose ratio grows to its end, and its length before.
func deflatedOf(t *testing.T, noise, zeroes int) (b []byte, plain int64) {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	in := AppendElementHeader(nil, true, false, PixelData, OW, uint32(noise+zeroes))
	random := rand.New(rand.NewPCG(1, 2))
	for range noise {
		in = append(in, byte(random.Uint32()))
	}
	in = append(in, make([]byte, zeroes)...)
	if _, err := w.Write(in); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), int64(len(in))
}

func TestBudgetInflateRatio(t *testing.T) {
	scan := func(b []byte, lim Limits) error {
		return NewScanner(bytes.NewReader(b), DeflatedExplicitVRLittleEndian, lim).Rest()
	}
	b, plain := deflatedOf(t, 100<<10, 24<<20)
	ratio := int((plain + int64(len(b)) - 1) / int64(len(b))) // rounded up
	if err := scan(b, Limits{InflateRatio: ratio}); err != nil {
		t.Errorf("%d bytes of %d, allowed %d to one: %v", plain, len(b), ratio, err)
	}
	if err := scan(b, Limits{InflateRatio: ratio - 1}); !errors.Is(err, ErrLimit) {
		t.Errorf("%d bytes of %d, allowed %d to one: %v", plain, len(b), ratio-1, err)
	}
	if inflateRatioMax != 200 {
		t.Errorf("by itself %d to one is allowed", inflateRatioMax)
	}
	under, n := deflatedOf(t, 0, inflateFree-12)
	if err := scan(under, Limits{}); n != inflateFree || err != nil {
		t.Errorf("the first %d bytes, from %d: %v", n, len(under), err)
	}
	over, n := deflatedOf(t, 0, inflateFree-12+2)
	if err := scan(over, Limits{}); !errors.Is(err, ErrLimit) {
		t.Errorf("the first %d bytes, from %d: %v", n, len(over), err)
	}
}

func TestBudgetInflateBytes(t *testing.T) {
	b, plain := deflatedOf(t, 1<<10, 10<<10)
	for lim, want := range map[int64]error{plain: nil, plain - 1: ErrLimit} {
		if err := NewScanner(bytes.NewReader(b), DeflatedExplicitVRLittleEndian, Limits{InflateBytes: lim}).Rest(); !errors.Is(err, want) {
			t.Errorf("%d bytes, allowed %d: got %v, want %v", plain, lim, err, want)
		}
	}
	if got := (Limits{}).filled().InflateBytes; got != 2<<30 {
		t.Errorf("by itself %d bytes are allowed", got)
	}
}
