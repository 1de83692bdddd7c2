package journal

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"
)

type state uint8

const (
	stateLive     state = iota // needed
	stateReleased              // a hot copy
	stateCorrupt               // listed by Corrupt
)

// entry is what memory keeps of an object: where its commit record is, and what Stat tells.
type entry struct {
	first   uint32 // oldest segment with a part of it
	segment uint32 // of the commit record
	offset  uint32 // of the commit record's frame
	state   state
	size    int64
	at      int64
}

func (e *entry) sameRecord(o entry) bool { return e.segment == o.segment && e.offset == o.offset }

// index finds objects. Journal.mu guards it.
type index struct {
	entries  map[Key]entry
	corrupt  map[Key]struct{} // entries that are stateCorrupt, and keys whose record is lost
	visible  int
	released int
}

func (x *index) init() {
	x.entries, x.corrupt = map[Key]entry{}, map[Key]struct{}{}
}

// insertLocked makes an object visible, or corrupt, in place of what its key named before.
func (j *Journal) insertLocked(key Key, e entry) {
	j.removeLocked(key)
	j.index.entries[key] = e
	j.countLocked(e, 1)
	if e.state == stateCorrupt {
		j.index.corrupt[key] = struct{}{}
	}
}

func (j *Journal) removeLocked(key Key) {
	if e, ok := j.index.entries[key]; ok {
		j.countLocked(e, -1)
		delete(j.index.entries, key)
	}
	delete(j.index.corrupt, key)
}

func (j *Journal) countLocked(e entry, by int) {
	if e.state != stateCorrupt {
		j.index.visible += by
	}
	if e.state == stateReleased {
		j.index.released += by
	}
	for n := uint64(e.first); n <= uint64(e.segment); n++ {
		s := j.segments[n]
		switch {
		case s == nil:
		case e.state == stateReleased:
			s.released += by
		default:
			s.live += by
		}
	}
}

// pinLocked keeps from eviction the segments in which the extents lie; unpinLocked lets them go.
func (j *Journal) pinLocked(extents []extent)   { j.addPinsLocked(extents, 1) }
func (j *Journal) unpinLocked(extents []extent) { j.addPinsLocked(extents, -1) }

func (j *Journal) addPinsLocked(extents []extent, by int) {
	for i := range extents {
		if i > 0 && extents[i].segment == extents[i-1].segment {
			continue
		}
		if s := j.segments[extents[i].segment]; s != nil {
			s.pins += by
		}
	}
}

// Info is what is known of an object without reading.
type Info struct {
	Key      Key
	Size     int64     // bytes
	Segment  uint64    // of its commit record
	At       time.Time // of its commit
	Released bool      // sealed elsewhere: a hot copy
}

func (e *entry) info(key Key) Info {
	return Info{Key: key, Size: e.size, Segment: uint64(e.segment), At: time.Unix(0, e.at), Released: e.state == stateReleased}
}

// Stat tells of a visible object.
func (j *Journal) Stat(key Key) (Info, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.index.entries[key]
	if !ok || e.state == stateCorrupt {
		return Info{}, false
	}
	return e.info(key), true
}

// Keys yields the visible objects in the order of their commits, as they were when it was called. It
// may be used as an iterator, and beside anything else.
func (j *Journal) Keys(yield func(Info) bool) {
	type item struct {
		key Key
		entry
	}
	j.mu.Lock()
	items := make([]item, 0, len(j.index.entries))
	for k, e := range j.index.entries {
		if e.state != stateCorrupt {
			items = append(items, item{k, e})
		}
	}
	j.mu.Unlock()
	slices.SortFunc(items, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.segment, b.segment), cmp.Compare(a.offset, b.offset))
	})
	for i := range items {
		if !yield(items[i].info(items[i].key)) {
			return
		}
	}
}

// Release says that the object is sealed elsewhere: it becomes a hot copy, which Evict may remove. It
// is forgotten at the next Open, where the caller derives it again. Unknown keys are ignored.
func (j *Journal) Release(key Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.index.entries[key]
	if !ok || e.state != stateLive {
		return
	}
	j.countLocked(e, -1)
	e.state = stateReleased
	j.index.entries[key] = e
	j.countLocked(e, 1)
}

// Drop forgets the object, and a key listed by Corrupt. Its space comes back through Evict when its
// segments hold nothing else. The next Open finds it again while they exist; the caller, who knows
// what was erased, drops it again.
func (j *Journal) Drop(key Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.removeLocked(key)
}

// markCorrupt takes the object out of sight and lists it, unless it has been committed again since.
func (j *Journal) markCorrupt(key Key, seen entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.index.entries[key]
	if !ok || !e.sameRecord(seen) || e.state == stateCorrupt {
		return
	}
	j.cfg.Log.Error("journal object damaged", "segment", e.segment, "offset", e.offset, "bytes", e.size)
	e.state = stateCorrupt
	j.insertLocked(key, e)
}

// hot reports whether the segment holds nothing that is needed.
func (s *segment) hot() bool { return !s.writing && s.live == 0 }

func (s *segment) dead() bool { return s.released == 0 && !s.damaged }

// Evict removes the segments in which nothing is left, then the oldest of those whose objects are all
// released, until what is left of these is within HotBytes. Segments with open objects or unfinished
// writers stay. It returns the errors of removal; what was not removed is found again at the next Open.
func (j *Journal) Evict() error {
	var errs []error
	for {
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return ErrClosed
		}
		victims := j.victimsLocked()
		j.forgetLocked(victims)
		j.mu.Unlock()
		if len(victims) == 0 {
			return errors.Join(errs...)
		}
		for _, s := range victims {
			errs = append(errs, s.closeFile(), j.cfg.FS.Remove(j.segmentPath(s.number)))
			j.cfg.Log.Info("journal segment removed", "segment", s.number, "bytes", s.size)
		}
	}
}

func (j *Journal) victimsLocked() []*segment {
	var hot []*segment
	var bytes int64
	for _, n := range slices.Sorted(maps.Keys(j.segments)) {
		if s := j.segments[n]; s.hot() {
			hot = append(hot, s)
			if !s.dead() {
				bytes += int64(s.size)
			}
		}
	}
	return slices.DeleteFunc(hot, func(s *segment) bool {
		if s.pins > 0 || !s.dead() && bytes <= j.cfg.HotBytes {
			return true
		}
		if !s.dead() {
			bytes -= int64(s.size)
		}
		return false
	})
}

// forgetLocked removes the segments, and the objects that have a part in one of them.
func (j *Journal) forgetLocked(victims []*segment) {
	if len(victims) == 0 {
		return
	}
	for _, s := range victims {
		delete(j.segments, s.number)
		delete(j.broken, s.number)
	}
	for k, e := range j.index.entries {
		if e.state == stateReleased && slices.ContainsFunc(victims, func(s *segment) bool {
			return uint64(e.first) <= s.number && s.number <= uint64(e.segment)
		}) {
			j.removeLocked(k)
		}
	}
}
