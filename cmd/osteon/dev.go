package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"osteon/erasure/place"
	"osteon/node"
)

const (
	devReadyTimeout = 120 * time.Second
	devStopTimeout  = 30 * time.Second
	devPoll         = 50 * time.Millisecond
)

// devCmd runs a ring of real child processes in the foreground.
type devCmd struct {
	Sites   int           `help:"How many sites." default:"3"`
	Nodes   int           `help:"How many nodes a site." default:"2"`
	Restart bool          `help:"Start a node again at once when its process ends."`
	AE      []string      `name:"ae" help:"C-MOVE destination, TITLE=HOST:PORT; repeat for more." placeholder:"TITLE=HOST:PORT"`
	Survive string        `help:"What new packs shall survive: node, site, site+node, two-sites."`
	Quiet   time.Duration `name:"seal-quiet" help:"Seal a study when nothing arrived for it for so long." default:"60s"`
	Level   string        `name:"log-level" help:"Log level of the nodes." default:"info"`
	Demo    string        `help:"Store the DICOM files of this directory, lose a site, read everything, get the site back." placeholder:"DIR" type:"existingdir"`
}

// devNode is one child process and what it is started with.
type devNode struct {
	ID    string `json:"id"`
	Site  string `json:"site"`
	PID   int    `json:"pid"`
	AET   string `json:"aet"`
	DIMSE string `json:"dimse"`
	HTTP  string `json:"http"`
	Link  string `json:"link"`
	Dir   string `json:"dir"`

	process *exec.Cmd
	exited  chan struct{} // closed when process ended; nil while none was started
	wanted  bool          // it is to be running
}

type devRing struct {
	Ring  place.RingID `json:"ring"`
	Nodes []*devNode   `json:"nodes"`

	g       *Globals
	cmd     *devCmd
	dir     string
	binary  string
	out     sync.Mutex // serialises lines on stdout
	mu      sync.Mutex // guards PID, process, exited and wanted of all nodes
	closing bool
	wait    sync.WaitGroup
}

func (c *devCmd) Run(ctx context.Context, g *Globals) (err error) {
	if c.Sites < 1 || c.Sites > 26 || c.Nodes < 1 || c.Nodes > 20 {
		return fmt.Errorf("%w: want 1 to 26 sites and 1 to 20 nodes a site", errUsage)
	}
	r := &devRing{g: g, cmd: c, dir: g.Dir}
	if r.binary, err = os.Executable(); err != nil {
		return err
	}
	if r.dir == "" {
		if r.dir, err = os.MkdirTemp("", "osteon-dev-"); err != nil {
			return err
		}
	}
	if r.dir, err = filepath.Abs(r.dir); err != nil {
		return err
	}
	defer r.stopAll()
	r.say("ring directory %s", r.dir)
	if err := r.configure(); err != nil {
		return err
	}
	if err := r.enrol(ctx); err != nil {
		return err
	}
	if err := r.startAll(ctx); err != nil {
		return err
	}
	r.announce()
	go r.listen(ctx) // ends with standard input or the process
	if c.Demo != "" {
		if err := r.demo(ctx, c.Demo); err != nil {
			return err
		}
		r.endpoints()
		r.say("the ring keeps running; Ctrl-C stops it")
	}
	<-ctx.Done()
	return nil
}

// say prints a plain line; with --json nothing but the specified lines is printed.
func (r *devRing) say(format string, args ...any) {
	if r.g.JSON {
		return
	}
	r.out.Lock()
	defer r.out.Unlock()
	fmt.Fprintf(r.g.stdout, format+"\n", args...)
}

func (r *devRing) announce() {
	if !r.g.JSON {
		r.endpoints()
		return
	}
	r.mu.Lock()
	line, err := json.Marshal(r)
	r.mu.Unlock()
	if err != nil {
		return
	}
	r.out.Lock()
	defer r.out.Unlock()
	fmt.Fprintf(r.g.stdout, "%s\n", line)
}

