package nodetest

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"osteon/erasure/place"
	"osteon/node"
	"osteon/raft/ring"
)

var (
	seedsFlag = flag.Int("seeds", 0, "how many seeds TestSim runs")
	seedFlag  = flag.Uint64("seed", 0, "the one seed that TestSim runs; 0: from -first on")
	// Seeds with failing fsyncs still find what is to be mended: 49 now and then leaves a shard that nobody lists.
	withoutFlag = flag.String("without", "", "a fault that is left out")
	firstFlag   = flag.Uint64("first", 1, "the first of several seeds")
	logFlag     = flag.String("simlog", "../../build/sim", "where the history and the log of a failed seed are written")
)

// seedTimeMax is how long one seed may take of real time: a bubble whose clock stands still never ends by itself.
const seedTimeMax = 3 * time.Minute

// coverage counts in how many seeds a state was reached.
type coverage struct {
	mu sync.Mutex

	seeds int
	in    map[string]map[uint64]int
}

func (c *coverage) of(seed uint64) func(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seeds++
	return func(state string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.in[state] == nil {
			c.in[state] = map[uint64]int{}
		}
		c.in[state][seed]++
	}
}

// TestSim runs rings under everything that is to be survived, each seed in virtual time, and holds them to the promises
// afterwards. `make sim SEEDS=n`, or SEED=x for one.
func TestSim(t *testing.T) {
	cover := &coverage{in: map[string]map[uint64]int{}}
	t.Run("seeds", func(t *testing.T) {
		if *seedFlag > 0 {
			t.Run(fmt.Sprint(*seedFlag), func(t *testing.T) { simulate(t, *seedFlag, cover) })
			return
		}
		for seed := *firstFlag; seed < *firstFlag+uint64(*seedsFlag); seed++ {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				simulate(t, seed, cover)
			})
		}
	})
	cover.report(t)
}

func (c *coverage) report(t *testing.T) {
	for _, state := range slices.Sorted(maps.Keys(c.in)) {
		times := 0
		for _, n := range c.in[state] {
			times += n
		}
		t.Logf("%5d of %d seeds: %s (%d times)", len(c.in[state]), c.seeds, state, times)
	}
	for state, every := range mustReach {
		if c.seeds >= 6*every && len(c.in[state]) == 0 {
			t.Errorf("no seed of %d reached %q, one in %d should", c.seeds, state, every)
		}
	}
}

// mustReach are states that one seed in so many reaches at least.
var mustReach = map[string]int{
	"disk lost":                                12,
	"duplicate stored at two nodes at once":    2,
	"fsync failed":                             8,
	"joined under faults":                      10,
	"journal fenced":                           12,
	"journal segment removed":                  3,
	"leader lost with proposals outstanding":   10,
	"node believed dead":                       2,
	"offer failed":                             8,
	"partner switched":                         2,
	"read degraded":                            60,
	"seal failed":                              8,
	"seal in a weaker geometry":                2,
	"seal without a node":                      3,
	"sealer went away":                         12,
	"snapshot installed":                       8,
	"snapshot taken":                           3,
	"spooled ack":                              8,
	"two versions stored at two nodes at once": 3,
}

func simulate(t *testing.T, seed uint64, cover *coverage) {
	alarm := time.AfterFunc(seedTimeMax, func() {
		buf := make([]byte, 16<<20)
		fmt.Fprintf(os.Stderr, "seed %d does not end\n%s\n", seed, buf[:runtime.Stack(buf, true)])
		os.Exit(1)
	})
	defer alarm.Stop()
	synctest.Test(t, func(t *testing.T) {
		newSimulation(t, drawOptions(seed), cover.of(seed)).run()
	})
}

// simulation is one seed.
type simulation struct {
	t     *testing.T
	opt   options
	ring  *Ring
	load  *Workload
	regs  *registers
	chaos *chaos
}

