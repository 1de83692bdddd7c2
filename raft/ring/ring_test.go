package ring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := form(t, 1, nil)[0]
		if err := p.ring.Bootstrap(); !errors.Is(err, ErrBootstrapped) {
			t.Errorf("second bootstrap: got %v, want ErrBootstrapped", err)
		}
		index := propose(t, p, "a")
		got, err := p.ring.ReadIndex(t.Context())
		if err != nil || got < index {
			t.Errorf("read index: got %d, %v; want at least %d", got, err, index)
		}
		if p.fsm.Applied() < got {
			until(t, "the read index is applied", func() bool { return p.fsm.Applied() >= got })
		}
		p.close(t)
		p.mustOpen(t)
		propose(t, p, "b")
		if got, want := p.fsm.list(), []string{"a", "b"}; !slices.Equal(got, want) {
			t.Errorf("commands: got %v, want %v", got, want)
		}
		if _, _, err := p.ring.Propose(t.Context(), make([]byte, CommandBytesMax+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("large command: got %v", err)
		}
		p.close(t)
	})
}

// TestLeaderLoss: every command that was acknowledged, at any node, is applied everywhere, while leaders come and go.
func TestLeaderLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		for round := range 3 {
			leader := leaderOf(t, peers...)
			rest := others(peers, leader)
			for i, p := range peers {
				propose(t, p, fmt.Sprintf("round %d at %d", round, i))
			}
			leader.crash(t)
			start := time.Now()
			propose(t, rest[0], fmt.Sprintf("round %d without leader", round))
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("round %d: new leader after %v, want within 3 s", round, took)
			}
			leader.mustOpen(t)
		}
		last := propose(t, peers[1], "end")
		for _, p := range peers {
			until(t, "all caught up", func() bool { return p.fsm.Applied() >= last })
		}
		for round := range 3 {
			for i := range peers {
				if c := fmt.Sprintf("round %d at %d", round, i); peers[2].fsm.has(c) == 0 {
					t.Errorf("%q was acknowledged and is lost", c)
				}
			}
		}
		for _, p := range peers[1:] {
			if !slices.Equal(p.fsm.list(), peers[0].fsm.list()) {
				t.Errorf("nodes differ: %v and %v", p.fsm.list(), peers[0].fsm.list())
			}
		}
		closeAll(t, peers)
	})
}

// TestIsolatedLeader: an isolated leader stops to lead within its lease, answers no linearizable read,
// and what it could not replicate disappears when it comes back.
func TestIsolatedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		old := leaderOf(t, peers...)
		rest := others(peers, old)
		old.mesh.both(true, old.id, ids(rest)...)
		time.Sleep(time.Millisecond) // what was on its way arrived

		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			_, _, err := old.ring.Propose(ctx, []byte("lost"))
			if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("proposal at isolated leader: got %v, want ErrUnknownOutcome", err)
			}
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			if _, err := old.ring.ReadIndex(ctx); !errors.Is(err, ErrNoQuorum) {
				t.Errorf("read at isolated leader: got %v, want ErrNoQuorum", err)
			}
		})
		time.Sleep(1200 * time.Millisecond)
		if old.ring.IsLeader() {
			t.Error("isolated leader still leads after 1.2 s")
		}
		propose(t, rest[0], "kept")
		wg.Wait()

		old.mesh.both(false, old.id, ids(rest)...)
		index := propose(t, old, "after")
		for _, p := range peers {
			until(t, "all caught up", func() bool { return p.fsm.Applied() >= index })
			if p.fsm.has("kept") != 1 {
				t.Errorf("acknowledged command is at %s %d times", p.id, p.fsm.has("kept"))
			}
		}
		closeAll(t, peers)
	})
}

