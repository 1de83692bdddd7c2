package dicomsvc

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"osteon/dicomsvc/dicom"
)

// Stored is an object that can be read more than once. *Object is one.
type Stored interface {
	// WriteTo writes the whole object as stored and fails when its digest differs.
	io.WriterTo
	// Size is the length of what WriteTo writes, in bytes.
	Size() int64
	// Section reads n bytes at off, of the inflated data set when that is stored deflated.
	Section(off, n int64) io.Reader
}

// Rewritable reports whether objects stored in the transfer syntax from can be sent in the syntax to without
// a pixel being touched: from is one of the four native syntaxes (PS3.5 Annex A) and to is Explicit or
// Implicit VR Little Endian.
func Rewritable(from, to string) bool {
	switch from {
	case dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian, dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian:
	default:
		return false
	}
	return from != to && (to == dicom.ExplicitVRLittleEndian || to == dicom.ImplicitVRLittleEndian)
}

// Rewritten is an object in another transfer syntax: encoded runs of elements with bulk values between them.
// The runs are held in memory, the bulk values of large objects are not. It is good as long as the object it
// was made of is open and, like that, used by one goroutine at a time.
type Rewritten struct {
	runs     []run
	size     int64
	sections func(off, n int64) io.Reader
}

// run is encoded bytes and the bulk value that follows them, if any, with its pad byte.
type run struct {
	encoded []byte
	bulk    *dicom.Bulk
	width   int // of the words whose bytes are swapped; 1: none
	pad     byte
	pixels  *decoded // follow in place of a bulk value
}

// Rewrite prepares o, stored in the transfer syntax from, to be sent in the syntax to. No value changes, save
// that retired group lengths are left out and defined lengths may become undefined ones (PS3.5 §7.2, §7.5);
// text stays in its character set. The object is read to its end first, with its digest and structure checked,
// so that nothing is sent of one that fails; its bulk values are then read again, out of memory when it has at
// most rewriteKeepBytes.
//
// Compressed pixel data are decoded, see Convertible; frames that cannot be are ErrUnsupported.
//
// Errors: ErrUnsupported for a pair that is not Convertible and for an element that the other syntax cannot
// express, ErrCorrupt, and those of o.
func Rewrite(o Stored, from, to string) (*Rewritten, error) {
	if !Convertible(from, to) {
		return nil, fmt.Errorf("%w: rewriting from this transfer syntax", ErrUnsupported)
	}
	set, frames, kept, err := scanWhole(o, from)
	if err != nil {
		return nil, err
	}
	b := rewriter{
		to: to, explicit: to == dicom.ExplicitVRLittleEndian, big: dicom.SyntaxOf(from).BigEndian,
		out: &Rewritten{sections: sectionsOf(o, kept, from)},
	}
	if frames != nil && frames.Encapsulated() {
		if b.pixels, err = decodeFrames(set, frames, from, b.out.sections); err != nil {
			return nil, err
		}
	}
	if err := b.elements(set); err != nil {
		return nil, err
	}
	b.cut(nil, 1, 0)
	return b.out, nil
}

// scanWhole reads o through and returns its data set, where its frames are, and its bytes when they are few.
func scanWhole(o Stored, syntax string) (set *dicom.Dataset, frames *dicom.FrameTable, kept []byte, err error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends when o was read or the pipe is closed; done is received below
		_, err := o.WriteTo(pw)
		pw.CloseWithError(err)
		done <- err
	}()
	var whole bytes.Buffer
	source := io.Reader(pr)
	if o.Size() <= rewriteKeepBytes {
		source = io.TeeReader(pr, &whole)
	}
	scanner := dicom.NewScanner(source, syntax, dicom.Limits{})
	err = scanner.Rest()
	if err == nil {
		_, err = io.Copy(io.Discard, source)
	}
	pr.Close()
	if read := <-done; read != nil && !errors.Is(read, io.ErrClosedPipe) {
		return nil, nil, nil, read
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: read the stored data set: %w", ErrCorrupt, err)
	}
	return scanner.Dataset(), scanner.Frames(), whole.Bytes(), nil
}

