package ring

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"

	"osteon/node/link"
)

// Open starts this node's part in the ring from what is in cfg.Dir, or with nothing: then it waits to be added by
// others, or for Bootstrap. fsm must be open; the ring does not close it. It fails with ErrShortLog, ErrDamaged,
// ErrWrongServer, ErrStateMachine or ErrDisk; after the first two the caller wipes and joins again.
// It registers the link's kinds KindRaft, KindForward and KindReadIndex.
func Open(cfg Config, fsm FSM) (*Ring, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := newRing(cfg.withStandards(), fsm)
	errs := make(chan error, 1)
	go func() { // ends with start; what meets damage inside the library ends this goroutine instead of the process
		err := fmt.Errorf("%w: starting was given up", ErrDamaged)
		defer func() {
			if p := recover(); p != nil {
				r.log.Error("library gave up", "stack", string(debug.Stack()))
				err = fmt.Errorf("%w: the library gave up while starting", ErrDamaged)
			}
			errs <- err
		}()
		err = r.start()
	}()
	err := <-errs
	if failure := r.Err(); failure != nil {
		err = failure
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ring: %w", err), r.release(context.Background()))
	}
	return r, nil
}

func newRing(cfg Config, fsm FSM) *Ring {
	r := &Ring{
		cfg: cfg, log: cfg.Log, self: serverID(cfg.Self, cfg.Incarnation), fsm: fsm,
		layer: newStreamLayer(cfg), slots: make(chan struct{}, forwardsMax),
		changed: make(chan struct{}), closed: make(chan struct{}), failed: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.reads.r = r
	return r
}

// start opens the stores, makes them agree, and starts the library.
func (r *Ring) start() (err error) {
	if r.store, err = openLogStore(r.cfg, r.fail); err != nil {
		return err
	}
	dir := r.cfg.FS.PathJoin(r.cfg.Dir, "snapshots")
	if r.snaps, err = openSnapStore(r.cfg.FS, dir, r.cfg.MAC, r.log); err != nil {
		return err
	}
	r.snaps.damaged, r.snaps.durable = r.fail, r.store.snapshotDurable
	if err := r.agree(); err != nil {
		return err
	}
	if r.cfg.Vouch != nil {
		if err := r.cfg.Vouch(r.store.end()); err != nil {
			return err
		}
	}
	return r.startLibrary()
}

// Release lets a server that was opened Gated take part in the ring.
func (r *Ring) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.layer.released() {
		close(r.layer.open)
	}
}

// Released reports whether this server takes part in the ring.
func (r *Ring) Released() bool { return r.layer.released() }

// agree compares mark, log, snapshot and state machine, and makes good what a crash left half done.
func (r *Ring) agree() error {
	newest, marked := r.snaps.newest(), r.store.snapshotIndex()
	var at uint64
	if newest != nil {
		at = newest.meta.index
	}
	if at < marked {
		return fmt.Errorf("%w: newest snapshot is of entry %d, the mark says %d", ErrShortLog, at, marked)
	}
	if err := r.store.snapshotDurable(at); err != nil {
		return err
	}
	if newest != nil {
		if err := r.agreeSnapshot(newest); err != nil {
			return err
		}
	}
	first, last := r.store.bounds()
	if first > at+1 {
		return fmt.Errorf("%w: it begins at entry %d, the snapshot ends at %d", ErrShortLog, first, at)
	}
	if applied := r.fsm.Applied(); applied > max(last, at) {
		return fmt.Errorf("%w: it ends at entry %d, the state machine is at %d", ErrShortLog, max(last, at), applied)
	}
	r.store.resume(at)
	return nil
}

// agreeSnapshot restores the newest snapshot when the state machine is behind it: the node stopped after the snapshot
// arrived and before it was restored.
func (r *Ring) agreeSnapshot(newest *stored) error {
	if r.fsm.Applied() >= newest.meta.index {
		return r.store.snapshotInstalled(newest.meta.index, newest.meta.term)
	}
	r.log.Warn("state machine was behind the newest snapshot: restoring it",
		"applied", r.fsm.Applied(), "snapshot", newest.meta.index)
	if err := r.snaps.verify(newest); err != nil {
		return err
	}
	return r.restore(newest)
}

