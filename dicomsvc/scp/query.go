package scp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// queryError is a refused identifier with the element at fault (PS3.4 §C.4.1.1.4).
type queryError struct {
	status uint16
	tag    dicom.Tag
	text   string
}

func (e *queryError) Error() string { return fmt.Sprintf("%v: %s", e.tag, e.text) }

func mismatch(tag dicom.Tag, text string) error {
	return &queryError{status: dimse.StatusMismatch, tag: tag, text: text}
}

func failure(err error) dimse.Result {
	var q *queryError
	if errors.As(err, &q) {
		return dimse.Result{Status: q.status, ErrorComment: comment(err), OffendingElements: []dicom.Tag{q.tag}}
	}
	status := dicomsvc.DIMSEStatus(err)
	if status == dicomsvc.StatusProcessing {
		status = dimse.StatusCannotUnderstand
	}
	return dimse.Result{Status: status, ErrorComment: comment(err)}
}

// levels in order; a unique key each (PS3.4 §C.6.1.1, §C.6.2.1).
var uniqueKeys = map[dicomsvc.Level]dicom.Tag{
	dicomsvc.LevelPatient: dicom.PatientID,
	dicomsvc.LevelStudy:   dicom.StudyInstanceUID,
	dicomsvc.LevelSeries:  dicom.SeriesInstanceUID,
	dicomsvc.LevelImage:   dicom.SOPInstanceUID,
}

// levelOf reads Query/Retrieve Level (0008,0052); IMAGE is also written INSTANCE.
func levelOf(model string, id *dicom.Dataset) (dicomsvc.Level, error) {
	switch value := id.String(dicom.QueryRetrieveLevel); value {
	case "PATIENT":
		if !isPatientRoot(model) {
			return 0, mismatch(dicom.QueryRetrieveLevel, "the study root model has no PATIENT level")
		}
		return dicomsvc.LevelPatient, nil
	case "STUDY":
		return dicomsvc.LevelStudy, nil
	case "SERIES":
		return dicomsvc.LevelSeries, nil
	case "IMAGE", "INSTANCE":
		return dicomsvc.LevelImage, nil
	case "":
		return 0, mismatch(dicom.QueryRetrieveLevel, "Query/Retrieve Level is missing")
	default:
		return 0, mismatch(dicom.QueryRetrieveLevel, "Query/Retrieve Level is not one of this model")
	}
}

func isPatientRoot(model string) bool {
	return model == dimse.PatientRootFind || model == dimse.PatientRootMove || model == dimse.PatientRootGet
}

// upperKeys checks the unique keys of the levels above: one value each, unless relational queries were
// agreed to (PS3.4 §C.4.1.2.1, §C.4.2.2.1).
func upperKeys(model string, level dicomsvc.Level, id *dicom.Dataset, relational bool) error {
	top := dicomsvc.LevelStudy
	if isPatientRoot(model) {
		top = dicomsvc.LevelPatient
	}
	for l := top; l < level; l++ {
		values := id.Strings(uniqueKeys[l])
		if relational {
			continue
		}
		if len(values) != 1 || values[0] == "" || hasWildcard(values[0]) {
			return mismatch(uniqueKeys[l], "one value is needed at this level")
		}
	}
	return nil
}

func hasWildcard(s string) bool {
	for _, r := range s {
		if r == '*' || r == '?' {
			return true
		}
	}
	return false
}

// isControl reports elements of an identifier that are no matching keys.
func isControl(tag dicom.Tag) bool {
	return tag.IsGroupLength() || slices.Contains([]dicom.Tag{
		dicom.QueryRetrieveLevel, dicom.SpecificCharacterSet, dicom.RetrieveAETitle,
		dicom.TimezoneOffsetFromUTC, dicom.InstanceAvailability,
	}, tag)
}

// computed are keys that the catalog answers without storing them.
var computed = []dicom.Tag{
	dicom.ModalitiesInStudy, dicom.SOPClassesInStudy, dicom.InstanceAvailability, dicom.AvailableTransferSyntaxUID,
	dicom.NumberOfPatientRelatedStudies, dicom.NumberOfPatientRelatedSeries, dicom.NumberOfPatientRelatedInstances,
	dicom.NumberOfStudyRelatedSeries, dicom.NumberOfStudyRelatedInstances, dicom.NumberOfSeriesRelatedInstances,
	dicom.QueryRetrieveLevel, dicom.RetrieveAETitle, dicom.SpecificCharacterSet,
}

