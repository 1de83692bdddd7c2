package pixel

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Markers of JPEG streams (ISO 10918-1 Table B.1).
const (
	markSOF0  = 0xC0 // baseline
	markSOF1  = 0xC1 // extended
	markSOF2  = 0xC2 // progressive
	markSOF3  = 0xC3 // lossless
	markDHT   = 0xC4
	markSOF15 = 0xCF
	markJPG   = 0xC8
	markDAC   = 0xCC
	markSOI   = 0xD8
	markEOI   = 0xD9
	markSOS   = 0xDA
	markDQT   = 0xDB
	markDNL   = 0xDC
	markDRI   = 0xDD
)

// zigzag is the order of coefficients (ISO 10918-1 Figure A.6).
var zigzag = [64]uint8{
	0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
}

// component is one component of a JPEG frame.
type component struct {
	id, h, v, quant int
	// columns and rows are its samples; wide is how many blocks there are in a row, those that complete a unit included.
	columns, rows, wide, high int
	coefficients              []int16 // 64 for each block, in natural order
	dc, ac                    *huffman
	previous                  int
	seen                      bool // in a scan
}

// jpeg decodes the JPEG processes with Huffman coding but the hierarchical ones (ISO 10918-1).
type jpeg struct {
	ctx  context.Context
	f    Format
	in   segments
	kind byte // SOF marker, 0 before it

	precision, columns, rows, maxH, maxV int
	components                           []component
	quants                               [4][64]int32
	dc, ac                               [4]*huffman
	restart                              int
	scans                                int
	out                                  *Frame
}

// decodeJPEG decodes a frame in any of the JPEG transfer syntaxes; the stream itself says which process it is.
func decodeJPEG(ctx context.Context, f Format, data []byte) (*Frame, error) {
	d := &jpeg{ctx: ctx, f: f, in: segments{data: data}}
	for {
		mark, body, err := d.in.next()
		if err != nil {
			return nil, fmt.Errorf("JPEG: %w", err)
		}
		if mark == markEOI {
			break
		}
		if err := d.segment(mark, body); err != nil {
			return nil, fmt.Errorf("JPEG: %w", err)
		}
	}
	if err := d.complete(); err != nil {
		return nil, fmt.Errorf("JPEG: %w", err)
	}
	if d.kind != markSOF3 {
		if err := d.reconstruct(); err != nil {
			return nil, err
		}
	}
	return d.out, nil
}

// complete tells whether all that belongs to the frame was there.
func (d *jpeg) complete() error {
	if d.kind == 0 {
		return fmt.Errorf("%w: no frame header", ErrMalformed)
	}
	for _, c := range d.components {
		if !c.seen {
			return fmt.Errorf("%w: a component is in no scan", ErrMalformed)
		}
	}
	if d.kind == markSOF2 && d.in.cut {
		return fmt.Errorf("%w: the stream ends without EOI, before all of its scans", ErrMalformed)
	}
	return nil
}

// segments walks over the marker segments of a JPEG or JPEG-LS stream.
type segments struct {
	data []byte
	pos  int
	cut  bool // ended without EOI
}

// next returns the next marker and its parameters. A stream that ends without EOI is told as cut.
func (s *segments) next() (mark byte, body []byte, err error) {
	if s.pos == 0 && (len(s.data) < 2 || s.data[0] != 0xFF || s.data[1] != markSOI) {
		return 0, nil, fmt.Errorf("%w: the stream does not begin with SOI", ErrMalformed)
	}
	for s.pos < len(s.data) && s.data[s.pos] != 0xFF {
		s.pos++ // what is left of a scan
	}
	for s.pos < len(s.data) && s.data[s.pos] == 0xFF {
		s.pos++
	}
	if s.pos >= len(s.data) {
		s.cut = true
		return markEOI, nil, nil
	}
	mark = s.data[s.pos]
	s.pos++
	if mark == markEOI || mark <= 1 || mark >= 0xD0 && mark <= markSOI { // without parameters
		return mark, nil, nil
	}
	if len(s.data)-s.pos < 2 {
		return 0, nil, fmt.Errorf("%w: ends in a marker segment", ErrMalformed)
	}
	n := int(binary.BigEndian.Uint16(s.data[s.pos:]))
	if n < 2 || n > len(s.data)-s.pos {
		return 0, nil, fmt.Errorf("%w: a marker segment of %d bytes in %d", ErrMalformed, n, len(s.data)-s.pos)
	}
	body = s.data[s.pos+2 : s.pos+n]
	s.pos += n
	return mark, body, nil
}

