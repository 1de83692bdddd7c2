package dicom

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// PathStep is one step on the way to an element: the sequence and the item in it, from 0.
type PathStep struct {
	Tag  Tag
	Item int
}

// maxExactInt is the greatest integer that every JSON reader keeps exact; 64-bit values beyond it are written as strings (PS3.18 F.2.3).
const maxExactInt = 1<<53 - 1

// AppendJSON appends the data set as a DICOM JSON Model Object (PS3.18 Annex F): UTF-8, keys ascending, group lengths left out.
//
// bulkURI, which may be nil, is asked for each binary value and each value that is not loaded; path leads to the sequence items around it and
// is good only during the call. It returns the BulkDataURI, or "" for InlineBinary. An element that is not loaded and gets no URI is left
// out. Inline binary is in Little Endian, as F.2.7 wants. Fails with ErrLimit for nesting beyond 64.
func AppendJSON(dst []byte, d *Dataset, bulkURI func(path []PathStep, el *Element) string) ([]byte, error) {
	w := jsonWriter{dst: dst, uri: bulkURI}
	if err := w.dataset(d); err != nil {
		return dst, err
	}
	return w.dst, nil
}

type jsonWriter struct {
	dst  []byte
	path []PathStep
	uri  func([]PathStep, *Element) string
}

func (w *jsonWriter) dataset(d *Dataset) error {
	if len(w.path) > depthMax {
		return fmt.Errorf("write DICOM JSON: sequences nest too deep: %w", ErrLimit)
	}
	w.dst = append(w.dst, '{')
	first, last := true, Tag(0)
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.Tag.IsGroupLength() || !first && el.Tag == last {
			continue
		}
		uri := w.bulk(el)
		if el.Bulk != nil && uri == "" {
			continue
		}
		if !first {
			w.dst = append(w.dst, ',')
		}
		first, last = false, el.Tag
		w.dst = append(w.dst, '"')
		w.dst = appendHex(w.dst, el.Tag)
		w.dst = append(w.dst, `":{"vr":"`...)
		if err := w.element(d, el, uri); err != nil {
			return err
		}
		w.dst = append(w.dst, '}')
	}
	w.dst = append(w.dst, '}')
	return nil
}

func appendHex(dst []byte, t Tag) []byte {
	var b [8]byte
	putHex16(b[0:4], t.Group())
	putHex16(b[4:8], t.Element())
	return append(dst, b[:]...)
}

func (w *jsonWriter) bulk(el *Element) string {
	switch {
	case el.Bulk != nil && el.Bulk.URI != "":
		return el.Bulk.URI
	case w.uri != nil && (el.Bulk != nil || el.VR.IsBinary() && len(el.Value) > 0):
		return w.uri(w.path, el)
	}
	return ""
}

// element writes VR and value; the VR's opening quote is written.
func (w *jsonWriter) element(d *Dataset, el *Element, uri string) error {
	vr := el.VR
	switch {
	case len(el.Items) > 0:
		vr = SQ
	case !vr.known(), el.Bulk == nil && len(el.Value)%vr.unit() != 0, vr == AT && len(el.Value)%4 != 0:
		vr = UN // its bytes are no list of such numbers
	}
	w.dst = append(w.dst, byte(vr>>8), byte(vr), '"')
	switch {
	case uri != "":
		w.dst = append(w.dst, `,"BulkDataURI":`...)
		w.dst = appendQuoted(w.dst, uri)
	case vr == SQ:
		return w.sequence(el)
	case len(el.Value) == 0:
	case vr.IsBinary():
		w.dst = append(w.dst, `,"InlineBinary":"`...)
		w.dst = base64.StdEncoding.AppendEncode(w.dst, el.Value)
		w.dst = append(w.dst, '"')
	case vr.IsString():
		w.strings(d, el, vr)
	default:
		w.numbers(el, vr)
	}
	return nil
}

