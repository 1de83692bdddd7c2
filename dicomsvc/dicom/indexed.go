package dicom

import "slices"

// Indexed reports whether ExtractFacts keeps an attribute at one of the four levels, so that queries match and return it.
func Indexed(tag Tag) bool {
	return slices.Contains(patientAttributes[:], tag) || slices.Contains(studyAttributes[:], tag) ||
		slices.Contains(seriesAttributes[:], tag) || slices.Contains(instanceAttributes[:], tag)
}
