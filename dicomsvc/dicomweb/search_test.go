package dicomweb

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// Behaviours 55, 56, 58.
func TestSearchResources(t *testing.T) {
	s := newService(t, nil)
	ct := s.load(t, fileCT1, fileCT2)[0]
	s.load(t, fileOther)
	study, series := "/studies/"+ct.StudyInstanceUID, "/series/"+ct.SeriesInstanceUID
	always := map[string][]string{ // required return attributes (58)
		"study":    {"00080020", "00080030", "00080050", "00080061", "00080090", "00100010", "00100020", "00100030", "00100040", "0020000D", "00200010", "00201206", "00201208", "00081190"},
		"series":   {"00080060", "0020000E", "00200011", "00201209", "00081190", "0020000D"},
		"instance": {"00080016", "00080018", "0020000D", "0020000E", "00200013", "00280010", "00280011", "00280100", "00081190"},
	}
	tests := []struct {
		path   string
		n      int
		url    string // of the first result
		levels []string
		not    string // an attribute that is not sent unasked
	}{
		{"/studies", 2, study, []string{"study"}, "0020000E"},
		{"/studies/", 2, study, []string{"study"}, "0020000E"},
		{study + "/series", 1, study + series, []string{"series"}, "00100010"},
		{study + "/instances", 2, "", []string{"series", "instance"}, "00100010"},
		{study + series + "/instances", 2, "", []string{"instance"}, "00080060"},
		{"/series", 2, "", []string{"study", "series"}, "00080018"},
		{"/instances", 3, "", []string{"study", "series", "instance"}, "00180050"},
	}
	for _, tt := range tests {
		r := s.get(t, tt.path).want(t, 200)
		if got := r.Header.Get("Content-Type"); got != "application/dicom+json" {
			t.Errorf("%s: Content-Type %q", tt.path, got)
		}
		list := r.list(t)
		if len(list) != tt.n {
			t.Errorf("%s: %d results, want %d", tt.path, len(list), tt.n)
			continue
		}
		for _, item := range list {
			for _, level := range tt.levels {
				for _, tag := range always[level] {
					if _, have := item[tag]; !have {
						t.Errorf("%s: no %s (%s)", tt.path, tag, level)
					}
				}
			}
			if _, have := item[tt.not]; have {
				t.Errorf("%s: %s is sent unasked", tt.path, tt.not)
			}
			if got := item.first("00080005"); got != "ISO_IR 192" {
				t.Errorf("%s: character set %q", tt.path, got)
			}
			if !strings.HasPrefix(item.first("00081190"), s.root+"/studies/") {
				t.Errorf("%s: Retrieve URL %q", tt.path, item.first("00081190"))
			}
		}
		if tt.url != "" && !strings.Contains(string(r.body), s.root+tt.url+`"`) {
			t.Errorf("%s: no Retrieve URL %s", tt.path, tt.url)
		}
	}
	for _, path := range []string{"/studies?PatientID=nobody", "/studies/1.2.3/series", "/studies/1.2.3/instances", "/studies?limit=0", study + "/series?StudyInstanceUID=1.2.3"} {
		if list := s.get(t, path).want(t, 200).list(t); len(list) != 0 { // 55, 56
			t.Errorf("%s: %d results", path, len(list))
		}
	}
}

