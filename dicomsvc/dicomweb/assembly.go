package dicomweb

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// An assembly is an instance that arrives as metadata and bulk data (PS3.18 §10.5.1.4): the data set of the metadata, and
// the bulk values that it names. All values but one are held in memory until the instance is complete; the
// stream, the pixel data as a rule, goes into the archive as it arrives.
type assembly struct {
	set    *dicom.Dataset
	needs  []*need
	stream *need // of needs; nil when none may stream
	// missing counts the needs that are not met.
	missing int
}

// need is one bulk value: where it belongs, what it is called, and the parts that hold it.
type need struct {
	of    *assembly
	owner *dicom.Dataset
	tag   dicom.Tag
	uri   string
	parts []*bulkPart // held ones, shared with other needs of the same URI
	want  int         // parts that make it up: the frames of compressed pixel data, else 1
}

// bulkPart is a bulk data part, arriving or held.
type bulkPart struct {
	media mediaRange
	frame bool  // its location names a frame of the value
	size  int64 // of the value; negative while it is not known
	body  *bufio.Reader
	data  []byte // of a held part, in place of body
	users int    // needs that hold it
}

func (b *bulkPart) open() io.Reader {
	if b.body != nil {
		return b.body
	}
	return bytes.NewReader(b.data)
}

// newAssembly looks for the bulk values in set, and takes out what describes the message and not the instance.
func newAssembly(set *dicom.Dataset) (*assembly, error) {
	a := &assembly{set: set}
	if err := a.find(set); err != nil {
		return a, err
	}
	a.missing = len(a.needs)
	for _, n := range a.needs {
		el := n.owner.Get(n.tag)
		if n.owner == set && el.VR.IsBinary() && (a.stream == nil || !isPixels(a.stream.tag)) {
			a.stream = n
		}
	}
	return a, nil
}

func (a *assembly) find(d *dicom.Dataset) error {
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.Bulk != nil {
			if el.Bulk.URI == "" {
				return fmt.Errorf("%w: %v names no bulk data", dicomsvc.ErrMalformed, el.Tag)
			}
			a.needs = append(a.needs, &need{of: a, owner: d, tag: el.Tag, uri: strings.TrimSpace(el.Bulk.URI), want: 1})
		}
		for _, item := range el.Items {
			if err := a.find(item); err != nil {
				return err
			}
		}
	}
	return nil
}

func isPixels(tag dicom.Tag) bool {
	return tag == dicom.PixelData || tag == dicom.FloatPixelData || tag == dicom.DoubleFloatPixelData
}

// take adds a held part to what n has, which is not all yet.
func (n *need) take(p *bulkPart) {
	if len(n.parts) == 0 {
		n.of.expect(n, p)
	}
	p.users++
	if n.parts = append(n.parts, p); len(n.parts) == n.want {
		n.of.missing--
	}
}

// expect learns from the first part of a value how many parts it has: a frame of compressed pixel data each
// (PS3.18 §8.7.3.3.2), save that a video is one.
func (a *assembly) expect(n *need, first *bulkPart) {
	if n.tag != dicom.PixelData || n.owner != a.set {
		return
	}
	frames := 1
	if v, ok := a.set.Int(dicom.NumberOfFrames); ok && v > 0 {
		frames = v
	}
	syntax := dicom.SyntaxOf(a.syntaxOf(first))
	if first.frame || syntax.Encapsulated && !syntax.Video {
		n.want = frames
	}
}

// syntaxOf is the transfer syntax that a part of pixel data asks for: the one it names, the one that the metadata name when that goes with
// the media type, what a JPEG image itself says, or the default of the media type (PS3.18 Tables 8.7.3-2 to -5).
func (a *assembly) syntaxOf(b *bulkPart) string {
	if named := b.media.param("transfer-syntax"); named != "" && named != "*" {
		return named
	}
	if b.media.kind == mediaOctets || b.media.kind == "" {
		return dicom.ExplicitVRLittleEndian
	}
	for _, tag := range []dicom.Tag{dicom.TransferSyntaxUID, dicom.AvailableTransferSyntaxUID} {
		if named := a.set.String(tag); named != "" && mediaOfSyntax(named) == b.media.kind {
			return named
		}
	}
	switch b.media.kind {
	case "image/jpeg":
		return b.jpegSyntax()
	case "image/jls":
		return dicom.JPEGLSLossless
	case "image/jp2":
		return dicom.JPEG2000Lossless
	case "image/jpx":
		return "1.2.840.10008.1.2.4.92"
	case "image/jphc":
		return dicom.HTJ2KLossless
	case "image/jxl":
		return dicom.JPEGXLLossless
	case "image/dicom-rle", "image/x-dicom-rle":
		return dicom.RLELossless
	case "video/mpeg", "video/mpeg2":
		return "1.2.840.10008.1.2.4.100"
	case "video/mp4":
		return dicom.MPEG4HP41
	}
	return ""
}

