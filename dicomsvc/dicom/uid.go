package dicom

import "strings"

type uidName struct{ uid, name string }

// UIDs of service classes that the archive speaks (PS3.4, PS3.6 Table A-1).
const (
	VerificationSOPClass             = "1.2.840.10008.1.1"
	StorageCommitmentPushModel       = "1.2.840.10008.1.20.1"
	StorageCommitmentPushInstance    = "1.2.840.10008.1.20.1.1"
	PatientRootQueryRetrieveFind     = "1.2.840.10008.5.1.4.1.2.1.1"
	PatientRootQueryRetrieveMove     = "1.2.840.10008.5.1.4.1.2.1.2"
	PatientRootQueryRetrieveGet      = "1.2.840.10008.5.1.4.1.2.1.3"
	StudyRootQueryRetrieveFind       = "1.2.840.10008.5.1.4.1.2.2.1"
	StudyRootQueryRetrieveMove       = "1.2.840.10008.5.1.4.1.2.2.2"
	StudyRootQueryRetrieveGet        = "1.2.840.10008.5.1.4.1.2.2.3"
	ModalityWorklistFind             = "1.2.840.10008.5.1.4.31"
	ModalityPerformedProcedureStep   = "1.2.840.10008.3.1.2.3.3"
	InstanceAvailabilityNotification = "1.2.840.10008.5.1.4.33"
	ApplicationContextName           = "1.2.840.10008.3.1.1.1"
	MediaStorageDirectoryStorage     = "1.2.840.10008.1.3.10"
)

// serviceClasses are the classes that are not storage, and storage classes retired before the generated table begins.
var serviceClasses = [...]uidName{
	{VerificationSOPClass, "Verification"},
	{StorageCommitmentPushModel, "Storage Commitment Push Model"},
	{MediaStorageDirectoryStorage, "Media Storage Directory Storage"},
	{ModalityPerformedProcedureStep, "Modality Performed Procedure Step"},
	{PatientRootQueryRetrieveFind, "Patient Root Query/Retrieve Information Model - FIND"},
	{PatientRootQueryRetrieveMove, "Patient Root Query/Retrieve Information Model - MOVE"},
	{PatientRootQueryRetrieveGet, "Patient Root Query/Retrieve Information Model - GET"},
	{StudyRootQueryRetrieveFind, "Study Root Query/Retrieve Information Model - FIND"},
	{StudyRootQueryRetrieveMove, "Study Root Query/Retrieve Information Model - MOVE"},
	{StudyRootQueryRetrieveGet, "Study Root Query/Retrieve Information Model - GET"},
	{ModalityWorklistFind, "Modality Worklist Information Model - FIND"},
	{InstanceAvailabilityNotification, "Instance Availability Notification"},
	{"1.2.840.10008.5.1.1.27", "Stored Print Storage (Retired)"},
	{"1.2.840.10008.5.1.1.29", "Hardcopy Grayscale Image Storage (Retired)"},
	{"1.2.840.10008.5.1.1.30", "Hardcopy Color Image Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.3", "Ultrasound Multi-frame Image Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.5", "Nuclear Medicine Image Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.6", "Ultrasound Image Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.8", "Standalone Overlay Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.9", "Standalone Curve Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.9.1", "Waveform Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.10", "Standalone Modality LUT Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.11", "Standalone VOI LUT Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.12.3", "X-Ray Angiographic Bi-Plane Image Storage (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.77.1", "VL Image Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.77.2", "VL Multi-frame Image Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.88.1", "Text SR Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.88.2", "Audio SR Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.88.3", "Detail SR Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.88.4", "Comprehensive SR Storage - Trial (Retired)"},
	{"1.2.840.10008.5.1.4.1.1.129", "Standalone PET Curve Storage (Retired)"},
}

// StorageClasses yields UID and name of every storage SOP class, retired ones last, until yield returns false.
func StorageClasses(yield func(uid, name string) bool) {
	for _, c := range storageClasses {
		if !yield(c.uid, c.name) {
			return
		}
	}
	for _, c := range serviceClasses {
		if strings.HasSuffix(c.name, "(Retired)") && !yield(c.uid, c.name) {
			return
		}
	}
}

// SOPClassName returns the name of a SOP class, or "" for one the tables do not hold.
func SOPClassName(uid string) string {
	for _, c := range storageClasses {
		if c.uid == uid {
			return c.name
		}
	}
	for _, c := range serviceClasses {
		if c.uid == uid {
			return c.name
		}
	}
	return ""
}

// ValidUID reports whether s obeys PS3.5 9.1: 1 to 64 characters, components of digits joined by single dots, no component with a
// leading zero save "0" itself.
func ValidUID(s string) bool {
	for i := range len(s) {
		if s[i] != '.' && (s[i] < '0' || s[i] > '9') {
			return false
		}
		if s[i] == '0' && (i == 0 || s[i-1] == '.') && i+1 < len(s) && s[i+1] != '.' {
			return false
		}
	}
	return UsableUID(s)
}

// UsableUID reports whether s can name an object although it may break PS3.5 9.1: leading zeros, which old equipment writes, and
// letters, hyphens and underscores, as de-identifiers write that put a hash or a UUID in the place of a UID, endanger nothing. What
// means something in a query, a path or a list of values does not pass, nor do empty components.
func UsableUID(s string) bool {
	if s == "" || len(s) > uidBytesMax {
		return false
	}
	previous := byte('.')
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '.' && previous != '.':
			previous = c
		default:
			return false
		}
	}
	return previous != '.'
}
