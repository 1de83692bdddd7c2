package place

// Survives returns the strongest class of losses that p, coded with g, survives from what is live
// now. It enumerates every loss of each class among the nodes that hold shards and computes the
// rank of what is left. A nil live means that all nodes are live. It returns [SurviveLost] when the
// shards on live nodes do not even give the data now.
func Survives(g Geometry, p Placement, live func(NodeID) bool) Survive {
	for _, class := range classes {
		if survives(g, p, live, class) {
			return class
		}
	}
	return SurviveLost
}

// rank returns the rank of the generator matrix restricted to the shards of p that left keeps.
// The code is maximum distance separable (every K rows of its generator are independent, which
// the stripe package tests exhaustively), so distinct shard numbers add one each until K; copies
// (K = 1) all span the same one dimension, which is the same formula. A number beyond the
// geometry is no row of the matrix and adds nothing.
func rank(g Geometry, p Placement, left func(Slot) bool) int {
	rows := 0
	for i := range min(len(p), g.N()) {
		if left(p[i]) {
			rows++
		}
	}
	return min(g.K, rows)
}

// survives tries every loss of the class.
func survives(g Geometry, p Placement, live func(NodeID) bool, class Survive) bool {
	up := func(s Slot) bool { return live == nil || live(s.Node) }
	readable := func(left func(Slot) bool) bool {
		return rank(g, p, func(s Slot) bool { return up(s) && left(s) }) >= g.K
	}
	if !readable(func(Slot) bool { return true }) {
		return false
	}
	holders := liveHolders(p, up)
	sites := sitesOf(holders)
	switch class {
	case SurviveNone:
		return true
	case SurviveNode:
		for _, n := range holders {
			if !readable(func(s Slot) bool { return s.Node != n.Node }) {
				return false
			}
		}
		return true
	case SurviveSite:
		for _, a := range sites {
			if !readable(func(s Slot) bool { return s.Site != a }) {
				return false
			}
		}
		return true
	case SurviveSiteNode:
		for _, a := range sites {
			if !readable(func(s Slot) bool { return s.Site != a }) {
				return false
			}
			for _, n := range holders {
				if !readable(func(s Slot) bool { return s.Site != a && s.Node != n.Node }) {
					return false
				}
			}
		}
		return true
	case SurviveTwoSites:
		for i, a := range sites {
			for _, b := range sites[i:] {
				if !readable(func(s Slot) bool { return s.Site != a && s.Site != b }) {
					return false
				}
			}
		}
		return true
	}
	return false
}

// liveHolders returns one slot for each live node of p, in order of appearance.
func liveHolders(p Placement, up func(Slot) bool) []Slot {
	var holders []Slot
	seen := make(map[NodeID]bool, len(p))
	for _, s := range p {
		if up(s) && !seen[s.Node] {
			seen[s.Node] = true
			holders = append(holders, s)
		}
	}
	return holders
}

// sitesOf returns the sites of the slots, in order of appearance.
func sitesOf(slots []Slot) []SiteID {
	var sites []SiteID
	seen := make(map[SiteID]bool, len(slots))
	for _, s := range slots {
		if !seen[s.Site] {
			seen[s.Site] = true
			sites = append(sites, s.Site)
		}
	}
	return sites
}
