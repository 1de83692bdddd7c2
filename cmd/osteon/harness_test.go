package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

// The tests of this package run the built program: rings of real child processes started by `osteon dev`,
// spoken to over DIMSE and HTTP, killed by signals.

var built struct {
	sync.Once
	path string
	err  error
}

// osteonBinary builds osteon once for the test process and returns its path.
func osteonBinary(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		dir, err := os.MkdirTemp("", "osteon-bin-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "osteon")
		build := exec.Command("go", "build", "-o", built.path, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build osteon: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.path != "" {
		os.RemoveAll(filepath.Dir(built.path))
	}
	os.Exit(code)
}

// testRing is a ring of child processes. It is stopped at the end of its test.
type testRing struct {
	t     testing.TB
	dir   string
	nodes []*testNode

	process *exec.Cmd
	stdin   io.WriteCloser
	events  chan devEvent
	earlier []devEvent // taken from events while waiting for others
	said    output     // standard output and error of the process
}

// output keeps what a process says, which may be read while it speaks.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

// bytes returns a copy of what was said so far.
func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.text)
}

type testNode struct {
	ID, Site, AET, DIMSE, HTTP, Link, Dir string
	PID                                   int

	// dialer connects to the node's listeners where this process cannot: from its network namespace.
	dialer func(ctx context.Context, network, address string) (net.Conn, error)
	web    *http.Client // by way of dialer
	space  space        // where programs run that speak to it; nil: beside this process
}

// space is where a program can be run.
type space interface {
	output(*exec.Cmd) ([]byte, error)
}

// dial connects to one of the node's listeners.
func (n *testNode) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.dialer != nil {
		return n.dialer(ctx, network, address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// httpGet asks the node's HTTP listener.
func (n *testNode) httpGet(path string) (*http.Response, error) {
	client := http.DefaultClient
	if n.web != nil {
		client = n.web
	}
	return client.Get("http://" + n.HTTP + path)
}

type devEvent struct {
	Event string
	ID    string
	PID   int
}

const ringPatience = 120 * time.Second

// startRing starts `osteon dev` in a directory of its own with extra flags.
func startRing(t testing.TB, sites, nodes int, flags ...string) *testRing {
	t.Helper()
	return startRingIn(t, t.TempDir(), sites, nodes, flags...)
}

// startRingIn is startRing in dir, which may hold a ring of the same shape already.
func startRingIn(t testing.TB, dir string, sites, nodes int, flags ...string) *testRing {
	t.Helper()
	return startRingOf(t, osteonBinary(t), dir, sites, nodes, flags...)
}

// startRingOf is startRingIn with another build of the program.
func startRingOf(t testing.TB, program, dir string, sites, nodes int, flags ...string) *testRing {
	t.Helper()
	r := &testRing{t: t, dir: dir, events: make(chan devEvent, 1024)}
	args := append([]string{"dev", "--json", "--dir", dir, "--sites", fmt.Sprint(sites), "--nodes", fmt.Sprint(nodes)}, flags...)
	r.process = exec.Command(program, args...)
	r.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM} // no ring outlives its test process
	r.process.Stderr = &r.said
	stdout, err := r.process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if r.stdin, err = r.process.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	lines := bufio.NewScanner(io.TeeReader(stdout, &r.said))
	lines.Buffer(nil, 1<<20)
	first := make(chan string, 1)
	go func() { // ends when the process closes its standard output
		if lines.Scan() {
			first <- lines.Text()
		}
		close(first)
		for lines.Scan() {
			var e devEvent
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				r.events <- e
			}
		}
		close(r.events)
	}()
	select {
	case line, ok := <-first:
		if !ok {
			t.Fatalf("osteon dev ended before it was ready: %s\n%s", r.said.bytes(), r.logs())
		}
		var ready struct{ Nodes []*testNode }
		if err := json.Unmarshal([]byte(line), &ready); err != nil {
			t.Fatalf("osteon dev printed %q: %v", line, err)
		}
		r.nodes = ready.Nodes
	case <-time.After(2 * ringPatience):
		t.Fatalf("osteon dev is not ready after %s\n%s", 2*ringPatience, r.logs())
	}
	for _, n := range r.nodes {
		n.HTTP = strings.TrimPrefix(n.HTTP, "http://")
	}
	return r
}

// logs returns the last warnings and errors and the last lines of every node's log, for a failing test.
func (r *testRing) logs() string {
	var out strings.Builder
	files, _ := filepath.Glob(filepath.Join(r.dir, "*.log"))
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		var bad []string
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, `"level":"WARN"`) && !strings.Contains(line, `"part":"raft"`) || strings.Contains(line, `"level":"ERROR"`) {
				bad = append(bad, line)
			}
		}
		fmt.Fprintf(&out, "--- %s, warnings\n%s--- %s\n%s\n", filepath.Base(f), strings.Join(bad[max(0, len(bad)-30):], ""),
			filepath.Base(f), raw[max(0, len(raw)-2000):])
	}
	return out.String()
}

