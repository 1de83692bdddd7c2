package dicom

import (
	"testing"
)

// ctHeader returns the header of a CT image in Explicit VR Little Endian as scanners write it, of about 1,800 bytes.
func ctHeader(t testing.TB) []byte {
	d := &Dataset{}
	for _, v := range []struct {
		tag    Tag
		values []string
	}{
		{SpecificCharacterSet, []string{"ISO_IR 100"}},
		{ImageType, []string{"ORIGINAL", "PRIMARY", "AXIAL"}},
		{InstanceCreationDate, []string{"20260105"}},
		{InstanceCreationTime, []string{"101530.125000"}},
		{SOPClassUID, []string{"1.2.840.10008.5.1.4.1.1.2"}},
		{SOPInstanceUID, []string{"2.25.329800735698586629295641978511506172918"}},
		{StudyDate, []string{"20260105"}},
		{SeriesDate, []string{"20260105"}},
		{AcquisitionDate, []string{"20260105"}},
		{ContentDate, []string{"20260105"}},
		{StudyTime, []string{"100200"}},
		{SeriesTime, []string{"101005.250000"}},
		{AcquisitionTime, []string{"101010.500000"}},
		{ContentTime, []string{"101010.500000"}},
		{AccessionNumber, []string{"ACC0001"}},
		{Modality, []string{"CT"}},
		{Manufacturer, []string{"EXAMPLE MEDICAL SYSTEMS"}},
		{InstitutionName, []string{"Example Hospital"}},
		{ReferringPhysicianName, []string{"Referrer^Rita"}},
		{StationName, []string{"CT01"}},
		{StudyDescription, []string{"CT THORAX W CONTRAST"}},
		{SeriesDescription, []string{"THORAX 1.25 STND"}},
		{InstitutionalDepartmentName, []string{"Radiology"}},
		{OperatorsName, []string{"Operator^Olaf"}},
		{ManufacturerModelName, []string{"Example CT 64"}},
		{PatientName, []string{"Phantom^Paula"}},
		{PatientID, []string{"PH-000123"}},
		{IssuerOfPatientID, []string{"EXAMPLE"}},
		{PatientBirthDate, []string{"19700101"}},
		{PatientSex, []string{"O"}},
		{PatientAge, []string{"056Y"}},
		{PatientWeight, []string{"70"}},
		{BodyPartExamined, []string{"CHEST"}},
		{ScanOptions, []string{"HELICAL MODE"}},
		{SliceThickness, []string{"1.250000"}},
		{KVP, []string{"120"}},
		{DataCollectionDiameter, []string{"500.000000"}},
		{DeviceSerialNumber, []string{"EX-4711"}},
		{SoftwareVersions, []string{"EX_5.2.1"}},
		{ProtocolName, []string{"5.1 Routine Thorax"}},
		{ReconstructionDiameter, []string{"380.000000"}},
		{DistanceSourceToDetector, []string{"949.075012"}},
		{DistanceSourceToPatient, []string{"541.000000"}},
		{GantryDetectorTilt, []string{"0.000000"}},
		{TableHeight, []string{"151.500000"}},
		{RotationDirection, []string{"CW"}},
		{ExposureTime, []string{"600"}},
		{XRayTubeCurrent, []string{"240"}},
		{Exposure, []string{"2"}},
		{FilterType, []string{"BODY FILTER"}},
		{GeneratorPower, []string{"28800"}},
		{FocalSpots, []string{"1.200000"}},
		{ConvolutionKernel, []string{"STANDARD"}},
		{PatientPosition, []string{"FFS"}},
		{StudyInstanceUID, []string{"2.25.137355362850316362338405159557803995481"}},
		{SeriesInstanceUID, []string{"2.25.211702350626706564205578664329350431071"}},
		{StudyID, []string{"4711"}},
		{SeriesNumber, []string{"3"}},
		{AcquisitionNumber, []string{"1"}},
		{InstanceNumber, []string{"57"}},
		{ImagePositionPatient, []string{"-190.000000", "-165.500000", "-82.750000"}},
		{ImageOrientationPatient, []string{"1.000000", "0.000000", "0.000000", "0.000000", "1.000000", "0.000000"}},
		{FrameOfReferenceUID, []string{"2.25.292131432873011250371217432087193498002"}},
		{PositionReferenceIndicator, []string{"SN"}},
		{SliceLocation, []string{"-82.750000"}},
		{PhotometricInterpretation, []string{"MONOCHROME2"}},
		{PixelSpacing, []string{"0.742188", "0.742188"}},
		{WindowCenter, []string{"40"}},
		{WindowWidth, []string{"400"}},
		{RescaleIntercept, []string{"-1024"}},
		{RescaleSlope, []string{"1"}},
		{RescaleType, []string{"HU"}},
		{PerformedProcedureStepStartDate, []string{"20260105"}},
		{PerformedProcedureStepStartTime, []string{"100200"}},
		{PerformedProcedureStepID, []string{"PPS4711"}},
	} {
		d.SetStrings(v.tag, v.values...)
	}
	for tag, n := range map[Tag]int{SamplesPerPixel: 1, Rows: 512, Columns: 512, BitsAllocated: 16, BitsStored: 16, HighBit: 15, PixelRepresentation: 1} {
		d.SetInt(tag, n)
	}
	code := &Dataset{}
	code.SetStrings(CodeValue, "24627-2")
	code.SetStrings(CodingSchemeDesignator, "LN")
	code.SetStrings(CodeMeaning, "CT Chest")
	d.Set(Element{Tag: ProcedureCodeSequence, VR: SQ, Items: []*Dataset{code}})
	b, err := d.Encode(nil, ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ctObject returns a CT image: ctHeader and 512 KiB of pixels.
func ctObject(t testing.TB) []byte {
	b := AppendElementHeader(ctHeader(t), true, false, PixelData, OW, 512<<10)
	return append(b, make([]byte, 512<<10)...)
}
