package nodetest

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"osteon/node"
)

// threeSites runs a test over a ring of three sites in a bubble, with what the nodes logged when it fails.
func threeSites(t *testing.T, test func(t *testing.T, s *stored)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ring := New(t, Config{Seed: 1})
		defer ring.Close()
		defer func() {
			if t.Failed() && testing.Verbose() {
				if err := ring.WriteLog(os.Stderr); err != nil {
					t.Log(err)
				}
			}
		}()
		s := &stored{t: t, ring: ring}
		s.a = ring.Found("a1", "a")
		s.b = ring.Join("b1", "b")
		s.c = ring.Join("c1", "c")
		s.awaitVotes(3)
		test(t, s)
	})
}

// stored is a ring and how much was stored in it.
type stored struct {
	t       *testing.T
	ring    *Ring
	a, b, c *Node
	count   int
}

// store stores through each node that runs.
func (s *stored) store() {
	s.t.Helper()
	for _, n := range s.ring.Nodes() {
		if n.Node() == nil {
			continue
		}
		s.count++
		s.ring.Await("stored at "+n.Name, func() bool { return n.Node() != nil && put(n.Node(), s.count) == nil })
	}
}

// complete waits until each node that runs is ready and knows everything, and reads it.
func (s *stored) complete() {
	s.t.Helper()
	for _, n := range s.ring.Nodes() {
		s.ring.Await(n.Name+" knows everything", func() bool {
			if n.Node() == nil {
				return n.Fenced() == nil || !errors.Is(n.Fenced(), node.ErrReopen)
			}
			study, err := n.Node().Archive().Study(s.t.Context(), "2.25.1")
			return err == nil && study.Instances == s.count && n.Node().Ready() == nil
		})
	}
}

// voters returns the names of the voters as seen from a node.
func (s *stored) voters(from *Node) (names []string) {
	serving := from.Node()
	if serving == nil {
		return nil
	}
	status, err := serving.Status(s.t.Context())
	if err != nil {
		return nil
	}
	for _, n := range status.Nodes {
		if n.Voter {
			names = append(names, n.Name)
		}
	}
	return names
}

func (s *stored) awaitVotes(n int) {
	s.t.Helper()
	s.ring.Await("all vote", func() bool {
		for _, from := range s.ring.Nodes() {
			if from.Node() != nil && (from.Node().Ready() != nil || len(s.voters(from)) != n) {
				return false
			}
		}
		return true
	})
}

const (
	saysOlder = "this directory is older than what this node had"
	saysAnew  = "this node returns as a new incarnation without a vote"
)

