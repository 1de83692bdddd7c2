package dicomweb

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// metadata answers with the data sets of a study, series or instance without their bulk values
// (PS3.18 §10.4.1.1.2). Every bulk value gets a BulkDataURI that this server resolves.
func (s *Server) metadata(w http.ResponseWriter, r *request) *problem {
	docs, bad := s.describe(r)
	if bad != nil {
		return bad
	}
	etag, bad := s.metadataTag(r, docs)
	if bad != nil {
		return bad
	}
	h := w.Header()
	if notModified(w, r, etag) {
		return nil
	}
	h.Set("Content-Type", docs.contentType())
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	out := &reply{w: w, status: http.StatusOK}
	err := s.zipped(out, r, func(w io.Writer) error { return s.writeMetadata(w, r, docs) })
	if err == nil {
		err = out.finish()
	}
	switch {
	case err == nil:
		return nil
	case !out.committed:
		return failure(err)
	}
	s.abort(r, err)
	return nil
}

// metadataTag names the state of what r selects: every version in it, and the root that its URIs have.
func (s *Server) metadataTag(r *request, docs documents) (string, *problem) {
	hash := sha256.New()
	n := 0
	for in, err := range s.archive.Instances(r.Context(), r.who, r.selection()) {
		if err != nil {
			return "", failure(err)
		}
		n++
		fmt.Fprintf(hash, "%s %x\n", in.SOPInstanceUID, in.Digest)
	}
	if n == 0 {
		return "", notFound()
	}
	representation := "xml"
	if array, ok := docs.(*jsonArray); ok {
		representation = "json"
		fmt.Fprint(hash, array.media)
	}
	fmt.Fprint(hash, r.root)
	return weak(etagOf(hash.Sum(nil), representation)), nil
}

func (s *Server) writeMetadata(w io.Writer, r *request, docs documents) error {
	if err := docs.begin(w); err != nil {
		return err
	}
	var body []byte
	for found, err := range s.archive.Headers(r.Context(), r.who, r.selection()) {
		if err != nil {
			return err
		}
		uri := bulkNames(r.root, found.Instance)
		if body, err = appendDocument(body[:0], docs, describedSet(found), uri); err != nil {
			return err
		}
		if err := docs.document(w, body); err != nil {
			return err
		}
	}
	return docs.end(w)
}

// describedSet is the data set that is sent for one instance: its own, with the transfer syntax in which
// it is stored (PS3.18 §10.4.3.3.2), and the character set in which it is sent.
func describedSet(found *dicomsvc.Described) *dicom.Dataset {
	set := found.Header
	out := &dicom.Dataset{Elements: make([]dicom.Element, 0, len(set.Elements)+2)}
	out.Elements = append(out.Elements, set.Elements...)
	if set.Get(dicom.AvailableTransferSyntaxUID) == nil {
		out.SetStrings(dicom.AvailableTransferSyntaxUID, found.Instance.TransferSyntaxUID)
	}
	return out
}

// bulkNames returns what names the bulk values of in, and the binary values too long to be sent inline.
func bulkNames(root string, in *dicomsvc.Instance) bulkURI {
	base := instanceURL(root, in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID) + "/bulkdata/"
	return func(path []dicom.PathStep, el *dicom.Element) string {
		if el.Bulk == nil && len(el.Value) <= inlineBytesMax {
			return ""
		}
		var b strings.Builder
		b.WriteString(base)
		for _, step := range path {
			b.WriteString(step.Tag.Hex() + "/" + strconv.Itoa(step.Item+1) + "/")
		}
		b.WriteString(el.Tag.Hex())
		return b.String()
	}
}
