package catalog

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"osteon/dicomsvc/dicom"
)

// This file is attribute matching, PS3.4 §C.2.2.2: single value, list of UIDs, universal, wild
// card, range and sequence matching. Nothing in it backtracks over more than one wild card, so the
// time to match is bounded by pattern times value.

// matcher is a compiled key.
type matcher struct {
	tag   dicom.Tag
	vr    dicom.VR
	any   bool // universal: matches whatever is there, or nothing
	tests []func(value string) bool
	item  []matcher // of a sequence
}

// compile makes a matcher of a key.
func compile(k Key) matcher {
	m := matcher{tag: k.Tag, vr: k.VR}
	if m.vr == 0 || m.vr == dicom.UN {
		m.vr = dicom.VROf(k.Tag)
	}
	if m.vr == dicom.SQ {
		m.any = true
		for _, sub := range k.Item {
			if ignored(sub.Tag) {
				continue
			}
			c := compile(sub)
			m.item = append(m.item, c)
			m.any = m.any && c.any
		}
		return m
	}
	values := keyValues(k)
	if len(values) == 0 {
		m.any = true
		return m
	}
	if exactOnly(m.vr) && len(values) > 8 {
		m.tests = []func(string) bool{oneOf(values)}
		return m
	}
	for _, value := range values {
		m.tests = append(m.tests, compileValue(m.vr, value))
	}
	return m
}

// ignored reports whether an element of an identifier is no matching key: group lengths, and what
// PS3.4 §C.4.1.1.3 gives a meaning of its own.
func ignored(tag dicom.Tag) bool {
	switch tag {
	case dicom.SpecificCharacterSet, dicom.TimezoneOffsetFromUTC, dicom.QueryRetrieveLevel, dicom.RetrieveAETitle,
		dicom.InstanceAvailability, dicom.StorageMediaFileSetID, dicom.StorageMediaFileSetUID:
		return true
	}
	return tag.IsGroupLength()
}

// keyValues returns the values of a key that restrict anything, none for a universal key.
func keyValues(k Key) []string {
	var values []string
	for _, value := range k.Values {
		value = strings.Trim(value, " \x00")
		if value != "" && strings.Trim(value, "*") == "" {
			return nil // matches whatever other values do not
		}
		if value != "" {
			values = append(values, value)
		}
	}
	return values
}

// exactOnly reports whether values of the VR match only as they are (PS3.4 §C.2.2.2.1).
func exactOnly(vr dicom.VR) bool { return vr == dicom.UI }

func oneOf(values []string) func(string) bool {
	set := make(map[string]struct{}, len(values))
	for _, v := range values {
		set[v] = struct{}{}
	}
	return func(value string) bool {
		_, found := set[value]
		return found
	}
}

// compileValue makes a test of one value of a key.
func compileValue(vr dicom.VR, want string) func(string) bool {
	switch vr {
	case dicom.UI:
		return func(value string) bool { return value == want }
	case dicom.DA, dicom.TM, dicom.DT:
		return compileTime(vr, want)
	case dicom.PN:
		return compileName(want)
	case dicom.IS, dicom.DS, dicom.US, dicom.SS, dicom.UL, dicom.SL, dicom.UV, dicom.SV, dicom.FL, dicom.FD:
		return compileNumber(want)
	}
	if !hasWildcard(want) {
		return func(value string) bool { return value == want }
	}
	p := parsePattern(want)
	return p.match
}

func hasWildcard(s string) bool { return strings.ContainsAny(s, "*?") }

// compileTime makes a test for dates and times: a range, open at either side or not, of which a
// single value is the narrowest (PS3.4 §C.2.2.2.1 and .5). What a bound leaves out of a time counts
// as its first or last moment. Offsets from UTC within DT values are not compared.
func compileTime(vr dicom.VR, want string) func(string) bool {
	if hasWildcard(want) { // against the standard, and sent all the same
		p := parsePattern(want)
		return p.match
	}
	low, high := splitRange(vr, want)
	low, high = plainTime(vr, low), plainTime(vr, high)
	if high != "" {
		high += "\xff"
	}
	return func(value string) bool {
		value = plainTime(vr, value)
		if value == "" {
			return false
		}
		return value >= low && (high == "" || value < high)
	}
}

