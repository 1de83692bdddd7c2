package place

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// ring makes len(counts) sites of counts[i] nodes, all live.
func ring(counts ...int) []Node {
	var nodes []Node
	for s, n := range counts {
		for i := range n {
			nodes = append(nodes, Node{
				ID: NodeID{1, byte(s), byte(i)}, Disk: DiskID{2, byte(s), byte(i)},
				Name: fmt.Sprintf("%c%d", 'a'+s, i+1), Site: SiteID(rune('a' + s)), Live: true, Data: true,
			})
		}
	}
	return nodes
}

func even(sites, nodes int) []Node {
	counts := make([]int, sites)
	for i := range counts {
		counts[i] = nodes
	}
	return ring(counts...)
}

func TestChooseGeometryTable(t *testing.T) {
	const no = "refused"
	for _, row := range []struct {
		sites, nodes             int
		site, siteNode, twoSites string
	}{
		{2, 1, "1+1", no, no},
		{2, 2, "1+1", "1+3", no},
		{3, 1, "2+1", "1+2", "1+2"},
		{3, 2, "4+2", "3+3", "1+2"},
		{3, 3, "6+3", "5+4", "1+2"},
		{4, 1, "3+1", "2+2", "2+2"},
		{4, 2, "6+2", "5+3", "4+4"},
		{4, 3, "9+3", "8+4", "4+4"},
		{5, 2, "8+2", "7+3", "6+4"},
		{6, 2, "10+2", "9+3", "8+4"},
		{7, 2, "10+2", "10+3", "10+4"},
	} {
		nodes := even(row.sites, row.nodes)
		for want, geometry := range map[Survive]string{SurviveSite: row.site, SurviveSiteNode: row.siteNode, SurviveTwoSites: row.twoSites} {
			plan, err := Choose(nodes, want, []byte("pack"))
			if err != nil {
				t.Fatalf("%dx%d %s: %v", row.sites, row.nodes, want, err)
			}
			check := Check(nodes, want)
			if geometry == no {
				if !errors.Is(check, ErrCannotMeet) || !strings.Contains(check.Error(), "add ") || !plan.Fallback || plan.Survives.Meets(want) {
					t.Errorf("%dx%d %s: got check %v plan %+v, want refused", row.sites, row.nodes, want, check, plan)
				}
				continue
			}
			if plan.Geometry.String() != geometry || check != nil || plan.Fallback || !plan.Survives.Meets(want) {
				t.Errorf("%dx%d %s: got %v survives %s fallback %v check %v, want %s",
					row.sites, row.nodes, want, plan.Geometry, plan.Survives, plan.Fallback, check, geometry)
			}
		}
	}
	for nodes, want := range map[int]string{1: "1+0", 2: "1+1", 3: "2+1", 4: "3+1", 5: "4+1", 6: "4+1", 10: "8+2", 12: "10+2", 30: "10+2"} {
		plan, err := Choose(even(1, nodes), SurviveAuto, nil)
		if err != nil || plan.Geometry.String() != want {
			t.Errorf("1x%d: got %v %v, want %s", nodes, plan.Geometry, err, want)
		}
	}
}

// bruteForce decides whether the placement survives the class without any code of the package: it
// kills sets of nodes and counts what is left.
func bruteForce(g Geometry, p Placement, nodes []Node, class Survive) bool {
	left := func(dead func(Slot) bool) int {
		n := 0
		for _, s := range p {
			if !dead(s) {
				n++
			}
		}
		return n
	}
	if left(func(Slot) bool { return false }) < g.K {
		return false
	}
	var sites []SiteID
	for _, n := range nodes {
		if len(sites) == 0 || sites[len(sites)-1] != n.Site {
			sites = append(sites, n.Site)
		}
	}
	ok := true
	switch class {
	case SurviveNode:
		for _, n := range nodes {
			ok = ok && left(func(s Slot) bool { return s.Node == n.ID }) >= g.K
		}
	case SurviveSite:
		for _, a := range sites {
			ok = ok && left(func(s Slot) bool { return s.Site == a }) >= g.K
		}
	case SurviveSiteNode:
		for _, a := range sites {
			for _, n := range nodes {
				ok = ok && left(func(s Slot) bool { return s.Site == a || s.Node == n.ID }) >= g.K
			}
		}
	case SurviveTwoSites:
		for _, a := range sites {
			for _, b := range sites {
				ok = ok && left(func(s Slot) bool { return s.Site == a || s.Site == b }) >= g.K
			}
		}
	}
	return ok
}