func (r *testRing) stop() {
	if r.process == nil {
		return
	}
	p := r.process
	r.process = nil
	p.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(60*time.Second, func() { p.Process.Kill() })
	defer late.Stop()
	p.Wait()
	if r.t.Failed() {
		r.t.Log(r.logs())
	}
}

func (r *testRing) node(id string) *testNode {
	r.t.Helper()
	for _, n := range r.nodes {
		if n.ID == id {
			return n
		}
	}
	r.t.Fatalf("no node %s", id)
	return nil
}

func (r *testRing) site(site string) (out []*testNode) {
	for _, n := range r.nodes {
		if n.Site == site {
			out = append(out, n)
		}
	}
	return out
}

// awaitEvent waits for one event of one node and takes it; others stay for later.
func (r *testRing) awaitEvent(event, id string) devEvent {
	r.t.Helper()
	for i, e := range r.earlier {
		if e.Event == event && e.ID == id {
			r.earlier = append(r.earlier[:i:i], r.earlier[i+1:]...)
			return e
		}
	}
	deadline := time.After(ringPatience)
	for {
		select {
		case e, ok := <-r.events:
			if !ok {
				r.t.Fatalf("osteon dev ended while waiting for %s of %s\n%s", event, id, r.logs())
			}
			if e.Event == event && e.ID == id {
				return e
			}
			r.earlier = append(r.earlier, e)
		case <-deadline:
			r.t.Fatalf("no event %s of %s after %s\n%s", event, id, ringPatience, r.logs())
		}
	}
}

// kill ends nodes at once, as kill -9 does.
func (r *testRing) kill(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes {
		if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
			r.t.Fatalf("kill %s: %v", n.ID, err)
		}
	}
	for _, n := range nodes {
		r.awaitEvent("down", n.ID)
	}
}

// start brings killed nodes back and waits until each is ready.
func (r *testRing) start(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes {
		fmt.Fprintf(r.stdin, "start %s\n", n.ID)
	}
	for _, n := range nodes {
		n.PID = r.awaitEvent("up", n.ID).PID
	}
	for _, n := range nodes {
		r.awaitReady(n)
	}
}

func (n *testNode) admin() *node.Admin { return node.Dial(n.Dir) }

func (r *testRing) awaitReady(n *testNode) node.Status {
	r.t.Helper()
	return r.awaitStatus(n, "ready", func(s node.Status) bool { return s.Ready })
}

// awaitStatus polls a node until its status is as wanted.
func (r *testRing) awaitStatus(n *testNode, what string, ok func(node.Status) bool) node.Status {
	r.t.Helper()
	var last node.Status
	var lastErr error
	r.eventually("node "+n.ID+" "+what, func() bool {
		last, lastErr = n.admin().Status(context.Background())
		return lastErr == nil && ok(last)
	})
	return last
}

// eventually polls until ok, for at most ringPatience.
func (r *testRing) eventually(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(ringPatience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not so after %s\n%s", what, ringPatience, r.logs())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitApplied waits until every given node has applied what the first has now.
func (r *testRing) awaitApplied(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes { // what is acknowledged may still be on its way into the log
		r.awaitStatus(n, "has nothing to offer", func(s node.Status) bool { return s.Waiting == 0 })
	}
	want := r.awaitStatus(nodes[0], "answers", func(node.Status) bool { return true }).Applied
	for _, n := range nodes[1:] {
		r.awaitStatus(n, fmt.Sprintf("applied %d", want), func(s node.Status) bool { return s.Applied >= want })
	}
}

// awaitSeen waits until every given node takes every other one for alive.
func (r *testRing) awaitSeen(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes {
		r.awaitStatus(n, "sees everybody", func(s node.Status) bool {
			live := 0
			for _, m := range s.Nodes {
				if m.Live {
					live++
				}
			}
			return live >= len(nodes)
		})
	}
}

// instance is one data set that a test sends, byte for byte.
type instance struct {
	class, uid, study, series, syntax string
	data                              []byte
	digest                            [sha256.Size]byte
}

// noiseInstance builds a CT-like instance whose pixels are noise of about size bytes; everything follows
// from the numbers and the seed.
func noiseInstance(study, series, number, size int, seed uint64) instance {
	d := new(dicom.Dataset)
	in := instance{
		class: "1.2.840.10008.5.1.4.1.1.2", syntax: dicom.ExplicitVRLittleEndian,
		study:  fmt.Sprintf("2.25.%d", 1_000_000+study),
		series: fmt.Sprintf("2.25.%d.%d", 1_000_000+study, series),
		uid:    fmt.Sprintf("2.25.%d.%d.%d", 1_000_000+study, series, number),
	}
	d.SetStrings(dicom.SOPClassUID, in.class)
	d.SetStrings(dicom.SOPInstanceUID, in.uid)
	d.SetStrings(dicom.StudyDate, "20250102")
	d.SetStrings(dicom.StudyTime, "101500")
	d.SetStrings(dicom.AccessionNumber, fmt.Sprintf("A%d", study))
	d.SetStrings(dicom.Modality, "CT")
	d.SetStrings(dicom.PatientName, fmt.Sprintf("Test^Study%d", study))
	d.SetStrings(dicom.PatientID, fmt.Sprintf("P%d", study))
	d.SetStrings(dicom.StudyInstanceUID, in.study)
	d.SetStrings(dicom.SeriesInstanceUID, in.series)
	d.SetStrings(dicom.InstanceNumber, fmt.Sprint(number))
	pixels := make([]byte, size&^1)
	noise := rand.New(rand.NewPCG(seed, uint64(number)<<32|uint64(study)))
	for i := 0; i+8 <= len(pixels); i += 8 {
		v := noise.Uint64()
		for j := range 8 {
			pixels[i+j] = byte(v >> (8 * j))
		}
	}
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: pixels})
	data, err := d.Encode(nil, in.syntax)
	if err != nil {
		panic(err) // the data set is our own
	}
	in.data, in.digest = data, sha256.Sum256(data)
	return in
}

