package journal

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
)

// Object is an open object. Its segments stay on the disk until Close. It is safe for concurrent use;
// reads take turns.
type Object struct {
	j       *Journal
	key     Key
	entry   entry
	object  uint64
	extents []extent
	before  []int64 // chunks before each extent

	// mu is held over the read of a chunk, so that small reads of one chunk decrypt it once.
	mu     sync.Mutex
	buf    *buffer
	cached int64 // chunk whose plaintext is in buf, behind the room for a header; -1: none
	closed bool
}

var (
	_ io.ReaderAt = (*Object)(nil)
	_ io.WriterTo = (*Object)(nil)
)

// OpenObject opens a visible object for reading. It fails with ErrNotFound, or ErrCorrupt when its
// commit record is damaged or the key is listed by Corrupt. The caller closes it.
func (j *Journal) OpenObject(key Key) (*Object, error) {
	r, object, e, err := j.readRecord(key)
	if err != nil {
		return nil, err
	}
	o := &Object{j: j, key: key, entry: e, object: object, extents: r.extents, cached: -1}
	var n int64
	for _, x := range r.extents {
		o.before = append(o.before, n)
		n += int64(x.chunks)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unpinRangeLocked(e)
	if now, ok := j.index.entries[key]; !ok || !now.sameRecord(e) {
		return nil, ErrNotFound // dropped or replaced since
	}
	j.pinLocked(o.extents)
	return o, nil
}

// Note returns the note of a visible object. It fails as OpenObject does.
func (j *Journal) Note(key Key) ([]byte, error) {
	r, _, e, err := j.readRecord(key)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unpinRangeLocked(e)
	return r.note, nil
}

// readRecord reads an object's commit record and leaves its segments pinned if it succeeds.
func (j *Journal) readRecord(key Key) (record, uint64, entry, error) {
	j.mu.Lock()
	e, ok := j.index.entries[key]
	_, corrupt := j.index.corrupt[key]
	if j.closed {
		j.mu.Unlock()
		return record{}, 0, entry{}, ErrClosed
	}
	if corrupt || !ok {
		j.mu.Unlock()
		if corrupt {
			return record{}, 0, entry{}, ErrCorrupt
		}
		return record{}, 0, entry{}, ErrNotFound
	}
	j.pinRangeLocked(e)
	s := j.segments[uint64(e.segment)]
	j.mu.Unlock()

	r, object, err := j.readRecordAt(s, e.offset)
	if err == nil && (r.key != key || r.size != e.size) {
		err = ErrCorrupt
	}
	if err == nil {
		return r, object, e, nil
	}
	if errors.Is(err, ErrCorrupt) {
		j.markCorrupt(key, e)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unpinRangeLocked(e)
	return record{}, 0, entry{}, err
}

func (j *Journal) pinRangeLocked(e entry)   { j.addRangePinsLocked(e, 1) }
func (j *Journal) unpinRangeLocked(e entry) { j.addRangePinsLocked(e, -1) }

func (j *Journal) addRangePinsLocked(e entry, by int) {
	for n := uint64(e.first); n <= uint64(e.segment); n++ {
		if s := j.segments[n]; s != nil {
			s.pins += by
		}
	}
}

// readRecordAt reads the commit frame at a place. Most fit in the first read.
func (j *Journal) readRecordAt(s *segment, offset uint32) (record, uint64, error) {
	b := make([]byte, peekBytes)
	n, err := j.readSome(s, b, int64(offset))
	if err != nil {
		return record{}, 0, fmt.Errorf("read commit record in segment %d at %d: %w", s.number, offset, err)
	}
	h, ok := decodeFrame(b[:n], s.number)
	if !ok || h.kind != frameCommit {
		return record{}, 0, corruptAt(s, offset)
	}
	if h.size() > int64(n) {
		b = make([]byte, h.size()) // the header's checksum and lengthMax vouch for it
		if err := j.readAt(s, b, int64(offset)); err != nil {
			return record{}, 0, readError(err, s, offset)
		}
	}
	plain, err := openFrame(b, h, s.aead, s.number)
	if err != nil {
		return record{}, 0, corruptAt(s, offset)
	}
	r, err := decodeRecord(plain)
	if err != nil || r.chunks != h.sequence {
		return record{}, 0, corruptAt(s, offset)
	}
	return r, h.object, nil
}

func corruptAt(s *segment, offset uint32) error {
	return fmt.Errorf("segment %d at %d: %w", s.number, offset, ErrCorrupt)
}

// readError tells missing bytes, which are damage, from a disk that does not answer.
func readError(err error, s *segment, offset uint32) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return corruptAt(s, offset)
	}
	return fmt.Errorf("read segment %d at %d: %w", s.number, offset, err)
}

