package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"osteon/node"
	"osteon/node/nodetest"
)

// fsyncPart is a part of a node's directory in which one fsync fails.
type fsyncPart struct {
	within string
	// noticed wants the node to say what happened.
	noticed func(m *nodetest.Node) error
}

func fsyncParts() []fsyncPart {
	return []fsyncPart{
		{"/journal/", refusesStores},
		{"/raft/log/", hasEnded},
		{"/raft/mark", hasEnded},
		{"/catalog/", hasEnded},
		{"/shards/", nil}, // of a seal that failed nothing was promised
	}
}

// refusesStores wants a node that serves on without taking instances, and says so.
func refusesStores(m *nodetest.Node) error {
	n := m.Node()
	if n == nil {
		return fmt.Errorf("ended: %w", m.Fenced())
	}
	s, err := n.Status(context.Background())
	if err != nil {
		return err
	}
	if n.Ready() == nil || s.Ready || !strings.Contains(s.NotReady, "fenced") {
		return fmt.Errorf("ready: %v, status says %q", n.Ready(), s.NotReady)
	}
	return nil
}

// hasEnded wants a node that ended by itself and said why.
func hasEnded(m *nodetest.Node) error {
	if err := m.Fenced(); m.Node() != nil || err == nil || !strings.Contains(err.Error(), "fenced") {
		return fmt.Errorf("runs: %t, %w", m.Node() != nil, err)
	}
	return nil
}

// One fsync that fails, wherever it is, costs nothing that was acknowledged: what cannot be trusted any more is fenced, and
// the node says so.
func TestF17FsyncErrorFencesTheDisk(t *testing.T) {
	base := crashBase(t, 3)
	for _, part := range fsyncParts() {
		t.Run(strings.Trim(strings.ReplaceAll(part.within, "/", " "), " "), func(t *testing.T) {
			total := fsyncRun(t, base, part, 0)
			if total == 0 {
				t.Fatal("no fsync in this part")
			}
			step := max(1, total/fsyncTries)
			for k := 1; k <= total; k += step {
				fsyncRun(t, base, part, k)
				if t.Failed() {
					t.Logf("fsync %d of %d failed", k, total)
					return
				}
			}
		})
	}
}

// The same for the local index, in real time: its database is left as it is once it is fenced, with its goroutines.
func TestF17FsyncErrorInTheLocalIndex(t *testing.T) {
	w := newCrashWorld(t, 1, []*nodetest.Disk{nodetest.NewDisk(), nodetest.NewDisk(), nodetest.NewDisk()})
	defer w.ring.Close()
	if err := w.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.loss = lossUnsynced
	if _, err := w.fsyncLife(t.Context(), fsyncPart{"/local/", hasEnded}, 1); err != nil {
		t.Error(err)
	}
}

const fsyncTries = 4

// fsyncRun works the ring while the k-th fsync of the victim's part fails, and returns how many there were.
func fsyncRun(t *testing.T, base []*nodetest.Disk, part fsyncPart, k int) (count int) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		w := newCrashWorld(t, uint64(k+1), base)
		w.loss = lossUnsynced
		var err error
		count, err = w.fsyncLife(context.Background(), part, k)
		w.ring.Close()
		if err != nil {
			t.Errorf("fsync %d: %v", k, err)
		}
	})
	return count
}

func (w *crashWorld) fsyncLife(ctx context.Context, part fsyncPart, k int) (count int, err error) {
	if err := allRun(ctx, w); err != nil {
		return 0, err
	}
	victim := w.nodes[1]
	failed := false
	victim.Disk.Watch(func(op nodetest.Op, name string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if op != nodetest.OpSync || !strings.Contains(name+"/", part.within) {
			return nil
		}
		if count++; count != k {
			return nil
		}
		failed = true
		return syscall.EIO
	})
	workErr := w.fsyncWork(ctx, victim, part.within == "/catalog/")
	if !failed {
		victim.Disk.Watch(nil)
		return count, workErr
	}
	if part.noticed != nil {
		if err := w.await("alarm", func() error { return part.noticed(victim) }); err != nil {
			return count, err
		}
		if err := w.store(ctx, victim, 30, 1, 100); err == nil {
			return count, errors.New("the node acknowledges after its fsync failed")
		}
	}
	victim.Disk.Watch(nil)
	victim.PowerCut(0)
	if err := reviveAll(ctx, w); err != nil {
		return count, err
	}
	return count, w.check(ctx)
}

// fsyncWork makes the victim write in every part: as receiver, partner, follower, shard holder.
func (w *crashWorld) fsyncWork(ctx context.Context, victim *nodetest.Node, snapshot bool) error {
	var errs []error
	for i := range 4 {
		errs = append(errs, w.store(ctx, w.nodes[0], 7, i, 20_000), w.store(ctx, victim, 7, 10+i, 30_000))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	errs = append(errs, w.do(w.nodes[0], func(n *node.Node) error { return n.Archive().SealNow(ctx, "2.25.7") }))
	if snapshot { // only then does the catalog sync
		errs = append(errs, w.do(victim, func(n *node.Node) error { return n.Ring().Snapshot(ctx) }))
	}
	time.Sleep(5 * time.Second)
	return errors.Join(errs...)
}