// TestFollowerIsolated: nobody notices, and its return does not disturb the leader (pre-vote).
func TestFollowerIsolated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		away := others(peers, leader)[0]
		term := leader.ring.Term()
		away.mesh.both(true, away.id, ids(others(peers, away))...)
		for i := range 20 {
			start := time.Now()
			propose(t, leader, fmt.Sprint(i))
			if took := time.Since(start); took > 500*time.Millisecond {
				t.Errorf("proposal %d took %v", i, took)
			}
		}
		time.Sleep(20 * time.Second)
		away.mesh.both(false, away.id, ids(others(peers, away))...)
		last := propose(t, leader, "back")
		until(t, "it caught up", func() bool { return away.fsm.Applied() >= last })
		if got := leader.ring.Term(); got != term || !leader.ring.IsLeader() {
			t.Errorf("term went from %d to %d", term, got)
		}
		closeAll(t, peers)
	})
}

// TestOneWay cuts one direction of the leader's links at a time: the ring must work again within ten seconds without a storm of terms.
func TestOneWay(t *testing.T) {
	for _, receives := range []bool{true, false} {
		t.Run(fmt.Sprintf("receives=%v", receives), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peers := form(t, 3, nil)
				leader := leaderOf(t, peers...)
				rest := others(peers, leader)
				term := leader.ring.Term()
				for _, p := range rest {
					if receives {
						leader.mesh.set(true, leader.id, p.id)
					} else {
						leader.mesh.set(true, p.id, leader.id)
					}
				}
				start := time.Now()
				propose(t, rest[0], "x")
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("no progress for %v", took)
				}
				time.Sleep(time.Minute)
				if got := rest[1].ring.Term(); got > term+5 {
					t.Errorf("term went from %d to %d in a minute", term, got)
				}
				closeAll(t, rest)
				leader.close(t)
			})
		})
	}
}

// TestPartialPartition: A and B cannot talk, both reach C.
func TestPartialPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		rest := others(peers, leader)
		term := leader.ring.Term()
		leader.mesh.both(true, leader.id, rest[0].id)
		start := time.Now()
		propose(t, leader, "x")
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("no progress for %v", took)
		}
		time.Sleep(time.Minute)
		if got := rest[1].ring.Term(); got > term+2 {
			t.Errorf("term went from %d to %d in a minute", term, got)
		}
		propose(t, rest[1], "y")
		closeAll(t, peers)
	})
}

// TestNoMajority: three ways apart nothing is committed, and healing brings it all together.
func TestNoMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		m := peers[0].mesh
		for _, p := range peers {
			m.both(true, p.id, ids(others(peers, p))...)
		}
		time.Sleep(5 * time.Second)
		for _, p := range peers {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if _, _, err := p.ring.Propose(ctx, []byte("never")); !errors.Is(err, ErrNoQuorum) {
				t.Errorf("propose without majority: got %v, want ErrNoQuorum", err)
			}
			cancel()
		}
		for _, p := range peers {
			m.both(false, p.id, ids(others(peers, p))...)
		}
		last := propose(t, peers[2], "healed")
		for _, p := range peers {
			until(t, "all caught up", func() bool { return p.fsm.Applied() >= last })
			if p.fsm.has("never") != 0 {
				t.Error("a refused command was applied")
			}
		}
		closeAll(t, peers)
	})
}

func TestTransferAndReadEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		changed := leader.ring.Changes()
		if err := leader.ring.Transfer(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-changed
		if err := others(peers, leaderOf(t, peers...))[0].ring.Transfer(t.Context()); !errors.Is(err, ErrRefused) {
			t.Errorf("transfer at a follower: got %v, want ErrRefused", err)
		}
		index := propose(t, peers[0], "x")
		var wg sync.WaitGroup
		for _, p := range peers {
			for range 20 {
				wg.Go(func() {
					got, err := p.ring.ReadIndex(t.Context())
					if err != nil || got < index {
						t.Errorf("read index at %s: got %d, %v; want at least %d", p.id, got, err, index)
					}
					until(t, "applied", func() bool { return p.fsm.Applied() >= got })
				})
			}
		}
		wg.Wait()
		if d := leaderOf(t, peers...).ring.LastContact(); d != 0 {
			t.Errorf("leader's last contact: %v", d)
		}
		closeAll(t, peers)
	})
}
