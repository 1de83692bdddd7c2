package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
	"osteon/raft/catalog"
)

// aeTestPatience bounds one step of `ae test`.
const aeTestPatience = 15 * time.Second

// AELog is what `ae log` prints: what this node refused, kept in memory since it started.
type AELog struct {
	Node string `json:"node"`
	// Kept is since when the record exists: it ends with the process.
	Kept   time.Time       `json:"kept_since"`
	Events []refusal.Event `json:"events"`
}

// AETest is what `ae test` prints.
type AETest struct {
	Title   string `json:"title"`
	Address string `json:"address"`
	OK      bool   `json:"ok"`
	// Step is the one that failed: registry, connect, associate, echo or release; empty when all is well.
	Step string `json:"step,omitempty"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
	MS   int64  `json:"ms"`
}

func (n *Node) aeRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/ae", answer(func(*http.Request) (any, error) { return n.aes(), nil }))
	mux.HandleFunc("POST /v1/ae", answer(n.adminAddAE))
	mux.HandleFunc("GET /v1/ae/{title}", answer(func(r *http.Request) (any, error) { return n.showAE(r.PathValue("title")) }))
	mux.HandleFunc("DELETE /v1/ae/{title}", answer(func(r *http.Request) (any, error) {
		return struct{}{}, n.removeAE(r.Context(), r.PathValue("title"))
	}))
	mux.HandleFunc("GET /v1/ae-log", answer(n.adminAELog))
	mux.HandleFunc("POST /v1/ae/{title}/test", answer(func(r *http.Request) (any, error) {
		return n.testAE(r.Context(), r.PathValue("title")), nil
	}))
}

func (n *Node) adminAELog(r *http.Request) (any, error) {
	var since time.Time
	if text := r.URL.Query().Get("since"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("%w: since %.20q: want a time such as 1h or 30m", ErrUsage, text)
		}
		since = n.env.Now().Add(-d)
	}
	return AELog{
		Node: n.id.Name, Kept: n.started, Events: n.servers.refusals.Events(since, r.URL.Query().Get("ae")),
	}, nil
}

// ListedAE is an AE and where it is recorded.
type ListedAE struct {
	AE
	// Source is ring, for the registry that all nodes share, or file, for the configuration of this node.
	Source string `json:"source"`
	// Shadowed: the ring has a record of this title, which counts instead.
	Shadowed bool `json:"shadowed,omitempty"`
}

// The sources of AEs.
const (
	SourceRing = "ring"
	SourceFile = "file"
)

// aes lists the AEs that this node knows, the ring's first.
func (n *Node) aes() []ListedAE {
	list, seen := []ListedAE{}, map[string]bool{}
	for _, ae := range n.registry.current().list {
		l := ListedAE{AE: listed(ae.AE), Source: SourceRing, Shadowed: seen[ae.Title]}
		if seen[ae.Title] = true; ae.fromFile {
			l.Source = SourceFile
		}
		list = append(list, l)
	}
	return list
}

// showAE returns the record of a title that counts.
func (n *Node) showAE(title string) (ListedAE, error) {
	for _, ae := range n.aes() {
		if ae.Title == title {
			return ae, nil
		}
	}
	return ListedAE{}, fmt.Errorf("%w: no AE of the title %.20q is registered; osteon ae list shows those there are", ErrNotFound, title)
}

// AEAdd is what `ae add` asks for.
type AEAdd struct {
	AE
	// Replace takes the place of a record of the same title.
	Replace bool `json:"replace"`
}

func (n *Node) adminAddAE(r *http.Request) (any, error) {
	var req AEAdd
	if err := json.NewDecoder(io.LimitReader(r.Body, aeBytesMax)).Decode(&req); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	record, err := req.record()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := n.fresh(r.Context()); err != nil {
		return nil, err
	}
	known, err := n.showAE(req.Title)
	if err == nil && known.Source == SourceRing && !req.Replace {
		return nil, fmt.Errorf("%w: the AE %s is registered already; osteon ae show %s shows it, --replace takes its place", ErrUsage, req.Title, req.Title)
	}
	if err := n.do(r.Context(), catalog.PutAE{AE: record}); err != nil {
		return nil, fmt.Errorf("register the AE: %w", err)
	}
	n.env.Log.Info("AE registered", "title", record.Title, "addresses", record.Addresses, "from", record.From, "services", serviceWords(record.Services))
	return n.showAE(req.Title)
}

// aeBytesMax bounds a request for an AE: all its lists full of the longest names.
const aeBytesMax = 128 << 10

// removeAE removes a record of the ring.
func (n *Node) removeAE(ctx context.Context, title string) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	known, err := n.showAE(title)
	switch {
	case err != nil:
		return err
	case known.Source == SourceFile:
		return fmt.Errorf("%w: the AE %s is in aes: of this node's configuration; take it out there and start the node again", ErrUsage, title)
	}
	if err := n.do(ctx, catalog.RemoveAE{Title: title}); err != nil {
		return fmt.Errorf("remove the AE: %w", err)
	}
	n.env.Log.Info("AE removed", "title", title)
	return nil
}

// fresh waits until this node has applied what the ring had decided when it was asked, so that what is decided next is
// decided on what there is.
func (n *Node) fresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quorumPatience)
	defer cancel()
	index, err := n.ring.ReadIndex(ctx)
	if err != nil {
		return fmt.Errorf("the ring cannot decide anything now: %w", err)
	}
	return n.cat.WaitApplied(ctx, index)
}

// testAE calls an AE with C-ECHO, at each of its addresses until one answers, and says at which step that fails.
func (n *Node) testAE(ctx context.Context, title string) AETest {
	t := AETest{Title: title}
	addresses := n.registry.addresses(title)
	if len(addresses) == 0 {
		addresses = []string{""}
	}
	began := n.env.Now()
	var err error
	for _, t.Address = range addresses {
		if t.Step, err = n.echo(ctx, title, t.Address); err == nil {
			break
		}
	}
	if err != nil {
		t.Why, t.Do = err.Error(), aeRemedies[t.Step]
	} else {
		t.OK = true
	}
	t.MS = n.env.Now().Sub(began).Milliseconds()
	return t
}

// aeRemedies is what to do when a step of a test fails.
var aeRemedies = map[string]string{
	"registry":  "register the AE with its address: osteon ae add TITLE --address HOST:PORT",
	"connect":   "see that the AE is up, that its address is right, and that no firewall is between",
	"associate": "register this node's title and address at the AE, and check the AE's own title",
	"echo":      "see the log of the AE",
	"release":   "see the log of the AE",
}

// echo runs the steps of a C-ECHO and returns the one that failed.
func (n *Node) echo(ctx context.Context, title, address string) (step string, err error) {
	if address == "" {
		return "registry", errors.New("no AE of this title with an address is registered")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*aeTestPatience)
	defer cancel()
	connecting, stop := context.WithTimeout(ctx, aeTestPatience)
	defer stop()
	conn, err := n.env.Dial(connecting, "tcp", address)
	if err != nil {
		return "connect", err
	}
	client, err := dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: n.cfg.DIMSE.AET, CalledAE: title,
		Contexts: []dul.ProposedContext{{ID: 1, AbstractSyntax: dimse.VerificationClass, TransferSyntaxes: []string{dimse.ImplicitLittleEndian}}},
		Timers:   dul.Timers{ARTIM: aeTestPatience, Idle: aeTestPatience, Linger: time.Second},
	}})
	if err != nil {
		return "associate", err
	}
	defer client.Close()
	if err := client.Echo(ctx); err != nil {
		return "echo", err
	}
	if err := client.Release(ctx); err != nil {
		return "release", err
	}
	return "", nil
}

// AEs lists the AEs that the node knows.
func (a *Admin) AEs(ctx context.Context) (list []ListedAE, err error) {
	return list, a.call(ctx, "GET", "/v1/ae", nil, &list)
}

// AE returns the record of a title. Errors: ErrNotFound.
func (a *Admin) AE(ctx context.Context, title string) (ae ListedAE, err error) {
	return ae, a.call(ctx, "GET", "/v1/ae/"+url.PathEscape(title), nil, &ae)
}

// AddAE registers an AE with the ring and returns it as recorded. Errors: ErrUsage with every fault, ErrRing.
func (a *Admin) AddAE(ctx context.Context, add AEAdd) (ae ListedAE, err error) {
	return ae, a.call(ctx, "POST", "/v1/ae", add, &ae)
}

// RemoveAE takes an AE out of the registry. Errors: ErrNotFound, ErrUsage for one of the configuration, ErrRing.
func (a *Admin) RemoveAE(ctx context.Context, title string) error {
	var none struct{}
	return a.call(ctx, "DELETE", "/v1/ae/"+url.PathEscape(title), nil, &none)
}

// AELog returns what the node refused within since, of one title if given; zero values mean everything.
func (a *Admin) AELog(ctx context.Context, since time.Duration, title string) (l AELog, err error) {
	q := url.Values{}
	if since > 0 {
		q.Set("since", since.String())
	}
	if title != "" {
		q.Set("ae", title)
	}
	return l, a.call(ctx, "GET", "/v1/ae-log?"+q.Encode(), nil, &l)
}

// TestAE makes the node call a registered AE with C-ECHO.
func (a *Admin) TestAE(ctx context.Context, title string) (t AETest, err error) {
	return t, a.call(ctx, "POST", "/v1/ae/"+url.PathEscape(title)+"/test", nil, &t)
}
