package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/node"
)

// ran is what one run of the program did.
type ran struct {
	out, err string
	code     int
}

// osteon runs the program to its end, without OSTEON_* variables of the caller.
func osteon(t testing.TB, args ...string) ran {
	t.Helper()
	return osteonEnv(t, nil, args...)
}

func osteonEnv(t testing.TB, env []string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	c := exec.CommandContext(ctx, osteonBinary(t), args...)
	c.Env = append(cleanEnv(), env...)
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("osteon %v: %v", args, err)
	}
	return ran{out.String(), stderr.String(), c.ProcessState.ExitCode()}
}

func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "OSTEON_") })
}

// must runs the program with --json, wants exit code 0 and decodes what it printed into value, if any.
func must(t testing.TB, value any, args ...string) {
	t.Helper()
	r := osteon(t, append(args, "--json")...)
	if r.code != exitOK {
		t.Fatalf("osteon %v: exit code %d\n%s", args, r.code, r.err)
	}
	if value == nil {
		return
	}
	if err := json.Unmarshal([]byte(r.out), value); err != nil {
		t.Fatalf("osteon %v printed %q: %v", args, r.out, err)
	}
}

// newToken makes a join token at a node.
func newToken(t testing.TB, n *testNode, flags ...string) string {
	t.Helper()
	var made node.TokenResult
	must(t, &made, append([]string{"token", "create", "--dir", n.Dir}, flags...)...)
	return made.Token
}

// reforge changes a token and makes it whole again, as a forger would.
func reforge(t testing.TB, word string, change func(*node.Token)) string {
	t.Helper()
	token, err := node.ParseToken(word)
	if err != nil {
		t.Fatal(err)
	}
	change(&token)
	return token.String()
}

// served is a node that a test runs by itself with `osteon serve`.
type served struct {
	testNode
	process *exec.Cmd
	stderr  *bytes.Buffer
	ended   chan error // gets the end of the process
	config  string     // configuration file; empty: none
}

// newServed names a node with free ports; nothing is made yet.
func newServed(t testing.TB, dir, id, site string) *served {
	t.Helper()
	s := &served{testNode: testNode{ID: id, Site: site, AET: "OSTEON", Dir: filepath.Join(dir, id)}}
	for _, listen := range []*string{&s.DIMSE, &s.HTTP, &s.Link} {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		*listen = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return s
}

// flags are those of init, join and serve.
func (s *served) flags() []string {
	flags := []string{"--dir", s.Dir, "--dimse", s.DIMSE, "--http", s.HTTP, "--link", s.Link}
	if s.config != "" {
		flags = append(flags, "--config", s.config)
	}
	return flags
}

// serve starts the node; it is stopped at the end of the test.
func (s *served) serve(t testing.TB) {
	t.Helper()
	s.stderr, s.ended = new(bytes.Buffer), make(chan error, 1)
	s.process = exec.Command(osteonBinary(t), append([]string{"serve"}, s.flags()...)...)
	s.process.Env, s.process.Stderr = cleanEnv(), s.stderr
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	s.PID = s.process.Process.Pid
	process, ended := s.process, s.ended
	go func() { ended <- process.Wait() }() // ends with the process
	t.Cleanup(func() {
		process.Process.Signal(syscall.SIGTERM) // fails if the test stopped it
		select {
		case <-ended:
		case <-time.After(ringPatience):
			process.Process.Kill()
		}
		if t.Failed() {
			t.Logf("--- %s\n%s", s.ID, s.stderr.String())
		}
	})
}

// terminate sends SIGTERM and returns the exit code and how long the process took to end.
func (s *served) terminate(t testing.TB) (code int, took time.Duration) {
	t.Helper()
	began := time.Now()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(ringPatience):
		t.Fatalf("node %s still runs %s after SIGTERM", s.ID, ringPatience)
	}
	s.ended <- nil // for the cleanup
	return s.process.ProcessState.ExitCode(), time.Since(began)
}

