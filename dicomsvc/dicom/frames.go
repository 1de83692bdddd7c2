package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrNoFrames: the frames of the pixel data cannot be told apart; the error says why.
var ErrNoFrames = errors.New("frames cannot be told apart")

// Extent is a run of bytes of the data set stream.
type Extent struct{ Offset, Length int64 }

// FrameTable says where each frame of an instance's pixel data lies in the data set stream. It is immutable and safe for concurrent use.
//
// Offsets of an encapsulated value follow from the lengths of its fragments, so that only these are kept:
//
//	frame:    uvarint(fragments<<1 | cut)  uvarint(length) ...  [uvarint(bytes to leave off the last fragment), if cut]
//
// and the offset of every 64th frame, for random access. AppendBinary writes, all numbers uvarints:
//
//	version 1, kind, count, base, size, bit length of a frame, length of reason, reason, length of list, list
type FrameTable struct {
	kind   frameKind
	count  int    // frames that can be told apart
	base   int64  // native: offset of the value; encapsulated: of the first fragment's item header
	size   int64  // native: length of the value; encapsulated: bytes of all fragments with their headers
	bits   int64  // native: of one frame
	list   []byte // encapsulated: the frames, as drawn above
	reason string // why count is 0 though there is pixel data

	marks []frameMark // for every 64th frame
}

type frameKind uint8

const (
	frameNative frameKind = iota + 1
	frameEncapsulated
	frameVideo
)

type frameMark struct {
	at  int   // position in list
	off int64 // offset of the item header of the frame's first fragment
}

const (
	frameTableVersion = 1
	framesPerMark     = 64
)

// Len returns the number of frames that can be read one by one; 1 for a video stream, 0 when Reason says why not.
func (t *FrameTable) Len() int { return t.count }

// Reason says why no frame can be told apart, "" when they can.
func (t *FrameTable) Reason() string { return t.reason }

// Encapsulated reports whether frames are compressed streams made of fragments.
func (t *FrameTable) Encapsulated() bool { return t.kind != frameNative }

// Video reports whether the one "frame" is a stream of all of them.
func (t *FrameTable) Video() bool { return t.kind == frameVideo }

// FrameBits returns the length of a native frame in bits and, for frame i (from 0), the bit of its first byte where it starts: a frame of 1-bit
// pixels may begin inside a byte (PS3.5 8.1.1). Both are 0 for encapsulated frames.
func (t *FrameTable) FrameBits(i int) (length int64, start int) {
	if t.kind != frameNative {
		return 0, 0
	}
	return t.bits, int(int64(i) * t.bits % 8)
}

// Frame appends the extents of frame i (from 0) to dst: one for a native frame, one for each fragment of a compressed one.
// Fails with ErrNoFrames when i is out of range.
func (t *FrameTable) Frame(dst []Extent, i int) ([]Extent, error) {
	if i < 0 || i >= t.count {
		if t.reason != "" {
			return dst, fmt.Errorf("%w: %s", ErrNoFrames, t.reason)
		}
		return dst, fmt.Errorf("%w: frame %d of %d", ErrNoFrames, i+1, t.count)
	}
	if t.kind == frameNative {
		from, to := int64(i)*t.bits/8, (int64(i+1)*t.bits+7)/8
		return append(dst, Extent{t.base + from, min(to, t.size) - from}), nil
	}
	m := t.marks[i/framesPerMark]
	c := frameCursor{list: t.list[m.at:], off: m.off}
	for range i % framesPerMark {
		c.next(nil)
	}
	return c.next(dst), nil
}

// frameCursor walks the list of frames.
type frameCursor struct {
	list []byte
	off  int64
	bad  bool
}

func (c *frameCursor) uvarint() uint64 {
	n, size := binary.Uvarint(c.list)
	if size <= 0 {
		c.bad = true
		c.list = nil
		return 0
	}
	c.list = c.list[size:]
	return n
}

// next passes one frame and appends its extents to dst.
func (c *frameCursor) next(dst []Extent) []Extent {
	first := len(dst)
	head := c.uvarint()
	for n := head >> 1; n > 0 && !c.bad; n-- {
		length := int64(c.uvarint())
		dst = append(dst, Extent{c.off + 8, length})
		c.off += 8 + length
	}
	if head&1 == 1 {
		if cut := int64(c.uvarint()); len(dst) > first && cut <= dst[len(dst)-1].Length {
			dst[len(dst)-1].Length -= cut
		}
	}
	return dst
}

// index fills marks from list and reports whether the list is sound.
func (t *FrameTable) index() bool {
	c := frameCursor{list: t.list, off: t.base}
	var scratch []Extent
	for i := range t.count {
		if i%framesPerMark == 0 {
			t.marks = append(t.marks, frameMark{len(t.list) - len(c.list), c.off})
		}
		if scratch = c.next(scratch[:0]); c.bad || c.off-t.base > t.size {
			return false
		}
	}
	return len(c.list) == 0
}

