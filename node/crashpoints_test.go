package node_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"osteon/node"
	"osteon/node/nodetest"
)

var (
	crashStates = flag.Int("crash.states", 2, "states of each scenario to restart from; 0: none but the count")
	crashOnly   = flag.String("crash.scenario", "", "only this scenario")
	crashPoint  = flag.Int("crash.point", 0, "only this point of it")
	crashLoss   = flag.String("crash.loss", "all", "with -crash.point: which of what was not synced is lost: all, some, none")
	crashPower  = flag.Bool("crash.power", false, "with -crash.point: every node dies")
	crashLog    = flag.String("crash.log", "", "write what the nodes logged before a failure to this file")
	crashSeed   = flag.Uint64("crash.seed", 1, "picks points, and what of the unsynced is left")
)

// state is one world to die: a scenario, the point of its victim's disk, and what the disks keep.
type crashState struct {
	point int
	loss  loss
	power bool
	seed  uint64
}

// TestCrashPoints kills a node, or all at once, at points of its disk's changes in every kind of work, and
// wants a ring that recovers: F03, F04 and F12 (lost and torn writes), F05 (partner), F08 (what was not answered is sent again), F10
// (snapshot, its install, shortening of the log). With -crash.states it tries more of them: make crashpoints tries them all.
func TestCrashPoints(t *testing.T) {
	total := 0
	for _, s := range crashScenarios() {
		if *crashOnly != "" && s.name != *crashOnly {
			continue
		}
		t.Run(s.name, func(t *testing.T) { total += crashScenarioStates(t, s) })
	}
	if !t.Failed() {
		t.Logf("%d states, all recover", total)
	}
}

func crashScenarioStates(t *testing.T, s crashScenario) (tried int) {
	began := time.Now()
	base := crashBase(t, s.nodes)
	if s.nodes > 0 && s.nodes <= s.victim { // the node that joins has an empty disk
		base = append(base, nodetest.NewDisk())
	}
	points := 0
	if *crashPoint == 0 {
		points, _ = crashRun(t, s, base, crashState{seed: *crashSeed})
	}
	for _, state := range pickStates(points) {
		if _, struck := crashRun(t, s, base, state); struck {
			tried++
		}
		if t.Failed() {
			return tried
		}
	}
	t.Logf("%d points, %d states, all recover (%.1f s)", points, tried, time.Since(began).Seconds())
	return tried
}

// pickStates picks the states to try of a scenario with that many points.
func pickStates(points int) (states []crashState) {
	if *crashPoint > 0 {
		return []crashState{{*crashPoint, loss(*crashLoss), *crashPower, *crashSeed}}
	}
	losses := []loss{lossUnsynced, lossSome, lossNone}
	n := min(*crashStates, len(losses)*points)
	for i := range n {
		// An even walk over the points, each step with another loss; every other state a crash of all.
		states = append(states, crashState{
			point: 1 + i*points/n, loss: losses[i%3], power: i%2 == 1, seed: *crashSeed + uint64(i),
		})
	}
	return states
}

// crashRun lets the scenario run until the state's point, restarts what died and checks the ring. At point 0 the
// work is done in peace, and the number of points is returned.
func crashRun(t *testing.T, s crashScenario, base []*nodetest.Disk, state crashState) (points int, struck bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour) // later than anything that made the base
		w := newCrashWorld(t, state.seed, base)
		w.loss, w.power = state.loss, state.power
		var err error
		points, struck, err = w.live(context.Background(), s, state.point)
		if err != nil {
			t.Errorf("point %d (%s), loss of what was not synced: %s, everybody: %t: %v\nagain: go test -count=1 -run TestCrashPoints ./node -args -crash.scenario=%q -crash.point=%d -crash.loss=%s -crash.power=%t -crash.seed=%d",
				state.point, w.op, state.loss, state.power, err, s.name, state.point, state.loss, state.power, state.seed)
		}
		w.ring.Close()
		if err != nil && *crashLog != "" {
			var lines bytes.Buffer
			if err := errors.Join(w.ring.WriteLog(&lines), os.WriteFile(*crashLog, lines.Bytes(), 0o600)); err != nil {
				t.Error(err)
			}
		}
	})
	return points, struck
}

