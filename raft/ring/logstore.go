package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"osteon/erasure/plant"
	"osteon/raft/engine"
)

// logFormat is Pebble's format of the log database. It is raised by a migration step, never by an
// upgrade alone; this one makes Pebble see damage inside the write-ahead log that has later blocks behind it.
const logFormat = pebble.FormatWALSyncChunks

// logStore is the Raft log, the term and the vote on disk, with their mark. Reads are safe at any time; writes are serialised.
type logStore struct {
	db    *pebble.DB
	seal  seal
	stall time.Duration
	fail  func(error)

	wmu  sync.Mutex // held over I/O: the order of writes is the order of the chain, and log and mark go together
	mark *mark
	pos  position // the true end of the log, vote and snapshot; the mark says the same between writes
	buf  []byte

	mu    sync.RWMutex // held over reads of the database, so that a record in bounds is not deleted meanwhile
	first uint64       // 0: empty
	last  uint64
	tail  tail
	ghost ghost
	grown growth
}

// growth counts what was appended since the last snapshot.
type growth struct{ entries, bytes uint64 }

// ghost stands for entries that the library still believes to be in the log after an installed snapshot
// made them void: the entry of the snapshot itself keeps its term, those behind it have none, so that
// the library clears them when the leader sends the true ones.
type ghost struct {
	index, term uint64 // of the snapshot
	last        uint64 // last void entry; 0: no ghosts
}

// openLogStore opens or creates the log of cfg. It fails with ErrShortLog, ErrDamaged or
// ErrWrongServer. fail is told, at most once a call, of what happens in the background.
func openLogStore(cfg Config, fail func(error)) (*logStore, error) {
	if err := makeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("make raft directory: %w", err)
	}
	cache := pebble.NewCache(blockCacheBytes)
	defer cache.Unref()
	logger := pebbleLogger{log: cfg.Log, fail: fail}
	opts := &pebble.Options{
		FS: cfg.FS, Cache: cache, MemTableSize: memTableBytes, FormatMajorVersion: logFormat,
		Logger: logger, L0CompactionThreshold: 4, MaxOpenFiles: 500,
	}
	opts.EnsureDefaults()
	opts.EventListener = logger.listener()
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	db, err := engine.Open(cfg.FS.PathJoin(cfg.Dir, "log"), opts)
	if err != nil {
		return nil, fmt.Errorf("open raft log: %w", damagedUnlessSystem(err))
	}
	s := &logStore{db: db, seal: cfg.MAC, stall: cfg.DiskStall, fail: fail}
	if err := s.load(cfg); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// damagedUnlessSystem adds ErrDamaged unless the operating system refused something: a disk that cannot be read, too many files.
// Pebble and the encrypting file system have no one word for files that do not make sense.
func damagedUnlessSystem(err error) error {
	var refused syscall.Errno
	if errors.As(err, &refused) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// damagedIf adds ErrDamaged to Pebble's own word for it.
func damagedIf(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// load reads the bounds, the vote and the mark, and compares them.
func (s *logStore) load(cfg Config) error {
	m, marked, fresh, err := openMark(cfg.PlainFS, cfg.PlainFS.PathJoin(cfg.Dir, "mark"), s.seal, cfg.Self, cfg.Incarnation)
	if err != nil {
		return err
	}
	s.mark = m
	if marked.node != cfg.Self || marked.incarnation != cfg.Incarnation {
		return fmt.Errorf("%w: it is of %s, this is %s", ErrWrongServer,
			serverID(marked.node, marked.incarnation), serverID(cfg.Self, cfg.Incarnation))
	}
	if err := s.loadBounds(); err != nil {
		return err
	}
	s.pos = position{node: cfg.Self, incarnation: cfg.Incarnation, lastIndex: s.last, snapshot: marked.snapshot}
	if s.pos.vote, err = s.loadVote(); err != nil {
		return err
	}
	if fresh && (cfg.Existing || s.last > 0 || s.pos.vote.seq > 0) {
		return fmt.Errorf("%w: the mark is missing", ErrShortLog)
	}
	if err := s.compare(marked); err != nil {
		return err
	}
	if s.last > 0 {
		var l raft.Log
		if s.pos.lastTag, err = s.record(s.last, &l); err != nil {
			return err
		}
		s.pos.lastTerm = l.Term
	}
	if s.pos != marked { // stopped between the log's fsync and the mark's
		return s.mark.write(s.pos)
	}
	return nil
}

// compare checks that the log and vote are not older than marked says. They may be newer by the writes under way at a crash.
func (s *logStore) compare(marked position) error {
	v, m := s.pos.vote, marked.vote
	switch {
	case v.seq < m.seq:
		return fmt.Errorf("%w: the vote of term %d is missing", ErrShortLog, m.voteTerm)
	case v.seq == m.seq && v != m:
		return fmt.Errorf("%w: term and vote differ from the mark", ErrDamaged)
	case marked.lastIndex == 0:
		return nil
	case s.last < marked.lastIndex || s.first > marked.lastIndex:
		return fmt.Errorf("%w: it holds entries %d to %d, the mark is at %d", ErrShortLog, s.first, s.last, marked.lastIndex)
	}
	var l raft.Log
	own, err := s.record(marked.lastIndex, &l)
	if err != nil {
		return err
	}
	if own != marked.lastTag || l.Term != marked.lastTerm {
		return fmt.Errorf("%w: entry %d is not the one that was marked", ErrShortLog, marked.lastIndex)
	}
	return nil
}

const keyVote = "s"

// recordKey returns the key of the record of index.
func recordKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{'l'}, index)
}

