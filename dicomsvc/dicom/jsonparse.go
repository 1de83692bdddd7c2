package dicom

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ParseJSON reads one DICOM JSON Model Object (PS3.18 Annex F). Text is kept in UTF-8, and Specific Character Set says so when the data set holds any
// that is not ASCII. A BulkDataURI becomes a Bulk with its URI set, for the caller to resolve. Fails with ErrMalformed, and with ErrLimit for nesting
// beyond Limits.Depth, too many elements or more than 64 MiB; errors name tags and never values.
func ParseJSON(b []byte, lim Limits) (*Dataset, error) {
	if len(b) > jsonBytesMax {
		return nil, fmt.Errorf("read DICOM JSON: %w", ErrLimit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	p := jsonParser{modelParser{what: "DICOM JSON", offset: dec.InputOffset, lim: lim.filled()}, b, dec}
	d, err := p.object(0, nil)
	if err == nil {
		if _, extra := dec.Token(); extra != io.EOF {
			err = p.bad("something follows the object")
		}
	}
	if err != nil {
		return nil, err
	}
	d.declareUTF8()
	return d, nil
}

// declareUTF8 makes Specific Character Set say what the text is in; a data set of ASCII without the element goes without.
func (d *Dataset) declareUTF8() {
	if !d.allASCII() || d.Has(SpecificCharacterSet) {
		d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte(utf8Term)})
	}
}

type jsonParser struct {
	modelParser
	src []byte
	dec *json.Decoder
}

// modelParser is what the readers of DICOM JSON and of the Native DICOM Model have in common: the limits, where they are, and how values are encoded.
type modelParser struct {
	what     string // what is read, for errors
	offset   func() int64
	lim      Limits
	elements int
	tag      Tag
}

func (p *modelParser) bad(what string) error {
	return &ParseError{Kind: ErrMalformed, Tag: p.tag, Offset: p.offset(), What: p.what + ": " + what}
}

func (p *modelParser) over(what string) error {
	return &ParseError{Kind: ErrLimit, Tag: p.tag, Offset: p.offset(), What: p.what + ": " + what}
}

// delim reads the delimiter wanted.
func (p *jsonParser) delim(want json.Delim) error {
	t, err := p.dec.Token()
	if err != nil {
		return p.bad("not valid JSON")
	}
	if t != want {
		return p.bad("an object or array is expected")
	}
	return nil
}

// object reads a data set.
func (p *jsonParser) object(depth int, parent *Dataset) (*Dataset, error) {
	if err := p.delim('{'); err != nil {
		return nil, err
	}
	return p.members(depth, parent)
}

// members reads what follows the opening brace of a data set.
func (p *jsonParser) members(depth int, parent *Dataset) (*Dataset, error) {
	d := &Dataset{parent: parent}
	for p.dec.More() {
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		tag, ok := ParseTag(key)
		if !ok || len(key) != 8 || tag.Group() == 0xFFFE {
			return nil, p.bad("a key is no tag of eight hexadecimal digits")
		}
		if p.elements++; p.elements > p.lim.Elements {
			return nil, p.over("too many elements")
		}
		p.tag = tag
		el, err := p.element(tag, depth, d)
		if err != nil {
			return nil, err
		}
		d.Elements = append(d.Elements, el)
	}
	if _, err := p.dec.Token(); err != nil {
		return nil, p.bad("not valid JSON")
	}
	d.adopt(d.Elements)
	return d, nil
}

// adopt makes els, in any order, the elements of d; of several with one tag the last counts, as JSON readers have it.
func (d *Dataset) adopt(els []Element) {
	slices.SortStableFunc(els, byTag)
	kept := els[:0]
	for i := range els {
		if i+1 < len(els) && els[i+1].Tag == els[i].Tag {
			continue
		}
		for _, item := range els[i].Items {
			item.parent = d
		}
		kept = append(kept, els[i])
	}
	d.Elements = kept
}

func (p *jsonParser) key() (string, error) {
	t, err := p.dec.Token()
	key, ok := t.(string)
	if err != nil || !ok {
		return "", p.bad("not valid JSON")
	}
	return key, nil
}

// element reads {"vr": ..., "Value" | "InlineBinary" | "BulkDataURI": ...}.
func (p *jsonParser) element(tag Tag, depth int, d *Dataset) (Element, error) {
	el := Element{Tag: tag}
	if err := p.delim('{'); err != nil {
		return el, err
	}
	var values []any
	for p.dec.More() {
		key, err := p.key()
		if err != nil {
			return el, err
		}
		switch key {
		case "vr":
			el.VR, err = p.vr()
		case "Value":
			values, err = p.values(depth, d)
		case "InlineBinary":
			el.Value, err = p.inline()
		case "BulkDataURI":
			el.Bulk, err = p.bulk()
		default:
			err = p.skip(0)
		}
		if err != nil {
			return el, err
		}
	}
	if _, err := p.dec.Token(); err != nil {
		return el, p.bad("not valid JSON")
	}
	if el.VR == vrNone {
		el.VR = VROf(tag)
	}
	return el, p.assign(&el, values)
}

func (p *jsonParser) text() (string, error) {
	t, err := p.dec.Token()
	s, ok := t.(string)
	if err != nil || !ok {
		return "", p.bad("a string is expected")
	}
	return s, nil
}

func (p *jsonParser) vr() (VR, error) {
	s, err := p.text()
	if err != nil {
		return 0, err
	}
	vr, ok := ParseVR(s)
	if !ok {
		return 0, p.bad("unknown VR")
	}
	return vr, nil
}

func (p *jsonParser) inline() ([]byte, error) {
	s, err := p.text()
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, p.bad("InlineBinary is not base64")
	}
	return b, nil
}

