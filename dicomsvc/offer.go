package dicomsvc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/plant"
	"osteon/raft/catalog"
)

// pendingSet holds the catalog entries of journalled instances until the ring has applied them. It
// serves reads of this node's own and its partners' fresh instances (design P2: read-your-writes at both
// holders) and the offers. Beyond pendingItemsMax only keys are kept; items come from the journal again.
type pendingSet struct {
	mu sync.Mutex

	entries    map[catalog.VersionID]*pendingItem
	queue      []catalog.VersionID            // in order of arrival; applied ones are skipped
	byInstance map[string][]catalog.VersionID // by SOP Instance UID, of entries with an item in memory, in order of arrival
	byStudy    map[string]int                 // of the same, how many
	inMemory   int
	generation uint64 // of the set's content
	wake       chan struct{}
}

type pendingItem struct {
	item    *catalog.AddItem // nil: in the journal only
	changed uint64           // generation in which item was set
	due     time.Time        // offered from then on
	applied chan struct{}    // closed when the catalog here has it
}

func (s *pendingSet) init() {
	s.entries = map[catalog.VersionID]*pendingItem{}
	s.byInstance = map[string][]catalog.VersionID{}
	s.byStudy = map[string]int{}
	s.wake = make(chan struct{}, 1)
}

// add remembers an item of this node; the channel is closed once it is applied here. prior are the
// versions that wait under the same SOP Instance UID and came before, the item's own among them when it
// is not new.
func (s *pendingSet) add(item catalog.AddItem, due time.Time) (applied <-chan struct{}, prior []catalog.VersionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version, uid := item.Instance.Version, item.Instance.SOPInstanceUID
	prior = slices.Clone(s.byInstance[uid])
	entry, known := s.entries[version]
	if !known {
		entry = &pendingItem{applied: make(chan struct{}), due: due}
		s.entries[version] = entry
		s.queue = append(s.queue, version)
	}
	if due.Before(entry.due) {
		entry.due = due
	}
	switch {
	case entry.item != nil:
		item.Holders = union(item.Holders, entry.item.Holders)
		item.Spooled = item.Spooled && entry.item.Spooled
		entry.item = &item
	case s.inMemory < pendingItemsMax:
		entry.item = &item
		s.inMemory++
		s.byInstance[uid] = append(s.byInstance[uid], version)
		s.byStudy[item.Instance.StudyInstanceUID]++
	}
	s.generation++
	entry.changed = s.generation
	s.signal()
	return entry.applied, prior
}

// signal wakes the offers; mu is held.
func (s *pendingSet) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// union returns the nodes of both lists, each once.
func union(a, b []place.NodeID) []place.NodeID {
	out := append([]place.NodeID(nil), a...)
	for _, id := range b {
		if !holds(out, id) {
			out = append(out, id)
		}
	}
	return out
}

func holds(list []place.NodeID, id place.NodeID) bool {
	for _, x := range list {
		if x == id {
			return true
		}
	}
	return false
}

// done forgets versions that the catalog here has applied.
func (s *pendingSet) done(versions []catalog.VersionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range versions {
		entry, ok := s.entries[v]
		if !ok {
			continue
		}
		delete(s.entries, v)
		if entry.item != nil {
			s.inMemory--
			s.forgetInstance(entry.item.Instance.SOPInstanceUID, v)
			study := entry.item.Instance.StudyInstanceUID
			if s.byStudy[study]--; s.byStudy[study] == 0 {
				delete(s.byStudy, study)
			}
		}
		close(entry.applied)
		s.generation++
	}
	s.trim()
}

// trim drops applied versions from the queue: those at its head, and all once they are the most of it.
func (s *pendingSet) trim() {
	gone := func(v catalog.VersionID) bool { return s.entries[v] == nil }
	for len(s.queue) > 0 && gone(s.queue[0]) {
		s.queue = s.queue[1:]
	}
	if len(s.queue) > 2*len(s.entries)+offerItemsMax {
		s.queue = slices.DeleteFunc(slices.Clone(s.queue), gone)
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

func (s *pendingSet) forgetInstance(uid string, version catalog.VersionID) {
	list := s.byInstance[uid]
	for i, v := range list {
		if v == version {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(s.byInstance, uid)
		return
	}
	s.byInstance[uid] = list
}

// due returns up to max versions whose time to be offered has come, oldest first.
func (s *pendingSet) due(now time.Time, max int) []catalog.VersionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []catalog.VersionID
	for _, v := range s.queue {
		if entry := s.entries[v]; entry != nil && !now.Before(entry.due) {
			if out = append(out, v); len(out) == max {
				break
			}
		}
	}
	return out
}

// early returns up to max versions whose time to be offered has not come and that have an item in
// memory, oldest first.
func (s *pendingSet) early(now time.Time, max int) []catalog.VersionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []catalog.VersionID
	for _, v := range s.queue {
		if entry := s.entries[v]; entry != nil && entry.item != nil && now.Before(entry.due) {
			if out = append(out, v); len(out) == max {
				break
			}
		}
	}
	return out
}

// postpone puts a version off.
func (s *pendingSet) postpone(v catalog.VersionID, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if entry := s.entries[v]; entry != nil {
		entry.due = due
	}
}

// ofStudy returns the channels that are closed when what waits of a study now is applied.
func (s *pendingSet) ofStudy(study string) []<-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byStudy[study] == 0 {
		return nil
	}
	var out []<-chan struct{}
	for _, entry := range s.entries {
		if entry.item != nil && entry.item.Instance.StudyInstanceUID == study {
			out = append(out, entry.applied)
		}
	}
	return out
}

