package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/ring"
)

const (
	membersEvery  = time.Second
	topologyEvery = 250 * time.Millisecond
	// voterGrace is how long a dead node keeps its vote before another takes over: a reboot must not
	// move votes around.
	voterGrace = 10 * time.Minute
)

// membersLoop keeps Raft's configuration in line with the catalog's members while this node leads: every
// member is in it, and 3 or 5 of them, spread over the sites, have a vote.
func (n *Node) membersLoop(ctx context.Context) {
	deadSince := map[place.NodeID]time.Time{}
	tick := time.NewTicker(membersEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n.noteDeaths(deadSince)
		if !n.ring.IsLeader() {
			continue
		}
		if err := n.reconcileMembers(ctx, deadSince); err != nil && ctx.Err() == nil && !errors.Is(err, ring.ErrBehind) {
			n.env.Log.Debug("members not yet as wanted", "err", err)
		}
	}
}

func (n *Node) noteDeaths(since map[place.NodeID]time.Time) {
	for _, m := range n.topo.placed() {
		_, dead := since[m.ID]
		switch {
		case m.Live && dead:
			delete(since, m.ID)
		case !m.Live && !dead:
			since[m.ID] = n.env.Now()
		}
	}
}

// reconcileMembers makes at most one change; the next tick makes the next.
func (n *Node) reconcileMembers(ctx context.Context, deadSince map[place.NodeID]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	servers := n.ring.Servers()
	for _, m := range n.topo.nodes() {
		at := slices.IndexFunc(servers, func(s ring.Server) bool { return s.Node == m.ID })
		switch {
		case m.State == catalog.NodeRemoved && at >= 0:
			return n.ring.Remove(ctx, m.ID)
		case m.State != catalog.NodeRemoved && at < 0:
			return n.ring.AddNonvoter(ctx, m.ID, m.Incarnation)
		case at >= 0 && servers[at].Incarnation < m.Incarnation:
			return n.ring.Remove(ctx, m.ID) // its log is lost; the next tick adds the new incarnation
		}
	}
	want, current := n.wantedVoters(servers, deadSince)
	if id, ok := nextVoter(n.topo.placed(), want, current); ok {
		return n.ring.Promote(ctx, id)
	}
	if len(current) <= len(want) && slices.ContainsFunc(want, func(id place.NodeID) bool { return !slices.Contains(current, id) }) {
		return nil // wait for the wanted ones before taking votes away
	}
	for _, id := range current {
		if slices.Contains(want, id) {
			continue
		}
		if id == n.id.Node {
			return n.ring.Transfer(ctx)
		}
		return n.ring.Demote(ctx, id)
	}
	return nil
}

// nextVoter returns the live node that should get a vote next: one of the site with the fewest, so that on the way to
// the wanted spread no site holds a majority longer than it must.
func nextVoter(nodes []place.Node, want, current []place.NodeID) (next place.NodeID, ok bool) {
	votes := map[place.SiteID]int{}
	for _, m := range nodes {
		if slices.Contains(current, m.ID) {
			votes[m.Site]++
		}
	}
	fewest := 0
	for _, id := range want {
		at := slices.IndexFunc(nodes, func(m place.Node) bool { return m.ID == id })
		if at < 0 || !nodes[at].Live || slices.Contains(current, id) {
			continue
		}
		if v := votes[nodes[at].Site]; !ok || v < fewest {
			next, fewest, ok = id, v, true
		}
	}
	return next, ok
}

func (n *Node) wantedVoters(servers []ring.Server, deadSince map[place.NodeID]time.Time) (want, current []place.NodeID) {
	for _, s := range servers {
		if s.Voter {
			current = append(current, s.Node)
		}
	}
	nodes := slices.Clone(n.topo.placed())
	for i := range nodes {
		since, dead := deadSince[nodes[i].ID]
		nodes[i].Live = !dead || n.env.Now().Sub(since) < voterGrace
	}
	want, _ = place.Voters(nodes, current)
	return want, current
}

// topologyLoop keeps the view of the ring fresh.
func (n *Node) topologyLoop(ctx context.Context) {
	tick := time.NewTicker(topologyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-n.ring.Changes():
		case <-n.gossipChanged:
		}
		n.topo.refresh(ctx)
		if err := n.keepPeers(); err != nil {
			n.env.Log.Error("write node identity", "err", err)
		}
	}
}
