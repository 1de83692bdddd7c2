package pixel

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"

	"osteon/dicomsvc/dicom"
)

// Source says how the bytes of a frame are encoded.
type Source struct {
	// Syntax is the transfer syntax of the pixel data.
	Syntax string
	// Word is the width in bytes of the words of a native value in Big Endian (dicom.VR.Width); 0 or 1 when bytes are in order.
	Word int
	// Bit is the bit of the first byte at which a native frame of 1-bit pixels begins.
	Bit int
}

// Decodable reports whether frames in the transfer syntax can be decoded; some JPEG streams in them still may not.
func Decodable(syntax string) bool {
	return !dicom.SyntaxOf(syntax).Encapsulated || codecOf(syntax) != nil
}

// codec decodes the compressed bytes of one frame into out, whose Format it may correct.
type codec func(ctx context.Context, f Format, data []byte) (*Frame, error)

// isJPEG tells the UIDs of the JPEG processes, the retired ones included: 1.2.840.10008.1.2.4.50 to 66, and 70.
func isJPEG(syntax string) bool {
	return len(syntax) == len(dicom.JPEGBaseline8Bit) && syntax >= dicom.JPEGBaseline8Bit && syntax <= dicom.JPEGLosslessSV1
}

func codecOf(syntax string) codec {
	switch syntax {
	case dicom.EncapsulatedUncompressed:
		return func(ctx context.Context, f Format, data []byte) (*Frame, error) {
			return decodeNative(ctx, Source{}, f, data)
		}
	case dicom.DeflatedImageFrame:
		return decodeDeflated
	case dicom.RLELossless:
		return decodeRLE
	case dicom.JPEGLSLossless, dicom.JPEGLSNearLossless:
		return decodeJPEGLS
	}
	if isJPEG(syntax) {
		return decodeJPEG
	}
	return nil
}

// Decode decodes one frame: of a native image its bytes, of an encapsulated one its fragments joined. The samples are those of
// the stream: no colour is converted, and chrominance that is shared by pixels is brought to each of them.
//
// Fails with ErrUnsupportedSyntax, ErrMalformed, ErrLimit, or the error of ctx.
func Decode(ctx context.Context, src Source, f Format, data []byte) (*Frame, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	if !dicom.SyntaxOf(src.Syntax).Encapsulated {
		return decodeNative(ctx, src, f, data)
	}
	decode := codecOf(src.Syntax)
	if decode == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnsupportedSyntax, dicom.SyntaxOf(src.Syntax).Name)
	}
	return decode(ctx, f, data)
}

// decodeDeflated decodes a frame of Deflated Image Frame Compression: a raw deflate stream of a native frame (PS3.5 §A.4.13).
func decodeDeflated(ctx context.Context, f Format, data []byte) (*Frame, error) {
	size := (f.cellBits() + 7) / 8
	var plain bytes.Buffer // grows with what comes out, not with what was declared
	if _, err := io.Copy(&plain, io.LimitReader(flate.NewReader(bytes.NewReader(data)), int64(size))); err != nil {
		return nil, fmt.Errorf("%w: inflate the frame: %w", ErrMalformed, err)
	}
	return decodeNative(ctx, Source{}, f, plain.Bytes())
}