// jpegSyntax reads the coding process out of the frame header (ITU-T T.81 Table B.1): senders of image/jpeg mean baseline more often than
// the default, which is lossless.
func (b *bulkPart) jpegSyntax() string {
	front := b.data
	if b.body != nil {
		front, _ = b.body.Peek(jpegHeadBytes)
	}
	for i := 2; i+4 <= len(front) && front[i] == 0xFF; {
		switch front[i+1] {
		case 0xC0:
			return dicom.JPEGBaseline8Bit
		case 0xC1:
			return dicom.JPEGExtended12Bit
		case 0xC3:
			return dicom.JPEGLosslessSV1
		case 0xDA:
			return dicom.JPEGLosslessSV1
		}
		i += 2 + int(front[i+2])<<8 + int(front[i+3])
	}
	return dicom.JPEGLosslessSV1
}

// compose returns the transfer syntax of the data set and its bytes. first is the first part of the stream, which may still be arriving;
// next returns those after it. All other values have to be here.
func (a *assembly) compose(first *bulkPart, next func() (*bulkPart, error)) (syntax string, body io.Reader, err error) {
	syntax = dicom.ExplicitVRLittleEndian
	if first != nil && a.stream.tag == dicom.PixelData {
		if syntax, err = a.pixelSyntax(first); err != nil {
			return "", nil, err
		}
	}
	for _, n := range a.needs {
		if n != a.stream {
			a.load(n)
		}
	}
	d := a.plain()
	if first == nil {
		out, err := d.Encode(nil, syntax)
		return syntax, bytes.NewReader(out), err
	}
	var before, after dicom.Dataset
	for _, el := range d.Elements {
		switch {
		case el.Tag < a.stream.tag:
			before.Elements = append(before.Elements, el)
		case el.Tag > a.stream.tag:
			after.Elements = append(after.Elements, el)
		}
	}
	front, err := before.Encode(nil, syntax)
	if err != nil {
		return "", nil, err
	}
	back, err := after.Encode(nil, syntax)
	if err != nil {
		return "", nil, err
	}
	value := &streamValue{a: a, part: first, next: next, out: front}
	if dicom.SyntaxOf(syntax).Encapsulated {
		value.encapsulated = true
		value.out = dicom.AppendElementHeader(value.out, true, false, a.stream.tag, dicom.OB, math.MaxUint32)
		value.out = dicom.AppendElementHeader(value.out, false, false, dicom.Item, 0, 0)
		back = append(dicom.AppendElementHeader(nil, false, false, dicom.SequenceDelimitationItem, 0, 0), back...)
	} else if value.out, err = a.nativeHead(value.out, first); err != nil {
		return "", nil, err
	}
	return syntax, io.MultiReader(value, bytes.NewReader(back)), nil
}

// pixelSyntax is the transfer syntax of the instance whose pixel data begin with first.
func (a *assembly) pixelSyntax(first *bulkPart) (string, error) {
	syntax := a.syntaxOf(first)
	known := dicom.SyntaxOf(syntax)
	switch {
	case syntax == dicom.ImplicitVRLittleEndian || syntax == dicom.ExplicitVRLittleEndian:
		return dicom.ExplicitVRLittleEndian, nil
	case !dicom.UsableUID(syntax) || !known.Encapsulated:
		return "", fmt.Errorf("%w: pixel data in a media type or transfer syntax that is none of PS3.18 §8.7.3", dicomsvc.ErrUnsupported)
	case !a.set.Has(dicom.Rows) || !a.set.Has(dicom.Columns) || !a.set.Has(dicom.BitsAllocated):
		return "", fmt.Errorf("%w: the metadata lack Rows, Columns or Bits Allocated, which are not read out of compressed pixel data here", dicomsvc.ErrMalformed)
	}
	return syntax, nil
}

