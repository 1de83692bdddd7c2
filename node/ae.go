package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
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
	// Step is the one that failed: configuration, connect, associate, echo or release; empty when all is well.
	Step string `json:"step,omitempty"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
	MS   int64  `json:"ms"`
}

func (n *Node) aeRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/ae", answer(func(*http.Request) (any, error) { return append([]AE{}, n.cfg.AEs...), nil }))
	mux.HandleFunc("GET /v1/ae/log", answer(n.adminAELog))
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

// testAE calls an AE of the configuration with C-ECHO and says at which step that fails.
func (n *Node) testAE(ctx context.Context, title string) AETest {
	t := AETest{Title: title}
	for _, ae := range n.cfg.AEs {
		if ae.Title == title {
			t.Address = ae.Address
		}
	}
	began := n.env.Now()
	var err error
	if t.Step, err = n.echo(ctx, title, t.Address); err != nil {
		t.Why, t.Do = err.Error(), aeRemedies[t.Step]
	} else {
		t.OK = true
	}
	t.MS = n.env.Now().Sub(began).Milliseconds()
	return t
}

// aeRemedies is what to do when a step of a test fails.
var aeRemedies = map[string]string{
	"configuration": "name the AE with its address in aes: of the configuration of this node, and start it again",
	"connect":       "see that the AE is up, that its address is right, and that no firewall is between",
	"associate":     "register this node's title and address at the AE, and check the AE's own title",
	"echo":          "see the log of the AE",
	"release":       "see the log of the AE",
}

// echo runs the steps of a C-ECHO and returns the one that failed.
func (n *Node) echo(ctx context.Context, title, address string) (step string, err error) {
	if address == "" {
		return "configuration", errors.New("no AE of this title with an address is configured at this node")
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

// AEs lists the AEs of the node's configuration.
func (a *Admin) AEs(ctx context.Context) (list []AE, err error) {
	return list, a.call(ctx, "GET", "/v1/ae", nil, &list)
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
	return l, a.call(ctx, "GET", "/v1/ae/log?"+q.Encode(), nil, &l)
}

// TestAE makes the node call an AE of its configuration with C-ECHO.
func (a *Admin) TestAE(ctx context.Context, title string) (t AETest, err error) {
	return t, a.call(ctx, "POST", "/v1/ae/"+url.PathEscape(title)+"/test", nil, &t)
}
