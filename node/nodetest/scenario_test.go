package nodetest

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"osteon/dicomsvc"
	"osteon/erasure/place"
	"osteon/node"
	"osteon/raft/ring"
)

var longFlag = flag.Bool("long", false, "scenarios run as long as the table of faults says")

// scenario is a ring with a workload that is driven by hand.
type scenario struct {
	*testing.T
	ring *Ring
	load *Workload
}

// newScenario builds a ring of that many sites and nodes a site.
func newScenario(t *testing.T, seed uint64, sites, perSite int, configure func(*node.Config)) *scenario {
	opt := drawOptions(seed)
	opt.sites, opt.perSite, opt.degraded, opt.catalogued, opt.survive = sites, perSite, "local", false, ""
	opt.wan.Loss, opt.wan.Reorder, opt.wan.Duplicate = 0, 0, 0
	opt.commitWait, opt.heartbeat = 100*time.Millisecond, 500*time.Millisecond
	s := newSimulation(t, opt, nil)
	if configure != nil {
		before := s.ring.cfg.Configure
		s.ring.cfg.Configure = func(name string, cfg *node.Config) {
			before(name, cfg)
			configure(cfg)
		}
	}
	t.Cleanup(func() { // also after a Fatal; Close of a closed ring does nothing
		s.explain()
		s.ring.Close()
	})
	s.build()
	return &scenario{T: t, ring: s.ring, load: s.load}
}

func (s *scenario) node(name string) *Node { return s.ring.Node(name) }

// store stores a new instance at a node and wants it acknowledged, on one site only or not.
func (s *scenario) store(name string, spooled bool) *object {
	s.Helper()
	o := s.load.fresh()
	n := s.node(name).Node()
	ctx, cancel := context.WithTimeout(s.Context(), callMax)
	defer cancel()
	result, err := putObject(ctx, n, o)
	if err != nil || result.Spooled != spooled {
		s.Errorf("store at %s: spooled %t, %v; want spooled %t", name, result.Spooled, err, spooled)
		return o
	}
	s.load.mu.Lock()
	s.load.acked[o.version] = true
	s.load.mu.Unlock()
	return o
}

// readable reports what a read of an object at a node gives.
func (s *scenario) readable(name string, o *object) string {
	ctx, cancel := context.WithTimeout(s.Context(), callMax)
	defer cancel()
	n := s.node(name).Node()
	for in, err := range n.Archive().Instances(ctx, storePrincipal, dicomsvc.Selection{SOPInstanceUIDs: []string{o.uid}}) {
		if err != nil {
			return err.Error()
		}
		return s.load.read(ctx, n, in, name)
	}
	return "not found"
}

func (s *scenario) wantReadable(name string, o *object) {
	s.Helper()
	if got, want := s.readable(name, o), "read "+o.version.String(); got != want {
		s.Errorf("%s at %s: %s, want %s", o, name, got, want)
	}
}

// finish heals the ring, waits until it is quiet, and holds it to every promise.
func (s *scenario) finish() {
	s.Helper()
	s.ring.Net.Heal()
	for _, n := range s.ring.Nodes() {
		n.Disk.Watch(nil)
		n.Clock.Set(0)
		n.Start()
	}
	for _, sealed := range []bool{false, true} {
		if err := s.load.Settle(sealed); err != nil {
			s.Error(err)
			break
		}
		s.load.Check(sealed)
	}
	for _, at := range s.load.running() {
		for _, study := range s.studies() {
			if study, err := at.Node().Catalog().Study(s.Context(), study); err == nil && study.Spooled > 0 {
				s.Errorf("%s lists %d spooled versions after the ring healed", at.Name, study.Spooled)
			}
		}
	}
	s.ring.Close()
}

func (s *scenario) studies() (out []string) {
	for i := range studiesMax {
		out = append(out, fmt.Sprintf("2.25.%d", 1000+i))
	}
	return out
}

