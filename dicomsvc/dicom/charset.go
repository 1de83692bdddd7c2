package dicom

import (
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// utf8Term is the defined term of UTF-8 (PS3.3 C.12.1.1.2).
const utf8Term = "ISO_IR 192"

type charsetKind uint8

const (
	charsetISO     charsetKind = iota // ISO 2022 with the sets listed; none listed means ASCII
	charsetUTF8                       // ISO_IR 192
	charsetGB18030                    // GB18030
	charsetGBK                        // GBK
	charsetGuess                      // no or unknown term: UTF-8 when valid, else Latin-1
)

// codeSet is one coded character set that can be designated as G0 or G1 (PS3.3 Tables C.12-2 to C.12-4).
type codeSet uint8

const (
	setNone codeSet = iota
	setASCII
	setRomaji   // ISO-IR 14, JIS X 0201 G0
	setKatakana // ISO-IR 13, JIS X 0201 G1
	setLatin1
	setLatin2
	setLatin3
	setLatin4
	setCyrillic
	setArabic
	setGreek
	setHebrew
	setLatin5
	setLatin9
	setThai
	setKanji           // ISO-IR 87, JIS X 0208, two bytes in G0
	setSupplementKanji // ISO-IR 159, JIS X 0212, two bytes in G0
	setHangul          // ISO-IR 149, KS X 1001, two bytes in G1
	setHanzi           // ISO-IR 58, GB 2312, two bytes in G1
)

// charset is the meaning of one value of Specific Character Set.
type charset struct {
	kind charsetKind
	g0   codeSet
	g1   codeSet
	// others are the sets that the second and later values allow by escape sequences, in their order.
	others []codeSet
}

// isoTerms maps the number of an ISO registration to the sets it designates at the start of a value.
func isoTerm(number string) (g0, g1 codeSet, ok bool) {
	switch number {
	case "6":
		return setASCII, setNone, true
	case "100":
		return setASCII, setLatin1, true
	case "101":
		return setASCII, setLatin2, true
	case "109":
		return setASCII, setLatin3, true
	case "110":
		return setASCII, setLatin4, true
	case "144":
		return setASCII, setCyrillic, true
	case "127":
		return setASCII, setArabic, true
	case "126":
		return setASCII, setGreek, true
	case "138":
		return setASCII, setHebrew, true
	case "148":
		return setASCII, setLatin5, true
	case "203":
		return setASCII, setLatin9, true
	case "13", "14":
		return setRomaji, setKatakana, true
	case "166":
		return setASCII, setThai, true
	case "87":
		return setASCII, setKanji, true
	case "159":
		return setASCII, setSupplementKanji, true
	case "149":
		return setASCII, setHangul, true
	case "58":
		return setASCII, setHanzi, true
	}
	return setNone, setNone, false
}

// charsetOf reads a value of Specific Character Set; it forgives the misspellings seen in the field ("ISO-IR 100", "ISO 2022 GBK", "UTF8").
func charsetOf(value string) charset {
	switch value {
	case "":
		return charset{kind: charsetGuess}
	case "ISO_IR 100":
		return charset{g0: setASCII, g1: setLatin1}
	case utf8Term:
		return charset{kind: charsetUTF8}
	}
	terms := strings.Split(value, "\\")
	c := charset{g0: setASCII}
	for i, term := range terms {
		name := termName(term)
		switch name {
		case "192", "UTF8":
			return charset{kind: charsetUTF8}
		case "GB18030":
			return charset{kind: charsetGB18030}
		case "GBK", "GB2312":
			return charset{kind: charsetGBK}
		case "":
			continue
		}
		g0, g1, ok := isoTerm(name)
		switch {
		case !ok && len(terms) == 1:
			return charset{kind: charsetGuess}
		case !ok:
		case i == 0 && !twoBytes(g1):
			c.g0, c.g1 = g0, g1
		default:
			c.others = append(c.others, g1)
		}
	}
	return c
}

// termName reduces a defined term to what tells it apart: the registration number or the name.
func termName(term string) string {
	s := strings.ToUpper(strings.Trim(term, " \x00"))
	s = strings.NewReplacer("_", "", " ", "", "-", "").Replace(s)
	s = strings.TrimPrefix(s, "ISO2022")
	s = strings.TrimPrefix(s, "ISO")
	return strings.TrimPrefix(s, "IR")
}

func twoBytes(s codeSet) bool { return s >= setKanji }

// decodeText turns the value bytes of an element into UTF-8; what cannot be decoded becomes U+FFFD. set is asked only when the bytes are not plain ASCII.
func decodeText(b []byte, set func() string, vr VR) string {
	if plain(b) {
		return string(b)
	}
	c := charsetOf(set())
	switch c.kind {
	case charsetUTF8:
		return validText(b)
	case charsetGB18030:
		return decodeBy(simplifiedchinese.GB18030, b)
	case charsetGBK:
		return decodeBy(simplifiedchinese.GBK, b)
	case charsetGuess:
		return guess(b, vr)
	}
	if c.g1 == setNone && len(c.others) == 0 && noEscape(b) {
		return guess(b, vr)
	}
	return c.decode(b, vr)
}

// plain reports whether the bytes are ASCII without escape sequences.
func plain(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 || c == 0x1B {
			return false
		}
	}
	return true
}

