package pixel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

// Behaviour 64. Native cells of every width, with bits around the sample that are not its own.
func TestNativeCells(t *testing.T) {
	tests := []struct {
		name string
		f    Format
		src  Source
		data []byte
		want []int32
	}{
		{"1 bit, inside a byte", Format{Rows: 1, Columns: 10, Samples: 1, BitsAllocated: 1, BitsStored: 1}, Source{Bit: 3}, []byte{0b10101000, 0b00010110}, []int32{1, 0, 1, 0, 1, 0, 1, 1, 0, 1}},
		{"8 bits signed", Format{Rows: 1, Columns: 2, Samples: 1, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Signed: true}, Source{}, []byte{0xFF, 0x7F}, []int32{-1, 127}},
		{"12 of 16 bits, overlay above", Format{Rows: 1, Columns: 2, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 11}, Source{}, []byte{0x34, 0xF2, 0xFF, 0x0F}, []int32{0x234, 0xFFF}},
		{"12 of 16 bits, signed", Format{Rows: 1, Columns: 2, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 11, Signed: true}, Source{}, []byte{0x00, 0x08, 0xFF, 0xF7}, []int32{-2048, 2047}},
		{"12 of 16 bits at the top", Format{Rows: 1, Columns: 1, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 15}, Source{}, []byte{0x3F, 0x12}, []int32{0x123}},
		{"16 bits, Big Endian", Format{Rows: 1, Columns: 1, Samples: 1, BitsAllocated: 16, BitsStored: 16, HighBit: 15}, Source{Word: 2}, []byte{0x12, 0x34}, []int32{0x1234}},
		{"8 bits in words of Big Endian", Format{Rows: 1, Columns: 3, Samples: 1, BitsAllocated: 8, BitsStored: 8, HighBit: 7}, Source{Word: 2}, []byte{2, 1, 0, 3}, []int32{1, 2, 3}},
		{"32 bits", Format{Rows: 1, Columns: 1, Samples: 1, BitsAllocated: 32, BitsStored: 32, HighBit: 31}, Source{}, []byte{1, 0, 0, 0x80}, []int32{-1<<31 + 1}},
		{"planes", Format{Rows: 1, Columns: 2, Samples: 3, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Planar: true, Photometric: RGB}, Source{}, []byte{1, 2, 3, 4, 5, 6}, []int32{1, 3, 5, 2, 4, 6}},
		{"shared chrominance", Format{Rows: 1, Columns: 3, Samples: 3, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: YBRFull422}, Source{}, []byte{1, 2, 8, 9, 3, 0, 6, 7}, []int32{1, 8, 9, 2, 8, 9, 3, 6, 7}},
		{"High Bit of nonsense", Format{Rows: 1, Columns: 1, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 3}, Source{}, []byte{0x34, 0xF2}, []int32{0x234}},
	}
	for _, tt := range tests {
		tt.src.Syntax = dicom.ExplicitVRLittleEndian
		got, err := Decode(t.Context(), tt.src, tt.f, tt.data)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if fmt.Sprint(got.Samples) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got.Samples, tt.want)
		}
		if _, err := Decode(t.Context(), tt.src, tt.f, tt.data[:len(tt.data)-1]); !errors.Is(err, ErrMalformed) && tt.src.Word != 2 {
			t.Errorf("%s: a byte too few: %v", tt.name, err)
		}
	}
}

// raw is a made up image of native pixels.
type raw struct {
	Format
	frames int
	value  func(frame, i int) int32 // of the i-th sample
}

// dataset writes the image as a data set in Explicit VR Little Endian.
func (r raw) dataset(t testing.TB) (*dicom.Dataset, []byte) {
	t.Helper()
	d := &dicom.Dataset{}
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: "1.2.840.10008.5.1.4.1.1.7", dicom.SOPInstanceUID: "1.2.3.4.5", dicom.StudyInstanceUID: "1.2.3",
		dicom.SeriesInstanceUID: "1.2.3.4", dicom.NumberOfFrames: fmt.Sprint(r.frames), dicom.Modality: "OT", dicom.ConversionType: "SYN",
	} {
		d.SetStrings(tag, value)
	}
	d.SetInt(dicom.Rows, r.Rows)
	d.SetInt(dicom.Columns, r.Columns)
	r.Describe(d)
	var pixels []byte
	bit := 0
	for f := range r.frames {
		fr := newFrame(r.Format)
		for i := range fr.Samples {
			fr.Samples[i] = r.extend(uint32(r.value(f, i)))
		}
		if r.BitsAllocated == 1 {
			pixels = appendPacked(pixels, bit, fr.Samples)
			bit = (bit + len(fr.Samples)) % 8
		} else {
			pixels = fr.AppendNative(pixels)
		}
	}
	if len(pixels)%2 == 1 {
		pixels = append(pixels, 0)
	}
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: r.NativeVR(), Value: pixels})
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return d, b
}