// Size returns the object's size in bytes.
func (o *Object) Size() int64 { return o.entry.size }

// ReadAt reads authenticated bytes. It fails with ErrCorrupt, after which the key is listed by
// Corrupt, or ErrClosed.
func (o *Object) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read object: negative offset")
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= o.Size() {
			return done, io.EOF
		}
		n, err := o.copyChunk(p[done:], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// copyChunk copies from one chunk, from offset at of the object on.
func (o *Object) copyChunk(p []byte, at int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	plain, err := o.chunkLocked(at / chunkBytes)
	if err != nil {
		return 0, err
	}
	return copy(p, plain[at%chunkBytes:]), nil
}

// WriteTo writes the whole object to dst, chunk by chunk. It fails as ReadAt does.
func (o *Object) WriteTo(dst io.Writer) (int64, error) { return o.CopyRange(dst, 0, o.Size()) }

// CopyRange writes the n bytes at off to dst, a chunk at a time without a copy between, and returns how many
// dst took. It fails as ReadAt does.
func (o *Object) CopyRange(dst io.Writer, off, n int64) (int64, error) {
	if off < 0 || n < 0 || off > o.Size() || n > o.Size()-off {
		return 0, fmt.Errorf("copy %d bytes at %d of an object of %d: %w", n, off, o.Size(), io.ErrUnexpectedEOF)
	}
	var done int64
	for done < n {
		at := off + done
		took, err := o.writeChunk(dst, at/chunkBytes, at%chunkBytes, n-done)
		done += int64(took)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeChunk writes what chunk i has from skip on, at most n bytes.
func (o *Object) writeChunk(dst io.Writer, i, skip, n int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	plain, err := o.chunkLocked(i)
	if err != nil {
		return 0, err
	}
	if n >= int64(len(plain))-skip { // to its end: nobody comes back for more of it
		o.cached = -1 // a Writer must not change its argument, but one that does harms only itself
	}
	plain = plain[skip:]
	return dst.Write(plain[:min(n, int64(len(plain)))])
}

// chunkLocked returns the plaintext of chunk i, which is valid until the next call.
func (o *Object) chunkLocked(i int64) ([]byte, error) {
	if o.closed {
		return nil, ErrClosed
	}
	length := chunkLength(o.Size(), i)
	if o.cached == i {
		return o.buf.b[frameHeadBytes : frameHeadBytes+length], nil
	}
	if o.buf == nil {
		o.buf = o.j.buffers.Get().(*buffer)
	}
	o.cached = -1
	plain, err := o.j.readChunk(o.buf.b[:length+frameOverhead], o.locate(i), o.object, uint32(i))
	if errors.Is(err, ErrCorrupt) {
		o.j.markCorrupt(o.key, o.entry)
	}
	if err != nil {
		return nil, err
	}
	o.cached = i
	return plain, nil
}

// locate returns the one-chunk extent of chunk i.
func (o *Object) locate(i int64) extent {
	n := sort.Search(len(o.before), func(n int) bool { return o.before[n] > i }) - 1
	e := o.extents[n]
	return extent{segment: e.segment, offset: e.offset + uint32(i-o.before[n])*fullChunk, chunks: 1}
}

// readChunk reads and decrypts the chunk frame at a place into b, which is as long as the frame must
// be. It fails with ErrCorrupt if the frame is not the one wanted.
func (j *Journal) readChunk(b []byte, at extent, object uint64, sequence uint32) ([]byte, error) {
	j.mu.Lock()
	s := j.segments[at.segment]
	closed := j.closed
	j.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if s == nil {
		return nil, fmt.Errorf("segment %d is gone: %w", at.segment, ErrCorrupt)
	}
	if err := j.readAt(s, b, int64(at.offset)); err != nil {
		return nil, readError(err, s, at.offset)
	}
	h, ok := decodeFrame(b, s.number)
	if !ok || h.kind != frameChunk || h.object != object || h.sequence != sequence || h.size() != int64(len(b)) {
		return nil, corruptAt(s, at.offset)
	}
	plain, err := openFrame(b, h, s.aead, s.number)
	if err != nil {
		return nil, corruptAt(s, at.offset)
	}
	return plain, nil
}

// Close lets the object's segments go. It may be called more than once.
func (o *Object) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	if o.buf != nil {
		o.j.buffers.Put(o.buf)
		o.buf = nil
	}
	o.j.mu.Lock()
	defer o.j.mu.Unlock()
	o.j.unpinLocked(o.extents)
	return nil
}
