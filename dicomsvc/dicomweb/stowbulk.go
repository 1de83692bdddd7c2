package dicomweb

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// bulkStore stores instances whose metadata and bulk data come in parts of their own. The parts are taken in the order in which
// they arrive. What cannot go on into the archive at once waits in memory, up to heldBytesMax; nothing is put on a disk but by the
// archive, which encrypts.
type bulkStore struct {
	server *Server
	r      *request
	parts  *partReader // nil for a body that is metadata alone
	meta   string      // media type of the metadata
	result *stored

	waiting []*assembly
	ready   []*assembly // whose values are all here
	byURI   map[string][]*need
	pushed  *arrival // read, but not taken yet
	objects int      // found in the metadata
	metaLen int64
	held    int64
	some    bool // something was stored
}

// arrival is a bulk data part that some instance waits for.
type arrival struct {
	uri  string
	part *bulkPart
}

var (
	errNoBulk  = fmt.Errorf("%w: bulk data that its metadata name are not in the request", dicomsvc.ErrMalformed)
	errTooMuch = fmt.Errorf("%w: more bulk data of incomplete instances than can be held; send the parts of an instance together, pixel data last, each with Content-Length", dicomsvc.ErrLimit)
	errBroken  = errors.New("the request broke off")
)

// storeBulk stores the instances of a request for metadata and bulk data. body is read when there are no parts.
func (s *Server) storeBulk(r *request, parts *partReader, meta string) *stored {
	b := &bulkStore{server: s, r: r, parts: parts, meta: meta, result: &stored{}, byURI: map[string][]*need{}}
	if parts == nil {
		body := &sawError{r: r.Body}
		b.metadata(body)
		b.result.broken = body.err
	}
	for {
		b.settle()
		if b.result.refused != nil {
			return b.result
		}
		next, err := b.advance()
		if err != nil {
			break
		}
		b.arrive(next)
		if b.result.refused != nil {
			return b.result
		}
	}
	b.settle()
	for _, a := range slices.Clone(b.waiting) {
		b.fail(a, errNoBulk)
	}
	return b.result
}

// advance returns the next bulk data part that is waited for. Metadata on the way are read. io.EOF is the end, errBroken is told of in the result.
func (b *bulkStore) advance() (*arrival, error) {
	if b.pushed != nil {
		next := b.pushed
		b.pushed = nil
		return next, nil
	}
	for b.parts != nil {
		p, err := b.parts.next()
		switch {
		case err == io.EOF:
			return nil, io.EOF
		case errors.Is(err, errPartHeader):
			b.result.add(unknown(dicomsvc.StatusCannotUnderstand, http.StatusBadRequest))
			continue
		case err != nil:
			b.result.broken = err
			return nil, errBroken
		}
		media, ok := parseMedia(p.header["content-type"])
		switch {
		case encoded(p.header), p.header["content-type"] != "" && !ok:
			b.result.add(unknown(dicomsvc.StatusNotSupported, http.StatusUnsupportedMediaType))
		case media.kind == b.meta:
			b.metadata(p)
		default:
			if next := b.arrival(p, media); next != nil {
				return next, nil
			}
			b.result.strays++
		}
	}
	return nil, io.EOF
}

// arrival is the part p if some instance waits for it.
func (b *bulkStore) arrival(p *part, media mediaRange) *arrival {
	size, buffer := int64(-1), 4096
	if n, err := strconv.ParseInt(p.header["content-length"], 10, 64); err == nil && n >= 0 {
		size = n
	}
	if media.kind == "image/jpeg" {
		buffer = jpegHeadBytes
	}
	uri, frame := b.location(p.header)
	if uri == "" {
		return nil
	}
	return &arrival{uri, &bulkPart{media: media, frame: frame, size: size, body: bufio.NewReaderSize(p, buffer)}}
}