// loadBounds finds the first and the last record.
func (s *logStore) loadBounds() (err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{'l'}, UpperBound: []byte{'l' + 1}})
	if err != nil {
		return fmt.Errorf("scan raft log: %w", damagedIf(err))
	}
	defer func() { err = errors.Join(err, damagedIf(it.Close())) }()
	if it.First() && len(it.Key()) == 9 {
		s.first = binary.BigEndian.Uint64(it.Key()[1:])
	}
	if it.Last() && len(it.Key()) == 9 {
		s.last = binary.BigEndian.Uint64(it.Key()[1:])
	}
	return nil
}

// loadVote reads the term and vote; zero when there are none yet.
func (s *logStore) loadVote() (vote, error) {
	b, closer, err := s.db.Get([]byte(keyVote))
	if errors.Is(err, pebble.ErrNotFound) {
		return vote{}, nil
	}
	if err != nil {
		return vote{}, fmt.Errorf("read term and vote: %w", damagedIf(err))
	}
	v, err := decodeVote(b, s.seal)
	return v, errors.Join(err, closer.Close())
}

// record reads the record of index from the database. A missing one is ErrDamaged: the caller knows it to be in bounds.
func (s *logStore) record(index uint64, l *raft.Log) (tag, error) {
	b, closer, err := s.db.Get(recordKey(index))
	if errors.Is(err, pebble.ErrNotFound) {
		return tag{}, fmt.Errorf("%w: log entry %d is missing", ErrDamaged, index)
	}
	if err != nil {
		return tag{}, fmt.Errorf("%w: read log entry %d: %w", ErrDamaged, index, err)
	}
	own, _, err := decodeRecord(b, s.seal, index, l)
	return own, errors.Join(err, closer.Close())
}

// FirstIndex returns the index of the first entry, 0 when empty.
func (s *logStore) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.first, nil
}

// LastIndex returns the index of the last entry, 0 when empty.
func (s *logStore) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last, nil
}

// GetLog fills l with the entry of index. It fails with raft.ErrLogNotFound outside the log's bounds, else with ErrDamaged or ErrUnknownEntry.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if g := s.ghost; g.last > 0 && index >= g.index && index <= g.last {
		*l = raft.Log{Index: index, Type: raft.LogNoop}
		if index == g.index {
			l.Term = g.term
		}
		return nil
	}
	if s.last == 0 || index < s.first || index > s.last {
		return raft.ErrLogNotFound
	}
	if s.tail.get(index, l) {
		return nil
	}
	_, err := s.record(index, l)
	return err
}

