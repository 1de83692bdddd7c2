package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/node/link"
	"osteon/raft/vault"
)

// Mesh is what the store needs of the link between nodes.
type Mesh interface {
	OpenStream(ctx context.Context, node place.NodeID, class link.Class, kind link.Kind) (link.Stream, error)
	Handle(kind link.Kind, handler func(context.Context, link.Stream))
}

// Generations is the fsynced index of which placement generation each held shard belongs to.
type Generations interface {
	// Hold records that shard index of encode is held for the pack's placement generation; it fails
	// when a newer generation is on record.
	Hold(pack place.PackID, encode place.EncodeID, index int, generation uint64) error
	// Check fails when a newer generation than the given one is on record.
	Check(pack place.PackID, encode place.EncodeID, index int, generation uint64) error
	// Forget drops the record of a removed shard.
	Forget(pack place.PackID, encode place.EncodeID, index int) error
}

// Degraded is what to do when no other site takes a copy in time.
type Degraded string

const (
	// AckLocal acknowledges two copies at this site and marks the instance spooled. The default.
	AckLocal Degraded = "local"
	// AckRefuse refuses the instance.
	AckRefuse Degraded = "refuse"
)

// Ack is the acknowledgement rule (design P1). The zero value is the default rule.
type Ack struct {
	// Wait bounds the time from the last byte to the answer while another site is waited for. Default 2 s.
	Wait time.Duration
	// SecondAfter is when a second partner is tried. Default 500 ms.
	SecondAfter time.Duration
	// Degraded decides when no other site answers. Default AckLocal.
	Degraded Degraded
	// Single acknowledges a single copy where no other node answers.
	Single bool
}

// Config is what a Store is opened with. FS is plain: journal and packs encrypt what they write.
type Config struct {
	FS      vfs.FS
	Dir     string // holds journal/ and shards/
	Ring    place.RingID
	Self    place.NodeID
	Site    place.SiteID
	Disk    place.DiskID
	Vault   *vault.Vault
	Mesh    Mesh // nil: a node alone
	Shards  Generations
	Ack     Ack
	Journal JournalLimits
	// Topology returns the ring's data nodes as seen from here, this one included.
	Topology func() []place.Node
	// Settled reports whether Topology has come up with the ring since this node started: until then nodes
	// and sites may be missing from it. nil: always.
	Settled func() bool
	// Free returns the free and the total bytes of the disk; nil asks FS. Below the reserve the node takes
	// no instances, while reads go on.
	Free func() (free, total int64, err error)
	// Held is told of every object that this node committed for another, and of those that it committed
	// for a sender without an acknowledgement, as from itself; it must not block.
	Held func(key journal.Key, note []byte, from place.NodeID)
	// BadShard is told of every shard that failed a check or could not be read; it must not block.
	BadShard func(pack place.PackID, index int, err error)

	Now  func() time.Time
	Rand io.Reader
	Log  *slog.Logger
}

// JournalLimits are the sizes of the journal; zero means the journal's defaults.
type JournalLimits struct {
	SegmentBytes int64
	HotBytes     int64
}

// Store is the node's blob store: its journal, its shards, and their peers' by the link. It is safe for
// concurrent use.
type Store struct {
	cfg     Config
	journal *journal.Journal
	chunks  chunkPool
	streams streamPool
	codec   Codec
	paces   paces
	stalled atomic.Int32 // own copies that were given up and have not ended
	space   space
	ctx     context.Context // of copies to peers; ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup // entered by enter

	mu       sync.Mutex
	closed   bool
	suspects map[place.NodeID]time.Time // failed: asked last until then
	slow     map[place.NodeID]time.Time // did not answer in time: asked last of its kind until then
}

// space remembers how much room the disk had.
type space struct {
	mu sync.Mutex // held over the question, which does not wait for writes

	asked time.Time
	err   error
}

var noDeadline time.Time

// Open replays the journal and registers the peer protocol with the mesh. The caller closes the store
// after the mesh stopped calling it.
func Open(cfg Config) (*Store, error) {
	if cfg.Ack.Wait == 0 {
		cfg.Ack.Wait = 2 * time.Second
	}
	if cfg.Ack.SecondAfter == 0 {
		cfg.Ack.SecondAfter = 500 * time.Millisecond
	}
	if cfg.Ack.Degraded == "" {
		cfg.Ack.Degraded = AckLocal
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Held == nil {
		cfg.Held = func(journal.Key, []byte, place.NodeID) {}
	}
	if cfg.BadShard == nil {
		cfg.BadShard = func(place.PackID, int, error) {}
	}
	if cfg.Topology == nil || cfg.Now == nil || cfg.Rand == nil {
		return nil, errors.New("open store: Topology, Now and Rand are required")
	}
	j, err := journal.Open(journal.Config{
		FS: cfg.FS, Dir: cfg.FS.PathJoin(cfg.Dir, "journal"), Ring: cfg.Ring, Disk: cfg.Disk, Vault: cfg.Vault,
		Rand: cfg.Rand, Log: cfg.Log, Now: cfg.Now,
		SegmentBytes: cfg.Journal.SegmentBytes, HotBytes: cfg.Journal.HotBytes,
	})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		cfg: cfg, journal: j,
		streams:  streamPool{idle: map[place.NodeID][]link.Stream{}},
		suspects: map[place.NodeID]time.Time{},
		slow:     map[place.NodeID]time.Time{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background()) // a store is opened before Serve's context is
	if s.cfg.Free == nil {
		s.cfg.Free = s.diskFree
	}
	if err := vault.MakeDir(cfg.FS, s.shardDir()); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), j.Close())
	}
	if swept, err := shard.Sweep(cfg.FS, s.shardDir()); err != nil {
		cfg.Log.Warn("unfinished shards not removed", "err", err)
	} else if swept > 0 {
		cfg.Log.Info("unfinished shards removed", "files", swept)
	}
	if cfg.Mesh != nil {
		cfg.Mesh.Handle(link.KindJournalAppend, s.serveAppend)
		cfg.Mesh.Handle(link.KindJournalRead, s.serveJournalRead)
		cfg.Mesh.Handle(link.KindShardWrite, s.serveShardWrite)
		cfg.Mesh.Handle(link.KindShardRead, s.serveShardRead)
	}
	return s, nil
}

