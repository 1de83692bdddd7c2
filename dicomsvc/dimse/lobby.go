package dimse

import (
	"net"
	"slices"
)

// lobby holds the connections whose association is not open yet, in the order
// of their arrival: those that owe us a request and those that were refused
// and have not hung up.
type lobby []waiting

type waiting struct {
	conn net.Conn
	host string
}

// enterLobby takes a place. When there is none left, for the host or at all, the connection that has waited
// longest of that host, or of the host with most of them, is closed in favour of the new one: whoever means it
// sends the request at once, so a flood of silent connections cannot keep a modality out, and one from many
// addresses has to outnumber everybody before it pushes out another's.
func (s *Server) enterLobby(conn net.Conn, host string) {
	s.mu.Lock()
	gone, evicted := s.makeRoom(host)
	s.lobby = append(s.lobby, waiting{conn, host})
	s.stats.Lobby.Store(int64(len(s.lobby)))
	s.mu.Unlock()
	if evicted {
		s.noteEvicted(gone)
	}
}

// makeRoom closes a connection if the lobby has no place for one of host, and says whose; the mutex is held.
func (s *Server) makeRoom(host string) (gone string, evicted bool) {
	ofHost, crowded := map[string]int{}, host
	for _, w := range s.lobby {
		if ofHost[w.host]++; ofHost[w.host] > ofHost[crowded] {
			crowded = w.host
		}
	}
	switch {
	case ofHost[host] >= s.cfg.MaxLobbyPerHost:
		crowded = host
	case len(s.lobby) < s.cfg.MaxLobby:
		return "", false
	}
	s.evict(slices.IndexFunc(s.lobby, func(w waiting) bool { return w.host == crowded }))
	return crowded, true
}

// evict closes a connection; whoever serves it notices. The mutex is held.
func (s *Server) evict(i int) {
	s.lobby[i].conn.Close()
	s.lobby = slices.Delete(s.lobby, i, i+1)
	s.stats.Evicted.Add(1)
}

// leaveLobby takes a connection off the list: it has ended, or is about to be
// an association, which the limits count and a drain aborts.
func (s *Server) leaveLobby(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.lobby, func(w waiting) bool { return w.conn == conn }); i >= 0 {
		s.lobby = slices.Delete(s.lobby, i, i+1)
		s.stats.Lobby.Store(int64(len(s.lobby)))
	}
}

// clearLobby closes every connection in the lobby; the mutex is held.
func (s *Server) clearLobby() {
	for _, w := range s.lobby {
		w.conn.Close()
	}
	s.lobby = nil
	s.stats.Lobby.Store(0)
}
