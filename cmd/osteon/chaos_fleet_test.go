//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"osteon/erasure/place"
	"osteon/node"
)

// fleet is a ring whose nodes this process starts itself, each in a network namespace of its own, where `osteon dev`
// cannot. DIMSE and HTTP listen on the namespace's loopback, which no cut reaches; the link goes over the lan.
type fleet struct {
	*testRing
	lan     *lan
	members map[string]*fleetNode

	wait sync.WaitGroup // for the children
}

// fleetNode is one node of a fleet.
type fleetNode struct {
	*testNode
	host *host
	// cgroup is where the node's process is put before it begins; empty: where this one is.
	cgroup string

	mu      sync.Mutex
	process *exec.Cmd // nil while it does not run
}

// seat is what a fleet is planned by: one node.
type seat struct {
	id, site string
	// configure changes the node's configuration before it is written.
	configure func(*node.Config, *host)
	cgroup    string
}

// seats plans sites of so many nodes each, named as osteon dev does.
func seats(sites, nodes int) (out []seat) {
	for s := range sites {
		for i := range nodes {
			site := string(rune('a' + s))
			out = append(out, seat{id: fmt.Sprintf("%s%d", site, i+1), site: site})
		}
	}
	return out
}

// startFleet founds a ring of the given nodes and waits until all are ready and the votes are where they belong.
func startFleet(t testing.TB, plan []seat) *fleet {
	t.Helper()
	return startFleetIn(t, t.TempDir(), plan)
}

// startFleetIn is startFleet in a directory, in which file systems may be mounted for the nodes.
func startFleetIn(t testing.TB, dir string, plan []seat) *fleet {
	t.Helper()
	f := &fleet{
		testRing: &testRing{t: t, dir: dir, events: make(chan devEvent, 1024)},
		lan:      newLAN(t), members: map[string]*fleetNode{},
	}
	f.stdin = fleetInput{f}
	for _, s := range plan {
		f.enrolConfig(s)
	}
	t.Cleanup(f.stopAll) // while the namespaces are still open
	first := f.members[plan[0].id]
	f.osteon(first, "init", "--config", first.Dir+".yaml", "--name", first.ID, "--site", first.Site)
	f.startMember(first)
	f.awaitReady(first.testNode)
	for _, s := range plan[1:] {
		m := f.members[s.id]
		f.osteon(m, "join", newToken(t, first.testNode), "--config", m.Dir+".yaml", "--name", m.ID, "--site", m.Site)
	}
	for _, s := range plan[1:] {
		f.startMember(f.members[s.id])
	}
	for _, n := range f.nodes {
		f.awaitReady(n)
	}
	f.awaitStatus(first.testNode, "sees all votes placed", func(s node.Status) bool {
		return len(s.Nodes) == len(plan) && votesPlaced(s.Nodes)
	})
	return f
}