// StoreLog appends one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, with one fsync of the log and one of the mark. They follow the log's last entry, or the newest
// snapshot's index: then what was there before is dropped.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if err := checkEntries(logs); err != nil {
		return err
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	defer s.watch()()
	drop, err := s.follows(logs[0].Index)
	if err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // its error repeats that of Commit
	if drop {
		if err := s.dropAll(b); err != nil {
			return err
		}
	}
	bytes, before := uint64(0), s.pos.lastTag
	for _, l := range logs {
		s.buf, before = appendRecord(s.buf[:0], s.seal, l, before)
		bytes += uint64(len(s.buf))
		if err := b.Set(recordKey(l.Index), s.buf, nil); err != nil {
			return fmt.Errorf("%w: write raft log: %w", ErrDisk, err)
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("%w: write raft log: %w", ErrDisk, err)
	}
	end := logs[len(logs)-1]
	s.pos.lastIndex, s.pos.lastTerm, s.pos.lastTag = end.Index, end.Term, before
	if plant.Is(plant.StaleMark) {
		s.appended(logs, bytes)
		return nil
	}
	if err := s.mark.write(s.pos); err != nil {
		return err
	}
	s.appended(logs, bytes)
	return nil
}

// appended makes logs visible to readers.
func (s *logStore) appended(logs []*raft.Log, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		s.first = logs[0].Index
	}
	s.last = logs[len(logs)-1].Index
	s.ghost = ghost{}
	s.tail.add(logs)
	s.grown.entries += uint64(len(logs))
	s.grown.bytes += bytes
}

// checkEntries refuses what must not come into the log, because the library would panic on it when it is applied.
func checkEntries(logs []*raft.Log) error {
	for i, l := range logs {
		switch {
		case !known(l.Type):
			return fmt.Errorf("%w: entry %d has kind %d: upgrade this node", ErrUnknownEntry, l.Index, uint8(l.Type))
		case l.Index != logs[0].Index+uint64(i) || l.Index == 0:
			return fmt.Errorf("%w: entry %d out of order", ErrRefused, l.Index)
		case len(l.Data)+len(l.Extensions) > recordBytesMax-recordHead-len(tag{}):
			return fmt.Errorf("%w: entry %d", ErrTooLarge, l.Index)
		case l.Type == raft.LogConfiguration:
			if _, err := decodeConfiguration(l.Data); err != nil {
				return fmt.Errorf("%w: entry %d: %w", ErrDamaged, l.Index, err)
			}
		}
	}
	return nil
}

// follows checks that an entry of index may be appended. drop says that it follows the snapshot, not the log's last entry.
func (s *logStore) follows(index uint64) (drop bool, err error) {
	switch {
	case s.ghost.last > 0 && index != s.ghost.index+1:
		return false, fmt.Errorf("%w: entry %d does not follow the installed snapshot at %d: start the node again",
			ErrDamaged, index, s.ghost.index)
	case s.last > 0 && index == s.last+1, s.last == 0 && index == s.pos.snapshot+1:
		return false, nil
	case s.last > 0 && s.last < s.pos.snapshot && index == s.pos.snapshot+1:
		return true, nil
	}
	return false, fmt.Errorf("%w: entry %d follows neither the log's end at %d nor the snapshot at %d",
		ErrDamaged, index, s.last, s.pos.snapshot)
}

// dropAll adds the removal of every record to b and empties the mark first.
func (s *logStore) dropAll(b *pebble.Batch) error {
	s.pos.lastIndex, s.pos.lastTerm, s.pos.lastTag = 0, 0, tag{}
	if err := s.mark.write(s.pos); err != nil {
		return err
	}
	if err := b.DeleteRange([]byte{'l'}, []byte{'l' + 1}, nil); err != nil {
		return fmt.Errorf("%w: clear raft log: %w", ErrDisk, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first, s.last, s.tail = 0, 0, tail{}
	return nil
}

// DeleteRange removes the entries low to high: the beginning of the log after a snapshot, or a suffix that the leader
// does not have. Before a suffix goes, the mark is lowered durably.
func (s *logStore) DeleteRange(low, high uint64) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	defer s.watch()()
	first, last := s.first, s.last // only writers change them
	if last == 0 || high < first || low > last {
		return nil
	}
	low, high = max(low, first), min(high, last)
	switch {
	case high == last:
		if err := s.lower(low-1, first); err != nil {
			return err
		}
		last = low - 1
	case low == first:
		first = high + 1
	default:
		return fmt.Errorf("%w: entries %d to %d are in the middle of the log", ErrRefused, low, high)
	}
	if last < first {
		first, last = 0, 0
	}
	s.mu.Lock()
	s.first, s.last = first, last
	s.tail.cut(first, last)
	s.mu.Unlock()
	if err := s.db.DeleteRange(recordKey(low), recordKey(high+1), pebble.Sync); err != nil {
		return fmt.Errorf("%w: cut raft log: %w", ErrDisk, err)
	}
	return nil
}

// lower moves the mark down to the entry last, or to an empty log when that is before first.
func (s *logStore) lower(last, first uint64) error {
	p := s.pos
	p.lastIndex, p.lastTerm, p.lastTag = 0, 0, tag{}
	if last >= first {
		var l raft.Log
		own, err := s.record(last, &l)
		if err != nil {
			return err
		}
		p.lastIndex, p.lastTerm, p.lastTag = last, l.Term, own
	}
	if plant.Is(plant.MarkNotLowered) {
		s.pos = p
		return nil
	}
	if err := s.mark.write(p); err != nil {
		return err
	}
	s.pos = p
	return nil
}

// snapshotDurable remembers that the snapshot of index is on disk, and starts the counts for the next one.
func (s *logStore) snapshotDurable(index uint64) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	defer s.watch()()
	s.mu.Lock()
	s.grown = growth{}
	s.mu.Unlock()
	if s.pos.snapshot == index {
		return nil
	}
	s.pos.snapshot = index
	return s.mark.write(s.pos)
}

