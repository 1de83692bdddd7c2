package place

import (
	"cmp"
	"fmt"
	"slices"
)

// Voters returns which nodes should vote in the ring and a sentence that says what quorum this
// survives. It wants five, three or one voters dealt evenly over sites: the largest number at which
// no site holds a majority, and where every number gives some site one (fewer than three sites),
// the largest the nodes allow. Witnesses count, cordoned nodes only when there is nothing else.
//
// Within its share a site keeps a live current voter before any other live node, and replaces a
// dead one when it has a live node. A site that is down as a whole keeps its share: to give it away
// would hand a majority to a site. The caller decides for how long a node must be silent before it
// passes Live = false; the answer is stable while its inputs are.
func Voters(nodes []Node, current []NodeID) (want []NodeID, why string) {
	sites := votingSites(nodes, current)
	if len(sites) == 0 {
		return nil, "no node may vote"
	}
	counts := voterCounts(sites)
	for i, s := range sites {
		for _, n := range s.nodes[:counts[i]] {
			want = append(want, n.ID)
		}
	}
	return want, quorumPhrase(counts)
}

// votingSites groups the nodes by site, within each those to prefer first, and orders the sites by
// how many current voters they have, so that odd shares stay where they are.
func votingSites(nodes []Node, current []NodeID) []site {
	voted := make(map[NodeID]bool, len(current))
	for _, id := range current {
		voted[id] = true
	}
	group := func(keep func(Node) bool) []site {
		eligible := slices.Clone(nodes)
		for i := range eligible {
			eligible[i].Data = keep(nodes[i])
			eligible[i].Cordoned = false
		}
		return usable(eligible, func(Node) bool { return true })
	}
	sites := group(func(n Node) bool { return !n.Cordoned })
	if len(sites) == 0 {
		sites = group(func(Node) bool { return true })
	}
	votersAt := make(map[SiteID]int)
	for _, s := range sites {
		slices.SortStableFunc(s.nodes, func(a, b Node) int {
			if a.Live != b.Live {
				return before(a.Live)
			}
			if voted[a.ID] != voted[b.ID] {
				return before(voted[a.ID])
			}
			return 0
		})
		for _, n := range s.nodes {
			if voted[n.ID] {
				votersAt[s.id]++
			}
		}
	}
	slices.SortStableFunc(sites, func(a, b site) int { return cmp.Compare(votersAt[b.id], votersAt[a.id]) })
	return sites
}

func before(first bool) int {
	if first {
		return -1
	}
	return 1
}

// voterCounts returns the share of each site.
func voterCounts(sites []site) []int {
	total := 0
	for _, s := range sites {
		total += len(s.nodes)
	}
	var fallback []int
	for _, n := range []int{5, 3, 1} {
		if n > total {
			continue
		}
		counts := deal(sites, n)
		if slices.Max(counts) <= (n-1)/2 {
			return counts
		}
		if fallback == nil {
			fallback = counts
		}
	}
	return fallback
}

// deal gives n places to the sites in rounds, in their order.
func deal(sites []site, n int) []int {
	counts := make([]int, len(sites))
	for n > 0 {
		for i := range sites {
			if n > 0 && counts[i] < len(sites[i].nodes) {
				counts[i]++
				n--
			}
		}
	}
	return counts
}

// quorumPhrase says what the quorum survives, tried over the counts: nodes are taken where it
// hurts most only in number, since each voter counts the same.
func quorumPhrase(counts []int) string {
	sum := 0
	for _, c := range counts {
		sum += c
	}
	spare := (sum - 1) / 2
	sorted := slices.Clone(counts)
	slices.SortFunc(sorted, func(a, b int) int { return cmp.Compare(b, a) })
	sorted = append(sorted, 0)
	head := fmt.Sprintf("%s on %s: quorum survives ", count(sum, "voter"), count(len(slices.DeleteFunc(slices.Clone(counts), func(c int) bool { return c == 0 })), "site"))
	switch {
	case spare == 0:
		return head + "no loss; three nodes are needed to survive one"
	case sorted[0]+sorted[1] <= spare && sorted[1] > 0:
		return head + "the loss of any two sites"
	case sorted[0]+1 <= spare && sorted[1] > 0:
		return head + "the loss of any one site and one node of another"
	case sorted[0] <= spare:
		return head + "the loss of any one site"
	}
	tail := ""
	if sorted[1] > 0 {
		tail = "; the loss of a site needs manual fail-over: add a node or a witness at a third site"
	}
	return head + "the loss of any " + nodesPhrase(spare) + tail
}

func nodesPhrase(n int) string {
	if n == 1 {
		return "one node"
	}
	return fmt.Sprintf("%d nodes", n)
}