// live is the world's life: work, death, recovery, judgement.
func (w *crashWorld) live(ctx context.Context, s crashScenario, at int) (points int, struck bool, err error) {
	before, revive := s.before, s.revive
	if before == nil {
		before = allRun
	}
	if s.nodes == 0 {
		before = func(context.Context, *crashWorld) error { return nil }
	}
	if revive == nil {
		revive = reviveAll
	}
	if err := before(ctx, w); err != nil {
		return 0, false, fmt.Errorf("before: %w", err)
	}
	victim := w.nodes[s.victim]
	w.count(victim, s.within, at)
	work, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	w.working.Store(true)
	go func() { done <- s.act(work, w) }() // ends with work; waited for below
	select {
	case err = <-done:
	case <-w.struck:
		cancel()
		<-done // of a dead node's work nobody hears
	}
	cancel()
	w.working.Store(false)
	points = w.counted(victim)
	if !w.isStruck() {
		if err != nil {
			return points, false, fmt.Errorf("nobody died, yet: %w", err)
		}
		return points, false, w.recoverAndCheck(ctx, reviveAll)
	}
	if w.rng.IntN(2) == 0 {
		time.Sleep(time.Duration(w.rng.IntN(15_000)) * time.Millisecond)
	}
	return points, true, w.recoverAndCheck(ctx, revive)
}

func (w *crashWorld) recoverAndCheck(ctx context.Context, revive func(context.Context, *crashWorld) error) error {
	if err := revive(ctx, w); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	return w.check(ctx)
}

// reviveAll starts what does not run.
func reviveAll(_ context.Context, w *crashWorld) error {
	for _, n := range w.nodes {
		if err := n.TryStart(); err != nil {
			return fmt.Errorf("%s does not open: %w", n.Name, err)
		}
	}
	return nil
}

var (
	crashBases   = map[int][]*nodetest.Disk{}
	crashBasesMu sync.Mutex
)

// crashBase returns the disks of a ring of that many nodes, each at a site of its own, that was founded and
// stopped in good order; of none: an empty disk.
func crashBase(t *testing.T, nodes int) (disks []*nodetest.Disk) {
	t.Helper()
	crashBasesMu.Lock()
	defer crashBasesMu.Unlock()
	if crashBases[nodes] == nil {
		for range max(1, nodes) {
			disks = append(disks, nodetest.NewDisk())
		}
		if nodes > 0 {
			disks = buildCrashBase(t, disks)
		}
		crashBases[nodes] = disks
	}
	return slices.Clone(crashBases[nodes])
}

func buildCrashBase(t *testing.T, empty []*nodetest.Disk) (disks []*nodetest.Disk) {
	synctest.Test(t, func(t *testing.T) {
		w := newCrashWorld(t, 1<<40, empty) // identifiers of its own
		err := w.build(context.Background())
		w.ring.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes {
			disks = append(disks, n.Disk.Copy())
		}
	})
	return disks
}

// build founds the ring and lets everybody join.
func (w *crashWorld) build(ctx context.Context) error {
	if err := w.found(ctx); err != nil {
		return err
	}
	for i, n := range w.nodes {
		if i > 0 {
			token, err := w.nodes[0].Node().CreateToken(ctx, "", time.Hour)
			if err != nil {
				return err
			}
			if _, err := node.Join(ctx, n.Config(), n.Env(), node.JoinRequest{Token: token, NodeName: n.Name, Site: n.Site}); err != nil {
				return err
			}
		}
		if err := n.TryStart(); err != nil {
			return err
		}
		if err := w.allReady(); err != nil {
			return err
		}
	}
	return w.await("everybody votes", func() error {
		want := (len(w.nodes)+1)/2*2 - 1 // two voters would survive less than one
		if v := votes(w.nodes[0].Node()); v != want {
			return fmt.Errorf("%d of %d", v, want)
		}
		return nil
	})
}

func votes(n *node.Node) (votes int) {
	for _, s := range n.Ring().Servers() {
		if s.Voter {
			votes++
		}
	}
	return votes
}