func nodeList(t testing.TB, n *testNode) []node.NodeStatus {
	t.Helper()
	var list []node.NodeStatus
	must(t, &list, "node", "list", "--dir", n.Dir)
	return list
}

func member(list []node.NodeStatus, name string) (node.NodeStatus, bool) {
	i := slices.IndexFunc(list, func(n node.NodeStatus) bool { return n.Name == name })
	if i < 0 {
		return node.NodeStatus{}, false
	}
	return list[i], true
}

// votersBySite counts the votes of each site.
func votersBySite(list []node.NodeStatus) map[string]int {
	out := map[string]int{}
	for _, n := range list {
		if n.Voter {
			out[string(n.Site)]++
		}
	}
	return out
}

// traffic stores small instances at nodes, over associations that stay open, until stop.
type traffic struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu     sync.Mutex
	acked  []instance
	faults []string
	worst  time.Duration
}

// startTraffic stores at every node some instances a second, several a study.
func startTraffic(nodes []*testNode, firstStudy int) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	l := &traffic{cancel: cancel}
	for i, n := range nodes {
		l.wait.Add(1)
		go func() { // stop ends and awaits it
			defer l.wait.Done()
			l.run(ctx, n, firstStudy+i*1000)
		}()
	}
	return l
}

func (l *traffic) run(ctx context.Context, n *testNode, study int) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var client *dimse.Client
	defer func() {
		if client != nil {
			client.Release(context.Background())
			client.Close()
		}
	}()
	for number := 0; ctx.Err() == nil; number++ {
		in := noiseInstance(study+number/10, 1, 1+number%10, 50_000, 1)
		if client == nil {
			var err error
			if client, err = connect(context.Background(), n, contextFor(in)); err != nil {
				l.fault("associate with %s: %v", n.ID, err)
				return
			}
		}
		began := time.Now()
		response, err := client.Store(context.Background(), dimse.StoreArgs{
			SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data),
		})
		took := time.Since(began)
		if err != nil || response.Status != dimse.StatusSuccess {
			l.fault("store at %s: status %04XH %q, %v", n.ID, response.Status, response.ErrorComment, err)
			return
		}
		l.mu.Lock()
		l.acked = append(l.acked, in)
		l.worst = max(l.worst, took)
		l.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (l *traffic) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

// count returns how many instances were acknowledged.
func (l *traffic) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// stop ends the stores, fails the test for each that failed, and returns what was acknowledged.
func (l *traffic) stop(t testing.TB) []instance {
	t.Helper()
	l.cancel()
	l.wait.Wait()
	for _, f := range l.faults {
		t.Errorf("%s", f)
	}
	if l.worst > 5*time.Second {
		t.Errorf("a store took %s, want less than 5 s", l.worst)
	}
	t.Logf("%d instances stored meanwhile, the slowest in %s", len(l.acked), l.worst.Round(time.Millisecond))
	return l.acked
}

