package erasure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"osteon/erasure/place"
)

var updateGolden = flag.Bool("update", false, "write the golden files again")

// slices makes n instances over the given number of series, interleaved, with headers that differ
// a little.
func sliceInstances(n, series, headerBytes int) ([]ManifestInstance, [][]byte) {
	var ins []ManifestInstance
	var headers [][]byte
	at := int64(0)
	for i := range n {
		in := ManifestInstance{
			Version: [32]byte{byte(i), byte(i >> 8)}, Digest: [32]byte{9, byte(i)},
			SOPInstanceUID:    fmt.Sprintf("1.2.826.0.1.3680043.8.498.%d.%d", i%series, i),
			SOPClassUID:       "1.2.840.10008.5.1.4.1.1.2",
			SeriesInstanceUID: fmt.Sprintf("1.2.826.0.1.3680043.8.498.%d", i%series),
			TransferSyntaxUID: "1.2.840.10008.1.2.1",
			Offset:            at, Size: 526_000, PixelOffset: 1700,
			Frames:     []Frame{{1712, 524_288 / 2}, {1712 + 524_288/2, 524_288 / 2}},
			Provenance: Provenance{CallingAE: "CT_1", Node: place.NodeID{7}, At: time.UnixMilli(1_790_000_000_000 + int64(i)).UTC()},
		}
		at += in.Size
		header := bytes.Repeat([]byte("(0008,0016) UI CT Image Storage; "), headerBytes/33+1)[:headerBytes]
		if headerBytes >= 8 {
			binary.LittleEndian.PutUint64(header, uint64(i))
		}
		ins, headers = append(ins, in), append(headers, header)
	}
	return ins, headers
}

func buildManifest(t testing.TB, ins []ManifestInstance, headers [][]byte) []byte {
	t.Helper()
	b, err := NewManifestBuilder("1.2.826.0.1.3680043.8.498")
	if err != nil {
		t.Fatal(err)
	}
	for i := range ins {
		if n, err := b.Add(ins[i], headers[i]); err != nil || n != i {
			t.Fatalf("instance %d: %d %v", i, n, err)
		}
	}
	out, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestManifestInPack(t *testing.T) {
	for _, tc := range []struct{ n, series, header int }{{0, 1, 0}, {1, 1, 0}, {1, 1, 900}, {600, 3, 6000}, {5, 5, HeaderBytesMax}, {2000, 7, 50}} {
		ins, headers := sliceInstances(tc.n, tc.series, tc.header)
		encoded := buildManifest(t, ins, headers)
		p := &testPack{spec: specOf(place.Geometry{K: 3, M: 2}, 1)}
		mem, sinks := memorySinks(t, p.spec)
		info, err := Encode(t.Context(), p.spec, func(w *PackWriter) error {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return err
			}
			return w.Finish(encoded)
		}, sinks)
		if err != nil {
			t.Fatal(err)
		}
		p.info = info
		for _, m := range mem {
			p.body = append(p.body, m.body)
		}
		r := p.open(t, p.sources(), nil)
		m, err := r.Manifest(t.Context(), 0)
		if err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		if len(m.Instances) != len(ins) {
			t.Fatalf("%+v: %d instances", tc, len(m.Instances))
		}
		for i, got := range m.Instances {
			want := ins[i]
			want.Ordinal, want.HeaderKept = i, tc.header > 0
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v instance %d: got %+v, want %+v", tc, i, got, want)
			}
		}
		seen := 0
		for _, s := range m.Series {
			err := r.SeriesHeaders(t.Context(), 0, s, func(ordinal int, h []byte) error {
				seen++
				if !bytes.Equal(h, headers[ordinal]) || m.Instances[ordinal].SeriesInstanceUID != s.SeriesInstanceUID {
					return fmt.Errorf("header of %d differs", ordinal)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%+v: %v", tc, err)
			}
		}
		if want := tc.n; tc.header > 0 && seen != want {
			t.Errorf("%+v: %d headers", tc, seen)
		}
		if tc.n == 600 {
			t.Logf("600 slices with headers of %d bytes: manifest of %d bytes, %.0f an instance", tc.header, len(encoded), float64(len(encoded))/600)
		}
	}
}

func TestManifestLimits(t *testing.T) {
	b, err := NewManifestBuilder("1.2")
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]ManifestInstance{
		"long UID":      {SOPInstanceUID: string(make([]byte, 300))},
		"negative size": {Size: -1},
		"pixel offset":  {Size: 10, PixelOffset: 11},
		"frame outside": {Size: 10, Frames: []Frame{{5, 6}}},
		"frame before":  {Size: 10, Frames: []Frame{{-1, 2}}},
	} {
		if _, err := b.Add(in, nil); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Add(ManifestInstance{Size: 1}, make([]byte, HeaderBytesMax+1)); err != nil {
		t.Fatal(err)
	}
	out, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := DecodeManifest(out); err != nil || m.Instances[0].HeaderKept {
		t.Errorf("an overlong header was kept: %v", err)
	}
}

func TestManifestFlippedByteIsFound(t *testing.T) {
	ins, headers := sliceInstances(3, 2, 400)
	whole := buildManifest(t, ins, headers)
	m, err := DecodeManifest(whole)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= byte(1 << (i % 8))
		_, err := DecodeManifest(bad)
		for _, s := range m.Series {
			for _, g := range s.Groups {
				if _, groupErr := DecodeHeaders(g, bad[g.Offset:g.Offset+g.Bytes]); groupErr != nil {
					err = errors.Join(err, groupErr)
				}
			}
		}
		if err == nil {
			t.Errorf("byte %d of %d flipped: not found", i, len(whole))
		}
	}
	future := bytes.Clone(whole)
	future[7] = 2
	if _, err := DecodeManifest(future); !errors.Is(err, ErrManifestVersion) {
		t.Errorf("version 2: %v", err)
	}
}

