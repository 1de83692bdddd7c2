package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Checkpoint writes the applied state into dir, which must not exist, as a database of its own:
// hard links where the file system has them. A stopped catalog makes none.
func (c *Catalog) Checkpoint(dir string) error {
	if err := c.Fault(); err != nil {
		return fmt.Errorf("checkpoint the catalog: %w", err)
	}
	db, err := c.use()
	if err != nil {
		return err
	}
	defer db.release()
	err = guarded(func() error { return db.Checkpoint(dir, pebble.WithFlushedWAL()) })
	if errors.Is(err, ErrDisk) {
		c.stop(err)
	}
	if err != nil {
		return fmt.Errorf("checkpoint the catalog: %w", err)
	}
	return nil
}

// Restore replaces the state by the checkpoint in dir, which stays as it is. Reads under way go on
// over the old state. On an error the old state stays.
func (c *Catalog) Restore(dir string) error {
	c.mu.Lock()
	generation, cache, closed := c.generation+1, c.cache, c.db == nil
	c.mu.Unlock()
	if closed {
		return ErrClosed
	}
	name := databaseName(generation)
	to := c.cfg.FS.PathJoin(c.cfg.Dir, name)
	db, applied, err := c.adopt(dir, to, cache)
	if err == nil {
		if err = c.marker.Move(name); err != nil {
			err = firstError(err, db.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("restore the catalog: %w", firstError(err, c.cfg.FS.RemoveAll(to)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.db
	c.db, c.generation, c.applied, c.fault = db, generation, applied, nil
	c.advance()
	if old == nil {
		return ErrClosed
	}
	return old.retire()
}

// adopt copies a checkpoint to another directory and opens it there.
func (c *Catalog) adopt(from, to string, cache *pebble.Cache) (*database, uint64, error) {
	fs := c.cfg.FS
	if err := fs.RemoveAll(to); err != nil {
		return nil, 0, err
	}
	if err := copyDatabase(fs, from, to); err != nil {
		return nil, 0, err
	}
	db, err := openDatabase(c.cfg, to, cache)
	if err != nil {
		return nil, 0, err
	}
	applied, err := readApplied(db)
	if err != nil {
		return nil, 0, firstError(err, db.Close())
	}
	return db, applied, nil
}

// copyDatabase links tables, which never change, and copies all other files.
func copyDatabase(fs vfs.FS, from, to string) error {
	names, err := fs.List(from)
	if err != nil {
		return fmt.Errorf("list the checkpoint: %w", err)
	}
	if err := fs.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		source, target := fs.PathJoin(from, name), fs.PathJoin(to, name)
		if strings.HasSuffix(name, ".sst") {
			err = vfs.LinkOrCopy(fs, source, target)
		} else {
			err = vfs.Copy(fs, source, target)
		}
		if err != nil {
			return fmt.Errorf("copy the checkpoint: %w", err)
		}
	}
	for _, dir := range []string{to, fs.PathDir(to)} {
		if err := syncDir(fs, dir); err != nil {
			return fmt.Errorf("sync the checkpoint: %w", err)
		}
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return firstError(d.Sync(), d.Close())
}

// StateHash returns a hash over all rows and the index it belongs to: the same on every replica at
// the same index. Instance tables count with their content, so that replicas whose compressors
// differ agree. It reads the whole catalog.
func (c *Catalog) StateHash(ctx context.Context) (hash [32]byte, index uint64, err error) {
	db, err := c.use()
	if err != nil {
		return hash, 0, err
	}
	defer db.release()
	snapshot := db.NewSnapshot()
	defer snapshot.Close()
	if index, err = readApplied(snapshot); err != nil {
		return hash, 0, err
	}
	iter, err := snapshot.NewIterWithContext(ctx, nil)
	if err != nil {
		return hash, 0, fmt.Errorf("hash the catalog: %w", err)
	}
	defer iter.Close()
	h := sha256.New()
	appliedKey := string(keyMeta(metaApplied))
	for rows, valid := 0, iter.First(); valid; rows, valid = rows+1, iter.Next() {
		if rows%checkEvery == 0 && ctx.Err() != nil {
			return hash, 0, ctx.Err()
		}
		key, value := iter.Key(), iter.Value()
		if string(key) == appliedKey {
			continue
		}
		if len(key) > 1 && table(key[1]) == tableInstances {
			if value, err = c.tables.body(value); err != nil {
				return hash, 0, err
			}
		}
		var sizes [16]byte
		binary.LittleEndian.PutUint64(sizes[:8], uint64(len(key)))
		binary.LittleEndian.PutUint64(sizes[8:], uint64(len(value)))
		h.Write(sizes[:])
		h.Write(key)
		h.Write(value)
	}
	if err := iter.Error(); err != nil {
		return hash, 0, fmt.Errorf("hash the catalog: %w", err)
	}
	return [32]byte(h.Sum(nil)), index, nil
}
