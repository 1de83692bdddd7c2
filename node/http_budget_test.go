package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The head of a request may have httpHeaderBytesMax bytes, and the 4096 that net/http reads ahead; one byte more is refused by 431.
func TestBudgetHTTPHeaderBytes(t *testing.T) {
	const readAhead = 4096
	cfg := testConfig(t, filepath.Join(t.TempDir(), "a1"))
	if _, err := Init(t.Context(), cfg, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, cfg)
	await(t, "node ready", func() bool { return n.Ready() == nil })
	for size, want := range map[int]int{httpHeaderBytesMax: 200, httpHeaderBytesMax + readAhead: 200, httpHeaderBytesMax + readAhead + 1: 431} {
		got, err := statusOfHead(n.servers.httpAddress(), size)
		if err != nil || got != want {
			t.Errorf("a head of %d bytes: status %d, %v, want %d", size, got, err, want)
		}
	}
	n.end(t)
}

// statusOfHead asks for /healthz with a request of so many bytes.
func statusOfHead(address string, size int) (int, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testPatience)); err != nil {
		return 0, err
	}
	head := "GET /healthz HTTP/1.1\r\nHost: a1\r\nX-Long: "
	const end = "\r\n\r\n"
	if _, err := io.WriteString(conn, head+strings.Repeat("x", size-len(head)-len(end))+end); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, fmt.Errorf("no answer: %w", err)
	}
	return r.StatusCode, r.Body.Close()
}
