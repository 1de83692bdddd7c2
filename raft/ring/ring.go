package ring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"osteon/erasure/place"
	"osteon/node/link"
)

var (
	// ErrShortLog: the log, the vote or the snapshot on disk is older than the mark says, or they are
	// missing. This node may have acknowledged entries it no longer has and must not vote: Wipe the ring's
	// directory and the state machine, and join again as a non-voter with a new incarnation.
	ErrShortLog = errors.New("raft log is shorter than its mark")
	// ErrDamaged: a record, mark or snapshot fails its checks. What to do is the same as for ErrShortLog.
	ErrDamaged = errors.New("raft data is damaged")
	// ErrWrongServer: the directory belongs to another node or incarnation.
	ErrWrongServer = errors.New("raft directory belongs to another server")
	// ErrUnknownEntry: the leader sent an entry of a kind that this release does not know: upgrade this node.
	ErrUnknownEntry = errors.New("log entry of unknown kind")
	// ErrStateMachine: the state machine did not apply what it was given.
	ErrStateMachine = errors.New("state machine stopped")
	// ErrDisk: a write or fsync of the log, mark or snapshot failed or did not return in time. It is never retried.
	ErrDisk = errors.New("raft disk failed")
	// ErrNoQuorum: no leader accepted the request before the context ended; nothing was proposed.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUnknownOutcome: the command was proposed, but whether it was or will be applied is not known.
	// Since commands are idempotent it can be proposed again.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrTooLarge: the command exceeds CommandBytesMax.
	ErrTooLarge = errors.New("command too large")
	// ErrBootstrapped: this node has state already and cannot found a ring.
	ErrBootstrapped = errors.New("node already belongs to a ring")
	// ErrUnknownServer: the node is not in the ring's configuration.
	ErrUnknownServer = errors.New("node is not a member of the ring")
	// ErrBehind: the node has not caught up enough, or cannot be asked, to be given a vote.
	ErrBehind = errors.New("node has not caught up")
	// ErrRefused: the leader or Raft refused the request for the reason in the text.
	ErrRefused = errors.New("ring refused")
	// ErrClosed: the ring was closed.
	ErrClosed = errors.New("ring closed")
)

// Entry is one committed entry of the log. Data is nil for configuration changes and for the empty command of a new
// leader: the state machine only records the index then. It must not be changed or kept after Apply returns.
type Entry struct {
	Index, Term uint64
	Data        []byte
}

// FSM is the state machine. Apply, Checkpoint and Restore are never called at the same time; Applied may be called
// at any time.
type FSM interface {
	// Apply applies entries in order and returns one result each. It must be deterministic, and must record the last index
	// together with the changes. Leaving Applied below the last index stops the ring with ErrStateMachine.
	Apply(entries []Entry) [][]byte
	// Applied returns the index of the last entry applied, 0 for none. After a crash it may have
	// gone back, but not before the last Checkpoint or Restore.
	Applied() uint64
	// Checkpoint writes the present state as files into dir, which does not exist yet and whose parent does, on Config.FS; hard
	// links are welcome. There are no subdirectories, names are of the characters A-Z a-z 0-9 . _ -, and files
	// ending in .sst never change under their name. When it returns, Applied must be durable in the state machine itself.
	Checkpoint(dir string) error
	// Restore replaces the state with the one in dir, which stays as it is (link or copy its files), durably and
	// atomically. Afterwards Applied is that of the checkpoint.
	Restore(dir string) error
}

// Link is what the ring needs of the mesh; *link.Link has it.
type Link interface {
	OpenStream(ctx context.Context, node place.NodeID, class link.Class, kind link.Kind) (link.Stream, error)
	Handle(kind link.Kind, h func(ctx context.Context, s link.Stream))
}

