package dicomsvc_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"osteon/dicomsvc"
	"osteon/erasure/journal"
	"osteon/raft/catalog"
)

// Sealing frees the journal copies; a node that believes itself alone must not trade two of them for a
// pack of one shard.
func TestSealNeverSurvivesLessThanTheJournalCopies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	c.nodes[0].mustPut(b)
	c.settled()
	c.separate(c.nodes[0], true)
	if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); !errors.Is(err, dicomsvc.ErrUnavailable) {
		t.Errorf("seal at a node that reaches no other: %v, want ErrUnavailable", err)
	}
	if l, err := c.nodes[0].located("1.2.3.1.1"); err != nil || l.State != catalog.VersionJournalled {
		t.Errorf("state %v, %v; want journalled still", l.State, err)
	}
	c.separate(c.nodes[0], false)
	c.nodes[2].shut()
	if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Errorf("seal with two of three nodes: %v", err)
	}
	c.nodes[1].shut()
	if got, err := c.nodes[0].fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read after the loss of another node: %d bytes, %v", len(got), err)
	}
}

// What lost a holder may be sealed in what is left, when that survives more than the copy that is left.
func TestSealInsteadOfALostHolder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "b"}, nil)
	c.nodes[0].mustPut(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1"))
	c.settled()
	c.nodes[0].shut()
	if err := c.nodes[1].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Errorf("seal at the site that is left: %v", err)
	}
	// The pack lies within one site: the other site's copy is what survives its loss, and must stay.
	c.nodes[0].start()
	l, err := c.nodes[1].located("1.2.3.1.1")
	if err != nil || l.State != catalog.VersionSealed {
		t.Fatalf("state %v, %v; want sealed", l.State, err)
	}
	key := journal.Key(l.Instance.Version)
	released := func(m *member) bool {
		info, held := m.archive.Store().Journal().Stat(key)
		return !held || info.Released
	}
	eventually(t, "a copy at the pack's own site released", func() bool { return released(c.nodes[1]) || released(c.nodes[2]) })
	eventually(t, "the returned node knows the pack", func() bool {
		l, err := c.nodes[0].located("1.2.3.1.1")
		return err == nil && l.State == catalog.VersionSealed
	})
	c.nodes[0].shut()
	c.nodes[0].start() // what a start derives must agree with what runs
	if released(c.nodes[0]) {
		t.Error("the only copy outside the pack's site was released")
	}
}
