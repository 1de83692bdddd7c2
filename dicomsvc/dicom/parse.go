package dicom

import (
	"encoding/binary"
	"io"
	"slices"
)

const undefinedLength = 0xFFFFFFFF

// parser turns a stream of elements into a Dataset. It keeps its own stack of open sequences and items, bounded by Limits.Depth, so that
// nested input costs no goroutine stack. PS3.5 7.
type parser struct {
	src   source
	lim   Limits
	alias bool // values may share the window's memory, which then is the whole input

	stack    []level
	root     *Dataset
	elements int // elements and items so far
	held     int // bytes of values in memory
	signed   bool
	// bare says that the first element of a stream announced as Explicit VR had none: it is Implicit VR under a wrong name.
	bare bool

	// Elements of open data sets and items of open sequences; a level's own begin at its mark.
	open  []Element
	items []*Dataset

	sets  []Dataset // slabs to cut small allocations from
	cells []Element
	bytes []byte
}

// level is an open item (or the data set itself), or an open sequence.
type level struct {
	sequence bool
	explicit bool
	big      bool
	unsorted bool
	tag      Tag      // of the sequence, or last tag read in an item
	set      *Dataset // of an item
	mark     int
	end      int64 // stream offset where it ends, -1 when a delimiter ends it
	bound    int64 // nearest declared end at or above this level, -1 when there is none
}

// header is the part of an element before its value.
type header struct {
	tag    Tag
	vr     VR
	length uint32
	size   int
	// implicit says that an element in an Explicit VR stream had no VR, so that what it holds has none either.
	implicit bool
}

func (p *parser) start(syn Syntax, lim Limits) {
	p.lim = lim.filled()
	p.elements, p.held, p.signed, p.bare = 0, 0, false, false
	p.root = &Dataset{}
	p.sets, p.cells, p.bytes = nil, nil, nil
	p.open, p.items = reused(p.open), reused(p.items)
	p.stack = append(p.stack[:0], level{explicit: syn.Explicit, big: syn.BigEndian, set: p.root, end: -1, bound: -1})
}

// reused empties a scratch list so that it holds on to nothing that was returned, and lets a big one go.
func reused[T any](list []T) []T {
	if cap(list) > scratchKept {
		return nil
	}
	list = list[:cap(list)]
	clear(list)
	return list[:0]
}

// run reads elements until the stream ends or, when stop is not nil, until stop returns true for the next top-level element,
// which is then left unread. It returns the elements read since start in root.
func (p *parser) run(stop func(Tag) bool) error {
	for {
		l := &p.stack[len(p.stack)-1]
		if l.end >= 0 && p.src.off == l.end {
			if err := p.pop(); err != nil {
				return err
			}
			continue
		}
		if len(p.stack) == 1 && p.src.atEnd() {
			p.closeItem(l)
			return nil
		}
		if l.sequence {
			if err := p.nextItem(l); err != nil {
				return err
			}
			continue
		}
		h, err := p.header(l)
		if err != nil {
			return err
		}
		if stop != nil && len(p.stack) == 1 && stop(h.tag) {
			p.closeItem(l)
			return nil
		}
		if err := p.element(l, h); err != nil {
			return err
		}
	}
}

// header reads the next element's header without consuming it.
func (p *parser) header(l *level) (header, error) {
	if !p.src.need(8) {
		return header{}, p.short(l.tag, "header is cut off")
	}
	b := p.src.ahead()
	var h header
	if l.big {
		h.tag = NewTag(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
	} else {
		h.tag = NewTag(binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]))
	}
	h.size = 8
	if !l.explicit || h.tag.Group() == 0xFFFE {
		h.length = u32(b[4:], l.big)
		h.vr = p.dictionaryVR(h.tag)
		return h, p.within(l, h)
	}
	h.vr = VR(b[4])<<8 | VR(b[5])
	switch {
	case h.vr.known() && !h.vr.long():
		h.length = uint32(u16(b[6:], l.big))
	case h.vr.known() || letters(b[4], b[5]):
		// VRs yet to be defined have 32-bit lengths (PS3.5 6.2 Note).
		if !h.vr.known() {
			h.vr = UN
		}
		if !p.src.need(12) {
			return header{}, p.short(h.tag, "header is cut off")
		}
		h.size = 12
		h.length = u32(p.src.ahead()[8:], l.big)
	case !p.bare && (printable(b[4]) && printable(b[5]) || b[4] == 0 && b[5] == 0):
		// Blank and "??" VRs come from old equipment that wrote 16-bit lengths.
		h.vr = p.dictionaryVR(h.tag)
		h.length = uint32(u16(b[6:], l.big))
	default:
		p.bare = p.bare || p.elements == 0
		h.vr, h.implicit = p.dictionaryVR(h.tag), true
		h.length = u32(b[4:], l.big)
	}
	return h, p.within(l, h)
}