// splitRange returns the bounds that a value of a key names, "" for an open side.
func splitRange(vr dicom.VR, want string) (low, high string) {
	from := 0
	for {
		i := strings.IndexByte(want[from:], '-')
		if i < 0 {
			return want, want
		}
		i += from
		if vr == dicom.DT && isOffset(want, i) {
			from = i + 1
			continue
		}
		return want[:i], want[i+1:]
	}
}

// isOffset reports whether the hyphen at i in a DT value begins an offset from UTC, -HHMM, and no
// range.
func isOffset(s string, i int) bool {
	end := i + 5
	if i < 4 || end > len(s) || end < len(s) && s[end] != '-' {
		return false
	}
	hour, err1 := strconv.Atoi(s[i+1 : i+3])
	minute, err2 := strconv.Atoi(s[i+3 : end])
	return err1 == nil && err2 == nil && hour <= 14 && minute < 60
}

// plainTime returns the digits that dates and times compare by.
func plainTime(vr dicom.VR, s string) string {
	s = strings.Trim(s, " \x00")
	switch vr {
	case dicom.DA:
		return strings.ReplaceAll(s, ".", "") // 1993.08.22 of ACR-NEMA
	case dicom.TM:
		return strings.ReplaceAll(s, ":", "")
	}
	if i := strings.LastIndexAny(s, "+-"); i > 0 {
		s = s[:i]
	}
	return s
}

// compileNumber makes a test that compares as numbers where both are, so that "01" is "1".
func compileNumber(want string) func(string) bool {
	n, err := strconv.ParseFloat(want, 64)
	return func(value string) bool {
		if value == want {
			return true
		}
		if err != nil {
			return false
		}
		v, err := strconv.ParseFloat(value, 64)
		return err == nil && v == n
	}
}

// compileName makes a test for a PN: case, accents and trailing carets do not count. A key of one
// component group may match any group of the name; one of several matches group by group.
func compileName(want string) func(string) bool {
	groups := strings.SplitN(want, "=", maxNames)
	tests := make([]func(string) bool, len(groups))
	for i, group := range groups {
		tests[i] = compileGroup(foldName(group))
	}
	return func(value string) bool {
		have := strings.SplitN(value, "=", maxNames)
		if len(tests) == 1 {
			return slices.ContainsFunc(have, func(group string) bool { return tests[0](foldName(group)) })
		}
		for i, test := range tests {
			group := ""
			if i < len(have) {
				group = foldName(have[i])
			}
			if groups[i] != "" && !test(group) {
				return false
			}
		}
		return true
	}
}

func compileGroup(want string) func(string) bool {
	if !hasWildcard(want) {
		return func(value string) bool { return value == want }
	}
	p := parsePattern(want)
	return func(value string) bool {
		if p.match(value) {
			return true
		}
		// SMITH is SMITH^^^^, so SMITH^* matches it.
		return p.match(value + "^^^^"[min(4, strings.Count(value, "^")):])
	}
}

// pattern is a text with wild cards in normal form: of a run of * and ? the ? come first, then at
// most one *.
type pattern struct {
	runes []rune
	least int // characters that a match has at least
}

const (
	anyText      = -1 // *
	anyCharacter = -2 // ?
)

func parsePattern(s string) pattern {
	var p pattern
	star := false
	for _, r := range s {
		switch r {
		case '*':
			star = true
			continue
		case '?':
			p.runes = append(p.runes, anyCharacter)
			p.least++
			continue
		}
		if star {
			p.runes, star = append(p.runes, anyText), false
		}
		p.runes = append(p.runes, r)
		p.least++
	}
	if star {
		p.runes = append(p.runes, anyText)
	}
	return p
}

