package pixel

import (
	"fmt"
	"strings"

	"osteon/dicomsvc/dicom"
)

// Photometric interpretations (PS3.3 §C.7.6.3.1.2).
const (
	Monochrome1  = "MONOCHROME1"
	Monochrome2  = "MONOCHROME2"
	PaletteColor = "PALETTE COLOR"
	RGB          = "RGB"
	YBRFull      = "YBR_FULL"
	YBRFull422   = "YBR_FULL_422"
)

// Format describes the frames of an image as the Image Pixel Module does (PS3.3 §C.7.6.3).
type Format struct {
	Rows, Columns int
	// Samples is Samples per Pixel.
	Samples int
	// BitsAllocated is 1, 8, 16 or 32; BitsStored and HighBit say which of these bits are the sample.
	BitsAllocated, BitsStored, HighBit int
	// Signed says that samples are in two's complement (Pixel Representation 1).
	Signed bool
	// Planar says that all samples of one kind come before those of the next (Planar Configuration 1).
	Planar      bool
	Photometric string
}

// FormatOf reads the format of an image from its header. Fails with ErrNoImage when there is no description of pixels, ErrUnsupportedSyntax
// for floating point pixels, ErrMalformed or ErrLimit for one that cannot be.
func FormatOf(header *dicom.Dataset) (Format, error) {
	var f Format
	if !header.Has(dicom.Rows) || !header.Has(dicom.Columns) {
		return f, fmt.Errorf("%w: the data set has no Rows and Columns", ErrNoImage)
	}
	if header.Get(dicom.FloatPixelData) != nil || header.Get(dicom.DoubleFloatPixelData) != nil {
		return f, fmt.Errorf("%w: floating point pixels", ErrUnsupportedSyntax)
	}
	f.Rows, _ = header.Int(dicom.Rows)
	f.Columns, _ = header.Int(dicom.Columns)
	f.Samples = intOr(header, dicom.SamplesPerPixel, 1)
	f.BitsAllocated = intOr(header, dicom.BitsAllocated, 8)
	f.BitsStored = intOr(header, dicom.BitsStored, f.BitsAllocated)
	f.HighBit = intOr(header, dicom.HighBit, f.BitsStored-1)
	f.Signed = intOr(header, dicom.PixelRepresentation, 0) == 1
	f.Planar = f.Samples > 1 && intOr(header, dicom.PlanarConfiguration, 0) == 1
	f.Photometric = strings.ToUpper(header.String(dicom.PhotometricInterpretation))
	if f.Photometric == "" {
		f.Photometric = Monochrome2
		if f.Samples == 3 {
			f.Photometric = RGB
		}
	}
	return f, f.check()
}

func intOr(d *dicom.Dataset, tag dicom.Tag, otherwise int) int {
	if n, ok := d.Int(tag); ok {
		return n
	}
	return otherwise
}

// check says whether frames of this format can be decoded. What contradicts itself harmlessly is mended by clamp.
func (f *Format) check() error {
	switch {
	case f.Rows < 1 || f.Columns < 1 || f.Rows > sideMax || f.Columns > sideMax:
		return fmt.Errorf("%w: %d rows and %d columns", ErrMalformed, f.Rows, f.Columns)
	case f.Samples < 1 || f.Samples > samplesPerPixelMax:
		return fmt.Errorf("%w: %d samples per pixel", ErrMalformed, f.Samples)
	case f.BitsAllocated != 1 && f.BitsAllocated != 8 && f.BitsAllocated != 16 && f.BitsAllocated != 32:
		return fmt.Errorf("%w: %d bits allocated", ErrUnsupportedSyntax, f.BitsAllocated)
	case f.SamplesPerFrame() > frameSamplesMax:
		return fmt.Errorf("%w: a frame of %d x %d pixels", ErrLimit, f.Columns, f.Rows)
	}
	f.clamp()
	return nil
}

// clamp makes sense of Bits Stored and High Bit where they make none.
func (f *Format) clamp() {
	if f.BitsStored < 1 || f.BitsStored > f.BitsAllocated {
		f.BitsStored = f.BitsAllocated
	}
	if f.HighBit < f.BitsStored-1 || f.HighBit >= f.BitsAllocated {
		f.HighBit = f.BitsStored - 1
	}
}

// SamplesPerFrame is how many samples a decoded frame has.
func (f Format) SamplesPerFrame() int { return f.Rows * f.Columns * f.Samples }

// cellBits is how many bits a native frame has (PS3.5 §8.1.1, PS3.3 §C.7.6.3.1.2).
func (f Format) cellBits() int {
	if f.subsampled() {
		return f.Rows * ((f.Columns + 1) / 2) * 4 * f.BitsAllocated
	}
	return f.SamplesPerFrame() * f.BitsAllocated
}

// subsampled tells whether native pixels share their chrominance by twos.
func (f Format) subsampled() bool { return f.Photometric == YBRFull422 && f.Samples == 3 }

// Frame is one decoded frame.
type Frame struct {
	// Format describes Samples: never Planar, HighBit is BitsStored-1, YBR_FULL in place of YBR_FULL_422.
	Format Format
	// Samples are the values, pixel by pixel in rows from the top left, the samples of a pixel beside each other. Unsigned values
	// of 32 bits are there as their bit patterns.
	Samples []int32
}

func newFrame(f Format) *Frame {
	if f.subsampled() {
		f.Photometric = YBRFull
	}
	f.Planar, f.HighBit = false, f.BitsStored-1
	return &Frame{Format: f, Samples: make([]int32, f.SamplesPerFrame())}
}

// extend turns the low bits of v into a sample: the unused bits above may hold anything, and a sign must be carried into them.
func (f Format) extend(v uint32) int32 {
	spare := 32 - f.BitsStored
	if f.Signed {
		return int32(v<<spare) >> spare
	}
	return int32(v << spare >> spare)
}

// value is sample v as a number.
func (f Format) value(v int32) float64 {
	if !f.Signed && f.BitsStored == 32 {
		return float64(uint32(v))
	}
	return float64(v)
}
