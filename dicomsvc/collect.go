package dicomsvc

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/plant"
	"osteon/raft/catalog"
)

// releaseLoop frees journal records whose versions an applied Seal lists, collects the shards of encodes
// that the catalog calls aborted or superseded, and mends what is damaged in the journal.
func (a *Archive) releaseLoop(ctx context.Context) {
	tick := time.NewTicker(releaseTick)
	defer tick.Stop()
	var seen uint64
	open := false // encodes may become stale although nothing is applied
	m := mending{archive: a, compareAt: a.cfg.Now().Add(mendCompareFirst)}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.expireOverlay()
		m.run(ctx)
		applied := a.catalog.Applied()
		if applied == seen && !open {
			continue
		}
		seen = applied
		if err := a.release(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("release journal records", "err", err)
		}
		var err error
		if open, err = a.collectEncodes(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("collect dead encodes", "err", err)
		}
	}
}

// release marks the journal records of what was sealed since the last time as evictable and evicts.
func (a *Archive) release(ctx context.Context) error {
	j := a.store.Journal()
	for {
		versions, last, err := a.catalog.SealedAfter(ctx, a.released, releasePacksMax)
		if err != nil {
			return errors.Join(err, j.Evict())
		}
		if err := a.releaseSealed(ctx, versions); err != nil {
			return errors.Join(err, j.Evict())
		}
		if last == a.released {
			return j.Evict()
		}
		a.released = last
	}
}

// releaseSealed marks the records of sealed versions that this node holds as evictable, apart from those
// that still add to what their pack survives.
func (a *Archive) releaseSealed(ctx context.Context, versions []catalog.VersionID) error {
	replaced := map[place.PackID]bool{}
	held := slices.DeleteFunc(versions, func(v catalog.VersionID) bool {
		_, held := a.store.Journal().Stat(journal.Key(v))
		return !held
	})
	for l, err := range a.catalog.FindEach(ctx, held) {
		if err != nil {
			return err
		}
		free, known := replaced[l.Pack]
		if !known {
			if free, err = a.replaces(ctx, l.Pack); err != nil {
				return err
			}
			replaced[l.Pack] = free
		}
		if free {
			a.store.Journal().Release(journal.Key(l.Instance.Version))
		}
	}
	return nil
}

// replaces reports whether a pack makes the journal copies of its versions here superfluous: it survives
// the loss of any site, or this site can read it alone, or the ring has no other site. A pack that was sealed
// while sites were out of reach may do none of that: the copy of a site that comes back is then what
// survives the others, and stays until the pack is sealed again.
func (a *Archive) replaces(ctx context.Context, id place.PackID) (bool, error) {
	p, err := a.catalog.Pack(ctx, id)
	if err != nil {
		return false, err
	}
	own := place.SiteID("")
	sites := map[place.SiteID]bool{}
	for _, n := range a.cfg.Topology() {
		if n.Data {
			sites[n.Site] = true
		}
		if n.ID == a.cfg.Self {
			own = n.Site
		}
	}
	here := 0
	for _, slot := range p.Placement {
		if slot.Site == own {
			here++
		}
	}
	return len(sites) < 2 || here >= p.Geometry.K || place.Survives(p.Geometry, p.Placement, nil).Meets(place.SurviveSite), nil
}

// collectEncodes removes this node's shards of dead encodes and says so. It also aborts what this node began
// and is not at work on, for an encode is never resumed; and, at the ring's leader, encodes whose sealer went
// away. It reports whether there are encodes that are neither sealed nor forgotten.
func (a *Archive) collectEncodes(ctx context.Context) (open bool, err error) {
	encodes, err := a.catalog.Encodes(ctx)
	if err != nil {
		return true, err
	}
	var errs []error
	for _, e := range encodes {
		switch e.State {
		case catalog.EncodeAborted, catalog.EncodeSuperseded:
			errs = append(errs, a.forgetEncode(ctx, e))
		case catalog.EncodeBegun:
			if plant.Is(plant.EncodeCollectedEarly) {
				errs = append(errs, a.forgetEncode(ctx, e))
			}
			if e.Sealer == a.cfg.Self && !a.encoding.is(e.Encode) {
				errs = append(errs, a.abortEncode(ctx, e, "its sealer gave it up"))
				continue
			}
			errs = append(errs, a.abortStale(ctx, e))
		}
	}
	return len(encodes) > 0, errors.Join(errs...)
}

func (a *Archive) forgetEncode(ctx context.Context, e catalog.EncodeRecord) error {
	var mine []int
	for i, slot := range e.Placement {
		if slot.Node == a.cfg.Self {
			mine = append(mine, i)
		}
	}
	if len(mine) == 0 || holds(e.Forgotten, a.cfg.Self) {
		return nil
	}
	if err := a.store.RemoveShards(e.Pack, e.Encode, mine); err != nil {
		return err
	}
	return a.propose(ctx, catalog.ForgetEncode{Encode: e.Encode, Node: a.cfg.Self})
}

func (a *Archive) abortStale(ctx context.Context, e catalog.EncodeRecord) error {
	if a.cfg.Leads == nil || !a.cfg.Leads() || a.cfg.Now().Sub(e.BegunAt) < staleEncode {
		return nil
	}
	for _, n := range a.cfg.Topology() {
		if n.ID == e.Sealer && n.Live && a.cfg.Now().Sub(e.BegunAt) < 2*sealTimeout {
			return nil
		}
	}
	return a.abortEncode(ctx, e, "its sealer is gone")
}

func (a *Archive) abortEncode(ctx context.Context, e catalog.EncodeRecord, why string) error {
	err := a.propose(ctx, catalog.SealAbort{Encode: e.Encode, Why: why})
	if errors.Is(err, catalog.ErrRaced) {
		return nil
	}
	return err
}

// encoding is the encode that this node is at work on.
type encoding struct {
	mu  sync.Mutex
	now place.EncodeID // zero: none
}

func (e *encoding) set(id place.EncodeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now = id
}

func (e *encoding) is(id place.EncodeID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now == id
}
