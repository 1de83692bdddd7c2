package dicom

import (
	"slices"
	"strings"
)

// Tag names a data element: group number in the high 16 bits, element number in the low 16 bits (PS3.5 7.1.1).
type Tag uint32

// NewTag returns the tag (group,element).
func NewTag(group, element uint16) Tag { return Tag(group)<<16 | Tag(element) }

// Group returns the group number.
func (t Tag) Group() uint16 { return uint16(t >> 16) }

// Element returns the element number.
func (t Tag) Element() uint16 { return uint16(t) }

// IsPrivate reports whether the group is odd (PS3.5 7.8).
func (t Tag) IsPrivate() bool { return t&0x10000 != 0 }

// IsPrivateCreator reports whether the tag reserves a block of private elements (PS3.5 7.8.1).
func (t Tag) IsPrivateCreator() bool {
	return t.IsPrivate() && t.Element() >= 0x10 && t.Element() <= 0xFF
}

// IsGroupLength reports whether the tag is a group length, retired outside groups 0000 and 0002 (PS3.5 7.2).
func (t Tag) IsGroupLength() bool { return t&0xFFFF == 0 }

// String returns the tag as "(0010,0020)".
func (t Tag) String() string {
	b := [11]byte{0: '(', 5: ',', 10: ')'}
	putHex16(b[1:5], t.Group())
	putHex16(b[6:10], t.Element())
	return string(b[:])
}

// Hex returns the tag as "00100020", the form of DICOM JSON keys.
func (t Tag) Hex() string {
	var b [8]byte
	putHex16(b[0:4], t.Group())
	putHex16(b[4:8], t.Element())
	return string(b[:])
}

// Keyword returns the PS3.6 keyword, or "" for a tag without one.
func (t Tag) Keyword() string {
	if e := find(t); e != nil {
		return e.keyword
	}
	return ""
}

func putHex16(b []byte, n uint16) {
	const digits = "0123456789ABCDEF"
	b[0], b[1], b[2], b[3] = digits[n>>12], digits[n>>8&15], digits[n>>4&15], digits[n&15]
}

// LookupKeyword returns the tag with the PS3.6 keyword; case is significant.
func LookupKeyword(keyword string) (Tag, bool) {
	i, ok := slices.BinarySearchFunc(byKeyword[:], keyword, func(i uint16, k string) int {
		return strings.Compare(dictionary[i].keyword, k)
	})
	if !ok {
		return 0, false
	}
	return dictionary[byKeyword[i]].tag, true
}

// ParseTag reads a tag written as a keyword, as eight hexadecimal digits, or as "(gggg,eeee)".
func ParseTag(s string) (Tag, bool) {
	if t, ok := LookupKeyword(s); ok {
		return t, true
	}
	if len(s) == 11 && s[0] == '(' && s[5] == ',' && s[10] == ')' {
		s = s[1:5] + s[6:10]
	}
	if len(s) != 8 {
		return 0, false
	}
	var t Tag
	for i := range len(s) {
		d, ok := hexDigit(s[i])
		if !ok {
			return 0, false
		}
		t = t<<4 | Tag(d)
	}
	return t, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// VROf returns the value representation that the dictionary gives for tag: UL for a group length, LO for a private creator, UN for
// a tag it does not know. Where PS3.6 leaves a choice it is the one a reader of Implicit VR assumes (PS3.5 A.1); "US or SS"
// comes out as US, and a decoder that has seen Pixel Representation refines it.
func VROf(tag Tag) VR {
	if e := find(tag); e != nil && e.vr != vrNone {
		return e.vr
	}
	switch {
	case tag.IsGroupLength():
		return UL
	case tag.IsPrivateCreator():
		return LO
	}
	return UN
}

// entry is one row of the dictionary.
type entry struct {
	tag     Tag
	vr      VR
	signed  bool // US or SS, decided by Pixel Representation
	keyword string
}

// find returns the row for tag, with the X digits of repeating groups taken into account, or nil.
func find(tag Tag) *entry {
	if e := lookup(tag); e != nil {
		return e
	}
	if m := masked(tag); m != tag {
		return lookup(m)
	}
	return nil
}

func lookup(tag Tag) *entry {
	lo, hi := 0, len(dictionary)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if dictionary[mid].tag < tag {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(dictionary) && dictionary[lo].tag == tag {
		return &dictionary[lo]
	}
	return nil
}

// masked gives the digits that PS3.6 writes as X the value they have in the dictionary (PS3.5 7.6).
func masked(tag Tag) Tag {
	switch g := tag.Group(); {
	case tag.IsPrivate():
		return tag
	case g>>8 == 0x50 || g>>8 == 0x60 || g>>8 == 0x7F:
		return tag & 0xFF00FFFF
	case g == 0x0020 && tag.Element()>>8 == 0x31:
		return tag & 0xFFFFFF00
	case g == 0x0028 && (tag.Element()>>8 == 0x04 || tag.Element()>>8 == 0x08):
		return tag&0xFFFFFF0F | 0x10
	case g == 0x1000:
		return tag & 0xFFFF000F
	case g == 0x1010:
		return tag & 0xFFFF0000
	}
	return tag
}
