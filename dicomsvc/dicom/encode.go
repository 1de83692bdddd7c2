package dicom

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Encode appends the data set in the transfer syntax to dst: defined lengths, elements in ascending order, no group lengths (PS3.5 7.2)
// save in groups 0000 and 0002, where it is made exact. Text stays in the data set's own character set. Values over 64 KiB whose VR has 16-bit
// lengths become UN (PS3.5 6.2.2). Fails with ErrNotLoaded for an element whose value is Bulk, ErrLimit for nesting beyond 64, and ErrMalformed for
// a value under a sequence's tag that Implicit VR could not express.
func (d *Dataset) Encode(dst []byte, syntax string) ([]byte, error) {
	syn := SyntaxOf(syntax)
	e := encoder{explicit: syn.Explicit, big: syn.BigEndian}
	if !syn.Deflated {
		return e.dataset(dst, d, 0)
	}
	plain, err := e.dataset(nil, d, 0)
	if err != nil {
		return dst, err
	}
	return deflated(dst, plain)
}

// EncodeCharset is Encode with all text in the character set named, a value of Specific Character Set such as "ISO_IR 100" or
// `\ISO 2022 IR 87`. Fails with ErrCharset when some text does not fit.
func (d *Dataset) EncodeCharset(dst []byte, syntax, charset string) ([]byte, error) {
	c := d.Clone()
	if err := c.SetCharset(charset); err != nil {
		return dst, err
	}
	return c.Encode(dst, syntax)
}

func deflated(dst, plain []byte) ([]byte, error) {
	start := len(dst)
	buf := bytes.NewBuffer(dst)
	w, err := flate.NewWriter(buf, flate.DefaultCompression)
	if err != nil {
		return dst, err
	}
	if _, err := w.Write(plain); err != nil {
		return dst, err
	}
	if err := w.Close(); err != nil {
		return dst, err
	}
	if (buf.Len()-start)%2 == 1 {
		buf.WriteByte(0) // PS3.5 A.5
	}
	return buf.Bytes(), nil
}

type encoder struct{ explicit, big bool }

func (e encoder) dataset(dst []byte, d *Dataset, depth int) ([]byte, error) {
	if depth > depthMax {
		return dst, fmt.Errorf("encode data set: sequences nest too deep: %w", ErrLimit)
	}
	els := d.Elements
	if !slices.IsSortedFunc(els, byTag) {
		els = slices.Clone(els)
		slices.SortStableFunc(els, byTag)
	}
	var err error
	group, groupAt := -1, 0
	for i := range els {
		el := &els[i]
		if el.Tag.IsGroupLength() {
			if el.Tag.Group() > 2 {
				continue
			}
			dst = AppendElementHeader(dst, e.explicit, e.big, el.Tag, UL, 4)
			dst = append(dst, 0, 0, 0, 0)
			group, groupAt = int(el.Tag.Group()), len(dst)
			continue
		}
		if group >= 0 && int(el.Tag.Group()) != group {
			e.patch(dst, groupAt)
			group = -1
		}
		if dst, err = e.element(dst, el, depth); err != nil {
			return dst, err
		}
	}
	if group >= 0 {
		e.patch(dst, groupAt)
	}
	return dst, nil
}

func byTag(a, b Element) int { return int(int64(a.Tag) - int64(b.Tag)) }

// patch writes the length of what follows at into the four bytes before it.
func (e encoder) patch(dst []byte, at int) {
	n := uint32(len(dst) - at)
	if e.big {
		binary.BigEndian.PutUint32(dst[at-4:], n)
	} else {
		binary.LittleEndian.PutUint32(dst[at-4:], n)
	}
}

func (e encoder) element(dst []byte, el *Element, depth int) ([]byte, error) {
	if el.Bulk != nil {
		return dst, fmt.Errorf("encode element %v: %w", el.Tag, ErrNotLoaded)
	}
	if el.VR == SQ || len(el.Items) > 0 {
		return e.sequence(dst, el, depth)
	}
	n := len(el.Value) + len(el.Value)%2
	if int64(n) > math.MaxUint32-1 {
		return dst, fmt.Errorf("encode element %v: value of 4 GiB: %w", el.Tag, ErrLimit)
	}
	vr := el.VR
	if !vr.known() {
		vr = UN
	}
	if !e.explicit && n > 0 && VROf(el.Tag) == SQ {
		return dst, fmt.Errorf("encode element %v in Implicit VR: it holds no sequence though its tag is one: %w", el.Tag, ErrMalformed)
	}
	header := vr
	if e.explicit && !vr.long() && n > math.MaxUint16 {
		header = UN
	}
	dst = AppendElementHeader(dst, e.explicit, e.big, el.Tag, header, uint32(n))
	at := len(dst)
	dst = append(dst, el.Value...)
	// UN keeps Little Endian even here: its reader knows no unit to swap by.
	if e.big && header == vr {
		swapped(dst[at:], vr, false)
	}
	if len(el.Value)%2 == 1 {
		dst = append(dst, vr.pad())
	}
	return dst, nil
}

func (e encoder) sequence(dst []byte, el *Element, depth int) ([]byte, error) {
	// Without VRs only an undefined length tells a reader that a tag he does not know holds a sequence.
	open := !e.explicit && VROf(el.Tag) != SQ
	length := uint32(0)
	if open {
		length = undefinedLength
	}
	dst = AppendElementHeader(dst, e.explicit, e.big, el.Tag, SQ, length)
	start := len(dst)
	for _, item := range el.Items {
		dst = e.tag(dst, Item)
		dst = append(dst, 0, 0, 0, 0)
		at := len(dst)
		var err error
		if dst, err = e.dataset(dst, item, depth+1); err != nil {
			return dst, err
		}
		e.patch(dst, at)
	}
	if open {
		return AppendElementHeader(dst, false, e.big, SequenceDelimitationItem, 0, 0), nil
	}
	if int64(len(dst)-start) > math.MaxUint32-1 {
		return dst, fmt.Errorf("encode element %v: sequence of 4 GiB: %w", el.Tag, ErrLimit)
	}
	e.patch(dst, start)
	return dst, nil
}

func (e encoder) tag(dst []byte, t Tag) []byte {
	if e.big {
		dst = binary.BigEndian.AppendUint16(dst, t.Group())
		return binary.BigEndian.AppendUint16(dst, t.Element())
	}
	dst = binary.LittleEndian.AppendUint16(dst, t.Group())
	return binary.LittleEndian.AppendUint16(dst, t.Element())
}

// AppendElementHeader appends tag, VR (when explicit) and length of an element; length 0xFFFFFFFF is the undefined one (PS3.5 7.1).
func AppendElementHeader(dst []byte, explicit, bigEndian bool, tag Tag, vr VR, length uint32) []byte {
	e := encoder{explicit, bigEndian}
	dst = e.tag(dst, tag)
	if explicit && tag.Group() != 0xFFFE {
		dst = append(dst, byte(vr>>8), byte(vr))
		if !vr.long() {
			if bigEndian {
				return binary.BigEndian.AppendUint16(dst, uint16(length))
			}
			return binary.LittleEndian.AppendUint16(dst, uint16(length))
		}
		dst = append(dst, 0, 0)
	}
	if bigEndian {
		return binary.BigEndian.AppendUint32(dst, length)
	}
	return binary.LittleEndian.AppendUint32(dst, length)
}
