package dicomsvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/pixel"
)

// Convertible reports whether objects stored in the transfer syntax from can be sent in the syntax to: they are Rewritable, or
// their compressed frames are decoded here (package pixel) and to is Explicit or Implicit VR Little Endian. What was lost when lossy frames were
// made stays lost, nothing else is.
func Convertible(from, to string) bool {
	if Rewritable(from, to) {
		return true
	}
	return dicom.SyntaxOf(from).Encapsulated && pixel.Decodable(from) && (to == dicom.ExplicitVRLittleEndian || to == dicom.ImplicitVRLittleEndian)
}

// decoded is the native pixel data that take the place of compressed ones.
type decoded struct {
	img  *pixel.Image
	size int64
	kept []byte // all of them when they are few, else nil
}

// sections makes a reader of sections fit for package pixel.
type sections func(off, n int64) io.Reader

func (s sections) Section(off, n int64) io.Reader { return s(off, n) }

// decodeFrames prepares the compressed pixel data of set, whose attributes it changes to those of native ones. Every frame is decoded once, so that
// nothing is sent of an object of which one cannot be; those of large objects are decoded again when they are sent.
func decodeFrames(set *dicom.Dataset, frames *dicom.FrameTable, from string, read sections) (*decoded, error) {
	img, err := pixel.Open(set, frames, from, read)
	if err != nil {
		return nil, decodeError(err)
	}
	d := &decoded{img: img}
	if d.size, err = img.NativeBytes(); err != nil {
		return nil, decodeError(err)
	}
	var whole bytes.Buffer
	to := io.Discard
	if d.size <= decodeKeepBytes {
		to = &whole
	}
	if err := d.write(to); err != nil {
		return nil, decodeError(err)
	}
	d.kept = whole.Bytes()
	img.NativeFormat().Describe(set)
	return d, nil
}

// write writes the native pixel data. The work on a frame is bounded, and a reader or writer that fails ends it before the next.
func (d *decoded) write(w io.Writer) error {
	if d.kept != nil {
		_, err := w.Write(d.kept)
		return err
	}
	return d.img.WriteNative(context.Background(), w)
}

func decodeError(err error) error {
	for _, kind := range []error{pixel.ErrUnsupportedSyntax, pixel.ErrMalformed, pixel.ErrLimit, pixel.ErrNoImage} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w: decode the pixel data: %w", ErrUnsupported, err)
		}
	}
	return err
}