// startLibrary starts transport, Raft and the goroutines around them.
func (r *Ring) startLibrary() error {
	logger := libraryLog{r.log.With("part", "raft")}
	r.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: r.layer, Stream: r.layer, Logger: logger,
		MaxPool: poolPerPeer, Timeout: r.cfg.RPCTimeout,
	})
	notify := make(chan bool, 8)
	conf := raft.DefaultConfig()
	conf.LocalID = r.self
	conf.HeartbeatTimeout, conf.ElectionTimeout = r.cfg.Heartbeat, r.cfg.Election
	conf.LeaderLeaseTimeout, conf.CommitTimeout = r.cfg.Lease, r.cfg.CommitWait
	conf.MaxAppendEntries = r.cfg.AppendEntries
	conf.BatchApplyCh = true // Propose keeps its own deadline
	conf.ShutdownOnRemove = false
	conf.TrailingLogs = r.cfg.TrailingEntries
	conf.SnapshotThreshold, conf.SnapshotInterval = math.MaxUint64, time.Hour // see keepShort
	conf.NoSnapshotRestoreOnStart = true                                      // see agree
	conf.NoLegacyTelemetry = true
	conf.Logger = logger
	conf.NotifyCh = notify
	rf, err := raft.NewRaft(conf, machine{r}, guard{r.store}, guard{r.store}, r.snaps, witness{r.trans, &r.acked})
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	r.mu.Lock()
	r.raft = rf
	failed := r.failure != nil
	r.mu.Unlock()
	if failed {
		r.stopLibrary()
	}
	events := make(chan raft.Observation, 64)
	rf.RegisterObserver(raft.NewObserver(events, false, ofInterest))
	r.cfg.Link.Handle(link.KindRaft, r.layer.serve)
	r.cfg.Link.Handle(link.KindForward, r.serveForward)
	r.cfg.Link.Handle(link.KindReadIndex, r.serveForward)
	r.wg.Go(func() { r.watch(notify, events) }) // ends with r.ctx
	r.wg.Go(r.keepShort)                        // ends with r.ctx
	return nil
}

// ofInterest picks the library's events that Changes reports.
func ofInterest(o *raft.Observation) bool {
	switch o.Data.(type) {
	case raft.LeaderObservation, raft.PeerObservation, raft.RaftState:
		return true
	}
	return false
}

// watch follows leadership: each time this node becomes leader it opens its term.
func (r *Ring) watch(notify <-chan bool, events <-chan raft.Observation) {
	for {
		select {
		case leads := <-notify:
			r.led(leads)
			r.notifyChange()
		case <-events:
			r.notifyChange()
		case <-r.ctx.Done():
			r.led(false)
			return
		}
	}
}

// opening is the beginning of this node's time as leader. Until its first entry is applied the leader does not know what
// was committed before it.
type opening struct {
	ready chan struct{} // closed when the entry was applied
	lost  chan struct{} // closed when leadership ended
	term  uint64        // set, under Ring.mu, before ready is closed
}

// led notes that leadership began or ended.
func (r *Ring) led(leads bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opening != nil {
		close(r.opening.lost)
		r.opening = nil
	}
	if !leads || r.closing {
		return
	}
	o := &opening{ready: make(chan struct{}), lost: make(chan struct{})}
	r.opening = o
	r.wg.Go(func() { r.openTerm(o) }) // ends when leadership does
}

// openTerm proposes the empty command until it is applied or leadership is lost. Unlike the library's own first entry the
// state machine sees it, so that an index read from now on is one that the state machine reaches.
func (r *Ring) openTerm(o *opening) {
	for {
		ctx, cancel := context.WithCancel(r.ctx)
		stop := make(chan struct{})
		go func() { // ends below; gives up the wait when leadership is lost
			defer close(stop)
			select {
			case <-o.lost:
				cancel()
			case <-ctx.Done():
			}
		}()
		term := r.Term()
		_, err := r.apply(ctx, nil)
		cancel()
		<-stop
		if err == nil && r.Term() == term { // so the entry is of this term
			r.mu.Lock()
			o.term = term
			r.mu.Unlock()
			close(o.ready)
			return
		}
		select {
		case <-o.lost:
			return
		case <-r.failed:
			return
		case <-time.After(retryFirst):
		}
	}
}

