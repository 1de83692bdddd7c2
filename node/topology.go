package node

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
)

// topology is the ring as seen from here: the members that the applied catalog lists, and which of them
// gossip believes to be alive. Reads are lock-free; refresh is called when either may have changed.
type topology struct {
	cat  *catalog.Catalog
	self identity
	env  Env

	current atomic.Pointer[members]

	mu sync.Mutex // serialises refresh

	alive func(place.NodeID) bool // nil until gossip runs: everybody
	free  func(place.NodeID) int64
}

type members struct {
	nodes     []catalog.Node
	placed    []place.Node // data nodes, for placement
	addresses map[place.NodeID]string
	removed   map[place.NodeID]bool
}

func newTopology(cat *catalog.Catalog, self identity, env Env) *topology {
	t := &topology{cat: cat, self: self, env: env}
	t.current.Store(&members{})
	t.refresh(context.Background())
	return t
}

// observe tells how to ask for liveness and free bytes.
func (t *topology) observe(alive func(place.NodeID) bool, free func(place.NodeID) int64) {
	t.mu.Lock()
	t.alive, t.free = alive, free
	t.mu.Unlock()
	t.refresh(context.Background())
}

// replace takes another catalog and identity, after the old ones were given up.
func (t *topology) replace(cat *catalog.Catalog, self identity) {
	t.mu.Lock()
	t.cat, t.self = cat, self
	t.mu.Unlock()
	t.refresh(context.Background())
}

// refresh reads the members again.
func (t *topology) refresh(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	nodes, err := t.cat.Nodes(ctx)
	if err != nil {
		t.env.Log.Error("read members from the catalog", "err", err)
		return
	}
	m := &members{nodes: nodes, addresses: map[place.NodeID]string{}, removed: map[place.NodeID]bool{}}
	for _, p := range t.self.Peers {
		m.addresses[p.Node] = p.Address
	}
	for _, n := range nodes {
		m.addresses[n.ID] = n.Address
		if n.State == catalog.NodeRemoved {
			m.removed[n.ID] = true
			continue
		}
		p := place.Node{
			ID: n.ID, Name: n.Name, Site: n.Site, Disk: n.Disk, Live: true,
			Cordoned: n.State == catalog.NodeCordoned, Data: n.Role == catalog.RoleData,
		}
		if t.alive != nil && n.ID != t.self.Node {
			p.Live = t.alive(n.ID)
		}
		if t.free != nil {
			p.Free = t.free(n.ID)
		}
		m.placed = append(m.placed, p)
	}
	t.current.Store(m)
}

// placed returns every member that was not removed, witnesses included, with its liveness.
func (t *topology) placed() []place.Node { return t.current.Load().placed }

func (t *topology) nodes() []catalog.Node { return t.current.Load().nodes }

func (t *topology) live(id place.NodeID) bool {
	for _, n := range t.current.Load().placed {
		if n.ID == id {
			return n.Live
		}
	}
	return false
}

func (t *topology) name(id place.NodeID) string {
	for _, n := range t.current.Load().nodes {
		if n.ID == id {
			return n.Name
		}
	}
	return ""
}

func (t *topology) resolve(id place.NodeID) (string, bool) {
	address, ok := t.current.Load().addresses[id]
	return address, ok && address != ""
}

var errRemoved = errors.New("this node was removed from the ring; join again as a new node")

// allowed refuses members that were removed. A node that is not listed yet may have joined a moment ago:
// its certificate decides.
func (t *topology) allowed(p link.Peer) error {
	if t.current.Load().removed[p.Node] {
		return errRemoved
	}
	return nil
}