func (p *jsonParser) bulk() (*Bulk, error) {
	s, err := p.text()
	if err != nil {
		return nil, err
	}
	return &Bulk{URI: s}, nil
}

// skip passes one JSON value of a key that Annex F does not know.
func (p *jsonParser) skip(depth int) error {
	for {
		t, err := p.dec.Token()
		if err != nil {
			return p.bad("not valid JSON")
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > p.lim.Depth {
				return p.over("nests too deep")
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// values reads the array of values: strings, json.Numbers, nil, *Dataset for items and names as their encoded string.
func (p *jsonParser) values(depth int, d *Dataset) ([]any, error) {
	if err := p.delim('['); err != nil {
		return nil, err
	}
	list := []any{}
	for p.dec.More() {
		if len(list) >= p.lim.Elements {
			return nil, p.over("too many values")
		}
		t, err := p.dec.Token()
		if err != nil {
			return nil, p.bad("not valid JSON")
		}
		switch t {
		case json.Delim('['):
			return nil, p.bad("a value is an array")
		case json.Delim('{'):
			v, err := p.itemOrName(depth, d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			continue
		}
		list = append(list, t)
	}
	if _, err := p.dec.Token(); err != nil {
		return nil, p.bad("not valid JSON")
	}
	return list, nil
}

// name is a person name object; its groups in the order of PS3.5 6.2.1.
type name [3]string

// itemOrName reads an object in a Value array after its brace: a person name when its keys are the names of component groups. The VR may come
// after the value, so that it cannot decide.
func (p *jsonParser) itemOrName(depth int, d *Dataset) (any, error) {
	if !p.dec.More() || !p.nameAhead() {
		if depth+1 > p.lim.Depth {
			return nil, p.over("sequences nest too deep")
		}
		p.elements++
		tag := p.tag
		item, err := p.members(depth+1, d)
		if err == nil {
			p.tag = tag
		}
		return item, err
	}
	var n name
	for p.dec.More() {
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		s, err := p.text()
		if err != nil {
			return nil, err
		}
		switch key {
		case "Alphabetic":
			n[0] = s
		case "Ideographic":
			n[1] = s
		case "Phonetic":
			n[2] = s
		}
	}
	if _, err := p.dec.Token(); err != nil {
		return nil, p.bad("not valid JSON")
	}
	return n, nil
}

// nameAhead looks at the first key without consuming it.
func (p *jsonParser) nameAhead() bool {
	s := strings.TrimLeft(string(p.src[p.dec.InputOffset():min(p.dec.InputOffset()+40, int64(len(p.src)))]), " \t\r\n")
	return strings.HasPrefix(s, `"Alphabetic"`) || strings.HasPrefix(s, `"Ideographic"`) || strings.HasPrefix(s, `"Phonetic"`)
}

// assign encodes the values in the element's VR.
func (p *modelParser) assign(el *Element, values []any) error {
	if values == nil {
		return nil
	}
	if el.Value != nil || el.Bulk != nil {
		return p.bad("more than one kind of value")
	}
	if el.VR == SQ {
		for _, v := range values {
			item, ok := v.(*Dataset)
			switch {
			case v == nil:
				item = &Dataset{}
			case !ok:
				return p.bad("an item of a sequence is no object")
			}
			el.Items = append(el.Items, item)
		}
		return nil
	}
	if el.VR.IsBinary() {
		return p.bad("Value with a binary VR")
	}
	if el.VR.IsString() {
		return p.assignText(el, values)
	}
	for _, v := range values {
		var ok bool
		if el.Value, ok = appendBinary(el.Value, el.VR, v); !ok {
			return p.bad("a value does not suit its VR")
		}
	}
	return nil
}

func (p *modelParser) assignText(el *Element, values []any) error {
	var b []byte
	for i, v := range values {
		if i > 0 {
			b = append(b, '\\')
		}
		switch v := v.(type) {
		case nil:
		case string:
			b = append(b, v...)
		case json.Number:
			b = append(b, v...)
		case name:
			if el.VR != PN {
				return p.bad("a person name with another VR")
			}
			b = append(b, strings.TrimRight(strings.Join(v[:], "="), "=")...)
		case *Dataset:
			if el.VR != PN || len(v.Elements) > 0 {
				return p.bad("an object where a string is expected")
			}
		default:
			return p.bad("a value does not suit its VR")
		}
	}
	el.Value = padded(b, el.VR)
	return nil
}

// appendBinary encodes one number or tag; numbers may come as strings.
func appendBinary(dst []byte, vr VR, v any) ([]byte, bool) {
	var s string
	switch v := v.(type) {
	case json.Number:
		s = v.String()
	case string:
		s = v
	default:
		return dst, false
	}
	le := binary.LittleEndian
	switch vr {
	case AT:
		t, ok := ParseTag(s)
		dst = le.AppendUint16(dst, t.Group())
		return le.AppendUint16(dst, t.Element()), ok && len(s) == 8
	case FL:
		f, err := strconv.ParseFloat(s, 32)
		return le.AppendUint32(dst, math.Float32bits(float32(f))), err == nil
	case FD:
		f, err := strconv.ParseFloat(s, 64)
		return le.AppendUint64(dst, math.Float64bits(f)), err == nil
	case US, UL, UV:
		n, err := strconv.ParseUint(s, 10, vr.unit()*8)
		return appendUint(dst, vr.unit(), n), err == nil
	case SS, SL, SV:
		n, err := strconv.ParseInt(s, 10, vr.unit()*8)
		return appendUint(dst, vr.unit(), uint64(n)), err == nil
	}
	return dst, false
}

func appendUint(dst []byte, bytes int, n uint64) []byte {
	for range bytes {
		dst = append(dst, byte(n))
		n >>= 8
	}
	return dst
}
