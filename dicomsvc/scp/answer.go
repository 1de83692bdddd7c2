package scp

import (
	"slices"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// answer is the identifier of one match (PS3.4 §C.4.1.1.3.2): every requested key, empty when it is not known,
// the unique keys down to the level, Query/Retrieve Level, Retrieve AE Title, and Specific Character Set
// where the text needs one.
func (s *Server) answer(q *request, m *dicomsvc.Match) *dicom.Dataset {
	out := new(dicom.Dataset)
	out.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte("ISO_IR 192")})
	fill(out, q.id, m.Attributes)
	for l := topLevel(q.model); l <= q.level; l++ {
		if el := m.Attributes.Get(uniqueKey(l)); el != nil {
			out.Set(*el)
		}
	}
	out.SetStrings(dicom.QueryRetrieveLevel, q.id.String(dicom.QueryRetrieveLevel))
	out.SetStrings(dicom.RetrieveAETitle, s.cfg.AETitle)
	return inCharset(out, q.id.Charset())
}

// fill puts into out what asked asks for and known holds.
func fill(out, asked, known *dicom.Dataset) {
	for i := range asked.Elements {
		el := &asked.Elements[i]
		switch found := known.Get(el.Tag); {
		case el.Tag.IsGroupLength() || el.Tag == dicom.SpecificCharacterSet:
		case el.Tag.IsPrivateCreator(): // without it nobody knows whose the private keys are
			out.SetStrings(el.Tag, asked.Strings(el.Tag)...)
		case found != nil:
			out.Set(asAsked(el, found))
		default:
			out.Set(dicom.Element{Tag: el.Tag, VR: emptyVR(el)})
		}
	}
}

// asAsked cuts the items of a found sequence down to the keys in the item asked for; all of them when that
// has none (PS3.4 §C.2.2.2.6).
func asAsked(asked, found *dicom.Element) dicom.Element {
	items, err := itemsOf(asked)
	if found.VR != dicom.SQ || err != nil || len(items) == 0 || items[0].Len() == 0 {
		return *found
	}
	out := dicom.Element{Tag: found.Tag, VR: dicom.SQ}
	for _, item := range found.Items {
		cut := new(dicom.Dataset)
		fill(cut, items[0], item)
		out.Items = append(out.Items, cut)
	}
	return out
}

// emptyVR is the VR of an element that is not known: the dictionary's, or what the peer says of others.
func emptyVR(asked *dicom.Element) dicom.VR {
	if vr := dicom.VROf(asked.Tag); vr != dicom.UN {
		return vr
	}
	return asked.VR
}

// inCharset gives out, which is in UTF-8, no character set when it needs none, the one asked for when that
// can carry the text, and else leaves it in UTF-8 (PS3.4 §C.4.1.1.3.2).
func inCharset(out *dicom.Dataset, asked string) *dicom.Dataset {
	if isASCII(out) {
		out.Remove(dicom.SpecificCharacterSet)
		return out
	}
	if asked == "" {
		return out
	}
	if other := out.Clone(); other.SetCharset(asked) == nil {
		return other
	}
	return out
}

func isASCII(d *dicom.Dataset) bool {
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.VR.IsText() && slices.ContainsFunc(el.Value, func(b byte) bool { return b >= 0x80 }) {
			return false
		}
		if slices.ContainsFunc(el.Items, func(item *dicom.Dataset) bool { return !isASCII(item) }) {
			return false
		}
	}
	return true
}
