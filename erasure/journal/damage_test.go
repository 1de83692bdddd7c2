package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestCrash reopens clones of what a crash may leave at any moment of many writers' work: what was
// acknowledged is there and whole, what was not begun to be committed is not, nothing else appears.
func TestCrash(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	mem := vfs.NewCrashableMem()
	cfg := newConfig(t, mem, "/a/j")
	cfg.SegmentBytes = 128 << 10
	j := open(t, cfg)
	const writers, each = 6, 15
	size := func(n int) int { return []int{50, 9000, 50_000, chunkBytes + 5000, 0}[n%5] }

	var mu sync.Mutex
	acked, begun := map[int]bool{}, map[int]bool{}
	type clone struct {
		fs    *vfs.MemFS
		acked []int
	}
	var clones []clone
	snapshot := func(n int) {
		rng := mathrand.New(mathrand.NewPCG(seed, uint64(n)))
		mu.Lock()
		var now []int
		for n := range acked {
			now = append(now, n)
		}
		mu.Unlock()
		c := clone{fs: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(11) * 10, RNG: rng}), acked: now}
		mu.Lock()
		clones = append(clones, c)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			for i := range each {
				n := g*1000 + i
				key, b, note := content(n, size(n))
				if i%6 == 5 {
					w := j.Begin()
					_, _ = w.Write(b)
					w.Abort()
					continue
				}
				mu.Lock()
				begun[n] = true
				mu.Unlock()
				if err := tryPut(j, key, b, note); err != nil {
					t.Error(err)
				}
				mu.Lock()
				acked[n] = true
				mu.Unlock()
				if i%2 == 0 {
					snapshot(n)
				}
			}
		})
	}
	wg.Wait()
	snapshot(-1)
	must(t, j.Close())
	snapshot(-2)

	numbers := map[Key]int{}
	for n := range begun {
		key, _, _ := content(n, 0)
		numbers[key] = n
	}
	torn := int64(0)
	for i, c := range clones {
		after := cfg
		after.FS = c.fs
		for reopened := range 2 { // the second time over the remains of the first
			k, err := Open(after)
			if err != nil {
				t.Fatalf("clone %d: %v", i, err)
			}
			for _, n := range c.acked {
				expect(t, k, n, size(n))
			}
			for info := range k.Keys {
				n, ok := numbers[info.Key]
				if !ok {
					t.Fatalf("clone %d: an object that nobody committed", i)
				}
				expect(t, k, n, size(n))
			}
			for _, key := range k.Corrupt() {
				if n := numbers[key]; slices.Contains(c.acked, n) {
					t.Fatalf("clone %d: acknowledged object %d is listed as corrupt", i, n)
				}
			}
			s := k.Stats()
			if s.DamagedBytes > 0 || s.DamagedFiles > 0 || s.CutShort > 0 {
				t.Fatalf("clone %d, opened %d times: a crash is taken for damage: %+v", i, reopened, s)
			}
			torn += s.TornBytes
			must(t, k.Close())
		}
	}
	t.Logf("%d clones, %d torn bytes", len(clones), torn)
}

// files is the content of a journal's directory.
type files map[string][]byte

func takeFiles(t testing.TB, fs vfs.FS, dir string) files {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	all := files{}
	for _, name := range names {
		if _, ok := parseSegmentName(name); ok {
			all[name] = readRaw(t, fs, fs.PathJoin(dir, name))
		}
	}
	return all
}

