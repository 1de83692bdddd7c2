package dicomsvc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// pendingSet holds the catalog entries of journalled instances until the ring has applied them. It
// serves reads of this node's own and its partners' fresh instances (design P2: read-your-writes at both
// holders) and the offers. Beyond pendingItemsMax only keys are kept; items come from the journal again.
type pendingSet struct {
	mu sync.Mutex

	entries    map[catalog.VersionID]*pendingItem
	queue      []catalog.VersionID            // in order of arrival; applied ones are skipped
	byInstance map[string][]catalog.VersionID // by SOP Instance UID, of entries with an item in memory
	inMemory   int
	generation uint64 // of the set's content
	wake       chan struct{}
}

type pendingItem struct {
	item    *catalog.AddItem // nil: in the journal only
	due     time.Time        // offered from then on
	applied chan struct{}    // closed when the catalog here has it
}

func (s *pendingSet) init() {
	s.entries = map[catalog.VersionID]*pendingItem{}
	s.byInstance = map[string][]catalog.VersionID{}
	s.wake = make(chan struct{}, 1)
}

// add remembers an item of this node; the channel is closed once it is applied here.
func (s *pendingSet) add(item catalog.AddItem, due time.Time) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := item.Instance.Version
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
		entry.item = &item
	case s.inMemory < pendingItemsMax:
		entry.item = &item
		s.inMemory++
		uid := item.Instance.SOPInstanceUID
		s.byInstance[uid] = append(s.byInstance[uid], version)
	}
	s.generation++
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return entry.applied
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
		}
		close(entry.applied)
		s.generation++
	}
	for len(s.queue) > 0 && s.entries[s.queue[0]] == nil {
		s.queue = s.queue[1:]
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

// size returns how many versions wait.
func (s *pendingSet) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// items returns the entries that are in memory, in order of arrival, and the generation of the set.
func (s *pendingSet) items() ([]catalog.AddItem, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]catalog.AddItem, 0, s.inMemory)
	for _, v := range s.queue {
		if entry := s.entries[v]; entry != nil && entry.item != nil {
			out = append(out, *entry.item)
		}
	}
	return out, s.generation
}

// instance returns the items in memory of one SOP Instance UID.
func (s *pendingSet) instance(uid string) []catalog.AddItem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []catalog.AddItem
	for _, v := range s.byInstance[uid] {
		out = append(out, *s.entries[v].item)
	}
	return out
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

// heldForPeer takes note of an object that this node journalled for another. The receiver offers it;
// this node does so only when the receiver has not for a while.
func (a *Archive) heldForPeer(_ [32]byte, note []byte, _ place.NodeID) {
	item, err := catalog.DecodeItem(note)
	if err != nil {
		a.cfg.Log.Error("note of a peer's object is unreadable", "err", err)
		return
	}
	item.Holders = []place.NodeID{a.cfg.Self}
	a.pending.add(item, a.cfg.Now().Add(partnerOfferAfter))
}

// replay puts everything in the journal that the catalog does not know into the pending set.
func (a *Archive) replay() {
	for info := range a.store.Journal().Keys {
		known, sealed, err := a.catalog.Has(context.Background(), catalog.VersionID(info.Key))
		switch {
		case err != nil:
			a.cfg.Log.Error("look up journalled object", "err", err)
		case sealed:
			a.store.Journal().Release(info.Key)
			continue
		case known:
			continue
		}
		item, err := a.journalItem(catalog.VersionID(info.Key))
		if err != nil {
			a.cfg.Log.Error("journalled object has no readable note", "err", err)
			continue
		}
		a.pending.add(item, a.cfg.Now())
	}
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
		switch err := a.offer(ctx); {
		case err == nil:
			pause = offerEvery
		case ctx.Err() == nil:
			a.cfg.Log.Warn("offer to the catalog failed, will be repeated", "waiting", a.pending.size(), "err", err)
			pause = min(2*pause, offerRetryMax)
		}
	}
}

// offer proposes everything due. It returns nil when nothing due is left.
func (a *Archive) offer(ctx context.Context) error {
	for {
		versions := a.pending.due(a.cfg.Now(), offerItemsMax)
		if len(versions) == 0 {
			return nil
		}
		if err := a.offerBatch(ctx, versions); err != nil {
			return err
		}
	}
}

func (a *Archive) offerBatch(ctx context.Context, versions []catalog.VersionID) error {
	var add catalog.Add
	var settled, asked []catalog.VersionID
	for _, v := range versions {
		item, err := a.pendingItem(ctx, v)
		switch {
		case err != nil:
			return err
		case item == nil:
			settled = append(settled, v)
		default:
			add.Items = append(add.Items, *item)
			asked = append(asked, v)
		}
	}
	a.pending.done(settled)
	if len(add.Items) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, offerTimeout)
	defer cancel()
	_, index, err := a.catalog.Do(ctx, Principal{Kind: PrincipalNode, Node: a.cfg.Self}, add)
	if err != nil {
		return fmt.Errorf("propose %d instances: %w", len(add.Items), err)
	}
	if err := a.catalog.WaitApplied(ctx, index); err != nil {
		return err
	}
	a.pending.done(asked)
	return nil
}

// pendingItem returns what is to be offered for v, nil when the catalog already lists this node as its
// holder or has sealed it.
func (a *Archive) pendingItem(ctx context.Context, v catalog.VersionID) (*catalog.AddItem, error) {
	item, ok := a.pending.item(v)
	if !ok {
		read, err := a.journalItem(v)
		if err != nil {
			a.cfg.Log.Error("pending object has no readable note", "err", err)
			return nil, nil
		}
		item = read
	}
	known, sealed, err := a.catalog.Has(ctx, v)
	if err != nil {
		return nil, err
	}
	if sealed {
		return nil, nil
	}
	if known && a.listedAsHolder(ctx, item) {
		return nil, nil
	}
	return &item, nil
}

// listedAsHolder reports whether the applied catalog names every holder of item.
func (a *Archive) listedAsHolder(ctx context.Context, item catalog.AddItem) bool {
	located, err := a.catalog.Locate(ctx, item.Instance.SOPInstanceUID)
	if err != nil {
		return false
	}
	for _, l := range located {
		if l.Instance.Version != item.Instance.Version {
			continue
		}
		for _, h := range item.Holders {
			if !holds(l.Holders, h) {
				return false
			}
		}
		return !l.Spooled || item.Spooled
	}
	return false
}
