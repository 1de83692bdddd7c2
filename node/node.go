// Package node composes one Osteon node: it opens what a directory holds, serves DIMSE, HTTP, the link and
// the admin socket until told to stop, keeps the ring's membership in order, and founds or joins rings.
//
// Its doors are Init, Join, Open with Node.Serve, and Dial for the command line. It is the only package
// that knows every layer, Prometheus and memberlist; it decides nothing about DICOM or storage itself.
//
//	n, err := node.Open(cfg, node.Env{})
//	if err != nil { ... }
//	err = n.Serve(ctx) // drains and closes when ctx ends
package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/ring"
)

func (e Env) filled() Env {
	if e.FS == nil {
		e.FS = vfs.Default
	}
	if e.Rand == nil {
		e.Rand = rand.Reader
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Log == nil {
		e.Log = slog.New(slog.DiscardHandler)
	}
	if e.ListenPacket == nil {
		e.ListenPacket = listenUDP
	}
	if e.Listen == nil {
		e.Listen = listen
	}
	if e.Dial == nil {
		e.Dial = (&net.Dialer{}).DialContext
	}
	return e
}

// listenUDP opens a real socket, bare, so that the link can use segmentation offload.
func listenUDP(address string) (net.PacketConn, error) {
	if address == "" {
		return net.ListenUDP("udp", nil)
	}
	resolved, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP("udp", resolved)
}

func fingerprint(der []byte) [32]byte { return sha256.Sum256(der) }

// Node is one opened node. Serve runs it; it is closed when Serve returns.
type Node struct {
	*core
	archive       *dicomsvc.Archive
	registry      *registry
	gossip        *Gossip
	gossipChanged chan struct{}
	started       time.Time
	caughtUp      atomic.Bool

	servers listeners
	wait    sync.WaitGroup
}

// Open opens the node that cfg.Dir holds: keys, catalog, Raft, journal and shards; its listeners begin with
// Serve. Errors: ErrNoNode when the directory holds none.
func Open(cfg Config, env Env) (n *Node, err error) {
	for range opensMax {
		if n, err = open(cfg, env); !errors.Is(err, ErrReopen) {
			break
		}
	}
	return n, err
}

// opensMax bounds how often one Open tries, each time without one more damaged part.
const opensMax = 3

func open(cfg Config, env Env) (*Node, error) {
	cfg.Fill()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	env = env.filled()
	if err := checkFinished(cfg, env); err != nil {
		return nil, err
	}
	c, err := openCore(cfg, env, admitNode)
	if err != nil {
		return nil, c.mend(err)
	}
	n := &Node{core: c, registry: newRegistry(c), gossipChanged: make(chan struct{}, 1), started: env.Now()}
	if err := n.openArchive(); err != nil {
		return nil, errors.Join(c.mend(err), c.close(context.Background()))
	}
	if err := n.openListeners(); err != nil {
		return nil, errors.Join(err, n.archive.Close(), c.close(context.Background()))
	}
	return n, nil
}

func (n *Node) openArchive() (err error) {
	n.archive, err = dicomsvc.Open(dicomsvc.Config{
		Ring: n.id.Ring, Self: n.id.Node, Catalog: n.cat, Vault: n.vault,
		Store: n.openStore, Topology: n.topo.placed, Settled: n.caughtUp.Load, Survive: n.survive, Leads: n.ring.IsLeader,
		Catalogued: n.cfg.Ack.Policy == "catalogued", Policy: dicomsvc.Policy{Allow: n.registry.allow},
		Seal: dicomsvc.SealPolicy{
			Quiet: time.Duration(n.cfg.Seal.Quiet), Old: time.Duration(n.cfg.Seal.Old), Bytes: n.cfg.Seal.Bytes,
		},
		Now: n.env.Now, Rand: n.env.Rand, Log: n.env.Log,
	})
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	return nil
}

func (n *Node) openStore(cb dicomsvc.Callbacks) (*erasure.Store, error) {
	return erasure.Open(erasure.Config{
		FS: n.env.FS, Dir: n.cfg.Dir, Ring: n.id.Ring, Self: n.id.Node, Site: n.id.Site, Disk: n.id.Disk,
		Vault: n.vault, Mesh: n.link, Shards: n.local,
		Ack: erasure.Ack{
			Wait: time.Duration(n.cfg.Ack.Wait), Degraded: erasure.Degraded(n.cfg.Ack.Degraded), Single: n.cfg.Ack.Single,
		},
		Journal:  erasure.JournalLimits{SegmentBytes: n.cfg.Journal.SegmentBytes, HotBytes: n.cfg.Journal.HotBytes},
		Topology: n.topo.placed, Settled: n.caughtUp.Load,
		Held: func(key journal.Key, note []byte, from place.NodeID) {
			cb.Held([32]byte(key), note, from)
		},
		BadShard: cb.BadShard,
		Now:      n.env.Now, Rand: n.env.Rand, Log: n.env.Log,
	})
}

// survive is the promise that new packs are planned for: this node's configuration, else the ring's.
func (n *Node) survive() place.Survive {
	if n.cfg.Survive != "" {
		return n.cfg.Survive
	}
	value, err := n.cat.Setting(settingSurvive)
	if err != nil {
		return ""
	}
	return place.Survive(value)
}

const (
	// drainTimeout is less than what supervisors commonly wait before they kill.
	drainTimeout    = 20 * time.Second
	handOverTimeout = 5 * time.Second
	closeTimeout    = 10 * time.Second
	// deadDiskPatience is how long a node waits for its own orderly end after its disk stopped to answer.
	deadDiskPatience = 5 * time.Second
)

// Serve runs the node until ctx ends, then drains: leadership is handed over, new associations and
// requests are refused while open ones finish, and everything is closed. It returns nil after an orderly
// stop, and ErrReopen when it stopped in order to begin anew with a damaged or outdated part of its directory: see Run.
func (n *Node) Serve(ctx context.Context) error {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	failed := make(chan error, 1)
	if err := n.startGossip(); err != nil {
		n.env.Log.Error("gossip not started", "err", err)
	}
	n.archive.Run(run)
	standing := make(chan error, 1)
	n.spawn(func() { standing <- n.standingLoop(run) })
	for _, loop := range []func(context.Context){n.membersLoop, n.topologyLoop, n.catchUpLoop, n.announceLoop, n.renewLoop, n.returnLoop} {
		n.spawn(func() { loop(run) })
	}
	front, stopFront := context.WithCancel(run)
	defer stopFront()
	n.servers.serve(front, n.spawn, failed)
	n.env.Log.Info("node serving", "node", n.id.Node, "name", n.id.Name, "site", n.id.Site,
		"dimse", n.servers.dimseAddress(), "callers", n.registry.callers(), "http", n.servers.httpAddress(), "link", n.link.Addr().String())
	err := n.ended(ctx, failed, standing)
	windDown := func() error { return n.windDown(ctx, stopFront, cancel) }
	if !errors.Is(err, ring.ErrDisk) {
		return errors.Join(err, windDown())
	}
	closed := make(chan error, 1)
	go func() { closed <- windDown() }() // ends when the disk answers again; else the process ends over it
	select {
	case cerr := <-closed:
		return errors.Join(err, cerr)
	case <-time.After(deadDiskPatience):
		return fmt.Errorf("%w; nothing was closed in order, because the disk does not answer", err)
	}
}

// windDown ends what Serve began: the front doors first, then the background work, then what is open.
func (n *Node) windDown(ctx context.Context, stopFront, stopWork func()) error {
	n.env.Log.Info("node draining")
	stopFront() // closes the DIMSE listener; what is open goes on
	n.handOver(ctx)
	n.servers.shutdown(drainTimeout)
	n.archive.Drain()
	n.handOver(ctx) // it may have been elected again
	n.stopGossip()
	stopWork()
	n.wait.Wait()
	err := n.archive.Close()
	// The time to close begins now: what came before had limits of its own.
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancelClosing()
	return errors.Join(err, n.core.close(closing))
}

// handOver makes another voter lead, if this node does.
func (n *Node) handOver(ctx context.Context) {
	if !n.ring.IsLeader() || len(n.voters()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
	defer cancel()
	if err := n.ring.Transfer(ctx); err != nil {
		n.env.Log.Warn("leadership not handed over", "err", err)
	}
}

func (n *Node) spawn(f func()) {
	n.wait.Add(1)
	go func() { // Serve waits for it; its context ends it
		defer n.wait.Done()
		f()
	}()
}

// catchUpLoop decides when the node is ready: it follows a leader and has applied what was committed when
// it first heard of it.
func (n *Node) catchUpLoop(ctx context.Context) {
	for ctx.Err() == nil {
		if n.catchUp(ctx) {
			n.enrolled()
			n.caughtUp.Store(true)
			n.env.Log.Info("node caught up", "applied", n.cat.Applied())
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// enrolled records that this incarnation has the ring's log now, and lets go of what it had before.
func (n *Node) enrolled() {
	err := n.changeIdentity(func(id *identity) { id.Enrolled = true })
	if err == nil {
		err = n.dropAside()
	}
	if err != nil {
		n.env.Log.Error("write node identity", "err", err)
	}
}

func (n *Node) catchUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	index, err := n.ring.ReadIndex(ctx)
	if err != nil {
		return false
	}
	return n.cat.WaitApplied(ctx, index) == nil
}

// Ready returns nil when the node follows a leader, its catalog has caught up and it takes stores, else why not.
func (n *Node) Ready() error {
	if err := n.ring.Err(); err != nil {
		return fmt.Errorf("fenced: %w", err)
	}
	if why := n.inDoubt(); why != "" {
		return fmt.Errorf("%w: %s", ErrRolledBack, why)
	}
	if !n.ring.Released() {
		return errors.New("waiting for a majority of the ring to say that this directory is the one that the node had")
	}
	if _, ok := n.ring.Leader(); !ok {
		return errors.New("no quorum: no leader is known; reads and degraded stores go on")
	}
	if !n.caughtUp.Load() {
		return fmt.Errorf("catching up: applied %d of %d", n.cat.Applied(), n.ring.CommitIndex())
	}
	if err := n.archive.Ready(); err != nil {
		return fmt.Errorf("stores are refused, reads go on: %w", err)
	}
	if !n.cfg.Ack.Single && lacksPartner(n.topo.placed(), n.id.Node) {
		return errors.New("stores are refused, reads go on: no other node that keeps data is alive")
	}
	return nil
}

// lacksPartner reports whether nobody is there to take the second copy of what is stored at self.
func lacksPartner(nodes []place.Node, self place.NodeID) bool {
	data := dataNodes(nodes)
	others := slices.DeleteFunc(slices.Clone(data), func(m place.Node) bool { return m.ID == self })
	return len(others) > 0 && len(others) < len(data) && !slices.ContainsFunc(others, func(m place.Node) bool { return m.Live })
}

// Archive returns the node's archive.
func (n *Node) Archive() *dicomsvc.Archive { return n.archive }