func (all files) names() (names []string) {
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// put makes a file system of them, with one replaced.
func (all files) put(t testing.TB, dir, name string, b []byte) vfs.FS {
	t.Helper()
	fs := vfs.NewMem()
	must(t, fs.MkdirAll(dir, 0o755))
	for n, content := range all {
		if n == name {
			content = b
		}
		writeRaw(t, fs, fs.PathJoin(dir, n), content)
	}
	return fs
}

// damaged makes a journal of several segments, ended well, with objects 0 to n-1.
func damaged(t testing.TB) (Config, files, []Key, func(int) int) {
	t.Helper()
	mem := vfs.NewMem()
	cfg := newConfig(t, mem, "/j")
	cfg.SegmentBytes = segmentBytesMin
	j := open(t, cfg)
	size := func(n int) int { return []int{10, 700, 3000, 0, 1500}[n%5] }
	var keys []Key
	for n := range 15 {
		keys = append(keys, put(t, j, n, size(n)))
	}
	must(t, j.Close())
	return cfg, takeFiles(t, mem, "/j"), keys, size
}

// TestFlips changes bytes all over: nobody reads a wrong byte, and what cannot be read is listed.
func TestFlips(t *testing.T) {
	cfg, all, keys, size := damaged(t)
	stride := 11
	if testing.Short() {
		stride = 41
	}
	tried, lost, told := 0, 0, 0
	for _, name := range all.names() {
		for at := 0; at < len(all[name]); at += stride {
			tried++
			bad := bytes.Clone(all[name])
			bad[at] ^= 1 << (at % 8)
			cfg.FS = all.put(t, "/j", name, bad)
			j, err := Open(cfg)
			must(t, err)
			head := j.Stats().DamagedFiles
			if (at < headBytes) != (head == 1) {
				t.Fatalf("%s byte %d: %d damaged headers", name, at, head)
			}
			for n, key := range keys {
				got, err := get(j, key)
				_, want, _ := content(n, size(n))
				switch {
				case err == nil && !bytes.Equal(got, want):
					t.Fatalf("%s byte %d: object %d has wrong bytes", name, at, n)
				case err == nil:
				case !errors.Is(err, ErrCorrupt) && head == 0:
					t.Fatalf("%s byte %d: object %d: %v, want ErrCorrupt", name, at, n, err)
				case !slices.Contains(j.Corrupt(), key) && head == 0:
					t.Fatalf("%s byte %d: object %d is lost and not listed", name, at, n)
				default:
					lost++
				}
			}
			if j.Stats().DamagedBytes > 0 {
				told++
			}
			must(t, j.Close())
		}
	}
	t.Logf("%d flips, %d objects lost, %d told as damage", tried, lost, told)
	if lost < tried/3 {
		t.Errorf("only %d objects lost by %d flips: did they hit?", lost, tried)
	}
	if told < tried/10 {
		t.Errorf("only %d of %d flips were told as damage: the others passed for what a crash leaves", told, tried)
	}
}

// TestTruncation cuts each segment at many places: what is left is right, and a cut that took
// synced bytes from under later ones is told.
func TestTruncation(t *testing.T) {
	cfg, all, keys, size := damaged(t)
	names := all.names()
	for i, name := range names {
		for at := 0; at < len(all[name]); at += 97 {
			cfg.FS = all.put(t, "/j", name, all[name][:at])
			j, err := Open(cfg)
			must(t, err)
			missing := 0
			for n, key := range keys {
				got, err := get(j, key)
				_, want, _ := content(n, size(n))
				if err == nil && !bytes.Equal(got, want) {
					t.Fatalf("%s cut at %d: object %d has wrong bytes", name, at, n)
				}
				if err != nil {
					missing++
				}
			}
			// The second last segment is followed by one that may have no frame that knew of a sync.
			if s := j.Stats(); missing > 0 && i < len(names)-2 && at > headBytes && s.CutShort+s.Corrupt == 0 {
				t.Fatalf("%s cut at %d: %d objects are gone without a word: %+v", name, at, missing, s)
			}
			must(t, j.Close())
		}
	}
}

// TestRecommitHeals commits a damaged object again: it is whole, now and after reopening.
func TestRecommitHeals(t *testing.T) {
	cfg, all, keys, size := damaged(t)
	name := all.names()[0]
	bad := bytes.Clone(all[name])
	at := bytes.Index(bad, []byte(frameMagic)) + frameHeadBytes
	bad[at] ^= 1
	cfg.FS = all.put(t, "/j", name, bad)
	j := open(t, cfg)
	must(t, j.Verify(t.Context(), nil))
	if got := j.Corrupt(); len(got) != 1 || got[0] != keys[0] {
		t.Fatalf("corrupt: %x", got)
	}
	if _, ok := j.Stat(keys[0]); ok {
		t.Error("a corrupt object is visible")
	}
	put(t, j, 0, size(0))
	for range 2 {
		expect(t, j, 0, size(0))
		must(t, j.Verify(t.Context(), nil))
		if got := j.Corrupt(); len(got) != 0 {
			t.Fatalf("after the repair: %x", got)
		}
		must(t, j.Close())
		j = open(t, cfg)
	}
}

func TestDropClearsCorrupt(t *testing.T) {
	cfg, all, keys, _ := damaged(t)
	name := all.names()[0]
	bad := bytes.Clone(all[name])
	bad[bytes.Index(bad, []byte(frameMagic))+frameHeadBytes] ^= 1
	cfg.FS = all.put(t, "/j", name, bad)
	j := open(t, cfg)
	if _, err := get(j, keys[0]); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	j.Drop(keys[0])
	if len(j.Corrupt()) > 0 {
		t.Error("still listed")
	}
	if _, err := j.OpenObject(keys[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("dropped: %v", err)
	}
}

// TestFence lets every write and sync fail once, in turn: nothing is acknowledged from then on, and
// everything that was is there after a crash.
func TestFence(t *testing.T) {
	kinds := []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData, errorfs.OpFileSync}
	fences := 0
	for _, kind := range kinds {
		for k := int32(0); k < 40; k++ {
			mem := vfs.NewCrashableMem()
			cfg := newConfig(t, mem, "/j")
			cfg.SegmentBytes = segmentBytesMin
			var count atomic.Int32
			cfg.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == kind && count.Add(1) == k+1 {
					return syscall.EIO
				}
				return nil
			}))
			j, err := Open(cfg)
			if err != nil {
				if k > 3 {
					t.Fatalf("kind %d, call %d: %v", kind, k, err)
				}
				continue
			}
			var acked []int
			failed := false
			for n := range 24 {
				key, b, note := content(n, 1200)
				err := tryPut(j, key, b, note)
				switch {
				case err == nil && failed:
					t.Fatalf("kind %d, call %d: acknowledged after a fence", kind, k)
				case err == nil:
					acked = append(acked, n)
				case !errors.Is(err, ErrFenced) || !errors.Is(err, syscall.EIO):
					t.Fatalf("kind %d, call %d: %v, want ErrFenced", kind, k, err)
				default:
					failed = true
				}
			}
			if failed != (j.Fenced() != nil) && failed {
				t.Errorf("kind %d, call %d: commits fail, Fenced says %v", kind, k, j.Fenced())
			}
			if err := j.Close(); (j.Fenced() != nil) != (err != nil) {
				t.Errorf("kind %d, call %d: Close: %v", kind, k, err)
			}
			if failed {
				fences++
			}
			if kind == errorfs.OpFileSyncData && count.Load() > k && !failed && j.Fenced() == nil {
				t.Errorf("call %d: a failed sync fenced nothing", k)
			}
			after := cfg
			after.FS = mem.CrashClone(vfs.CrashCloneCfg{})
			i := open(t, after)
			for _, n := range acked {
				expect(t, i, n, 1200)
			}
			must(t, i.Close())
		}
	}
	if fences < 20 {
		t.Errorf("only %d runs were fenced", fences)
	}
}

