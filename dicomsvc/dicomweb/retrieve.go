package dicomweb

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// plan is how the instances of a retrieve request will be sent.
type plan struct {
	forms  map[string]offer // by stored transfer syntax
	single bool             // one instance, not in a multipart
	count  int
	first  *dicomsvc.Instance
	etag   string
	refuse map[string]int // instances that cannot be sent, by stored syntax
}

// planRetrieve looks at every instance that r names before any is sent: a client is not left with half a
// study because the other half is in a syntax that it did not ask for.
func (s *Server) planRetrieve(r *request) (*plan, *problem) {
	p := &plan{forms: make(map[string]offer), refuse: make(map[string]int)}
	hash := sha256.New()
	for in, err := range s.archive.Instances(r.Context(), r.who, r.selection()) {
		if err != nil {
			return nil, failure(err)
		}
		if p.count++; p.count == 1 {
			p.first = in
		}
		form, known := p.forms[in.TransferSyntaxUID]
		if !known {
			var ok bool
			if form, ok = r.instanceForm(in.TransferSyntaxUID); !ok {
				p.refuse[in.TransferSyntaxUID]++
				continue
			}
			p.forms[in.TransferSyntaxUID] = form
		}
		p.single = !form.multipart
		fmt.Fprintf(hash, "%s %x %s\n", in.SOPInstanceUID, in.Digest, form.syntax)
	}
	switch {
	case p.count == 0:
		return nil, notFound()
	case len(p.refuse) > 0:
		return nil, p.notAcceptable()
	}
	fmt.Fprint(hash, p.single)
	p.etag = weak(etagOf(hash.Sum(nil), "dicom"))
	return p, nil
}

// instanceForm chooses how an instance stored in the given syntax is sent. Without a transfer-syntax
// parameter the client takes Explicit VR Little Endian alone, save that what is stored with loss is sent
// as it is (PS3.18 §8.7.3); a wildcard media range prefers that syntax and takes any.
func (r *request) instanceForm(stored string) (offer, bool) {
	var offers []offer
	add := func(o offer) {
		o.syntax = stored
		offers = append(offers, o)
		if explicitable(stored) && stored != dicom.ExplicitVRLittleEndian {
			o.syntax = dicom.ExplicitVRLittleEndian
			offers = append(offers, o)
		}
	}
	add(offer{media: mediaDICOM, multipart: true, list: r.instance == ""})
	if r.instance != "" {
		add(offer{media: mediaDICOM})
	}
	if chosen, ok := r.accept.choose(offers); ok {
		return chosen, true
	}
	if !lossy(stored) {
		return offer{}, false
	}
	for i := range offers {
		offers[i].syntax = dicom.ExplicitVRLittleEndian
	}
	chosen, ok := r.accept.choose(offers)
	chosen.syntax = stored
	return chosen, ok
}

// lossy tells whether a transfer syntax is used where the original pixels are gone.
func lossy(syntax string) bool {
	switch syntax {
	case dicom.JPEGBaseline8Bit, dicom.JPEGExtended12Bit, dicom.JPEGLSNearLossless, dicom.JPEG2000, dicom.JPEGXL,
		dicom.JPEGXLJPEGRecompression, dicom.HTJ2K, "1.2.840.10008.1.2.4.93":
		return true
	}
	if dicom.SyntaxOf(syntax).Video {
		return true
	}
	// The retired JPEG processes 3 to 13, of which only 14 and 15 are lossless.
	return strings.HasPrefix(syntax, "1.2.840.10008.1.2.4.5") && len(syntax) == len(dicom.JPEGBaseline8Bit) && syntax < dicom.JPEGLossless
}

// notAcceptable tells which syntaxes stand in the way.
func (p *plan) notAcceptable() *problem {
	var stored []string
	total := 0
	for uid, n := range p.refuse {
		stored = append(stored, fmt.Sprintf("%d in %s (%s)", n, uid, dicom.SyntaxOf(uid).Name))
		total += n
	}
	slices.Sort(stored)
	return newProblem(http.StatusNotAcceptable,
		fmt.Sprintf("%d of %d instances cannot be sent in a form that was asked for: stored are %s, and compressed pixel data are not decoded here",
			total, p.count, strings.Join(stored, ", ")),
		`ask for multipart/related; type="application/dicom"; transfer-syntax=* to get every instance as it is stored`)
}

