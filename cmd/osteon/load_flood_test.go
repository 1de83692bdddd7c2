package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dul"
)

// held keeps connections open, the oldest of which make room.
type held struct {
	mu    sync.Mutex
	conns []net.Conn
	max   int
}

func (h *held) add(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, c)
	if len(h.conns) > h.max {
		h.conns[0].Close()
		h.conns = h.conns[1:]
	}
}

func (h *held) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}

// F46: 1,000 associations a second of strangers, from other addresses, and 10,000 open sockets of theirs, silent or
// with a request: a modality of the configuration keeps its rate, and the node its memory and descriptors.
func TestF46FloodLeavesModalitiesTheirRate(t *testing.T) {
	manyFiles(t, 16_384)
	request := strangersRequest(t, "STRANGER")
	associate := func(a *served) func() *flood {
		return func() *flood {
			return startFlood(64, floodRate, func(ctx context.Context, f *flood, worker int) {
				conn, err := f.knock(ctx, &a.testNode, worker)
				if err != nil {
					return
				}
				defer conn.Close()
				if _, err := conn.Write(request); err == nil {
					f.answer(conn)
				}
			})
		}
	}
	hold := func(a *served) func() *flood {
		return func() *flood {
			h := &held{max: floodSockets}
			open := func(ctx context.Context, f *flood, worker int) {
				conn, err := f.knock(ctx, &a.testNode, worker)
				if err != nil {
					return
				}
				if worker%2 == 0 {
					conn.Write(request)
				}
				h.add(conn)
			}
			first := startFlood(64, 20*floodRate, open)
			for began := time.Now(); h.count() < floodSockets; time.Sleep(10 * time.Millisecond) {
				if time.Since(began) > ringPatience {
					t.Fatalf("only %d sockets could be opened", h.count())
				}
			}
			first.end()
			f := startFlood(64, floodRate, open)
			stop := f.stop
			f.stop = func() { stop(); h.close() }
			return f
		}
	}
	for _, tt := range []struct {
		name, promiscuous string
		under             func(*served) func() *flood
	}{
		{"strangers are rejected", "false", associate},
		{"strangers are let in", "true", associate},
		{"10,000 sockets", "true", hold},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newConfigured(t, "promiscuous: "+tt.promiscuous+"\naes: [{title: CT1}]\n")
			m := &modality{n: &a.testNode, title: "CT1"}
			before := rssOf(t, a.PID)
			used := cpuOf(t, a.PID)
			quiet, flooded, f := inTurns(t, m, tt.under(a))
			rss, fds := rssOf(t, a.PID), openFilesOf(t, a.PID)
			t.Logf("%d objects without, %d with; worst answer %s; last flood: %d tries, %d sockets, %d let in, %d rejected; node: %s CPU, %d MiB, %d descriptors",
				quiet, flooded, m.worst.Round(time.Millisecond), f.tries.Load(), f.opened.Load(), f.let.Load(), f.told.Load(), cpuOf(t, a.PID)-used, rss>>20, fds)
			if float64(flooded) < keptRate*float64(quiet) {
				t.Errorf("the modality stored %d objects under the flood, %d without: less than %.0f %%", flooded, quiet, 100*keptRate)
			}
			if f.tries.Load() < floodRate*int64(sliceTime/time.Second)/2 {
				t.Errorf("no flood: only %d tries", f.tries.Load())
			}
			if rss > before+idleOver+memoryOfStores {
				t.Errorf("the node took %d MiB, %d before", rss>>20, before>>20)
			}
			if fds > 600 {
				t.Errorf("the node holds %d descriptors", fds)
			}
		})
	}
}

// memoryOfStores is what the modality's own objects make a node take: buffers, catalog, journal pages.
const memoryOfStores = 64 << 20

