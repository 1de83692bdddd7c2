package dicom

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Facts is what the archive indexes of one instance.
type Facts struct {
	SOPClassUID, SOPInstanceUID, StudyInstanceUID, SeriesInstanceUID string
	// PatientID and Issuer are UTF-8 without padding, "" when absent. Issuer is Issuer of Patient ID.
	PatientID, Issuer string
	// Frames is Number of Frames, 1 when the instance does not say.
	Frames int
	// The attributes of each level that queries ask for, in UTF-8, bounded in size; each is a data set of its own.
	Patient, Study, Series, Instance *Dataset
}

// factBytesMax bounds one value in an index subset; a longer text is cut at a character, anything else is left out.
const factBytesMax = 1 << 10

// factSequenceBytesMax bounds one sequence in an index subset, as encoded; a longer one is left out.
const factSequenceBytesMax = 4 << 10

// factArenaBytes holds the subsets of most instances.
const factArenaBytes = 2 << 10

// The attributes kept by level: the modules of PS3.3 C.7.1.1, C.7.2 and C.7.3 as far as PS3.4 C.6.1 and C.6.2 and PS3.18 Tables 10.6.3-3 to 10.6.3-5 name
// them, and those that viewers and worklists commonly ask for. In ascending order.
var (
	patientAttributes = [...]Tag{
		PatientName, PatientID, IssuerOfPatientID, TypeOfPatientID, IssuerOfPatientIDQualifiersSequence, PatientBirthDate,
		PatientBirthTime, PatientSex, QualityControlSubject, OtherPatientIDs, OtherPatientNames, OtherPatientIDsSequence,
		EthnicGroup, PatientSpeciesDescription, PatientBreedDescription, ResponsiblePerson, ResponsibleOrganization, PatientComments,
		ClinicalTrialSponsorName, ClinicalTrialProtocolID, ClinicalTrialProtocolName, ClinicalTrialSiteID, ClinicalTrialSubjectID,
		ClinicalTrialSubjectReadingID, PatientIdentityRemoved, DeidentificationMethod,
	}
	studyAttributes = [...]Tag{
		StudyDate, StudyTime, AccessionNumber, IssuerOfAccessionNumberSequence, InstitutionName, ReferringPhysicianName,
		ConsultingPhysicianName, TimezoneOffsetFromUTC, StudyDescription, ProcedureCodeSequence, InstitutionalDepartmentName,
		PhysiciansOfRecord, NameOfPhysiciansReadingStudy, AdmittingDiagnosesDescription, ReferencedStudySequence, PatientAge,
		PatientSize, PatientWeight, Occupation, AdditionalPatientHistory, PregnancyStatus, ClinicalTrialTimePointID,
		StudyInstanceUID, StudyID, RequestedProcedureDescription, AdmissionID, ReasonForTheRequestedProcedure,
	}
	seriesAttributes = [...]Tag{
		SeriesDate, SeriesTime, Modality, PresentationIntentType, Manufacturer, InstitutionName, InstitutionAddress,
		TimezoneOffsetFromUTC, StationName, SeriesDescription, SeriesDescriptionCodeSequence, InstitutionalDepartmentName,
		PerformingPhysicianName, OperatorsName, ManufacturerModelName, AnatomicRegionSequence, ContrastBolusAgent, BodyPartExamined,
		ScanningSequence, SequenceName, DeviceSerialNumber, SoftwareVersions, ProtocolName, PatientPosition, SeriesInstanceUID,
		SeriesNumber, FrameOfReferenceUID, Laterality, PositionReferenceIndicator, PerformedProcedureStepStartDate,
		PerformedProcedureStepStartTime, PerformedProcedureStepEndDate, PerformedProcedureStepEndTime, PerformedProcedureStepID,
		PerformedProcedureStepDescription, RequestAttributesSequence,
	}
	instanceAttributes = [...]Tag{
		ImageType, InstanceCreationDate, InstanceCreationTime, SOPClassUID, SOPInstanceUID, AcquisitionDate, ContentDate,
		AcquisitionDateTime, AcquisitionTime, ContentTime, TimezoneOffsetFromUTC, ReferencedSeriesSequence, SliceThickness, EchoTime,
		ImagerPixelSpacing, ViewPosition, AcquisitionNumber, InstanceNumber, ImagePositionPatient, ImageOrientationPatient,
		ImageLaterality, TemporalPositionIdentifier, SliceLocation, ImageComments, SamplesPerPixel, PhotometricInterpretation,
		PlanarConfiguration, NumberOfFrames, Rows, Columns, PixelSpacing, BitsAllocated, BitsStored, HighBit, PixelRepresentation,
		BurnedInAnnotation, WindowCenter, WindowWidth, RescaleIntercept, RescaleSlope, LossyImageCompression, VerificationDateTime,
		ObservationDateTime, ConceptNameCodeSequence, CompletionFlag, VerificationFlag, DocumentTitle,
		MIMETypeOfEncapsulatedDocument, ContentLabel, ContentDescription, PresentationCreationDate, PresentationCreationTime,
		ContentCreatorName,
	}
)

