package erasure

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/node/link"
)

var (
	// ErrUnavailable means that no reachable node has enough of the bytes.
	ErrUnavailable = errors.New("not enough copies or shards can be reached")
	// errNotHeld is a holder's answer that it does not have the object.
	errNotHeld = errors.New("holder does not have the object")
)

// Object is one stored version of an instance, wherever its bytes are. Close it.
type Object interface {
	// Size is the length in bytes.
	Size() int64
	// CopyRange writes the n bytes at off to w. Bytes that fail a check are never written.
	CopyRange(ctx context.Context, w io.Writer, off, n int64) error
	// Close frees what the object holds; reads in flight must have ended.
	Close() error
}

// The journal read stream (kind KindJournalRead), little-endian: the reader sends version u8 = 1, key
// [32], offset u64, length u64; the holder answers status u8 (0 = held), size u64 of
// the whole object and then the bytes asked for. A holder that fails in the middle resets the stream.
const (
	journalReadVersion = 1
	journalReadRequest = 1 + 32 + 8 + 8
	journalReadAnswer  = 1 + 8
)

// OpenJournalled opens an unsealed version: this node's copy if it has one, else the first of holders
// that answers; a read that fails goes on at the next holder. ErrUnavailable when nobody has it.
func (s *Store) OpenJournalled(ctx context.Context, key journal.Key, size int64, holders []place.NodeID) (Object, error) {
	if local, err := s.journal.OpenObject(key); err == nil {
		return &held{store: s, key: key, size: local.Size(), local: local, holders: holders}, nil
	} else if !errors.Is(err, journal.ErrNotFound) {
		s.cfg.Log.Error("journal copy unreadable", "err", err)
	}
	return s.OpenElsewhere(ctx, key, size, holders)
}

// OpenElsewhere opens an unsealed version at the first of holders that answers, never from this node's
// journal. ErrUnavailable when nobody has it.
func (s *Store) OpenElsewhere(ctx context.Context, key journal.Key, size int64, holders []place.NodeID) (Object, error) {
	o := &held{store: s, key: key, size: size, holders: holders}
	if err := o.CopyRange(ctx, io.Discard, 0, 0); err != nil {
		return nil, err
	}
	return o, nil
}

// held is an object in one or more journals.
type held struct {
	store   *Store
	key     journal.Key
	size    int64
	local   *journal.Object // nil: not here
	holders []place.NodeID
}

func (o *held) Size() int64 { return o.size }

func (o *held) Close() error {
	if o.local == nil {
		return nil
	}
	return o.local.Close()
}

func (o *held) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	if off < 0 || n < 0 || off > o.size || n > o.size-off {
		return fmt.Errorf("read %d bytes at %d of an object of %d: %w", n, off, o.size, io.ErrUnexpectedEOF)
	}
	var causes []error
	if o.local != nil {
		out := &counting{w: w}
		_, err := o.local.CopyRange(out, off, n)
		if err == nil || out.err != nil {
			return err
		}
		off, n = off+out.n, n-out.n
		causes = append(causes, err)
	}
	late := o.order()
	for _, patience := range []time.Duration{answerSoon, readIdle} {
		asked := late
		late = nil
		for i, node := range asked {
			if patience == answerSoon && i == len(asked)-1 && len(late) == 0 {
				patience = readIdle // nobody is left who might be quicker
			}
			out := &counting{w: w}
			err := o.copyRemote(ctx, node, patience, out, off, n)
			if err == nil || out.err != nil || ctx.Err() != nil {
				return err
			}
			off, n = off+out.n, n-out.n
			if patience == answerSoon && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)) {
				o.store.late(node) // the next reads ask others first
				late = append(late, node)
				continue
			}
			causes = append(causes, fmt.Errorf("node %s: %w", node, err))
		}
	}
	return fmt.Errorf("read journalled object: %w: %w", ErrUnavailable, errors.Join(causes...))
}

// order returns the remote holders, those believed alive and quick first.
func (o *held) order() []place.NodeID {
	live := map[place.NodeID]bool{}
	for _, n := range o.store.cfg.Topology() {
		live[n.ID] = n.Live && !o.store.isSuspect(n.ID) && !o.store.isSlow(n.ID)
	}
	var first, last []place.NodeID
	for _, id := range o.holders {
		switch {
		case id == o.store.cfg.Self || o.store.cfg.Mesh == nil:
		case live[id]:
			first = append(first, id)
		default:
			last = append(last, id)
		}
	}
	return append(first, last...)
}

