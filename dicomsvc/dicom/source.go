package dicom

import (
	"io"
)

// source is a window over the stream: bytes r to w of buf lie ahead, and the first of them is at offset off of the stream. When r is nil
// the window is the whole stream.
type source struct {
	in   io.Reader
	buf  []byte
	r, w int
	off  int64
	err  error // why nothing more will come: io.EOF or the reader's own error
}

func (s *source) reset(in io.Reader) {
	if s.buf == nil {
		s.buf = make([]byte, windowBytes)
	}
	*s = source{in: in, buf: s.buf}
}

// need makes at least n bytes available, n being at most the window, and reports whether it could.
func (s *source) need(n int) bool {
	return s.w-s.r >= n || s.fill(n)
}

func (s *source) fill(n int) bool {
	if s.in == nil || n > len(s.buf) {
		if s.err == nil {
			s.err = io.EOF
		}
		return false
	}
	if s.r > 0 {
		copy(s.buf, s.buf[s.r:s.w])
		s.w -= s.r
		s.r = 0
	}
	for s.w < n && s.err == nil {
		s.read(max(n, windowBytes))
	}
	return s.w >= n
}

// read takes what the reader gives into the free part of the first size bytes of the window. While the data
// set is parsed that is little, since a caller who holds back what was read before it knows the header copies
// it once more; while bulk data flows by it is all there is.
func (s *source) read(size int) {
	for range emptyReadsMax {
		n, err := s.in.Read(s.buf[s.w:size])
		s.w += n
		if err != nil {
			s.err = err
			return
		}
		if n > 0 {
			return
		}
	}
	s.err = io.ErrNoProgress
}

// ahead returns the bytes in the window.
func (s *source) ahead() []byte { return s.buf[s.r:s.w] }

// take consumes n bytes of the window.
func (s *source) take(n int) {
	s.r += n
	s.off += int64(n)
}

// skip lets n bytes flow by and returns how many were missing.
func (s *source) skip(n int64) (missing int64) {
	if have := int64(s.w - s.r); n <= have {
		s.take(int(n))
		return 0
	} else {
		s.take(int(have))
		n -= have
	}
	if s.in == nil {
		s.err = io.EOF
		return n
	}
	if n > bulkWindowBytes/2 && len(s.buf) < bulkWindowBytes {
		s.buf = make([]byte, bulkWindowBytes)
	}
	for n > 0 && s.err == nil {
		s.r, s.w = 0, 0
		s.read(len(s.buf))
		got := int(min(int64(s.w), n))
		s.take(got)
		n -= int64(got)
	}
	return n
}

// copyTo fills dst from the stream and returns how many bytes were missing.
func (s *source) copyTo(dst []byte) (missing int) {
	n := copy(dst, s.buf[s.r:s.w])
	s.take(n)
	dst = dst[n:]
	for empty := 0; len(dst) > 0 && s.err == nil && s.in != nil; {
		n, err := s.in.Read(dst)
		s.off += int64(n)
		dst, s.err = dst[n:], err
		if n > 0 {
			empty = 0
		} else if empty++; empty > emptyReadsMax && err == nil {
			s.err = io.ErrNoProgress
		}
	}
	if len(dst) > 0 && s.err == nil {
		s.err = io.EOF
	}
	return len(dst)
}

// atEnd reports whether the stream ended cleanly just here.
func (s *source) atEnd() bool { return !s.need(1) && s.err == io.EOF }
