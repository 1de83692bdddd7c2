package dicom

import (
	"encoding/binary"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Element is one data element. Exactly one of Value, Items and Bulk carries its content; all are empty for an empty element.
type Element struct {
	Tag Tag
	VR  VR
	// Value holds the value bytes as encoded, padding included, numbers in Little Endian whatever the stream's order was.
	// Text is in the character set of the data set that holds the element.
	Value []byte
	// Items are the items of a sequence (VR SQ).
	Items []*Dataset
	// Bulk is set when the value was left in the stream.
	Bulk *Bulk
}

// Bulk says where a value that was not loaded lies.
type Bulk struct {
	// Offset is the position of the first value byte in the data set stream (of the inflated stream when deflated); for an
	// encapsulated value that of its first item, the Basic Offset Table.
	Offset int64
	// Length is the value's length in bytes, or -1 when Encapsulated. The bytes are in the stream's own order.
	Length int64
	// Encapsulated says that the value is a list of fragments (PS3.5 A.4).
	Encapsulated bool
	// URI is the BulkDataURI of a data set that came from DICOM JSON; Offset and Length then mean nothing.
	URI string
}

// IsEmpty reports whether the element has no value.
func (e *Element) IsEmpty() bool { return len(e.Value) == 0 && len(e.Items) == 0 && e.Bulk == nil }

// Dataset is a data set or a sequence item: elements in ascending order of tags. Decode and Set keep that order; who appends to
// Elements directly keeps it too. Reading from several goroutines at once is safe, changing is not.
type Dataset struct {
	Elements []Element

	parent *Dataset // the data set whose character set an item inherits (PS3.3 C.12.1.1.2)
}

// Len returns the number of elements.
func (d *Dataset) Len() int { return len(d.Elements) }

// index returns the position of the first element with a tag not below tag.
func (d *Dataset) index(tag Tag) int {
	return sort.Search(len(d.Elements), func(i int) bool { return d.Elements[i].Tag >= tag })
}

// Get returns the first element with the tag, or nil. The pointer is good until the data set changes.
func (d *Dataset) Get(tag Tag) *Element {
	if i := d.index(tag); i < len(d.Elements) && d.Elements[i].Tag == tag {
		return &d.Elements[i]
	}
	return nil
}

// Has reports whether the data set holds the element with a value.
func (d *Dataset) Has(tag Tag) bool {
	e := d.Get(tag)
	return e != nil && !e.IsEmpty()
}

// Set puts the element in its place, in place of the one with the same tag, and makes its items inherit from d.
func (d *Dataset) Set(el Element) {
	for _, item := range el.Items {
		item.parent = d
	}
	i := d.index(el.Tag)
	if i < len(d.Elements) && d.Elements[i].Tag == el.Tag {
		d.Elements[i] = el
		return
	}
	d.Elements = slices.Insert(d.Elements, i, el)
}

// Remove takes every element with the tag out.
func (d *Dataset) Remove(tag Tag) {
	i := d.index(tag)
	j := i
	for j < len(d.Elements) && d.Elements[j].Tag == tag {
		j++
	}
	d.Elements = slices.Delete(d.Elements, i, j)
}

// Clone returns a deep copy, save that values and Bulk records are shared: both are never changed in place.
func (d *Dataset) Clone() *Dataset { return d.cloneUnder(d.parent) }

func (d *Dataset) cloneUnder(parent *Dataset) *Dataset {
	c := &Dataset{Elements: slices.Clone(d.Elements), parent: parent}
	for i := range c.Elements {
		el := &c.Elements[i]
		if el.Items == nil {
			continue
		}
		items := make([]*Dataset, len(el.Items))
		for n, item := range el.Items {
			items[n] = item.cloneUnder(c)
		}
		el.Items = items
	}
	return c
}

// Charset returns the value of Specific Character Set in effect, inherited from the enclosing data set where an item has none,
// "" for the default repertoire.
func (d *Dataset) Charset() string {
	for s := d; s != nil; s = s.parent {
		if e := s.Get(SpecificCharacterSet); e != nil {
			return trimString(string(e.Value))
		}
	}
	return ""
}

// String returns the first value of the element as UTF-8 without padding, "" when there is none. Numbers are written in decimal.
func (d *Dataset) String(tag Tag) string {
	e := d.Get(tag)
	if e == nil {
		return ""
	}
	s := d.text(e)
	if i := strings.IndexByte(s, '\\'); i >= 0 && !e.effectiveVR().single() {
		s = s[:i]
	}
	return trimValue(s, e.effectiveVR())
}

// Strings returns the values of the element as UTF-8 without padding, nil when it is absent or empty. Text is split after decoding,
// for the second byte of a character may be a backslash (PS3.5 6.1.2.5.3).
func (d *Dataset) Strings(tag Tag) []string {
	e := d.Get(tag)
	if e == nil || len(e.Value) == 0 {
		return nil
	}
	return d.values(e)
}

func (d *Dataset) values(e *Element) []string {
	s, vr := d.text(e), e.effectiveVR()
	if s == "" {
		return nil
	}
	if vr.single() {
		return []string{trimValue(s, vr)}
	}
	list := strings.Split(s, "\\")
	for i := range list {
		list[i] = trimValue(list[i], vr)
	}
	return list
}

// effectiveVR is the VR by which to read the value: the dictionary's for UN, with which some senders cover known elements.
func (e *Element) effectiveVR() VR {
	if e.VR == UN {
		return VROf(e.Tag)
	}
	return e.VR
}

// text returns the whole value as UTF-8, padding and separators included; numbers as decimals joined by backslashes.
func (d *Dataset) text(e *Element) string {
	vr := e.effectiveVR()
	switch {
	case vr == SQ || len(e.Value) == 0:
		return ""
	case vr.IsText():
		return decodeText(e.Value, d.Charset, vr)
	case vr.IsString() || vr.IsBinary():
		return decodeText(e.Value, noCharset, vr)
	}
	var b []byte
	for i := 0; ; i++ {
		n := len(b)
		if i > 0 {
			b = append(b, '\\')
		}
		var ok bool
		if b, ok = appendNumber(b, vr, e.Value, i); !ok {
			return string(b[:n])
		}
	}
}

func noCharset() string { return "" }

// Int returns the first value of the element as an integer. It reads binary integers and integer strings, and decimal strings without a fraction.
func (d *Dataset) Int(tag Tag) (int, bool) {
	e := d.Get(tag)
	if e == nil {
		return 0, false
	}
	b := e.Value
	switch vr := e.effectiveVR(); {
	case vr == SS && len(b) >= 2:
		return int(int16(binary.LittleEndian.Uint16(b))), true
	case vr == US && len(b) >= 2:
		return int(binary.LittleEndian.Uint16(b)), true
	case vr == UL && len(b) >= 4:
		return int(binary.LittleEndian.Uint32(b)), true
	case vr == SL && len(b) >= 4:
		return int(int32(binary.LittleEndian.Uint32(b))), true
	case vr == SV && len(b) >= 8:
		return int(binary.LittleEndian.Uint64(b)), true
	case vr == UV && len(b) >= 8:
		n := binary.LittleEndian.Uint64(b)
		return int(n), n < 1<<63
	case vr.IsString():
		return parseInt(d.String(tag))
	}
	return 0, false
}

func parseInt(s string) (int, bool) {
	if i := strings.IndexByte(s, '.'); i > 0 && strings.Trim(s[i+1:], "0") == "" {
		s = s[:i]
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// SetStrings sets the element to the values, given in UTF-8, with the dictionary's VR; no values make it empty. Text that is not ASCII
// turns the whole data set to UTF-8 (ISO_IR 192) first, unless it is in UTF-8 already.
func (d *Dataset) SetStrings(tag Tag, values ...string) {
	vr := VROf(tag)
	joined := strings.Join(values, "\\")
	if !isASCII(joined) && vr.IsText() && charsetOf(d.Charset()).kind != charsetUTF8 {
		d.ToUTF8()
		if charsetOf(d.Charset()).kind != charsetUTF8 {
			d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte(utf8Term)})
		}
	}
	d.Set(Element{Tag: tag, VR: vr, Value: padded([]byte(joined), vr)})
}

// SetInt sets the element to one integer in the form of its VR: US, SS, UL, SL, UV, SV, IS or DS.
func (d *Dataset) SetInt(tag Tag, n int) {
	vr := VROf(tag)
	var b []byte
	switch vr {
	case US, SS:
		b = binary.LittleEndian.AppendUint16(nil, uint16(n))
	case UL, SL:
		b = binary.LittleEndian.AppendUint32(nil, uint32(n))
	case UV, SV:
		b = binary.LittleEndian.AppendUint64(nil, uint64(n))
	default:
		b = padded(strconv.AppendInt(nil, int64(n), 10), vr)
	}
	d.Set(Element{Tag: tag, VR: vr, Value: b})
}

func padded(b []byte, vr VR) []byte {
	if len(b)%2 == 1 {
		b = append(b, vr.pad())
	}
	return b
}

// trimString drops the padding around a value: spaces on both sides, NULs at the end.
func trimString(s string) string {
	return strings.TrimLeft(strings.TrimRight(s, " \x00"), " ")
}

// trimValue drops what PS3.5 6.2 calls not significant: leading spaces count in the free text VRs.
func trimValue(s string, vr VR) string {
	if trimsLeft(vr) {
		return trimString(s)
	}
	return strings.TrimRight(s, " \x00")
}

func trimsLeft(vr VR) bool {
	switch vr {
	case LT, ST, UT, UC, UR:
		return false
	}
	return true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
