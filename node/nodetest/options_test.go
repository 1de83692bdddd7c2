package nodetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"osteon/erasure/place"
)

// options are everything that one seed decides.
type options struct {
	seed           uint64
	sites, perSite int
	survive        place.Survive
	degraded       string
	catalogued     bool
	phase          time.Duration // of faults
	senders        int
	pause          time.Duration // between two calls of a sender
	quiet          time.Duration // before a study is sealed
	segment, hot   int64         // of the journals
	snapshot       uint64        // Raft entries between two
	commitWait     time.Duration // of Raft: most of what an idle ring does
	heartbeat      time.Duration
	lan, wan       Path
	gap            time.Duration // between two faults
	faults         []string
}

func (o options) String() string {
	return fmt.Sprintf("seed=%d sites=%d per_site=%d survive=%q degraded=%s catalogued=%t phase=%s senders=%d pause=%s quiet=%s segment=%d hot=%d snapshot=%d commit_wait=%s heartbeat=%s wan=%s loss=%g gap=%s faults=%v",
		o.seed, o.sites, o.perSite, o.survive, o.degraded, o.catalogued, o.phase, o.senders, o.pause, o.quiet, o.segment, o.hot, o.snapshot, o.commitWait, o.heartbeat,
		o.wan.Delay, o.wan.Loss, o.gap, o.faults)
}

// pick returns one of the values; a value given more often is more likely.
func pick[T any](rng *rand.Rand, values ...T) T { return values[rng.IntN(len(values))] }

func drawOptions(seed uint64) options {
	rng := rand.New(rand.NewPCG(seed, 0x6f7074))
	o := options{
		seed: seed, degraded: pick(rng, "local", "local", "local", "refuse"), catalogued: rng.IntN(5) == 0,
		phase:   time.Duration(10+rng.IntN(25)) * time.Second,
		senders: 2 + rng.IntN(3), pause: pick(rng, 500*time.Millisecond, time.Second, 2*time.Second),
		quiet:   pick(rng, 2*time.Second, 4*time.Second, 8*time.Second),
		segment: pick(rng, int64(64<<10), 512<<10, 4<<20), hot: pick(rng, int64(1), 256<<10, 64<<20),
		snapshot:   pick(rng, uint64(40), 100, 400),
		commitWait: pick(rng, 100*time.Millisecond, 200*time.Millisecond, 400*time.Millisecond),
		heartbeat:  pick(rng, 500*time.Millisecond, time.Second, time.Second),
		gap:        pick(rng, time.Second, 2*time.Second, 5*time.Second),
	}
	shape := [2]int{3, 1} // most rings are small: a fault hits more of what goes on
	if rng.IntN(5) < 2 {
		shape = pick(rng, [2]int{3, 2}, [2]int{3, 2}, [2]int{4, 1}, [2]int{4, 1}, [2]int{5, 1}, [2]int{2, 2}, [2]int{4, 2}, [2]int{7, 1})
	}
	o.sites, o.perSite = shape[0], shape[1]
	o.survive = pick(rng, "", place.SurviveSite)
	o.lan = Path{Delay: 100 * time.Microsecond}
	o.wan = Path{Delay: pick(rng, time.Millisecond, 5*time.Millisecond, 20*time.Millisecond), Jitter: time.Millisecond}
	if rng.IntN(4) == 0 {
		o.wan.Loss, o.wan.Reorder, o.wan.Duplicate = 0.01, 0.02, 0.01
	}
	for _, f := range slices.Sorted(func(yield func(string) bool) {
		for name := range chaosFaults {
			if !yield(name) {
				return
			}
		}
	}) {
		if rng.IntN(2) == 0 && f != *withoutFlag {
			o.faults = append(o.faults, f)
		}
	}
	return o
}
