package dicomweb

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// bulkAll answers for all bulk values of a study, series or instance (PS3.18 §10.4.1.1.5), or for the pixel data of a study or series
// (§10.4.1.1.6): one part for each value, under its BulkDataURI, save that pixel data which are compressed, or asked for as such, have one for each
// frame. Like instances they are looked at first, and sent all or not at all.
func (s *Server) bulkAll(w http.ResponseWriter, r *request) *problem {
	all := &bulkList{server: s, r: r, frames: map[string]offer{}}
	if bad := all.plan(); bad != nil {
		return bad
	}
	boundary, err := s.boundary()
	if err != nil {
		return failure(err)
	}
	if notModified(w, r, all.etag) {
		return nil
	}
	all.parts = &partWriter{boundary: boundary, inner: all.inner}
	w.Header().Set("Content-Type", all.parts.contentType())
	return s.stream(w, r, http.StatusOK, all.write)
}

// bulkList is the bulk data of several instances while they are sent.
type bulkList struct {
	server *Server
	r      *request
	frames map[string]offer // how compressed pixel data are sent, by syntax
	inner  string           // media type of the first part
	parts  *partWriter
	etag   string
}

// bulkValue is one value of an instance.
type bulkValue struct {
	el  *dicom.Element
	uri string
}

// valuesIn lists what is sent of an instance, in the order of the data set.
func (b *bulkList) valuesIn(found *dicomsvc.Described) []bulkValue {
	name := bulkNames(b.r.root, found.Instance)
	var out []bulkValue
	var path []dicom.PathStep
	var walk func(d *dicom.Dataset)
	walk = func(d *dicom.Dataset) {
		for i := range d.Elements {
			el := &d.Elements[i]
			if el.Bulk != nil || el.VR.IsBinary() && len(el.Value) > 0 {
				wanted := b.r.resource == resBulk || len(path) == 0 && isPixels(el.Tag)
				if uri := name(path, el); uri != "" && wanted {
					out = append(out, bulkValue{el, uri})
				}
			}
			for n, item := range el.Items {
				path = append(path, dicom.PathStep{Tag: el.Tag, Item: n})
				walk(item)
				path = path[:len(path)-1]
			}
		}
	}
	walk(found.Header)
	return out
}

// inFrames tells whether a value is sent frame by frame.
func (b *bulkList) inFrames(v bulkValue) bool {
	return v.el.Bulk != nil && (v.el.Bulk.Encapsulated || b.r.resource == resPixels)
}

// plan looks at every value before any is sent.
func (b *bulkList) plan() *problem {
	hash := sha256.New()
	instances, values := 0, 0
	for found, err := range b.server.archive.Headers(b.r.Context(), b.r.who, b.r.selection()) {
		if err != nil {
			return failure(err)
		}
		instances++
		for _, v := range b.valuesIn(found) {
			media, bad := b.accept(v, found.Instance.TransferSyntaxUID)
			if bad != nil {
				return bad
			}
			if values++; values == 1 {
				b.inner = media
			}
		}
		fmt.Fprintf(hash, "%s %x\n", found.Instance.SOPInstanceUID, found.Instance.Digest)
	}
	switch {
	case instances == 0:
		return notFound()
	case values == 0:
		return newProblem(http.StatusNotFound, "nothing under that path has such data", "ask for the metadata: every bulk value has a BulkDataURI there")
	}
	fmt.Fprint(hash, b.r.root, b.inner)
	b.etag = weak(etagOf(hash.Sum(nil), string(b.r.resource)+"s"))
	return nil
}

// accept settles the media type of a value.
func (b *bulkList) accept(v bulkValue, syntax string) (string, *problem) {
	octets := offer{media: mediaOctets, multipart: true, list: true}
	if !b.inFrames(v) {
		if _, ok := b.r.accept.choose([]offer{octets}); !ok {
			return "", newProblem(http.StatusNotAcceptable, "the values can only be sent as octets", `ask for multipart/related; type="application/octet-stream"; transfer-syntax=*`)
		}
		return mediaOctets, nil
	}
	if form, known := b.frames[syntax]; known {
		return form.media, nil
	}
	p := &pixels{syntax: syntax}
	if !dicom.SyntaxOf(syntax).Encapsulated {
		p.syntax = dicom.ExplicitVRLittleEndian
	}
	form, ok := b.r.accept.choose(p.offers(2))
	if !ok {
		return "", p.notAcceptable()
	}
	b.frames[syntax] = form
	return form.media, nil
}

func (b *bulkList) write(w io.Writer) error {
	for found, err := range b.server.archive.Headers(b.r.Context(), b.r.who, b.r.selection()) {
		if err != nil {
			return err
		}
		if err := b.instance(w, found); err != nil {
			return err
		}
	}
	return b.parts.end(w)
}

func (b *bulkList) instance(w io.Writer, found *dicomsvc.Described) error {
	in := found.Instance
	var obj object
	for _, v := range b.valuesIn(found) {
		if b.inFrames(v) {
			if err := b.writeFrames(w, in); err != nil {
				return err
			}
			continue
		}
		body := payload{size: int64(len(v.el.Value)), copy: func(w io.Writer, off, n int64) error {
			_, err := io.Copy(w, bytes.NewReader(v.el.Value))
			return err
		}}
		if v.el.Bulk != nil {
			if obj == nil {
				var err error
				if obj, err = b.server.archive.Open(b.r.Context(), b.r.who, in); err != nil {
					return err
				}
				defer obj.Close()
			}
			body = b.server.bulkPayload(obj, v.el, in.TransferSyntaxUID)
		}
		if err := b.parts.part(w, mediaOctets, v.uri, body.size); err != nil {
			return err
		}
		if err := body.copy(w, 0, body.size); err != nil {
			return err
		}
	}
	return nil
}

// writeFrames sends the pixel data of in, a part for each frame.
func (b *bulkList) writeFrames(w io.Writer, in *dicomsvc.Instance) error {
	form, ok := b.frames[in.TransferSyntaxUID]
	if !ok {
		return fmt.Errorf("%w: an instance in another syntax arrived meanwhile", dicomsvc.ErrConflict)
	}
	one := *b.r
	one.study, one.series, one.instance = in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID
	p, bad := b.server.openPixels(&one, in)
	if bad != nil {
		if bad.cause != nil {
			return bad.cause
		}
		return fmt.Errorf("%w: %s", dicomsvc.ErrUnavailable, bad.what)
	}
	defer p.obj.Close()
	return p.writeFrames(w, &one, b.parts, form, nil, p.table.Len())
}
