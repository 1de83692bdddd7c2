//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// A trace of the system calls of every node shows that the journals of two nodes were synced, after the
// last byte of the instance was written to them, before the first byte of the C-STORE response left.
// Behaviour 20.
func TestBothJournalsSyncBeforeTheResponse(t *testing.T) {
	needTools(t, "strace")
	r := startRing(t, 3, 1)
	r.mustStore(r.nodes[0], noiseInstance(1, 1, 1, 10_000, 1)) // connections and streams are up from here on
	in := noiseInstance(2, 1, 1, 700_000, 2)
	var stops []func() []call
	for _, n := range r.nodes {
		stops = append(stops, n.trace(t))
	}
	receiver, client := r.nodes[0], storeFrom(t, r.nodes[0], in)
	traces := map[string][]call{}
	for i, n := range r.nodes {
		traces[n.ID] = stops[i]()
	}
	response, err := responseIn(traces[receiver.ID], client)
	if err != nil {
		t.Fatal(err)
	}
	holders, err := syncedBefore(traces, response, int64(len(in.data)))
	if err != nil {
		t.Error(err)
	}
	if len(holders) < 2 || holders[receiver.ID] == 0 {
		t.Errorf("journals synced before the response: %v; want that of %s and another", holders, receiver.ID)
	}
	for id, ahead := range holders {
		t.Logf("the journal of %s was synced %s before the response", id, ahead)
	}
}

// storeFrom stores an instance and returns the client's address.
func storeFrom(t *testing.T, n *testNode, in instance) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.DIMSE)
	if err != nil {
		t.Fatal(err)
	}
	address := conn.LocalAddr().String()
	client, err := dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: "TEST", CalledAE: n.AET, Contexts: contextFor(in),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	response, err := client.Store(ctx, dimse.StoreArgs{
		SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data),
	})
	if err != nil || response.Status != dimse.StatusSuccess {
		t.Fatalf("store: status %04XH %q, %v", response.Status, response.ErrorComment, err)
	}
	if err := client.Release(ctx); err != nil {
		t.Fatal(err)
	}
	return address
}

// call is one system call of a trace.
type call struct {
	name       string
	start, end time.Duration // since 1970
	fd         string        // what the first argument stands for: a path, or a socket and its addresses
	args       string        // behind the first
	result     int64
}

const traced = "trace=fsync,fdatasync,sync_file_range,msync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,sendmmsg,sendfile,splice"

// trace attaches strace to the node's threads and returns once it has; stop detaches it and returns what
// it saw. A traced thread stands still until its call was noted, so the times of different nodes'
// traces, all of one clock, order what depends on each other.
func (n *testNode) trace(t *testing.T) (stop func() []call) {
	t.Helper()
	out := filepath.Join(t.TempDir(), n.ID+".trace")
	s := exec.Command("strace", "-f", "-yy", "-e", traced, "-e", "signal=none", "-s", "16",
		"--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns",
		"-o", out, "-p", strconv.Itoa(n.PID))
	s.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stderr, err := s.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(stderr)
	if !said.Scan() || !strings.Contains(said.Text(), "attached") {
		t.Fatalf("strace of %s: %q", n.ID, said.Text())
	}
	drained := make(chan struct{})
	go func() { // ends with strace
		defer close(drained)
		for said.Scan() {
		}
	}()
	end := func() {
		s.Process.Signal(syscall.SIGINT)
		<-drained
		s.Wait() // its exit status tells of the signal
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			end()
		}
	})
	return func() []call {
		ended = true
		end()
		raw, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		calls, err := parseTrace(string(raw))
		if err != nil {
			t.Fatalf("trace of %s: %v", n.ID, err)
		}
		return calls
	}
}

var (
	traceLine   = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (\w+)\(([^,<)]*)(?:<(.*?)>)?([,)].*|\s+<unfinished \.\.\.>)$`)
	traceResume = regexp.MustCompile(`^(\d+) +(\d+\.\d+) <\.\.\. (\w+) resumed>(.*)$`)
	traceResult = regexp.MustCompile(` = (-?\d+)[^=]*?(?: <(\d+\.\d+)>)?$`)
)

// parseTrace reads the lines of strace -f -yy with absolute times and durations.
func parseTrace(text string) (calls []call, err error) {
	open := map[string]call{} // by thread
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := traceResume.FindStringSubmatch(line); m != nil {
			c, ok := open[m[1]]
			delete(open, m[1])
			result := traceResult.FindStringSubmatch(m[4])
			if !ok || c.name != m[3] || result == nil {
				continue // begun before the trace, or ended by the thread's end
			}
			c.end = seconds(m[2])
			c.result, _ = strconv.ParseInt(result[1], 10, 64)
			calls = append(calls, c)
			continue
		}
		m := traceLine.FindStringSubmatch(line)
		if m == nil {
			if strings.Contains(line, "+++") || strings.Contains(line, "---") || strings.Contains(line, "<detached") {
				continue
			}
			return nil, fmt.Errorf("line not understood: %q", line)
		}
		c := call{name: m[3], start: seconds(m[2]), fd: m[5], args: m[6]}
		if strings.HasSuffix(line, "<unfinished ...>") {
			open[m[1]] = c
			continue
		}
		result := traceResult.FindStringSubmatch(m[6])
		if result == nil {
			continue // detached in the middle
		}
		c.result, _ = strconv.ParseInt(result[1], 10, 64)
		c.end = c.start + seconds(result[2])
		calls = append(calls, c)
	}
	return calls, nil
}

func seconds(text string) time.Duration {
	whole, fraction, _ := strings.Cut(text, ".")
	s, _ := strconv.ParseInt(whole, 10, 64)
	ns, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	return time.Duration(s)*time.Second + time.Duration(ns)
}

// responseIn returns when the first P-DATA PDU (PS3.8 §9.3.5, type 04H) began to leave for the client.
func responseIn(trace []call, client string) (time.Duration, error) {
	var first time.Duration
	for _, c := range trace {
		if !strings.HasPrefix(c.fd, "TCP") || !strings.HasSuffix(c.fd, "->"+client+"]") || !strings.Contains(c.args, `"\4\0`) {
			continue
		}
		if first == 0 || c.start < first {
			first = c.start
		}
	}
	if first == 0 {
		return 0, errors.New("the trace shows no response to the client")
	}
	return first, nil
}

