package nodetest

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"osteon/dicomsvc"
	"osteon/node"
)

// A node whose catalog does not list the others, for it lost its end in a power cut or has not arrived yet, does not
// take itself for the whole ring: it acknowledges no single copy.
func TestNodeThatKnowsNobodyAcknowledgesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := New(t, Config{Seed: 1})
		defer ring.Close()
		a1 := ring.Found("a1", "a")
		if err := put(a1.Node(), 1); err != nil {
			t.Errorf("store in a ring of one: %v", err)
		}
		b1 := ring.Join("b1", "b")
		ring.AwaitReady()
		a1.PowerCut(0)
		b1.Kill()
		ring.Net.Cut("a1", "b1")
		for _, n := range []*Node{a1, b1} {
			n.Start()
			if err := put(n.Node(), 2); !errors.Is(err, dicomsvc.ErrResources) {
				t.Errorf("store at %s, which reaches nobody: %v, want %v", n.Name, err, dicomsvc.ErrResources)
			}
		}
		ring.Net.Heal()
		ring.AwaitReady()
		c1 := ring.Join("c1", "c")
		ring.Net.Isolate("c")
		c1.Kill()
		c1.Start()
		if err := put(c1.Node(), 3); !errors.Is(err, dicomsvc.ErrResources) {
			t.Errorf("store at a node that has no catalog yet: %v, want %v", err, dicomsvc.ErrResources)
		}
		ring.Net.Heal()
		ring.AwaitReady()
		ring.Await("all are stored", func() bool { return put(c1.Node(), 3) == nil && put(a1.Node(), 2) == nil })
	})
}

// What a killed process left in memory only, for the sync of its journal had failed, is made durable before the next one
// shows it to the catalog: a power cut takes no bytes from under a record.
func TestF17ReplayedRecordSurvivesThePowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 17, 3, 1, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(time.Hour) })
		s.store("b1", false)
		a1 := s.node("a1")
		var failed atomic.Bool
		a1.Disk.Watch(func(op Op, name string) error {
			if op == OpSync && strings.Contains(name, "/journal/") && failed.CompareAndSwap(false, true) {
				return errFsync
			}
			return nil
		})
		o := s.load.fresh()
		if s.load.put(a1, o) || !failed.Load() {
			t.Fatal("acknowledged although the journal was not synced")
		}
		a1.Disk.Watch(nil)
		a1.Kill()
		a1.Start()
		s.ring.Await("the catalog lists it", func() bool {
			found, err := s.node("c1").Node().Catalog().Locate(t.Context(), o.uid)
			return err == nil && len(found) == 1
		})
		a1.PowerCut(0)
		a1.Start()
		s.ring.AwaitReady()
		s.wantReadable("b1", o)
		s.finish()
	})
}
