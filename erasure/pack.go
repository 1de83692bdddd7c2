package erasure

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/raft/vault"
)

// The pack codec.
//
// A pack holds the instances of 1..n studies, each a [Section] with a key of its own. A section has a
// data region (the data sets, one after another) and a manifest region (an encoded [Manifest]). Its
// addresses, everywhere outside this file, count plaintext: all regions in the order of the stream,
// without gaps.
//
//	stream = region*  directory
//	region = chunk*            a region of L bytes has ceil(L / 64 KiB) chunks, only the last is short
//	chunk  = AES-256-GCM ciphertext, tag 16
//	         key = the section's; nonce = 0 4 | chunk number 8, big-endian
//	         AAD = "osteon pack 1" | ring 16 | pack 16 | encode 16 | chunk number 8 | last of region 1
//	directory = regions n * (section 4 | kind 1: 1 data, 2 manifest | 0 3 | bytes 8)
//	            | "OSTPACK\x01" | n 4 | CRC32C 4 over (encode 16, all before)
//
// Chunks are numbered through the pack, so data and manifest never share a nonce, whatever their keys.
// The directory is not secret (lengths) and not trusted: a wrong one makes chunks fail to
// authenticate. The stream is cut into stripes of K cells, coded, and each shard's cells are one file
// (package shard).

// PackKey is the AES-256 key of one section of one encode. It is never used for another encode.
type PackKey [32]byte

// Section says where one study's data and manifest are in the plaintext of a pack, in bytes.
type Section struct {
	DataOffset, DataBytes         int64
	ManifestOffset, ManifestBytes int64
}

// OneSection returns the sections of a pack that holds one study, from what the catalog keeps of it.
func OneSection(manifestOffset, manifestBytes int64) []Section {
	return []Section{{DataBytes: manifestOffset, ManifestOffset: manifestOffset, ManifestBytes: manifestBytes}}
}

// ShardSink takes one shard of a pack being encoded; a file here or a holder elsewhere.
type ShardSink interface {
	// WriteCell takes the cell of the next stripe; it does not keep cell. It is called from one
	// goroutine at a time and returns soon after ctx ends.
	WriteCell(ctx context.Context, cell []byte) error
	// Commit makes the shard of a stream of streamBytes durable, reads it again and returns its root.
	Commit(ctx context.Context, streamBytes int64) (shard.Root, error)
	// Abort gives up; it is called once when Commit was not, or failed.
	Abort()
}

// ShardSource reads one shard of a pack; a file here or a holder elsewhere. Safe for concurrent use.
type ShardSource interface {
	// ReadShard fills dst with the shard's payload at off (cells one after another, without
	// checksums); the holder checks the blocks. off is a multiple of the block size and the range
	// ends on one or at the end of a cell. It returns soon after ctx ends. A corrupt block is
	// [shard.ErrCorrupt], an absent shard [shard.ErrNotFound]; anything else counts as unreachable.
	ReadShard(ctx context.Context, dst []byte, off int64) error
}

var (
	// ErrTooFewShards: fewer than K shards could be read.
	ErrTooFewShards = errors.New("too few shards can be read")
	// ErrPackCorrupt: what the shards decode to does not authenticate, whichever are left out.
	ErrPackCorrupt = errors.New("pack does not authenticate")
	// ErrRootMismatch: a holder has other bytes on its disk than were sent.
	ErrRootMismatch = errors.New("shard root differs from the sealer's")
	// ErrRange: the range is not inside the pack.
	ErrRange = errors.New("range is outside the pack")
)

// SinkError says which shard's sink failed an encode.
type SinkError struct {
	Shard int
	Err   error
}

// Error implements error.
func (e *SinkError) Error() string { return fmt.Sprintf("shard %d: %v", e.Shard, e.Err) }

// Unwrap returns the sink's error.
func (e *SinkError) Unwrap() error { return e.Err }

// packID is what every chunk of a pack is bound to.
type packID struct {
	Ring   place.RingID
	Pack   place.PackID
	Encode place.EncodeID
}

const (
	aadLabel       = "osteon pack 1"
	aadBytes       = len(aadLabel) + 3*16 + 8 + 1
	tagBytes       = 16
	nonceBytes     = 12
	directoryMagic = "OSTPACK\x01"
	regionEntry    = 16
	directoryTail  = len(directoryMagic) + 8
)

// sealer seals and opens the chunks of one section. Not safe for concurrent use.
type sealer struct {
	aead  cipher.AEAD
	nonce [nonceBytes]byte
	aad   [aadBytes]byte
}

func newSealer(id packID, key PackKey) *sealer {
	s := &sealer{aead: vault.NewAEAD((*vault.Key)(&key))}
	n := copy(s.aad[:], aadLabel)
	n += copy(s.aad[n:], id.Ring[:])
	n += copy(s.aad[n:], id.Pack[:])
	copy(s.aad[n:], id.Encode[:])
	return s
}

// bind sets nonce and AAD for a chunk.
func (s *sealer) bind(chunk int64, last bool) {
	binary.BigEndian.PutUint64(s.nonce[4:], uint64(chunk))
	binary.BigEndian.PutUint64(s.aad[aadBytes-9:], uint64(chunk))
	s.aad[aadBytes-1] = 0
	if last {
		s.aad[aadBytes-1] = 1
	}
}

