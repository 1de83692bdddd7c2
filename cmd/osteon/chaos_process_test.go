//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

// F20, its process side: a node that stands still (SIGSTOP) while it leads, or is a partner, costs the others no request;
// when it goes on it is one of them again and has forgotten nothing.
func TestChaosStoppedNodes(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(3, 2))
	stopped := func(r *fault, n *testNode) {
		r.load.expect(false, n)
		rest := others(r.nodes, n)
		at := time.Now()
		r.members[n.ID].signal(syscall.SIGSTOP)
		r.within("the ring decides without "+n.ID, r.decides(at, rest[0]), oneWayMax, at)
		for _, other := range rest {
			r.until(at, other.ID+" stores", func() bool { return r.load.acksAfter(other, at) >= 5 })
		}
		r.keep(at, 5*time.Second, 40*time.Second) // beyond every idle time of the link in the long form
		r.members[n.ID].signal(syscall.SIGCONT)
		r.until(at, n.ID+" is ready again", func() bool { return n.metrics()["osteon_node_ready"] == "1" })
		r.storm(at)
	}
	t.Run("F20LeaderStopped", func(t *testing.T) {
		f.row(t, 0, func(r *fault) { stopped(r, r.leader(r.nodes)) })
	})
	if *chaosLong {
		t.Run("F20PartnerStopped", func(t *testing.T) {
			f.row(t, 1, func(r *fault) { stopped(r, r.follower()) })
		})
	}
}

// F36: all nodes of a site are killed and their disks wiped: nothing that was acknowledged is lost, stores never stop at
// the other sites, and the ring decides again within 10 s. Re-encoding what the site held is not part of it.
func TestChaosF36SiteLost(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(3, 2))
	l := startLoadFrom(f.testRing, seeded(t), 1)
	defer l.stop()
	l.startDCMTK(t)
	r := &fault{fleet: f, t: t, load: l, began: time.Now(), watch: f.watchLeaders()}
	defer r.watch.stop()
	for _, n := range f.nodes {
		r.until(r.began, "node "+n.ID+" stores", func() bool { return l.acksAfter(n, r.began) >= 10 })
	}
	sealed := noiseStudy(1)
	if err := f.nodes[0].admin().Seal(t.Context(), sealed); err != nil {
		t.Fatalf("seal before the loss: %v", err)
	}
	lost := f.site(r.leader(f.nodes).Site)
	rest := f.without(lost)
	l.expect(false, lost...)
	at := time.Now()
	f.kill(lost...)
	for _, n := range lost {
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Fatal(err)
		}
	}
	r.within("the ring decides", r.decides(at, rest[0]), oneWayMax, at)
	for _, n := range rest {
		r.until(at, n.ID+" stores", func() bool { return l.acksAfter(n, at) >= 10 })
	}
	r.keep(at, 2*time.Second, 60*time.Second)
	l.stop()
	r.watch.stop()
	l.judgeFault(t, r.began)
	// What is left of the ring is held to everything.
	f.nodes = rest
	l.checkHealed(t)
	l.checkDCMTK(t)
}

// memoryGroup is a memory cgroup, of either version of the kernel's interface.
type memoryGroup struct {
	t   testing.TB
	dir string
	v2  bool
}

const chaosPrefix = "osteon-chaos-"

// newMemoryGroup makes a cgroup and removes it at the end of the test, and those that processes left that are gone.
func newMemoryGroup(t testing.TB, name string, limit int64) *memoryGroup {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("memory limits need root")
	}
	root, v2 := "/sys/fs/cgroup/memory", false
	if _, err := os.Stat(root + "/memory.limit_in_bytes"); err != nil {
		root, v2 = "/sys/fs/cgroup", true
		if _, err := os.Stat(root + "/cgroup.subtree_control"); err != nil {
			t.Skip("this machine has no memory cgroup")
		}
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+memory"), 0o644); err != nil {
			t.Skipf("the memory cgroup is not ours to use: %v", err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(root, chaosPrefix+"*"))
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), chaosPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			os.Remove(dir)
		}
	}
	g := &memoryGroup{t: t, v2: v2, dir: filepath.Join(root, fmt.Sprintf("%s%d-%s", chaosPrefix, os.Getpid(), name))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); os.Remove(g.dir) != nil && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
	})
	if err := g.limit(limit); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *memoryGroup) file(v1, v2 string) string {
	if g.v2 {
		return filepath.Join(g.dir, v2)
	}
	return filepath.Join(g.dir, v1)
}

// limit sets how much may be used; it fails while more is in use and cannot be given back.
func (g *memoryGroup) limit(n int64) error {
	return os.WriteFile(g.file("memory.limit_in_bytes", "memory.max"), []byte(strconv.FormatInt(n, 10)), 0o644)
}

