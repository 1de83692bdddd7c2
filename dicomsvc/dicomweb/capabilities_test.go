package dicomweb

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strings"
	"testing"
)

// TestCapabilitiesAreServed asks for everything that Retrieve Capabilities says, in every media type, of an instance that has it.
//
// Behaviours 53, 66.
func TestCapabilitiesAreServed(t *testing.T) {
	s := newService(t, nil)
	in := s.load(t, fileCT1)[0]
	var doc wadl
	r := s.do(t, http.MethodOptions, "/", nil).want(t, 200)
	if err := xml.Unmarshal(r.body, &doc); err != nil || r.Header.Get("Content-Type") != mediaWADL {
		t.Fatalf("%v: %s %s", err, r.Header.Get("Content-Type"), clip(r.body))
	}
	if doc.Resources.Base != s.root {
		t.Errorf("base %q, want %q", doc.Resources.Base, s.root)
	}
	var again struct{ Application wadl }
	r = s.do(t, http.MethodOptions, "/studies", nil, "Accept", "application/json", "X-Forwarded-Host", "pacs.example.org").want(t, 200)
	if err := json.Unmarshal(r.body, &again); err != nil || len(again.Application.Resources.List) != len(doc.Resources.List) || !strings.HasPrefix(again.Application.Resources.Base, "http://pacs.example.org/") {
		t.Errorf("%v: %s", err, clip(r.body))
	}
	s.do(t, http.MethodOptions, "/", nil, "Accept", "image/png").want(t, 406)
	s.get(t, "/").want(t, 404)
	fill := strings.NewReplacer("{study}", in.StudyInstanceUID, "{series}", in.SeriesInstanceUID, "{instance}", in.SOPInstanceUID, "{frames}", "1", "{path}", "7FE00010")
	asked := 0
	for _, resource := range doc.Resources.List {
		path := "/" + fill.Replace(resource.Path)
		if resource.Path == "wado" {
			path += "?requestType=WADO&studyUID=" + in.StudyInstanceUID + "&seriesUID=" + in.SeriesInstanceUID + "&objectUID=" + in.SOPInstanceUID
		}
		for _, m := range resource.Methods {
			if m.Name == http.MethodPost {
				continue
			}
			for _, media := range m.Response.Out {
				s.get(t, path, "Accept", media.Type).want(t, 200)
				if resource.Path != "wado" {
					s.get(t, path+"?accept="+strings.NewReplacer(" ", "%20", "+", "%2B").Replace(media.Type), "Accept", "text/html").want(t, 200)
				}
				s.do(t, http.MethodHead, path, nil, "Accept", media.Type).want(t, 200)
				asked++
			}
			for _, p := range m.Request.Params {
				if strings.HasPrefix(m.ID, "SearchFor") && p.Name != "{attribute}" && p.Name != "accept" && p.Name != "charset" {
					s.get(t, path+"?"+p.Name+"=").want(t, map[bool]int{true: 400, false: 200}[p.Name == "limit" || p.Name == "offset"])
				}
			}
		}
	}
	if asked < 40 {
		t.Errorf("only %d representations", asked)
	}
}
