package dicom

import (
	"bufio"
	"compress/flate"
	"errors"
	"io"
)

// readError is the error for a reader that failed: a deflated stream cut short is a truncated data set, a corrupt one malformed; what another
// reader reports is passed on as it is, wrapped, and is none of the package's kinds unless the reader says so itself.
func readError(e *ParseError, cause error) error {
	var corrupt flate.CorruptInputError
	var internal flate.InternalError
	switch {
	case errors.Is(cause, errInflatedEnd):
		e.Kind = ErrTruncated
	case errors.Is(cause, errInflatedLimit):
		e.Kind, e.What = ErrLimit, "deflated data set grows too much"
	case errors.As(cause, &corrupt), errors.As(cause, &internal):
		e.Kind, e.What = ErrMalformed, "deflated data set is corrupt"
	default:
		e.Kind = errRead
		e.Cause = cause
	}
	return e
}

var (
	errRead          = errors.New("reading the data set failed")
	errInflatedEnd   = errors.New("deflated stream ends early")
	errInflatedLimit = errors.New("deflated stream grows too much")
)

// Scanner reads one data set of any size from a stream, keeping its header in memory and letting bulk data flow by. It reads the stream
// to its end, so that a caller who wants the bytes puts a tee before it. Not safe for concurrent use.
//
// Header comes first, then Rest; Frames, PixelElement and Trailing are good after Rest.
type Scanner struct {
	p       parser
	syn     Syntax
	inflate *inflater
	header  *Dataset
	state   scanState
	err     error
	pixel   *Element
	frames  *FrameTable
	tail    *Dataset
}

type scanState uint8

const (
	scanFresh scanState = iota
	scanHeader
	scanDone
)

// NewScanner returns a scanner over the data set in r, which is encoded in the transfer syntax with the given UID; an unknown one is taken
// for Explicit VR Little Endian.
func NewScanner(r io.Reader, syntax string, lim Limits) *Scanner {
	s := &Scanner{}
	s.Reset(r, syntax, lim)
	return s
}

// Reset makes the scanner ready for another data set; what it returned before stays good.
func (s *Scanner) Reset(r io.Reader, syntax string, lim Limits) {
	syn := SyntaxOf(syntax)
	s.syn, s.state, s.err = syn, scanFresh, nil
	s.header, s.pixel, s.frames, s.tail, s.inflate = nil, nil, nil, nil, nil
	lim = lim.filled()
	if syn.Deflated {
		s.inflate = newInflater(r, lim)
		r = s.inflate
	}
	s.p.src.reset(r)
	s.p.start(syn, lim)
}

// Offset returns how many bytes of the data set stream (inflated, when deflated) were parsed.
func (s *Scanner) Offset() int64 { return s.p.src.off }

// Syntax returns the description of the transfer syntax being read.
func (s *Scanner) Syntax() Syntax { return s.syn }

// Header reads up to the top-level Pixel Data, Float Pixel Data or Double Float Pixel Data, not including it, or to the end of a data set
// that has none. Values above the limits are Bulk. Errors: ErrTruncated, ErrMalformed, ErrLimit, each a *ParseError.
func (s *Scanner) Header() (*Dataset, error) {
	if s.state != scanFresh || s.err != nil {
		return s.header, s.err
	}
	if s.err = s.p.run(isPixelData); s.err != nil {
		return nil, s.err
	}
	s.state = scanHeader
	s.header = s.p.root
	return s.header, nil
}

// Rest reads to the exact end of the stream and proves the structure of what it passes. Errors as for Header.
func (s *Scanner) Rest() error {
	if _, err := s.Header(); err != nil || s.state == scanDone {
		return s.err
	}
	s.state = scanDone
	s.err = s.rest()
	return s.err
}

func (s *Scanner) rest() error {
	top := &s.p.stack[0]
	s.tail = &Dataset{parent: s.header}
	top.set = s.tail
	if !s.p.src.atEnd() {
		if err := s.pixels(top); err != nil {
			return err
		}
	}
	top = &s.p.stack[0]
	top.tag, top.unsorted = 0, false
	s.p.root = s.tail
	if err := s.p.run(nil); err != nil {
		return err
	}
	if s.inflate != nil {
		return s.inflate.drain()
	}
	return nil
}

