package catalog

import (
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"osteon/raft/engine"
)

// database is one open Pebble database. Whoever uses it holds a reference; it closes, and its
// directory goes when it has been replaced, with the last one.
type database struct {
	*pebble.DB
	fs  vfs.FS
	dir string
	log *slog.Logger

	mu       sync.Mutex
	users    int
	obsolete bool
}

// pebbleOptions returns the options of every database; the caller unrefs the cache.
//
// The log owns durability, so batches are not synced. FormatMajorVersion is pinned: raising it is
// irreversible and a migration of its own.
func pebbleOptions(cfg Config, cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS: cfg.FS, Cache: cache, FormatMajorVersion: pebble.FormatWALSyncChunks,
		MemTableSize: memTableBytes, MemTableStopWritesThreshold: memTables, L0CompactionThreshold: 4,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		WALBytesPerSync:            512 << 10,
		Logger:                     pebbleLog{cfg},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { cfg.Log.Warn("catalog database failed in the background", "err", err) },
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				if cfg.Damaged != nil {
					cfg.Damaged(fmt.Errorf("%w: %w", ErrDamaged, info.Details))
				}
				time.Sleep(damagePause)
			},
		},
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	for i := range o.Levels {
		o.Levels[i].BlockSize = 32 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	return o
}

// pebbleLog passes Pebble's log lines on. They name files, never keys.
type pebbleLog struct{ cfg Config }

func (l pebbleLog) Infof(format string, args ...any) {
	l.cfg.Log.Debug("pebble spoke", "line", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.cfg.Log.Error("pebble complained", "line", fmt.Sprintf(format, args...))
}

// Fatalf must not return: it ends the goroutine that met the error, which holds no lock that is not deferred.
func (l pebbleLog) Fatalf(format string, args ...any) {
	err := fmt.Errorf("%w: %s", ErrDisk, fmt.Sprintf(format, args...))
	l.cfg.Log.Error("catalog database gave up", "err", err)
	if l.cfg.Failed != nil {
		l.cfg.Failed(err)
	}
	runtime.Goexit()
}

// guarded runs a write of the database, which ends or panics the goroutine that meets an error of the disk in some
// places (a commit, a new log file): so it has one of its own, and the error is ErrDisk.
func guarded(write func() error) (err error) {
	finished := make(chan struct{})
	returned := false
	go func() { // ends with the write
		defer close(finished)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: %v", ErrDisk, p)
				returned = true
			}
		}()
		err = write()
		returned = true
	}()
	<-finished
	if !returned {
		return fmt.Errorf("%w: the database gave up, its log says why", ErrDisk)
	}
	return err
}

const (
	markerName      = "catalog"
	databasePrefix  = "db-"
	firstGeneration = 1
)

func databaseName(generation uint64) string {
	return databasePrefix + fmt.Sprintf("%06d", generation)
}

func parseDatabaseName(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, databasePrefix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil
}

// openCurrent opens the database that the marker in dir names, the first one in a new directory,
// and removes others, which a crash in Restore left.
func openCurrent(cfg Config, cache *pebble.Cache) (*database, *atomicfs.Marker, uint64, error) {
	fs, dir := cfg.FS, cfg.Dir
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, 0, fmt.Errorf("make the catalog's directory: %w", err)
	}
	marker, name, err := atomicfs.LocateMarker(fs, dir, markerName)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("read the catalog's marker: %w", err)
	}
	generation, ok := uint64(firstGeneration), true
	if name == "" {
		name = databaseName(firstGeneration)
	} else if generation, ok = parseDatabaseName(name); !ok {
		return nil, nil, 0, fmt.Errorf("%w marker of the catalog: restore its directory from another node", ErrMalformed)
	}
	if err := removeOthers(fs, dir, name); err != nil {
		return nil, nil, 0, err
	}
	db, err := openDatabase(cfg, fs.PathJoin(dir, name), cache)
	if err != nil {
		return nil, nil, 0, err
	}
	if err := marker.Move(name); err != nil {
		return nil, nil, 0, fmt.Errorf("write the catalog's marker: %w", firstError(err, db.Close()))
	}
	return db, marker, generation, nil
}

func removeOthers(fs vfs.FS, dir, keep string) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("list the catalog's directory: %w", err)
	}
	for _, name := range names {
		if _, ok := parseDatabaseName(name); !ok || name == keep {
			continue
		}
		if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
			return fmt.Errorf("remove a replaced catalog: %w", err)
		}
	}
	return nil
}

func openDatabase(cfg Config, dir string, cache *pebble.Cache) (*database, error) {
	if err := checkClosed(cfg.FS, dir); err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	db, err := engine.Open(dir, pebbleOptions(cfg, cache))
	if err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	return &database{DB: db, fs: cfg.FS, dir: dir, log: cfg.Log, users: 1}, nil
}

// acquire adds a user, or reports that the database is closed.
func (d *database) acquire() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == 0 {
		return false
	}
	d.users++
	return true
}

// release takes a user away; the last one closes the database.
func (d *database) release() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users > 0 {
		return nil
	}
	err := d.DB.Close()
	if err == nil && !d.obsolete {
		err = markClosed(d.fs, d.dir)
	}
	if d.obsolete {
		err = firstError(err, d.fs.RemoveAll(d.dir))
	}
	if err != nil {
		d.log.Error("catalog database did not close well", "err", err)
	}
	return err
}

// retire gives up the catalog's own use of a database that another has replaced.
func (d *database) retire() error {
	d.mu.Lock()
	d.obsolete = true
	d.mu.Unlock()
	return d.release()
}
