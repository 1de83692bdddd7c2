package dicomweb

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// searchQuery is a search request (PS3.18 §8.3.4, §10.6.1) in the words of the archive.
type searchQuery struct {
	query dicomsvc.Query
	// limit is how many results the client wants, negative when it did not say.
	limit int
	// all and include say which attributes it wants beyond the required ones.
	all     bool
	include map[dicom.Tag]bool
	// several says that values in other VRs than UI may be lists, too.
	several bool
	// warnings are the texts of the Warning fields to answer with.
	warnings []string
}

// levelOf is the query level of a search resource.
func levelOf(t target) dicomsvc.Level {
	switch t.resource {
	case resStudies:
		return dicomsvc.LevelStudy
	case resSeries:
		return dicomsvc.LevelSeries
	}
	return dicomsvc.LevelImage
}

// parseSearch reads the query string of a search. Whatever is not a parameter of the standard and not an
// attribute is refused, so that a misspelt filter never lists the whole archive.
func parseSearch(t target, params []parameter) (*searchQuery, *problem) {
	q := &searchQuery{limit: -1, include: make(map[dicom.Tag]bool)}
	q.query.Level = levelOf(t)
	q.query.Relational = true
	values := 0
	for _, p := range params {
		q.several = q.several || p.name == "multiplevaluematching" && strings.EqualFold(p.value, "true")
	}
	for _, p := range params {
		var bad *problem
		switch p.name {
		case "limit":
			bad = readCount(&q.limit, p)
		case "offset":
			bad = readCount(&q.query.Offset, p)
		case "includefield":
			bad = q.readInclude(p.value)
		case "fuzzymatching":
			bad = q.readUnsupported(p, "The fuzzymatching parameter is not supported. Only literal matching has been performed.")
		case "emptyvaluematching":
			bad = q.readUnsupported(p, "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed.")
		case "multiplevaluematching":
			bad = q.readUnsupported(p, "")
		case "accept":
		case "charset":
			bad = readCharset(p.value)
		default:
			bad = q.readKey(p, &values)
		}
		if bad != nil {
			return nil, bad
		}
	}
	for _, key := range []struct {
		tag dicom.Tag
		uid string
	}{{dicom.StudyInstanceUID, t.study}, {dicom.SeriesInstanceUID, t.series}} {
		if key.uid != "" {
			q.within(key.tag, key.uid)
		}
	}
	return q, nil
}

// readCount reads limit or offset.
func readCount(to *int, p parameter) *problem {
	n, err := strconv.Atoi(p.value)
	if err != nil || n < 0 {
		return newProblem(http.StatusBadRequest, "parameter "+p.name+" is not a number", "give a whole number from 0")
	}
	*to = n
	return nil
}

// readUnsupported reads a switch that is understood but not offered, or, without a warning, done elsewhere.
func (q *searchQuery) readUnsupported(p parameter, warning string) *problem {
	switch strings.ToLower(p.value) {
	case "true":
		if warning != "" && !slices.Contains(q.warnings, warning) {
			q.warnings = append(q.warnings, warning)
		}
	case "false", "":
	default:
		return newProblem(http.StatusBadRequest, "parameter "+p.name+" is neither true nor false", "give true or false, or leave it out")
	}
	return nil
}

// readCharset checks that the client takes UTF-8, in which everything is sent.
func readCharset(list string) *problem {
	for name := range strings.SplitSeq(list, ",") {
		name, _, _ = strings.Cut(unquote(strings.TrimSpace(name)), ";")
		if strings.EqualFold(name, "utf-8") || strings.EqualFold(name, "utf8") || name == "*" || name == "" {
			return nil
		}
	}
	return newProblem(http.StatusNotAcceptable, "results are sent in UTF-8 alone", "leave the parameter charset out, or set it to utf-8")
}

// readInclude reads one includefield: "all", or a list of attributes.
func (q *searchQuery) readInclude(list string) *problem {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if strings.EqualFold(name, "all") {
			q.all = true
			continue
		}
		if name == "" {
			continue
		}
		path, ok := parseAttribute(name)
		if !ok {
			return newProblem(http.StatusBadRequest, "includefield names "+quote(name)+", which is no attribute",
				"use a keyword of PS3.6, a tag of 8 hexadecimal digits, a path of these joined by dots, or all")
		}
		if len(q.include) < queryParametersMax {
			q.include[path[0]] = true
		}
	}
	return nil
}