func noEscape(b []byte) bool {
	for _, c := range b {
		if c == 0x1B {
			return false
		}
	}
	return true
}

// guess decodes 8-bit text of which nobody says what it is in. UTF-8 needs no escape sequences, and text with them is
// seldom valid UTF-8 beyond ASCII.
func guess(b []byte, vr VR) string {
	high := slices.ContainsFunc(b, func(c byte) bool { return c >= utf8.RuneSelf })
	if !noEscape(b) && !(high && utf8.Valid(b)) {
		c := charset{g0: setASCII, g1: setLatin1}
		return c.decode(b, vr)
	}
	if utf8.Valid(b) {
		return string(b)
	}
	return latin1(b)
}

func validText(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

func latin1(b []byte) string {
	var out strings.Builder
	for _, c := range b {
		out.WriteRune(rune(c))
	}
	return out.String()
}

func decodeBy(e encoding.Encoding, b []byte) string {
	s, err := e.NewDecoder().Bytes(b)
	if err != nil {
		return validText(b)
	}
	return validText(s)
}

// isoDecoder holds the designations while a value is decoded (PS3.5 6.1.2.5).
type isoDecoder struct {
	c      charset
	g0, g1 codeSet
	out    strings.Builder
	run    []byte // pending bytes of a two-byte set
	runSet codeSet
}

// decode handles code extensions. Designations return to those of the first value at every delimiter: line breaks, tabs, and, where the VR
// has them, backslash, caret and equals sign (PS3.5 6.1.2.5.3).
func (c charset) decode(b []byte, vr VR) string {
	d := isoDecoder{c: c}
	d.reset()
	for len(b) > 0 {
		b = b[d.step(b, vr):]
	}
	d.flush()
	return d.out.String()
}

func (d *isoDecoder) reset() {
	d.g0, d.g1 = d.c.g0, d.c.g1
	if d.g1 != setNone {
		return
	}
	// Text that leaves the escape sequence out after a delimiter can mean only one thing when one set is allowed.
	for _, s := range d.c.others {
		if s != setKanji && s != setSupplementKanji {
			d.g1 = s
			return
		}
	}
}

// step decodes what b begins with and returns how many bytes that was.
func (d *isoDecoder) step(b []byte, vr VR) int {
	c := b[0]
	switch {
	case c == 0x1B:
		if n := d.escape(b); n > 0 {
			return n
		}
	case c < 0x20:
		if c == '\n' || c == '\r' || c == '\f' || c == '\t' {
			d.reset()
		}
	case c < 0x80 && twoBytes(d.g0):
		return d.pair(b, d.g0, 0x80)
	case c < 0x80:
		d.emit(d.ascii(c))
		if c == '\\' && !vr.single() || vr == PN && (c == '^' || c == '=') {
			d.reset()
		}
		return 1
	case twoBytes(d.g1):
		return d.pair(b, d.g1, 0)
	case c >= 0x80:
		d.emit(high(d.g1, c))
		return 1
	}
	d.emit(rune(c))
	return 1
}

func (d *isoDecoder) ascii(c byte) rune {
	if d.g0 == setRomaji && c == 0x7E {
		return '\u203E'
	}
	return rune(c)
}

// pair collects one character of a two-byte set, to be decoded with its neighbours.
func (d *isoDecoder) pair(b []byte, set codeSet, raise byte) int {
	if len(b) < 2 || b[1] < 0x20 {
		d.emit(utf8.RuneError)
		return 1
	}
	if len(d.run) > 0 && d.runSet != set {
		d.flush()
	}
	d.runSet = set
	if set == setSupplementKanji {
		d.run = append(d.run, 0x8F)
	}
	d.run = append(d.run, b[0]|raise, b[1]|raise)
	return 2
}

func (d *isoDecoder) emit(r rune) {
	d.flush()
	d.out.WriteRune(r)
}

func (d *isoDecoder) flush() {
	if len(d.run) == 0 {
		return
	}
	d.out.WriteString(decodeBy(multiByte(d.runSet), d.run))
	d.run = d.run[:0]
}

func multiByte(s codeSet) encoding.Encoding {
	switch s {
	case setHangul:
		return korean.EUCKR
	case setHanzi:
		return simplifiedchinese.GBK
	}
	return japanese.EUCJP
}

// escape applies the escape sequence b begins with and returns its length, 0 when it is none that DICOM knows.
func (d *isoDecoder) escape(b []byte) int {
	for _, e := range escapes {
		if strings.HasPrefix(string(b[:min(len(b), 4)]), e.seq) {
			if e.g1 {
				d.g1 = e.set
			} else {
				d.g0 = e.set
			}
			return len(e.seq)
		}
	}
	return 0
}

// escapes are the sequences of PS3.3 Tables C.12-3 and C.12-4, the longer ones first, and three obsolete designations of the same sets.
var escapes = [...]struct {
	seq string
	set codeSet
	g1  bool
}{
	{"\x1b$)C", setHangul, true},
	{"\x1b$)A", setHanzi, true},
	{"\x1b$(D", setSupplementKanji, false},
	{"\x1b$(B", setKanji, false},
	{"\x1b$(C", setHangul, false},
	{"\x1b$(A", setHanzi, false},
	{"\x1b$B", setKanji, false},
	{"\x1b$@", setKanji, false},
	{"\x1b$A", setHanzi, false},
	{"\x1b(B", setASCII, false},
	{"\x1b(J", setRomaji, false},
	{"\x1b)I", setKatakana, true},
	{"\x1b-A", setLatin1, true},
	{"\x1b-B", setLatin2, true},
	{"\x1b-C", setLatin3, true},
	{"\x1b-D", setLatin4, true},
	{"\x1b-L", setCyrillic, true},
	{"\x1b-G", setArabic, true},
	{"\x1b-F", setGreek, true},
	{"\x1b-H", setHebrew, true},
	{"\x1b-M", setLatin5, true},
	{"\x1b-b", setLatin9, true},
	{"\x1b-T", setThai, true},
}

// high decodes one byte above 0x7F in a single-byte set.
func high(s codeSet, c byte) rune {
	if m := singleByte(s); m != nil {
		return m.DecodeByte(c)
	}
	if s == setKatakana && c >= 0xA1 && c <= 0xDF {
		return 0xFF61 + rune(c) - 0xA1
	}
	if s == setNone || s == setASCII {
		return rune(c) // 8-bit text where only ASCII was announced
	}
	return utf8.RuneError
}

func singleByte(s codeSet) *charmap.Charmap {
	switch s {
	case setLatin1:
		return charmap.ISO8859_1
	case setLatin2:
		return charmap.ISO8859_2
	case setLatin3:
		return charmap.ISO8859_3
	case setLatin4:
		return charmap.ISO8859_4
	case setCyrillic:
		return charmap.ISO8859_5
	case setArabic:
		return charmap.ISO8859_6
	case setGreek:
		return charmap.ISO8859_7
	case setHebrew:
		return charmap.ISO8859_8
	case setLatin5:
		return charmap.ISO8859_9
	case setLatin9:
		return charmap.ISO8859_15
	case setThai:
		return charmap.Windows874
	}
	return nil
}
