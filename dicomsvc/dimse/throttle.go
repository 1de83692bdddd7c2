package dimse

import (
	"context"
	"net"
	"sync"
	"time"
)

// throttle turns away, for the price of an accept, addresses that knock and knock without being let in. It counts
// in beats of one timer and asks no clock. An address at which a known caller was let in is not held back: behind
// one address there may be a modality beside whatever went mad.
type throttle struct {
	mu      sync.Mutex
	counts  map[string]int // connections that came to nothing, less what was forgiven
	trusted map[string]bool
}

func newThrottle() throttle {
	return throttle{counts: map[string]int{}, trusted: map[string]bool{}}
}

// heldBack reports whether a connection of host is to be closed at once.
func (s *Server) heldBack(host string) bool {
	t := &s.throttle
	t.mu.Lock()
	held := t.counts[host] >= s.cfg.MaxFruitless && !t.trusted[host]
	t.mu.Unlock()
	if held {
		s.stats.HeldBack.Add(1)
		s.noteHeldBack(host)
	}
	return held
}

// fruitless counts a connection of host that came to nothing.
func (s *Server) fruitless(host string) {
	t := &s.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, counted := t.counts[host]; counted || len(t.counts) < throttledMax {
		t.counts[host]++
	}
}

// welcome notes that a caller at host was let in.
func (s *Server) welcome(host string, known bool) {
	if !known {
		return
	}
	t := &s.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.trusted[host] && len(t.trusted) >= trustedMax {
		clear(t.trusted) // they earn it again with their next association
	}
	t.trusted[host] = true
}

// forgive forgets some of what was counted each second, until ctx ends.
func (s *Server) forgive(ctx context.Context) {
	tick := time.NewTicker(forgiveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t := &s.throttle
		t.mu.Lock()
		for host, n := range t.counts {
			if n -= fruitlessForgiven; n <= 0 {
				delete(t.counts, host)
			} else {
				t.counts[host] = n
			}
		}
		t.mu.Unlock()
	}
}

// dismiss closes a connection so that neither side keeps anything of it: no TIME-WAIT, no unread bytes.
func dismiss(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	conn.Close()
}
