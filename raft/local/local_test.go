package local

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.uber.org/goleak"

	"osteon/erasure/place"
	"osteon/raft/vault"
)

var update = flag.Bool("update", false, "rewrite golden files")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, fs vfs.FS, dir string) *DB {
	t.Helper()
	d, err := Open(Config{FS: fs, Dir: dir})
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newShard(t testing.TB) (place.PackID, place.EncodeID) {
	t.Helper()
	pack, err := place.NewPackID(rand.Reader)
	must(t, err)
	encode, err := place.NewEncodeID(rand.Reader)
	must(t, err)
	return pack, encode
}

func TestHolderIndexOverEncryptedDisk(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	base, dir := vfs.Default, t.TempDir()
	root, err := vault.CreateRootKeyFile(base, filepath.Join(dir, "root.key"), rand.Reader)
	must(t, err)
	ringID, err := place.NewRingID(rand.Reader)
	must(t, err)
	v, err := vault.Create(vault.Config{FS: base, Dir: filepath.Join(dir, "vault"), Ring: ringID, Root: root, Rand: rand.Reader})
	must(t, err)
	path := filepath.Join(dir, "local")
	d := open(t, v.FS(), path)
	pack, encode := newShard(t)

	if _, err := d.Generation(pack, encode, 3); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown shard: %v", err)
	}
	must(t, d.Check(pack, encode, 3, 1))
	must(t, d.Hold(pack, encode, 3, 7))
	must(t, d.Hold(pack, encode, 3, 7))
	must(t, d.Hold(pack, encode, 4, 2))
	for _, tt := range []struct {
		generation uint64
		want       error
	}{{6, ErrStaleGeneration}, {7, nil}, {8, nil}} {
		if err := d.Check(pack, encode, 3, tt.generation); !errors.Is(err, tt.want) {
			t.Errorf("Check of generation %d: %v, want %v", tt.generation, err, tt.want)
		}
	}
	if err := d.Hold(pack, encode, 3, 6); !errors.Is(err, ErrStaleGeneration) {
		t.Errorf("Hold of an older generation: %v", err)
	}
	must(t, d.Close())

	d = open(t, v.FS(), path)
	if g, err := d.Generation(pack, encode, 3); g != 7 || err != nil {
		t.Errorf("after reopening: %d, %v, want 7", g, err)
	}
	var held []Held
	for h, err := range d.Holders() {
		must(t, err)
		held = append(held, h)
	}
	if len(held) != 2 || held[0] != (Held{pack, encode, 3, 7}) || held[1] != (Held{pack, encode, 4, 2}) {
		t.Errorf("holders: %v", held)
	}
	for range d.Holders() {
		break
	}
	must(t, d.Forget(pack, encode, 3))
	must(t, d.Forget(pack, encode, 3))
	must(t, d.Hold(pack, encode, 3, 1))
	if err := d.Hold(pack, encode, -1, 1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("negative index: %v", err)
	}
	if err := d.Hold(pack, encode, 1<<16, 1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("index beyond 16 bits: %v", err)
	}
	must(t, d.Close())
	must(t, d.Close())
	if err := d.Hold(pack, encode, 3, 9); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Whatever order racing writers come in, the newest generation stays on record, and whoever was told yes was not older than
// what was on record then.
func TestRacingHolds(t *testing.T) {
	d := open(t, vfs.NewMem(), "local")
	pack, encode := newShard(t)
	var wg sync.WaitGroup
	for g := range uint64(64) {
		wg.Go(func() {
			err := d.Hold(pack, encode, 0, g)
			if err != nil && !errors.Is(err, ErrStaleGeneration) {
				t.Error(err)
			}
			recorded, rerr := d.Generation(pack, encode, 0)
			if rerr != nil || recorded < g {
				t.Errorf("generation %d: %v, then %d on record, %v", g, err, recorded, rerr)
			}
		})
	}
	wg.Wait()
	for i := range 2*holderPage + 1 {
		must(t, d.Hold(pack, encode, i+1, 1))
	}
	n := 0
	for h, err := range d.Holders() {
		must(t, err)
		if h.Index != n {
			t.Fatalf("entry %d is of shard %d", n, h.Index)
		}
		must(t, d.Check(h.Pack, h.Encode, h.Index, h.Generation))
		n++
	}
	if n != 2*holderPage+2 {
		t.Errorf("%d entries listed", n)
	}
	if g, err := d.Generation(pack, encode, 0); g != 63 || err != nil {
		t.Errorf("on record: %d, %v", g, err)
	}
}

func TestSpoolKeepsOrder(t *testing.T) {
	fs := vfs.NewMem()
	d := open(t, fs, "local")
	key := func(i int) (k [32]byte) { binary.BigEndian.PutUint64(k[24:], uint64(1000-i)); return k }
	for i := range 10 {
		must(t, d.AddSpooled(key(i), fmt.Appendf(nil, "body %d", i)))
	}
	must(t, d.AddSpooled(key(3), []byte("again")))
	must(t, d.RemoveSpooled(key(0), key(5), key(99)))
	must(t, d.RemoveSpooled())
	must(t, d.RemoveSpooled(key(5), key(5)))
	must(t, d.Close())
	d = open(t, fs, "local")
	if n := d.SpooledCount(); n != 8 {
		t.Errorf("count: %d, want 8", n)
	}
	must(t, d.AddSpooled(key(10), []byte("body 10")))
	var got []int
	for after := uint64(0); ; {
		page, err := d.SpooledAfter(after, 3)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			var i int
			_, err := fmt.Sscanf(string(e.Body), "body %d", &i)
			must(t, err)
			if e.Key != key(i) {
				t.Errorf("entry %d has another's key", i)
			}
			got = append(got, i)
			after = e.Sequence
		}
	}
	if fmt.Sprint(got) != "[1 2 3 4 6 7 8 9 10]" {
		t.Errorf("order: %v", got)
	}
	if err := d.AddSpooled(key(11), make([]byte, ValueBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large body: %v", err)
	}
}

func sampleCursor() ScrubCursor {
	c := ScrubCursor{Round: 3, Index: 5, Checked: 1000, Bad: 2, Started: time.Unix(1700000000, 5).UTC(), Updated: time.Unix(1700000009, 0).UTC()}
	for i := range 16 {
		c.Pack[i], c.Encode[i] = byte(i), byte(0x80+i)
	}
	return c
}

func TestCursorAndNames(t *testing.T) {
	d := open(t, vfs.NewMem(), "local")
	if _, err := d.ScrubCursor(); !errors.Is(err, ErrNotFound) {
		t.Errorf("no cursor yet: %v", err)
	}
	for _, want := range []ScrubCursor{{}, sampleCursor()} {
		must(t, d.SetScrubCursor(want))
		if got, err := d.ScrubCursor(); err != nil || got != want {
			t.Errorf("cursor: %+v, %v, want %+v", got, err, want)
		}
	}
	for _, name := range []string{"b", "a/2", "a/1", "", "a"} {
		must(t, d.Put(name, []byte("value of "+name)))
	}
	must(t, d.Delete("b"))
	must(t, d.Delete("never there"))
	if got, err := d.Get("a/2"); err != nil || string(got) != "value of a/2" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := d.Get("b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if names, err := d.Names("a/"); err != nil || fmt.Sprint(names) != "[a/1 a/2]" {
		t.Errorf("names: %v, %v", names, err)
	}
	if names, err := d.Names(""); err != nil || len(names) != 4 {
		t.Errorf("all names: %q, %v", names, err)
	}
	if err := d.Put(string(make([]byte, KeyBytesMax+1)), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long name: %v", err)
	}
}

func TestGoldenRecords(t *testing.T) {
	pack, encode := sampleCursor().Pack, sampleCursor().Encode
	key, err := holderKey(pack, encode, 258)
	must(t, err)
	for name, got := range map[string][]byte{"cursor-v1.bin": sampleCursor().encode(), "holder-key-v1.bin": key, "format-v1.bin": formatRecord, "seen-v1.bin": sampleSeen().encode()} {
		path := filepath.Join("testdata", name)
		if *update {
			must(t, os.MkdirAll("testdata", 0o755))
			must(t, os.WriteFile(path, got, 0o644))
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrote %x, the format is %x", name, got, want)
		}
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	d := open(t, fs, "local")
	newer := bytes.Clone(formatRecord)
	newer[len(newer)-1]++
	must(t, d.db.Set([]byte{tableFormat}, newer, nil))
	must(t, d.Close())
	if _, err := Open(Config{FS: fs, Dir: "local"}); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v, want ErrFormat", err)
	}
}

// After a power cut everything that was acknowledged is there.
func TestPowerCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	d, err := Open(Config{FS: fs, Dir: "local"})
	must(t, err)
	pack, encode := newShard(t)
	for i := range 20 {
		must(t, d.Hold(pack, encode, i, uint64(i)+1))
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	must(t, d.Close())
	d = open(t, after, "local")
	for i := range 20 {
		if g, err := d.Generation(pack, encode, i); g != uint64(i)+1 || err != nil {
			t.Errorf("shard %d: %d, %v", i, g, err)
		}
	}
}

// A failed fsync fences: the call returns, nothing is acknowledged any more, and the owner hears of it once.
func TestFailedSyncFences(t *testing.T) {
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo) {
			return errorfs.ErrInjected
		}
		return nil
	}))
	var told atomic.Int32
	d, err := Open(Config{FS: fs, Dir: "local", Failed: func(error) { told.Add(1) }})
	must(t, err)
	pack, encode := newShard(t)
	must(t, d.Hold(pack, encode, 0, 1))
	armed.Store(true)
	for range 3 {
		if err := d.Hold(pack, encode, 0, 2); !errors.Is(err, ErrFenced) {
			t.Errorf("Hold over a broken disk: %v, want ErrFenced", err)
		}
	}
	armed.Store(false)
	if err := d.Hold(pack, encode, 0, 3); !errors.Is(err, ErrFenced) {
		t.Errorf("Hold after the disk came back: %v, want ErrFenced", err)
	}
	if _, err := d.Get("x"); !errors.Is(err, ErrFenced) {
		t.Errorf("Get: %v, want ErrFenced", err)
	}
	if told.Load() != 1 {
		t.Errorf("owner was told %d times", told.Load())
	}
	must(t, d.Close())
}

func FuzzCursor(f *testing.F) {
	f.Add(sampleCursor().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCursor(b)
		if err == nil && !bytes.Equal(c.encode(), b) {
			t.Errorf("%x is written again as %x", b, c.encode())
		}
	})
}

func BenchmarkHold(b *testing.B) {
	d := open(b, vfs.Default, b.TempDir())
	pack, encode := newShard(b)
	var n atomic.Uint64
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			if err := d.Hold(pack, encode, int(i%60000), i/60000+1); err != nil && !errors.Is(err, ErrStaleGeneration) {
				b.Error(err)
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	d := open(b, vfs.Default, b.TempDir())
	pack, encode := newShard(b)
	must(b, d.Hold(pack, encode, 1, 1))
	for b.Loop() {
		_ = d.Check(pack, encode, 1, 1)
	}
}
