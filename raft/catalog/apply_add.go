package catalog

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// add applies an Add.
func (s *state) add(c Add) (Result, error) {
	r := Result{Items: make([]ItemOutcome, len(c.Items))}
	for i := range c.Items {
		outcome, err := s.addItem(&c.Items[i])
		if err != nil {
			return Result{}, err
		}
		r.Items[i] = outcome
	}
	return r, nil
}

// addItem applies one item: a known version gains holders, a new one is served when nothing else
// is under its UID.
func (s *state) addItem(it *AddItem) (ItemOutcome, error) {
	known, err := s.versionsOf(it.SOPInstanceUID)
	if err != nil {
		return 0, err
	}
	if e := known.unsealed(it.Version); e != nil && !plant.Is(plant.AddedTwice) {
		return s.addHolders(e, it)
	}
	if v := known.sealedVersion(it.Version); v != nil {
		return knownOutcome(v.served), nil
	}
	if stolen, err := s.versionTaken(it); err != nil || stolen {
		return OutcomeRefused, err
	}
	erased, err := s.erased(it)
	if err != nil {
		return 0, err
	}
	if erased {
		return OutcomeLimbo, s.addLimbo(it, known)
	}
	return s.addNew(it, known)
}

func knownOutcome(served bool) ItemOutcome {
	if served {
		return OutcomeKnown
	}
	return OutcomeKnownUnused
}

// uidVersions is all that is known under one SOP Instance UID.
type uidVersions struct {
	row    []uidEntry // not sealed
	sealed []sealedVersion
}

func (u *uidVersions) unsealed(v VersionID) *uidEntry {
	for i := range u.row {
		if u.row[i].version == v {
			return &u.row[i]
		}
	}
	return nil
}

func (u *uidVersions) sealedVersion(v VersionID) *sealedVersion {
	for i := range u.sealed {
		if u.sealed[i].in.Version == v {
			return &u.sealed[i]
		}
	}
	return nil
}

// versionsOf returns what is known under a SOP Instance UID.
func (s *state) versionsOf(uid string) (*uidVersions, error) {
	v, err := s.get(keyUID(uid))
	if err != nil {
		return nil, err
	}
	row, err := decodeUIDRow(v)
	if err != nil {
		return nil, s.fault(err)
	}
	sealed, err := s.sealed.byUID(uid)
	return &uidVersions{row: row, sealed: sealed}, err
}

// versionTaken reports whether a version that VersionOf did not make is in use under another UID.
func (s *state) versionTaken(it *AddItem) (bool, error) {
	if it.Version == VersionOf(it.SOPInstanceUID, it.TransferSyntaxUID, it.Digest) {
		return false, nil
	}
	key, err := s.get(keyUnsealedID(it.Version))
	if err != nil || key != nil {
		return key != nil, err
	}
	sealed, err := s.sealed.byVersion(it.Version)
	return sealed != nil, err
}

// erased reports whether a tombstone covers the instance.
func (s *state) erased(it *AddItem) (bool, error) {
	if s.tombs < 0 {
		n, err := s.count(metaTombstones)
		if err != nil {
			return false, err
		}
		s.tombs = int(n)
	}
	if s.tombs == 0 {
		return false, nil
	}
	for _, uid := range []string{it.SOPInstanceUID, it.SeriesInstanceUID, it.StudyInstanceUID} {
		v, err := s.get(keyHash(tableTombstone, s.sealed.keys.hash(uid)))
		if err != nil || v != nil {
			return v != nil, err
		}
	}
	return false, nil
}

// addHolders takes a further offer of a version that is not sealed.
func (s *state) addHolders(e *uidEntry, it *AddItem) (ItemOutcome, error) {
	v, err := s.get(e.key)
	if err != nil {
		return 0, err
	}
	row, err := decodeVersionRow(v)
	if err != nil {
		return 0, s.fault(err)
	}
	outcome := knownOutcome(row.served)
	if row.limbo {
		outcome = OutcomeLimbo
	}
	holders := union(row.holders, it.Holders)
	safe := row.spooled && !it.Spooled
	if len(holders) == len(row.holders) && !safe {
		return outcome, nil
	}
	row.holders = holders
	if safe {
		row.spooled = false
		if err := s.clearSpooled(row); err != nil {
			return 0, err
		}
	}
	s.set(e.key, row.encode())
	return outcome, nil
}