// location is the URI under which a part is waited for, and whether the part is one frame of what is there: Content-Location
// with or without /frames/{n} behind it, or Content-ID (RFC 2392).
func (b *bulkStore) location(header map[string]string) (uri string, frame bool) {
	uri = header["content-location"]
	if len(b.byURI[uri]) > 0 {
		return uri, false
	}
	if i := strings.LastIndex(uri, "/frames/"); i >= 0 && len(b.byURI[uri[:i]]) > 0 {
		return uri[:i], true
	}
	if id := "cid:" + strings.Trim(header["content-id"], "<>"); len(b.byURI[id]) > 0 {
		return id, false
	}
	return "", false
}

// metadata reads a part of metadata: one XML document, or a JSON array of objects. An object that cannot be read costs itself alone.
func (b *bulkStore) metadata(r io.Reader) {
	left := metadataBytesMax - b.metaLen
	text, err := io.ReadAll(io.LimitReader(r, left+1))
	b.metaLen += int64(len(text))
	switch {
	case err != nil:
		return // the next part cannot be read either, and is told of
	case int64(len(text)) > left:
		b.unreadable(fmt.Errorf("%w: more than %d bytes of metadata; send fewer instances in a request", dicomsvc.ErrLimit, metadataBytesMax))
		return
	case b.meta == mediaDICOMXML:
		b.object(dicom.ParseXML(text, dicom.Limits{}))
		return
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		b.object(dicom.ParseJSON(text, dicom.Limits{}))
		return
	}
	for dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			b.unreadable(fmt.Errorf("%w: the metadata are not valid JSON", dicomsvc.ErrMalformed))
			return
		}
		b.object(dicom.ParseJSON(raw, dicom.Limits{}))
	}
}

// object takes one data set out of metadata, or the error it gave.
func (b *bulkStore) object(set *dicom.Dataset, err error) {
	switch b.objects++; {
	case errors.Is(err, dicom.ErrLimit):
		b.unreadable(fmt.Errorf("%w: %w", dicomsvc.ErrLimit, err))
		return
	case err != nil:
		b.unreadable(fmt.Errorf("%w: %w", dicomsvc.ErrMalformed, err))
		return
	case b.objects > partsMax:
		b.unreadable(fmt.Errorf("%w: more than %d instances in a request", dicomsvc.ErrLimit, partsMax))
		return
	}
	a, err := newAssembly(set)
	if err != nil {
		b.fail(a, err)
		return
	}
	b.waiting = append(b.waiting, a)
	for _, n := range a.needs {
		b.byURI[n.uri] = append(b.byURI[n.uri], n)
	}
	if a.missing == 0 {
		b.ready = append(b.ready, a)
	}
}

// unreadable reports metadata whose instance is not known.
func (b *bulkStore) unreadable(err error) {
	b.server.noteObject(b.r, err)
	o := failed(dicomsvc.PutResult{}, nil, err)
	if errors.Is(err, dicomsvc.ErrLimit) {
		o.http = http.StatusRequestEntityTooLarge
	}
	b.result.add(o)
}

// arrive sends a part on into the archive when it is the last that its instance waits for, and holds it otherwise.
func (b *bulkStore) arrive(next *arrival) {
	list := b.byURI[next.uri]
	if len(list) == 1 {
		if n := list[0]; n == n.of.stream && len(n.parts) == 0 && n.of.missing == 1 {
			b.stream(n.of, next.part)
			return
		}
	}
	if !b.hold(next) {
		b.failAll(next.uri, errTooMuch)
	}
}

// hold keeps a part in memory for all who wait for it. False: there is no room, and nothing of it was read.
func (b *bulkStore) hold(next *arrival) bool {
	if next.part.size > heldBytesMax-b.held {
		return false
	}
	if err := b.measure(next.part); err != nil {
		b.failAll(next.uri, err)
		return true
	}
	b.byURI[next.uri] = slices.DeleteFunc(b.byURI[next.uri], func(n *need) bool {
		if n.take(next.part); n.of.missing == 0 {
			b.ready = append(b.ready, n.of)
		}
		return len(n.parts) == n.want
	})
	if len(b.byURI[next.uri]) == 0 {
		delete(b.byURI, next.uri)
	}
	if next.part.users > 0 {
		b.held += int64(len(next.part.data))
	}
	return true
}

