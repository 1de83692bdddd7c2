package catalog

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"osteon/dicomsvc/dicom"
)

// Search yields the matches of q (PS3.4 §C.2.2.2) in an order that depends on the keys of q alone,
// see the package comment. On an error it yields it and ends; ErrInvalid when q itself is at
// fault. Breaking off is cheap. The principal is who asks; what it may see is decided above.
func (r *Reader) Search(ctx context.Context, p Principal, q *Query) iter.Seq2[*Match, error] {
	return func(yield func(*Match, error) bool) {
		s, err := newSearch(q)
		if err == nil {
			err = r.read(ctx, func(v *view) error {
				v.stats = s.stats
				s.v, s.yield = v, yield
				return s.run()
			})
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// Check returns what is wrong with a query, wrapping ErrInvalid: no known level, too many or too
// long values, or, unless Relational, a level above without its one unique key.
func (q *Query) Check() error {
	if q.Level < LevelPatient || q.Level > LevelImage {
		return invalid("Query.Level", "want PATIENT, STUDY, SERIES or IMAGE")
	}
	if q.Offset < 0 || q.Limit < 0 {
		return invalid("Query.Offset", "negative offset or limit")
	}
	values := 0
	if err := checkKeys(q.Keys, 0, &values); err != nil {
		return err
	}
	if q.Relational {
		return nil
	}
	if q.Level >= LevelSeries && len(q.unique(dicom.StudyInstanceUID)) != 1 {
		return invalid("Study Instance UID (0020,000D)", "a query below STUDY level needs exactly one")
	}
	if q.Level >= LevelImage && len(q.unique(dicom.SeriesInstanceUID)) != 1 {
		return invalid("Series Instance UID (0020,000E)", "a query at IMAGE level needs exactly one")
	}
	return nil
}

func checkKeys(keys []Key, depth int, values *int) error {
	if depth > maxDepth {
		return invalid("Query.Keys", "sequences nested more than 64 deep")
	}
	for _, k := range keys {
		if *values += len(k.Values) + 1; *values > maxQueryValues {
			return invalid("Query.Keys", "more than 100000 values")
		}
		for _, v := range k.Values {
			if len(v) > maxPatternBytes {
				return invalid(k.Tag.String(), "a value longer than 16 KiB")
			}
		}
		if err := checkKeys(k.Item, depth+1, values); err != nil {
			return err
		}
	}
	return nil
}

// unique returns the values of a key, in ascending order without duplicates.
func (q *Query) unique(tag dicom.Tag) []string {
	for _, k := range q.Keys {
		if k.Tag == tag {
			values := keyValues(k)
			slices.Sort(values)
			return slices.Compact(values)
		}
	}
	return nil
}

// search is one search under way.
type search struct {
	q      *Query
	stats  *Stats
	early  []matcher   // keys that a study's row decides
	late   []matcher   // all others
	wanted []dicom.Tag // computed attributes that cost a row, where a key asks for them
	v      *view
	yield  func(*Match, error) bool
	given  int
}

func newSearch(q *Query) (*search, error) {
	if err := q.Check(); err != nil {
		return nil, err
	}
	s := &search{q: q, stats: q.Stats}
	if s.stats == nil {
		s.stats = &Stats{}
	}
	*s.stats = Stats{}
	for _, k := range q.Keys {
		if q.Level > LevelPatient && patientCounts(k.Tag) {
			s.wanted = append(s.wanted, k.Tag)
		}
		if k.Tag = effectiveTag(k.Tag, q.Level); k.Tag == 0 || ignored(k.Tag) {
			continue
		}
		m := compile(k)
		switch level := levelOf(k.Tag); {
		case m.any:
		case q.Level > LevelStudy && (level == LevelPatient || level == LevelStudy):
			s.early = append(s.early, m)
		default:
			s.late = append(s.late, m)
		}
	}
	return s, nil
}

func patientCounts(tag dicom.Tag) bool {
	return tag == dicom.NumberOfPatientRelatedStudies || tag == dicom.NumberOfPatientRelatedSeries ||
		tag == dicom.NumberOfPatientRelatedInstances
}

// effectiveTag returns the attribute that a key is matched against at a level: keys of levels below
// are no keys there (0), save that a study or series knows its modalities and classes.
func effectiveTag(tag dicom.Tag, level Level) dicom.Tag {
	switch {
	case level == LevelStudy && tag == dicom.Modality:
		return dicom.ModalitiesInStudy
	case level == LevelStudy && tag == dicom.SOPClassUID:
		return dicom.SOPClassesInStudy
	case levelOf(tag) > level:
		return 0
	}
	return tag
}

// run looks at the candidates of the plan.
func (s *search) run() error {
	if s.q.Level == LevelPatient {
		return s.v.eachPatient(s.q, func(row *patientRow) (bool, error) { return s.offer(&record{v: s.v, patient: row}) })
	}
	if uids := s.q.unique(dicom.SOPInstanceUID); s.q.Level == LevelImage && len(uids) > 0 {
		return s.runInstances(uids)
	}
	if uids := s.q.unique(dicom.SeriesInstanceUID); s.q.Level >= LevelSeries && len(uids) > 0 {
		return s.runSeries(uids)
	}
	return s.v.eachStudy(s.q, func(row *studyRow) (bool, error) {
		r := &record{v: s.v, study: row}
		if s.q.Level == LevelStudy {
			return s.offer(r)
		}
		if ok, err := s.all(s.early, r); !ok || err != nil {
			return true, err
		}
		more := true
		err := s.v.eachSeries(row.uid, "", func(series *seriesRow) (bool, error) {
			var err error
			more, err = s.inSeries(row, series)
			return more, err
		})
		return more, err
	})
}

// runSeries looks at the series that the query names.
func (s *search) runSeries(uids []string) error {
	studies := s.q.unique(dicom.StudyInstanceUID)
	for _, uid := range uids {
		in := studies
		if len(in) == 0 {
			var err error
			if in, err = s.v.studiesOfSeries(uid); err != nil {
				return err
			}
		}
		for _, study := range in {
			if more, err := s.oneSeries(study, uid); !more || err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *search) oneSeries(study, uid string) (more bool, err error) {
	row, err := s.v.studyRow(study)
	if row == nil || err != nil {
		return true, err
	}
	if ok, err := s.all(s.early, &record{v: s.v, study: row}); !ok || err != nil {
		return true, err
	}
	series, err := s.v.seriesRow(study, uid)
	if series == nil || err != nil {
		return true, err
	}
	return s.inSeries(row, series)
}

// inSeries offers a series, or its instances.
func (s *search) inSeries(study *studyRow, series *seriesRow) (more bool, err error) {
	if series.instances == 0 {
		return true, nil
	}
	if s.q.Level == LevelSeries {
		return s.offer(&record{v: s.v, study: study, series: series})
	}
	more = true
	var inner error
	err = s.v.eachVersion(series, func(l Located, _ int32) bool {
		if l.Served {
			more, inner = s.offer(&record{v: s.v, study: study, series: series, version: &l})
		}
		return more && inner == nil
	})
	return more, firstError(err, inner)
}

// runInstances looks at the instances that the query names.
func (s *search) runInstances(uids []string) error {
	for _, uid := range uids {
		if err := s.v.examine(); err != nil {
			return err
		}
		found, err := s.v.locate(uid)
		if err != nil {
			return err
		}
		if len(found) == 0 || !found[0].Served {
			continue
		}
		if more, err := s.oneInstance(&found[0]); !more || err != nil {
			return err
		}
	}
	return nil
}

func (s *search) oneInstance(l *Located) (more bool, err error) {
	study, err := s.v.studyRow(l.Instance.StudyInstanceUID)
	if err != nil {
		return false, err
	}
	series, err := s.v.seriesRow(l.Instance.StudyInstanceUID, l.Instance.SeriesInstanceUID)
	if err != nil {
		return false, err
	}
	if study == nil || series == nil {
		return false, fmt.Errorf("%w catalog: an instance without its study or series", ErrMalformed)
	}
	r := &record{v: s.v, study: study, series: series, version: l}
	if ok, err := s.all(s.early, r); !ok || err != nil {
		return true, err
	}
	return s.offer(r)
}

// all reports whether a record matches every key of list. A key for an attribute that the catalog
// keeps nowhere at these levels is not supported and so no restriction.
func (s *search) all(list []matcher, r *record) (bool, error) {
	for i := range list {
		m := &list[i]
		a, present, err := r.find(m.tag)
		if err != nil {
			return false, err
		}
		if !present && levelOf(m.tag) == 0 {
			continue
		}
		if !m.matches(a) {
			return false, nil
		}
	}
	return true, nil
}

// offer yields a record that matches; more is false when the search has given enough.
func (s *search) offer(r *record) (more bool, err error) {
	if r.study != nil && r.study.instances == 0 {
		return true, nil
	}
	if ok, err := s.all(s.late, r); !ok || err != nil {
		return true, err
	}
	if s.stats.Matched++; s.stats.Matched <= s.q.Offset {
		return true, nil
	}
	m, err := s.match(r)
	if err != nil {
		return false, err
	}
	s.given++
	return s.yield(m, nil) && (s.q.Limit == 0 || s.given < s.q.Limit), nil
}

func (s *search) match(r *record) (*Match, error) {
	d, err := r.attributes(s.wanted)
	if err != nil {
		return nil, err
	}
	m := &Match{Attributes: d, PatientKey: r.patientKey()}
	over := s.v.over
	switch {
	case r.version != nil:
		m.SOPInstanceUID = r.version.Instance.SOPInstanceUID
		m.Provisional = r.version.Provisional
	case r.series != nil:
		_, m.Provisional = over.series[seriesName{r.study.uid, r.series.uid}]
	case r.study != nil:
		_, m.Provisional = over.studies[r.study.uid]
	default:
		_, m.Provisional = over.patients[r.patient.key]
	}
	if r.study != nil {
		m.StudyInstanceUID = r.study.uid
	}
	if r.series != nil {
		m.SeriesInstanceUID = r.series.uid
	}
	return m, nil
}
