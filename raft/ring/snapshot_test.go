package ring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/zeebo/blake3"
)

func describeBytes(name string, b []byte) fileEntry {
	return fileEntry{name: name, size: uint64(len(b)), sum: blake3.Sum256(b)}
}

// short makes snapshots frequent and leaves little log.
func short(c *Config) { c.SnapshotEntries, c.TrailingEntries, c.SnapshotCheck = 20, 5, time.Second }

// fill proposes n commands and waits until the log was cut.
func fill(t *testing.T, p *peer, n int) {
	t.Helper()
	for i := range n {
		propose(t, p, fmt.Sprintf("fill %d", i))
	}
	if err := p.ring.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestInstall: a new node, and one that was away for long, get a snapshot and the log after it.
func TestInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, short)
		away := others(peers, leaderOf(t, peers...))[0]
		rest := others(peers, away)
		away.crash(t)
		leader := leaderOf(t, rest...)
		fill(t, leader, 60)
		if first, _ := leader.ring.store.bounds(); first < 40 {
			t.Errorf("the log was not cut: it begins at %d", first)
		}
		if got := leader.ring.Stats(); got.State != "leader" || got.Snapshot == 0 || got.Applied < got.Snapshot || got.EntriesSinceSnapshot > 30 {
			t.Errorf("stats: %+v", got)
		}
		late := newPeer(peers[0].mesh, 4, short)
		late.mustOpen(t)
		join(t, leader, late)
		away.mustOpen(t)
		last := propose(t, late, "end")
		for _, p := range append(peers, late) {
			until(t, "all caught up", func() bool { return p.fsm.Applied() >= last })
			if !slices.Equal(p.fsm.list(), leader.fsm.list()) {
				t.Errorf("%s differs: %v and %v", p.id, p.fsm.list(), leader.fsm.list())
			}
		}
		if away.fsm.restores != 1 || late.fsm.restores != 1 {
			t.Errorf("restores: %d and %d, want 1 each", away.fsm.restores, late.fsm.restores)
		}
		for _, p := range append(peers, late) { // restarts keep it all
			p.crash(t)
			p.mustOpen(t)
		}
		last = propose(t, late, "after")
		until(t, "all caught up", func() bool { return away.fsm.Applied() >= last && late.fsm.Applied() >= last })
		if !slices.Equal(away.fsm.list(), late.fsm.list()) {
			t.Errorf("nodes differ after restart")
		}
		closeAll(t, append(peers, late))
	})
}

// TestClosedBeforeRestored: the node stops after the snapshot became the newest and before the state machine
// restored it. At the next start it must not claim entries that its state never saw.
func TestClosedBeforeRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 2, short)
		lead, p := peers[0], newPeer(peers[0].mesh, 3, short)
		fill(t, lead, 60)
		p.mustOpen(t)
		reached, never := make(chan *vfs.MemFS, 1), make(chan struct{})
		p.fsm.before = func() {
			reached <- p.fs.CrashClone(vfs.CrashCloneCfg{})
			<-never
		}
		if err := lead.ring.AddNonvoter(t.Context(), p.id, 1); err != nil {
			t.Fatal(err)
		}
		clone := <-reached // the disk as it is when the power goes just before the restore
		p.link.close()
		close(never)
		p.close(t)
		p.fs = clone
		p.mustOpen(t)
		if p.fsm.restores != 1 || p.fsm.Applied() < 60 {
			t.Errorf("state machine is at %d after %d restores at start", p.fsm.Applied(), p.fsm.restores)
		}
		last := propose(t, lead, "after")
		until(t, "it caught up", func() bool { return p.fsm.Applied() >= last })
		if !slices.Equal(p.fsm.list(), lead.fsm.list()) {
			t.Errorf("got %v, want %v", p.fsm.list(), lead.fsm.list())
		}
		closeAll(t, append(peers, p))
	})
}

