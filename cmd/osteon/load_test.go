package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// Floods against a built node: whatever strangers do, a modality that the configuration names keeps its rate.

var loadLong = flag.Bool("load-long", false, "run the load tests in their long form (make load)")

const (
	floodRate    = 1000   // associations a second
	floodSockets = 10_000 // held open at once
	slowSockets  = 2000
	keptRate     = 0.9                     // of a known AE's rate
	idleOver     = 64 << 20                // bytes of memory a flood may cost
	modalityPace = 25                      // objects a second, each of modalitySize: a fast scanner
	modalitySize = 512 << 10               //
	sliceTime    = 1500 * time.Millisecond // of one measurement
)

// modality stores objects at a pace, over an association that it opens anew every ten, as scanners do.
type modality struct {
	n      *testNode
	title  string
	number int
	worst  time.Duration // longest wait for an answer, an association included
}

// run stores for a while and returns how many objects were acknowledged. An object that is late makes the next
// ones follow at once; what is not sent at the end is lost to the rate.
func (m *modality) run(ctx context.Context, d time.Duration) (acked int, err error) {
	began := time.Now()
	var client *dimse.Client
	defer func() {
		if client != nil {
			err = errors.Join(err, client.Release(ctx))
			client.Close()
		}
	}()
	for i := 0; ; i++ {
		due := began.Add(time.Duration(i) * time.Second / modalityPace)
		if due.Sub(began) >= d || time.Since(began) >= d {
			return acked, nil
		}
		time.Sleep(time.Until(due))
		asked := time.Now()
		m.number++
		in := noiseInstance(46, 1, m.number, modalitySize, 46)
		if client != nil && i%10 == 0 {
			if err := client.Release(ctx); err != nil {
				return acked, err
			}
			client.Close()
			client = nil
		}
		if client == nil {
			if client, err = callFrom(ctx, m.n, "127.0.0.1", m.title, m.n.AET, contextFor(in)); err != nil {
				return acked, fmt.Errorf("associate: %w", err)
			}
		}
		r, err := client.Store(ctx, dimse.StoreArgs{SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data)})
		if err != nil || r.Status != dimse.StatusSuccess {
			return acked, fmt.Errorf("store: %04X %q: %w", r.Status, r.ErrorComment, err)
		}
		acked++
		m.worst = max(m.worst, time.Since(asked))
	}
}

// flood is a number of goroutines that do one thing again and again until stopped.
type flood struct {
	stop   context.CancelFunc
	wait   sync.WaitGroup
	tries  atomic.Int64
	opened atomic.Int64 // sockets connected
	let    atomic.Int64 // associations accepted
	told   atomic.Int64 // rejected with a triple
}

func (f *flood) end() { f.stop(); f.wait.Wait() }

// start begins a flood of workers, each with a number, that together make rate tries a second.
func startFlood(workers, rate int, try func(ctx context.Context, f *flood, worker int)) *flood {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flood{stop: cancel}
	turns := make(chan struct{}, rate)
	f.wait.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for range rate / 100 {
				select {
				case turns <- struct{}{}:
				default: // the workers are behind
				}
			}
		}
	})
	for w := range workers {
		f.wait.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-turns:
					f.tries.Add(1)
					try(ctx, f, w)
				}
			}
		})
	}
	return f
}

// strangersRequest is the A-ASSOCIATE-RQ of somebody that the node does not know.
func strangersRequest(t testing.TB, title string) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	go func() { // ends with the pipe
		client, err := dimse.Dial(context.Background(), there, dimse.ClientConfig{Association: dul.RequestorConfig{
			CallingAE: title, CalledAE: "OSTEON",
			Contexts: []dul.ProposedContext{{ID: 1, AbstractSyntax: dimse.VerificationClass, TransferSyntaxes: []string{dicom.ImplicitVRLittleEndian}}},
			Timers:   dul.Timers{Linger: time.Millisecond},
		}})
		if err == nil {
			client.Close()
		}
	}()
	head := make([]byte, 6)
	if _, err := io.ReadFull(here, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[4])<<8|int(head[5]))
	if _, err := io.ReadFull(here, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// knock connects from one of several addresses.
func (f *flood) knock(ctx context.Context, n *testNode, worker int) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+worker%8))}}
	conn, err := d.DialContext(ctx, "tcp", n.DIMSE)
	if err == nil {
		f.opened.Add(1)
	}
	return conn, err
}

// answer reads one PDU and counts it.
func (f *flood) answer(conn net.Conn) byte {
	var pdu [10]byte
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(conn, pdu[:]); err != nil {
		return 0
	}
	switch pdu[0] {
	case 2:
		f.let.Add(1)
	case 3:
		f.told.Add(1)
	}
	return pdu[0]
}

// rssOf is the resident memory of a process in bytes.
func rssOf(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			var kb int64
			fmt.Sscan(rest, &kb)
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func openFilesOf(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// cpuOf is the processor time that a process has used.
func cpuOf(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var user, system int64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// manyFiles lets this process and its children open that many files.
func manyFiles(t testing.TB, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < n {
		want := syscall.Rlimit{Cur: n, Max: max(n, limit.Max)}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want); err != nil {
			t.Fatalf("raise the limit of open files to %d (as root): %v", n, err)
		}
	}
}

// inTurns measures a modality in turns without and with a flood. It returns the objects acknowledged in each.
func inTurns(t testing.TB, m *modality, under func() *flood) (quiet, flooded int, last *flood) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	if _, err := m.run(ctx, sliceTime/2); err != nil { // whatever is slow at first
		t.Fatal(err)
	}
	pairs := 2
	if *loadLong {
		pairs = 10
	}
	for range pairs {
		n, err := m.run(ctx, sliceTime)
		if err != nil {
			t.Fatalf("without a flood: %v", err)
		}
		quiet += n
		last = under()
		n, err = m.run(ctx, sliceTime)
		last.end()
		if err != nil {
			t.Errorf("under the flood, after %d objects: %v", n, err)
		}
		flooded += n
	}
	return quiet, flooded, last
}
