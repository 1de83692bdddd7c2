package dicom

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// ToUTF8 turns all text of the data set and its items to UTF-8 and sets Specific Character Set to ISO_IR 192 where one was named or
// some text is not ASCII. Bytes that mean nothing in their character set become U+FFFD.
func (d *Dataset) ToUTF8() {
	// UTF-8 takes any text, so that this cannot fail.
	_ = d.recode(utf8Term, "")
}

// SetCharset turns all text of the data set and its items to the character set named, a value of Specific Character Set. Fails with
// ErrCharset when some text does not fit; the data set is then changed in part.
func (d *Dataset) SetCharset(value string) error {
	return d.recode(value, value)
}

// recode writes text in the character set target. named is what the data set is to say even when all its text is ASCII.
func (d *Dataset) recode(target, named string) error {
	from := d.Charset()
	had := d.Get(SpecificCharacterSet) != nil
	to := charsetOf(target)
	wide := false
	for i := range d.Elements {
		el := &d.Elements[i]
		vr := el.effectiveVR()
		if !vr.IsText() || plain(el.Value) {
			continue
		}
		text := decodeText(el.Value, func() string { return from }, vr)
		text = strings.TrimRight(text, " \x00")
		b, ok := to.encode(text, vr)
		if !ok {
			return fmt.Errorf("element %v: %w", el.Tag, ErrCharset)
		}
		wide = wide || !plain(b)
		el.Value = padded(b, vr)
	}
	// Items are done while they still inherit the old set.
	for i := range d.Elements {
		for _, item := range d.Elements[i].Items {
			if item.parent == nil {
				item.parent = d
			}
			if err := item.recodeItem(to, target, &wide); err != nil {
				return err
			}
		}
	}
	switch {
	case had || wide || named != "":
		if target == "" {
			d.Remove(SpecificCharacterSet)
			break
		}
		d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: padded([]byte(target), CS)})
	}
	return nil
}

// recodeItem recodes an item, which afterwards inherits its character set.
func (d *Dataset) recodeItem(to charset, target string, wide *bool) error {
	if err := d.recode(target, ""); err != nil {
		return err
	}
	if d.Get(SpecificCharacterSet) != nil {
		*wide = true
		d.Remove(SpecificCharacterSet)
	}
	return nil
}

// encode writes text, which is UTF-8, in the character set; ok is false when it does not fit.
func (c charset) encode(text string, vr VR) (b []byte, ok bool) {
	if isASCII(text) {
		return []byte(text), true
	}
	switch c.kind {
	case charsetUTF8:
		return []byte(text), true
	case charsetGB18030:
		return encodeBy(simplifiedchinese.GB18030, text)
	case charsetGBK:
		return encodeBy(simplifiedchinese.GBK, text)
	case charsetGuess:
		return nil, false
	}
	return c.encodeISO(text, vr)
}

func encodeBy(e encoding.Encoding, text string) ([]byte, bool) {
	b, err := e.NewEncoder().Bytes([]byte(text))
	return b, err == nil
}

// encodeISO writes text with code extensions. G0 is back to its first designation before every delimiter and at the end (PS3.5 6.1.2.5.3).
func (c charset) encodeISO(text string, vr VR) ([]byte, bool) {
	var out []byte
	g0, g1 := c.g0, c.g1
	for _, r := range text {
		if r < 0x80 {
			if g0 != c.g0 {
				out, g0 = append(out, designation(c.g0)...), c.g0
			}
			out = append(out, byte(r))
			if r < 0x20 || r == '\\' && !vr.single() || vr == PN && (r == '^' || r == '=') {
				g1 = c.g1
			}
			continue
		}
		set, code := c.place(r, g1)
		if set == setNone {
			return nil, false
		}
		if set == setKanji || set == setSupplementKanji {
			if g0 != set {
				out, g0 = append(out, designation(set)...), set
			}
		} else if g1 != set {
			out, g1 = append(out, designation(set)...), set
		}
		out = append(out, code...)
	}
	if g0 != c.g0 {
		out = append(out, designation(c.g0)...)
	}
	return out, true
}

// place finds a set that has r, the current one first.
func (c charset) place(r rune, g1 codeSet) (codeSet, []byte) {
	for _, s := range append([]codeSet{g1, c.g1}, c.others...) {
		if b := codeIn(s, r); b != nil {
			return s, b
		}
	}
	return setNone, nil
}

// codeIn returns the code of r in the set, nil when it has none.
func codeIn(s codeSet, r rune) []byte {
	var m encoding.Encoding
	switch s {
	case setNone, setASCII, setRomaji:
		return nil
	case setKatakana:
		if r >= 0xFF61 && r <= 0xFF9F {
			return []byte{byte(r-0xFF61) + 0xA1}
		}
		return nil
	case setKanji, setSupplementKanji:
		m = japanese.EUCJP
	case setHangul:
		m = korean.EUCKR
	case setHanzi:
		m = simplifiedchinese.GBK
	default:
		return codeSingle(singleByte(s), r)
	}
	b, err := m.NewEncoder().Bytes(utf8.AppendRune(nil, r))
	if err != nil {
		return nil
	}
	switch {
	case s == setKanji && len(b) == 2 && b[0] != 0x8E:
		return []byte{b[0] & 0x7F, b[1] & 0x7F}
	case s == setSupplementKanji && len(b) == 3:
		return []byte{b[1] & 0x7F, b[2] & 0x7F}
	case (s == setHangul || s == setHanzi) && len(b) == 2 && b[0] >= 0xA1 && b[1] >= 0xA1:
		return b
	}
	return nil
}

func codeSingle(m *charmap.Charmap, r rune) []byte {
	if b, ok := m.EncodeRune(r); ok && b >= 0x80 {
		return []byte{b}
	}
	return nil
}

func designation(s codeSet) string {
	for _, e := range escapes {
		if e.set == s && e.seq != "\x1b$(B" {
			return e.seq
		}
	}
	return ""
}
