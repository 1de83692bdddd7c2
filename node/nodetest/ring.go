package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"osteon/erasure/place"
	"osteon/node"
	"osteon/raft/ring"
)

// Config is what a ring of a test is made with. The zero value works.
type Config struct {
	// Seed draws everything that is drawn at random, apart from the order in which goroutines run.
	Seed uint64
	// Configure changes a node's configuration before it is used.
	Configure func(name string, cfg *node.Config)
	// Raft changes sizes and timings of Raft.
	Raft func(*ring.Config)
	// Sometimes is told of states worth reaching; nil counts none.
	Sometimes func(state string)
	// LogLevel is from which level on nodes log. Default Info.
	LogLevel slog.Level
}

// Patience is how long Await and the other waits go on; in a bubble it is virtual.
const Patience = 5 * time.Minute

const (
	logLinesMax = 20000
	linkPort    = 7400
	// lingerMax is how long memberlist lets a probe wait for its answer after the list was shut down.
	lingerMax = 10 * time.Second
)

// Ring is the nodes of one test. Its methods fail the test where they cannot do what they say.
type Ring struct {
	Net *Network

	t       testing.TB
	cfg     Config
	leaving sync.WaitGroup // nodes that were killed and go on without anybody

	mu    sync.Mutex
	rng   *rand.Rand
	nodes []*Node
	log   [][]byte
}

// New returns a ring without nodes.
func New(t testing.TB, cfg Config) *Ring {
	// quic-go says once, for every process, that it cannot size the buffer of a socket that is none.
	if err := os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true"); err != nil {
		t.Fatal(err)
	}
	return &Ring{
		Net: NewNetwork(cfg.Seed), t: t, cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x72696e67)),
	}
}

// Found makes the ring's first node and starts it.
func (r *Ring) Found(name string, site place.SiteID) *Node {
	r.t.Helper()
	n := r.add(name, site)
	if _, err := node.Init(context.Background(), n.Config(), n.Env(), node.InitRequest{RingName: "test", NodeName: name, Site: site}); err != nil {
		r.t.Fatalf("found ring at %s: %v", name, err)
	}
	n.Start()
	r.AwaitReady()
	return n
}

// Insert adds a machine that does not run, with a disk of its own content: of another ring's node, or empty.
func (r *Ring) Insert(name string, site place.SiteID, disk *Disk) *Node {
	n := r.add(name, site)
	n.Disk.Restore(disk)
	return n
}

// Join adds a node with a token of any node that issues one, and starts it. It does not wait until it is ready.
func (r *Ring) Join(name string, site place.SiteID) *Node {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	for {
		n, err := r.TryJoin(ctx, name, site)
		if err == nil {
			return n
		}
		r.Logf("join of %s: %v", name, err)
		if ctx.Err() != nil {
			r.t.Fatalf("join %s: %v", name, err)
		}
		time.Sleep(time.Second)
	}
}

// TryJoin is Join, once, with an error.
func (r *Ring) TryJoin(ctx context.Context, name string, site place.SiteID) (*Node, error) {
	n, err := r.enrol(ctx, name, site)
	if err != nil {
		return nil, err
	}
	n.Start()
	return n, nil
}

// enrol joins a node, new or interrupted before, without starting it.
func (r *Ring) enrol(ctx context.Context, name string, site place.SiteID) (*Node, error) {
	token, err := r.token(ctx, site)
	if err != nil {
		return nil, err
	}
	n := r.Node(name)
	if n == nil {
		n = r.add(name, site)
	}
	if _, err := node.Join(ctx, n.Config(), n.Env(), node.JoinRequest{Token: token, NodeName: name}); err != nil {
		return nil, fmt.Errorf("join %s: %w", name, err)
	}
	return n, nil
}

func (r *Ring) token(ctx context.Context, site place.SiteID) (token node.Token, err error) {
	err = fmt.Errorf("no node serves")
	for _, n := range r.Nodes() {
		if serving := n.Node(); serving != nil {
			asked, cancel := context.WithTimeout(ctx, 10*time.Second) // it may be killed meanwhile
			token, err = serving.CreateToken(asked, site, time.Hour)
			cancel()
			if err == nil {
				return token, nil
			}
		}
	}
	return token, err
}

func (r *Ring) add(name string, site place.SiteID) *Node {
	n := &Node{
		Name: name, Site: site, Disk: NewDisk(), Clock: NewClock(), ring: r, host: r.Net.addHost(name, string(site)),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = append(r.nodes, n)
	return n
}

// Clone returns another machine with a copy of a node's disk, as of a virtual machine that was cloned. It is down.
func (r *Ring) Clone(of *Node, name string) *Node {
	n := r.add(name, of.Site)
	n.Disk.Restore(of.Disk.Copy())
	n.advertise = fmt.Sprintf("%s:%d", of.host.ip, linkPort)
	return n
}

// Nodes returns every node that was made, running or not.
func (r *Ring) Nodes() []*Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.nodes)
}

