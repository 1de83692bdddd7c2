package shard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"osteon/erasure/place"
)

var update = flag.Bool("update", false, "write the golden files again")

func header() Header {
	return Header{
		Ring: place.RingID{1}, Pack: place.PackID{2}, Encode: place.EncodeID{0xab, 0xcd, 3}, Geometry: place.Geometry{K: 3, M: 2},
		Index: 4, CellBytes: 512, BlockBytes: 128,
	}
}

// body returns the cells of a shard of a stream of that length.
func body(h Header, stream int64) [][]byte {
	h.StreamBytes = stream
	rng := rand.New(rand.NewPCG(7, uint64(stream)))
	var cells [][]byte
	for s := range h.Shape().Stripes() {
		cell := make([]byte, h.Shape().CellLen(s))
		for i := range cell {
			cell[i] = byte(rng.Uint32())
		}
		cells = append(cells, cell)
	}
	return cells
}

func write(t testing.TB, fs vfs.FS, dir string, h Header, stream int64) (Root, []byte) {
	t.Helper()
	w, err := Create(fs, dir, h)
	if err != nil {
		t.Fatal(err)
	}
	cells := body(h, stream)
	for _, c := range cells {
		if err := w.WriteCell(c); err != nil {
			t.Fatal(err)
		}
	}
	root, err := w.Commit(stream)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	return root, bytes.Join(cells, nil)
}

