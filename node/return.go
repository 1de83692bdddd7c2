package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"osteon/node/link"
	"osteon/raft/catalog"
	"osteon/raft/ring"
)

// A node whose Raft log is short of its mark, damaged or gone must not vote with it. It wipes log and
// catalog, takes a new incarnation and asks any member to record that; the leader then removes the old
// server from Raft and adds the new one without a vote. Journal and shards are untouched.

const returnEvery = 2 * time.Second

// startOver wipes the ring's state and opens it as a new incarnation. cause is why.
func (c *core) startOver(cause error) (*ring.Ring, error) {
	if len(c.topo.nodes()) < 2 && len(c.id.Peers) == 0 {
		return nil, fmt.Errorf("open ring: %w; this is the ring's only node, so nobody can give it back: keep the directory and restore it from a backup", cause)
	}
	c.env.Log.Error("raft state is not to be trusted, this node returns as a new incarnation without a vote",
		"incarnation", c.id.Incarnation+1, "err", cause)
	for _, n := range c.topo.nodes() { // the catalog that knew them goes
		if n.ID != c.id.Node && n.State != catalog.NodeRemoved {
			c.id.Peers = append(c.id.Peers, peerAddress{Node: n.ID, Address: n.Address})
		}
	}
	c.id.Incarnation++
	c.id.Enrolled = false
	if err := c.id.save(c.env.FS, c.cfg.Dir); err != nil {
		return nil, err
	}
	if err := ring.Wipe(c.ringConfig()); err != nil {
		return nil, err
	}
	if err := c.cat.Close(); err != nil {
		c.env.Log.Warn("close the old catalog", "err", err)
	}
	if err := c.env.FS.RemoveAll(c.path("catalog")); err != nil {
		return nil, fmt.Errorf("wipe catalog: %w", err)
	}
	if err := c.openCatalog(); err != nil {
		return nil, err
	}
	c.topo.replace(c.cat, c.id)
	r, err := ring.Open(c.ringConfig(), c.cat)
	if err != nil {
		return nil, fmt.Errorf("open ring after starting over: %w", err)
	}
	return r, nil
}

// peerRequest is what nodes ask each other over link.KindAdmin.
type peerRequest struct {
	// Return asks to record this incarnation of the sender, its certificate and its address.
	Return      uint64 `json:"return"`
	Address     string `json:"address"`
	Certificate []byte `json:"certificate"`
}

// answerPeer records a member's new incarnation; the link has proven who the sender is.
func (c *core) answerPeer(ctx context.Context, from link.Peer, request []byte) ([]byte, error) {
	var req peerRequest
	if err := json.Unmarshal(request, &req); err != nil || req.Return == 0 {
		return nil, refuse(joinRefused, "the request is not one that this release understands")
	}
	for _, n := range c.topo.nodes() {
		if n.ID != from.Node || n.State == catalog.NodeRemoved {
			continue
		}
		if n.Incarnation > req.Return {
			return nil, refuse(joinRefused, "a later incarnation of this node is in the ring")
		}
		n.Incarnation, n.Address = req.Return, req.Address
		n.CertFingerprint = fingerprint(req.Certificate)
		if err := c.do(ctx, catalog.PutNode{Node: n}); err != nil {
			return nil, refuse(joinUnavailable, "the ring did not record it: %v", err)
		}
		return []byte("{}"), nil
	}
	return nil, refuse(joinRefused, "this node is not a member of the ring")
}

// returnLoop tells the ring about this incarnation until the catalog here lists it. A node that is listed
// with another address or certificate (it moved, or renewed) says so in the same way.
func (n *Node) returnLoop(ctx context.Context) {
	tick := time.NewTicker(returnEvery)
	defer tick.Stop()
	for {
		if n.listedAsIs() {
			return
		}
		if err := n.announceReturn(ctx); err != nil && ctx.Err() == nil {
			n.env.Log.Debug("ring has not taken note of this node yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *Node) listedAsIs() bool {
	want := n.self()
	for _, m := range n.topo.nodes() {
		if m.ID == n.id.Node {
			return m.Incarnation == want.Incarnation && m.Address == want.Address && m.CertFingerprint == want.CertFingerprint
		}
	}
	return false
}

func (n *Node) announceReturn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := json.Marshal(peerRequest{
		Return: n.id.Incarnation, Address: n.cfg.Link.Advertise, Certificate: n.certificate(),
	})
	if err != nil {
		return err
	}
	if n.ring.IsLeader() {
		_, err := n.answerPeer(ctx, n.link.Self(), request)
		return err
	}
	var causes []error
	for _, p := range n.peers() {
		_, err := n.link.Call(ctx, p, link.KindAdmin, request)
		if err == nil {
			return nil
		}
		causes = append(causes, err)
	}
	return errors.Join(causes...)
}
