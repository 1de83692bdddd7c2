package dicom

import (
	"strings"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// FoldName returns s as person names are compared: case folded, Latin, Greek and Cyrillic accents stripped, in Unicode normal form C, runs of
// spaces as one, no spaces around ^ and = and no empty components at the end of a group (PS3.5 6.2.1). Wildcards pass unchanged.
func FoldName(s string) string {
	if !isASCII(s) {
		s = norm.NFD.String(s)
		s = strings.Map(func(r rune) rune {
			if r >= 0x300 && r <= 0x36F {
				return -1
			}
			return r
		}, s)
		s = norm.NFC.String(cases.Fold().String(s))
		return tidyName(s)
	}
	return tidyName(strings.ToLower(s))
}

// tidyName drops what is not significant in a name.
func tidyName(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		c := s[i]
		switch {
		case c == 0:
			continue
		case c == ' ':
			if len(b) == 0 || b[len(b)-1] == ' ' || b[len(b)-1] == '^' || b[len(b)-1] == '=' {
				continue
			}
		case c == '^' || c == '=' || c == '\\':
			b = trimEnd(b, c != '^')
		}
		b = append(b, c)
	}
	return string(trimEnd(b, true))
}

// trimEnd drops spaces at the end of b and, at the end of a group, the delimiters of empty components.
func trimEnd(b []byte, group bool) []byte {
	for len(b) > 0 && (b[len(b)-1] == ' ' || group && b[len(b)-1] == '^') {
		b = b[:len(b)-1]
	}
	return b
}
