package shard

import (
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
)

const (
	suffix        = ".shard"
	tempSuffix    = ".tmp"
	quarantineDir = "quarantine"
)

// location is where the file of a shard is.
type location struct {
	dir, middle, leaf, path string
	encode                  place.EncodeID
	index                   int
}

func locate(fs vfs.FS, dir string, encode place.EncodeID, index int) location {
	name := hex.EncodeToString(encode[:])
	middle := fs.PathJoin(dir, name[:2])
	leaf := fs.PathJoin(middle, name[2:4])
	return location{dir, middle, leaf, fs.PathJoin(leaf, fmt.Sprintf("%s-%d%s", name, index, suffix)), encode, index}
}

func (l location) temp() string { return l.path + tempSuffix }

// String names the shard for messages.
func (l location) String() string { return fmt.Sprintf("%v-%d", l.encode, l.index) }

// parseName reads a file name that locate made.
func parseName(name string) (place.EncodeID, int, bool) {
	base, ok := strings.CutSuffix(name, suffix)
	hexID, num, found := strings.Cut(base, "-")
	if !ok || !found || len(hexID) != 32 {
		return place.EncodeID{}, 0, false
	}
	raw, err := hex.DecodeString(hexID)
	index, errNum := strconv.Atoi(num)
	if err != nil || errNum != nil || index < 0 || index > indexMax || strconv.Itoa(index) != num {
		return place.EncodeID{}, 0, false
	}
	return place.EncodeID(raw), index, true
}

// Entry is a shard file as [List] finds it.
type Entry struct {
	// Pack is zero when the header cannot be read; Err says why.
	Pack   place.PackID
	Encode place.EncodeID
	Index  int
	Bytes  int64
	Err    error
}

// List yields every shard file under dir in order of name, reading each header and trailer. A file
// that cannot be opened as a shard is yielded with Err ([CorruptError] and others); an error of
// the walk itself comes with a zero Entry and ends it. Quarantined and unfinished files are left out.
func List(fs vfs.FS, dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		walk(fs, dir, func(leaf, name string, err error) bool {
			if err != nil {
				return yield(Entry{}, fmt.Errorf("list shards: %w", err))
			}
			encode, index, ok := parseName(name)
			if !ok {
				return true
			}
			return yield(describe(fs, dir, encode, index), nil)
		})
	}
}

// describe opens a file only to read what its header says.
func describe(fs vfs.FS, dir string, encode place.EncodeID, index int) Entry {
	e := Entry{Encode: encode, Index: index}
	r, err := openAny(fs, dir, encode, index)
	if err != nil {
		e.Err = err
		return e
	}
	e.Pack = r.h.Pack
	e.Bytes = r.h.Shape().FileBytes()
	e.Err = r.Close()
	return e
}

// walk calls visit for every file two levels below dir. visit returns false to stop.
func walk(fs vfs.FS, dir string, visit func(leaf, name string, err error) bool) {
	top, err := fs.List(dir)
	if err != nil {
		if !absent(err) {
			visit("", "", err)
		}
		return
	}
	slices.Sort(top)
	for _, a := range top {
		if !isFan(a) {
			continue
		}
		mid, err := fs.List(fs.PathJoin(dir, a))
		if err != nil {
			visit("", "", err)
			return
		}
		slices.Sort(mid)
		for _, b := range mid {
			if !isFan(b) {
				continue
			}
			leaf := fs.PathJoin(dir, a, b)
			names, err := fs.List(leaf)
			if err != nil {
				visit("", "", err)
				return
			}
			slices.Sort(names)
			for _, name := range names {
				if !visit(leaf, name, nil) {
					return
				}
			}
		}
	}
}

func isFan(name string) bool {
	_, err := hex.DecodeString(name)
	return len(name) == 2 && err == nil
}

// Sweep removes the files that a crash left unfinished and returns how many. Call it before the
// first Create.
func Sweep(fs vfs.FS, dir string) (removed int, err error) {
	walk(fs, dir, func(leaf, name string, walkErr error) bool {
		err = walkErr
		if err == nil && strings.HasSuffix(name, suffix+tempSuffix) {
			if err = fs.Remove(fs.PathJoin(leaf, name)); err == nil {
				removed++
			}
		}
		return err == nil
	})
	if err != nil {
		return removed, fmt.Errorf("sweep shards: %w", err)
	}
	return removed, nil
}

// Remove deletes a shard file and fsyncs its directory. [ErrNotFound] when there is none, which is durable then too:
// an earlier removal may have ended between the two.
func Remove(fs vfs.FS, dir string, encode place.EncodeID, index int) error {
	at := locate(fs, dir, encode, index)
	err := fs.Remove(at.path)
	gone := absent(err)
	if gone || err == nil {
		err = syncDirs(fs, at.leaf)
	}
	switch {
	case gone && (err == nil || absent(err)): // without a directory there never was a file
		return fmt.Errorf("remove shard %v: %w", at, ErrNotFound)
	case err != nil:
		return fmt.Errorf("remove shard %v: %w", at, err)
	}
	return nil
}

// Quarantine moves a shard file to DIR/quarantine, where no reader finds it, and fsyncs both
// directories. [ErrNotFound] when there is none.
func Quarantine(fs vfs.FS, dir string, encode place.EncodeID, index int) error {
	at := locate(fs, dir, encode, index)
	if _, err := fs.Stat(at.path); absent(err) {
		return fmt.Errorf("quarantine shard %v: %w", at, ErrNotFound)
	}
	if err := quarantine(fs, at); err != nil {
		return fmt.Errorf("quarantine shard %v: %w", at, err)
	}
	return nil
}

func quarantine(fs vfs.FS, at location) error {
	to := fs.PathJoin(at.dir, quarantineDir)
	if err := fs.MkdirAll(to, 0o700); err != nil {
		return err
	}
	base := fs.PathBase(at.path)
	for n := range quarantinedMax {
		free := fs.PathJoin(to, fmt.Sprintf("%s.%d", base, n))
		if _, err := fs.Stat(free); err == nil {
			continue
		} else if !absent(err) {
			return err
		}
		if err := fs.Rename(at.path, free); err != nil {
			return err
		}
		return syncDirs(fs, to, at.dir, at.leaf)
	}
	return errors.New("quarantine is full of copies of this shard: look at the disk and empty it")
}
