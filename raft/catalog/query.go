package catalog

import (
	"osteon/dicomsvc/dicom"
)

// Query is a question at one level (PS3.4 §C.4.1, PS3.18 §8.3).
type Query struct {
	Level Level
	Keys  []Key
	// Offset matches are passed over, and at most Limit follow; 0 is no limit.
	Offset, Limit int
	// Relational allows keys of any level without the unique keys of the levels above. Without it
	// a SERIES query needs one Study Instance UID, an IMAGE query one Series Instance UID besides.
	Relational bool
	// Stats, where set, is filled while the search runs.
	Stats *Stats
}

// Stats counts the work of a search. It may be read when the search has ended.
type Stats struct {
	Examined int // index entries and rows read; instance tables count one a sealed instance
	Matched  int // matches before Offset and Limit
}

// Key is one matching key. A key without values, or all of whose values are "*", matches anything;
// several values match when one does.
type Key struct {
	Tag    dicom.Tag
	VR     dicom.VR
	Values []string // UTF-8, split at the backslash already
	Item   []Key    // of a sequence: what one of its items has to match
}

// Match is one result of a search.
type Match struct {
	// Attributes is everything known at the level of the query and those above, in UTF-8 and tag
	// order, with the computed attributes: NumberOfPatientRelatedStudies, -Series and -Instances
	// (PATIENT); ModalitiesInStudy, SOPClassesInStudy, NumberOfStudyRelatedSeries and -Instances
	// (STUDY); NumberOfSeriesRelatedInstances (SERIES); AvailableTransferSyntaxUID (IMAGE);
	// InstanceAvailability. Belongs to the caller.
	Attributes        *dicom.Dataset
	PatientKey        PatientKey
	StudyInstanceUID  string // empty at PATIENT level
	SeriesInstanceUID string
	SOPInstanceUID    string
	// Provisional tells that pending items of With have a part in it.
	Provisional bool
}
