package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// cryptFS is the encrypting file system. Its methods are spelled out rather than embedded, so that
// one which a later Pebble adds cannot slip past the encryption.
type cryptFS struct {
	base    vfs.FS
	vault   *Vault
	damaged func(name string, err error)
	scratch sync.Pool // of *[scratchBytes]byte
}

var _ vfs.FS = (*cryptFS)(nil)

// Create removes what is at name, and makes a file with a new key and a durable header.
func (c *cryptFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := c.base.Create(name, category)
	if err != nil {
		return nil, err
	}
	return c.begin(f, name)
}

// begin writes and syncs the header of the empty file f. On failure it closes and removes it.
func (c *cryptFS) begin(f vfs.File, name string) (vfs.File, error) {
	key, header, err := c.newHeader()
	if err == nil {
		_, err = f.Write(header)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin encrypted file: %w", err), f.Close(), c.base.Remove(name))
	}
	return &cryptFile{base: f, block: newBlock(&key), scratch: &c.scratch}, nil
}

// ReuseForWrite never reuses: a key that has covered one content must not cover another.
func (c *cryptFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.base.Remove(oldname); err != nil {
		return nil, err
	}
	return c.Create(newname, category)
}

// Open opens a file that was created through an encrypting file system of the same ring.
func (c *cryptFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.base.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	file, err := c.resume(f)
	if err != nil {
		return nil, errors.Join(c.refuse(name, err), f.Close())
	}
	return file, nil
}

// OpenReadWrite opens a file, or creates it. One whose Create never finished is made anew.
func (c *cryptFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if _, err := c.base.Stat(name); oserror.IsNotExist(err) {
		return c.createReadWrite(name, category, opts)
	}
	f, err := c.base.OpenReadWrite(name, category, opts...)
	if err != nil {
		return nil, err
	}
	file, err := c.resume(f)
	if err != nil {
		return nil, errors.Join(c.refuse(name, err), f.Close())
	}
	if file.block != nil {
		return file, nil
	}
	if err := errors.Join(f.Close(), c.base.Remove(name)); err != nil {
		return nil, err
	}
	return c.createReadWrite(name, category, opts)
}

// refuse wraps why a file cannot be opened.
func (c *cryptFS) refuse(name string, err error) error {
	err = fmt.Errorf("open encrypted file %s: %w", name, err)
	if c.damaged != nil && errors.Is(err, ErrTampered) {
		c.damaged(name, err)
	}
	return err
}

func (c *cryptFS) createReadWrite(name string, category vfs.DiskWriteCategory, opts []vfs.OpenOption) (vfs.File, error) {
	f, err := c.base.OpenReadWrite(name, category, opts...)
	if err != nil {
		return nil, err
	}
	return c.begin(f, name)
}

// resume reads the header, which leaves f at the start of the body.
func (c *cryptFS) resume(f vfs.File) (*cryptFile, error) {
	header := make([]byte, headerBytes)
	_, err := io.ReadFull(f, header)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &cryptFile{base: f}, nil // its Create never finished, so it has no body
	}
	if err != nil {
		return nil, err
	}
	wrapped, err := parseHeader(header)
	if err != nil {
		if info, statErr := f.Stat(); statErr == nil && info.Size() == headerBytes && !errors.Is(err, ErrVersion) {
			return &cryptFile{base: f}, nil // a torn header, and no body
		}
		return nil, err
	}
	key, err := c.vault.Unwrap(wrapped, headerAAD())
	if err != nil {
		return nil, err
	}
	return &cryptFile{base: f, block: newBlock(&key), scratch: &c.scratch}, nil
}

const fileMagic = "OSTVFILE"

func headerAAD() []byte { return []byte("osteon vault file 1") }

func (c *cryptFS) newHeader() (Key, []byte, error) {
	key, wrapped, err := c.vault.NewKey(headerAAD())
	if err != nil {
		return Key{}, nil, err
	}
	header := make([]byte, headerBytes-checksumBytes, headerBytes)
	copy(header, fileMagic)
	binary.LittleEndian.PutUint16(header[8:], formatVersion)
	binary.LittleEndian.PutUint16(header[10:], uint16(len(wrapped)))
	copy(header[12:], wrapped)
	return key, appendChecksum(header), nil
}

func parseHeader(header []byte) (WrappedKey, error) {
	body, err := checked(header, fileMagic, headerBytes-checksumBytes)
	if err != nil {
		return nil, err
	}
	length := int(binary.LittleEndian.Uint16(body[10:]))
	if length > wrappedBytesMax {
		return nil, fmt.Errorf("wrapped key of %d bytes: %w", length, ErrTampered)
	}
	return WrappedKey(body[12 : 12+length]), nil
}

// Stat returns the info of a file with the size of its body.
func (c *cryptFS) Stat(name string) (vfs.FileInfo, error) { return bodyInfo(c.base.Stat(name)) }

// Link gives a file, and with it its header, a second name.
func (c *cryptFS) Link(oldname, newname string) error { return c.base.Link(oldname, newname) }

// Rename keeps the header.
func (c *cryptFS) Rename(oldname, newname string) error { return c.base.Rename(oldname, newname) }

// Remove removes a file or an empty directory.
func (c *cryptFS) Remove(name string) error { return c.base.Remove(name) }

// RemoveAll removes a directory and all below it.
func (c *cryptFS) RemoveAll(name string) error { return c.base.RemoveAll(name) }

// OpenDir opens a directory for syncing.
func (c *cryptFS) OpenDir(name string) (vfs.File, error) { return c.base.OpenDir(name) }

// MkdirAll makes a directory and its parents.
func (c *cryptFS) MkdirAll(dir string, perm os.FileMode) error { return c.base.MkdirAll(dir, perm) }

// Lock locks a file, which has no header and no body.
func (c *cryptFS) Lock(name string) (io.Closer, error) { return c.base.Lock(name) }

// List lists a directory; names are not encrypted.
func (c *cryptFS) List(dir string) ([]string, error) { return c.base.List(dir) }

// PathBase returns the last element of path.
func (c *cryptFS) PathBase(path string) string { return c.base.PathBase(path) }

// PathJoin joins elements of a path.
func (c *cryptFS) PathJoin(elem ...string) string { return c.base.PathJoin(elem...) }

// PathDir returns all but the last element of path.
func (c *cryptFS) PathDir(path string) string { return c.base.PathDir(path) }

// GetDiskUsage returns the space of the file system that holds path, headers included.
func (c *cryptFS) GetDiskUsage(path string) (vfs.DiskUsage, error) { return c.base.GetDiskUsage(path) }

// Unwrap returns the plain file system.
func (c *cryptFS) Unwrap() vfs.FS { return c.base }