// F21: a directory that was brought back from a copy is found out, whenever the copy was taken, and starts over; what the others
// have is given back and nothing is lost.
func TestF21DirectoryBroughtBack(t *testing.T) {
	for _, c := range []struct {
		name string
		copy func(s *stored) *Disk
		end  func(s *stored)
	}{
		{"copied while stopped", func(s *stored) *Disk {
			s.b.Stop()
			d := s.b.Disk.Copy()
			s.b.Start()
			s.awaitVotes(3)
			return d
		}, func(s *stored) {}},
		{"copied while running, the leader has seen more since", func(s *stored) *Disk { return s.b.Disk.Copy() }, func(s *stored) {}},
		{"copied while running, the leader has restarted since", func(s *stored) *Disk { return s.b.Disk.Copy() }, func(s *stored) {
			time.Sleep(20 * time.Second)
			for _, n := range []*Node{s.a, s.c} {
				n.PowerCut(0)
				n.Start()
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			threeSites(t, func(t *testing.T, s *stored) {
				s.store()
				old := c.copy(s)
				s.store()
				s.complete()
				s.b.Kill()
				c.end(s)
				s.b.Disk.Restore(old)
				if s.ring.Logged(saysOlder) || s.ring.Logged(saysAnew) {
					t.Error("a directory was doubted before")
				}
				s.b.Start()
				s.awaitVotes(3)
				if !s.ring.Logged(saysOlder) || !s.ring.Logged(saysAnew) {
					t.Error("the copy was not found out")
				}
				s.store()
				s.complete()
			})
		})
	}
}

// F21: a copy must not help to elect a leader that lacks what the node had acknowledged, nor give its own state up while nobody
// else leads. It waits, says why, and starts over when the others are back.
func TestF21CopyDoesNotVote(t *testing.T) {
	threeSites(t, func(t *testing.T, s *stored) {
		s.store()
		old := s.b.Disk.Copy()
		s.c.Kill()
		s.store() // at a1 and b1 only
		time.Sleep(20 * time.Second)
		s.a.Kill()
		s.c.Start() // has not the newest entries, but it was not told of b1's
		s.ring.Await("c1 hears of b1", func() bool { return s.b.Node().Ready() == nil })
		s.complete()
		time.Sleep(20 * time.Second) // c1 has them now, and knows that b1 has
		s.c.Stop()
		s.b.Kill()
		s.b.Disk.Restore(old)
		s.c.Start()
		err := s.b.TryStart()
		if !errors.Is(err, node.ErrRolledBack) || !strings.Contains(err.Error(), "bring it back, or start the other nodes") {
			t.Fatalf("start of a copy while nobody leads: %v", err)
		}
		if s.c.Node().Ready() == nil {
			t.Error("c1 leads with the copy's vote")
		}
		s.a.Start()
		s.awaitVotes(3)
		s.b.Start()
		s.awaitVotes(3)
		s.complete()
	})
}

// F21: a whole ring that is started again at once vouches for itself, also when its catalogs have nothing on disk.
func TestF21WholeRingRestarts(t *testing.T) {
	threeSites(t, func(t *testing.T, s *stored) {
		for range 3 {
			s.store()
			for _, n := range s.ring.Nodes() {
				n.PowerCut(0)
			}
			for _, n := range s.ring.Nodes() {
				n.Start()
			}
			s.awaitVotes(3)
			s.complete()
		}
		if s.ring.Logged(saysOlder) || s.ring.Logged(saysAnew) {
			t.Error("a sound directory was doubted")
		}
	})
}

// F35: of two machines with one node's directory exactly one goes on, whichever was there first, and the other says why it ends.
func TestF35ClonedNode(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(s *stored) (clone *Node)
	}{
		{"the clone starts later, with a higher start number", func(s *stored) *Node {
			clone := s.ring.Clone(s.b, "clone")
			clone.Start()
			return clone
		}},
		{"the clone has the start number of the one that runs", func(s *stored) *Node {
			s.b.Stop()
			clone := s.ring.Clone(s.b, "clone")
			s.b.Start()
			s.awaitVotes(3)
			if err := clone.TryStart(); !errors.Is(err, node.ErrSecondProcess) {
				s.t.Errorf("start of the clone: %v, want ErrSecondProcess", err)
			}
			return clone
		}},
		{"both start at once", func(s *stored) *Node {
			s.b.Stop()
			clone := s.ring.Clone(s.b, "clone")
			done := make(chan struct{}, 2)
			for _, n := range []*Node{s.b, clone} {
				go func() { // ends with the start
					if err := n.TryStart(); err != nil {
						s.ring.Logf("%s: %v", n.Name, err)
					}
					done <- struct{}{}
				}()
			}
			<-done
			<-done
			return clone
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			threeSites(t, func(t *testing.T, s *stored) {
				s.store()
				s.complete()
				clone := c.start(s)
				time.Sleep(time.Minute)
				if (s.b.Node() == nil) == (clone.Node() == nil) {
					t.Fatalf("b1 runs: %v, its clone runs: %v", s.b.Node() != nil, clone.Node() != nil)
				}
				for _, n := range []*Node{s.b, clone} {
					if n.Fenced() != nil && !errors.Is(n.Fenced(), node.ErrSecondProcess) {
						t.Errorf("%s ended because of %v", n.Name, n.Fenced())
					}
				}
				if clone.Node() != nil && c.name == "both start at once" { // nobody can call it: the ring knows another address
					clone.Stop()
					s.b.Start()
				}
				s.awaitVotes(3)
				s.store()
				s.complete()
			})
		})
	}
}

// F34: a machine that has a node's name and keys and an empty disk otherwise gives no vote; it comes in as a new incarnation.
func TestF34EmptyDisk(t *testing.T) {
	threeSites(t, func(t *testing.T, s *stored) {
		s.store()
		s.complete()
		s.b.Stop()
		fs := s.b.Disk.Mount()
		for _, part := range []string{"raft", "catalog", "local", "journal", "shards"} {
			if err := fs.RemoveAll("/osteon/" + part); err != nil {
				t.Fatal(err)
			}
		}
		s.a.Stop()
		s.b.Start()
		time.Sleep(time.Minute)
		for _, n := range []*Node{s.b, s.c} {
			if n.Node().Ready() == nil {
				t.Errorf("%s is ready with the vote of an empty disk", n.Name)
			}
		}
		s.a.Start()
		s.awaitVotes(3)
		if !s.ring.Logged(saysAnew) {
			t.Error("it came back under its old name")
		}
		s.store()
		s.complete()
	})
}
