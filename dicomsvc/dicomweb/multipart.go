package dicomweb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// errMultipart reports a request body that is not what RFC 2046 calls a multipart. The wrapping error
// says where it broke.
var errMultipart = errors.New("malformed multipart body")

// errPartHeader reports a part whose header cannot be read. The reader stays usable: the next part can
// be asked for.
var errPartHeader = errors.New("malformed part header")

// partReader reads the parts of a multipart body as they arrive (RFC 2046 §5.1). It holds one buffer
// whatever the size of the parts, assumes no length, and takes a body without its closing boundary for
// what it is: cut off. It accepts what senders really write: a preamble, white space after a boundary,
// lines that end in LF alone, bytes in a part that look like a boundary but are not one.
//
// Not safe for concurrent use. A part may be read until the next call of next.
type partReader struct {
	source io.Reader
	buf    []byte
	lo, hi int
	err    error // of source; sticky

	delimiter []byte // line end, two hyphens, boundary
	parts     int
	inPart    bool
	closed    bool
	failed    error
}

// newPartReader reads the parts of body that are separated by boundary, which must not be empty.
func newPartReader(body io.Reader, boundary string) (*partReader, error) {
	if boundary == "" || len(boundary) > boundaryBytesMax {
		return nil, fmt.Errorf("%w: the boundary must have 1 to %d characters", errMultipart, boundaryBytesMax)
	}
	p := &partReader{source: body, buf: make([]byte, readBufferBytes), delimiter: []byte("\n--" + boundary)}
	// A line end in front of the stream makes the first boundary look like all the others.
	p.buf[0] = '\n'
	p.hi = 1
	return p, nil
}

// part is one part: its header fields, names in lower case, and its body.
type part struct {
	header map[string]string
	reader *partReader
}

// Read returns the bytes of the part. It returns io.EOF only when a boundary ended the part, and
// io.ErrUnexpectedEOF when the body ended first.
func (p *part) Read(b []byte) (int, error) {
	return p.reader.readBody(b)
}

// next skips what is left of the current part and returns the next one, or io.EOF after the closing
// boundary. An error that wraps errPartHeader spoils that part only.
func (r *partReader) next() (*part, error) {
	if r.failed != nil {
		return nil, r.failed
	}
	if r.closed {
		return nil, io.EOF
	}
	first := r.parts == 0 && !r.inPart
	if err := r.skip(first); err != nil {
		return nil, r.fail(err)
	}
	last, err := r.boundaryLine(first)
	if err != nil {
		return nil, r.fail(err)
	}
	if last {
		r.closed = true
		return nil, io.EOF
	}
	if r.parts++; r.parts > partsMax {
		return nil, r.fail(fmt.Errorf("%w: more than %d parts", errMultipart, partsMax))
	}
	r.inPart = true
	header, err := r.readHeader()
	switch {
	case errors.Is(err, errPartHeader):
		return nil, err
	case err != nil:
		return nil, r.fail(err)
	}
	return &part{header: header, reader: r}, nil
}

func (r *partReader) fail(err error) error {
	r.failed = err
	return err
}

// skip drops the rest of the current part, or the preamble before the first boundary.
func (r *partReader) skip(preamble bool) error {
	var dropped int
	for {
		n, atBoundary, err := r.body(len(r.buf))
		if err != nil {
			return err
		}
		r.lo += n
		dropped += n
		if preamble && dropped > preambleBytesMax {
			return fmt.Errorf("%w: no boundary in the first %d bytes", errMultipart, preambleBytesMax)
		}
		if atBoundary {
			return nil
		}
	}
}

func (r *partReader) readBody(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if !r.inPart {
		return 0, io.EOF
	}
	if r.failed != nil {
		return 0, r.failed
	}
	n, atBoundary, err := r.body(len(b))
	if err != nil {
		return 0, r.fail(err)
	}
	copy(b, r.buf[r.lo:r.lo+n])
	r.lo += n
	if n == 0 && atBoundary {
		return 0, io.EOF
	}
	return n, nil
}

// body returns how many bytes at the front of the buffer, at most max and at least one unless a
// boundary stands there, belong to the part.
func (r *partReader) body(max int) (n int, atBoundary bool, err error) {
	for {
		// No more is searched than is asked for and what tells a boundary behind it.
		window := r.buf[r.lo:min(r.hi, r.lo+max+len(r.delimiter)+paddingBytesMax+len("\r\n\r\n"))]
		from := 0
		for {
			i := bytes.Index(window[from:], r.delimiter)
			if i < 0 {
				break
			}
			i += from
			switch r.tail(window[i+len(r.delimiter):]) {
			case tailBoundary:
				if i > 0 {
					return min(i, max), false, nil
				}
				return 0, true, nil
			case tailUnknown:
				if i > 0 {
					return min(i, max), false, nil
				}
				from = -1
			case tailData:
				from = i + 1
			}
			if from < 0 {
				break
			}
		}
		if from >= 0 {
			// Everything but what may be the beginning of a boundary is data.
			if safe := len(window) - keep(window, r.delimiter); safe > 0 {
				return min(safe, max), false, nil
			}
		}
		if err := r.fill(); err != nil {
			return 0, false, err
		}
	}
}

type tail int

