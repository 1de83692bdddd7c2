package dicomweb

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strconv"
	"strings"
)

const mediaWADL = "application/vnd.sun.wadl+xml"

// capability is one line of what this service offers.
type capability struct {
	paths   []string
	id      string
	method  string
	in, out []string
	query   []string
}

var (
	everySearch   = []string{"{attribute}", "limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "accept", "charset"}
	everyDocument = []string{mediaDICOMJSON, mediaJSON, mediaRelated + `; type="` + mediaDICOMXML + `"`}
	everyImage    = []string{mediaJPEG, mediaPNG, mediaGIF}
	inStudy       = "studies/{study}"
	inSeries      = inStudy + "/series/{series}"
	inInstance    = inSeries + "/instances/{instance}"
)

// capabilities is the table behind Retrieve Capabilities. TestCapabilitiesAreServed asks for each.
var capabilities = []capability{
	{[]string{"studies", inStudy}, "StoreInstances", http.MethodPost, []string{mediaDICOM, mediaRelated + `; type="` + mediaDICOM + `"`,
		mediaRelated + `; type="` + mediaDICOMJSON + `"`, mediaRelated + `; type="` + mediaDICOMXML + `"`, mediaDICOMJSON, mediaDICOMXML},
		[]string{mediaDICOMJSON, mediaJSON, mediaDICOMXML}, nil},
	{[]string{"studies"}, "SearchForStudies", http.MethodGet, nil, everyDocument, everySearch},
	{[]string{"series", inStudy + "/series"}, "SearchForSeries", http.MethodGet, nil, everyDocument, everySearch},
	{[]string{"instances", inStudy + "/instances", inSeries + "/instances"}, "SearchForInstances", http.MethodGet, nil, everyDocument, everySearch},
	{[]string{inStudy, inSeries}, "Retrieve", http.MethodGet, nil, []string{mediaRelated + `; type="` + mediaDICOM + `"; transfer-syntax=*`}, []string{"accept"}},
	{[]string{inInstance}, "RetrieveInstance", http.MethodGet, nil, []string{mediaRelated + `; type="` + mediaDICOM + `"; transfer-syntax=*`, mediaDICOM + "; transfer-syntax=*"}, []string{"accept"}},
	{[]string{inStudy + "/metadata", inSeries + "/metadata", inInstance + "/metadata"}, "RetrieveMetadata", http.MethodGet, nil, everyDocument, []string{"accept", "charset"}},
	{[]string{inStudy + "/bulkdata", inSeries + "/bulkdata", inInstance + "/bulkdata", inInstance + "/bulkdata/{path}"}, "RetrieveBulkdata", http.MethodGet, nil,
		[]string{mediaRelated + `; type="` + mediaOctets + `"; transfer-syntax=*`}, []string{"accept"}},
	{[]string{inStudy + "/pixeldata", inSeries + "/pixeldata", inInstance + "/pixeldata", inInstance + "/frames/{frames}"}, "RetrieveFrames", http.MethodGet, nil,
		[]string{mediaRelated + `; type="` + mediaOctets + `"; transfer-syntax=*`}, []string{"accept"}},
	{[]string{inInstance + "/rendered", inInstance + "/frames/{frames}/rendered"}, "RetrieveRendered", http.MethodGet, nil, everyImage,
		[]string{"accept", "window", "viewport", "quality", "annotation", "iccprofile"}},
	{[]string{inStudy + "/thumbnail", inSeries + "/thumbnail", inInstance + "/thumbnail", inInstance + "/frames/{frames}/thumbnail"}, "RetrieveThumbnail", http.MethodGet, nil, everyImage,
		[]string{"accept", "viewport"}},
	{[]string{"wado"}, "RetrieveByURI", http.MethodGet, nil, append([]string{mediaDICOM}, everyImage...),
		[]string{"requestType", "studyUID", "seriesUID", "objectUID", "contentType", "transferSyntax", "frameNumber", "windowCenter", "windowWidth", "rows", "columns", "imageQuality"}},
}

// The Web Application Description Language, as far as it is used; JSON has the same names.
type (
	wadl struct {
		XMLName   xml.Name      `xml:"http://wadl.dev.java.net/2009/02 application" json:"-"`
		Resources wadlResources `xml:"resources" json:"resources"`
	}
	wadlResources struct {
		Base string         `xml:"base,attr" json:"base"`
		List []wadlResource `xml:"resource" json:"resource"`
	}
	wadlResource struct {
		Path    string       `xml:"path,attr" json:"path"`
		Methods []wadlMethod `xml:"method" json:"method"`
	}
	wadlMethod struct {
		Name     string       `xml:"name,attr" json:"name"`
		ID       string       `xml:"id,attr" json:"id"`
		Request  wadlRequest  `xml:"request" json:"request"`
		Response wadlResponse `xml:"response" json:"response"`
	}
	wadlRequest struct {
		Params []wadlParam `xml:"param" json:"param,omitempty"`
		In     []wadlMedia `xml:"representation" json:"representation,omitempty"`
	}
	wadlResponse struct {
		Out []wadlMedia `xml:"representation" json:"representation"`
	}
	wadlParam struct {
		Name  string `xml:"name,attr" json:"name"`
		Style string `xml:"style,attr" json:"style"`
	}
	wadlMedia struct {
		Type string `xml:"mediaType,attr" json:"mediaType"`
	}
)

func mediaOf(types []string) (out []wadlMedia) {
	for _, t := range types {
		out = append(out, wadlMedia{t})
	}
	return out
}

// describeService puts the table in the form of WADL, one resource for each path.
func describeService(root string) wadl {
	doc := wadl{Resources: wadlResources{Base: root}}
	at := map[string]int{}
	for _, c := range capabilities {
		m := wadlMethod{Name: c.method, ID: c.id, Request: wadlRequest{In: mediaOf(c.in)}, Response: wadlResponse{mediaOf(c.out)}}
		for _, name := range c.query {
			m.Request.Params = append(m.Request.Params, wadlParam{name, "query"})
		}
		for _, path := range c.paths {
			i, have := at[path]
			if !have {
				i = len(doc.Resources.List)
				at[path] = i
				doc.Resources.List = append(doc.Resources.List, wadlResource{Path: path})
			}
			doc.Resources.List[i].Methods = append(doc.Resources.List[i].Methods, m)
		}
	}
	return doc
}

// retrieveCapabilities answers OPTIONS with what the service offers (PS3.18 §8.9): whole, whatever the resource.
func (s *Server) retrieveCapabilities(w http.ResponseWriter, r *http.Request) *problem {
	form, ok := acceptOf(r, "").choose([]offer{{media: mediaWADL}, {media: mediaJSON}, {media: mediaDICOMJSON}, {media: "application/xml"}})
	if !ok {
		return newProblem(http.StatusNotAcceptable, "the capabilities cannot be sent in the media types asked for", "ask for "+mediaWADL+" or application/json")
	}
	doc := describeService(s.rootOf(r))
	var body []byte
	var err error
	if strings.HasSuffix(form.media, "json") {
		body, err = json.Marshal(map[string]wadl{"application": doc})
	} else if body, err = xml.MarshalIndent(doc, "", " "); err == nil {
		body = append([]byte(xml.Header), body...)
	}
	if err != nil {
		return failure(err)
	}
	h := w.Header()
	h.Set("Content-Type", form.media)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	w.Write(body)
	return nil
}
