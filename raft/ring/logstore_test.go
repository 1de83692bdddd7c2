package ring

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

func storeConfig(fs vfs.FS) Config {
	return Config{FS: fs, PlainFS: fs, Dir: "d", Self: nodeID(1), Incarnation: 1, MAC: testMAC}.withStandards()
}

func openStore(t testing.TB, fs vfs.FS) *logStore {
	t.Helper()
	s, err := openLogStore(storeConfig(fs), func(err error) { t.Errorf("store failed: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entries(term uint64, from, to uint64) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term)})
	}
	return out
}

func mustStore(t testing.TB, s *logStore, logs []*raft.Log) {
	t.Helper()
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

func TestLogStore(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	mustStore(t, s, entries(1, 1, 10))
	if err := s.SetUint64([]byte(keyCurrentTerm), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Set([]byte(keyLastVoteCand), []byte(serverID(nodeID(2), 3))); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRange(1, 3); err != nil { // the beginning
		t.Fatal(err)
	}
	if err := s.DeleteRange(9, 10); err != nil { // a conflicting suffix
		t.Fatal(err)
	}
	mustStore(t, s, entries(2, 9, 12))
	for range 2 { // from memory, and again from disk
		if first, last := s.bounds(); first != 4 || last != 12 {
			t.Errorf("bounds: got %d to %d, want 4 to 12", first, last)
		}
		for i := uint64(1); i <= 13; i++ {
			var l raft.Log
			err := s.GetLog(i, &l)
			if i < 4 || i > 12 {
				if !errors.Is(err, raft.ErrLogNotFound) {
					t.Errorf("entry %d: got %v, want ErrLogNotFound", i, err)
				}
				continue
			}
			term := uint64(1)
			if i >= 9 {
				term = 2
			}
			if want := entries(term, i, i)[0]; err != nil || l.Term != term || !bytes.Equal(l.Data, want.Data) {
				t.Errorf("entry %d: got %v %v, want %v", i, l, err, want)
			}
		}
		if v, _ := s.GetUint64([]byte(keyCurrentTerm)); v != 7 {
			t.Errorf("term: got %d, want 7", v)
		}
		if b, _ := s.Get([]byte(keyLastVoteCand)); string(b) != string(serverID(nodeID(2), 3)) {
			t.Errorf("candidate: got %q", b)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, fs)
	}
	s.close()
}

func TestStoreRefuses(t *testing.T) {
	s := openStore(t, vfs.NewMem())
	defer s.close()
	mustStore(t, s, entries(1, 1, 3))
	unknown := entries(1, 4, 4)
	unknown[0].Type = 77
	config := entries(1, 4, 4)
	config[0].Type = raft.LogConfiguration
	for name, c := range map[string]struct {
		logs []*raft.Log
		want error
	}{
		"unknown kind":            {unknown, ErrUnknownEntry},
		"undecodable membership":  {config, ErrDamaged},
		"gap":                     {entries(1, 5, 5), ErrDamaged},
		"overwriting":             {entries(1, 3, 3), ErrDamaged},
		"out of order in a batch": {append(entries(1, 4, 4), entries(1, 6, 6)...), ErrRefused},
	} {
		if err := s.StoreLogs(c.logs); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, last := s.bounds(); last != 3 {
		t.Errorf("log grew to %d", last)
	}
}

// TestInstalledSnapshot: what a snapshot does to a log that agrees, that ends before it, and that contradicts it.
func TestInstalledSnapshot(t *testing.T) {
	for _, c := range []struct {
		name        string
		index, term uint64
		first, last uint64 // what is left
	}{
		{"agrees", 5, 1, 1, 10},
		{"ends before", 20, 3, 0, 0},
		{"contradicts", 5, 3, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := openStore(t, fs)
			mustStore(t, s, entries(1, 1, 10))
			if err := errors.Join(s.snapshotDurable(c.index), s.snapshotInstalled(c.index, c.term)); err != nil {
				t.Fatal(err)
			}
			if first, last := s.bounds(); first != c.first || last != c.last {
				t.Errorf("bounds: got %d to %d, want %d to %d", first, last, c.first, c.last)
			}
			if c.name == "contradicts" {
				// The library still believes in entries to 10: the one of the snapshot must match the
				// leader's, those behind must not, and be cleared.
				var l raft.Log
				if err := s.GetLog(5, &l); err != nil || l.Term != 3 {
					t.Errorf("entry of the snapshot: got %+v, %v", l, err)
				}
				if err := s.GetLog(6, &l); err != nil || l.Term != 0 {
					t.Errorf("void entry: got %+v, %v", l, err)
				}
				if err := s.StoreLogs(entries(4, 11, 11)); !errors.Is(err, ErrDamaged) {
					t.Errorf("store behind void entries: got %v, want ErrDamaged", err)
				}
				if err := s.DeleteRange(6, 10); err != nil {
					t.Fatal(err)
				}
			}
			if c.name != "agrees" {
				mustStore(t, s, entries(4, c.index+1, c.index+3))
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, fs)
			defer s.close()
			if c.name != "agrees" {
				if first, last := s.bounds(); first != c.index+1 || last != c.index+3 {
					t.Errorf("bounds after restart: %d to %d", first, last)
				}
			}
		})
	}
}

// TestCrash takes the power away at every write: what was acknowledged is there, nothing is reported as lost, and the end is
// where it may be.
func TestCrash(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fs := vfs.NewCrashableMem()
		s := openStore(t, fs)
		model := []*raft.Log{} // acknowledged; entry i at i-1
		term := uint64(1)
		for step := range 12 {
			var err error
			switch next := uint64(len(model)) + 1; rng.IntN(4) {
			case 0:
				term++
				err = s.SetUint64([]byte(keyCurrentTerm), term)
			case 1:
				if cut := next - min(next-1, rng.Uint64N(4)); cut < next {
					if err = s.DeleteRange(cut, next-1); err == nil {
						model = model[:cut-1]
					}
				}
			default:
				logs := entries(term, next, next+rng.Uint64N(5))
				if err = s.StoreLogs(logs); err == nil {
					model = append(model, logs...)
				}
			}
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			checkClone(t, fmt.Sprintf("seed %d step %d", seed, step), clone, model, term)
		}
		s.close()
	}
}

func checkClone(t *testing.T, what string, fs vfs.FS, model []*raft.Log, term uint64) {
	t.Helper()
	s, err := openLogStore(storeConfig(fs), func(error) {})
	if err != nil {
		t.Fatalf("%s: open after crash: %v", what, err)
	}
	defer s.close()
	if _, last := s.bounds(); last != uint64(len(model)) {
		t.Errorf("%s: log ends at %d, acknowledged was %d", what, last, len(model))
	}
	for _, want := range model {
		var l raft.Log
		if err := s.GetLog(want.Index, &l); err != nil || l.Term != want.Term || !bytes.Equal(l.Data, want.Data) {
			t.Errorf("%s: entry %d: got %v, %v", what, want.Index, l, err)
		}
	}
	if v, _ := s.GetUint64([]byte(keyCurrentTerm)); term > 1 && v != term {
		t.Errorf("%s: term %d, acknowledged was %d", what, v, term)
	}
}

// TestDamagedWAL flips a byte in, or cuts, the log's newest write-ahead file at many offsets. Pebble opens most of these without
// a word; the store must not.
func TestDamagedWAL(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	for i := uint64(1); i <= 200; i++ {
		l := entries(1, i, i)
		l[0].Data = bytes.Repeat([]byte{byte(i)}, 1000)
		mustStore(t, s, l)
	}
	clone := func() *vfs.MemFS { // without closing: the records are only in the write-ahead log
		to := vfs.NewMem()
		if _, err := vfs.Clone(fs, to, "", ""); err != nil {
			t.Fatal(err)
		}
		return to
	}
	wal := newestWAL(t, clone())
	whole, err := readAll(fs, wal)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(whole, "\x00"))
	for i := range 40 {
		at := used * (2*(i/2) + 1) / 40
		b := bytes.Clone(whole)
		what := fmt.Sprintf("flip at %d of %d", at, used)
		if i%2 == 0 {
			b[at] ^= 0x40
		} else {
			b, what = b[:at], fmt.Sprintf("cut at %d of %d", at, used)
		}
		damaged := clone()
		overwrite(t, damaged, wal, b)
		if err := openAndRead(damaged, 200); err == nil {
			t.Errorf("%s: nobody noticed", what)
		} else if !errors.Is(err, ErrShortLog) && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v, want ErrShortLog or ErrDamaged", what, err)
		}
	}
	if err := openAndRead(clone(), 200); err != nil {
		t.Errorf("undamaged: %v", err)
	}
	gone := clone()
	if err := gone.Remove(wal); err != nil {
		t.Fatal(err)
	}
	if err := openAndRead(gone, 200); !errors.Is(err, ErrShortLog) {
		t.Errorf("file missing: got %v, want ErrShortLog", err)
	}
	s.close()
}

// openAndRead opens the store and reads n entries, as the library would.
func openAndRead(fs vfs.FS, n uint64) error {
	s, err := openLogStore(storeConfig(fs), func(error) {})
	if err != nil {
		return err
	}
	defer s.close()
	for i := uint64(1); i <= n; i++ {
		if err := s.GetLog(i, new(raft.Log)); err != nil {
			return err
		}
	}
	return nil
}

func openOnly(cfg Config) error {
	s, err := openLogStore(cfg, func(error) {})
	if err == nil {
		err = s.close()
	}
	return err
}

func newestWAL(t *testing.T, fs vfs.FS) string {
	t.Helper()
	names, err := fs.List("d/log")
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	for _, n := range names {
		if strings.HasSuffix(n, ".log") && n > newest {
			newest = n
		}
	}
	return filepath.Join("d/log", newest)
}

func overwrite(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedTable flips bytes in a table file of the log.
func TestDamagedTable(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	mustStore(t, s, entries(1, 1, 100))
	if err := s.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	names, _ := fs.List("d/log")
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		path := filepath.Join("d/log", name)
		whole, err := readAll(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			b := bytes.Clone(whole)
			at := len(b) * i / 20
			b[at] ^= 1
			damaged := vfs.NewMem()
			if _, err := vfs.Clone(fs, damaged, "", ""); err != nil {
				t.Fatal(err)
			}
			overwrite(t, damaged, path, b)
			// A flip in a part that is not needed to read the entries may go unseen; wrong entries may not.
			if s, err := openLogStore(storeConfig(damaged), func(error) {}); err == nil {
				for _, want := range entries(1, 1, 100) {
					var l raft.Log
					if err := s.GetLog(want.Index, &l); err == nil && !bytes.Equal(l.Data, want.Data) {
						t.Errorf("flip at %d: entry %d reads wrong", at, want.Index)
					} else if err != nil && !errors.Is(err, ErrDamaged) {
						t.Errorf("flip at %d: got %v, want ErrDamaged", at, err)
					} else if err != nil {
						break // Pebble makes much of each
					}
				}
				s.close()
			}
		}
	}
}

// TestMarkTorn: a torn slot leaves the one before it; two torn slots, a missing mark, another server's mark are refused.
func TestMarkTorn(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	for i := uint64(1); i <= 3; i++ {
		mustStore(t, s, entries(1, i, i))
	}
	newest := int64((s.mark.seq + 1) % 2)
	s.close()
	whole, err := readAll(fs, "d/mark")
	if err != nil {
		t.Fatal(err)
	}
	for at := range slotBytes {
		b := bytes.Clone(whole)
		b[newest*slotStride+int64(at)] ^= 0x10
		overwrite(t, fs, "d/mark", b)
		if err := openAndRead(fs, 3); err != nil {
			t.Errorf("newest slot damaged at %d: %v", at, err)
		}
	}
	b := bytes.Clone(whole)
	b[100] ^= 1
	b[slotStride+100] ^= 1
	overwrite(t, fs, "d/mark", b)
	if err := openAndRead(fs, 3); !errors.Is(err, ErrDamaged) {
		t.Errorf("both slots damaged: got %v, want ErrDamaged", err)
	}
	if err := fs.Remove("d/mark"); err != nil {
		t.Fatal(err)
	}
	if err := openAndRead(fs, 3); !errors.Is(err, ErrShortLog) {
		t.Errorf("mark missing: got %v, want ErrShortLog", err)
	}
	overwrite(t, fs, "d/mark", whole)
	cfg := storeConfig(fs)
	cfg.Incarnation = 2
	if _, err := openLogStore(cfg, func(error) {}); !errors.Is(err, ErrWrongServer) {
		t.Errorf("another incarnation: got %v, want ErrWrongServer", err)
	}
	if err := Wipe(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Existing = true
	if err := openOnly(cfg); !errors.Is(err, ErrShortLog) {
		t.Errorf("open of an empty directory of an existing server: got %v, want ErrShortLog", err)
	}
	if err := Wipe(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Existing = false
	if s, err := openLogStore(cfg, func(error) {}); err != nil {
		t.Errorf("open after wipe: %v", err)
	} else {
		s.close()
	}
}

// TestOldCopy: yesterday's log under today's mark, and the other way round.
func TestOldCopy(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, fs)
	mustStore(t, s, entries(1, 1, 5))
	s.close()
	old := vfs.NewMem()
	if _, err := vfs.Clone(fs, old, "", ""); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, fs)
	if err := s.SetUint64([]byte(keyLastVoteTerm), 9); err != nil { // only a vote
		t.Fatal(err)
	}
	s.close()
	mark, err := readAll(fs, "d/mark")
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, old, "d/mark", mark)
	if err := openAndRead(old, 5); !errors.Is(err, ErrShortLog) {
		t.Errorf("forgotten vote: got %v, want ErrShortLog", err)
	}
}

func TestDiskStall(t *testing.T) {
	told := make(chan error, 1)
	cfg := storeConfig(vfs.NewMem())
	cfg.DiskStall = time.Millisecond
	s, err := openLogStore(cfg, func(err error) { told <- err })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	stop := s.watch()
	if err := <-told; !errors.Is(err, ErrDisk) {
		t.Errorf("stalled write: got %v, want ErrDisk", err)
	}
	if stop() {
		t.Error("timer still runs")
	}
}
