package place

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// ID is a random 128-bit identifier (RFC 9562 version 4) whose type parameter keeps nodes, disks,
// rings, packs and encodes from being mixed up. The zero ID means "none".
type ID[of any] [16]byte

type (
	ofRing   struct{}
	ofNode   struct{}
	ofDisk   struct{}
	ofPack   struct{}
	ofEncode struct{}
)

type (
	// RingID names one ring for its whole life.
	RingID = ID[ofRing]
	// NodeID names one node for its whole life; a replaced machine is a new node.
	NodeID = ID[ofNode]
	// DiskID names one storage directory of a node.
	DiskID = ID[ofDisk]
	// PackID names a pack; re-sealing the same instances elsewhere makes a new pack.
	PackID = ID[ofPack]
	// EncodeID names one attempt to encode a pack; an attempt is never resumed.
	EncodeID = ID[ofEncode]
)

// SiteID is the name that the admin gave to a failure domain of nodes, such as "a" or "north".
type SiteID string

// NewID draws an ID from rand, a cryptographic source. The error is rand's own.
func NewID[of any](rand io.Reader) (ID[of], error) {
	var id ID[of]
	if _, err := io.ReadFull(rand, id[:]); err != nil {
		return ID[of]{}, fmt.Errorf("draw id: %w", err)
	}
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id, nil
}

// NewRingID, NewNodeID, NewDiskID, NewPackID and NewEncodeID draw an ID of their kind from rand.
func NewRingID(rand io.Reader) (RingID, error)     { return NewID[ofRing](rand) }
func NewNodeID(rand io.Reader) (NodeID, error)     { return NewID[ofNode](rand) }
func NewDiskID(rand io.Reader) (DiskID, error)     { return NewID[ofDisk](rand) }
func NewPackID(rand io.Reader) (PackID, error)     { return NewID[ofPack](rand) }
func NewEncodeID(rand io.Reader) (EncodeID, error) { return NewID[ofEncode](rand) }

// String returns the 8-4-4-4-12 form in lower case.
func (id ID[of]) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero reports whether id names nothing.
func (id ID[of]) IsZero() bool { return id == ID[of]{} }

// MarshalText writes the form of String.
func (id ID[of]) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the form of String, with or without hyphens.
func (id *ID[of]) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(strings.ReplaceAll(string(text), "-", ""))
	if err != nil || len(raw) != len(id) {
		return fmt.Errorf("parse id %.40q: want 32 hexadecimal digits", text)
	}
	copy(id[:], raw)
	return nil
}
