package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/node"
)

var update = flag.Bool("update", false, "write the golden files of JSON outputs instead of comparing them")

// volatile are the keys whose values differ from run to run; golden files keep only that they are there.
var volatile = []string{
	"ring", "node", "pack", "uptime", "applied", "commit", "address", "dimse", "http", "link", "dir",
	"root_key", "free_bytes", "token", "expires", "go", "revision", "time", "version", "advertise", "listen",
	"first", "last", "kept_since", "ms", "created",
}

// golden compares a JSON output with testdata/NAME.golden.
func golden(t *testing.T, name, output string) {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(output), &value); err != nil {
		t.Errorf("%s: %q is not JSON: %v", name, output, err)
		return
	}
	mask(value)
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(value); err != nil {
		t.Fatal(err)
	}
	got := text.Bytes()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s\n(%v; go test ./cmd/osteon -update accepts it)", name, got, want, err)
	}
}

func mask(value any) {
	switch v := value.(type) {
	case []any:
		for _, each := range v {
			mask(each)
		}
	case map[string]any:
		if v["geometry"] != nil { // a pack: its compressed manifest is a little longer or shorter each time
			v["bytes"] = "<bytes>"
		}
		for key, each := range v {
			switch each.(type) {
			case []any, map[string]any:
				mask(each)
			default:
				if slices.Contains(volatile, key) {
					v[key] = "<" + key + ">"
				}
			}
		}
	}
}

// commands returns every command that runs something, as its words.
func commands(t *testing.T) (out [][]string) {
	t.Helper()
	parser, err := kong.New(new(cli))
	if err != nil {
		t.Fatal(err)
	}
	var walk func(n *kong.Node, words []string)
	walk = func(n *kong.Node, words []string) {
		if n.Type == kong.CommandNode {
			words = append(slices.Clone(words), n.Name)
			if n.Help == "" {
				t.Errorf("command %v has no help", words)
			}
			for _, f := range n.Flags {
				if f.Help == "" {
					t.Errorf("flag --%s of %v has no help", f.Name, words)
				}
			}
			for _, p := range n.Positional {
				if p.Help == "" {
					t.Errorf("argument %s of %v has no help", p.Name, words)
				}
			}
		}
		if len(n.Children) == 0 {
			out = append(out, words)
		}
		for _, c := range n.Children {
			walk(c, words)
		}
	}
	walk(parser.Model.Node, nil)
	return out
}

func TestEveryCommandHasHelpAndJSON(t *testing.T) {
	all := commands(t)
	if len(all) < 12 {
		t.Fatalf("found %d commands: %v", len(all), all)
	}
	for _, words := range all {
		var out, stderr bytes.Buffer
		if code := run(append(slices.Clone(words), "--help"), &out, &stderr); code != exitOK {
			t.Errorf("osteon %v --help: exit code %d: %s", words, code, stderr.String())
		}
		for _, want := range []string{"Usage: osteon " + strings.Join(words, " "), "--json", "--dir", "--config", "$OSTEON_DIR"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("osteon %v --help does not mention %s:\n%s", words, want, out.String())
			}
		}
	}
}

