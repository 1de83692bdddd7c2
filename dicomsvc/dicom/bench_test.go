package dicom

import (
	"bytes"
	"io"
	"testing"
)

type onlyReader struct{ io.Reader }

func BenchmarkHeader(b *testing.B) {
	object := ctObject(b)
	r := bytes.NewReader(nil)
	var s Scanner
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(object)
		s.Reset(r, ExplicitVRLittleEndian, Limits{})
		if _, err := s.Header(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPassThrough(b *testing.B) {
	object := ctObject(b)
	r := bytes.NewReader(nil)
	var s Scanner
	b.ReportAllocs()
	b.SetBytes(int64(len(object)))
	for b.Loop() {
		r.Reset(object)
		s.Reset(onlyReader{r}, ExplicitVRLittleEndian, Limits{})
		if err := s.Rest(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFacts(b *testing.B) {
	h, err := Decode(ctObject(b), ExplicitVRLittleEndian, Limits{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ExtractFacts(h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJSON(b *testing.B) {
	h, err := Decode(ctObject(b), ExplicitVRLittleEndian, Limits{})
	if err != nil {
		b.Fatal(err)
	}
	h.Remove(PixelData)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		if dst, err = AppendJSON(dst[:0], h, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	object := ctObject(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(object, ExplicitVRLittleEndian, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