// Behaviour 58.
func TestSearchParameters(t *testing.T) {
	s := newService(t, nil)
	ct := s.load(t, fileCT1, fileCT2)[0]
	other := s.load(t, fileOther)[0]
	uids := ct.StudyInstanceUID + "," + other.StudyInstanceUID
	id := s.archive.item(other).facts.Patient.String(dicom.PatientID)
	tests := []struct {
		path string
		n    int
		have string
	}{
		{"/studies?StudyInstanceUID=" + uids, 2, ""},
		{"/studies?StudyInstanceUID=" + url.QueryEscape(strings.ReplaceAll(uids, ",", `\`)), 2, ""},
		{"/studies?0020000D=" + ct.StudyInstanceUID, 1, ""},
		{"/studies?0020000d=" + ct.StudyInstanceUID, 1, ""},
		{"/studies?StudyInstanceUID=" + ct.StudyInstanceUID + "&StudyInstanceUID=" + other.StudyInstanceUID, 2, ""},
		{"/studies?StudyInstanceUID=", 2, ""},
		{"/studies?StudyInstanceUID=*", 2, ""},
		{"/studies?limit=1", 1, ""},
		{"/studies?limit=1&offset=1", 1, ""},
		{"/studies?offset=2", 0, ""},
		{"/studies?includefield=all&limit=1", 1, "00080005"},
		{"/series?includefield=SeriesDate,00080031&includefield=Manufacturer", 2, "00080021"},
		{"/instances?includefield=PixelSpacing", 3, "00200013"},
		{"/series?RequestAttributesSequence.ScheduledProcedureStepID=none", 0, ""},
		{"/series?00400275.00400009=none", 0, ""},
		{"/studies?multiplevaluematching=true&PatientID=nobody%5C" + url.QueryEscape(id), 1, ""},
		{"/studies?PatientID=nobody%5C" + url.QueryEscape(id), 0, ""},
		{"/studies?fuzzymatching=false&accept=application/dicom+json&charset=utf-8", 2, ""},
	}
	for _, tt := range tests {
		list := s.get(t, tt.path).want(t, 200).list(t)
		if len(list) != tt.n {
			t.Errorf("%s: %d results, want %d", tt.path, len(list), tt.n)
		}
		for _, item := range list {
			if _, have := item[tt.have]; tt.have != "" && !have {
				t.Errorf("%s: no %s in %v", tt.path, tt.have, item)
			}
		}
	}
	for _, bad := range []string{
		"limit=x", "limit=-1", "offset=", "offset=1e9", "includefield=Nonsense", "includefield=StudyDate.PatientID", "fuzzymatching=maybe",
		"PatientName2=x", "patientid=1", "orderby=StudyDate", "=x", "PatientID=%zz", "%zz=1", "PatientID=1&PatientID=2",
		"StudyInstanceUID=../../x", "StudyInstanceUID=1.2.3*", "StudyInstanceUID=" + strings.Repeat("1", 65), "SOPInstanceUID=1..2",
		"StudyDate.PatientID=1", "%3Cimg%20src=x", "0020000=1", "00400275.=1", strings.Repeat("00400275.", 20) + "00400009=1",
	} {
		r := s.get(t, "/studies?"+bad).want(t, 400)
		if !strings.Contains(r.Header.Get("Content-Type"), "json") || strings.Contains(string(r.body), "<img") {
			t.Errorf("%s: %s %s", bad, r.Header.Get("Content-Type"), r.body)
		}
		var p struct{ Detail, Where, Remedy string }
		if err := json.Unmarshal(r.body, &p); err != nil || p.Detail == "" || p.Where == "" || p.Remedy == "" {
			t.Errorf("%s: problem %s", bad, r.body)
		}
	}
	s.get(t, "/studies?charset=iso-8859-1").want(t, 406)
	if r := s.get(t, "/studies?limit=bad", "Accept", "text/plain").want(t, 400); !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("Content-Type %q", r.Header.Get("Content-Type"))
	}
	s.get(t, "/studies?StudyInstanceUID="+strings.Repeat("1,", urlBytesMax/2)).want(t, 414)
	s.get(t, "/studies?StudyInstanceUID="+strings.Repeat("1,", queryValuesMax)).want(t, 200)
	s.get(t, "/studies?StudyInstanceUID="+strings.Repeat("1,", queryValuesMax+1)).want(t, 400)
	s.get(t, "/studies?"+strings.Repeat("includefield=all&", queryParametersMax)).want(t, 200)
	s.get(t, "/studies?"+strings.Repeat("includefield=all&", queryParametersMax+1)).want(t, 400)
}

// Behaviour 58.
func TestSearchKeysReachTheArchive(t *testing.T) {
	params, bad := parseQuery("PatientName=Doe%5EJ*+X&ModalitiesInStudy=CT&StudyDate=20200101-&00400275.00400009=7&RequestAttributesSequence.RequestedProcedureID=8&AccessionNumber=")
	if bad != nil {
		t.Fatal(bad.what)
	}
	q, bad := parseSearch(target{resource: resSeries, study: "1.2"}, params)
	if bad != nil {
		t.Fatal(bad.what)
	}
	var got []string
	var walk func(keys []dicomsvc.Key, front string)
	walk = func(keys []dicomsvc.Key, front string) {
		for _, k := range keys {
			got = append(got, fmt.Sprintf("%s%s %s %q", front, k.Tag.Keyword(), k.VR, k.Values))
			walk(k.Item, front+k.Tag.Keyword()+".")
		}
	}
	walk(q.query.Keys, "")
	want := `PatientName PN ["Doe^J* X"]
ModalitiesInStudy CS ["CT"]
StudyDate DA ["20200101-"]
RequestAttributesSequence SQ []
RequestAttributesSequence.ScheduledProcedureStepID SH ["7"]
RequestAttributesSequence.RequestedProcedureID SH ["8"]
AccessionNumber SH []
StudyInstanceUID UI ["1.2"]`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	if q.query.Level != dicomsvc.LevelSeries || !q.query.Relational {
		t.Errorf("query %+v", q.query)
	}
}

// Behaviours 55, 59.
func TestSearchWarnings(t *testing.T) {
	s := newService(t, nil)
	s.load(t, fileCT1, fileOther)
	r := s.get(t, "/studies?fuzzymatching=true&PatientName=x").want(t, 200)
	if got := r.Header.Get("Warning"); got != "299 "+s.root+` "The fuzzymatching parameter is not supported. Only literal matching has been performed."` {
		t.Errorf("Warning %q", got)
	}
	if got := s.get(t, "/studies?emptyvaluematching=true").Header.Get("Warning"); !strings.Contains(got, "Empty Value Matching has not been performed.") {
		t.Errorf("Warning %q", got)
	}
	if got := s.get(t, "/studies?multiplevaluematching=true").Header.Get("Warning"); got != "" {
		t.Errorf("Warning %q for what is done", got)
	}
	if got := s.get(t, "/studies?limit=1").Header.Get("Warning"); got != "" {
		t.Errorf("Warning %q where the client set the limit", got)
	}
	s = newService(t, func(c *Config, _ *fakeArchive) { c.EmptyAs204 = true })
	if r := s.get(t, "/studies").want(t, 204); len(r.body) != 0 {
		t.Errorf("204 with a body")
	}
}

// manyArchive has n studies; it shows how capped and long answers behave (behaviour 59, F51).
func manyMatches(a *fakeArchive, n int) {
	for i := range n {
		uid := fmt.Sprintf("1.2.3.%08d", i)
		facts := dicom.Facts{Patient: &dicom.Dataset{}, Study: &dicom.Dataset{}, Series: &dicom.Dataset{}, Instance: &dicom.Dataset{}}
		facts.Study.SetStrings(dicom.StudyInstanceUID, uid)
		a.items = append(a.items, &fakeItem{
			in:    &dicomsvc.Instance{StudyInstanceUID: uid, SeriesInstanceUID: uid + ".1", SOPInstanceUID: uid + ".1.1"},
			facts: facts,
		})
	}
}

// Behaviour 59.
func TestSearchCapped(t *testing.T) {
	s := newService(t, func(_ *Config, a *fakeArchive) { manyMatches(a, resultsMax+5) })
	r := s.get(t, "/studies").want(t, 200)
	if n := len(r.list(t)); n != resultsMax {
		t.Errorf("%d results", n)
	}
	if got := r.Header.Get("Warning"); !strings.Contains(got, "There are additional results that can be requested.") {
		t.Errorf("Warning %q", got)
	}
	r = s.get(t, "/studies?offset=5").want(t, 200)
	if n := len(r.list(t)); n != resultsMax || r.Header.Get("Warning") != "" {
		t.Errorf("%d results, Warning %q", n, r.Header.Get("Warning"))
	}
	r = s.get(t, "/studies?limit=1000000&offset=10").want(t, 200)
	if n := len(r.list(t)); n != resultsMax-5 || r.Header.Get("Warning") != "" {
		t.Errorf("%d results, Warning %q", n, r.Header.Get("Warning"))
	}
}

func TestSearchFailures(t *testing.T) {
	s := newService(t, func(_ *Config, a *fakeArchive) {
		manyMatches(a, 5000)
		a.search = func(n int) error {
			if n == 10 {
				return fmt.Errorf("search: %w", dicomsvc.ErrUnavailable)
			}
			return nil
		}
	})
	r := s.get(t, "/studies", "Accept-Encoding", "gzip").want(t, 503)
	if r.Header.Get("Content-Encoding") != "" || r.Header.Get("Retry-After") == "" {
		t.Errorf("header %v", r.Header)
	}
	s.archive.search = func(n int) error {
		if n == 3000 {
			return errors.New("broken")
		}
		return nil
	}
	for _, coding := range []string{"", "gzip"} {
		if r := s.get(t, "/studies", "Accept-Encoding", coding); r.Header.Get("X-Broken-Off") == "" && coding == "" {
			t.Errorf("an answer that failed in the middle looks whole: %d bytes", len(r.body))
		}
	}
}

func TestSearchXML(t *testing.T) {
	s := newService(t, nil)
	s.load(t, fileCT1, fileOther)
	parts := s.get(t, "/studies", "Accept", `multipart/related; type="application/dicom+xml"`).want(t, 200).pieces(t)
	if len(parts) != 2 {
		t.Fatalf("%d parts", len(parts))
	}
	for _, p := range parts {
		var v struct {
			A []struct {
				Tag string `xml:"tag,attr"`
			} `xml:"DicomAttribute"`
		}
		if err := xml.Unmarshal(p.body, &v); err != nil || len(v.A) < 14 {
			t.Errorf("%v: %s", err, p.body)
		}
	}
	s.get(t, "/studies", "Accept", "image/png").want(t, 406)
}

func FuzzSearchQuery(f *testing.F) {
	f.Add("PatientName=A*&limit=5&offset=1&includefield=all&fuzzymatching=true")
	f.Add("00400275.00400009=x&StudyInstanceUID=1.2,3.4\\5&accept=multipart/related;type=\"application/dicom+xml\"")
	f.Add("charset=utf-8&%41=%zz&&=&a")
	f.Fuzz(func(t *testing.T, raw string) {
		params, bad := parseQuery(raw)
		if bad == nil {
			var q *searchQuery
			if q, bad = parseSearch(target{resource: resInstances, study: "1.2"}, params); bad == nil {
				if q.query.Offset < 0 || len(q.query.Keys) == 0 {
					t.Fatalf("%q: query %+v", raw, q.query)
				}
				for _, k := range q.query.Keys {
					for _, v := range k.Values {
						if k.VR == dicom.UI && !isUID(v) {
							t.Fatalf("%q: %q passes for a UID", raw, v)
						}
					}
				}
				return
			}
		}
		if bad.status < 400 || bad.status > 499 || bad.what == "" || bad.remedy == "" || strings.ContainsAny(bad.what, "<>\r\n\x00") {
			t.Fatalf("%q: problem %+v", raw, bad)
		}
	})
}

// Behaviour 66.
func TestMethods(t *testing.T) {
	s := newService(t, nil)
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch, "PROPFIND"} {
		if r := s.do(t, method, "/studies", nil).want(t, 405); !strings.Contains(r.Header.Get("Allow"), "POST") {
			t.Errorf("Allow %q", r.Header.Get("Allow"))
		}
	}
	s.do(t, http.MethodPost, "/series", nil).want(t, 405)
	if r := s.do(t, http.MethodOptions, "/studies/1.2/metadata", nil).want(t, 204); r.Header.Get("Allow") != "GET, HEAD, OPTIONS" {
		t.Errorf("Allow %q", r.Header.Get("Allow"))
	}
	for path, status := range map[string]int{
		"/": 404, "/nonsense": 404, "/studies/1.2/nonsense": 404, "/studies/x": 404, "/studies/x*": 400, "/studies/1.2/series/1..3": 400,
		"/studies/../../etc/passwd": 400, "/studies/%2e%2e%2fx": 400, "/studies/1.2/series/1.3/instances/" + strings.Repeat("1", 65): 400,
		"/studies/1.2/series/1.3/instances/1.4/frames/": 400, "/studies/1.2/series/1.3/instances/1.4/frames/0": 400,
		"/studies/1.2/series/1.3/instances/1.4/frames/1,,2": 400, "/studies/1.2/series/1.3/instances/1.4/frames/+1": 400,
		"/studies/1.2/series/1.3/instances/1.4/frames/1/2": 404, "/studies/1.2/series/1.3/instances/1.4/bulkdata": 404, "/studies/1.2/bulkdata": 404, "/studies/1.2/series/1.3/pixeldata": 404, "/wado": 400,
		"/studies/1.2/series/1.3/instances/1.4/bulkdata/7FE0": 400, "/studies/1.2/series/1.3/instances/1.4/bulkdata/00400275/0/00400009": 400,
		"/studies/1.2/series/1.3/instances/1.4/bulkdata/00400275/1": 400, "/studies/1.2/series/1.3/instances/1.4/bulkdata/7FE00010": 404,
		"/studies/1.2": 404, "/studies/1.2/metadata": 404, "/studies/1.2/series/1.3/instances/1.4/frames/1": 404,
		"/studies/1.2/series/1.3/instances/1.4/rendered": 404,
	} {
		s.get(t, path).want(t, status)
	}
}

// TestFailuresKeepTheirSecrets: what fails inside is logged, not shown; a query that cannot be asked is 400.
func TestFailuresKeepTheirSecrets(t *testing.T) {
	var log bytes.Buffer
	var failure error
	s := newService(t, func(c *Config, a *fakeArchive) {
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		manyMatches(a, 1)
		a.search = func(int) error { return failure }
	})
	failure = errors.New("open /var/lib/secret: no such file")
	if r := s.get(t, "/studies").want(t, 500); strings.Contains(string(r.body), "secret") || !strings.Contains(log.String(), "secret") {
		t.Errorf("body %s, log %s", r.body, log.String())
	}
	failure = fmt.Errorf("%w: a key twice", dicomsvc.ErrMalformed)
	if r := s.get(t, "/studies").want(t, 400); !strings.Contains(string(r.body), "a key twice") {
		t.Errorf("body %s", r.body)
	}
}

// TestLogsHoldNoUIDs: whatever is asked, the log names routes only (B28).
func TestLogsHoldNoUIDs(t *testing.T) {
	var log bytes.Buffer
	s := newService(t, func(c *Config, a *fakeArchive) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		manyMatches(a, 3)
	})
	for _, path := range []string{"/studies?PatientName=CANARY", "/studies/1.2.3.4?x=CANARY", "/studies/CANARY", "/CANARY", "/studies/1.2.3.00000001/series?CANARY=1",
		"/studies?CANARY%0d%0aX=1", "/studies?PatientID=CANARY&PatientID=CANARY"} {
		s.get(t, path, "X-Forwarded-Host", "CANARY", "User-Agent", "CANARY")
	}
	s.Close() // every request has been logged
	if strings.Contains(log.String(), "CANARY") || strings.Contains(log.String(), "1.2.3") {
		t.Errorf("log:\n%s", log.String())
	}
	if n := strings.Count(log.String(), "request answered"); n != 7 {
		t.Errorf("%d lines", n)
	}
}
