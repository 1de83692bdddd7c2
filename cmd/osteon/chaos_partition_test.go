//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dimse"
	"osteon/node"
)

var chaosLong = flag.Bool("chaos", false, "run the fault rows at full length (make chaos)")

// Bounds of the fault table.
const (
	electionMax     = 5 * time.Second  // F22: until another leads
	stepDownMax     = time.Second      // F22: until a leader without followers is none
	oneWayMax       = 10 * time.Second // F26: until the ring decides again
	partialMax      = 10 * time.Second // F27
	majoritiesMax   = 15 * time.Second // F28
	responseMax     = 5 * time.Second  // P2: no single fault delays a C-STORE-RSP by more
	electionsMinute = 5                // F26: fewer, or it is a term storm
	leaderChanges   = 3                // F27: fewer
)

// chaos begins a test of the fault table. In the short form these run beside each other, for they mostly wait.
func chaos(t *testing.T) {
	t.Helper()
	if !*chaosLong {
		t.Parallel()
	}
}

// span returns how long a fault is kept up: short in CI, as long as the fault table says otherwise.
func span(short, long time.Duration) time.Duration {
	if *chaosLong {
		return long
	}
	return short
}

// fault is one row of the fault table on a fleet under load.
type fault struct {
	*fleet
	t     *testing.T
	load  *load
	watch *leadership
	began time.Time
}

// row runs one fault: under load of our client and of DCMTK, with everything checked when the row is over.
func (f *fleet) row(t *testing.T, number int, body func(*fault)) {
	t.Helper()
	parent := f.t
	f.report(t)
	defer f.report(parent)
	f.leader(f.nodes)
	l := startLoadFrom(f.testRing, seeded(t), int64(1+10*number))
	defer l.stop()
	l.startDCMTK(t)
	r := &fault{fleet: f, t: t, load: l, began: time.Now(), watch: f.watchLeaders()}
	defer r.watch.stop()
	defer f.lan.heal()
	for _, n := range f.nodes {
		r.eventually("node "+n.ID+" stores", func() bool { return l.acksAfter(n, r.began) >= 3 })
	}
	body(r)
	f.lan.heal()
	healed := time.Now()
	r.watch.stop()
	f.leader(f.nodes)
	l.expect(true, f.nodes...)
	l.apart.Store(false)
	for _, n := range f.nodes {
		r.eventually("node "+n.ID+" stores again", func() bool { return l.acksAfter(n, healed) >= 3 })
	}
	l.stop()
	l.judgeFault(t, r.began)
	if !t.Failed() {
		l.checkHealed(t)
		l.checkDCMTK(t)
	}
}

// judgeFault fails the row for every request that failed at a node that was to serve, and for every store that took
// longer than any single fault may delay it.
func (l *load) judgeFault(t *testing.T, began time.Time) {
	t.Helper()
	worst, count := map[string]time.Duration{}, map[string]int{}
	for _, s := range l.since(began) {
		if s.err != nil {
			t.Errorf("%s at %s, %.1f s into the row, after %s: %v", s.kind, s.node.ID, s.start.Sub(began).Seconds(), s.took().Round(time.Millisecond), s.err)
			continue
		}
		count[s.kind]++
		if l.isUp(s.node) {
			worst[s.kind] = max(worst[s.kind], s.took())
		}
		if over := l.canary.worst(s.start, s.end); s.kind == "store" && s.took() > responseMax+2*over {
			t.Errorf("store at %s took %s, more than %s (the machine delayed a bare fsync by %s)", s.node.ID, s.took(), responseMax, over)
		}
	}
	t.Logf("stores %d, queries %d, reads %d, DCMTK %d; worst store %d ms, query %d ms, read %d ms", count["store"], count["query"], count["read"], count["storescu"],
		worst["store"].Milliseconds(), worst["query"].Milliseconds(), worst["read"].Milliseconds())
}

// leadership follows who leads, as every node sees it.
type leadership struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu    sync.Mutex
	terms map[uint64]string // who led in a term
	first uint64            // the highest term at the beginning
	last  uint64            // and now
}

const leadershipPace = 100 * time.Millisecond

func (r *testRing) watchLeaders() *leadership {
	ctx, cancel := context.WithCancel(context.Background())
	w := &leadership{cancel: cancel, terms: map[uint64]string{}}
	for _, n := range r.nodes {
		w.note(n)
	}
	w.first = w.last
	for _, n := range r.nodes {
		w.wait.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				w.note(n)
				select {
				case <-ctx.Done():
				case <-time.After(leadershipPace):
				}
			}
		})
	}
	return w
}

