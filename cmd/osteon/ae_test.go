package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

// newConfigured is newServed with a configuration file.
func newConfigured(t testing.TB, yaml string) *served {
	t.Helper()
	dir := t.TempDir()
	a := newServed(t, dir, "a1", "a")
	a.config = filepath.Join(dir, "osteon.yaml")
	if err := os.WriteFile(a.config, []byte(strings.ReplaceAll(yaml, "SELF", a.DIMSE)), 0o600); err != nil {
		t.Fatal(err)
	}
	if made := osteon(t, append([]string{"init", "--name", "a1", "--site", "a"}, a.flags()...)...); made.code != exitOK {
		t.Fatalf("init: %s", made.err)
	}
	a.serve(t)
	r := &testRing{t: t, dir: dir}
	r.awaitReady(&a.testNode)
	return a
}

// callFrom opens an association under a title from a local address, "" for any.
func callFrom(ctx context.Context, n *testNode, from, calling, called string, contexts []dul.ProposedContext) (*dimse.Client, error) {
	d := net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.DialContext(ctx, "tcp", n.DIMSE)
	if err != nil {
		return nil, err
	}
	return dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: calling, CalledAE: called, Contexts: contexts, Timers: dul.Timers{Linger: 200 * time.Millisecond},
	}})
}

