package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"osteon/node"
)

// A node that lost its Raft log must not vote with an empty one: it comes back as a new incarnation, is
// given the catalog by the others and its vote again, and what it journalled and sealed is still there.
func TestNodeWithoutItsRaftLogReturns(t *testing.T) {
	r := startRing(t, 3, 1, "--seal-quiet", "1h")
	victim := r.node("b1")
	fresh := noiseInstance(1, 1, 1, 200_000, 1)
	r.mustStore(victim, fresh)
	sealed := noiseInstance(2, 1, 1, 200_000, 1)
	r.mustStore(victim, sealed)
	if err := victim.admin().Seal(context.Background(), sealed.study); err != nil {
		t.Fatal(err)
	}
	r.kill(victim)
	if err := os.RemoveAll(filepath.Join(victim.Dir, "raft", "log")); err != nil {
		t.Fatal(err)
	}
	r.start(victim)
	r.awaitStatus(victim, "has its vote again", func(s node.Status) bool {
		for _, n := range s.Nodes {
			if n.Name == "b1" && n.Voter {
				return true
			}
		}
		return false
	})
	r.checkReadable(victim, fresh)
	r.checkReadable(victim, sealed)
	r.kill(r.node("a1")) // two of three votes are left, one of them the returned node's
	r.mustStore(r.node("c1"), noiseInstance(3, 1, 1, 1000, 1))
	r.awaitReady(victim)
}
