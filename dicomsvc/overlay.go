package dicomsvc

import (
	"context"
	"errors"
	"sync"

	"osteon/raft/catalog"
)

// overlayCache keeps one reader that sees the applied catalog and, as if applied, what waits in the
// pending set. It is rebuilt when a reader comes that may know of more.
type overlayCache struct {
	mu sync.Mutex

	current *overlay
}

// overlay is a shared reader; the last user closes it.
type overlay struct {
	reader     *catalog.Reader
	generation uint64
	applied    uint64
	users      int
}

// reader returns the catalog as this node knows it: the local replica plus what this node holds and the
// ring has not applied (design P6). The caller calls done when its reads have ended.
func (a *Archive) reader() (r *catalog.Reader, done func(), err error) {
	generation, waiting := a.pending.now()
	if waiting == 0 {
		return a.catalog.Reader, func() {}, nil
	}
	applied := a.catalog.Applied()
	c := &a.overlay
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.current.generation < generation || c.current.applied < applied {
		if err := a.rebuildOverlay(); err != nil {
			return nil, nil, err
		}
	}
	o := c.current
	o.users++
	return o.reader, func() { c.leave(o) }, nil
}

// readerOf returns a reader for some studies or instances: that of the applied catalog, which costs
// nothing, when nothing waits for them. The caller calls done when its reads have ended.
func (a *Archive) readerOf(studies, instances []string) (r *catalog.Reader, done func(), err error) {
	if !a.pending.concerns(studies, instances) {
		return a.catalog.Reader, func() {}, nil
	}
	return a.reader()
}

// rebuildOverlay makes an overlay of the present; overlay.mu is held, so that all who came meanwhile share
// it. The items are taken before the snapshot: one that is applied between the two is in both, never in
// neither. While nothing was applied, as without a quorum, the overlay there is grows by what is new.
func (a *Archive) rebuildOverlay() error {
	applied := a.catalog.Applied()
	var reader *catalog.Reader
	var generation uint64
	var err error
	if o := a.overlay.current; o != nil && o.applied == applied {
		var more []catalog.AddItem
		more, generation = a.pending.items(o.generation)
		reader, err = o.reader.Extend(more)
	} else {
		var items []catalog.AddItem
		items, generation = a.pending.items(0)
		reader, err = a.catalog.With(items)
	}
	if err != nil {
		return err
	}
	a.overlay.replace(&overlay{reader: reader, generation: generation, applied: applied, users: 1})
	return nil
}

// expireOverlay drops an overlay that is out of date: it holds a snapshot of the database.
func (a *Archive) expireOverlay() {
	generation, waiting := a.pending.now()
	c := &a.overlay
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.current; o != nil && (waiting == 0 || o.generation != generation || o.applied != a.catalog.Applied()) {
		c.replace(nil)
	}
}

// replace makes o the current overlay; mu is held. The cache itself counts as a user.
func (c *overlayCache) replace(o *overlay) {
	if c.current != nil {
		c.unuse(c.current)
	}
	c.current = o
}

func (c *overlayCache) unuse(o *overlay) {
	if o.users--; o.users == 0 {
		o.reader.Close()
	}
}

func (c *overlayCache) leave(o *overlay) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unuse(o)
}

func (c *overlayCache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace(nil)
}

// locate returns all versions of one instance, the served one first. ErrNotFound when there is none.
func (a *Archive) locate(ctx context.Context, sopInstanceUID string) ([]catalog.Located, error) {
	r, done, err := a.readerOf(nil, []string{sopInstanceUID})
	if err != nil {
		return nil, err
	}
	defer done()
	return located(r.Locate(ctx, sopInstanceUID))
}

func located(list []catalog.Located, err error) ([]catalog.Located, error) {
	switch {
	case errors.Is(err, catalog.ErrNotFound) || err == nil && len(list) == 0:
		return nil, ErrNotFound
	default:
		return list, err
	}
}