func (s *Server) query(c *caller, r *dimse.FindRequest) (*dicomsvc.Query, error) {
	level, err := levelOf(r.SOPClass, r.Identifier)
	if err != nil {
		return nil, err
	}
	relational := s.cfg.Relational || c.relational[r.SOPClass]
	if err := upperKeys(r.SOPClass, level, r.Identifier, relational); err != nil {
		return nil, err
	}
	return &dicomsvc.Query{Level: level, Keys: keysOf(r.Identifier), Relational: true}, nil
}

func keysOf(id *dicom.Dataset) []dicomsvc.Key {
	var keys []dicomsvc.Key
	for i := range id.Elements {
		el := &id.Elements[i]
		if isControl(el.Tag) {
			continue
		}
		keys = append(keys, keyOf(id, el))
	}
	return keys
}

func keyOf(id *dicom.Dataset, el *dicom.Element) dicomsvc.Key {
	key := dicomsvc.Key{Tag: el.Tag, VR: el.VR}
	if el.VR == dicom.UN {
		key.VR = dicom.VROf(el.Tag)
	}
	if key.VR == dicom.SQ {
		if len(el.Items) > 0 && el.Items[0] != nil {
			key.Item = keysOf(el.Items[0])
		}
		return key
	}
	for _, v := range id.Strings(el.Tag) {
		if v != "" {
			key.Values = append(key.Values, v)
		}
	}
	return key
}

// Find answers C-FIND (PS3.4 §C.4.1): one pending response a match, in the catalog's order.
func (s *Server) Find(ctx context.Context, r *dimse.FindRequest, yield func(*dicom.Dataset, uint16) error) dimse.Result {
	c := callerOf(r.Session)
	q, err := s.query(c, r)
	if err != nil {
		return failure(err)
	}
	pending := dimse.StatusPending
	for i := range r.Identifier.Elements {
		if tag := r.Identifier.Elements[i].Tag; !tag.IsGroupLength() && !dicom.Indexed(tag) && !slices.Contains(computed, tag) {
			pending = dimse.StatusPendingWarning // PS3.4 §C.4.1.1.4: an optional key is not supported
		}
	}
	for m, err := range s.cfg.Archive.Search(ctx, c.principal, q) {
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Warn("query failed", "session", r.Session.ID, "err", err)
			}
			return failure(err)
		}
		if err := yield(s.response(q.Level, r.SOPClass, r.Identifier, m), pending); err != nil {
			return dimse.Result{Status: dimse.StatusCancel}
		}
	}
	return dimse.Result{Status: dimse.StatusSuccess}
}

// response is the identifier of one match: every requested key, empty when not known, the unique keys of
// all levels above, Query/Retrieve Level and Retrieve AE Title (PS3.4 §C.4.1.1.3.2).
func (s *Server) response(level dicomsvc.Level, model string, id *dicom.Dataset, m *dicomsvc.Match) *dicom.Dataset {
	out := new(dicom.Dataset)
	for i := range id.Elements {
		asked := &id.Elements[i]
		if asked.Tag.IsGroupLength() || asked.Tag == dicom.SpecificCharacterSet {
			continue
		}
		if el := m.Attributes.Get(asked.Tag); el != nil {
			out.Set(*el)
			continue
		}
		vr := asked.VR
		if vr == dicom.UN {
			vr = dicom.VROf(asked.Tag)
		}
		out.Set(dicom.Element{Tag: asked.Tag, VR: vr})
	}
	top := dicomsvc.LevelStudy
	if isPatientRoot(model) {
		top = dicomsvc.LevelPatient
	}
	for l := top; l <= level; l++ {
		if el := m.Attributes.Get(uniqueKeys[l]); el != nil {
			out.Set(*el)
		}
	}
	out.SetStrings(dicom.QueryRetrieveLevel, id.String(dicom.QueryRetrieveLevel))
	out.SetStrings(dicom.RetrieveAETitle, s.cfg.AETitle)
	out.ToUTF8()
	if charset := id.Charset(); charset != "" {
		answer := out.Clone()
		if answer.SetCharset(charset) == nil {
			return answer
		}
	}
	return out
}
