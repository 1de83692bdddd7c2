package ring

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"osteon/erasure/place"
)

// AddNonvoter adds the server (node, incarnation), which then receives the log. Other incarnations of the node are removed first. It may be
// called at any node. Errors as for Propose, and ErrRefused.
func (r *Ring) AddNonvoter(ctx context.Context, node place.NodeID, incarnation uint64) error {
	return r.members(ctx, "add node", verbAddNonvoter, node, incarnation)
}

// Promote gives the member node a vote. ErrUnknownServer when it is not a member, ErrBehind when it is
// more than a few thousand entries behind or cannot be asked.
func (r *Ring) Promote(ctx context.Context, node place.NodeID) error {
	return r.members(ctx, "promote node", verbPromote, node, 0)
}

// Demote takes the vote of the member node away; it stays a member. ErrUnknownServer when it is none, ErrRefused for the last voter.
func (r *Ring) Demote(ctx context.Context, node place.NodeID) error {
	return r.members(ctx, "demote node", verbDemote, node, 0)
}

// Remove removes every incarnation of node from the ring. Removing what is not there succeeds; the last voter is ErrRefused.
func (r *Ring) Remove(ctx context.Context, node place.NodeID) error {
	return r.members(ctx, "remove node", verbRemove, node, 0)
}

func (r *Ring) members(ctx context.Context, what string, v verb, node place.NodeID, incarnation uint64) error {
	if _, err := r.atLeader(ctx, message{verb: v, index: incarnation, payload: node[:]}); err != nil {
		return fmt.Errorf("%s %s: %w", what, node, err)
	}
	return nil
}

// changeMembers does a membership request at the leader.
func (r *Ring) changeMembers(ctx context.Context, q message) error {
	if len(q.payload) != len(place.NodeID{}) {
		return fmt.Errorf("%w: request without a node", ErrRefused)
	}
	node := place.NodeID(q.payload)
	if !r.IsLeader() {
		return fmt.Errorf("%w: this node does not lead", errTryAgain)
	}
	switch q.verb {
	case verbAddNonvoter:
		return r.addNonvoter(ctx, node, q.index)
	case verbPromote:
		return r.promote(ctx, node)
	case verbDemote:
		return r.demote(ctx, node)
	case verbRemove:
		return r.remove(ctx, node, 0)
	}
	return fmt.Errorf("%w: request %d is not known to this release", ErrRefused, q.verb)
}

// member returns the server of node.
func (r *Ring) member(node place.NodeID) (Server, error) {
	for _, s := range r.Servers() {
		if s.Node == node {
			return s, nil
		}
	}
	return Server{}, ErrUnknownServer
}

func (r *Ring) addNonvoter(ctx context.Context, node place.NodeID, incarnation uint64) error {
	if incarnation == 0 {
		return fmt.Errorf("%w: incarnations count from 1", ErrRefused)
	}
	for _, s := range r.Servers() {
		if s.Node == node && s.Incarnation > incarnation {
			return fmt.Errorf("%w: incarnation %d of the node is a member already", ErrRefused, s.Incarnation)
		}
		if s.Node == node && s.Incarnation == incarnation {
			return nil
		}
	}
	if err := r.remove(ctx, node, incarnation); err != nil {
		return err
	}
	id := serverID(node, incarnation)
	return r.change(ctx, func() raft.IndexFuture {
		return r.raft.AddNonvoter(id, raft.ServerAddress(id), 0, attemptTime)
	})
}

func (r *Ring) promote(ctx context.Context, node place.NodeID) error {
	s, err := r.member(node)
	if err != nil || s.Voter {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	got, err := r.status(ask, s)
	if err != nil {
		return fmt.Errorf("%w: it cannot be asked: %v", ErrBehind, err)
	}
	if last := r.LastIndex(); got.last+promoteLagMax < last {
		return fmt.Errorf("%w: it is at entry %d of %d", ErrBehind, got.last, last)
	}
	id := serverID(s.Node, s.Incarnation)
	return r.change(ctx, func() raft.IndexFuture {
		return r.raft.AddVoter(id, raft.ServerAddress(id), 0, attemptTime)
	})
}

func (r *Ring) demote(ctx context.Context, node place.NodeID) error {
	s, err := r.member(node)
	if err != nil || !s.Voter {
		return err
	}
	return r.change(ctx, func() raft.IndexFuture {
		return r.raft.DemoteVoter(serverID(s.Node, s.Incarnation), 0, attemptTime)
	})
}

// remove removes every incarnation of node but except.
func (r *Ring) remove(ctx context.Context, node place.NodeID, except uint64) error {
	for _, s := range r.Servers() {
		if s.Node != node || s.Incarnation == except {
			continue
		}
		err := r.change(ctx, func() raft.IndexFuture {
			return r.raft.RemoveServer(serverID(s.Node, s.Incarnation), 0, attemptTime)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// change makes one change of the configuration and waits until it is committed.
func (r *Ring) change(ctx context.Context, f func() raft.IndexFuture) error {
	if err := r.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends when the library answers; r.work waits for it
		defer r.work.Done()
		done <- f().Error()
	}()
	select {
	case err := <-done:
		return changeError(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUncertain, ctx.Err())
	case <-r.failed:
		return fmt.Errorf("%w: %w", errUncertain, r.Err())
	}
}