// snapshotInstalled drops the log when it does not agree with the snapshot of (index, term) that came from the leader. It
// keeps a log that holds this very entry.
func (s *logStore) snapshotInstalled(index, term uint64) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	defer s.watch()()
	first, last := s.first, s.last
	if last == 0 || first == index+1 {
		return nil
	}
	if first > index+1 {
		return fmt.Errorf("%w: the log begins at %d, the snapshot ends at %d", ErrShortLog, first, index)
	}
	if last >= index {
		var l raft.Log
		if _, err := s.record(index, &l); err != nil {
			return err
		}
		if l.Term == term {
			return nil
		}
	}
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // its error repeats that of Commit
	if err := s.dropAll(b); err != nil {
		return err
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("%w: clear raft log: %w", ErrDisk, err)
	}
	if last > index {
		s.mu.Lock()
		s.ghost = ghost{index: index, term: term, last: last}
		s.mu.Unlock()
	}
	return nil
}

// bounds returns the first and last index, zeros when empty.
func (s *logStore) bounds() (first, last uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.first, s.last
}

// end returns the end of the log or, when that is further, of the snapshot, and the current term.
func (s *logStore) end() End {
	_, last := s.bounds()
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return End{Index: max(last, s.pos.snapshot), Term: s.pos.vote.term}
}

// resume is called once before the library starts, which then reads the log's end afresh. The newest snapshot is of entry at.
func (s *logStore) resume(at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ghost = ghost{}
	if s.last <= at {
		return
	}
	s.grown.entries = s.last - at
	if bytes, err := s.db.EstimateDiskUsage(recordKey(at+1), recordKey(s.last)); err == nil {
		s.grown.bytes = bytes
	}
}

// growth returns what was appended since the last snapshot or the start.
func (s *logStore) growth() growth {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.grown
}

// snapshotIndex returns the index of the snapshot that the mark knows.
func (s *logStore) snapshotIndex() uint64 {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.pos.snapshot
}

// watch reports a write that does not return in time, until the returned function is called. The time is counted in steps: of a
// time in which the process itself stood still (SIGSTOP, a paused virtual machine) only one counts.
func (s *logStore) watch() (stop func() bool) {
	var ended atomic.Bool
	left := stallSteps
	var timer *time.Timer
	begun := make(chan struct{})
	timer = time.AfterFunc(s.stall/stallSteps, func() {
		<-begun // timer is set
		if left--; ended.Load() {
			return
		}
		if left > 0 {
			timer.Reset(s.stall / stallSteps)
			return
		}
		s.fail(fmt.Errorf("%w: a write of the raft log took longer than %v", ErrDisk, s.stall))
	})
	close(begun)
	return func() bool {
		ended.Store(true)
		return timer.Stop()
	}
}

// close lets go of the files.
func (s *logStore) close() error {
	err := s.db.Close()
	if s.mark != nil {
		err = errors.Join(err, s.mark.close())
	}
	return err
}