// seal appends the sealed chunk to dst.
func (s *sealer) seal(dst, plain []byte, chunk int64, last bool) []byte {
	s.bind(chunk, last)
	return s.aead.Seal(dst, s.nonce[:], plain, s.aad[:])
}

// open appends the plaintext of a chunk to dst, or fails when any bit of it is not as sealed.
func (s *sealer) open(dst, sealed []byte, chunk int64, last bool) ([]byte, error) {
	s.bind(chunk, last)
	return s.aead.Open(dst, s.nonce[:], sealed, s.aad[:])
}

type regionKind byte

const (
	regionData     regionKind = 1
	regionManifest regionKind = 2
)

// region is one region of the stream with where it begins in each way of counting.
type region struct {
	section int
	kind    regionKind
	bytes   int64 // plaintext

	plain  int64 // address of its first byte
	cipher int64 // stream offset of its first chunk
	chunk  int64 // number of its first chunk
}

func (r region) chunks() int64      { return (r.bytes + chunkBytes - 1) / chunkBytes }
func (r region) cipherBytes() int64 { return r.bytes + r.chunks()*tagBytes }

// chain fills in where each region begins.
func chain(regions []region) {
	var plain, cipherAt, chunk int64
	for i := range regions {
		r := &regions[i]
		r.plain, r.cipher, r.chunk = plain, cipherAt, chunk
		plain += r.bytes
		cipherAt += r.cipherBytes()
		chunk += r.chunks()
	}
}

// appendDirectory writes the end of the stream.
func appendDirectory(dst []byte, encode place.EncodeID, regions []region) []byte {
	start := len(dst)
	for _, r := range regions {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(r.section))
		dst = append(dst, byte(r.kind), 0, 0, 0)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(r.bytes))
	}
	dst = append(dst, directoryMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(regions)))
	return binary.LittleEndian.AppendUint32(dst, directorySum(encode, dst[start:]))
}

func directorySum(encode place.EncodeID, b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(encode[:], table), table, b)
}

// directoryBytes reads from a directory's tail how long the whole of it is.
func directoryBytes(tail []byte) (int64, error) {
	if len(tail) != directoryTail || string(tail[:len(directoryMagic)]) != directoryMagic {
		return 0, fmt.Errorf("read pack directory: %w", ErrPackCorrupt)
	}
	n := binary.LittleEndian.Uint32(tail[len(directoryMagic):])
	if n > 2*sectionsMax {
		return 0, fmt.Errorf("read pack directory of %d regions: want at most %d: %w", n, 2*sectionsMax, ErrPackCorrupt)
	}
	return int64(n)*regionEntry + int64(directoryTail), nil
}

// parseDirectory reads a whole directory of the given encode.
func parseDirectory(b []byte, encode place.EncodeID) ([]region, error) {
	if len(b) < directoryTail {
		return nil, fmt.Errorf("read pack directory of %d bytes: %w", len(b), ErrPackCorrupt)
	}
	want, err := directoryBytes(b[len(b)-directoryTail:])
	if err != nil {
		return nil, err
	}
	if want != int64(len(b)) || directorySum(encode, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("read pack directory: checksum or length differs: %w", ErrPackCorrupt)
	}
	var regions []region
	var total int64
	for e := b[:len(b)-directoryTail]; len(e) > 0; e = e[regionEntry:] {
		r := region{
			section: int(binary.LittleEndian.Uint32(e)),
			kind:    regionKind(e[4]),
			bytes:   int64(binary.LittleEndian.Uint64(e[8:])),
		}
		// Sections come in order, each its data then its manifest.
		if r.section != len(regions)/2 || r.kind != regionData+regionKind(len(regions)%2) ||
			r.bytes < 0 || r.bytes > packBytesMax-total {
			return nil, fmt.Errorf("read pack directory: region %d is out of order or bounds: %w", len(regions), ErrPackCorrupt)
		}
		total += r.bytes
		regions = append(regions, r)
	}
	if len(regions)%2 != 0 {
		return nil, fmt.Errorf("read pack directory: a section lacks its manifest: %w", ErrPackCorrupt)
	}
	chain(regions)
	return regions, nil
}

// regionsOf lays out sections, which must follow each other without gaps.
func regionsOf(sections []Section) ([]region, error) {
	if len(sections) > sectionsMax {
		return nil, fmt.Errorf("pack of %d sections: want at most %d", len(sections), sectionsMax)
	}
	var regions []region
	var at int64
	for i, s := range sections {
		if s.DataBytes < 0 || s.ManifestBytes < 0 || s.DataBytes > packBytesMax-at ||
			s.ManifestBytes > packBytesMax-at-s.DataBytes ||
			s.DataOffset != at || s.ManifestOffset != at+s.DataBytes {
			return nil, fmt.Errorf("section %d of the pack does not follow the one before it: %w", i, ErrRange)
		}
		at = s.ManifestOffset + s.ManifestBytes
		regions = append(regions, region{section: i, kind: regionData, bytes: s.DataBytes},
			region{section: i, kind: regionManifest, bytes: s.ManifestBytes})
	}
	chain(regions)
	return regions, nil
}

// sectionsOf is the inverse of regionsOf.
func sectionsOf(regions []region) []Section {
	sections := make([]Section, 0, len(regions)/2)
	for i := 0; i+1 < len(regions); i += 2 {
		d, m := regions[i], regions[i+1]
		sections = append(sections, Section{d.plain, d.bytes, m.plain, m.bytes})
	}
	return sections
}
