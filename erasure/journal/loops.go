package journal

import (
	"encoding/binary"
	"fmt"

	"osteon/erasure/plant"
)

// commit is a commit record that has its place and waits for the sync.
type commit struct {
	tail    *tail
	end     uint32 // of the record
	key     Key
	entry   entry
	extents []extent
	err     error
	done    chan struct{} // closed when err is set
}

func (c *commit) finish(err error) {
	c.err = err
	close(c.done)
}

// syncLoop syncs when a commit waits or much is dirty, then completes all commits that the sync
// covered: one sync serves every writer that came while the one before it ran.
func (j *Journal) syncLoop() {
	defer j.loops.Done()
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.syncDueLocked() {
			if j.fenced != nil && j.closed || len(j.tails) == 0 {
				return
			}
			j.due.Wait()
		}
		round := j.roundLocked()
		j.mu.Unlock()
		err := j.sync(round)
		j.mu.Lock()
		if err != nil && !plant.Is(plant.FsyncErrorIgnored) {
			_ = j.fenceLocked(err) // every caller hears of it from its own operation
			continue
		}
		j.syncedLocked(round)
	}
}

func (j *Journal) syncDueLocked() bool {
	if j.fenced != nil || len(j.tails) == 0 {
		return false
	}
	if oldest := j.tails[0]; oldest.sealed && oldest.writes == 0 && j.mayEndLocked() {
		return true
	}
	if len(j.commits) > 0 && j.commits[0].end <= j.commits[0].tail.written {
		return true
	}
	t := j.active()
	return t.written-t.durable >= dirtyBytesMax
}

// turn is one segment's part in a round of syncs.
type turn struct {
	tail   *tail
	target uint32 // durable when the round succeeds
	ends   bool   // write the end frame first
	end    frame
	last   ref
	syncs  bool
}

func (j *Journal) roundLocked() []turn {
	round := make([]turn, 0, len(j.tails))
	for _, t := range j.tails {
		r := turn{tail: t, target: t.written, syncs: t.written > t.durable}
		if t.sealed && !t.torn && t.writes == 0 && !t.ended {
			r.ends, r.syncs, r.last = true, true, t.last
			r.end = frame{kind: frameEnd, length: frameEndBytes, counter: t.counter, durable: j.provenLocked(t)}
		}
		round = append(round, r)
	}
	return round
}

// sync does the round's I/O, oldest segment first.
func (j *Journal) sync(round []turn) error {
	for i := range round {
		r := &round[i]
		if r.ends {
			if err := r.writeEnd(); err != nil && !isFull(err) {
				return fmt.Errorf("end segment %d: %w", r.tail.number, err)
			}
		}
		if !r.syncs || plant.Is(plant.AckBeforeFsync) {
			continue
		}
		if err := r.tail.file.SyncData(); err != nil {
			return fmt.Errorf("sync segment %d: %w", r.tail.number, err)
		}
	}
	return nil
}

// writeEnd writes the end frame. On a full disk the segment does without: replay then reads its last
// part more closely.
func (r *turn) writeEnd() error {
	b := make([]byte, r.end.size())
	binary.LittleEndian.PutUint32(b[frameHeadBytes:], r.last.offset)
	copy(b[frameHeadBytes+4:], r.last.key[:])
	sealFrame(b, r.end, r.tail.aead, r.tail.number)
	_, err := r.tail.file.WriteAt(b, int64(r.target))
	if err == nil {
		r.target += uint32(len(b))
	}
	return err
}

func (j *Journal) syncedLocked(round []turn) {
	for _, r := range round {
		if r.syncs {
			j.stats.Syncs++
		}
		r.tail.durable = max(r.tail.durable, r.target)
		if r.ends {
			r.tail.ended = true
			r.tail.size = max(r.tail.size, r.target)
		}
	}
	for len(j.tails) > 0 && j.tails[0].finished() && j.mayEndLocked() {
		t := j.tails[0]
		t.writing = false
		j.tails = j.tails[1:]
		if err := t.file.Close(); err != nil {
			j.cfg.Log.Warn("close of a synced segment failed", "segment", t.number, "error", err)
		}
	}
	j.completeLocked()
}

// mayEndLocked reports whether the oldest tail may go: while the journal is open one stays, even when
// a full disk has sealed it and there is no room for the next.
func (j *Journal) mayEndLocked() bool { return len(j.tails) > 1 || j.closed }

// finished reports whether nothing more will be written or synced.
func (t *tail) finished() bool {
	return t.sealed && t.writes == 0 && (t.ended || t.torn) && t.durable >= t.written
}

// completeLocked makes visible, in order, what is durable with all that came before it.
func (j *Journal) completeLocked() {
	n := 0
	for _, c := range j.commits {
		if c.tail.writing && (c.tail != j.tails[0] || c.end > c.tail.durable) {
			break
		}
		j.insertLocked(c.key, c.entry)
		j.unpinLocked(c.extents)
		j.stats.Commits++
		c.finish(nil)
		n++
	}
	j.commits = j.commits[n:]
	if len(j.commits) == 0 {
		j.commits = nil
	}
}

// spare is the segment that is made ahead of need. Journal.mu guards it.
type spare struct {
	tail     *tail
	err      error  // of the last attempt
	number   uint64 // of the next attempt
	attempts int
	wanted   bool
}

// wantSpareEarlyLocked asks for a spare when the active segment is half full, unless the last attempt
// failed: then only need makes another.
func (j *Journal) wantSpareEarlyLocked(t *tail) {
	if int64(t.end) > j.cfg.SegmentBytes/2 && j.spare.err == nil {
		j.wantSpareLocked()
	}
}

func (j *Journal) wantSpareLocked() {
	if j.spare.tail == nil && !j.spare.wanted {
		j.spare.wanted = true
		j.wanted.Signal()
	}
}

// spareLoop makes segments when they are wanted.
func (j *Journal) spareLoop() {
	defer j.loops.Done()
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for !j.spare.wanted && !j.closed {
			j.wanted.Wait()
		}
		if j.closed {
			return
		}
		number := j.spare.number
		j.spare.number++
		j.mu.Unlock()
		t, err := j.createSegment(number)
		j.mu.Lock()
		j.spare.wanted = false
		j.spare.attempts++
		j.spare.tail, j.spare.err = t, err
		if err != nil && !isFull(err) {
			_ = j.fenceLocked(fmt.Errorf("create segment %d: %w", number, err)) // the waiting writers return it
		}
		j.changed.Broadcast()
	}
}

// rotateLocked replaces the full active segment by the spare, for which it may wait.
func (j *Journal) rotateLocked(full *tail) error {
	for j.active() == full {
		if err := j.unusableLocked(); err != nil {
			return err
		}
		if t := j.spare.tail; t != nil {
			j.spare.tail = nil
			full.sealed = true
			j.tails = append(j.tails, t)
			j.segments[t.number] = t.segment
			j.due.Signal()
			return nil
		}
		j.wantSpareLocked()
		attempts := j.spare.attempts
		for j.spare.attempts == attempts && j.active() == full && j.unusableLocked() == nil {
			j.changed.Wait()
		}
		if j.active() == full && j.spare.tail == nil && isFull(j.spare.err) {
			j.stats.Refused++
			return fmt.Errorf("%w: %w", ErrFull, j.spare.err)
		}
	}
	return nil
}