// parseAttribute reads keyword or tag, or a path through sequences.
func parseAttribute(name string) ([]dicom.Tag, bool) {
	var path []dicom.Tag
	for step := range strings.SplitSeq(name, ".") {
		tag, ok := parseHexTag(step)
		if !ok {
			tag, ok = dicom.LookupKeyword(step)
		}
		if !ok || len(path) == queryDepthMax {
			return nil, false
		}
		path = append(path, tag)
	}
	for _, tag := range path[:len(path)-1] {
		if vr := dicom.VROf(tag); vr != dicom.SQ && vr != dicom.UN {
			return nil, false
		}
	}
	return path, true
}

// readKey reads a matching key. values counts those in all lists.
func (q *searchQuery) readKey(p parameter, values *int) *problem {
	path, ok := parseAttribute(p.name)
	if !ok {
		return newProblem(http.StatusBadRequest, "parameter "+quote(p.name)+" is neither an attribute nor a parameter of a search",
			"use a keyword of PS3.6 (case counts), a tag of 8 hexadecimal digits, or limit, offset, includefield, fuzzymatching")
	}
	last := path[len(path)-1]
	vr := dicom.VROf(last)
	list, bad := splitValues(p.value, vr, p.name, q.several)
	if bad != nil {
		return bad
	}
	if *values += len(list); *values > queryValuesMax {
		return newProblem(http.StatusBadRequest, "too many values in one query", "ask for at most "+strconv.Itoa(queryValuesMax)+" UIDs at a time")
	}
	q.include[path[0]] = true
	return q.add(&q.query.Keys, path, vr, list, p.name)
}

// splitValues splits a list of UIDs at commas or backslashes. Other values stay whole, for a comma may be part of a name (PS3.18
// §8.3.4.1), unless several values are asked for, which backslashes separate (PS3.4 §C.2.2.2.8).
func splitValues(value string, vr dicom.VR, name string, several bool) ([]string, *problem) {
	if value == "" {
		return nil, nil
	}
	if several && vr != dicom.UI && vr != dicom.LT && vr != dicom.ST && vr != dicom.UT && vr != dicom.UR {
		return strings.Split(value, `\`), nil
	}
	if vr != dicom.UI {
		return []string{value}, nil
	}
	var list []string
	for uid := range strings.FieldsFuncSeq(value, func(c rune) bool { return c == ',' || c == '\\' }) {
		if uid = strings.TrimSpace(uid); uid == "*" {
			return nil, nil
		}
		if !isUID(uid) {
			return nil, newProblem(http.StatusBadRequest, "parameter "+quote(name)+" holds something that is not a UID",
				"give UIDs of at most 64 characters, separated by commas; UIDs take no wildcards")
		}
		list = append(list, uid)
	}
	return list, nil
}

// add puts a key into keys; the tags before the last one are sequences whose item it belongs to.
func (q *searchQuery) add(keys *[]dicomsvc.Key, path []dicom.Tag, vr dicom.VR, values []string, name string) *problem {
	i := slices.IndexFunc(*keys, func(k dicomsvc.Key) bool { return k.Tag == path[0] })
	if len(path) > 1 {
		if i < 0 {
			*keys = append(*keys, dicomsvc.Key{Tag: path[0], VR: dicom.SQ})
			i = len(*keys) - 1
		}
		return q.add(&(*keys)[i].Item, path[1:], vr, values, name)
	}
	switch {
	case i < 0:
		*keys = append(*keys, dicomsvc.Key{Tag: path[0], VR: vr, Values: values})
	case vr == dicom.UI:
		(*keys)[i].Values = append((*keys)[i].Values, values...)
	default:
		return newProblem(http.StatusBadRequest, "attribute "+quote(name)+" is given twice", "give each attribute once")
	}
	return nil
}

// within constrains a unique key to the UID that the path names. A list in the query that does not hold
// it leaves nothing to match.
func (q *searchQuery) within(tag dicom.Tag, uid string) {
	for i := range q.query.Keys {
		key := &q.query.Keys[i]
		if key.Tag != tag {
			continue
		}
		if len(key.Values) > 0 && !slices.Contains(key.Values, uid) {
			q.limit = 0
		}
		key.Values = []string{uid}
		return
	}
	q.query.Keys = append(q.query.Keys, dicomsvc.Key{Tag: tag, VR: dicom.UI, Values: []string{uid}})
}

// isUID tells whether s can name something stored here, in a path or in a query.
func isUID(s string) bool { return dicom.UsableUID(s) }
