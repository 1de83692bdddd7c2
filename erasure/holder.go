package erasure

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"osteon/erasure/journal"
	"osteon/node/link"
)

const (
	answerDurable   = 0
	answerFailed    = 1
	answerFull      = 2
	answerMismatch  = 3
	answerMalformed = 4
)

var errProtocol = errors.New("append stream: malformed frame")

// serveAppend is the holder's side of an append stream: the object goes to this node's journal under
// its own segment key, and each commit is answered after this node's fsync.
func (s *Store) serveAppend(ctx context.Context, st link.Stream) {
	defer st.Close()
	in := &holding{store: s, stream: st, r: bufio.NewReaderSize(st, frameHeadBuffer)}
	defer in.forget()
	if version, err := in.r.ReadByte(); err != nil || version != appendVersion {
		return
	}
	for ctx.Err() == nil {
		if err := in.next(ctx); err != nil {
			if !errors.Is(err, io.EOF) {
				s.cfg.Log.Debug("append stream ended", "peer", st.Peer().Node, "err", err)
			}
			return
		}
	}
}

// holding is one append stream at the holder.
type holding struct {
	store  *Store
	stream link.Stream
	r      *bufio.Reader
	writer *journal.Writer // nil between objects
	failed error           // the journal refused this object; the sender hears it at commit
	sum    uint32
	size   int64
}

func (h *holding) forget() {
	if h.writer != nil {
		h.writer.Abort()
	}
	h.writer, h.failed, h.sum, h.size = nil, nil, 0, 0
}

func (h *holding) next(ctx context.Context) error {
	var head [5]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return err
	}
	if err := h.stream.SetReadDeadline(h.store.cfg.Now().Add(appendIdle)); err != nil {
		return err
	}
	length := int(binary.LittleEndian.Uint32(head[1:]))
	var err error
	switch {
	case head[0] == opData && length <= partnerChunkBytes:
		err = h.data(length)
	case head[0] == opCommit && length >= commitFixed && length <= commitFixed+noteBytesMax:
		err = h.commit(ctx, length)
	case head[0] == opAbort && length == 0:
		h.forget()
	default:
		err = errProtocol
	}
	if err == nil && h.writer == nil { // between objects a stream may rest as long as its connection lives
		err = h.stream.SetReadDeadline(noDeadline)
	}
	return err
}

func (h *holding) data(length int) error {
	if h.writer == nil {
		h.writer = h.store.journal.Begin()
		h.failed = h.store.Ready() // the bytes of a refused object are read and thrown away
	}
	chunk := h.store.chunks.get()[:length]
	defer func() { h.store.chunks.put(chunk) }()
	if _, err := io.ReadFull(h.r, chunk); err != nil {
		return fmt.Errorf("read object from peer: %w", err)
	}
	h.sum = crc32.Update(h.sum, castagnoli, chunk)
	h.size += int64(length)
	if h.failed == nil {
		_, h.failed = h.writer.Write(chunk)
	}
	return nil
}

func (h *holding) commit(ctx context.Context, length int) error {
	payload := make([]byte, length)
	if _, err := io.ReadFull(h.r, payload); err != nil {
		return fmt.Errorf("read commit from peer: %w", err)
	}
	key := journal.Key(payload[:32])
	size := int64(binary.LittleEndian.Uint64(payload[32:]))
	sum := binary.LittleEndian.Uint32(payload[40:])
	note := payload[commitFixed:]
	if h.writer == nil { // an empty object is an object too
		h.writer = h.store.journal.Begin()
		h.failed = h.store.Ready()
	}
	status, text := byte(answerDurable), ""
	switch {
	case h.failed != nil:
		status, text = answerOf(h.failed), h.failed.Error()
	case size != h.size || sum != h.sum:
		status, text = answerMismatch, "the bytes that arrived are not the bytes that were sent"
	default:
		if err := h.writer.Commit(ctx, key, note); err != nil {
			status, text = answerOf(err), err.Error()
		} else {
			h.writer = nil
			h.store.cfg.Held(key, note, h.stream.Peer().Node)
		}
	}
	h.forget()
	text = text[:min(len(text), remoteTextMax)]
	answer := append([]byte{status, 0, 0}, text...)
	binary.LittleEndian.PutUint16(answer[1:], uint16(len(text)))
	if err := h.stream.SetWriteDeadline(h.store.cfg.Now().Add(appendIdle)); err != nil {
		return err
	}
	if _, err := h.stream.Write(answer); err != nil {
		return fmt.Errorf("answer commit: %w", err)
	}
	return nil
}

func answerOf(err error) byte {
	if errors.Is(err, journal.ErrFull) {
		return answerFull
	}
	return answerFailed
}