// The leader is killed between proposing and applying: while its log is synced with instances or seals outstanding. Either
// holder offers again, everything is applied once, and no sender notices.
func TestF07LeaderKilledBetweenProposeAndApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 7, 3, 1, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(2 * time.Second) })
		hit := 0
		for round := range 50 {
			s.ring.AwaitReady()
			leader := s.ring.Leader()
			if leader == nil {
				s.ring.Await("a leader", func() bool { leader = s.ring.Leader(); return leader != nil })
			}
			var killed atomic.Bool
			left := atomic.Int64{}
			left.Store(int64(round % 5))
			leader.Disk.Watch(func(op Op, name string) error {
				if op == OpSync && isRaftLog(name) && waiting(s.ring) && left.Add(-1) < 0 && killed.CompareAndSwap(false, true) {
					leader.Kill()
				}
				return nil
			})
			var senders sync.WaitGroup
			for _, n := range s.ring.Nodes() {
				if n != leader {
					senders.Go(func() {
						for range 3 {
							s.store(n.Name, false)
						}
					})
				}
			}
			senders.Wait()
			time.Sleep(time.Second)
			leader.Disk.Watch(nil)
			if killed.Load() {
				hit++
			} else {
				leader.Kill()
			}
			leader.Start()
		}
		if hit < 40 {
			t.Errorf("the leader was killed at the wanted moment %d times of 50", hit)
		}
		s.finish()
	})
}

// isRaftLog reports whether a file belongs to Raft's log.
func isRaftLog(name string) bool { return strings.Contains(name, "/raft/") }

// waiting reports whether a node holds instances that its catalog does not know.
func waiting(r *Ring) bool {
	for _, n := range r.Nodes() {
		if running := n.Node(); running != nil && running.Archive().Waiting() > 0 {
			return true
		}
	}
	return false
}

// A site is cut off: the majority does not notice, the minority stores and reads what it has, marked as spooled; what
// was spooled reaches a second site when the cut ends.
func TestF24MinoritySiteCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 24, 3, 2, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(time.Hour) })
		before := s.store("c1", false)
		s.ring.Await("the instance is known", func() bool { return !waiting(s.ring) })
		s.ring.Net.Isolate("c")
		time.Sleep(10 * time.Second) // everybody knows
		for range 5 {
			o := s.store("a1", false)
			s.wantReadable("a1", o)
			s.wantReadable("b1", s.store("b1", false))
			island := s.store("c1", true)
			s.wantReadable("c1", island)
			s.store("c2", true)
		}
		s.wantReadable("c1", before)
		s.finish()
	})
}

// Three sites that do not hear each other: nothing is committed anywhere, each stores and reads what it has, and nothing
// diverges.
func TestF25ThreeWaySplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 25, 3, 2, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(time.Hour) })
		s.store("a1", false)
		s.ring.Await("the instance is known", func() bool { return !waiting(s.ring) })
		for _, site := range []string{"a", "b", "c"} {
			s.ring.Net.Isolate(site)
		}
		time.Sleep(10 * time.Second)
		applied := map[string]uint64{}
		for _, n := range s.ring.Nodes() {
			applied[n.Name] = n.Node().Catalog().Applied()
		}
		for range 3 {
			for _, n := range s.ring.Nodes() {
				s.wantReadable(n.Name, s.store(n.Name, true))
			}
			time.Sleep(10 * time.Second)
		}
		for _, n := range s.ring.Nodes() {
			if now := n.Node().Catalog().Applied(); now != applied[n.Name] {
				t.Errorf("%s applied %d to %d without a quorum", n.Name, applied[n.Name], now)
			}
		}
		s.finish()
	})
}

// A site's lines are down for long (24 h with -long): stores and reads there go on, and its spool drains without
// duplicates when they are up again.
func TestF29LongCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := 20 * time.Minute
		if *longFlag {
			long = 24 * time.Hour
		}
		s := newScenario(t, 29, 3, 2, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(time.Minute) })
		s.ring.Net.Isolate("c")
		time.Sleep(10 * time.Second)
		var island []*object
		for range 40 {
			o := s.store("c1", true)
			island = append(island, o)
			s.store("a1", false)
			if result, err := putObject(t.Context(), s.node("c2").Node(), o); err != nil || !result.Spooled {
				t.Errorf("store again at c2: %+v, %v", result, err)
			}
			time.Sleep(long / 40)
		}
		for _, o := range island {
			s.wantReadable("c1", o)
			s.wantReadable("c2", o)
		}
		s.finish()
	})
}

