package ring

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/hashicorp/raft"
)

const (
	metaMagic    = "OSRS"
	metaHead     = 44
	currentMagic = "OSRC"
	currentBytes = 28
)

// fileEntry is one file of a snapshot.
type fileEntry struct {
	name string
	size uint64
	sum  [32]byte // BLAKE3
}

// meta describes a snapshot: what is in META, and at the front of the stream.
type meta struct {
	index, term   uint64
	configIndex   uint64
	configuration []byte // the library's encoding
	files         []fileEntry
}

// decodeConfiguration decodes the library's encoding without its panic.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: configuration cannot be decoded", ErrDamaged)
		}
	}()
	c = raft.DecodeConfiguration(b)
	for _, s := range c.Servers {
		if _, _, err := parseServerID(s.ID); err != nil {
			return c, err
		}
	}
	return c, nil
}

// nameOK reports whether name may be a file of a snapshot: it can only mean a file in its own directory.
func nameOK(name string) bool {
	if name == "" || len(name) > fileNameMax || strings.Trim(name, ".") == "" {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// encodeMeta returns META of m.
func encodeMeta(s seal, m meta) []byte {
	b := make([]byte, 0, metaHead+len(m.configuration)+len(m.files)*80+len(tag{}))
	b = append(b, metaMagic...)
	b = append(b, formatVersion, 0, 0, 0)
	b = append(b, 0, 0, 0, 0) // the length, below
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.files)))
	for _, v := range []uint64{m.index, m.term, m.configIndex} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.configuration)))
	b = append(b, m.configuration...)
	for _, f := range m.files {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(f.name)))
		b = append(b, f.name...)
		b = binary.LittleEndian.AppendUint64(b, f.size)
		b = append(b, f.sum[:]...)
	}
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)+len(tag{})))
	own := s.of(labelMeta, b)
	return append(b, own[:]...)
}

// metaLength returns the length of META from its first 16 bytes. Its error is ErrDamaged.
func metaLength(b []byte) (int, error) {
	if string(b[:4]) != metaMagic || b[4] != formatVersion {
		return 0, fmt.Errorf("%w: not a snapshot of a version known to this release", ErrDamaged)
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n < metaHead+uint32(len(tag{})) || n > metaBytesMax {
		return 0, fmt.Errorf("%w: snapshot description of %d bytes", ErrDamaged, n)
	}
	return int(n), nil
}

// decodeMeta undoes encodeMeta; b is exactly META. Its error is ErrDamaged. Nothing of b is looked at before the keyed
// hash over all of it matches.
func decodeMeta(s seal, b []byte) (m meta, err error) {
	bad := func(what string) (meta, error) {
		return meta{}, fmt.Errorf("%w: snapshot description: %s", ErrDamaged, what)
	}
	if len(b) < metaHead+len(tag{}) {
		return bad("too short")
	}
	if n, err := metaLength(b); err != nil || n != len(b) {
		return bad("length does not match")
	}
	body := b[:len(b)-len(tag{})]
	if !s.checks(labelMeta, body, b[len(body):]) {
		return bad("keyed hash does not match")
	}
	files := binary.LittleEndian.Uint32(b[12:])
	m.index, m.term = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	m.configIndex = binary.LittleEndian.Uint64(b[32:])
	n := binary.LittleEndian.Uint32(b[40:])
	rest := body[metaHead:]
	if files > snapshotFilesMax || n > configurationBytesMax || uint64(n) > uint64(len(rest)) {
		return bad("out of limits")
	}
	m.configuration, rest = append([]byte(nil), rest[:n]...), rest[n:]
	if _, err := decodeConfiguration(m.configuration); err != nil {
		return bad("membership cannot be read")
	}
	for range files {
		var f fileEntry
		if f, rest, err = decodeFile(rest); err != nil {
			return meta{}, err
		}
		m.files = append(m.files, f)
	}
	if len(rest) != 0 {
		return bad("bytes left over")
	}
	return m, nil
}

// decodeFile takes one file's entry off b.
func decodeFile(b []byte) (f fileEntry, rest []byte, err error) {
	if len(b) < 2 {
		return f, nil, fmt.Errorf("%w: snapshot description: too short", ErrDamaged)
	}
	n := int(binary.LittleEndian.Uint16(b))
	if len(b) < 2+n+40 {
		return f, nil, fmt.Errorf("%w: snapshot description: too short", ErrDamaged)
	}
	f.name = string(b[2 : 2+n])
	f.size = binary.LittleEndian.Uint64(b[2+n:])
	copy(f.sum[:], b[2+n+8:])
	if !nameOK(f.name) || f.size > 1<<50 {
		return f, nil, fmt.Errorf("%w: snapshot description: a file's name or size", ErrDamaged)
	}
	return f, b[2+n+40:], nil
}

// streamBytes returns the length of the whole stream of m whose META has n bytes.
func (m *meta) streamBytes(n int) int64 {
	total := int64(n)
	for _, f := range m.files {
		total += int64(f.size)
	}
	return total
}

// encodeCurrent returns the content of CURRENT.
func encodeCurrent(number, index uint64) []byte {
	b := append([]byte(currentMagic), formatVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, number)
	b = binary.LittleEndian.AppendUint64(b, index)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeCurrent undoes encodeCurrent. Its error is ErrDamaged.
func decodeCurrent(b []byte) (number, index uint64, err error) {
	if len(b) != currentBytes || string(b[:4]) != currentMagic || b[4] != formatVersion ||
		crc32.Checksum(b[:24], castagnoli) != binary.LittleEndian.Uint32(b[24:]) {
		return 0, 0, fmt.Errorf("%w: the name of the newest snapshot cannot be read", ErrDamaged)
	}
	return binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), nil
}