// What goes wrong before any node is asked has its exit code, and with --json says so in JSON.
func TestExitCodesWithoutRing(t *testing.T) {
	empty := t.TempDir()
	missing := filepath.Join(empty, "missing")
	config := func(text string) string {
		path := filepath.Join(t.TempDir(), "osteon.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := config("dir: /var/lib/osteon\n")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitUsage, "expected one of"},
		{[]string{"fly"}, exitUsage, "unexpected argument fly"},
		{[]string{"status", "--fast"}, exitUsage, "unknown flag --fast"},
		{[]string{"join", "--name", "b1"}, exitUsage, "<token>"},
		{[]string{"join", "x", "--site", "b", "--dir", empty}, exitUsage, "--name"},
		{[]string{"join", "@" + missing, "--name", "b1", "--dir", empty}, exitUsage, "no such file"},
		{[]string{"study", "show"}, exitUsage, "<uid>"},
		{[]string{"dev", "--sites", "0"}, exitUsage, "want 1 to 26 sites"},
		{[]string{"status"}, exitUsage, "--dir or OSTEON_DIR"},
		{[]string{"status", "--dir", empty}, exitRing, "no node answers"},
		{[]string{"study", "show", "1.2", "--dir", empty}, exitRing, "is osteon serve running there?"},
		{[]string{"serve"}, exitUsage, "dir: is required"},
		{[]string{"serve", "--dir", empty}, exitUsage, "run osteon init or osteon join first, or mount the volume that holds it"},
		{[]string{"serve", "--dir", missing}, exitUsage, "run osteon init or osteon join first, or mount the volume that holds it"},
		{[]string{"serve", "--dir", empty, "--http", "0.0.0.0:8104"}, exitUsage, "is not loopback: set http.tls_cert"},
		{[]string{"init", "--dir", empty, "--site", "a b"}, exitUsage, "want letters"},
		{[]string{"init", "--dir", empty, "--survive", "everything"}, exitUsage, "is none of node, site, site+node, two-sites"},
		{[]string{"init", "--dir", empty, "--link", "0.0.0.0:7400"}, exitUsage, "no address that other nodes can reach"},
		{[]string{"config", "check", "--config", missing}, exitUsage, "no such file"},
		{[]string{"config", "check", "--config", good}, exitOK, ""},
		{[]string{"version"}, exitOK, ""},
	} {
		plain, asJSON := osteon(t, c.args...), osteon(t, append(c.args, "--json")...)
		if plain.code != c.code || !strings.Contains(plain.err, c.says) {
			t.Errorf("osteon %v: exit code %d, %q; want %d and %q", c.args, plain.code, plain.err, c.code, c.says)
		}
		if c.code == exitOK {
			if !json.Valid([]byte(asJSON.out)) {
				t.Errorf("osteon %v --json printed %q", c.args, asJSON.out)
			}
			continue
		}
		var failure struct {
			Error string
			Exit  int
		}
		if err := json.Unmarshal([]byte(asJSON.err), &failure); err != nil || failure.Exit != c.code || asJSON.code != c.code || !strings.Contains(failure.Error, c.says) {
			t.Errorf("osteon %v --json: exit code %d, %q, %v", c.args, asJSON.code, asJSON.err, err)
		}
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("serve and others left %v in an empty directory (%v)", left, err)
	}
	var built map[string]any
	must(t, &built, "version")
	delete(built, "revision") // there when built from a checkout
	delete(built, "time")
	text, err := json.Marshal(built)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "version", string(text))
}

func TestConfigCheckNamesEveryFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "osteon.yaml")
	if err := os.WriteFile(path, []byte(`dimse:
  listen: nowhere
  aet: A TITLE THAT IS TOO LONG
  promiscous: true
http:
  listen: 10.0.0.1:8104
  tls_key: key.pem
ack:
  degraded: maybe
  wait: soon
seal:
  bytes: -1
log:
  level: loud
aes:
  - {title: SCANNER, address: "10.0.0.9:104"}
  - {title: SCANNER, address: nowhere}
sites: 3
`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := osteon(t, "config", "check", "--config", path, "--json")
	if r.code != exitUsage {
		t.Errorf("exit code %d, want %d", r.code, exitUsage)
	}
	var report struct {
		OK     bool
		Faults []string
	}
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || report.OK {
		t.Fatalf("printed %q: %v", r.out, err)
	}
	for _, want := range []string{
		"line 4: there is no setting promiscous", "line 18: there is no setting sites", "line 10:", "dir: is required",
		"dimse.listen: ", "dimse.aet: ", "http.listen: ", "http.tls_cert: ", "ack.degraded: ", "seal.bytes: ",
		"log.level: ", "aes[1].title: ", "aes[1].address: ",
	} {
		if n := len(slices.DeleteFunc(slices.Clone(report.Faults), func(f string) bool { return !strings.Contains(f, want) })); n != 1 {
			t.Errorf("%d faults name %q, want one: %q", n, want, report.Faults)
		}
	}
	if len(report.Faults) != 13 {
		t.Errorf("%d faults, want 13: %q", len(report.Faults), report.Faults)
	}
	// What check refuses, serve refuses too.
	if s := osteon(t, "serve", "--config", path); s.code != exitUsage || !strings.Contains(s.err, "line 4: there is no setting promiscous") {
		t.Errorf("serve: exit code %d: %s", s.code, s.err)
	}
}

// A flag wins over the variable, the variable over the file, the file over the default.
func TestConfigPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "osteon.yaml")
	if err := os.WriteFile(path, []byte("dir: /file\ndimse: {aet: FILE}\nhttp: {listen: \"127.0.0.1:1\"}\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"OSTEON_CONFIG=" + path, "OSTEON_AET=VARIABLE", "OSTEON_HTTP=127.0.0.1:2", "OSTEON_JSON=true"}
	r := osteonEnv(t, env, "config", "check", "--http", "127.0.0.1:3")
	var report struct {
		Config struct {
			Dir   string
			DIMSE struct{ AET, Listen string }
			HTTP  struct{ Listen string }
			Log   struct{ Level string }
		}
	}
	if err := json.Unmarshal([]byte(r.out), &report); r.code != exitOK || err != nil {
		t.Fatalf("exit code %d, %q, %v", r.code, r.err, err)
	}
	c := report.Config
	got := []string{c.Dir, c.DIMSE.AET, c.HTTP.Listen, c.Log.Level, c.DIMSE.Listen}
	if want := []string{"/file", "VARIABLE", "127.0.0.1:3", "warn", "127.0.0.1:11112"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	golden(t, "config-check", r.out)
	if again := osteonEnv(t, append(env, "OSTEON_DIR=/variable"), "config", "check"); !strings.Contains(again.out, `"/variable"`) {
		t.Errorf("OSTEON_DIR is not used: %s", again.out)
	}
}

// Every command against a ring of one node: outputs, exit codes, exported files.
func TestCommandsOnOneNode(t *testing.T) {
	dir := t.TempDir()
	a := newServed(t, dir, "a1", "a")
	at := func(args ...string) ran { return osteon(t, append(args, "--dir", a.Dir)...) }
	made := osteon(t, append([]string{"init", "--name", "a1", "--site", "a", "--json"}, a.flags()...)...)
	golden(t, "init", made.out)
	if again := osteon(t, append([]string{"init"}, a.flags()...)...); again.code != exitUsage || !strings.Contains(again.err, "a node is here already") {
		t.Errorf("init again: exit code %d: %s", again.code, again.err)
	}
	a.serve(t)
	r := &testRing{t: t, dir: dir}
	r.awaitReady(&a.testNode)
	if second := osteon(t, append([]string{"serve"}, a.flags()...)...); second.code == exitOK {
		t.Error("a second serve of the same directory runs")
	}

	one, two := noiseInstance(1, 1, 1, 60_000, 5), noiseInstance(1, 1, 2, 60_000, 5)
	r.mustStore(&a.testNode, one)
	r.awaitStudy(&a.testNode, one.study)
	golden(t, "study-show-journalled", at("study", "show", one.study, "--json").out)
	golden(t, "study-seal", at("study", "seal", one.study, "--json").out)
	r.mustStore(&a.testNode, two)
	r.eventually("both instances are known", func() bool { return r.awaitStudy(&a.testNode, one.study).Instances == 2 })
	if seal := at("study", "seal", one.study); seal.code != exitOK {
		t.Errorf("seal: exit code %d: %s", seal.code, seal.err)
	}
	for name, args := range map[string][]string{
		"study-show-sealed": {"study", "show", one.study}, "study-list": {"study", "list"},
		"study-verify": {"study", "verify", one.study}, "node-list": {"node", "list"}, "status": {"status"},
		"token-create": {"token", "create", "--site", "b"},
	} {
		asJSON := at(append(args, "--json")...)
		if asJSON.code != exitOK {
			t.Errorf("osteon %v --json: exit code %d: %s", args, asJSON.code, asJSON.err)
			continue
		}
		golden(t, name, asJSON.out)
		if plain := at(args...); plain.code != exitOK || plain.out == "" || json.Valid([]byte(plain.out)) {
			t.Errorf("osteon %v: exit code %d, %q", args, plain.code, plain.out)
		}
	}
	out := filepath.Join(dir, "out")
	exported := at("export", one.study, "--out", out, "--json")
	golden(t, "export", exported.out)
	checkExport(t, out, []instance{one, two})

	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"study", "show", "1.2.3"}, exitNotFound, "not found"},
		{[]string{"study", "verify", "1.2.3"}, exitNotFound, "not found"},
		{[]string{"study", "seal", "1.2.3"}, exitNotFound, "not found"},
		{[]string{"export", "1.2.3", "--out", filepath.Join(dir, "none")}, exitNotFound, "not found"},
		{[]string{"study", "list", "--limit", "0"}, exitUsage, "want 1 to"},
		{[]string{"token", "create", "--site", "a b"}, exitUsage, "want letters"},
		{[]string{"token", "create", "--valid=-1h"}, exitUsage, "want up to"},
		{[]string{"export", one.study, "--out", out}, exitFailed, "nothing exported"},
	} {
		if got := at(c.args...); got.code != c.code || !strings.Contains(got.err, c.says) {
			t.Errorf("osteon %v: exit code %d, %q; want %d and %q", c.args, got.code, got.err, c.code, c.says)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("the export of an unknown study made a directory")
	}
	// An export into a directory that has the second file already is done in part.
	if err := os.Remove(filepath.Join(out, "00000001.dcm")); err != nil {
		t.Fatal(err)
	}
	if got := at("export", one.study, "--out", out); got.code != exitPartly || !strings.Contains(got.err, "done in part") {
		t.Errorf("export over a file: exit code %d: %s", got.code, got.err)
	}
	checkSamples(t, r, a, at)

	// One of two packs damaged: half of the study is good.
	if code, took := a.terminate(t); code != exitOK || took > 15*time.Second {
		t.Errorf("serve ended with exit code %d after %s", code, took)
	}
	if got := at("study", "list"); got.code != exitRing {
		t.Errorf("study list with the node down: exit code %d: %s", got.code, got.err)
	}
	damage(t, a.Dir)
	a.serve(t)
	r.awaitReady(&a.testNode)
	if got := at("study", "verify", one.study); got.code != exitPartly || !strings.Contains(got.out, "1 of 2 instances good") {
		t.Errorf("verify of a damaged study: exit code %d, %s%s", got.code, got.out, got.err)
	}
}

