// Package shard reads and writes shard files: one node's piece of a pack.
//
// It hides the file's format, its checksums and the order of durable steps behind [Create] and
// [Open]. A file is immutable: it appears under its name complete and fsynced, or not at all.
//
//	w, err := shard.Create(fs, dir, shard.Header{...})
//	err = w.WriteCell(cell)              // in order of stripes
//	root, err := w.Commit(streamBytes)   // durable now; root is compared with the sealer's
//
//	r, err := shard.Open(fs, dir, pack, encode, index)
//	err = r.ReadAt(buf, off)             // every block touched is checked
//
// Format, little-endian:
//
//	header   96  magic "OSTSHARD" | version 2 (it is 2) | 0 2 | k 1 | m 1 | index 1 | 0 1 | ring 16 | pack 16 |
//	             encode 16 | cell bytes 4 | block bytes 4 | 0 20 | CRC32C of the 92 before 4
//	body         blocks: payload of block bytes (the last of the shard may be shorter), then
//	             CRC32C 4 over (encode 16, index 4, block number 8, payload)
//	trailer  32  magic "OSTSHEND" | stream bytes 8 | blocks 8 | 0 4 | CRC32C 4 over (header, the 28 before)
//
// The payload of a shard is its cells one after another; offsets at this package's door count
// payload only. A cell is CellBytes long, those of the last stripe are as short as the stream
// allows ([Shape]), so a tiny pack takes little more than its bytes. Block numbers count through the
// shard.
//
// The root of a shard, by which its holder tells the sealer what lies on its disk, is the SHA-256 over the
// header, the checksum of every block in order, and the trailer. Every block is read and held against its
// checksum on the way, so a byte that differs from what was sent differs in the root, but for one
// corruption in 2^32, which the pack's AES-GCM tags tell apart when it is read. A shard of version 1, otherwise
// the same, has the SHA-256 over the whole file as its root: that took two thirds of the time of an encode.
//
// Names are DIR/hh/hh/<encode UUID in hex>-<index>.shard, where hh/hh are its first two bytes; they say
// nothing of the content. While being written a file ends in .tmp. [Quarantine] moves a file to
// DIR/quarantine, where nothing reads it and an admin can.
//
// Invariants: no file is ever changed in place; a block moved within a shard, between shards or
// between encodes fails its checksum; a whole file moved fails in Open. The first failed write or
// fsync ends a Writer: the file is abandoned, never retried.
//
// The package does not encrypt (packs are ciphertext), does not know placements and keeps no index.
package shard

import (
	"errors"
	"fmt"

	"osteon/erasure/place"
)

var (
	// ErrCorrupt: bytes of the file are not those that were written.
	ErrCorrupt = errors.New("shard is corrupt")
	// ErrNotFound: no such shard here.
	ErrNotFound = errors.New("no such shard")
	// ErrExists: the shard is here already; shards are never overwritten.
	ErrExists = errors.New("shard exists")
	// ErrVersion: the file was written by a newer version of the software.
	ErrVersion = errors.New("unknown shard format version")
)

// CorruptError says where a shard is bad. errors.Is(err, ErrCorrupt) holds.
type CorruptError struct {
	Encode place.EncodeID
	Index  int
	// Block is the number of the first bad block, or -1 for the header, the trailer or the
	// file's length.
	Block int64
	// Why is the check that failed.
	Why string
}

// Error implements error.
func (e *CorruptError) Error() string {
	if e.Block < 0 {
		return fmt.Sprintf("shard %v-%d: %s", e.Encode, e.Index, e.Why)
	}
	return fmt.Sprintf("shard %v-%d block %d: %s", e.Encode, e.Index, e.Block, e.Why)
}

// Unwrap returns ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }
