package journal

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"osteon/erasure/plant"
)

type frameType byte

const (
	frameChunk  frameType = 1
	frameCommit frameType = 2
	frameEnd    frameType = 3
)

const (
	frameMagic     = "OJF1"
	frameHeadBytes = 36
	frameTagBytes  = 16
	frameOverhead  = frameHeadBytes + frameTagBytes
	nonceBytes     = 12
	aadBytes       = 8 + frameHeadBytes - 4
)

// frame is a frame's header. Length is that of the plaintext.
type frame struct {
	kind     frameType
	object   uint64
	sequence uint32
	length   uint32
	counter  uint32
	durable  uint32
}

// size is what the frame takes in the segment.
func (h *frame) size() int64 { return int64(h.length) + frameOverhead }

// encode writes the header into b, bound to its segment.
func (h *frame) encode(b []byte, segment uint64) {
	copy(b, frameMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(h.kind))
	binary.LittleEndian.PutUint64(b[8:], h.object)
	binary.LittleEndian.PutUint32(b[16:], h.sequence)
	binary.LittleEndian.PutUint32(b[20:], h.length)
	binary.LittleEndian.PutUint32(b[24:], h.counter)
	binary.LittleEndian.PutUint32(b[28:], h.durable)
	binary.LittleEndian.PutUint32(b[32:], frameChecksum(b, segment))
}

func frameChecksum(head []byte, segment uint64) uint32 {
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], segment)
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(seed[:], table), table, head[:frameHeadBytes-4])
}

// decodeFrame reads a header; false if b does not begin with one of the segment.
func decodeFrame(b []byte, segment uint64) (frame, bool) {
	if len(b) < frameHeadBytes || string(b[:4]) != frameMagic ||
		binary.LittleEndian.Uint32(b[32:]) != frameChecksum(b, segment) {
		return frame{}, false
	}
	h := frame{
		kind:     frameType(b[4]),
		object:   binary.LittleEndian.Uint64(b[8:]),
		sequence: binary.LittleEndian.Uint32(b[16:]),
		length:   binary.LittleEndian.Uint32(b[20:]),
		counter:  binary.LittleEndian.Uint32(b[24:]),
		durable:  binary.LittleEndian.Uint32(b[28:]),
	}
	return h, b[5]|b[6]|b[7] == 0 && h.length <= lengthMax(h.kind)
}

func lengthMax(kind frameType) uint32 {
	switch kind {
	case frameChunk:
		return chunkBytes
	case frameCommit:
		return recordBytesMax
	default:
		return frameEndBytes
	}
}

// aad is the additional data of the frame whose encoded header is head.
func aad(head []byte, segment uint64) (b [aadBytes]byte) {
	binary.LittleEndian.PutUint64(b[:], segment)
	copy(b[8:], head[:frameHeadBytes-4])
	return b
}

func (h *frame) nonce() (n [nonceBytes]byte) {
	if plant.Is(plant.NonceReused) {
		return n
	}
	binary.LittleEndian.PutUint32(n[:], h.counter)
	return n
}

// sealFrame makes a frame of b, which holds room for the header, h.length bytes of plaintext, and room
// for the tag.
func sealFrame(b []byte, h frame, aead cipher.AEAD, segment uint64) {
	h.encode(b, segment)
	nonce, extra := h.nonce(), aad(b, segment)
	plain := b[frameHeadBytes : frameHeadBytes+int(h.length)]
	aead.Seal(plain[:0], nonce[:], plain, extra[:])
}

var errFrame = errors.New("frame fails authentication")

// openFrame decrypts the frame b in place and returns its plaintext, or errFrame.
func openFrame(b []byte, h frame, aead cipher.AEAD, segment uint64) ([]byte, error) {
	nonce, extra := h.nonce(), aad(b, segment)
	sealed := b[frameHeadBytes : frameHeadBytes+int(h.length)+frameTagBytes]
	plain, err := aead.Open(sealed[:0], nonce[:], sealed, extra[:])
	if err != nil {
		return nil, errFrame
	}
	return plain, nil
}