func (r *devRing) endpoints() {
	for _, n := range r.Nodes {
		r.say("  %-4s site %-2s  DIMSE %s@%s  DICOMweb http://%s/dicom-web  pid %d  %s", n.ID, n.Site, n.AET, n.DIMSE, strings.TrimPrefix(n.HTTP, "http://"), r.pid(n), n.Dir)
	}
}

func (r *devRing) event(kind string, n *devNode, pid int) {
	if !r.g.JSON {
		r.say("node %s is %s (pid %d)", n.ID, kind, pid)
		return
	}
	r.out.Lock()
	defer r.out.Unlock()
	json.NewEncoder(r.g.stdout).Encode(map[string]any{"event": kind, "id": n.ID, "pid": pid})
}

// configure writes a configuration for every node that has none, with ports that are free now.
func (r *devRing) configure() error {
	for s := range r.cmd.Sites {
		for i := range r.cmd.Nodes {
			site := string(rune('a' + s))
			id := fmt.Sprintf("%s%d", site, i+1)
			dir := filepath.Join(r.dir, id)
			cfg, err := r.config(id, dir)
			if err != nil {
				return err
			}
			r.Nodes = append(r.Nodes, &devNode{
				ID: id, Site: site, AET: cfg.DIMSE.AET, DIMSE: cfg.DIMSE.Listen,
				HTTP: "http://" + cfg.HTTP.Listen, Link: cfg.Link.Listen, Dir: dir,
			})
		}
	}
	return nil
}

func (n *devNode) configPath() string { return n.Dir + ".yaml" }

func (r *devRing) config(id, dir string) (node.Config, error) {
	path := dir + ".yaml"
	var cfg node.Config
	if raw, err := os.ReadFile(path); err == nil {
		if err := yaml.Unmarshal(raw, &cfg); err != nil {
			return cfg, fmt.Errorf("read %s: %w", path, err)
		}
	} else {
		cfg.Dir = dir
		for _, listen := range []*string{&cfg.DIMSE.Listen, &cfg.HTTP.Listen, &cfg.Link.Listen} {
			port, err := freePort()
			if err != nil {
				return cfg, err
			}
			*listen = fmt.Sprintf("127.0.0.1:%d", port)
		}
	}
	any := false
	cfg.DIMSE.StrictCalled = &any // in dev any AE may call, whatever it calls us
	promiscuous := true
	cfg.Promiscuous = &promiscuous
	cfg.Seal.Quiet = node.Duration(r.cmd.Quiet)
	cfg.Log.Level = r.cmd.Level
	cfg.Survive = place.Survive(r.cmd.Survive)
	cfg.AEs = nil
	for _, ae := range r.cmd.AE {
		title, address, ok := strings.Cut(ae, "=")
		if !ok {
			return cfg, fmt.Errorf("%w: --ae %q: want TITLE=HOST:PORT", errUsage, ae)
		}
		cfg.AEs = append(cfg.AEs, node.AE{Title: title, Address: address})
	}
	cfg.Fill()
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%w: %w", errUsage, err)
	}
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		return cfg, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return cfg, err
	}
	return cfg, os.WriteFile(path, raw, 0o600)
}

// freePort returns a port that is free for TCP and UDP on loopback at this moment.
func freePort() (int, error) {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		return port, nil
	}
	return 0, errors.New("no port is free on loopback")
}

