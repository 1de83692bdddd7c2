package dicomweb

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// reply writes an answer of unknown length. The first holdBytes are held back, so that a small answer
// gets a Content-Length and a failure that shows early gets a status of its own.
type reply struct {
	w         http.ResponseWriter
	status    int
	buf       []byte
	committed bool
	// early is called before the header is sent for an answer that is still growing.
	early func() error
}

// Write holds p back or, once the answer has outgrown the buffer, sends it.
func (p *reply) Write(b []byte) (int, error) {
	if len(p.buf)+len(b) > holdBytes {
		if err := p.flush(); err != nil {
			return 0, err
		}
	}
	p.buf = append(p.buf, b...)
	return len(b), nil
}

// flush sends what is held, and before the first byte the header.
func (p *reply) flush() error {
	if !p.committed {
		if p.early != nil {
			if err := p.early(); err != nil {
				return err
			}
		}
		p.committed = true
		p.w.WriteHeader(p.status)
	}
	_, err := toClient{p.w}.Write(p.buf)
	p.buf = p.buf[:0]
	return err
}

// finish sends the rest of a whole answer.
func (p *reply) finish() error {
	if !p.committed {
		p.committed = true
		p.w.Header().Set("Content-Length", strconv.Itoa(len(p.buf)))
		p.w.WriteHeader(p.status)
	}
	_, err := toClient{p.w}.Write(p.buf)
	return err
}

// zipped runs write against w, through gzip when r takes that.
func (s *Server) zipped(reply *reply, r *request, write func(io.Writer) error) error {
	h := reply.w.Header()
	h.Add("Vary", "Accept-Encoding")
	if !gzipAccepted(r.Request) {
		return write(reply)
	}
	h.Set("Content-Encoding", "gzip")
	z := s.zippers.Get().(*gzip.Writer)
	defer func() {
		z.Reset(io.Discard)
		s.zippers.Put(z)
	}()
	z.Reset(reply)
	if err := write(z); err != nil {
		return err
	}
	return z.Close()
}

// documents writes a list of data sets, one after the other: as one JSON array, or as the parts of a
// multipart of XML documents.
type documents interface {
	contentType() string
	begin(w io.Writer) error
	document(w io.Writer, body []byte) error
	end(w io.Writer) error
}

// jsonArray is a DICOM JSON response (PS3.18 §F.2).
type jsonArray struct {
	media string
	n     int
}

func (j *jsonArray) contentType() string { return j.media }

func (j *jsonArray) begin(w io.Writer) error {
	_, err := io.WriteString(w, "[")
	return err
}

func (j *jsonArray) document(w io.Writer, body []byte) error {
	if j.n > 0 {
		if _, err := io.WriteString(w, ",\n"); err != nil {
			return err
		}
	}
	j.n++
	_, err := w.Write(body)
	return err
}

func (j *jsonArray) end(w io.Writer) error {
	_, err := io.WriteString(w, "]\n")
	return err
}

// partWriter writes multipart/related (RFC 2387). Every part gets its whole header.
type partWriter struct {
	boundary string
	inner    string // media type of the parts
	n        int
}

func (m *partWriter) contentType() string {
	return mediaRelated + `; type="` + m.inner + `"; boundary=` + m.boundary
}

func (m *partWriter) begin(io.Writer) error { return nil }

func (m *partWriter) document(w io.Writer, body []byte) error {
	if err := m.part(w, m.inner, "", int64(len(body))); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// part begins a part; location is the URL of what it holds or empty, size its length or negative.
func (m *partWriter) part(w io.Writer, contentType, location string, size int64) error {
	var b strings.Builder
	if m.n > 0 {
		b.WriteString("\r\n")
	}
	m.n++
	fmt.Fprintf(&b, "--%s\r\nContent-Type: %s\r\n", m.boundary, contentType)
	if size >= 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", size)
	}
	if location != "" {
		fmt.Fprintf(&b, "Content-Location: %s\r\n", location)
	}
	b.WriteString("\r\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (m *partWriter) end(w io.Writer) error {
	line := "\r\n--" + m.boundary + "--\r\n"
	if m.n == 0 {
		line = line[2:]
	}
	_, err := io.WriteString(w, line)
	return err
}

// describe chooses between JSON and XML for data sets that are sent as documents.
func (s *Server) describe(r *request) (documents, *problem) {
	chosen, ok := r.accept.choose([]offer{
		{media: mediaDICOMJSON, list: true},
		{media: mediaJSON},
		{media: mediaDICOMXML, multipart: true, list: true},
	})
	switch {
	case !ok:
		return nil, newProblem(http.StatusNotAcceptable, "none of the media types asked for can be sent",
			`ask for application/dicom+json, or multipart/related; type="application/dicom+xml"`)
	case chosen.media == mediaDICOMXML:
		boundary, err := s.boundary()
		if err != nil {
			return nil, failure(err)
		}
		return &partWriter{boundary: boundary, inner: mediaDICOMXML}, nil
	}
	return &jsonArray{media: chosen.media}, nil
}
