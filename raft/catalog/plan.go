package catalog

import (
	"fmt"
	"slices"
	"strings"

	"osteon/dicomsvc/dicom"
)

// plan is how a search finds candidate studies: one index, ranges of it, and where in the index's
// keys the study's UID stands. The order of a search is that of its plan, so it is chosen by the
// keys alone.
type plan struct {
	ranges  []keyRange
	reverse bool
	at      int                                  // number of the key's string that is the Study Instance UID
	first   func(row *studyRow, key []byte) bool // false when the study came or comes under another key; nil: always true
}

type keyRange struct{ lower, upper []byte }

func prefixRange(prefix []byte) keyRange { return keyRange{prefix, after(prefix)} }

// valueRanges returns the ranges of index t for the values of a key, nil when the index is no help.
// Several values are only taken whole, so that no study comes twice.
func valueRanges(t table, values []string) []keyRange {
	var ranges []keyRange
	for _, value := range values {
		prefix, whole := literalPrefix(value)
		if prefix == "" || !whole && len(values) > 1 {
			return nil
		}
		clipped := clip(prefix, maxIndexBytes)
		if whole && len(clipped) == len(prefix) {
			ranges = append(ranges, prefixRange(appendKeyString(keyOf(t), prefix)))
			continue
		}
		if len(values) > 1 {
			return nil
		}
		ranges = append(ranges, prefixRange(appendKeyPrefix(keyOf(t), clipped)))
	}
	return ranges
}

// planStudies chooses the index for a search of studies that names no study, series or instance.
func planStudies(q *Query) plan {
	if ranges := valueRanges(tableByAccession, q.unique(dicom.AccessionNumber)); ranges != nil {
		return plan{ranges: ranges, at: 1}
	}
	if ranges := valueRanges(tableByPatientID, q.unique(dicom.PatientID)); ranges != nil {
		return plan{ranges: ranges, at: 1}
	}
	low, high, dated := dateBounds(q)
	name, exact := namePrefix(q)
	if len(name) >= 3 || name != "" && (exact || !dated) {
		return planName(name, exact)
	}
	if p, ok := planModality(q, low, high, dated); ok {
		return p
	}
	return plan{ranges: []keyRange{dateRange(keyOf(tableByDate), low, high)}, reverse: true, at: 1}
}

// namePrefix returns what the folded name begins with under the query, and whether that is all.
func namePrefix(q *Query) (prefix string, whole bool) {
	values := q.unique(dicom.PatientName)
	if len(values) != 1 || strings.Contains(values[0], "=") {
		return "", false
	}
	raw, whole := literalPrefix(values[0])
	if prefix = dicom.FoldName(raw); whole {
		prefix = foldName(raw)
	} else {
		prefix = strings.TrimRight(prefix, "^ ") // SMITH^* matches SMITH
	}
	if clipped := clip(prefix, maxIndexBytes); len(clipped) < len(prefix) {
		return clipped, false
	}
	return prefix, whole
}

func planName(name string, exact bool) plan {
	start := appendKeyPrefix(keyOf(tableByName), name)
	if exact {
		start = appendKeyString(keyOf(tableByName), name)
	}
	within := prefixRange(start)
	return plan{ranges: []keyRange{within}, at: 1, first: func(row *studyRow, key []byte) bool {
		names := slices.Clone(row.names)
		slices.Sort(names)
		for _, n := range names {
			if exact && n == name || !exact && strings.HasPrefix(n, name) {
				have, ok := keyStringAt(key, 0)
				return ok && have == n
			}
		}
		return true
	}}
}

// dateBounds returns the range of Study Date, and whether it is bounded at all.
func dateBounds(q *Query) (low, high string, bounded bool) {
	values := q.unique(dicom.StudyDate)
	if len(values) != 1 || hasWildcard(values[0]) {
		return "", "", false
	}
	low, high = splitRange(dicom.DA, values[0])
	low, high = plainTime(dicom.DA, low), plainTime(dicom.DA, high)
	return low, high, low != "" || high != ""
}

// dateRange returns the range of dates behind a prefix, both bounds included.
func dateRange(prefix []byte, low, high string) keyRange {
	r := prefixRange(prefix)
	if low != "" {
		r.lower = appendKeyPrefix(slices.Clone(prefix), low)
	}
	if high != "" {
		r.upper = after(appendKeyPrefix(slices.Clone(prefix), high))
	}
	return r
}