// ExtractFacts takes from a header what the catalog keeps. UIDs lose their padding. Fails with an *AttributeError: ErrMissing for an absent SOP
// Class, SOP Instance, Study Instance or Series Instance UID, ErrBadUID for one that is not a UsableUID.
func ExtractFacts(h *Dataset) (Facts, error) {
	var f Facts
	for _, u := range [...]struct {
		tag Tag
		to  *string
	}{
		{SOPClassUID, &f.SOPClassUID}, {SOPInstanceUID, &f.SOPInstanceUID},
		{StudyInstanceUID, &f.StudyInstanceUID}, {SeriesInstanceUID, &f.SeriesInstanceUID},
	} {
		uid := h.String(u.tag)
		if uid == "" {
			return Facts{}, &AttributeError{ErrMissing, u.tag}
		}
		if !UsableUID(uid) || !h.Get(u.tag).effectiveVR().IsString() { // a number is no UID
			return Facts{}, &AttributeError{ErrBadUID, u.tag}
		}
		*u.to = uid
	}
	f.PatientID = clipped(h.String(PatientID), factBytesMax)
	f.Issuer = clipped(h.String(IssuerOfPatientID), factBytesMax)
	f.Frames = numberOfFrames(h)
	var a arena
	f.Patient = a.subset(h, patientAttributes[:])
	f.Study = a.subset(h, studyAttributes[:])
	f.Series = a.subset(h, seriesAttributes[:])
	f.Instance = a.subset(h, instanceAttributes[:])
	return f, nil
}

// arena is where the values of the subsets live, so that an instance costs few allocations.
type arena []byte

// keep returns a padded copy of v.
func (a *arena) keep(v []byte, vr VR) []byte {
	if need := len(v) + 1; cap(*a)-len(*a) < need {
		*a = make([]byte, 0, max(factArenaBytes, need))
	}
	start := len(*a)
	*a = append(*a, v...)
	if len(v)%2 == 1 {
		*a = append(*a, vr.pad())
	}
	return (*a)[start:len(*a):len(*a)]
}

// subset copies the listed attributes, whose tags ascend, into a data set of its own in UTF-8.
func (a *arena) subset(h *Dataset, tags []Tag) *Dataset {
	var found [len(instanceAttributes)]*Element
	n := 0
	for _, tag := range tags {
		if el := h.Get(tag); el != nil {
			found[n] = el
			n++
		}
	}
	d := &Dataset{Elements: make([]Element, 0, n+1)}
	for _, el := range found[:n] {
		if kept, ok := a.fact(h, el); ok {
			for _, item := range kept.Items {
				item.parent = d
			}
			d.Elements = append(d.Elements, kept)
		}
	}
	if !d.allASCII() {
		d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte(utf8Term)})
	}
	return d
}

// fact returns a copy of the element in UTF-8, or false when it is not for an index.
func (a *arena) fact(h *Dataset, el *Element) (Element, bool) {
	vr := el.effectiveVR()
	switch {
	case el.Bulk != nil || vr.IsBinary():
		return Element{}, false
	case vr == SQ:
		return a.sequenceFact(h, el)
	case vr.IsString():
		return a.stringFact(h, el, vr)
	case len(el.Value) > factBytesMax:
		return Element{}, false
	}
	return Element{Tag: el.Tag, VR: vr, Value: a.keep(el.Value, vr)}, true
}

func (a *arena) stringFact(h *Dataset, el *Element, vr VR) (Element, bool) {
	if len(el.Value) <= factBytesMax && plain(el.Value) && bytes.IndexByte(el.Value, '\\') < 0 {
		v := bytes.TrimRight(el.Value, " \x00")
		if trimsLeft(vr) {
			v = bytes.TrimLeft(v, " ")
		}
		return Element{Tag: el.Tag, VR: vr, Value: a.keep(v, vr)}, true
	}
	s := h.text(el)
	if vr.single() {
		s = trimValue(s, vr)
	} else {
		s = joinTrimmed(s, vr)
	}
	if len(s) > factBytesMax && !vr.IsText() {
		return Element{}, false
	}
	return Element{Tag: el.Tag, VR: vr, Value: a.keep([]byte(clipped(s, factBytesMax)), vr)}, true
}

// sequenceFact copies a small sequence; its items are in UTF-8 and inherit from the subset.
func (a *arena) sequenceFact(h *Dataset, el *Element) (Element, bool) {
	budget := factSequenceBytesMax
	items, ok := a.factItems(h, el, &budget, 0)
	return Element{Tag: el.Tag, VR: SQ, Items: items}, ok
}

func (a *arena) factItems(h *Dataset, el *Element, budget *int, depth int) ([]*Dataset, bool) {
	var items []*Dataset
	for _, from := range el.Items {
		item := &Dataset{}
		for i := range from.Elements {
			e := &from.Elements[i]
			var kept Element
			ok := e.Tag != SpecificCharacterSet
			switch {
			case !ok:
			case e.VR == SQ && depth < 4:
				kept = Element{Tag: e.Tag, VR: SQ}
				if kept.Items, ok = a.factItems(from, e, budget, depth+1); !ok {
					return nil, false
				}
			case e.VR == SQ:
				return nil, false
			default:
				kept, ok = a.fact(from, e)
			}
			if !ok {
				continue
			}
			if *budget -= 8 + len(kept.Value); *budget < 0 {
				return nil, false
			}
			item.Set(kept)
		}
		if *budget -= 8; *budget < 0 {
			return nil, false
		}
		items = append(items, item)
	}
	return items, true
}

// allASCII reports whether no text of the data set or its items needs a character set.
func (d *Dataset) allASCII() bool {
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.effectiveVR().IsText() && !plain(el.Value) {
			return false
		}
		for _, item := range el.Items {
			if !item.allASCII() {
				return false
			}
		}
	}
	return true
}

// joinTrimmed trims each of the values in s.
func joinTrimmed(s string, vr VR) string {
	if !strings.Contains(s, "\\") {
		return trimValue(s, vr)
	}
	list := strings.Split(s, "\\")
	for i := range list {
		list[i] = trimValue(list[i], vr)
	}
	return strings.Join(list, "\\")
}

// clipped cuts s to at most n bytes, between characters.
func clipped(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