// Node returns the node of that name, or nil.
func (r *Ring) Node(name string) *Node {
	for _, n := range r.Nodes() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Leader returns the running node that leads, or nil.
func (r *Ring) Leader() *Node {
	for _, n := range r.Nodes() {
		if serving := n.Node(); serving != nil {
			if s, err := serving.Status(context.Background()); err == nil && s.State == "leader" {
				return n
			}
		}
	}
	return nil
}

// Await waits until ok and fails the test when that takes longer than Patience.
func (r *Ring) Await(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(Patience); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not so after %s", what, Patience)
		}
	}
}

// AwaitReady waits until every running node is ready.
func (r *Ring) AwaitReady() {
	r.t.Helper()
	r.Await("all nodes ready", func() bool {
		for _, n := range r.Nodes() {
			if serving := n.Node(); serving != nil && serving.Ready() != nil {
				return false
			}
		}
		return true
	})
}

// Close stops every node and waits for those that were killed.
func (r *Ring) Close() {
	r.Net.Heal()
	var stopping sync.WaitGroup
	for _, n := range r.Nodes() {
		stopping.Go(n.Stop)
	}
	stopping.Wait()
	r.leaving.Wait()
	if virtual := time.Now().Year() == 2000; virtual { // bubbles begin in that year
		time.Sleep(lingerMax)
	}
}

// random returns a generator of its own for one purpose.
func (r *Ring) random() *rand.Rand {
	r.mu.Lock()
	defer r.mu.Unlock()
	return rand.New(rand.NewPCG(r.rng.Uint64(), r.rng.Uint64()))
}

// Logged reports whether a line that the nodes logged holds the text.
func (r *Ring) Logged(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.log, func(line []byte) bool { return bytes.Contains(line, []byte(text)) })
}

// WriteLog writes the last lines that the nodes logged.
func (r *Ring) WriteLog(w io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.log {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// Logf adds a line of the test to the nodes' log.
func (r *Ring) Logf(format string, args ...any) {
	r.note(fmt.Appendf(nil, "%s ** %s\n", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...)))
}

func (r *Ring) note(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.log) >= logLinesMax {
		r.log = slices.Delete(r.log, 0, logLinesMax/2)
	}
	r.log = append(r.log, line)
}

// Sometimes notes that the ring is or was in a state that tests should reach now and then.
func (r *Ring) Sometimes(state string) {
	if r.cfg.Sometimes != nil {
		r.cfg.Sometimes(state)
	}
}

// telling are lines of nodes' logs by which a state is known.
var telling = map[string]string{
	"copy at partner failed":                "partner switched",
	"raft state is not to be trusted":       "rejoin as a new incarnation",
	"snapshot stored":                       "snapshot taken",
	"snapshot restored":                     "snapshot installed",
	"state machine was behind the newest":   "state machine behind the snapshot",
	"study not sealed, will be tried again": "seal failed",
	"node took no shard, sealed without it": "seal without a node",
	"pack sealed in a weaker geometry":      "seal in a weaker geometry",
	"journal fenced":                        "journal fenced",
	"offer to the catalog failed":           "offer failed",
	"journal segment removed":               "journal segment removed",
	"journal record fetched again":          "journal record mended",
	"shard unreadable, decoded around it":   "read degraded",
	"node down":                             "node believed dead",
	"requests still under way at close":     "requests under way at close",
	"local database fenced":                 "local database fenced",
	"a later incarnation of this node":      "earlier incarnation refused",
}

// logWriter takes one node's log, a line a call.
type logWriter struct{ node *Node }

func (w logWriter) Write(p []byte) (int, error) {
	if w.node.ring.cfg.Sometimes != nil {
		for line, state := range telling {
			if bytes.Contains(p, []byte(line)) {
				w.node.ring.Sometimes(state)
			}
		}
	}
	w.node.ring.note(fmt.Appendf(nil, "%s %s %s", time.Now().UTC().Format("15:04:05.000"), w.node.Name, bytes.TrimPrefix(p, []byte(" "))))
	return len(p), nil
}

func (n *Node) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(logWriter{n}, &slog.HandlerOptions{
		Level: n.ring.cfg.LogLevel,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// silent is a listener that nobody ever calls.
type silent struct {
	closed chan struct{}
	once   sync.Once
}

func newSilent() *silent { return &silent{closed: make(chan struct{})} }

func (l *silent) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *silent) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }
func (l *silent) Addr() net.Addr            { return &net.UnixAddr{Net: "unix"} }