// TestAELogTellsEveryRefusal: what a built node refuses over DIMSE and HTTP is in `ae log` with the code that the
// peer was sent, why, and what to do, in one line of the log, and without a word of the objects.
func TestAELogTellsEveryRefusal(t *testing.T) {
	a := newConfigured(t, `
promiscuous: false
dimse: {associations_per_ae: 2}
http: {tokens: ["0123456789abcdef"]}
aes:
- {title: CT1}
- {title: OSTEON, address: "SELF"}
- {title: OTHER, address: "SELF"}
- {title: GONE, address: "127.0.0.1:1"}
`)
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	n := &a.testNode
	in := noiseInstance(1, 1, 1, 20_000, 5)
	const canary = "Test^Study1" // the patient of noiseInstance

	for _, c := range []struct{ calling, called, code string }{
		{"STRANGER", "OSTEON", "1/1/3"}, {"STRANGER", "OSTEON", "1/1/3"}, {"CT1", "ANOTHER", "1/1/7"}, {"A\x1b[2J", "OSTEON", "1/1/3"},
	} {
		var rej *dul.Rejection
		if _, err := callFrom(ctx, n, "", c.calling, c.called, contextFor(in)); !errors.As(err, &rej) || rej.Code() != c.code {
			t.Errorf("%q calls %q: got %v, want %s", c.calling, c.called, err, c.code)
		}
	}
	// One association too many of one title.
	var open []*dimse.Client
	for i := range 3 {
		client, err := callFrom(ctx, n, "", "CT1", "OSTEON", contextFor(in))
		var rej *dul.Rejection
		if i < 2 && err != nil || i == 2 && (!errors.As(err, &rej) || rej.Code() != "2/3/2") {
			t.Fatalf("association %d: %v", i, err)
		}
		open = append(open, client)
	}
	for uid, c := range map[string]struct {
		data   []byte
		status uint16
	}{
		in.uid:  {in.data[:len(in.data)/2], 0xC000}, // cut short
		"9.9.9": {in.data, 0xA900},                  // another UID than the command's
	} {
		response, err := open[0].Store(ctx, dimse.StoreArgs{SOPClass: in.class, SOPInstance: uid, Syntax: in.syntax, Data: bytes.NewReader(c.data)})
		if err != nil || response.Status != c.status || response.ErrorComment == "" || len(response.OffendingElements) == 0 {
			t.Errorf("store: %04X %q %v, %v; want %04X with comment and element", response.Status, response.ErrorComment, response.OffendingElements, err, c.status)
		}
	}
	open[1].Abort()
	if err := open[0].Release(ctx); err != nil {
		t.Error(err)
	}
	for _, client := range open[:2] {
		client.Close()
	}
	if client, err := callFrom(ctx, n, "", "CT1", "OSTEON", []dul.ProposedContext{{ID: 1, AbstractSyntax: "1.2.840.10008.5.1.1.9", TransferSyntaxes: []string{in.syntax}}}); err == nil {
		client.Release(ctx) // no context was accepted; it may be ended all the same
		client.Close()
	}
	// What means another port.
	for _, noise := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		conn, err := net.Dial("tcp", n.DIMSE)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, noise)
		conn.SetReadDeadline(time.Now().Add(ringPatience))
		if b, err := io.ReadAll(conn); err != nil || len(b) != 10 || b[0] != 7 {
			t.Errorf("%q: answered % x, %v; want an A-ABORT", noise, b, err)
		}
		conn.Close()
	}
	if r := httpStatus(t, n, "/dicom-web/studies", "Bearer nonsense"); r != 401 {
		t.Errorf("unknown token: status %d", r)
	}

	at := func(args ...string) ran { return osteon(t, append(args, "--dir", a.Dir)...) }
	r := &testRing{t: t, dir: a.Dir}
	var shown ran
	r.eventually("every event is in ae log", func() bool {
		shown = at("ae", "log", "--json")
		var l node.AELog
		json.Unmarshal([]byte(shown.out), &l)
		return len(l.Events) >= 11
	})
	golden(t, "ae-log", sortedEvents(t, shown.out))
	for _, text := range []string{shown.out, a.stderr.String()} {
		if strings.Contains(text, canary) || strings.Contains(text, in.uid) || strings.Contains(text, "\x1b") {
			t.Errorf("names a patient, an instance or holds an escape: %s", text)
		}
	}
	var l node.AELog
	if err := json.Unmarshal([]byte(shown.out), &l); err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Events {
		if e.Why == "" || e.Do == "" || e.Words == "" || e.Count < 1 || e.From != "127.0.0.1" {
			t.Errorf("incomplete: %+v", e)
		}
		why, _ := json.Marshal(e.Why)
		if !strings.Contains(a.stderr.String(), `"msg":"refused"`) || !strings.Contains(a.stderr.String(), string(why)) {
			t.Errorf("no line in the log says %q", e.Why)
		}
	}
	if plain := at("ae", "log", "--ae", "STRANGER", "--since", "1h"); !strings.Contains(plain.out, "1/1/3 rejected-permanent, DICOM UL service-user, calling-AE-title-not-recognized") ||
		!strings.Contains(plain.out, "2 times") || strings.Contains(plain.out, "1/1/7") {
		t.Errorf("ae log --ae STRANGER: %s%s", plain.out, plain.err)
	}

	golden(t, "ae-list", strings.ReplaceAll(at("ae", "list", "--json").out, n.DIMSE, "SELF"))
	for title, c := range map[string]struct {
		code int
		step string
	}{"OSTEON": {exitOK, ""}, "OTHER": {exitFailed, "associate"}, "GONE": {exitFailed, "connect"}, "NOBODY": {exitFailed, "registry"}, "CT1": {exitFailed, "registry"}} {
		got := at("ae", "test", title, "--json")
		var test node.AETest
		if err := json.Unmarshal([]byte(got.out), &test); err != nil || got.code != c.code || test.Step != c.step || test.OK != (c.step == "") || !test.OK && (test.Why == "" || test.Do == "") {
			t.Errorf("ae test %s: exit code %d, %+v, %v; want %d at step %q", title, got.code, test, err, c.code, c.step)
		}
		if title == "OTHER" {
			golden(t, "ae-test", got.out)
		}
	}
}

// sortedEvents orders the events of `ae log --json` by what they say: which of two was the later may differ.
func sortedEvents(t *testing.T, text string) string {
	t.Helper()
	var l map[string]any
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	list, _ := l["events"].([]any)
	sortBy(list, func(e any) string {
		return fmt.Sprint(e.(map[string]any)["what"], e.(map[string]any)["code"], e.(map[string]any)["why"], e.(map[string]any)["calling"])
	})
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sortBy(list []any, key func(any) string) {
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(key(a), key(b)) })
}

// httpStatus asks a node with an Authorization field and returns the status.
func httpStatus(t *testing.T, n *testNode, path, authorization string) int {
	t.Helper()
	request, err := http.NewRequest("GET", "http://"+n.HTTP+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", authorization)
	response, err := (&http.Client{Timeout: ringPatience}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}