// TestF41InterruptedInstall: a transfer cut off half way leaves the node as it was, and the next one succeeds.
func TestF41InterruptedInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 2, short)
		lead, p := peers[0], newPeer(peers[0].mesh, 3, short)
		for range 30 {
			propose(t, lead, strings.Repeat("x", 100_000))
		}
		fill(t, lead, 10)
		p.mustOpen(t)
		if err := lead.ring.AddNonvoter(t.Context(), p.id, 1); err != nil {
			t.Fatal(err)
		}
		until(t, "files are being received", func() bool {
			names, _ := p.fs.List("node/raft/snapshots")
			return len(names) > 0
		})
		p.crash(t)
		p.mustOpen(t)
		last := propose(t, lead, "after")
		until(t, "it caught up", func() bool { return p.fsm.Applied() >= last })
		if names, _ := p.fs.List("node/raft/snapshots"); len(names) > 2 {
			t.Errorf("left behind: %v", names)
		}
		closeAll(t, append(peers, p))
	})
}

// TestF41DamagedSnapshot: at the start description and names are checked; contents are when they are read, and then the node stops.
func TestF41DamagedSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 1, short)
		p := peers[0]
		fill(t, p, 30)
		newest := p.ring.snaps.newest()
		state, meta := p.ring.snaps.filePath(newest.number, "STATE"), p.ring.snaps.path(newest.number)+"/META"
		p.close(t)
		for name, spoil := range map[string]func(fs *vfs.MemFS) error{
			"META flipped":    func(fs *vfs.MemFS) error { return flip(t, fs, meta, 20) },
			"CURRENT flipped": func(fs *vfs.MemFS) error { return flip(t, fs, "node/raft/snapshots/CURRENT", 9) },
			"CURRENT missing": func(fs *vfs.MemFS) error { return fs.Remove("node/raft/snapshots/CURRENT") },
			"file missing":    func(fs *vfs.MemFS) error { return fs.Remove(state) },
			"file flipped, state machine behind": func(fs *vfs.MemFS) error {
				return errors.Join(flip(t, fs, state, 12), fs.Remove("node/fsm/STATE"))
			},
		} {
			clone := p.fs.CrashClone(vfs.CrashCloneCfg{})
			if err := spoil(clone); err != nil {
				t.Fatal(err)
			}
			q := &peer{id: p.id, inc: 1, fs: clone, mesh: newMesh(), tune: short}
			if err := q.open(t); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrShortLog) {
				t.Errorf("%s: open: got %v, want ErrDamaged or ErrShortLog", name, err)
			}
		}

		// Rot in a file that goes to a follower stops the leader: its own database shares that file.
		if err := flip(t, p.fs, state, 12); err != nil {
			t.Fatal(err)
		}
		p.mustOpen(t)
		until(t, "it leads", p.ring.IsLeader)
		q := newPeer(p.mesh, 2, short)
		q.mustOpen(t)
		if err := p.ring.AddNonvoter(t.Context(), q.id, 1); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.ring.Failed():
		case <-time.After(time.Minute):
			t.Fatal("a leader that sends a rotten snapshot goes on")
		}
		if err := p.ring.Err(); !errors.Is(err, ErrDamaged) || p.ring.State() != "failed" {
			t.Errorf("leader with a rotten snapshot: %v, %s", err, p.ring.State())
		}
		if q.fsm.Applied() != 0 {
			t.Error("a damaged snapshot was restored")
		}
		closeAll(t, []*peer{p, q})
	})
}