func (g *memoryGroup) number(file, key string) (n int64) {
	raw, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if key == "" || len(fields) == 2 && fields[0] == key {
			n, _ = strconv.ParseInt(fields[len(fields)-1], 10, 64)
		}
	}
	return n
}

// used is the memory in use, page cache included.
func (g *memoryGroup) used() int64 {
	return g.number(g.file("memory.usage_in_bytes", "memory.current"), "")
}

// killed is how many processes the kernel killed for want of memory.
func (g *memoryGroup) killed() int64 {
	return g.number(g.file("memory.oom_control", "memory.events"), "oom_kill")
}

// F43: the kernel kills a node for want of memory. That is a kill -9 to the others; the node serves again within 30 s.
func TestChaosF43OutOfMemoryKill(t *testing.T) {
	chaos(t)
	group := newMemoryGroup(t, "oom", 1<<30)
	plan := seats(3, 1)
	plan[1].cgroup = group.dir
	f := startFleet(t, plan)
	f.row(t, 0, func(r *fault) {
		victim := r.node("b1")
		r.load.expect(false, victim)
		at := time.Now()
		r.until(at, "the kernel kills "+victim.ID, func() bool {
			if group.killed() > 0 {
				return true
			}
			group.limit(max(group.used()-2<<20, 4<<20)) // fails while the kernel still finds something to give back
			return group.killed() > 0
		})
		r.awaitEvent("down", victim.ID)
		for _, n := range others(r.nodes, victim) {
			r.until(at, n.ID+" stores", func() bool { return r.load.acksAfter(n, at) >= 5 })
		}
		if err := group.limit(1 << 30); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		r.startServing(victim)
		r.within("the node serves again", time.Since(back), 30*time.Second, back)
	})
}

const memoryLimit = 512 << 20

// F44: three nodes that may have 512 MiB each take and give a multi-frame larger than that.
func TestChaosF44MemoryLimit(t *testing.T) {
	chaos(t)
	size := int64(600 << 20)
	if *chaosLong {
		size = 4<<30 - 1<<20 // a native element can be no longer: its length has 32 bits
	}
	plan := seats(3, 1)
	groups := map[string]*memoryGroup{}
	for i := range plan {
		g := newMemoryGroup(t, "limit-"+plan[i].id, memoryLimit)
		groups[plan[i].id], plan[i].cgroup = g, g.dir
	}
	f := startFleet(t, plan)
	big := newBigInstance(1, size)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	for _, n := range f.nodes {
		resetRSS(t, n.PID)
	}
	if err := storeBig(ctx, f.nodes[0], big); err != nil {
		t.Fatalf("store: %v\n%s", err, f.logs())
	}
	for _, n := range f.nodes[1:] { // one of them holds no copy
		f.awaitStudy(n, big.study)
		if err := getBig(ctx, n, big); err != nil {
			t.Errorf("get at %s: %v", n.ID, err)
		}
	}
	if err := f.nodes[1].admin().Seal(ctx, big.study); err != nil {
		t.Errorf("seal: %v", err)
	}
	for _, n := range f.nodes {
		peak := peakRSS(t, n.PID)
		t.Logf("%s: %d MB resident at most, %d killed", n.ID, peak>>20, groups[n.ID].killed())
		if peak > nodeRSSMax || groups[n.ID].killed() > 0 {
			t.Errorf("%s: %d MB resident, want at most %d; %d processes killed", n.ID, peak>>20, nodeRSSMax>>20, groups[n.ID].killed())
		}
	}
}

