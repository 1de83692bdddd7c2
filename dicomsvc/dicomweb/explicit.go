package dicomweb

import (
	"io"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// explicitable tells whether a data set in the syntax can be sent in Explicit VR Little Endian without
// changing a pixel: it is in that syntax, or its pixel data are native (PS3.18 §8.7.3: neither Implicit VR
// nor Big Endian is used on the web), or compressed without loss and decoded here.
func explicitable(syntax string) bool {
	return syntax == dicom.ExplicitVRLittleEndian || !lossy(syntax) && dicomsvc.Convertible(syntax, dicom.ExplicitVRLittleEndian)
}

// copySwapped copies n bytes of src to w and reverses every word of the given width on the way.
func (s *Server) copySwapped(w io.Writer, src io.Reader, n int64, width int) error {
	if width == 1 {
		return s.copyExact(w, src, n)
	}
	swap := dicomsvc.NewSwapper(w, width)
	if err := s.copyExact(swap, src, n); err != nil {
		return err
	}
	return swap.Flush()
}
