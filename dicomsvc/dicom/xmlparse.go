package dicom

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// ParseXML reads one document of the Native DICOM Model (PS3.19 A.1), as ParseJSON reads DICOM JSON and with the same limits. A private element without a
// block is put into the block that its privateCreator has, or gets one. Names of XML attributes are read in either case.
func ParseXML(b []byte, lim Limits) (*Dataset, error) {
	if len(b) > jsonBytesMax {
		return nil, fmt.Errorf("read the Native DICOM Model: %w", ErrLimit)
	}
	dec := xml.NewDecoder(bytes.NewReader(b))
	p := xmlParser{modelParser{what: "Native DICOM Model", offset: dec.InputOffset, lim: lim.filled()}, dec}
	if !tagsWithin(b, xmlTagBytesMax) {
		return nil, p.over("an XML tag is too long")
	}
	d, err := p.document()
	if err != nil {
		return nil, err
	}
	d.declareUTF8()
	return d, nil
}

// tagsWithin tells whether every tag of an XML document has at most n bytes. The decoder keeps all XML attributes of a tag, at many times their size.
func tagsWithin(b []byte, n int) bool {
	start, quote := -1, byte(0) // of the tag; 0: not within quotes
	for i, c := range b {
		switch {
		case start < 0:
			if c == '<' {
				start = i
			}
			continue
		case i-start >= n:
			return false
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '>':
			start = -1
		case (c == '"' || c == '\'') && b[start+1] != '!': // comments hold what they like
			quote = c
		}
	}
	return true
}

type xmlParser struct {
	modelParser
	dec *xml.Decoder
}

// document reads the root element and sees that nothing but white space and comments follows.
func (p *xmlParser) document() (*Dataset, error) {
	root, err := p.child()
	if err != nil {
		return nil, err
	}
	if root == nil || root.Name.Local != "NativeDicomModel" {
		return nil, p.bad("the root element is not NativeDicomModel")
	}
	d, err := p.dataset(0, nil)
	if err != nil {
		return nil, err
	}
	for {
		t, err := p.dec.Token()
		if err == io.EOF {
			return d, nil
		}
		if _, more := t.(xml.StartElement); err != nil || more {
			return nil, p.bad("something follows the model")
		}
	}
}

// child returns the next element within the one being read, nil at its end.
func (p *xmlParser) child() (*xml.StartElement, error) {
	for {
		t, err := p.dec.Token()
		if err != nil {
			return nil, p.bad("not valid XML")
		}
		switch t := t.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		}
	}
}

func xmlAttr(el *xml.StartElement, name string) string {
	for _, a := range el.Attr {
		if strings.EqualFold(a.Name.Local, name) {
			return a.Value
		}
	}
	return ""
}

// text returns the characters up to the end of the element being read, which has no elements within.
func (p *xmlParser) text() (string, error) {
	var b strings.Builder
	for {
		t, err := p.dec.Token()
		if err != nil {
			return "", p.bad("not valid XML")
		}
		switch t := t.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.StartElement:
			return "", p.bad("an element where text is expected")
		case xml.EndElement:
			return b.String(), nil
		}
	}
}

// skip passes an element that PS3.19 does not know.
func (p *xmlParser) skip() error {
	for depth := 1; depth > 0; {
		t, err := p.dec.Token()
		if err != nil {
			return p.bad("not valid XML")
		}
		switch t.(type) {
		case xml.StartElement:
			if depth++; depth > p.lim.Depth {
				return p.over("nests too deep")
			}
		case xml.EndElement:
			depth--
		}
	}
	return nil
}

// dataset reads the attributes within the root element or an item.
func (p *xmlParser) dataset(depth int, parent *Dataset) (*Dataset, error) {
	d := &Dataset{parent: parent}
	var els []Element
	creators := map[int]string{} // of private elements that have no block yet, by index
	for {
		start, err := p.child()
		if err != nil {
			return nil, err
		}
		if start == nil {
			break
		}
		if start.Name.Local != "DicomAttribute" {
			if err := p.skip(); err != nil {
				return nil, err
			}
			continue
		}
		el, err := p.attribute(start, depth, d)
		if err != nil {
			return nil, err
		}
		if creator := xmlAttr(start, "privateCreator"); creator != "" && el.Tag.IsPrivate() && el.Tag.Element() < 0x0100 && !el.Tag.IsPrivateCreator() {
			creators[len(els)] = strings.TrimSpace(creator)
		}
		els = append(els, el)
	}
	if els, ok := intoBlocks(els, creators); ok {
		d.adopt(els)
		return d, nil
	}
	return nil, p.over("no private block is free")
}

