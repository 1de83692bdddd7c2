package nodetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"osteon/node"
)

// chaos does to a ring what happens to rings, and undoes it.
type chaos struct {
	ring *Ring
	opt  options

	mu      sync.Mutex
	rng     *rand.Rand
	planted map[string]int // faults under way for which a node may end by itself
	joined  int            // nodes that joined
	lost    bool           // a disk was lost
	cut     bool           // the network is not as it should be
	wait    sync.WaitGroup
	errs    []error
}

func newChaos(r *Ring, opt options) *chaos {
	return &chaos{ring: r, opt: opt, rng: rand.New(rand.NewPCG(opt.seed, 0x6368616f73)), planted: map[string]int{}}
}

// chaosFaults are the faults by name; each goes on until its function returns, which is soon after ctx ends.
var chaosFaults = map[string]func(*chaos, context.Context){
	"kill":         (*chaos).kill,
	"kill-leader":  (*chaos).killLeader,
	"power-node":   (*chaos).powerNode,
	"power-site":   (*chaos).powerSite,
	"power-ring":   (*chaos).powerRing,
	"stop":         (*chaos).stop,
	"isolate-node": (*chaos).isolateNode,
	"isolate-site": (*chaos).isolateSite,
	"one-way":      (*chaos).oneWay,
	"pair":         (*chaos).pair,
	"split":        (*chaos).split,
	"flap":         (*chaos).flap,
	"slow":         (*chaos).slow,
	"lossy":        (*chaos).lossy,
	"disk-full":    (*chaos).diskFull,
	"fsync":        (*chaos).fsync,
	"clock":        (*chaos).clock,
	"join":         (*chaos).join,
	"disk-loss":    (*chaos).diskLoss,
}

// run starts a fault now and then until ctx ends.
func (c *chaos) run(ctx context.Context) {
	defer c.wait.Wait()
	for len(c.opt.faults) > 0 {
		if !pause(ctx, c.around(c.opt.gap)) {
			return
		}
		name := c.opt.faults[c.draw(len(c.opt.faults))]
		c.ring.Logf("fault %s", name)
		c.wait.Go(func() {
			chaosFaults[name](c, ctx)
		})
	}
}