func TestRoundTrip(t *testing.T) {
	for _, stream := range []int64{0, 1, 63, 64, 191, 192, 193, 1535, 1536, 1537, 5000, 40000} {
		h := header()
		dir := t.TempDir()
		root, payload := write(t, vfs.Default, dir, h, stream)
		r, err := Open(vfs.Default, dir, h.Pack, h.Encode, h.Index)
		if err != nil {
			t.Fatalf("stream %d: %v", stream, err)
		}
		h.StreamBytes = stream
		if r.Header() != h {
			t.Errorf("stream %d: header %+v", stream, r.Header())
		}
		if got, err := r.Verify(t.Context()); err != nil || got != root {
			t.Errorf("stream %d: verify %v, root equal %v", stream, err, got == root)
		}
		all := make([]byte, len(payload))
		if _, err := r.ReadAt(all, 0); err != nil || !bytes.Equal(all, payload) {
			t.Errorf("stream %d: read %v", stream, err)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			if len(payload) == 0 {
				break
			}
			off := rng.IntN(len(payload))
			n := rng.IntN(len(payload) - off + 1)
			got := make([]byte, n)
			if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, payload[off:off+n]) {
				t.Errorf("stream %d: read %d at %d: %v", stream, n, off, err)
			}
		}
		if n, err := r.ReadAt(make([]byte, 10), int64(len(payload))); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("stream %d: read at the end: %d %v", stream, n, err)
		}
		for s := range h.Shape().Stripes() {
			cell := make([]byte, h.CellBytes)
			n, err := r.ReadCell(cell, s)
			at := int(s) * h.CellBytes
			if err != nil || !bytes.Equal(cell[:n], payload[at:at+n]) {
				t.Errorf("stream %d stripe %d: %v", stream, s, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Every flipped byte of the file is found: by Open, or by Verify, and by reading exactly the block it
// is in.
func TestEveryFlippedByteIsFound(t *testing.T) {
	h, fs := header(), vfs.NewMem()
	_, payload := write(t, fs, "d", h, 2500)
	path := locate(fs, "d", h.Encode, h.Index).path
	whole := readFile(t, fs, path)
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= byte(1 << (i % 8))
		writeFile(t, fs, path, bad)
		r, err := Open(fs, "d", h.Pack, h.Encode, h.Index)
		inBody := i >= headerBytes && i < len(whole)-trailerBytes
		if !inBody {
			if err == nil || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d outside the body: open says %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("byte %d: open: %v", i, err)
		}
		want := int64(i-headerBytes) / int64(h.BlockBytes+sumBytes)
		var corrupt *CorruptError
		if _, err := r.Verify(t.Context()); !errors.As(err, &corrupt) || corrupt.Block != want {
			t.Fatalf("byte %d: verify: %v, want block %d", i, err, want)
		}
		blocks, err := r.Scrub(t.Context())
		if err != nil || len(blocks) != 1 || blocks[0] != want {
			t.Fatalf("byte %d: scrub: %v %v, want block %d", i, blocks, err, want)
		}
		got := make([]byte, 1)
		for b := int64(0); b*int64(h.BlockBytes) < int64(len(payload)); b++ {
			_, err := r.ReadAt(got, b*int64(h.BlockBytes))
			if (err != nil) != (b == want) {
				t.Fatalf("byte %d: reading block %d: %v, bad is %d", i, b, err, want)
			}
		}
		r.Close()
	}
	for _, cut := range []int{0, 10, headerBytes, headerBytes + 50, len(whole) - 1} {
		writeFile(t, fs, path, whole[:cut])
		if _, err := Open(fs, "d", h.Pack, h.Encode, h.Index); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}

// A block copied from another place of the shard, another shard or another encode, checksum
// and all, and whole files under another name, are found.
func TestMisplacedBytesAreFound(t *testing.T) {
	fs, h := vfs.NewMem(), header()
	write(t, fs, "d", h, 2500)
	other := h
	other.Index = 1
	write(t, fs, "d", other, 2500)
	newer := h
	newer.Encode[5] = 9
	write(t, fs, "d", newer, 2500)
	path := locate(fs, "d", h.Encode, h.Index).path
	whole := readFile(t, fs, path)
	const block = 128 + sumBytes
	for name, from := range map[string][]byte{
		"other block":  whole[headerBytes+block:],
		"other shard":  readFile(t, fs, locate(fs, "d", other.Encode, other.Index).path)[headerBytes:],
		"other encode": readFile(t, fs, locate(fs, "d", newer.Encode, newer.Index).path)[headerBytes:],
	} {
		bad := bytes.Clone(whole)
		copy(bad[headerBytes:headerBytes+block], from[:block])
		writeFile(t, fs, path, bad)
		r, err := Open(fs, "d", h.Pack, h.Encode, h.Index)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Verify(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: verify says %v", name, err)
		}
		r.Close()
	}
	writeFile(t, fs, path, readFile(t, fs, locate(fs, "d", newer.Encode, newer.Index).path))
	if _, err := Open(fs, "d", h.Pack, h.Encode, h.Index); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a whole file of another encode: %v", err)
	}
	writeFile(t, fs, path, whole)
	if _, err := Open(fs, "d", place.PackID{77}, h.Encode, h.Index); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file of another pack: %v", err)
	}
}

func TestWriterRefusals(t *testing.T) {
	fs, h := vfs.NewMem(), header()
	write(t, fs, "d", h, 100)
	if _, err := Create(fs, "d", h); !errors.Is(err, ErrExists) {
		t.Errorf("create twice: %v", err)
	}
	h.Index = 0
	w, err := Create(fs, "d", h)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteCell(make([]byte, 513)); err == nil {
		t.Error("an overlong cell was accepted")
	}
	if _, err := w.Commit(100); err == nil {
		t.Error("commit after a failed cell")
	}
	w.Abort()
	for _, tc := range []struct {
		cells  []int
		stream int64
	}{{[]int{512}, 1537}, {[]int{512, 64}, 1536}, {nil, 1}, {[]int{64}, -1}} {
		w, err := Create(fs, "d", h)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range tc.cells {
			if err := w.WriteCell(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Commit(tc.stream); err == nil {
			t.Errorf("cells %v committed as a stream of %d", tc.cells, tc.stream)
		}
	}
	if _, err := Open(fs, "d", h.Pack, h.Encode, h.Index); !errors.Is(err, ErrNotFound) {
		t.Errorf("an aborted shard: %v", err)
	}
	for _, bad := range []func(*Header){
		func(h *Header) { h.Index = 5 }, func(h *Header) { h.Geometry.K = 0 }, func(h *Header) { h.BlockBytes = 100 },
		func(h *Header) { h.CellBytes = 500 }, func(h *Header) { h.CellBytes = 2 << 20 },
	} {
		h := header()
		bad(&h)
		if _, err := Create(fs, "d", h); err == nil {
			t.Errorf("header %+v accepted", h)
		}
	}
}

func TestListQuarantineRemoveSweep(t *testing.T) {
	fs, h := vfs.Default, header()
	dir := t.TempDir()
	var entries []string
	for i := range 5 {
		h.Index = i
		h.Encode[0] = byte(i)
		write(t, fs, dir, h, int64(1000*i))
	}
	h.Index, h.Encode[0] = 0, 99
	if _, err := Create(fs, dir, h); err != nil { // left behind as by a crash
		t.Fatal(err)
	}
	if err := Quarantine(fs, dir, place.EncodeID{1, 0xcd, 3}, 1); err != nil {
		t.Fatal(err)
	}
	if err := Quarantine(fs, dir, place.EncodeID{1, 0xcd, 3}, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("quarantine twice: %v", err)
	}
	if err := Remove(fs, dir, place.EncodeID{2, 0xcd, 3}, 2); err != nil {
		t.Fatal(err)
	}
	if err := Remove(fs, dir, place.EncodeID{2, 0xcd, 3}, 2); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove twice: %v", err)
	}
	bad := locate(fs, dir, place.EncodeID{3, 0xcd, 3}, 3).path
	if err := os.WriteFile(bad, []byte("nothing of the kind"), 0o600); err != nil {
		t.Fatal(err)
	}
	for e, err := range List(fs, dir) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, fmt.Sprint(e.Encode[0], e.Index, e.Pack == h.Pack, errors.Is(e.Err, ErrCorrupt)))
	}
	if got := strings.Join(entries, "; "); got != "0 0 true false; 3 3 false true; 4 4 true false" {
		t.Errorf("list: %s", got)
	}
	if n, err := Sweep(fs, dir); n != 1 || err != nil {
		t.Errorf("sweep: %d %v", n, err)
	}
	kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", "*"))
	if len(kept) != 1 {
		t.Errorf("quarantine has %v", kept)
	}
	for range List(fs, filepath.Join(dir, "absent")) {
		t.Error("an absent directory lists something")
	}
}

