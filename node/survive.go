package node

import (
	"osteon/erasure/place"
)

// Survival says, for each thing that a ring does, the strongest loss that it survives from the state it
// is in now (design P11).
type Survival struct {
	Data       place.Survive `json:"data"`
	Stores     place.Survive `json:"stores"`
	Commitment place.Survive `json:"commitment"`
	Quorum     place.Survive `json:"quorum"`
}

// classes from the strongest; a class is survived when every loss that it names is.
var classes = []place.Survive{place.SurviveTwoSites, place.SurviveSiteNode, place.SurviveSite, place.SurviveNode}

// strongest returns the strongest class all of whose losses leave ok true.
func strongest(nodes []place.Node, ok func(left []place.Node) bool) place.Survive {
	live := make([]place.Node, 0, len(nodes))
	for _, n := range nodes {
		if n.Live {
			live = append(live, n)
		}
	}
	for _, class := range classes {
		all := losses(nodes, class)
		if len(all) == 0 {
			continue
		}
		survived := true
		for _, lost := range all {
			left := live[:0:0]
			for _, n := range live {
				if !lost(n) {
					left = append(left, n)
				}
			}
			if !ok(left) {
				survived = false
				break
			}
		}
		if survived {
			return class
		}
	}
	return place.SurviveNone
}

// losses enumerates every loss of a class among nodes; none where the ring is too small to have one.
func losses(nodes []place.Node, class place.Survive) []func(place.Node) bool {
	sites := map[place.SiteID]bool{}
	var order []place.SiteID
	for _, n := range nodes {
		if !sites[n.Site] {
			sites[n.Site] = true
			order = append(order, n.Site)
		}
	}
	var out []func(place.Node) bool
	switch class {
	case place.SurviveNode:
		if len(nodes) < 2 {
			return nil
		}
		for _, n := range nodes {
			out = append(out, func(x place.Node) bool { return x.ID == n.ID })
		}
	case place.SurviveSite:
		if len(order) < 2 {
			return nil
		}
		for _, s := range order {
			out = append(out, func(x place.Node) bool { return x.Site == s })
		}
	case place.SurviveSiteNode:
		if len(order) < 2 {
			return nil
		}
		for _, s := range order {
			for _, n := range nodes {
				if n.Site != s {
					out = append(out, func(x place.Node) bool { return x.Site == s || x.ID == n.ID })
				}
			}
		}
	case place.SurviveTwoSites:
		if len(order) < 3 {
			return nil
		}
		for i, a := range order {
			for _, b := range order[i+1:] {
				out = append(out, func(x place.Node) bool { return x.Site == a || x.Site == b })
			}
		}
	}
	return out
}

func dataNodes(nodes []place.Node) []place.Node {
	var out []place.Node
	for _, n := range nodes {
		if n.Data {
			out = append(out, n)
		}
	}
	return out
}

// storesSurvive: after the loss two live nodes can still take a copy each.
func storesSurvive(nodes []place.Node, single bool) place.Survive {
	need := 2
	if single {
		need = 1
	}
	return strongest(dataNodes(nodes), func(left []place.Node) bool { return len(left) >= need })
}

// commitmentSurvives: after the loss new packs can still be placed so that they survive the floor.
func commitmentSurvives(nodes []place.Node, floor place.Survive) place.Survive {
	return strongest(dataNodes(nodes), func(left []place.Node) bool {
		plan, err := place.Choose(left, floor, []byte("what if"))
		return err == nil && plan.Survives.Meets(floor)
	})
}

// quorumSurvives: after the loss a majority of the voters is left.
func quorumSurvives(nodes []place.Node, voters map[place.NodeID]bool) place.Survive {
	return strongest(nodes, func(left []place.Node) bool {
		votes := 0
		for _, n := range left {
			if voters[n.ID] {
				votes++
			}
		}
		return 2*votes > len(voters)
	})
}

// commitFloor is the default floor of commitment: a site where there are sites to lose, else a node.
func commitFloor(nodes []place.Node) place.Survive {
	sites := map[place.SiteID]bool{}
	for _, n := range dataNodes(nodes) {
		sites[n.Site] = true
	}
	switch {
	case len(sites) > 1:
		return place.SurviveSite
	case len(nodes) > 1:
		return place.SurviveNode
	default:
		return place.SurviveNone
	}
}