func (w *jsonWriter) sequence(el *Element) error {
	if len(el.Items) == 0 {
		return nil
	}
	w.dst = append(w.dst, `,"Value":[`...)
	for i, item := range el.Items {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.path = append(w.path, PathStep{el.Tag, i})
		if err := w.dataset(item); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	w.dst = append(w.dst, ']')
	return nil
}

func (w *jsonWriter) numbers(el *Element, vr VR) {
	w.dst = append(w.dst, `,"Value":[`...)
	for i := 0; ; i++ {
		n := len(w.dst)
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		var ok bool
		if w.dst, ok = appendJSONNumber(w.dst, vr, el.Value, i); !ok {
			w.dst = append(w.dst[:n], ']')
			return
		}
	}
}

// strings writes the values of a string VR: null for an empty one among several, nothing when all are (PS3.18 F.2.5).
func (w *jsonWriter) strings(d *Dataset, el *Element, vr VR) {
	values := d.values(el)
	if el.Tag == SpecificCharacterSet {
		values = []string{utf8Term} // that of the JSON itself
	}
	if allEmpty(values, vr) {
		return
	}
	w.dst = append(w.dst, `,"Value":[`...)
	for i, v := range values {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		switch {
		case v == "", vr == PN && strings.Trim(v, " ^=") == "":
			w.dst = append(w.dst, "null"...)
		case vr == PN:
			w.dst = appendName(w.dst, v)
		case vr == IS || vr == DS:
			w.dst = appendDecimal(w.dst, v)
		default:
			w.dst = appendQuoted(w.dst, v)
		}
	}
	w.dst = append(w.dst, ']')
}

func allEmpty(values []string, vr VR) bool {
	for _, v := range values {
		if v != "" && (vr != PN || strings.Trim(v, " ^=") != "") {
			return false
		}
	}
	return true
}

// trimGroup drops padding and the delimiters of empty components at the end, which mean nothing (PS3.5 6.2.1.1).
func trimGroup(s string) string { return strings.TrimLeft(strings.TrimRight(s, " ^"), " ") }

// appendName writes the component groups of a person name (PS3.18 F.2.2).
func appendName(dst []byte, v string) []byte {
	dst = append(dst, '{')
	first := true
	for _, key := range [...]string{"Alphabetic", "Ideographic", "Phonetic"} {
		var group string
		group, v, _ = strings.Cut(v, "=")
		if key == "Phonetic" && v != "" {
			group += "=" + v // more groups than PS3.5 6.2.1 knows: nothing is dropped
		}
		if group = trimGroup(group); group == "" {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, '"')
		dst = append(dst, key...)
		dst = append(dst, `":`...)
		dst = appendQuoted(dst, group)
	}
	return append(dst, '}')
}

// appendDecimal writes an IS or DS value as a JSON number with its own digits, or as a string when it is no number.
func appendDecimal(dst []byte, v string) []byte {
	s, sign := v, ""
	if s != "" && (s[0] == '+' || s[0] == '-') {
		if s[0] == '-' {
			sign = "-"
		}
		s = s[1:]
	}
	whole, rest := digits(s)
	var fraction, exponent string
	if strings.HasPrefix(rest, ".") {
		fraction, rest = digits(rest[1:])
	}
	if whole == "" && fraction == "" {
		return appendQuoted(dst, v)
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		n := 1
		if len(rest) > 1 && (rest[1] == '+' || rest[1] == '-') {
			n = 2
		}
		var d string
		if d, rest = digits(rest[n:]); d == "" || rest != "" || len(d) > 3 {
			return appendQuoted(dst, v)
		}
		exponent = s[len(s)-len(d)-n:]
	}
	if rest != "" {
		return appendQuoted(dst, v)
	}
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	dst = append(append(dst, sign...), whole...)
	if fraction != "" {
		dst = append(append(dst, '.'), fraction...)
	}
	return append(dst, exponent...)
}

func digits(s string) (head, rest string) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n], s[n:]
}

// appendNumber appends value i of a binary number VR in decimal, an AT as eight hexadecimal digits; false when there is no such value.
func appendNumber(dst []byte, vr VR, b []byte, i int) ([]byte, bool) {
	n := vr.unit()
	if vr == AT {
		n = 4
	}
	if (i+1)*n > len(b) {
		return dst, false
	}
	b = b[i*n:]
	le := binary.LittleEndian
	switch vr {
	case US:
		return strconv.AppendUint(dst, uint64(le.Uint16(b)), 10), true
	case SS:
		return strconv.AppendInt(dst, int64(int16(le.Uint16(b))), 10), true
	case UL:
		return strconv.AppendUint(dst, uint64(le.Uint32(b)), 10), true
	case SL:
		return strconv.AppendInt(dst, int64(int32(le.Uint32(b))), 10), true
	case UV:
		return strconv.AppendUint(dst, le.Uint64(b), 10), true
	case SV:
		return strconv.AppendInt(dst, int64(le.Uint64(b)), 10), true
	case FL:
		return strconv.AppendFloat(dst, float64(math.Float32frombits(le.Uint32(b))), 'g', -1, 32), true
	case FD:
		return strconv.AppendFloat(dst, math.Float64frombits(le.Uint64(b)), 'g', -1, 64), true
	case AT:
		return appendHex(dst, NewTag(le.Uint16(b), le.Uint16(b[2:]))), true
	}
	return dst, false
}

// appendJSONNumber is appendNumber with what JSON cannot hold as a number in quotes: tags, 64-bit integers beyond 2^53, NaN and infinities.
func appendJSONNumber(dst []byte, vr VR, b []byte, i int) ([]byte, bool) {
	start := len(dst)
	dst, ok := appendNumber(dst, vr, b, i)
	if !ok || !quotedNumber(vr, b, i) {
		return dst, ok
	}
	text := string(dst[start:])
	return appendQuoted(dst[:start], text), true
}

func quotedNumber(vr VR, b []byte, i int) bool {
	le := binary.LittleEndian
	switch vr {
	case AT:
		return true
	case UV:
		return le.Uint64(b[8*i:]) > maxExactInt
	case SV:
		n := int64(le.Uint64(b[8*i:]))
		return n > maxExactInt || n < -maxExactInt
	case FL:
		f := float64(math.Float32frombits(le.Uint32(b[4*i:])))
		return math.IsNaN(f) || math.IsInf(f, 0)
	case FD:
		f := math.Float64frombits(le.Uint64(b[8*i:]))
		return math.IsNaN(f) || math.IsInf(f, 0)
	}
	return false
}

// appendQuoted writes a JSON string; s is valid UTF-8 or has what is not replaced.
func appendQuoted(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, '\\', 'n')
		case r == '\r':
			dst = append(dst, '\\', 'r')
		case r == '\t':
			dst = append(dst, '\\', 't')
		case r < 0x20 || r == 0x7F:
			dst = append(dst, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		case r < 0x80:
			dst = append(dst, byte(r))
		default:
			dst = append(dst, string(r)...)
		}
	}
	return append(dst, '"')
}