// concerns reports whether a waiting item belongs to one of the studies or instances.
func (s *pendingSet) concerns(studies, instances []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(studies, func(uid string) bool { return s.byStudy[uid] > 0 }) ||
		slices.ContainsFunc(instances, func(uid string) bool { return len(s.byInstance[uid]) > 0 })
}

// now returns the generation of the set and how many items it has in memory.
func (s *pendingSet) now() (generation uint64, inMemory int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation, s.inMemory
}

// size returns how many versions wait.
func (s *pendingSet) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// items returns the entries that are in memory and were set after a generation, in order of arrival, and
// the generation of the set.
func (s *pendingSet) items(after uint64) ([]catalog.AddItem, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []catalog.AddItem
	for _, v := range s.queue {
		if entry := s.entries[v]; entry != nil && entry.item != nil && entry.changed > after {
			out = append(out, *entry.item)
		}
	}
	return out, s.generation
}

func (s *pendingSet) item(v catalog.VersionID) (catalog.AddItem, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entry := s.entries[v]
	if entry == nil || entry.item == nil {
		return catalog.AddItem{}, false
	}
	return *entry.item, true
}

// heldForPeer takes note of an object that this node journalled without acknowledging it itself: for
// another node, which offers it, or for a sender that was refused or is gone. This node offers it when
// nobody else has for a while.
func (a *Archive) heldForPeer(_ [32]byte, note []byte, _ place.NodeID) {
	item, err := catalog.DecodeItem(note)
	if err != nil {
		a.cfg.Log.Error("note of a journalled object is unreadable", "err", err)
		return
	}
	item.Holders = []place.NodeID{a.cfg.Self}
	item.Spooled = a.onOneSite(item.Holders)
	a.pending.add(item, a.cfg.Now().Add(partnerOfferAfter))
}

// onOneSite reports whether the holders are of one site although the ring has others: what they hold is
// spooled.
func (a *Archive) onOneSite(holders []place.NodeID) bool {
	sites, held := map[place.SiteID]bool{}, map[place.SiteID]bool{}
	for _, n := range a.cfg.Topology() {
		if n.Data {
			sites[n.Site] = true
		}
		if holds(holders, n.ID) {
			held[n.Site] = true
		}
	}
	return len(sites) > 1 && len(held) < 2
}

// replay puts everything in the journal that the catalog does not know to be here into the pending set.
// What was sealed before is released here, what is sealed from now on by releaseLoop.
func (a *Archive) replay() (err error) {
	if a.released, err = a.catalog.LastPack(context.Background()); err != nil {
		return err
	}
	for info := range a.store.Journal().Keys {
		v := catalog.VersionID(info.Key)
		l, err := a.catalog.Find(context.Background(), v)
		switch {
		case err == nil && l.State == catalog.VersionSealed:
			if err := a.releaseSealed(context.Background(), []catalog.VersionID{v}); err != nil {
				a.cfg.Log.Error("look up the pack of a journalled object", "err", err)
			}
			continue
		case err == nil && holds(l.Holders, a.cfg.Self):
			continue
		case err != nil && !isNotFound(err):
			a.cfg.Log.Error("look up journalled object", "err", err)
		}
		if plant.Is(plant.ReplayForgotten) {
			continue
		}
		item, err := a.journalItem(v)
		if err != nil {
			a.cfg.Log.Error("journalled object has no readable note", "err", err)
			continue
		}
		a.pending.add(item, a.cfg.Now())
	}
	return nil
}

// journalItem reads an item back from this node's journal.
func (a *Archive) journalItem(v catalog.VersionID) (catalog.AddItem, error) {
	note, err := a.store.Journal().Note(journal.Key(v))
	if err != nil {
		return catalog.AddItem{}, err
	}
	item, err := catalog.DecodeItem(note)
	if err != nil {
		return catalog.AddItem{}, err
	}
	item.Holders = []place.NodeID{a.cfg.Self}
	item.Spooled = a.onOneSite(item.Holders)
	return item, nil
}