func (d *jpeg) segment(mark byte, body []byte) error {
	switch {
	case mark == markDHT:
		return d.huffmanTables(body)
	case mark == markDQT:
		return d.quantTables(body)
	case mark == markDRI && len(body) >= 2:
		d.restart = int(binary.BigEndian.Uint16(body))
	case mark == markSOS:
		return d.scan(body)
	case mark >= markSOF0 && mark <= markSOF3:
		return d.frame(mark, body)
	case mark == markDAC || mark > markSOF3 && mark <= markSOF15 && mark != markJPG || mark == 0xF7:
		return fmt.Errorf("%w: coding process SOF %#x", ErrUnsupportedSyntax, mark)
	}
	return nil
}

func (d *jpeg) quantTables(b []byte) error {
	for len(b) > 0 {
		wide, id := int(b[0]>>4), b[0]&15
		if id > 3 || wide > 1 || len(b) < 1+64*(wide+1) {
			return fmt.Errorf("%w: a quantization table", ErrMalformed)
		}
		b = b[1:]
		for _, at := range zigzag {
			if wide == 0 {
				d.quants[id][at], b = int32(b[0]), b[1:]
			} else {
				d.quants[id][at], b = int32(binary.BigEndian.Uint16(b)), b[2:]
			}
		}
	}
	return nil
}

func (d *jpeg) huffmanTables(b []byte) error {
	for len(b) > 0 {
		if len(b) < 17 || b[0]&15 > 3 || b[0]>>4 > 1 {
			return fmt.Errorf("%w: a Huffman table", ErrMalformed)
		}
		n := 0
		for _, c := range b[1:17] {
			n += int(c)
		}
		if n > 256 || len(b) < 17+n {
			return fmt.Errorf("%w: a Huffman table of %d codes", ErrMalformed, n)
		}
		h, err := newHuffman(b[1:17], b[17:17+n])
		if err != nil {
			return err
		}
		if b[0]>>4 == 0 {
			d.dc[b[0]&3] = h
		} else {
			d.ac[b[0]&3] = h
		}
		b = b[17+n:]
	}
	return nil
}

// frame reads the frame header (ISO 10918-1 §B.2.2), which must say what the data set says.
func (d *jpeg) frame(mark byte, b []byte) error {
	if d.kind != 0 || len(b) < 6 || len(b) < 6+3*int(b[5]) {
		return fmt.Errorf("%w: a frame header", ErrMalformed)
	}
	d.kind, d.precision = mark, int(b[0])
	d.rows, d.columns = int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
	if d.rows == 0 {
		d.rows = d.f.Rows // told by a DNL segment behind the first scan
	}
	if d.rows != d.f.Rows || d.columns != d.f.Columns || int(b[5]) != d.f.Samples {
		return fmt.Errorf("%w: the stream has %d components of %d x %d, the data set %d of %d x %d", ErrMalformed,
			b[5], d.columns, d.rows, d.f.Samples, d.f.Columns, d.f.Rows)
	}
	if err := d.checkPrecision(); err != nil {
		return err
	}
	for i := range int(b[5]) {
		c := component{id: int(b[6+3*i]), h: int(b[7+3*i] >> 4), v: int(b[7+3*i] & 15), quant: int(b[8+3*i])}
		if c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || c.quant > 3 {
			return fmt.Errorf("%w: a component of the frame header", ErrMalformed)
		}
		d.maxH, d.maxV = max(d.maxH, c.h), max(d.maxV, c.v)
		d.components = append(d.components, c)
	}
	d.out = newFrame(d.f)
	return d.layOut()
}

func (d *jpeg) checkPrecision() error {
	p := d.precision
	switch {
	case p > d.f.BitsAllocated:
		return fmt.Errorf("%w: samples of %d bits in %d", ErrMalformed, p, d.f.BitsAllocated)
	case d.kind == markSOF3 && (p < 2 || p > 16), d.kind == markSOF0 && p != 8, d.kind != markSOF3 && p != 8 && p != 12:
		return fmt.Errorf("%w: JPEG samples of %d bits", ErrUnsupportedSyntax, p)
	}
	return nil
}

