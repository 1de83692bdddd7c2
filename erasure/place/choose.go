package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Choose plans where the shards of a new pack go: the cheapest geometry that survives want on the
// nodes that are live, hold data and are not cordoned, spread over nodes by seed (the pack's ID).
// Auto asks for [Best]. When the live nodes cannot meet want the plan falls back to the strongest
// class they can meet, marks Fallback and says why; it fails only with [ErrNoNodes], or on a word
// that is no class.
func Choose(nodes []Node, want Survive, seed []byte) (Plan, error) {
	if !want.Valid() {
		return Plan{}, fmt.Errorf("survive %q: want node, site, site+node, two-sites or none", want)
	}
	if want == SurviveAuto {
		want = Best(nodes)
	}
	all := usable(nodes, func(Node) bool { return true })
	up := usable(nodes, func(n Node) bool { return n.Live })
	if len(up) == 0 {
		return Plan{}, fmt.Errorf("choose a placement: %w", ErrNoNodes)
	}
	ideal, met := strongest(all, want)
	shape, _ := strongest(up, want)
	p := assign(up, shape, seed)
	plan := Plan{
		Geometry:  shape.code,
		Placement: p,
		Wanted:    want,
		Survives:  Survives(shape.code, p, nil),
	}
	plan.Fallback = shape.code != ideal.code || !plan.Survives.Meets(want)
	plan.Why = why(plan, ideal, met, all)
	return plan, nil
}

// Best returns the strongest of site+node, site, node and none that nodes can meet when all of
// them are up: the default of a ring. It never answers two-sites, which an admin must ask for.
func Best(nodes []Node) Survive {
	_, met := strongest(usable(nodes, func(Node) bool { return true }), SurviveSiteNode)
	return met
}

// Check returns nil when nodes, all up, can meet want, else an error that wraps [ErrCannotMeet] and
// says what to add.
func Check(nodes []Node, want Survive) error {
	if !want.Valid() {
		return fmt.Errorf("survive %q: want node, site, site+node, two-sites or none", want)
	}
	groups := usable(nodes, func(Node) bool { return true })
	if len(groups) == 0 {
		return fmt.Errorf("survive %q: %w: it has no data node; add one", want, ErrCannotMeet)
	}
	if want == SurviveAuto {
		return nil
	}
	if _, met := strongest(groups, want); met == want {
		return nil
	}
	return fmt.Errorf("survive %q: %w: it has data nodes at %s; %s", want, ErrCannotMeet,
		sitesPhrase(groups), missing(groups, want))
}

// site is a site with its usable nodes.
type site struct {
	id    SiteID
	nodes []Node
}

// usable groups the data nodes that take new shards and that keep accepts by site, ordered by
// site name and node ID so that the order of the argument does not matter.
func usable(nodes []Node, keep func(Node) bool) []site {
	bySite := make(map[SiteID][]Node)
	for _, n := range nodes {
		if n.Data && !n.Cordoned && keep(n) {
			bySite[n.Site] = append(bySite[n.Site], n)
		}
	}
	sites := make([]site, 0, len(bySite))
	for id, ns := range bySite {
		slices.SortFunc(ns, func(a, b Node) int { return slices.Compare(a.ID[:], b.ID[:]) })
		ns = slices.CompactFunc(ns, func(a, b Node) bool { return a.ID == b.ID })
		sites = append(sites, site{id, ns})
	}
	slices.SortFunc(sites, func(a, b site) int { return cmp.Compare(a.id, b.id) })
	return sites
}

// shape is a geometry with the number of shards each site holds, fullest first; which site gets
// which share is decided by assign.
type shape struct {
	code Geometry
	even bool // every site used holds the same number
}

// strongest returns the cheapest shape of the strongest class that the sites meet, want at most.
// Without nodes it returns a zero shape that meets nothing.
func strongest(sites []site, want Survive) (shape, Survive) {
	for _, class := range classes {
		if class.strength() > want.strength() {
			continue
		}
		if s, ok := cheapest(sites, class); ok {
			return s, class
		}
	}
	return shape{}, SurviveLost
}

// cheapest tries every number of shards, spread as evenly as the sites allow, with the parity
// that the class costs there, and keeps the best by better.
func cheapest(sites []site, class Survive) (best shape, ok bool) {
	total := 0
	for _, s := range sites {
		total += len(s.nodes)
	}
	for n := 1; n <= min(total, ShardsMax); n++ {
		counts := spread(sites, n)
		m := worstLoss(counts, class)
		if n-m > dataThinMax {
			m = max(m, parityFloor(class))
		}
		s := shape{Geometry{n - m, m}, isEven(counts)}
		if s.code.Check() != nil {
			continue
		}
		if !ok || better(s, best) {
			best, ok = s, true
		}
	}
	return best, ok
}

// parityFloor is the least parity of a code wider than dataThinMax.
func parityFloor(class Survive) int {
	if class == SurviveNone {
		return 0
	}
	return 2
}

// better orders shapes that meet the same class. Disk space first; among equals copies, which
// are read without decoding; then no more parity than usual, the same number at every site, and the
// widest code, whose rebuild is shared by most nodes.
func better(a, b shape) bool {
	if c := cmp.Compare(a.code.N()*b.code.K, b.code.N()*a.code.K); c != 0 {
		return c < 0
	}
	if x, y := a.code.K == 1, b.code.K == 1; x != y {
		return x
	}
	if x, y := a.code.M <= parityUsual, b.code.M <= parityUsual; x != y {
		return x
	}
	if a.even != b.even {
		return a.even
	}
	return a.code.K > b.code.K
}

