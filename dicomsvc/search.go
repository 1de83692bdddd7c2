package dicomsvc

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"osteon/raft/catalog"
)

// Search yields what matches q (PS3.4 §C.2.2.2), in the catalog's stable order, from the local replica
// and from what this node holds unapplied. It stops when ctx ends. A consumer that takes longer than
// readerLease over it sees the state of a later moment in what follows. Errors: ErrDenied, ErrMalformed for
// a query that cannot be asked.
func (a *Archive) Search(ctx context.Context, p Principal, q *Query) iter.Seq2[*Match, error] {
	return func(yield func(*Match, error) bool) {
		c := access{act: ActionQuery, study: studyOf(q), began: a.cfg.Now()}
		var err error
		defer func() { a.record(ctx, &c, err) }()
		if c.who, err = a.permit(p, ActionQuery); err != nil {
			yield(nil, err)
			return
		}
		for more := true; more && err == nil; {
			more, err = a.searchOn(ctx, &c, q, yield)
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// searchOn yields matches from the one after those that c counts, as long as the reader's lease lasts; more
// tells that it ran out before the matches did.
func (a *Archive) searchOn(ctx context.Context, c *access, q *Query, yield func(*Match, error) bool) (more bool, err error) {
	r, done, err := a.reader()
	if err != nil {
		return false, err
	}
	defer done()
	rest := *q
	rest.Offset += c.instances
	if q.Limit > 0 {
		if rest.Limit -= c.instances; rest.Limit <= 0 {
			return false, nil
		}
	}
	if rest.Stats == nil {
		rest.Stats = new(catalog.Stats)
	}
	defer func() {
		a.stats.Examined.Add(int64(rest.Stats.Examined))
		a.stats.Matched.Add(int64(rest.Stats.Matched))
	}()
	until := a.cfg.Now().Add(readerLease)
	for m, err := range r.Search(ctx, c.who, &rest) {
		if errors.Is(err, catalog.ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if err != nil {
			return false, err
		}
		c.instances++
		if !yield(m, nil) {
			return false, nil
		}
		if a.cfg.Now().After(until) {
			return true, nil
		}
	}
	return false, nil
}

// studyOf returns the one study that a query names, "" when it names none or several.
func studyOf(q *Query) string {
	for _, k := range q.Keys {
		if k.Tag == keyStudy.tag {
			return only(k.Values)
		}
	}
	return ""
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
// Number. Nothing is yielded when nothing matches. It reads a page at a time and holds no reader while the
// caller is at work. Errors: ErrDenied, ErrMalformed, ErrLimit, ErrUnavailable when a study changed so that
// its listing cannot go on.
func (a *Archive) Instances(ctx context.Context, p Principal, sel Selection) iter.Seq2[*Instance, error] {
	return func(yield func(*Instance, error) bool) {
		c := access{act: ActionRetrieve, study: only(sel.StudyInstanceUIDs), began: a.cfg.Now()}
		var err error
		defer func() { a.record(ctx, &c, err) }()
		if c.who, err = a.permit(p, ActionRetrieve); err == nil {
			err = sel.check()
		}
		if err == nil {
			err = a.selected(ctx, c.who, sel, func(in *Instance) bool {
				c.instances++
				c.bytes += in.Size
				return yield(in, nil)
			})
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// selected calls visit with every served version that s names, until visit returns false.
func (a *Archive) selected(ctx context.Context, p Principal, s Selection, visit func(*Instance) bool) error {
	var studies []string
	if len(s.SOPInstanceUIDs) == 0 || len(s.PatientIDs) > 0 {
		var err error
		if studies, err = a.studiesOf(ctx, p, s); err != nil {
			return err
		}
	} else {
		studies = s.StudyInstanceUIDs
	}
	if len(s.SOPInstanceUIDs) > 0 {
		allowed := set(studies)
		if len(s.PatientIDs) > 0 {
			allowed[""] = true // so that no study of the patient means none, not any
		}
		return a.selectedByUID(ctx, s, allowed, visit)
	}
	for _, study := range studies {
		if more, err := a.selectedOfStudy(ctx, s, study, visit); !more || err != nil {
			return err
		}
	}
	return nil
}

func (a *Archive) studiesOf(ctx context.Context, p Principal, s Selection) ([]string, error) {
	r, done, err := a.reader()
	if err != nil {
		return nil, err
	}
	defer done()
	return s.studies(ctx, r, p)
}

func (a *Archive) selectedByUID(ctx context.Context, s Selection, studies map[string]bool, visit func(*Instance) bool) error {
	series := set(s.SeriesInstanceUIDs)
	for _, uid := range s.SOPInstanceUIDs {
		list, err := a.locate(ctx, uid)
		if err != nil && !isNotFound(err) {
			return err
		}
		for _, l := range list {
			if !l.Served || len(studies) > 0 && !studies[l.Instance.StudyInstanceUID] ||
				len(series) > 0 && !series[l.Instance.SeriesInstanceUID] {
				continue
			}
			if !visit(newInstance(l)) {
				return nil
			}
		}
	}
	return nil
}

// selectedOfStudy visits the served versions of one study in pages.
func (a *Archive) selectedOfStudy(ctx context.Context, s Selection, study string, visit func(*Instance) bool) (more bool, err error) {
	series := set(s.SeriesInstanceUIDs)
	var last *Instance
	// Each page walks the study from its beginning to where the last one ended: growing pages keep that near linear.
	for size := instancesPage; ; size = min(2*size, instancesPageMax) {
		page, err := a.pageOfStudy(ctx, study, only(s.SeriesInstanceUIDs), last, size, func(l catalog.Located) bool {
			return l.Served && (len(series) == 0 || series[l.Instance.SeriesInstanceUID])
		})
		if err != nil {
			return false, err
		}
		for _, in := range page {
			if !visit(in) {
				return false, nil
			}
		}
		if len(page) < size {
			return true, nil
		}
		last = page[len(page)-1]
	}
}

// pageOfStudy returns up to size of the versions that are wanted, those behind last.
func (a *Archive) pageOfStudy(ctx context.Context, study, series string, last *Instance, size int, wanted func(catalog.Located) bool) ([]*Instance, error) {
	r, done, err := a.readerOf([]string{study}, nil)
	if err != nil {
		return nil, err
	}
	defer done()
	var page []*Instance
	passed := last == nil
	for l, err := range r.Versions(ctx, study, series) {
		switch {
		case err != nil:
			return nil, err
		case !passed:
			passed = l.Instance.Version == last.located.Instance.Version
		case wanted(l):
			if page = append(page, newInstance(l)); len(page) == size {
				return page, nil
			}
		}
	}
	if !passed {
		return nil, fmt.Errorf("%w: the study changed while it was listed; ask again", ErrUnavailable)
	}
	return page, nil
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
	r, done, err := a.readerOf([]string{uid}, nil)
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
		r, done, err := a.readerOf([]string{study}, nil)
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
