package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/plant"
)

// replay is what is learnt from reading all segments at Open, before anyone else knows the journal.
type replay struct {
	j       *Journal
	durable map[uint64]uint32  // of each segment: what is known to have been synced
	objects map[uint64]partial // objects of which chunks were seen, and no commit yet
	lost    map[Key]struct{}   // keys of commit records that are gone
	before  *scan              // of the segment before
}

// partial sums up the good chunk frames of an object, so that a commit record can be held against them.
type partial struct {
	chunks uint32
	sum    uint64
}

// add takes the chunk with that number at a place into the sum, which does not depend on the order.
func (p *partial) add(segment uint64, offset, sequence uint32) {
	x := segment<<32 ^ uint64(offset) ^ uint64(sequence)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	p.sum += x ^ x>>31
	p.chunks++
}

// candidate is a commit record that was read.
type candidate struct {
	record
	object  uint64
	segment uint64
	offset  uint32
	whole   bool // every chunk has its frame
}

// replay reads all segments into the index and returns the highest segment number in use.
func (j *Journal) replay() (uint64, error) {
	began := j.cfg.Now()
	numbers, err := j.listSegments()
	if err != nil {
		return 0, err
	}
	r := &replay{j: j, durable: map[uint64]uint32{}, objects: map[uint64]partial{}, lost: map[Key]struct{}{}}
	var last uint64
	for _, n := range numbers {
		if n >= math.MaxUint32-1 {
			return 0, fmt.Errorf("segment number %d is out of range", n)
		}
		if err := r.segment(n); err != nil {
			return 0, fmt.Errorf("segment %d: %w", n, err)
		}
		last = n
	}
	r.closeBefore(nil)
	for key := range r.lost {
		if _, ok := j.index.entries[key]; !ok {
			j.index.corrupt[key] = struct{}{}
		}
	}
	if err := j.sweep(); err != nil {
		return 0, err
	}
	if err := r.settle(); err != nil {
		return 0, err
	}
	j.stats.ReplaySeconds = j.cfg.Now().Sub(began).Seconds()
	j.cfg.Log.Info("journal replayed", "segments", len(j.segments), "objects", j.index.visible,
		"corrupt", len(j.index.corrupt), "seconds", j.stats.ReplaySeconds)
	return last, nil
}

