package scp

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// stored returns the bytes served for the instance.
func (s *service) stored(sop string) []byte {
	s.t.Helper()
	who := dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}
	for in, err := range s.archive.Instances(context.Background(), who, dicomsvc.Selection{SOPInstanceUIDs: []string{sop}}) {
		if err != nil {
			s.t.Fatal(err)
		}
		o, err := s.archive.Open(context.Background(), who, in)
		if err != nil {
			s.t.Fatal(err)
		}
		defer o.Close()
		var b bytes.Buffer
		if _, err := o.WriteTo(&b); err != nil {
			s.t.Fatal(err)
		}
		return b.Bytes()
	}
	return nil
}

func store(t testing.TB, c *dimse.Client, class, sop, syntax string, b []byte) dimse.StoreResponse {
	t.Helper()
	r, err := c.Store(context.Background(), dimse.StoreArgs{SOPClass: class, SOPInstance: sop, Syntax: syntax, Data: bytes.NewReader(b)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBehaviour22StoreKeepsEveryBit stores one object of every transfer syntax and gets it back bit for bit.
// Behaviour 22.
func TestBehaviour22StoreKeepsEveryBit(t *testing.T) {
	s := start(t)
	all := samples(t)
	seen := map[string]bool{}
	for _, x := range all {
		c := s.client([]string{x.class, x.syntax})
		r := store(t, c, x.class, x.instance, x.syntax, x.data)
		if r.Status != dimse.StatusSuccess {
			t.Errorf("%s: status %04X %s", x.path, r.Status, r.ErrorComment)
			continue
		}
		if seen[x.instance] {
			continue
		}
		seen[x.instance] = true
		if len(x.data)%2 == 1 && dicom.SyntaxOf(x.syntax).Deflated { // a deflated stream, which is padded on its way (PS3.5 §A.5)
			x.data = append(x.data, 0)
		}
		if !bytes.Equal(s.stored(x.instance), x.data) {
			t.Errorf("%s: came back different", x.path)
		}
		if err := c.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func encode(t testing.TB, d *dicom.Dataset, syntax string) []byte {
	t.Helper()
	b, err := d.Encode(nil, syntax)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBehaviour19StoreStatuses: what a sender hears of objects that are taken, doubted and refused.
// Behaviours 19, 21.
func TestBehaviour19And21StoreStatuses(t *testing.T) {
	s := start(t)
	good := image("1.2.3", "1.2.3.1", "1.2.3.1.1", 1000)
	whole := encode(t, good, explicit)
	without := func(tag dicom.Tag) []byte {
		d := good.Clone()
		d.Remove(tag)
		return encode(t, d, explicit)
	}
	c := s.client([]string{ctStorage, explicit}, []string{mrStorage, explicit}, []string{dimse.VerificationClass, explicit})
	for _, tt := range []struct {
		name       string
		class, sop string
		data       []byte
		status     uint16
		offending  dicom.Tag
	}{
		{"new", ctStorage, "1.2.3.1.1", whole, dimse.StatusSuccess, 0},
		{"the same again", ctStorage, "1.2.3.1.1", whole, dimse.StatusSuccess, 0},
		{"other bytes, same UID", ctStorage, "1.2.3.1.1", encode(t, image("1.2.3", "1.2.3.1", "1.2.3.1.1", 1000), explicit), dimse.StatusCoerced, 0},
		{"another instance than the command says", ctStorage, "1.2.3.1.9", whole, dimse.StatusMismatch, dicom.SOPInstanceUID},
		{"another class than the command says", mrStorage, "1.2.3.1.1", whole, dimse.StatusMismatch, dicom.SOPClassUID},
		{"no study", ctStorage, "1.2.3.1.1", without(dicom.StudyInstanceUID), dimse.StatusCannotUnderstand, dicom.StudyInstanceUID},
		{"no series", ctStorage, "1.2.3.1.1", without(dicom.SeriesInstanceUID), dimse.StatusCannotUnderstand, dicom.SeriesInstanceUID},
		{"cut short", ctStorage, "1.2.3.1.1", whole[:len(whole)-10], dimse.StatusCannotUnderstand, dicom.PixelData},
		{"no data set at all", ctStorage, "1.2.3.1.1", []byte("GET / HTTP/1.1\r\n"), dimse.StatusCannotUnderstand, 0},
		{"no storage class", dimse.VerificationClass, "1.2.3.1.1", whole, dimse.StatusClassNotSupported, 0},
	} {
		r := store(t, c, tt.class, tt.sop, explicit, tt.data)
		if r.Status != tt.status {
			t.Errorf("%s: status %04X, want %04X", tt.name, r.Status, tt.status)
		}
		if (r.ErrorComment == "") != (tt.status == dimse.StatusSuccess) || len(r.ErrorComment) > 64 {
			t.Errorf("%s: comment %q", tt.name, r.ErrorComment)
		}
		if tt.offending != 0 && (len(r.OffendingElements) != 1 || r.OffendingElements[0] != tt.offending) {
			t.Errorf("%s: offending %v, want %v", tt.name, r.OffendingElements, tt.offending)
		}
	}
	if !bytes.Equal(s.stored("1.2.3.1.1"), whole) {
		t.Error("the first version is not the one served")
	}
	if err := c.Release(t.Context()); err != nil {
		t.Errorf("the association did not survive the refusals: %v", err)
	}
	if list, _ := s.find(dimse.StudyRootFind, identifier("IMAGE", dicom.StudyInstanceUID, "1.2.3", dicom.SeriesInstanceUID, "1.2.3.1", dicom.SOPInstanceUID, "")); len(list) != 1 {
		t.Errorf("%d instances visible, want 1", len(list))
	}
	c = s.client([]string{ctStorage, explicit})
	s.archive.Drain()
	if r := store(t, c, ctStorage, "1.2.3.1.2", explicit, encode(t, image("1.2.3", "1.2.3.1", "1.2.3.1.2", 10), explicit)); r.Status != dimse.StatusOutOfResources {
		t.Errorf("draining: status %04X, want A700", r.Status)
	}
}

// TestBehaviour09AbortedStoreLeavesNothing breaks off in the middle of a data set.
// Behaviour 9.
func TestBehaviour09AbortedStoreLeavesNothing(t *testing.T) {
	s := start(t)
	b := encode(t, image("1.2.3", "1.2.3.1", "1.2.3.1.1", 2<<20), explicit)
	c := s.client([]string{ctStorage, explicit})
	_, err := c.Store(t.Context(), dimse.StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2.3.1.1", Syntax: explicit,
		Data: io.MultiReader(bytes.NewReader(b[:1<<20]), brokenReader{})})
	if err == nil {
		t.Fatal("the store went on")
	}
	wait(t, "the broken association", func() bool { return s.Stats().StoresBroken.Load() == 1 && s.Stats().Open.Load() == 0 })
	if list, _ := s.find(dimse.StudyRootFind, identifier("STUDY", dicom.StudyInstanceUID, "")); len(list) != 0 {
		t.Errorf("%d studies visible", len(list))
	}
	if got := s.stored("1.2.3.1.1"); got != nil {
		t.Errorf("%d bytes are served", len(got))
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestBehaviour43To47OddEncodings: what old equipment sends is stored as it is and found again.
// Behaviours 43, 44, 45, 46, 47.
func TestBehaviour43To47OddEncodings(t *testing.T) {
	s := start(t)
	raw := func(tag dicom.Tag, vr string, value string) []byte {
		b := binary.LittleEndian.AppendUint16(nil, tag.Group())
		b = binary.LittleEndian.AppendUint16(b, tag.Element())
		b = append(b, vr...)
		return append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
	}
	object := func(sop string, extra ...[]byte) []byte {
		b := bytes.Join([][]byte{
			raw(0x00080000, "UL", "\x7b\x00\x00\x00"), // retired group length, and a wrong one (47)
			raw(dicom.SOPClassUID, "UI", ctStorage+"\x00"),
			raw(dicom.SOPInstanceUID, "UI", sop),        // odd length, no padding (43)
			raw(dicom.PatientName, "PN", "Odd^Ann\x00"), // padded with NUL
			raw(dicom.PatientID, "LO", "P43"),
			raw(dicom.StudyInstanceUID, "UI", "1.2.43"),
			raw(dicom.SeriesInstanceUID, "UI", "1.2.43.1 "),
		}, nil)
		return append(b, bytes.Join(extra, nil)...)
	}
	unSequence := append([]byte{0x40, 0x00, 0x75, 0x02, 'U', 'N', 0, 0, 0xff, 0xff, 0xff, 0xff, // (0040,0275) UN, undefined length (44)
		0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff,
		0x40, 0x00, 0x07, 0x00, 4, 0, 0, 0, 'S', 't', 'e', 'p', // Implicit VR inside
		0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0},
		0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0)
	noFragments := []byte{0xe0, 0x7f, 0x10, 0, 'O', 'B', 0, 0, 0xff, 0xff, 0xff, 0xff, // zero frames (46)
		0xfe, 0xff, 0, 0xe0, 0, 0, 0, 0, 0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0}
	deep := []byte(nil)
	for range 60 {
		deep = append(deep, 0x40, 0x00, 0x30, 0xa7, 'S', 'Q', 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0, 0xe0, 0xff, 0xff, 0xff, 0xff)
	}
	for range 60 {
		deep = append(deep, 0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0, 0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0)
	}
	c := s.client([]string{ctStorage, explicit}, []string{ctStorage, dicom.JPEGBaseline8Bit})
	for _, tt := range []struct {
		sop, syntax string
		data        []byte
	}{
		{"1.2.43.1.1", explicit, object("1.2.43.1.1")},
		{"1.2.43.1.22", explicit, object("1.2.43.1.22", unSequence)},
		{"1.2.43.1.3", dicom.JPEGBaseline8Bit, object("1.2.43.1.3", noFragments)},
		{"1.2.43.1.44", explicit, object("1.2.43.1.44", deep)},
	} {
		if r := store(t, c, ctStorage, tt.sop, tt.syntax, tt.data); r.Status != dimse.StatusSuccess {
			t.Errorf("%s: status %04X %s", tt.sop, r.Status, r.ErrorComment)
			continue
		}
		if !bytes.Equal(s.stored(tt.sop), tt.data) {
			t.Errorf("%s came back different", tt.sop)
		}
	}
	list, _ := s.find(dimse.StudyRootFind, identifier("STUDY", dicom.PatientName, "odd^ann", dicom.NumberOfStudyRelatedInstances, "", dicom.StudyInstanceUID, "1.2.43"))
	if len(list) != 1 || list[0].String(dicom.NumberOfStudyRelatedInstances) != "4" {
		t.Errorf("found %v", list)
	}
}

// TestBehaviour18And42DCMTKStore: DCMTK matches the echoed UIDs, and sends without file meta information.
// Behaviours 18, 42.
func TestBehaviour18And42DCMTKStore(t *testing.T) {
	s := start(t)
	var names []string
	for _, x := range samples(t, "ct-small.dcm", "mr-implicit.dcm", "mr-epi-001.dcm", "sr-basic.dcm") {
		names = append(names, x.path)
	}
	host, port := s.hostPort()
	if out, err := dcmtk(t, "storescu", append([]string{"-v", "-aec", "OSTEON", host, port}, names...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := s.Stats().Stores.Load(); n != 4 {
		t.Errorf("%d stores, want 4", n)
	}
	// In the syntax of the file, also the compressed ones.
	dir := t.TempDir()
	for i, arg := range map[string]string{"mr-rle.dcm": "-xr", "us-multiframe-jpeg.dcm": "-xy", "mr-bigendian.dcm": "-xb", "sc-deflated.dcm": "-xd"} {
		b, err := os.ReadFile(samples(t, i)[0].path)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, i)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := dcmtk(t, "storescu", "-v", arg, "-aec", "OSTEON", host, port, file); err != nil {
			t.Errorf("%s: %v\n%s", i, err, out)
		}
		x := samples(t, i)[0]
		if s.stored(x.instance) == nil {
			t.Errorf("%s is not served", i)
		}
	}
}