// sectionsOf returns how bulk values are read: from kept unless that is nil. A deflated stream is inflated
// once for values that are asked for in ascending order.
func sectionsOf(o Stored, kept []byte, syntax string) func(off, n int64) io.Reader {
	deflated := dicom.SyntaxOf(syntax).Deflated
	if !deflated && kept == nil {
		return o.Section
	}
	if !deflated {
		return func(off, n int64) io.Reader { return io.NewSectionReader(bytes.NewReader(kept), off, n) }
	}
	open := func() io.Reader { return o.Section(0, math.MaxInt64) }
	if kept != nil {
		open = func() io.Reader { return flate.NewReader(bytes.NewReader(kept)) }
	}
	c := &inflating{open: open}
	return c.section
}

// inflating hands out sections of one inflated stream.
type inflating struct {
	open func() io.Reader
	from io.Reader
	at   int64
}

func (c *inflating) section(off, n int64) io.Reader {
	if c.from == nil || off < c.at {
		c.from, c.at = c.open(), 0
	}
	skipped, err := io.CopyN(io.Discard, c.from, off-c.at)
	if c.at += skipped; err != nil {
		return &brokenReader{err}
	}
	return io.LimitReader(countedReader{c}, n)
}

type countedReader struct{ c *inflating }

func (r countedReader) Read(p []byte) (int, error) {
	n, err := r.c.from.Read(p)
	r.c.at += int64(n)
	return n, err
}

type brokenReader struct{ err error }

func (r *brokenReader) Read([]byte) (int, error) { return 0, r.err }

// rewriter encodes a data set anew.
type rewriter struct {
	to       string
	explicit bool
	big      bool     // the stored object is big endian
	pixels   *decoded // of compressed pixel data, else nil
	encoded  []byte
	out      *Rewritten
}

func (b *rewriter) elements(d *dicom.Dataset) error {
	for i := range d.Elements {
		if err := b.element(&d.Elements[i]); err != nil {
			return err
		}
	}
	return nil
}

func (b *rewriter) element(el *dicom.Element) (err error) {
	switch {
	case el.Tag == dicom.PixelData && el.Bulk != nil && el.Bulk.Encapsulated && b.pixels != nil:
		b.native()
		return nil
	case el.Bulk != nil:
		return b.bulk(el)
	case holdsBulk(el):
		return b.sequence(el)
	}
	one := dicom.Dataset{Elements: []dicom.Element{*el}}
	if b.encoded, err = one.Encode(b.encoded, b.to); err != nil {
		return fmt.Errorf("%w: write in another transfer syntax: %w", ErrUnsupported, err)
	}
	return nil
}

// holdsBulk reports whether a value somewhere in a sequence was left in the stream.
func holdsBulk(el *dicom.Element) bool {
	for _, item := range el.Items {
		for i := range item.Elements {
			if sub := &item.Elements[i]; sub.Bulk != nil || holdsBulk(sub) {
				return true
			}
		}
	}
	return false
}

const undefinedLength = math.MaxUint32

// sequence writes a sequence with bulk values in it: with undefined lengths (PS3.5 §7.5.1), since nobody knows
// them yet.
func (b *rewriter) sequence(el *dicom.Element) error {
	b.head(el.Tag, dicom.SQ, undefinedLength)
	for _, item := range el.Items {
		b.head(dicom.Item, 0, undefinedLength)
		if err := b.elements(item); err != nil {
			return err
		}
		b.head(dicom.ItemDelimitationItem, 0, 0)
	}
	b.head(dicom.SequenceDelimitationItem, 0, 0)
	return nil
}

func (b *rewriter) head(tag dicom.Tag, vr dicom.VR, length uint32) {
	b.encoded = dicom.AppendElementHeader(b.encoded, b.explicit, false, tag, vr, length)
}

