package ring

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A gated server is as if it were cut off: it gives no vote and takes no entry, raises no term, and takes part once released.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		gated, other := others(peers, leader)[0], others(peers, leader)[1]
		propose(t, leader, "before")
		term := leader.ring.Term()
		gated.close(t)
		gated.tune = func(c *Config) { c.Gated = true }
		gated.mustOpen(t)
		propose(t, leader, "kept from it")
		time.Sleep(30 * time.Second)
		if gated.fsm.has("kept from it") != 0 {
			t.Error("a gated server was given an entry")
		}
		if _, ok := gated.ring.Leader(); ok || gated.ring.Term() != term || leader.ring.Term() != term {
			t.Errorf("terms: gated %d, leader %d, before %d", gated.ring.Term(), leader.ring.Term(), term)
		}
		if _, err := leader.ring.status(t.Context(), Server{Node: gated.id, Incarnation: 1}); err == nil {
			t.Error("a gated server says of which term it is")
		}
		leader.crash(t)
		time.Sleep(30 * time.Second)
		if _, ok := other.ring.Leader(); ok {
			t.Error("a gated server gave its vote")
		}
		gated.ring.Release()
		gated.ring.Release() // again is no error
		propose(t, other, "after")
		until(t, "it has caught up", func() bool { return gated.fsm.has("after") == 1 && gated.fsm.has("kept from it") == 1 })
		closeAll(t, others(peers, leader))
	})
}

// Vouch sees where the log ends and can keep Raft from starting.
func TestVouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		p := others(peers, leaderOf(t, peers...))[0]
		at := propose(t, p, "x")
		until(t, "applied", func() bool { return p.fsm.Applied() >= at })
		want := End{Index: p.ring.LastIndex(), Term: p.ring.Term()}
		p.close(t)
		no := errors.New("no")
		var got End
		p.tune = func(c *Config) { c.Vouch = func(e End) error { got = e; return no } }
		if err := p.open(t); !errors.Is(err, no) || got != want {
			t.Errorf("open: %v; asked about %+v, want %+v", err, got, want)
		}
		closeAll(t, others(peers, p))
	})
}

// The leader knows what others acknowledged of what is committed, and forgets nothing while it runs.
func TestAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		var last uint64
		for range 50 {
			last = propose(t, leader, "x")
		}
		for _, p := range others(peers, leader) {
			until(t, "its acknowledgement is known", func() bool { return leader.ring.Acknowledged(p.id, 1) >= last })
			if got := leader.ring.Acknowledged(p.id, 1); got > p.ring.LastIndex() {
				t.Errorf("acknowledged up to %d by one that ends at %d", got, p.ring.LastIndex())
			}
			if got := leader.ring.Acknowledged(p.id, 2); got != 0 {
				t.Errorf("another incarnation: %d", got)
			}
		}
		cut := others(peers, leader)
		leader.mesh.both(true, leader.id, ids(cut)...)
		go leader.ring.Propose(t.Context(), []byte("never committed")) // ends with the test's context
		time.Sleep(10 * time.Second)
		leader.mesh.both(false, leader.id, ids(cut)...)
		until(t, "all agree", func() bool {
			for _, p := range peers {
				if p.fsm.has("never committed") > 1 {
					return false
				}
			}
			return leaderOf(t, peers...) != nil
		})
		for _, p := range peers {
			for _, q := range peers {
				if got := p.ring.Acknowledged(q.id, 1); got > q.ring.LastIndex() {
					t.Errorf("acknowledged up to %d by one that ends at %d", got, q.ring.LastIndex())
				}
			}
		}
		closeAll(t, peers)
	})
}