// Every topology of up to 4 sites of up to 3 nodes, every set of live nodes (by count at each site,
// which is the same up to names), every class: the plan holds what it claims, and no stronger class.
func TestChooseExhaustive(t *testing.T) {
	wants := []Survive{SurviveNone, SurviveNode, SurviveSite, SurviveSiteNode, SurviveTwoSites}
	plans := 0
	var counts [4]int
	for code := 1; code < 256; code++ {
		for i := range counts {
			counts[i] = code >> (2 * i) & 3
		}
		all := ring(counts[:]...)
		for mask := 1; mask < 1<<len(all); mask++ {
			if len(all) > 6 && mask%(2*len(all)-7) != 0 && mask != 1<<len(all)-1 {
				continue // of the large rings a sample of the sets
			}
			nodes := append([]Node(nil), all...)
			for i := range nodes {
				nodes[i].Live = mask>>i&1 == 1
			}
			for _, want := range wants {
				verifyPlan(t, nodes, want, byte(mask))
				plans++
			}
			if t.Failed() {
				t.Fatalf("counts %v mask %b", counts, mask)
			}
		}
	}
	t.Logf("%d plans", plans)
}

func verifyPlan(t *testing.T, nodes []Node, want Survive, seed byte) {
	t.Helper()
	plan, err := Choose(nodes, want, []byte{seed})
	if err != nil {
		t.Errorf("%s: %v", want, err)
		return
	}
	if plan.Geometry.Check() != nil || len(plan.Placement) != plan.Geometry.N() || plan.Why == "" {
		t.Errorf("%s: malformed plan %+v", want, plan)
	}
	var up []Node
	live := make(map[NodeID]Node)
	for _, n := range nodes {
		if n.Live {
			live[n.ID] = n
			up = append(up, n)
		}
	}
	seen := make(map[NodeID]bool)
	for _, s := range plan.Placement {
		n, ok := live[s.Node]
		if !ok || seen[s.Node] || n.Site != s.Site || n.Disk != s.Disk {
			t.Errorf("%s: bad slot %+v", want, s)
		}
		seen[s.Node] = true
	}
	for _, class := range classes[:4] {
		claims := plan.Survives.Meets(class)
		if really := bruteForce(plan.Geometry, plan.Placement, up, class); claims != really {
			t.Errorf("%s: plan %v claims to survive %s: %v, brute force says %v", want, plan.Geometry, class, claims, really)
		}
	}
	// What copies on all live nodes would survive, the plan must too.
	mirror := Geometry{1, len(up) - 1}
	var p Placement
	for _, n := range up {
		p = append(p, Slot{n.ID, n.Disk, n.Site})
	}
	if bruteForce(mirror, p, up, want) && !plan.Survives.Meets(want) {
		t.Errorf("%s: copies would survive it, the plan %v only %s", want, plan.Geometry, plan.Survives)
	}
	if !plan.Survives.Meets(want) && !plan.Fallback {
		t.Errorf("%s: survives %s and is no fallback", want, plan.Survives)
	}
}

func TestChooseFallsBack(t *testing.T) {
	nodes := even(3, 3)
	for _, step := range []struct{ down, want, class, say string }{
		{"", "5+4", "site+node", "3 sites"},
		{"c3", "3+3", "site+node", "down: c3 at site c"},
		{"c3 c2 c1", "2+4", "site+node", "all of site c"},
		{"c3 c2 c1 b1 b2", "1+1", "site", "sealed again"},
		{"c3 c2 c1 b1 b2 b3", "2+1", "node", ""},
		{"c3 c2 c1 b1 b2 b3 a1 a2", "1+0", "none", ""},
	} {
		for i := range nodes {
			nodes[i].Live = !strings.Contains(step.down, nodes[i].Name)
		}
		plan, err := Choose(nodes, SurviveSiteNode, []byte("x"))
		if err != nil || plan.Geometry.String() != step.want || string(plan.Survives) != step.class ||
			plan.Fallback != (step.down != "") || !strings.Contains(plan.Why, step.say) {
			t.Errorf("down %q: got %v %s fallback %v %v: %q, want %s %s", step.down, plan.Geometry, plan.Survives, plan.Fallback, err, plan.Why, step.want, step.class)
		}
		t.Log(plan.Why)
	}
	for i := range nodes {
		nodes[i].Live = false
	}
	if _, err := Choose(nodes, SurviveSite, nil); !errors.Is(err, ErrNoNodes) {
		t.Errorf("no live node: got %v", err)
	}
	if _, err := Choose(even(2, 1), "galaxy", nil); err == nil {
		t.Error("unknown class accepted")
	}
}

