package dicomweb

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"strings"
	"testing"
	"testing/iotest"
)

// collect reads all parts; a broken header counts as a nil part.
func collect(t testing.TB, r io.Reader, boundary string) (parts [][]byte, err error) {
	t.Helper()
	p, err := newPartReader(r, boundary)
	if err != nil {
		return nil, err
	}
	for {
		part, err := p.next()
		switch {
		case err == io.EOF:
			return parts, nil
		case errors.Is(err, errPartHeader):
			parts = append(parts, nil)
			continue
		case err != nil:
			return parts, err
		}
		b, err := io.ReadAll(part)
		if err != nil {
			return parts, err
		}
		parts = append(parts, append([]byte{}, b...))
	}
}

// Behaviour 52.
func TestPartReaderTakesWhatSendersWrite(t *testing.T) {
	tests := []struct {
		name, body string
		want       []string
	}{
		{"plain", "--b\r\nContent-Type: x\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--", []string{"one", "two"}},
		{"preamble and epilogue", "hello\r\nworld\r\n--b\r\n\r\none\r\n--b--\r\nbye", []string{"one"}},
		{"leading line end", "\r\n--b\r\n\r\none\r\n--b--\r\n", []string{"one"}},
		{"space behind the boundary", "--b \t\r\n\r\none\r\n--b  \r\n\r\ntwo\r\n--b--  \r\n", []string{"one", "two"}},
		{"line feeds alone", "--b\nA: b\n\none\n--b\n\ntwo\n--b--\n", []string{"one", "two"}},
		{"empty part", "--b\r\nA: b\r\n\r\n--b\r\n\r\n\r\n--b--", []string{"", ""}},
		{"empty lines in the body (behaviour 52)", "--b\r\nA: b\r\n\r\n\r\n\r\nx\r\n\r\n\r\n--b--", []string{"\r\n\r\nx\r\n\r\n"}},
		{"almost a boundary", "--b\r\n\r\n\r\n--bx\r\n--b-\r\n--b \x00\r\n--\r\n--b--", []string{"\r\n--bx\r\n--b-\r\n--b \x00\r\n--"}},
		{"boundary in the middle of a line", "--b\r\n\r\nx--b\r\n--b--", []string{"x--b"}},
		{"folded header", "--b\r\nA: b\r\n c\r\n\r\none\r\n--b--", []string{"one"}},
		{"no parts", "--b--\r\n", nil},
		{"closing boundary at the very end", "--b\r\n\r\none\r\n--b--", []string{"one"}},
		{"header without a colon spoils one part", "--b\r\nnonsense\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--", []string{"<nil>", "two"}},
		{"header too long spoils one part", "--b\r\nA: " + strings.Repeat("x", partHeaderBytesMax) + "\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--", []string{"<nil>", "two"}},
	}
	for _, tt := range tests {
		for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader} {
			got, err := collect(t, wrap(strings.NewReader(tt.body)), "b")
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			var texts []string
			for _, b := range got {
				if b == nil {
					texts = append(texts, "<nil>")
				} else {
					texts = append(texts, string(b))
				}
			}
			if strings.Join(texts, "|") != strings.Join(tt.want, "|") || len(texts) != len(tt.want) {
				t.Errorf("%s: got %q, want %q", tt.name, texts, tt.want)
			}
		}
	}
}

// Behaviours 9, 52.
func TestPartReaderKnowsWhatWasCutOff(t *testing.T) {
	whole := "--b\r\nContent-Type: x\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--"
	for n := range len(whole) {
		if _, err := collect(t, strings.NewReader(whole[:n]), "b"); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d (%q): error is %v, want unexpected EOF", n, whole[:n], err)
		}
	}
	broken := errors.New("reset by peer")
	if _, err := collect(t, io.MultiReader(strings.NewReader(whole[:25]), iotest.ErrReader(broken)), "b"); !errors.Is(err, broken) {
		t.Errorf("error is %v, want the connection's", err)
	}
}

