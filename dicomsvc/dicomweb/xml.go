package dicomweb

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"osteon/dicomsvc/dicom"
)

// appendXML appends d as a document of the Native DICOM Model (PS3.19 §A.1), in UTF-8. uri names the bulk
// values; one without a name is sent empty. Characters that XML cannot hold become U+FFFD.
func appendXML(dst []byte, d *dicom.Dataset, uri bulkURI) []byte {
	dst = append(dst, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
		`<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">`...)
	x := xmlWriter{dst: dst, uri: uri}
	x.dataset(d)
	return append(x.dst, "</NativeDicomModel>\n"...)
}

// xmlWriter walks a data set. Its depth is bounded by that of the parser that made the data set.
type xmlWriter struct {
	dst  []byte
	uri  bulkURI
	path []dicom.PathStep
}

func (x *xmlWriter) text(parts ...string) {
	for _, s := range parts {
		x.dst = append(x.dst, s...)
	}
}

func (x *xmlWriter) dataset(d *dicom.Dataset) {
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.Tag.IsGroupLength() {
			continue
		}
		x.element(d, el)
	}
}

func (x *xmlWriter) element(d *dicom.Dataset, el *dicom.Element) {
	vr := el.VR
	x.text(`<DicomAttribute tag="`, el.Tag.Hex(), `" vr="`, vr.String(), `"`)
	if keyword := el.Tag.Keyword(); keyword != "" {
		x.text(` keyword="`, keyword, `"`)
	}
	if creator := privateCreator(d, el.Tag); creator != "" {
		x.text(` privateCreator="`)
		x.escaped(creator)
		x.text(`"`)
	}
	if el.IsEmpty() {
		x.text("/>")
		return
	}
	x.text(">")
	name := ""
	if el.Bulk != nil || vr.IsBinary() {
		name = x.uri(x.path, el)
	}
	switch {
	case name != "":
		x.text(`<BulkData uri="`)
		x.escaped(name)
		x.text(`"/>`)
	case el.Bulk != nil:
	case vr == dicom.SQ:
		x.items(el)
	case vr.IsBinary():
		x.text("<InlineBinary>")
		x.dst = base64.StdEncoding.AppendEncode(x.dst, el.Value)
		x.text("</InlineBinary>")
	case el.Tag == dicom.SpecificCharacterSet:
		x.value(1, "ISO_IR 192") // whatever it was: the document is in UTF-8
	default:
		values := d.Strings(el.Tag)
		for n, value := range values {
			switch {
			case value == "" && n == len(values)-1 && n > 0:
				x.value(n+1, "") // it counts
			case value == "":
			case vr == dicom.PN:
				x.person(n+1, value)
			default:
				x.value(n+1, value)
			}
		}
	}
	x.text("</DicomAttribute>")
}

func (x *xmlWriter) value(n int, value string) {
	x.text(`<Value number="`, strconv.Itoa(n), `">`)
	x.escaped(value)
	x.text("</Value>")
}

func (x *xmlWriter) items(el *dicom.Element) {
	for n, item := range el.Items {
		x.text(`<Item number="`, strconv.Itoa(n+1), `">`)
		x.path = append(x.path, dicom.PathStep{Tag: el.Tag, Item: n})
		x.dataset(item)
		x.path = x.path[:len(x.path)-1]
		x.text("</Item>")
	}
}

// person writes the component groups and components of a name (PS3.5 §6.2.1).
func (x *xmlWriter) person(n int, value string) {
	groups := [...]string{"Alphabetic", "Ideographic", "Phonetic"}
	components := [...]string{"FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix"}
	x.text(`<PersonName number="`, strconv.Itoa(n), `">`)
	for g, group := range strings.SplitN(value, "=", len(groups)) {
		if strings.Trim(group, "^ ") == "" {
			continue
		}
		x.text("<", groups[g], ">")
		for c, component := range strings.SplitN(group, "^", len(components)) {
			if component = strings.TrimSpace(component); component == "" {
				continue
			}
			x.text("<", components[c], ">")
			x.escaped(component)
			x.text("</", components[c], ">")
		}
		x.text("</", groups[g], ">")
	}
	x.text("</PersonName>")
}

// escaped writes text for an element or an attribute value.
func (x *xmlWriter) escaped(s string) {
	for _, c := range s {
		switch {
		case c == '&':
			x.text("&amp;")
		case c == '<':
			x.text("&lt;")
		case c == '>':
			x.text("&gt;")
		case c == '"':
			x.text("&quot;")
		case c == '\t' || c == '\n' || c == '\r':
			x.text("&#", strconv.Itoa(int(c)), ";")
		case c < 0x20 || c == 0xFFFE || c == 0xFFFF:
			x.dst = utf8.AppendRune(x.dst, utf8.RuneError)
		default:
			x.dst = utf8.AppendRune(x.dst, c)
		}
	}
}

// privateCreator returns who reserved the block of a private tag in d (PS3.5 §7.8.1), or "".
func privateCreator(d *dicom.Dataset, tag dicom.Tag) string {
	if !tag.IsPrivate() || tag.Element() < 0x1000 {
		return ""
	}
	return d.String(dicom.NewTag(tag.Group(), tag.Element()>>8))
}
