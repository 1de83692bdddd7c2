package dicomweb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// outcome is what became of one part of a store request.
type outcome struct {
	classUID, instanceUID, study, series string
	status                               uint16 // failure or warning reason; 0 for success
	http                                 int    // of a failure
	failed                               bool
}

// stored is what became of a whole store request.
type stored struct {
	outcomes []outcome
	// broken says why the rest of the request could not be read.
	broken error
	// refused is the failure for which the request was given up before anything was stored.
	refused error
	// strays is how many bulk data parts no metadata name.
	strays int
}

// store answers STOW-RS (PS3.18 §10.5): for application/dicom, where each part streams into the archive, and for metadata with bulk data.
// Each instance gets its own outcome. Whatever the client accepts, it is answered in JSON or XML: an object is worth
// more than an Accept field.
func (s *Server) store(w http.ResponseWriter, r *request) *problem {
	bad := s.storeOrRefuse(w, r)
	if bad != nil {
		drain(r)
	}
	return bad
}

func (s *Server) storeOrRefuse(w http.ResponseWriter, r *request) *problem {
	content, ok := parseMedia(r.Header.Get("Content-Type"))
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return newProblem(http.StatusUnsupportedMediaType, "a compressed request body cannot be stored",
			"send the objects without Content-Encoding; use a compressed transfer syntax").with("Accept-Encoding", "identity")
	}
	inner := strings.ToLower(content.param("type"))
	if content.kind != mediaRelated {
		inner = content.kind
	} else if inner == "" {
		inner = mediaDICOM
	}
	if !ok || inner != mediaDICOM && inner != mediaDICOMJSON && inner != mediaDICOMXML {
		return newProblem(http.StatusUnsupportedMediaType, "objects are stored from application/dicom, application/dicom+json and application/dicom+xml only",
			`send Content-Type: multipart/related; type="application/dicom"; boundary=..., or application/dicom for a single object; `+
				`metadata with bulk data as multipart/related; type="application/dicom+json"`).
			with("Accept-Post", acceptPost)
	}
	if err := s.archive.Ready(); err != nil {
		// Told before the body is asked for: a client that waits for 100 Continue sends nothing.
		return unable(err)
	}
	var parts *partReader
	if content.kind == mediaRelated {
		var err error
		if parts, err = newPartReader(r.Body, content.param("boundary")); err != nil {
			return newProblem(http.StatusBadRequest, err.Error(), "name the boundary in Content-Type")
		}
	}
	var result *stored
	switch {
	case inner != mediaDICOM:
		select {
		case s.assembling <- struct{}{}:
		default:
			return newProblem(http.StatusServiceUnavailable, "too many requests with metadata and bulk data at once", remedyFor(http.StatusServiceUnavailable)).
				with("Retry-After", strconv.Itoa(retryAfterSeconds))
		}
		defer func() { <-s.assembling }()
		result = s.storeBulk(r, parts, inner)
	case parts == nil:
		result = s.storeOne(r)
	default:
		result = s.storeParts(r, parts)
	}
	if errors.Is(result.broken, context.Canceled) {
		s.abort(r, result.broken)
	}
	if len(result.outcomes) == 0 {
		return nothingStored(result)
	}
	if result.refused != nil {
		drain(r)
	}
	s.report(w, r, result)
	return nil
}

// acceptPost names what can be stored (W3C LDP §7.1).
const acceptPost = mediaDICOM + ", " + mediaRelated + `; type="application/dicom", ` + mediaRelated + `; type="application/dicom+json", ` +
	mediaRelated + `; type="application/dicom+xml"`

// unable is the problem for an archive that cannot store now.
func unable(err error) *problem {
	p := failure(err)
	if p.status < http.StatusInternalServerError {
		p.status = http.StatusServiceUnavailable
		p.with("Retry-After", strconv.Itoa(retryAfterSeconds))
	}
	return p
}

// drain reads on for a while before a request is refused: a client that is still sending when the
// connection closes loses the answer. One that waits for 100 Continue has sent nothing.
func drain(r *request) {
	if !strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		_, _ = io.CopyN(io.Discard, r.Body, drainBytesMax)
	}
}

// nothingStored is the problem for a request in which no object was found.
func nothingStored(result *stored) *problem {
	if result.broken != nil {
		return newProblem(http.StatusBadRequest, "the request body cannot be read: "+bodyFault(result.broken),
			"send every part with its header, an empty line, the object, and the closing boundary --boundary-- at the end")
	}
	return newProblem(http.StatusBadRequest, "the request holds no object", "send at least one part of the type that Content-Type names")
}

// bodyFault is the text of a reading error that may be shown: our own, never that of the network.
func bodyFault(err error) string {
	if errors.Is(err, errMultipart) || errors.Is(err, errPartHeader) {
		return err.Error()
	}
	return "the connection failed or was too slow"
}

