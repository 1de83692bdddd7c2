package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"osteon/node"
)

// crashScenario is one kind of work that a crash may interrupt.
type crashScenario struct {
	name   string
	nodes  int    // of the ring that it begins with
	victim int    // whose disk is counted
	within string // only points at paths that hold this
	// before makes ready what is not counted; nil: all nodes run and are ready.
	before func(context.Context, *crashWorld) error
	// act is the work.
	act func(context.Context, *crashWorld) error
	// revive brings the dead back; nil: each is started.
	revive func(context.Context, *crashWorld) error
}

func crashScenarios() []crashScenario {
	return []crashScenario{
		{name: "init", act: func(ctx context.Context, w *crashWorld) error { return w.found(ctx) }, revive: reviveFounder},
		{name: "join", nodes: 2, victim: 2, before: beforeJoin, act: actJoin, revive: reviveJoiner},
		{name: "F03 F04 F12 ingest at the receiver", nodes: 3, act: actIngest},
		{name: "F03 F04 F12 ingest at the partner", nodes: 3, victim: 1, act: actIngest},
		{name: "ingest alone", nodes: 1, act: actIngest},
		{name: "catalog apply", nodes: 3, victim: 1, within: "/catalog", act: actApply},
		{name: "raft log", nodes: 3, victim: 2, within: "/raft", act: actCommands},
		{name: "F10 snapshot at the leader", nodes: 3, act: actSnapshot},
		{name: "F10 snapshot at a follower", nodes: 3, victim: 1, act: actSnapshot},
		{name: "snapshot install", nodes: 3, victim: 2, before: beforeInstall, act: actReturn},
		{name: "seal at the sealer", nodes: 3, before: beforeSeal, act: actSeal},
		{name: "seal at a shard holder", nodes: 3, victim: 1, before: beforeSeal, act: actSeal},
		{name: "release and evict", nodes: 3, within: "/journal", before: beforeSeal, act: actRelease},
		{name: "certificate renewal", nodes: 3, victim: 1, act: actRenew},
		{name: "restart", nodes: 3, victim: 2, before: beforeRestart, act: actReturn},
		{name: "replay after a power cut", nodes: 3, victim: 2, before: beforeReplay, act: actReturn},
		{name: "starting over", nodes: 3, victim: 2, before: beforeStartOver, act: actReturn},
	}
}

// found makes the first node's ring.
func (w *crashWorld) found(ctx context.Context) error {
	n := w.nodes[0]
	_, err := node.Init(ctx, n.Config(), n.Env(), node.InitRequest{RingName: "r", NodeName: n.Name, Site: n.Site})
	return err
}

// allRun starts every node and waits until all are ready.
func allRun(_ context.Context, w *crashWorld) error {
	for _, n := range w.nodes {
		if err := n.TryStart(); err != nil {
			return err
		}
	}
	return w.allReady()
}

// reviveFounder wants a directory that is whole, or one that init takes again and that says so.
func reviveFounder(ctx context.Context, w *crashWorld) error {
	n := w.nodes[0]
	openErr := n.TryStart()
	if openErr != nil && !strings.Contains(openErr.Error(), "osteon init") {
		return fmt.Errorf("open after the crash does not say what to do: %w", openErr)
	}
	initErr := w.found(ctx)
	switch {
	case openErr == nil && !errors.Is(initErr, node.ErrNodeExists):
		return fmt.Errorf("init over a whole node: %v", initErr)
	case openErr != nil && initErr != nil:
		return fmt.Errorf("neither open (%v) nor init again works: %w", openErr, initErr)
	case openErr != nil:
		return n.TryStart()
	}
	return nil
}

func beforeJoin(ctx context.Context, w *crashWorld) (err error) {
	joiner := w.nodes[2]
	w.nodes = w.nodes[:2]
	err = allRun(ctx, w)
	w.nodes = append(w.nodes, joiner)
	if err != nil {
		return err
	}
	return w.newToken(ctx)
}

func actJoin(ctx context.Context, w *crashWorld) error {
	if err := w.join(ctx, w.nodes[2].Name); err != nil {
		return err
	}
	if err := w.nodes[2].TryStart(); err != nil {
		return err
	}
	return w.allReady()
}

func (w *crashWorld) newToken(ctx context.Context) error {
	return w.do(w.nodes[0], func(n *node.Node) (err error) {
		w.token, err = n.CreateToken(ctx, "", time.Hour)
		return err
	})
}

func (w *crashWorld) join(ctx context.Context, name string) error {
	n := w.nodes[2]
	_, err := node.Join(ctx, n.Config(), n.Env(), node.JoinRequest{Token: w.token, NodeName: name, Site: n.Site})
	return err
}

// reviveJoiner wants a directory that is whole, or one in which join works again: with the same token, or
// with a new one, as the error says.
func reviveJoiner(ctx context.Context, w *crashWorld) error {
	for _, n := range w.nodes[:2] {
		if err := n.TryStart(); err != nil {
			return err
		}
	}
	if err := w.allReady(); err != nil {
		return err
	}
	n := w.nodes[2]
	openErr := n.TryStart()
	if openErr == nil {
		return nil
	}
	if !strings.Contains(openErr.Error(), "osteon join") {
		return fmt.Errorf("open after the crash does not say what to do: %w", openErr)
	}
	joinErr := w.join(ctx, n.Name)
	if joinErr != nil && strings.Contains(joinErr.Error(), "osteon token create") {
		if err := w.newToken(ctx); err != nil {
			return err
		}
		joinErr = w.join(ctx, n.Name)
	}
	if joinErr != nil {
		return fmt.Errorf("neither open (%v) nor join again works: %w", openErr, joinErr)
	}
	return n.TryStart()
}