// Bootstrap makes this node the first voter of a new ring. Only a node without any state can: ErrBootstrapped.
// It returns when the node leads.
func (r *Ring) Bootstrap() error {
	err := r.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: r.self, Address: raft.ServerAddress(r.self)},
	}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		return ErrBootstrapped
	}
	if err != nil {
		return fmt.Errorf("bootstrap ring: %w", err)
	}
	for {
		changed := r.Changes()
		if r.IsLeader() {
			return nil
		}
		select {
		case <-changed:
		case <-r.failed:
			return fmt.Errorf("bootstrap ring: %w", r.Err())
		case <-r.ctx.Done():
			return ErrClosed
		}
	}
}

// keepShort takes a snapshot whenever the log has grown enough, in entries or in bytes. Nodes do so at
// different lengths, up to a quarter apart, so that they do not all work at once.
func (r *Ring) keepShort() {
	tick := time.NewTicker(r.cfg.SnapshotCheck)
	defer tick.Stop()
	stagger := func(n uint64) uint64 { return n + n/1024*uint64(r.cfg.Self[0]) }
	for {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
		g := r.store.growth()
		if g.entries < stagger(r.cfg.SnapshotEntries) && g.bytes < stagger(r.cfg.SnapshotBytes) {
			continue
		}
		if err := r.Snapshot(r.ctx); err != nil && r.ctx.Err() == nil {
			r.log.Warn("snapshot not taken", "err", err)
		}
	}
}

// Snapshot takes a snapshot now and shortens the log. It happens by itself too; call it before a backup.
// With nothing new since the last one it does nothing.
func (r *Ring) Snapshot(ctx context.Context) error {
	if err := r.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends with the snapshot; r.work waits for it
		defer r.work.Done()
		err := r.trim()
		if err == nil {
			err = r.raft.Snapshot().Error()
		}
		if errors.Is(err, raft.ErrNothingNewToSnapshot) {
			err = nil
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.failed:
		return r.Err()
	}
}

// trim sets how many entries the next snapshot leaves, by the mean size of those since the last.
func (r *Ring) trim() error {
	keep := r.cfg.TrailingEntries
	if g := r.store.growth(); g.entries > 0 && g.bytes/g.entries > 0 {
		keep = min(keep, r.cfg.TrailingBytes/(g.bytes/g.entries))
	}
	c := r.raft.ReloadableConfig()
	c.TrailingLogs = keep
	return r.raft.ReloadConfig(c)
}

// Transfer hands leadership to the voter that is furthest of those that answer, and returns when it was given up. It
// fails with ErrRefused when this node does not lead or no other voter can take over.
//
// The library is not asked to hand over to a voter that does not answer: if this node lost its leadership over that, the
// library would go on waiting, and refuse every proposal as under transfer should this node ever lead again.
func (r *Ring) Transfer(ctx context.Context) error {
	if err := r.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends within the time of a probe and the election timeout; r.work waits for it
		defer r.work.Done()
		id, err := r.successor(ctx)
		if err == nil {
			err = r.raft.LeadershipTransferToServer(id, raft.ServerAddress(id)).Error()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: transfer leadership: %w", ErrRefused, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.failed:
		return r.Err()
	}
}

// successor asks every other voter how far it is and returns the furthest.
func (r *Ring) successor(ctx context.Context) (raft.ServerID, error) {
	if !r.IsLeader() {
		return "", errors.New("this node does not lead")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	type answer struct {
		id   raft.ServerID
		last uint64
		err  error
	}
	answers := make(chan answer)
	asked := 0
	for _, s := range r.Servers() {
		if !s.Voter || s.Node == r.cfg.Self {
			continue
		}
		asked++
		go func() { // ends with ctx; its answer is waited for
			st, err := r.status(ctx, s)
			answers <- answer{serverID(s.Node, s.Incarnation), st.last, err}
		}()
	}
	best := answer{err: errors.New("there is no other voter")}
	for range asked {
		switch a := <-answers; {
		case a.err != nil && best.id == "":
			best.err = a.err
		case a.err == nil && (best.id == "" || a.last > best.last):
			best = a
		}
	}
	return best.id, best.err
}
