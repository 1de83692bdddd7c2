package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"osteon/dicomsvc/dicom"
)

// The attributes of a row are small data sets in Explicit VR Little Endian and UTF-8 (PS3.5 §7.1.2
// and Annex A.2). What this file reads from them decides index keys, so it must stay the same in
// every program version that applies the same log; it therefore stands alone and does not use the
// parser of the dicom package.

const (
	tagItem         = 0xFFFEE000
	tagItemEnd      = 0xFFFEE00D
	tagSequenceEnd  = 0xFFFEE0DD
	undefinedLength = 0xFFFFFFFF
)

// attribute is one element; value aliases the data set and includes padding.
type attribute struct {
	tag   dicom.Tag
	vr    dicom.VR
	value []byte
	raw   []byte // the whole element
}

// eachAttribute yields the top-level elements of set until yield returns false. It reports whether
// all of set was well formed; it stops at the first fault.
func eachAttribute(set []byte, yield func(attribute) bool) bool {
	for len(set) > 0 {
		a, rest, ok := nextAttribute(set)
		if !ok {
			return false
		}
		if !yield(a) {
			return true
		}
		set = rest
	}
	return true
}

// nextAttribute splits the first element off set.
func nextAttribute(set []byte) (a attribute, rest []byte, ok bool) {
	header, length, ok := attributeHeader(set, &a)
	if !ok {
		return a, nil, false
	}
	body := set[header:]
	if length == undefinedLength {
		n, ok := undefinedSequence(body)
		if !ok {
			return a, nil, false
		}
		a.value, a.raw = body[:n-8], set[:header+n]
		return a, body[n:], true
	}
	if uint64(length) > uint64(len(body)) {
		return a, nil, false
	}
	a.value, a.raw = body[:length], set[:header+int(length)]
	return a, body[length:], true
}

// attributeHeader reads tag, VR and length.
func attributeHeader(b []byte, a *attribute) (header int, length uint32, ok bool) {
	if len(b) < 8 {
		return 0, 0, false
	}
	a.tag = dicom.NewTag(binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]))
	a.vr = dicom.VR(b[4])<<8 | dicom.VR(b[5])
	if !longVR(a.vr) {
		return 8, uint32(binary.LittleEndian.Uint16(b[6:])), true
	}
	if len(b) < 12 {
		return 0, 0, false
	}
	return 12, binary.LittleEndian.Uint32(b[8:]), true
}

// longVR reports whether the VR has a 32-bit length (PS3.5 §7.1.2).
func longVR(vr dicom.VR) bool {
	switch vr {
	case dicom.OB, dicom.OD, dicom.OF, dicom.OL, dicom.OV, dicom.OW, dicom.SQ, dicom.SV, dicom.UC, dicom.UN,
		dicom.UR, dicom.UT, dicom.UV:
		return true
	}
	return false
}

// undefinedSequence returns the length of a sequence of undefined length that starts at its first
// item, its delimiter included. It does not recurse.
func undefinedSequence(b []byte) (n int, ok bool) {
	inItem := []bool{false} // one level each: within an item, or between the items of a sequence
	for len(inItem) <= 2*maxDepth {
		if len(b)-n < 8 {
			return 0, false
		}
		at := b[n:]
		tag := uint32(binary.LittleEndian.Uint16(at))<<16 | uint32(binary.LittleEndian.Uint16(at[2:]))
		length := binary.LittleEndian.Uint32(at[4:])
		top := len(inItem) - 1
		switch {
		case inItem[top] && tag == tagItemEnd:
			n += 8
			inItem = inItem[:top]
			continue
		case !inItem[top] && tag == tagSequenceEnd:
			n += 8
			if inItem = inItem[:top]; top == 0 {
				return n, true
			}
			continue
		case !inItem[top] && tag == tagItem:
			n += 8
			if length == undefinedLength {
				inItem = append(inItem, true)
				continue
			}
		case inItem[top]:
			var a attribute
			header, l, ok := attributeHeader(at, &a)
			if !ok {
				return 0, false
			}
			n += header
			if length = l; length == undefinedLength {
				inItem = append(inItem, false)
				continue
			}
		default:
			return 0, false
		}
		if uint64(length) > uint64(len(b)-n) {
			return 0, false
		}
		n += int(length)
	}
	return 0, false
}