// pixels reads the pixel data element.
func (s *Scanner) pixels(l *level) error {
	h, err := s.p.header(l)
	if err != nil {
		return err
	}
	s.p.src.take(h.size)
	at := s.p.src.off
	el := &Element{Tag: h.tag, VR: h.vr, Bulk: &Bulk{Offset: at, Length: int64(h.length)}}
	s.pixel = el
	if h.length != undefinedLength {
		s.frames = nativeFrames(s.header, el)
		return s.p.skip(h.tag, int64(h.length))
	}
	el.Bulk.Length, el.Bulk.Encapsulated = -1, true
	sink := &fragmentSink{syn: s.syn}
	if err := s.p.fragments(h.tag, l, sink); err != nil {
		return err
	}
	s.frames = sink.table(s.header, at)
	return nil
}

// PixelElement returns the pixel data element, its value a Bulk, or nil for a data set without one. Good after Rest.
func (s *Scanner) PixelElement() *Element { return s.pixel }

// Frames returns where the frames of the pixel data lie, nil for a data set without pixel data. Good after Rest.
func (s *Scanner) Frames() *FrameTable { return s.frames }

// Trailing returns the elements after the pixel data; empty when there are none. Good after Rest.
func (s *Scanner) Trailing() *Dataset { return s.tail }

// Dataset returns header, pixel data element and trailing elements as one new data set. Good after Rest.
func (s *Scanner) Dataset() *Dataset {
	if s.header == nil {
		return nil
	}
	d := s.header.Clone()
	if s.pixel != nil {
		d.Set(*s.pixel)
	}
	if s.tail != nil {
		for _, el := range s.tail.Clone().Elements {
			if d.Get(el.Tag) == nil {
				d.Set(el)
			}
		}
	}
	return d
}

// Decode parses a data set held in memory: an identifier, a small object, or any data set whose pixel data may stay outside (an
// encapsulated value, and one above Limits.ValueBytes, come back as Bulk). Values share b's memory unless the syntax is big endian or
// deflated. Errors: ErrTruncated, ErrMalformed, ErrLimit, each a *ParseError.
func Decode(b []byte, syntax string, lim Limits) (*Dataset, error) {
	syn := SyntaxOf(syntax)
	if syn.Deflated {
		var s Scanner
		s.Reset(&sliceReader{b}, syntax, lim)
		if err := s.p.run(nil); err != nil {
			return nil, err
		}
		return s.p.root, nil
	}
	p := parser{alias: true, src: source{buf: b, w: len(b)}}
	p.start(syn, lim)
	if err := p.run(nil); err != nil {
		return nil, err
	}
	return p.root, nil
}

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// inflater yields the data set inside a deflated stream (PS3.5 A.5) and watches how much it grows.
type inflater struct {
	raw     *bufio.Reader
	counted *countingReader
	flate   io.ReadCloser
	out     int64
	lim     Limits
	err     error
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newInflater(r io.Reader, lim Limits) *inflater {
	c := &countingReader{r: r}
	raw := bufio.NewReaderSize(c, growStep)
	return &inflater{raw: raw, counted: c, flate: flate.NewReader(raw), lim: lim}
}

func (f *inflater) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.flate.Read(p)
	f.out += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errInflatedEnd
	}
	if f.out > f.lim.InflateBytes || f.out > inflateFree && f.out > f.counted.n*int64(f.lim.InflateRatio) {
		err = errInflatedLimit
	}
	f.err = err
	return n, err
}

// drain reads what follows the deflated stream, a pad byte as a rule, so that a tee before it sees everything.
func (f *inflater) drain() error {
	_, err := io.Copy(io.Discard, f.raw)
	if err != nil {
		return readError(&ParseError{Offset: f.out, What: "after the deflated stream"}, err)
	}
	return nil
}
