package dicomweb

import (
	"net/http"
	"strings"
)

// wadoURI answers the URI service (PS3.18 §9): one instance, named by query parameters. It becomes the request for the resource that
// RESTful clients name by path: an instance, or what is rendered of it.
func (s *Server) wadoURI(w http.ResponseWriter, r *request) *problem {
	q := map[string]string{}
	for _, p := range r.params {
		if _, have := q[p.name]; !have {
			q[p.name] = p.value
		}
	}
	if q["requestType"] != "WADO" {
		return newProblem(http.StatusBadRequest, "the parameter requestType is not WADO", "give requestType=WADO, studyUID, seriesUID and objectUID")
	}
	for _, uid := range []struct {
		to   *string
		name string
	}{{&r.study, "studyUID"}, {&r.series, "seriesUID"}, {&r.instance, "objectUID"}} {
		if *uid.to = q[uid.name]; !isUID(*uid.to) {
			return newProblem(http.StatusBadRequest, "the parameter "+uid.name+" is missing or not a UID", "give studyUID, seriesUID and objectUID, each once")
		}
	}
	if q["anonymize"] != "" && q["anonymize"] != "no" {
		return newProblem(http.StatusBadRequest, "instances are not de-identified here", "leave the parameter anonymize out, and de-identify what you get")
	}
	if q["charset"] != "" {
		if bad := readCharset(q["charset"]); bad != nil {
			return bad
		}
	}
	if q["presentationUID"] != "" || q["presentationSeriesUID"] != "" {
		return newProblem(http.StatusBadRequest, "presentation states are not applied", "leave presentationUID and presentationSeriesUID out")
	}
	kind := q["contentType"]
	if kind == "" {
		return s.wadoDefault(w, r, q)
	}
	if media := parseMediaRanges(kind); len(media) > 0 && strings.HasPrefix(media[0].kind, "image/") {
		return s.wadoImage(w, r, q, kind)
	}
	return s.wadoInstance(w, r, q, kind)
}

// wadoDefault answers without contentType: an image as JPEG, what is none as it is (PS3.18 §9.1.2.2.1).
func (s *Server) wadoDefault(w http.ResponseWriter, r *request, q map[string]string) *problem {
	in, bad := s.find(r)
	if bad != nil {
		return bad
	}
	if table, err := s.archive.Frames(r.Context(), r.who, in); err == nil && table != nil && table.Len() > 0 && q["transferSyntax"] == "" {
		bad := s.wadoImage(w, r, q, mediaJPEG)
		if bad == nil || bad.status != http.StatusNotAcceptable {
			return bad
		}
	}
	return s.wadoInstance(w, r, q, mediaDICOM)
}

// wadoInstance answers with the instance. Without transferSyntax it is sent in Explicit VR Little Endian when that can be done, else as it is stored: clients
// of this service do not say that they take any.
func (s *Server) wadoInstance(w http.ResponseWriter, r *request, q map[string]string, kinds string) *problem {
	r.resource, r.list = resInstance, ""
	ranges := parseMediaRanges(kinds)
	for i := range ranges {
		syntax := "*"
		if q["transferSyntax"] != "" {
			syntax = q["transferSyntax"]
		}
		if ranges[i].params == nil {
			ranges[i].params = map[string]string{}
		}
		if ranges[i].params["transfer-syntax"] == "" {
			ranges[i].params["transfer-syntax"] = syntax
		}
	}
	explicit := []mediaRange{{kind: mediaDICOM, quality: 1000}}
	r.accept.tiers = [][]mediaRange{ranges}
	if q["transferSyntax"] == "" && len(ranges) > 0 && ranges[0].kind == mediaDICOM {
		r.accept.tiers = [][]mediaRange{explicit, ranges}
	}
	return s.retrieve(w, r)
}

// wadoImage answers with a rendered image, in the words of the rendered resource (PS3.18 §9.1.2.2.2).
func (s *Server) wadoImage(w http.ResponseWriter, r *request, q map[string]string, kinds string) *problem {
	r.resource, r.list = resRendered, q["frameNumber"]
	if strings.Contains(r.list, ",") {
		return newProblem(http.StatusBadRequest, "the parameter frameNumber is not one number", "give one frame number from 1")
	}
	r.params = nil
	add := func(name, value string) { r.params = append(r.params, parameter{name, value}) }
	if q["windowCenter"] != "" || q["windowWidth"] != "" {
		add("window", q["windowCenter"]+","+q["windowWidth"]+",linear")
	}
	if columns, rows := q["columns"], q["rows"]; columns != "" || rows != "" {
		if columns == "" {
			columns = rows
		}
		if rows == "" {
			rows = columns
		}
		add("viewport", columns+","+rows)
	}
	if q["region"] != "" {
		return newProblem(http.StatusBadRequest, "the parameter region is not offered", "use the rendered resource, whose viewport names a part in pixels")
	}
	for from, to := range map[string]string{"imageQuality": "quality", "annotation": "annotation"} {
		if q[from] != "" {
			add(to, q[from])
		}
	}
	r.accept.tiers = [][]mediaRange{parseMediaRanges(kinds)}
	return s.rendered(w, r)
}
