package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"osteon/erasure/place"
	"osteon/erasure/shard"
)

// testPack is an encoded pack whose shards are held in memory, cell by cell, or in files.
type testPack struct {
	spec  EncodeSpec
	info  PackInfo
	plain []byte // of all regions
	body  [][]byte
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = rng.Read(b)
	return b
}

// memorySink keeps a shard's payload and computes the root as a holder would.
type memorySink struct {
	build *shard.Builder
	body  []byte
	fail  func(cells int) error
	cells int
	ended string
}

func (s *memorySink) WriteCell(ctx context.Context, cell []byte) error {
	s.cells++
	if s.fail != nil {
		if err := s.fail(s.cells); err != nil {
			return err
		}
	}
	s.body = append(s.body, cell...)
	return s.build.Hash(cell)
}

func (s *memorySink) Commit(_ context.Context, streamBytes int64) (shard.Root, error) {
	s.ended += "commit"
	_, root, err := s.build.Finish(streamBytes)
	return root, err
}

func (s *memorySink) Abort() { s.ended += "abort" }

func memorySinks(t testing.TB, spec EncodeSpec) ([]*memorySink, []ShardSink) {
	t.Helper()
	var mem []*memorySink
	var sinks []ShardSink
	for i := range spec.Geometry.N() {
		b, err := shard.NewBuilder(spec.Header(i))
		if err != nil {
			t.Fatal(err)
		}
		m := &memorySink{build: b}
		mem, sinks = append(mem, m), append(sinks, m)
	}
	return mem, sinks
}

func specOf(g place.Geometry, sections int) EncodeSpec {
	spec := EncodeSpec{Ring: place.RingID{1}, Pack: place.PackID{2}, Encode: place.EncodeID{3, 15: byte(g.K)}, Geometry: g}
	for i := range sections {
		spec.Keys = append(spec.Keys, PackKey{byte(i + 1)})
	}
	return spec
}

// encodePack encodes sections of (data, manifest) lengths into memory, written in uneven pieces.
func encodePack(t testing.TB, spec EncodeSpec, sections [][2]int) *testPack {
	t.Helper()
	p := &testPack{spec: spec}
	mem, sinks := memorySinks(t, spec)
	info, err := Encode(t.Context(), spec, func(w *PackWriter) error {
		rng := rand.New(rand.NewPCG(1, 1))
		for i, s := range sections {
			data := randomBytes(uint64(i), s[0])
			if w.Offset() != int64(len(p.plain)) {
				return fmt.Errorf("offset %d, want %d", w.Offset(), len(p.plain))
			}
			for rest := data; len(rest) > 0; {
				n := min(1+rng.IntN(200_000), len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					return err
				}
				rest = rest[n:]
			}
			manifest := randomBytes(uint64(i)+1000, s[1])
			p.plain = append(append(p.plain, data...), manifest...)
			if err := w.Finish(manifest); err != nil {
				return err
			}
		}
		return nil
	}, sinks)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range mem {
		if m.ended != "commit" {
			t.Errorf("sink %d ended by %q", i, m.ended)
		}
		p.body = append(p.body, m.body)
	}
	p.info = info
	return p
}

// memorySource reads a shard's payload from memory and can be made to fail.
type memorySource struct {
	mu    sync.Mutex
	body  []byte
	reads []span
	// before runs for each read, outside the lock.
	before func(ctx context.Context, off int64, n int) error
}

