package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"osteon/erasure/place"
	"osteon/raft/vault"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	// ErrFenced is returned after a write or sync failed: what is on the disk is no longer known. The
	// journal acknowledges nothing more until it is opened again.
	ErrFenced = errors.New("journal fenced: replace or check the disk, then restart")
	// ErrFull is returned when the disk has no room. The journal goes on when there is some.
	ErrFull = errors.New("journal disk full")
	// ErrNotFound is returned for a key that the journal does not hold.
	ErrNotFound = errors.New("object not in the journal")
	// ErrCorrupt is returned when bytes fail authentication; the key is then listed by Corrupt.
	ErrCorrupt = errors.New("object damaged in the journal")
	// ErrClosed is returned after Close, and by a Writer after Commit or Abort.
	ErrClosed = errors.New("journal or writer closed")
	// ErrTooLarge is returned for a note over NoteBytesMax or an object in too many pieces.
	ErrTooLarge = errors.New("over the journal's limits")
	// ErrUnknownOutcome is returned by Commit when its context ends first: the object may yet become
	// visible.
	ErrUnknownOutcome = errors.New("commit outcome unknown")
)

// Key is the identity of one version of an instance, hashed by the caller.
type Key [32]byte

// Config says where a journal is and what it writes. FS, Dir, Vault, Rand and Now are needed.
type Config struct {
	FS    vfs.FS       // plain file system: the journal encrypts by itself
	Dir   string       // created where missing; nothing is written outside
	Ring  place.RingID // bound into every segment
	Disk  place.DiskID // bound into every segment
	Vault *vault.Vault // wraps the segments' keys
	Rand  io.Reader    // cryptographic; read by Open only
	Log   *slog.Logger // nil: silent
	Now   func() time.Time

	SegmentBytes int64 // size at which a segment is full; 0: 256 MiB; 8 KiB to 1 GiB
	HotBytes     int64 // what Evict leaves of segments that are fully released; 0: 2 GiB
}

func (cfg *Config) setDefaults() error {
	var faults []error
	if cfg.FS == nil || cfg.Dir == "" || cfg.Vault == nil || cfg.Rand == nil || cfg.Now == nil {
		faults = append(faults, errors.New("FS, Dir, Vault, Rand and Now are needed"))
	}
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = segmentBytesDefault
	}
	if cfg.SegmentBytes < segmentBytesMin || cfg.SegmentBytes > segmentBytesMax {
		faults = append(faults, fmt.Errorf("segment size %d: want %d to %d", cfg.SegmentBytes, segmentBytesMin, segmentBytesMax))
	}
	if cfg.HotBytes == 0 {
		cfg.HotBytes = hotBytesDefault
	}
	if cfg.HotBytes < 0 {
		faults = append(faults, fmt.Errorf("hot bytes %d: want 0 or more", cfg.HotBytes))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return errors.Join(faults...)
}

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	cfg         Config
	incarnation uint64 // differs at every Open
	lock        io.Closer
	loops       sync.WaitGroup
	buffers     sync.Pool // of *buffer

	// mu is held over Preallocate, the one I/O that must come before a place is given away.
	mu       sync.Mutex
	due      *sync.Cond // the sync loop waits: there may be something to sync
	wanted   *sync.Cond // the making loop waits: a spare segment may be wanted
	changed  *sync.Cond // writers and Close wait: a segment was made, writes ended, or all failed
	index    index
	segments map[uint64]*segment // all that have bytes on disk and are not damaged as a whole
	tails    []*tail             // being written, oldest first; the last is the active one
	commits  []*commit           // placed, not complete, in order
	broken   map[uint64]uint32   // where a full disk tore a segment: nothing from there on counts
	spare    spare
	objects  uint64 // number of the next object
	fenced   error
	closed   bool
	stats    Stats
}

// Open replays every segment, removes those without objects, and starts a new one. Only one Journal
// may have the directory open. It fails when a segment belongs to another ring or disk, when its key's
// epoch is unknown, or on any I/O error; damaged segments are kept, logged and counted, not an error.
func Open(cfg Config) (*Journal, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{cfg: cfg, segments: map[uint64]*segment{}, broken: map[uint64]uint32{}}
	j.index.init()
	j.due, j.wanted, j.changed = sync.NewCond(&j.mu), sync.NewCond(&j.mu), sync.NewCond(&j.mu)
	j.buffers.New = func() any { return new(buffer) }
	if err := j.open(); err != nil {
		return nil, fmt.Errorf("open journal %s: %w", cfg.Dir, err)
	}
	return j, nil
}

