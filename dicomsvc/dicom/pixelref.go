package dicom

// PixelReference reads on from Header through the head of the pixel data element, not its value, and returns it as a Bulk reference; nil
// for a data set without one. It serves readers that have only the beginning of a data set; Rest may not follow it. Errors as for Header.
func (s *Scanner) PixelReference() (*Element, error) {
	if _, err := s.Header(); err != nil || s.state == scanDone || s.p.src.atEnd() {
		return s.pixel, s.err
	}
	s.state = scanDone
	h, err := s.p.header(&s.p.stack[0])
	if err != nil {
		s.err = err
		return nil, err
	}
	s.p.src.take(h.size)
	s.pixel = &Element{Tag: h.tag, VR: h.vr, Bulk: &Bulk{Offset: s.p.src.off, Length: int64(h.length)}}
	if h.length == undefinedLength {
		s.pixel.Bulk.Length, s.pixel.Bulk.Encapsulated = -1, true
	}
	return s.pixel, nil
}