// storeOne stores a body that is one object.
func (s *Server) storeOne(r *request) *stored {
	body := &sawError{r: r.Body}
	o, err := s.put(r, body)
	result := &stored{outcomes: []outcome{o}}
	if body.err != nil {
		result.outcomes, result.broken = nil, body.err
	} else if exhausted(err) {
		result.refused = err
	}
	return result
}

// storeParts stores the parts one by one. It gives up when nothing was stored yet and the archive cannot
// store now, so that a sender hears it without sending the rest.
func (s *Server) storeParts(r *request, parts *partReader) *stored {
	result := &stored{}
	some := false
	for {
		p, err := parts.next()
		switch {
		case err == io.EOF:
			return result
		case errors.Is(err, errPartHeader):
			result.add(unknown(dicomsvc.StatusCannotUnderstand, http.StatusBadRequest))
			continue
		case err != nil:
			result.broken = err
			return result
		}
		if !isObject(p.header) {
			result.add(unknown(dicomsvc.StatusNotSupported, http.StatusUnsupportedMediaType))
			continue
		}
		body := &sawError{r: p}
		o, err := s.put(r, body)
		if body.err != nil {
			// The rest of this part and all behind it are lost; it was not stored.
			result.broken = body.err
			if o.instanceUID != "" {
				result.add(o)
			}
			return result
		}
		result.add(o)
		some = some || !o.failed
		if exhausted(err) && !some {
			result.refused = err
			return result
		}
	}
}

func (r *stored) add(o outcome) { r.outcomes = append(r.outcomes, o) }

// unknown is the outcome of a part whose object is not known (Other Failures Sequence).
func unknown(status uint16, code int) outcome {
	return outcome{failed: true, status: status, http: code}
}

// exhausted tells whether the archive cannot store anything at present.
func exhausted(err error) bool {
	return errors.Is(err, dicomsvc.ErrFull) || errors.Is(err, dicomsvc.ErrDraining) || errors.Is(err, dicomsvc.ErrDenied)
}

// isObject tells whether a part says that it is a DICOM object, or does not say what it is, and is not
// encoded in some way.
func isObject(header map[string]string) bool {
	if encoded(header) {
		return false
	}
	value, given := header["content-type"]
	if !given {
		return true
	}
	m, ok := parseMedia(value)
	return ok && m.kind == mediaDICOM
}

// encoded tells whether the body of a part is not its bytes as they are.
func encoded(header map[string]string) bool {
	switch strings.ToLower(header["content-transfer-encoding"]) {
	case "", "binary", "8bit", "7bit":
	default:
		return true
	}
	return header["content-encoding"] != ""
}

// put streams one Part 10 object into the archive. The preamble and the file meta information end here
// (PS3.10 §7.5: a preamble may hold a program), the data set goes on as it came.
func (s *Server) put(r *request, body io.Reader) (outcome, error) {
	meta, syntax, data, err := dicom.ReadPart10(body)
	if err != nil {
		err = fmt.Errorf("%w: %w", dicomsvc.ErrMalformed, err)
		s.noteObject(r, err)
		return failed(dicomsvc.PutResult{}, meta, err), err
	}
	result, err := s.archive.Put(r.Context(), dicomsvc.PutRequest{
		Principal: r.who, StudyInstanceUID: r.study, TransferSyntaxUID: syntax, Body: data,
		ClaimedUID: meta.String(dicom.MediaStorageSOPInstanceUID),
	})
	if err != nil {
		s.noteObject(r, err)
		return failed(result, meta, err), err
	}
	return accepted(result), nil
}

// accepted is the outcome of an object that was stored.
func accepted(result dicomsvc.PutResult) outcome {
	o := outcome{
		classUID: result.SOPClassUID, instanceUID: result.SOPInstanceUID,
		study: result.StudyInstanceUID, series: result.SeriesInstanceUID,
	}
	if result.Outcome == dicomsvc.OutcomeFurtherVersion || result.Outcome == dicomsvc.OutcomeLimbo {
		o.status = dicomsvc.StatusCoerced
	}
	return o
}

// failed is the outcome of an object that was not stored, under the UIDs that it was known by.
func failed(result dicomsvc.PutResult, meta *dicom.Dataset, err error) outcome {
	o := outcome{
		classUID: result.SOPClassUID, instanceUID: result.SOPInstanceUID,
		failed: true, status: dicomsvc.DIMSEStatus(err), http: dicomsvc.HTTPStatus(err),
	}
	if errors.Is(err, dicomsvc.ErrMalformed) || errors.Is(err, dicomsvc.ErrLimit) {
		o.http = http.StatusBadRequest
	}
	if o.instanceUID == "" && meta != nil {
		o.classUID, o.instanceUID = meta.String(dicom.MediaStorageSOPClassUID), meta.String(dicom.MediaStorageSOPInstanceUID)
	}
	if !isUID(o.instanceUID) || !isUID(o.classUID) {
		o.classUID, o.instanceUID = "", ""
	}
	return o
}