// bulk ends a run with a value that is read when it is sent.
func (b *rewriter) bulk(el *dicom.Element) error {
	n := el.Bulk.Length
	if el.Bulk.Encapsulated || n < 0 || n > math.MaxUint32-2 || !b.explicit && dicom.VROf(el.Tag) == dicom.SQ {
		return fmt.Errorf("%w: element %v cannot be written in another transfer syntax", ErrUnsupported, el.Tag)
	}
	vr, width := el.VR, 1
	if b.big {
		width = vr.Width()
	}
	length := n + n%2
	if length > math.MaxUint16 && !vr.LongLength() {
		vr = dicom.UN // PS3.5 §6.2.2
	}
	b.head(el.Tag, vr, uint32(length))
	b.cut(el.Bulk, width, el.VR.Pad())
	return nil
}

// native ends a run with decoded pixel data.
func (b *rewriter) native() {
	b.head(dicom.PixelData, b.pixels.img.NativeFormat().NativeVR(), uint32(b.pixels.size))
	b.out.runs = append(b.out.runs, run{encoded: b.encoded, pixels: b.pixels})
	b.out.size += int64(len(b.encoded)) + b.pixels.size
	b.encoded = nil
}

// cut ends a run.
func (b *rewriter) cut(bulk *dicom.Bulk, width int, pad byte) {
	b.out.runs = append(b.out.runs, run{encoded: b.encoded, bulk: bulk, width: width, pad: pad})
	b.out.size += int64(len(b.encoded))
	if bulk != nil {
		b.out.size += bulk.Length + bulk.Length%2
	}
	b.encoded = nil
}

// Size is the length of the object as rewritten, in bytes.
func (r *Rewritten) Size() int64 { return r.size }

// WriteTo writes the whole object as rewritten. It may be called again.
func (r *Rewritten) WriteTo(w io.Writer) (int64, error) {
	out := &tally{w: w}
	for i := range r.runs {
		if err := r.runs[i].writeTo(out, r.sections); err != nil {
			return out.n, err
		}
	}
	return out.n, nil
}

func (x *run) writeTo(w io.Writer, sections func(off, n int64) io.Reader) error {
	_, err := w.Write(x.encoded)
	switch {
	case err == nil && x.pixels != nil:
		return x.pixels.write(w)
	case err != nil || x.bulk == nil:
		return err
	}
	swap := NewSwapper(w, x.width)
	n, err := io.Copy(swap, sections(x.bulk.Offset, x.bulk.Length))
	if err == nil && n != x.bulk.Length {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = swap.Flush()
	}
	if err == nil && x.bulk.Length%2 == 1 {
		_, err = w.Write([]byte{x.pad})
	}
	return err
}

// Swapper reverses the bytes of every word of one width as they pass: it turns values between Big and Little
// Endian (PS3.5 §7.3). It is used by one goroutine at a time.
type Swapper struct {
	w     io.Writer
	width int
	held  []byte // the front of a word
	buf   []byte
}

// NewSwapper returns a Swapper of words of width bytes: 1 (nothing is swapped), 2, 4 or 8.
func NewSwapper(w io.Writer, width int) *Swapper { return &Swapper{w: w, width: width} }

// Write passes the whole words of p on and keeps what is left of one for the next call.
func (s *Swapper) Write(p []byte) (int, error) {
	if s.width == 1 {
		return s.w.Write(p)
	}
	total := len(p)
	s.buf = append(append(s.buf[:0], s.held...), p...)
	whole := len(s.buf) - len(s.buf)%s.width
	s.held = append(s.held[:0], s.buf[whole:]...)
	for i := 0; i < whole; i += s.width {
		word := s.buf[i : i+s.width]
		switch s.width {
		case 2:
			word[0], word[1] = word[1], word[0]
		case 4:
			binary.BigEndian.PutUint32(word, binary.LittleEndian.Uint32(word))
		case 8:
			binary.BigEndian.PutUint64(word, bits.ReverseBytes64(binary.BigEndian.Uint64(word)))
		}
	}
	if _, err := s.w.Write(s.buf[:whole]); err != nil {
		return 0, err
	}
	return total, nil
}

// Flush writes what is left of an incomplete word, as it is.
func (s *Swapper) Flush() error {
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.w.Write(s.held)
	s.held = s.held[:0]
	return err
}