// measure reads a part into memory.
func (b *bulkStore) measure(p *bulkPart) error {
	room := heldBytesMax - b.held
	data, err := io.ReadAll(io.LimitReader(p.body, room+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: the request broke off within a part: %w", dicomsvc.ErrMalformed, err)
	case int64(len(data)) > room:
		return errTooMuch
	case p.size >= 0 && p.size != int64(len(data)):
		return errPartLength
	}
	p.data, p.size, p.body = data, int64(len(data)), nil
	return nil
}

// stream stores an instance whose last value begins to arrive with part.
func (b *bulkStore) stream(a *assembly, part *bulkPart) {
	a.expect(a.stream, part)
	if part.size < 0 && !a.knowsLength(part) {
		if err := b.measure(part); err != nil {
			b.fail(a, err)
			return
		}
	}
	b.put(a, part, func() (*bulkPart, error) { return b.following(a) })
}

// following returns the next part of the value that streams into a. Others that come between are held; when there is no room for them
// it is a that fails, for they may be all that others wait for.
func (b *bulkStore) following(a *assembly) (*bulkPart, error) {
	for {
		next, err := b.advance()
		switch {
		case err == io.EOF:
			return nil, errNoBulk
		case err != nil:
			return nil, err
		case next.uri == a.stream.uri:
			return next.part, b.measure(next.part)
		case !b.hold(next):
			b.pushed = next
			return nil, errTooMuch
		}
	}
}

// settle stores every instance whose values are all here.
func (b *bulkStore) settle() {
	for len(b.ready) > 0 && b.result.refused == nil {
		a := b.ready[0]
		b.ready = b.ready[1:]
		if a.stream == nil {
			b.put(a, nil, nil)
			continue
		}
		rest := a.stream.parts
		b.put(a, rest[0], func() (*bulkPart, error) {
			rest = rest[1:]
			return rest[0], nil
		})
	}
}

// put stores one instance. It gives the request up when nothing can be stored now and nothing was.
func (b *bulkStore) put(a *assembly, first *bulkPart, next func() (*bulkPart, error)) {
	syntax, body, err := a.compose(first, next)
	if err != nil {
		b.fail(a, err)
		return
	}
	result, err := b.server.archive.Put(b.r.Context(), dicomsvc.PutRequest{
		Principal: b.r.who, StudyInstanceUID: b.r.study, TransferSyntaxUID: syntax, Body: body,
		ClaimedUID: a.set.String(dicom.SOPInstanceUID),
	})
	if err != nil {
		b.fail(a, err)
		if exhausted(err) && !b.some {
			b.result.refused = err
		}
		return
	}
	b.some = true
	b.result.add(accepted(result))
	b.drop(a)
}

// fail reports an instance that was not stored.
func (b *bulkStore) fail(a *assembly, err error) {
	b.server.noteObject(b.r, err)
	o := failed(dicomsvc.PutResult{SOPClassUID: a.set.String(dicom.SOPClassUID), SOPInstanceUID: a.set.String(dicom.SOPInstanceUID)}, nil, err)
	if errors.Is(err, errTooMuch) {
		o.http = http.StatusRequestEntityTooLarge
	}
	b.result.add(o)
	b.drop(a)
}

func (b *bulkStore) failAll(uri string, err error) {
	for len(b.byURI[uri]) > 0 {
		b.fail(b.byURI[uri][0].of, err)
	}
}

// drop forgets an instance and the values that nobody else waits for.
func (b *bulkStore) drop(a *assembly) {
	if i := slices.Index(b.waiting, a); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	seen := make(map[string]bool, len(a.needs))
	for _, n := range a.needs {
		for _, p := range n.parts {
			if p.users--; p.users == 0 {
				b.held -= int64(len(p.data))
			}
		}
		if seen[n.uri] {
			continue
		}
		seen[n.uri] = true
		b.byURI[n.uri] = slices.DeleteFunc(b.byURI[n.uri], func(other *need) bool { return other.of == a })
		if len(b.byURI[n.uri]) == 0 {
			delete(b.byURI, n.uri)
		}
	}
	a.needs, a.stream = nil, nil
}
