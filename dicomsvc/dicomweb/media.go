package dicomweb

import (
	"strconv"
	"strings"
)

// Media types of PS3.18 §8.7 that this front end reads or writes.
const (
	mediaDICOM     = "application/dicom"
	mediaDICOMJSON = "application/dicom+json"
	mediaDICOMXML  = "application/dicom+xml"
	mediaJSON      = "application/json"
	mediaOctets    = "application/octet-stream"
	mediaRelated   = "multipart/related"
)

// mediaRange is one entry of an Accept header field, or a Content-Type.
type mediaRange struct {
	kind    string // type/subtype in lower case
	params  map[string]string
	quality int // 0 to 1000
}

func (m mediaRange) param(name string) string { return m.params[name] }

// parseMediaRanges reads a comma separated list of media ranges. Parameter values may be quoted or not,
// also where they hold a slash (RFC 2387 wants quotes, half of the clients send none). What cannot be
// read is ignored, as PS3.18 §8.7.7 says.
func parseMediaRanges(list string) []mediaRange {
	var ranges []mediaRange
	for _, entry := range splitQuoted(list, ',') {
		if len(ranges) == acceptRangesMax {
			break
		}
		if m, ok := parseMedia(entry); ok {
			ranges = append(ranges, m)
		}
	}
	return ranges
}

// parseMedia reads one media type or range with its parameters.
func parseMedia(s string) (mediaRange, bool) {
	fields := splitQuoted(s, ';')
	kind := strings.ToLower(strings.TrimSpace(fields[0]))
	main, sub, found := strings.Cut(kind, "/")
	if !found || main == "" || sub == "" || strings.ContainsAny(kind, " \t\"") {
		return mediaRange{}, false
	}
	m := mediaRange{kind: kind, quality: 1000}
	for _, field := range fields[1:] {
		name, value, _ := strings.Cut(field, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		value = unquote(strings.TrimSpace(value))
		switch {
		case name == "":
		case name == "q":
			m.quality = parseQuality(value)
		default:
			if m.params == nil {
				m.params = make(map[string]string, 2)
			}
			if _, have := m.params[name]; !have {
				m.params[name] = value
			}
		}
	}
	return m, true
}

// parseQuality reads a weight of RFC 9110 §12.4.2; what it cannot read counts as one.
func parseQuality(s string) int {
	q, err := strconv.ParseFloat(s, 64)
	if err != nil || q < 0 || q > 1 || q != q {
		return 1000
	}
	return int(q*1000 + 0.5)
}

// splitQuoted splits s at sep outside of double quotes.
func splitQuoted(s string, sep byte) []string {
	var fields []string
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			fields = append(fields, s[start:i])
			start = i + 1
		}
	}
	return append(fields, s[start:])
}

// unquote removes the quotes and escapes of a quoted string.
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	s = s[1 : len(s)-1]
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
