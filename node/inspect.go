package node

import (
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/ring"
)

// Catalog returns the node's replica of the catalog, for tests that look at a whole ring.
func (n *Node) Catalog() *catalog.Catalog { return n.cat }

// Ring returns the node's part in Raft, for tests that look at a whole ring.
func (n *Node) Ring() *ring.Ring { return n.ring }

// ID returns the node's identity.
func (n *Node) ID() place.NodeID { return n.id.Node }
