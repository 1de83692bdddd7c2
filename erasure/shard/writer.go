package shard

import (
	"errors"
	"fmt"
	iofs "io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/plant"
)

const writeCategory = vfs.WriteCategoryUnspecified

// Writer writes one shard file. Not safe for concurrent use. Exactly one of Commit and Abort ends
// it; Abort after Commit does nothing.
type Writer struct {
	fs      vfs.FS
	at      location
	file    vfs.File
	build   *Builder
	written int64
	synced  int64
	err     error // the first failure, which every later call returns
	done    bool
}

// Create starts the file of the shard that h names under dir. Errors: [ErrExists], those of
// [Header.Check], and those of the file system.
func Create(fs vfs.FS, dir string, h Header) (*Writer, error) {
	build, err := NewBuilder(h)
	if err != nil {
		return nil, err
	}
	at := locate(fs, dir, h.Encode, h.Index)
	if _, err := fs.Stat(at.path); err == nil {
		return nil, fmt.Errorf("create shard %v: %w", at, ErrExists)
	}
	if err := fs.MkdirAll(at.leaf, 0o700); err != nil {
		return nil, fmt.Errorf("create shard %v: %w", at, err)
	}
	file, err := fs.Create(at.temp(), writeCategory)
	if err != nil {
		return nil, fmt.Errorf("create shard %v: %w", at, err)
	}
	w := &Writer{fs: fs, at: at, file: file, build: build}
	if err := w.write(build.header()); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// WriteCell appends the next cell. cell is not kept. A failure is final: the shard cannot be
// committed any more.
func (w *Writer) WriteCell(cell []byte) error {
	if err := w.usable(); err != nil {
		return err
	}
	out, err := w.build.Cell(cell)
	if err != nil {
		w.err = fmt.Errorf("write shard %v: %w", w.at, err)
		return w.err
	}
	return w.write(out)
}

// Commit writes the trailer for a stream of streamBytes, fsyncs the file, gives it its name and
// fsyncs the directories. When it returns nil the shard survives a power loss. The root covers
// what was written; [Reader.Verify] computes it again from the disk. On any error the shard must be
// taken as absent; it is never retried.
func (w *Writer) Commit(streamBytes int64) (Root, error) {
	if err := w.usable(); err != nil {
		return Root{}, err
	}
	root, err := w.commit(streamBytes)
	if err != nil {
		w.err = fmt.Errorf("commit shard %v: %w", w.at, err)
		w.Abort()
		return Root{}, w.err
	}
	w.done = true
	return root, nil
}

func (w *Writer) commit(streamBytes int64) (Root, error) {
	trailer, root, err := w.build.Finish(streamBytes)
	if err != nil {
		return Root{}, err
	}
	if err := w.write(trailer); err != nil {
		return Root{}, err
	}
	if !plant.Is(plant.ShardNotSynced) {
		if err := w.file.Sync(); err != nil {
			return Root{}, err
		}
	}
	file := w.file
	w.file = nil
	if err := file.Close(); err != nil {
		return Root{}, err
	}
	if _, err := w.fs.Stat(w.at.path); err == nil {
		return Root{}, ErrExists
	}
	if err := w.fs.Rename(w.at.temp(), w.at.path); err != nil {
		return Root{}, err
	}
	// The fan-out directories may be new, and another writer may have made them a moment ago and
	// not have synced them yet: sync all three, which costs nothing where nothing changed.
	return root, syncDirs(w.fs, w.at.leaf, w.at.middle, w.at.dir)
}

// Abort removes the unfinished file. It does nothing after Commit or Abort.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	// The file is garbage either way; what cannot be removed now is swept at the next start.
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
	_ = w.fs.Remove(w.at.temp())
}

func (w *Writer) usable() error {
	if w.err != nil {
		return w.err
	}
	if w.done {
		return fmt.Errorf("shard %v: writer is closed", w.at)
	}
	return nil
}

func (w *Writer) write(b []byte) error {
	n, err := w.file.Write(b)
	if err != nil {
		w.err = fmt.Errorf("write shard %v at %d: %w", w.at, w.written, err)
		return w.err
	}
	w.written += int64(n)
	if w.written-w.synced >= syncEveryBytes {
		w.synced = w.written
		if _, err := w.file.SyncTo(w.written); err != nil {
			w.err = fmt.Errorf("sync shard %v: %w", w.at, err)
			return w.err
		}
	}
	return nil
}

// syncDirs fsyncs directories, in order.
func syncDirs(fs vfs.FS, dirs ...string) error {
	for _, dir := range dirs {
		if plant.Is(plant.ShardNameNotSynced) {
			return nil
		}
		d, err := fs.OpenDir(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// absent reports whether err says that a file is not there.
func absent(err error) bool { return errors.Is(err, iofs.ErrNotExist) }
