package node

import "context"

// Doors for the tests of this package from outside.

// Renew renews the node's certificate now.
func (n *Node) Renew(ctx context.Context) error { return n.renew(ctx) }