// enrolConfig writes the configuration of one node and wires its host.
func (f *fleet) enrolConfig(s seat) {
	f.t.Helper()
	h := f.lan.attach()
	m := &fleetNode{host: h, cgroup: s.cgroup, testNode: &testNode{
		ID: s.id, Site: s.site, AET: "OSTEON", DIMSE: "127.0.0.1:11112", HTTP: "127.0.0.1:8104",
		Link: net.JoinHostPort(h.address, "7400"), Dir: filepath.Join(f.dir, s.id), dialer: h.dial, web: h.client(), space: h,
	}}
	cfg := node.Config{Dir: m.Dir}
	cfg.DIMSE.Listen, cfg.HTTP.Listen, cfg.Link.Listen = m.DIMSE, m.HTTP, m.Link
	any := false
	cfg.DIMSE.StrictCalled = &any
	cfg.Seal.Quiet = node.Duration(10 * time.Minute)
	if s.configure != nil {
		s.configure(&cfg, h)
		m.DIMSE = cfg.DIMSE.Listen
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(m.Dir+".yaml", raw, 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.members[s.id] = m
	f.nodes = append(f.nodes, m.testNode)
}

// osteon runs the program in a node's namespace to its end.
func (f *fleet) osteon(m *fleetNode, args ...string) {
	f.t.Helper()
	program := osteonBinary(f.t) // the first asker waits for the compiler
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = cleanEnv()
	if out, err := m.host.output(cmd); err != nil {
		f.t.Fatalf("osteon %s: %v\n%s", args[0], err, out)
	}
}

// startMember starts a node's process; its end becomes an event.
func (f *fleet) startMember(m *fleetNode) {
	f.t.Helper()
	log, err := os.OpenFile(m.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	args := []string{osteonBinary(f.t), "serve", "--config", m.Dir + ".yaml"}
	if m.cgroup != "" {
		args = append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, m.cgroup}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, cleanEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	f.wait.Add(1)
	go func() { // ends with the process, for which its thread must live as long
		defer f.wait.Done()
		err := m.host.enter()
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err != nil {
			return
		}
		cmd.Wait()
		m.mu.Lock()
		m.process = nil
		m.mu.Unlock()
		f.events <- devEvent{Event: "down", ID: m.ID, PID: cmd.Process.Pid}
	}()
	if err := <-started; err != nil {
		f.t.Fatalf("start %s: %v", m.ID, err)
	}
	m.mu.Lock()
	m.process, m.PID = cmd, cmd.Process.Pid
	m.mu.Unlock()
}

// fleetInput takes the lines that `osteon dev` takes on its standard input.
type fleetInput struct{ f *fleet }

func (i fleetInput) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if m := i.f.members[strings.TrimSpace(strings.TrimPrefix(line, "start "))]; m != nil {
			i.f.startMember(m)
			i.f.events <- devEvent{Event: "up", ID: m.ID, PID: m.PID}
		}
	}
	return len(p), nil
}

func (i fleetInput) Close() error { return nil }

// stopAll ends every child, in order first and by force after a minute.
func (f *fleet) stopAll() {
	for _, m := range f.members {
		m.signal(syscall.SIGCONT)
		m.signal(syscall.SIGTERM)
	}
	late := time.AfterFunc(time.Minute, func() {
		for _, m := range f.members {
			m.signal(syscall.SIGKILL)
		}
	})
	defer late.Stop()
	f.wait.Wait()
	if f.t.Failed() {
		f.t.Log(f.logs())
	}
}

func (m *fleetNode) signal(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		m.process.Process.Signal(s)
	}
}

// hosts returns the hosts of nodes.
func (f *fleet) hosts(nodes ...*testNode) (out []*host) {
	for _, n := range nodes {
		out = append(out, f.members[n.ID].host)
	}
	return out
}

// cut makes two groups of nodes deaf to each other.
func (f *fleet) cut(some, others []*testNode) {
	f.t.Helper()
	f.cutOneWay(some, others)
	f.cutOneWay(others, some)
}

// cutOneWay drops what goes from some nodes to others.
func (f *fleet) cutOneWay(from, to []*testNode) {
	f.t.Helper()
	for _, h := range f.hosts(to...) {
		h.deafen(f.hosts(from...)...)
	}
}

// isolate cuts nodes from all others, and from each other too.
func (f *fleet) isolate(nodes ...*testNode) {
	f.t.Helper()
	for _, n := range nodes {
		f.cut([]*testNode{n}, f.without([]*testNode{n}))
	}
}

// heal mends all wires; something must have been lost on the way since they were cut.
func (f *fleet) heal() {
	f.t.Helper()
	if f.lan.heal() == 0 {
		f.t.Error("the cuts met no packet")
	}
}

// report makes failures those of t.
func (f *fleet) report(t testing.TB) {
	f.testRing.t, f.lan.t = t, t
	for _, h := range f.lan.hosts {
		h.t = t
	}
}

// siteNames lists the ring's sites.
func (f *fleet) siteNames() (out []place.SiteID) {
	for _, n := range f.nodes {
		if len(out) == 0 || out[len(out)-1] != place.SiteID(n.Site) {
			out = append(out, place.SiteID(n.Site))
		}
	}
	return out
}
