package dicomsvc_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// nativeOf reads a data set and its pixel data, which must be native.
func nativeOf(t *testing.T, b []byte, syntax string) (*dicom.Dataset, []byte) {
	t.Helper()
	s := dicom.NewScanner(bytes.NewReader(b), syntax, dicom.Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	el := s.PixelElement()
	if el == nil || el.Bulk == nil || el.Bulk.Encapsulated {
		t.Fatalf("pixel data are not native: %+v", el)
	}
	return s.Dataset(), b[el.Bulk.Offset:][:el.Bulk.Length]
}

// fileOf reads a PS3.10 file.
func fileOf(t *testing.T, path string) held {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return held{data: data, syntax: syntax}
}

// interleaved puts the three bytes of each pixel beside each other.
func interleaved(planes []byte, d *dicom.Dataset) []byte {
	rows, _ := d.Int(dicom.Rows)
	columns, _ := d.Int(dicom.Columns)
	plane := rows * columns
	out := bytes.Clone(planes)
	for i := range len(planes) / (3 * plane) * 3 * plane {
		frame, at := i/(3*plane)*3*plane, i%(3*plane)
		out[i] = planes[frame+at%3*plane+at/3]
	}
	return out
}

// TestRewriteDecodesAsDCMTKDoes: compressed pixel data leave as the native ones that DCMTK makes of them, with attributes that say so.
// Behaviour 37.
func TestRewriteDecodesAsDCMTKDoes(t *testing.T) {
	for name, tool := range map[string]string{"mr-rle.dcm": "dcmdrle", "us-multiframe-jpeg.dcm": "dcmdjpeg +cn"} {
		args := strings.Fields(tool)
		path, err := exec.LookPath(args[0])
		if err != nil {
			t.Skipf("%s is not installed", args[0])
		}
		from, native := filepath.Join("../testdata/samples", name), filepath.Join(t.TempDir(), "native.dcm")
		if out, err := exec.Command(path, append(args[1:], from, native)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", tool, out)
		}
		ref := fileOf(t, native)
		wantSet, want := nativeOf(t, ref.data, ref.syntax)
		if planar, _ := wantSet.Int(dicom.PlanarConfiguration); planar == 1 { // as dcmdjpeg leaves it
			want = interleaved(want, wantSet)
			wantSet.SetInt(dicom.PlanarConfiguration, 0)
		}
		stored := fileOf(t, from)
		for _, to := range rewriteTargets {
			set, got := nativeOf(t, rewritten(t, stored, to), to)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: the pixels are not those of %s", name, tool)
			}
			for _, tag := range []dicom.Tag{
				dicom.SOPInstanceUID, dicom.Rows, dicom.Columns, dicom.NumberOfFrames, dicom.SamplesPerPixel, dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit,
				dicom.PixelRepresentation, dicom.PlanarConfiguration, dicom.PhotometricInterpretation,
			} {
				if g, w := set.String(tag), wantSet.String(tag); g != w {
					t.Errorf("%s: %v is %q, want %q", name, tag, g, w)
				}
			}
		}
	}
}

// TestRewriteDecodesLarge: native pixel data that are not kept in memory are decoded anew each time.
// Behaviour 37.
func TestRewriteDecodesLarge(t *testing.T) {
	const rows, columns, frames = 2000, 2100, 5
	d := new(dicom.Dataset)
	for tag, n := range map[dicom.Tag]int{
		dicom.Rows: rows, dicom.Columns: columns, dicom.SamplesPerPixel: 1, dicom.BitsAllocated: 16, dicom.BitsStored: 16, dicom.HighBit: 15,
		dicom.PixelRepresentation: 0, dicom.NumberOfFrames: frames,
	} {
		d.SetInt(tag, n)
	}
	d.SetStrings(dicom.SOPInstanceUID, "1.2.3")
	d.SetStrings(dicom.PhotometricInterpretation, "MONOCHROME2")
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	fragment := func(p []byte) {
		b = dicom.AppendElementHeader(b, true, false, dicom.Item, 0, uint32(len(p)))
		b = append(b, p...)
	}
	b = dicom.AppendElementHeader(b, true, false, dicom.PixelData, dicom.OB, 0xFFFFFFFF)
	fragment(nil)
	plain := make([]byte, 2*rows*columns)
	for i := range frames {
		for j := range plain {
			plain[j] = byte(i + j>>12)
		}
		var packed bytes.Buffer
		w, _ := flate.NewWriter(&packed, flate.BestSpeed)
		w.Write(plain)
		w.Close()
		if packed.Len()%2 == 1 {
			packed.WriteByte(0)
		}
		fragment(packed.Bytes())
	}
	b = dicom.AppendElementHeader(b, true, false, dicom.SequenceDelimitationItem, 0, 0)
	_, got := nativeOf(t, rewritten(t, held{data: b, syntax: dicom.DeflatedImageFrame}, dicom.ExplicitVRLittleEndian), dicom.ExplicitVRLittleEndian)
	if len(got) != frames*len(plain) || !bytes.Equal(got[(frames-1)*len(plain):], plain) || got[0] != 0 {
		t.Errorf("%d bytes, or others than were stored", len(got))
	}
	if _, err := dicomsvc.Rewrite(held{data: b, syntax: dicom.RLELossless}, dicom.RLELossless, dicom.ExplicitVRLittleEndian); !errors.Is(err, dicomsvc.ErrUnsupported) {
		t.Errorf("deflated frames under the name of RLE: %v", err)
	}
}
