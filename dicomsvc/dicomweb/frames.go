package dicomweb

import (
	"fmt"
	"io"
	"net/http"
	"strconv"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
)

// pixels is the pixel data of one instance, ready to be sent frame by frame.
type pixels struct {
	server *Server
	in     *dicomsvc.Instance
	table  *dicom.FrameTable
	obj    object
	syntax string       // in which frames are sent
	width  int          // of the words whose bytes are swapped; 1: none
	image  *pixel.Image // once a frame was decoded
	opaque bool         // frames turned out not to be decodable
}

// find returns the instance that the path names.
func (s *Server) find(r *request) (*dicomsvc.Instance, *problem) {
	for in, err := range s.archive.Instances(r.Context(), r.who, r.selection()) {
		if err != nil {
			return nil, failure(err)
		}
		return in, nil
	}
	return nil, notFound()
}

// header returns the header of the instance that the path names.
func (s *Server) header(r *request) (*dicom.Dataset, *problem) {
	for found, err := range s.archive.Headers(r.Context(), r.who, r.selection()) {
		if err != nil {
			return nil, failure(err)
		}
		return found.Header, nil
	}
	return nil, notFound()
}

// openPixels opens the pixel data of in. The caller closes obj.
func (s *Server) openPixels(r *request, in *dicomsvc.Instance) (*pixels, *problem) {
	table, err := s.archive.Frames(r.Context(), r.who, in)
	switch {
	case err != nil:
		return nil, failure(err)
	case table == nil:
		return nil, newProblem(http.StatusNotFound, "the instance has no pixel data", "retrieve the instance, or its metadata")
	case table.Len() == 0:
		return nil, newProblem(http.StatusNotFound, "the instance has no frames that can be told apart: "+table.Reason(),
			"retrieve the instance itself")
	}
	p := &pixels{server: s, in: in, table: table, syntax: in.TransferSyntaxUID, width: 1}
	if !table.Encapsulated() {
		// Whatever the data set's syntax, the octets of native frames are Little Endian (PS3.18 §8.7.3.3.1).
		p.syntax = dicom.ExplicitVRLittleEndian
	}
	if dicom.SyntaxOf(in.TransferSyntaxUID).BigEndian {
		header, bad := s.header(r)
		if bad != nil {
			return nil, bad
		}
		if el := header.Get(dicom.PixelData); el != nil {
			p.width = el.VR.Width()
		}
	}
	if p.obj, err = s.archive.Open(r.Context(), r.who, in); err != nil {
		return nil, failure(err)
	}
	return p, nil
}

// frames answers with frames in the order asked for, or with all of them (PS3.18 §10.4.1.1.6): as stored,
// without item tags, native ones in Little Endian.
func (s *Server) frames(w http.ResponseWriter, r *request) *problem {
	var list []int
	if r.resource == resFrames {
		var bad *problem
		if list, bad = parseFrames(r.list); bad != nil {
			return bad
		}
	}
	in, bad := s.find(r)
	if bad != nil {
		return bad
	}
	p, bad := s.openPixels(r, in)
	if bad != nil {
		return bad
	}
	defer p.obj.Close()
	return p.send(w, r, list)
}

// send sends the frames in list, or all when it is nil.
func (p *pixels) send(w http.ResponseWriter, r *request, list []int) *problem {
	count := len(list)
	if list == nil {
		count = p.table.Len()
	}
	for _, n := range list {
		if n > p.table.Len() {
			return newProblem(http.StatusNotFound, fmt.Sprintf("frame %d is asked for, but the instance has %d", n, p.table.Len()),
				"ask for frames from 1 to Number of Frames (0028,0008)")
		}
	}
	form, ok := r.accept.choose(p.offers(count))
	if !ok {
		return p.notAcceptable()
	}
	frame := 1
	if list != nil {
		frame = list[0]
	}
	form = p.settle(r, form, count, frame)
	if form.multipart {
		return p.sendParts(w, r, form, list, count)
	}
	body, err := p.body(r, form, frame)
	if err != nil {
		return failure(err)
	}
	tag := "frame-" + strconv.Itoa(frame)
	if form.syntax != p.syntax {
		tag += "-native"
	}
	w.Header().Set("Content-Disposition", "attachment")
	return p.server.sendPayload(w, r, form.contentType(), etagOf(p.in.Digest[:], tag), body)
}

// offers lists the forms in which count frames can be sent: the media type of the syntax and, for clients
// that ask for octets of any syntax, application/octet-stream; in a multipart or, one frame, alone. Frames compressed without loss
// are offered decoded, too.
func (p *pixels) offers(count int) []offer {
	var offers []offer
	for _, media := range []string{mediaOfSyntax(p.syntax), mediaOctets} {
		offers = append(offers, offer{media: media, multipart: true, syntax: p.syntax, list: count > 1})
		if count == 1 {
			offers = append(offers, offer{media: media, syntax: p.syntax})
		}
	}
	if p.decodes() {
		offers = append(offers, p.nativeOffers(count)...)
	}
	return offers
}

func (p *pixels) notAcceptable() *problem {
	media := mediaOfSyntax(p.syntax)
	return newProblem(http.StatusNotAcceptable,
		"the frames are stored in "+p.syntax+" ("+dicom.SyntaxOf(p.syntax).Name+"), which was not asked for, and they are not decoded here",
		`ask for multipart/related; type="`+media+`"; transfer-syntax=`+p.syntax+`, or for multipart/related; type="application/octet-stream"; transfer-syntax=*`)
}