// enrol founds the ring at the first node and joins the others to it; nodes that exist are left alone.
func (r *devRing) enrol(ctx context.Context) error {
	first := r.Nodes[0]
	if err := r.init(ctx, first); err != nil {
		return fmt.Errorf("init %s: %w", first.ID, err)
	}
	// Those of an earlier run start together: one alone would wait for a majority that nobody started.
	for _, n := range r.Nodes {
		if !n.enrolled() {
			continue
		}
		if err := r.start(ctx, n); err != nil {
			return err
		}
	}
	status, err := r.await(ctx, first)
	if err != nil {
		return err
	}
	r.Ring = status.Ring
	admin := node.Dial(first.Dir)
	bar := r.bar("joining nodes", len(r.Nodes)-1)
	defer bar.done()
	for _, n := range r.Nodes[1:] {
		bar.step()
		if n.enrolled() {
			continue
		}
		if err := r.join(ctx, admin, n); err != nil {
			return fmt.Errorf("join %s: %w", n.ID, err)
		}
	}
	return nil
}

// enrolled reports whether the node's directory holds a node.
func (n *devNode) enrolled() bool {
	_, err := os.Stat(filepath.Join(n.Dir, "node"))
	return err == nil
}

func (r *devRing) init(ctx context.Context, n *devNode) error {
	if n.enrolled() {
		return nil
	}
	cfg, err := r.config(n.ID, n.Dir)
	if err != nil {
		return err
	}
	_, err = node.Init(ctx, cfg, node.Env{}, node.InitRequest{RingName: "dev", NodeName: n.ID, Site: place.SiteID(n.Site)})
	return err
}

func (r *devRing) join(ctx context.Context, admin *node.Admin, n *devNode) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	t, err := admin.CreateToken(ctx, place.SiteID(n.Site), time.Hour)
	if err != nil {
		return err
	}
	token, err := node.ParseToken(t.Token)
	if err != nil {
		return err
	}
	cfg, err := r.config(n.ID, n.Dir)
	if err != nil {
		return err
	}
	_, err = node.Join(ctx, cfg, node.Env{}, node.JoinRequest{Token: token, NodeName: n.ID})
	return err
}

func (r *devRing) startAll(ctx context.Context) error {
	for _, n := range r.Nodes {
		if err := r.start(ctx, n); err != nil {
			return err
		}
	}
	bar := r.bar("starting nodes", len(r.Nodes))
	defer bar.done()
	for _, n := range r.Nodes {
		if _, err := r.await(ctx, n); err != nil {
			return err
		}
		bar.step()
	}
	return r.awaitVoters(ctx)
}

// bar shows progress on a terminal; with --json nothing but the specified lines is printed.
func (r *devRing) bar(what string, total int) *progress {
	if r.g.JSON {
		return &progress{}
	}
	return newProgress(r.g.stdout, what, total)
}

// awaitVoters waits until every node is live and the votes are where they belong, so that a site may be lost
// from the start.
func (r *devRing) awaitVoters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	for {
		status, err := node.Dial(r.Nodes[0].Dir).Status(ctx)
		if err == nil && len(status.Nodes) >= len(r.Nodes) && votesPlaced(status.Nodes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: nodes are missing or votes are not where they belong after %s", node.ErrRing, devReadyTimeout)
		case <-time.After(devPoll):
		}
	}
}

// votesPlaced reports whether all nodes are live and those vote that should.
func votesPlaced(nodes []node.NodeStatus) bool {
	var members []place.Node
	var voters []place.NodeID
	for _, m := range nodes {
		if !m.Live {
			return false
		}
		members = append(members, place.Node{ID: m.Node, Site: m.Site, Live: true, Data: m.Role == "data", Cordoned: m.State == "cordoned"})
		if m.Voter {
			voters = append(voters, m.Node)
		}
	}
	want, _ := place.Voters(members, voters)
	return len(want) == len(voters) && !slices.ContainsFunc(want, func(id place.NodeID) bool { return !slices.Contains(voters, id) })
}

