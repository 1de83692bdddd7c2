package catalog

import (
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc/dicom"
)

// record is a candidate of a search: the rows of its levels, from the patient down to the level of
// the query. Rows below are nil.
type record struct {
	v       *view
	patient *patientRow // STUDY level and below: read when first asked for
	study   *studyRow
	series  *seriesRow
	version *Located
}

// level returns the level of the lowest row.
func (r *record) level() Level {
	switch {
	case r.version != nil:
		return LevelImage
	case r.series != nil:
		return LevelSeries
	case r.study != nil:
		return LevelStudy
	}
	return LevelPatient
}

// sets returns the attribute sets, the lowest level first.
func (r *record) sets() [][]byte {
	var sets [][]byte
	if r.version != nil {
		sets = append(sets, r.version.Instance.Attributes)
	}
	if r.series != nil {
		sets = append(sets, r.series.set)
	}
	if r.study != nil {
		return append(sets, r.study.studySet, r.study.patientSet)
	}
	return append(sets, r.patient.set)
}

// computed returns the value of an attribute that the catalog knows better than the data sets or
// counts itself, and whether it is one.
func (r *record) computed(tag dicom.Tag) (text string, ok bool, err error) {
	switch tag {
	case dicom.PatientID:
		return r.patientKey().ID, true, nil
	case dicom.IssuerOfPatientID:
		return r.patientKey().Issuer, true, nil
	case dicom.InstanceAvailability:
		return "ONLINE", true, nil
	case dicom.NumberOfPatientRelatedStudies, dicom.NumberOfPatientRelatedSeries, dicom.NumberOfPatientRelatedInstances:
		text, err := r.patientCount(tag)
		return text, true, err
	}
	if r.study != nil {
		if text, ok := r.study.computed(tag); ok {
			return text, true, nil
		}
	}
	if r.series != nil {
		if text, ok := r.series.computed(tag); ok {
			return text, true, nil
		}
	}
	if r.version != nil {
		text, ok := r.version.computed(tag)
		return text, ok, nil
	}
	return "", false, nil
}

func (r *record) patientKey() PatientKey {
	if r.study != nil {
		return r.study.patient
	}
	return r.patient.key
}

// patientCount reads the patient's row, if need be, and returns one of its counts.
func (r *record) patientCount(tag dicom.Tag) (string, error) {
	if r.patient == nil {
		row, err := r.v.patientRow(r.study.patient)
		if err != nil {
			return "", err
		}
		if r.patient = row; row == nil {
			r.patient = &patientRow{key: r.study.patient}
		}
	}
	switch tag {
	case dicom.NumberOfPatientRelatedStudies:
		return strconv.Itoa(r.patient.studies), nil
	case dicom.NumberOfPatientRelatedSeries:
		return strconv.Itoa(r.patient.series), nil
	}
	return strconv.Itoa(r.patient.instances), nil
}

func (v *view) patientRow(key PatientKey) (*patientRow, error) {
	value, err := v.get(keyPatient(key))
	if value == nil || err != nil {
		return nil, err
	}
	if err := v.examine(); err != nil {
		return nil, err
	}
	return decodePatientRow(key, value)
}

