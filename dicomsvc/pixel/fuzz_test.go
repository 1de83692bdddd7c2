package pixel

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

// syntaxes are those with a decoder of their own.
var syntaxes = []string{
	dicom.ExplicitVRLittleEndian, dicom.EncapsulatedUncompressed, dicom.DeflatedImageFrame, dicom.RLELossless, dicom.JPEGBaseline8Bit,
	dicom.JPEGExtended12Bit, dicom.JPEGLossless, dicom.JPEGLSLossless, dicom.JPEG2000Lossless,
}

// seeds returns the encoded frames in testdata, made by DCMTK of a made up image of 5 x 6 pixels: gray of 12 bits, else RGB.
func seeds(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/frames/*")
	if err != nil || len(names) == 0 {
		t.Fatalf("no seeds: %v", err)
	}
	frames := map[string][]byte{}
	for _, name := range names {
		if frames[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return frames
}

var (
	tinyGray = Format{Rows: 6, Columns: 5, Samples: 1, BitsAllocated: 16, BitsStored: 12, HighBit: 11, Photometric: Monochrome2}
	tinyRGB  = Format{Rows: 6, Columns: 5, Samples: 3, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: RGB}
)

// seedTools are the ways in which DCMTK makes the seeds.
var seedTools = map[string]string{
	"rle": "dcmcrle", "ls": "dcmcjpls", "ls-near": "dcmcjpls +en +md 2", "ls-sample": "dcmcjpls +is", "ls-none": "dcmcjpls +in",
	"sv1": "dcmcjpeg +e1", "sv6": "dcmcjpeg +el +sv 6", "extended": "dcmcjpeg +ee", "progressive": "dcmcjpeg +ep", "spectral": "dcmcjpeg +es",
}

var update = flag.Bool("update", false, "have DCMTK write testdata/frames anew")

// makeSeeds writes testdata/frames: go test -run TestHostileFrames ./dicomsvc/pixel -update
func makeSeeds(t *testing.T) {
	t.Helper()
	for kind, f := range map[string]Format{"gray": tinyGray, "rgb": tinyRGB} {
		from := raw{Format: f, frames: 1}.scene().file(t)
		for name, tool := range seedTools {
			to := filepath.Join(t.TempDir(), "out.dcm")
			if out, err := exec.Command("sh", "-c", tool+" "+from+" "+to).CombinedOutput(); err != nil {
				t.Logf("%s %s: %s", kind, tool, out)
				continue
			}
			im, _, err := load(t, to)
			if err != nil {
				t.Fatal(err)
			}
			b, _, err := im.bytes(0)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("testdata/frames/"+kind+"-"+name, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// FuzzDecode decodes any bytes as a frame of any small format in any syntax: an error of this package, or a whole frame whose samples are in range
// and which survives being written as native pixels.
func FuzzDecode(f *testing.F) {
	for name, b := range seeds(f) {
		syntax := uint8(6)
		switch {
		case strings.HasSuffix(name, "-rle"):
			syntax = 3
		case strings.Contains(name, "-ls"):
			syntax = 7
		}
		if name[0] == 'g' {
			f.Add(syntax, uint8(6), uint8(5), uint8(1), uint8(16), uint8(12), false, b)
		} else {
			f.Add(syntax, uint8(6), uint8(5), uint8(3), uint8(8), uint8(8), false, b)
		}
	}
	f.Fuzz(func(t *testing.T, syntax, rows, columns, samples, allocated, stored uint8, signed bool, data []byte) {
		format := Format{
			Rows: int(rows), Columns: int(columns), Samples: int(samples), BitsAllocated: int(allocated), BitsStored: int(stored),
			HighBit: int(stored) - 1, Signed: signed, Photometric: []string{Monochrome2, RGB, YBRFull422}[rows%3],
		}
		got, err := Decode(t.Context(), Source{Syntax: syntaxes[int(syntax)%len(syntaxes)], Word: int(columns%3) + 1, Bit: int(rows % 8)}, format, data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupportedSyntax) && !errors.Is(err, ErrLimit) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if len(got.Samples) != format.SamplesPerFrame() {
			t.Fatalf("%d samples of %d", len(got.Samples), format.SamplesPerFrame())
		}
		for i, v := range got.Samples {
			if v != got.Format.extend(uint32(v)) {
				t.Fatalf("sample %d is %d, more than %d bits", i, v, got.Format.BitsStored)
			}
		}
		again, err := Decode(t.Context(), Source{Syntax: dicom.ExplicitVRLittleEndian}, got.Format, got.AppendNative(nil))
		if err != nil {
			t.Fatalf("what was decoded cannot be read again: %v", err)
		}
		if _, count := differ(got, again); count > 0 {
			t.Fatalf("%d samples differ when read again", count)
		}
	})
}

// TestHostileFrames cuts the seeds at every byte and flips every bit of their beginning: an error of this package or a frame, never
// a panic.
func TestHostileFrames(t *testing.T) {
	if *update {
		makeSeeds(t)
	}
	for name, b := range seeds(t) {
		f := tinyRGB
		if name[0] == 'g' {
			f = tinyGray
		}
		syntax := dicom.JPEGLossless
		if strings.HasSuffix(name, "-rle") {
			syntax = dicom.RLELossless
		} else if strings.Contains(name, "-ls") {
			syntax = dicom.JPEGLSLossless
		}
		if _, err := Decode(t.Context(), Source{Syntax: syntax}, f, b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		try := func(b []byte) error {
			_, err := Decode(t.Context(), Source{Syntax: syntax}, f, b)
			if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupportedSyntax) && !errors.Is(err, ErrLimit) {
				t.Errorf("%s: an error of no kind: %v", name, err)
			}
			return err
		}
		for n := range b {
			if err := try(b[:n]); err == nil && n < len(b)/2 {
				t.Errorf("%s: cut to %d bytes of %d and taken for whole", name, n, len(b))
			}
		}
		for i := range min(8*len(b), 8*700) {
			c := append([]byte(nil), b...)
			c[i/8] ^= 1 << (i % 8)
			try(c)
		}
	}
}

// TestHostileSizes: little is allocated for a frame that says it is large and has no bytes.
func TestHostileSizes(t *testing.T) {
	large := Format{Rows: 8000, Columns: 8000, Samples: 1, BitsAllocated: 16, BitsStored: 16, HighBit: 15, Photometric: Monochrome2}
	for _, syntax := range []string{dicom.ExplicitVRLittleEndian, dicom.DeflatedImageFrame, dicom.RLELossless} {
		data := make([]byte, 100)
		data[0] = 2
		data[4], data[8] = 64, 70
		allocated := testing.AllocsPerRun(1, func() {
			if _, err := Decode(t.Context(), Source{Syntax: syntax}, large, data); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", syntax, err)
			}
		})
		t.Logf("%s: %g allocations", syntax, allocated)
	}
	large.Rows = sideMax
	large.Columns = sideMax
	if _, err := Decode(t.Context(), Source{Syntax: dicom.ExplicitVRLittleEndian}, large, nil); !errors.Is(err, ErrLimit) {
		t.Errorf("65535 x 65535: %v", err)
	}
}

// TestDecodeEndsWithContext: every decoder looks at its context.
func TestDecodeEndsWithContext(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	frames := seeds(t)
	for syntax, name := range map[string]string{dicom.RLELossless: "rgb-rle", dicom.JPEGLossless: "rgb-sv1", dicom.JPEGExtended12Bit: "rgb-extended", dicom.JPEGLSLossless: "rgb-ls"} {
		if _, err := Decode(ended, Source{Syntax: syntax}, tinyRGB, frames[name]); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode(ended, Source{Syntax: dicom.ExplicitVRLittleEndian}, tinyRGB, make([]byte, 90)); !errors.Is(err, context.Canceled) {
		t.Errorf("native: %v", err)
	}
	if _, err := newRaster(10, 10, 3).scaled(ended, 3, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("scale: %v", err)
	}
}