// actIngest stores objects of less than a frame, of one, and of several segments, two at a time.
func actIngest(ctx context.Context, w *crashWorld) error {
	done := make(chan error, 1)
	go func() { // waited for below
		done <- storeMany(ctx, w, 1, 300, 90_000, 4000)
	}()
	err := storeMany(ctx, w, 2, 20_000, 600_000, 100)
	err = errors.Join(err, <-done)
	if err == nil {
		err = w.await("offers applied", w.settled)
	}
	return err
}

// storeMany stores objects of the given sizes at the first node.
func storeMany(ctx context.Context, w *crashWorld, study int, sizes ...int) error {
	for i, size := range sizes {
		if err := w.store(ctx, w.nodes[0], study, 10*study+i, size); err != nil {
			return err
		}
	}
	return nil
}

// actCommands makes the ring agree on many small things.
func actCommands(ctx context.Context, w *crashWorld) error {
	for i := range 12 {
		if err := w.store(ctx, w.nodes[0], 3+i%3, 100+i, 500); err != nil {
			return err
		}
		if i%4 == 0 {
			if err := w.newToken(ctx); err != nil {
				return err
			}
		}
	}
	return w.await("offers applied", w.settled)
}

// actApply fills the last catalog's tables, and has them written.
func actApply(ctx context.Context, w *crashWorld) error {
	for i := range 3 {
		if err := actCommands(ctx, w); err != nil {
			return err
		}
		if err := storeMany(ctx, w, 20+i, 100, 200, 300, 400); err != nil {
			return err
		}
		if err := w.do(w.nodes[1], func(n *node.Node) error { return n.Ring().Snapshot(ctx) }); err != nil {
			return err
		}
	}
	return w.await("offers applied", w.settled)
}

func actSnapshot(ctx context.Context, w *crashWorld) error {
	for round := range 2 {
		for i := range 6 {
			if err := w.store(ctx, w.nodes[0], 4, 200+10*round+i, 700); err != nil {
				return err
			}
		}
		if err := w.await("offers applied", w.settled); err != nil {
			return err
		}
		for _, n := range w.nodes {
			if err := w.do(n, func(n *node.Node) error { return n.Ring().Snapshot(ctx) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// beforeInstall leaves the last node behind a log that was cut.
func beforeInstall(ctx context.Context, w *crashWorld) error {
	if err := beforeRestart(ctx, w); err != nil {
		return err
	}
	for i := range 12 {
		if err := w.store(ctx, w.nodes[0], 5, 300+i, 400); err != nil {
			return err
		}
	}
	if err := w.await("offers applied", w.settled); err != nil {
		return err
	}
	for _, n := range w.nodes[:2] {
		if err := w.do(n, func(n *node.Node) error { return n.Ring().Snapshot(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// actReturn starts the last node again, and stores something once it has caught up.
func actReturn(ctx context.Context, w *crashWorld) error {
	n := w.nodes[len(w.nodes)-1]
	if err := n.TryStart(); err != nil {
		return err
	}
	if err := w.allReady(); err != nil {
		return err
	}
	if err := w.store(ctx, n, 6, 400, 5000); err != nil {
		return err
	}
	return w.await("offers applied", w.settled)
}

func beforeSeal(ctx context.Context, w *crashWorld) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	if err := storeMany(ctx, w, 7, 40_000, 300, 70_000, 30_000, 50_000); err != nil {
		return err
	}
	return w.await("offers applied", w.settled)
}

func actSeal(ctx context.Context, w *crashWorld) error {
	return w.do(w.nodes[0], func(n *node.Node) error { return n.Archive().SealNow(ctx, "2.25.7") })
}

// actRelease seals and waits until the journals have given up what was sealed.
func actRelease(ctx context.Context, w *crashWorld) error {
	if err := actSeal(ctx, w); err != nil {
		return err
	}
	if err := w.store(ctx, w.nodes[0], 8, 500, 2000); err != nil {
		return err
	}
	return w.await("released journal", func() error {
		return w.do(w.nodes[0], func(n *node.Node) error {
			if s := n.Archive().Store().Journal().Stats(); s.Objects-s.Released > 1 || s.HotBytes > 128<<10 {
				return fmt.Errorf("%d objects of %d released, %d bytes not evicted", s.Released, s.Objects, s.HotBytes)
			}
			return nil
		})
	})
}

func actRenew(ctx context.Context, w *crashWorld) error {
	if err := w.do(w.nodes[1], func(n *node.Node) error { return n.Renew(ctx) }); err != nil {
		return err
	}
	return w.await("offers applied", w.settled)
}

// beforeRestart stops the last node in good order after some work.
func beforeRestart(ctx context.Context, w *crashWorld) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	if err := storeMany(ctx, w, 1, 300, 90_000, 4000); err != nil {
		return err
	}
	if err := w.store(ctx, w.nodes[2], 2, 600, 50_000); err != nil {
		return err
	}
	if err := w.await("offers applied", w.settled); err != nil {
		return err
	}
	w.nodes[2].Stop()
	return nil
}

// beforeReplay cuts the last node's power in the middle of stores at it.
func beforeReplay(ctx context.Context, w *crashWorld) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	last := w.nodes[2]
	for i := range 6 {
		if err := w.store(ctx, last, 2, 600+i, 30_000); err != nil {
			return err
		}
	}
	last.PowerCut(0)
	return nil
}

// beforeStartOver loses the last node's Raft log.
func beforeStartOver(ctx context.Context, w *crashWorld) error {
	if err := beforeRestart(ctx, w); err != nil {
		return err
	}
	n := w.nodes[2]
	disk := n.Disk.Mount()
	return disk.RemoveAll(disk.PathJoin(n.Config().Dir, "raft"))
}
