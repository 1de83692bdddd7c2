package nodetest

import (
	"container/heap"
	"net"
	"os"
	"sync"
	"time"
)

type packet struct {
	data []byte
	from net.Addr
	due  time.Time
	seq  int64
}

// endpoint is a socket of the network: a net.PacketConn for one reader at a time and any number of writers.
type endpoint struct {
	net   *Network
	host  *host
	local *net.UDPAddr
	addr  string
	wake  chan struct{} // cap 1: look again
	timer *time.Timer

	mu       sync.Mutex
	inbox    inbox
	arrivals int64
	deadline time.Time
	closed   bool
}

func newEndpoint(n *Network, h *host, local *net.UDPAddr) *endpoint {
	e := &endpoint{net: n, host: h, local: local, addr: local.String(), wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	e.timer.Stop()
	return e
}

// arrive takes a packet that is to be read when it is due; false when there is no room.
func (e *endpoint) arrive(p packet) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.inbox) >= inboxMax {
		return false
	}
	e.arrivals++
	p.seq = e.arrivals
	heap.Push(&e.inbox, p)
	if e.inbox[0].seq == p.seq {
		e.signal()
	}
	return true
}

func (e *endpoint) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// next returns a packet that is due, else how long to wait for one.
func (e *endpoint) next() (p packet, wait time.Duration, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	switch {
	case e.closed:
		return p, 0, net.ErrClosed
	case !e.deadline.IsZero() && !now.Before(e.deadline):
		return p, 0, os.ErrDeadlineExceeded
	case len(e.inbox) > 0 && !e.inbox[0].due.After(now):
		return heap.Pop(&e.inbox).(packet), 0, nil
	case len(e.inbox) > 0:
		wait = e.inbox[0].due.Sub(now)
	}
	if !e.deadline.IsZero() {
		wait = min(wait, e.deadline.Sub(now))
	}
	return p, wait, nil
}

// ReadFrom waits for the next packet.
func (e *endpoint) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p, wait, err := e.next()
		if err != nil {
			return 0, nil, err
		}
		if wait == 0 {
			return copy(b, p.data), p.from, nil
		}
		e.timer.Reset(wait)
		select {
		case <-e.wake:
			e.timer.Stop()
		case <-e.timer.C:
		}
	}
}

// WriteTo sends a packet; that it is lost is no error.
func (e *endpoint) WriteTo(b []byte, to net.Addr) (int, error) {
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	e.net.send(e, b, to)
	return len(b), nil
}

// Close ends a read that waits.
func (e *endpoint) Close() error {
	e.net.close(e)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed, e.inbox = true, nil
	e.signal()
	return nil
}

func (e *endpoint) LocalAddr() net.Addr { return e.local }

// SetDeadline sets the read deadline: writes never wait.
func (e *endpoint) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

// SetReadDeadline ends reads at t; the zero time never does.
func (e *endpoint) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deadline = t
	e.signal()
	return nil
}

// SetWriteDeadline does nothing: writes never wait.
func (e *endpoint) SetWriteDeadline(time.Time) error { return nil }

// inbox is a heap by arrival.
type inbox []packet

func (q inbox) Len() int { return len(q) }
func (q inbox) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].seq < q[j].seq
}
func (q inbox) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *inbox) Push(x any)   { *q = append(*q, x.(packet)) }
func (q *inbox) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = packet{}
	*q = (*q)[:last]
	return p
}
