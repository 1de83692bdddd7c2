package catalog

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
)

// sealedVersion is one version of an instance table.
type sealedVersion struct {
	in     Instance // with the attributes of keptWhenSealed only
	number int32
	served bool
	entry  SealEntry
	pack   place.PackID // filled in by whoever read the table
}

// instanceTable is one row of tableInstances: versions of one series in one pack, by instance
// number, UID and version, column by column and compressed as a whole.
//
//	version u8 | length of the body | zstd(body)
//	body: study | series | n | dictionary of strings | columns...
//
// A column holds the values of all n versions one after another, so that like stands beside like.
type instanceTable struct {
	study, series string
	versions      []sealedVersion
}

// tableCodec compresses instance tables. Safe for concurrent use.
type tableCodec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newTableCodec() (*tableCodec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make the table compressor: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxTableBytes))
	if err != nil {
		return nil, fmt.Errorf("make the table decompressor: %w", err)
	}
	return &tableCodec{enc: enc, dec: dec}, nil
}

// keptWhenSealed reports whether an attribute stays in the catalog after sealing: what IMAGE level
// queries and QIDO-RS ask for (PS3.4 Table C.6-4, PS3.18 Table 10.6.3-5). All others are in the manifest.
func keptWhenSealed(tag dicom.Tag) bool {
	switch tag {
	case dicom.InstanceNumber, dicom.Rows, dicom.Columns, dicom.BitsAllocated, dicom.NumberOfFrames,
		dicom.ContentDate, dicom.ContentTime, dicom.AcquisitionDate, dicom.AcquisitionTime, dicom.AcquisitionNumber,
		dicom.InstanceCreationDate, dicom.InstanceCreationTime, dicom.ImageType, dicom.PhotometricInterpretation,
		dicom.SpecificCharacterSet, dicom.ContentLabel, dicom.CompletionFlag, dicom.VerificationFlag,
		dicom.ConceptNameCodeSequence, dicom.DocumentTitle, dicom.ContentDescription:
		return true
	}
	return false
}

// keptAttributes returns the elements of set that stay after sealing.
func keptAttributes(set []byte) []byte {
	var kept []byte
	eachAttribute(set, func(a attribute) bool {
		if keptWhenSealed(a.tag) {
			kept = append(kept, a.raw...)
		}
		return true
	})
	return kept
}

// dictionary numbers the strings of a table in the order of their first use.
type dictionary struct {
	numbers map[string]uint64
	list    []byte
}

func (t *dictionary) ref(b []byte, s string) []byte {
	n, known := t.numbers[s]
	if !known {
		n = uint64(len(t.numbers))
		t.numbers[s] = n
		t.list = appendString(t.list, s)
	}
	return appendUint(b, n)
}

// encode returns the row of t.
func (c *tableCodec) encode(t *instanceTable) []byte {
	words := dictionary{numbers: map[string]uint64{}}
	columns := appendColumns(&words, t)
	body := appendString(appendString(nil, t.study), t.series)
	body = appendUint(body, uint64(len(t.versions)))
	body = appendUint(body, uint64(len(words.numbers)))
	body = append(body, words.list...)
	body = append(body, columns...)
	row := appendUint([]byte{rowVersion}, uint64(len(body)))
	return c.enc.EncodeAll(body, row)
}

// appendColumns writes the columns; decodeColumns reads them in the same order.
func appendColumns(words *dictionary, t *instanceTable) []byte {
	var b []byte
	each := func(write func(v, before *sealedVersion)) {
		before := &sealedVersion{}
		for i := range t.versions {
			write(&t.versions[i], before)
			before = &t.versions[i]
		}
	}
	each(func(v, before *sealedVersion) {
		uid, last := v.in.SOPInstanceUID, before.in.SOPInstanceUID
		n := 0
		for n < len(uid) && n < len(last) && uid[n] == last[n] {
			n++
		}
		b = appendString(appendUint(b, uint64(n)), uid[n:])
	})
	each(func(v, before *sealedVersion) { b = appendInt(b, int64(v.number)-int64(before.number)) })
	each(func(v, _ *sealedVersion) { b = append(b, v.flags()) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, v.in.SOPClassUID) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, v.in.TransferSyntaxUID) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, v.in.CallingAE) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, string(v.in.ReceivedBy[:])) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, v.in.PatientKey.Issuer) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, v.in.PatientKey.ID) })
	each(func(v, _ *sealedVersion) { b = appendUint(b, uint64(v.in.Frames)) })
	each(func(v, before *sealedVersion) { b = appendInt(b, v.in.Size-before.in.Size) })
	each(func(v, before *sealedVersion) { b = appendInt(b, v.in.PixelOffset-before.in.PixelOffset) })
	each(func(v, before *sealedVersion) {
		b = appendInt(b, v.entry.Offset-(before.entry.Offset+before.entry.Size))
	})
	each(func(v, _ *sealedVersion) { b = appendInt(b, v.entry.Size-v.in.Size) })
	each(func(v, _ *sealedVersion) { b = appendInt(b, v.entry.PixelOffset-v.in.PixelOffset) })
	each(func(v, _ *sealedVersion) { b = appendTime(b, v.in.ReceivedAt) })
	each(func(v, _ *sealedVersion) { b = words.ref(b, string(v.in.Attributes)) })
	each(func(v, _ *sealedVersion) { b = append(b, v.in.Digest[:]...) })
	each(func(v, _ *sealedVersion) {
		if v.flags()&versionOwnID != 0 {
			b = append(b, v.in.Version[:]...)
		}
	})
	return b
}