// mediaOfSyntax is the media type of a frame in the syntax (PS3.18 Tables 8.7.3-3 and 8.7.3-5).
func mediaOfSyntax(syntax string) string {
	switch syntax {
	case dicom.JPEGLSLossless, dicom.JPEGLSNearLossless:
		return "image/jls"
	case dicom.JPEG2000Lossless, dicom.JPEG2000:
		return "image/jp2"
	case "1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93":
		return "image/jpx"
	case dicom.HTJ2KLossless, dicom.HTJ2KLosslessRPCL, dicom.HTJ2K:
		return "image/jphc"
	case dicom.JPEGXLLossless, dicom.JPEGXLJPEGRecompression, dicom.JPEGXL:
		return "image/jxl"
	case dicom.RLELossless:
		return "image/dicom-rle"
	}
	switch s := dicom.SyntaxOf(syntax); {
	case s.Video && syntax < dicom.MPEG4HP41:
		return "video/mpeg"
	case s.Video:
		return "video/mp4"
	case s.Encapsulated && len(syntax) == len(dicom.JPEGBaseline8Bit) && syntax >= dicom.JPEGBaseline8Bit && syntax <= dicom.JPEGLosslessSV1:
		return "image/jpeg"
	}
	return mediaOctets
}

func (p *pixels) sendParts(w http.ResponseWriter, r *request, form offer, list []int, count int) *problem {
	boundary, err := p.server.boundary()
	if err != nil {
		return failure(err)
	}
	etag := weak(etagOf(p.in.Digest[:], fmt.Sprint("frames-", r.list, "-", form.media, form.syntax)))
	if notModified(w, r, etag) {
		return nil
	}
	parts := &partWriter{boundary: boundary, inner: form.media}
	w.Header().Set("Content-Type", parts.contentType())
	return p.server.stream(w, r, http.StatusOK, func(w io.Writer) error {
		if err := p.writeFrames(w, r, parts, form, list, count); err != nil {
			return err
		}
		return parts.end(w)
	})
}

// writeFrames writes a part for each frame in list, or for the first count of them.
func (p *pixels) writeFrames(w io.Writer, r *request, parts *partWriter, form offer, list []int, count int) error {
	base := instanceURL(r.root, p.in.StudyInstanceUID, p.in.SeriesInstanceUID, p.in.SOPInstanceUID) + "/frames/"
	for i := range count {
		frame := i + 1
		if list != nil {
			frame = list[i]
		}
		body, err := p.body(r, form, frame)
		if err != nil {
			return err
		}
		if err := parts.part(w, form.contentType(), base+strconv.Itoa(frame), body.size); err != nil {
			return err
		}
		if err := body.copy(w, 0, body.size); err != nil {
			return err
		}
	}
	return nil
}

// payload returns frame n, from 1.
func (p *pixels) payload(n int) (payload, error) {
	extents, err := p.table.Frame(nil, n-1)
	if err != nil {
		return payload{}, err
	}
	bits, start := p.table.FrameBits(n - 1)
	if bits%8 != 0 || start != 0 {
		return p.packed(extents[0], bits, start), nil
	}
	var size int64
	for _, e := range extents {
		size += e.Length
	}
	return payload{size: size, ranges: p.width == 1, copy: func(w io.Writer, off, n int64) error {
		for _, e := range extents {
			if off >= e.Length {
				off -= e.Length
				continue
			}
			length := min(e.Length-off, n)
			if length == 0 {
				break
			}
			if err := p.copyWords(w, e.Offset+off, length); err != nil {
				return err
			}
			off, n = 0, n-length
		}
		return nil
	}}, nil
}

// copyWords copies n bytes from off of the stream, in Little Endian: whole words are read, for a frame of Big Endian words may begin or end within one.
func (p *pixels) copyWords(w io.Writer, off, n int64) error {
	width := int64(p.width)
	if width == 1 {
		return p.server.copyExact(w, p.obj.Section(off, n), n)
	}
	first, err := p.table.Frame(nil, 0)
	if err != nil {
		return err
	}
	skip := (off - first[0].Offset) % width
	whole := (skip + n + width - 1) / width * width
	return p.server.copySwapped(&window{w: w, skip: skip, left: n}, p.obj.Section(off-skip, whole), whole, p.width)
}

// window lets the bytes between skip and skip+left through.
type window struct {
	w          io.Writer
	skip, left int64
}

func (c *window) Write(p []byte) (int, error) {
	all := len(p)
	n := min(c.skip, int64(len(p)))
	c.skip -= n
	p = p[n:]
	p = p[:min(c.left, int64(len(p)))]
	c.left -= int64(len(p))
	if _, err := c.w.Write(p); err != nil {
		return 0, err
	}
	return all, nil
}

// packed returns a frame of 1-bit pixels that shares its first or last byte with its neighbours: moved to
// begin with its own bits, the last byte filled with zeros.
func (p *pixels) packed(e dicom.Extent, bits int64, start int) payload {
	return payload{size: (bits + 7) / 8, copy: func(w io.Writer, _, _ int64) error {
		shift := &shifter{w: w, shift: start, left: bits}
		if err := p.server.copyExact(shift, p.obj.Section(e.Offset, e.Length), e.Length); err != nil {
			return err
		}
		return shift.flush()
	}}
}
