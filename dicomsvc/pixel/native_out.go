package pixel

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"osteon/dicomsvc/dicom"
)

// NativeFormat is the format of the frames once they are native: pixel by pixel, with YBR_FULL for shared chrominance.
func (im *Image) NativeFormat() Format {
	f := im.Format
	if f.subsampled() {
		f.Photometric = YBRFull
	}
	f.Planar, f.HighBit = false, f.BitsStored-1
	return f
}

// NativeBytes is the length of the whole native pixel data, padded to an even number (PS3.5 §8.1.1). Fails with ErrLimit when that
// is more than a value can have; such an image can be sent only as it is stored.
func (im *Image) NativeBytes() (int64, error) {
	f := im.NativeFormat()
	size := (int64(im.Len())*int64(f.cellBits()) + 7) / 8
	if size += size & 1; size >= math.MaxUint32 {
		return 0, fmt.Errorf("%w: %d bytes of native pixel data", ErrLimit, size)
	}
	return size, nil
}

// NativeVR is the VR of native pixel data in Explicit VR (PS3.5 §8.2, §A.2).
func (f Format) NativeVR() dicom.VR {
	if f.BitsAllocated > 8 {
		return dicom.OW
	}
	return dicom.OB
}

// Describe sets the attributes of the Image Pixel Module that depend on how pixels are encoded (PS3.3 §C.7.6.3) and takes out
// what described compressed frames. Pixel data themselves are left to the caller.
func (f Format) Describe(d *dicom.Dataset) {
	d.SetStrings(dicom.PhotometricInterpretation, f.Photometric)
	d.SetInt(dicom.SamplesPerPixel, f.Samples)
	d.SetInt(dicom.BitsAllocated, f.BitsAllocated)
	d.SetInt(dicom.BitsStored, f.BitsStored)
	d.SetInt(dicom.HighBit, f.HighBit)
	sign := 0
	if f.Signed {
		sign = 1
	}
	d.SetInt(dicom.PixelRepresentation, sign)
	d.Remove(dicom.PlanarConfiguration)
	if f.Samples > 1 {
		d.SetInt(dicom.PlanarConfiguration, 0)
	}
	for _, tag := range []dicom.Tag{dicom.ExtendedOffsetTable, dicom.ExtendedOffsetTableLengths} {
		d.Remove(tag)
	}
}

// AppendNative appends the samples as a native frame in Little Endian. A frame of 1-bit pixels ends with zeros in its last byte.
func (fr *Frame) AppendNative(dst []byte) []byte {
	switch fr.Format.BitsAllocated {
	case 1:
		return appendPacked(dst, 0, fr.Samples)
	case 8:
		for _, v := range fr.Samples {
			dst = append(dst, byte(v))
		}
	case 16:
		for _, v := range fr.Samples {
			dst = binary.LittleEndian.AppendUint16(dst, uint16(v))
		}
	default:
		for _, v := range fr.Samples {
			dst = binary.LittleEndian.AppendUint32(dst, uint32(v))
		}
	}
	return dst
}

// appendPacked appends bits from the given bit of the last byte of dst on, or from a byte of their own when that is 0.
func appendPacked(dst []byte, bit int, samples []int32) []byte {
	for i, v := range samples {
		if at := (bit + i) % 8; at == 0 {
			dst = append(dst, byte(v&1))
		} else {
			dst[len(dst)-1] |= byte(v&1) << at
		}
	}
	return dst
}

// WriteNative decodes one frame after the other and writes them as the native value in Little Endian, NativeBytes long.
func (im *Image) WriteNative(ctx context.Context, w io.Writer) error {
	if _, err := im.NativeBytes(); err != nil {
		return err
	}
	var buf []byte
	written, bit := int64(0), 0
	for i := range im.Len() {
		fr, err := im.Frame(ctx, i)
		if err != nil {
			return err
		}
		if fr.Format.BitsAllocated != 1 {
			buf = fr.AppendNative(buf[:0])
		} else {
			// Frames of 1-bit pixels follow each other without a gap: a byte begun is kept for the next.
			buf = appendPacked(buf, bit, fr.Samples)
			bit = (bit + len(fr.Samples)) % 8
		}
		whole := len(buf)
		if bit > 0 && i < im.Len()-1 {
			whole--
		}
		n, err := w.Write(buf[:whole])
		if err != nil {
			return err
		}
		written += int64(n)
		buf = append(buf[:0], buf[whole:]...)
	}
	if written%2 == 1 {
		if _, err := w.Write([]byte{0}); err != nil {
			return err
		}
	}
	return nil
}