func (p *parser) dictionaryVR(tag Tag) VR {
	e := find(tag)
	switch {
	case e == nil || e.vr == vrNone:
		return VROf(tag)
	case e.signed && p.signed:
		return SS
	}
	return e.vr
}

// within checks that the element fits what encloses it.
func (p *parser) within(l *level, h header) error {
	if l.bound < 0 {
		return nil
	}
	end := p.src.off + int64(h.size)
	if h.length != undefinedLength {
		end += int64(h.length)
	}
	if end > l.bound {
		return p.bad(h.tag, "runs past the end of the item or sequence that holds it")
	}
	return nil
}

// element consumes one element of an item or of the data set itself.
func (p *parser) element(l *level, h header) error {
	if h.tag.Group() == 0xFFFE {
		return p.delimiter(l, h)
	}
	if p.elements++; p.elements > p.lim.Elements {
		return p.over(h.tag, "too many elements")
	}
	if h.tag < l.tag {
		l.unsorted = true
	}
	l.tag = h.tag
	p.src.take(h.size)
	switch {
	case h.length == undefinedLength && encapsulates(h):
		return p.encapsulatedValue(l, h)
	case h.length == undefinedLength && !holdsItems(l, h):
		return p.bad(h.tag, "undefined length with a VR that has none")
	case h.length == undefinedLength || h.vr == SQ:
		return p.openSequence(l, h)
	case h.tag.IsGroupLength() && h.tag.Group() > 2, h.tag == DataSetTrailingPadding:
		return p.skip(h.tag, int64(h.length))
	}
	return p.leaf(l, h)
}

// encapsulates reports whether an undefined length means fragments and not items.
func encapsulates(h header) bool {
	if isPixelData(h.tag) {
		return true
	}
	return h.vr.IsBinary() && h.vr != UN && !h.implicit
}

// holdsItems reports whether undefined length means a sequence: SQ, UN (PS3.5 6.2.2 Note 2, CP-246) and, without explicit VRs, anything.
func holdsItems(l *level, h header) bool {
	return h.vr == SQ || h.vr == UN || !l.explicit || h.implicit
}

func (p *parser) leaf(l *level, h header) error {
	n := int(h.length)
	el := Element{Tag: h.tag, VR: h.vr}
	if n > p.lim.ValueBytes || p.held+n > p.lim.HeaderBytes && n > spillBytes {
		el.Bulk = &Bulk{Offset: p.src.off, Length: int64(n)}
		if err := p.skip(h.tag, int64(n)); err != nil {
			return err
		}
		p.open = append(p.open, el)
		return nil
	}
	if p.held += n; p.held > p.lim.HeaderBytes*(headerBytesHard/headerBytesMax) {
		return p.over(h.tag, "too many bytes of values")
	}
	v, err := p.value(h.tag, n)
	if err != nil {
		return err
	}
	if l.big {
		v = swapped(v, h.vr, p.alias)
	}
	el.Value = v
	if h.tag == PixelRepresentation && len(p.stack) == 1 && len(v) > 0 {
		p.signed = v[0] == 1
	}
	p.open = append(p.open, el)
	return nil
}