// start runs the node's process unless it runs already. It returns when the process was started.
func (r *devRing) start(ctx context.Context, n *devNode) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.process != nil || r.closing {
		return nil
	}
	log, err := os.OpenFile(n.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(r.binary, "serve", "--config", n.configPath())
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own keeps Ctrl-C to this process, which then stops its children in order;
	// should this process die, the kernel stops them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	exited := make(chan struct{})
	started := make(chan error, 1)
	r.wait.Add(1)
	go func() { // ends when the child does; stopAll ends all children
		defer r.wait.Done()
		// The death signal is tied to the thread that forks: this goroutine keeps it until the child ended.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		log.Close()
		if err != nil {
			return
		}
		cmd.Wait()
		r.ended(ctx, n, cmd, exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", n.ID, err)
	}
	n.process, n.exited, n.PID, n.wanted = cmd, exited, cmd.Process.Pid, true
	return nil
}

// ended takes note of a child's end and starts it again where that is wished.
func (r *devRing) ended(ctx context.Context, n *devNode, cmd *exec.Cmd, exited chan struct{}) {
	r.mu.Lock()
	n.process = nil
	pid, again := cmd.Process.Pid, r.cmd.Restart && n.wanted && !r.closing
	closing := r.closing
	r.mu.Unlock()
	close(exited)
	if closing {
		return
	}
	r.event("down", n, pid)
	if again && ctx.Err() == nil {
		r.startAgain(ctx, n)
	}
}

func (r *devRing) startAgain(ctx context.Context, n *devNode) {
	if err := r.start(ctx, n); err != nil {
		r.say("%v", err)
		return
	}
	r.wait.Add(1)
	go func() { // ends when the node answers or ctx does
		defer r.wait.Done()
		if _, err := r.awaitAnswer(ctx, n); err == nil {
			r.event("up", n, r.pid(n))
		}
	}()
}

func (r *devRing) pid(n *devNode) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return n.PID
}

// await waits until the node is ready.
func (r *devRing) await(ctx context.Context, n *devNode) (node.Status, error) {
	return r.poll(ctx, n, func(s node.Status) bool { return s.Ready })
}

// awaitAnswer waits until the node answers, ready or not.
func (r *devRing) awaitAnswer(ctx context.Context, n *devNode) (node.Status, error) {
	return r.poll(ctx, n, func(node.Status) bool { return true })
}

func (r *devRing) poll(ctx context.Context, n *devNode, enough func(node.Status) bool) (status node.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	for {
		s, err := node.Dial(n.Dir).Status(ctx)
		if err == nil && enough(s) {
			return s, nil
		}
		r.mu.Lock()
		gone := n.process == nil
		r.mu.Unlock()
		if gone {
			return s, fmt.Errorf("node %s ended; its log is %s.log", n.ID, n.Dir)
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("node %s is not ready (%s); its log is %s.log: %w", n.ID, s.NotReady, n.Dir, ctx.Err())
		case <-time.After(devPoll):
		}
	}
}

// listen takes lines from standard input: `start ID` starts a node that is down.
func (r *devRing) listen(ctx context.Context) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, id, _ := strings.Cut(strings.TrimSpace(in.Text()), " ")
		if word != "start" {
			continue
		}
		for _, n := range r.Nodes {
			if n.ID == strings.TrimSpace(id) {
				r.startAgain(ctx, n)
			}
		}
	}
}

// kill ends the node's process at once and waits for its end.
func (r *devRing) kill(n *devNode) {
	r.mu.Lock()
	cmd, exited := n.process, n.exited
	n.wanted = false
	r.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	<-exited
}

// stopAll ends every child: in order first, by force after devStopTimeout.
func (r *devRing) stopAll() {
	r.mu.Lock()
	r.closing = true
	var running []*devNode
	for _, n := range r.Nodes {
		if n.process != nil {
			n.process.Process.Signal(syscall.SIGTERM)
			running = append(running, n)
		}
	}
	r.mu.Unlock()
	late := time.AfterFunc(devStopTimeout, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, n := range running {
			if n.process != nil {
				n.process.Process.Kill()
			}
		}
	})
	defer late.Stop()
	for _, n := range running {
		<-n.exited
	}
	r.wait.Wait()
}
