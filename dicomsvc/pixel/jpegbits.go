package pixel

import "fmt"

// bits reads the entropy coded bytes of a JPEG scan, from the highest bit down (ISO 10918-1 §F.2.2.5). At a marker or the end it gives zeros and
// counts them: over tells when one was used.
type bits struct {
	data []byte
	pos  int // of the next byte; stays at a marker
	acc  uint64
	n    int // bits in acc
	fake int // of them, or used, that were made up
}

func (b *bits) fill() {
	for b.n <= 48 {
		if b.pos >= len(b.data) {
			b.invent()
			continue
		}
		v := b.data[b.pos]
		if v == 0xFF {
			if b.pos+1 >= len(b.data) || b.data[b.pos+1] != 0 {
				b.invent()
				continue
			}
			b.pos++
		}
		b.pos++
		b.acc = b.acc<<8 | uint64(v)
		b.n += 8
	}
}

func (b *bits) invent() {
	b.acc <<= 8
	b.n += 8
	b.fake += 8
}

// over tells whether more bits were used than there were.
func (b *bits) over() bool { return b.fake > b.n }

// take returns the next n bits, at most 16.
func (b *bits) take(n int) int {
	if b.n < n {
		b.fill()
	}
	b.n -= n
	return int(b.acc>>b.n) & (1<<n - 1)
}

// extend returns a number of s bits as a difference (ISO 10918-1 §F.2.2.1).
func (b *bits) extend(s int) int {
	if s == 0 {
		return 0
	}
	v := b.take(s)
	if v < 1<<(s-1) {
		v += -1<<s + 1
	}
	return v
}

// restart goes on behind the next restart marker (ISO 10918-1 §E.2.4). Fails when there is another marker, or none.
func (b *bits) restart() error {
	b.acc, b.n, b.fake = 0, 0, 0
	for b.pos+1 < len(b.data) {
		if m := b.data[b.pos+1]; b.data[b.pos] == 0xFF && m >= 0xD0 && m <= 0xD7 {
			b.pos += 2
			return nil
		} else if b.data[b.pos] == 0xFF && m != 0 && m != 0xFF {
			break
		}
		b.pos++
	}
	return fmt.Errorf("%w: a restart marker is missing", ErrMalformed)
}

// huffmanLook is how many bits are decoded by one look into a table.
const huffmanLook = 9

// huffman is a table of Huffman codes (ISO 10918-1 Annex C).
type huffman struct {
	look   [1 << huffmanLook]uint16 // value<<8 | length, 0 for longer codes
	end    [17]int                  // first code behind those of this length, -1 for none
	offset [17]int                  // from code to index in values
	values []byte
}

// newHuffman builds a table from the number of codes of each length and their values.
func newHuffman(counts, values []byte) (*huffman, error) {
	h := &huffman{values: values}
	code, k := 0, 0
	for length := 1; length <= 16; length++ {
		n := int(counts[length-1])
		if code+n > 1<<length || k+n > len(values) {
			return nil, fmt.Errorf("%w: a Huffman table with too many codes", ErrMalformed)
		}
		h.offset[length] = k - code
		for ; n > 0; n-- {
			if length <= huffmanLook {
				for i := code << (huffmanLook - length); i < (code+1)<<(huffmanLook-length); i++ {
					h.look[i] = uint16(values[k])<<8 | uint16(length)
				}
			}
			code++
			k++
		}
		h.end[length] = code
		code <<= 1
	}
	return h, nil
}

// code decodes one value. A code that there is not gives 0 and counts as more bits than there are.
func (b *bits) code(h *huffman) int {
	if b.n < 16 {
		b.fill()
	}
	if v := h.look[b.acc>>(b.n-huffmanLook)&(1<<huffmanLook-1)]; v != 0 {
		b.n -= int(v & 0xFF)
		return int(v >> 8)
	}
	for length := huffmanLook + 1; length <= 16; length++ {
		c := int(b.acc>>(b.n-length)) & (1<<length - 1)
		if c < h.end[length] && c+h.offset[length] >= 0 {
			b.n -= length
			return int(h.values[c+h.offset[length]])
		}
	}
	b.fake = b.n + 1<<30
	return 0
}
