package erasure

import (
	"errors"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"osteon/erasure/place"
)

// The manifest of a section lists the instances of one study in a pack, with all that is needed to serve
// them and to rebuild the catalog from packs alone. Little-endian; v is an unsigned varint.
//
//	head    32  magic "OSTMANI\x01" | index bytes 8 | headers bytes 8 | 0 4 | CRC32C 4 of the 28 before
//	index       zstd of the records below | CRC32C 4 of the compressed bytes
//	headers     groups, each zstd of (length v, bytes)* in order of the series' instances | CRC32C 4
//
//	index records: study string | strings v (v bytes)* | series v series* | instances v instance*
//	  series   = UID string | groups v (offset in headers v, bytes v, instances v)*
//	  instance = series v | version 32 | digest 32 | SOP Instance UID string | SOP Class v | syntax v |
//	             offset v | size v | pixel offset v | calling AE v | node 16 | time v (Unix ms) |
//	             header kept 1 | frames v (gap since the end of the frame before, zigzag v; length v)*
//
// SOP Class, syntax and AE are numbers into the strings. The index alone says where everything is; the
// headers of one series are one stretch, so that the metadata of a series is one read.

var (
	// ErrManifest: the bytes are no manifest, or one that breaks its own limits.
	ErrManifest = errors.New("malformed manifest")
	// ErrManifestVersion: a newer version of the software wrote the manifest.
	ErrManifestVersion = errors.New("unknown manifest version")
)

// Frame is where one frame's bytes are, counted from the start of its instance's data set.
type Frame struct{ Offset, Length int64 }

// Provenance is where an instance came from.
type Provenance struct {
	CallingAE string
	Node      place.NodeID
	At        time.Time // to the millisecond
}

// ManifestInstance is one stored version of an instance.
type ManifestInstance struct {
	Version           [32]byte // the version's identity in the catalog
	SOPInstanceUID    string
	SOPClassUID       string
	SeriesInstanceUID string
	TransferSyntaxUID string
	Digest            [32]byte // SHA-256 of the data set
	Offset            int64    // pack address of the data set
	Size              int64    // bytes of the data set
	PixelOffset       int64    // of the pixel data element in the data set, or Size without one
	Frames            []Frame  // may be nil
	Provenance        Provenance
	// Ordinal is the instance's number in the manifest, from 0. Set by decoding.
	Ordinal int
	// HeaderKept says that the manifest has the raw header bytes.
	HeaderKept bool
}

// HeaderGroup is one compressed run of headers of a series.
type HeaderGroup struct {
	Offset    int64 // from the start of the manifest
	Bytes     int64
	Instances int // how many headers it has
}

// ManifestSeries is one series of the manifest.
type ManifestSeries struct {
	SeriesInstanceUID string
	Groups            []HeaderGroup
	// Ordinals are the instances whose headers the groups hold, in that order.
	Ordinals []int
}

// Manifest is the decoded index of a manifest.
type Manifest struct {
	StudyInstanceUID string
	Series           []ManifestSeries
	Instances        []ManifestInstance // by ordinal
}

// ManifestBuilder collects a manifest while a pack is written. It holds compressed headers and the records,
// not the data. Not safe for concurrent use.
type ManifestBuilder struct {
	m      Manifest
	series map[string]*seriesBuilder
	order  []*seriesBuilder
	packer *zstd.Encoder
	frames int
}

// seriesBuilder gathers the headers of a series.
type seriesBuilder struct {
	number int
	uid    string
	raw    []byte // of the group being filled
	count  int    // headers in raw
	packed []byte // finished groups
	groups []HeaderGroup
}

// NewManifestBuilder returns an empty builder for the study.
func NewManifestBuilder(studyInstanceUID string) (*ManifestBuilder, error) {
	packer, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(headerGroupBytes))
	if err != nil {
		return nil, fmt.Errorf("build manifest: %w", err)
	}
	return &ManifestBuilder{
		m:      Manifest{StudyInstanceUID: studyInstanceUID},
		series: make(map[string]*seriesBuilder), packer: packer,
	}, nil
}