// copyRemote reads from one holder, whose answer has to begin within patience. It asks once more when the connection
// was lost before a byte came: the holder may have been started again a moment ago.
func (o *held) copyRemote(ctx context.Context, node place.NodeID, patience time.Duration, w *counting, off, n int64) error {
	err := o.askRemote(ctx, node, patience, w, off, n)
	if errors.Is(err, link.ErrLost) && w.n == 0 && ctx.Err() == nil {
		err = o.askRemote(ctx, node, patience, w, off, n)
	}
	return err
}

func (o *held) askRemote(ctx context.Context, node place.NodeID, patience time.Duration, w io.Writer, off, n int64) error {
	opening, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	st, err := o.store.cfg.Mesh.OpenStream(opening, node, link.ClassBulk, link.KindJournalRead)
	if err != nil {
		return err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	request := make([]byte, 0, journalReadRequest)
	request = append(request, journalReadVersion)
	request = append(request, o.key[:]...)
	request = binary.LittleEndian.AppendUint64(request, uint64(off))
	request = binary.LittleEndian.AppendUint64(request, uint64(n))
	if _, err := st.Write(request); err != nil {
		return fmt.Errorf("ask holder: %w", err)
	}
	r := &patient{stream: st, store: o.store, idle: patience}
	var answer [journalReadAnswer]byte
	if _, err := io.ReadFull(r, answer[:]); err != nil {
		return fmt.Errorf("read holder's answer: %w", err)
	}
	if answer[0] != 0 {
		return errNotHeld
	}
	r.idle = readIdle
	if size := int64(binary.LittleEndian.Uint64(answer[1:])); size != o.size {
		return fmt.Errorf("holder has %d bytes, want %d", size, o.size)
	}
	if copied, err := io.Copy(w, io.LimitReader(r, n)); err != nil {
		return fmt.Errorf("read from holder: %w", err)
	} else if copied != n {
		return fmt.Errorf("read from holder: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

// patient reads a stream with a fresh deadline for every read.
type patient struct {
	stream link.Stream
	store  *Store
	idle   time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.stream.SetReadDeadline(p.store.cfg.Now().Add(p.idle)); err != nil {
		return 0, err
	}
	return p.stream.Read(b)
}

// counting remembers how much its writer took and whether it was the writer that failed.
type counting struct {
	w   io.Writer
	n   int64
	err error
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

func (s *Store) serveJournalRead(ctx context.Context, st link.Stream) {
	defer st.Close()
	if err := s.answerJournalRead(ctx, st); err != nil {
		s.cfg.Log.Debug("journal read ended", "peer", st.Peer().Node, "err", err)
	}
}

func (s *Store) answerJournalRead(ctx context.Context, st link.Stream) error {
	var request [journalReadRequest]byte
	if _, err := io.ReadFull(&patient{stream: st, store: s, idle: readIdle}, request[:]); err != nil {
		return err
	}
	if request[0] != journalReadVersion {
		return fmt.Errorf("journal read version %d", request[0])
	}
	off := int64(binary.LittleEndian.Uint64(request[33:]))
	n := int64(binary.LittleEndian.Uint64(request[41:]))
	object, err := s.journal.OpenObject(journal.Key(request[1:33]))
	if err != nil {
		_, werr := st.Write(append([]byte{1}, make([]byte, 8)...))
		return errors.Join(err, werr, st.CloseWrite())
	}
	defer object.Close()
	if off < 0 || n < 0 || off > object.Size() || n > object.Size()-off {
		return fmt.Errorf("journal read of %d bytes at %d of %d", n, off, object.Size())
	}
	out := bufio.NewWriterSize(st, 256<<10)
	answer := binary.LittleEndian.AppendUint64([]byte{0}, uint64(object.Size()))
	if _, err := out.Write(answer); err != nil {
		return err
	}
	if _, err := object.CopyRange(out, off, n); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return st.CloseWrite()
}
