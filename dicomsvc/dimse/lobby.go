package dimse

import (
	"net"
	"slices"
)

// lobby holds the connections whose association is not open yet, oldest first.
type lobby struct {
	conns   []net.Conn
	perHost map[string]int
}

// enterLobby takes a place. When the lobby is full the connection that has
// waited longest is closed in favour of the new one: whoever means it sends
// the request at once, so a flood of silent connections cannot keep a modality
// out. False means that the host has too many itself.
func (s *Server) enterLobby(conn net.Conn, host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.lobby
	if l.perHost[host] >= s.cfg.MaxLobbyPerHost {
		if !l.evict(host) {
			return false
		}
		s.stats.Dropped.Add(1)
	} else if len(l.conns) >= s.cfg.MaxLobby {
		l.conns[0].Close()
		l.conns = slices.Delete(l.conns, 0, 1)
		s.stats.Dropped.Add(1)
	}
	l.conns = append(l.conns, conn)
	l.perHost[host]++
	s.stats.Lobby.Add(1)
	return true
}

// evict closes the host's connection that waits longest. Its place in perHost
// is given back by the goroutine that serves it.
func (l *lobby) evict(host string) bool {
	for i, c := range l.conns {
		if hostOf(c) == host {
			c.Close()
			l.conns = slices.Delete(l.conns, i, i+1)
			return true
		}
	}
	return false
}

func (s *Server) leaveLobby(conn net.Conn, host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.lobby
	if i := slices.Index(l.conns, conn); i >= 0 {
		l.conns = slices.Delete(l.conns, i, i+1)
	}
	dec(l.perHost, host)
	s.stats.Lobby.Add(-1)
}

// closeAll closes every connection in the lobby; the mutex is held.
func (l *lobby) closeAll() {
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}
