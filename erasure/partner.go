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

var errAbandoned = errors.New("partner was given up")

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
	s.running.Add(1)
	go func() { // owned by the partner; ends at commit's answer, an abort, an error or cancel
		defer s.running.Done()
		defer cancel()
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
	st, err := p.store.appendStream(ctx, p.node.ID)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { st.Close() })
	reusable, err := p.transfer(ctx, st)
	if !stop() || !reusable {
		st.Close()
		if err == nil {
			err = ctx.Err()
		}
		return err
	}
	p.store.keepStream(p.node.ID, st)
	return err
}

// transfer moves queued messages to the stream; reusable says that the stream is between two objects.
func (p *partner) transfer(ctx context.Context, st link.Stream) (reusable bool, err error) {
	var head [5]byte
	for {
		var m partnerMessage
		select {
		case m = <-p.queue:
		case <-ctx.Done():
			return false, errAbandoned
		}
		head[0] = m.op
		binary.LittleEndian.PutUint32(head[1:], uint32(len(m.data)))
		_, err = st.Write(head[:])
		if err == nil && len(m.data) > 0 {
			_, err = st.Write(m.data)
		}
		if m.op == opData {
			p.store.chunks.put(m.data)
		}
		if err != nil {
			return false, fmt.Errorf("send to holder: %w", err)
		}
		switch m.op {
		case opAbort:
			return true, nil
		case opCommit:
			return readAnswer(st)
		}
	}
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
		return true, fmt.Errorf("holder refused (status %d): %s", head[0], text)
	}
	return true, nil
}

// streamPool keeps append streams that are between two objects, per peer.
type streamPool struct {
	mu   sync.Mutex
	idle map[place.NodeID][]link.Stream
}

func (s *Store) appendStream(ctx context.Context, node place.NodeID) (link.Stream, error) {
	s.streams.mu.Lock()
	if list := s.streams.idle[node]; len(list) > 0 {
		st := list[len(list)-1]
		s.streams.idle[node] = list[:len(list)-1]
		s.streams.mu.Unlock()
		return st, nil
	}
	s.streams.mu.Unlock()
	st, err := s.cfg.Mesh.OpenStream(ctx, node, link.ClassBulk, link.KindJournalAppend)
	if err != nil {
		return nil, err
	}
	if _, err := st.Write([]byte{appendVersion}); err != nil {
		st.Close()
		return nil, fmt.Errorf("open append stream: %w", err)
	}
	return st, nil
}

func (s *Store) keepStream(node place.NodeID, st link.Stream) {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	if s.closed.Load() || len(s.streams.idle[node]) >= partnerIdleStreamsMax {
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
