package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// refused is an object that is refused over both ways in: C000H (cannot understand) by C-STORE, 400 with the same
// Failure Reason by STOW-RS.
func (b *badBench) refused(name string, in instance) []badCase {
	return []badCase{
		b.storeWant(name, in, dimse.StatusCannotUnderstand),
		b.stowWant(name, part10(in, ""), 400, dimse.StatusCannotUnderstand),
	}
}

// accepted is an object that is odd and harmless: it is kept as it came, whichever way it came.
func (b *badBench) accepted(name string, make func() instance) []badCase {
	return []badCase{
		{"C-STORE " + name, func(ctx context.Context) error { return b.keptWant(name, make()).do(ctx) }},
		{"STOW-RS " + name, func(ctx context.Context) error {
			in := make()
			if err := b.stowWant(name, part10(in, ""), 200, 0).do(ctx); err != nil {
				return err
			}
			got, err := get(ctx, b.n, in)
			if err == nil && !bytes.Equal(got, in.data) {
				err = fmt.Errorf("%d bytes came back, not the %d sent", len(got), len(in.data))
			}
			return err
		}},
	}
}

// served is a new object that is kept and whose first frame and metadata give exactly these HTTP codes.
func (b *badBench) served(name string, make func() instance, frame, metadata int) []badCase {
	return append(b.accepted(name, make), badCase{"WADO-RS " + name, func(ctx context.Context) error {
		in := make()
		if err := b.keptWant(name, in).do(ctx); err != nil {
			return err
		}
		path := "/dicom-web/studies/" + in.study + "/series/" + in.series + "/instances/" + in.uid
		_, err := b.request(ctx, "GET", path+"/frames/1", nil, frame, "Accept", `multipart/related; type="application/octet-stream"; transfer-syntax=*`)
		if err != nil {
			return fmt.Errorf("frame: %w", err)
		}
		answer, err := b.request(ctx, "GET", path+"/metadata", nil, metadata)
		if err == nil && metadata == 200 && !json.Valid(answer) {
			err = errors.New("metadata are no JSON")
		}
		return err
	}})
}

// casesB05: UIDs that would be paths, in every place where a UID names something.
func casesB05(b *badBench) (cases []badCase) {
	uids := map[string]string{
		"up":        "../../" + badCanary,
		"absolute":  "/etc/" + badCanary,
		"NUL":       "1.2\x00.3" + badCanary,
		"65 long":   strings.Repeat("1", 65),
		"dots":      "..",
		"not ASCII": "1.2.é" + badCanary,
		"drive":     `C:` + badCanary,
		"space":     "1.2 .3",
		"star":      "1.2.*",
		"empty":     "",
	}
	for name, uid := range uids {
		for _, tag := range []dicom.Tag{dicom.SOPInstanceUID, dicom.StudyInstanceUID, dicom.SeriesInstanceUID} {
			cases = append(cases, b.refused(name+" in "+tag.Keyword(), b.instance(func(d *dicom.Dataset) { d.SetStrings(tag, uid) }))...)
		}
		cases = append(cases, b.findWant(name, map[dicom.Tag]string{dicom.StudyInstanceUID: uid + "\\1.2.3"}, dimse.StatusSuccess))
		if uid != "" {
			in := b.instance(func(d *dicom.Dataset) { d.SetStrings(dicom.SOPInstanceUID, uid) })
			in.uid = uid
			code := 400
			if uid == ".." {
				code = 404 // another path
			}
			cases = append(cases, b.storeWant(name+" in command and data set", in, dimse.StatusCannotUnderstand),
				b.getWant("study "+name, "/dicom-web/studies/"+url.PathEscape(uid)+"/metadata", code),
				b.getWant("search for "+name, "/dicom-web/studies?StudyInstanceUID="+url.QueryEscape(uid), 400))
		}
	}
	cases = append(cases, b.moveWant("no destination", "../../"+badCanary[:4], dimse.StatusUnknownDestination))
	cases = append(cases, b.accepted("Windows name", func() instance {
		in := b.instance(nil)
		in.study = "NUL" + in.study[4:]
		return encodedWith(in, dicom.StudyInstanceUID, in.study)
	})...)
	return append(cases, badCase{"names of files", func(context.Context) error {
		return filepath.WalkDir(b.r.dir, func(path string, _ fs.DirEntry, err error) error {
			if strings.Contains(strings.ToUpper(path), badCanary) {
				return errors.New("a file has a name from a data set")
			}
			return nil // files come and go while the node works
		})
	}})
}

