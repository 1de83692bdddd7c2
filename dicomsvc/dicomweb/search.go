package dicomweb

import (
	"errors"
	"io"
	"net/http"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// returned are the attributes of each level that a search answers with unasked (PS3.18 Tables 10.6.3-3
// to 10.6.3-5). Those under always are sent empty when they are not known.
var (
	studyAlways = []dicom.Tag{
		dicom.StudyDate, dicom.StudyTime, dicom.AccessionNumber, dicom.ModalitiesInStudy, dicom.ReferringPhysicianName,
		dicom.PatientName, dicom.PatientID, dicom.PatientBirthDate, dicom.PatientSex, dicom.StudyInstanceUID, dicom.StudyID,
		dicom.NumberOfStudyRelatedSeries, dicom.NumberOfStudyRelatedInstances,
	}
	studyKnown   = []dicom.Tag{dicom.InstanceAvailability, dicom.TimezoneOffsetFromUTC, dicom.StudyDescription, dicom.IssuerOfPatientID}
	seriesAlways = []dicom.Tag{
		dicom.Modality, dicom.SeriesInstanceUID, dicom.SeriesNumber, dicom.NumberOfSeriesRelatedInstances, dicom.StudyInstanceUID,
	}
	seriesKnown = []dicom.Tag{
		dicom.TimezoneOffsetFromUTC, dicom.SeriesDescription, dicom.PerformedProcedureStepStartDate,
		dicom.PerformedProcedureStepStartTime, dicom.RequestAttributesSequence, dicom.InstanceAvailability,
	}
	instanceAlways = []dicom.Tag{
		dicom.SOPClassUID, dicom.SOPInstanceUID, dicom.InstanceNumber, dicom.StudyInstanceUID, dicom.SeriesInstanceUID,
	}
	instanceKnown = []dicom.Tag{
		dicom.InstanceAvailability, dicom.TimezoneOffsetFromUTC, dicom.Rows, dicom.Columns, dicom.BitsAllocated,
		dicom.NumberOfFrames, dicom.AvailableTransferSyntaxUID,
	}
)

// projection says which attributes of a match are sent.
type projection struct {
	all    bool
	always []dicom.Tag // in ascending order of use only; sent empty when unknown
	wanted map[dicom.Tag]bool
}

// projectionOf returns what a search of t sends: the attributes of its level, those of the levels above
// that the path does not fix, and what the client asked for (PS3.18 §10.6.3.3).
func projectionOf(t target, q *searchQuery) projection {
	p := projection{all: q.all, wanted: q.include}
	add := func(always, known []dicom.Tag) {
		p.always = append(p.always, always...)
		for _, tag := range known {
			p.wanted[tag] = true
		}
	}
	if t.study == "" {
		add(studyAlways, studyKnown)
	}
	if t.resource != resStudies && t.series == "" {
		add(seriesAlways, seriesKnown)
	}
	if t.resource == resInstances {
		add(instanceAlways, instanceKnown)
	}
	for _, tag := range p.always {
		p.wanted[tag] = true
	}
	return p
}

// apply returns the data set that is sent for m. Elements are shared with m.
func (p projection) apply(m *dicomsvc.Match, t target, root string) *dicom.Dataset {
	out := &dicom.Dataset{Elements: make([]dicom.Element, 0, len(p.wanted)+4)}
	for i := range m.Attributes.Elements {
		el := &m.Attributes.Elements[i]
		if el.Tag.IsGroupLength() || el.Tag == dicom.SpecificCharacterSet || !p.all && !p.wanted[el.Tag] {
			continue
		}
		out.Elements = append(out.Elements, *el)
	}
	// Set is safe from here on: it gives no shared item another parent.
	out.SetStrings(dicom.SpecificCharacterSet, "ISO_IR 192")
	for _, tag := range p.always {
		if out.Get(tag) == nil {
			out.Set(dicom.Element{Tag: tag, VR: dicom.VROf(tag)})
		}
	}
	url := studyURL(root, m.StudyInstanceUID)
	switch t.resource {
	case resSeries:
		url = seriesURL(root, m.StudyInstanceUID, m.SeriesInstanceUID)
	case resInstances:
		url = instanceURL(root, m.StudyInstanceUID, m.SeriesInstanceUID, m.SOPInstanceUID)
	}
	out.SetStrings(dicom.RetrieveURL, url)
	return out
}

// search answers QIDO-RS (PS3.18 §10.6): a list in the archive's stable order, streamed. Results that a
// cap of this server holds back are told of in a Warning field.
func (s *Server) search(w http.ResponseWriter, r *request) *problem {
	q, bad := parseSearch(r.target, r.params)
	if bad != nil {
		return bad
	}
	docs, bad := s.describe(r)
	if bad != nil {
		return bad
	}
	most := resultsMax
	if r.study != "" {
		most = resultsInStudyMax
	}
	capped := q.limit < 0 || q.limit > most
	if capped {
		q.limit = most
	}
	a := &answer{server: s, request: r, query: q, docs: docs, project: projectionOf(r.target, q), capped: capped}
	a.reply = &reply{w: w, status: http.StatusOK, early: a.foresee}
	err := s.zipped(a.reply, r, a.write)
	if err != nil {
		if !a.reply.committed {
			return searchFailure(err)
		}
		s.abort(r, err)
	}
	if a.sent == 0 && s.cfg.EmptyAs204 && !a.reply.committed {
		w.Header().Del("Content-Encoding")
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	a.header(a.more)
	if err := a.reply.finish(); err != nil {
		s.abort(r, err)
	}
	return nil
}

// searchFailure is failure for a search, where a query that cannot be asked is the client's mistake.
func searchFailure(err error) *problem {
	p := failure(err)
	if errors.Is(err, dicomsvc.ErrMalformed) || errors.Is(err, dicomsvc.ErrLimit) {
		p.status = http.StatusBadRequest
	}
	return p
}

// answer is a search answer while it is written.
type answer struct {
	server  *Server
	request *request
	query   *searchQuery
	docs    documents
	project projection
	reply   *reply
	capped  bool
	sent    int
	more    bool // there are results beyond the cap
}

// header sets the fields of the answer.
func (a *answer) header(more bool) {
	h := a.reply.w.Header()
	if a.reply.committed {
		return
	}
	h.Set("Content-Type", a.docs.contentType())
	warnings := a.query.warnings
	if more {
		warnings = append(warnings, "There are additional results that can be requested.")
	}
	for _, text := range warnings {
		h.Add("Warning", "299 "+a.request.root+` "`+text+`"`)
	}
}

// foresee finds out, before the header of a long answer leaves, whether there will be more than the cap.
func (a *answer) foresee() error {
	more := false
	if a.capped {
		q := a.query.query
		q.Offset, q.Limit = q.Offset+a.query.limit, 1
		for _, err := range a.server.archive.Search(a.request.Context(), a.request.who, &q) {
			if err != nil {
				return err
			}
			more = true
			break
		}
	}
	a.header(more)
	return nil
}

func (a *answer) write(w io.Writer) error {
	if err := a.docs.begin(w); err != nil {
		return err
	}
	if a.query.limit > 0 {
		if err := a.matches(w); err != nil {
			return err
		}
	}
	return a.docs.end(w)
}

func (a *answer) matches(w io.Writer) error {
	q := a.query.query
	q.Limit = a.query.limit
	if a.capped {
		q.Limit++
	}
	var body []byte
	for m, err := range a.server.archive.Search(a.request.Context(), a.request.who, &q) {
		if err != nil {
			return err
		}
		if a.sent == a.query.limit {
			a.more = true
			break
		}
		a.sent++
		if body, err = appendDocument(body[:0], a.docs, a.project.apply(m, a.request.target, a.request.root), noBulk); err != nil {
			return err
		}
		if err := a.docs.document(w, body); err != nil {
			return err
		}
	}
	return nil
}

// bulkURI names a bulk value; see dicom.AppendJSON.
type bulkURI = func(path []dicom.PathStep, el *dicom.Element) string

func noBulk([]dicom.PathStep, *dicom.Element) string { return "" }

// appendDocument appends d in the form that docs sends.
func appendDocument(dst []byte, docs documents, d *dicom.Dataset, uri bulkURI) ([]byte, error) {
	if _, isJSON := docs.(*jsonArray); isJSON {
		return dicom.AppendJSON(dst, d, uri)
	}
	return appendXML(dst, d, uri), nil
}
