package pixel

import (
	"encoding/binary"
	"fmt"

	"osteon/dicomsvc/dicom"
)

// table is a lookup table (PS3.3 §C.11.1.1): the entry for the value first and those that follow; values outside of it get the nearest.
type table struct {
	first   int
	entries []uint16
	bits    int // of an entry
}

func (t *table) at(v int) uint16 {
	return t.entries[min(max(v-t.first, 0), len(t.entries)-1)]
}

// max is the largest value that an entry can have.
func (t *table) max() float64 { return float64(uint32(1)<<t.bits - 1) }

// tableOf reads a lookup table from its descriptor and data. signed says that the values looked up may be negative.
func (im *Image) tableOf(descriptor, data *dicom.Element, signed bool) (*table, error) {
	if descriptor == nil || data == nil || len(descriptor.Value) < 6 {
		return nil, fmt.Errorf("%w: a lookup table without descriptor or data", ErrMalformed)
	}
	raw, err := im.value(data)
	if err != nil {
		return nil, err
	}
	t := describedTable(descriptor, signed)
	if t.bits < 8 || t.bits > 16 {
		return nil, fmt.Errorf("%w: lookup table entries of %d bits", ErrMalformed, t.bits)
	}
	n := len(t.entries)
	switch {
	case len(raw) >= 2*n:
		for i := range t.entries {
			t.entries[i] = binary.LittleEndian.Uint16(raw[2*i:])
		}
	case len(raw) >= n: // two entries of 8 bits in a word
		for i := range t.entries {
			t.entries[i] = uint16(raw[i])
		}
	default:
		return nil, fmt.Errorf("%w: %d bytes for a lookup table of %d entries", ErrMalformed, len(raw), n)
	}
	return t, nil
}

// describedTable is an empty table by its descriptor: number of entries with 0 for 65,536, first value, bits (PS3.3 §C.11.1.1).
func describedTable(descriptor *dicom.Element, signed bool) *table {
	v := descriptor.Value
	n, first := int(binary.LittleEndian.Uint16(v)), binary.LittleEndian.Uint16(v[2:])
	if n == 0 {
		n = tableEntriesMax
	}
	t := &table{first: int(first), entries: make([]uint16, n), bits: int(binary.LittleEndian.Uint16(v[4:]))}
	if signed || descriptor.VR == dicom.SS {
		t.first = int(int16(first))
	}
	return t
}

// palette is the three tables of PALETTE COLOR (PS3.3 §C.7.9).
type palette [3]*table

func (im *Image) palette() (palette, error) {
	tags := [3][3]dicom.Tag{
		{dicom.RedPaletteColorLookupTableDescriptor, dicom.RedPaletteColorLookupTableData, dicom.SegmentedRedPaletteColorLookupTableData},
		{dicom.GreenPaletteColorLookupTableDescriptor, dicom.GreenPaletteColorLookupTableData, dicom.SegmentedGreenPaletteColorLookupTableData},
		{dicom.BluePaletteColorLookupTableDescriptor, dicom.BluePaletteColorLookupTableData, dicom.SegmentedBluePaletteColorLookupTableData},
	}
	var p palette
	for i, t := range tags {
		var err error
		descriptor := im.header.Get(t[0])
		if segmented := im.header.Get(t[2]); segmented != nil && im.header.Get(t[1]) == nil {
			p[i], err = im.segmented(descriptor, segmented)
		} else {
			p[i], err = im.tableOf(descriptor, im.header.Get(t[1]), im.Format.Signed)
		}
		if err != nil {
			return p, fmt.Errorf("palette: %w", err)
		}
	}
	return p, nil
}

// segmented expands a table made of segments (PS3.3 §C.7.9.2).
func (im *Image) segmented(descriptor, data *dicom.Element) (*table, error) {
	if descriptor == nil || len(descriptor.Value) < 6 {
		return nil, fmt.Errorf("%w: a lookup table without descriptor", ErrMalformed)
	}
	raw, err := im.value(data)
	if err != nil {
		return nil, err
	}
	t := describedTable(descriptor, im.Format.Signed)
	if t.bits == 8 {
		return nil, fmt.Errorf("%w: a segmented lookup table of 8 bits", ErrUnsupportedSyntax)
	}
	words := make([]uint16, len(raw)/2)
	for i := range words {
		words[i] = binary.LittleEndian.Uint16(raw[2*i:])
	}
	e := expander{words: words, room: len(t.entries)}
	if err := e.run(0, len(words), false); err != nil {
		return nil, err
	}
	if len(e.out) < len(t.entries) || t.bits < 8 || t.bits > 16 {
		return nil, fmt.Errorf("%w: a segmented lookup table of %d entries for %d", ErrMalformed, len(e.out), len(t.entries))
	}
	copy(t.entries, e.out)
	return t, nil
}

// expander expands the segments of a table into at most room entries.
type expander struct {
	words, out []uint16
	room       int
}

// run expands count segments from word at, or all up to the end; inside an indirect segment there may be no other.
func (e *expander) run(at, count int, inside bool) error {
	bad := fmt.Errorf("%w: a segmented lookup table", ErrMalformed)
	for ; count > 0 && at+1 < len(e.words) && len(e.out) < e.room; count-- {
		kind, n := e.words[at], int(e.words[at+1])
		at += 2
		switch {
		case kind == 0 && at+n <= len(e.words):
			e.out = append(e.out, e.words[at:at+n]...)
			at += n
		case kind == 1 && at < len(e.words) && len(e.out) > 0 && n > 0:
			e.ramp(n, int(e.words[at]))
			at++
		case kind == 2 && at+1 < len(e.words) && !inside:
			from := int(e.words[at]) | int(e.words[at+1])<<16
			at += 2
			if from /= 2; from >= len(e.words) { // it counts bytes
				return bad
			}
			if err := e.run(from, n, true); err != nil {
				return err
			}
		default:
			return bad
		}
	}
	return nil
}

// ramp adds n entries on a line from the last one to end.
func (e *expander) ramp(n, end int) {
	start := int(e.out[len(e.out)-1])
	for i := 1; i <= n && len(e.out) < e.room; i++ {
		e.out = append(e.out, uint16(start+(end-start)*i/n))
	}
}
