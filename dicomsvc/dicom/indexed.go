package dicom

import "slices"

// Indexed reports whether ExtractFacts keeps an attribute at one of the four levels, so that queries match and return it.
func Indexed(tag Tag) bool { return IndexedLevel(tag) != 0 }

// IndexedLevel returns the highest level at which ExtractFacts keeps an attribute: 1 patient, 2 study, 3 series, 4 instance, 0 none.
func IndexedLevel(tag Tag) int {
	for i, list := range [...][]Tag{patientAttributes[:], studyAttributes[:], seriesAttributes[:], instanceAttributes[:]} {
		if slices.Contains(list, tag) {
			return i + 1
		}
	}
	return 0
}
