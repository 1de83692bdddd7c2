package pixel

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"osteon/dicomsvc/dicom"
)

// Sections reads n bytes at off of a stored data set, in the offsets of dicom.Bulk and dicom.FrameTable. dicomsvc.Object is one.
type Sections interface {
	Section(off, n int64) io.Reader
}

// Image reads the frames of one instance. It is good as long as what it reads from is open; used by one goroutine at a time.
type Image struct {
	Format Format

	header *dicom.Dataset
	frames *dicom.FrameTable
	from   Sections
	src    Source
	big    bool
}

// Open returns the image with the given header and frames, stored in the transfer syntax. No pixel is read. Fails as FormatOf does, with ErrNoImage
// when there are no frames, and with ErrUnsupportedSyntax when they cannot be decoded.
func Open(header *dicom.Dataset, frames *dicom.FrameTable, syntax string, from Sections) (*Image, error) {
	if frames == nil {
		return nil, fmt.Errorf("%w: the data set has no pixel data", ErrNoImage)
	}
	f, err := FormatOf(header)
	if err != nil {
		return nil, err
	}
	if frames.Video() || frames.Encapsulated() && codecOf(syntax) == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnsupportedSyntax, dicom.SyntaxOf(syntax).Name)
	}
	if frames.Len() == 0 {
		return nil, fmt.Errorf("%w: %s", ErrMalformed, frames.Reason())
	}
	im := &Image{Format: f, header: header, frames: frames, from: from, src: Source{Syntax: syntax}}
	if !frames.Encapsulated() {
		im.src.Syntax = dicom.ExplicitVRLittleEndian
	}
	if dicom.SyntaxOf(syntax).BigEndian {
		im.big = true
		if el := header.Get(dicom.PixelData); el != nil {
			im.src.Word = el.VR.Width()
		}
	}
	return im, nil
}

// Len returns the number of frames.
func (im *Image) Len() int { return im.frames.Len() }

// Frame reads and decodes frame i, from 0.
func (im *Image) Frame(ctx context.Context, i int) (*Frame, error) {
	data, src, err := im.bytes(i)
	if err != nil {
		return nil, fmt.Errorf("frame %d: %w", i+1, err)
	}
	frame, err := Decode(ctx, src, im.Format, data)
	if err != nil {
		return nil, fmt.Errorf("frame %d: %w", i+1, err)
	}
	return frame, nil
}

// bytes reads the stored bytes of frame i.
func (im *Image) bytes(i int) ([]byte, Source, error) {
	extents, err := im.frames.Frame(nil, i)
	if err != nil {
		return nil, im.src, err
	}
	src := im.src
	lead := int64(0) // bytes read before the frame, to begin with a whole word
	if !im.frames.Encapsulated() {
		_, src.Bit = im.frames.FrameBits(i)
		if first, err := im.frames.Frame(nil, 0); err == nil && src.Word > 1 && len(extents) == 1 && len(first) == 1 {
			lead = (extents[0].Offset - first[0].Offset) % int64(src.Word)
			extents[0].Offset -= lead
			extents[0].Length += lead
			if odd := extents[0].Length % int64(src.Word); odd > 0 {
				extents[0].Length += int64(src.Word) - odd // values are padded to whole words
			}
		}
	}
	var size int64
	for _, e := range extents {
		size += e.Length
	}
	if size > FrameBytesMax {
		return nil, src, fmt.Errorf("%w: %d bytes in one frame", ErrLimit, size)
	}
	var data bytes.Buffer // grows with what is there
	for _, e := range extents {
		if n, err := io.Copy(&data, im.from.Section(e.Offset, e.Length)); err != nil || n < e.Length {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, src, err
		}
	}
	b := data.Bytes()
	if lead > 0 {
		b, src.Word = swapped(b, src.Word)[lead:], 1
	}
	return b, src, nil
}

// value returns the bytes of an element in Little Endian, also of one that was left in the stream.
func (im *Image) value(el *dicom.Element) ([]byte, error) {
	if el.Bulk == nil {
		return el.Value, nil
	}
	if el.Bulk.Length < 0 || el.Bulk.Length > tableBytesMax {
		return nil, fmt.Errorf("%w: a value of %d bytes in %s", ErrLimit, el.Bulk.Length, el.Tag)
	}
	b, err := io.ReadAll(im.from.Section(el.Bulk.Offset, el.Bulk.Length))
	if err == nil && im.big && el.VR.Width() > 1 {
		b = swapped(b, el.VR.Width())
	}
	return b, err
}

// DelayCentiseconds is how long a frame of a moving image is shown, in hundredths of a second: Frame Time, else one of the frame rates
// (PS3.3 §C.7.6.5), else a tenth of a second.
func (im *Image) DelayCentiseconds() int {
	delay := 10.0
	if ms, ok := number(im.header, dicom.FrameTime, 0); ok && ms > 0 {
		delay = ms / 10
	} else {
		for _, tag := range []dicom.Tag{dicom.RecommendedDisplayFrameRate, dicom.CineRate} {
			if rate, ok := im.header.Int(tag); ok && rate > 0 {
				delay = 100 / float64(rate)
				break
			}
		}
	}
	return int(min(max(delay, 2), 6000)) // browsers take less than 2 for a mistake
}
