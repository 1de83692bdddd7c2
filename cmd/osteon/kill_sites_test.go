package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// With two sites only, each is killed in turn under load; one of the losses takes the quorum with it. The live
// site goes on to acknowledge copies of its own and to answer queries, and everything is in the catalog when
// the other is back.
func TestEitherOfTwoSitesKilled(t *testing.T) {
	seed := seeded(t)
	r := startRing(t, 2, 2)
	l := startLoad(r, seed)
	defer l.stop()
	began := time.Now()
	for i, site := range []string{"a", "b"} {
		l.study.Store(int64(1 + i*studiesAtOnce))
		dead := r.site(site)
		alive := r.without(dead)
		r.leader(r.nodes)
		for _, n := range r.nodes {
			r.eventually("node "+n.ID+" stores", func() bool { return l.acksAfter(n, began) >= 10*(i+1) })
		}
		l.expect(false, dead...)
		killed := time.Now()
		r.kill(dead...)
		for _, n := range alive {
			r.eventually("node "+n.ID+" goes on storing", func() bool { return l.acksAfter(n, killed) >= 30 })
			first, _ := l.firstAck(n, killed)
			t.Logf("site %s dead: first ack at %s after %d ms", site, n.ID, first.Sub(killed).Milliseconds())
		}
		r.startServing(dead...)
		l.expect(true, dead...)
	}
	l.stop()
	l.judge(t, began)
	if !t.Failed() {
		l.checkEverything(t)
	}
}

// Each site is killed in turn, first while the studies are only in journals and then when they are sealed;
// it is proven that the site had copies or shards of the studies, and every study is found and read at
// every live node.
func TestEachSiteLostBeforeAndAfterSealing(t *testing.T) {
	r := startRing(t, 3, 2)
	var sent []instance
	for i, n := range r.nodes {
		for number := range 3 {
			in := noiseInstance(i, 1, number, 60_000, 1)
			r.mustStore(n, in)
			sent = append(sent, in)
		}
	}
	lose := func(when string) {
		t.Helper()
		r.awaitApplied(r.nodes...)
		for _, site := range []string{"a", "b", "c"} {
			dead := r.site(site)
			journals, shards := 0, 0
			for i := range r.nodes {
				for _, n := range dead {
					j, s := r.copiesAt(r.nodes[0], noiseStudy(i), n)
					journals, shards = journals+j, shards+s
				}
			}
			t.Logf("%s: site %s has %d journalled copies and %d shards", when, site, journals, shards)
			if journals+shards == 0 {
				t.Errorf("%s: site %s has nothing to lose", when, site)
			}
			r.kill(dead...)
			killed := time.Now()
			r.checkAt(r.without(dead), sent)
			t.Logf("%s: all of it found and read at the other sites within %d ms of the kill", when, time.Since(killed).Milliseconds())
			r.startServing(dead...)
			r.awaitSeen(r.nodes...) // else the next one to die would be the second
		}
	}
	r.eventually("all stores applied", func() bool {
		for i := range r.nodes {
			if found, err := findInstances(context.Background(), r.nodes[0], noiseStudy(i)); err != nil || len(found) != 3 {
				return false
			}
		}
		return true
	})
	lose("journalled")
	for i := range r.nodes {
		if err := r.nodes[i].admin().Seal(context.Background(), noiseStudy(i)); err != nil {
			t.Fatalf("seal: %v", err)
		}
	}
	lose("sealed")
}

// without returns the nodes that are not among dead.
func (r *testRing) without(dead []*testNode) (out []*testNode) {
	for _, n := range r.nodes {
		if !slices.Contains(dead, n) {
			out = append(out, n)
		}
	}
	return out
}

// checkAt finds and reads every instance at every given node.
func (r *testRing) checkAt(nodes []*testNode, sent []instance) {
	r.t.Helper()
	studies := map[string]map[string][sha256.Size]byte{}
	for _, in := range sent {
		if studies[in.study] == nil {
			studies[in.study] = map[string][sha256.Size]byte{}
		}
		studies[in.study][in.uid] = in.digest
	}
	for _, n := range nodes {
		for study, acked := range studies {
			r.eventually("study "+study+" found at "+n.ID, func() bool {
				found, err := findInstances(context.Background(), n, study)
				if err != nil {
					r.t.Errorf("query at live node %s: %v", n.ID, err)
					return true
				}
				return len(found) == len(acked) && len(missing(acked, found)) == 0
			})
			r.checkStudy(n, study, acked)
		}
	}
}

// The receiver of an instance is killed right after its acknowledgement and its directory removed: the
// instance is found and read at every other node.
func TestReceiverGoneAfterAck(t *testing.T) {
	for _, tc := range []struct{ sites, nodes int }{{3, 1}, {1, 3}} {
		t.Run(fmt.Sprintf("%dx%d", tc.sites, tc.nodes), func(t *testing.T) {
			r := startRing(t, tc.sites, tc.nodes)
			receiver := r.nodes[len(r.nodes)-1]
			var sent []instance
			for number := range 10 {
				in := noiseInstance(number%3, 1, number, 100_000, 1)
				r.mustStore(receiver, in)
				sent = append(sent, in)
			}
			acked := time.Now()
			r.kill(receiver)
			if err := os.RemoveAll(receiver.Dir); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(receiver.Dir); !os.IsNotExist(err) {
				t.Fatalf("directory of %s: %v, want it gone", receiver.ID, err)
			}
			r.checkAt(r.without([]*testNode{receiver}), sent)
			t.Logf("all found and read at the others %d ms after the last acknowledgement", time.Since(acked).Milliseconds())
		})
	}
}
