package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"osteon/erasure/place"
)

const (
	helloBytes   = 64
	helloVersion = 1
)

var (
	helloMagic   = []byte("OSLK")
	welcomeMagic = []byte("OSLW")
)

// hello is the first thing each side of a connection says. The package comment draws it.
type hello struct {
	Class    Class
	Features uint32
	Ring     place.RingID
	Epoch    uint64
	Boot     uint64
	Instance [16]byte
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// append writes h behind the given magic.
func (h hello) append(dst, magic []byte) []byte {
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, helloVersion, byte(h.Class), 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, h.Features)
	dst = append(dst, h.Ring[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, h.Epoch)
	dst = binary.LittleEndian.AppendUint64(dst, h.Boot)
	dst = append(dst, h.Instance[:]...)
	return binary.LittleEndian.AppendUint32(dst, castagnoli(dst[start:]))
}

// parseHello reads what append wrote. Errors wrap ErrMalformed.
func parseHello(b, magic []byte) (hello, error) {
	switch {
	case len(b) != helloBytes || !bytes.Equal(b[:4], magic):
		return hello{}, fmt.Errorf("%w: not a hello", ErrMalformed)
	case b[4] != helloVersion:
		return hello{}, fmt.Errorf("%w: hello version %d, this release speaks %d", ErrMalformed, b[4], helloVersion)
	case binary.LittleEndian.Uint32(b[60:]) != castagnoli(b[:60]):
		return hello{}, fmt.Errorf("%w: hello checksum", ErrMalformed)
	case b[5] >= classes || b[6] != 0 || b[7] != 0:
		return hello{}, fmt.Errorf("%w: hello class %d", ErrMalformed, b[5])
	}
	h := hello{Class: Class(b[5]), Features: binary.LittleEndian.Uint32(b[8:])}
	copy(h.Ring[:], b[12:])
	h.Epoch = binary.LittleEndian.Uint64(b[28:])
	h.Boot = binary.LittleEndian.Uint64(b[36:])
	copy(h.Instance[:], b[44:])
	return h, nil
}

// judge checks a peer's hello against ours. nil means welcome.
func (h hello) judge(ours hello) *RefusedError {
	switch {
	case h.Ring != ours.Ring:
		return &RefusedError{Code: RefusalRing,
			Text: fmt.Sprintf("node of ring %s called a node of ring %s", h.Ring, ours.Ring)}
	case h.Epoch != ours.Epoch:
		return &RefusedError{Code: RefusalEpoch, Text: epochText(ours.Epoch, h.Epoch)}
	}
	return nil
}

// epochText explains a difference of ring epochs to both sides.
func epochText(a, b uint64) string {
	return fmt.Sprintf("ring epochs %d and %d differ: the node at epoch %d was left behind by an unsafe recovery and must join again",
		a, b, min(a, b))
}
