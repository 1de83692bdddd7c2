package ring

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

func TestMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		ctx := t.Context()
		far := others(peers, leaderOf(t, peers...))[0] // every request is made at a follower
		stranger := nodeID(9)
		if err := far.ring.Promote(ctx, stranger); !errors.Is(err, ErrUnknownServer) {
			t.Errorf("promote a stranger: got %v, want ErrUnknownServer", err)
		}
		if err := far.ring.AddNonvoter(ctx, stranger, 1); err != nil {
			t.Fatal(err)
		}
		if err := far.ring.Promote(ctx, stranger); !errors.Is(err, ErrBehind) {
			t.Errorf("promote a node that is not there: got %v, want ErrBehind", err)
		}
		if err := far.ring.AddNonvoter(ctx, stranger, 3); err != nil {
			t.Fatal(err)
		}
		if err := far.ring.AddNonvoter(ctx, stranger, 2); !errors.Is(err, ErrRefused) {
			t.Errorf("older incarnation: got %v, want ErrRefused", err)
		}
		until(t, "one incarnation is left", func() bool {
			n := 0
			for _, s := range far.ring.Servers() {
				if s.Node == stranger && s.Incarnation == 3 {
					n++
				} else if s.Node == stranger {
					return false
				}
			}
			return n == 1
		})
		if err := errors.Join(far.ring.Remove(ctx, stranger), far.ring.Remove(ctx, stranger)); err != nil {
			t.Fatal(err)
		}
		changed := far.ring.Changes()
		if err := far.ring.Demote(ctx, peers[2].id); err != nil {
			t.Fatal(err)
		}
		<-changed
		closeAll(t, peers)
	})
}

// TestF33RemovedComesBack: a removed node that starts again on its old disk disturbs nobody.
func TestF33RemovedComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 4, nil)
		leader := leaderOf(t, peers...)
		gone := others(peers, leader)[2]
		rest := others(peers, gone)
		gone.crash(t)
		if err := leader.ring.Remove(t.Context(), gone.id); err != nil {
			t.Fatal(err)
		}
		propose(t, leader, "x")
		term := leader.ring.Term()
		gone.mustOpen(t)
		time.Sleep(time.Minute)
		if leader.ring.Term() != term || !leader.ring.IsLeader() {
			t.Errorf("term went from %d to %d", term, leader.ring.Term())
		}
		if gone.fsm.has("x") != 0 {
			t.Error("the removed node still learns")
		}
		closeAll(t, append(rest, gone))
	})
}

// TestReplacedDisk: a voter whose disk was replaced is refused under its old name, and comes back as its own successor. Nothing that it had
// acknowledged is lost although it forgot everything.
func TestReplacedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		p := others(peers, leader)[0]
		propose(t, leader, "kept")
		p.crash(t)
		p.fs = vfs.NewCrashableMem()
		ahead := openLedger(t, p.fs, "node/fsm")
		ahead.applied = 100
		if _, err := Open(p.config(), ahead); !errors.Is(err, ErrShortLog) {
			t.Errorf("state machine ahead of an empty log: got %v, want ErrShortLog", err)
		}
		if err := Wipe(p.config()); err != nil {
			t.Fatal(err)
		}
		p.tune = func(c *Config) { c.Existing = true }
		if err := p.open(t); !errors.Is(err, ErrShortLog) {
			t.Fatalf("open on an empty disk: got %v, want ErrShortLog", err)
		}
		if err := Wipe(p.config()); err != nil {
			t.Fatal(err)
		}
		p.tune, p.inc = nil, 2
		p.mustOpen(t)
		time.Sleep(5 * time.Second)
		if p.ring.LastIndex() != 0 {
			t.Error("the successor was taken for its predecessor")
		}
		join(t, leader, p)
		last := propose(t, p, "back")
		until(t, "it caught up", func() bool { return p.fsm.Applied() >= last })
		if p.fsm.has("kept") == 0 {
			t.Error("an acknowledged command is lost")
		}
		closeAll(t, peers)
	})
}

// TestLeaderLossDuringChange: the leader goes away right after a change of members was asked for; the ring ends with the old or the
// new members, and goes on.
func TestLeaderLossDuringChange(t *testing.T) {
	for i := range 10 {
		synctest.Test(t, func(t *testing.T) {
			peers := form(t, 3, nil)
			leader := leaderOf(t, peers...)
			rest := others(peers, leader)
			asked := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				asked <- rest[0].ring.AddNonvoter(ctx, nodeID(9), 1)
			}()
			time.Sleep(time.Duration(i) * 100 * time.Microsecond)
			leader.crash(t)
			if err := <-asked; err != nil {
				t.Errorf("add: %v", err)
			}
			propose(t, rest[1], fmt.Sprint(i))
			leader.mustOpen(t)
			last := propose(t, leader, "back")
			for _, p := range peers {
				until(t, "all caught up and agree", func() bool {
					return p.fsm.Applied() >= last && len(p.ring.Servers()) == 4
				})
			}
			closeAll(t, peers)
		})
	}
}

// TestF42UnknownEntry: a follower that is sent an entry of a kind it does not know stops and does not store it.
func TestF42UnknownEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := form(t, 1, nil)[0]
		propose(t, p, "x")
		last := p.ring.LastIndex()
		done := make(chan struct{})
		go func() { // as the library's goroutine would
			defer close(done)
			_ = guard{p.ring.store}.StoreLogs([]*raft.Log{{Index: last + 1, Term: 9, Type: 200}})
		}()
		<-done
		<-p.ring.Failed()
		if err := p.ring.Err(); !errors.Is(err, ErrUnknownEntry) {
			t.Errorf("got %v, want ErrUnknownEntry", err)
		}
		p.close(t)
		p.mustOpen(t)
		if got := p.ring.LastIndex(); got < last || got > last+2 { // its own first entries of a new term may follow
			t.Errorf("log ends at %d, it ended at %d", got, last)
		}
		p.close(t)
	})
}

// TestSameTermDecides: what confirms a leader is the present term of a majority, of the very incarnations that have the votes.
func TestSameTermDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := form(t, 3, nil)
		leader := leaderOf(t, peers...)
		term := leader.ring.Term()
		for _, p := range others(peers, leader) {
			for _, s := range leader.ring.Servers() {
				if s.Node == p.id {
					if !leader.ring.sameTerm(t.Context(), s, term) || leader.ring.sameTerm(t.Context(), s, term-1) {
						t.Errorf("%s does not tell its term", p.id)
					}
					s.Incarnation++
					if leader.ring.sameTerm(t.Context(), s, term) {
						t.Error("another incarnation answered")
					}
				}
			}
		}
		closeAll(t, peers)
	})
}
