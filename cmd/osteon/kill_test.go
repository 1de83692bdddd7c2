package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"osteon/node"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one, which is printed")
	roundsFlag = flag.Int("rounds", 20, "rounds of TestKillRounds; from 20 on every node, every site and the leader are killed")
)

// seeded returns the seed of a random test, printed so that a failure can be repeated.
func seeded(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (repeat with -seed)", seed)
	return seed
}

// sealing says what happens to the studies of a round around its kill.
type sealing int

const (
	sealNever  sealing = iota // the bytes are in journals when nodes die
	sealBefore                // one study is sealed before
	sealDuring                // one study is being sealed
	sealings
)

func (s sealing) String() string { return [...]string{"journalled", "sealed", "while sealing"}[s] }

// victim is whom a round kills.
type victim struct {
	kind string // node, site, leader
	name string // of the node or site; empty: whoever leads
}

// victims draws the order of kills: each node, each site, the leader, then by chance.
func victims(r *testRing, rng *rand.Rand, rounds int) []victim {
	var all []victim
	sites := []string{}
	for _, n := range r.nodes {
		all = append(all, victim{"node", n.ID})
		if !slices.Contains(sites, n.Site) {
			sites = append(sites, n.Site)
		}
	}
	for _, s := range sites {
		all = append(all, victim{"site", s})
	}
	all = append(all, victim{kind: "leader"}, victim{kind: "leader's site"})
	certain := len(all)
	for len(all) < rounds {
		all = append(all, all[rng.IntN(certain)])
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:rounds]
}

// Nodes, sites and leaders are killed one round after the other while every live node stores, answers
// queries and is read from. No live node fails a request or stalls a store; nothing acknowledged is lost
// or altered; the counts of all nodes agree.
func TestKillRounds(t *testing.T) {
	seed := seeded(t)
	rng := rand.New(rand.NewPCG(seed, 7))
	r := startRing(t, 3, 2, "--seal-quiet", "6s")
	l := startLoad(r, seed)
	defer l.stop()
	began := time.Now()
	for i, v := range victims(r, rng, *roundsFlag) {
		k := killRound{t: t, ring: r, load: l, rng: rng, number: i, victim: v, sealing: sealing(rng.IntN(int(sealings)))}
		k.run()
		if t.Failed() {
			break
		}
	}
	l.stop()
	l.judge(t, began)
	if !t.Failed() {
		l.checkEverything(t)
	}
}

// killRound is one kill and what follows.
type killRound struct {
	t       *testing.T
	ring    *testRing
	load    *load
	rng     *rand.Rand
	number  int
	victim  victim
	sealing sealing

	began     time.Time
	doomed    []*testNode
	alive     []*testNode
	killed    time.Time
	firstAck  time.Duration // the slowest live node's
	leader    *testNode     // before the kill
	newLeader time.Duration // until all live nodes follow another; 0 when the leader was spared
}

func (k *killRound) run() {
	k.began = time.Now()
	k.load.study.Store(int64(1 + k.number*studiesAtOnce))
	k.choose()
	k.warmUp()
	sealed := k.seal()
	k.kill()
	k.awaitAcks()
	k.awaitLeader()
	deadFor := time.Duration(k.rng.IntN(4000)) * time.Millisecond
	proof := k.prove()
	k.checkStudies()
	<-sealed
	time.Sleep(time.Until(k.killed.Add(deadFor))) // a random moment, before or after the others have noticed
	back := time.Now()
	k.ring.startServing(k.doomed...)
	k.load.expect(true, k.doomed...)
	var worst request
	for _, s := range k.load.since(k.began) {
		if s.kind == "store" && s.took() > worst.took() && slices.Contains(k.alive, s.node) {
			worst = s
		}
	}
	k.t.Logf("round %2d: %-22s %-13s first ack %4d ms, leader %4d ms, back %4d ms, worst store %4d ms, %s, round %.1f s",
		k.number+1, k.victim.kind+" "+names(k.doomed), k.sealing, k.firstAck.Milliseconds(), k.newLeader.Milliseconds(),
		time.Since(back).Milliseconds(), worst.took().Milliseconds(), proof, time.Since(k.began).Seconds())
}

func names(nodes []*testNode) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.ID)
	}
	return strings.Join(out, ",")
}

func (k *killRound) choose() {
	k.leader = k.ring.leader(k.ring.nodes)
	switch k.victim.kind {
	case "node":
		k.doomed = []*testNode{k.ring.node(k.victim.name)}
	case "site":
		k.doomed = k.ring.site(k.victim.name)
	case "leader":
		k.doomed = []*testNode{k.leader}
	default:
		k.doomed = k.ring.site(k.leader.Site)
	}
	for _, n := range k.ring.nodes {
		if !slices.Contains(k.doomed, n) {
			k.alive = append(k.alive, n)
		}
	}
}