// checkExport compares exported files with what was sent and asks DCMTK, where it is installed, whether
// they are DICOM files.
func checkExport(t *testing.T, dir string, sent []instance) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.dcm"))
	if err != nil || len(files) != len(sent) {
		t.Errorf("exported %v (%v), want %d files", files, err, len(sent))
		return
	}
	left := map[string]instance{}
	for _, in := range sent {
		left[in.uid] = in
	}
	for _, path := range files {
		got, err := fileInstance(path)
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
			continue
		}
		want, ok := left[got.uid]
		delete(left, got.uid)
		if !ok || got.syntax != want.syntax || !bytes.Equal(got.data, want.data) {
			t.Errorf("%s: %d bytes in %s, want the %d bytes in %s that were sent", filepath.Base(path), len(got.data), got.syntax, len(want.data), want.syntax)
		}
		for _, tool := range []string{"dcmftest", "dcmdump"} {
			bin, err := exec.LookPath(tool)
			if err != nil {
				t.Logf("%s is not installed", tool)
				continue
			}
			if out, err := exec.Command(bin, path).CombinedOutput(); err != nil {
				t.Errorf("%s %s: %v\n%s", tool, filepath.Base(path), err, out)
			}
		}
	}
}

// checkSamples stores real files of several transfer syntaxes and exports each study.
func checkSamples(t *testing.T, r *testRing, a *served, at func(...string) ran) {
	t.Helper()
	for _, name := range []string{"ct-small", "mr-rle", "sc-deflated", "mr-bigendian", "mr-implicit", "sc-japanese"} {
		in, err := fileInstance(filepath.Join("..", "..", "testdata", "samples", name+".dcm"))
		if err != nil {
			t.Fatal(err)
		}
		r.mustStore(&a.testNode, in)
		out := t.TempDir()
		r.awaitStudy(&a.testNode, in.study)
		if got := at("export", in.study, "--out", out); got.code != exitOK {
			t.Errorf("export of %s: exit code %d: %s", name, got.code, got.err)
			continue
		}
		if len(in.data)%2 == 1 { // a deflated data set is sent with a zero byte behind it (PS3.5 §A.5)
			in.data = append(in.data, 0)
		}
		checkExport(t, out, []instance{in})
	}
}

// damage removes the journal's segments of a stopped node, whose hot copies would hide it, and spoils one
// of its shards.
func damage(t *testing.T, dir string) {
	t.Helper()
	segments, err := os.ReadDir(filepath.Join(dir, "journal"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no journal segments: %v", err)
	}
	for _, s := range segments {
		if err := os.Remove(filepath.Join(dir, "journal", s.Name())); err != nil {
			t.Fatal(err)
		}
	}
	var shards []string
	err = filepath.WalkDir(filepath.Join(dir, "shards"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			shards = append(shards, path)
		}
		return err
	})
	if err != nil || len(shards) < 2 {
		t.Fatalf("shards: %v, %v", shards, err)
	}
	for _, path := range shards {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) < 50_000 {
			continue
		}
		raw[len(raw)/2] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no shard is large enough")
}

// foundRing makes a ring of one node a site that the test runs by itself, and waits until each votes.
func foundRing(t *testing.T, dir string, sites ...string) (*testRing, []*served) {
	t.Helper()
	r := &testRing{t: t, dir: dir}
	var nodes []*served
	for _, site := range sites {
		s := newServed(t, dir, site+"1", site)
		if len(nodes) == 0 {
			must(t, nil, append([]string{"init", "--name", s.ID, "--site", site}, s.flags()...)...)
		} else {
			word := newToken(t, &nodes[0].testNode)
			must(t, nil, append([]string{"join", word, "--name", s.ID, "--site", site}, s.flags()...)...)
		}
		s.serve(t)
		r.awaitReady(&s.testNode)
		nodes = append(nodes, s)
	}
	for _, s := range nodes {
		r.awaitStatus(&s.testNode, "sees all vote", func(s node.Status) bool { return len(votersBySite(s.Nodes)) == len(sites) })
	}
	return r, nodes
}

