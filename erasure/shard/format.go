package shard

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"

	"osteon/erasure/place"
)

const (
	version      = 2 // written; versionWhole is read as well
	versionWhole = 1 // its root is the SHA-256 over the whole file
	headerBytes  = 96
	trailerBytes = 32
	sumBytes     = 4 // CRC32C behind every block
	seedBytes    = 16 + 4 + 8
	headerMagic  = "OSTSHARD"
	trailerMagic = "OSTSHEND"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says which shard a file is. All of it is known before the first byte of data except
// StreamBytes, which stands in the trailer.
type Header struct {
	Ring       place.RingID
	Pack       place.PackID
	Encode     place.EncodeID
	Geometry   place.Geometry
	Index      int
	CellBytes  int // bytes of a cell in all but the last stripe; a multiple of BlockBytes
	BlockBytes int // bytes of a block in all but the last block of the last cell
	// StreamBytes is the length of the pack's ciphertext stream. It is an argument of Commit
	// and known to readers; Create ignores it.
	StreamBytes int64
}

// Check returns an error that names the field out of bounds. It does not look at StreamBytes.
func (h Header) Check() error {
	switch {
	case h.Geometry.Check() != nil:
		return h.Geometry.Check()
	case h.Index < 0 || h.Index >= h.Geometry.N():
		return fmt.Errorf("shard index %d: geometry %v has %d shards", h.Index, h.Geometry, h.Geometry.N())
	case h.BlockBytes < cellAlign || h.BlockBytes > BlockBytesMax || h.BlockBytes%cellAlign != 0:
		return fmt.Errorf("block of %d bytes: want a multiple of %d up to %d", h.BlockBytes, cellAlign, BlockBytesMax)
	case h.CellBytes < h.BlockBytes || h.CellBytes > CellBytesMax || h.CellBytes%h.BlockBytes != 0:
		return fmt.Errorf("cell of %d bytes: want a multiple of the block's %d up to %d", h.CellBytes, h.BlockBytes, CellBytesMax)
	}
	return nil
}

// Shape is the arithmetic of a stream cut into stripes and cells. Every node computes the same one from
// a shard's header or a catalog row.
type Shape struct {
	Geometry    place.Geometry
	CellBytes   int
	BlockBytes  int
	StreamBytes int64
}

// Shape returns that of the header.
func (h Header) Shape() Shape {
	return Shape{h.Geometry, h.CellBytes, h.BlockBytes, h.StreamBytes}
}

// stripeBytes is the data of a full stripe.
func (s Shape) stripeBytes() int64 { return int64(s.Geometry.K) * int64(s.CellBytes) }

// Stripes returns how many stripes the stream takes; the last may be short.
func (s Shape) Stripes() int64 {
	return (s.StreamBytes + s.stripeBytes() - 1) / s.stripeBytes()
}

// CellLen returns the bytes of each cell of a stripe: CellBytes, or for a last stripe that the
// stream does not fill the K-th part of what is left, rounded up to a cache line. Stripes beyond the
// end have 0.
func (s Shape) CellLen(stripe int64) int {
	left := s.StreamBytes - stripe*s.stripeBytes()
	if left <= 0 {
		return 0
	}
	if left >= s.stripeBytes() {
		return s.CellBytes
	}
	return LastCellLen(s.Geometry, left)
}

// LastCellLen returns the bytes of each cell of a last stripe that holds left bytes of the stream.
func LastCellLen(g place.Geometry, left int64) int {
	each := (left + int64(g.K) - 1) / int64(g.K)
	return int((each + cellAlign - 1) / cellAlign * cellAlign)
}

// BodyBytes returns the payload of each shard: the cells, without checksums.
func (s Shape) BodyBytes() int64 {
	n := s.Stripes()
	if n == 0 {
		return 0
	}
	return (n-1)*int64(s.CellBytes) + int64(s.CellLen(n-1))
}

// blocks returns how many blocks the payload takes. Only the last may be short, since full cells are
// whole blocks.
func (s Shape) blocks() int64 {
	return (s.BodyBytes() + int64(s.BlockBytes) - 1) / int64(s.BlockBytes)
}

// FileBytes returns the length of each shard file.
func (s Shape) FileBytes() int64 {
	return headerBytes + s.BodyBytes() + s.blocks()*sumBytes + trailerBytes
}

// Root stands for all bytes of a shard file; the package comment says how.
type Root [32]byte

// appendHeader writes the header that the package comment draws.
func appendHeader(dst []byte, h Header) []byte {
	start := len(dst)
	dst = append(dst, headerMagic...)
	dst = binary.LittleEndian.AppendUint16(dst, version)
	dst = binary.LittleEndian.AppendUint16(dst, 0)
	dst = append(dst, byte(h.Geometry.K), byte(h.Geometry.M), byte(h.Index), 0)
	dst = append(dst, h.Ring[:]...)
	dst = append(dst, h.Pack[:]...)
	dst = append(dst, h.Encode[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.CellBytes))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.BlockBytes))
	dst = append(dst, make([]byte, headerBytes-sumBytes-(len(dst)-start))...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// parseHeader reads what appendHeader wrote, in this version of the format or an older one; StreamBytes
// stays 0.
func parseHeader(b []byte) (h Header, v uint16, err error) {
	if len(b) < headerBytes || string(b[:8]) != headerMagic {
		return Header{}, 0, errors.New("no shard header")
	}
	b = b[:headerBytes]
	body, sum := b[:headerBytes-sumBytes], binary.LittleEndian.Uint32(b[headerBytes-sumBytes:])
	if crc32.Checksum(body, castagnoli) != sum {
		return Header{}, 0, errors.New("header checksum differs")
	}
	if v = binary.LittleEndian.Uint16(b[8:]); v != version && v != versionWhole {
		return Header{}, 0, fmt.Errorf("shard format version %d: %w", v, ErrVersion)
	}
	h = Header{
		Geometry:   place.Geometry{K: int(b[12]), M: int(b[13])},
		Index:      int(b[14]),
		Ring:       place.RingID(b[16:32]),
		Pack:       place.PackID(b[32:48]),
		Encode:     place.EncodeID(b[48:64]),
		CellBytes:  int(binary.LittleEndian.Uint32(b[64:])),
		BlockBytes: int(binary.LittleEndian.Uint32(b[68:])),
	}
	return h, v, h.Check()
}

// appendTrailer writes the trailer. Its checksum starts from that of the header, which binds the two.
func appendTrailer(dst []byte, headerSum uint32, streamBytes, blocks int64) []byte {
	start := len(dst)
	dst = append(dst, trailerMagic...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(streamBytes))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(blocks))
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	return binary.LittleEndian.AppendUint32(dst, crc32.Update(headerSum, castagnoli, dst[start:]))
}

