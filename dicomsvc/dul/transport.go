package dul

import (
	"crypto/tls"
	"net"
	"syscall"
)

// transport is the connection as the association reads it: it counts, marks
// when a read blocks, and acknowledges at once what it read.
type transport struct {
	net.Conn
	w   *watch
	raw syscall.RawConn // of the TCP connection underneath, nil without one
}

// tuneTCP finds the TCP connection below conn and sets it up: no Nagle delay,
// and keep-alive probes that notice a vanished peer within 45 s.
func tuneTCP(conn net.Conn) syscall.RawConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			c.SetNoDelay(true)
			c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveStep, Count: keepAliveProbes})
			raw, err := c.SyscallConn()
			if err != nil {
				return nil
			}
			limitUnacked(raw)
			return raw
		case *tls.Conn:
			conn = c.NetConn()
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// Read reads once. Acknowledging at once matters with senders that leave
// Nagle's algorithm on: they hold the tail of each message until the last
// segment is acknowledged, and the kernel's delayed acknowledgement would cost
// some 40 ms an instance. The kernel leaves that mode by itself, so it is set
// after each read.
func (t *transport) Read(p []byte) (int, error) {
	t.w.reading.Store(true)
	n, err := t.Conn.Read(p)
	t.w.reading.Store(false)
	t.w.received.Add(int64(n))
	if t.raw != nil {
		quickAck(t.raw)
	}
	return n, err
}

// Write writes all of p as one write.
func (t *transport) Write(p []byte) (int, error) {
	t.w.writing.Add(1)
	n, err := t.Conn.Write(p)
	t.w.writing.Add(1)
	return n, err
}
