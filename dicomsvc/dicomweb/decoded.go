package dicomweb

import (
	"errors"
	"io"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
)

// decodes tells whether the frames can also be sent as native ones: they are compressed without loss, and decoded here. Lossy ones are sent as
// they are stored (PS3.18 §8.7.3).
func (p *pixels) decodes() bool {
	s := dicom.SyntaxOf(p.syntax)
	return !p.opaque && s.Encapsulated && !s.Video && !lossy(p.syntax) && pixel.Decodable(p.syntax)
}

// settle goes back to the stored form, when the client takes that too, if the first frame n cannot be decoded.
func (p *pixels) settle(r *request, form offer, count, n int) offer {
	if form.syntax == p.syntax {
		return form
	}
	if _, err := p.body(r, form, n); errors.Is(err, pixel.ErrUnsupportedSyntax) || errors.Is(err, pixel.ErrMalformed) {
		p.opaque = true
		if stored, ok := r.accept.choose(p.offers(count)); ok {
			return stored
		}
	}
	return form
}

// body returns frame n, from 1, in the form that was chosen.
func (p *pixels) body(r *request, form offer, n int) (payload, error) {
	if form.syntax == p.syntax {
		return p.payload(n)
	}
	if p.image == nil {
		header, err := p.headerOf(r)
		if err != nil {
			return payload{}, err
		}
		if p.image, err = pixel.Open(header, p.table, p.in.TransferSyntaxUID, p.obj); err != nil {
			return payload{}, err
		}
	}
	native, err := p.native(r, n)
	if err != nil {
		return payload{}, err
	}
	return payload{size: int64(len(native)), ranges: true, copy: func(w io.Writer, off, n int64) error {
		_, err := w.Write(native[off : off+n])
		return err
	}}, nil
}

// headerOf returns the header of the instance.
func (p *pixels) headerOf(r *request) (*dicom.Dataset, error) {
	only := dicomsvc.Selection{ // the path may name its study alone
		StudyInstanceUIDs: []string{p.in.StudyInstanceUID}, SeriesInstanceUIDs: []string{p.in.SeriesInstanceUID},
		SOPInstanceUIDs: []string{p.in.SOPInstanceUID},
	}
	for found, err := range p.server.archive.Headers(r.Context(), r.who, only) {
		if err != nil {
			return nil, err
		}
		return found.Header, nil
	}
	return nil, dicomsvc.ErrNotFound
}

// native decodes frame n when its turn has come.
func (p *pixels) native(r *request, n int) ([]byte, error) {
	select {
	case p.server.painters <- struct{}{}:
		defer func() { <-p.server.painters }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	frame, err := p.image.Frame(r.Context(), n-1)
	if err != nil {
		return nil, err
	}
	return frame.AppendNative(nil), nil
}

// nativeOffers lists the forms of count decoded frames.
func (p *pixels) nativeOffers(count int) []offer {
	offers := []offer{{media: mediaOctets, multipart: true, syntax: dicom.ExplicitVRLittleEndian, list: count > 1}}
	if count == 1 {
		offers = append(offers, offer{media: mediaOctets, syntax: dicom.ExplicitVRLittleEndian})
	}
	return offers
}