// AppendBinary appends the table in the form drawn above. What holds it guards it with a checksum.
func (t *FrameTable) AppendBinary(dst []byte) ([]byte, error) {
	dst = append(dst, frameTableVersion, byte(t.kind))
	for _, n := range []int64{int64(t.count), t.base, t.size, t.bits, int64(len(t.reason))} {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	dst = append(dst, t.reason...)
	dst = binary.AppendUvarint(dst, uint64(len(t.list)))
	return append(dst, t.list...), nil
}

// ParseFrameTable reads what AppendBinary wrote; b must hold nothing else. Fails with ErrMalformed.
func ParseFrameTable(b []byte) (*FrameTable, error) {
	bad := fmt.Errorf("frame table: %w", ErrMalformed)
	if len(b) < 2 || b[0] != frameTableVersion || b[1] < byte(frameNative) || b[1] > byte(frameVideo) {
		return nil, bad
	}
	t := &FrameTable{kind: frameKind(b[1])}
	c := frameCursor{list: b[2:]}
	count := c.uvarint()
	base, size, bits := c.uvarint(), c.uvarint(), c.uvarint()
	reason := c.uvarint()
	const far = 1 << 59
	if c.bad || base > far || size > far || bits > far || count > 1<<31 || reason > uint64(len(c.list)) {
		return nil, bad
	}
	t.count, t.base, t.size, t.bits = int(count), int64(base), int64(size), int64(bits)
	t.reason, c.list = string(c.list[:reason]), c.list[reason:]
	if n := c.uvarint(); c.bad || n != uint64(len(c.list)) {
		return nil, bad
	}
	if t.kind == frameNative {
		if t.count > 0 && (t.bits == 0 || t.bits > 8*far/int64(t.count) || int64(t.count)*t.bits > 8*(t.size+1)) || len(c.list) > 0 {
			return nil, bad
		}
		return t, nil
	}
	if len(c.list) > 0 {
		t.list = c.list
	}
	if t.count > len(t.list) || !t.index() {
		return nil, bad
	}
	return t, nil
}

// nativeFrames computes the table of uncompressed pixel data from the Image Pixel attributes (PS3.5 8.1, PS3.3 C.7.6.3).
func nativeFrames(h *Dataset, el *Element) *FrameTable {
	t := &FrameTable{kind: frameNative, base: el.Bulk.Offset, size: el.Bulk.Length}
	n := numberOfFrames(h)
	bits, ok := frameBits(h, el.Tag)
	switch {
	case t.size == 0:
		t.reason = "the instance has no frames"
	case ok && fits(bits, n, t.size):
		t.count, t.bits = n, bits
	case n == 1:
		// Whatever the attributes say, the value is the frame.
		t.count, t.bits = 1, t.size*8
	default:
		t.reason = "the length of the pixel data does not match rows, columns and number of frames"
	}
	return t
}

func fits(bits int64, n int, size int64) bool {
	return bits > 0 && bits <= (size*8)/int64(n) && (int64(n)*bits+7)/8 <= size
}

// numberOfFrames returns Number of Frames, 1 when it is absent, unreadable or (wrongly, beside pixel data) zero.
func numberOfFrames(h *Dataset) int {
	if n, ok := h.Int(NumberOfFrames); ok && n > 0 && n < 1<<31 {
		return n
	}
	return 1
}

// frameBits returns the length of one native frame in bits; chrominance may be subsampled (PS3.3 C.7.6.3.1.2).
func frameBits(h *Dataset, tag Tag) (int64, bool) {
	rows, ok1 := h.Int(Rows)
	columns, ok2 := h.Int(Columns)
	samples, ok3 := h.Int(SamplesPerPixel)
	allocated, ok4 := h.Int(BitsAllocated)
	if !ok3 {
		samples = 1
	}
	switch tag {
	case FloatPixelData:
		allocated, ok4 = 32, true
	case DoubleFloatPixelData:
		allocated, ok4 = 64, true
	}
	if !ok1 || !ok2 || !ok4 || rows <= 0 || columns <= 0 || samples <= 0 || allocated <= 0 ||
		rows > 1<<16 || columns > 1<<16 || samples > 1<<8 || allocated > 1<<8 {
		return 0, false
	}
	bits := int64(rows) * int64(columns) * int64(samples) * int64(allocated)
	switch h.String(PhotometricInterpretation) {
	case "YBR_FULL_422", "YBR_PARTIAL_422":
		bits = bits / 3 * 2
	case "YBR_PARTIAL_420":
		bits /= 2
	}
	return bits, true
}

// fragmentSink collects the lengths of an encapsulated value's fragments.
type fragmentSink struct {
	syn      Syntax
	offsets  []byte // Basic Offset Table, Little Endian
	first    int64  // offset of the first fragment's item header
	end      int64
	lengths  []byte // uvarint(length<<1 | begins a compressed stream)
	count    int
	starters int
	full     bool
}

func (f *fragmentSink) fragment(p *parser, tag Tag, n int, length uint32, big bool) error {
	if n == 0 {
		return f.basicOffsets(p, tag, length, big)
	}
	starts := f.peek(p, length)
	if err := p.skip(tag, int64(length)); err != nil {
		return err
	}
	f.end = p.src.off
	f.count++
	if f.full = f.full || len(f.lengths) > fragmentTableBytes; f.full {
		return nil
	}
	head := uint64(length) << 1
	if starts {
		head |= 1
		f.starters++
	}
	f.lengths = binary.AppendUvarint(f.lengths, head)
	return nil
}

func (f *fragmentSink) basicOffsets(p *parser, tag Tag, length uint32, big bool) error {
	if length > offsetTableBytes || length%4 != 0 {
		if err := p.skip(tag, int64(length)); err != nil {
			return err
		}
	} else {
		v, err := p.value(tag, int(length))
		if err != nil {
			return err
		}
		if big {
			v = swapped(v, UL, p.alias)
		}
		f.offsets = v
	}
	f.first, f.end = p.src.off, p.src.off
	return nil
}

// peek reports whether the fragment ahead begins with one of the syntax's marks.
func (f *fragmentSink) peek(p *parser, length uint32) bool {
	for _, mark := range f.syn.marks {
		if int(length) >= len(mark) && p.src.need(len(mark)) && bytes.HasPrefix(p.src.ahead(), mark) {
			return true
		}
	}
	return false
}

// table groups the fragments into frames. PS3.5 A.4 allows several fragments a frame, with a Basic Offset Table, an Extended Offset
// Table or neither; files get the tables wrong, so they are believed only where they agree with the fragments.
func (f *fragmentSink) table(h *Dataset, at int64) *FrameTable {
	t := &FrameTable{kind: frameEncapsulated, base: f.first, size: f.end - f.first}
	n := numberOfFrames(h)
	if f.syn.Video {
		t.kind, n = frameVideo, 1
	}
	switch {
	case f.count == 0:
		t.reason = "the instance has no frames"
	case f.full:
		t.reason = "there are too many fragments to keep a table of them"
	case n == f.count:
		t.count, t.list = n, f.oneEach(h)
	case n == 1:
		t.count, t.list = 1, f.grouped(func(i int, _ int64, _ bool) bool { return i == 0 })
	case n > f.count:
		t.reason = "there are fewer fragments than frames"
	default:
		if t.list = f.byOffsets(n); t.list == nil && f.starters == n {
			t.list = f.grouped(func(i int, _ int64, starts bool) bool { return starts })
		}
		if t.count = n; t.list == nil {
			t.count, t.reason = 0, "neither the offset table nor the fragments say where frames begin"
		}
	}
	if t.count > 0 && !t.index() {
		t.count, t.list, t.marks, t.reason = 0, nil, nil, "neither the offset table nor the fragments say where frames begin"
	}
	return t
}

// oneEach lists one fragment a frame, cut to its length in the Extended Offset Table when that tells of a pad byte.
func (f *fragmentSink) oneEach(h *Dataset) []byte {
	var exact []byte
	if e := h.Get(ExtendedOffsetTableLengths); e != nil && len(e.Value) == 8*f.count {
		exact = e.Value
	}
	list := make([]byte, 0, len(f.lengths)+f.count)
	c := frameCursor{list: f.lengths}
	for i := range f.count {
		length := c.uvarint() >> 1
		head := uint64(1 << 1)
		if exact != nil && binary.LittleEndian.Uint64(exact[8*i:])+1 == length {
			head |= 1
		}
		list = binary.AppendUvarint(list, head)
		list = binary.AppendUvarint(list, length)
		if head&1 == 1 {
			list = append(list, 1)
		}
	}
	return list
}

// byOffsets groups by the Basic Offset Table when every entry is the start of a fragment; entries count modulo 2^32, for values beyond 4 GiB.
func (f *fragmentSink) byOffsets(n int) []byte {
	if len(f.offsets) != 4*n {
		return nil
	}
	next := 0
	list := f.grouped(func(_ int, rel int64, _ bool) bool {
		if next < n && uint32(rel) == binary.LittleEndian.Uint32(f.offsets[4*next:]) {
			next++
			return true
		}
		return false
	})
	if next != n {
		return nil
	}
	return list
}

// grouped lists frames of several fragments; begins says whether fragment i, rel bytes after the first, begins a frame. nil when the first does not.
func (f *fragmentSink) grouped(begins func(i int, rel int64, starts bool) bool) []byte {
	list := make([]byte, 0, len(f.lengths)+16)
	var frame []byte
	var rel int64
	parts := 0
	flush := func() {
		list = binary.AppendUvarint(list, uint64(parts)<<1)
		list = append(list, frame...)
		frame, parts = frame[:0], 0
	}
	c := frameCursor{list: f.lengths}
	for i := range f.count {
		head := c.uvarint()
		if begins(i, rel, head&1 == 1) {
			if i > 0 {
				flush()
			}
		} else if i == 0 {
			return nil
		}
		frame = binary.AppendUvarint(frame, head>>1)
		parts++
		rel += 8 + int64(head>>1)
	}
	flush()
	return list
}
