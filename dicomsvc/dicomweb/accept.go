package dicomweb

import (
	"net/http"
	"strings"

	"osteon/dicomsvc/dicom"
)

// acceptable is what a client will take: the ranges of the accept query parameter, which are tried
// first (PS3.18 §8.7.8), and those of the Accept header field. A request with neither takes anything.
type acceptable struct {
	tiers [][]mediaRange
}

// acceptOf reads what r accepts; query is the value of its accept parameters, joined by commas.
func acceptOf(r *http.Request, query string) acceptable {
	var a acceptable
	if ranges := parseMediaRanges(query); len(ranges) > 0 {
		a.tiers = append(a.tiers, ranges)
	}
	if header := r.Header.Values("Accept"); len(header) > 0 {
		if ranges := parseMediaRanges(strings.Join(header, ",")); len(ranges) > 0 {
			a.tiers = append(a.tiers, ranges)
		}
	}
	if len(a.tiers) == 0 {
		a.tiers = [][]mediaRange{{{kind: "*/*", quality: 1000}}}
	}
	return a
}

// offer is a form in which a resource can be sent.
type offer struct {
	media     string // of the body, or of each part
	multipart bool
	syntax    string // of the pixels or the data set; empty where there is none
	// list says that a request for the bare media type may be answered with a multipart, because there
	// is more than one part to send.
	list bool
}

// contentType is the value of the Content-Type field of one part, or of a body without parts.
func (o offer) contentType() string {
	if o.syntax == "" {
		return o.media
	}
	return o.media + "; transfer-syntax=" + o.syntax
}

// choose returns the offer that the client likes best: the highest quality, then the client's order,
// then the order of offers. The quality of an offer is that of the most specific range that names it
// (RFC 9110 §12.5.1).
func (a acceptable) choose(offers []offer) (offer, bool) {
	for _, ranges := range a.tiers {
		best, bestQuality, bestRank := -1, 0, 0
		for i, o := range offers {
			quality, rank := qualityOf(ranges, o)
			if quality > bestQuality || quality > 0 && quality == bestQuality && rank < bestRank {
				best, bestQuality, bestRank = i, quality, rank
			}
		}
		if best >= 0 {
			return offers[best], true
		}
	}
	return offer{}, false
}

// qualityOf returns the quality of o, times ten so that there is room below a range for what it takes
// only for want of better, and the place of the range in the client's list.
func qualityOf(ranges []mediaRange, o offer) (quality, rank int) {
	specific := -1
	for i, m := range ranges {
		level, lesser, ok := match(m, o)
		if !ok || level <= specific {
			continue
		}
		specific = level
		quality, rank = m.quality*10-lesser, i
	}
	return max(quality, 0), rank
}

// match tells whether m takes o, how specifically it says so, and by how much o is less than m wants.
func match(m mediaRange, o offer) (level, lesser int, ok bool) {
	switch {
	case m.kind == "*/*":
		level = 0
	case m.kind == "multipart/*" && o.multipart:
		level = 1
	case m.kind == mediaRelated && o.multipart:
		level = 2
		if inner := strings.ToLower(m.param("type")); inner != "" {
			if !mediaMatches(inner, o.media) {
				return 0, 0, false
			}
			level = 3
		}
	case m.kind == o.media && (!o.multipart || o.list):
		level = 3
	case strings.HasSuffix(m.kind, "/*") && mediaMatches(m.kind, o.media) && (!o.multipart || o.list):
		level = 1
	default:
		return 0, 0, false
	}
	if o.syntax == "" {
		return level, 0, true
	}
	switch wanted := m.param("transfer-syntax"); {
	case wanted == o.syntax:
		return level + 4, 0, true
	case wanted == "*":
		return level + 1, 0, true
	case wanted != "":
		return 0, 0, false
	case strings.Contains(m.kind+m.param("type"), "/*") || m.kind == mediaRelated && m.param("type") == "":
		// A wildcard means the default, Explicit VR Little Endian, and takes the rest for want of it.
		if o.syntax != dicom.ExplicitVRLittleEndian {
			return level, 1, true
		}
		return level, 0, true
	case o.media == mediaDICOM || o.media == mediaOctets:
		return level + 4, 0, o.syntax == dicom.ExplicitVRLittleEndian
	}
	return level, 0, true
}

// mediaMatches tells whether pattern, which may end in a star, names media.
func mediaMatches(pattern, media string) bool {
	if pattern == "*/*" || pattern == media {
		return true
	}
	main, found := strings.CutSuffix(pattern, "*")
	return found && strings.HasSuffix(main, "/") && strings.HasPrefix(media, main)
}

// gzipAccepted tells whether the answer may be compressed with gzip.
func gzipAccepted(r *http.Request) bool {
	accepted := false
	for _, entry := range strings.Split(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, params, _ := strings.Cut(entry, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding != "gzip" && coding != "x-gzip" && coding != "*" {
			continue
		}
		quality := 1000
		if name, value, _ := strings.Cut(strings.TrimSpace(params), "="); strings.EqualFold(strings.TrimSpace(name), "q") {
			quality = parseQuality(strings.TrimSpace(value))
		}
		if coding != "*" {
			return quality > 0
		}
		accepted = quality > 0
	}
	return accepted
}
