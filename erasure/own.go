package erasure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/plant"
)

// ownCopy is an object on its way into this node's own journal. A goroutine of its own writes to the disk,
// so that a disk that stalls never holds a sender for longer than localCommitMax; an object of less than
// one chunk starts it at Commit. The methods belong to one goroutine.
type ownCopy struct {
	store   *Store
	writer  *journal.Writer // of run, once there is a queue
	pending []byte          // the chunk being filled
	queue   chan ownOrder   // nil: run was not started
	state   atomic.Int32    // ownRunning and so on
	result  chan error      // what became of it, unless it was given up
	broken  chan struct{}   // closed by run when the journal refused a write
	err     error           // valid once broken is closed
	over    bool            // committed, aborted or given up
	slow    bool            // given up because of the disk; valid in state ownGivenUp
}

// ownOrder is a chunk, or the commit when data is nil.
type ownOrder struct {
	data []byte // from the store's chunk pool
	ctx  context.Context
	key  journal.Key
	note []byte
}

const (
	ownRunning  int32 = iota
	ownEnded          // its result is or will be in the channel
	ownGivenUp        // nobody waits for it any more
	ownQueueLen = partnerQueueChunks
)

func (s *Store) beginOwn() *ownCopy { return &ownCopy{store: s, writer: s.journal.Begin()} }

// write takes all of p. It fails with the journal's error or ErrStalled.
func (o *ownCopy) write(p []byte) error {
	for len(p) > 0 {
		if o.pending == nil {
			o.pending = o.store.chunks.get()
		}
		n := min(partnerChunkBytes-len(o.pending), len(p))
		o.pending = append(o.pending, p[:n]...)
		p = p[n:]
		if len(o.pending) < partnerChunkBytes {
			return nil
		}
		if err := o.flush(); err != nil {
			return err
		}
	}
	return nil
}

func (o *ownCopy) flush() error {
	if len(o.pending) == 0 {
		return nil
	}
	data := o.pending
	o.pending = nil
	return o.send(ownOrder{data: data})
}

// send hands an order to run, which it starts when need be.
func (o *ownCopy) send(order ownOrder) error {
	if o.over {
		return journal.ErrClosed
	}
	if o.queue == nil {
		if !o.store.enter() {
			return journal.ErrClosed
		}
		o.queue, o.result, o.broken = make(chan ownOrder, ownQueueLen), make(chan error, 1), make(chan struct{})
		go o.run() // ends when the queue is closed and the journal has answered; Store.Close waits for it
	}
	select {
	case o.queue <- order:
		return nil
	case <-o.broken:
		return o.err
	default:
	}
	patience := time.NewTimer(localCommitMax)
	defer patience.Stop()
	select {
	case o.queue <- order:
		return nil
	case <-o.broken:
		return o.err
	case <-patience.C:
		o.over = true
		close(o.queue)
		return cmp.Or(o.leave(ErrStalled), ErrStalled)
	}
}

// commit makes the object durable. When it gives up, because the disk stalls or ctx ends, the object may
// become durable all the same: Config.Held is told then.
func (o *ownCopy) commit(ctx context.Context, key journal.Key, note []byte) error {
	if err := o.flush(); err != nil {
		return err
	}
	if err := o.send(ownOrder{ctx: context.WithoutCancel(ctx), key: key, note: note}); err != nil {
		return err
	}
	o.over = true
	close(o.queue)
	stalled := time.NewTimer(localCommitMax)
	defer stalled.Stop()
	select {
	case err := <-o.result:
		return err
	case <-stalled.C:
		return o.leave(ErrStalled)
	case <-ctx.Done():
		return o.leave(ctx.Err())
	}
}

// abort forgets the object; after commit it does nothing.
func (o *ownCopy) abort() {
	switch {
	case o.over:
		return
	case o.queue == nil:
		o.over = true
		o.writer.Abort()
		if o.pending != nil {
			o.store.chunks.put(o.pending)
			o.pending = nil
		}
	default:
		o.over = true
		close(o.queue)
	}
}

// leave lets run be at work with nobody waiting for it any more, and returns the cause; or the result when
// run has ended in this moment.
func (o *ownCopy) leave(cause error) error {
	if o.slow = errors.Is(cause, ErrStalled); o.slow {
		o.store.stalled.Add(1)
	}
	if o.state.CompareAndSwap(ownRunning, ownGivenUp) {
		return cause
	}
	if o.slow {
		o.store.stalled.Add(-1)
	}
	return <-o.result
}

// run does the orders until the queue is closed or the store is.
func (o *ownCopy) run() {
	defer o.store.running.Done()
	committed, err := o.work()
	o.writer.Abort()
	if o.state.CompareAndSwap(ownRunning, ownEnded) {
		o.result <- err
		return
	}
	if o.slow {
		o.store.stalled.Add(-1)
	}
	if committed != nil && err == nil {
		o.store.cfg.Held(committed.key, committed.note, o.store.cfg.Self)
	}
}

// work returns the order of the commit, when there was one, and the first error.
func (o *ownCopy) work() (committed *ownOrder, err error) {
	for {
		var order ownOrder
		var more bool
		select {
		case order, more = <-o.queue:
		case <-o.store.ctx.Done():
			if err == nil {
				err = o.refuse(journal.ErrClosed)
			}
			return nil, err
		}
		switch {
		case !more:
			return committed, err
		case order.data == nil && err == nil:
			err = o.writer.Commit(order.ctx, order.key, order.note)
			committed = &order
		case err == nil:
			if _, werr := o.writer.Write(order.data); werr != nil {
				err = o.refuse(werr)
			}
		}
		if order.data != nil {
			o.store.chunks.put(order.data)
		}
	}
}

// refuse makes later orders fail with err.
func (o *ownCopy) refuse(err error) error {
	o.err = err
	close(o.broken)
	return err
}

// Ready returns nil while this node can take instances, else what keeps it: ErrStalled while its disk does
// not answer, journal.ErrFull below the reserve of free space, journal.ErrFenced.
func (s *Store) Ready() error {
	if err := s.journal.Fenced(); err != nil {
		return err
	}
	if s.stalled.Load() > 0 {
		return ErrStalled
	}
	return s.room()
}

// room returns journal.ErrFull when the disk has less than its reserve free, which seals, the catalog and
// the log need. The answer is a second old at most.
func (s *Store) room() error {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	now := s.cfg.Now()
	if age := now.Sub(s.space.asked); age >= 0 && age < freeAskEvery && !s.space.asked.IsZero() {
		return s.space.err
	}
	s.space.asked, s.space.err = now, nil
	free, total, err := s.cfg.Free()
	if err == nil && !plant.Is(plant.FullDiskIgnored) && total > 0 && free < total/100*freeReservePercent {
		s.space.err = fmt.Errorf("%w: less than %d %% of the disk is free", journal.ErrFull, freeReservePercent)
	}
	return s.space.err
}

// diskFree asks the file system.
func (s *Store) diskFree() (free, total int64, err error) {
	u, err := s.cfg.FS.GetDiskUsage(s.cfg.Dir)
	return int64(u.AvailBytes), int64(u.TotalBytes), err
}