// layOut sizes the components (ISO 10918-1 §A.1.1) and makes room for their coefficients.
func (d *jpeg) layOut() error {
	if d.kind == markSOF3 {
		if len(d.components) > 1 && (d.maxH != 1 || d.maxV != 1) {
			return fmt.Errorf("%w: lossless JPEG with components of several sizes", ErrUnsupportedSyntax)
		}
		return nil
	}
	if d.f.SamplesPerFrame()/samplesPerByteMax > len(d.in.data) {
		return fmt.Errorf("%w: %d bytes for %d samples", ErrMalformed, len(d.in.data), d.f.SamplesPerFrame())
	}
	for i := range d.components {
		c := &d.components[i]
		c.columns, c.rows = divUp(d.columns*c.h, d.maxH), divUp(d.rows*c.v, d.maxV)
		c.wide, c.high = divUp(d.columns, 8*d.maxH)*c.h, divUp(d.rows, 8*d.maxV)*c.v
		c.coefficients = make([]int16, 64*c.wide*c.high)
	}
	return nil
}

func divUp(a, b int) int { return (a + b - 1) / b }

// scanHeader is what SOS says (ISO 10918-1 §B.2.3).
type scanHeader struct {
	components             []*component
	first, last, high, low int // Ss, Se, Ah, Al
}

// scan decodes one scan.
func (d *jpeg) scan(b []byte) error {
	h, err := d.scanHeader(b)
	if err != nil {
		return err
	}
	if d.scans++; d.scans > scansMax {
		return fmt.Errorf("%w: more than %d scans", ErrLimit, scansMax)
	}
	in := &bits{data: d.in.data, pos: d.in.pos}
	if d.kind == markSOF3 {
		err = d.lossless(h, in)
	} else {
		err = d.blocks(h, in)
	}
	d.in.pos = in.pos
	return err
}

func (d *jpeg) scanHeader(b []byte) (scanHeader, error) {
	var h scanHeader
	if d.kind == 0 || len(b) < 1 || len(b) < 4+2*int(b[0]) || b[0] < 1 || int(b[0]) > len(d.components) {
		return h, fmt.Errorf("%w: a scan header", ErrMalformed)
	}
	n := int(b[0])
	for i := range n {
		id, tables := int(b[1+2*i]), b[2+2*i]
		c := d.component(id)
		if c == nil || tables>>4 > 3 || tables&15 > 3 {
			return h, fmt.Errorf("%w: a component of the scan header", ErrMalformed)
		}
		for _, other := range h.components {
			if other == c {
				return h, fmt.Errorf("%w: a component twice in a scan", ErrMalformed)
			}
		}
		c.dc, c.ac, c.previous = d.dc[tables>>4], d.ac[tables&15], 0
		c.seen = true
		h.components = append(h.components, c)
	}
	b = b[1+2*n:]
	h.first, h.last, h.high, h.low = int(b[0]), int(b[1]), int(b[2]>>4), int(b[2]&15)
	if d.kind == markSOF0 || d.kind == markSOF1 {
		h.first, h.last, h.high, h.low = 0, 63, 0, 0
	}
	return h, d.checkScan(h)
}

func (d *jpeg) component(id int) *component {
	for i := range d.components {
		if d.components[i].id == id {
			return &d.components[i]
		}
	}
	return nil
}

// checkScan refuses a scan that its process does not have or whose tables are missing.
func (d *jpeg) checkScan(h scanHeader) error {
	bad := fmt.Errorf("%w: the parameters of a scan", ErrMalformed)
	if d.kind == markSOF2 && (h.last > 63 || h.first > h.last || h.first == 0 && h.last != 0 || h.first > 0 && len(h.components) > 1 || h.low > 13) {
		return bad
	}
	for _, c := range h.components {
		if c.dc == nil && h.first == 0 && h.high == 0 || c.dc == nil && d.kind == markSOF3 ||
			c.ac == nil && h.last > 0 && d.kind != markSOF3 {
			return fmt.Errorf("%w: a Huffman table is missing", ErrMalformed)
		}
	}
	return nil
}
