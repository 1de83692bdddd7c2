package nodetest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"osteon/dicomsvc"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/node"
)

// An object that was opened while it was journalled is read to its end although it is sealed and leaves the journals
// of its holders meanwhile.
func TestReadGoesOnInThePack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := New(t, Config{Seed: 1, Configure: func(_ string, cfg *node.Config) {
			cfg.Journal.SegmentBytes, cfg.Journal.HotBytes = 64<<10, 1
		}})
		defer ring.Close()
		ring.Found("a1", "a")
		ring.Join("b1", "b")
		ring.Join("c1", "c")
		ring.AwaitReady()
		load := NewWorkload(ring, 1, false)
		o, err := newObject(rand.New(rand.NewPCG(1, 1)), 1, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		load.remember(o, nil)
		ring.Await("stored", func() bool { return load.put(ring.Node("a1"), o) })
		holders := func() (held []*Node, other *Node) {
			for _, n := range ring.Nodes() {
				if _, here := n.Node().Archive().Store().Journal().Stat(journal.Key(o.version)); here {
					held = append(held, n)
				} else {
					other = n
				}
			}
			return held, other
		}
		_, reader := holders()
		var opened *dicomsvc.Object
		ring.Await("known everywhere", func() bool {
			for in := range reader.Node().Archive().Instances(context.Background(), storePrincipal, dicomsvc.Selection{SOPInstanceUIDs: []string{o.uid}}) {
				opened, err = reader.Node().Archive().Open(context.Background(), storePrincipal, in)
				return err == nil
			}
			return false
		})
		if err := ring.Node("a1").Node().Archive().SealNow(context.Background(), o.study); err != nil {
			t.Fatal(err)
		}
		for _, n := range ring.Nodes() { // another object ends the segment of the first
			for i := range 30 {
				filler, err := newObject(rand.New(rand.NewPCG(2, uint64(i))), 2, 1000+i, 1)
				if err != nil {
					t.Fatal(err)
				}
				load.remember(filler, nil)
				load.put(n, filler)
			}
		}
		ring.Await("evicted", func() bool { held, _ := holders(); return len(held) == 0 })
		var got bytes.Buffer
		if _, err := opened.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), o.data) {
			t.Errorf("read %d of %d bytes: %v", got.Len(), len(o.data), err)
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A node reads from others that were all started again a moment ago, over connections that it takes for alive.
func TestReadFromNodesJustStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := New(t, Config{Seed: 1, Configure: func(_ string, cfg *node.Config) {
			cfg.Survive, cfg.Journal.SegmentBytes, cfg.Journal.HotBytes = "site", 64<<10, 1
		}})
		defer ring.Close()
		ring.Found("a1", "a")
		for _, name := range []string{"b1", "c1", "d1"} {
			ring.Join(name, place.SiteID(name[:1]))
		}
		ring.AwaitReady()
		load := NewWorkload(ring, 1, false)
		for range 20 {
			o := load.fresh()
			ring.Await("stored", func() bool { return load.put(ring.Node("a1"), o) })
		}
		if err := load.Settle(false); err != nil {
			t.Fatal(err)
		}
		a1 := ring.Node("a1").Node()
		read := func(studies ...string) {
			for in, err := range a1.Archive().Instances(context.Background(), storePrincipal, dicomsvc.Selection{StudyInstanceUIDs: studies}) {
				if err != nil {
					t.Fatal(err)
				}
				if got := load.read(context.Background(), a1, in, "a1"); got[:5] != "read " {
					t.Error(got)
				}
			}
		}
		restart := func() {
			for _, n := range ring.Nodes()[1:] {
				n.Kill()
				n.Start()
			}
		}
		read("2.25.1000", "2.25.1001", "2.25.1002", "2.25.1003", "2.25.1004") // connections to everybody
		restart()
		read("2.25.1000")
		if err := load.Settle(true); err != nil {
			t.Fatal(err)
		}
		read("2.25.1000", "2.25.1001", "2.25.1002", "2.25.1003", "2.25.1004")
		restart()
		read("2.25.1001")
	})
}