func (v *sealedVersion) flags() byte {
	var f byte
	if v.served {
		f |= versionServed
	}
	if v.in.Version != VersionOf(v.in.SOPInstanceUID, v.in.TransferSyntaxUID, v.in.Digest) {
		f |= versionOwnID
	}
	return f
}

// body returns the decompressed body of a row.
func (c *tableCodec) body(row []byte) ([]byte, error) {
	d := &decoder{b: row}
	d.version(rowVersion)
	n := d.size(maxTableBytes)
	if d.bad {
		return nil, fmt.Errorf("%w instance table: header", ErrMalformed)
	}
	body, err := c.dec.DecodeAll(d.b, nil)
	if err != nil || len(body) != n {
		return nil, fmt.Errorf("%w instance table: decompress", ErrMalformed)
	}
	return body, nil
}

// decode reverses encode. Its error wraps ErrMalformed.
func (c *tableCodec) decode(row []byte) (*instanceTable, error) {
	body, err := c.body(row)
	if err != nil {
		return nil, err
	}
	d := &decoder{b: body}
	t := &instanceTable{study: d.string(maxUIDBytes), series: d.string(maxUIDBytes)}
	t.versions = make([]sealedVersion, d.count(tableEntries))
	words := &blobReader{decoder: d}
	for n := d.count(maxTableBytes); n > 0 && !d.bad; n-- {
		words.blobs = append(words.blobs, d.take(d.size(maxAttributesBytes)))
	}
	words.strings = make([]string, len(words.blobs))
	decodeColumns(d, words, t)
	return t, rowError("instance table", d)
}

func decodeColumns(d *decoder, words *blobReader, t *instanceTable) {
	each := func(read func(v, before *sealedVersion)) {
		before := &sealedVersion{}
		for i := range t.versions {
			if d.bad {
				return
			}
			read(&t.versions[i], before)
			before = &t.versions[i]
		}
	}
	var flags []byte
	each(func(v, before *sealedVersion) {
		v.in.StudyInstanceUID, v.in.SeriesInstanceUID = t.study, t.series
		last := before.in.SOPInstanceUID
		v.in.SOPInstanceUID = last[:d.size(len(last))] + d.string(maxUIDBytes)
	})
	each(func(v, before *sealedVersion) { v.number = int32(d.int() + int64(before.number)) })
	each(func(v, _ *sealedVersion) {
		flags = append(flags, d.byte())
		v.served = flags[len(flags)-1]&versionServed != 0
	})
	each(func(v, _ *sealedVersion) { v.in.SOPClassUID = words.refString(maxUIDBytes) })
	each(func(v, _ *sealedVersion) { v.in.TransferSyntaxUID = words.refString(maxUIDBytes) })
	each(func(v, _ *sealedVersion) { v.in.CallingAE = words.refString(maxStringBytes) })
	each(func(v, _ *sealedVersion) { copy(v.in.ReceivedBy[:], words.refString(len(place.NodeID{}))) })
	each(func(v, _ *sealedVersion) { v.in.PatientKey.Issuer = words.refString(maxStringBytes) })
	each(func(v, _ *sealedVersion) { v.in.PatientKey.ID = words.refString(maxStringBytes) })
	each(func(v, _ *sealedVersion) { v.in.Frames = uint32(d.uint()) })
	each(func(v, before *sealedVersion) { v.in.Size = d.int() + before.in.Size })
	each(func(v, before *sealedVersion) { v.in.PixelOffset = d.int() + before.in.PixelOffset })
	each(func(v, before *sealedVersion) { v.entry.Offset = d.int() }) // made absolute below
	each(func(v, before *sealedVersion) {
		v.entry.Size = d.int() + v.in.Size
		v.entry.Offset += before.entry.Offset + before.entry.Size
	})
	each(func(v, _ *sealedVersion) { v.entry.PixelOffset = d.int() + v.in.PixelOffset })
	each(func(v, _ *sealedVersion) { v.in.ReceivedAt = d.time() })
	each(func(v, _ *sealedVersion) { v.in.Attributes = words.ref() })
	each(func(v, _ *sealedVersion) { d.fixed(v.in.Digest[:]) })
	n := 0
	each(func(v, _ *sealedVersion) {
		if flags[n]&versionOwnID != 0 {
			d.fixed(v.in.Version[:])
		} else {
			v.in.Version = VersionOf(v.in.SOPInstanceUID, v.in.TransferSyntaxUID, v.in.Digest)
		}
		v.entry.Version = v.in.Version
		n++
	})
}

// located returns the version as readers see it.
func (v *sealedVersion) located() Located {
	return Located{Instance: v.in, Served: v.served, State: VersionSealed, Pack: v.pack, Entry: v.entry}
}

// compareSealed orders versions as unsealed rows of a series are ordered.
func compareSealed(a, b *sealedVersion) int {
	return compareVersions(a.number, &a.in, b.number, &b.in)
}

func compareVersions(an int32, a *Instance, bn int32, b *Instance) int {
	switch {
	case an != bn && an < bn:
		return -1
	case an != bn:
		return 1
	case a.SOPInstanceUID != b.SOPInstanceUID && a.SOPInstanceUID < b.SOPInstanceUID:
		return -1
	case a.SOPInstanceUID != b.SOPInstanceUID:
		return 1
	}
	return bytes.Compare(a.Version[:], b.Version[:])
}
