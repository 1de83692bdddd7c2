package pixel

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc/dicom"
)

const corpusDir = "../../../shared/corpus"

// memory is a stored data set.
type memory []byte

func (m memory) Section(off, n int64) io.Reader {
	return io.NewSectionReader(bytes.NewReader(m), off, n)
}

// load opens a PS3.10 file; nil when it is no image that can be opened.
func load(t testing.TB, name string) (im *Image, syntax string, err error) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(b))
	if err != nil {
		return nil, syntax, err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, syntax, err
	}
	return open(data, syntax)
}

// open opens the image of a data set.
func open(data []byte, syntax string) (*Image, string, error) {
	s := dicom.NewScanner(bytes.NewReader(data), syntax, dicom.Limits{})
	if err := s.Rest(); err != nil {
		return nil, syntax, err
	}
	stored := data
	if dicom.SyntaxOf(syntax).Deflated {
		stored = inflated(data)
	}
	im, err := Open(s.Dataset(), s.Frames(), syntax, memory(stored))
	return im, syntax, err
}

// corpus returns the files of the corpus beside the repository.
func corpus(t testing.TB) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(corpusDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(path, ".tsv") && !strings.Contains(path, "dicom-fuzzing-corpus") {
			files = append(files, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no corpus beside the repository")
	}
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// reference has DCMTK write the file with native pixels and opens that; nil when DCMTK cannot decode it.
func reference(t *testing.T, name, syntax string) *Image {
	t.Helper()
	tool := []string{"dcmconv", "+te"}
	switch {
	case syntax == dicom.RLELossless:
		tool = []string{"dcmdrle"}
	case syntax == dicom.JPEGLSLossless || syntax == dicom.JPEGLSNearLossless:
		tool = []string{"dcmdjpls"}
	case isJPEG(syntax):
		tool = []string{"dcmdjpeg", "+cn"} // the samples as they are in the stream
	}
	path, err := exec.LookPath(tool[0])
	if err != nil {
		t.Skipf("%s is not installed", tool[0])
	}
	to := filepath.Join(t.TempDir(), "native.dcm")
	out, err := exec.Command(path, append(tool[1:], name, to)...).CombinedOutput()
	if err != nil {
		t.Logf("%s: %s does not decode it: %s", name, tool[0], bytes.TrimSpace(out))
		return nil
	}
	im, _, err := load(t, to)
	if err != nil {
		t.Fatalf("%s decoded by %s: %v", name, tool[0], err)
	}
	return im
}

// differ returns the largest difference between samples of two frames, and how many differ.
func differ(a, b *Frame) (largest, count int) {
	for i, v := range a.Samples {
		if d := a.Format.value(v) - b.Format.value(b.Samples[i]); d != 0 {
			largest, count = max(largest, int(max(d, -d))), count+1
		}
	}
	return largest, count
}

// TestCorpusAgainstDCMTK decodes every frame of every file that is not stored as plain native Little Endian and compares it with what
// DCMTK makes of it: equal, and for the DCT processes off by one at the most.
// Behaviour 37.
func TestCorpusAgainstDCMTK(t *testing.T) {
	compared := map[string]int{}
	for _, name := range corpus(t) {
		im, syntax, err := load(t, name)
		if err != nil && !errors.Is(err, ErrMalformed) || syntax == dicom.ExplicitVRLittleEndian || syntax == dicom.ImplicitVRLittleEndian {
			continue
		}
		ref := reference(t, name, syntax)
		if ref == nil {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ref.Len() != im.Len() {
			t.Errorf("%s: %d frames, DCMTK finds %d", name, im.Len(), ref.Len())
			continue
		}
		compared[syntax]++
		for i := range im.Len() {
			got, err := im.Frame(t.Context(), i)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
			want, err := ref.Frame(t.Context(), i)
			if err != nil {
				t.Fatalf("%s: reference: %v", name, err)
			}
			if largest, count := differ(got, want); largest > 1 || largest > 0 && !lossyDCT(syntax) {
				t.Errorf("%s: frame %d: %d of %d samples differ, by up to %d", name, i+1, count, len(got.Samples), largest)
			} else if count > 0 {
				t.Logf("%s: frame %d: %d of %d samples differ by 1", name, i+1, count, len(got.Samples))
			}
		}
	}
	t.Log(compared)
	for _, syntax := range []string{
		dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian, dicom.RLELossless, dicom.JPEGBaseline8Bit, dicom.JPEGExtended12Bit,
		dicom.JPEGLossless, dicom.JPEGLosslessSV1, dicom.JPEGLSLossless, dicom.JPEGLSNearLossless, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55",
	} {
		if compared[syntax] == 0 {
			t.Errorf("no file in %s was compared", dicom.SyntaxOf(syntax).Name)
		}
	}
}

func lossyDCT(syntax string) bool {
	return isJPEG(syntax) && syntax < dicom.JPEGLossless
}
