package journal

import (
	"context"
	"fmt"
	"math"
)

// buffer holds a chunk frame, and behind it a commit frame.
type buffer struct{ b [bufferBytes]byte }

// Writer appends one object. It is not safe for concurrent use; many Writers may work at once. It
// holds one buffer of about 270 KiB from the first Write to Commit or Abort.
type Writer struct {
	j       *Journal
	object  uint64
	buf     *buffer
	filled  int // plaintext bytes in buf, behind the room for a frame's header
	size    int64
	chunks  uint32 // placed
	extents []extent
	err     error
	done    bool
}

// Begin starts an object. The caller ends it with Commit or Abort; until then its segments stay.
func (j *Journal) Begin() *Writer {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := &Writer{j: j, object: j.objects}
	j.objects++
	return w
}

// Written returns how many bytes Write has taken.
func (w *Writer) Written() int64 { return w.size }

// Write takes all of p: it blocks while a chunk is encrypted and written, not for syncs. It fails with
// ErrFull, ErrFenced or ErrClosed; the Writer can then only be aborted.
func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, ErrClosed
	}
	taken := 0
	for taken < len(p) {
		if w.err == nil && w.filled == chunkBytes {
			w.err = w.flush()
		}
		if w.err != nil {
			return taken, w.err
		}
		if w.buf == nil {
			w.buf = w.j.buffers.Get().(*buffer)
		}
		n := copy(w.buf.b[frameHeadBytes+w.filled:frameHeadBytes+chunkBytes], p[taken:])
		w.filled += n
		w.size += int64(n)
		taken += n
	}
	return taken, nil
}

// flush writes the full buffer as a chunk.
func (w *Writer) flush() error {
	if len(w.extents) == extentsMax || w.chunks == math.MaxUint32 {
		return fmt.Errorf("object of %d bytes in %d pieces: %w", w.size, len(w.extents), ErrTooLarge)
	}
	w.j.mu.Lock()
	s, err := w.j.reserveLocked(fullChunk)
	if err == nil {
		w.placeChunkLocked(s)
	}
	w.j.mu.Unlock()
	if err != nil {
		return err
	}
	return w.j.write(w.sealChunk(s), s)
}

// placeChunkLocked notes where the next chunk goes, and pins its segment.
func (w *Writer) placeChunkLocked(s spot) {
	if n := len(w.extents); n == 0 || w.extents[n-1].segment != s.tail.number {
		s.tail.pins++
	}
	w.extents = appendExtent(w.extents, s.tail.number, s.offset)
	w.chunks++
}

// sealChunk makes the placed chunk's frame in the buffer and empties it.
func (w *Writer) sealChunk(s spot) []byte {
	b := w.buf.b[:w.filled+frameOverhead]
	sealFrame(b, s.frame(frameChunk, w.object, w.chunks-1, uint32(w.filled)), s.tail.aead, s.tail.number)
	w.filled = 0
	return b
}

// Commit makes the object visible under key, with a note of at most NoteBytesMax, in place of what the
// key named before. It returns nil once all of it is synced; one sync serves all commits that wait. It
// fails with ErrFull, ErrFenced, ErrTooLarge, ErrClosed, or, when ctx ends first, ErrUnknownOutcome
// with ctx's error: the object may then still become visible. After a failed Commit the object is not
// visible unless the outcome is unknown or the journal is fenced. The Writer is done in any case.
func (w *Writer) Commit(ctx context.Context, key Key, note []byte) error {
	if w.done {
		return ErrClosed
	}
	defer w.Abort() // gives back what is left
	if w.err != nil {
		return w.err
	}
	if len(note) > NoteBytesMax {
		return fmt.Errorf("note of %d bytes: %w", len(note), ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := w.place(key, note)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// place writes the last chunk and the commit record, side by side in one write where it can.
func (w *Writer) place(key Key, note []byte) (*commit, error) {
	if w.buf == nil {
		w.buf = w.j.buffers.Get().(*buffer)
	}
	var chunk, end spot
	var err error
	w.j.mu.Lock()
	if w.filled > 0 {
		if chunk, err = w.j.reserveLocked(int64(w.filled) + frameOverhead); err == nil {
			w.placeChunkLocked(chunk)
		}
	}
	r := record{key: key, size: w.size, chunks: w.chunks, extents: w.extents, note: note, at: w.j.cfg.Now().UnixNano()}
	var c *commit
	if err == nil {
		if end, err = w.j.reserveLocked(int64(r.encodedBytes()) + frameOverhead); err == nil {
			c = w.placeCommitLocked(end, &r)
		}
	}
	w.j.mu.Unlock()

	var frames []byte
	if chunk.tail != nil {
		frames = w.sealChunk(chunk) // a place that was given away must be written, whatever came after
	}
	switch {
	case err != nil && chunk.tail == nil:
		return nil, err
	case err != nil:
		_ = w.j.write(frames, chunk) // the error that stands is the older one
		return nil, err
	case chunk.tail == end.tail && chunk.offset+uint32(len(frames)) == end.offset:
		return c, w.j.write(w.sealRecord(frames, end, &r), chunk, end)
	case chunk.tail != nil:
		if err := w.j.write(frames, chunk); err != nil {
			_ = w.j.write(w.sealRecord(nil, end, &r), end) // see above
			return nil, err
		}
	}
	return c, w.j.write(w.sealRecord(nil, end, &r), end)
}

// placeCommitLocked queues the commit whose record has just been given its place. From here on the
// commit owns the pins.
func (w *Writer) placeCommitLocked(s spot, r *record) *commit {
	r.previous = s.tail.last
	s.tail.last = ref{offset: s.offset, key: r.key}
	first := s.tail.number
	if len(r.extents) > 0 {
		first = r.extents[0].segment
	}
	c := &commit{
		tail:    s.tail,
		end:     s.offset + uint32(r.encodedBytes()) + frameOverhead,
		key:     r.key,
		entry:   entry{first: uint32(first), segment: uint32(s.tail.number), offset: s.offset, size: r.size, at: r.at},
		extents: w.extents,
		done:    make(chan struct{}),
	}
	w.extents = nil
	if w.j.tornLocked(c) {
		w.j.unpinLocked(c.extents)
		c.finish(ErrFull)
		return c
	}
	w.j.commits = append(w.j.commits, c)
	return c
}

// sealRecord appends the commit frame to frames, which is the start of the buffer or nil.
func (w *Writer) sealRecord(frames []byte, s spot, r *record) []byte {
	at, length := len(frames), r.encodedBytes()
	b := w.buf.b[:]
	if at+length+frameOverhead > len(b) {
		b = make([]byte, at+length+frameOverhead)
		copy(b, frames)
	}
	b = b[:at+length+frameOverhead]
	r.append(b[at+frameHeadBytes : at+frameHeadBytes])
	sealFrame(b[at:], s.frame(frameCommit, w.object, r.chunks, uint32(length)), s.tail.aead, s.tail.number)
	return b
}

// Abort gives up the object; what was written of it is never visible. It may be called at any time,
// and after Commit does nothing.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.buf != nil {
		w.j.buffers.Put(w.buf)
		w.buf = nil
	}
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.j.unpinLocked(w.extents)
	w.extents = nil
}