// A crash at any moment leaves the whole shard or none under its name; after Commit it is there.
func TestCrash(t *testing.T) {
	h := header()
	for seed := range uint64(40) {
		fs := vfs.NewCrashableMem()
		if err := fs.MkdirAll("d", 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := fs.OpenDir("/")
		if err != nil {
			t.Fatal(err)
		}
		if err := root.Sync(); err != nil {
			t.Fatal(err)
		}
		w, err := Create(fs, "d", h)
		if err != nil {
			t.Fatal(err)
		}
		crash := func() vfs.FS {
			return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, 1))})
		}
		check := func(fs vfs.FS, must bool) {
			r, err := Open(fs, "d", h.Pack, h.Encode, h.Index)
			if errors.Is(err, ErrNotFound) && !must {
				return
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if _, err := r.Verify(context.Background()); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			r.Close()
		}
		for _, c := range body(h, 5000) {
			if err := w.WriteCell(c); err != nil {
				t.Fatal(err)
			}
			check(crash(), false)
		}
		if _, err := w.Commit(5000); err != nil {
			t.Fatal(err)
		}
		check(crash(), true)
	}
}

func TestGolden(t *testing.T) {
	h, fs := header(), vfs.NewMem()
	root, payload := write(t, fs, "d", h, 2500)
	got := readFile(t, fs, locate(fs, "d", h.Encode, h.Index).path)
	golden := filepath.Join("testdata", "shard-v2.golden")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := readGolden(t, golden); !bytes.Equal(got, want) {
		t.Error("the writer's bytes differ from the golden file of version 2")
	}
	checkGolden(t, golden, root, payload)
}

// A shard of version 1 is still read, and its root is still the one in the catalog: SHA-256 over the file.
func TestGoldenOfVersion1(t *testing.T) {
	golden := filepath.Join("testdata", "shard-v1.golden")
	h := header()
	checkGolden(t, golden, sha256.Sum256(readGolden(t, golden)), bytes.Join(body(h, 2500), nil))
}

func readGolden(t *testing.T, golden string) []byte {
	t.Helper()
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// checkGolden reads a golden file as a shard.
func checkGolden(t *testing.T, golden string, root Root, payload []byte) {
	t.Helper()
	h, fs := header(), vfs.NewMem()
	at := locate(fs, "d", h.Encode, h.Index)
	if err := fs.MkdirAll(at.leaf, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, fs, at.path, readGolden(t, golden))
	r, err := Open(fs, "d", h.Pack, h.Encode, h.Index)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := r.Verify(t.Context()); err != nil || got != root {
		t.Errorf("verify %s: %v, root equal %v", golden, err, got == root)
	}
	got := make([]byte, len(payload))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, payload) {
		t.Errorf("read %s: %v", golden, err)
	}
}