// parseTrailer reads the stream's length and checks that the file has the length that follows
// from it.
func parseTrailer(b []byte, headerSum uint32, h Header, fileBytes int64) (int64, error) {
	if len(b) != trailerBytes || string(b[:8]) != trailerMagic {
		return 0, errors.New("no shard trailer: the file is cut short")
	}
	if crc32.Update(headerSum, castagnoli, b[:trailerBytes-sumBytes]) != binary.LittleEndian.Uint32(b[trailerBytes-sumBytes:]) {
		return 0, errors.New("trailer checksum differs")
	}
	stream := binary.LittleEndian.Uint64(b[8:])
	blocks := binary.LittleEndian.Uint64(b[16:])
	if stream > StreamBytesMax {
		return 0, fmt.Errorf("stream of %d bytes: want at most %d", stream, int64(StreamBytesMax))
	}
	h.StreamBytes = int64(stream)
	if s := h.Shape(); uint64(s.blocks()) != blocks || s.FileBytes() != fileBytes {
		return 0, fmt.Errorf("file has %d bytes, its trailer means %d", fileBytes, s.FileBytes())
	}
	return int64(stream), nil
}

// seed is what the checksum of every block of a shard starts from: CRC32C over encode UUID,
// shard number and block number, so that a block in the wrong place, shard or encode does not pass.
type seed struct{ prefix uint32 }

