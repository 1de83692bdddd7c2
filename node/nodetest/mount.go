package nodetest

import (
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// mount is a disk as one process sees it.
type mount struct {
	disk *Disk
	tree *tree
}

var _ vfs.FS = (*mount)(nil)

// Create makes a new file in place of what has the name.
func (m *mount) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := m.allow(OpCreate, name); err != nil {
		return nil, err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, last, err := m.tree.find(name)
	if err != nil {
		return nil, err
	}
	if old := dir.children[last]; last == "" || old != nil && old.isDir {
		return nil, &os.PathError{Op: "create", Path: name, Err: syscall.EISDIR}
	}
	n := newFile()
	dir.apply(change{last: n})
	return m.open(name, n), nil
}

func (m *mount) open(name string, n *inode) *file { return &file{mount: m, name: name, node: n} }

// Link gives a file another name.
func (m *mount) Link(oldname, newname string) error {
	if err := m.allow(OpLink, newname); err != nil {
		return err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	n, err := m.tree.look(oldname)
	if err != nil {
		return err
	}
	dir, last, err := m.tree.find(newname)
	if err != nil {
		return err
	}
	if dir.children[last] != nil {
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: os.ErrExist}
	}
	dir.apply(change{last: n})
	return nil
}

// Open opens a file or directory for reading.
func (m *mount) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	m.tree.mu.Lock()
	n, err := m.tree.look(name)
	m.tree.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f := m.open(name, n)
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

// OpenReadWrite opens a file, or makes it.
func (m *mount) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.Open(name, opts...)
	if os.IsNotExist(err) {
		return m.Create(name, category)
	}
	return f, err
}

// OpenDir opens a directory to be synced.
func (m *mount) OpenDir(name string) (vfs.File, error) { return m.Open(name) }