const (
	extentBytes     = 16
	recordHeadBytes = 32 + 8 + 8 + 4 + 4 + 4 + 32 + 4
	frameEndBytes   = 4 + 32
)

// extent is a run of an object's chunk frames that follow each other in a segment.
type extent struct {
	segment uint64
	offset  uint32
	chunks  uint32
}

// fullChunk is what the frame of a full chunk takes.
const fullChunk = chunkBytes + frameOverhead

// end is the place behind the run, if its last chunk is full.
func (e *extent) end() uint32 { return e.offset + e.chunks*fullChunk }

// appendExtent adds the next chunk of an object, at a place.
func appendExtent(list []extent, segment uint64, offset uint32) []extent {
	if n := len(list); n > 0 && list[n-1].segment == segment && list[n-1].end() == offset {
		list[n-1].chunks++
		return list
	}
	return append(list, extent{segment: segment, offset: offset, chunks: 1})
}

// ref names a commit record of a segment.
type ref struct {
	offset uint32
	key    Key
}

// record is a commit record.
type record struct {
	key      Key
	at       int64
	size     int64
	chunks   uint32
	previous ref
	extents  []extent
	note     []byte
}

func (r *record) encodedBytes() int {
	return recordHeadBytes + len(r.extents)*extentBytes + len(r.note)
}

func (r *record) append(b []byte) []byte {
	b = append(b, r.key[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.at))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.size))
	b = binary.LittleEndian.AppendUint32(b, chunkBytes)
	b = binary.LittleEndian.AppendUint32(b, r.chunks)
	b = binary.LittleEndian.AppendUint32(b, r.previous.offset)
	b = append(b, r.previous.key[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.extents)))
	for _, e := range r.extents {
		b = binary.LittleEndian.AppendUint64(b, e.segment)
		b = binary.LittleEndian.AppendUint32(b, e.offset)
		b = binary.LittleEndian.AppendUint32(b, e.chunks)
	}
	return append(b, r.note...)
}

var errRecord = errors.New("malformed commit record")

// decodeRecord reads a commit record; the note aliases b.
func decodeRecord(b []byte) (record, error) {
	if len(b) < recordHeadBytes {
		return record{}, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	r := record{
		key:      Key(b[:32]),
		at:       int64(binary.LittleEndian.Uint64(b[32:])),
		size:     int64(binary.LittleEndian.Uint64(b[40:])),
		chunks:   binary.LittleEndian.Uint32(b[52:]),
		previous: ref{offset: binary.LittleEndian.Uint32(b[56:]), key: Key(b[60:92])},
	}
	count := int64(binary.LittleEndian.Uint32(b[92:]))
	rest := b[recordHeadBytes:]
	if binary.LittleEndian.Uint32(b[48:]) != chunkBytes || r.size < 0 || chunksOf(r.size) != int64(r.chunks) ||
		count > int64(len(rest)/extentBytes) {
		return record{}, errRecord
	}
	r.extents = make([]extent, count)
	left := int64(r.chunks)
	for i := range r.extents {
		e := extent{
			segment: binary.LittleEndian.Uint64(rest),
			offset:  binary.LittleEndian.Uint32(rest[8:]),
			chunks:  binary.LittleEndian.Uint32(rest[12:]),
		}
		if left -= int64(e.chunks); e.chunks == 0 || left < 0 || i > 0 && e.segment < r.extents[i-1].segment {
			return record{}, errRecord
		}
		r.extents[i], rest = e, rest[extentBytes:]
	}
	if left != 0 {
		return record{}, errRecord
	}
	r.note = rest
	return r, nil
}

// chunksOf is the number of chunks of an object; size is not negative.
func chunksOf(size int64) int64 { return size/chunkBytes + min(1, size%chunkBytes) }

// chunkLength is the plaintext length of chunk i of an object.
func chunkLength(size, i int64) int { return int(min(chunkBytes, size-i*chunkBytes)) }
