package catalog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble takes a MANIFEST that breaks off for one that was being written, and opens the database as it was some time before, with
// what was logged since on top: with a hole that nothing shows. So an orderly close leaves a file beside the tables that
// holds closedMagic and the SHA-256 of the MANIFEST; the next open compares it and removes it. After a crash there is none.
const (
	closedName  = "CLOSED"
	closedMagic = "OSTVCLS1"
)

// manifestSum returns the hash of names and contents of the MANIFEST files in dir.
func manifestSum(fsys vfs.FS, dir string) ([]byte, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		b, err := readWhole(fsys, fsys.PathJoin(dir, name))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	return h.Sum([]byte(closedMagic)), nil
}

func readWhole(fsys vfs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, firstError(err, f.Close())
}

// markClosed notes what the database in dir was closed with.
func markClosed(fsys vfs.FS, dir string) error {
	sum, err := manifestSum(fsys, dir)
	if err != nil {
		return err
	}
	f, err := fsys.Create(fsys.PathJoin(dir, closedName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(sum)
	return firstError(err, f.Sync(), f.Close(), syncDir(fsys, dir))
}

// checkClosed compares the database in dir with what it was closed with, and removes the note. ErrDamaged.
func checkClosed(fsys vfs.FS, dir string) error {
	path := fsys.PathJoin(dir, closedName)
	want, err := readWhole(fsys, path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(want) == 0 { // an empty one was cut short by a crash
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: read %s: %w", ErrDamaged, closedName, err)
	}
	got, err := manifestSum(fsys, dir)
	if err != nil {
		return fmt.Errorf("%w: read the MANIFEST: %w", ErrDamaged, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: the MANIFEST is not the one that the database was closed with", ErrDamaged)
	}
	return firstError(fsys.Remove(path), syncDir(fsys, dir))
}