// qidoStudies returns the Study Instance UIDs of all studies at a node.
func qidoStudies(n *testNode) (map[string]bool, error) {
	request, err := http.NewRequest("GET", "http://"+n.HTTP+"/dicom-web/studies?limit=1000", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/dicom+json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	out := map[string]bool{}
	if response.StatusCode == http.StatusNoContent {
		return out, nil
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("QIDO-RS answered %s", response.Status)
	}
	var matches []map[string]struct{ Value []any }
	if err := json.NewDecoder(response.Body).Decode(&matches); err != nil {
		return nil, err
	}
	for _, m := range matches {
		if v := m["0020000D"].Value; len(v) == 1 {
			out[fmt.Sprint(v[0])] = true
		}
	}
	return out, nil
}

// cfindStudies is qidoStudies over DIMSE.
func cfindStudies(n *testNode) (map[string]bool, error) {
	matches, err := find(context.Background(), n, "STUDY", map[dicom.Tag]string{dicom.StudyInstanceUID: ""})
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, m := range matches {
		out[m.String(dicom.StudyInstanceUID)] = true
	}
	return out, nil
}

// A fourth and a fifth site join by token while every node takes stores: none fails, the new nodes answer
// for everything, take shards of new packs, and get a vote once that spreads the votes better.
func TestSitesJoinUnderLoad(t *testing.T) {
	r := startRing(t, 3, 1, "--seal-quiet", "1s")
	first := r.nodes[0]
	stores := startTraffic(r.nodes, 1000)
	r.eventually("stores run", func() bool { return stores.count() > 20 })

	d := newServed(t, t.TempDir(), "d1", "d")
	e := newServed(t, t.TempDir(), "e1", "e")
	joined := func(s *served) {
		t.Helper()
		word := newToken(t, first)
		var result node.JoinResult
		must(t, &result, append([]string{"join", word, "--name", s.ID, "--site", s.Site}, s.flags()...)...)
		if result.Name != s.ID || string(result.Site) != s.Site || result.Ring.IsZero() {
			t.Errorf("join printed %+v", result)
		}
		if m, ok := member(nodeList(t, first), s.ID); !ok || m.Voter {
			t.Errorf("enrolled, not started: %+v, want listed and without a vote", m)
		}
		s.serve(t)
		r.awaitReady(&s.testNode)
	}
	joined(d)
	r.awaitStatus(first, "sees the new node", func(s node.Status) bool { m, _ := member(s.Nodes, "d1"); return m.Live })
	if votes := votersBySite(nodeList(t, first)); len(votes) != 3 || votes["d"] != 0 {
		t.Errorf("votes by site with four nodes: %v, want one at each of a, b and c", votes)
	}

	// New packs reach the new node while stores go on.
	r.eventually("a new pack has a shard at d1", func() bool {
		list, err := first.admin().Studies(context.Background(), 1000)
		if err != nil {
			return false
		}
		for _, line := range list {
			report, err := first.admin().Study(context.Background(), line.Study)
			if err != nil {
				continue
			}
			for _, p := range report.Packs {
				if slices.ContainsFunc(p.Shards, func(s node.ShardReport) bool { return s.Node == "d1" && s.Live }) {
					return true
				}
			}
		}
		return false
	})

	joined(e)
	var votes map[string]int
	r.eventually("one vote at each of five sites", func() bool {
		votes = votersBySite(nodeList(t, first))
		return len(votes) == 5
	})
	for site, n := range votes {
		if n != 1 {
			t.Errorf("site %s has %d votes: %v", site, n, votes)
		}
	}

	acked := stores.stop(t)
	for _, s := range []*served{d, e} {
		s.holdsAll(r, acked)
	}
	// The new nodes take stores themselves.
	fresh := noiseInstance(9000, 1, 1, 50_000, 2)
	r.mustStore(&d.testNode, fresh)
	r.eventually("stored at d1, found at e1", func() bool {
		found, err := cfindStudies(&e.testNode)
		return err == nil && found[fresh.study]
	})
	r.checkReadable(&e.testNode, fresh)

	// An old ring's node is stopped in order: the exit code is 0 and the new ones carry on.
	if code, took := e.terminate(t); code != exitOK {
		t.Errorf("serve ended with exit code %d after %s", code, took)
	}
}

// holdsAll checks that a node finds every study by C-FIND and QIDO-RS and reads some of the instances.
func (s *served) holdsAll(r *testRing, acked []instance) {
	r.t.Helper()
	want := map[string]bool{}
	for _, in := range acked {
		want[in.study] = true
	}
	for name, ask := range map[string]func(*testNode) (map[string]bool, error){"C-FIND": cfindStudies, "QIDO-RS": qidoStudies} {
		r.eventually(fmt.Sprintf("%s at %s finds all %d studies", name, s.ID, len(want)), func() bool {
			found, err := ask(&s.testNode)
			if err != nil {
				r.t.Errorf("%s at %s: %v", name, s.ID, err)
				return true
			}
			for uid := range want {
				if !found[uid] {
					return false
				}
			}
			return len(found) == len(want)
		})
	}
	for i := 0; i < len(acked); i += max(1, len(acked)/20) {
		r.checkReadable(&s.testNode, acked[i])
	}
}

// A token lets one node join once, in time, at its site; every other use is refused with its reason.
func TestTokensAreRefused(t *testing.T) {
	dir := t.TempDir()
	a := newServed(t, dir, "a1", "a")
	must(t, nil, append([]string{"init", "--name", "a1", "--site", "a"}, a.flags()...)...)
	a.serve(t)
	r := &testRing{t: t, dir: dir}
	r.awaitReady(&a.testNode)

	b := newServed(t, dir, "b1", "b")
	join := func(s *served, word string, flags ...string) ran {
		return osteon(t, append(append([]string{"join", word, "--name", s.ID}, s.flags()...), flags...)...)
	}
	word := newToken(t, &a.testNode, "--site", "b")
	elsewhere := func(token *node.Token) {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		token.Addresses = []string{fmt.Sprintf("127.0.0.1:%d", port)}
	}
	taken := *b
	taken.ID = "a1"
	for _, c := range []struct {
		name string
		got  ran
		code int
		says string
	}{
		{"wrong site", join(b, word, "--site", "x"), exitFailed, "the token is for site b, not x"},
		{"name taken", join(&taken, word), exitFailed, "a node named a1 is in the ring already"},
		{"bad name", join(b, word, "--site", "b/c"), exitUsage, "want letters"},
		{"expired", join(b, newToken(t, &a.testNode, "--valid", "1ns"), "--site", "b"), exitFailed, "it has expired"},
		{"secret changed", join(b, reforge(t, word, func(t *node.Token) { t.Secret[0] ^= 1 })), exitFailed, "this ring did not issue it"},
		{"fingerprint changed", join(b, reforge(t, word, func(t *node.Token) { t.CA[0] ^= 1 })), exitFailed, "fingerprint"},
		{"another ring", join(b, reforge(t, word, func(t *node.Token) { t.Ring[0] ^= 1 })), exitFailed, "the token is of another ring"},
		{"nobody there", join(b, reforge(t, word, elsewhere)), exitRing, "no node of the ring let this one join"},
		{"word cut short", join(b, word[:len(word)-4]), exitUsage, "is not whole"},
		{"another word", join(b, "hello"), exitUsage, "copy the whole word"},
		{"used directory", join(a, word), exitUsage, "a node is here already"},
		{"validity too long", osteon(t, "token", "create", "--dir", a.Dir, "--valid", "10000h"), exitUsage, "want up to"},
	} {
		if c.got.code != c.code || !strings.Contains(c.got.err, c.says) {
			t.Errorf("%s: exit code %d, %q; want %d and %q", c.name, c.got.code, c.got.err, c.code, c.says)
		}
	}
	if list := nodeList(t, &a.testNode); len(list) != 1 {
		t.Errorf("after refused joins the ring has %d nodes, want 1", len(list))
	}

	// None of that used the token up or left anything in the directory.
	if r := join(b, word); r.code != exitOK {
		t.Fatalf("join: exit code %d: %s", r.code, r.err)
	}
	c := newServed(t, dir, "c1", "b")
	if r := join(c, word); r.code != exitFailed || !strings.Contains(r.err, "it was used before") {
		t.Errorf("token used again: exit code %d: %s", r.code, r.err)
	}
	if r := join(b, newToken(t, &a.testNode), "--site", "b"); r.code != exitUsage || !strings.Contains(r.err, "a node is here already") {
		t.Errorf("join into the directory of a node: exit code %d: %s", r.code, r.err)
	}
	token, err := node.ParseToken(word)
	if err != nil || len(token.Addresses) == 0 || token.CA == [32]byte{} || !token.Expires.After(time.Now()) {
		t.Errorf("token carries %d addresses, fingerprint %x, expiry %s, %v", len(token.Addresses), token.CA, token.Expires, err)
	}
	at := b.Link
	b.Link = c.Link // not what the ring was told
	if r := osteon(t, append([]string{"serve"}, b.flags()...)...); r.code != exitUsage || !strings.Contains(r.err, at) {
		t.Errorf("serve at another link address: exit code %d: %s", r.code, r.err)
	}
}