func (w *leadership) note(n *testNode) {
	m := n.metrics()
	term, err := strconv.ParseFloat(m["osteon_ring_term"], 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = max(w.last, uint64(term))
	if m["osteon_ring_leader"] == "1" {
		w.terms[uint64(term)] = n.ID
	}
}

func (w *leadership) stop() {
	w.cancel()
	w.wait.Wait()
}

// elections returns by how much the term has grown, and how many terms had a leader since the first.
func (w *leadership) elections() (terms uint64, leaders int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last - w.first, len(w.terms) - 1
}

// decides returns how long after a moment a node had the ring decide something.
func (r *fault) decides(since time.Time, n *testNode) time.Duration {
	r.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
		_, err := n.admin().CreateToken(ctx, "", time.Hour)
		cancel()
		if err == nil {
			return time.Since(since)
		}
		if time.Since(since) > ringPatience {
			r.t.Fatalf("the ring decides nothing at %s after %s: %v\n%s", n.ID, ringPatience, err, r.logs())
		}
	}
}

// within fails the row when something took longer than it may, allowing for what the machine itself was late.
func (r *fault) within(what string, took, limit time.Duration, since time.Time) {
	r.t.Helper()
	over := r.load.canary.worst(since, since.Add(took))
	r.t.Logf("%s: %d ms", what, took.Milliseconds())
	if took > limit+2*over {
		r.t.Errorf("%s took %s, more than %s (the machine delayed a bare fsync by %s)", what, took, limit, over)
	}
}

// until waits and returns how long after a moment it became so.
func (r *fault) until(since time.Time, what string, ok func() bool) time.Duration {
	r.t.Helper()
	r.eventually(what, ok)
	return time.Since(since)
}

// keep keeps the fault up for its span, until at least so long after since.
func (r *fault) keep(since time.Time, short, long time.Duration) {
	r.load.pause(time.Until(since.Add(span(short, long))))
}

// probe stores one instance at a node that may or may not take it, and files what was acknowledged.
func (r *fault) probe(n *testNode, size int) (dimse.StoreResponse, time.Duration, error) {
	in := noiseInstance(int(r.load.study.Load()), 1, int(r.load.number.Add(1)), size, r.load.seed)
	r.load.ledger.sent(in)
	ctx, cancel := context.WithTimeout(context.Background(), requestPatience)
	defer cancel()
	start := time.Now()
	response, err := store(ctx, n, in)
	if err == nil && response.Status == dimse.StatusSuccess {
		r.load.ledger.acked(in)
	}
	return response, time.Since(start), err
}

// storm fails the row when there were as many elections as would be a storm.
func (r *fault) storm(since time.Time) {
	r.t.Helper()
	terms, leaders := r.watch.elections()
	minutes := max(time.Since(since).Minutes(), 0.5) // two elections at once are no rate
	r.t.Logf("terms %d, changes of leader %d in %.0f s", terms, leaders, time.Since(since).Seconds())
	if float64(terms) >= electionsMinute*minutes {
		r.t.Errorf("%d elections in %.1f minutes, want fewer than %d a minute", terms, minutes, electionsMinute)
	}
}

func (r *fault) follower() *testNode {
	leader := r.leader(r.nodes)
	i := slices.Index(r.nodes, leader)
	return r.nodes[(i+2)%len(r.nodes)] // of another site
}

func others(all []*testNode, one *testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(all), func(n *testNode) bool { return n == one })
}

// Rows F22, F23, F25, F26 and F27 of the fault table, on one ring of three sites: nodes and sites are cut off, both ways
// and one way, while all that are not cut off have to serve.
func TestChaosPartitions(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(3, 2))
	for i, row := range []struct {
		name string
		body func(*fault)
		long bool // left out of the short form, which has another like it
	}{
		{"F22LeaderIsolated", leaderIsolated, false},
		{"F23FollowerIsolated", followerIsolated, true},
		{"F25ThreeWaySplit", threeWaySplit, false},
		{"F26LeaderReceivesOnly", func(r *fault) { r.oneWay(r.leader(r.nodes), receivesOnly) }, false},
		{"F26LeaderSendsOnly", func(r *fault) { r.oneWay(r.leader(r.nodes), sendsOnly) }, true},
		{"F26FollowerReceivesOnly", func(r *fault) { r.oneWay(r.follower(), receivesOnly) }, true},
		{"F26FollowerSendsOnly", func(r *fault) { r.oneWay(r.follower(), sendsOnly) }, false},
		{"F27TwoSitesCutBothReachTheThird", twoSitesCut, false},
	} {
		if *chaosLong || !row.long {
			t.Run(row.name, func(t *testing.T) { f.row(t, i, row.body) })
		}
	}
}

