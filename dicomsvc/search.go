package dicomsvc

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"osteon/raft/catalog"
)

// Search yields what matches q (PS3.4 §C.2.2.2), in the catalog's stable order, from the local replica
// and from what this node holds unapplied. It stops when ctx ends. Errors: ErrDenied, ErrMalformed for a
// query that cannot be asked.
func (a *Archive) Search(ctx context.Context, p Principal, q *Query) iter.Seq2[*Match, error] {
	return func(yield func(*Match, error) bool) {
		if err := a.permit(p, ActionQuery); err != nil {
			yield(nil, err)
			return
		}
		r, done, err := a.reader()
		if err != nil {
			yield(nil, err)
			return
		}
		defer done()
		for m, err := range r.Search(ctx, p, q) {
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Selection names instances by their unique keys (PS3.4 §C.4.2): every list that is given constrains.
type Selection struct {
	PatientIDs, StudyInstanceUIDs, SeriesInstanceUIDs, SOPInstanceUIDs []string
}

func (s Selection) check() error {
	n := len(s.PatientIDs) + len(s.StudyInstanceUIDs) + len(s.SeriesInstanceUIDs) + len(s.SOPInstanceUIDs)
	switch {
	case n == 0:
		return fmt.Errorf("%w: a retrieve request needs at least one unique key", ErrMalformed)
	case n > selectionMax:
		return fmt.Errorf("%w: more than %d unique keys in one request", ErrLimit, selectionMax)
	}
	return nil
}

// Instance is a served version of an instance, as found by Instances.
type Instance struct {
	SOPInstanceUID, SOPClassUID, StudyInstanceUID, SeriesInstanceUID string
	TransferSyntaxUID                                                string
	// Size is the length of the data set as received, PixelOffset where its pixel data begin.
	Size, PixelOffset int64
	Frames            int
	Digest            [32]byte

	located catalog.Located
}

func newInstance(l catalog.Located) *Instance {
	in := l.Instance
	return &Instance{
		SOPInstanceUID: in.SOPInstanceUID, SOPClassUID: in.SOPClassUID,
		StudyInstanceUID: in.StudyInstanceUID, SeriesInstanceUID: in.SeriesInstanceUID,
		TransferSyntaxUID: in.TransferSyntaxUID,
		Size:              in.Size, PixelOffset: in.PixelOffset, Frames: int(in.Frames), Digest: in.Digest,
		located: l,
	}
}

// Instances yields the served versions that sel names, study by study, series by series, by Instance
// Number. Nothing is yielded when nothing matches. Errors: ErrDenied, ErrMalformed, ErrLimit.
func (a *Archive) Instances(ctx context.Context, p Principal, sel Selection) iter.Seq2[*Instance, error] {
	return func(yield func(*Instance, error) bool) {
		err := a.permit(p, ActionRetrieve)
		if err == nil {
			err = sel.check()
		}
		if err != nil {
			yield(nil, err)
			return
		}
		r, done, err := a.reader()
		if err != nil {
			yield(nil, err)
			return
		}
		defer done()
		if err := sel.walk(ctx, r, p, func(l catalog.Located) bool { return yield(newInstance(l), nil) }); err != nil {
			yield(nil, err)
		}
	}
}

// walk calls visit with every served version that s names, until visit returns false.
func (s Selection) walk(ctx context.Context, r *catalog.Reader, p Principal, visit func(catalog.Located) bool) error {
	if len(s.SOPInstanceUIDs) > 0 {
		return s.walkInstances(ctx, r, p, visit)
	}
	studies, err := s.studies(ctx, r, p)
	if err != nil {
		return err
	}
	series := set(s.SeriesInstanceUIDs)
	for _, study := range studies {
		one := ""
		if len(s.SeriesInstanceUIDs) == 1 {
			one = s.SeriesInstanceUIDs[0]
		}
		for l, err := range r.Versions(ctx, study, one) {
			if err != nil {
				return err
			}
			if !l.Served || len(series) > 0 && !series[l.Instance.SeriesInstanceUID] {
				continue
			}
			if !visit(l) {
				return nil
			}
		}
	}
	return nil
}

func (s Selection) walkInstances(ctx context.Context, r *catalog.Reader, p Principal, visit func(catalog.Located) bool) error {
	studies, series := set(s.StudyInstanceUIDs), set(s.SeriesInstanceUIDs)
	if len(s.PatientIDs) > 0 {
		ofPatient, err := s.studies(ctx, r, p)
		if err != nil {
			return err
		}
		studies = set(ofPatient)
		studies[""] = true // so that no study of the patient means none, not any
	}
	for _, uid := range s.SOPInstanceUIDs {
		list, err := located(r.Locate(ctx, uid))
		if err != nil && len(list) == 0 && !isNotFound(err) {
			return err
		}
		for _, l := range list {
			if !l.Served || len(studies) > 0 && !studies[l.Instance.StudyInstanceUID] ||
				len(series) > 0 && !series[l.Instance.SeriesInstanceUID] {
				continue
			}
			if !visit(l) {
				return nil
			}
		}
	}
	return nil
}

// studies returns the Study Instance UIDs that s covers.
func (s Selection) studies(ctx context.Context, r *catalog.Reader, p Principal) ([]string, error) {
	if len(s.StudyInstanceUIDs) > 0 && len(s.PatientIDs) == 0 {
		return s.StudyInstanceUIDs, nil
	}
	q := &Query{Level: LevelStudy, Relational: true}
	add := func(tag tagValue, values []string) {
		if len(values) > 0 {
			q.Keys = append(q.Keys, Key{Tag: tag.tag, VR: tag.vr, Values: values})
		}
	}
	add(keyStudy, s.StudyInstanceUIDs)
	if len(s.PatientIDs) == 0 {
		q.Level = LevelSeries
		add(keySeries, s.SeriesInstanceUIDs)
		return collectStudies(ctx, r, p, q)
	}
	var all []string
	keys := q.Keys
	for _, id := range s.PatientIDs { // one query each: Patient ID is no UID and takes no list
		if strings.ContainsAny(id, "*?") {
			return nil, fmt.Errorf("%w: a retrieve request names one Patient ID, without wildcards", ErrMalformed)
		}
		q.Keys = append(keys[:len(keys):len(keys)], Key{Tag: keyPatient.tag, VR: keyPatient.vr, Values: []string{id}})
		some, err := collectStudies(ctx, r, p, q)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

func collectStudies(ctx context.Context, r *catalog.Reader, p Principal, q *Query) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for m, err := range r.Search(ctx, p, q) {
		if err != nil {
			return nil, err
		}
		if !seen[m.StudyInstanceUID] {
			seen[m.StudyInstanceUID] = true
			out = append(out, m.StudyInstanceUID)
		}
	}
	return out, nil
}

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, s := range list {
		m[s] = true
	}
	return m
}

// Study returns what is known of one study, unapplied instances held here included. ErrNotFound.
func (a *Archive) Study(ctx context.Context, uid string) (*Study, error) {
	r, done, err := a.reader()
	if err != nil {
		return nil, err
	}
	defer done()
	s, err := r.Study(ctx, uid)
	if isNotFound(err) {
		return nil, fmt.Errorf("study: %w", ErrNotFound)
	}
	return s, err
}

// Versions yields every version of a study's instances, served or not, wherever its bytes are.
func (a *Archive) Versions(ctx context.Context, study string) iter.Seq2[catalog.Located, error] {
	return func(yield func(catalog.Located, error) bool) {
		r, done, err := a.reader()
		if err != nil {
			yield(catalog.Located{}, err)
			return
		}
		defer done()
		for l, err := range r.Versions(ctx, study, "") {
			if !yield(l, err) || err != nil {
				return
			}
		}
	}
}

// Waiting returns how many instances held here the ring's catalog has not applied yet.
func (a *Archive) Waiting() int { return a.pending.size() }