func TestPartReaderLimits(t *testing.T) {
	if _, err := collect(t, strings.NewReader(strings.Repeat("x", preambleBytesMax+readBufferBytes)+"\r\n--b--"), "b"); !errors.Is(err, errMultipart) {
		t.Errorf("endless preamble: error is %v", err)
	}
	many := strings.Repeat("--b\r\n\r\n\r\n", partsMax)
	if parts, err := collect(t, strings.NewReader(many+"--b--"), "b"); err != nil || len(parts) != partsMax {
		t.Errorf("%d parts: got %d, %v", partsMax, len(parts), err)
	}
	if _, err := collect(t, strings.NewReader(many+"--b\r\n\r\n\r\n--b--"), "b"); !errors.Is(err, errMultipart) {
		t.Errorf("%d parts: error is %v", partsMax+1, err)
	}
	for _, boundary := range []string{"", strings.Repeat("b", boundaryBytesMax+1)} {
		if _, err := newPartReader(strings.NewReader(""), boundary); !errors.Is(err, errMultipart) {
			t.Errorf("boundary of %d characters: error is %v", len(boundary), err)
		}
	}
}

// TestPartReaderAgreesWithModel holds random bodies full of near misses against the parts they were made of.
//
// Behaviour 52.
func TestPartReaderAgreesWithModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	bits := []string{"\r\n", "\r", "\n", "--", "-", "\r\n--", "\r\n--b", "b", "--bc", "\r\n\r\n", "x", strings.Repeat("y", 70000), " "}
	for range 300 {
		var want [][]byte
		var body bytes.Buffer
		for range 1 + random.IntN(4) {
			var part bytes.Buffer
			for range random.IntN(12) {
				part.WriteString(bits[random.IntN(len(bits))])
			}
			// What holds a true boundary cannot be sent under it.
			if s := "\r\n" + part.String() + "\r\n"; strings.Contains(s, "\r\n--boundary") {
				continue
			}
			want = append(want, part.Bytes())
			body.WriteString("--boundary\r\nContent-Type: x\r\n\r\n" + part.String() + "\r\n")
		}
		body.WriteString("--boundary--\r\n")
		got, err := collect(t, &body, "boundary")
		if err != nil || len(got) != len(want) {
			t.Fatalf("got %d parts, %v; want %d", len(got), err, len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("part %d: got %.80q, want %.80q", i, got[i], want[i])
			}
		}
	}
}

func FuzzPartReader(f *testing.F) {
	f.Add("--b\r\nContent-Type: application/dicom\r\n\r\none\r\n--b--\r\n")
	f.Add("pre\r\n--b \r\nA: b\r\n c\r\n\r\n\r\n--bx\r\n--b\r\n\r\n--b--")
	f.Add("--b\nA: b\n\none\n--b--")
	f.Fuzz(func(t *testing.T, body string) {
		got, err := collect(t, strings.NewReader(body), "b")
		slow, slowErr := collect(t, iotest.OneByteReader(strings.NewReader(body)), "b")
		if (err == nil) != (slowErr == nil) || len(got) != len(slow) {
			t.Fatalf("%q: %d parts, %v; byte by byte %d, %v", body, len(got), err, len(slow), slowErr)
		}
		for i := range got {
			if !bytes.Equal(got[i], slow[i]) {
				t.Fatalf("%q: part %d is %q, byte by byte %q", body, i, got[i], slow[i])
			}
		}
		// Where the standard library reads a body whole with the strict line ends, both read the same.
		if err != nil || !strings.HasPrefix(body, "--b\r\n") {
			return
		}
		std := multipart.NewReader(strings.NewReader(body), "b")
		for i := 0; ; i++ {
			p, serr := std.NextRawPart()
			if serr != nil {
				return
			}
			b, serr := io.ReadAll(p)
			if serr != nil || i >= len(got) || got[i] == nil {
				return
			}
			if !bytes.Equal(b, got[i]) {
				t.Fatalf("%q: part %d is %q, the standard library reads %q", body, i, got[i], b)
			}
		}
	})
}

func TestBudgetPartHeaderBytes(t *testing.T) {
	for n, want := range map[int]error{partHeaderBytesMax: nil, partHeaderBytesMax + 1: errPartHeader} {
		// The block is the header line and the empty line that ends it.
		block := "A: " + strings.Repeat("x", n-len("A: \r\n\r\n")) + "\r\n\r\n"
		r, err := newPartReader(strings.NewReader("--b\r\n"+block+"one\r\n--b--"), "b")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.next(); !errors.Is(err, want) {
			t.Errorf("a header of %d bytes: got %v, want %v", len(block), err, want)
		}
	}
}