func newSeed(encode place.EncodeID, index int) seed {
	b := make([]byte, 0, seedBytes)
	b = append(b, encode[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(index))
	return seed{crc32.Checksum(b, castagnoli)}
}

func (s seed) sum(block int64, payload []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(block))
	return crc32.Update(crc32.Update(s.prefix, castagnoli, n[:]), castagnoli, payload)
}

// Builder produces the bytes of a shard file and their root without a file. The sealer runs one for
// each shard to know the root that the holder must report; [Writer] runs one to write. Not safe for
// concurrent use.
type Builder struct {
	h         Header
	headerSum uint32
	seed      seed
	root      hash.Hash
	body      int64
	blocks    int64
	short     bool // the last cell was given
	buf       []byte
}

// NewBuilder returns a builder that has hashed the header. Errors are those of [Header.Check].
func NewBuilder(h Header) (*Builder, error) {
	if err := h.Check(); err != nil {
		return nil, fmt.Errorf("build shard: %w", err)
	}
	b := &Builder{h: h, seed: newSeed(h.Encode, h.Index), root: sha256.New()}
	b.buf = appendHeader(nil, h)
	b.headerSum = binary.LittleEndian.Uint32(b.buf[headerBytes-sumBytes:])
	b.root.Write(b.buf)
	return b, nil
}

// header returns the bytes of the file's header.
func (b *Builder) header() []byte { return appendHeader(nil, b.h) }

// Cell adds the next cell and returns its bytes in the file: each block followed by its
// checksum. The result is valid until the next call. A cell shorter than CellBytes ends the shard.
func (b *Builder) Cell(cell []byte) ([]byte, error) {
	b.buf = b.buf[:0]
	err := b.cell(cell, func(part []byte) { b.buf = append(b.buf, part...) })
	if err != nil {
		return nil, err
	}
	return b.buf, nil
}

// Hash adds the next cell to the root alone.
func (b *Builder) Hash(cell []byte) error {
	return b.cell(cell, func([]byte) {})
}

// cell adds the checksums of the next cell's blocks to the root and gives its bytes in the file to emit, in
// order.
func (b *Builder) cell(cell []byte, emit func([]byte)) error {
	if len(cell) == 0 || len(cell) > b.h.CellBytes || b.short {
		return fmt.Errorf("cell of %d bytes at offset %d: want %d, or fewer once at the end", len(cell), b.body, b.h.CellBytes)
	}
	b.short = len(cell) < b.h.CellBytes
	for at := 0; at < len(cell); at += b.h.BlockBytes {
		block := cell[at:min(at+b.h.BlockBytes, len(cell))]
		emit(block)
		var sum [sumBytes]byte
		binary.LittleEndian.PutUint32(sum[:], b.seed.sum(b.blocks, block))
		emit(sum[:])
		b.root.Write(sum[:])
		b.blocks++
	}
	b.body += int64(len(cell))
	return nil
}

// Finish returns the trailer and the root of the whole file, or an error when the cells given do not
// add up to a shard of a stream of streamBytes.
func (b *Builder) Finish(streamBytes int64) ([]byte, Root, error) {
	h := b.h
	h.StreamBytes = streamBytes
	if streamBytes < 0 || streamBytes > StreamBytesMax || h.Shape().BodyBytes() != b.body {
		return nil, Root{}, fmt.Errorf("finish shard: %d bytes of cells are not those of a stream of %d bytes", b.body, streamBytes)
	}
	trailer := appendTrailer(nil, b.headerSum, streamBytes, b.blocks)
	b.root.Write(trailer)
	return trailer, Root(b.root.Sum(nil)), nil
}
