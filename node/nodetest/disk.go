package nodetest

import (
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Op is a kind of change of a disk.
type Op string

// The operations that Disk.Watch is told of.
const (
	OpCreate Op = "create"
	OpWrite  Op = "write"
	OpSync   Op = "sync"
	OpRename Op = "rename"
	OpLink   Op = "link"
	OpRemove Op = "remove"
	OpMkdir  Op = "mkdir"
)

// Disk is a file system in memory that knows what of it was synced. It outlives the processes that mount it:
//
//   - Detach ends a process (kill -9): all that was written is there for the next one, synced or not.
//   - PowerCut ends the machine: what was synced is there, of the rest any part may be.
//
// Of a directory's changes that were not synced a power cut keeps the first few, in order, as a journalling file
// system does; of a file's pages that were not synced it keeps some, some of them torn at a sector. A process that
// was ended goes on with a copy of its own that nobody sees.
type Disk struct {
	mu sync.Mutex

	tree  *tree
	usage vfs.DiskUsage
	watch func(op Op, name string) error
}

// NewDisk returns an empty disk of 1 TiB.
func NewDisk() *Disk {
	d := &Disk{usage: vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 39, UsedBytes: 1 << 39}}
	d.tree = newTree()
	return d
}

// Mount returns the disk as the next process sees it. What an earlier one does after Detach or PowerCut is lost.
func (d *Disk) Mount() vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &mount{disk: d, tree: d.tree}
}

// Detach ends the mounts made so far and keeps what they have written.
func (d *Disk) Detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tree = d.tree.copy()
}

// PowerCut ends the mounts made so far and keeps what they have synced, and about the given share (0 to 1) of what
// they have not.
func (d *Disk) PowerCut(rng *rand.Rand, keep float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tree = d.tree.crashed(rng, keep)
}

// Copy returns a disk with the same content: a backup, or the disk of a virtual machine that was cloned.
func (d *Disk) Copy() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Disk{tree: d.tree.copy(), usage: d.usage}
}

// Restore ends the mounts made so far and puts the content of another disk in place.
func (d *Disk) Restore(from *Disk) {
	from.mu.Lock()
	tree := from.tree.copy()
	from.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tree = tree
}

// SetFree sets what the disk says of its free space; the disk itself is never full. Total 0 means 1 TiB.
func (d *Disk) SetFree(free, total uint64) {
	if total == 0 {
		total = 1 << 40
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.usage = vfs.DiskUsage{TotalBytes: total, AvailBytes: free, UsedBytes: total - free}
}

// Watch has f called before every change with the name of the file; an error of f is the operation's. f may end the
// disk with Detach or PowerCut: the operation then happens to the lost copy. nil ends the watch.
func (d *Disk) Watch(f func(op Op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watch = f
}

// allow asks the watcher.
func (m *mount) allow(op Op, name string) error {
	m.disk.mu.Lock()
	f, current := m.disk.watch, m.disk.tree == m.tree
	m.disk.mu.Unlock()
	if f == nil || !current {
		return nil
	}
	return f(op, name)
}

// tree is the content of a disk between two ends of processes.
type tree struct {
	mu sync.Mutex

	root   *inode
	owner  int64 // pages of another owner are copied before they are changed
	locked map[string]bool
}

// owners numbers trees and syncs, so that a page knows who may change it in place.
var owners atomic.Int64

func newTree() *tree {
	return &tree{root: newDir(), owner: owners.Add(1), locked: map[string]bool{}}
}

// copy returns the same content, synced and not; neither tree sees what changes in the other.
func (t *tree) copy() *tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner = owners.Add(1)
	out := &tree{owner: owners.Add(1), locked: map[string]bool{}}
	out.root = t.root.copy(map[*inode]*inode{})
	return out
}

// crashed returns what a power cut leaves.
func (t *tree) crashed(rng *rand.Rand, keep float64) *tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner = owners.Add(1)
	out := &tree{owner: owners.Add(1), locked: map[string]bool{}}
	out.root = t.root.crashed(rng, keep, map[*inode]*inode{})
	return out
}

// find returns the directory that holds a name, and the last part of it; mu is held.
func (t *tree) find(name string) (dir *inode, last string, err error) {
	dir = t.root
	parts := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	for _, part := range parts[:len(parts)-1] {
		next := dir.children[part]
		if next == nil {
			return nil, "", notExist(name)
		}
		if !next.isDir {
			return nil, "", &os.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
		}
		dir = next
	}
	return dir, parts[len(parts)-1], nil
}

// look returns what a name is; mu is held.
func (t *tree) look(name string) (*inode, error) {
	dir, last, err := t.find(name)
	if err != nil {
		return nil, err
	}
	if last == "" {
		return dir, nil
	}
	if n := dir.children[last]; n != nil {
		return n, nil
	}
	return nil, notExist(name)
}

func notExist(name string) error { return &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist} }