// warmUp waits until every node has stored in this round and then for a random moment.
func (k *killRound) warmUp() {
	for _, n := range k.ring.nodes {
		k.ring.eventually("node "+n.ID+" stores", func() bool {
			_, ok := k.load.firstAck(n, k.began)
			return ok
		})
	}
	time.Sleep(time.Duration(k.rng.IntN(600)) * time.Millisecond) // the random moment
}

// seal seals the first study of the round as its mode says; the channel is closed when that is over.
func (k *killRound) seal() <-chan struct{} {
	over := make(chan struct{})
	if k.sealing == sealNever {
		close(over)
		return over
	}
	by := k.ring.nodes[k.rng.IntN(len(k.ring.nodes))]
	lead := time.Duration(k.rng.IntN(150)) * time.Millisecond
	go func() { // ends with the seal; run waits for it
		defer close(over)
		ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
		defer cancel()
		err := by.admin().Seal(ctx, k.study(0))
		for errors.Is(err, node.ErrNotFound) && k.sealing == sealBefore && k.load.pause(20*time.Millisecond) {
			err = by.admin().Seal(ctx, k.study(0)) // nothing of it has come there yet
		}
		if err != nil && slices.Contains(k.alive, by) && k.sealing == sealBefore {
			k.t.Errorf("seal at %s: %v", by.ID, err)
		}
	}()
	if k.sealing == sealBefore {
		<-over
	} else {
		time.Sleep(lead)
	}
	return over
}

func (k *killRound) study(i int) string {
	return noiseStudy(1 + k.number*studiesAtOnce + i)
}

func noiseStudy(study int) string { return fmt.Sprintf("2.25.%d", 1_000_000+study) }

func (k *killRound) kill() {
	k.load.expect(false, k.doomed...)
	k.killed = time.Now()
	k.ring.kill(k.doomed...)
}

// awaitAcks waits until every live node has acknowledged a store that began after the kill.
func (k *killRound) awaitAcks() {
	for _, n := range k.alive {
		k.ring.eventually("node "+n.ID+" stores after the kill", func() bool {
			at, ok := k.load.firstAck(n, k.killed)
			if ok {
				k.firstAck = max(k.firstAck, at.Sub(k.killed))
			}
			return ok
		})
	}
}

func (k *killRound) awaitLeader() {
	k.ring.leader(k.alive)
	if slices.Contains(k.doomed, k.leader) {
		k.newLeader = time.Since(k.killed)
	}
}

// prove shows that the dead nodes had copies or shards of what was stored in this round.
func (k *killRound) prove() string {
	var journals, shards int
	k.ring.eventually("a copy at "+names(k.doomed)+" is listed", func() bool {
		journals, shards = 0, 0
		for i := range studiesAtOnce {
			for _, n := range k.doomed {
				j, s := k.ring.copiesAt(k.alive[0], k.study(i), n)
				journals, shards = journals+j, shards+s
			}
		}
		return journals+shards > 0
	})
	return fmt.Sprintf("had %d copies, %d shards", journals, shards)
}

// copiesAt returns how many journalled versions and shards of a study the catalog lists at a node.
func (r *testRing) copiesAt(ask *testNode, study string, at *testNode) (journals, shards int) {
	report, err := ask.admin().Study(context.Background(), study)
	if err != nil {
		return 0, 0
	}
	for _, v := range report.Versions {
		if slices.Contains(v.Holders, at.ID) {
			journals++
		}
	}
	for _, p := range report.Packs {
		for _, s := range p.Shards {
			if s.Node == at.ID {
				shards++
			}
		}
	}
	return journals, shards
}

// checkStudies finds and reads at one live node, while the victims are dead, everything that was
// acknowledged in this round until now.
func (k *killRound) checkStudies() {
	n := k.alive[k.rng.IntN(len(k.alive))]
	for i := range studiesAtOnce {
		acked, _ := k.load.ledger.of(k.study(i))
		k.ring.eventually("what was acknowledged is found at "+n.ID, func() bool {
			found, err := findInstances(context.Background(), n, k.study(i))
			if err != nil {
				k.t.Errorf("query at %s: %v", n.ID, err)
				return true
			}
			return len(missing(acked, found)) == 0
		})
		k.ring.checkStudy(n, k.study(i), acked)
	}
}

func missing[V any](want map[string][sha256.Size]byte, got map[string]V) (out []string) {
	for uid := range want {
		if _, ok := got[uid]; !ok {
			out = append(out, uid)
		}
	}
	return out
}

