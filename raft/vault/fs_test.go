package vault

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func newVaultOver(t testing.TB, fs vfs.FS) *Vault {
	t.Helper()
	cfg := newConfig(t, vfs.NewMem()) // the keys lie elsewhere, and survive crashes of fs
	cfg.Rand = rand.Reader
	v, err := Create(cfg)
	must(t, err)
	return over(v, fs)
}

// over is the same vault with its encrypting file system over fs.
func over(v *Vault, fs vfs.FS) *Vault {
	w := newVault(Config{FS: fs, Ring: v.ring, Rand: rand.Reader}, v.keys)
	return w
}

func TestFileOffsets(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"mem": vfs.NewMem(), "disk": vfs.Default} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if name == "mem" {
				path = "/f"
			}
			e := newVaultOver(t, fs).FS()
			f, err := e.Create(path, "")
			must(t, err)
			want := make([]byte, 300_000)
			_, _ = rand.Read(want)
			for _, n := range []int{1, 15, 16, 17, 4096, 100_000, 65_536} { // positions off the cipher's blocks
				piece := bytes.Clone(want[:n])
				if _, err := f.Write(piece); err != nil || !bytes.Equal(piece, want[:n]) {
					t.Fatalf("write %d: %v, or the caller's bytes changed", n, err)
				}
			}
			want = bytes.Join([][]byte{want[:1], want[:15], want[:16], want[:17], want[:4096], want[:100_000], want[:65_536]}, nil)
			must(t, f.Preallocate(int64(len(want)), 4096))
			_, err = f.SyncTo(4096)
			must(t, errors.Join(err, f.SyncData(), f.Sync()))
			info, err := f.Stat()
			if err != nil || info.Size() != int64(len(want)) {
				t.Errorf("size %d, want %d: %v", info.Size(), len(want), err)
			}
			if name == "disk" && f.Fd() == vfs.InvalidFd {
				t.Error("no descriptor")
			}
			must(t, f.Close())

			raw := readRaw(t, fs, path)
			if len(raw) != len(want)+headerBytes {
				t.Errorf("raw file has %d bytes, want %d", len(raw), len(want)+headerBytes)
			}
			if info, err := e.Stat(path); err != nil || info.Size() != int64(len(want)) {
				t.Errorf("Stat: %v", err)
			}
			g, err := e.Open(path, vfs.RandomReadsOption)
			must(t, err)
			_ = g.Prefetch(0, 100) // on Linux Pebble returns errno 0 as an error
			for range 200 {
				off := mathrand.IntN(len(want))
				p := make([]byte, 1+mathrand.IntN(len(want)-off))
				if n, err := g.ReadAt(p, int64(off)); n != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, want[off:off+n]) {
					t.Fatalf("ReadAt %d+%d: %d %v", off, len(p), n, err)
				}
			}
			got, err := io.ReadAll(g)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("sequential read differs: %v", err)
			}
			if n, err := g.ReadAt(make([]byte, 1), int64(len(want))); n != 0 || err != io.EOF {
				t.Errorf("read behind the end: %d %v", n, err)
			}
			must(t, g.Close())
		})
	}
}