// offerLoop brings pending entries to the ring until it has applied them, batch by batch.
func (a *Archive) offerLoop(ctx context.Context) {
	pause := offerEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.pending.wake:
		case <-time.After(offerRetryMax):
		}
		select { // let a batch gather
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		a.prune(ctx)
		switch err := a.offer(ctx); {
		case err == nil:
			pause = offerEvery
		case ctx.Err() == nil:
			a.cfg.Log.Warn("offer to the catalog failed, will be repeated", "waiting", a.pending.size(), "err", err)
			pause = min(2*pause, offerRetryMax)
		}
	}
}

// prune forgets entries that wait for another node's offer and have been applied by it.
func (a *Archive) prune(ctx context.Context) {
	var settled []catalog.VersionID
	for _, v := range a.pending.early(a.cfg.Now(), offerPruneMax) {
		if item, err := a.wanting(ctx, v); err == nil && item == nil {
			settled = append(settled, v)
		}
	}
	a.pending.done(settled)
}

// offer proposes everything due. It returns nil when nothing due is left.
func (a *Archive) offer(ctx context.Context) error {
	for {
		versions := a.pending.due(a.cfg.Now(), offerItemsMax)
		if len(versions) == 0 {
			return nil
		}
		var items []catalog.AddItem
		var settled []catalog.VersionID
		for _, v := range versions {
			item, err := a.wanting(ctx, v)
			switch {
			case err != nil:
				return err
			case item == nil:
				settled = append(settled, v)
			default:
				items = append(items, *item)
			}
		}
		a.pending.done(settled)
		if err := a.offerItems(ctx, items); err != nil {
			return err
		}
	}
}

// offerItems proposes items and waits until they are applied here. An item that no catalog can take is
// found by halving and put off, so that it keeps no other from its place.
func (a *Archive) offerItems(ctx context.Context, items []catalog.AddItem) error {
	if len(items) == 0 {
		return nil
	}
	err := a.proposeItems(ctx, items)
	switch {
	case err == nil:
	case !errors.Is(err, catalog.ErrInvalid) && !errors.Is(err, catalog.ErrMalformed):
		return fmt.Errorf("propose %d instances: %w", len(items), err)
	case len(items) > 1:
		half := len(items) / 2
		return errors.Join(a.offerItems(ctx, items[:half]), a.offerItems(ctx, items[half:]))
	default:
		a.cfg.Log.Error("the catalog cannot take an instance; its bytes stay in the journal",
			"version", items[0].Instance.Version, "err", err)
		a.pending.postpone(items[0].Instance.Version, a.cfg.Now().Add(offerAgainAfter))
		return nil
	}
	applied := make([]catalog.VersionID, len(items))
	for i := range items {
		applied[i] = items[i].Instance.Version
	}
	a.pending.done(applied)
	return nil
}

func (a *Archive) proposeItems(ctx context.Context, items []catalog.AddItem) error {
	ctx, cancel := context.WithTimeout(ctx, offerTimeout)
	defer cancel()
	results, index, err := a.catalog.Do(ctx, Principal{Kind: PrincipalNode, Node: a.cfg.Self}, catalog.Add{Items: items})
	if err != nil {
		return err
	}
	if err := results[0].Err(); err != nil {
		return err
	}
	return a.catalog.WaitApplied(ctx, index)
}

// wanting returns what is to be offered of v, nil when the catalog lists this node as its holder or has
// sealed it.
func (a *Archive) wanting(ctx context.Context, v catalog.VersionID) (*catalog.AddItem, error) {
	item, ok := a.pending.item(v)
	if !ok {
		read, err := a.journalItem(v)
		if err != nil { // damaged: mended from another holder, see mend
			a.cfg.Log.Error("pending object has no readable note", "version", v, "err", err)
			return nil, nil
		}
		item = read
	}
	l, err := a.catalog.Find(ctx, v)
	switch {
	case isNotFound(err):
		item.Spooled = a.onOneSite(item.Holders)
		return &item, nil
	case err != nil:
		return nil, err
	case l.State == catalog.VersionSealed:
		return nil, a.releaseSealed(ctx, []catalog.VersionID{v}) // sent again after it was sealed
	}
	item.Spooled = a.onOneSite(union(l.Holders, item.Holders))
	for _, h := range item.Holders {
		if !holds(l.Holders, h) {
			return &item, nil
		}
	}
	if l.Spooled && !item.Spooled {
		return &item, nil
	}
	return nil, nil
}
