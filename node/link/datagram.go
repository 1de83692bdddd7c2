package link

import (
	"context"
	"fmt"
	"runtime/debug"

	"osteon/erasure/place"
)

// SendDatagram sends up to DatagramBytesMax bytes to a node, best effort: nil means only that they were queued.
// It never blocks. Without a connection one is dialled and a few datagrams wait for it. ErrTooLarge;
// ErrUnreachable while dials to the node fail. b is copied.
func (l *Link) SendDatagram(node place.NodeID, b []byte) error {
	if len(b) > DatagramBytesMax {
		return fmt.Errorf("%w: datagram of %d bytes, at most %d", ErrTooLarge, len(b), DatagramBytesMax)
	}
	b = append([]byte(nil), b...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("link %w", ErrClosed)
	}
	if node == l.identity.Load().Node {
		return fmt.Errorf("%w: this is the node itself", ErrUnreachable)
	}
	p := l.peer(node)
	if c := p.pick(ClassControl); c != nil {
		if !c.queue(b) {
			l.counters.datagramsDropped.Add(1)
		}
		return nil
	}
	if _, err := l.dialMore(p, node, ClassControl, false); err != nil {
		return fmt.Errorf("%w: node %s: %w", ErrUnreachable, node, err)
	}
	if len(p.pending) < datagramPending {
		p.pending = append(p.pending, b)
	}
	return nil
}

// HandleDatagram registers the receiver of datagrams. h is called from one goroutine a connection, must not block for long,
// and owns the bytes.
func (l *Link) HandleDatagram(h func(Peer, []byte)) {
	l.handlers.mu.Lock()
	defer l.handlers.mu.Unlock()
	l.handlers.datagram = h
}

// queue hands a datagram to the connection's sender; false when too many wait.
func (c *conn) queue(b []byte) bool {
	select {
	case c.out <- b:
		return true
	default:
		return false
	}
}

// sendDatagrams exists because quic-go's SendDatagram blocks when its queue is full.
func (l *Link) sendDatagrams(c *conn) {
	for {
		select {
		case b := <-c.out:
			if err := c.q.SendDatagram(b); err != nil && c.alive() {
				l.counters.datagramsDropped.Add(1) // larger than the path carries just now
			}
		case <-c.q.Context().Done():
			return
		}
	}
}

func (l *Link) receiveDatagrams(c *conn) {
	for {
		b, err := c.q.ReceiveDatagram(c.q.Context())
		if err != nil {
			return
		}
		l.handlers.mu.Lock()
		h := l.handlers.datagram
		l.handlers.mu.Unlock()
		if h != nil {
			l.runDatagram(c.q.Context(), h, c.peer, b)
		}
	}
}

// runDatagram keeps a panic of the handler from ending the node.
func (l *Link) runDatagram(_ context.Context, h func(Peer, []byte), from Peer, b []byte) {
	defer func() {
		if v := recover(); v != nil {
			l.counters.panics.Add(1)
			l.log.Error("datagram handler panicked", "node", from.Node, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	h(from, b)
}
