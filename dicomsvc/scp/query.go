package scp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// identifierError is a refused identifier with the element at fault: status A900 (PS3.4 §C.4.1.1.4).
type identifierError struct {
	tag  dicom.Tag
	text string
}

func (e *identifierError) Error() string {
	return fmt.Sprintf("identifier element %v: %s", e.tag, e.text)
}

func mismatch(tag dicom.Tag, text string) error { return &identifierError{tag, text} }

// failure is the final response to a query or retrieval that was not begun.
func failure(err error) dimse.Result {
	var identifier *identifierError
	if errors.As(err, &identifier) {
		return dimse.Result{Status: dimse.StatusMismatch, ErrorComment: comment(err), OffendingElements: []dicom.Tag{identifier.tag}}
	}
	status := dicomsvc.DIMSEStatus(err)
	if status == dicomsvc.StatusProcessing {
		status = dimse.StatusCannotUnderstand // PS3.4 Table C.4-1: unable to process
	}
	return dimse.Result{Status: status, ErrorComment: comment(err), Advice: dimse.Advice{Do: dicomsvc.Remedy(err)}}
}

// uniqueKey is the unique key of a level (PS3.4 §C.6.1.1, §C.6.2.1).
func uniqueKey(level dicomsvc.Level) dicom.Tag {
	switch level {
	case dicomsvc.LevelPatient:
		return dicom.PatientID
	case dicomsvc.LevelStudy:
		return dicom.StudyInstanceUID
	case dicomsvc.LevelSeries:
		return dicom.SeriesInstanceUID
	}
	return dicom.SOPInstanceUID
}

func isPatientRoot(model string) bool {
	return model == dimse.PatientRootFind || model == dimse.PatientRootMove || model == dimse.PatientRootGet
}

// topLevel is the highest level of a model.
func topLevel(model string) dicomsvc.Level {
	if isPatientRoot(model) {
		return dicomsvc.LevelPatient
	}
	return dicomsvc.LevelStudy
}

// levelOf reads Query/Retrieve Level (0008,0052), in capitals or not; IMAGE is also written INSTANCE.
func levelOf(model string, id *dicom.Dataset) (dicomsvc.Level, error) {
	level := dicomsvc.LevelImage
	switch strings.ToUpper(id.String(dicom.QueryRetrieveLevel)) {
	case "PATIENT":
		level = dicomsvc.LevelPatient
	case "STUDY":
		level = dicomsvc.LevelStudy
	case "SERIES":
		level = dicomsvc.LevelSeries
	case "IMAGE", "INSTANCE":
	case "":
		return 0, mismatch(dicom.QueryRetrieveLevel, "Query/Retrieve Level is missing")
	default:
		return 0, mismatch(dicom.QueryRetrieveLevel, "Query/Retrieve Level is unknown")
	}
	if level < topLevel(model) {
		return 0, mismatch(dicom.QueryRetrieveLevel, "the Study Root model has no PATIENT level")
	}
	return level, nil
}

// upperKeys checks the unique keys of the levels above: one value each (PS3.4 §C.4.1.2.1, §C.4.2.2.1).
func upperKeys(model string, level dicomsvc.Level, id *dicom.Dataset) error {
	for l := topLevel(model); l < level; l++ {
		values := id.Strings(uniqueKey(l))
		if len(values) != 1 || values[0] == "" || hasWildcard(values[0]) {
			return mismatch(uniqueKey(l), "one value is needed, without wild cards")
		}
	}
	return nil
}

func hasWildcard(s string) bool { return strings.ContainsAny(s, "*?") }

// tidied returns the identifier without repeated elements and refuses one whose repetitions differ: which was
// meant cannot be told (PS3.5 §7.1).
func tidied(id *dicom.Dataset) (*dicom.Dataset, error) {
	for i := 1; i < len(id.Elements); i++ {
		a, b := &id.Elements[i-1], &id.Elements[i]
		if a.Tag != b.Tag {
			continue
		}
		if !bytes.Equal(a.Value, b.Value) || len(a.Items) > 0 || len(b.Items) > 0 || a.Bulk != nil || b.Bulk != nil {
			return nil, mismatch(a.Tag, "the element occurs twice with different values")
		}
		once := id.Clone()
		once.Elements = slices.CompactFunc(once.Elements, func(a, b dicom.Element) bool { return a.Tag == b.Tag && bytes.Equal(a.Value, b.Value) })
		return tidied(once)
	}
	return id, nil
}

// request is an identifier that was understood.
type request struct {
	model string
	level dicomsvc.Level
	id    *dicom.Dataset
}