func TestNamesKeepKeys(t *testing.T) {
	fs := vfs.NewMem()
	e := newVaultOver(t, fs).FS()
	write := func(name, text string) {
		f, err := e.Create(name, "")
		must(t, err)
		_, err = f.Write([]byte(text))
		must(t, errors.Join(err, f.Close()))
	}
	write("a", "one")
	must(t, e.Link("a", "b"))
	must(t, e.Rename("a", "c"))
	must(t, vfs.Copy(e, "c", "d"))
	for _, name := range []string{"b", "c", "d"} {
		if got := readThrough(t, e, name); string(got) != "one" {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if bytes.Equal(readRaw(t, fs, "c"), readRaw(t, fs, "d")) {
		t.Error("a copy has the same key")
	}
	before := readRaw(t, fs, "d")
	f, err := e.ReuseForWrite("d", "e", "")
	must(t, err)
	_, err = f.Write([]byte("two"))
	must(t, errors.Join(err, f.Close()))
	if _, err := e.Stat("d"); err == nil {
		t.Error("the reused name is still there")
	}
	after := readRaw(t, fs, "e")
	if bytes.Equal(before[:headerBytes], after[:headerBytes]) || len(after) != headerBytes+3 {
		t.Error("reuse kept the key or the body")
	}
	if f, err := e.ReuseForWrite("none", "x", ""); err == nil {
		t.Error("reuse of a missing file", f)
	}
}

func TestOpenReadWrite(t *testing.T) {
	e := newVaultOver(t, vfs.NewMem()).FS()
	f, err := e.OpenReadWrite("f", "")
	must(t, err)
	_, err = f.WriteAt([]byte("world"), 6)
	must(t, err)
	_, err = f.WriteAt([]byte("hello "), 0)
	must(t, errors.Join(err, f.Close()))
	f, err = e.OpenReadWrite("f", "")
	must(t, err)
	_, err = f.WriteAt([]byte("W"), 6)
	must(t, err)
	got, err := io.ReadAll(f)
	if err != nil || string(got) != "hello World" {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, f.Close())
}

func TestForeignAndTornFiles(t *testing.T) {
	fs := vfs.NewMem()
	v := newVaultOver(t, fs)
	e := v.FS()
	must(t, writeSynced(fs, "plain", bytes.Repeat([]byte("plaintext "), 1000)))
	if _, err := e.Open("plain"); !errors.Is(err, ErrTampered) {
		t.Errorf("plain file: %v, want ErrTampered", err)
	}
	for _, n := range []int{0, 1, 100, headerBytes - 1, headerBytes} { // what a crash in Create leaves
		must(t, writeSynced(fs, "torn", make([]byte, n)))
		f, err := e.Open("torn")
		must(t, err)
		if b, err := io.ReadAll(f); len(b) != 0 || err != nil {
			t.Errorf("torn at %d: %d bytes, %v", n, len(b), err)
		}
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("a torn file took a write")
		}
		must(t, f.Close())
		f, err = e.OpenReadWrite("torn", "")
		must(t, err)
		_, err = f.Write([]byte("again"))
		must(t, errors.Join(err, f.Close()))
		if got := readThrough(t, e, "torn"); string(got) != "again" {
			t.Errorf("made anew, it holds %q", got)
		}
		must(t, fs.Remove("torn"))
	}
	other := newVaultOver(t, fs)
	other.keys.epochs[0].kek[0] ^= 1
	f, err := e.Create("mine", "")
	must(t, err)
	_, err = f.Write([]byte("x"))
	must(t, errors.Join(err, f.Close()))
	if _, err := other.FS().Open("mine"); !errors.Is(err, ErrTampered) {
		t.Errorf("file of another vault: %v, want ErrTampered", err)
	}
	good := readRaw(t, fs, "mine")
	for i := 0; i < headerBytes; i += 7 {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		writeRaw(t, fs, "mine", bad)
		if _, err := e.Open("mine"); !errors.Is(err, ErrTampered) {
			t.Fatalf("header byte %d flipped: %v, want ErrTampered", i, err)
		}
	}
}

// TestCreateErrors leaves no file and no handle behind when the header cannot be made durable.
func TestCreateErrors(t *testing.T) {
	for i := range int32(4) {
		mem := vfs.NewMem()
		e := newVaultOver(t, errorfs.Wrap(mem, errorfs.ErrInjected.If(errorfs.And(errorfs.Writes, errorfs.OnIndex(i))))).FS()
		f, err := e.Create("f", "")
		if err == nil {
			must(t, f.Close())
			continue
		}
		if names, _ := mem.List("/"); len(names) > 0 {
			t.Errorf("write %d failed and left %q", i, names)
		}
	}
}

const canary = "CANARY^PATIENT^NAME"

func options(fs vfs.FS) *pebble.Options {
	return &pebble.Options{
		FS: fs, FormatMajorVersion: pebble.FormatNewest, MemTableSize: 256 << 10, BytesPerSync: 16 << 10,
		WALBytesPerSync: 16 << 10, L0CompactionThreshold: 2, Logger: quiet{},
	}
}

type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func row(i int) (key, value []byte) {
	return fmt.Appendf(nil, "%s/%08d", canary, i), bytes.Repeat(fmt.Appendf(nil, "%s=%d ", canary, i), 12)
}

// fill sets rows and deletes some, over several memtables and WALs.
func fill(t testing.TB, db *pebble.DB, from, to int) {
	t.Helper()
	for i := from; i < to; i += 50 {
		b := db.NewBatch()
		for n := i; n < min(i+50, to); n++ {
			k, v := row(n)
			must(t, b.Set(k, v, nil))
		}
		must(t, b.Commit(pebble.Sync))
	}
}

func check(t testing.TB, db *pebble.DB, n int) {
	t.Helper()
	for i := range n {
		k, want := row(i)
		got, closer, err := db.Get(k)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("row %d of %d: %v", i, n, err)
		}
		must(t, closer.Close())
	}
}