func (j *Journal) open() (err error) {
	var seed [8]byte
	if _, err := io.ReadFull(j.cfg.Rand, seed[:]); err != nil {
		return fmt.Errorf("draw incarnation: %w", err)
	}
	j.incarnation = binary.LittleEndian.Uint64(seed[:])
	if err := makeDir(j.cfg.FS, j.cfg.Dir); err != nil {
		return err
	}
	if j.lock, err = j.cfg.FS.Lock(j.cfg.FS.PathJoin(j.cfg.Dir, "LOCK")); err != nil {
		return fmt.Errorf("lock: in use by another process? %w", err)
	}
	last, err := j.replay()
	if err == nil {
		err = j.start(last + 1)
	}
	if err != nil {
		return errors.Join(err, j.closeFiles())
	}
	return nil
}

// start makes the first segment of this incarnation and begins to work.
func (j *Journal) start(number uint64) error {
	first, err := j.createSegment(number)
	if err != nil {
		return fmt.Errorf("create segment %d: %w", number, err)
	}
	j.objects = number << 32
	j.spare.number = number + 1
	j.segments[number] = first.segment
	j.tails = []*tail{first}
	j.loops.Add(2)
	go j.syncLoop()  // ends at Close, or when fenced; owns syncs, end frames, completion
	go j.spareLoop() // ends at Close; owns the making of segments
	return nil
}

// makeDir makes dir where missing, and every parent that is missing, each durable in its own parent.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); !oserror.IsNotExist(err) {
		return err
	}
	parent := fs.PathDir(dir)
	if parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

// Fenced returns the error, an ErrFenced, that stopped the journal, or nil.
func (j *Journal) Fenced() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fenced
}

// Stats counts what a journal holds and did since Open.
type Stats struct {
	Segments      int   // with bytes on disk, the active one included
	Bytes         int64 // in those segments
	HotBytes      int64 // of them in segments whose objects are all released
	Objects       int   // visible
	Released      int   // of them released
	Corrupt       int   // listed by Corrupt
	DamagedBytes  int64 // found bad by Open where they had been synced
	TornBytes     int64 // found bad by Open where a crash explains it
	DamagedFiles  int   // segments whose header is unreadable: all they held is lost here
	CutShort      int   // segments without their end though a later one was synced: cut, or torn by a full disk
	Commits       int64 // since Open
	BytesWritten  int64 // since Open, with headers and tags
	Syncs         int64 // since Open
	Refused       int64 // reservations since Open that found the disk full
	ReplaySeconds float64
}

// Stats returns a copy of the counts.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Segments, s.Objects = len(j.segments), j.index.visible
	s.Released, s.Corrupt = j.index.released, len(j.index.corrupt)
	for _, g := range j.segments {
		s.Bytes += int64(g.size)
		if g.hot() {
			s.HotBytes += int64(g.size)
		}
	}
	return s
}

// Corrupt returns the keys of objects that were here and cannot be read, in no order. An object leaves
// the list when it is committed again or dropped.
func (j *Journal) Corrupt() []Key {
	j.mu.Lock()
	defer j.mu.Unlock()
	keys := make([]Key, 0, len(j.index.corrupt))
	for k := range j.index.corrupt {
		keys = append(keys, k)
	}
	return keys
}

// Close refuses new work, completes the commits under way, ends the active segment, and closes all
// files; open Objects fail from then on. It returns the fencing error if there was one.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.active().sealed = true
	j.due.Broadcast()
	j.wanted.Broadcast()
	j.changed.Broadcast()
	for j.writesLocked() > 0 {
		j.changed.Wait()
	}
	j.mu.Unlock()
	j.loops.Wait()
	return errors.Join(j.Fenced(), j.closeFiles())
}

func (j *Journal) writesLocked() (n int) {
	for _, t := range j.tails {
		n += t.writes
	}
	return n
}

// closeFiles closes what is open; nothing is being written any more.
func (j *Journal) closeFiles() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, t := range j.tails {
		errs = append(errs, t.file.Close())
	}
	j.tails = nil
	if t := j.spare.tail; t != nil {
		errs = append(errs, t.file.Close(), j.cfg.FS.Remove(j.segmentPath(t.number)))
		j.spare.tail = nil
	}
	for _, s := range j.segments {
		errs = append(errs, s.closeFile())
	}
	if j.lock != nil {
		errs = append(errs, j.lock.Close())
	}
	return errors.Join(errs...)
}

// Verify reads and authenticates every visible object, in commit order, and lists those that fail in
// Corrupt. It returns the first error that is not damage, or that of ctx. It reads as fast as it can;
// pace, if not nil, is called with the size of each object before it is read.
func (j *Journal) Verify(ctx context.Context, pace func(bytes int64)) error {
	for _, info := range slices.Collect(j.Keys) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pace != nil {
			pace(info.Size)
		}
		if err := j.verifyObject(info.Key); err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) verifyObject(key Key) error {
	o, err := j.OpenObject(key)
	if err == nil {
		_, err = o.WriteTo(io.Discard)
		err = errors.Join(err, o.Close())
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		return nil // gone meanwhile, or listed
	}
	return err
}