const (
	tailData     tail = iota // the delimiter's bytes, but not a boundary
	tailBoundary             // a boundary line, or the closing one
	tailUnknown              // more bytes are needed to tell
)

// tail judges what follows the delimiter's bytes: two hyphens, or white space and a line end.
func (r *partReader) tail(b []byte) tail {
	if len(b) >= 2 && b[0] == '-' && b[1] == '-' {
		return tailBoundary
	}
	if len(b) == 1 && b[0] == '-' {
		return r.ended(tailUnknown)
	}
	for i, c := range b {
		switch {
		case c == '\n':
			return tailBoundary
		case c == '\r':
			if i+1 == len(b) {
				return r.ended(tailUnknown)
			}
			if b[i+1] == '\n' {
				return tailBoundary
			}
			return tailData
		case c != ' ' && c != '\t', i >= paddingBytesMax:
			return tailData
		}
	}
	return r.ended(tailUnknown)
}

// ended turns "more bytes are needed" into "data" when there will be no more bytes.
func (r *partReader) ended(t tail) tail {
	if r.err != nil {
		return tailData
	}
	return t
}

// keep returns how many bytes at the end of window could be the beginning of delimiter.
func keep(window, delimiter []byte) int {
	for n := min(len(delimiter)-1, len(window)); n > 0; n-- {
		if bytes.Equal(window[len(window)-n:], delimiter[:n]) {
			return n
		}
	}
	return 0
}

// fill reads more bytes behind those in the buffer. The end of the source is an error here: it is only
// called where more is needed.
func (r *partReader) fill() error {
	if r.err != nil {
		if r.err == io.EOF {
			return fmt.Errorf("%w: the closing boundary is missing: %w", errMultipart, io.ErrUnexpectedEOF)
		}
		return r.err
	}
	if r.lo > 0 {
		copy(r.buf, r.buf[r.lo:r.hi])
		r.hi -= r.lo
		r.lo = 0
	}
	if r.hi == len(r.buf) {
		return fmt.Errorf("%w: a line does not end", errMultipart)
	}
	n, err := r.source.Read(r.buf[r.hi:])
	r.hi += n
	r.err = err
	return nil
}

// boundaryLine takes the boundary that stands at the front of the buffer and reports whether it is the
// closing one. The first decides how lines end.
func (r *partReader) boundaryLine(first bool) (last bool, err error) {
	r.lo += len(r.delimiter)
	if bytes.HasPrefix(r.buf[r.lo:r.hi], []byte("--")) {
		return true, nil
	}
	line, err := r.line(paddingBytesMax + len("\r\n"))
	if err != nil {
		return false, err
	}
	if first && bytes.HasSuffix(line, []byte("\r\n")) {
		r.delimiter = append([]byte{'\r'}, r.delimiter...)
	}
	return false, nil
}

// line takes one line of at most max bytes with its end.
func (r *partReader) line(max int) ([]byte, error) {
	for {
		window := r.buf[r.lo:r.hi]
		if i := bytes.IndexByte(window, '\n'); i >= 0 && i < max {
			r.lo += i + 1
			return window[:i+1], nil
		}
		if len(window) >= max {
			return nil, errPartHeader
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// readHeader reads the header fields of a part up to the empty line. Folded lines are joined; of a
// repeated field the first counts. After errPartHeader the reader stands somewhere in the part.
func (r *partReader) readHeader() (map[string]string, error) {
	header := make(map[string]string, 4)
	left := partHeaderBytesMax
	name := ""
	for {
		raw, err := r.line(left)
		if err != nil {
			if errors.Is(err, errPartHeader) {
				return nil, fmt.Errorf("%w: more than %d bytes", errPartHeader, partHeaderBytesMax)
			}
			return nil, err
		}
		left -= len(raw)
		text := strings.TrimRight(string(raw), "\r\n")
		if text == "" {
			r.lo -= len(raw)
			return header, r.dropEmptyLine()
		}
		if name != "" && (text[0] == ' ' || text[0] == '\t') {
			header[name] += " " + strings.Trim(text, " \t")
			continue
		}
		field, value, found := strings.Cut(text, ":")
		field = strings.ToLower(strings.TrimSpace(field))
		if !found || field == "" {
			return nil, fmt.Errorf("%w: a line has no colon", errPartHeader)
		}
		name = ""
		if _, have := header[field]; !have {
			name = field
			header[field] = strings.Trim(value, " \t")
		}
	}
}

// dropEmptyLine takes the empty line at the front of the buffer, unless a boundary follows it at once: a
// part without a body shares that line end with its boundary.
func (r *partReader) dropEmptyLine() error {
	mark := bytes.TrimLeft(r.delimiter, "\r\n")
	for {
		window := r.buf[r.lo:r.hi]
		line := bytes.IndexByte(window, '\n') + 1
		rest := window[line:]
		undecided := false
		if line+len(mark) == len(r.delimiter) {
			switch {
			case bytes.HasPrefix(rest, mark):
				t := r.tail(rest[len(mark):])
				if t == tailBoundary {
					return nil
				}
				undecided = t == tailUnknown
			case bytes.HasPrefix(mark, rest):
				undecided = r.err == nil
			}
		}
		if !undecided {
			r.lo += line
			return nil
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}
