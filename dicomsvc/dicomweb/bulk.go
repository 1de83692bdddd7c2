package dicomweb

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// bulkdata answers with one bulk value (PS3.18 §10.4.1.1.5), named as metadata names it. It is never said to
// be anything but octets to save: a document or a script stored in an instance must not run in the
// browser of whoever opens it. Compressed pixel data are answered as frames.
func (s *Server) bulkdata(w http.ResponseWriter, r *request) *problem {
	in, bad := s.find(r)
	if bad != nil {
		return bad
	}
	header, bad := s.header(r)
	if bad != nil {
		return bad
	}
	el := walk(header, r.path)
	if el == nil || el.IsEmpty() || len(el.Items) > 0 {
		return newProblem(http.StatusNotFound, "the instance has no value at that path", "use a BulkDataURI as it stands in the metadata")
	}
	if el.Bulk != nil && el.Bulk.Encapsulated {
		p, bad := s.openPixels(r, in)
		if bad != nil {
			return bad
		}
		defer p.obj.Close()
		return p.send(w, r, nil)
	}
	form, ok := r.accept.choose([]offer{{media: mediaOctets}, {media: mediaOctets, multipart: true}})
	if !ok {
		return newProblem(http.StatusNotAcceptable, "the value can only be sent as octets",
			`ask for application/octet-stream, or multipart/related; type="application/octet-stream"`)
	}
	body := payload{size: int64(len(el.Value)), ranges: true, copy: func(w io.Writer, off, n int64) error {
		_, err := io.Copy(w, bytes.NewReader(el.Value[off:off+n]))
		return err
	}}
	if el.Bulk != nil {
		obj, err := s.archive.Open(r.Context(), r.who, in)
		if err != nil {
			return failure(err)
		}
		defer obj.Close()
		body = s.bulkPayload(obj, el, in.TransferSyntaxUID)
	}
	w.Header().Set("Content-Disposition", "attachment")
	if form.multipart {
		return s.sendBulkPart(w, r, in, body)
	}
	return s.sendPayload(w, r, mediaOctets, etagOf(in.Digest[:], "bulk-"+pathTag(r.path)), body)
}

// walk follows path into d; nil when it leads nowhere.
func walk(d *dicom.Dataset, path []pathStep) *dicom.Element {
	for _, step := range path {
		el := d.Get(step.tag)
		if el == nil || step.item == 0 {
			return el
		}
		if step.item > len(el.Items) {
			return nil
		}
		d = el.Items[step.item-1]
	}
	return nil
}

// bulkPayload is a value that was left in the stream, turned to Little Endian.
func (s *Server) bulkPayload(obj object, el *dicom.Element, syntax string) payload {
	width := 1
	if dicom.SyntaxOf(syntax).BigEndian {
		width = el.VR.Width()
	}
	at := el.Bulk.Offset
	return payload{size: el.Bulk.Length, ranges: width == 1, copy: func(w io.Writer, off, n int64) error {
		return s.copySwapped(w, obj.Section(at+off, n), n, width)
	}}
}

func (s *Server) sendBulkPart(w http.ResponseWriter, r *request, in *dicomsvc.Instance, body payload) *problem {
	boundary, err := s.boundary()
	if err != nil {
		return failure(err)
	}
	if notModified(w, r, weak(etagOf(in.Digest[:], "bulk-"+pathTag(r.path)))) {
		return nil
	}
	parts := &partWriter{boundary: boundary, inner: mediaOctets}
	w.Header().Set("Content-Type", parts.contentType())
	_, path, _ := strings.Cut(r.URL.Path, "/bulkdata/")
	location := instanceURL(r.root, in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID) + "/bulkdata/" + path
	return s.stream(w, r, http.StatusOK, func(w io.Writer) error {
		if err := parts.part(w, mediaOctets, location, body.size); err != nil {
			return err
		}
		if err := body.copy(w, 0, body.size); err != nil {
			return err
		}
		return parts.end(w)
	})
}

// pathTag writes a path for an entity tag.
func pathTag(path []pathStep) string {
	var b strings.Builder
	for _, step := range path {
		fmt.Fprintf(&b, "%08X.%d.", uint32(step.tag), step.item)
	}
	return b.String()
}