func (s *memorySource) ReadShard(ctx context.Context, dst []byte, off int64) error {
	if s.before != nil {
		if err := s.before(ctx, off, len(dst)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, span{int(off), int(off) + len(dst)})
	if off < 0 || off+int64(len(dst)) > int64(len(s.body)) {
		return io.ErrUnexpectedEOF
	}
	copy(dst, s.body[off:])
	return nil
}

func (p *testPack) sources() []*memorySource {
	var out []*memorySource
	for _, b := range p.body {
		out = append(out, &memorySource{body: b})
	}
	return out
}

func (p *testPack) open(t testing.TB, sources []*memorySource, change func(*PackSpec)) *PackReader {
	t.Helper()
	spec := PackSpec{
		Ring: p.spec.Ring, Pack: p.spec.Pack, Encode: p.spec.Encode, Geometry: p.spec.Geometry,
		CellBytes: p.info.CellBytes, BlockBytes: p.info.BlockBytes, StreamBytes: p.info.StreamBytes,
		Keys: p.spec.Keys, Sections: p.info.Sections,
	}
	for _, s := range sources {
		src := Source{}
		if s != nil {
			src.Shard = s
		}
		spec.Sources = append(spec.Sources, src)
	}
	if change != nil {
		change(&spec)
	}
	r, err := OpenPack(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func readAll(t testing.TB, r *PackReader, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.CopyRange(t.Context(), &b, 0, int64(n)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPackRoundTrip(t *testing.T) {
	for _, g := range []place.Geometry{{K: 1}, {K: 1, M: 2}, {K: 2, M: 1}, {K: 5, M: 4}, {K: 10, M: 4}} {
		for _, sections := range [][][2]int{
			{{0, 1}}, {{1, 1}}, {{chunkBytes, 100}}, {{chunkBytes + 1, chunkBytes}}, {{3 << 20, 70_000}},
			{{g.K*cellBytesUsual - 2*tagBytes, 7}}, {{10, 20}, {0, 5}, {400_000, 3}},
		} {
			p := encodePack(t, specOf(g, len(sections)), sections)
			var want int64
			for _, s := range sections {
				for _, n := range s {
					want += int64(n) + int64((n+chunkBytes-1)/chunkBytes*tagBytes) + regionEntry
				}
			}
			if p.info.StreamBytes != want+int64(directoryTail) || p.info.PlainBytes != int64(len(p.plain)) {
				t.Errorf("%v %v: stream %d plain %d, want %d %d", g, sections, p.info.StreamBytes, p.info.PlainBytes, want, len(p.plain))
			}
			stored := 0
			for _, b := range p.body {
				stored += len(b)
			}
			if most := g.N() * (int(p.info.StreamBytes)/g.K + 64 + 1); stored > most {
				t.Errorf("%v %v: %d bytes stored, want at most %d", g, sections, stored, most)
			}
			// With sections from the catalog and with those of the directory.
			for _, change := range []func(*PackSpec){nil, func(s *PackSpec) { s.Sections = nil }} {
				r := p.open(t, p.sources(), change)
				if got := readAll(t, r, len(p.plain)); !bytes.Equal(got, p.plain) {
					t.Errorf("%v %v: bytes differ", g, sections)
				}
				if fmt.Sprint(r.Sections()) != fmt.Sprint(p.info.Sections) {
					t.Errorf("%v %v: sections %v, want %v", g, sections, r.Sections(), p.info.Sections)
				}
			}
		}
	}
}

func TestPackFiles(t *testing.T) {
	g := place.Geometry{K: 3, M: 2}
	spec, dir := specOf(g, 1), t.TempDir()
	var sinks []ShardSink
	for i := range g.N() {
		s, err := LocalSink(vfs.Default, dir, spec.Header(i))
		if err != nil {
			t.Fatal(err)
		}
		sinks = append(sinks, s)
	}
	plain := randomBytes(5, 3_000_000)
	info, err := Encode(t.Context(), spec, func(w *PackWriter) error {
		if _, err := w.Write(plain); err != nil {
			return err
		}
		return w.Finish([]byte("manifest"))
	}, sinks)
	if err != nil {
		t.Fatal(err)
	}
	var seen bad
	ps := PackSpec{Ring: spec.Ring, Pack: spec.Pack, Encode: spec.Encode, Geometry: g, CellBytes: info.CellBytes,
		BlockBytes: info.BlockBytes, StreamBytes: info.StreamBytes, Keys: spec.Keys, Sections: OneSection(3_000_000, 8), Now: time.Now, OnBad: seen.note}
	for i := range g.N() {
		r, err := shard.Open(vfs.Default, dir, spec.Pack, spec.Encode, i)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got := r.Header().StreamBytes; got != info.StreamBytes {
			t.Errorf("shard %d says stream %d, want %d", i, got, info.StreamBytes)
		}
		ps.Sources = append(ps.Sources, Source{Shard: LocalSource(r), Pace: new(Pace)})
	}
	r, err := OpenPack(t.Context(), ps)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := readAll(t, r, len(plain)); !bytes.Equal(got, plain) {
		t.Error("bytes differ")
	}
	// Helical rot on the disk: a flipped byte in every shard file, each in a row of blocks of its own.
	for i := range g.N() {
		name := fmt.Sprintf("%x-%d.shard", spec.Encode[:], i)
		path := filepath.Join(dir, name[:2], name[2:4], name)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file[96+i*(info.BlockBytes+4)+1000*i+5] ^= 0x40
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := readAll(t, r, len(plain)); !bytes.Equal(got, plain) {
		t.Error("bytes differ after rot")
	}
	if seen.n < g.K || !errors.Is(seen.list[1], shard.ErrCorrupt) {
		t.Errorf("rot in every data shard, reported %v", seen.list)
	}
	if m, err := r.ManifestBytes(t.Context(), 0); err != nil || string(m) != "manifest" {
		t.Errorf("manifest %q %v", m, err)
	}
	if _, err := r.ManifestBytes(t.Context(), 1); !errors.Is(err, ErrRange) {
		t.Errorf("section 1: %v", err)
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {int64(len(plain)) + 8, 1}, {5, 1 << 62}, {1 << 62, 1 << 62}} {
		if err := r.CopyRange(t.Context(), io.Discard, bad[0], bad[1]); !errors.Is(err, ErrRange) {
			t.Errorf("range %v: %v", bad, err)
		}
	}
}

// Encode, lose and spoil random shards, at most M a stripe, read random ranges: always the same bytes.
func TestPackProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := place.Geometry{K: rapid.IntRange(1, 6).Draw(rt, "k"), M: rapid.IntRange(0, 4).Draw(rt, "m")}
		spec := specOf(g, rapid.IntRange(1, 3).Draw(rt, "sections"))
		spec.BlockBytes = rapid.SampledFrom([]int{64, 1024, 4096}).Draw(rt, "block")
		spec.CellBytes = spec.BlockBytes * rapid.IntRange(1, 8).Draw(rt, "blocks")
		var sections [][2]int
		for range spec.Keys {
			sections = append(sections, [2]int{rapid.IntRange(0, 300_000).Draw(rt, "data"), rapid.IntRange(0, 2000).Draw(rt, "manifest")})
		}
		p := encodePack(t, spec, sections)
		sources := p.sources()
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, g.N()-1), 0, g.M, rapid.ID[int]).Draw(rt, "bad") {
			switch rapid.IntRange(0, 2).Draw(rt, "how") {
			case 0:
				sources[i] = nil
			case 1:
				sources[i].before = func(context.Context, int64, int) error { return errors.New("unreachable") }
			case 2:
				sources[i].before = corruptEvery(i)
			}
		}
		r := p.open(t, sources, nil)
		for range 10 {
			off := rapid.IntRange(0, len(p.plain)).Draw(rt, "off")
			n := rapid.IntRange(0, len(p.plain)-off).Draw(rt, "n")
			got := make([]byte, n)
			if _, err := r.ReadAt(t.Context(), got, int64(off)); err != nil || !bytes.Equal(got, p.plain[off:off+n]) {
				rt.Fatalf("%v read %d at %d of %d: %v", g, n, off, len(p.plain), err)
			}
		}
	})
}

// corruptEvery fails two reads of three as a holder with bad blocks does.
func corruptEvery(i int) func(context.Context, int64, int) error {
	return func(_ context.Context, off int64, n int) error {
		if (off/64+int64(i))%3 != 0 {
			return &shard.CorruptError{Index: i, Block: off, Why: "test"}
		}
		return nil
	}
}

func TestEncodeFailures(t *testing.T) {
	g := place.Geometry{K: 3, M: 2}
	broken := errors.New("broken disk")
	write := func(n int) func(w *PackWriter) error {
		return func(w *PackWriter) error {
			for range n {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
			return w.Finish([]byte("m"))
		}
	}
	for name, tc := range map[string]struct {
		spoil func(m *memorySink)
		src   func(w *PackWriter) error
		want  error
		shard int
	}{
		"sink fails":       {func(m *memorySink) { m.fail = func(n int) error { return map[bool]error{true: broken}[n > 2] } }, write(20), broken, 3},
		"sink lies":        {func(m *memorySink) { m.build.Hash(make([]byte, 64)) }, write(0), nil, 3},
		"source fails":     {nil, func(w *PackWriter) error { w.Write(make([]byte, 5<<20)); return broken }, broken, -1},
		"no finish":        {nil, func(w *PackWriter) error { w.Write([]byte("x")); return nil }, nil, -1},
		"write too much":   {nil, func(w *PackWriter) error { w.Finish(nil); _, err := w.Write([]byte("x")); return err }, nil, -1},
		"finish twice":     {nil, func(w *PackWriter) error { w.Finish(nil); return w.Finish(nil) }, nil, -1},
		"nothing finished": {nil, func(w *PackWriter) error { return nil }, nil, -1},
	} {
		spec := specOf(g, 1)
		mem, sinks := memorySinks(t, spec)
		if tc.spoil != nil {
			tc.spoil(mem[3])
		}
		_, err := Encode(t.Context(), spec, tc.src, sinks)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
		var at *SinkError
		if errors.As(err, &at) != (tc.shard >= 0) || at != nil && at.Shard != tc.shard {
			t.Errorf("%s: blamed %v, want shard %d", name, err, tc.shard)
		}
		for i, m := range mem {
			if m.ended != "abort" && m.ended != "commit" && m.ended != "commitabort" || name == "sink fails" && m.ended != "abort" {
				t.Errorf("%s: sink %d ended by %q", name, i, m.ended)
			}
		}
	}
}

func TestEncodeRootMismatch(t *testing.T) {
	spec := specOf(place.Geometry{K: 2, M: 1}, 1)
	_, sinks := memorySinks(t, spec)
	other := spec
	other.Encode[0] = 99
	wrong, _ := memorySinks(t, other)
	sinks[1] = wrong[1] // a holder that wrote another header
	_, err := Encode(t.Context(), spec, func(w *PackWriter) error { return w.Finish([]byte("m")) }, sinks)
	var at *SinkError
	if !errors.Is(err, ErrRootMismatch) || !errors.As(err, &at) || at.Shard != 1 {
		t.Errorf("got %v", err)
	}
}

func TestEncodeEndsWithContext(t *testing.T) {
	spec := specOf(place.Geometry{K: 2, M: 1}, 1)
	mem, sinks := memorySinks(t, spec)
	ctx, cancel := context.WithCancel(t.Context())
	mem[2].fail = func(int) error { cancel(); <-ctx.Done(); return ctx.Err() } // a hung holder that obeys ctx
	_, err := Encode(ctx, spec, func(w *PackWriter) error {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
	}, sinks)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A range read touches only the blocks that hold its chunks.
func TestRangeReadTouchesFewBlocks(t *testing.T) {
	g := place.Geometry{K: 4, M: 2}
	p := encodePack(t, specOf(g, 1), [][2]int{{8 << 20, 1000}})
	sources := p.sources()
	r := p.open(t, sources, nil)
	got := make([]byte, 1000)
	if _, err := r.ReadAt(t.Context(), got, 3<<20); err != nil || !bytes.Equal(got, p.plain[3<<20:3<<20+1000]) {
		t.Fatal(err)
	}
	reads, n := 0, 0
	for _, s := range sources {
		for _, rd := range s.reads {
			reads++
			n += rd.to - rd.from
			if rd.from%p.info.BlockBytes != 0 || rd.to%p.info.BlockBytes != 0 {
				t.Errorf("read %v is not of whole blocks", rd)
			}
		}
	}
	if most := chunkBytes + 2*p.info.BlockBytes; n > most || reads > 2 {
		t.Errorf("1000 bytes took %d reads of %d bytes, want at most %d", reads, n, most)
	}
}

func TestPackKeysAndIdentityBind(t *testing.T) {
	g := place.Geometry{K: 2, M: 2}
	p := encodePack(t, specOf(g, 2), [][2]int{{100_000, 10}, {100_000, 10}})
	for name, change := range map[string]func(*PackSpec){
		"ring":         func(s *PackSpec) { s.Ring[3] = 9 },
		"pack":         func(s *PackSpec) { s.Pack[3] = 9 },
		"encode":       func(s *PackSpec) { s.Encode[3] = 9 },
		"key":          func(s *PackSpec) { s.Keys = []PackKey{{9}, s.Keys[1]} },
		"keys swapped": func(s *PackSpec) { s.Keys = []PackKey{s.Keys[1], s.Keys[0]} },
	} {
		r := p.open(t, p.sources(), change)
		if _, err := r.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, ErrPackCorrupt) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*PackSpec){
		"sections":       func(s *PackSpec) { s.Sections = OneSection(5, 5) },
		"gap":            func(s *PackSpec) { s.Sections = []Section{{DataBytes: 1, ManifestOffset: 7}} },
		"one key":        func(s *PackSpec) { s.Keys = s.Keys[:1] },
		"stream length":  func(s *PackSpec) { s.StreamBytes++ },
		"few sources":    func(s *PackSpec) { s.Sources = s.Sources[1:] },
		"wrong geometry": func(s *PackSpec) { s.Geometry.K = 0 },
		"directory of another encode": func(s *PackSpec) {
			s.Sections = nil
			s.Encode[1] = 8
		},
	} {
		spec := PackSpec{Ring: p.spec.Ring, Pack: p.spec.Pack, Encode: p.spec.Encode, Geometry: g, CellBytes: p.info.CellBytes,
			BlockBytes: p.info.BlockBytes, StreamBytes: p.info.StreamBytes, Keys: p.spec.Keys, Sections: p.info.Sections}
		for _, s := range p.sources() {
			spec.Sources = append(spec.Sources, Source{Shard: s})
		}
		change(&spec)
		if _, err := OpenPack(t.Context(), spec); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Every flipped bit of the ciphertext, in any chunk, is caught even when the shard's own checks pass.
func TestFlippedCiphertextNeverPasses(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 1}, 1), [][2]int{{3000, 100}})
	for i := 0; i < len(p.body[0]) && i < int(p.info.StreamBytes)-2*regionEntry-directoryTail; i += 7 {
		sources := p.sources()
		sources[0].body = bytes.Clone(p.body[0])
		sources[0].body[i] ^= 1 << (i % 8)
		r := p.open(t, sources, nil)
		got := make([]byte, len(p.plain))
		if n, err := r.ReadAt(t.Context(), got, 0); !errors.Is(err, ErrPackCorrupt) || !bytes.Equal(got[:n], p.plain[:n]) {
			t.Fatalf("bit in byte %d: %d bytes, %v", i, n, err)
		}
	}
}

func FuzzDirectory(f *testing.F) {
	encode := place.EncodeID{3}
	regions, err := regionsOf([]Section{{0, 100, 100, 7}, {107, 1 << 20, 107 + 1<<20, 5}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(appendDirectory(nil, encode, regions))
	f.Add([]byte(directoryMagic + "\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseDirectory(b, encode)
		if err == nil && !bytes.Equal(appendDirectory(nil, encode, got), b) {
			t.Fatalf("accepted %x, writes %x", b, appendDirectory(nil, encode, got))
		}
		if err == nil {
			if again, err := regionsOf(sectionsOf(got)); err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
				t.Fatalf("sections of %v: %v %v", got, again, err)
			}
		}
	})
}
