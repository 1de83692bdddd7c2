package scp

import (
	"errors"
	"fmt"
	"io"
	"math"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// reencoded writes a stored uncompressed object in another uncompressed little-endian syntax: the header
// is decoded and encoded again, pixel data and whatever else is long flow by unchanged (PS3.5 Annex A).
type reencoded struct {
	from     *dicomsvc.Object
	instance *dicomsvc.Instance
	to       string
}

var errEncapsulated = errors.New("encapsulated pixel data cannot be re-encoded")

// tailMax bounds the elements after the pixel data, which are held in memory.
const tailMax = 16 << 20

// WriteTo writes the whole data set in the syntax r.to.
func (r *reencoded) WriteTo(w io.Writer) (int64, error) {
	out := &counter{w: w}
	err := r.write(out)
	return out.n, err
}

func (r *reencoded) write(w io.Writer) error {
	// A section is read as uncompressed bytes, so the scanner must not inflate again.
	syntax, size := r.instance.TransferSyntaxUID, r.from.Size()
	if dicom.SyntaxOf(syntax).Deflated {
		syntax, size = dicom.ExplicitVRLittleEndian, math.MaxInt64/2
	}
	scanner := dicom.NewScanner(r.from.Section(0, size), syntax, dicom.Limits{})
	header, err := scanner.Header()
	if err != nil {
		return fmt.Errorf("read stored header: %w", err)
	}
	pixel, err := scanner.PixelReference()
	if err != nil {
		return fmt.Errorf("read stored header: %w", err)
	}
	explicit := r.to == dicom.ExplicitVRLittleEndian
	from := 0
	for i := range header.Elements {
		el := &header.Elements[i]
		if el.Bulk == nil {
			continue
		}
		if err := r.encode(w, header, from, i); err != nil {
			return err
		}
		if err := r.long(w, explicit, el); err != nil {
			return err
		}
		from = i + 1
	}
	if err := r.encode(w, header, from, len(header.Elements)); err != nil {
		return err
	}
	if pixel == nil {
		return nil
	}
	if pixel.Bulk.Encapsulated {
		return errEncapsulated
	}
	if err := r.long(w, explicit, pixel); err != nil {
		return err
	}
	return r.tail(w, header, syntax, pixel.Bulk.Offset+pixel.Bulk.Length, size)
}

// tail writes the elements after the pixel data.
func (r *reencoded) tail(w io.Writer, header *dicom.Dataset, syntax string, at, size int64) error {
	b, err := io.ReadAll(io.LimitReader(r.from.Section(at, size-at), tailMax+1))
	if err != nil || len(b) == 0 {
		return err
	}
	if len(b) > tailMax {
		return fmt.Errorf("%w: more than %d bytes after the pixel data", dicomsvc.ErrLimit, tailMax)
	}
	rest, err := dicom.Decode(b, syntax, dicom.Limits{})
	if err != nil {
		return fmt.Errorf("read elements after the pixel data: %w", err)
	}
	encoded, err := rest.EncodeCharset(nil, r.to, header.Charset())
	if err != nil {
		return err
	}
	_, err = w.Write(encoded)
	return err
}

// encode writes the elements from..to of the header.
func (r *reencoded) encode(w io.Writer, header *dicom.Dataset, from, to int) error {
	part := header.Clone()
	part.Elements = part.Elements[from:to]
	b, err := part.EncodeCharset(nil, r.to, header.Charset())
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// long writes an element whose value stays in the store.
func (r *reencoded) long(w io.Writer, explicit bool, el *dicom.Element) error {
	head := dicom.AppendElementHeader(nil, explicit, false, el.Tag, el.VR, uint32(el.Bulk.Length))
	if _, err := w.Write(head); err != nil {
		return err
	}
	n, err := io.Copy(w, r.from.Section(el.Bulk.Offset, el.Bulk.Length))
	if err == nil && n != el.Bulk.Length {
		err = io.ErrUnexpectedEOF
	}
	return err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