// SIGTERM to the leader: its open association goes on to the end, another node leads soon, no store
// elsewhere fails, and the process ends with 0.
func TestSIGTERMDrains(t *testing.T) {
	r, nodes := foundRing(t, t.TempDir(), "a", "b", "c")
	leader := r.awaitStatus(&nodes[0].testNode, "has a leader", func(s node.Status) bool { return s.Leader != "" }).Leader
	var victim *served
	var others []*testNode
	for _, s := range nodes {
		if s.ID == leader {
			victim = s
		} else {
			others = append(others, &s.testNode)
		}
	}
	stores := startTraffic(others, 1000)
	var sent []instance
	for i := range 20 {
		sent = append(sent, noiseInstance(5000, 1, i+1, 50_000, 3))
	}
	client, err := connect(context.Background(), &victim.testNode, contextFor(sent[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	send := func(in instance) {
		t.Helper()
		response, err := client.Store(context.Background(), dimse.StoreArgs{
			SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data),
		})
		if err != nil || response.Status != dimse.StatusSuccess {
			t.Fatalf("store at the draining node: status %04XH %q, %v", response.Status, response.ErrorComment, err)
		}
	}
	for _, in := range sent[:5] {
		send(in)
	}
	if err := victim.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, in := range sent[5:10] {
		send(in)
	}
	r.awaitStatus(others[0], "follows another leader", func(s node.Status) bool { return s.Leader != "" && s.Leader != leader })
	handed := time.Since(began)
	for _, in := range sent[10:] {
		send(in)
	}
	if c, err := connect(context.Background(), &victim.testNode, contextFor(sent[0])); err == nil {
		c.Close()
		t.Error("a draining node lets a new association in")
	}
	if err := client.Release(context.Background()); err != nil {
		t.Errorf("release: %v", err)
	}
	select {
	case <-victim.ended:
		victim.ended <- nil
	case <-time.After(ringPatience):
		t.Fatal("the drained node does not end")
	}
	took := time.Since(began)
	if code := victim.process.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("exit code %d, want 0", code)
	}
	t.Logf("another node led after %s, the process ended after %s", handed.Round(time.Millisecond), took.Round(time.Millisecond))
	if handed > 3*time.Second || took > 15*time.Second {
		t.Errorf("another node led after %s, the process ended after %s", handed, took)
	}
	n := stores.count()
	r.eventually("stores go on elsewhere", func() bool { return stores.count() > n+20 })
	stores.stop(t)
	for _, in := range sent {
		r.eventually("found at "+others[0].ID, func() bool {
			found, err := find(context.Background(), others[0], "IMAGE", map[dicom.Tag]string{
				dicom.StudyInstanceUID: in.study, dicom.SeriesInstanceUID: in.series, dicom.SOPInstanceUID: in.uid,
			})
			return err == nil && len(found) == 1
		})
		r.checkReadable(others[0], in)
	}

	// Without a majority the ring decides nothing and says so.
	if code, _ := nodes[slices.IndexFunc(nodes, func(s *served) bool { return s.ID == others[1].ID })].terminate(t); code != exitOK {
		t.Errorf("the second node ended with exit code %d", code)
	}
	if got := osteon(t, "token", "create", "--dir", others[0].Dir); got.code != exitRing || !strings.Contains(got.err, "no quorum") {
		t.Errorf("token create without a quorum: exit code %d: %s", got.code, got.err)
	}
	if got := osteon(t, "study", "list", "--dir", others[0].Dir); got.code != exitOK {
		t.Errorf("study list without a quorum: exit code %d: %s", got.code, got.err)
	}
}

// However osteon dev ends, no process of its ring stays.
func TestDevLeavesNoProcess(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			r := startRing(t, 2, 1)
			p := r.process
			r.process = nil // ended here
			if err := p.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			err := p.Wait()
			if signal == syscall.SIGTERM && err != nil {
				t.Errorf("osteon dev: %v", err)
			}
			for _, n := range r.nodes {
				r.eventually(fmt.Sprintf("process %d of %s is gone", n.PID, n.ID), func() bool { return !running(n.PID) })
			}
		})
	}
}

// running reports whether a process exists and is more than an exit code nobody fetched.
func running(pid int) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	after := raw[bytes.LastIndexByte(raw, ')')+1:]
	return err == nil && !bytes.HasPrefix(bytes.TrimSpace(after), []byte("Z"))
}