func TestChooseLeavesOutCordonedAndWitness(t *testing.T) {
	nodes := even(3, 2)
	nodes[0].Cordoned = true
	nodes[2].Data = false
	for seed := range 50 {
		plan, err := Choose(nodes, SurviveSite, []byte{byte(seed)})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range plan.Placement {
			if s.Node == nodes[0].ID || s.Node == nodes[2].ID {
				t.Fatalf("placed on %v", s)
			}
		}
	}
}

func TestChooseSpreadsEvenly(t *testing.T) {
	for _, tc := range []struct {
		nodes []Node
		want  Survive
	}{{even(7, 2), SurviveSite}, {even(3, 5), SurviveSite}, {even(1, 7), SurviveNode}, {even(4, 3), SurviveTwoSites}} {
		const packs = 3000
		shards, parity := map[NodeID]int{}, map[NodeID]int{}
		n, m := 0, 0
		for i := range packs {
			plan, err := Choose(tc.nodes, tc.want, fmt.Appendf(nil, "pack %d", i))
			if err != nil {
				t.Fatal(err)
			}
			n, m = plan.Geometry.N(), plan.Geometry.M
			for s, slot := range plan.Placement {
				shards[slot.Node]++
				if s >= plan.Geometry.K {
					parity[slot.Node]++
				}
			}
		}
		for name, got := range map[string]map[NodeID]int{"shards": shards, "parity": parity} {
			each := n
			if name == "parity" {
				each = m
			}
			mean := float64(packs*each) / float64(len(tc.nodes))
			chi := 0.0
			for _, node := range tc.nodes {
				d := float64(got[node.ID]) - mean
				chi += d * d / mean
			}
			// The 99.9 % point of chi-square at 14 degrees of freedom is 36.
			if chi > 36 {
				t.Errorf("%d nodes %s: chi-square of %s %.1f: %v", len(tc.nodes), tc.want, name, chi, got)
			}
		}
	}
}

func TestChoosePrefersFreeSpace(t *testing.T) {
	nodes := even(1, 4)
	for i := range nodes {
		nodes[i].Free = int64(i+1) << 30
	}
	got := map[NodeID]int{}
	for i := range 2000 {
		plan, _ := Choose(nodes, SurviveNone, fmt.Appendf(nil, "%d", i))
		got[plan.Placement[0].Node]++
	}
	for i := 1; i < 4; i++ {
		if got[nodes[i].ID] <= got[nodes[i-1].ID] {
			t.Errorf("free %d GiB got %d packs, free %d GiB %d", i+1, got[nodes[i].ID], i, got[nodes[i-1].ID])
		}
	}
}

func TestSurvives(t *testing.T) {
	nodes := even(3, 3)
	plan, _ := Choose(nodes, SurviveSiteNode, []byte("x"))
	dead := map[NodeID]bool{}
	live := func(id NodeID) bool { return !dead[id] }
	if got := Survives(plan.Geometry, plan.Placement, nil); got != SurviveSiteNode {
		t.Fatalf("whole: got %s", got)
	}
	// Losing one node after another never makes it stronger, and ends in lost.
	last := SurviveTwoSites
	for _, s := range plan.Placement {
		dead[s.Node] = true
		got := Survives(plan.Geometry, plan.Placement, live)
		if !last.Meets(got) {
			t.Errorf("%d dead: %s after %s", len(dead), got, last)
		}
		last = got
	}
	if last != SurviveLost {
		t.Errorf("all dead: got %s", last)
	}
	// Two shards a node, as a geometry of older days or of another planner may have.
	two := Placement{}
	for i := range 6 {
		n := nodes[i/2*3]
		two = append(two, Slot{n.ID, n.Disk, n.Site})
	}
	if got := Survives(Geometry{4, 2}, two, nil); got != SurviveSite {
		t.Errorf("4+2 two a node: got %s", got)
	}
}