// file writes the image as a PS3.10 file.
func (r raw) file(t testing.TB) string {
	t.Helper()
	_, b := r.dataset(t)
	meta := &dicom.Dataset{}
	meta.Set(dicom.Element{Tag: dicom.FileMetaInformationVersion, VR: dicom.OB, Value: []byte{0, 1}})
	meta.SetStrings(dicom.MediaStorageSOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	meta.SetStrings(dicom.MediaStorageSOPInstanceUID, "1.2.3.4.5")
	meta.SetStrings(dicom.TransferSyntaxUID, dicom.ExplicitVRLittleEndian)
	meta.SetStrings(dicom.ImplementationClassUID, "1.2.3.4.6")
	meta.SetInt(dicom.FileMetaInformationGroupLength, 0)
	head, err := meta.Encode(append(make([]byte, 128), "DICM"...), dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "raw.dcm")
	if err := os.WriteFile(name, append(head, b...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// scene is samples with flat parts, ramps, edges and noise.
func (r raw) scene() raw {
	mask := int32(1)<<min(r.BitsStored, 30) - 1
	r.value = func(f, i int) int32 {
		p, s := i/r.Samples, i%r.Samples
		x, y := p%r.Columns, p/r.Columns
		switch {
		case y < r.Rows/4:
			return int32(40*s+f) & mask
		case y < r.Rows/2:
			return int32(x*(s+1)*int(mask)/(2*r.Columns)) & mask
		case x < r.Columns/2:
			return int32(uint32(p*2654435761+s*40503+f*97)>>7) & mask
		}
		return int32((x/5+y/7)%2*int(mask)) & mask
	}
	return r
}

// TestDCMTKEncodes has DCMTK encode made up images in every way it can, and compares what is decoded with the original where nothing is
// lost, else with what DCMTK decodes.
// Behaviour 37.
func TestDCMTKEncodes(t *testing.T) {
	gray8 := raw{Format: Format{Rows: 37, Columns: 45, Samples: 1, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: Monochrome2}, frames: 1}.scene()
	gray12 := raw{Format: Format{Rows: 37, Columns: 45, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 11, Photometric: Monochrome2}, frames: 2}.scene()
	gray16 := raw{Format: Format{Rows: 37, Columns: 45, Samples: 1, BitsAllocated: 16, BitsStored: 16, HighBit: 15, Photometric: Monochrome2}, frames: 1}.scene()
	signed := raw{Format: Format{Rows: 37, Columns: 45, Samples: 1, BitsAllocated: 16, BitsStored: 16, HighBit: 15, Photometric: Monochrome2, Signed: true}, frames: 1}.scene()
	rgb := raw{Format: Format{Rows: 37, Columns: 45, Samples: 3, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: RGB}, frames: 2}.scene()
	thin := raw{Format: Format{Rows: 3, Columns: 1, Samples: 1, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: Monochrome2}, frames: 1}.scene()
	var ways []way
	for _, from := range []raw{gray8, gray12, gray16, signed, rgb, thin} {
		for _, tool := range []string{"dcmcrle", "dcmcjpls", "dcmcjpeg +e1"} {
			ways = append(ways, way{true, from, tool})
		}
		ways = append(ways, way{false, from, "dcmcjpls +en +md 3"}, way{false, from, "dcmcjpls +en +md 1"})
	}
	for predictor := 1; predictor <= 7; predictor++ {
		ways = append(ways, way{true, gray16, fmt.Sprint("dcmcjpeg +el +sv ", predictor)}, way{true, rgb, fmt.Sprint("dcmcjpeg +el +sv ", predictor)})
	}
	for _, tool := range []string{"dcmcjpeg +eb", "dcmcjpeg +ee", "dcmcjpeg +es", "dcmcjpeg +ep", "dcmcjpeg +eb +s4", "dcmcjpeg +eb +n1", "dcmcjpeg +ep +np", "dcmcjpeg +ee +cr"} {
		ways = append(ways, way{false, gray8, tool}, way{false, rgb, tool})
	}
	for _, tool := range []string{"dcmcjpeg +ee +bt", "dcmcjpeg +es +bt", "dcmcjpeg +ep +bt"} {
		ways = append(ways, way{false, gray12, tool})
	}
	ways = append(ways, way{true, rgb, "dcmcjpls +il"}, way{true, rgb, "dcmcjpls +is"}, way{true, rgb, "dcmcjpls +in"},
		way{false, rgb, "dcmcjpls +en +md 2 +is"}, way{false, rgb, "dcmcjpls +en +md 2 +in"}, way{false, gray16, "dcmcjpeg +el +pt 2"},
		way{true, gray12, "dcmcjpls +t1 5 +t2 9 +t3 30 +rs 20"})
	encoded := 0
	for _, w := range ways {
		if w.run(t) {
			encoded++
		}
	}
	t.Logf("%d of %d", encoded, len(ways))
	if encoded < len(ways)*3/4 {
		t.Errorf("DCMTK took only %d of %d ways", encoded, len(ways))
	}
}

// way is a made up image and the DCMTK tool that encodes it.
type way struct {
	exact bool // nothing is lost
	from  raw
	tool  string
}

// run reports whether DCMTK encodes the image so.
func (w way) run(t *testing.T) bool {
	t.Helper()
	args := strings.Fields(w.tool)
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Skipf("%s is not installed", args[0])
	}
	from := w.from.file(t)
	to := filepath.Join(t.TempDir(), "encoded.dcm")
	what := fmt.Sprintf("%s of %d x %d bits", w.tool, w.from.Samples, w.from.BitsStored)
	if out, err := exec.Command(path, append(args[1:], from, to)...).CombinedOutput(); err != nil {
		t.Logf("%s: %s", what, bytes.TrimSpace(out))
		return false
	}
	im, syntax, err := load(t, to)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return true
	}
	ref, _, err := load(t, from)
	if err != nil {
		t.Fatal(err)
	}
	if !w.exact {
		if ref = reference(t, to, syntax); ref == nil {
			return false
		}
	}
	for i := range im.Len() {
		got, err := im.Frame(t.Context(), i)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			break
		}
		want, err := ref.Frame(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if largest, count := differ(got, want); largest > 1 || largest > 0 && !lossyDCT(syntax) {
			t.Errorf("%s: frame %d: %d samples differ, by up to %d", what, i+1, count, largest)
		} else if largest > 0 {
			t.Logf("%s: frame %d: %d samples differ by 1", what, i+1, count)
		}
	}
	return true
}
