package node

import (
	"net"
	"sync"

	"osteon/dicomsvc/refusal"
)

// capped is a listener that holds a bounded number of connections, in all and of one address. One too many is told
// so in a line of HTTP, where the peer speaks it in plain, and closed.
type capped struct {
	net.Listener
	cfg      HTTPConfig
	refusals *refusal.Log

	mu    sync.Mutex
	open  int
	hosts map[string]int
}

func newCapped(l net.Listener, cfg HTTPConfig, refusals *refusal.Log) *capped {
	return &capped{Listener: l, cfg: cfg, refusals: refusals, hosts: map[string]int{}}
}

const tooMany = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"Content-Length: 98\r\n\r\nwhat:  too many connections\nwhere: this node\ndo:    close what is not used, or ask another node  \n"

// Accept waits for a connection for which there is a place.
func (c *capped) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		why := c.enter(host)
		if why == "" {
			return &cappedConn{Conn: conn, leave: sync.OnceFunc(func() { c.leave(host) })}, nil
		}
		c.refusals.Note(refusal.Event{What: "HTTP connection", From: host, Code: "503", Words: "Service Unavailable", Why: why,
			Do: "see what holds connections open there; raise http.connections_max or http.connections_per_host"})
		if c.cfg.TLSCert == "" {
			conn.Write([]byte(tooMany)) // a new connection's buffer takes it without waiting
		}
		conn.Close()
	}
}

// enter takes a place, or says why there is none.
func (c *capped) enter(host string) (why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.open >= c.cfg.ConnectionsMax:
		return "all HTTP connections that this node takes are open"
	case c.hosts[host] >= c.cfg.ConnectionsPerHost:
		return "this address has as many HTTP connections open as one may have"
	}
	c.open++
	c.hosts[host]++
	return ""
}

func (c *capped) leave(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.hosts[host]--; c.hosts[host] == 0 {
		delete(c.hosts, host)
	}
}

// cappedConn gives its place back when it is closed.
type cappedConn struct {
	net.Conn
	leave func()
}

func (c *cappedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
