package vault

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const writeCategory vfs.DiskWriteCategory = "osteon-vault"

// writeNew makes the durable file path holding data, or fails with ErrExists and leaves what is there.
// The bytes are written inside a directory that only the owner may enter, and linked into place when
// they are whole and synced.
func writeNew(fs vfs.FS, path string, data []byte) error {
	if _, err := fs.Stat(path); err == nil {
		return ErrExists
	}
	scratch := path + ".new"
	if err := fs.RemoveAll(scratch); err != nil {
		return err
	}
	if err := fs.MkdirAll(scratch, 0o700); err != nil {
		return err
	}
	name := fs.PathJoin(scratch, fs.PathBase(path))
	err := writeSynced(fs, name, data)
	if err == nil {
		err = fs.Link(name, path)
		if oserror.IsExist(err) {
			err = ErrExists
		}
	}
	return errors.Join(err, fs.RemoveAll(scratch), syncDir(fs, fs.PathDir(path)))
}

func writeSynced(fs vfs.FS, name string, data []byte) error {
	f, err := fs.Create(name, writeCategory)
	if err != nil {
		return err
	}
	if err = ownerOnly(f); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readFile returns the whole file, which must not be longer than limit.
func readFile(fs vfs.FS, path string, limit int64) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("longer than %d bytes: %w", limit, ErrTampered)
	}
	return b, nil
}

// MakeDir makes dir where missing, and every parent that is missing, each durable in its own parent.
func MakeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); !oserror.IsNotExist(err) {
		return err
	}
	parent := fs.PathDir(dir)
	if parent != dir {
		if err := MakeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
