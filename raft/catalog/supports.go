package catalog

import "osteon/dicomsvc/dicom"

// Supports reports what a search at a level does with a key for an attribute, whatever became of the instances
// since, sealed or not: whether the key restricts the matches, and whether these give the attribute.
func Supports(tag dicom.Tag, level Level) (matched, returned bool) {
	if at := levelOf(effectiveTag(tag, level)); at != 0 && at <= level {
		matched = true
	}
	if at := levelOf(tag); at != 0 && at <= level {
		return matched, true
	}
	// Others are kept with their patient, study or series, but only instances not sealed yet keep theirs.
	at := Level(dicom.IndexedLevel(tag))
	return matched, at != 0 && at <= min(level, LevelSeries)
}
