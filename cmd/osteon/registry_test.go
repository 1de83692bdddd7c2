package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

// strictPair starts a ring of two nodes that take calls and requests of those they know only.
func strictPair(t *testing.T) (r *testRing, a, b *served) {
	t.Helper()
	dir := t.TempDir()
	r = &testRing{t: t, dir: dir}
	a, b = newServed(t, dir, "a1", "a"), newServed(t, dir, "b1", "b")
	for _, s := range []*served{a, b} {
		s.config = filepath.Join(dir, s.ID+".yaml")
		if err := os.WriteFile(s.config, []byte("promiscuous: false\nhttp: {auth: true}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must(t, nil, append([]string{"init", "--name", "a1", "--site", "a"}, a.flags()...)...)
	a.serve(t)
	r.awaitReady(&a.testNode)
	must(t, nil, append([]string{"join", newToken(t, &a.testNode), "--name", "b1", "--site", "b"}, b.flags()...)...)
	b.serve(t)
	r.awaitReady(&b.testNode)
	return r, a, b
}

// rejected calls a node and returns the code of the rejection, "" when the association opens, and what opened.
func rejected(t *testing.T, n *testNode, from, calling, called string, contexts []dul.ProposedContext) (code string, open []dul.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	client, err := callFrom(ctx, n, from, calling, called, contexts)
	var rej *dul.Rejection
	switch {
	case errors.As(err, &rej):
		return rej.Code(), nil
	case err != nil:
		t.Fatalf("%s calls %s: %v", calling, n.ID, err)
	}
	defer client.Close()
	open = client.Contexts()
	client.Release(ctx)
	return "", open
}

// TestAERegistryOfTheRing: an AE that is registered at one node stores at another under an alias, is a C-MOVE destination
// there for DCMTK, is refused from an address that is not its own and for a service that it may not use, and is a stranger
// again at once when it was removed at the other node.
// Behaviours 3, 4.
func TestAERegistryOfTheRing(t *testing.T) {
	r, a, b := strictPair(t)
	peer := startStorescp(t, "DEST")
	at := func(s *served, args ...string) ran { return osteon(t, append(args, "--dir", s.Dir)...) }
	echo := []dul.ProposedContext{{ID: 1, AbstractSyntax: dimse.VerificationClass, TransferSyntaxes: []string{dimse.ImplicitLittleEndian}}}
	if code, _ := rejected(t, &b.testNode, "", "CT1", "OSTEON", echo); code != "1/1/3" {
		t.Errorf("before it was registered: %q", code)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"CT1", "--from", "127.0.0.1", "--allow", "store", "--alias", "OLDPACS"}, exitOK, ""},
		{[]string{"VIEWER", "--from", "127.0.0.1", "--allow", "query,retrieve", "--issuer", "HOSPITAL A"}, exitOK, ""},
		{[]string{"DEST", "--address", "127.0.0.1:1", "--address", peer.address, "--allow", "commitment"}, exitOK, ""},
		{[]string{"CT1", "--from", "any"}, exitUsage, "registered already"},
		{[]string{"CT2"}, exitUsage, "from where may CT2 call?"},
		{[]string{"CT2", "--from", "nowhere", "--allow", "print"}, exitUsage, "services:"},
		{[]string{"SEVENTEEN LETTERS", "--from", "any"}, exitUsage, "1 to 16 characters"},
	} {
		if got := at(a, append([]string{"ae", "add"}, c.args...)...); got.code != c.code || !strings.Contains(got.err, c.says) {
			t.Fatalf("ae add %v: exit code %d: %s", c.args, got.code, got.err)
		}
	}
	r.eventually("the registry is at the other node", func() bool { return at(b, "ae", "show", "DEST").code == exitOK })
	golden(t, "ae-list-ring", strings.ReplaceAll(at(b, "ae", "list", "--json").out, peer.address, "PEER"))
	if test := at(b, "ae", "test", "DEST"); test.code != exitOK {
		t.Errorf("ae test: %s%s", test.out, test.err)
	}

	sample := "../../testdata/samples/ct-small.dcm"
	host, port, _ := net.SplitHostPort(b.DIMSE)
	run := func(program string, args ...string) (string, error) {
		cmd := exec.Command(dcmtkPath(t, program), args...)
		cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("storescu", "-aet", "CT1", "-aec", "OLDPACS", host, port, sample); err != nil {
		t.Fatalf("storescu: %v\n%s", err, out)
	}
	var list []node.StudyLine
	if must(t, &list, "study", "list", "--dir", b.Dir); len(list) != 1 {
		t.Fatalf("%d studies are stored, want 1", len(list))
	}
	study := list[0].Study
	move := func(calling string) (string, error) {
		return run("movescu", "-v", "-S", "-aet", calling, "-aec", "OSTEON", "-aem", "DEST", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="+study, host, port)
	}
	if out, err := move("VIEWER"); err != nil {
		t.Fatalf("movescu: %v\n%s", err, out)
	}
	if files, _ := os.ReadDir(peer.dir); len(files) != 1 {
		t.Errorf("%d files arrived, want 1", len(files))
	}

	// From elsewhere, and for what it may not use.
	if code, _ := rejected(t, &b.testNode, "127.0.0.2", "CT1", "OSTEON", echo); code != "1/1/3" {
		t.Errorf("from another address: %q", code)
	}
	find := append(echo, dul.ProposedContext{ID: 3, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dimse.ImplicitLittleEndian}})
	if code, open := rejected(t, &b.testNode, "127.0.0.1", "CT1", "OSTEON", find); code != "" || len(open) != 1 || open[0].ID != 1 {
		t.Errorf("a query of one that may store only: %q, %+v", code, open)
	}
	if out, err := run("storescu", "-aet", "VIEWER", "-aec", "OSTEON", host, port, sample); err == nil {
		t.Errorf("a store of one that may not:\n%s", out)
	}
	for _, text := range []string{"registered for other addresses", "1 user-rejection"} {
		if shown := at(b, "ae", "log"); !strings.Contains(shown.out, text) {
			t.Errorf("ae log does not say %q:\n%s", text, shown.out)
		}
	}

	// Gone at every node.
	for title, code := range map[string]int{"DEST": exitOK, "CT1": exitOK, "NOBODY": exitNotFound} {
		if got := at(b, "ae", "remove", title); got.code != code {
			t.Errorf("ae remove %s: exit code %d: %s", title, got.code, got.err)
		}
	}
	if out, err := move("VIEWER"); err == nil || !strings.Contains(strings.ToLower(out), "0xa801") && !strings.Contains(out, "MoveDestinationUnknown") {
		t.Errorf("movescu to a destination that was removed: %v\n%s", err, out)
	}
	if code, _ := rejected(t, &b.testNode, "127.0.0.1", "CT1", "OSTEON", echo); code != "1/1/3" {
		t.Errorf("after it was removed: %q", code)
	}
	r.eventually("it is removed at the other node", func() bool {
		code, _ := rejected(t, &a.testNode, "127.0.0.1", "CT1", "OSTEON", echo)
		return code == "1/1/3"
	})
	checkHTTPTokens(t, r, a, b)
}

// checkHTTPTokens: a token that is made at one node is good at the other, for what its role says, until it is revoked; the
// word is nowhere in logs or files.
func checkHTTPTokens(t *testing.T, r *testRing, a, b *served) {
	t.Helper()
	create := func(s *served, args ...string) ran {
		return osteon(t, append([]string{"token", "create", "--dir", s.Dir, "--json"}, args...)...)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--http", "--name", "viewer"}, "--role"}, {[]string{"--role", "read"}, "add --http"},
		{[]string{"--http", "--name", "viewer", "--role", "write"}, "no role"}, {[]string{"--http", "--name", "config-0", "--role", "read"}, "config-"},
	} {
		if got := create(a, c.args...); got.code != exitUsage || !strings.Contains(got.err, c.says) {
			t.Errorf("token create %v: exit code %d: %s", c.args, got.code, got.err)
		}
	}
	words := map[string]string{}
	for _, role := range []string{"read", "store", "admin"} {
		var made node.NewHTTPToken
		got := create(a, "--http", "--name", role+"er", "--role", role)
		if err := json.Unmarshal([]byte(got.out), &made); err != nil || made.Token == "" {
			t.Fatalf("token create: %v: %s%s", err, got.out, got.err)
		}
		words[role] = made.Token
	}
	if got := create(b, "--http", "--name", "reader", "--role", "admin"); got.code != exitUsage || !strings.Contains(got.err, "exists") {
		t.Errorf("a second token of a name: exit code %d: %s", got.code, got.err)
	}
	golden(t, "token-list", osteon(t, "token", "list", "--json", "--dir", b.Dir).out)
	ask := func(method, token string) int {
		request, err := http.NewRequest(method, "http://"+b.HTTP+"/dicom-web/studies", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := (&http.Client{Timeout: ringPatience}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode
	}
	const unread = 415 // a store without a body that is let in
	for _, c := range []struct {
		role      string
		get, post int
	}{{"", 401, 401}, {"read", 200, 403}, {"store", 403, unread}, {"admin", 200, unread}} {
		if get, post := ask("GET", words[c.role]), ask("POST", words[c.role]); get != c.get || post != c.post {
			t.Errorf("role %q: GET %d, POST %d; want %d, %d", c.role, get, post, c.get, c.post)
		}
	}
	must(t, nil, "token", "revoke", "reader", "--dir", a.Dir)
	if again := osteon(t, "token", "revoke", "reader", "--dir", a.Dir); again.code != exitNotFound {
		t.Errorf("revoked twice: exit code %d", again.code)
	}
	r.eventually("the token is good no more", func() bool { return ask("GET", words["read"]) == 401 })
	for _, s := range []*served{a, b} {
		said := s.stderr.String()
		for role, word := range words {
			if strings.Contains(said, word) {
				t.Errorf("the log of %s holds the token of role %s", s.ID, role)
			}
		}
		if !strings.Contains(said, "registered AEs") {
			t.Errorf("%s does not say at its start who may call", s.ID)
		}
	}
	if !strings.Contains(b.stderr.String(), "storeer") {
		t.Errorf("no record at %s names the token that was denied", b.ID)
	}
}