// eachItem yields the items of a sequence's value, each a data set, until yield returns false.
func eachItem(value []byte, yield func(set []byte) bool) {
	for len(value) >= 8 {
		if binary.LittleEndian.Uint32(value) != tagItem>>16|tagItem&0xFFFF<<16 {
			return
		}
		length := binary.LittleEndian.Uint32(value[4:])
		value = value[8:]
		if length == undefinedLength {
			n, ok := undefinedItem(value)
			if !ok || !yield(value[:n-8]) {
				return
			}
			value = value[n:]
			continue
		}
		if uint64(length) > uint64(len(value)) || !yield(value[:length]) {
			return
		}
		value = value[length:]
	}
}

// undefinedItem returns the length of an item of undefined length, its delimiter included.
func undefinedItem(b []byte) (n int, ok bool) {
	for len(b)-n >= 8 {
		if binary.LittleEndian.Uint32(b[n:]) == tagItemEnd>>16|tagItemEnd&0xFFFF<<16 {
			return n + 8, true
		}
		a, _, ok := nextAttribute(b[n:])
		if !ok {
			return 0, false
		}
		n += len(a.raw)
	}
	return 0, false
}

// findAttribute returns the top-level element of set with the tag.
func findAttribute(set []byte, tag dicom.Tag) (found attribute, ok bool) {
	eachAttribute(set, func(a attribute) bool {
		if a.tag == tag {
			found, ok = a, true
		}
		return a.tag < tag
	})
	return found, ok
}

// textOf returns the whole value of a top-level element without padding, or "".
func textOf(set []byte, tag dicom.Tag) string {
	a, _ := findAttribute(set, tag)
	return trimmed(a.value)
}

// trimmed returns a value without the padding of PS3.5 §6.2.
func trimmed(value []byte) string { return string(bytes.Trim(value, " \x00")) }

// firstOf returns the first of the values of a text.
func firstOf(text string) string {
	first, _, _ := strings.Cut(text, `\`)
	return strings.Trim(first, " ")
}

// trimAttributes returns set, or when it is longer than max or ill formed, what fits of its
// well-formed elements, the longest left out first.
func trimAttributes(set []byte, max int) []byte {
	if len(set) <= max && eachAttribute(set, func(attribute) bool { return true }) {
		return set
	}
	for limit := max; ; limit /= 2 {
		var kept []byte
		eachAttribute(set, func(a attribute) bool {
			if len(a.raw) <= limit {
				kept = append(kept, a.raw...)
			}
			return len(kept) <= max
		})
		if len(kept) <= max {
			return kept
		}
	}
}

// folder remembers the folded names of patient attributes.
type folder map[string][]string

// names returns the folded component groups of the patient's name (PS3.5 §6.2), as the index keeps
// them.
func (f folder) names(patient []byte) []string {
	if names, known := f[string(patient)]; known {
		return names
	}
	var names []string
	for _, group := range strings.SplitN(firstOf(textOf(patient, dicom.PatientName)), "=", maxNames) {
		if name := clip(foldName(group), maxIndexBytes); name != "" {
			names = append(names, name)
		}
	}
	f[string(patient)] = names
	return names
}

// foldName returns a component group as names are compared: folded, and without what PS3.4
// §C.2.2.2.1 calls insignificant.
func foldName(group string) string {
	return strings.TrimRight(dicom.FoldName(strings.Trim(group, " \x00")), "^ ")
}

// clip cuts s to at most max bytes without cutting a character.
func clip(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max]
}

// clipKey cuts an identifier to maxStringBytes and makes up for it with a hash, so that long ones
// stay apart.
func clipKey(s string) string {
	if len(s) <= maxStringBytes {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return clip(s, maxStringBytes-33) + "#" + hex.EncodeToString(sum[:16])
}

// normalised returns the item as it goes into the log: within the limits, and with folded names.
func (it AddItem) normalised(names folder) AddItem {
	it.PatientAttributes = trimAttributes(it.PatientAttributes, maxAttributesBytes)
	it.StudyAttributes = trimAttributes(it.StudyAttributes, maxAttributesBytes)
	it.SeriesAttributes = trimAttributes(it.SeriesAttributes, maxAttributesBytes)
	it.Attributes = trimAttributes(it.Attributes, maxAttributesBytes)
	it.PatientKey = PatientKey{Issuer: clipKey(it.PatientKey.Issuer), ID: clipKey(it.PatientKey.ID)}
	it.CallingAE = clip(it.CallingAE, maxStringBytes)
	it.names = names.names(it.PatientAttributes)
	return it
}
