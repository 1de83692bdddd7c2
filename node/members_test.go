package node

import (
	"crypto/rand"
	"testing"

	"osteon/erasure/place"
)

func TestNextVoterSpreadsOverSites(t *testing.T) {
	var nodes []place.Node
	for _, name := range []string{"a1", "a2", "b1", "b2", "c1"} {
		id, err := place.NewNodeID(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, place.Node{ID: id, Name: name, Site: place.SiteID(name[:1]), Live: true, Data: true})
	}
	ids := func(names ...string) (out []place.NodeID) {
		for _, name := range names {
			for _, n := range nodes {
				if n.Name == name {
					out = append(out, n.ID)
				}
			}
		}
		return out
	}
	all := ids("a1", "a2", "b1", "b2", "c1")
	for _, tc := range []struct {
		voters []string
		dead   string
		next   string // empty: nobody
	}{
		{voters: []string{"a1"}, next: "b1"},
		{voters: []string{"a1", "b1"}, next: "c1"},
		{voters: []string{"a1", "b1", "c1"}, next: "a2"},
		{voters: []string{"a1", "b1", "c1", "a2"}, next: "b2"},
		{voters: []string{"a1", "b1"}, dead: "c1", next: "a2"},
		{voters: []string{"a1", "a2", "b1", "b2", "c1"}},
	} {
		for i := range nodes {
			nodes[i].Live = nodes[i].Name != tc.dead
		}
		got, ok := nextVoter(nodes, all, ids(tc.voters...))
		if tc.next == "" {
			if ok {
				t.Errorf("voters %v: got %s, want nobody", tc.voters, got)
			}
			continue
		}
		if !ok || got != ids(tc.next)[0] {
			t.Errorf("voters %v, dead %q: got %s, want %s", tc.voters, tc.dead, got, tc.next)
		}
	}
}
