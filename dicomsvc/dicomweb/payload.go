package dicomweb

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// payload is a body of known length that is read in place: a frame or a bulk value.
type payload struct {
	size int64
	// copy writes n bytes from off. Only whole payloads are asked for unless ranges is set.
	copy   func(w io.Writer, off, n int64) error
	ranges bool
}

// etagOf makes an entity tag out of a digest and what tells the representation from others.
func etagOf(digest []byte, representation string) string {
	return `"` + hex.EncodeToString(digest[:16]) + "-" + representation + `"`
}

// weak marks a tag of bodies that mean the same without being the same bytes.
func weak(tag string) string { return "W/" + tag }

// notModified answers 304 when the client has what etag names (RFC 9110 §13.1.2).
func notModified(w http.ResponseWriter, r *request, etag string) bool {
	w.Header().Set("ETag", etag)
	for held := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		held = strings.TrimSpace(held)
		if held == "*" || held != "" && strings.TrimPrefix(held, "W/") == strings.TrimPrefix(etag, "W/") {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

// sendPayload sends a body that is one payload, or the range of it that the client asks for. etag is
// a strong tag.
func (s *Server) sendPayload(w http.ResponseWriter, r *request, contentType, etag string, body payload) *problem {
	h := w.Header()
	if notModified(w, r, etag) {
		return nil
	}
	off, n, status := int64(0), body.size, http.StatusOK
	if body.ranges {
		h.Set("Accept-Ranges", "bytes")
		if spec := r.Header.Get("Range"); spec != "" && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == etag) {
			from, length, use, ok := parseRange(spec, body.size)
			switch {
			case !ok:
				return newProblem(http.StatusRequestedRangeNotSatisfiable, "the range begins behind the end of the value",
					fmt.Sprintf("ask for a range within %d bytes", body.size)).
					with("Content-Range", fmt.Sprintf("bytes */%d", body.size))
			case use:
				off, n, status = from, length, http.StatusPartialContent
				h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, body.size))
			}
		}
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	return s.stream(w, r, status, func(w io.Writer) error { return body.copy(w, off, n) })
}

// lateHeader holds the first lateBytes of a body back and sends the header with them, so that a failure
// to read what is sent gets a status of its own, although part headers were written already.
type lateHeader struct {
	w      http.ResponseWriter
	status int
	held   []byte
	begun  bool
}

func (l *lateHeader) Write(p []byte) (int, error) {
	if !l.begun {
		if len(l.held)+len(p) <= lateBytes {
			l.held = append(l.held, p...)
			return len(p), nil
		}
		if err := l.finish(); err != nil {
			return 0, err
		}
	}
	return l.w.Write(p)
}

// finish sends the header and what is held, unless that was done.
func (l *lateHeader) finish() error {
	if l.begun {
		return nil
	}
	l.begun = true
	l.w.WriteHeader(l.status)
	if len(l.held) == 0 {
		return nil
	}
	_, err := l.w.Write(l.held)
	l.held = nil
	return err
}

// stream runs write against a body that is not held in memory, and sees to it that a failure is told: by a
// status while that can be done, by breaking the connection afterwards.
func (s *Server) stream(w http.ResponseWriter, r *request, status int, write func(io.Writer) error) *problem {
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	late := &lateHeader{w: w, status: status}
	err := write(toClient{late})
	if err == nil {
		err = late.finish()
	}
	switch {
	case err == nil:
		return nil
	case !late.begun:
		return failure(err)
	}
	s.abort(r, err)
	return nil
}

// parseRange reads a Range field with one range of bytes. use is false for what may be ignored: other
// units, several ranges, nonsense (RFC 9110 §14.2). ok is false when no byte is in the range.
func parseRange(spec string, size int64) (off, n int64, use, ok bool) {
	list, found := strings.CutPrefix(spec, "bytes=")
	from, to, dash := strings.Cut(strings.TrimSpace(list), "-")
	if !found || !dash || strings.Contains(list, ",") {
		return 0, 0, false, true
	}
	if from == "" {
		last, err := strconv.ParseInt(to, 10, 64)
		switch {
		case err != nil || last < 0:
			return 0, 0, false, true
		case last == 0 || size == 0:
			return 0, 0, false, false
		}
		last = min(last, size)
		return size - last, last, true, true
	}
	off, err := strconv.ParseInt(from, 10, 64)
	if err != nil || off < 0 {
		return 0, 0, false, true
	}
	end := size - 1
	if to != "" {
		if end, err = strconv.ParseInt(to, 10, 64); err != nil || end < off {
			return 0, 0, false, true
		}
		end = min(end, size-1)
	}
	if off >= size {
		return 0, 0, false, false
	}
	return off, end - off + 1, true, true
}

// copyExact copies n bytes of src to w through a pooled buffer. A source that ends early is an error.
func (s *Server) copyExact(w io.Writer, src io.Reader, n int64) error {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	done, err := io.CopyBuffer(plainWriter{w}, io.LimitReader(src, n), *buf)
	if err == nil && done < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// plainWriter hides everything but Write, so that the pooled buffer is used.
type plainWriter struct{ io.Writer }

// shifter moves a stream of packed bits down by 1 to 7, so that the first wanted bit becomes the lowest
// of the first byte (PS3.5 §8.1.1), and ends it after the given number of bits.
type shifter struct {
	w       io.Writer
	shift   int
	left    int64 // bits still to write
	low     byte
	started bool
	buf     []byte
}

func (s *shifter) Write(p []byte) (int, error) {
	s.buf = s.buf[:0]
	for _, b := range p {
		if s.started && s.left > 0 {
			s.emit(s.low>>s.shift | b<<(8-s.shift))
		}
		s.low, s.started = b, true
	}
	_, err := s.w.Write(s.buf)
	return len(p), err
}

func (s *shifter) emit(b byte) {
	if s.left < 8 {
		b &= 1<<s.left - 1
	}
	s.buf = append(s.buf, b)
	s.left = max(0, s.left-8)
}

// flush writes the last byte.
func (s *shifter) flush() error {
	s.buf = s.buf[:0]
	if s.started && s.left > 0 {
		s.emit(s.low >> s.shift)
	}
	_, err := s.w.Write(s.buf)
	return err
}