// F22: another node leads within 5 s, the old leader is none within 1 s and can have nothing decided; nobody else
// notices.
func leaderIsolated(r *fault) {
	old := r.leader(r.nodes)
	rest := others(r.nodes, old)
	r.load.expect(false, old)
	at := time.Now()
	r.isolate(old)
	down := r.until(at, "the old leader steps down", func() bool { return old.metrics()["osteon_ring_leader"] == "0" })
	r.within("old leader stepped down", down, stepDownMax, at)
	up := r.until(at, "another leads", func() bool {
		return slices.ContainsFunc(rest, func(n *testNode) bool { return n.metrics()["osteon_ring_leader"] == "1" })
	})
	r.within("another leads", up, electionMax, at)
	var wait sync.WaitGroup
	wait.Go(func() { r.decidesNothing(old) }) // ends with the node's patience
	defer wait.Wait()
	response, took, err := r.probe(old, 10_000)
	if err != nil || response.Status>>8 != 0xA7 {
		r.t.Errorf("store at the isolated node: status %04XH %q, %v; want A7xx, for it has no partner", response.Status, response.ErrorComment, err)
	}
	r.within("refusal of a store by the isolated node", took, responseMax, time.Now().Add(-took))
	r.keep(at, 4*time.Second, 30*time.Second)
	r.storm(at)
}

// F23: a follower is cut off and comes back: no client of another node sees an error, the leader stays.
func followerIsolated(r *fault) {
	leader, lost := r.leader(r.nodes), r.follower()
	r.load.expect(false, lost)
	at := time.Now()
	r.isolate(lost)
	r.keep(at, 5*time.Second, 30*time.Second)
	r.heal()
	r.until(at, "the follower is back", func() bool { return lost.metrics()["osteon_node_ready"] == "1" })
	if now := r.leader(r.nodes); now != leader {
		r.t.Errorf("%s led, and %s does after the return of %s", leader.ID, now.ID, lost.ID)
	}
	if terms, _ := r.watch.elections(); terms != 0 {
		r.t.Errorf("%d elections although a follower was cut off", terms)
	}
}

// F25: no site reaches another: nothing is committed anywhere, every node takes stores, spooled, answers queries and reads
// what it holds; afterwards nothing diverges.
func threeWaySplit(r *fault) {
	held := map[*testNode]instance{}
	for _, n := range r.nodes {
		in := noiseInstance(int(r.load.study.Load())+3, 1, int(r.load.number.Add(1)), 30_000, r.load.seed)
		r.load.ledger.sent(in)
		r.mustStore(n, in)
		r.load.ledger.acked(in)
		held[n] = in
	}
	r.load.expect(false, r.nodes...)
	at := time.Now()
	for _, site := range r.siteNames() {
		mine := r.site(string(site))
		r.cut(mine, r.without(mine))
	}
	for _, n := range r.nodes {
		r.until(at, "node "+n.ID+" knows that there is no quorum", func() bool { return n.metrics()["osteon_node_ready"] == "0" })
	}
	before := r.commits()
	var wait sync.WaitGroup
	for _, n := range r.nodes {
		wait.Go(func() { r.islandServes(n, held[n]) }) // ends with its requests
	}
	r.decidesNothing(r.nodes[0])
	wait.Wait()
	r.keep(at, 6*time.Second, 60*time.Second)
	if after := r.commits(); !slices.Equal(before, after) {
		r.t.Errorf("commit indexes %v became %v without a quorum", before, after)
	}
	if _, leaders := r.watch.elections(); leaders != 0 {
		r.t.Errorf("%d leaders without a quorum", leaders)
	}
	r.heal()
}

// decidesNothing wants a node that has no quorum to say so when it is asked to change something.
func (r *fault) decidesNothing(n *testNode) {
	if _, err := n.admin().CreateToken(context.Background(), "", time.Hour); !errors.Is(err, node.ErrRing) {
		r.t.Errorf("a token made at %s without a quorum: %v", n.ID, err)
	}
}

func (r *fault) commits() (out []string) {
	for _, n := range r.nodes {
		out = append(out, n.ID+"="+n.metrics()["osteon_ring_commit_index"])
	}
	return out
}