func TestPebble(t *testing.T) {
	for _, where := range []string{"mem", "disk"} {
		t.Run(where, func(t *testing.T) {
			base, dir := vfs.FS(vfs.NewMem()), "/db"
			if where == "disk" {
				base, dir = vfs.Default, t.TempDir()
			}
			e := newVaultOver(t, base).FS()
			path := base.PathJoin(dir, "main")
			const rows = 6000
			for part := range 3 { // WALs are recycled within a part, files reopened between
				db, err := pebble.Open(path, options(e))
				must(t, err)
				check(t, db, part*rows/3)
				fill(t, db, part*rows/3, (part+1)*rows/3)
				big := db.NewBatch() // larger than a memtable
				must(t, big.Set([]byte(canary+"big"), bytes.Repeat([]byte(canary), 50_000), nil))
				must(t, big.Commit(pebble.Sync))
				if part == 1 {
					must(t, db.Flush())
					must(t, db.Compact(t.Context(), []byte("A"), []byte("Z"), false))
				}
				must(t, db.Checkpoint(base.PathJoin(dir, fmt.Sprint("copy", part)), pebble.WithFlushedWAL()))
				must(t, db.Close())
			}
			for name, n := range map[string]int{"main": rows, "copy0": rows / 3, "copy1": rows * 2 / 3, "copy2": rows} {
				db, err := pebble.Open(base.PathJoin(dir, name), options(e))
				must(t, err)
				check(t, db, n)
				must(t, db.Close())
			}
			if n := searchRaw(t, base, dir); n < 10 {
				t.Errorf("only %d raw files were searched", n)
			}
		})
	}
}

// searchRaw fails if a raw file below dir holds the canary, and returns how many files it read.
func searchRaw(t testing.TB, fs vfs.FS, dir string) (files int) {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		must(t, err)
		if info.IsDir() {
			files += searchRaw(t, fs, path)
			continue
		}
		raw := readRaw(t, fs, path)
		files++
		if bytes.Contains(raw, []byte("CANARY")) || bytes.Contains(raw, []byte("pebble")) {
			t.Errorf("%s holds plaintext", path)
		}
	}
	return files
}