// smallDisk refuses to grow files while it is full.
type smallDisk struct {
	vfs.FS
	full *atomic.Int32 // 0: room; 1: writes fail; 2: preallocation fails, too
}

func (d smallDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if d.full.Load() > 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.ENOSPC}
	}
	f, err := d.FS.OpenReadWrite(name, c, opts...)
	return smallFile{f, d}, err
}

type smallFile struct {
	vfs.File
	disk smallDisk
}

func (f smallFile) WriteAt(p []byte, off int64) (int, error) {
	if f.disk.full.Load() == 0 {
		return f.File.WriteAt(p, off)
	}
	n, _ := f.File.WriteAt(p[:len(p)/2], off) // a part fits
	return n, &os.PathError{Op: "write", Err: syscall.ENOSPC}
}

func (f smallFile) Preallocate(off, length int64) error {
	if f.disk.full.Load() == 2 {
		return syscall.ENOSPC
	}
	return f.File.Preallocate(off, length)
}

// TestFull fills the disk under concurrent writers: they hear ErrFull before any acknowledgement, reads
// go on, and so do writes when there is room.
func TestFull(t *testing.T) {
	for mode := int32(1); mode <= 2; mode++ {
		t.Run(fmt.Sprint("mode", mode), func(t *testing.T) {
			mem := vfs.NewMem()
			cfg := newConfig(t, mem, "/j")
			cfg.SegmentBytes = 40 << 10
			disk := smallDisk{FS: mem, full: new(atomic.Int32)}
			cfg.FS = disk
			j := open(t, cfg)
			var mu sync.Mutex
			acked := map[int]bool{}
			number := 0
			round := func(want bool) {
				var wg sync.WaitGroup
				for range 6 {
					mu.Lock()
					from := number
					number += 5
					mu.Unlock()
					wg.Go(func() {
						for n := from; n < from+5; n++ {
							key, b, note := content(n, 6000)
							err := tryPut(j, key, b, note)
							if err != nil && !errors.Is(err, ErrFull) || want && err != nil {
								t.Errorf("object %d: %v", n, err)
							}
							mu.Lock()
							acked[n] = err == nil
							mu.Unlock()
						}
					})
				}
				wg.Wait()
			}
			round(true)
			for range 3 {
				disk.full.Store(mode)
				round(false)
				if key, b, note := content(1, 6000); mode == 1 {
					if err := tryPut(j, key, b, note); !errors.Is(err, ErrFull) {
						t.Errorf("on the full disk: %v, want ErrFull", err)
					}
				}
				expect(t, j, 0, 6000)
				disk.full.Store(0)
				round(true)
			}
			if err := j.Fenced(); err != nil {
				t.Error("a full disk fenced the journal:", err)
			}
			for range 2 {
				for n, ok := range acked {
					if ok {
						expect(t, j, n, 6000)
					}
				}
				must(t, j.Close())
				j = open(t, cfg)
			}
			if s := j.Stats(); s.DamagedBytes > 0 || s.DamagedFiles > 0 {
				t.Errorf("a full disk is taken for damage: %+v", s)
			}
		})
	}
}