// islandServes wants a node of an island to take stores and to give what it holds.
func (r *fault) islandServes(n *testNode, held instance) {
	for range 5 {
		response, took, err := r.probe(n, 30_000)
		if err != nil || response.Status != dimse.StatusSuccess {
			r.t.Errorf("store at %s: status %04XH %q, %v", n.ID, response.Status, response.ErrorComment, err)
		}
		r.within("spooled store at "+n.ID, took, responseMax, time.Now().Add(-took))
	}
	study := noiseStudy(int(r.load.study.Load()))
	found, err := findInstances(context.Background(), n, study)
	if err != nil || len(found) < 5 {
		r.t.Errorf("query at %s: %d found, %v; want at least the 5 just stored there", n.ID, len(found), err)
	}
	r.checkReadable(n, held)
}

type direction int

const (
	receivesOnly direction = iota
	sendsOnly
)

// oneWay is F26: one node is heard by nobody, or hears nobody: the ring decides again within 10 s, and there is no storm
// of elections.
func (r *fault) oneWay(one *testNode, d direction) {
	rest := others(r.nodes, one)
	r.load.expect(false, one)
	at := time.Now()
	if d == receivesOnly {
		r.cutOneWay([]*testNode{one}, rest)
	} else {
		r.cutOneWay(rest, []*testNode{one})
	}
	r.within("the ring decides", r.decides(at, rest[0]), oneWayMax, at)
	if _, _, err := r.probe(one, 10_000); err != nil {
		r.t.Errorf("store at the node that is half cut off: %v; want an answer", err)
	}
	r.keep(at, 5*time.Second, 60*time.Second)
	r.heal()
	r.within("the ring decides, healed", r.decides(time.Now(), one), oneWayMax, time.Now())
	r.storm(at)
}

// twoSitesCut is F27: the leader's site and another do not reach each other, both reach the third. The leader stays or
// another is there within 10 s, and stays.
func twoSitesCut(r *fault) {
	leader := r.leader(r.nodes)
	mine := r.site(leader.Site)
	i := slices.IndexFunc(r.nodes, func(n *testNode) bool { return n.Site != leader.Site })
	other := r.site(r.nodes[i].Site)
	third := r.without(append(slices.Clone(mine), other...))
	at := time.Now()
	r.cut(mine, other)
	r.within("the third site has something decided", r.decides(at, third[0]), partialMax, at)
	r.keep(at, 8*time.Second, 12*time.Second) // not so long that reads of what the cut site cannot know begin
	if _, leaders := r.watch.elections(); leaders >= leaderChanges {
		r.t.Errorf("%d changes of leader, want fewer than %d", leaders, leaderChanges)
	}
	r.storm(at)
	r.heal()
}

// F28: five nodes in a ring, each of which reaches its two neighbours only, a majority of its own: safe, and the ring
// decides again within 15 s, although the leader was cut off wholly first. Every node takes stores.
func TestChaosF28MajoritiesRing(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(5, 1))
	f.row(t, 0, func(r *fault) {
		leader := r.leader(r.nodes)
		at := time.Now()
		r.load.expect(false, leader)
		r.isolate(leader)
		r.until(at, "the old leader steps down", func() bool { return leader.metrics()["osteon_ring_leader"] == "0" })
		r.lan.heal()
		for i, n := range r.nodes {
			for _, far := range []int{i + 2, i + 3} {
				r.cut([]*testNode{n}, []*testNode{r.nodes[far%5]})
			}
		}
		r.load.apart.Store(true) // two journals of five may both be out of reach
		at = time.Now()
		r.within("the ring decides", r.decidesSomewhere(at), majoritiesMax, at)
		for _, n := range r.nodes {
			response, took, err := r.probe(n, 10_000)
			if err != nil || response.Status != dimse.StatusSuccess {
				t.Errorf("store at %s: status %04XH %q, %v", n.ID, response.Status, response.ErrorComment, err)
			}
			r.within("store at "+n.ID, took, responseMax, time.Now().Add(-took))
		}
		r.keep(at, 5*time.Second, 30*time.Second)
		r.within("the ring still decides", r.decidesSomewhere(time.Now()), majoritiesMax, time.Now())
		r.storm(at)
		r.heal()
	})
}

// decidesSomewhere returns how long after a moment any node had the ring decide something.
func (r *fault) decidesSomewhere(since time.Time) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{}, len(r.nodes))
	for _, n := range r.nodes {
		go func() { // ends with ctx
			for ctx.Err() == nil {
				if _, err := n.admin().CreateToken(ctx, "", time.Hour); err == nil {
					done <- struct{}{}
					return
				}
			}
		}()
	}
	select {
	case <-done:
		return time.Since(since)
	case <-time.After(ringPatience):
		r.t.Fatalf("the ring decides nothing anywhere after %s\n%s", ringPatience, r.logs())
		return 0
	}
}
