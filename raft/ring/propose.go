package ring

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"osteon/erasure/place"
)

var (
	// errTryAgain: nothing was proposed; another leader, or a later attempt, may do it.
	errTryAgain = errors.New("not now")
	// errUncertain: it was proposed, but how it ended is not known.
	errUncertain = errors.New("outcome not seen")
)

// Propose puts data into the log and returns, once this ring's leader applied it, its index and the state machine's result there.
// It may be called at any node; a node that does not lead asks the leader. It repeats over elections
// until ctx ends, so one call may apply data more than once. The local state machine may still be behind index. Errors: ErrTooLarge,
// ErrNoQuorum (nothing was proposed), ErrUnknownOutcome, ErrClosed, or what Err returns. data must not change before it returns.
func (r *Ring) Propose(ctx context.Context, data []byte) (index uint64, result []byte, err error) {
	if len(data) > CommandBytesMax {
		return 0, nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(data), CommandBytesMax)
	}
	a, err := r.atLeader(ctx, message{verb: verbPropose, payload: data})
	if err != nil {
		return 0, nil, fmt.Errorf("propose: %w", err)
	}
	return a.index, a.payload, nil
}

// atLeader has q done by the leader, whoever that is by then, until ctx ends.
func (r *Ring) atLeader(ctx context.Context, q message) (message, error) {
	uncertain := false
	pause := retryFirst
	for {
		changed := r.Changes()
		a, err := r.attempt(ctx, q)
		switch {
		case err == nil:
			return a, nil
		case errors.Is(err, errUncertain):
			uncertain = true
		case !errors.Is(err, errTryAgain):
			return message{}, err
		}
		select {
		case <-changed:
			pause = retryFirst
		case <-time.After(pause):
			pause = min(2*pause, retryMax)
		case <-ctx.Done():
		case <-r.failed:
			return message{}, withDoubt(uncertain, r.Err())
		case <-r.ctx.Done():
			return message{}, withDoubt(uncertain, ErrClosed)
		}
		if ctx.Err() != nil {
			if uncertain {
				return message{}, fmt.Errorf("%w: %w (%w)", ErrUnknownOutcome, err, ctx.Err())
			}
			return message{}, fmt.Errorf("%w: %w (%w)", ErrNoQuorum, err, ctx.Err())
		}
	}
}

// withDoubt adds ErrUnknownOutcome to err when something was proposed.
func withDoubt(uncertain bool, err error) error {
	if uncertain {
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}

// attempt does q here when this node leads, else at the node it believes to lead.
func (r *Ring) attempt(ctx context.Context, q message) (message, error) {
	leader, ok := r.Leader()
	switch {
	case !ok:
		return message{}, fmt.Errorf("%w: no leader is known", errTryAgain)
	case leader == r.cfg.Self:
		return r.lead(ctx, q)
	}
	return r.forwardWhile(ctx, leader, q)
}

// forwardWhile forwards q, and gives up when another node leads or the answer takes too long.
func (r *Ring) forwardWhile(ctx context.Context, leader place.NodeID, q message) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	watched := make(chan struct{})
	defer func() { <-watched }()
	defer cancel()
	go func() { // ends with ctx
		defer close(watched)
		for {
			changed := r.Changes()
			if now, ok := r.Leader(); !ok || now != leader {
				cancel()
			}
			select {
			case <-changed:
			case <-r.ctx.Done():
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return r.forward(ctx, leader, q)
}

// lead does q at this node.
func (r *Ring) lead(ctx context.Context, q message) (message, error) {
	switch q.verb {
	case verbPropose:
		return r.apply(ctx, q.payload)
	case verbReadIndex:
		index, err := r.readIndex(ctx)
		return message{index: index}, err
	case verbStatus:
		return r.ownStatus(), nil
	}
	return message{}, r.changeMembers(ctx, q)
}

// apply proposes data at this node and waits until it is applied here.
func (r *Ring) apply(ctx context.Context, data []byte) (message, error) {
	if err := r.begin(); err != nil {
		return message{}, err
	}
	type outcome struct {
		a   message
		err error
	}
	done := make(chan outcome, 1)
	go func() { // ends when the library answers; r.work waits for it
		defer r.work.Done()
		f := r.raft.Apply(data, attemptTime)
		if err := f.Error(); err != nil {
			done <- outcome{err: libraryError(err)}
			return
		}
		if err, stopped := f.Response().(error); stopped {
			done <- outcome{err: fmt.Errorf("%w: %w", errUncertain, err)}
			return
		}
		result, _ := f.Response().([]byte)
		done <- outcome{a: message{index: f.Index(), payload: result}}
	}()
	select {
	case o := <-done:
		return o.a, o.err
	case <-ctx.Done():
		return message{}, fmt.Errorf("%w: %w", errUncertain, ctx.Err())
	case <-r.failed:
		return message{}, fmt.Errorf("%w: %w", errUncertain, r.Err())
	}
}

// libraryError sorts the library's errors by what they say about the outcome.
func libraryError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", errTryAgain, err)
	}
	return fmt.Errorf("%w: %w", errUncertain, err)
}