// Two shards that differ anywhere have different roots, although every checksum in either is right.
func TestRootTellsShardsApart(t *testing.T) {
	h := header()
	seen := map[Root]string{}
	root := func(name string, h Header, cells [][]byte, stream int64) {
		t.Helper()
		b, err := NewBuilder(h)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cells {
			if err := b.Hash(c); err != nil {
				t.Fatal(err)
			}
		}
		_, got, err := b.Finish(stream)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the root of %s", name, other)
		}
		seen[got] = name
	}
	cells := body(h, 2500)
	root("the shard", h, cells, 2500)
	root("one of a shorter stream with the same cells", h, cells, 2499)
	for i := range cells {
		for _, bit := range []int{0, len(cells[i])*8 - 1} {
			cells[i][bit/8] ^= 1 << (bit % 8)
			root(fmt.Sprintf("cell %d with bit %d flipped", i, bit), h, cells, 2500)
			cells[i][bit/8] ^= 1 << (bit % 8)
		}
	}
	cells[0] = slices.Concat(cells[0][128:256], cells[0][:128], cells[0][256:])
	root("two blocks exchanged", h, cells, 2500)
	h.Pack[3]++
	root("another pack", h, body(h, 2500), 2500)
}

func TestBuilderKnowsTheWritersRoot(t *testing.T) {
	h := header()
	for _, stream := range []int64{1, 700, 1536, 5000} {
		root, _ := write(t, vfs.NewMem(), "d", h, stream)
		b, err := NewBuilder(h)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range body(h, stream) {
			if err := b.Hash(c); err != nil {
				t.Fatal(err)
			}
		}
		if _, got, err := b.Finish(stream); err != nil || got != root {
			t.Errorf("stream %d: %v, root equal %v", stream, err, got == root)
		}
	}
}

// FuzzOpen: no bytes make a reader panic, and what it accepts it reads without surprise.
func FuzzOpen(f *testing.F) {
	h, fs := header(), vfs.NewMem()
	write(f, fs, "d", h, 2500)
	whole := readFile(f, fs, locate(fs, "d", h.Encode, h.Index).path)
	f.Add(whole)
	f.Add(whole[:headerBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := vfs.NewMem()
		at := locate(fs, "d", h.Encode, h.Index)
		if err := fs.MkdirAll(at.leaf, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fs, at.path, b)
		for range List(fs, "d") {
		}
		r, err := Open(fs, "d", h.Pack, h.Encode, h.Index)
		if err != nil {
			return
		}
		defer r.Close()
		buf := make([]byte, 4096)
		for off := int64(0); off < r.Header().Shape().BodyBytes(); off += int64(len(buf)) {
			if _, err := r.ReadAt(buf, off); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.EOF) {
				t.Fatalf("read at %d: %v", off, err)
			}
		}
		if _, err := r.Verify(context.Background()); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func readFile(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, writeCategory)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkVerify(b *testing.B) {
	h := header()
	h.CellBytes, h.BlockBytes, h.Geometry = 256<<10, 32<<10, place.Geometry{K: 1}
	h.Index = 0
	dir := b.TempDir()
	write(b, vfs.Default, dir, h, 64<<20)
	r, err := Open(vfs.Default, dir, h.Pack, h.Encode, h.Index)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := r.Verify(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// A removal whose directory could not be synced has happened for this process only. Whoever removes again is told that
// nothing is there when that is durable, and not before.
func TestRemoveAgainIsDurable(t *testing.T) {
	h := header()
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syncDirs(mem, "/"); err != nil {
		t.Fatal(err)
	}
	w, err := Create(mem, "d", h)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range body(h, 5000) {
		if err := w.WriteCell(c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Commit(5000); err != nil {
		t.Fatal(err)
	}
	broken := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync {
			return syscall.EIO
		}
		return nil
	}))
	for range 2 {
		if err := Remove(broken, "d", h.Encode, h.Index); !errors.Is(err, syscall.EIO) {
			t.Fatalf("remove while directories cannot be synced: %v, want EIO", err)
		}
	}
	if err := Remove(mem, "d", h.Encode, h.Index); !errors.Is(err, ErrNotFound) {
		t.Fatalf("remove again: %v, want ErrNotFound", err)
	}
	if _, err := Open(mem.CrashClone(vfs.CrashCloneCfg{}), "d", h.Pack, h.Encode, h.Index); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a power cut: %v, want ErrNotFound", err)
	}
	if err := Remove(mem, "d", place.EncodeID{9}, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove in a directory that never was: %v, want ErrNotFound", err)
	}
}
