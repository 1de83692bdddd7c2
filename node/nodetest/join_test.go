package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
	"osteon/node"
)

// A join goes on where it was interrupted, under the same name, for as long as the node has not run; a directory that
// claims the identity of a node that has run is refused.
func TestJoinAgainAfterAnInterruption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScenario(t, 41, 2, 1, nil)
		ctx := t.Context()
		join := func(n *Node) error {
			token, err := s.ring.token(ctx, n.Site)
			if err != nil {
				t.Fatal(err)
			}
			_, err = node.Join(ctx, n.Config(), n.Env(), node.JoinRequest{Token: token, NodeName: "c1"})
			return err
		}
		c := s.ring.add("c1", "c")
		answered := false
		c.Disk.Watch(func(op Op, name string) error { // the answer is there, and its first file cannot be written
			if op == OpCreate && strings.Contains(name, "vault") {
				answered = true
				return errors.New("no space left on device")
			}
			return nil
		})
		if err := join(c); err == nil || !answered {
			t.Fatalf("join on a disk that takes nothing: %v, answered %t", err, answered)
		}
		c.Disk.Watch(nil)
		if _, err := node.Open(c.Config(), c.Env()); err == nil || !strings.Contains(err.Error(), "osteon join") {
			t.Errorf("open after the interruption: %v, want what to do", err)
		}
		if err := join(c); err != nil {
			t.Fatalf("join again: %v", err)
		}
		c.Start()
		s.ring.AwaitReady()
		time.Sleep(10 * time.Second) // the others have heard of it
		nodes, err := s.node("a1").Node().Catalog().Nodes(ctx)
		if err != nil || len(nodes) != 3 {
			t.Fatalf("the ring lists %d nodes, %v; want 3", len(nodes), err)
		}
		for _, victim := range nodes {
			if err := claim(ctx, s.ring, victim.ID, victim.Disk, victim.Name, victim.Site); !errors.Is(err, node.ErrToken) {
				t.Errorf("join as %s, which runs: %v, want ErrToken", victim.Name, err)
			}
		}
		o := s.store("a1", false)
		s.ring.Await("it is read at the node that joined", func() bool { return s.readable("c1", o) == "read "+o.version.String() })
	})
}

// claim joins from a directory that says that it was interrupted as another node.
func claim(ctx context.Context, r *Ring, id place.NodeID, disk place.DiskID, name string, site place.SiteID) error {
	token, err := r.token(ctx, site)
	if err != nil {
		return err
	}
	thief := r.add("thief-"+name, site)
	cfg, fs := thief.Config(), thief.Env().FS
	if err := fs.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	f, err := fs.Create(fs.PathJoin(cfg.Dir, "unfinished"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, fmt.Sprintf("join %s %s", id, disk)); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, err = node.Join(ctx, cfg, thief.Env(), node.JoinRequest{Token: token, NodeName: name})
	return err
}