// Membership changes while leaders are lost: there is never more than one leader a term, and in the end one
// configuration everywhere.
func TestF32LeaderLostWhileMembersChange(t *testing.T) {
	seeds := uint64(25)
	if *longFlag {
		seeds = 1000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { changeMembers(t, seed) })
		})
	}
}

func changeMembers(t *testing.T, seed uint64) {
	s := newScenario(t, 3200+seed, 3, 1, nil)
	watch := watchLeaders(s.ring)
	s.store("a1", false)
	var losses sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	rng := s.ring.random()
	losses.Go(func() {
		for lost := 1; pause(ctx, time.Duration(rng.Int64N(int64(3*time.Second)))); lost++ {
			if lost%4 == 0 && !pause(ctx, 15*time.Second) { // else no join, which is many writes, would ever end
				return
			}
			leader := s.ring.Leader()
			if leader == nil {
				continue
			}
			gone := make(chan struct{})
			var once sync.Once
			left := atomic.Int64{}
			left.Store(rng.Int64N(4))
			leader.Disk.Watch(func(op Op, name string) error { // while it writes its log
				if op == OpSync && isRaftLog(name) && left.Add(-1) < 0 {
					once.Do(func() { leader.Kill(); close(gone) })
				}
				return nil
			})
			select {
			case <-gone:
			case <-ctx.Done():
			case <-time.After(3 * time.Second):
			}
			leader.Disk.Watch(nil)
			pause(ctx, time.Duration(rng.Int64N(int64(2*time.Second))))
			if leader.Node() == nil {
				leader.Start()
			}
		}
	})
	for _, name := range []string{"d1", "e1"} {
		s.ring.Join(name, place.SiteID(name[:1]))
	}
	s.ring.Await("five voters", func() bool { return len(votersOf(s.ring)) == 5 })
	cancel()
	losses.Wait()
	for _, err := range watch() {
		t.Error(err)
	}
	s.finish()
}

// votersOf returns the voters that a running leader lists.
func votersOf(r *Ring) (voters []ring.Server) {
	leader := r.Leader()
	if leader == nil || leader.Node() == nil {
		return nil
	}
	for _, m := range leader.Node().Ring().Servers() {
		if m.Voter {
			voters = append(voters, m)
		}
	}
	return voters
}

// watchLeaders looks who leads which term until the function it returns is called, which tells of terms with two.
func watchLeaders(r *Ring) func() []error {
	ctx, cancel := context.WithCancel(r.t.Context())
	leaders := map[uint64]string{}
	var errs []error
	var wait sync.WaitGroup
	wait.Go(func() {
		for pause(ctx, 20*time.Millisecond) {
			for _, n := range r.Nodes() {
				running, generation := n.Current()
				if running == nil {
					continue
				}
				before := running.Ring().Term()
				leads := running.Ring().IsLeader()
				if _, now := n.Current(); !leads || before != running.Ring().Term() || now != generation {
					continue
				}
				if other, known := leaders[before]; known && other != n.Name {
					errs = append(errs, fmt.Errorf("term %d is led by %s and by %s", before, other, n.Name))
				}
				leaders[before] = n.Name
			}
		}
	})
	return func() []error {
		cancel()
		wait.Wait()
		return errs
	}
}

// Clocks that are wrong by ten minutes, stand still and jump change nothing: stores, seals, joins, elections and reads
// go on, and nothing is lost.
func TestF39WrongClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 39, 3, 1, func(cfg *node.Config) { cfg.Seal.Quiet = node.Duration(3 * time.Second) })
		s.node("a1").Clock.Set(10 * time.Minute)
		s.node("b1").Clock.Set(-10 * time.Minute)
		s.node("c1").Clock.Freeze()
		for round := range 6 {
			for _, n := range s.ring.Nodes() {
				o := s.store(n.Name, false)
				s.wantReadable(n.Name, o)
			}
			leader := s.ring.Leader()
			leader.Kill()
			time.Sleep(2 * time.Second)
			leader.Clock.Set(time.Duration(round%3-1) * 10 * time.Minute)
			leader.Start()
			s.ring.AwaitReady()
			time.Sleep(5 * time.Second)
			s.ring.Await("a leader", func() bool { return s.ring.Leader() != nil })
		}
		s.ring.Join("d1", "d").Clock.Set(-10 * time.Minute)
		s.ring.AwaitReady()
		s.store("d1", false)
		s.finish()
	})
}
