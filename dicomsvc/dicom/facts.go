package dicom

import (
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

// The attributes kept by level: the modules of PS3.3 C.7.1.1, C.7.2 and C.7.3 as far as PS3.4 C.6.1 and C.6.2 and PS3.18 Tables 10.6.3-3 to 10.6.3-5 name
// them, and those that viewers and worklists commonly ask for.
var (
	patientAttributes = [...]Tag{
		PatientName, PatientID, IssuerOfPatientID, TypeOfPatientID, IssuerOfPatientIDQualifiersSequence,
		PatientBirthDate, PatientBirthTime, PatientSex, QualityControlSubject, OtherPatientIDs, OtherPatientNames,
		OtherPatientIDsSequence, EthnicGroup, PatientSpeciesDescription, PatientBreedDescription, PatientComments,
		ResponsiblePerson, ResponsibleOrganization, PatientIdentityRemoved, DeidentificationMethod,
		ClinicalTrialSponsorName, ClinicalTrialProtocolID, ClinicalTrialProtocolName, ClinicalTrialSiteID, ClinicalTrialSubjectID,
		ClinicalTrialSubjectReadingID,
	}
	studyAttributes = [...]Tag{
		StudyDate, StudyTime, AccessionNumber, IssuerOfAccessionNumberSequence, ReferringPhysicianName, StudyDescription,
		ProcedureCodeSequence, PhysiciansOfRecord, ConsultingPhysicianName, NameOfPhysiciansReadingStudy, StudyInstanceUID, StudyID,
		AdmittingDiagnosesDescription, ReferencedStudySequence, PatientAge, PatientSize, PatientWeight, PregnancyStatus,
		Occupation, AdditionalPatientHistory, AdmissionID, ReasonForTheRequestedProcedure, RequestedProcedureDescription,
		TimezoneOffsetFromUTC, InstitutionName, InstitutionalDepartmentName, ClinicalTrialTimePointID,
	}
	seriesAttributes = [...]Tag{
		Modality, SeriesDate, SeriesTime, SeriesDescription, SeriesDescriptionCodeSequence, Manufacturer, InstitutionName, InstitutionAddress,
		StationName, InstitutionalDepartmentName, PerformingPhysicianName, OperatorsName, ManufacturerModelName,
		DeviceSerialNumber, SoftwareVersions, BodyPartExamined, AnatomicRegionSequence, PatientPosition, ProtocolName,
		SeriesInstanceUID, SeriesNumber, Laterality, FrameOfReferenceUID, PositionReferenceIndicator,
		PerformedProcedureStepStartDate, PerformedProcedureStepStartTime, PerformedProcedureStepEndDate, PerformedProcedureStepEndTime,
		PerformedProcedureStepID, PerformedProcedureStepDescription, RequestAttributesSequence, TimezoneOffsetFromUTC,
		PresentationIntentType, SequenceName, ScanningSequence, ContrastBolusAgent,
	}
	instanceAttributes = [...]Tag{
		SOPClassUID, SOPInstanceUID, InstanceNumber, InstanceCreationDate, InstanceCreationTime, AcquisitionDate, AcquisitionTime,
		AcquisitionDateTime, ContentDate, ContentTime, AcquisitionNumber, ImageType, NumberOfFrames, Rows, Columns, SamplesPerPixel,
		PhotometricInterpretation, BitsAllocated, BitsStored, HighBit, PixelRepresentation, PlanarConfiguration, PixelSpacing,
		ImagerPixelSpacing, SliceThickness, SliceLocation, ImagePositionPatient, ImageOrientationPatient, WindowCenter, WindowWidth,
		RescaleIntercept, RescaleSlope, LossyImageCompression, BurnedInAnnotation, ImageComments, TimezoneOffsetFromUTC,
		ConceptNameCodeSequence, CompletionFlag, VerificationFlag, ObservationDateTime, VerificationDateTime,
		ContentLabel, ContentDescription, PresentationCreationDate, PresentationCreationTime, ContentCreatorName,
		DocumentTitle, MIMETypeOfEncapsulatedDocument, TemporalPositionIdentifier, EchoTime, ImageLaterality, ViewPosition,
		ReferencedSeriesSequence,
	}
)

// ExtractFacts takes from a header what the catalog keeps. UIDs lose their padding. Fails with an *AttributeError: ErrMissing for an absent SOP
// Class, SOP Instance, Study Instance or Series Instance UID, ErrBadUID for one that is no UID (leading zeros in a component are forgiven).
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
		if !usableUID(uid) {
			return Facts{}, &AttributeError{ErrBadUID, u.tag}
		}
		*u.to = uid
	}
	f.PatientID = clipped(h.String(PatientID), factBytesMax)
	f.Issuer = clipped(h.String(IssuerOfPatientID), factBytesMax)
	f.Frames = numberOfFrames(h)
	f.Patient = subset(h, patientAttributes[:])
	f.Study = subset(h, studyAttributes[:])
	f.Series = subset(h, seriesAttributes[:])
	f.Instance = subset(h, instanceAttributes[:])
	return f, nil
}

// subset copies the listed attributes into a data set of its own in UTF-8.
func subset(h *Dataset, tags []Tag) *Dataset {
	d := &Dataset{Elements: make([]Element, 0, len(tags))}
	for _, tag := range tags {
		if el := h.Get(tag); el != nil {
			if kept, ok := fact(h, el); ok {
				d.Set(kept)
			}
		}
	}
	if !d.allASCII() {
		d.Set(Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte(utf8Term)})
	}
	return d
}

// fact returns a copy of the element in UTF-8, or false when it is not for an index.
func fact(h *Dataset, el *Element) (Element, bool) {
	vr := el.effectiveVR()
	switch {
	case el.Bulk != nil || vr.IsBinary():
		return Element{}, false
	case vr == SQ:
		return sequenceFact(h, el)
	case vr.IsString():
		s := h.text(el)
		if !vr.single() {
			s = joinTrimmed(s, vr)
		} else {
			s = trimValue(s, vr)
		}
		if len(s) > factBytesMax && !vr.IsText() {
			return Element{}, false
		}
		return Element{Tag: el.Tag, VR: vr, Value: padded([]byte(clipped(s, factBytesMax)), vr)}, true
	case len(el.Value) > factBytesMax:
		return Element{}, false
	}
	return Element{Tag: el.Tag, VR: vr, Value: append([]byte(nil), el.Value...)}, true
}

// sequenceFact copies a small sequence; its items are in UTF-8 and inherit from the subset.
func sequenceFact(h *Dataset, el *Element) (Element, bool) {
	budget := factSequenceBytesMax
	items, ok := factItems(h, el, &budget, 0)
	return Element{Tag: el.Tag, VR: SQ, Items: items}, ok
}

func factItems(h *Dataset, el *Element, budget *int, depth int) ([]*Dataset, bool) {
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
				if kept.Items, ok = factItems(from, e, budget, depth+1); !ok {
					return nil, false
				}
			case e.VR == SQ:
				return nil, false
			default:
				kept, ok = fact(from, e)
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
