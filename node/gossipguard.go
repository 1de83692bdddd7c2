package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Kinds of memberlist's messages, the first byte of each. Its numbers never change.
const (
	gossipPing     = 0
	gossipAck      = 2
	gossipDead     = 5 // the last of pings, an answer, and what is told of a node
	gossipStates   = 6
	gossipCompound = 7
	gossipNack     = 11
	gossipChecked  = 12 // a CRC of 4 bytes, then a message
	gossipError    = 13
)

// gossipPacketFits says whether a datagram is made of what nodes of a ring send each other. memberlist understands more: what is
// compressed becomes 40 MiB there, and what is compressed in that is unpacked again.
func gossipPacketFits(b []byte) bool {
	if len(b) >= 5 && b[0] == gossipChecked {
		b = b[5:]
	}
	if len(b) < 2 || b[0] != gossipCompound {
		return gossipMessageFits(b)
	}
	parts := int(b[1])
	b = b[2:]
	if len(b) < 2*parts {
		return false
	}
	lengths, b := b[:2*parts], b[2*parts:]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(b) || !gossipMessageFits(b[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// gossipMessageFits takes pings, answers to them, and what is told of nodes.
func gossipMessageFits(b []byte) bool {
	return len(b) > 0 && (b[0] <= gossipDead || b[0] == gossipNack)
}

// gossipStream reads from a stream what memberlist may see of it. A few bytes make memberlist put 120 MiB aside for the nodes, or
// 20 MiB for the user's state, that are said to follow: so many do not exist, and this one nobody sends.
type gossipStream struct {
	net.Conn
	head []byte    // read, for memberlist to read again
	rest io.Reader // nil: the head was not read yet
}

// Read has one caller at a time, who has set a deadline.
func (s *gossipStream) Read(p []byte) (int, error) {
	if s.rest == nil {
		h := gossipHead{from: s.Conn}
		if err := h.check(); err != nil {
			return 0, err
		}
		s.head, s.rest = h.read, io.LimitReader(s.Conn, gossipStreamBytes)
	}
	if len(s.head) > 0 {
		n := copy(p, s.head)
		s.head = s.head[n:]
		return n, nil
	}
	return s.rest.Read(p)
}

// gossipHead reads a stream's first byte, and the header of an exchange of states: a map in MessagePack of
// Nodes, UserStateLen and Join, as memberlist writes it.
type gossipHead struct {
	from io.Reader
	read []byte
}

func (h *gossipHead) next(n int) ([]byte, error) {
	at := len(h.read)
	h.read = append(h.read, make([]byte, n)...)
	_, err := io.ReadFull(h.from, h.read[at:])
	return h.read[at:], err
}

func (h *gossipHead) check() error {
	kind, err := h.next(1)
	if err != nil {
		return err
	}
	switch kind[0] {
	case gossipPing, gossipAck, gossipError:
		return nil
	case gossipStates:
	default:
		return fmt.Errorf("gossip: streams carry no message of kind %d", kind[0])
	}
	fields, err := h.next(1)
	if err != nil {
		return err
	}
	if fields[0] != 0x83 { // three
		return errGossipHead
	}
	for range 3 {
		if err := h.field(); err != nil {
			return err
		}
	}
	return nil
}

var errGossipHead = errors.New("gossip: an exchange of states begins with what no node of a ring sends")

// field reads one name, a string of less than 32 bytes, and its value.
func (h *gossipHead) field() error {
	size, err := h.next(1)
	if err != nil {
		return err
	}
	if size[0] < 0xa0 || size[0] > 0xbf {
		return errGossipHead
	}
	text, err := h.next(int(size[0] - 0xa0))
	if err != nil {
		return err
	}
	name := string(text)
	value, err := h.value()
	switch {
	case err != nil:
		return err
	case name == "Nodes" && value <= gossipMembersMax, name == "UserStateLen" && value == 0, name == "Join":
		return nil
	}
	return errGossipHead
}

// value reads a number or a truth. That a number may be negative is left to memberlist.
func (h *gossipHead) value() (v uint64, err error) {
	kind, err := h.next(1)
	if err != nil {
		return 0, err
	}
	k := kind[0]
	switch {
	case k < 0x80: // the number itself
		return uint64(k), nil
	case k == 0xc2 || k == 0xc3: // false, true
		return uint64(k - 0xc2), nil
	case k < 0xcc || k > 0xd3: // unsigned of 1, 2, 4 and 8 bytes, then signed ones
		return 0, errGossipHead
	}
	b, err := h.next(1 << (k & 3))
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v, err
}