func (s *Server) parse(c *caller, r *dimse.FindRequest) (*request, error) {
	id, err := tidied(r.Identifier)
	if err != nil {
		return nil, err
	}
	level, err := levelOf(r.SOPClass, id)
	if err != nil {
		return nil, err
	}
	if !s.cfg.Relational && !c.relational[r.SOPClass] {
		if err := upperKeys(r.SOPClass, level, id); err != nil {
			return nil, err
		}
	}
	return &request{model: r.SOPClass, level: level, id: id}, nil
}

// keysOf turns the elements of an identifier into matching keys. Text is decoded by the identifier's own
// character set; what is no matching key (PS3.4 §C.4.1.1.3) the archive leaves aside.
func keysOf(id *dicom.Dataset) ([]dicomsvc.Key, error) {
	var keys []dicomsvc.Key
	for i := range id.Elements {
		key, err := keyOf(id, &id.Elements[i])
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func keyOf(id *dicom.Dataset, el *dicom.Element) (dicomsvc.Key, error) {
	key := dicomsvc.Key{Tag: el.Tag, VR: effectiveVR(el)}
	if el.Bulk != nil {
		return key, mismatch(el.Tag, "the value is too long for a key")
	}
	if key.VR == dicom.SQ {
		items, err := itemsOf(el)
		switch {
		case err != nil:
			return key, err
		case len(items) > 1:
			return key, mismatch(el.Tag, "a sequence has one item in a query") // PS3.4 §C.2.2.2.6
		case len(items) == 1:
			key.Item, err = keysOf(items[0])
		}
		return key, err
	}
	for _, v := range id.Strings(el.Tag) {
		if v != "" {
			key.Values = append(key.Values, v)
		}
	}
	return key, nil
}

// effectiveVR is the dictionary's VR for UN, with which some senders cover known elements.
func effectiveVR(el *dicom.Element) dicom.VR {
	if el.VR == dicom.UN {
		return dicom.VROf(el.Tag)
	}
	return el.VR
}

// itemsOf returns the items of a sequence, also of one under UN with a defined length, whose value is in
// Implicit VR Little Endian (PS3.5 §6.2.2).
func itemsOf(el *dicom.Element) ([]*dicom.Dataset, error) {
	if len(el.Value) == 0 {
		return el.Items, nil
	}
	b := dicom.AppendElementHeader(nil, false, false, el.Tag, dicom.SQ, uint32(len(el.Value)))
	d, err := dicom.Decode(append(b, el.Value...), dicom.ImplicitVRLittleEndian, dicom.Limits{})
	if err != nil || d.Get(el.Tag) == nil {
		return nil, mismatch(el.Tag, "the sequence cannot be decoded")
	}
	return d.Get(el.Tag).Items, nil
}

// Find answers C-FIND (PS3.4 §C.4.1): one pending response a match, in the catalog's order, as long as the
// peer reads. Statuses: FF00, or FF01 where a key is not supported; 0000; A900 with the element at fault;
// A700; 0124; C000; FE00 after a C-CANCEL.
func (s *Server) Find(ctx context.Context, r *dimse.FindRequest, yield func(*dicom.Dataset, uint16) error) dimse.Result {
	c := callerOf(r.Session)
	q, err := s.parse(c, r)
	if err != nil {
		return failure(err)
	}
	keys, err := keysOf(q.id)
	if err != nil {
		return failure(err)
	}
	pending := dimse.StatusPending
	if !q.supported() {
		pending = dimse.StatusPendingWarning
	}
	for m, err := range s.cfg.Archive.Search(ctx, c.principal, &dicomsvc.Query{Level: q.level, Keys: keys, Relational: true}) {
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Warn("query failed", "session", r.Session.ID, "err", err)
			}
			return failure(err)
		}
		if err := yield(s.answer(q, m), pending); err != nil {
			return dimse.Result{Status: dimse.StatusCancel}
		}
	}
	return dimse.Result{Status: dimse.StatusSuccess}
}

// supported reports whether every key is matched, where it has a value, and answered (PS3.4 §C.4.1.1.4: FF01
// tells of optional keys that are not).
func (q *request) supported() bool {
	for i := range q.id.Elements {
		el := &q.id.Elements[i]
		switch tag := el.Tag; {
		case tag.IsGroupLength():
			continue
		case tag == dicom.QueryRetrieveLevel || tag == dicom.SpecificCharacterSet || tag == dicom.RetrieveAETitle ||
			tag == dicom.TimezoneOffsetFromUTC || tag == dicom.InstanceAvailability:
			continue
		}
		matched, returned := dicomsvc.Supports(el.Tag, q.level)
		if !returned || !matched && !el.IsEmpty() {
			return false
		}
	}
	return true
}