func newSimulation(t *testing.T, opt options, sometimes func(string)) *simulation {
	s := &simulation{t: t, opt: opt}
	s.ring = New(t, Config{
		Seed: opt.seed, Sometimes: sometimes, LogLevel: slog.LevelInfo,
		Configure: func(_ string, cfg *node.Config) {
			cfg.Seal.Quiet, cfg.Seal.Old = node.Duration(opt.quiet), node.Duration(10*opt.quiet)
			cfg.Journal.SegmentBytes, cfg.Journal.HotBytes = opt.segment, opt.hot
			cfg.Ack.Degraded = opt.degraded
			cfg.Survive = opt.survive
			if opt.catalogued {
				cfg.Ack.Policy = "catalogued"
			}
		},
		Raft: func(cfg *ring.Config) {
			cfg.SnapshotEntries, cfg.TrailingEntries = opt.snapshot, opt.snapshot/2
			cfg.CommitWait, cfg.Heartbeat = opt.commitWait, opt.heartbeat
			cfg.SnapshotCheck = 2 * time.Second
		},
	})
	s.load = NewWorkload(s.ring, opt.seed, true)
	s.regs = &registers{load: s.load}
	s.chaos = newChaos(s.ring, opt)
	return s
}

func (s *simulation) run() {
	defer s.ring.Close()
	defer s.explain()
	s.ring.Logf("options %s", s.opt)
	s.build()
	ctx, cancel := context.WithTimeout(context.Background(), s.opt.phase)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { s.load.Run(ctx, s.opt.senders, s.opt.pause) })
	all.Go(func() { s.regs.run(ctx) })
	all.Go(func() { s.chaos.run(ctx) })
	all.Wait()
	s.ring.Logf("healing")
	for _, err := range s.chaos.heal() {
		s.t.Error(err)
	}
	if err := s.load.Settle(false); err != nil {
		s.t.Error(err)
		return
	}
	if err := s.regs.check(); err != nil {
		s.t.Error(err)
	}
	s.load.Check(false)
	if err := s.load.Settle(true); err != nil {
		s.t.Error(err)
		return
	}
	s.load.Check(true)
	s.load.CheckLive()
}

// build founds the ring and adds the other nodes.
func (s *simulation) build() {
	s.ring.Net.Lines(s.opt.lan, s.opt.wan)
	for i := range s.opt.perSite {
		for j := range s.opt.sites {
			name, site := fmt.Sprintf("%c%d", 'a'+j, i+1), place.SiteID(fmt.Sprintf("%c", 'a'+j))
			if i == 0 && j == 0 {
				s.ring.Found(name, site)
				continue
			}
			s.ring.Join(name, site)
		}
	}
	s.ring.AwaitReady()
}

// explain reports what is wrong, and where the whole story is.
func (s *simulation) explain() {
	faults := s.load.Faults()
	for i, err := range faults {
		if i == 20 {
			s.t.Errorf("and %d more", len(faults)-i)
			break
		}
		s.t.Error(err)
	}
	acked, sent := s.load.Acked()
	summary := fmt.Sprintf("%s: %d of %d versions acknowledged in %.0f s", s.opt, acked, sent, s.load.history.now().Seconds())
	if !s.t.Failed() {
		if *seedFlag > 0 {
			s.t.Log(summary)
		}
		return
	}
	s.t.Log(summary)
	path := filepath.Join(*logFlag, fmt.Sprintf("seed-%d.txt", s.opt.seed))
	if err := s.write(path); err != nil {
		s.t.Log(err)
		return
	}
	s.t.Logf("history and log: %s; again: make sim SEED=%d", path, s.opt.seed)
}

func (s *simulation) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(f, "%s\n\n", s.opt)
	for _, err := range s.load.Faults() {
		fmt.Fprintf(f, "%v\n", err)
	}
	fmt.Fprintln(f, strings.Repeat("-", 80))
	if err := s.load.history.write(f); err != nil {
		return err
	}
	fmt.Fprintln(f, strings.Repeat("-", 80))
	return s.ring.WriteLog(f)
}