// encodedWith is in with one attribute changed.
func encodedWith(in instance, tag dicom.Tag, value string) instance {
	d, err := dicom.Decode(in.data, in.syntax, dicom.Limits{})
	if err != nil {
		panic(err) // the data set is our own
	}
	d.SetStrings(tag, value)
	return encoded(in, d)
}

// casesB09: lengths that lie.
func casesB09(b *badBench) (cases []badCase) {
	creator := exact(0x00090010, "LO", "LENGTHS ")
	for name, in := range map[string]instance{
		"almost 4 GiB":         b.before(dicom.PatientName, append(bytes.Clone(creator), el(tagPrivate, "OB", 0xFFFFFFFE, "short")...)),
		"longer than the file": b.before(dicom.PatientName, append(bytes.Clone(creator), el(tagPrivate, "UT", 1<<20, "short")...)),
		"undefined for text":   b.before(dicom.PatientName, append(bytes.Clone(creator), el(tagPrivate, "UT", undefined, "text")...)),
		"item over its parent": b.before(dicom.PatientName, append(el(tagSequence, "SQ", 8, ""), item(tagItem, 100)...)),
		"element over its item": b.before(dicom.PatientName, append(append(el(tagSequence, "SQ", 18, ""), item(tagItem, 10)...),
			el(0x00081150, "UI", 200, "1.2.3.")...)),
		"delimiter missing":    b.before(dicom.PatientName, el(tagSequence, "SQ", undefined, "")),
		"pixel data cut":       cutTail(b.instance(nil), 100),
		"header cut":           cutTail(b.instance(nil), badPixelBytes+4),
		"nothing":              cutTail(b.instance(nil), 1<<30),
		"pixel data undefined": b.instead(dicom.PixelData, el(dicom.PixelData, "OW", undefined, "no fragments")),
	} {
		cases = append(cases, b.refused(name, in)...)
	}
	cases = append(cases, b.accepted("group length lies", func() instance {
		return b.before(dicom.PatientName, binary.LittleEndian.AppendUint32(el(0x00100000, "UL", 4, ""), 0xFFFFFFF0))
	})...)
	cases = append(cases, b.accepted("odd length", func() instance {
		return b.before(dicom.PatientName, append(bytes.Clone(creator), exact(tagPrivate, "LO", "odd")...))
	})...)
	in := b.instance(nil)
	file := part10(in, "")
	binary.LittleEndian.PutUint32(file[140:], 0xFFFFFFF0)
	cases = append(cases, b.stowWant("group length of the meta information lies", file, 200, 0))
	file = part10(b.instance(nil), "")
	return append(cases, b.stowWant("meta information cut", file[:200], 400, dimse.StatusCannotUnderstand),
		b.stowWant("meta element of 4 GiB", append(bytes.Clone(file[:144]), el(0x00020102, "OB", 0xFFFFFFFE, "x")...), 400, dimse.StatusCannotUnderstand),
		b.stowWant("no DICOM at all", []byte(strings.Repeat("noise ", 100)), 400, dimse.StatusCannotUnderstand),
		b.stowWant("empty part", nil, 400, dimse.StatusCannotUnderstand))
}

func cutTail(in instance, n int) instance {
	in.data = in.data[:max(0, len(in.data)-n)]
	return in
}