// Add appends an instance, with the raw bytes of its data set up to the pixel data, of which it keeps
// a copy unless they exceed [HeaderBytesMax]. in.Frames is kept; Ordinal and HeaderKept are ignored.
// It returns the instance's ordinal, or [ErrManifest] when a limit is broken.
func (b *ManifestBuilder) Add(in ManifestInstance, header []byte) (int, error) {
	ordinal := len(b.m.Instances)
	b.frames += len(in.Frames)
	if err := checkInstance(in); err != nil {
		return 0, err
	}
	if ordinal >= manifestInstancesMax || b.frames > manifestFramesMax {
		return 0, fmt.Errorf("instance %d of the manifest: too many instances or frames for one pack: %w", ordinal, ErrManifest)
	}
	in.Ordinal = ordinal
	in.HeaderKept = len(header) > 0 && len(header) <= HeaderBytesMax
	s := b.series[in.SeriesInstanceUID]
	if s == nil {
		s = &seriesBuilder{number: len(b.order), uid: in.SeriesInstanceUID}
		b.series[in.SeriesInstanceUID] = s
		b.order = append(b.order, s)
	}
	b.m.Instances = append(b.m.Instances, in)
	if in.HeaderKept {
		s.raw = appendBytes(s.raw, header)
		s.count++
		if len(s.raw) >= headerGroupBytes {
			b.flush(s)
		}
	}
	return ordinal, nil
}

// flush compresses the headers gathered for a series.
func (b *ManifestBuilder) flush(s *seriesBuilder) {
	if s.count == 0 {
		return
	}
	start := len(s.packed)
	s.packed = b.packer.EncodeAll(s.raw, s.packed)
	s.packed = appendSum(s.packed, s.packed[start:])
	s.groups = append(s.groups, HeaderGroup{Offset: int64(start), Bytes: int64(len(s.packed) - start), Instances: s.count})
	s.raw, s.count = s.raw[:0], 0
}

// Bytes returns the encoded manifest. The builder is used up.
func (b *ManifestBuilder) Bytes() ([]byte, error) {
	var headersAt int64
	for _, s := range b.order {
		b.flush(s)
		for i := range s.groups {
			s.groups[i].Offset += headersAt // from the start of headers until decoded
		}
		headersAt += int64(len(s.packed))
		b.m.Series = append(b.m.Series, ManifestSeries{SeriesInstanceUID: s.uid, Groups: s.groups})
	}
	raw := appendIndex(nil, &b.m, b.series)
	if len(raw) > manifestIndexMax {
		return nil, fmt.Errorf("manifest index of %d bytes: want at most %d: %w", len(raw), manifestIndexMax, ErrManifest)
	}
	index := b.packer.EncodeAll(raw, nil)
	index = appendSum(index, index)
	out := appendHead(make([]byte, 0, manifestHeadBytes+len(index)+int(headersAt)), int64(len(index)), headersAt)
	out = append(out, index...)
	for _, s := range b.order {
		out = append(out, s.packed...)
	}
	if len(out) > manifestBytesMax {
		return nil, fmt.Errorf("manifest of %d bytes: want at most %d: %w", len(out), manifestBytesMax, ErrManifest)
	}
	return out, nil
}

// checkInstance refuses what decoding would refuse.
func checkInstance(in ManifestInstance) error {
	for _, s := range []string{in.SOPInstanceUID, in.SOPClassUID, in.SeriesInstanceUID, in.TransferSyntaxUID, in.Provenance.CallingAE} {
		if len(s) > manifestStringMax {
			return fmt.Errorf("a name of %d bytes: want at most %d: %w", len(s), manifestStringMax, ErrManifest)
		}
	}
	if in.Offset < 0 || in.Size < 0 || in.Offset > packBytesMax || in.Size > packBytesMax ||
		in.PixelOffset < 0 || in.PixelOffset > in.Size {
		return fmt.Errorf("instance at %d of %d bytes with pixel data at %d: %w", in.Offset, in.Size, in.PixelOffset, ErrManifest)
	}
	for _, f := range in.Frames {
		if f.Offset < 0 || f.Length < 0 || f.Offset > in.Size || f.Length > in.Size-f.Offset {
			return fmt.Errorf("frame at %d of %d bytes in an instance of %d: %w", f.Offset, f.Length, in.Size, ErrManifest)
		}
	}
	return nil
}
