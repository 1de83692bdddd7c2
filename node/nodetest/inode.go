package nodetest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	pageBytes   = 4096
	sectorBytes = 512
)

// page is a run of a file. It is changed in place by its owner alone: a tree that has neither synced nor been copied
// since it made the page.
type page struct {
	owner int64
	data  [pageBytes]byte
}

// inode is a file or a directory, as it is and as it was synced.
type inode struct {
	isDir   bool
	changed time.Time

	children, syncedChildren map[string]*inode
	pending                  []change // of children, since they were synced

	pages, syncedPages []*page
	size, syncedSize   int64
	dirty              map[int]bool // pages that differ from the synced ones
}

// change is what one operation did to a directory: names set, or removed with nil.
type change map[string]*inode

func newDir() *inode {
	return &inode{isDir: true, children: map[string]*inode{}, syncedChildren: map[string]*inode{}}
}

func newFile() *inode { return &inode{dirty: map[int]bool{}, changed: time.Now()} }

// apply changes the directory.
func (n *inode) apply(c change) {
	set(n.children, c)
	n.pending = append(n.pending, c)
}

func set(children map[string]*inode, c change) {
	for name, child := range c {
		if child == nil {
			delete(children, name)
		} else {
			children[name] = child
		}
	}
}

// sync makes what is there durable: a file's content, a directory's names.
func (n *inode) sync(owner int64) {
	if n.isDir {
		if len(n.pending) > 0 {
			n.syncedChildren, n.pending = maps.Clone(n.children), nil
		}
		return
	}
	for len(n.syncedPages) < len(n.pages) {
		n.syncedPages = append(n.syncedPages, nil)
	}
	for i := range n.dirty {
		if p := n.pages[i]; p != nil && p.owner == owner {
			p.owner = 0 // what was synced stays as it is
		}
		n.syncedPages[i] = n.pages[i]
	}
	clear(n.dirty)
	n.syncedSize = n.size
}

// readAt copies what is at off; it reports how much that is.
func (n *inode) readAt(p []byte, off int64) int {
	if off >= n.size {
		return 0
	}
	p = p[:min(int64(len(p)), n.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		i, from := int(at/pageBytes), int(at%pageBytes)
		step := min(len(p)-done, pageBytes-from)
		if i < len(n.pages) && n.pages[i] != nil {
			copy(p[done:done+step], n.pages[i].data[from:])
		} else {
			clear(p[done : done+step])
		}
		done += step
	}
	return len(p)
}

// writeAt writes p at off on behalf of a tree.
func (n *inode) writeAt(p []byte, off int64, owner int64) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		i, from := int(at/pageBytes), int(at%pageBytes)
		done += copy(n.own(i, owner).data[from:], p[done:])
		n.dirty[i] = true
	}
	n.size = max(n.size, off+int64(len(p)))
	n.changed = time.Now()
}

// own returns a page that may be changed.
func (n *inode) own(i int, owner int64) *page {
	for len(n.pages) <= i {
		n.pages = append(n.pages, nil)
	}
	switch old := n.pages[i]; {
	case old == nil:
		n.pages[i] = &page{owner: owner}
	case old.owner != owner:
		n.pages[i] = &page{owner: owner, data: old.data}
	}
	return n.pages[i]
}

// copy returns the same for another tree; done keeps hard links together.
func (n *inode) copy(done map[*inode]*inode) *inode {
	if n == nil {
		return nil
	}
	if c := done[n]; c != nil {
		return c
	}
	c := &inode{isDir: n.isDir, changed: n.changed, size: n.size, syncedSize: n.syncedSize}
	done[n] = c
	if !n.isDir {
		c.pages, c.syncedPages, c.dirty = slices.Clone(n.pages), slices.Clone(n.syncedPages), maps.Clone(n.dirty)
		return c
	}
	each := func(from map[string]*inode) map[string]*inode {
		to := make(map[string]*inode, len(from))
		for name, child := range from {
			to[name] = child.copy(done)
		}
		return to
	}
	c.children, c.syncedChildren = each(n.children), each(n.syncedChildren)
	for _, p := range n.pending {
		c.pending = append(c.pending, each(p))
	}
	return c
}

// crashed returns what a power cut leaves of n.
func (n *inode) crashed(rng *rand.Rand, keep float64, done map[*inode]*inode) *inode {
	if c := done[n]; c != nil {
		return c
	}
	c := &inode{isDir: n.isDir, changed: n.changed}
	done[n] = c
	if !n.isDir {
		n.crashFile(c, rng, keep)
		return c
	}
	left := maps.Clone(n.syncedChildren)
	for _, p := range n.pending {
		if keep == 0 || rng.Float64() >= max(keep, 0.5) {
			break
		}
		set(left, p)
	}
	c.children = map[string]*inode{}
	for _, name := range slices.Sorted(maps.Keys(left)) { // in order, for the same seed to do the same
		c.children[name] = left[name].crashed(rng, keep, done)
	}
	c.syncedChildren = maps.Clone(c.children)
	return c
}

func (n *inode) crashFile(c *inode, rng *rand.Rand, keep float64) {
	c.dirty = map[int]bool{}
	c.pages, c.size = slices.Clone(n.syncedPages), n.syncedSize
	for _, i := range slices.Sorted(maps.Keys(n.dirty)) {
		if rng.Float64() >= keep {
			continue
		}
		for len(c.pages) <= i {
			c.pages = append(c.pages, nil)
		}
		c.pages[i] = torn(c.pages[i], n.pages[i], rng)
		c.size = max(c.size, min(n.size, int64(i+1)*pageBytes))
	}
	c.syncedPages, c.syncedSize = slices.Clone(c.pages), c.size
}

// torn returns the new page, or one time in four the new one's first sectors before the old one's others.
func torn(old, new *page, rng *rand.Rand) *page {
	if rng.IntN(4) > 0 {
		return new
	}
	out := &page{}
	if old != nil {
		out.data = old.data
	}
	copy(out.data[:], new.data[:sectorBytes*rng.IntN(pageBytes/sectorBytes)])
	return out
}