// Remove removes a file or an empty directory.
func (m *mount) Remove(name string) error {
	if err := m.allow(OpRemove, name); err != nil {
		return err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, last, err := m.tree.find(name)
	if err != nil {
		return err
	}
	n := dir.children[last]
	if n == nil {
		return notExist(name)
	}
	if len(n.children) > 0 {
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	dir.apply(change{last: nil})
	return nil
}

// RemoveAll removes a name with everything below it.
func (m *mount) RemoveAll(name string) error {
	if err := m.allow(OpRemove, name); err != nil {
		return err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir, last, err := m.tree.find(name)
	if err != nil || dir.children[last] == nil {
		return nil
	}
	dir.apply(change{last: nil})
	return nil
}

// Rename gives a file another name, in place of what has it.
func (m *mount) Rename(oldname, newname string) error {
	if err := m.allow(OpRename, newname); err != nil {
		return err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	from, old, err := m.tree.find(oldname)
	if err != nil {
		return err
	}
	to, last, err := m.tree.find(newname)
	if err != nil {
		return err
	}
	n := from.children[old]
	switch {
	case n == nil:
		return notExist(oldname)
	case from == to && old == last:
	case from == to:
		from.apply(change{old: nil, last: n})
	default: // the new name first: a crash between the two leaves both, never none
		to.apply(change{last: n})
		from.apply(change{old: nil})
	}
	return nil
}

// ReuseForWrite renames a file and opens it for writing.
func (m *mount) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := m.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return m.OpenReadWrite(newname, category)
}

// MkdirAll makes a directory and its parents.
func (m *mount) MkdirAll(name string, _ os.FileMode) error {
	if err := m.allow(OpMkdir, name); err != nil {
		return err
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	dir := m.tree.root
	for _, part := range strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		next := dir.children[part]
		if next == nil {
			next = newDir()
			dir.apply(change{part: next})
		}
		if !next.isDir {
			return &os.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		dir = next
	}
	return nil
}

// Lock makes a file and locks it against others with this disk.
func (m *mount) Lock(name string) (io.Closer, error) {
	m.tree.mu.Lock()
	taken := m.tree.locked[name]
	m.tree.locked[name] = true
	m.tree.mu.Unlock()
	if taken {
		return nil, &os.PathError{Op: "lock", Path: name, Err: syscall.EAGAIN}
	}
	f, err := m.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		m.unlock(name)
		return nil, err
	}
	return &fileLock{File: f, mount: m, name: name}, nil
}

func (m *mount) unlock(name string) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	delete(m.tree.locked, name)
}

type fileLock struct {
	vfs.File
	mount *mount
	name  string
}

// Close unlocks.
func (l *fileLock) Close() error {
	l.mount.unlock(l.name)
	return l.File.Close()
}

// List returns the names in a directory.
func (m *mount) List(name string) ([]string, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	n, err := m.tree.look(name)
	if err != nil {
		return nil, err
	}
	if !n.isDir {
		return nil, &os.PathError{Op: "list", Path: name, Err: syscall.ENOTDIR}
	}
	names := make([]string, 0, len(n.children))
	for child := range n.children {
		names = append(names, child)
	}
	slices.Sort(names)
	return names, nil
}

// Stat describes a file.
func (m *mount) Stat(name string) (vfs.FileInfo, error) {
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	n, err := m.tree.look(name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

func (m *mount) PathBase(p string) string        { return path.Base(p) }
func (m *mount) PathJoin(parts ...string) string { return path.Join(parts...) }
func (m *mount) PathDir(p string) string         { return path.Dir(p) }
func (m *mount) Unwrap() vfs.FS                  { return nil }
func (m *mount) GetDiskUsage(string) (vfs.DiskUsage, error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.usage, nil
}

// file is an open file.
type file struct {
	mount *mount
	name  string
	node  *inode

	mu  sync.Mutex
	pos int64
}

// Close does nothing more than its name says: the file stays.
func (f *file) Close() error { return nil }

// Read reads on.
func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// ReadAt reads at an offset.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.mount.tree.mu.Lock()
	defer f.mount.tree.mu.Unlock()
	if f.node.isDir {
		return 0, &os.PathError{Op: "read", Path: f.name, Err: syscall.EISDIR}
	}
	n := f.node.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Write writes on.
func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

// WriteAt writes at an offset.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.mount.allow(OpWrite, f.name); err != nil {
		return 0, err
	}
	f.mount.tree.mu.Lock()
	defer f.mount.tree.mu.Unlock()
	if f.node.isDir {
		return 0, &os.PathError{Op: "write", Path: f.name, Err: syscall.EISDIR}
	}
	f.node.writeAt(p, off, f.mount.tree.owner)
	return len(p), nil
}

// Sync makes the file durable.
func (f *file) Sync() error {
	if err := f.mount.allow(OpSync, f.name); err != nil {
		return err
	}
	f.mount.tree.mu.Lock()
	defer f.mount.tree.mu.Unlock()
	f.node.sync(f.mount.tree.owner)
	return nil
}

func (f *file) SyncData() error              { return f.Sync() }
func (f *file) SyncTo(int64) (bool, error)   { return false, nil } // promises nothing
func (f *file) Preallocate(_, _ int64) error { return nil }
func (f *file) Prefetch(_, _ int64) error    { return nil }
func (f *file) Fd() uintptr                  { return vfs.InvalidFd }

// Stat describes the file.
func (f *file) Stat() (vfs.FileInfo, error) {
	f.mount.tree.mu.Lock()
	defer f.mount.tree.mu.Unlock()
	return f.node.info(f.name), nil
}

func (n *inode) info(name string) vfs.FileInfo {
	return fileInfo{name: path.Base(name), size: n.size, changed: n.changed, isDir: n.isDir}
}

type fileInfo struct {
	name    string
	size    int64
	changed time.Time
	isDir   bool
}

func (i fileInfo) Name() string           { return i.name }
func (i fileInfo) Size() int64            { return i.size }
func (i fileInfo) ModTime() time.Time     { return i.changed }
func (i fileInfo) IsDir() bool            { return i.isDir }
func (i fileInfo) Sys() any               { return nil }
func (i fileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i fileInfo) Mode() os.FileMode {
	if i.isDir {
		return os.ModeDir | 0o700
	}
	return 0o600
}