// attribute reads one DicomAttribute.
func (p *xmlParser) attribute(start *xml.StartElement, depth int, d *Dataset) (Element, error) {
	hex := xmlAttr(start, "tag")
	tag, ok := ParseTag(hex)
	if !ok || len(hex) != 8 || tag.Group() == 0xFFFE {
		return Element{}, p.bad("a tag is not eight hexadecimal digits")
	}
	if p.elements++; p.elements > p.lim.Elements {
		return Element{}, p.over("too many elements")
	}
	p.tag = tag
	el := Element{Tag: tag, VR: VROf(tag)}
	if s := xmlAttr(start, "vr"); s != "" {
		if el.VR, ok = ParseVR(s); !ok {
			return el, p.bad("unknown VR")
		}
	}
	values, err := p.values(&el, depth, d)
	if err != nil {
		return el, err
	}
	p.tag = tag
	return el, p.assign(&el, values)
}

// intoBlocks gives the elements that creators names by index the block of their creator (PS3.5 7.8.1), and reserves blocks that are missing; false
// when a group has none left.
func intoBlocks(els []Element, creators map[int]string) ([]Element, bool) {
	if len(creators) == 0 {
		return els, true
	}
	type owner struct {
		group uint16
		name  string
	}
	blocks, taken := map[owner]uint16{}, map[Tag]bool{}
	for i := range els {
		if el := &els[i]; el.Tag.IsPrivateCreator() {
			blocks[owner{el.Tag.Group(), trimString(string(el.Value))}], taken[el.Tag] = el.Tag.Element(), true
		}
	}
	for i := range len(els) {
		name, loose := creators[i]
		if !loose {
			continue
		}
		o := owner{els[i].Tag.Group(), name}
		block, have := blocks[o]
		if !have {
			for block = 0x10; taken[NewTag(o.group, block)]; block++ {
			}
			if block > 0xFF {
				return nil, false
			}
			blocks[o], taken[NewTag(o.group, block)] = block, true
			els = append(els, Element{Tag: NewTag(o.group, block), VR: LO, Value: padded([]byte(name), LO)})
		}
		els[i].Tag = NewTag(o.group, block<<8|els[i].Tag.Element())
	}
	return els, true
}

// values reads what is within a DicomAttribute: values for assign, or a binary value straight into el.
func (p *xmlParser) values(el *Element, depth int, d *Dataset) (values []any, err error) {
	for {
		child, err := p.child()
		if err != nil || child == nil {
			return values, err
		}
		var v any
		switch child.Name.Local {
		case "Value":
			v, err = p.text()
		case "PersonName":
			v, err = p.person()
		case "Item":
			if depth+1 > p.lim.Depth {
				return nil, p.over("sequences nest too deep")
			}
			p.elements++
			v, err = p.dataset(depth+1, d)
		case "InlineBinary":
			el.Value, err = p.inline()
		case "BulkData":
			el.Bulk = &Bulk{URI: xmlAttr(child, "uri")}
			if el.Bulk.URI == "" {
				el.Bulk.URI = xmlAttr(child, "uuid")
			}
			err = p.skip()
		default:
			err = p.skip()
		}
		if err != nil {
			return nil, err
		}
		if v != nil {
			if values, err = p.place(values, child, v); err != nil {
				return nil, err
			}
		}
	}
}

// place puts v where its number says, from 1; without one it comes behind the others.
func (p *xmlParser) place(values []any, el *xml.StartElement, v any) ([]any, error) {
	n := len(values) + 1
	if s := xmlAttr(el, "number"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			return nil, p.bad("the number of a value is none")
		}
	}
	// A number far behind the last one would cost memory and stand for nothing.
	if n > p.lim.Items || n > len(values)+valueGapMax {
		return nil, p.over("too many values")
	}
	for len(values) < n {
		values = append(values, nil)
	}
	values[n-1] = v
	return values, nil
}

func (p *xmlParser) inline() ([]byte, error) {
	s, err := p.text()
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		return nil, p.bad("InlineBinary is not base64")
	}
	return b, nil
}

// person reads the component groups of a name.
func (p *xmlParser) person() (name, error) {
	var n name
	for {
		group, err := p.child()
		if err != nil || group == nil {
			return n, err
		}
		i := indexOf(group.Name.Local, "Alphabetic", "Ideographic", "Phonetic")
		if i < 0 {
			if err := p.skip(); err != nil {
				return n, err
			}
			continue
		}
		if n[i], err = p.components(); err != nil {
			return n, err
		}
	}
}

// components reads the components of one group and joins them as PS3.5 6.2.1 does.
func (p *xmlParser) components() (string, error) {
	var parts [5]string
	for {
		el, err := p.child()
		if err != nil {
			return "", err
		}
		if el == nil {
			return strings.TrimRight(strings.Join(parts[:], "^"), "^"), nil
		}
		text, err := p.text()
		if err != nil {
			return "", err
		}
		if i := indexOf(el.Name.Local, "FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix"); i >= 0 {
			parts[i] = text
		}
	}
}

func indexOf(s string, list ...string) int {
	for i := range list {
		if list[i] == s {
			return i
		}
	}
	return -1
}