// spread returns how many of n shards each site gets when they are dealt one round after
// another to the sites that still have a free node, the site of most nodes first.
func spread(sites []site, n int) []int {
	counts := make([]int, len(sites))
	order := make([]int, len(sites))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(sites[b].nodes), len(sites[a].nodes)) })
	for n > 0 {
		dealt := false
		for _, i := range order {
			if n > 0 && counts[i] < len(sites[i].nodes) {
				counts[i]++
				n--
				dealt = true
			}
		}
		if !dealt {
			break
		}
	}
	return counts
}

// worstLoss returns the most shards that one loss of the class takes, at one shard a node.
func worstLoss(counts []int, class Survive) int {
	sorted := slices.Clone(counts)
	slices.SortFunc(sorted, func(a, b int) int { return cmp.Compare(b, a) })
	first, second := sorted[0], 0
	if len(sorted) > 1 {
		second = sorted[1]
	}
	switch class {
	case SurviveNode:
		return 1
	case SurviveSite:
		return first
	case SurviveSiteNode:
		return first + min(second, 1)
	case SurviveTwoSites:
		return first + second
	}
	return 0
}

func isEven(counts []int) bool {
	used := slices.DeleteFunc(slices.Clone(counts), func(c int) bool { return c == 0 })
	return len(used) > 0 && slices.Min(used) == slices.Max(used)
}

// assign picks the nodes. Shards are dealt to the sites in rounds, in rendezvous order of the
// sites for seed, and within a site to its nodes in theirs: each pack has its own order, so data and
// parity, and the rounds that not every site takes part in, fall evenly on all nodes.
func assign(sites []site, s shape, seed []byte) Placement {
	orderKey := append([]byte("sites:"), seed...)
	order := ranked(orderKey, sites, func(s site) ([]byte, float64) { return []byte(s.id), float64(len(s.nodes)) })
	for i := range order {
		order[i].nodes = ranked(seed, order[i].nodes, weighted(order[i].nodes))
	}
	p := make(Placement, 0, s.code.N())
	for round := 0; len(p) < s.code.N(); round++ {
		for _, at := range order {
			if round < len(at.nodes) && len(p) < s.code.N() {
				n := at.nodes[round]
				p = append(p, Slot{n.ID, n.Disk, n.Site})
			}
		}
	}
	return p
}

// weighted labels nodes by ID and weighs them by free space; one of unknown space counts as the
// mean of the known ones.
func weighted(nodes []Node) func(Node) ([]byte, float64) {
	var sum float64
	known := 0
	for _, n := range nodes {
		if n.Free > 0 {
			sum += float64(n.Free)
			known++
		}
	}
	mean := 1.0
	if known > 0 {
		mean = sum / float64(known)
	}
	return func(n Node) ([]byte, float64) {
		if n.Free > 0 {
			return n.ID[:], float64(n.Free)
		}
		return n.ID[:], mean
	}
}

// why writes the sentence of a plan.
func why(p Plan, ideal shape, met Survive, all []site) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: survives %s", p.Geometry.Phrase(), count(sitesUsed(p.Placement), "site"), p.Survives.Phrase())
	if met != p.Wanted {
		fmt.Fprintf(&b, "; the ring cannot survive %s: %s", p.Wanted.Phrase(), missing(all, p.Wanted))
	}
	if down := downPhrase(all); down != "" && (p.Geometry != ideal.code || !p.Survives.Meets(met)) {
		fmt.Fprintf(&b, "; %s would be used with every node up; down: %s", ideal.code.Phrase(), down)
	}
	if !p.Survives.Meets(met) {
		fmt.Fprintf(&b, "; sealed again when the ring can survive %s", met.Phrase())
	}
	return b.String()
}

// missing says what to add so that the sites can meet want.
func missing(sites []site, want Survive) string {
	switch {
	case want == SurviveNode:
		return "add a second data node"
	case want == SurviveSite && len(sites) < 2:
		return "add a data node at a second site"
	case want == SurviveTwoSites:
		return fmt.Sprintf("add data nodes at %s", count(3-len(sites), "more site"))
	case len(sites) < 2:
		return "add data nodes at two more sites, or two at a second site and two here"
	}
	var thin []string
	for _, s := range sites {
		if len(s.nodes) < 2 {
			thin = append(thin, string(s.id))
		}
	}
	return fmt.Sprintf("add a data node at a third site, or a second one at %s", strings.Join(thin, " and "))
}

func sitesUsed(p Placement) int { return len(sitesOf(p)) }

func sitesPhrase(sites []site) string {
	var parts []string
	for _, s := range sites {
		parts = append(parts, fmt.Sprintf("%s (%d)", s.id, len(s.nodes)))
	}
	return strings.Join(parts, ", ")
}

func downPhrase(sites []site) string {
	var parts []string
	for _, s := range sites {
		var down []string
		for _, n := range s.nodes {
			if !n.Live {
				down = append(down, cmp.Or(n.Name, n.ID.String()))
			}
		}
		switch {
		case len(down) == 0:
		case len(down) == len(s.nodes):
			parts = append(parts, "all of site "+string(s.id))
		default:
			parts = append(parts, strings.Join(down, ", ")+" at site "+string(s.id))
		}
	}
	return strings.Join(parts, "; ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
