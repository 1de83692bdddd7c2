package nodetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Path is what happens to packets on their way from one host to another. The zero value delivers at once.
type Path struct {
	Cut    bool
	Delay  time.Duration
	Jitter time.Duration // up to this much more, without overtaking
	// Chances for each packet, 0 to 1. A reordered packet arrives up to four delays later than it should.
	Loss, Duplicate, Reorder float64
	// Bandwidth in bytes a second; 0: no limit. Packets that would wait more than queueMax are dropped.
	Bandwidth int64

	free time.Time // when the line has sent what was given to it
	last time.Time // arrival of the packet that arrives last
}

const (
	queueMax = 200 * time.Millisecond
	// inboxMax is how many packets wait at one socket, as a socket's buffer would hold.
	inboxMax = 4096
	// arrivalStep groups arrivals, so that a burst wakes its reader once.
	arrivalStep = 100 * time.Microsecond
)

// Network is a packet network in memory between hosts of sites. Whatever is not changed is a local line between
// hosts of one site and a wide one between sites. It owns no goroutine.
type Network struct {
	mu sync.Mutex

	rng     *rand.Rand
	hosts   []*host
	sockets map[string]*endpoint // by address
	paths   map[[2]*host]*Path
	sent    int64
	dropped int64
	lan     Path
	wan     Path
}

// host is a machine: an IP address, and the sockets that are open on it.
type host struct {
	name, site string
	ip         net.IP
	ports      int // the last ephemeral port
}

// NewNetwork returns a network whose chances are drawn from seed.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rng: rand.New(rand.NewPCG(seed, 0x6e6574)), sockets: map[string]*endpoint{}, paths: map[[2]*host]*Path{},
		lan: Path{Delay: 200 * time.Microsecond, Jitter: 100 * time.Microsecond},
		wan: Path{Delay: 2 * time.Millisecond, Jitter: time.Millisecond},
	}
}

// Lines sets what paths are like that Change did not touch; it undoes every Change.
func (n *Network) Lines(lan, wan Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lan, n.wan = lan, wan
	clear(n.paths)
}

// Heal undoes every Change and Cut.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.paths)
}

// Everywhere names every host in Change and Cut.
const Everywhere = "*"

// Change changes the paths of one direction between two nodes or sites, each named by its name, or Everywhere.
func (n *Network) Change(from, to string, change func(*Path)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.hosts {
		for _, b := range n.hosts {
			if a != b && a.is(from) && b.is(to) {
				change(n.path(a, b))
			}
		}
	}
}

// CutOneWay lets nothing pass from one node or site to another.
func (n *Network) CutOneWay(from, to string) { n.Change(from, to, func(p *Path) { p.Cut = true }) }

// Cut lets nothing pass between two nodes or sites. Cut(x, Everywhere) isolates x; the nodes of a site still hear each
// other unless x is one of them: see Isolate.
func (n *Network) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// Isolate cuts a node, or a site as a whole, off from everybody outside it.
func (n *Network) Isolate(name string) { n.Split(name) }

// Split cuts the named nodes and sites off from all others; among themselves nothing changes.
func (n *Network) Split(names ...string) {
	in := func(h *host) bool {
		for _, name := range names {
			if h.is(name) {
				return true
			}
		}
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.hosts {
		for _, b := range n.hosts {
			if in(a) != in(b) {
				n.path(a, b).Cut = true
			}
		}
	}
}

// Packets returns how many packets were sent and how many of them never arrived.
func (n *Network) Packets() (sent, dropped int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent, n.dropped
}

func (h *host) is(name string) bool { return name == Everywhere || name == h.name || name == h.site }

// path returns the path between two hosts; mu is held.
func (n *Network) path(a, b *host) *Path {
	p := n.paths[[2]*host{a, b}]
	if p == nil {
		standard := n.wan
		if a.site == b.site {
			standard = n.lan
		}
		p = &standard
		n.paths[[2]*host{a, b}] = p
	}
	return p
}

// addHost adds a machine.
func (n *Network) addHost(name, site string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &host{name: name, site: site, ip: net.IPv4(10, 0, 0, byte(len(n.hosts)+1)), ports: 20000}
	n.hosts = append(n.hosts, h)
	return h
}

// listen opens a socket on a host; an empty address is any port.
func (n *Network) listen(h *host, address string) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	local := &net.UDPAddr{IP: h.ip}
	if address == "" {
		h.ports++
		local.Port = h.ports
	} else {
		asked, err := net.ResolveUDPAddr("udp", address)
		if err != nil {
			return nil, err
		}
		if !asked.IP.Equal(h.ip) {
			return nil, fmt.Errorf("listen %s: address is not of host %s", address, h.name)
		}
		local.Port = asked.Port
	}
	if n.sockets[local.String()] != nil {
		return nil, fmt.Errorf("listen %s: address in use", local)
	}
	e := newEndpoint(n, h, local)
	n.sockets[local.String()] = e
	return e, nil
}

// send puts a packet on its way.
func (n *Network) send(from *endpoint, p []byte, to net.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent++
	dest := n.sockets[to.String()]
	if dest == nil || n.sockets[from.addr] != from {
		n.dropped++
		return
	}
	if dest.host == from.host {
		dest.arrive(packet{data: clone(p), from: from.local, due: time.Now()})
		return
	}
	path := n.path(from.host, dest.host)
	for range 1 + n.chance(path.Duplicate) {
		due, ok := n.arrival(path, len(p))
		if !ok || !dest.arrive(packet{data: clone(p), from: from.local, due: due}) {
			n.dropped++
		}
	}
}

// arrival returns when a packet arrives, false for never; mu is held.
func (n *Network) arrival(p *Path, size int) (due time.Time, ok bool) {
	if p.Cut || n.chance(p.Loss) == 1 {
		return due, false
	}
	now := time.Now()
	sent := now
	if p.Bandwidth > 0 {
		if sent = p.free; sent.Before(now) {
			sent = now
		}
		if sent.Sub(now) > queueMax {
			return due, false
		}
		sent = sent.Add(time.Duration(int64(size) * int64(time.Second) / p.Bandwidth))
		p.free = sent
	}
	due = sent.Add(p.Delay)
	if p.Jitter > 0 {
		due = due.Add(time.Duration(n.rng.Int64N(int64(p.Jitter))))
	}
	if n.chance(p.Reorder) == 1 {
		return due.Add(time.Duration(n.rng.Int64N(int64(4*p.Delay + arrivalStep)))), true
	}
	if due = due.Truncate(arrivalStep).Add(arrivalStep); due.Before(p.last) {
		due = p.last
	}
	p.last = due
	return due, true
}

// chance returns 1 with the given probability, else 0.
func (n *Network) chance(p float64) int {
	if p > 0 && n.rng.Float64() < p {
		return 1
	}
	return 0
}

// close gives a socket's address back.
func (n *Network) close(e *endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[e.addr] == e {
		delete(n.sockets, e.addr)
	}
}

// detach takes every socket of a host off the network: what they send is lost, nothing reaches them, and their
// addresses are free.
func (n *Network) detach(h *host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for address, e := range n.sockets {
		if e.host == h {
			delete(n.sockets, address)
		}
	}
}

func clone(p []byte) []byte { return append(make([]byte, 0, len(p)), p...) }