func flip(t testing.TB, fs *vfs.MemFS, path string, at int) error {
	b, err := readAll(fs, path)
	if err != nil {
		return err
	}
	b[at] ^= 1
	overwrite(t, fs, path, b)
	d, err := fs.OpenDir(fs.PathDir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// TestNeverOlder: a snapshot that was overtaken while it was made does not replace the newer one; an old
// one that is being read stays until it is not.
func TestNeverOlder(t *testing.T) {
	fs := vfs.NewMem()
	st, err := openSnapStore(fs, "s", testMAC, Config{}.withStandards().Log)
	if err != nil {
		t.Fatal(err)
	}
	st.damaged, st.durable = func(err error) { t.Error(err) }, func(uint64) error { return nil }
	take := func(index uint64) error {
		number, err := st.scratch()
		if err != nil {
			t.Fatal(err)
		}
		fsm := &ledger{fs: fs, dir: "", applied: index}
		if err := fsm.Checkpoint(st.statePath(number)); err != nil {
			t.Fatal(err)
		}
		k, _ := st.Create(1, index, 1, raft.Configuration{}, 0, nil)
		if err := k.(*sink).adopt(number); err != nil {
			t.Fatal(err)
		}
		return k.Close()
	}
	if err := take(10); err != nil {
		t.Fatal(err)
	}
	list, _ := st.List()
	_, reader, err := st.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := take(20); err != nil {
		t.Fatal(err)
	}
	if err := take(15); !errors.Is(err, errSuperseded) {
		t.Errorf("older snapshot: got %v, want errSuperseded", err)
	}
	if n, err := io.Copy(io.Discard, reader); err != nil || n != list[0].Size {
		t.Errorf("reading the old one: %d of %d bytes, %v", n, list[0].Size, err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if list, _ = st.List(); len(list) != 1 || list[0].Index != 20 {
		t.Errorf("list: %+v, want only the one of entry 20", list)
	}
	if names, _ := fs.List("s"); len(names) != 2 {
		t.Errorf("left: %v, want CURRENT and one snapshot", names)
	}
}

// TestF41DamagedEntry: an entry that cannot be read any more stops the node in good order instead of the process.
func TestF41DamagedEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := form(t, 1, nil)[0]
		var index uint64
		for i := range 10 {
			index = propose(t, p, fmt.Sprint(i))
		}
		p.close(t)
		s, err := openLogStore(p.config().withStandards(), func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		record, _ := appendRecord(nil, testMAC, &raft.Log{Index: 99, Term: 1}, tag{})
		if err := s.db.Set(recordKey(index-3), record, nil); err != nil { // a sound record in the wrong place
			t.Fatal(err)
		}
		s.close()
		if err := p.open(t); !errors.Is(err, ErrDamaged) {
			t.Errorf("open: got %v, want ErrDamaged", err)
		}
	})
}

// TestDamagedWhileRunning: the same while the library's own goroutines read.
func TestDamagedWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		bad := others(peers, leader)[0]
		index := propose(t, leader, "last")
		until(t, "applied", func() bool { return bad.fsm.Applied() >= index })
		bad.ring.store.mu.Lock()
		bad.ring.store.tail = tail{}
		bad.ring.store.mu.Unlock()
		if err := bad.ring.store.db.Delete(recordKey(index), nil); err != nil {
			t.Fatal(err)
		}
		_ = bad.ring.store.db.Set(recordKey(index), bytes.Repeat([]byte{1}, 100), nil)
		done := make(chan error, 1)
		go func() {
			defer close(done)
			done <- guard{bad.ring.store}.GetLog(index, new(raft.Log))
		}()
		if err, returned := <-done; returned {
			t.Errorf("the library would have gone on with %v", err)
		}
		<-bad.ring.Failed()
		if _, _, err := bad.ring.Propose(t.Context(), []byte("x")); !errors.Is(err, ErrDamaged) {
			t.Errorf("propose at the stopped node: got %v, want ErrDamaged", err)
		}
		propose(t, leader, "the others go on")
		closeAll(t, peers)
	})
}

// TestStuckMachine: a state machine that does not apply what it is given stops the node.
func TestStuckMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := form(t, 1, nil)[0]
		propose(t, p, "the term is open")
		p.fsm.mu.Lock()
		p.fsm.stuck = true
		p.fsm.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := p.ring.Propose(ctx, []byte("x")); !errors.Is(err, ErrStateMachine) || !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("propose: got %v, want ErrStateMachine and ErrUnknownOutcome", err)
		}
		p.close(t)
	})
}
