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
