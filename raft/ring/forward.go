package ring

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/hashicorp/raft"

	"osteon/erasure/place"
	"osteon/node/link"
)

// verb says what a request asks of the leader (status: of any node).
type verb uint8

const (
	verbPropose     verb = 1
	verbReadIndex   verb = 2
	verbAddNonvoter verb = 3
	verbPromote     verb = 4
	verbDemote      verb = 5
	verbRemove      verb = 6
	verbStatus      verb = 7
)

// The outcomes of a request, in the verb's place of a reply.
const (
	outcomeOK verb = iota
	outcomeTryAgain
	outcomeUncertain
	outcomeRefused
	outcomeTooLarge
	outcomeUnknownServer
	outcomeBehind
)

// outcomes pairs outcomes with the errors they stand for. The first that matches is taken.
func outcomes() []struct {
	code verb
	err  error
} {
	return []struct {
		code verb
		err  error
	}{
		{outcomeTryAgain, errTryAgain},
		{outcomeUncertain, errUncertain},
		{outcomeTooLarge, ErrTooLarge},
		{outcomeUnknownServer, ErrUnknownServer},
		{outcomeBehind, ErrBehind},
		{outcomeRefused, ErrRefused},
		{outcomeTryAgain, ErrClosed}, // another node will lead
	}
}

const (
	frameMagic = "OSRF"
	frameHead  = 20
)

// message is a request or a reply.
type message struct {
	verb    verb
	index   uint64
	payload []byte
}

// encodeMessage returns the frame of m.
func encodeMessage(m message) []byte {
	b := make([]byte, 0, frameHead+len(m.payload)+4)
	b = append(b, frameMagic...)
	b = append(b, formatVersion, byte(m.verb), 0, 0)
	b = binary.LittleEndian.AppendUint64(b, m.index)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.payload)))
	b = append(b, m.payload...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readMessage reads one frame with a payload of at most limit bytes. Its errors are those of rd, or ErrRefused.
func readMessage(rd io.Reader, limit int) (message, error) {
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, rd, frameHead); err != nil {
		return message{}, err
	}
	head := buf.Bytes()
	n := binary.LittleEndian.Uint32(head[16:])
	if string(head[:4]) != frameMagic || head[4] != formatVersion || uint64(n) > uint64(limit) {
		return message{}, fmt.Errorf("%w: not a request or reply of a version known to this release", ErrRefused)
	}
	m := message{verb: verb(head[5]), index: binary.LittleEndian.Uint64(head[8:])}
	if _, err := io.CopyN(&buf, rd, int64(n)+4); err != nil { // grows as bytes arrive
		return message{}, err
	}
	b := buf.Bytes()
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(body):]) {
		return message{}, fmt.Errorf("%w: checksum of a request or reply does not match", ErrRefused)
	}
	m.payload = body[frameHead:]
	return m, nil
}

// forward asks node to do q. Its errors are errTryAgain when nothing was sent, errUncertain when no reply came, or
// what the node answered.
func (r *Ring) forward(ctx context.Context, node place.NodeID, q message) (message, error) {
	kind := link.KindForward
	if q.verb == verbReadIndex {
		kind = link.KindReadIndex
	}
	s, err := r.cfg.Link.OpenStream(ctx, node, link.ClassControl, kind)
	if err != nil {
		return message{}, fmt.Errorf("%w: %w", errTryAgain, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // the exchange below reports it
	defer stop()
	defer func() { _ = s.Close() }() // the reply is here, or will not come
	a, err := exchange(s, q)
	switch {
	case err == nil:
		return a, replyError(a)
	case q.verb == verbReadIndex || q.verb == verbStatus:
		return message{}, fmt.Errorf("%w: no reply: %w", errTryAgain, err)
	}
	return message{}, fmt.Errorf("%w: no reply: %w", errUncertain, err)
}

// exchange sends q and reads the reply. Frames tell their length, so neither side has to end its half first.
func exchange(s link.Stream, q message) (message, error) {
	if _, err := s.Write(encodeMessage(q)); err != nil {
		return message{}, err
	}
	return readMessage(s, replyBytesMax)
}

// replyError returns the error that the reply a stands for.
func replyError(a message) error {
	if a.verb == outcomeOK {
		return nil
	}
	for _, o := range outcomes() {
		if o.code == a.verb {
			return fmt.Errorf("%w: the leader says: %s", o.err, clip(string(a.payload)))
		}
	}
	return fmt.Errorf("%w: the leader answered %d, which this release does not know", ErrRefused, a.verb)
}

// clip keeps a peer's text short and printable.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return fmt.Sprintf("%.200s", strings.Map(func(c rune) rune {
		if c < ' ' {
			return ' '
		}
		return c
	}, s))
}

// serveForward answers one request of another node.
func (r *Ring) serveForward(ctx context.Context, s link.Stream) {
	defer func() { _ = s.Close() }() // the reply, if any, was written
	if !r.layer.released() {
		return // what this server would say of its term might not be true
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return
	case <-r.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	defer context.AfterFunc(r.ctx, cancel)()
	q, err := readMessage(s, CommandBytesMax)
	if err != nil {
		r.log.Debug("request not read", "peer", s.Peer().Node, "err", err)
		return
	}
	a, err := r.lead(ctx, q)
	if err != nil {
		a = errorReply(err)
	}
	if len(a.payload) > replyBytesMax {
		a = message{verb: outcomeTooLarge, index: a.index, payload: []byte("the result is too large to be sent")}
	}
	if _, err := s.Write(encodeMessage(a)); err != nil {
		r.log.Debug("reply not sent", "peer", s.Peer().Node, "err", err)
	}
}

// errorReply returns the reply that stands for err.
func errorReply(err error) message {
	a := message{verb: outcomeTryAgain, payload: []byte(clip(err.Error()))}
	for _, o := range outcomes() {
		if errors.Is(err, o.err) {
			a.verb = o.code
			return a
		}
	}
	return a
}

// changeError sorts the library's answers to a change of members.
func changeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", errTryAgain, err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", errUncertain, err)
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}
