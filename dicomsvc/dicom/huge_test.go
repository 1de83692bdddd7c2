package dicom

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

// F57: encapsulated frames of 21 GiB in all, whose offsets do not fit 32 bits: every frame is found, and
// nothing is held. Each is one fragment of 3 GiB.
// Behaviour 51.
func TestF57FramesOf21GiB(t *testing.T) {
	const (
		frames   = 7
		fragment = 3 << 30
		syntax   = "1.2.840.10008.1.2.4.90"
	)
	head := AppendElementHeader(nil, true, false, NumberOfFrames, IS, 2)
	head = append(head, "7 "...)
	head = AppendElementHeader(head, true, false, PixelData, OB, undefinedLength)
	head = AppendElementHeader(head, true, false, Item, 0, 0) // an empty basic offset table
	parts := []io.Reader{bytes.NewReader(head)}
	for range frames {
		parts = append(parts, bytes.NewReader(AppendElementHeader(nil, true, false, Item, 0, fragment)), &zeros{fragment})
	}
	parts = append(parts, bytes.NewReader(AppendElementHeader(nil, true, false, SequenceDelimitationItem, 0, 0)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := NewScanner(io.MultiReader(parts...), syntax, Limits{})
	if err := s.Rest(); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Errorf("%d bytes were allocated", got)
	}
	want := int64(len(head)) + frames*(8+fragment) + 8
	if s.Offset() != want {
		t.Errorf("offset %d, want %d", s.Offset(), want)
	}
	table := s.Frames()
	if table == nil || table.Len() != frames {
		t.Fatalf("frames: %+v", table)
	}
	for i := range frames {
		extents, err := table.Frame(nil, i)
		at := int64(len(head)) + int64(i)*(8+fragment) + 8
		if err != nil || len(extents) != 1 || extents[0].Offset != at || extents[0].Length != fragment {
			t.Errorf("frame %d: %+v, %v; want 3 GiB at %d", i, extents, err, at)
		}
	}
}