// casesB10: image dimensions in wrong VRs, negative, and so large that their product overflows. They are the
// sender's business and kept; a frame is only given where the pixel data hold it.
func casesB10(b *badBench) (cases []badCase) {
	u16 := func(v uint16) string { return string(binary.LittleEndian.AppendUint16(nil, v)) }
	u32 := func(v uint32) string { return string(binary.LittleEndian.AppendUint32(nil, v)) }
	for name, c := range map[string]struct {
		tag   dicom.Tag
		raw   []byte
		frame int
	}{
		"Rows as UL":          {dicom.Rows, exact(dicom.Rows, "UL", u32(0xFFFFFFFF)), 200},
		"Rows as IS":          {dicom.Rows, exact(dicom.Rows, "IS", "-1"), 200},
		"Rows empty":          {dicom.Rows, exact(dicom.Rows, "US", ""), 200},
		"Columns 0":           {dicom.Columns, exact(dicom.Columns, "US", u16(0)), 200},
		"Columns 65535":       {dicom.Columns, exact(dicom.Columns, "US", u16(65535)), 200},
		"Bits Allocated 0":    {dicom.BitsAllocated, exact(dicom.BitsAllocated, "US", u16(0)), 200},
		"Samples 65535":       {dicom.SamplesPerPixel, exact(dicom.SamplesPerPixel, "US", u16(65535)), 200},
		"2^31 frames":         {dicom.Rows, append(exact(dicom.NumberOfFrames, "IS", "2147483648"), exact(dicom.Rows, "US", u16(65535))...), 200},
		"2^64 frames":         {dicom.Rows, append(exact(dicom.NumberOfFrames, "IS", "18446744073709551616"), exact(dicom.Rows, "US", u16(32))...), 200},
		"-1 frames":           {dicom.Rows, append(exact(dicom.NumberOfFrames, "IS", "-1"), exact(dicom.Rows, "US", u16(32))...), 200},
		"frames as no number": {dicom.Rows, append(exact(dicom.NumberOfFrames, "IS", "many"), exact(dicom.Rows, "US", u16(32))...), 200},
	} {
		cases = append(cases, b.served(name, func() instance { return b.instead(c.tag, c.raw) }, c.frame, 200)...)
	}
	return cases
}

// casesB11: known attributes in another VR than theirs.
func casesB11(b *badBench) (cases []badCase) {
	for name, raw := range map[string][]byte{
		"Patient Name as SQ": append(el(dicom.PatientName, "SQ", 8, ""), item(tagItem, 0)...),
		"Patient Name as FD": exact(dicom.PatientName, "FD", "12345678"),
		"Patient Name as OB": exact(dicom.PatientName, "OB", "\x00\xff\x00\xff"),
		"Patient Name as UN": exact(dicom.PatientName, "UN", badCanary+"^Other "),
		"Patient Name as ??": el(dicom.PatientName, "??", 4, "abcd"),
	} {
		cases = append(cases, b.served(name, func() instance { return b.instead(dicom.PatientName, raw) }, 200, 200)...)
	}
	cases = append(cases, b.served("character set as SQ", func() instance {
		return b.instead(dicom.StudyDate, append(append(el(dicom.SpecificCharacterSet, "SQ", 8, ""), item(tagItem, 0)...), exact(dicom.StudyDate, "DA", "20250102")...))
	}, 200, 200)...)
	cases = append(cases, b.refused("Study Instance UID as SQ", b.instead(dicom.StudyInstanceUID, append(el(dicom.StudyInstanceUID, "SQ", 8, ""), item(tagItem, 0)...)))...)
	cases = append(cases, b.refused("Series Instance UID as US", b.instead(dicom.SeriesInstanceUID, exact(dicom.SeriesInstanceUID, "US", "\x01\xff")))...)
	return append(cases, b.refused("SOP Instance UID as OB", b.instead(dicom.SOPInstanceUID, exact(dicom.SOPInstanceUID, "OB", "\x00\x01")))...)
}

const (
	jpegBaseline = "1.2.840.10008.1.2.4.50"
	jpegLS       = "1.2.840.10008.1.2.4.80"
	jpeg2000     = "1.2.840.10008.1.2.4.90"
	htj2k        = "1.2.840.10008.1.2.4.201"
	rle          = "1.2.840.10008.1.2.5"
)