// syncedBefore returns how long before the moment each journal was synced that took an object of the
// size. One that took it and was not synced since is an error.
func syncedBefore(traces map[string][]call, moment time.Duration, size int64) (map[string]time.Duration, error) {
	ahead := map[string]time.Duration{}
	var faults []error
	for id, trace := range traces {
		var written int64
		var last, synced time.Duration
		for _, c := range trace {
			if strings.HasSuffix(c.fd, ".seg") && strings.HasPrefix(c.name, "pwrite") && c.start < moment && c.result > 0 {
				written += c.result
				last = max(last, c.end)
			}
		}
		if written < size {
			continue
		}
		for _, c := range trace {
			if strings.HasSuffix(c.fd, ".seg") && (c.name == "fdatasync" || c.name == "fsync") && c.result == 0 &&
				c.start >= last && c.end <= moment && (synced == 0 || c.end < synced) {
				synced = c.end
			}
		}
		if synced == 0 {
			faults = append(faults, fmt.Errorf("node %s wrote %d bytes to its journal and did not sync it before the response", id, written))
			continue
		}
		ahead[id] = moment - synced
	}
	return ahead, errors.Join(faults...)
}

// The reader of traces sees what must not be: a response that left before the partner's journal was
// synced, or before the end of its sync.
func TestTraceShowsALateSync(t *testing.T) {
	const receiver = `
7 100.000000001 pwrite64(9</r/a1/journal/0000000000000001.seg>, "OJF1\1\0\0\0"..., 1000, 512) = 1000 <0.000100000>
8 100.001000000 fdatasync(9</r/a1/journal/0000000000000001.seg> <unfinished ...>
7 100.001500000 write(12<UDP:[127.0.0.1:1->127.0.0.1:2]>, "\4\0\0"..., 3) = 3 <0.000001000>
8 100.002000000 <... fdatasync resumed>) = 0 <0.001000000>
7 100.005000000 write(11<TCP:[127.0.0.1:4242->127.0.0.1:5555]>, "\4\0\0\0\0\244\0\0"..., 170) = 170 <0.000020000>
7 100.006000000 +++ exited with 0 +++
`
	for name, c := range map[string]struct {
		partner string
		holders int
		fails   bool
	}{
		"in time":        {"3 100.001000000 pwrite64(5</r/b1/journal/1.seg>, \"\"..., 1000, 512) = 1000 <0.001000000>\n3 100.003000000 fdatasync(5</r/b1/journal/1.seg>) = 0 <0.001000000>\n", 2, false},
		"ends too late":  {"3 100.001000000 pwrite64(5</r/b1/journal/1.seg>, \"\"..., 1000, 512) = 1000 <0.001000000>\n3 100.003000000 fdatasync(5</r/b1/journal/1.seg>) = 0 <0.003000000>\n", 1, true},
		"before a write": {"3 100.000500000 fdatasync(5</r/b1/journal/1.seg>) = 0 <0.000100000>\n3 100.001000000 pwrite64(5</r/b1/journal/1.seg>, \"\"..., 1000, 512) = 1000 <0.001000000>\n", 1, true},
		"fails":          {"3 100.001000000 pwrite64(5</r/b1/journal/1.seg>, \"\"..., 1000, 512) = 1000 <0.001000000>\n3 100.003000000 fdatasync(5</r/b1/journal/1.seg>) = -1 EIO (Input/output error) <0.001000000>\n", 1, true},
		"no copy":        {"3 100.003000000 fdatasync(5</r/b1/journal/1.seg>) = 0 <0.001000000>\n", 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			traces := map[string][]call{}
			for id, text := range map[string]string{"a1": strings.TrimPrefix(receiver, "\n"), "b1": c.partner} {
				calls, err := parseTrace(text)
				if err != nil {
					t.Fatal(err)
				}
				traces[id] = calls
			}
			moment, err := responseIn(traces["a1"], "127.0.0.1:5555")
			if err != nil {
				t.Fatal(err)
			}
			holders, err := syncedBefore(traces, moment, 900)
			if len(holders) != c.holders || (err != nil) != c.fails {
				t.Errorf("synced in time: %v, %v; want %d, failing %v", holders, err, c.holders, c.fails)
			}
		})
	}
}