// Close ends the copies and streams to peers, waits for those under way and closes the journal. What the
// mesh or callers still ask of the store fails from then on.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.dropStreams(place.NodeID{})
	s.running.Wait()
	return s.journal.Close()
}

// enter adds one to running, unless the store is closed.
func (s *Store) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// Journal returns this node's journal.
func (s *Store) Journal() *journal.Journal { return s.journal }

func (s *Store) shardDir() string { return s.cfg.FS.PathJoin(s.cfg.Dir, "shards") }

// partners returns whom to ask for a second copy, best first: live nodes of other sites by rendezvous,
// the second from another site than the first where there is one, then live nodes of this site. Within
// its group a peer that was slow a moment ago comes last; one that failed comes after everybody.
func (s *Store) partners(study []byte) []place.Node {
	nodes := map[place.NodeID]place.Node{}
	var ids []place.NodeID
	for _, n := range s.cfg.Topology() {
		switch {
		case n.ID == s.cfg.Self || !n.Data || s.cfg.Mesh == nil:
		case n.Live:
			nodes[n.ID] = n
			ids = append(ids, n.ID)
		default: // known to be down: when it comes back it is a new process
			s.forgive(n.ID)
		}
	}
	var fresh, repeated, slow, same, sameSlow, suspects []place.Node
	seen := map[place.SiteID]bool{}
	for _, id := range place.Rendezvous(study, ids) {
		n := nodes[id]
		late := s.isSlow(id)
		switch {
		case s.isSuspect(id):
			suspects = append(suspects, n)
		case n.Site == s.cfg.Site && late:
			sameSlow = append(sameSlow, n)
		case n.Site == s.cfg.Site:
			same = append(same, n)
		case late:
			slow = append(slow, n)
		case seen[n.Site]:
			repeated = append(repeated, n)
		default:
			seen[n.Site] = true
			fresh = append(fresh, n)
		}
	}
	return slices.Concat(fresh, repeated, slow, same, sameSlow, suspects)
}

// suspect notes that a peer failed.
func (s *Store) suspect(id place.NodeID) { s.blame(s.suspects, id) }

// late notes that a peer did not answer in time, which a busy one does not either: it is still asked before
// the second copy stays at this site.
func (s *Store) late(id place.NodeID) { s.blame(s.slow, id) }

func (s *Store) isSuspect(id place.NodeID) bool { return s.isBlamed(s.suspects, id) }
func (s *Store) isSlow(id place.NodeID) bool    { return s.isBlamed(s.slow, id) }

func (s *Store) blame(list map[place.NodeID]time.Time, id place.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list[id] = s.cfg.Now().Add(suspectFor)
}

func (s *Store) forgive(id place.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.suspects, id)
	delete(s.slow, id)
}

func (s *Store) isBlamed(list map[place.NodeID]time.Time, id place.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := list[id]
	if ok && s.cfg.Now().After(until) {
		delete(list, id)
		return false
	}
	return ok
}

// otherSites reports whether the ring has, or may have, a data node at another site, live or not.
func (s *Store) otherSites() bool {
	if !s.settled() {
		return true
	}
	for _, n := range s.cfg.Topology() {
		if n.Data && n.Site != s.cfg.Site {
			return true
		}
	}
	return false
}

// otherSiteAnswers reports whether a node of another site is believed to be alive.
func (s *Store) otherSiteAnswers() bool {
	for _, n := range s.cfg.Topology() {
		if n.Data && n.Site != s.cfg.Site && n.Live && !s.isSuspect(n.ID) {
			return true
		}
	}
	return false
}

// settled reports whether the topology is known to be whole.
func (s *Store) settled() bool { return s.cfg.Settled == nil || s.cfg.Settled() }

// alone reports whether this is for sure the ring's only data node.
func (s *Store) alone() bool {
	if !s.settled() {
		return false
	}
	for _, n := range s.cfg.Topology() {
		if n.Data && n.ID != s.cfg.Self {
			return false
		}
	}
	return true
}

// chunkPool recycles buffers of partnerChunkBytes.
type chunkPool struct{ pool sync.Pool }

func (c *chunkPool) get() []byte {
	if b, ok := c.pool.Get().(*[partnerChunkBytes]byte); ok {
		return b[:0]
	}
	return new([partnerChunkBytes]byte)[:0]
}

func (c *chunkPool) put(b []byte) {
	c.pool.Put((*[partnerChunkBytes]byte)(b[:partnerChunkBytes]))
}