// Config is what Open needs. FS, PlainFS, Dir, Self, Incarnation, Link, MAC and Now are required; the timings suit nodes
// a few milliseconds apart.
type Config struct {
	// FS is the encrypting file system for log and snapshots; PlainFS the one below, for the mark.
	FS, PlainFS vfs.FS
	// Dir is the ring's own directory, on both file systems. It must be on the state machine's volume (hard links).
	Dir string
	// Self and Incarnation name this server. A node that lost its log gets a new incarnation, never the old one.
	Self        place.NodeID
	Incarnation uint64
	// Existing says that this server has run before: then an empty Dir, such as a disk not mounted or replaced, is
	// ErrShortLog instead of a new beginning under an old name.
	Existing bool
	// Vouch, when set, is asked before Raft starts whether what is on disk may be used; its error is that of Open.
	Vouch func(End) error
	// Gated keeps this server out of the ring, as if it were cut off, until Release: it neither asks for votes nor gives
	// any, and acknowledges nothing.
	Gated bool
	Link  Link
	// MAC is the ring's keyed hash over length-prefixed parts.
	MAC func(parts ...[]byte) [32]byte
	// Now is the clock for LastContact. Safety never depends on it.
	Now func() time.Time
	// Log receives events; nil discards them.
	Log *slog.Logger

	// Heartbeat is how long a follower waits for the leader before it stands for election; 0 means 500 ms. Between distant
	// sites use 2 to 3 s. Election is how long one election may take and Lease how long a leader that reaches no
	// quorum goes on; 0 means Heartbeat. Election >= Heartbeat >= Lease.
	Heartbeat, Election, Lease time.Duration
	// CommitWait is how soon followers of an idle leader learn what is committed; 0 means 20 ms.
	CommitWait time.Duration
	// RPCTimeout bounds one exchange between servers; 0 means 5 s. A full batch of entries must pass the line in it.
	RPCTimeout time.Duration
	// DiskStall is how long one write of the log may take before the node stops; 0 means 5 s.
	DiskStall time.Duration
	// AppendEntries is how many entries are written, sent and applied at once, 1 to 1024; 0 means 256.
	AppendEntries int
	// A snapshot is taken after SnapshotEntries (0: 200,000) or SnapshotBytes (0: 1 GiB) of log, looked at every
	// SnapshotCheck (0: 10 s). It leaves TrailingEntries (0: 100,000), but not much more than TrailingBytes
	// (0: 512 MiB), for followers that are a little behind.
	SnapshotEntries, SnapshotBytes, TrailingEntries, TrailingBytes uint64
	SnapshotCheck                                                  time.Duration
}

// End is where a log ends, and the term that its server has reached.
type End struct{ Index, Term uint64 }

// Server is a member of the ring.
type Server struct {
	Node        place.NodeID
	Incarnation uint64
	Voter       bool
}

// Ring is one node's part in the consensus. All methods are safe for concurrent use.
type Ring struct {
	cfg    Config
	log    *slog.Logger
	self   raft.ServerID
	fsm    FSM
	raft   *raft.Raft
	layer  *streamLayer
	trans  *raft.NetworkTransport
	acked  acknowledged
	store  *logStore
	snaps  *snapStore
	reads  verifier
	slots  chan struct{} // one for each forwarded request under way
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of this ring
	work   sync.WaitGroup // requests waiting for the library

	mu       sync.Mutex
	changed  chan struct{} // closed at the next change of leader or configuration
	opening  *opening      // set while leader
	closing  bool
	closed   chan struct{} // closed when Close is done
	failure  error
	failed   chan struct{}
	closeErr error
	stopOnce sync.Once
	stopping raft.Future // set by stopOnce
}

// Validate reports all faults of the configuration at once.
func (c *Config) Validate() error {
	var faults []error
	need := func(ok bool, what string) {
		if !ok {
			faults = append(faults, errors.New("ring: "+what))
		}
	}
	need(c.FS != nil && c.PlainFS != nil, "FS and PlainFS: file systems are needed")
	need(c.Dir != "", "Dir: a directory is needed")
	need(!c.Self.IsZero() && c.Incarnation > 0, "Self and Incarnation: a node ID and a number from 1 are needed")
	need(c.Link != nil, "Link: a link is needed")
	need(c.MAC != nil && c.Now != nil, "MAC and Now: a keyed hash and a clock are needed")
	d := c.withStandards()
	need(d.Lease <= d.Heartbeat && d.Heartbeat <= d.Election, "want Lease <= Heartbeat <= Election")
	need(d.Lease >= 5*time.Millisecond, "Lease: want at least 5 ms")
	need(d.AppendEntries > 0 && d.AppendEntries <= 1024, "AppendEntries: want 1 to 1024")
	return errors.Join(faults...)
}

