package catalog

import "osteon/dicomsvc/dicom"

// levelOf returns the level at which the catalog keeps or computes an attribute (PS3.4 §C.6.1 and
// §C.6.2), 0 for one that it does not know: a key for such an attribute restricts only where an
// attribute set happens to hold it. An attribute of two levels belongs to the lower, whose query
// finds both.
func levelOf(tag dicom.Tag) Level {
	switch tag {
	case dicom.PatientName, dicom.PatientID, dicom.IssuerOfPatientID, dicom.PatientBirthDate, dicom.PatientBirthTime,
		dicom.PatientSex, dicom.OtherPatientIDs, dicom.OtherPatientNames, dicom.OtherPatientIDsSequence, dicom.EthnicGroup,
		dicom.PatientComments, dicom.PatientSpeciesDescription, dicom.PatientBreedDescription, dicom.ResponsiblePerson,
		dicom.ResponsibleOrganization, dicom.NumberOfPatientRelatedStudies, dicom.NumberOfPatientRelatedSeries,
		dicom.NumberOfPatientRelatedInstances:
		return LevelPatient
	case dicom.StudyDate, dicom.StudyTime, dicom.AccessionNumber, dicom.IssuerOfAccessionNumberSequence,
		dicom.ReferringPhysicianName, dicom.StudyDescription, dicom.ProcedureCodeSequence, dicom.PhysiciansOfRecord,
		dicom.NameOfPhysiciansReadingStudy, dicom.StudyInstanceUID, dicom.StudyID, dicom.AdmittingDiagnosesDescription,
		dicom.PatientAge, dicom.PatientSize, dicom.PatientWeight, dicom.Occupation, dicom.AdditionalPatientHistory,
		dicom.AdmissionID, dicom.ReasonForTheRequestedProcedure, dicom.RequestedProcedureDescription,
		dicom.ModalitiesInStudy, dicom.SOPClassesInStudy, dicom.NumberOfStudyRelatedSeries, dicom.NumberOfStudyRelatedInstances:
		return LevelStudy
	case dicom.Modality, dicom.SeriesDate, dicom.SeriesTime, dicom.SeriesDescription, dicom.Manufacturer,
		dicom.InstitutionAddress, dicom.StationName, dicom.PerformingPhysicianName, dicom.OperatorsName,
		dicom.ManufacturerModelName, dicom.DeviceSerialNumber, dicom.BodyPartExamined, dicom.PatientPosition,
		dicom.ProtocolName, dicom.SeriesInstanceUID, dicom.SeriesNumber, dicom.Laterality, dicom.FrameOfReferenceUID,
		dicom.PerformedProcedureStepStartDate, dicom.PerformedProcedureStepStartTime, dicom.PerformedProcedureStepID,
		dicom.PerformedProcedureStepDescription, dicom.RequestAttributesSequence, dicom.NumberOfSeriesRelatedInstances:
		return LevelSeries
	}
	if imageTag(tag) {
		return LevelImage
	}
	return 0
}

func imageTag(tag dicom.Tag) bool {
	switch tag {
	case dicom.SOPInstanceUID, dicom.SOPClassUID, dicom.AvailableTransferSyntaxUID:
		return true
	case dicom.SpecificCharacterSet:
		return false
	}
	return keptWhenSealed(tag)
}