// value reads n bytes.
func (p *parser) value(tag Tag, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if p.alias {
		if !p.src.need(n) {
			return nil, p.short(tag, "value is cut off")
		}
		v := p.src.ahead()[:n:n]
		p.src.take(n)
		return v, nil
	}
	if n <= growStep {
		v := p.cut(n)
		if p.src.copyTo(v) > 0 {
			return nil, p.short(tag, "value is cut off")
		}
		return v, nil
	}
	var v []byte
	for step := growStep; len(v) < n; step = len(v) {
		step = min(step, n-len(v))
		v = slices.Grow(v, step)
		part := v[len(v) : len(v)+step]
		if p.src.copyTo(part) > 0 {
			return nil, p.short(tag, "value is cut off")
		}
		v = v[:len(v)+step]
	}
	return v[:n:n], nil
}

// cut returns n bytes from the current slab.
func (p *parser) cut(n int) []byte {
	if n > len(p.bytes) {
		if n > 1024 {
			return make([]byte, n)
		}
		p.bytes = make([]byte, min(max(2048, p.held), growStep))
	}
	v := p.bytes[:n:n]
	p.bytes = p.bytes[n:]
	return v
}

func (p *parser) skip(tag Tag, n int64) error {
	if p.src.skip(n) > 0 {
		return p.short(tag, "value is cut off")
	}
	return nil
}

func (p *parser) openSequence(l *level, h header) error {
	if len(p.stack) > 2*p.lim.Depth-1 {
		return p.over(h.tag, "sequences nest too deep")
	}
	s := level{sequence: true, tag: h.tag, explicit: l.explicit && !h.implicit, big: l.big, mark: len(p.items), end: -1, bound: l.bound}
	if h.vr == UN {
		s.explicit, s.big = false, false
	}
	if h.length != undefinedLength {
		s.end = p.src.off + int64(h.length)
		s.bound = s.end
	}
	p.stack = append(p.stack, s)
	return nil
}

// nextItem reads an item header, or the delimiter of the sequence.
func (p *parser) nextItem(l *level) error {
	if !p.src.need(8) {
		return p.short(l.tag, "sequence is cut off")
	}
	b := p.src.ahead()
	var h header
	h.size, h.length = 8, u32(b[4:], l.big)
	h.tag = NewTag(u16(b, l.big), u16(b[2:], l.big))
	if err := p.within(l, h); err != nil {
		return err
	}
	switch {
	case h.tag == SequenceDelimitationItem && l.end < 0:
		p.src.take(8)
		return p.pop()
	case h.tag != Item:
		return p.bad(l.tag, "sequence holds something that is no item")
	}
	p.elements++
	if p.elements > p.lim.Elements || len(p.items)-l.mark >= p.lim.Items {
		return p.over(l.tag, "too many items")
	}
	p.src.take(8)
	set := p.newSet()
	set.parent = p.stack[len(p.stack)-2].set
	p.items = append(p.items, set)
	item := level{explicit: l.explicit, big: l.big, set: set, mark: len(p.open), end: -1, bound: l.bound}
	if h.length != undefinedLength {
		item.end = p.src.off + int64(h.length)
		item.bound = item.end
	}
	p.stack = append(p.stack, item)
	return nil
}

// delimiter handles group FFFE inside an item or at the top.
func (p *parser) delimiter(l *level, h header) error {
	switch {
	case len(p.stack) == 1 && h.tag != Item && h.length == 0:
		p.src.take(8) // a delimiter too many, as some writers leave after pixel data
		return nil
	case h.tag == ItemDelimitationItem && l.end < 0 && len(p.stack) > 1:
		p.src.take(8)
		return p.pop()
	case h.tag == SequenceDelimitationItem && l.end < 0 && len(p.stack) > 1:
		return p.pop() // the item's own delimiter is missing
	}
	return p.bad(h.tag, "delimiter out of place")
}

// pop closes the innermost level.
func (p *parser) pop() error {
	l := &p.stack[len(p.stack)-1]
	p.stack = p.stack[:len(p.stack)-1]
	if !l.sequence {
		p.closeItem(l)
		return nil
	}
	items := slices.Clone(p.items[l.mark:])
	p.items = p.items[:l.mark]
	p.open = append(p.open, Element{Tag: l.tag, VR: SQ, Items: items})
	return nil
}