// TestSlowSync cuts a commit's waiting short: its outcome is unknown, and then known.
func TestSlowSync(t *testing.T) {
	mem := vfs.NewMem()
	cfg := newConfig(t, mem, "/j")
	hold := make(chan struct{})
	var armed atomic.Bool
	cfg.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && armed.Load() {
			<-hold
		}
		return nil
	}))
	j := open(t, cfg)
	armed.Store(true)
	key, b, note := content(1, 100)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w := j.Begin()
	_, err := w.Write(b)
	must(t, err)
	if err := w.Commit(ctx, key, note); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Commit: %v, want ErrUnknownOutcome", err)
	}
	if _, ok := j.Stat(key); ok {
		t.Error("visible before the sync")
	}
	armed.Store(false)
	close(hold)
	put(t, j, 2, 100) // commits complete in order
	expect(t, j, 1, 100)
}

// TestGolden reads a journal of format version 1 that was written once and stays for ever.
func TestGolden(t *testing.T) {
	mem := vfs.NewMem()
	cfg := configWith(t, mem, "/j", new(counting))
	cfg.Now = func() time.Time { return time.Unix(1_700_000_000, 0) }
	j := open(t, cfg)
	put(t, j, 0, 0)
	put(t, j, 1, 1000)
	put(t, j, 2, 20)
	must(t, j.Close())
	got := takeFiles(t, mem, "/j")
	name := fmt.Sprintf("%016x.seg", 1)
	golden := filepath.Join("testdata", "segment.v1")
	if *update {
		must(t, os.WriteFile(golden, got[name], 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if len(got) != 1 || !bytes.Equal(got[name], want) {
		t.Errorf("segment differs from %s", golden)
	}
	cfg.FS = got.put(t, "/j", name, want)
	j = open(t, cfg)
	for n, size := range []int{0, 1000, 20} {
		expect(t, j, n, size)
	}
}

// counting is a source whose bytes are known.
type counting byte

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(*c)
		*c++
	}
	return len(p), nil
}

// FuzzReplay opens a journal over changed and foreign segments: no panic, no wrong byte.
func FuzzReplay(f *testing.F) {
	cfg, all, keys, size := damaged(f)
	name := all.names()[0]
	good := all[name]
	f.Add(good, uint16(0), uint16(0))
	f.Add(good[:len(good)/2], uint16(700), uint16(40))
	f.Add(append(bytes.Clone(good), good[headBytes:]...), uint16(1000), uint16(0))
	f.Add(good[:headBytes], uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, from, length uint16) {
		if len(b) > 1<<20 {
			return
		}
		b = bytes.Clone(b)
		if len(b) >= headBytes && int(from)%2 == 0 {
			copy(b, good[:headBytes]) // past the header, to the frames
		}
		for i := int(from); i < min(int(from)+int(length), len(b)); i++ {
			b[i] ^= 0x55
		}
		after := cfg
		after.FS = files{name: b}.put(t, "/j", "", nil)
		j, err := Open(after)
		if err != nil {
			return
		}
		for n, key := range keys {
			got, err := get(j, key)
			if _, want, _ := content(n, size(n)); err == nil && !bytes.Equal(got, want) {
				t.Fatalf("object %d has wrong bytes", n)
			}
		}
		must(t, j.Close())
	})
}

// FuzzRecord holds the commit record's decoder against its encoder.
func FuzzRecord(f *testing.F) {
	r := record{key: Key{1}, at: 5, size: chunkBytes*2 + 1, chunks: 3, extents: []extent{{1, 512, 2}, {2, 512, 1}}, note: []byte("n")}
	f.Add(r.append(nil))
	f.Add((&record{}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err == nil && !bytes.Equal(r.append(nil), b) {
			t.Fatal("record does not survive a round trip")
		}
		if h, ok := decodeFrame(b, 1); ok {
			again := make([]byte, frameHeadBytes)
			h.encode(again, 1)
			if !bytes.Equal(again, b[:frameHeadBytes]) {
				t.Fatal("frame header does not survive a round trip")
			}
		}
	})
}
