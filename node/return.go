package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"osteon/node/link"
	"osteon/raft/catalog"
)

// A node whose Raft log is short of its mark, damaged, gone or older than what the ring has seen of it must not vote with it. It
// sets log and catalog aside, takes a new incarnation and asks any member to record that; the leader then removes the old
// server from Raft and adds the new one without a vote. Journal and shards are untouched. What was set aside is deleted
// once the ring has given everything back: should many nodes lose their logs at once, it is the last copy.

const (
	returnEvery = 2 * time.Second
	// startOversMax bounds how often one start begins anew: the new incarnation too may turn out to have been used.
	startOversMax = 3
	asideSuffix   = ".aside"
)

// errStartOver: the ring goes on without what is in this directory.
var errStartOver = errors.New("log and catalog are given up")

// setAside renames a part of the directory, in place of what was set aside before. What is missing is no error.
func (c *core) setAside(part string) error {
	select {
	case <-c.broken: // what was found in it until now
	default:
	}
	if !fileExists(c.env.FS, c.path(part)) {
		return nil
	}
	err := c.env.FS.RemoveAll(c.path(part + asideSuffix))
	if err == nil {
		err = c.env.FS.Rename(c.path(part), c.path(part+asideSuffix))
	}
	if err == nil {
		err = syncDir(c.env.FS, c.cfg.Dir)
	}
	if err != nil {
		return fmt.Errorf("set %s aside: %w", c.path(part), err)
	}
	return nil
}

// dropAside deletes what was set aside.
func (c *core) dropAside() error {
	var errs []error
	for _, part := range []string{"raft", "catalog", "local"} {
		errs = append(errs, c.env.FS.RemoveAll(c.path(part+asideSuffix)))
	}
	return errors.Join(errs...)
}

// distrust notes durably that log and catalog are not to be used again. A ring's only node cannot give them up.
func (c *core) distrust(cause error) error {
	if len(c.others()) == 0 {
		return fmt.Errorf("%w; this is the ring's only node, so nobody can give it back: keep the directory, bring back the newest backup of it in another place, and start the node there", cause)
	}
	return c.changeIdentity(func(id *identity) { id.Distrust = cause.Error() })
}

// giveUpDamaged does at the start what was found to be needed before: parts are set aside, and log and catalog
// given up. A crash on the way repeats it.
func (c *core) giveUpDamaged() error {
	for _, part := range c.id.Damaged {
		c.env.Log.Error("a part of the directory is damaged and is made anew", "part", part)
		if err := c.setAside(part); err != nil {
			return err
		}
	}
	if len(c.id.Damaged) > 0 {
		if err := c.changeIdentity(func(id *identity) { id.Damaged = nil }); err != nil {
			return err
		}
	}
	if c.id.Distrust == "" {
		return nil
	}
	return c.newIncarnation()
}

// newIncarnation sets log and catalog aside, durably before the directory says that it begins anew.
func (c *core) newIncarnation() error {
	c.standing.mu.Lock()
	highest := c.standing.highest
	c.standing.mu.Unlock()
	c.env.Log.Error("raft state is not to be trusted, this node returns as a new incarnation without a vote",
		"incarnation", max(c.id.Incarnation, highest)+1, "err", c.id.Distrust)
	for _, part := range []string{"raft", "catalog"} {
		if err := c.setAside(part); err != nil {
			return err
		}
	}
	return c.changeIdentity(func(id *identity) {
		id.Incarnation = max(id.Incarnation, highest) + 1
		id.Enrolled, id.Distrust = false, ""
		id.Starts = id.Starts[len(id.Starts)-1:]
	})
}

// startOver gives log and catalog up and opens an empty catalog. cause is why.
func (c *core) startOver(cause error) error {
	if err := c.keepPeers(); err != nil {
		return err
	}
	if err := c.distrust(cause); err != nil {
		return fmt.Errorf("open ring: %w", err)
	}
	if err := c.cat.Close(); err != nil {
		c.env.Log.Warn("close the old catalog", "err", err)
	}
	if err := c.newIncarnation(); err != nil {
		return err
	}
	if err := c.openCatalog(); err != nil {
		return err
	}
	c.topo.replace(c.cat, c.id)
	return nil
}

// keepPeers writes down who the other members are, for a start without a catalog. The catalog may lag behind: whom it does not
// list is kept until it says that the node was removed.
func (c *core) keepPeers() error {
	known := c.rememberedPeers()
	peers := slices.Clone(known)
	for _, n := range c.topo.nodes() {
		at := slices.IndexFunc(peers, func(p peerAddress) bool { return p.Node == n.ID })
		switch {
		case n.State == catalog.NodeRemoved && at >= 0:
			peers = slices.Delete(peers, at, at+1)
		case n.State == catalog.NodeRemoved || n.ID == c.id.Node:
		case at >= 0:
			peers[at].Address = n.Address
		default:
			peers = append(peers, peerAddress{Node: n.ID, Address: n.Address})
		}
	}
	if slices.Equal(peers, known) {
		return nil
	}
	return c.changeIdentity(func(id *identity) { id.Peers = peers })
}

// peerRequest is what nodes ask each other over link.KindAdmin.
type peerRequest struct {
	// Sighting is what the sender tells of itself; the answer is what was known of it.
	Sighting *sighting `json:"sighting,omitempty"`
	// Return asks to record this incarnation of the sender, its certificate and its address.
	Return      uint64 `json:"return,omitempty"`
	Address     string `json:"address,omitempty"`
	Certificate []byte `json:"certificate,omitempty"`
}

// answerPeer answers a sighting, or records a member's new incarnation; the link has proven who the sender is.
func (c *core) answerPeer(ctx context.Context, from link.Peer, request []byte) ([]byte, error) {
	var req peerRequest
	err := json.Unmarshal(request, &req)
	switch {
	case err == nil && req.Sighting != nil:
		return c.sighted(from.Node, *req.Sighting)
	case err != nil || req.Return == 0:
		return nil, refuse(joinRefused, "the request is not one that this release understands")
	case c.standing.ring.Load() == nil:
		return nil, refuse(joinUnavailable, "this node is still starting")
	}
	if err := c.checkReturn(from, req); err != nil {
		return nil, refuse(joinRefused, "%v", err)
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

// checkReturn wants what a node that returns says of itself to be of use: without an address nobody would find it.
func (c *core) checkReturn(from link.Peer, req peerRequest) error {
	if _, _, err := net.SplitHostPort(req.Address); err != nil {
		return fmt.Errorf("link address %.80q is not host:port", req.Address)
	}
	peer, err := c.link.Verify(req.Certificate)
	if err == nil && peer.Node != from.Node {
		err = fmt.Errorf("the certificate is node %s's", peer.Node)
	}
	return err
}

// returnLoop tells the ring about this incarnation whenever the catalog here does not list it, or lists it with another
// address or certificate (it moved, or renewed, or somebody else said so).
func (n *Node) returnLoop(ctx context.Context) {
	tick := time.NewTicker(returnEvery)
	defer tick.Stop()
	for {
		if !n.listedAsIs() {
			if err := n.announceReturn(ctx); err != nil && ctx.Err() == nil {
				n.env.Log.Debug("ring has not taken note of this node yet", "err", err)
			}
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
	for _, p := range n.others() {
		_, err := n.link.Call(ctx, p, link.KindAdmin, request)
		if err == nil {
			return nil
		}
		causes = append(causes, err)
	}
	return errors.Join(causes...)
}
