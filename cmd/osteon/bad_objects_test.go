package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"

	"osteon/dicomsvc/dicom"
)

// Objects made wrong on purpose. Each builder returns an instance whose UIDs no other has, so that what is stored
// by accident shows.

const (
	ctClass       = "1.2.840.10008.5.1.4.1.1.2"
	deflated      = "1.2.840.10008.1.2.1.99"
	badPixelBytes = 4 << 10
)

// dataset is a small CT with a name that no log may show.
func (b *badBench) dataset() (in instance, d *dicom.Dataset) {
	n := b.next.Add(1)
	study := fmt.Sprintf("2.25.%d", 50_000_000+n)
	in = instance{class: ctClass, syntax: dicom.ExplicitVRLittleEndian, study: study, series: study + ".1", uid: study + ".1.1"}
	d = new(dicom.Dataset)
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: in.class, dicom.SOPInstanceUID: in.uid, dicom.StudyDate: "20250102", dicom.Modality: "CT",
		dicom.PatientName: badCanary + "^Patient", dicom.PatientID: fmt.Sprintf("%s-%d", badCanary, n%100),
		dicom.StudyInstanceUID: in.study, dicom.SeriesInstanceUID: in.series, dicom.InstanceNumber: "1",
		dicom.StudyDescription: badCanary + " description", dicom.PhotometricInterpretation: "MONOCHROME2",
	} {
		d.SetStrings(tag, value)
	}
	for tag, value := range map[dicom.Tag]uint16{
		dicom.Rows: 32, dicom.Columns: 64, dicom.BitsAllocated: 16, dicom.BitsStored: 16, dicom.HighBit: 15, dicom.SamplesPerPixel: 1,
	} {
		d.Set(dicom.Element{Tag: tag, VR: dicom.US, Value: binary.LittleEndian.AppendUint16(nil, value)})
	}
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: make([]byte, badPixelBytes)})
	return in, d
}

// instance is a small CT, changed before it is encoded.
func (b *badBench) instance(change func(*dicom.Dataset)) instance {
	in, d := b.dataset()
	if change != nil {
		change(d)
	}
	return encoded(in, d)
}

func encoded(in instance, d *dicom.Dataset) instance {
	data, err := d.Encode(nil, in.syntax)
	if err != nil {
		panic(fmt.Sprintf("encode a test object: %v", err)) // the data set is our own
	}
	in.data = data
	return in
}

// before inserts raw bytes in front of the element with a tag; headOf is all in front of it.
func (b *badBench) before(tag dicom.Tag, raw []byte) instance {
	in := b.instance(nil)
	at := offsetOf(in.data, tag)
	in.data = append(append(bytes.Clone(in.data[:at]), raw...), in.data[at:]...)
	return in
}

// instead puts raw bytes in the place of one element.
func (b *badBench) instead(tag dicom.Tag, raw []byte) instance {
	in := b.instance(nil)
	at := offsetOf(in.data, tag)
	header := dicom.AppendElementHeader(nil, true, false, tag, dicom.VROf(tag), 0)
	if tag == dicom.PixelData {
		header = header[:12]
	}
	length := int(binary.LittleEndian.Uint16(in.data[at+6:]))
	if len(header) == 12 {
		length = int(binary.LittleEndian.Uint32(in.data[at+8:]))
	}
	in.data = append(append(bytes.Clone(in.data[:at]), raw...), in.data[at+len(header)+length:]...)
	return in
}

// offsetOf finds an element of a data set that is in order and in Explicit VR Little Endian.
func offsetOf(data []byte, tag dicom.Tag) int {
	want := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, tag.Group()), uint16(tag))
	at := bytes.Index(data, append(want, vrName(tag)...))
	if at < 0 {
		panic(fmt.Sprintf("no %v in a test object", tag))
	}
	return at
}

func vrName(tag dicom.Tag) string {
	if tag == dicom.PixelData {
		return "OW"
	}
	return dicom.VROf(tag).String()
}

// el is one raw element in Explicit VR Little Endian; its length field says what length says.
func el(tag dicom.Tag, vr string, length uint32, value string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, tag.Group())
	b = append(binary.LittleEndian.AppendUint16(b, uint16(tag)), vr...)
	switch vr {
	case "OB", "OW", "SQ", "UN", "UT", "OF", "OD", "UC", "UR":
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), length)
	default:
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
	}
	return append(b, value...)
}

// exact is el with the true length.
func exact(tag dicom.Tag, vr, value string) []byte { return el(tag, vr, uint32(len(value)), value) }

const undefined = 0xFFFFFFFF

// item is the header of an item, or of a delimiter.
func item(tag dicom.Tag, length uint32) []byte {
	b := binary.LittleEndian.AppendUint16(nil, tag.Group())
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(b, uint16(tag)), length)
}

const (
	tagItem     = dicom.Tag(0xFFFEE000)
	tagItemEnd  = dicom.Tag(0xFFFEE00D)
	tagItemsEnd = dicom.Tag(0xFFFEE0DD)
	tagPrivate  = dicom.Tag(0x00091010) // behind its creator
	tagSequence = dicom.Tag(0x00081140) // Referenced Image Sequence
)

// nested is a sequence within a sequence, depth deep, with lengths or delimiters.
func nested(depth int, delimited bool) []byte {
	if !delimited {
		var inner []byte
		for range depth {
			inner = append(item(tagItem, uint32(len(inner))), inner...)
			inner = append(el(tagSequence, "SQ", uint32(len(inner)), ""), inner...)
		}
		return inner
	}
	var out []byte
	for range depth {
		out = append(out, el(tagSequence, "SQ", undefined, "")...)
		out = append(out, item(tagItem, undefined)...)
	}
	for range depth {
		out = append(out, item(tagItemEnd, 0)...)
		out = append(out, item(tagItemsEnd, 0)...)
	}
	return out
}

// encapsulated is an instance in a compressed syntax whose pixel data are these fragments, the first of them the
// Basic Offset Table, as they are.
func (b *badBench) encapsulated(syntax string, frames int, fragments ...string) instance {
	in, d := b.dataset()
	d.Remove(dicom.PixelData)
	d.SetStrings(dicom.NumberOfFrames, fmt.Sprint(frames))
	in = encoded(in, d)
	in.syntax = syntax
	in.data = append(in.data, el(dicom.PixelData, "OB", undefined, "")...)
	for _, f := range fragments {
		in.data = append(append(in.data, item(tagItem, uint32(len(f)))...), f...)
	}
	in.data = append(in.data, item(tagItemsEnd, 0)...)
	return in
}

// inflating is a deflated instance with so many zeros in a private element.
func (b *badBench) inflating(zeros int) instance {
	in := b.before(dicom.PatientName, append(exact(0x00090010, "LO", "ZEROS "), el(tagPrivate, "OB", uint32(zeros), string(make([]byte, zeros)))...))
	return deflate(in)
}

func deflate(in instance) instance {
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, flate.BestCompression)
	w.Write(in.data)
	w.Close()
	if out.Len()%2 == 1 {
		out.WriteByte(0)
	}
	in.syntax, in.data = deflated, out.Bytes()
	return in
}