// fileInstance reads a DICOM file; the data set's bytes are kept as they are.
func fileInstance(path string) (instance, error) {
	s, err := readSample(path)
	if err != nil {
		return instance{}, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return instance{}, err
	}
	data := raw[s.offset:]
	if dicom.SyntaxOf(s.syntax).Deflated && len(data)%2 == 1 {
		data = append(data, 0) // as readSample digests it
	}
	return instance{
		class: s.class, uid: s.instance, study: s.study, series: s.series, syntax: s.syntax,
		data: data, digest: s.digest,
	}, nil
}

// connect opens an association with a node for the given contexts.
func connect(ctx context.Context, n *testNode, contexts []dul.ProposedContext, roles ...dul.Role) (*dimse.Client, error) {
	conn, err := n.dial(ctx, "tcp", n.DIMSE)
	if err != nil {
		return nil, err
	}
	return dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: "TEST", CalledAE: n.AET, Contexts: contexts, Roles: roles,
	}})
}

func contextFor(in instance) []dul.ProposedContext {
	return []dul.ProposedContext{{ID: 1, AbstractSyntax: in.class, TransferSyntaxes: []string{in.syntax}}}
}

// store sends one instance over an association of its own and returns the response.
func store(ctx context.Context, n *testNode, in instance) (dimse.StoreResponse, error) {
	client, err := connect(ctx, n, contextFor(in))
	if err != nil {
		return dimse.StoreResponse{}, err
	}
	defer client.Close()
	response, err := client.Store(ctx, dimse.StoreArgs{
		SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data),
	})
	if err == nil {
		err = client.Release(ctx)
	}
	return response, err
}

// mustStore is store for a node that has to take the instance.
func (r *testRing) mustStore(n *testNode, in instance) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	response, err := store(ctx, n, in)
	if err != nil || response.Status != dimse.StatusSuccess {
		r.t.Fatalf("store at %s: status %04XH %q, %v", n.ID, response.Status, response.ErrorComment, err)
	}
}

// find returns the matches of a study root query.
func find(ctx context.Context, n *testNode, level string, keys map[dicom.Tag]string) ([]*dicom.Dataset, error) {
	client, err := connect(ctx, n, []dul.ProposedContext{{
		ID: 1, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	}})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, level)
	for tag, value := range keys {
		id.SetStrings(tag, value)
	}
	var out []*dicom.Dataset
	for match, err := range client.Find(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootFind, Identifier: id}) {
		if err != nil {
			return out, err
		}
		out = append(out, match)
	}
	return out, client.Release(ctx)
}

var errMissing = errors.New("instance missing from the retrieval")

// get retrieves one instance by C-GET in its own syntax and returns its bytes.
func get(ctx context.Context, n *testNode, in instance) ([]byte, error) {
	contexts := append(contextFor(in), dul.ProposedContext{
		ID: 3, AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	})
	client, err := connect(ctx, n, contexts, dul.Role{SOPClass: in.class, SCP: true})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "IMAGE")
	id.SetStrings(dicom.StudyInstanceUID, in.study)
	id.SetStrings(dicom.SeriesInstanceUID, in.series)
	id.SetStrings(dicom.SOPInstanceUID, in.uid)
	var got []byte
	var readErr error
	response, err := client.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			got, readErr = io.ReadAll(sub.Data)
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	switch {
	case err != nil:
		return nil, err
	case readErr != nil:
		return nil, readErr
	case response.Status != dimse.StatusSuccess:
		return nil, fmt.Errorf("C-GET ended with %04XH %q", response.Status, response.ErrorComment)
	case got == nil:
		return nil, errMissing
	}
	return got, client.Release(ctx)
}

// checkReadable retrieves an instance at a node and compares it bit for bit.
func (r *testRing) checkReadable(n *testNode, in instance) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	got, err := get(ctx, n, in)
	if err != nil {
		r.t.Errorf("read at %s: %v", n.ID, err)
		return
	}
	if !bytes.Equal(got, in.data) {
		r.t.Errorf("read at %s: %d bytes differ from the %d sent", n.ID, len(got), len(in.data))
	}
}
