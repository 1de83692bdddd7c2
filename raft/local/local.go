// Package local keeps what is one node's own and never replicated, in a small Pebble database that every write reaches
// with an fsync. Its door is DB.
//
//	db, err := local.Open(local.Config{FS: vault.FS(), Dir: dir})
//	err = db.Hold(pack, encode, index, generation) // ErrStaleGeneration when a newer one is on record
//
// It holds five things:
//
//   - the holder index: for which placement generation of its pack each shard on this node was written or last confirmed, so
//     that a node with an old view of the ring cannot write or read a shard that has moved on;
//   - the spool index: instances acknowledged here that no second site has yet, in order of arrival;
//   - the scrub cursor: how far the patrol over the shards has come;
//   - what is remembered of other nodes, by which one that comes back with an older disk, or twice, is found out;
//   - small named values.
//
// # Keys and values, little-endian values, big-endian numbers in keys
//
//	'f'                              "OSLOCAL" | version u8 = 1                 the database's own version
//	'h' | pack 16 | encode 16 | index u16    version u8 = 1 | generation u64
//	's' | sequence u64               version u8 = 1 | key 32 | body             one spooled instance
//	'k' | key 32                     version u8 = 1 | sequence u64              its sequence
//	'c'                              version u8 = 1 | round u64 | pack 16 | encode 16 | index u16
//	                                 | checked u64 | bad u64 | started i64 | updated i64 (Unix ns)
//	'n' | name                       version u8 = 1 | value                     a named value
//	'p' | node 16                    version u8 = 1 | incarnation u64 | boot u64 | instance 16 | index u64 | term u64
//	                                                                           what is remembered of another node
//
// Pebble adds checksums; its file system encrypts.
//
// Everything here can be rebuilt or lost without losing an instance: the journal knows what is spooled, the catalog where shards belong.
// Pebble may drop the newest writes when the tail of its log is damaged on disk, and nothing here guards against that: a
// shard's root in the catalog is what a reader trusts.
package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/raft/engine"
)

var (
	// ErrStaleGeneration: a newer placement generation of this shard is on record here. The caller's view of the
	// ring is old: read the catalog again.
	ErrStaleGeneration = errors.New("stale placement generation")
	// ErrNotFound: nothing is kept under this name.
	ErrNotFound = errors.New("not found")
	// ErrFenced: an earlier write or fsync failed, so nothing is written or read any more; restart the node once
	// the disk is sound.
	ErrFenced = errors.New("local database is fenced after a disk error")
	// ErrFormat: a record is of a version that this release does not know, or damaged.
	ErrFormat = errors.New("local database: unknown or damaged record")
	// ErrNewer: another release wrote the database: run that one or a later one.
	ErrNewer = errors.New("local database of another release")
	// ErrDamaged: files of the database are damaged or missing.
	ErrDamaged = errors.New("local database is damaged")
	// ErrTooLarge: a key or value exceeds its limit.
	ErrTooLarge = errors.New("too large for the local database")
	// ErrClosed: the database was closed.
	ErrClosed = errors.New("local database is closed")
)

const (
	tableFormat = 'f'
	tableHolder = 'h'
	tableSpool  = 's'
	tableKey    = 'k'
	tableCursor = 'c'
	tableNamed  = 'n'
	tableSeen   = 'p'

	recordVersion = 1
	// formatVersion is Pebble's; it is raised by a migration, never by an upgrade of the library.
	formatVersion = pebble.FormatWALSyncChunks
)

var formatRecord = append([]byte("OSLOCAL"), recordVersion)

// Config is what Open needs.
type Config struct {
	// FS is the encrypting file system.
	FS  vfs.FS
	Dir string
	// Failed, when set, is told once of the disk error that fenced the database. It must not block.
	Failed func(error)
	// Damaged, when set, is told what a read found not to be what was written. It must not block.
	Damaged func(error)
	// Log receives what went wrong on disk; nil discards it.
	Log *slog.Logger
}

// DB is the open database. It is safe for concurrent use. Close it.
type DB struct {
	cfg   Config
	log   *slog.Logger
	db    *pebble.DB
	seed  maphash.Seed
	locks [lockStripes]sync.Mutex // serialise check and write of one shard's generation
	fault atomic.Pointer[error]

	life   sync.RWMutex // read-held during every use of db
	closed bool

	spool    sync.Mutex // serialises changes of the spool index; held over their fsync, which order needs
	last     uint64     // sequence of the newest spool entry
	spooling int
}

