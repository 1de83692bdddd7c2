package link

import (
	"sync/atomic"
	"time"

	"osteon/erasure/place"
)

// counters are the totals behind Stats.
type counters struct {
	dials, dialsFailed, refused, streams, calls, datagramsDropped, panics atomic.Uint64
}

// Stats are totals since Open, and the peers connected now.
type Stats struct {
	Dials, DialsFailed, Refused uint64
	StreamsServed, CallsMade    uint64
	DatagramsDropped, Panics    uint64
	Peers                       []PeerStats
}

// PeerStats describes the live connections to one peer.
type PeerStats struct {
	Peer                     Peer
	Conns                    [classes]int // by Class, over QUIC
	Lines                    int          // TCP connections for bulk
	RTT                      time.Duration
	BytesSent, BytesReceived uint64
	PacketsLost              uint64
	RingEpoch                uint64
}

// Stats returns a copy of the counters, in no order of peers.
func (l *Link) Stats() Stats {
	c := &l.counters
	s := Stats{Dials: c.dials.Load(), DialsFailed: c.dialsFailed.Load(), Refused: c.refused.Load(),
		StreamsServed: c.streams.Load(), CallsMade: c.calls.Load(),
		DatagramsDropped: c.datagramsDropped.Load(), Panics: c.panics.Load()}
	byNode := make(map[place.NodeID]*PeerStats)
	for _, conn := range l.conns() {
		if !conn.alive() {
			continue
		}
		p := byNode[conn.peer.Node]
		if p == nil {
			p = &PeerStats{Peer: conn.peer, RingEpoch: conn.hello.Epoch}
			byNode[conn.peer.Node] = p
		}
		if line := conn.line; line != nil {
			p.Lines++
			p.BytesSent += line.out.sent.Load()
			p.BytesReceived += line.out.received.Load()
			continue
		}
		q := conn.q.ConnectionStats()
		p.Conns[conn.class]++
		p.BytesSent += q.BytesSent
		p.BytesReceived += q.BytesReceived
		p.PacketsLost += q.PacketsLost
		if p.RTT == 0 || q.SmoothedRTT < p.RTT {
			p.RTT = q.SmoothedRTT
		}
	}
	for _, p := range byNode {
		s.Peers = append(s.Peers, *p)
	}
	return s
}

// PacketsReceived returns a number that changes whenever a packet of a node has come in over a live connection: proof that
// it runs. It is 0 without a connection.
func (l *Link) PacketsReceived(node place.NodeID) uint64 {
	l.mu.Lock()
	var all []*conn
	if p := l.peers[node]; p != nil {
		all = p.all()
	}
	l.mu.Unlock()
	var sum uint64
	for _, c := range all {
		if c.line != nil && c.alive() {
			sum += c.line.frames.Load()
		} else if c.alive() {
			sum += c.q.ConnectionStats().PacketsReceived
		}
	}
	return sum
}

// RTT returns the smoothed round-trip time to a node, false when no connection to it is open.
func (l *Link) RTT(node place.NodeID) (time.Duration, bool) {
	l.mu.Lock()
	p := l.peers[node]
	var c *conn
	for class := Class(0); p != nil && c == nil && class < classes; class++ {
		c = p.pick(class)
	}
	l.mu.Unlock()
	if c == nil {
		return 0, false
	}
	return c.q.ConnectionStats().SmoothedRTT, true
}