// load puts a held value into its element.
func (a *assembly) load(n *need) {
	el := n.owner.Get(n.tag)
	el.Value, el.Bulk = n.parts[0].data, nil
	if el.VR.IsText() && !isASCII(el.Value) && utf8.Valid(el.Value) {
		a.set.Set(dicom.Element{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte("ISO_IR 192")})
	}
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// plain is the data set without what the message alone has: file meta information, and the transfer syntax that metadata are sent with.
func (a *assembly) plain() *dicom.Dataset {
	out := &dicom.Dataset{Elements: make([]dicom.Element, 0, a.set.Len())}
	for _, el := range a.set.Elements {
		if el.Tag.Group() > 2 && el.Tag != dicom.AvailableTransferSyntaxUID {
			out.Elements = append(out.Elements, el)
		}
	}
	return out
}

// knowsLength tells whether the stream that begins with first can be written without a look at all of it.
func (a *assembly) knowsLength(first *bulkPart) bool {
	return isPixels(a.stream.tag) && !dicom.SyntaxOf(a.syntaxOf(first)).Encapsulated && a.nativeBytes() >= 0
}

// nativeHead appends the header of a value of defined length, as PS3.5 §8.2 wants it of native pixel data.
func (a *assembly) nativeHead(dst []byte, first *bulkPart) ([]byte, error) {
	vr := a.set.Get(a.stream.tag).VR
	if first.size < 0 && isPixels(a.stream.tag) {
		first.size = a.nativeBytes()
	}
	if a.stream.want > 1 { // frame by frame
		if first.size = a.nativeBytes(); first.size < 0 {
			return nil, fmt.Errorf("%w: frames of native pixel data whose length the metadata do not tell", dicomsvc.ErrMalformed)
		}
	}
	if first.size < 0 {
		return nil, fmt.Errorf("%w: the length of %v is not known; send Content-Length in the header of its part", dicomsvc.ErrMalformed, a.stream.tag)
	}
	size := first.size + first.size%2
	if size >= math.MaxUint32 {
		return nil, fmt.Errorf("%w: a value of 4 GiB", dicomsvc.ErrLimit)
	}
	return dicom.AppendElementHeader(dst, true, false, a.stream.tag, vr, uint32(size)), nil
}

// nativeBytes is the length of native pixel data by the Image Pixel attributes, negative when these do not tell.
func (a *assembly) nativeBytes() int64 {
	bits := int64(1)
	for _, factor := range []struct {
		tag     dicom.Tag
		missing int
	}{{dicom.Rows, 0}, {dicom.Columns, 0}, {dicom.BitsAllocated, 0}, {dicom.SamplesPerPixel, 1}, {dicom.NumberOfFrames, 1}} {
		n, ok := a.set.Int(factor.tag)
		if !ok {
			n = factor.missing
		}
		if n <= 0 || bits > math.MaxInt64/8/int64(n) {
			return -1
		}
		bits *= int64(n)
	}
	return (bits + 7) / 8
}

// streamValue reads the value of the element that streams: what out holds, then the parts, each checked against the length that was
// written for it.
type streamValue struct {
	a            *assembly
	part         *bulkPart // the next to begin; nil when one is under way
	next         func() (*bulkPart, error)
	encapsulated bool
	out          []byte
	body         io.Reader
	left         int64 // of the fragment or value under way
	odd          bool
	begun        int // parts
	err          error
}

func (v *streamValue) Read(p []byte) (int, error) {
	for len(v.out) == 0 {
		if v.err != nil {
			return 0, v.err
		}
		if v.body == nil {
			v.begin()
			continue
		}
		n, err := v.body.Read(p[:min(int64(len(p)), max(v.left, 1))])
		if int64(n) > v.left {
			v.err = errPartLength
			return 0, v.err
		}
		v.left -= int64(n)
		switch {
		case err == io.EOF:
			v.end()
		case err != nil:
			v.err = err
		}
		if n > 0 {
			return n, nil
		}
	}
	n := copy(p, v.out)
	v.out = v.out[n:]
	return n, nil
}

// begin opens the next part, io.EOF behind the last.
func (v *streamValue) begin() {
	if v.begun == v.a.stream.want {
		v.err = io.EOF
		return
	}
	part := v.part
	if v.part = nil; part == nil {
		if part, v.err = v.next(); v.err != nil {
			return
		}
	}
	v.body = part.open()
	v.begun++
	if !v.encapsulated {
		if v.begun == 1 {
			v.left = part.size
			v.odd = part.size%2 == 1
		}
		return
	}
	if part.size < 0 || part.size >= math.MaxUint32-1 {
		v.err = fmt.Errorf("%w: a fragment of unknown length or of 4 GiB", dicomsvc.ErrLimit)
		return
	}
	v.left, v.odd = part.size, part.size%2 == 1
	v.out = dicom.AppendElementHeader(v.out, false, false, dicom.Item, 0, uint32(v.left+v.left%2))
}

// end closes a part. The frames of native pixel data are one value, of compressed ones a fragment each.
func (v *streamValue) end() {
	v.body = nil
	last := v.begun == v.a.stream.want
	if !v.encapsulated && !last {
		return
	}
	if v.left != 0 {
		v.err = errPartLength
		return
	}
	if v.odd {
		v.out = append(v.out, 0)
	}
}

var errPartLength = fmt.Errorf("%w: a bulk data part is not as long as its Content-Length or the image attributes say", dicomsvc.ErrMalformed)