// planModality uses the index by modality and date.
func planModality(q *Query, low, high string, dated bool) (plan, bool) {
	values := q.unique(dicom.ModalitiesInStudy)
	if len(values) == 0 {
		values = q.unique(dicom.Modality)
	}
	if len(values) == 0 || slices.ContainsFunc(values, hasWildcard) {
		return plan{}, false
	}
	p := plan{reverse: true, at: 2}
	for _, value := range values {
		if len(value) > maxIndexBytes {
			return plan{}, false
		}
		prefix := appendKeyString(keyOf(tableByModality), value)
		p.ranges = append(p.ranges, dateRange(prefix, low, high))
	}
	p.first = func(row *studyRow, key []byte) bool {
		have, _ := keyStringAt(key, 0)
		for _, value := range values {
			if slices.Contains(row.modalities.names(), value) {
				return have == value
			}
		}
		return true
	}
	return p, true
}

// eachStudy calls f with the rows of candidate studies: those the query names in the order of UIDs,
// else in the order of the plan.
func (v *view) eachStudy(q *Query, f func(*studyRow) (more bool, err error)) error {
	if uids := q.unique(dicom.StudyInstanceUID); len(uids) > 0 {
		for _, uid := range uids {
			row, err := v.studyRow(uid)
			if err != nil {
				return err
			}
			if row == nil {
				continue
			}
			if more, err := f(row); !more || err != nil {
				return err
			}
		}
		return nil
	}
	p := planStudies(q)
	for _, r := range p.ranges {
		if more, err := v.eachIndexed(p, r, f); !more || err != nil {
			return err
		}
	}
	return nil
}

func (v *view) eachIndexed(p plan, r keyRange, f func(*studyRow) (bool, error)) (more bool, err error) {
	c, err := v.scan(r.lower, r.upper, p.reverse)
	if err != nil {
		return false, err
	}
	defer c.close()
	for c.next() {
		uid, ok := keyStringAt(c.key, p.at)
		if !ok {
			return false, fmt.Errorf("%w key of an index", ErrMalformed)
		}
		row, err := v.studyRow(uid)
		if err != nil {
			return false, err
		}
		if row == nil || p.first != nil && !p.first(row, c.key) {
			continue
		}
		if more, err := f(row); !more || err != nil {
			return false, err
		}
	}
	return true, c.err
}

// studiesOfSeries returns the studies that have a series of that UID, one unless UIDs clash.
func (v *view) studiesOfSeries(series string) ([]string, error) {
	c, err := v.scanPrefix(appendKeyString(keyOf(tableBySeries), series))
	if err != nil {
		return nil, err
	}
	defer c.close()
	var studies []string
	for c.next() {
		if study, ok := keyStringAt(c.key, 1); ok {
			studies = append(studies, study)
		}
	}
	return studies, c.err
}

// eachPatient calls f with the rows of candidate patients: by ID where the query has one, else by
// name where it has a start of one, else all by ID.
func (v *view) eachPatient(q *Query, f func(*patientRow) (more bool, err error)) error {
	ranges := valueRanges(tablePatient, q.unique(dicom.PatientID))
	if name, exact := namePrefix(q); ranges == nil && name != "" {
		return v.eachNamedPatient(name, exact, f)
	}
	if ranges == nil || slices.ContainsFunc(q.unique(dicom.PatientID), func(s string) bool { return len(s) > maxIndexBytes }) {
		ranges = []keyRange{prefixRange(keyOf(tablePatient))}
	}
	for _, r := range ranges {
		if more, err := v.patientsIn(r, f); !more || err != nil {
			return err
		}
	}
	return nil
}

func (v *view) patientsIn(r keyRange, f func(*patientRow) (bool, error)) (more bool, err error) {
	c, err := v.scan(r.lower, r.upper, false)
	if err != nil {
		return false, err
	}
	defer c.close()
	for c.next() {
		id, ok1 := keyStringAt(c.key, 0)
		issuer, ok2 := keyStringAt(c.key, 1)
		if !ok1 || !ok2 {
			return false, fmt.Errorf("%w key of a patient", ErrMalformed)
		}
		row, err := decodePatientRow(PatientKey{Issuer: issuer, ID: id}, c.value)
		if err != nil {
			return false, err
		}
		if more, err := f(row); !more || err != nil {
			return false, err
		}
	}
	return true, c.err
}

func (v *view) eachNamedPatient(name string, exact bool, f func(*patientRow) (bool, error)) error {
	start := appendKeyPrefix(keyOf(tablePatientByName), name)
	if exact {
		start = appendKeyString(keyOf(tablePatientByName), name)
	}
	c, err := v.scanPrefix(start)
	if err != nil {
		return err
	}
	defer c.close()
	for c.next() {
		id, ok1 := keyStringAt(c.key, 1)
		issuer, ok2 := keyStringAt(c.key, 2)
		if !ok1 || !ok2 {
			return fmt.Errorf("%w key of a patient's name", ErrMalformed)
		}
		row, err := v.patientRow(PatientKey{Issuer: issuer, ID: id})
		if row == nil || err != nil {
			return firstError(err, nil)
		}
		if more, err := f(row); !more || err != nil {
			return err
		}
	}
	return c.err
}