func goldenFile(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *updateGolden {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// Manifests of version 1 must decode for ever; the bytes that a compressor writes may change.
func TestManifestGolden(t *testing.T) {
	ins, headers := sliceInstances(4, 2, 100)
	want := goldenFile(t, "manifest-v1.golden", buildManifest(t, ins, headers))
	m, err := DecodeManifest(want)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ins {
		ins[i].Ordinal, ins[i].HeaderKept = i, true
	}
	if !reflect.DeepEqual(m.Instances, ins) {
		t.Errorf("got %+v", m.Instances)
	}
	for _, s := range m.Series {
		n := 0
		for _, g := range s.Groups {
			got, err := DecodeHeaders(g, want[g.Offset:g.Offset+g.Bytes])
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range got {
				if !bytes.Equal(h, headers[s.Ordinals[n]]) {
					t.Errorf("header %d differs", s.Ordinals[n])
				}
				n++
			}
		}
	}
}

// Packs of version 1 must read for ever, and the same input gives the same bytes.
func TestPackGolden(t *testing.T) {
	spec := specOf(place.Geometry{K: 2, M: 1}, 2)
	spec.CellBytes, spec.BlockBytes = 128, 64
	p := encodePack(t, spec, [][2]int{{300, 40}, {20, 10}})
	got := bytes.Join(p.body, nil)
	want := goldenFile(t, "pack-v1.golden", got)
	if !bytes.Equal(got, want) {
		t.Fatal("the encoder's bytes differ from the golden file of version 1")
	}
	each := len(want) / 3
	for i := range p.body {
		p.body[i] = want[i*each : (i+1)*each]
	}
	r := p.open(t, p.sources(), func(s *PackSpec) { s.Sections = nil })
	if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
		t.Error("the golden pack reads as other bytes")
	}
}

func FuzzManifest(f *testing.F) {
	ins, headers := sliceInstances(4, 2, 100)
	f.Add(buildManifest(f, ins, headers))
	f.Add([]byte(manifestMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		for _, s := range m.Series {
			for _, g := range s.Groups {
				if g.Offset+g.Bytes <= int64(len(b)) {
					_, _ = DecodeHeaders(g, b[g.Offset:g.Offset+g.Bytes])
				}
			}
		}
	})
}

// FuzzManifestIndex reaches the records behind compression and checksums.
func FuzzManifestIndex(f *testing.F) {
	ins, headers := sliceInstances(4, 2, 100)
	whole := buildManifest(f, ins, headers)
	n, _ := ManifestIndexBytes(whole)
	raw, err := unpack(whole[manifestHeadBytes:n], manifestIndexMax)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{b: b}
		m := d.manifest(100, 1000)
		if d.bad {
			return
		}
		for _, in := range m.Instances {
			if err := checkInstance(in); err != nil {
				t.Fatalf("decoded what may not be encoded: %v", err)
			}
		}
		for _, s := range m.Series {
			for _, g := range s.Groups {
				if g.Offset < 100 || g.Bytes < 0 || g.Offset+g.Bytes > 1100 {
					t.Fatalf("group %+v is outside", g)
				}
			}
		}
	})
}