// sawError remembers an error of the reader below that is not the end of a part.
type sawError struct {
	r   io.Reader
	err error
}

func (s *sawError) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// status is the status of the whole request (PS3.18 Table 10.5.3-1): 200 when everything was stored
// without a warning, 202 when something was stored; of a failure the one that all share, else 409.
func (r *stored) status() int {
	stored, flawed, common := 0, r.broken != nil, 0
	for _, o := range r.outcomes {
		switch {
		case !o.failed:
			stored++
			flawed = flawed || o.status != 0
			continue
		case common == 0:
			common = o.http
		case common != o.http:
			common = http.StatusConflict
		}
		flawed = true
	}
	switch {
	case stored > 0 && flawed:
		return http.StatusAccepted
	case stored > 0:
		return http.StatusOK
	case common == http.StatusBadRequest, common == http.StatusForbidden, common == http.StatusRequestEntityTooLarge, common == http.StatusUnsupportedMediaType,
		common == http.StatusServiceUnavailable, common == http.StatusInsufficientStorage:
		return common
	}
	return http.StatusConflict
}

// report sends the Store Instances Response Module (PS3.18 Annex I).
func (s *Server) report(w http.ResponseWriter, r *request, result *stored) {
	module := result.module(r.root)
	h := w.Header()
	media := mediaDICOMJSON
	if chosen, ok := r.accept.choose([]offer{{media: mediaDICOMJSON}, {media: mediaJSON}, {media: mediaDICOMXML}}); ok {
		media = chosen.media
	}
	var body []byte
	var err error
	if media == mediaDICOMXML {
		body = appendXML(nil, module, noBulk)
	} else if body, err = dicom.AppendJSON(nil, module, noBulk); err != nil {
		s.abort(r, err) // the client learns nothing and sends again, which is safe
	}
	status := result.status()
	if status == http.StatusServiceUnavailable || status == http.StatusInsufficientStorage {
		h.Set("Retry-After", strconv.Itoa(retryAfterSeconds))
	}
	for _, text := range result.warnings() {
		h.Add("Warning", "299 "+r.root+` "`+text+`"`)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", media)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// warnings are sentences for what the module has no attribute for.
func (r *stored) warnings() (texts []string) {
	further := 0
	for _, o := range r.outcomes {
		if !o.failed && o.status != 0 {
			further++
		}
	}
	if further > 0 {
		texts = append(texts, strconv.Itoa(further)+" instance(s) differ from what is stored under the same UID; they were kept beside it for quality control and are not served.")
	}
	if r.strays > 0 {
		texts = append(texts, strconv.Itoa(r.strays)+" part(s) were dropped: no metadata in front of them name their Content-Location.")
	}
	if r.broken != nil {
		texts = append(texts, "The rest of the request could not be read: "+strings.ReplaceAll(bodyFault(r.broken), `"`, "'")+". Send again what is not listed.")
	}
	if r.refused != nil {
		texts = append(texts, "The rest of the request was not read because nothing can be stored now. Send all of it again later.")
	}
	return texts
}

// module builds the response data set.
func (r *stored) module(root string) *dicom.Dataset {
	var good, bad, other []*dicom.Dataset
	studies := make(map[string]bool, 1)
	for _, o := range r.outcomes {
		item := &dicom.Dataset{}
		if o.instanceUID != "" {
			item.SetStrings(dicom.ReferencedSOPClassUID, o.classUID)
			item.SetStrings(dicom.ReferencedSOPInstanceUID, o.instanceUID)
		}
		switch {
		case !o.failed:
			studies[o.study] = true
			item.SetStrings(dicom.RetrieveURL, instanceURL(root, o.study, o.series, o.instanceUID))
			if o.status != 0 {
				item.SetInt(dicom.WarningReason, int(o.status))
			}
			good = append(good, item)
		case o.instanceUID != "":
			item.SetInt(dicom.FailureReason, int(o.status))
			bad = append(bad, item)
		default:
			item.SetInt(dicom.FailureReason, int(o.status))
			other = append(other, item)
		}
	}
	module := &dicom.Dataset{}
	switch len(studies) {
	case 1:
		for study := range studies {
			module.SetStrings(dicom.RetrieveURL, studyURL(root, study))
		}
	default:
		module.Set(dicom.Element{Tag: dicom.RetrieveURL, VR: dicom.UR})
	}
	for _, sequence := range []struct {
		tag   dicom.Tag
		items []*dicom.Dataset
	}{{dicom.FailedSOPSequence, bad}, {dicom.ReferencedSOPSequence, good}, {dicom.OtherFailuresSequence, other}} {
		if len(sequence.items) > 0 {
			module.Set(dicom.Element{Tag: sequence.tag, VR: dicom.SQ, Items: sequence.items})
		}
	}
	return module
}