// closeItem moves the level's elements from the scratch list to its data set.
func (p *parser) closeItem(l *level) {
	els := p.newElements(p.open[l.mark:])
	p.open = p.open[:l.mark]
	if l.unsorted {
		slices.SortStableFunc(els, func(a, b Element) int { return int(int64(a.Tag) - int64(b.Tag)) })
	}
	l.set.Elements = els
}

func (p *parser) newSet() *Dataset {
	if len(p.sets) == 0 {
		p.sets = make([]Dataset, min(max(4, p.elements/16), 256))
	}
	s := &p.sets[0]
	p.sets = p.sets[1:]
	return s
}

func (p *parser) newElements(from []Element) []Element {
	n := len(from)
	if n == 0 {
		return nil
	}
	if n > 32 {
		return slices.Clone(from)
	}
	if n > len(p.cells) {
		p.cells = make([]Element, min(max(32, p.elements/4), 1024))
	}
	els := p.cells[:n:n]
	p.cells = p.cells[n:]
	copy(els, from)
	return els
}

// encapsulatedValue reads fragments to their delimiter and keeps only where they are.
func (p *parser) encapsulatedValue(l *level, h header) error {
	at := p.src.off
	if err := p.fragments(h.tag, l, nil); err != nil {
		return err
	}
	p.open = append(p.open, Element{Tag: h.tag, VR: h.vr, Bulk: &Bulk{Offset: at, Length: -1, Encapsulated: true}})
	return nil
}

// fragments reads the items of an encapsulated value and gives each to sink, when there is one.
func (p *parser) fragments(tag Tag, l *level, sink *fragmentSink) error {
	for n := 0; ; n++ {
		if !p.src.need(8) {
			return p.short(tag, "fragments are cut off")
		}
		b := p.src.ahead()
		h := header{tag: NewTag(u16(b, l.big), u16(b[2:], l.big)), length: u32(b[4:], l.big), size: 8}
		if err := p.within(l, h); err != nil {
			return err
		}
		if h.tag == SequenceDelimitationItem {
			p.src.take(8)
			return nil
		}
		if h.tag != Item || h.length == undefinedLength {
			return p.bad(tag, "fragments hold something that is no fragment")
		}
		p.src.take(8)
		if sink != nil {
			if err := sink.fragment(p, tag, n, h.length, l.big); err != nil {
				return err
			}
			continue
		}
		if err := p.skip(tag, int64(h.length)); err != nil {
			return err
		}
	}
}

func isPixelData(t Tag) bool {
	return t == PixelData || t == FloatPixelData || t == DoubleFloatPixelData
}

// short reports the end of the stream inside something, or the reader's own error.
func (p *parser) short(tag Tag, what string) error {
	e := &ParseError{Kind: ErrTruncated, Tag: tag, Offset: p.src.off, What: what}
	if p.src.err != nil && p.src.err != io.EOF {
		return readError(e, p.src.err)
	}
	return e
}

func (p *parser) bad(tag Tag, what string) error {
	return &ParseError{Kind: ErrMalformed, Tag: tag, Offset: p.src.off, What: what}
}

func (p *parser) over(tag Tag, what string) error {
	return &ParseError{Kind: ErrLimit, Tag: tag, Offset: p.src.off, What: what}
}

func u16(b []byte, big bool) uint16 {
	if big {
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func u32(b []byte, big bool) uint32 {
	if big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

func letters(a, b byte) bool { return a >= 'A' && a <= 'Z' && b >= 'A' && b <= 'Z' }

func printable(c byte) bool { return c >= 0x20 && c < 0x7F }

// swapped turns the numbers of a value around, in place unless the memory is the caller's.
func swapped(v []byte, vr VR, shared bool) []byte {
	n := vr.unit()
	if n == 1 || len(v) < n {
		return v
	}
	if shared {
		v = slices.Clone(v)
	}
	for i := 0; i+n <= len(v); i += n {
		slices.Reverse(v[i : i+n])
	}
	return v
}