// settle syncs what is not known to have been synced: a process that was killed leaves records that are read back from
// memory and would not survive a power cut, and what is visible here is offered to the catalog.
func (r *replay) settle() error {
	j := r.j
	for n, s := range j.segments {
		if r.durable[n] >= s.size {
			continue
		}
		f, err := j.cfg.FS.Open(j.segmentPath(n))
		if err != nil {
			return fmt.Errorf("sync segment %d: %w", n, err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync segment %d: %w", n, err)
		}
	}
	return syncDir(j.cfg.FS, j.cfg.Dir)
}

func (j *Journal) listSegments() ([]uint64, error) {
	names, err := j.cfg.FS.List(j.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := parseSegmentName(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// sweep removes the segments that hold no object: what a crash or an abort left.
func (j *Journal) sweep() error {
	for n, s := range j.segments {
		if s.live > 0 || s.damaged {
			continue
		}
		if err := errors.Join(s.closeFile(), j.cfg.FS.Remove(j.segmentPath(n))); err != nil {
			return fmt.Errorf("remove empty segment %d: %w", n, err)
		}
		delete(j.segments, n)
	}
	return nil
}

// segment reads one segment into the index.
func (r *replay) segment(number uint64) error {
	f, err := r.j.cfg.FS.Open(r.j.segmentPath(number), vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing to lose
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := &window{file: f, size: info.Size(), number: number}
	head, err := w.at(0, min(headBytes, w.size), peekBytes)
	if err != nil {
		return err
	}
	s, err := r.j.decodeSegmentHead(head, number)
	if errors.Is(err, errHead) && w.size <= headBytes {
		return r.j.cfg.FS.Remove(r.j.segmentPath(number)) // its creation never finished
	}
	if errors.Is(err, errHead) {
		r.j.stats.DamagedFiles++
		r.j.cfg.Log.Error("journal segment unreadable: all it held is lost here", "segment", number, "bytes", w.size)
		return nil
	}
	if err != nil {
		return err
	}
	if w.size > math.MaxUint32 {
		return fmt.Errorf("%d bytes are more than a segment can have", w.size)
	}
	s.size = uint32(w.size)
	r.j.segments[number] = s
	found, err := r.scan(s, w)
	if err != nil {
		return err
	}
	for i := range found {
		if err := r.take(&found[i]); err != nil {
			return err
		}
	}
	return nil
}

// scan walks over the frames of a segment.
type scan struct {
	*replay
	*window
	s     *segment
	found []candidate
	last  ref // the newest commit record seen
	bad   []stretch
	ended bool
}

// scan returns the commit records of a segment. What is bad is stepped over.
func (r *replay) scan(s *segment, w *window) ([]candidate, error) {
	c := &scan{replay: r, window: w, s: s}
	pos, ahead := int64(headBytes), int64(scanWindowBytes)
	for pos < w.size {
		h, ok, err := w.frame(pos, ahead)
		if err != nil {
			return nil, err
		}
		next := pos + h.size()
		if ok {
			ok, err = c.visit(pos, h)
		} else {
			next, err = w.resync(pos + 1)
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			c.bad = append(c.bad, stretch{pos, next})
		}
		if ahead = scanWindowBytes; h.size() > scanWindowBytes/4 {
			ahead = peekBytes // bodies are stepped over
		}
		pos = next
	}
	r.closeBefore(c)
	return c.found, nil
}

// visit takes note of the frame at pos; false if it is bad.
func (c *scan) visit(pos int64, h frame) (bool, error) {
	c.durable[c.s.number] = max(c.durable[c.s.number], h.durable)
	if h.kind == frameChunk {
		p := c.objects[h.object]
		p.add(c.s.number, uint32(pos), h.sequence)
		c.objects[h.object] = p
		return true, nil
	}
	plain, err := c.open(pos, h, c.s)
	if errors.Is(err, errFrame) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if h.kind == frameCommit {
		return c.visitCommit(plain, h, uint32(pos)), nil
	}
	if h.kind != frameEnd || len(plain) != frameEndBytes {
		return false, nil
	}
	c.ended = true
	c.follow(c.last, ref{binary.LittleEndian.Uint32(plain), Key(plain[4:])})
	return true, nil
}

func (c *scan) visitCommit(plain []byte, h frame, offset uint32) bool {
	found, err := c.candidate(plain, h, c.s, offset)
	if err != nil {
		return false
	}
	c.follow(c.last, found.previous)
	c.last = ref{offset, found.key}
	c.found = append(c.found, found)
	return true
}

// closeBefore judges the segment before c, or the last one when c is nil. A frame of c that was placed
// when c was synced beyond its header proves that the segment before had been ended and synced whole,
// unless a full disk tore it.
func (r *replay) closeBefore(c *scan) {
	p := r.before
	if r.before = c; c != nil {
		c.window = nil // not needed any more
	}
	if p == nil {
		return
	}
	if c != nil && p.s.incarnation == c.s.incarnation && r.durable[c.s.number] > headBytes {
		if p.ended {
			r.durable[p.s.number] = p.s.size
		} else {
			p.s.damaged = true
			r.j.stats.CutShort++
			r.j.cfg.Log.Error("journal segment lost its end", "segment", p.s.number, "bytes", p.s.size)
		}
	}
	r.report(p.s, p.bad)
}

// stretch is a stretch of a segment.
type stretch struct{ from, to int64 }

// follow holds what a record says came before it against what was seen.
func (r *replay) follow(seen, named ref) {
	if named.offset != 0 && seen.offset != named.offset {
		r.lost[named.key] = struct{}{}
	}
}

// report tells damage from what a crash leaves.
func (r *replay) report(s *segment, bad []stretch) {
	durable := int64(r.durable[s.number])
	for _, b := range bad {
		if b.from >= durable || plant.Is(plant.DamageTakenForTear) {
			r.j.stats.TornBytes += b.to - b.from
			continue
		}
		s.damaged = true
		r.j.stats.DamagedBytes += b.to - b.from
		r.j.cfg.Log.Error("journal damaged", "segment", s.number, "offset", b.from, "bytes", b.to-b.from)
	}
}

// candidate decodes a commit record and holds it against the chunks that were seen.
func (r *replay) candidate(plain []byte, h frame, s *segment, offset uint32) (candidate, error) {
	rec, err := decodeRecord(plain)
	if err != nil || rec.chunks != h.sequence {
		return candidate{}, errRecord
	}
	rec.note = nil // aliases the window
	seen := r.objects[h.object]
	delete(r.objects, h.object)
	var want partial
	sequence := uint32(0)
	if seen.chunks != rec.chunks {
		return candidate{record: rec, object: h.object, segment: s.number, offset: offset}, nil
	}
	for _, e := range rec.extents {
		for i := range e.chunks {
			want.add(e.segment, e.offset+i*fullChunk, sequence)
			sequence++
		}
	}
	return candidate{record: rec, object: h.object, segment: s.number, offset: offset, whole: seen == want}, nil
}

// take puts an object into the index: as corrupt if a part of it is bad and no other copy is good.
func (r *replay) take(c *candidate) error {
	first := c.segment
	if len(c.extents) > 0 {
		first = c.extents[0].segment
	}
	for _, e := range c.extents {
		if _, ok := r.j.segments[e.segment]; !ok {
			return nil // the segment was evicted after its objects were sealed
		}
	}
	e := entry{first: uint32(first), segment: uint32(c.segment), offset: c.offset, size: c.size, at: c.at}
	whole, err := r.intact(c)
	if err != nil {
		return err
	}
	if !whole {
		if old, ok := r.j.index.entries[c.key]; ok && old.state != stateCorrupt {
			return nil
		}
		e.state = stateCorrupt
	}
	r.j.insertLocked(c.key, e)
	return nil
}

// intact authenticates the chunks that lie beyond what is known to have been synced.
func (r *replay) intact(c *candidate) (bool, error) {
	if !c.whole {
		return false, nil
	}
	sequence := int64(0)
	for _, e := range c.extents {
		for i := range e.chunks {
			at := extent{segment: e.segment, offset: e.offset + i*fullChunk, chunks: 1}
			length := chunkLength(c.size, sequence)
			if int64(at.offset)+int64(length)+frameOverhead > int64(r.durable[e.segment]) {
				if ok, err := r.chunkGood(at, c.object, uint32(sequence), length); !ok || err != nil {
					return false, err
				}
			}
			sequence++
		}
	}
	return true, nil
}

func (r *replay) chunkGood(at extent, object uint64, sequence uint32, length int) (bool, error) {
	buf := r.j.buffers.Get().(*buffer)
	defer r.j.buffers.Put(buf)
	_, err := r.j.readChunk(buf.b[:length+frameOverhead], at, object, sequence)
	if errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	return err == nil, err
}

// window reads a segment through a buffer.
type window struct {
	file   vfs.File
	size   int64
	number uint64
	from   int64
	b      []byte
}

// at returns n bytes at pos, which must lie in the file, reading up to ahead bytes when it must read.
// They are valid until the next call.
func (w *window) at(pos, n, ahead int64) ([]byte, error) {
	if pos < w.from || pos+n > w.from+int64(len(w.b)) {
		length := min(max(n, ahead), w.size-pos)
		w.b = slices.Grow(w.b[:0], int(length))[:length]
		w.from = pos
		if got, err := w.file.ReadAt(w.b, pos); got < len(w.b) {
			w.b = w.b[:0]
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read at %d: %w", pos, err)
		}
	}
	return w.b[pos-w.from : pos-w.from+n], nil
}

// frame returns the header at pos, or false if no whole frame begins there.
func (w *window) frame(pos, ahead int64) (frame, bool, error) {
	if w.size-pos < frameOverhead {
		return frame{}, false, nil
	}
	b, err := w.at(pos, frameHeadBytes, ahead)
	if err != nil {
		return frame{}, false, err
	}
	h, ok := decodeFrame(b, w.number)
	return h, ok && h.size() <= w.size-pos, nil
}

// open returns the plaintext of the frame at pos, or errFrame.
func (w *window) open(pos int64, h frame, s *segment) ([]byte, error) {
	b, err := w.at(pos, h.size(), scanWindowBytes)
	if err != nil {
		return nil, err
	}
	return openFrame(bytes.Clone(b), h, s.aead, s.number)
}

// resync returns the place of the next whole frame from pos on, or the end of the file.
func (w *window) resync(pos int64) (int64, error) {
	for w.size-pos >= frameOverhead {
		b, err := w.at(pos, min(scanWindowBytes, w.size-pos), scanWindowBytes)
		if err != nil {
			return 0, err
		}
		i := bytes.Index(b, []byte(frameMagic))
		if i < 0 {
			pos += max(1, int64(len(b))-int64(len(frameMagic))+1)
			continue
		}
		pos += int64(i)
		if _, ok, err := w.frame(pos, scanWindowBytes); ok || err != nil {
			return pos, err
		}
		pos++
	}
	return w.size, nil
}