// F45: a node runs out of file descriptors: new associations are told to come again (2/3/2), those that are open go on,
// and so do Raft and the admin socket; afterwards all is as before.
func TestChaosF45DescriptorsExhausted(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(3, 1))
	f.row(t, 0, func(r *fault) {
		n := r.leader(r.nodes)
		before := descriptorsOf(t, n.PID)
		const room = 24
		limit := uint64(before) * 4 / 3 // a quarter is kept
		limitDescriptors(t, n.PID, limit+room)
		r.load.expect(false, n) // it refuses new associations
		var open []*dimse.Client
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		in := noiseInstance(int(r.load.study.Load()), 1, int(r.load.number.Add(1)), 10_000, r.load.seed)
		fill := func() { // the node closes files of its own now and then, and lets one more in
			t.Helper()
			var err error
			for range 10 * room {
				client, failure := connect(t.Context(), n, contextFor(in))
				if err = failure; err != nil {
					break
				}
				open = append(open, client)
			}
			if code := rejectionCode(err); code != "2/3/2" || len(open) == 0 {
				t.Fatalf("after %d associations: %v (%s), want some and then 2/3/2", len(open), err, code)
			}
		}
		fill()
		t.Logf("%d descriptors, limit %d: %d associations were let in", before, limit+room, len(open))
		r.load.ledger.sent(in)
		response, err := open[0].Store(t.Context(), storeArgs(in))
		if err != nil || response.Status != dimse.StatusSuccess {
			t.Errorf("store on an open association: %04XH, %v", response.Status, err)
		} else {
			r.load.ledger.acked(in)
		}
		at := time.Now()
		for range 20 { // many more than descriptors are left, if each kept one
			fill()
			r.within("admin at "+n.ID, r.decides(time.Now(), n), responseMax, time.Now())
		}
		r.keep(at, 3*time.Second, 30*time.Second)
		if terms, _ := r.watch.elections(); terms != 0 {
			t.Errorf("%d elections", terms)
		}
		for _, c := range open {
			c.Close()
		}
		r.until(at, "associations are let in again", func() bool {
			client, err := connect(t.Context(), n, contextFor(in))
			if err == nil {
				client.Close()
			}
			return err == nil
		})
	})
}

func rejectionCode(err error) string {
	var r *dul.Rejection
	if errors.As(err, &r) {
		return r.Code()
	}
	return ""
}

func storeArgs(in instance) dimse.StoreArgs {
	return dimse.StoreArgs{SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data)}
}

func descriptorsOf(t testing.TB, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func limitDescriptors(t testing.TB, pid int, n uint64) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
		t.Fatal(err)
	}
}

// F50: a peer vanishes without a word after its association was opened: the association is freed within 60 s, while
// nobody else's is touched.
func TestChaosF50HalfOpenAssociation(t *testing.T) {
	chaos(t)
	plan := seats(3, 1)
	plan[0].configure = func(c *node.Config, h *host) {
		c.DIMSE.Listen = net.JoinHostPort(h.address, "11112")
		c.AEs = []node.AE{{Title: "TEST"}, {Title: "DCMTK"}}
	}
	f := startFleet(t, plan)
	modality := f.lan.attach()
	f.row(t, 0, func(r *fault) {
		n := r.node("a1")
		var vanished []net.Conn
		in := noiseInstance(900, 1, 1, 10_000, 1)
		for range 3 { // idle, in the middle of a message, with an answer on its way
			conn, err := modality.dial(t.Context(), "tcp", n.DIMSE)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := dimse.Dial(t.Context(), conn, dimse.ClientConfig{Association: dul.RequestorConfig{
				CallingAE: "TEST", CalledAE: n.AET, Contexts: contextFor(in),
			}}); err != nil {
				t.Fatal(err)
			}
			vanished = append(vanished, conn)
		}
		if _, err := vanished[1].Write([]byte{4, 0, 0, 0, 1, 0, 0}); err != nil { // a P-DATA-TF of 64 KiB that never comes
			t.Fatal(err)
		}
		held := socketsFrom(t, n.PID, modality.address)
		if held != len(vanished) {
			t.Fatalf("the node has %d connections of the modality, want %d", held, len(vanished))
		}
		at := time.Now()
		r.members[n.ID].host.deafen(modality)
		modality.deafen(r.members[n.ID].host)
		freed := r.until(at, "the connections are freed", func() bool { return socketsFrom(t, n.PID, modality.address) == 0 })
		r.within("half-open associations freed", freed, time.Minute, at)
	})
}

// socketsFrom counts the established TCP connections of an address, as the process's own network namespace lists them.
func socketsFrom(t testing.TB, pid int, address string) (count int) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatal(err)
	}
	ip := net.ParseIP(address).To4()
	peer := fmt.Sprintf("%02X%02X%02X%02X:", ip[3], ip[2], ip[1], ip[0])
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && strings.HasPrefix(fields[2], peer) && fields[3] == "01" {
			count++
		}
	}
	return count
}

// Everything that the tests left of earlier processes is theirs to remove, and only that.
func TestChaosLeavesNoGroup(t *testing.T) {
	g := newMemoryGroup(t, "probe", 1<<30)
	gone := filepath.Join(filepath.Dir(g.dir), chaosPrefix+"2147483646-left") // no process has this number
	if err := os.Mkdir(gone, 0o755); err != nil {
		t.Fatal(err)
	}
	newMemoryGroup(t, "again", 1<<30)
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		os.Remove(gone)
		t.Errorf("%s is still there: %v", gone, err)
	}
	if _, err := os.Stat(g.dir); err != nil {
		t.Errorf("a living process's group: %v", err)
	}
	if g.killed() != 0 {
		t.Errorf("%d killed in an empty group", g.killed())
	}
}