// F47: 2,000 sockets that send a byte every 10 s before or after their association, or half a PDU: those in an
// association are aborted within the time that progress is asked for, those before it are few, and gone when the
// ARTIM time is over; the modality keeps its rate.
func TestF47SlowSocketsAreCutOff(t *testing.T) {
	manyFiles(t, 16_384)
	a := newConfigured(t, "promiscuous: true\naes: [{title: CT1}]\n")
	m := &modality{n: &a.testNode, title: "CT1"}
	slow := &slowly{t: t, n: &a.testNode}
	for i := range 8 {
		slow.requests = append(slow.requests, strangersRequest(t, fmt.Sprint("STRANGER", i)))
	}
	began := time.Now()
	quiet, flooded, _ := inTurns(t, m, func() *flood {
		return startFlood(1, 100, func(ctx context.Context, _ *flood, _ int) {
			slow.once.Do(slow.open)
			slow.trickle(ctx)
		})
	})
	if float64(flooded) < keptRate*float64(quiet) {
		t.Errorf("the modality stored %d objects beside the slow sockets, %d without: less than %.0f %%", flooded, quiet, 100*keptRate)
	}
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	trickling := startFlood(1, 100, func(ctx context.Context, _ *flood, _ int) { slow.trickle(ctx) })
	defer trickling.end()
	after, before := slow.await(ctx, *loadLong)
	t.Logf("%d objects without, %d with; %d associations were let in and aborted, the last after %s", quiet, flooded, after.count, after.last.Sub(began).Round(time.Second))
	if *loadLong {
		t.Logf("%d sockets without one, the last seen closed after %s", before.count, before.last.Sub(began).Round(time.Second))
	}
	if after.count < 100 {
		t.Errorf("only %d slow associations were let in: nothing is shown", after.count)
	}
	if fds := openFilesOf(t, a.PID); fds > 600 {
		t.Errorf("the node holds %d descriptors", fds)
	}
	r := &testRing{t: t, dir: a.Dir}
	r.eventually("ae log tells of the aborts", func() bool {
		l, err := a.admin().AELog(ctx, 0, "")
		told := 0
		for _, e := range l.Events {
			if e.What == "association" && e.Code == "2/0" && strings.Contains(e.Why, "1 KiB/s") {
				told += e.Count
			}
		}
		return err == nil && told >= after.count
	})
}

// slowly holds slow sockets, a third of each kind.
type slowly struct {
	t        testing.TB
	n        *testNode
	requests [][]byte // by address
	once     sync.Once

	mu            sync.Mutex
	before, after []net.Conn
	at            int
}

// open opens all of them: half of an association request, or an association with half a PDU.
func (s *slowly) open() {
	f := &flood{}
	var wait sync.WaitGroup
	places := make(chan struct{}, 64)
	for i := range slowSockets {
		places <- struct{}{}
		wait.Go(func() {
			defer func() { <-places }()
			conn, err := f.knock(context.Background(), s.n, i)
			if err != nil {
				return
			}
			into, request := &s.before, s.requests[i%len(s.requests)]
			if i%3 == 0 {
				conn.Write(request[:len(request)/2])
			} else {
				conn.Write(request)
				if f.accepted(conn) {
					// A P-DATA-TF of 64 KiB of which 3 bytes are sent.
					conn.Write([]byte{4, 0, 0, 1, 0, 0, 0, 0, 0xff})
					into = &s.after
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			*into = append(*into, conn)
		})
	}
	wait.Wait()
	s.t.Cleanup(func() {
		for _, conn := range append(s.before, s.after...) {
			conn.Close()
		}
	})
}

// accepted reads the answer to a request to its end.
func (f *flood) accepted(conn net.Conn) bool {
	var head [6]byte
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	defer conn.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(conn, head[:]); err != nil || head[0] != 2 {
		return false
	}
	_, err := io.CopyN(io.Discard, conn, int64(head[4])<<8|int64(head[5]))
	return err == nil
}

// trickle sends a byte on some of the sockets, so that each has one every 10 s.
func (s *slowly) trickle(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := len(s.before) + len(s.after)
	for range all / 1000 { // of 100 turns a second
		s.at = (s.at + 1) % all
		if s.at < len(s.before) {
			s.before[s.at].Write([]byte{0})
		} else {
			s.after[s.at-len(s.before)].Write([]byte{0})
		}
	}
}

// ends are how many sockets ended, and the last of them when.
type ends struct {
	count int
	last  time.Time
}

// await waits until the node has ended every slow association with an A-ABORT, and, if all, closed every socket.
func (s *slowly) await(ctx context.Context, all bool) (after, before ends) {
	s.mu.Lock()
	afters, befores := s.after, s.before
	s.mu.Unlock()
	deadline, _ := ctx.Deadline()
	for _, conn := range afters {
		var pdu [10]byte
		conn.SetReadDeadline(deadline)
		if _, err := io.ReadFull(conn, pdu[:]); err != nil || pdu[0] != 7 || pdu[8] != dul.SourceProvider {
			s.t.Errorf("a slow association ended with % x, %v; want an A-ABORT of the provider", pdu, err)
			continue
		}
		after.count, after.last = after.count+1, time.Now()
	}
	if !all {
		return after, before
	}
	for _, conn := range befores {
		conn.SetReadDeadline(deadline)
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			s.t.Error("a slow socket without association is still open")
			return after, before
		}
		before.count, before.last = before.count+1, time.Now()
	}
	return after, before
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