func (r *studyRow) computed(tag dicom.Tag) (string, bool) {
	switch tag {
	case dicom.StudyInstanceUID:
		return r.uid, true
	case dicom.ModalitiesInStudy:
		return strings.Join(r.modalities.names(), `\`), true
	case dicom.SOPClassesInStudy:
		return strings.Join(r.classes.names(), `\`), true
	case dicom.NumberOfStudyRelatedSeries:
		return strconv.Itoa(r.series), true
	case dicom.NumberOfStudyRelatedInstances:
		return strconv.Itoa(r.instances), true
	}
	return "", false
}

func (r *seriesRow) computed(tag dicom.Tag) (string, bool) {
	switch tag {
	case dicom.SeriesInstanceUID:
		return r.uid, true
	case dicom.NumberOfSeriesRelatedInstances:
		return strconv.Itoa(r.instances), true
	}
	return "", false
}

func (l *Located) computed(tag dicom.Tag) (string, bool) {
	switch tag {
	case dicom.SOPInstanceUID:
		return l.Instance.SOPInstanceUID, true
	case dicom.SOPClassUID:
		return l.Instance.SOPClassUID, true
	case dicom.AvailableTransferSyntaxUID:
		return l.Instance.TransferSyntaxUID, true
	}
	return "", false
}

// computedTags are the attributes that computed knows, by the level at which they appear; the
// counts of the patient only where a key asks for them, for they cost a row.
func computedTags(level Level) []dicom.Tag {
	tags := []dicom.Tag{dicom.PatientID, dicom.IssuerOfPatientID, dicom.InstanceAvailability}
	if level == LevelPatient {
		return append(tags, dicom.NumberOfPatientRelatedStudies, dicom.NumberOfPatientRelatedSeries,
			dicom.NumberOfPatientRelatedInstances)
	}
	tags = append(tags, dicom.StudyInstanceUID, dicom.ModalitiesInStudy, dicom.SOPClassesInStudy,
		dicom.NumberOfStudyRelatedSeries, dicom.NumberOfStudyRelatedInstances)
	if level >= LevelSeries {
		tags = append(tags, dicom.SeriesInstanceUID, dicom.NumberOfSeriesRelatedInstances)
	}
	if level >= LevelImage {
		tags = append(tags, dicom.SOPInstanceUID, dicom.SOPClassUID, dicom.AvailableTransferSyntaxUID)
	}
	return tags
}

// find returns the attribute of a record; present tells whether the catalog has it at all.
func (r *record) find(tag dicom.Tag) (a attribute, present bool, err error) {
	text, ok, err := r.computed(tag)
	if err != nil || ok {
		return attribute{tag: tag, vr: dicom.VROf(tag), value: []byte(text)}, ok, err
	}
	for _, set := range r.sets() {
		if a, ok := findAttribute(set, tag); ok {
			return a, true, nil
		}
	}
	return attribute{}, false, nil
}

// attributes returns everything known of the record, in tag order. wanted adds computed attributes
// that are not given unasked.
func (r *record) attributes(wanted []dicom.Tag) (*dicom.Dataset, error) {
	d := &dicom.Dataset{}
	for _, set := range r.sets() {
		eachAttribute(set, func(a attribute) bool {
			if a.tag != dicom.SpecificCharacterSet {
				d.Elements = append(d.Elements, elementOf(a))
			}
			return true
		})
	}
	slices.SortStableFunc(d.Elements, func(a, b dicom.Element) int { return int(int64(a.Tag) - int64(b.Tag)) })
	d.Elements = slices.CompactFunc(d.Elements, func(a, b dicom.Element) bool { return a.Tag == b.Tag })
	for _, tag := range append(computedTags(r.level()), wanted...) {
		text, _, err := r.computed(tag)
		if err != nil {
			return nil, err
		}
		if text == "" && tag == dicom.IssuerOfPatientID {
			continue
		}
		d.SetStrings(tag, text)
	}
	adopt(d, slices.ContainsFunc(r.sets(), notASCII) || !ascii(r.patientKey().ID+r.patientKey().Issuer))
	return d, nil
}

// adopt makes items inherit from d and names UTF-8 as its character set where it needs one.
func adopt(d *dicom.Dataset, utf8 bool) {
	for i := range d.Elements {
		if len(d.Elements[i].Items) > 0 {
			d.Set(d.Elements[i])
		}
	}
	if utf8 {
		d.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte("ISO_IR 192")})
	}
}

func notASCII(b []byte) bool {
	return slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}

func ascii(s string) bool { return !notASCII([]byte(s)) }

// elementOf returns an attribute as the dicom package has it.
func elementOf(a attribute) dicom.Element { return elementAt(a, 0) }

func elementAt(a attribute, depth int) dicom.Element {
	el := dicom.Element{Tag: a.tag, VR: a.vr}
	if a.vr != dicom.SQ {
		el.Value = a.value
		return el
	}
	eachItem(a.value, func(set []byte) bool {
		item := &dicom.Dataset{}
		eachAttribute(set, func(sub attribute) bool {
			if depth < maxDepth {
				item.Set(elementAt(sub, depth+1))
			}
			return true
		})
		el.Items = append(el.Items, item)
		return true
	})
	return el
}