// match reports whether all of s matches. It walks s once and returns to the latest * only.
func (p pattern) match(s string) bool {
	if len(s) < p.least {
		return false
	}
	at, star, retry := 0, -1, ""
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case at < len(p.runes) && p.runes[at] == anyText:
			star, retry = at, s
			at++
			continue
		case at < len(p.runes) && (p.runes[at] == anyCharacter || p.runes[at] == r):
			at++
			s = s[size:]
			continue
		case star < 0:
			return false
		}
		_, size = utf8.DecodeRuneInString(retry)
		retry = retry[size:]
		s, at = retry, star+1
	}
	for at < len(p.runes) && p.runes[at] == anyText {
		at++
	}
	return at == len(p.runes)
}

// literalPrefix returns what every match of the value of a key begins with, and whether that is
// all of it.
func literalPrefix(want string) (prefix string, whole bool) {
	if i := strings.IndexAny(want, "*?"); i >= 0 {
		return want[:i], false
	}
	return want, true
}

// matches reports whether an attribute matches. A zero attribute stands for one that is absent.
func (m *matcher) matches(a attribute) bool {
	if m.any {
		return true
	}
	if m.vr == dicom.SQ {
		return m.matchesItem(a)
	}
	for _, value := range valuesOf(a) {
		for _, test := range m.tests {
			if test(value) {
				return true
			}
		}
	}
	return false
}

// matchesItem reports whether one item matches all keys (PS3.4 §C.2.2.2.6).
func (m *matcher) matchesItem(a attribute) bool {
	found := false
	eachItem(a.value, func(set []byte) bool {
		found = true
		for i := range m.item {
			sub, _ := findAttribute(set, m.item[i].tag)
			found = found && m.item[i].matches(sub)
		}
		return !found
	})
	return found
}

// valuesOf returns the values of an attribute as texts without padding.
func valuesOf(a attribute) []string {
	switch a.vr {
	case dicom.LT, dicom.ST, dicom.UT, dicom.UR:
		return []string{trimmed(a.value)}
	case dicom.US, dicom.SS, dicom.UL, dicom.SL, dicom.UV, dicom.SV, dicom.FL, dicom.FD:
		return numbersOf(a)
	}
	if len(a.value) == 0 {
		return nil
	}
	values := strings.Split(trimmed(a.value), `\`)
	for i := range values {
		values[i] = strings.Trim(values[i], " ")
	}
	return values
}

// numbersOf returns binary numbers in decimal.
func numbersOf(a attribute) []string {
	var values []string
	for b := a.value; ; {
		var text string
		n := 0
		switch {
		case a.vr == dicom.US && len(b) >= 2:
			n, text = 2, strconv.FormatUint(uint64(binary.LittleEndian.Uint16(b)), 10)
		case a.vr == dicom.SS && len(b) >= 2:
			n, text = 2, strconv.FormatInt(int64(int16(binary.LittleEndian.Uint16(b))), 10)
		case a.vr == dicom.UL && len(b) >= 4:
			n, text = 4, strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b)), 10)
		case a.vr == dicom.SL && len(b) >= 4:
			n, text = 4, strconv.FormatInt(int64(int32(binary.LittleEndian.Uint32(b))), 10)
		case a.vr == dicom.FL && len(b) >= 4:
			n, text = 4, strconv.FormatFloat(float64(math.Float32frombits(binary.LittleEndian.Uint32(b))), 'g', -1, 32)
		case a.vr == dicom.UV && len(b) >= 8:
			n, text = 8, strconv.FormatUint(binary.LittleEndian.Uint64(b), 10)
		case a.vr == dicom.SV && len(b) >= 8:
			n, text = 8, strconv.FormatInt(int64(binary.LittleEndian.Uint64(b)), 10)
		case a.vr == dicom.FD && len(b) >= 8:
			n, text = 8, strconv.FormatFloat(math.Float64frombits(binary.LittleEndian.Uint64(b)), 'g', -1, 64)
		}
		if n == 0 {
			return values
		}
		values = append(values, text)
		b = b[n:]
	}
}
