package dicomweb

import (
	"net/http"
	"strconv"
	"strings"

	"osteon/dicomsvc/dicom"
)

// resource is what a path ends in.
type resource string

const (
	resStudies   resource = "studies" // a search, or a store
	resSeries    resource = "series"
	resInstances resource = "instances"
	resStudy     resource = "study" // everything in it, to retrieve or to store to
	resOneSeries resource = "one series"
	resInstance  resource = "instance"
	resMetadata  resource = "metadata"
	resFrames    resource = "frames"
	resPixels    resource = "pixeldata"
	resBulk      resource = "bulkdata"
	resRendered  resource = "rendered" // an instance, or frames in list
	resThumbnail resource = "thumbnail"
	resRoot      resource = "service" // its capabilities
	resWADO      resource = "wado"    // the URI service
)

// target is a parsed path: the resource and the UIDs in front of it (PS3.18 §10.1).
type target struct {
	resource                resource
	study, series, instance string
	// list is the frame list of resFrames and of what is rendered of it, path the element of resBulk.
	list string
	path []pathStep
}

// methods returns what may be done with the target.
func (t target) methods() []string {
	switch t.resource {
	case resRoot:
		return []string{http.MethodOptions}
	case resStudies, resStudy:
		return []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions}
	}
	return []string{http.MethodGet, http.MethodHead, http.MethodOptions}
}

// route names the kind of target for logs, without any UID.
func (t target) route() string { return string(t.resource) }

// pathStep is one step on the way to a bulk value: an attribute, and the item of the sequence that it is,
// from 1; 0 at the last step.
type pathStep struct {
	tag  dicom.Tag
	item int
}

// parseTarget reads the path below the root of the service. Its problem says which part is at fault.
func parseTarget(path string) (target, *problem) {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	segments := strings.Split(path, "/")
	p := pathReader{rest: segments}
	var t target
	switch p.next() {
	case "":
		t.resource = resRoot
	case "wado":
		t.resource = resWADO
	case "studies":
		return p.studies(t)
	case "series":
		t.resource = resSeries
	case "instances":
		t.resource = resInstances
	default:
		return t, noSuchResource()
	}
	return t, p.end()
}

func noSuchResource() *problem {
	return newProblem(http.StatusNotFound, "no such resource",
		"use /studies, /series or /instances to search, /studies/{study}[/series/{series}[/instances/{instance}]] "+
			"with /metadata, /frames/{list}, /bulkdata/{path}, /rendered or /thumbnail to retrieve")
}

// pathReader takes the segments of a path one by one.
type pathReader struct{ rest []string }

func (p *pathReader) next() string {
	if len(p.rest) == 0 {
		return ""
	}
	s := p.rest[0]
	p.rest = p.rest[1:]
	return s
}

func (p *pathReader) end() *problem {
	if len(p.rest) > 0 {
		return noSuchResource()
	}
	return nil
}

// uid takes a UID that names a resource of the given kind.
func (p *pathReader) uid(to *string, kind string) *problem {
	*to = p.next()
	if !isUID(*to) {
		return newProblem(http.StatusBadRequest, "the "+kind+" Instance UID in the path is not a UID",
			"a UID is at most 64 characters: digits and dots (PS3.5 §9.1); letters, hyphens and underscores are let pass")
	}
	return nil
}

func (p *pathReader) studies(t target) (target, *problem) {
	if len(p.rest) == 0 {
		t.resource = resStudies
		return t, nil
	}
	if bad := p.uid(&t.study, "Study"); bad != nil {
		return t, bad
	}
	if len(p.rest) == 0 {
		t.resource = resStudy
		return t, nil
	}
	switch p.next() {
	case "series":
		return p.series(t)
	case "instances":
		t.resource = resInstances
	case "bulkdata":
		t.resource = resBulk
	case "pixeldata":
		t.resource = resPixels
	case "metadata":
		t.resource = resMetadata
	case "thumbnail":
		t.resource = resThumbnail
	default:
		return t, noSuchResource()
	}
	return t, p.end()
}

func (p *pathReader) series(t target) (target, *problem) {
	if len(p.rest) == 0 {
		t.resource = resSeries
		return t, nil
	}
	if bad := p.uid(&t.series, "Series"); bad != nil {
		return t, bad
	}
	if len(p.rest) == 0 {
		t.resource = resOneSeries
		return t, nil
	}
	switch p.next() {
	case "instances":
		return p.instances(t)
	case "bulkdata":
		t.resource = resBulk
	case "pixeldata":
		t.resource = resPixels
	case "metadata":
		t.resource = resMetadata
	case "thumbnail":
		t.resource = resThumbnail
	default:
		return t, noSuchResource()
	}
	return t, p.end()
}

func (p *pathReader) instances(t target) (target, *problem) {
	if len(p.rest) == 0 {
		t.resource = resInstances
		return t, nil
	}
	if bad := p.uid(&t.instance, "SOP"); bad != nil {
		return t, bad
	}
	if len(p.rest) == 0 {
		t.resource = resInstance
		return t, nil
	}
	switch p.next() {
	case "metadata":
		t.resource = resMetadata
	case "pixeldata":
		t.resource = resPixels
	case "frames":
		t.resource = resFrames
		t.list = p.next()
		if t.list != "" && len(p.rest) > 0 {
			return p.render(t)
		}
	case "bulkdata":
		t.resource = resBulk
		if len(p.rest) > 0 {
			return t, p.bulk(&t)
		}
	case "rendered":
		t.resource = resRendered
	case "thumbnail":
		t.resource = resThumbnail
	default:
		return t, noSuchResource()
	}
	return t, p.end()
}

// render takes what is behind a frame list.
func (p *pathReader) render(t target) (target, *problem) {
	switch p.next() {
	case "rendered":
		t.resource = resRendered
	case "thumbnail":
		t.resource = resThumbnail
	default:
		return t, noSuchResource()
	}
	return t, p.end()
}

// bulk takes the way to a bulk value: tag, then item and tag for every level of nesting.
func (p *pathReader) bulk(t *target) *problem {
	bad := newProblem(http.StatusBadRequest, "the bulk data path cannot be read",
		"use a BulkDataURI as it stands in the metadata: the tag in 8 hexadecimal digits, or "+
			"sequence tag / item number from 1 / tag")
	for {
		tag, ok := parseHexTag(p.next())
		if !ok || len(t.path) >= pathDepthMax {
			return bad
		}
		step := pathStep{tag: tag}
		if len(p.rest) == 0 {
			t.path = append(t.path, step)
			return nil
		}
		item, err := strconv.Atoi(p.next())
		if err != nil || item < 1 || item > pathItemMax || len(p.rest) == 0 {
			return bad
		}
		step.item = item
		t.path = append(t.path, step)
	}
}

// parseHexTag reads a tag of 8 hexadecimal digits.
func parseHexTag(s string) (dicom.Tag, bool) {
	if len(s) != 8 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return dicom.Tag(n), err == nil
}

// parseFrames reads a list of frame numbers, from 1, in the order asked for; a number may be repeated
// (PS3.18 §10.1.1).
func parseFrames(list string) ([]int, *problem) {
	var frames []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || field[0] == '+' {
			return nil, newProblem(http.StatusBadRequest, "the frame list cannot be read",
				"give frame numbers from 1, separated by commas: /frames/1,2,3")
		}
		if len(frames) == partsMax {
			return nil, newProblem(http.StatusBadRequest, "too many frames in one request",
				"ask for at most "+strconv.Itoa(partsMax)+" frames at a time")
		}
		frames = append(frames, n)
	}
	return frames, nil
}
