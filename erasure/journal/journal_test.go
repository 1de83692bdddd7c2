package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"osteon/erasure/place"
	"osteon/raft/vault"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	testRing = place.RingID{1}
	testDisk = place.DiskID{2}
)

// newConfig is a config over fs with small segments; the keys lie elsewhere and survive its crashes.
func newConfig(t testing.TB, fs vfs.FS, dir string) Config {
	t.Helper()
	return configWith(t, fs, dir, rand.Reader)
}

func configWith(t testing.TB, fs vfs.FS, dir string, source io.Reader) Config {
	t.Helper()
	keys := vfs.NewMem()
	root, err := vault.CreateRootKeyFile(keys, "/root.key", source)
	must(t, err)
	v, err := vault.Create(vault.Config{FS: keys, Dir: "/vault", Ring: testRing, Root: root, Rand: source})
	must(t, err)
	return Config{FS: fs, Dir: dir, Ring: testRing, Disk: testDisk, Vault: v, Rand: source, Now: time.Now, SegmentBytes: 64 << 10}
}

func open(t testing.TB, cfg Config) *Journal {
	t.Helper()
	j, err := Open(cfg)
	must(t, err)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// content is an object's bytes and note, which follow from its number.
func content(n, size int) (Key, []byte, []byte) {
	rng := mathrand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	var key Key
	_, _ = rng.Read(key[:])
	b := make([]byte, size)
	_, _ = rng.Read(b)
	return key, b, fmt.Appendf(nil, "note of object %d", n)
}

func put(t testing.TB, j *Journal, n, size int) Key {
	t.Helper()
	key, b, note := content(n, size)
	must(t, tryPut(j, key, b, note))
	return key
}

func tryPut(j *Journal, key Key, b, note []byte) error {
	w := j.Begin()
	defer w.Abort()
	for len(b) > 0 {
		n := min(len(b), 100_003)
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return w.Commit(context.Background(), key, note)
}

func get(j *Journal, key Key) ([]byte, error) {
	o, err := j.OpenObject(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = o.WriteTo(&b)
	return b.Bytes(), errors.Join(err, o.Close())
}

// expect checks that object n is whole.
func expect(t testing.TB, j *Journal, n, size int) {
	t.Helper()
	key, want, wantNote := content(n, size)
	got, err := get(j, key)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("object %d of %d bytes: %v, equal %v", n, size, err, bytes.Equal(got, want))
	}
	if note, err := j.Note(key); err != nil || !bytes.Equal(note, wantNote) {
		t.Fatalf("note of object %d: %q, %v", n, note, err)
	}
	if info, ok := j.Stat(key); !ok || info.Size != int64(size) || info.Key != key {
		t.Fatalf("Stat of object %d: %+v, %v", n, info, ok)
	}
}

var sizes = []int{0, 1, 1000, 4096, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 77}

func TestPutGetReopen(t *testing.T) {
	for _, where := range []string{"mem", "disk"} {
		t.Run(where, func(t *testing.T) {
			fs, dir := vfs.FS(vfs.NewMem()), "/a/journal"
			if where == "disk" {
				fs, dir = vfs.Default, filepath.Join(t.TempDir(), "a", "journal")
			}
			cfg := newConfig(t, fs, dir)
			for round := range 3 {
				j := open(t, cfg)
				for n, size := range sizes {
					put(t, j, round*100+n, size)
				}
				for old := range round + 1 {
					for n, size := range sizes {
						expect(t, j, old*100+n, size)
					}
				}
				if c := j.Corrupt(); len(c) > 0 {
					t.Errorf("corrupt: %x", c)
				}
				if s := j.Stats(); s.Objects != (round+1)*len(sizes) || s.DamagedBytes+s.TornBytes > 0 || s.CutShort > 0 {
					t.Errorf("stats %+v", s)
				}
				must(t, j.Close())
				must(t, j.Close())
			}
		})
	}
}

func TestKeysInCommitOrder(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	j := open(t, cfg)
	var want []Key
	for n := range 50 {
		want = append(want, put(t, j, n, 3000))
	}
	first := want[0]
	_, b, note := content(0, 3000)
	must(t, tryPut(j, first, b, note)) // again: it moves to the end
	want = append(want[1:], first)
	for range 2 {
		var got []Key
		for info := range j.Keys {
			got = append(got, info.Key)
			j.Stat(info.Key) // the journal is not locked meanwhile
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d keys in another order than %d commits", len(got), len(want))
		}
		must(t, j.Close())
		j = open(t, cfg)
	}
}

func TestReadAt(t *testing.T) {
	j := open(t, newConfig(t, vfs.NewMem(), "/j"))
	const size = 3*chunkBytes + 12345
	key := put(t, j, 1, size)
	_, want, _ := content(1, size)
	o, err := j.OpenObject(key)
	must(t, err)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := mathrand.New(mathrand.NewPCG(uint64(g), 0))
			for range 50 {
				off := rng.IntN(size)
				p := make([]byte, 1+rng.IntN(size-off))
				if n, err := o.ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, want[off:off+n]) {
					t.Errorf("ReadAt %d+%d: %d, %v", off, len(p), n, err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := o.ReadAt(make([]byte, 10), size-4); n != 4 || err != io.EOF {
		t.Errorf("over the end: %d, %v", n, err)
	}
	if n, err := o.ReadAt(make([]byte, 10), size+4); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	must(t, o.Close())
	must(t, o.Close())
	if _, err := o.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWriterLife(t *testing.T) {
	j := open(t, newConfig(t, vfs.NewMem(), "/j"))
	ctx := context.Background()
	key, b, _ := content(1, 500_000)

	w := j.Begin()
	_, err := w.Write(b)
	must(t, err)
	if w.Written() != int64(len(b)) {
		t.Errorf("Written %d", w.Written())
	}
	if _, ok := j.Stat(key); ok {
		t.Error("visible before Commit")
	}
	w.Abort()
	w.Abort()
	if _, err := w.Write(b); !errors.Is(err, ErrClosed) {
		t.Errorf("Write after Abort: %v", err)
	}
	if err := w.Commit(ctx, key, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Abort: %v", err)
	}
	if _, err := j.OpenObject(key); !errors.Is(err, ErrNotFound) {
		t.Errorf("aborted object: %v", err)
	}

	w = j.Begin()
	if err := w.Commit(ctx, key, make([]byte, NoteBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large note: %v", err)
	}
	w = j.Begin()
	must(t, w.Commit(ctx, key, bytes.Repeat([]byte("n"), NoteBytesMax)))
	w.Abort()
	if note, err := j.Note(key); err != nil || len(note) != NoteBytesMax {
		t.Errorf("largest note: %d bytes, %v", len(note), err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	w = j.Begin()
	if err := w.Commit(done, Key{9}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit with a done context: %v", err)
	}
	for _, s := range j.segments {
		if s.pins != 0 {
			t.Errorf("segment %d has %d pins", s.number, s.pins)
		}
	}
	w = j.Begin()
	must(t, j.Close())
	if _, err := w.Write(b); !errors.Is(err, ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if _, err := j.OpenObject(key); !errors.Is(err, ErrClosed) {
		t.Errorf("OpenObject after Close: %v", err)
	}
}

func TestOnlyOneOpens(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	open(t, cfg)
	if j, err := Open(cfg); err == nil {
		t.Error("opened twice", j.Close())
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("opened with an empty config")
	}
}

func TestForeignJournal(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	j := open(t, cfg)
	put(t, j, 1, 10)
	must(t, j.Close())
	for name, change := range map[string]func(*Config){
		"ring": func(c *Config) { c.Ring = place.RingID{9} },
		"disk": func(c *Config) { c.Disk = place.DiskID{9} },
	} {
		other := cfg
		change(&other)
		if j, err := Open(other); err == nil {
			t.Errorf("another %s opened it: %v", name, j.Close())
		}
	}
	expect(t, open(t, cfg), 1, 10)
}

func TestConcurrentWriters(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	cfg.SegmentBytes = 1 << 20
	j := open(t, cfg)
	const writers, each = 8, 20
	size := func(n int) int { return []int{100, 5000, chunkBytes + n, 700_000}[n%4] }
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			for i := range each {
				n := g*1000 + i
				key, b, note := content(n, size(n))
				if i%7 == 3 {
					w := j.Begin()
					_, _ = w.Write(b)
					w.Abort()
					continue
				}
				if err := tryPut(j, key, b, note); err != nil {
					t.Error(err)
				}
				if got, err := get(j, key); err != nil || !bytes.Equal(got, b) {
					t.Errorf("object %d: %v", n, err)
				}
				switch i % 5 {
				case 1:
					j.Release(key)
				case 2:
					j.Drop(key)
					if _, ok := j.Stat(key); ok {
						t.Error("dropped and visible")
					}
				}
				if i%10 == 0 {
					if err := j.Evict(); err != nil {
						t.Error(err)
					}
					j.Stats()
					for range j.Keys {
					}
				}
			}
		})
	}
	wg.Wait()
	for range 2 {
		for g := range writers {
			for i := range each {
				if n := g*1000 + i; i%7 != 3 && i%5 != 2 && i%5 != 1 {
					expect(t, j, n, size(n))
				}
			}
		}
		must(t, j.Close())
		j = open(t, cfg)
	}
	if c := j.Corrupt(); len(c) > 0 {
		t.Errorf("corrupt: %d", len(c))
	}
}

func TestEvict(t *testing.T) {
	mem := vfs.NewMem()
	cfg := newConfig(t, mem, "/j")
	cfg.HotBytes = 200 << 10
	j := open(t, cfg)
	var keys []Key
	for n := range 100 { // about 13 a segment
		keys = append(keys, put(t, j, n, 5000))
	}
	before := j.Stats()
	must(t, j.Evict())
	if s := j.Stats(); s.Segments != before.Segments || s.Objects != 100 {
		t.Errorf("evicted what is live: %+v", s)
	}
	o, err := j.OpenObject(keys[0])
	must(t, err)
	for _, k := range keys[:80] {
		j.Release(k)
		j.Release(k)
	}
	must(t, j.Evict())
	s := j.Stats()
	if s.HotBytes > cfg.HotBytes+64<<10 || s.HotBytes < cfg.HotBytes/2 { // one segment is pinned
		t.Errorf("hot bytes %d, want about %d", s.HotBytes, cfg.HotBytes)
	}
	if _, err := o.WriteTo(io.Discard); err != nil {
		t.Errorf("open object after Evict: %v", err)
	}
	expect(t, j, 0, 5000)
	must(t, o.Close())
	for n := 80; n < 100; n++ {
		expect(t, j, n, 5000)
	}
	if info, ok := j.Stat(keys[79]); !ok || !info.Released {
		t.Errorf("newest released object: %+v, %v", info, ok)
	}
	if _, ok := j.Stat(keys[20]); ok {
		t.Error("an old released object is still there")
	}
	for _, k := range keys {
		j.Drop(k)
	}
	must(t, j.Evict())
	if s := j.Stats(); s.Segments != 1 || s.Objects != 0 || s.Released != 0 {
		t.Errorf("all dropped: %+v", s)
	}
	must(t, j.Close())
	j = open(t, cfg)
	names, _ := mem.List("/j")
	if s := j.Stats(); s.Corrupt != 0 || len(names) > 3 {
		t.Errorf("after reopening: %+v, %q", s, names)
	}
}

// TestEvictSpanning evicts a segment that has a part of an object which ends in a segment that stays.
func TestEvictSpanning(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	cfg.HotBytes = 1
	j := open(t, cfg)
	key := put(t, j, 1, 2*chunkBytes) // each chunk fills a segment
	live := put(t, j, 2, 100)
	j.Release(key)
	must(t, j.Evict())
	if _, err := j.OpenObject(key); !errors.Is(err, ErrNotFound) {
		t.Errorf("evicted object: %v", err)
	}
	must(t, j.Close())
	j = open(t, cfg)
	expect(t, j, 2, 100)
	if _, ok := j.Stat(key); ok || len(j.Corrupt()) > 0 {
		t.Errorf("half-evicted object: visible %v, corrupt %d", ok, len(j.Corrupt()))
	}
	_ = live
}

func TestUnfinishedWriterPins(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/j")
	cfg.HotBytes = 1
	j := open(t, cfg)
	key, b, note := content(1, 4*chunkBytes)
	w := j.Begin()
	_, err := w.Write(b)
	must(t, err)
	must(t, j.Evict())
	must(t, w.Commit(t.Context(), key, note))
	expect(t, j, 1, 4*chunkBytes)
}

func TestNoPlaintext(t *testing.T) {
	mem := vfs.NewMem()
	j := open(t, newConfig(t, mem, "/j"))
	b := bytes.Repeat([]byte("CANARY^PATIENT "), 10_000)
	must(t, tryPut(j, Key{1}, b, b[:1000]))
	must(t, j.Close())
	names, err := mem.List("/j")
	must(t, err)
	for _, name := range names {
		raw := readRaw(t, mem, "/j/"+name)
		if bytes.Contains(raw, []byte("CANARY")) {
			t.Errorf("%s holds plaintext", name)
		}
	}
}

func TestFlatMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 128 MB")
	}
	cfg := newConfig(t, vfs.Default, t.TempDir())
	cfg.SegmentBytes = 0
	j := open(t, cfg)
	const size = 128 << 20
	piece := make([]byte, 1<<20)
	before := heap()
	w := j.Begin()
	for i := range size / len(piece) {
		binary.LittleEndian.PutUint64(piece, uint64(i))
		_, err := w.Write(piece)
		must(t, err)
	}
	must(t, w.Commit(t.Context(), Key{1}, nil))
	o, err := j.OpenObject(Key{1})
	must(t, err)
	check := &counter{t: t}
	n, err := o.WriteTo(check)
	if err != nil || n != size || o.Size() != size {
		t.Errorf("read %d, %v", n, err)
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	must(t, o.Close())
}

// counter checks that each MiB begins with its number.
type counter struct {
	t testing.TB
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	if c.n%(1<<20) == 0 && binary.LittleEndian.Uint64(p) != uint64(c.n>>20) {
		c.t.Fatalf("wrong bytes at %d", c.n)
	}
	c.n += int64(len(p))
	return len(p), nil
}

func readRaw(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	must(t, err)
	b, err := io.ReadAll(f)
	must(t, errors.Join(err, f.Close()))
	return b
}

func writeRaw(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, "")
	must(t, err)
	_, err = f.Write(bytes.Clone(b))
	must(t, errors.Join(err, f.Sync(), f.Close()))
}
