package ring

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"osteon/erasure/plant"
)

// tag is a truncated keyed hash.
type tag [16]byte

// seal computes tags under one keyed hash.
type seal func(parts ...[]byte) [32]byte

// of returns the tag of b under label.
func (s seal) of(label string, b []byte) tag {
	sum := s([]byte(label), b)
	return tag(sum[:16])
}

// checks reports whether t is the tag of b under label.
func (s seal) checks(label string, b []byte, t []byte) bool {
	want := s.of(label, b)
	return hmac.Equal(want[:], t)
}

const (
	labelRecord = "osteon raft record 1"
	labelVote   = "osteon raft vote 1"
	labelMark   = "osteon raft mark 1"
	labelMeta   = "osteon raft snapshot 1"

	formatVersion = 1

	recordMagic = "OSRL"
	recordHead  = 56
	voteMagic   = "OSRV"
	voteHead    = 32
)

// known reports whether this release knows what to do with entries of type t. The deprecated peer entries of old versions
// of the library never occur here.
func known(t raft.LogType) bool {
	switch t {
	case raft.LogCommand, raft.LogNoop, raft.LogBarrier, raft.LogConfiguration:
		return true
	}
	return false
}

// appendRecord appends the record of l, which follows the record with tag before, and returns its own tag.
func appendRecord(dst []byte, s seal, l *raft.Log, before tag) ([]byte, tag) {
	at := len(dst)
	dst = append(dst, recordMagic...)
	dst = append(dst, formatVersion, byte(l.Type), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, l.Index)
	dst = binary.LittleEndian.AppendUint64(dst, l.Term)
	var ns int64
	if !l.AppendedAt.IsZero() {
		ns = l.AppendedAt.UnixNano()
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(ns))
	dst = append(dst, before[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(l.Data)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(l.Extensions)))
	dst = append(dst, l.Data...)
	dst = append(dst, l.Extensions...)
	own := s.of(labelRecord, dst[at:])
	return append(dst, own[:]...), own
}

// decodeRecord fills l from the record b of the entry index and returns its tag and that of the record before.
// l shares no memory with b. Errors are ErrDamaged, or ErrUnknownEntry for a sound record of another kind.
func decodeRecord(b []byte, s seal, index uint64, l *raft.Log) (own, before tag, err error) {
	bad := func(what string) (tag, tag, error) {
		return tag{}, tag{}, fmt.Errorf("%w: log entry %d: %s", ErrDamaged, index, what)
	}
	if len(b) < recordHead+len(own) || len(b) > recordBytesMax || string(b[:4]) != recordMagic {
		return bad("not a record")
	}
	body := b[:len(b)-len(own)]
	copy(own[:], b[len(body):])
	if !s.checks(labelRecord, body, own[:]) && !plant.Is(plant.RecordHashSkipped) {
		return bad("its keyed hash does not match")
	}
	if b[4] != formatVersion {
		return bad(fmt.Sprintf("format version %d is not known to this release", b[4]))
	}
	dataLen := uint64(binary.LittleEndian.Uint32(b[48:]))
	extLen := uint64(binary.LittleEndian.Uint32(b[52:]))
	if got := binary.LittleEndian.Uint64(b[8:]); got != index {
		return bad(fmt.Sprintf("holds entry %d", got))
	}
	if recordHead+dataLen+extLen != uint64(len(body)) {
		return bad("lengths do not add up")
	}
	kind := raft.LogType(b[5])
	if !known(kind) {
		return tag{}, tag{}, fmt.Errorf("%w: entry %d has kind %d: upgrade this node", ErrUnknownEntry, index, b[5])
	}
	*l = raft.Log{Index: index, Term: binary.LittleEndian.Uint64(b[16:]), Type: kind}
	if ns := int64(binary.LittleEndian.Uint64(b[24:])); ns != 0 {
		l.AppendedAt = time.Unix(0, ns)
	}
	copy(before[:], b[32:48])
	if dataLen > 0 {
		l.Data = append([]byte(nil), body[recordHead:recordHead+dataLen]...)
	}
	if extLen > 0 {
		l.Extensions = append([]byte(nil), body[recordHead+dataLen:]...)
	}
	return own, before, nil
}

// vote is what Raft must remember about elections. seq grows with every change.
type vote struct {
	seq       uint64
	term      uint64 // current term
	voteTerm  uint64 // last term voted in
	candidate string // who got that vote
}

// appendVote appends the row of v.
func appendVote(dst []byte, s seal, v vote) []byte {
	at := len(dst)
	dst = append(dst, voteMagic...)
	dst = append(dst, formatVersion, byte(len(v.candidate)), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, v.seq)
	dst = binary.LittleEndian.AppendUint64(dst, v.term)
	dst = binary.LittleEndian.AppendUint64(dst, v.voteTerm)
	dst = append(dst, v.candidate...)
	own := s.of(labelVote, dst[at:])
	return append(dst, own[:]...)
}

// decodeVote undoes appendVote. Its error is ErrDamaged.
func decodeVote(b []byte, s seal) (vote, error) {
	bad := func(what string) (vote, error) {
		return vote{}, fmt.Errorf("%w: term and vote: %s", ErrDamaged, what)
	}
	if len(b) < voteHead+len(tag{}) || string(b[:4]) != voteMagic {
		return bad("not a record")
	}
	body := b[:len(b)-len(tag{})]
	if !s.checks(labelVote, body, b[len(body):]) {
		return bad("keyed hash does not match")
	}
	if b[4] != formatVersion {
		return bad(fmt.Sprintf("format version %d is not known to this release", b[4]))
	}
	if int(b[5]) != len(body)-voteHead || b[5] > candidateBytesMax {
		return bad("lengths do not add up")
	}
	return vote{
		seq:       binary.LittleEndian.Uint64(b[8:]),
		term:      binary.LittleEndian.Uint64(b[16:]),
		voteTerm:  binary.LittleEndian.Uint64(b[24:]),
		candidate: string(body[voteHead:]),
	}, nil
}
