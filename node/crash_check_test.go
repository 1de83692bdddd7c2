package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"osteon/dicomsvc"
	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/node"
)

// check holds the recovered ring against its promises: every node ready; what was acknowledged read back
// at every node bit for bit; what was not acknowledged whole everywhere or nowhere; stores go on; one
// catalog; no remains of unfinished work; every shard known and every known shard there.
func (w *crashWorld) check(ctx context.Context) error {
	if err := w.allReady(); err != nil {
		return err
	}
	if err := w.await("offers applied", w.settled); err != nil {
		return err
	}
	visible, err := w.readAll(ctx)
	if err != nil {
		return err
	}
	if err := w.resend(ctx, visible); err != nil {
		return err
	}
	for i, n := range w.nodes {
		if err := w.await("store at "+n.Name, func() error { return w.store(ctx, n, 9, 900+i, 3000) }); err != nil {
			return err
		}
	}
	if err := w.await("offers applied", w.settled); err != nil {
		return err
	}
	if _, err := w.readAll(ctx); err != nil {
		return err
	}
	if err := w.await("one catalog", func() error { return w.oneCatalog(ctx) }); err != nil {
		return err
	}
	return w.await("no remains", func() error { return errors.Join(w.noTemporaries(), w.shardsAgree(ctx)) })
}

// settled wants every offer applied at every node.
func (w *crashWorld) settled() error {
	first := uint64(0)
	return w.running(func(_ string, n *node.Node) error {
		if left := n.Archive().Waiting(); left > 0 {
			return fmt.Errorf("waits for the catalog to take %d instances", left)
		}
		at := n.Catalog().Applied()
		if first == 0 {
			first = at
		}
		if at != first {
			return fmt.Errorf("has applied %d, another %d", at, first)
		}
		return nil
	})
}

// readAll reads every instance ever sent at every node. It returns those that are visible.
func (w *crashWorld) readAll(ctx context.Context) (visible map[string]bool, err error) {
	err = w.running(func(_ string, n *node.Node) error {
		here := map[string]bool{}
		for uid, s := range w.sent {
			got, err := read(ctx, n, uid)
			switch {
			case errors.Is(err, dicomsvc.ErrNotFound) && s.acked:
				return fmt.Errorf("instance %s was acknowledged and is not there", uid)
			case errors.Is(err, dicomsvc.ErrNotFound):
			case err != nil:
				return fmt.Errorf("read instance %s (acknowledged: %t): %w", uid, s.acked, err)
			case !bytes.Equal(got, s.data):
				return fmt.Errorf("instance %s is %d bytes that differ from the %d sent", uid, len(got), len(s.data))
			default:
				here[uid] = true
			}
		}
		if visible == nil {
			visible = here
		}
		if !maps.Equal(visible, here) {
			return fmt.Errorf("%v are visible, at another node %v", here, visible)
		}
		return nil
	})
	return visible, err
}

// read returns an instance's bytes; ErrNotFound also when the search does not list it.
func read(ctx context.Context, n *node.Node, uid string) ([]byte, error) {
	var out bytes.Buffer
	found := 0
	for in, err := range n.Archive().Instances(ctx, crashPrincipal, dicomsvc.Selection{SOPInstanceUIDs: []string{uid}}) {
		if err != nil {
			return nil, err
		}
		if found++; found > 1 {
			return nil, errors.New("listed twice")
		}
		o, err := n.Archive().Open(ctx, crashPrincipal, in)
		if err != nil {
			return nil, fmt.Errorf("listed, but not to be opened: %v", err)
		}
		_, err = o.WriteTo(&out)
		if err = errors.Join(err, o.Close()); err != nil {
			return nil, fmt.Errorf("listed, but not to be read: %v", err)
		}
	}
	if found == 0 {
		return nil, dicomsvc.ErrNotFound
	}
	return out.Bytes(), nil
}

// resend sends again what a sender without an answer would: all of it is taken, and is there once (F08).
func (w *crashWorld) resend(ctx context.Context, visible map[string]bool) error {
	for _, uid := range slices.Sorted(maps.Keys(w.sent)) {
		s := w.sent[uid]
		if s.acked {
			continue
		}
		n := w.nodes[s.instance%len(w.nodes)]
		if err := w.await("resend to "+n.Name, func() error { return w.store(ctx, n, s.study, s.instance, s.size) }); err != nil {
			return fmt.Errorf("instance %s, visible before: %t: %w", uid, visible[uid], err)
		}
	}
	return nil
}

// oneCatalog wants the same state at every node.
func (w *crashWorld) oneCatalog(ctx context.Context) error {
	type state struct {
		hash [32]byte
		at   uint64
	}
	var states []state
	err := w.running(func(_ string, n *node.Node) error {
		hash, at, err := n.Catalog().StateHash(ctx)
		states = append(states, state{hash, at})
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range states {
		if s != states[0] {
			return fmt.Errorf("catalogs differ: %x at %d, %x at %d", states[0].hash[:4], states[0].at, s.hash[:4], s.at)
		}
	}
	return nil
}

// noTemporaries wants no file or directory on any disk that unfinished work would have made.
func (w *crashWorld) noTemporaries() error {
	var found []string
	for _, n := range w.nodes {
		disk := n.Disk.Mount()
		var walk func(dir string)
		walk = func(dir string) {
			names, err := disk.List(dir)
			if err != nil {
				return // a file, or gone meanwhile
			}
			for _, name := range names {
				path := disk.PathJoin(dir, name)
				for _, sign := range []string{".tmp", ".new", ".dbtmp", "unfinished"} {
					if strings.Contains(name, sign) {
						found = append(found, n.Name+": "+path)
					}
				}
				if info, err := disk.Stat(path); err == nil && info.IsDir() {
					walk(path)
				}
			}
		}
		walk(n.Config().Dir)
	}
	if len(found) > 0 {
		return fmt.Errorf("remains of unfinished work: %v", found)
	}
	return nil
}

// shardsAgree wants every shard file to be one that the catalog knows, and every known one to be there.
func (w *crashWorld) shardsAgree(ctx context.Context) error {
	type at struct {
		node   place.NodeID
		encode place.EncodeID
		index  int
	}
	want := map[at]bool{}
	for p, err := range w.nodes[0].Node().Catalog().AllPacks(ctx) {
		if err != nil {
			return err
		}
		for i, slot := range p.Placement {
			want[at{slot.Node, p.Encode, i}] = true
		}
	}
	for _, m := range w.nodes {
		disk := m.Disk.Mount()
		for e, err := range shard.List(disk, disk.PathJoin(m.Config().Dir, "shards")) {
			if err = errors.Join(err, e.Err); err != nil {
				return fmt.Errorf("%s: %w", m.Name, err)
			}
			key := at{m.Node().ID(), e.Encode, e.Index}
			if !want[key] {
				return fmt.Errorf("%s: shard %v-%d belongs to no pack", m.Name, e.Encode, e.Index)
			}
			delete(want, key)
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("%d shards that the catalog lists are on no disk", len(want))
	}
	return nil
}