// checkStudy retrieves a study and compares every acknowledged instance.
func (r *testRing) checkStudy(n *testNode, study string, acked map[string][sha256.Size]byte) {
	r.t.Helper()
	if len(acked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	got, err := studyDigests(ctx, n, study)
	if err != nil {
		r.t.Errorf("read study %s at %s: %v", study, n.ID, err)
	}
	if lost := missing(acked, got); len(lost) > 0 {
		r.t.Errorf("read study %s at %s: %d of %d acknowledged instances missing: %.300v", study, n.ID, len(lost), len(acked), lost)
	}
	for uid, digest := range got {
		if want, ok := acked[uid]; ok && want != digest {
			r.t.Errorf("read instance %s at %s: altered", uid, n.ID)
		}
	}
}

// startServing is start, with readiness asked by HTTP, which costs the nodes less than a whole status.
func (r *testRing) startServing(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes {
		fmt.Fprintf(r.stdin, "start %s\n", n.ID)
	}
	for _, n := range nodes {
		n.PID = r.awaitEvent("up", n.ID).PID
	}
	for _, n := range nodes {
		r.eventually("node "+n.ID+" ready", func() bool {
			response, err := n.httpGet("/readyz")
			if err != nil {
				return false
			}
			response.Body.Close()
			return response.StatusCode == http.StatusOK
		})
	}
}

// leader waits until one of the given nodes leads and all of them are ready.
func (r *testRing) leader(among []*testNode) (leader *testNode) {
	r.t.Helper()
	r.eventually("a leader among "+names(among), func() bool {
		leader = nil
		for _, n := range among {
			m := n.metrics()
			if m["osteon_node_ready"] != "1" {
				return false
			}
			if m["osteon_ring_leader"] == "1" {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

// metrics returns the node's metrics without labels, nil when it does not answer.
func (n *testNode) metrics() map[string]string {
	response, err := n.httpGet("/metrics")
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	out := map[string]string{}
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok {
			out[name] = value
		}
	}
	return out
}

// judge fails the test for every request that failed at a node that was to serve, and for every store
// that took longer than the promise and what the machine itself delayed.
func (l *load) judge(t *testing.T, began time.Time) {
	worst, count := map[string]request{}, map[string]int{}
	for _, s := range l.since(began) {
		if s.err != nil {
			t.Errorf("%s at live node %s after %s: %v", s.kind, s.node.ID, s.took().Round(time.Millisecond), s.err)
			continue
		}
		count[s.kind]++
		if s.took() > worst[s.kind].took() && l.isUp(s.node) {
			worst[s.kind] = s
		}
		if over := l.canary.worst(s.start, s.end); s.kind == "store" && s.took() > stallMax+2*over {
			t.Errorf("store at %s took %s, more than %s (the machine delayed a bare fsync by %s)",
				s.node.ID, s.took().Round(time.Millisecond), stallMax, over.Round(time.Millisecond))
		}
	}
	sent, acked := l.ledger.count()
	t.Logf("%d instances sent, %d acknowledged; %d stores, %d queries, %d reads; worst store %d ms, query %d ms, read %d ms; machine's own worst delay %d ms",
		sent, acked, count["store"], count["query"], count["read"], worst["store"].took().Milliseconds(),
		worst["query"].took().Milliseconds(), worst["read"].took().Milliseconds(), l.canary.worst(began, time.Now()).Milliseconds())
}

// checkEverything holds every node against the ledger: what is found is the same everywhere, all that was
// acknowledged and nothing that was not sent; every instance is read back at two nodes of two sites.
func (l *load) checkEverything(t *testing.T) {
	r := l.ring
	r.awaitApplied(r.nodes...)
	for i, study := range l.ledger.studyUIDs() {
		acked, sent := l.ledger.of(study)
		count := -1
		for _, n := range r.nodes {
			found, err := findInstances(context.Background(), n, study)
			if err != nil {
				t.Errorf("query at %s: %v", n.ID, err)
				continue
			}
			if lost := missing(acked, found); len(lost) > 0 {
				t.Errorf("query at %s: %d acknowledged instances of study %s not found", n.ID, len(lost), study)
			}
			for uid := range found {
				if _, ok := sent[uid]; !ok {
					t.Errorf("query at %s: found %s, which nobody sent", n.ID, uid)
				}
			}
			if count >= 0 && count != len(found) {
				t.Errorf("query at %s: %d instances of study %s, another node has %d", n.ID, len(found), study, count)
			}
			count = len(found)
		}
		first, second := r.nodes[i%len(r.nodes)], r.nodes[(i+len(r.nodes)/2)%len(r.nodes)]
		r.checkStudy(first, study, acked)
		r.checkStudy(second, study, acked)
	}
}
