package node

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"osteon/dicomsvc/refusal"
)

// F48: one connection too many is told so and closed; a place comes back when its connection ends.
func TestF48ConnectionsAreCapped(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := refusal.NewLog(refusal.Config{Now: time.Now})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })}
	capped := newCapped(l, HTTPConfig{ConnectionsMax: 3, ConnectionsPerHost: 2}, log)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(capped) }()
	defer func() { server.Close(); <-ended }()

	open := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	ask := func(conn net.Conn) string {
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1024)
		n, _ := conn.Read(b)
		return string(b[:n])
	}
	told := func(conn net.Conn) string { // what came without being asked
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	a1, a2 := open("127.0.0.2"), open("127.0.0.2")
	for _, conn := range []net.Conn{a1, a2} {
		if got := ask(conn); !strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("a connection within the limits: %q", got)
		}
	}
	if got := told(open("127.0.0.2")); !strings.HasPrefix(got, "HTTP/1.1 503") || !strings.HasSuffix(got, "ask another node  \n") || !strings.Contains(got, "Retry-After") {
		t.Errorf("the third of one address: %q", got)
	}
	if got := ask(open("127.0.0.3")); !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Errorf("another address: %q", got)
	}
	if got := told(open("127.0.0.4")); !strings.HasPrefix(got, "HTTP/1.1 503") {
		t.Errorf("the fourth in all: %q", got)
	}
	if e := log.Events(time.Time{}, ""); len(e) != 2 || e[0].Why == "" || e[0].Do == "" || e[0].Code != "503" {
		t.Errorf("events %+v", e)
	}
	a1.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if strings.HasPrefix(ask(open("127.0.0.2")), "HTTP/1.1 200") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no place came back")
		}
	}
}