// casesB12: fragments and offset tables that point elsewhere.
func casesB12(b *badBench) (cases []badCase) {
	bot := func(offsets ...uint32) string {
		var out []byte
		for _, o := range offsets {
			out = binary.LittleEndian.AppendUint32(out, o)
		}
		return string(out)
	}
	jpeg := "\xff\xd8\xff\xd9"
	for name, c := range map[string]struct {
		frames    int
		fragments []string
		frame     int
	}{
		"BOT beyond the end":  {2, []string{bot(0, 0xFFFFFFF0), jpeg, jpeg}, 200},
		"BOT backwards":       {2, []string{bot(12, 0), jpeg, jpeg}, 200},
		"BOT inside":          {2, []string{bot(0, 3), jpeg, jpeg}, 200},
		"BOT odd length":      {1, []string{"\x00\x00\x00\x00\x07\x00", jpeg}, 200},
		"BOT of 1,000 frames": {2, []string{bot(make([]uint32, 1000)...), jpeg, jpeg}, 200},
		"no fragment":         {1, []string{""}, 404},
		"empty fragments":     {3, []string{"", "", "", ""}, 200},
		"more frames":         {9, []string{"", jpeg}, 404},
	} {
		cases = append(cases, b.served(name, func() instance { return b.encapsulated(jpegBaseline, c.frames, c.fragments...) }, c.frame, 200)...)
	}
	eot := exact(0x7FE00001, "OV", "") // Extended Offset Table, whose length field has 16 bits more
	for name, raw := range map[string]string{
		"EOT beyond the end": "\xff\xff\xff\xff\xff\xff\xff\x7f", "EOT negative": "\x00\x00\x00\x00\x00\x00\x00\x80",
	} {
		cases = append(cases, b.served(name, func() instance {
			in := b.encapsulated(jpegBaseline, 1, "", jpeg)
			at := bytes.LastIndex(in.data, el(dicom.PixelData, "OB", undefined, ""))
			head := append(eot[:6:6], 0, 0, 8, 0, 0, 0)
			in.data = append(append(append(bytes.Clone(in.data[:at]), head...), raw...), in.data[at:]...)
			return in
		}, 200, 200)...)
	}
	whole := b.encapsulated(jpegBaseline, 1, "", jpeg)
	long := bytes.Clone(whole.data)
	binary.LittleEndian.PutUint32(long[len(long)-16:], 0xFFFFFFF0)
	for name, data := range map[string][]byte{
		"delimiter missing": whole.data[:len(whole.data)-8], "fragment of 4 GiB": long,
		"no fragment but an element": append(bytes.Clone(whole.data[:len(whole.data)-8]), exact(dicom.PatientName, "PN", "A^B ")...),
	} {
		in := whole
		in.data = data
		cases = append(cases, b.refused(name, in)...)
	}
	return cases
}

// casesB13: compressed frames that are cut or lie about themselves. Nothing here decodes them: they come back bit for
// bit, as frames too.
func casesB13(b *badBench) (cases []badCase) {
	for name, c := range map[string]struct{ syntax, stream string }{
		"JPEG of 65535 x 65535":     {jpegBaseline, "\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"},
		"JPEG cut":                  {jpegBaseline, "\xff\xd8\xff\xdb\x00\x43"},
		"JPEG-LS of 65535 x 65535":  {jpegLS, "\xff\xd8\xff\xf7\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\x00"},
		"JPEG 2000 of 4 G x 4 G":    {jpeg2000, "\xff\x4f\xff\x51\x00\x29\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"},
		"HTJ2K with a tile of none": {htj2k, "\xff\x4f\xff\x51\x00\x2f\x40\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"},
		"RLE of 4 G segments":       {rle, "\xff\xff\xff\xff" + strings.Repeat("\xff\xff\xff\xff", 15)},
		"RLE cut":                   {rle, "\x01\x00\x00\x00\x40\x00"},
	} {
		cases = append(cases, b.served(name, func() instance { return b.encapsulated(c.syntax, 1, "", c.stream) }, 200, 200)...)
		cases = append(cases, badCase{"WADO-RS as PNG " + name, func(ctx context.Context) error {
			in := b.encapsulated(c.syntax, 1, "", c.stream)
			if err := b.keptWant(name, in).do(ctx); err != nil {
				return err
			}
			path := "/dicom-web/studies/" + in.study + "/series/" + in.series + "/instances/" + in.uid
			_, err := b.request(ctx, "GET", path+"/frames/1", nil, 406, "Accept", "image/png")
			return err
		}})
	}
	return cases
}