// TestPebbleCrash reopens clones of what a crash may leave at any moment: every one opens, and has
// every row whose commit had returned.
func TestPebbleCrash(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	mem := vfs.NewCrashableMem()
	v := newVaultOver(t, mem)
	must(t, MakeDir(mem, "/db"))
	db, err := pebble.Open("/db", options(v.FS()))
	must(t, err)
	d, err := mem.OpenDir("/")
	must(t, errors.Join(err, d.Sync(), d.Close()))

	type clone struct {
		fs   *vfs.MemFS
		rows int
	}
	clones := make(chan clone, 256)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // at moments that no commit chose; ends at stop
		defer close(done)
		for n := 0; n < 30; n++ {
			select {
			case <-stop:
				return
			default:
				clones <- clone{fs: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: mathrand.New(mathrand.NewPCG(seed, uint64(n+2)))})}
			}
		}
	}()
	for i := 0; i < 2000; i += 50 {
		fill(t, db, i, i+50)
		percent := []int{0, 20, 50, 80, 100}[i/50%5]
		clones <- clone{fs: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), rows: i + 50}
	}
	close(stop)
	<-done
	must(t, db.Close())
	close(clones)
	n := 0
	for c := range clones {
		n++
		db, err := pebble.Open("/db", options(over(v, c.fs).FS()))
		if err != nil {
			t.Fatalf("clone %d with %d rows does not open: %v", n, c.rows, err)
		}
		check(t, db, c.rows)
		must(t, db.Close())
	}
	t.Logf("%d clones opened", n)
}

// TestNoKeyTwice creates and reuses many files and looks for a header that comes twice.
func TestNoKeyTwice(t *testing.T) {
	fs := vfs.NewMem()
	e := newVaultOver(t, fs).FS()
	seen := map[string]bool{}
	for i := range 200 {
		name := fmt.Sprint("f", i)
		var f vfs.File
		var err error
		if i%2 == 0 {
			f, err = e.Create(name, "")
		} else {
			f, err = e.ReuseForWrite(fmt.Sprint("f", i-1), name, "")
		}
		must(t, err)
		must(t, f.Close())
		head := string(readRaw(t, fs, name))
		if seen[head] {
			t.Fatalf("file %d has the header of another", i)
		}
		seen[head] = true
	}
}

func FuzzFileHeader(f *testing.F) {
	mem := vfs.NewMem()
	v := newVaultOver(f, mem)
	file, err := v.FS().Create("f", "")
	must(f, errors.Join(err, file.Close()))
	f.Add(readRaw(f, mem, "f"), []byte("body"))
	f.Add([]byte(strings.Repeat("\xff", headerBytes)), []byte{})
	f.Fuzz(func(t *testing.T, header, body []byte) {
		fs := vfs.NewMem()
		if len(header) > headerBytes-checksumBytes {
			header = appendChecksum(header[:headerBytes-checksumBytes])
		}
		must(t, writeSynced(fs, "f", append(bytes.Clone(header), body...)))
		g, err := over(v, fs).FS().Open("f")
		if err != nil {
			return
		}
		got, err := io.ReadAll(g)
		if err != nil || len(got) != max(0, len(header)+len(body)-headerBytes) && len(got) != 0 {
			t.Fatalf("%d bytes from %d+%d: %v", len(got), len(header), len(body), err)
		}
		must(t, g.Close())
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 32 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			fs := newVaultOver(b, discardFS{vfs.NewMem()}).FS()
			f, err := fs.Create("f", "")
			must(b, err)
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Write(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discardFS makes files that forget what is written.
type discardFS struct{ vfs.FS }

func (d discardFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	return discardFile{f}, err
}

type discardFile struct{ vfs.File }

func (discardFile) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkReadAt(b *testing.B) {
	dir := b.TempDir()
	fs := newVaultOver(b, vfs.Default).FS()
	f, err := fs.Create(filepath.Join(dir, "f"), "")
	must(b, err)
	_, err = f.Write(make([]byte, 8<<20))
	must(b, err)
	p := make([]byte, 32<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		if _, err := f.ReadAt(p, int64(i%200)*32<<10); err != nil {
			b.Fatal(err)
		}
	}
	must(b, errors.Join(f.Close(), os.RemoveAll(dir)))
}
