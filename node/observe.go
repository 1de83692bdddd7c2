package node

import (
	"context"
	"fmt"
	"time"

	"osteon/erasure/place"
)

const (
	// aliveGrace is how long after its start a node takes members for alive that gossip has not heard of:
	// until then silence means only that nobody had the time to speak.
	aliveGrace    = 5 * time.Second
	announceEvery = 5 * time.Second
)

// startGossip begins to tell the others about this node and to hear about them.
func (n *Node) startGossip() error {
	g, err := OpenGossip(GossipConfig{
		Link: n.link, Self: n.announcement(), Allowed: n.topo.allowed, Log: n.env.Log,
		Peers:  n.others,
		Events: n.heard,
	})
	if err != nil {
		return fmt.Errorf("open gossip: %w", err)
	}
	n.gossip = g
	n.topo.observe(n.believedAlive, n.freeBytesOf)
	return nil
}

func (n *Node) stopGossip() {
	if n.gossip == nil {
		return
	}
	if err := n.gossip.Leave(); err != nil {
		n.env.Log.Debug("leave gossip", "err", err)
	}
	if err := n.gossip.Close(); err != nil {
		n.env.Log.Debug("close gossip", "err", err)
	}
}

func (n *Node) announcement() GossipInfo {
	return GossipInfo{
		Node: n.id.Node, Site: n.id.Site, Name: n.id.Name,
		DIMSE: n.servers.dimseAddress(), HTTP: n.servers.httpAddress(),
		Free: n.freeBytes(), Applied: n.cat.Applied(),
	}
}

// announceLoop keeps what this node tells about itself fresh.
func (n *Node) announceLoop(ctx context.Context) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.gossip == nil {
			continue
		}
		if err := n.gossip.Update(n.announcement()); err != nil {
			n.env.Log.Debug("update gossip", "err", err)
		}
	}
}

// heard takes a change of another node: a dead one's connections are closed so that whoever waits for it
// goes elsewhere at once.
func (n *Node) heard(e GossipEvent) {
	switch e.Kind {
	case GossipDown:
		n.env.Log.Warn("node down", "node", e.Info.Node, "name", e.Info.Name)
		n.link.MarkDown(e.Info.Node)
	case GossipUp:
		n.env.Log.Info("node up", "node", e.Info.Node, "name", e.Info.Name)
	}
	select {
	case n.gossipChanged <- struct{}{}:
	default:
	}
}

func (n *Node) believedAlive(id place.NodeID) bool {
	if n.gossip.Alive(id) {
		return true
	}
	if n.env.Now().Sub(n.started) > aliveGrace {
		return false
	}
	for _, m := range n.gossip.Members() {
		if m.Node == id {
			return false // gossip has heard of it, and that it is gone
		}
	}
	return true
}

func (n *Node) freeBytesOf(id place.NodeID) int64 {
	if id == n.id.Node {
		return n.freeBytes()
	}
	return n.gossip.Free(id)
}
