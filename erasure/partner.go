package erasure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/node/link"
)

// The append stream (kind KindJournalAppend), sender to holder, little-endian:
//
//	version u8 = 1
//	frame*: op u8, length u32, payload
//	  opData:   bytes of the object
//	  opCommit: key [32], size u64, crc32c u32 over the object's bytes, note
//	  opAbort:  empty; the object is forgotten
//
// The holder answers each opCommit after its fsync with: status u8 (0 = durable), length u16, text.
// A stream carries any number of objects one after another.
const (
	appendVersion = 1

	opData   = 1
	opCommit = 2
	opAbort  = 3

	commitFixed = 32 + 8 + 4
)

var (
	errAbandoned = errors.New("partner was given up")
	errUnsent    = errors.New("send to holder")
	errRefused   = errors.New("holder refused") // it answered: asking again is of no use
)

// partner sends one object to one holder from a goroutine of its own, so that a slow holder never
// stalls the receipt for longer than Ack.SecondAfter.
type partner struct {
	node   place.Node
	store  *Store
	cancel context.CancelFunc
	queue  chan partnerMessage
	dead   chan struct{} // closed when run ended
	err    error         // valid once dead is closed

	pending []byte // of the caller's goroutine: the chunk being filled
	failed  bool   // of the caller's goroutine: stalled or ended, takes no more
}

type partnerMessage struct {
	op   byte
	data []byte // from the store's chunk pool when op is opData
}

func (s *Store) startPartner(ctx context.Context, node place.Node) *partner {
	ctx, cancel := context.WithCancel(ctx)
	p := &partner{
		node: node, store: s, cancel: cancel,
		queue: make(chan partnerMessage, partnerQueueChunks),
		dead:  make(chan struct{}),
	}
	if !s.enter() {
		cancel()
		p.err = errAbandoned
		close(p.dead)
		return p
	}
	closing := context.AfterFunc(s.ctx, cancel)
	go func() { // owned by the partner; ends at commit's answer, an abort, an error, cancel or Close
		defer s.running.Done()
		defer cancel()
		defer closing()
		p.err = p.run(ctx)
		close(p.dead)
	}()
	return p
}

// write queues a copy of b; a partner that does not keep up is given up.
func (p *partner) write(b []byte) {
	for len(b) > 0 && !p.failed {
		if p.pending == nil {
			p.pending = p.store.chunks.get()
		}
		n := min(partnerChunkBytes-len(p.pending), len(b))
		p.pending = append(p.pending, b[:n]...)
		b = b[n:]
		if len(p.pending) == partnerChunkBytes {
			p.flush()
		}
	}
}

func (p *partner) flush() {
	if len(p.pending) == 0 {
		return
	}
	p.send(partnerMessage{op: opData, data: p.pending})
	p.pending = nil
}

func (p *partner) send(m partnerMessage) {
	if p.failed {
		return
	}
	select {
	case p.queue <- m:
		return
	case <-p.dead:
		p.failed = true
		return
	default:
	}
	patience := time.NewTimer(p.store.cfg.Ack.SecondAfter)
	defer patience.Stop()
	select {
	case p.queue <- m:
	case <-p.dead:
		p.failed = true
	case <-patience.C:
		p.failed = true
		p.cancel()
	}
}

func (p *partner) commit(key journal.Key, size int64, sum uint32, note []byte) {
	p.flush()
	payload := make([]byte, 0, commitFixed+len(note))
	payload = append(payload, key[:]...)
	payload = binary.LittleEndian.AppendUint64(payload, uint64(size))
	payload = binary.LittleEndian.AppendUint32(payload, sum)
	payload = append(payload, note...)
	p.send(partnerMessage{op: opCommit, data: payload})
}

// abort tells the holder to forget the object and leaves the stream usable.
func (p *partner) abort() { p.send(partnerMessage{op: opAbort}) }

// abandon gives the partner up without waiting; nil is allowed.
func (p *partner) abandon() {
	if p != nil {
		p.failed = true
		p.cancel()
	}
}

// wait returns nil once the holder has fsynced the object.
func (p *partner) wait() error {
	if p.failed {
		p.cancel()
	}
	<-p.dead
	return p.err
}