func (s *state) clearSpooled(row *versionRow) error {
	if row.limbo {
		return nil
	}
	study, err := s.study(row.in.StudyInstanceUID)
	if study != nil {
		study.spooled--
	}
	return err
}

// union returns the nodes of both lists, ascending, without duplicates.
func union(a, b []place.NodeID) []place.NodeID {
	all := append(slices.Clone(a), b...)
	slices.SortFunc(all, func(x, y place.NodeID) int { return bytes.Compare(x[:], y[:]) })
	all = slices.Compact(all)
	return all[:min(len(all), maxHolders)]
}

func newVersionRow(it *AddItem, s *state) *versionRow {
	row := &versionRow{in: it.Instance, spooled: it.Spooled, holders: union(nil, it.Holders), addedAt: s.now}
	row.in.PatientAttributes, row.in.StudyAttributes, row.in.SeriesAttributes = nil, nil, nil
	row.number = instanceNumber(it.Attributes)
	return row
}

// instanceNumber returns the Instance Number of an attribute set, 0 when there is none to read.
func instanceNumber(set []byte) int32 {
	text := strings.TrimPrefix(firstOf(textOf(set, dicom.InstanceNumber)), "+")
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// insert writes the row of a new version and what leads to it.
func (s *state) insert(row *versionRow, known *uidVersions) {
	key := row.key()
	s.set(key, row.encode())
	s.set(keyUnsealedID(row.in.Version), key)
	known.row = append(known.row, uidEntry{version: row.in.Version, served: row.served, key: key})
	slices.SortFunc(known.row, func(x, y uidEntry) int { return bytes.Compare(x.version[:], y.version[:]) })
	s.set(keyUID(row.in.SOPInstanceUID), encodeUIDRow(known.row))
}

// addLimbo keeps a version that came in under an erased UID apart from everything else.
func (s *state) addLimbo(it *AddItem, known *uidVersions) error {
	row := newVersionRow(it, s)
	row.limbo = true
	s.insert(row, known)
	s.raise(QCItem{Kind: QCErased}, it)
	return nil
}

// raise records a QC item about it.
func (s *state) raise(item QCItem, it *AddItem) {
	item.SOPInstanceUID = it.SOPInstanceUID
	item.StudyInstanceUID, item.SeriesInstanceUID = it.StudyInstanceUID, it.SeriesInstanceUID
	item.At = s.now
	s.set(keyQC(item.Kind, it.Version), encodeQCRow(item))
}

// addNew adds a version to its study: served when it is the first under its UID, else kept with a
// QC item.
func (s *state) addNew(it *AddItem, known *uidVersions) (ItemOutcome, error) {
	study, err := s.openStudy(it)
	if err != nil {
		return 0, err
	}
	series, err := s.openSeries(it)
	if err != nil {
		return 0, err
	}
	row := newVersionRow(it, s)
	if row.served, err = s.serves(it, known); err != nil {
		return 0, err
	}
	s.insert(row, known)
	countVersion(study, series, row)
	if it.PatientKey != study.patient {
		s.raise(QCItem{Kind: QCPatient}, it)
	}
	if !row.served {
		return OutcomeFurther, nil
	}
	return OutcomeServed, s.countServed(study, series, it.SOPClassUID)
}

// serves reports whether the version is the first under its UID, and raises a QC item otherwise.
func (s *state) serves(it *AddItem, known *uidVersions) (bool, error) {
	if plant.Is(plant.LaterVersionServed) {
		for i := range known.row {
			known.row[i].served = false
		}
		return true, nil
	}
	for i := range known.sealed {
		if v := &known.sealed[i]; v.served {
			s.raiseFurther(it, &v.in)
			return false, nil
		}
	}
	for _, e := range known.row {
		if !e.served {
			continue
		}
		v, err := s.get(e.key)
		if err != nil {
			return false, err
		}
		row, err := decodeVersionRow(v)
		if err != nil {
			return false, s.fault(err)
		}
		s.raiseFurther(it, &row.in)
		return false, nil
	}
	return true, nil
}

func (s *state) raiseFurther(it *AddItem, served *Instance) {
	item := QCItem{Kind: QCDigest, Served: served.Version}
	if served.StudyInstanceUID != it.StudyInstanceUID || served.SeriesInstanceUID != it.SeriesInstanceUID {
		item.Kind, item.ServedStudy = QCPlace, served.StudyInstanceUID
	}
	s.raise(item, it)
}

// openStudy returns the study of it, made from it when it is the first.
func (s *state) openStudy(it *AddItem) (*studyRow, error) {
	r, err := s.study(it.StudyInstanceUID)
	if r != nil || err != nil {
		return r, err
	}
	r = &studyRow{
		uid: it.StudyInstanceUID, patient: it.PatientKey, names: it.names, first: s.now,
		patientSet: it.PatientAttributes, studySet: it.StudyAttributes,
	}
	s.studies[r.uid] = r
	return r, nil
}

func (s *state) openSeries(it *AddItem) (*seriesRow, error) {
	name := seriesName{it.StudyInstanceUID, it.SeriesInstanceUID}
	r, err := s.seriesOf(name)
	if r != nil || err != nil {
		return r, err
	}
	r = &seriesRow{study: name.study, uid: name.series, set: it.SeriesAttributes}
	r.modality = clip(firstOf(textOf(r.set, dicom.Modality)), maxIndexBytes)
	s.series[name] = r
	return r, nil
}

// countVersion counts a new unsealed version.
func countVersion(study *studyRow, series *seriesRow, row *versionRow) {
	if study.unsealed == 0 {
		study.unsealedFirst = row.addedAt
	}
	study.unsealedLast, study.last = row.addedAt, row.addedAt
	study.unsealed++
	study.unsealedBytes += row.in.Size
	study.versions++
	study.bytes += row.in.Size
	if row.spooled {
		study.spooled++
	}
	series.versions++
	series.unsealed++
}

// countServed counts a served instance at every level and keeps the indexes in step.
func (s *state) countServed(study *studyRow, series *seriesRow, class string) error {
	patient, err := s.openPatient(study)
	if err != nil {
		return err
	}
	if study.instances == 0 {
		patient.studies++
		s.indexStudy(study)
	}
	if series.instances == 0 {
		patient.series++
		study.series++
		s.mark(keyIndex(tableBySeries, series.uid, study.uid))
		if series.modality != "" && study.modalities.add(series.modality, 1) == 1 {
			s.mark(keyByModality(series.modality, study.date(), study.uid))
		}
	}
	patient.instances++
	study.instances++
	series.instances++
	study.classes.add(class, 1)
	series.classes.add(class, 1)
	return nil
}

func (s *state) openPatient(study *studyRow) (*patientRow, error) {
	r, err := s.patient(study.patient)
	if r != nil || err != nil {
		return r, err
	}
	r = &patientRow{key: study.patient, set: study.patientSet}
	s.patients[r.key] = r
	for _, name := range study.names {
		s.mark(keyPatientByName(name, r.key))
	}
	return r, nil
}

// indexStudy makes a study that has its first served instance searchable.
func (s *state) indexStudy(r *studyRow) {
	s.mark(keyByPatientID(r.patient, r.uid))
	for _, name := range r.names {
		s.mark(keyIndex(tableByName, name, r.uid))
	}
	s.mark(keyIndex(tableByDate, r.date(), r.uid))
	if number := textOf(r.studySet, dicom.AccessionNumber); number != "" {
		s.mark(keyIndex(tableByAccession, number, r.uid))
	}
}

// date returns the Study Date as the index has it: YYYYMMDD, or "" when there is none to read.
func (r *studyRow) date() string { return indexDate(firstOf(textOf(r.studySet, dicom.StudyDate))) }

// indexDate returns a DA value, also of the form that older standards allowed, as eight digits.
func indexDate(value string) string {
	date := strings.ReplaceAll(value, ".", "")
	if len(date) != 8 || strings.Trim(date, "0123456789") != "" {
		return ""
	}
	return date
}
