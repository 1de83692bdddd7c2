package journal

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// tail is a segment being written. Journal.mu guards everything but the calls of file.
type tail struct {
	*segment
	file vfs.File

	end          uint32 // places below are given away
	written      uint32 // every byte below is written
	durable      uint32 // every byte below is synced
	preallocated uint32 // every byte below has its room on the disk
	counter      uint32 // frames placed
	writes       int    // calls of WriteAt under way
	spans        []span // places given away from written on, in order
	last         ref    // the newest commit record
	sealed       bool   // takes no more frames
	torn         bool   // a write found the disk full; the places from written on are lost
	ended        bool   // has its end frame
}

// span is a place that was given away.
type span struct {
	start, end uint32
	done       bool
}

// spot is where a frame goes.
type spot struct {
	tail    *tail
	offset  uint32
	counter uint32
	durable uint32
}

func (s *spot) frame(kind frameType, object uint64, sequence, length uint32) frame {
	return frame{kind: kind, object: object, sequence: sequence, length: length, counter: s.counter, durable: s.durable}
}

// active is the segment that takes frames, or nil when the closing journal has ended it.
func (j *Journal) active() *tail {
	if len(j.tails) == 0 {
		return nil
	}
	return j.tails[len(j.tails)-1]
}

func (j *Journal) unusableLocked() error {
	if j.fenced != nil {
		return j.fenced
	}
	if j.closed {
		return ErrClosed
	}
	return nil
}

// reserveLocked gives away a place for a frame of that size, in the active segment or, when that is
// full, in the next. The caller must write it. It fails with ErrFull, ErrFenced or ErrClosed; it may
// release and take mu again.
func (j *Journal) reserveLocked(size int64) (spot, error) {
	for {
		if err := j.unusableLocked(); err != nil {
			return spot{}, err
		}
		t := j.active()
		full := int64(t.end)+size > j.cfg.SegmentBytes && t.end > headBytes
		if !full && !t.sealed {
			if err := t.preallocate(size, j.cfg.SegmentBytes); err != nil {
				j.stats.Refused++
				return spot{}, err
			}
			j.wantSpareEarlyLocked(t)
			return j.giveLocked(t, size), nil
		}
		if err := j.rotateLocked(t); err != nil {
			return spot{}, err
		}
	}
}

func (j *Journal) giveLocked(t *tail, size int64) spot {
	s := spot{tail: t, offset: t.end, counter: t.counter, durable: j.provenLocked(t)}
	t.end += uint32(size)
	t.size = t.end
	t.counter++
	t.writes++
	t.spans = append(t.spans, span{start: s.offset, end: t.end})
	return s
}

// provenLocked is how much of t counts as synced: nothing behind the header until all older segments
// are ended and synced, for that is what the value proves of them.
func (j *Journal) provenLocked(t *tail) uint32 {
	if t != j.tails[0] {
		return headBytes
	}
	return t.durable
}

// preallocate makes room for size bytes behind the end, and for more as long as the segment is not
// full, or fails with ErrFull. File systems that cannot preallocate are left to fail in the write.
func (t *tail) preallocate(size, full int64) error {
	need := int64(t.end) + size
	if need <= int64(t.preallocated) {
		return nil
	}
	from := int64(max(t.preallocated, t.end))
	length := max(min(preallocateBytes, full-from), need-from)
	err := t.file.Preallocate(from, length)
	if isFull(err) && length > need-from {
		length = need - from
		err = t.file.Preallocate(from, length)
	}
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	t.preallocated = uint32(from + length)
	return nil
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// write puts frames that follow each other at the first one's place, and accounts for all of them.
func (j *Journal) write(b []byte, spots ...spot) error {
	t := spots[0].tail
	_, err := t.file.WriteAt(b, int64(spots[0].offset))
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stats.BytesWritten += int64(len(b))
	t.writes -= len(spots)
	switch {
	case err == nil:
		for _, s := range spots {
			t.complete(s.offset)
		}
	case isFull(err):
		err = fmt.Errorf("%w: %w", ErrFull, err)
		j.stats.Refused++
		j.tearLocked(t, spots[0].offset)
	default:
		err = j.fenceLocked(fmt.Errorf("write segment %d at %d: %w", t.number, spots[0].offset, err))
	}
	j.due.Signal()
	if j.closed {
		j.changed.Broadcast()
	}
	return err
}

// complete marks the span as written and moves the prefix without a gap.
func (t *tail) complete(offset uint32) {
	i, _ := slices.BinarySearchFunc(t.spans, offset, func(s span, at uint32) int { return int(int64(s.start) - int64(at)) })
	t.spans[i].done = true
	n := 0
	for n < len(t.spans) && t.spans[n].done {
		t.written = t.spans[n].end
		n++
	}
	t.spans = slices.Delete(t.spans, 0, n)
}

// tearLocked gives up the segment from offset on, after a write there found the disk full: whatever
// has a part behind it cannot be acknowledged.
func (j *Journal) tearLocked(t *tail, offset uint32) {
	t.sealed, t.torn = true, true
	if at, ok := j.broken[t.number]; ok {
		offset = min(offset, at)
	}
	j.broken[t.number] = offset
	j.commits = slices.DeleteFunc(j.commits, func(c *commit) bool {
		if !j.tornLocked(c) {
			return false
		}
		j.unpinLocked(c.extents)
		c.finish(ErrFull)
		return true
	})
}

// tornLocked reports whether a part of the commit lies where a full disk tore a segment.
func (j *Journal) tornLocked(c *commit) bool {
	if at, ok := j.broken[c.tail.number]; ok && c.end > at {
		return true
	}
	return j.extentsTornLocked(c.extents)
}

func (j *Journal) extentsTornLocked(extents []extent) bool {
	if len(j.broken) == 0 {
		return false
	}
	return slices.ContainsFunc(extents, func(e extent) bool {
		at, ok := j.broken[e.segment]
		return ok && e.offset+(e.chunks-1)*fullChunk >= at
	})
}

// fenceLocked stops the journal for good and returns its error.
func (j *Journal) fenceLocked(cause error) error {
	if j.fenced == nil {
		j.fenced = fmt.Errorf("%w: %w", ErrFenced, cause)
		j.cfg.Log.Error("journal fenced", "dir", j.cfg.Dir, "error", cause)
		for _, c := range j.commits {
			c.finish(j.fenced)
		}
		j.commits = nil
		j.due.Broadcast()
		j.changed.Broadcast()
	}
	return j.fenced
}
