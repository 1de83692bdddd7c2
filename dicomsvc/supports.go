package dicomsvc

import (
	"osteon/dicomsvc/dicom"
	"osteon/raft/catalog"
)

// Supports reports what Search at a level does with a key for an attribute, whatever became of the instances
// since: whether the key restricts the matches, and whether these give the attribute (PS3.4 §C.4.1.1.4).
func Supports(tag dicom.Tag, level Level) (matched, returned bool) {
	return catalog.Supports(tag, level)
}
