package ring

import (
	"context"
	"fmt"
	"sync"
)

// ReadIndex returns an index such that a read of any replica's state machine, made after it has applied that
// index, sees everything that was applied anywhere before ReadIndex was called. It asks the leader, which asks a majority whether it still leads;
// nothing is written. It fails with ErrNoQuorum when ctx ends first, ErrClosed, or what Err returns.
func (r *Ring) ReadIndex(ctx context.Context) (uint64, error) {
	a, err := r.atLeader(ctx, message{verb: verbReadIndex})
	if err != nil {
		return 0, fmt.Errorf("read index: %w", err)
	}
	return a.index, nil
}

// readIndex is ReadIndex at the leader.
func (r *Ring) readIndex(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	o := r.opening
	r.mu.Unlock()
	if o == nil {
		return 0, fmt.Errorf("%w: this node does not lead", errTryAgain)
	}
	select {
	case <-o.ready:
	case <-o.lost:
		return 0, fmt.Errorf("%w: leadership was lost", errTryAgain)
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: the leader's term is not open yet", errTryAgain)
	}
	return r.reads.join(ctx)
}

// verifier lets all reads that wait at one time share one question to the followers.
type verifier struct {
	r *Ring

	mu      sync.Mutex
	next    *round // joined by new reads, not started yet
	running bool
}

// round is one question and its answer.
type round struct {
	done  chan struct{}
	index uint64
	err   error
}

// join waits for a round that began after the call.
func (v *verifier) join(ctx context.Context) (uint64, error) {
	v.mu.Lock()
	if v.next == nil {
		v.next = &round{done: make(chan struct{})}
	}
	mine := v.next
	if !v.running {
		if err := v.r.begin(); err != nil {
			v.next = nil
			v.mu.Unlock()
			return 0, err
		}
		v.running = true
		go v.run() // ends when nobody waits; r.work waits for it
	}
	v.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: leadership is not confirmed", errTryAgain)
	case <-v.r.failed:
		return 0, v.r.Err()
	}
}

// run does rounds as long as reads wait for one. The commit index is taken before the question.
func (v *verifier) run() {
	defer v.r.work.Done()
	for {
		v.mu.Lock()
		now := v.next
		v.next = nil
		v.running = now != nil
		v.mu.Unlock()
		if now == nil {
			return
		}
		now.index = v.r.raft.CommitIndex()
		if err := v.r.raft.VerifyLeader().Error(); err != nil {
			now.index, now.err = 0, fmt.Errorf("%w: %w", errTryAgain, err)
		}
		close(now.done)
	}
}