// Open opens the database in Dir, made at first use. ErrNewer when a newer release wrote it, ErrDamaged when what is there
// cannot be used: nothing in it is needed to find an instance, so the caller may begin anew without it.
func Open(cfg Config) (*DB, error) {
	d := &DB{cfg: cfg, log: cfg.Log, seed: maphash.MakeSeed()}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref()
	opts := &pebble.Options{
		FS: cfg.FS, Cache: cache, MemTableSize: memTableBytes, FormatMajorVersion: formatVersion, MaxOpenFiles: openFilesMax,
		Logger: engineLog{d},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { d.log.Warn("local database failed in the background", "err", err) },
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				if cfg.Damaged != nil {
					cfg.Damaged(fmt.Errorf("%w: %w", ErrDamaged, info.Details))
				}
				time.Sleep(damagePause)
			},
			DiskSlow: func(info pebble.DiskSlowInfo) {
				d.log.Warn("disk was slow", "op", info.OpType.String(), "ms", info.Duration.Milliseconds())
			},
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].FilterType = pebble.TableFilter
	}
	db, err := engine.Open(cfg.Dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open local database: %w", damagedUnlessSystem(err))
	}
	d.db = db
	if err := d.prepare(); err != nil {
		if !errors.Is(err, ErrNewer) {
			err = damagedUnlessSystem(err)
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// damagedUnlessSystem makes err ErrDamaged unless the operating system refused something: a lock that another process holds,
// a disk that cannot be read, too many files. Pebble has no one word for files that do not make sense.
func damagedUnlessSystem(err error) error {
	var refused syscall.Errno
	if errors.As(err, &refused) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// prepare checks the database's version and counts what is spooled.
func (d *DB) prepare() error {
	format, err := d.get([]byte{tableFormat})
	switch {
	case errors.Is(err, ErrNotFound):
		if err := d.write(func(b *pebble.Batch) error { return b.Set([]byte{tableFormat}, formatRecord, nil) }); err != nil {
			return err
		}
	case err != nil:
		return err
	case !bytes.Equal(format, formatRecord):
		return fmt.Errorf("%w: %w", ErrNewer, ErrFormat)
	}
	return d.scan([]byte{tableSpool}, nil, func(key, _ []byte) (bool, error) {
		if len(key) != 9 {
			return false, fmt.Errorf("%w: spool key", ErrFormat)
		}
		d.last = binary.BigEndian.Uint64(key[1:])
		d.spooling++
		return true, nil
	})
}

// Close waits for calls under way and closes the database. A second call returns nil.
func (d *DB) Close() error {
	d.life.Lock()
	defer d.life.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.Err() != nil {
		// A failed engine cannot flush; closing it would wait for that for ever. What was acknowledged is in its log.
		return nil
	}
	if err := d.db.Close(); err != nil {
		return fmt.Errorf("close local database: %w", err)
	}
	return nil
}

// Err returns nil, or the error that fenced the database, wrapping ErrFenced.
func (d *DB) Err() error {
	if p := d.fault.Load(); p != nil {
		return *p
	}
	return nil
}

// fence stops all use after a disk error. Only the first one counts.
func (d *DB) fence(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFenced, cause)
	if d.fault.CompareAndSwap(nil, &err) {
		d.log.Error("local database fenced", "err", cause)
		if d.cfg.Failed != nil {
			d.cfg.Failed(err)
		}
	}
	return d.Err()
}

// use holds off Close; the caller calls the function returned when it is done.
func (d *DB) use() (done func(), err error) {
	d.life.RLock()
	switch {
	case d.closed:
		err = ErrClosed
	default:
		err = d.Err()
	}
	if err != nil {
		d.life.RUnlock()
		return nil, err
	}
	return d.life.RUnlock, nil
}

// get returns a copy of a value. ErrNotFound.
func (d *DB) get(key []byte) ([]byte, error) {
	done, err := d.use()
	if err != nil {
		return nil, err
	}
	defer done()
	value, closer, err := d.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read local database: %w", err)
	}
	value = bytes.Clone(value)
	return value, closer.Close()
}

// scan yields the rows of a table behind the key after (nil: from the start) until yield returns false.
func (d *DB) scan(table, after []byte, yield func(key, value []byte) (bool, error)) (err error) {
	done, err := d.use()
	if err != nil {
		return err
	}
	defer done()
	lower := table
	if after != nil {
		lower = append(bytes.Clone(after), 0)
	}
	it, err := d.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: []byte{table[0] + 1}})
	if err != nil {
		return fmt.Errorf("read local database: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		more, err := yield(it.Key(), it.Value())
		if err != nil || !more {
			return err
		}
	}
	return it.Error()
}

// write commits what fill puts into a batch and returns after the fsync. Any failure fences: whether the rows are on
// disk is then not known, and an fsync is never tried twice.
func (d *DB) write(fill func(*pebble.Batch) error) error {
	done, err := d.use()
	if err != nil {
		return err
	}
	defer done()
	b := d.db.NewBatch()
	if err := fill(b); err != nil {
		return errors.Join(err, b.Close())
	}
	// Pebble calls Fatalf on a failed commit and expects not to return. That ends this goroutine, not the caller's.
	var cerr error
	finished, committed := make(chan struct{}), false
	go func() { // ends with the commit
		defer close(finished)
		cerr = b.Commit(pebble.Sync)
		committed = true
	}()
	<-finished
	switch {
	case !committed:
		return d.fence(errors.New("commit failed"))
	case cerr != nil:
		return d.fence(cerr)
	}
	return b.Close()
}

// engineLog passes on what Pebble has to say.
type engineLog struct{ d *DB }

func (l engineLog) Infof(string, ...any) {}

func (l engineLog) Errorf(format string, args ...any) {
	l.d.log.Warn("local database complained", "text", fmt.Sprintf(format, args...))
}

// Fatalf must not return.
func (l engineLog) Fatalf(format string, args ...any) {
	_ = l.d.fence(fmt.Errorf(format, args...))
	runtime.Goexit()
}
