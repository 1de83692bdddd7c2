package ring

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
)

// ReadIndex returns an index such that a read of any replica's state machine, made after it has applied that
// index, sees everything that was applied anywhere before ReadIndex was called. It asks the leader, which asks a majority whether they
// know of a newer term; nothing is written. It fails with ErrNoQuorum when ctx ends first, ErrClosed, or what Err returns.
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

// run does rounds as long as reads wait for one.
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
		now.index, now.err = v.r.confirm()
		close(now.done)
	}
}

// confirm returns the commit index after making sure that this node was the only leader when it was taken: a majority of voters answers,
// after the call began, that they are still in this node's term, so nobody was elected in a later one before.
//
// The library's VerifyLeader is not enough: it also counts answers to heartbeats that were sent before it was called, so that a leader
// that was paused for longer than an election could confirm itself with an answer from before the pause.
func (r *Ring) confirm() (uint64, error) {
	term := r.raft.CurrentTerm()
	if !r.IsLeader() || r.openedTerm() != term {
		return 0, fmt.Errorf("%w: this node's term has ended or is not open yet", errTryAgain)
	}
	index := r.raft.CommitIndex()
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Election)
	defer cancel()
	votes, voters := 0, 0
	answers := make(chan bool, len(r.Servers()))
	asked := 0
	for _, s := range r.Servers() {
		switch {
		case !s.Voter:
			continue
		case serverID(s.Node, s.Incarnation) == r.self:
			votes++
		default:
			asked++
			go func() { answers <- r.sameTerm(ctx, s, term) }() // ends with ctx at the latest
		}
		voters++
	}
	for i := 0; votes <= voters/2 && i < asked; i++ {
		if <-answers {
			votes++
		}
	}
	if votes <= voters/2 {
		return 0, fmt.Errorf("%w: only %d of %d voters confirm the leader", errTryAgain, votes, voters)
	}
	return index, nil
}

// sameTerm asks s whether it is in term.
func (r *Ring) sameTerm(ctx context.Context, s Server, term uint64) bool {
	got, err := r.status(ctx, s)
	return err == nil && got.term == term
}

// openedTerm returns the term in which this node leads and has applied its first entry, 0 when there is none.
func (r *Ring) openedTerm() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opening == nil {
		return 0
	}
	return r.opening.term
}

// status is what a server says of itself.
type status struct {
	last, term uint64
}

// status asks s, this very incarnation, how far it is.
func (r *Ring) status(ctx context.Context, s Server) (status, error) {
	a, err := r.forward(ctx, s.Node, message{verb: verbStatus})
	if err != nil {
		return status{}, err
	}
	if len(a.payload) < 8 || string(a.payload[8:]) != string(serverID(s.Node, s.Incarnation)) {
		return status{}, fmt.Errorf("%w: another incarnation answers", ErrRefused)
	}
	return status{last: a.index, term: binary.LittleEndian.Uint64(a.payload)}, nil
}

// ownStatus answers status.
func (r *Ring) ownStatus() message {
	b := binary.LittleEndian.AppendUint64(nil, r.Term())
	return message{index: r.LastIndex(), payload: append(b, r.self...)}
}
