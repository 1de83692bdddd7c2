package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"

	"osteon/erasure/place"
	"osteon/node"
)

// Node is one machine of the ring: its disk and clock stay, its process comes and goes.
type Node struct {
	Name  string
	Site  place.SiteID
	Disk  *Disk
	Clock *Clock

	ring *Ring
	host *host
	// advertise is the link address told to the ring, when it is that of another machine.
	advertise string

	mu         sync.Mutex
	process    *process // nil: down
	starting   bool
	generation int
	ends       int // by Kill, PowerCut and Wipe
	fenced     error
	gone       bool          // never comes back
	stopping   chan struct{} // closed when Stop is done; nil when none is under way
}

// process is one run of a node.
type process struct {
	node  *node.Node
	stop  context.CancelFunc
	ended chan struct{} // closed when Serve has returned
	err   error         // of Serve; read after ended
}

// Config is what the node is configured with: no front doors, small sizes, short waits.
func (n *Node) Config() node.Config {
	cfg := node.Config{Dir: "/osteon"}
	cfg.DIMSE.Listen, cfg.HTTP.Listen = node.Off, node.Off
	cfg.Link.Listen = fmt.Sprintf("%s:%d", n.host.ip, linkPort)
	cfg.Link.Advertise = n.advertise
	cfg.Link.Bulk = "quic" // the network of packets knows no TCP
	if n.ring.cfg.Configure != nil {
		n.ring.cfg.Configure(n.Name, &cfg)
	}
	cfg.Fill()
	return cfg
}

// Env is what the next process is given.
func (n *Node) Env() node.Env {
	n.mu.Lock()
	life := n.ends
	n.mu.Unlock()
	return node.Env{
		FS: n.Disk.Mount(), Rand: newRandom(n.ring.random()), Now: n.Clock.Now, Log: n.logger(),
		ListenPacket: func(address string) (net.PacketConn, error) { return n.listen(life, address) },
		Listen:       func(string, string) (net.Listener, error) { return newSilent(), nil },
		Raft:         n.ring.cfg.Raft,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, fmt.Errorf("%s dials nobody", n.Name)
		},
	}
}

// listen opens a socket for a process of the life that had seen that many ends.
func (n *Node) listen(life int, address string) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ends != life {
		return nil, fmt.Errorf("%s: %w", n.Name, errEnded)
	}
	return n.ring.Net.listen(n.host, address)
}

// random is a source of bytes for one process.
type random struct {
	mu sync.Mutex

	from *rand.ChaCha8
}

func newRandom(seed *rand.Rand) io.Reader {
	var key [32]byte
	for i := range key {
		key[i] = byte(seed.Uint32())
	}
	return &random{from: rand.NewChaCha8(key)}
}

func (r *random) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from.Read(p)
}

// Start starts the node's process; it fails the test when the node does not open.
func (n *Node) Start() {
	n.ring.t.Helper()
	if err := n.TryStart(); err != nil {
		n.ring.t.Fatalf("start %s: %v", n.Name, err)
	}
}

// TryStart starts the node's process unless it runs, or is being started.
func (n *Node) TryStart() error {
	n.mu.Lock()
	for n.stopping != nil {
		stopped := n.stopping
		n.mu.Unlock()
		<-stopped
		n.mu.Lock()
	}
	if n.process != nil || n.starting {
		n.mu.Unlock()
		return nil
	}
	n.starting, n.fenced = true, nil
	generation := n.generation
	n.mu.Unlock()
	return n.open(generation)
}

// open starts a process, if the node was not ended since it had the given generation.
func (n *Node) open(generation int) error {
	opened, err := node.Open(n.Config(), n.Env()) // it waits for others: not under the mutex
	n.mu.Lock()
	defer n.mu.Unlock()
	n.starting = false
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{node: opened, stop: cancel, ended: make(chan struct{})}
	if n.generation != generation { // it was ended while it started
		cancel()
		n.ring.leaving.Go(func() { _ = opened.Serve(ctx) })
		return errEnded
	}
	n.process = p
	n.generation++
	go func() { // ends with stop; Stop or Ring.Close waits for it
		p.err = opened.Serve(ctx)
		n.ended(p)
		close(p.ended)
	}()
	return nil
}

var errEnded = errors.New("the node was ended while it started")

// ended notes that a process has ended by itself, if it has, and starts the next one where that was its wish.
func (n *Node) ended(p *process) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != p {
		return
	}
	n.process, n.fenced = nil, p.err
	n.ring.Logf("%s ended by itself: %v", n.Name, p.err)
	if !errors.Is(p.err, node.ErrReopen) {
		return
	}
	n.starting = true
	generation := n.generation
	n.ring.leaving.Go(func() {
		if err := n.open(generation); err != nil {
			n.ring.Logf("%s did not start again: %v", n.Name, err)
			n.mu.Lock()
			defer n.mu.Unlock()
			n.fenced = err
		}
	})
}

// Node returns the running node, nil while it is down.
func (n *Node) Node() *node.Node {
	running, _ := n.Current()
	return running
}

// Current returns the running node and its generation: if that is another after a call, the answer of
// the call says nothing.
func (n *Node) Current() (*node.Node, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil, n.generation
	}
	return n.process.node, n.generation
}

// isGone reports whether the node never comes back.
func (n *Node) isGone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

// Fenced returns why the last process ended by itself, nil if it did not.
func (n *Node) Fenced() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fenced
}

// take takes the process away from the node.
func (n *Node) take() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.process
	n.process = nil
	if p != nil || n.starting {
		n.generation++
	}
	return p
}

// Stop stops the process in order and waits for its end. Meanwhile it cannot be killed.
func (n *Node) Stop() {
	p := n.take()
	if p == nil {
		return
	}
	stopped := make(chan struct{})
	n.mu.Lock()
	n.stopping = stopped
	n.mu.Unlock()
	p.stop()
	<-p.ended
	n.mu.Lock()
	n.stopping = nil
	n.mu.Unlock()
	close(stopped)
	if p.err != nil {
		n.ring.Logf("%s stopped: %v", n.Name, p.err)
	}
}

// lives counts how often the machine lost its processes.
func (n *Node) lives() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ends
}

// Unplug takes the process off the network for good; the next one has it again.
func (n *Node) Unplug() { n.ring.Net.detach(n.host) }

// Kill ends the process at once; everything that it wrote stays.
func (n *Node) Kill() { n.end(n.Disk.Detach) }

// PowerCut ends the machine: what was synced stays, and about the given share of what was not, with torn writes.
func (n *Node) PowerCut(keep float64) {
	rng := n.ring.random()
	n.end(func() { n.Disk.PowerCut(rng, keep) })
}

// Wipe ends the process and empties the disk.
func (n *Node) Wipe() {
	n.end(func() { n.Disk.Restore(NewDisk()) })
}

// end takes the process away from network and disk; it may be called from a Watch of the disk.
func (n *Node) end(disk func()) {
	n.mu.Lock()
	if n.stopping != nil {
		n.mu.Unlock()
		return
	}
	n.ends++
	n.mu.Unlock()
	n.ring.Net.detach(n.host)
	disk()
	p := n.take()
	if p == nil {
		return
	}
	p.stop()
	n.ring.leaving.Go(func() { <-p.ended })
}
