package pixel

import (
	"bytes"
	"fmt"
	"image"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

// pnm reads a raw PGM or PPM of 8 bits.
func pnm(t *testing.T, b []byte) (columns, rows, channels int, pix []byte) {
	t.Helper()
	var kind string
	var top int
	r := bytes.NewReader(b)
	if _, err := fmt.Fscan(r, &kind, &columns, &rows, &top); err != nil || top != 255 {
		t.Fatalf("no PNM of 8 bits: %q: %v", b[:min(len(b), 20)], err)
	}
	channels = map[string]int{"P5": 1, "P6": 3}[kind]
	return columns, rows, channels, b[len(b)-r.Len()+1:]
}

// TestCorpusRenderedAsDCMTKDoes renders the first frame of every file that can be decoded, with its own window or all its values, and
// compares with what dcm2pnm makes of the same native pixels.
// Behaviour 65.
func TestCorpusRenderedAsDCMTKDoes(t *testing.T) {
	tool, err := exec.LookPath("dcm2pnm")
	if err != nil {
		t.Skip("dcm2pnm is not installed")
	}
	seen := map[string]int{}
	for _, name := range corpus(t) {
		im, syntax, err := load(t, name)
		// One of a kind will do: a series of CT slices shows nothing that its first slice does not.
		kind := fmt.Sprint(im.kind(), syntax, filepath.Dir(name))
		if err != nil || im.Format.BitsAllocated == 32 || seen[kind] > 0 || im.Format.SamplesPerFrame() > 1<<20 ||
			strings.HasSuffix(name, "go-dicom/I_000000.dcm") { // its modality LUT of 8 bits holds larger entries, which dcm2pnm cuts

			continue
		}
		seen[kind]++
		m, err := im.Render(t.Context(), 0, View{})
		if err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		window := []string{"+Wi", "1"}
		if width, ok := number(im.header, dicom.WindowWidth, 0); !ok || width < 1 {
			if im.header.Has(dicom.PixelPaddingValue) || im.group(0, dicom.FrameVOILUTSequence) != im.header {
				continue // dcm2pnm knows no padding and no functional groups
			}
			window = []string{"+Wm"} // all values
		}
		dir := t.TempDir()
		from, to := filepath.Join(dir, "native.dcm"), filepath.Join(dir, "out.pnm")
		if err := os.WriteFile(from, nativeFile(t, im), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tool, append(window, "+F", "1", "-O", from, to)...).CombinedOutput(); err != nil {
			t.Logf("%s: %s", name, bytes.TrimSpace(out))
			continue
		}
		b, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		columns, rows, channels, pix := pnm(t, b)
		if m.Bounds() != image.Rect(0, 0, columns, rows) {
			t.Errorf("%s: %v, DCMTK %d x %d", name, m.Bounds(), columns, rows)
			continue
		}
		if worst, count := against(m, columns, channels, pix); worst > 1 && (worst > 2 || !strings.HasPrefix(im.Format.Photometric, "YBR")) {
			t.Errorf("%s (%s): %d pixels differ, by up to %d", name, im.Format.Photometric, count, worst)
		}
		seen[im.Format.Photometric]++
	}
	for _, p := range []string{Monochrome1, Monochrome2, RGB, YBRFull, YBRFull422, PaletteColor} {
		if seen[p] == 0 {
			t.Errorf("no image in %s was compared", p)
		}
	}
}

// kind is what a rendering depends on.
func (im *Image) kind() string {
	if im == nil {
		return ""
	}
	h := im.header
	return fmt.Sprint(im.Format, h.Has(dicom.WindowCenter), h.Has(dicom.RescaleSlope), h.Has(dicom.ModalityLUTSequence), h.Has(dicom.VOILUTSequence))
}

// against returns by how much a rendered image differs from other pixels.
func against(m image.Image, columns, channels int, pix []byte) (worst, count int) {
	for i := range len(pix) / channels {
		r, g, b, _ := m.At(i%columns, i/columns).RGBA()
		for c, v := range []uint32{r, g, b}[:channels] {
			d := int(v>>8) - int(pix[i*channels+c])
			if d = max(d, -d); d > 1 {
				count++
			}
			worst = max(worst, d)
		}
	}
	return worst, count
}

// nativeFile writes an image as a PS3.10 file in Explicit VR Little Endian, the way a destination gets it that does not take its syntax.
func nativeFile(t *testing.T, im *Image) []byte {
	t.Helper()
	d := im.header.Clone()
	var pixels bytes.Buffer
	if err := im.WriteNative(t.Context(), &pixels); err != nil {
		t.Fatal(err)
	}
	if size, err := im.NativeBytes(); err != nil || size != int64(pixels.Len()) {
		t.Fatalf("%d bytes of native pixels, announced %d: %v", pixels.Len(), size, err)
	}
	f := im.NativeFormat()
	f.Describe(d)
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: f.NativeVR(), Value: pixels.Bytes()})
	meta := &dicom.Dataset{}
	meta.Set(dicom.Element{Tag: dicom.FileMetaInformationVersion, VR: dicom.OB, Value: []byte{0, 1}})
	for tag, value := range map[dicom.Tag]string{
		dicom.MediaStorageSOPClassUID: d.String(dicom.SOPClassUID), dicom.MediaStorageSOPInstanceUID: d.String(dicom.SOPInstanceUID),
		dicom.TransferSyntaxUID: dicom.ExplicitVRLittleEndian, dicom.ImplementationClassUID: "1.2.3.4.6",
	} {
		meta.SetStrings(tag, value)
	}
	meta.SetInt(dicom.FileMetaInformationGroupLength, 0)
	b, err := meta.Encode(append(make([]byte, 128), "DICM"...), dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = d.Encode(b, dicom.ExplicitVRLittleEndian); err != nil {
		t.Fatal(err)
	}
	return b
}