// heal undoes everything that is still in force and starts every node that may come back.
func (c *chaos) heal() []error {
	c.ring.Net.Heal()
	for _, n := range c.ring.Nodes() {
		n.Clock.Set(0)
		n.Disk.Watch(nil)
		n.Disk.SetFree(1<<39, 0)
		c.start(n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.errs
}

func (c *chaos) draw(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

// around draws a time between none and twice d.
func (c *chaos) around(d time.Duration) time.Duration { return time.Duration(c.draw(int(2*d))) + 1 }

// pause waits; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// any draws a node that was not lost.
func (c *chaos) any() *Node {
	nodes := slices.DeleteFunc(c.ring.Nodes(), (*Node).isGone)
	return nodes[c.draw(len(nodes))]
}

func (c *chaos) anySite() string { return string(c.any().Site) }

func (c *chaos) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *chaos) mayEnd(n *Node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.planted[n.Name] > 0
}

// start starts a node that is down. It has to come up, and it may not have ended by itself without a reason.
func (c *chaos) start(n *Node) {
	if n.isGone() {
		return
	}
	if err := n.Fenced(); err != nil && !c.mayEnd(n) && !isPlanted(err) {
		c.fault("%s ended by itself: %v", n.Name, err)
	}
	for try := 0; ; try++ {
		err := n.TryStart()
		if err == nil {
			return
		}
		if errors.Is(err, errEnded) {
			return // by another fault, which starts it
		}
		if !c.mayEnd(n) && !isPlanted(err) || try == 3 {
			c.fault("%s does not start: %v", n.Name, err)
			return
		}
		n.Disk.Watch(nil)
	}
}

// down lets nodes be down for a while.
func (c *chaos) down(ctx context.Context, nodes ...*Node) {
	pause(ctx, c.around(5*time.Second))
	for _, n := range nodes {
		c.start(n)
	}
}

func (c *chaos) kill(ctx context.Context) {
	n := c.any()
	n.Kill()
	c.down(ctx, n)
}

func (c *chaos) killLeader(ctx context.Context) {
	if n := c.ring.Leader(); n != nil {
		c.ring.Logf("leader is %s", n.Name)
		c.noteOutstanding()
		n.Kill()
		c.down(ctx, n)
	}
}

// noteOutstanding notes that instances wait for the catalog now.
func (c *chaos) noteOutstanding() {
	for _, n := range c.ring.Nodes() {
		if running := n.Node(); running != nil && running.Archive().Waiting() > 0 {
			c.ring.Sometimes("leader lost with proposals outstanding")
			return
		}
	}
}

// keep draws how much of what was not synced a power cut leaves.
func (c *chaos) keep() float64 { return []float64{0, 0.3, 0.7, 1}[c.draw(4)] }

func (c *chaos) powerNode(ctx context.Context) {
	n := c.any()
	n.PowerCut(c.keep())
	c.down(ctx, n)
}

func (c *chaos) powerSite(ctx context.Context) {
	site, keep := c.anySite(), c.keep()
	var off []*Node
	for _, n := range c.ring.Nodes() {
		if string(n.Site) == site {
			n.PowerCut(keep)
			off = append(off, n)
		}
	}
	c.down(ctx, off...)
}

func (c *chaos) powerRing(ctx context.Context) {
	keep := c.keep()
	for _, n := range c.ring.Nodes() {
		n.PowerCut(keep)
	}
	c.down(ctx, c.ring.Nodes()...)
}

func (c *chaos) stop(ctx context.Context) {
	if n := c.any(); n.Node() != nil {
		n.Stop()
		c.down(ctx, n)
	}
}

// network changes the network for a while, one change at a time.
func (c *chaos) network(ctx context.Context, change func(*Network)) {
	c.mu.Lock()
	busy := c.cut
	c.cut = true
	c.mu.Unlock()
	if busy {
		return
	}
	change(c.ring.Net)
	pause(ctx, c.around(8*time.Second))
	c.ring.Net.Heal()
	c.ring.Logf("network healed")
	c.mu.Lock()
	c.cut = false
	c.mu.Unlock()
}

func (c *chaos) isolateNode(ctx context.Context) {
	n := c.any()
	c.network(ctx, func(net *Network) { net.Isolate(n.Name) })
}

func (c *chaos) isolateSite(ctx context.Context) {
	site := c.anySite()
	c.network(ctx, func(net *Network) { net.Isolate(site) })
}

func (c *chaos) oneWay(ctx context.Context) {
	n := c.any()
	if leader := c.ring.Leader(); leader != nil && c.draw(2) == 0 {
		n = leader
	}
	hears := c.draw(2) == 0
	c.network(ctx, func(net *Network) {
		if hears {
			net.CutOneWay(n.Name, Everywhere)
		} else {
			net.CutOneWay(Everywhere, n.Name)
		}
	})
}

func (c *chaos) pair(ctx context.Context) {
	a, b := c.any(), c.any()
	if a == b {
		return
	}
	c.network(ctx, func(net *Network) { net.Cut(a.Name, b.Name) })
}

// split leaves islands: two or three, by sites.
func (c *chaos) split(ctx context.Context) {
	parts := 2 + c.draw(2)
	islands := make([][]string, parts)
	sites := map[string]bool{}
	for _, n := range c.ring.Nodes() {
		if !sites[string(n.Site)] {
			sites[string(n.Site)] = true
			at := c.draw(parts)
			islands[at] = append(islands[at], string(n.Site))
		}
	}
	c.network(ctx, func(net *Network) {
		for _, names := range islands {
			c.ring.Logf("island of %s", strings.Join(names, " "))
			net.Split(names...)
		}
	})
}

// flap cuts a site off and on.
func (c *chaos) flap(ctx context.Context) {
	site := c.anySite()
	c.network(ctx, func(net *Network) {
		for range 3 {
			net.Isolate(site)
			if !pause(ctx, c.around(time.Second)) {
				return
			}
			net.Heal()
			if !pause(ctx, c.around(time.Second)) {
				return
			}
		}
	})
}

func (c *chaos) slow(ctx context.Context) {
	n, delay := c.any(), time.Duration(50+c.draw(400))*time.Millisecond
	bandwidth := int64(50<<10) << c.draw(6)
	c.network(ctx, func(net *Network) {
		change := func(p *Path) { p.Delay, p.Bandwidth = delay, bandwidth }
		net.Change(n.Name, Everywhere, change)
		net.Change(Everywhere, n.Name, change)
	})
}

func (c *chaos) lossy(ctx context.Context) {
	loss := []float64{0.02, 0.1, 0.3}[c.draw(3)]
	c.network(ctx, func(net *Network) {
		net.Change(Everywhere, Everywhere, func(p *Path) { p.Loss, p.Reorder, p.Duplicate = loss, loss, loss/2 })
	})
}

func (c *chaos) diskFull(ctx context.Context) {
	n := c.any()
	n.Disk.SetFree(1<<30, 0)
	pause(ctx, c.around(5*time.Second))
	n.Disk.SetFree(1<<39, 0)
}

// fsync makes one of the next syncs of a node fail; the node is started again a while later, as an admin would.
func (c *chaos) fsync(ctx context.Context) {
	n := c.any()
	// Not where Pebble itself answers with a panic, which is the end of a process: directories and manifests.
	where := []string{"/journal/", "/journal/", ".log", "/shards/"}[c.draw(4)]
	c.mu.Lock()
	c.planted[n.Name]++
	left := c.rng.IntN(10)
	c.mu.Unlock()
	var mu sync.Mutex
	n.Disk.Watch(func(op Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if op != OpSync || !strings.Contains(name, where) || where == ".log" && !isRaftLog(name) {
			return nil
		}
		if left--; left != -1 {
			return nil
		}
		c.ring.Logf("fsync of %s at %s fails", name, n.Name)
		c.ring.Sometimes("fsync failed")
		return errFsync
	})
	pause(ctx, c.around(10*time.Second))
	n.Disk.Watch(nil)
	if c.draw(2) == 0 {
		n.Kill()
	} else {
		n.PowerCut(c.keep())
	}
	c.down(ctx, n)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.planted[n.Name]--
}

// isPlanted reports whether an error is a fault's, which may be over by now.
func isPlanted(err error) bool { return strings.Contains(err.Error(), "planted") }

var errFsync = errors.Join(errors.New("planted"), syscall.EIO)

// clock makes a clock wrong, jump, or stand still.
func (c *chaos) clock(ctx context.Context) {
	n := c.any()
	for range 3 {
		switch c.draw(3) {
		case 0:
			n.Clock.Set(-10 * time.Minute)
		case 1:
			n.Clock.Set(10 * time.Minute)
		case 2:
			n.Clock.Freeze()
		}
		if !pause(ctx, c.around(8*time.Second)) {
			break
		}
	}
	n.Clock.Set(0)
}

const (
	joinsMax = 2
	// votersMin voters have a majority left when one is lost.
	votersMin = 3
)

// join adds a node to one of the sites, through two nodes at once with one token: it has one winner.
func (c *chaos) join(ctx context.Context) {
	site := c.any().Site
	c.mu.Lock()
	c.joined++
	number := c.joined
	c.mu.Unlock()
	if number > joinsMax {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	token, err := c.ring.token(ctx, site)
	if err != nil {
		return
	}
	var rivals [2]*Node
	var won, cut [2]bool
	var both sync.WaitGroup
	for i := range rivals {
		name := fmt.Sprintf("%s%d%c", site, 7+number, 'x'+i)
		rivals[i] = c.ring.add(name, site)
		rivals[i].gone = true
		lives := rivals[i].lives()
		both.Go(func() {
			_, err := node.Join(ctx, rivals[i].Config(), rivals[i].Env(), node.JoinRequest{Token: token, NodeName: name})
			c.ring.Logf("join of %s: %v", name, err)
			won[i] = err == nil
			cut[i] = rivals[i].lives() != lives // the machine lost its power meanwhile, and what it wrote since went nowhere
		})
	}
	both.Wait()
	if won[0] && won[1] {
		c.fault("two nodes joined with one token")
	}
	for i, n := range rivals {
		if cut[i] && won[i] { // as far as the ring knows: the admin gives the command again
			_, err := c.ring.enrol(ctx, n.Name, site)
			c.ring.Logf("join of %s again: %v", n.Name, err)
			won[i] = err == nil
			c.ring.Sometimes("join given again")
		}
		if won[i] {
			n.mu.Lock()
			n.gone = false
			n.mu.Unlock()
			c.start(n)
			c.ring.Sometimes("joined under faults")
		}
	}
}

// diskLoss takes one node's disk away for good, once: its instances and shards are elsewhere too.
func (c *chaos) diskLoss(context.Context) {
	n := c.any()
	c.mu.Lock()
	again := c.lost
	c.lost = true
	c.mu.Unlock()
	if again || n.isGone() || !c.spares(n) {
		return
	}
	n.mu.Lock()
	n.gone = true
	n.mu.Unlock()
	n.Wipe()
	c.ring.Sometimes("disk lost")
}

// spares reports whether the ring goes on without a node: of the voters that a running node knows, at least votersMin, a majority
// runs and knows the same ones when it is gone. A leader's own list may hold votes that nobody else knows of, which its disk would
// take along; and a node that was away refuses its vote to one that had none by its own log.
func (c *chaos) spares(n *Node) bool {
	known := map[string]int{} // lists of voters, and how many of them have that list
	for _, other := range c.ring.Nodes() {
		running := other.Node()
		if other == n || running == nil {
			continue
		}
		var voters []string
		votes := false
		for _, s := range running.Ring().Servers() {
			if s.Voter {
				voters = append(voters, s.Node.String())
				votes = votes || s.Node == running.ID()
			}
		}
		if votes && len(voters) >= votersMin {
			slices.Sort(voters)
			list := strings.Join(voters, " ")
			if known[list]++; known[list] > len(voters)/2 {
				return true
			}
		}
	}
	return false
}