func (p *partner) run(ctx context.Context) error {
	st, used, err := p.store.appendStream(ctx, p.node.ID)
	if err != nil {
		return err
	}
	var first partnerMessage
	select {
	case first = <-p.queue:
	case <-ctx.Done():
		st.Close()
		return errAbandoned
	}
	reusable, err := p.transfer(ctx, st, first)
	if errors.Is(err, errUnsent) && used && ctx.Err() == nil {
		// The stream broke while it rested, and so did its like: the holder was started again, perhaps.
		p.store.dropStreams(p.node.ID)
		if st, _, err = p.store.appendStream(ctx, p.node.ID); err != nil {
			return err
		}
		reusable, err = p.transfer(ctx, st, first)
	}
	if reusable {
		p.store.keepStream(p.node.ID, st)
	}
	return err
}

// transfer moves first and what is queued after it to the stream, which it closes unless it is reusable, that is
// between two objects. errUnsent: the stream did not even take first.
func (p *partner) transfer(ctx context.Context, st link.Stream, first partnerMessage) (reusable bool, err error) {
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer func() {
		if !stop() && err == nil {
			reusable, err = false, ctx.Err()
		}
		if !reusable {
			st.Close()
		}
	}()
	if err := p.forward(st, first); err != nil {
		return false, fmt.Errorf("%w: %w", errUnsent, err)
	}
	for m := first; ; {
		if m.op == opData {
			p.store.chunks.put(m.data)
		}
		switch m.op {
		case opAbort:
			return true, nil
		case opCommit:
			return readAnswer(st)
		}
		select {
		case m = <-p.queue:
		case <-ctx.Done():
			return false, errAbandoned
		}
		if err := p.forward(st, m); err != nil {
			return false, fmt.Errorf("send to holder: %w", err)
		}
	}
}

// forward writes one frame. The deadline is for the answer too, when it is a commit.
func (p *partner) forward(st link.Stream, m partnerMessage) error {
	if err := st.SetDeadline(p.store.cfg.Now().Add(appendIdle)); err != nil {
		return err
	}
	var head [5]byte
	head[0] = m.op
	binary.LittleEndian.PutUint32(head[1:], uint32(len(m.data)))
	return link.WriteParts(st, head[:], m.data)
}

// readAnswer reads a holder's answer to opCommit; after an answer the stream is between objects.
func readAnswer(r io.Reader) (answered bool, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, fmt.Errorf("read holder's answer: %w", err)
	}
	text := make([]byte, min(int(binary.LittleEndian.Uint16(head[1:])), remoteTextMax))
	if _, err := io.ReadFull(r, text); err != nil {
		return false, fmt.Errorf("read holder's answer: %w", err)
	}
	if head[0] != 0 {
		return true, fmt.Errorf("%w (status %d): %s", errRefused, head[0], text)
	}
	return true, nil
}

// streamPool keeps append streams that are between two objects, per peer.
type streamPool struct {
	mu   sync.Mutex
	idle map[place.NodeID][]link.Stream
}

// appendStream returns a stream between two objects; used tells that it rested since the last one.
func (s *Store) appendStream(ctx context.Context, node place.NodeID) (st link.Stream, used bool, err error) {
	s.streams.mu.Lock()
	if list := s.streams.idle[node]; len(list) > 0 {
		st := list[len(list)-1]
		s.streams.idle[node] = list[:len(list)-1]
		s.streams.mu.Unlock()
		return st, true, nil
	}
	s.streams.mu.Unlock()
	st, err = s.cfg.Mesh.OpenStream(ctx, node, link.ClassBulk, link.KindJournalAppend)
	if err != nil {
		return nil, false, err
	}
	if _, err := st.Write([]byte{appendVersion}); err != nil {
		st.Close()
		return nil, false, fmt.Errorf("open append stream: %w", err)
	}
	return st, false, nil
}

func (s *Store) keepStream(node place.NodeID, st link.Stream) {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	if s.ctx.Err() != nil || link.Worn(st) || st.SetDeadline(noDeadline) != nil || len(s.streams.idle[node]) >= partnerIdleStreamsMax {
		st.Close()
		return
	}
	s.streams.idle[node] = append(s.streams.idle[node], st)
}

// dropStreams closes the idle streams to node, or to every node when node is zero.
func (s *Store) dropStreams(node place.NodeID) {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	for id, list := range s.streams.idle {
		if !node.IsZero() && id != node {
			continue
		}
		for _, st := range list {
			st.Close()
		}
		delete(s.streams.idle, id)
	}
}