func TestBest(t *testing.T) {
	for _, tc := range []struct {
		counts []int
		want   Survive
	}{
		{[]int{1}, SurviveNone}, {[]int{2}, SurviveNode}, {[]int{1, 1}, SurviveSite}, {[]int{2, 1}, SurviveSite},
		{[]int{2, 2}, SurviveSiteNode}, {[]int{1, 1, 1}, SurviveSiteNode}, {[]int{5, 1, 1}, SurviveSiteNode}, {nil, SurviveLost},
	} {
		if got := Best(ring(tc.counts...)); got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.counts, got, tc.want)
		}
	}
}

func TestRendezvousIsStable(t *testing.T) {
	var ids []NodeID
	for i := range 9 {
		ids = append(ids, NodeID{byte(i)})
	}
	first := map[NodeID]int{}
	for k := range 2000 {
		key := fmt.Appendf(nil, "study %d", k)
		order := Rendezvous(key, ids)
		first[order[0]]++
		shuffled := append([]NodeID(nil), ids...)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if fmt.Sprint(Rendezvous(key, shuffled)) != fmt.Sprint(order) {
			t.Fatal("order depends on the argument's order")
		}
		var without []NodeID
		for _, id := range ids {
			if id != order[3] {
				without = append(without, id)
			}
		}
		rest := Rendezvous(key, without)
		if fmt.Sprint(rest) != fmt.Sprint(append(append([]NodeID(nil), order[:3]...), order[4:]...)) {
			t.Fatal("one node gone changed the order of others")
		}
	}
	for id, n := range first {
		if n < 150 || n > 300 {
			t.Errorf("%v first %d times of 2000", id, n)
		}
	}
}

func TestVoters(t *testing.T) {
	for _, tc := range []struct {
		counts  []int
		want    string // voters at each site
		survive string
	}{
		{[]int{1}, "1", "no loss"},
		{[]int{3}, "3", "one node"},
		{[]int{6}, "5", "2 nodes"},
		{[]int{1, 1}, "1 0", "no loss"},
		{[]int{2, 2}, "2 1", "manual fail-over"},
		{[]int{1, 1, 1}, "1 1 1", "any one site"},
		{[]int{2, 2, 2}, "2 2 1", "any one site"},
		{[]int{5, 1, 1}, "1 1 1", "any one site"},
		{[]int{1, 1, 1, 1, 1}, "1 1 1 1 1", "two sites"},
		{[]int{2, 2, 2, 2}, "2 1 1 1", "any one site"},
	} {
		nodes := ring(tc.counts...)
		want, why := Voters(nodes, nil)
		at := make([]int, len(tc.counts))
		for _, id := range want {
			at[id[1]]++
		}
		if got := strings.Trim(fmt.Sprint(at), "[]"); got != tc.want || !strings.Contains(why, tc.survive) {
			t.Errorf("%v: got %s %q, want %s %q", tc.counts, got, why, tc.want, tc.survive)
		}
		again, _ := Voters(nodes, want)
		if !sameSet(want, again) {
			t.Errorf("%v: not stable: %v then %v", tc.counts, want, again)
		}
	}
}

func TestVotersKeepCurrentAndReplaceDead(t *testing.T) {
	nodes := even(3, 3)
	current := []NodeID{nodes[2].ID, nodes[1].ID, nodes[5].ID, nodes[8].ID, nodes[7].ID}
	got, _ := Voters(nodes, current)
	if !sameSet(got, current) {
		t.Errorf("got %v, want the current %v", got, current)
	}
	nodes[5].Live = false
	got, _ = Voters(nodes, current)
	kept := 0
	for _, id := range got {
		if id == nodes[5].ID {
			t.Error("dead voter kept while its site has live nodes")
		}
		for _, c := range current {
			if id == c {
				kept++
			}
		}
	}
	if len(got) != 5 || kept != 4 {
		t.Errorf("got %d voters, %d kept", len(got), kept)
	}
	for i := range nodes {
		nodes[i].Live = nodes[i].Site != "c"
	}
	got, _ = Voters(nodes, current)
	if len(got) != 5 {
		t.Errorf("a dead site shrank the voters to %d", len(got))
	}
}

func sameSet(a, b []NodeID) bool {
	in := map[NodeID]bool{}
	for _, id := range a {
		in[id] = true
	}
	for _, id := range b {
		if !in[id] {
			return false
		}
	}
	return len(a) == len(b)
}