// withStandards returns c with zero fields filled in.
func (c Config) withStandards() Config {
	dur := func(d *time.Duration, standard time.Duration) {
		if *d == 0 {
			*d = standard
		}
	}
	num := func(n *uint64, standard uint64) {
		if *n == 0 {
			*n = standard
		}
	}
	dur(&c.Heartbeat, heartbeatStandard)
	dur(&c.Election, c.Heartbeat)
	dur(&c.Lease, c.Heartbeat)
	dur(&c.CommitWait, commitWaitStandard)
	dur(&c.RPCTimeout, rpcTimeoutStandard)
	dur(&c.DiskStall, diskStallStandard)
	dur(&c.SnapshotCheck, snapshotCheckStandard)
	num(&c.SnapshotEntries, snapshotEntriesStandard)
	num(&c.SnapshotBytes, snapshotBytesStandard)
	num(&c.TrailingEntries, trailingEntriesStandard)
	num(&c.TrailingBytes, trailingBytesStandard)
	if c.AppendEntries == 0 {
		c.AppendEntries = appendEntriesStandard
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// serverID returns the name of a server inside Raft.
func serverID(node place.NodeID, incarnation uint64) raft.ServerID {
	return raft.ServerID(node.String() + "#" + strconv.FormatUint(incarnation, 10))
}

// parseServerID undoes serverID.
func parseServerID(id raft.ServerID) (node place.NodeID, incarnation uint64, err error) {
	name, number, _ := strings.Cut(string(id), "#")
	if err = node.UnmarshalText([]byte(name)); err != nil {
		return node, 0, fmt.Errorf("parse server id: %w", err)
	}
	if incarnation, err = strconv.ParseUint(number, 10, 64); err != nil {
		return node, 0, fmt.Errorf("parse server id: incarnation: %w", err)
	}
	return node, incarnation, nil
}

// Servers returns the members as this node knows them, in the order they were added. It may be
// ahead of what is committed and, on a cut-off node, behind.
func (r *Ring) Servers() []Server {
	var out []Server
	for _, s := range r.raft.GetConfiguration().Configuration().Servers {
		node, inc, err := parseServerID(s.ID)
		if err != nil {
			continue // cannot be: every ID in a configuration is made by serverID
		}
		out = append(out, Server{Node: node, Incarnation: inc, Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// Voters returns the nodes that have a vote by the newest configuration in this server's log, and where that log ends: the term of
// its last entry and its index. A server that was away may know an old configuration.
func (r *Ring) Voters() (voters []place.NodeID, end End) {
	stats := r.raft.Stats()
	// The library prints both as decimal numbers; nought, of an empty log, is behind everybody's.
	end.Term, _ = strconv.ParseUint(stats["last_log_term"], 10, 64)
	end.Index, _ = strconv.ParseUint(stats["last_log_index"], 10, 64)
	for _, s := range r.Servers() {
		if s.Voter {
			voters = append(voters, s.Node)
		}
	}
	return voters, end
}

// Leader returns the leader that this node follows, and false when it knows of none.
func (r *Ring) Leader() (place.NodeID, bool) {
	_, id := r.raft.LeaderWithID()
	if id == "" {
		return place.NodeID{}, false
	}
	node, _, err := parseServerID(id)
	return node, err == nil
}

// IsLeader reports whether this node believes to be the leader; only ReadIndex makes sure.
func (r *Ring) IsLeader() bool { return r.raft.State() == raft.Leader }

// State returns "leader", "follower", "candidate", "failed" or "shutdown".
func (r *Ring) State() string {
	if r.Err() != nil {
		return "failed"
	}
	return strings.ToLower(r.raft.State().String())
}

// LastContact returns how long ago the leader was heard: 0 at the leader itself, the longest duration when never.
func (r *Ring) LastContact() time.Duration {
	if r.IsLeader() {
		return 0
	}
	last := r.raft.LastContact()
	if last.IsZero() {
		return math.MaxInt64
	}
	return max(0, r.cfg.Now().Sub(last))
}

// AppliedIndex returns the index of the last entry that the state machine applied.
func (r *Ring) AppliedIndex() uint64 { return r.fsm.Applied() }

// CommitIndex returns the highest index that this node knows to be committed.
func (r *Ring) CommitIndex() uint64 { return r.raft.CommitIndex() }

// LastIndex returns the index of the last entry in this node's log or snapshot, committed or not.
func (r *Ring) LastIndex() uint64 { return r.raft.LastIndex() }

// Term returns the current term.
func (r *Ring) Term() uint64 { return r.raft.CurrentTerm() }

// Stats is how a ring stands, for status pages and metrics.
type Stats struct {
	State                                    string
	Term, Last, Commit, Applied, Snapshot    uint64 // indexes but for Term
	EntriesSinceSnapshot, BytesSinceSnapshot uint64
}

// Stats returns how the ring stands now.
func (r *Ring) Stats() Stats {
	g := r.store.growth()
	return Stats{
		State: r.State(), Term: r.Term(), Last: r.LastIndex(), Commit: r.CommitIndex(), Applied: r.AppliedIndex(),
		Snapshot: r.store.snapshotIndex(), EntriesSinceSnapshot: g.entries, BytesSinceSnapshot: g.bytes,
	}
}

// Changes returns a channel that is closed at the next change of leader or configuration; call it
// again for the one after. Take the channel first, then look.
func (r *Ring) Changes() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// notifyChange closes the present channel of Changes.
func (r *Ring) notifyChange() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Failed returns a channel that is closed when the ring had to stop: Err says why. The node must then leave service; after
// ErrShortLog and ErrDamaged it must be resynchronised.
func (r *Ring) Failed() <-chan struct{} { return r.failed }

// Err returns why the ring had to stop, or nil.
func (r *Ring) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure
}

// fail stops the ring for good. It does not wait, for it is called from inside the library.
func (r *Ring) fail(err error) {
	r.mu.Lock()
	if r.failure != nil || r.closing && errors.Is(err, ErrClosed) {
		r.mu.Unlock()
		return
	}
	r.failure = err
	rf := r.raft
	r.mu.Unlock()
	r.log.Error("ring stopped", "err", err)
	close(r.failed)
	_ = r.layer.Close() // never fails; a leader whose disk hangs would go on sending heartbeats
	if rf != nil {
		r.stopLibrary()
	}
}
