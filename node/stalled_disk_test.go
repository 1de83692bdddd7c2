package node_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"osteon/node/nodetest"
)

// F20: a leader whose disk answers nothing any more leads no longer within 10 s and has ended within 20 s; the others
// go on. In real time: a wait for a disk is no wait that a bubble's clock passes over.
func TestF20StalledDiskEndsTheNode(t *testing.T) {
	w := newCrashWorld(t, 1, []*nodetest.Disk{nodetest.NewDisk(), nodetest.NewDisk(), nodetest.NewDisk()})
	defer w.ring.Close()
	if err := w.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	victim := w.ring.Leader()
	if victim == nil {
		t.Fatal("no leader")
	}
	answers := make(chan struct{})
	defer sync.OnceFunc(func() { close(answers) })()
	began := time.Now()
	victim.Disk.Watch(func(nodetest.Op, string) error {
		<-answers
		return nil
	})
	led := time.Duration(0)
	stored := 0
	for time.Since(began) < 20*time.Second && victim.Fenced() == nil {
		for _, m := range w.nodes {
			if m == victim {
				continue
			}
			if err := w.store(t.Context(), m, 40, stored, 100); err != nil {
				t.Errorf("store at %s %v after the stall: %v", m.Name, time.Since(began).Round(time.Millisecond), err)
			}
			stored++
			if leads(m) && led == 0 {
				led = time.Since(began)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	if led == 0 || led > 10*time.Second {
		t.Errorf("another node leads after %v, want within 10 s", led)
	}
	if err := victim.Fenced(); err == nil {
		t.Errorf("the node with the stalled disk still runs after %v", time.Since(began))
	} else {
		t.Logf("another leads after %v, ended after %v: %v; %d stores elsewhere", led, time.Since(began), err, stored)
	}
}

// leads asks the node itself.
func leads(m *nodetest.Node) bool {
	n := m.Node()
	if n == nil {
		return false
	}
	s, err := n.Status(context.Background())
	return err == nil && s.State == "leader"
}
