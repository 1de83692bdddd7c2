package node

import (
	"fmt"
	"testing"

	"osteon/erasure/place"
)

// ringOf returns sites x nodes live data nodes; their IDs begin with site and number.
func ringOf(sites, nodes int) []place.Node {
	var out []place.Node
	for s := range sites {
		for n := range nodes {
			site := string(rune('a' + s))
			out = append(out, place.Node{
				ID: place.NodeID{byte(s + 1), byte(n + 1)}, Name: fmt.Sprintf("%s%d", site, n+1), Site: place.SiteID(site), Live: true, Data: true,
			})
		}
	}
	return out
}

func votersOf(nodes []place.Node, names ...string) map[place.NodeID]bool {
	out := map[place.NodeID]bool{}
	for _, n := range nodes {
		for _, name := range names {
			if n.Name == name {
				out[n.ID] = true
			}
		}
	}
	return out
}

func TestWhatStoresCommitmentAndQuorumSurvive(t *testing.T) {
	six := ringOf(3, 2)
	for _, tt := range []struct {
		name                       string
		nodes                      []place.Node
		voters                     []string
		stores, commitment, quorum place.Survive
	}{
		{"one node", ringOf(1, 1), []string{"a1"}, place.SurviveNone, place.SurviveNone, place.SurviveNone},
		{"two sites", ringOf(2, 1), []string{"a1"}, place.SurviveNone, place.SurviveNone, place.SurviveNone},
		{"three sites of one", ringOf(3, 1), []string{"a1", "b1", "c1"}, place.SurviveSite, place.SurviveSite, place.SurviveSite},
		{"three sites of two, five votes", six, []string{"a1", "a2", "b1", "b2", "c1"}, place.SurviveTwoSites, place.SurviveSiteNode, place.SurviveSite},
		{"all votes at one site", six, []string{"a1"}, place.SurviveTwoSites, place.SurviveSiteNode, place.SurviveNone},
	} {
		voters := votersOf(tt.nodes, tt.voters...)
		if got := storesSurvive(tt.nodes, false); got != tt.stores {
			t.Errorf("%s: stores survive %q, want %q", tt.name, got, tt.stores)
		}
		if got := commitmentSurvives(tt.nodes, commitFloor(tt.nodes)); got != tt.commitment {
			t.Errorf("%s: commitment survives %q, want %q", tt.name, got, tt.commitment)
		}
		if got := quorumSurvives(tt.nodes, voters); got != tt.quorum {
			t.Errorf("%s: quorum survives %q, want %q", tt.name, got, tt.quorum)
		}
	}
}

func TestADeadSiteWeakensWhatIsSurvivedNow(t *testing.T) {
	nodes := ringOf(3, 1)
	nodes[0].Live = false
	voters := votersOf(nodes, "a1", "b1", "c1")
	if got := quorumSurvives(nodes, voters); got != place.SurviveNone {
		t.Errorf("quorum survives %q with one of three votes gone, want nothing", got)
	}
	if got := storesSurvive(nodes, false); got != place.SurviveNone {
		t.Errorf("stores survive %q with two nodes left, want nothing", got)
	}
}

// A node that nobody can give a second copy to refuses stores, so it must not be called ready.
func TestLacksPartner(t *testing.T) {
	down := func(nodes []place.Node, which ...int) []place.Node {
		for _, i := range which {
			nodes[i].Live = false
		}
		return nodes
	}
	witness := ringOf(3, 1)
	witness[2].Data = false
	self := place.NodeID{1, 1}
	for _, tt := range []struct {
		name  string
		nodes []place.Node
		self  place.NodeID
		want  bool
	}{
		{"alone in its ring", ringOf(1, 1), self, false},
		{"all alive", ringOf(3, 2), self, false},
		{"one other alive", down(ringOf(3, 1), 1), self, false},
		{"no other alive", down(ringOf(3, 1), 1, 2), self, true},
		{"only a witness alive", down(witness, 1), self, true},
		{"a witness itself", down(witness, 0), place.NodeID{3, 1}, false},
	} {
		if got := lacksPartner(tt.nodes, tt.self); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