// retrieve answers WADO-RS for studies, series and instances (PS3.18 §10.4): PS3.10 files, each streamed
// out of the archive with its digest checked.
func (s *Server) retrieve(w http.ResponseWriter, r *request) *problem {
	p, bad := s.planRetrieve(r)
	if bad != nil {
		return bad
	}
	if notModified(w, r, p.etag) {
		return nil
	}
	if p.single {
		return s.retrieveOne(w, r, p)
	}
	boundary, err := s.boundary()
	if err != nil {
		return failure(err)
	}
	parts := &partWriter{boundary: boundary, inner: mediaDICOM}
	w.Header().Set("Content-Type", parts.contentType())
	return s.stream(w, r, http.StatusOK, func(w io.Writer) error { return s.sendInstances(w, r, p, parts) })
}

func (s *Server) sendInstances(w io.Writer, r *request, p *plan, parts *partWriter) error {
	for in, err := range s.archive.Instances(r.Context(), r.who, r.selection()) {
		if err != nil {
			return err
		}
		form, ok := p.forms[in.TransferSyntaxUID]
		if !ok {
			return fmt.Errorf("%w: an instance in another syntax arrived meanwhile", dicomsvc.ErrConflict)
		}
		err = s.sendFile(r, in, form, func(size int64) (io.Writer, error) {
			return w, parts.part(w, form.contentType(), instanceURL(r.root, in.StudyInstanceUID, in.SeriesInstanceUID, in.SOPInstanceUID), size)
		})
		if err != nil {
			return err
		}
	}
	return parts.end(w)
}

// retrieveOne sends one instance that is not in a multipart.
func (s *Server) retrieveOne(w http.ResponseWriter, r *request, p *plan) *problem {
	form := p.forms[p.first.TransferSyntaxUID]
	h := w.Header()
	h.Set("Content-Type", form.contentType())
	h.Set("Content-Disposition", `attachment; filename="`+p.first.SOPInstanceUID+`.dcm"`)
	return s.stream(w, r, http.StatusOK, func(w io.Writer) error {
		return s.sendFile(r, p.first, form, func(size int64) (io.Writer, error) {
			h.Set("Content-Length", strconv.FormatInt(size, 10))
			return w, nil
		})
	})
}

// sendFile writes one instance as a PS3.10 file. begin is called when the object is open, with the length
// of the file, and returns where it goes.
func (s *Server) sendFile(r *request, in *dicomsvc.Instance, form offer, begin func(size int64) (io.Writer, error)) error {
	obj, err := s.archive.Open(r.Context(), r.who, in)
	if err != nil {
		return err
	}
	defer obj.Close()
	meta := dicom.AppendMeta(nil, in.SOPClassUID, in.SOPInstanceUID, form.syntax, implementationClassUID, implementationVersion, "")
	size, write := obj.Size(), func(w io.Writer) error {
		_, err := obj.WriteTo(w)
		return err
	}
	if form.syntax != in.TransferSyntaxUID {
		rewritten, err := dicomsvc.Rewrite(obj, in.TransferSyntaxUID, form.syntax)
		if err != nil {
			return err
		}
		size, write = rewritten.Size(), func(w io.Writer) error {
			_, err := rewritten.WriteTo(w)
			return err
		}
	}
	w, err := begin(int64(len(meta)) + size)
	if err != nil {
		return err
	}
	if _, err := w.Write(meta); err != nil {
		return err
	}
	return write(w)
}

// Implementation identification of files made here (PS3.10 §7.1), the same as on associations.
const (
	implementationClassUID = "2.25.191147412569828771770245159889088008107"
	implementationVersion  = "OSTEON_0"
)
