package node

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicomweb"
	"osteon/raft/catalog"
)

// registryNode is a running node of its own ring and a client of its admin socket.
func registryNode(t *testing.T, change func(*Config)) (*running, *Admin) {
	t.Helper()
	cfg := testConfig(t, filepath.Join(t.TempDir(), "a1"))
	change(&cfg)
	if _, err := Init(t.Context(), cfg, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, cfg)
	await(t, "node ready", func() bool { return n.Ready() == nil })
	t.Cleanup(func() { n.end(t) })
	return n, Dial(cfg.Dir)
}

// TestTheRegistryCountsAtOnce: what is registered, replaced and removed counts for the next call, without a restart; the ring's
// record wins over the configuration's.
// Behaviours 3, 4.
func TestTheRegistryCountsAtOnce(t *testing.T) {
	no := false
	n, admin := registryNode(t, func(c *Config) {
		c.Promiscuous, c.DIMSE.LaxTitles = &no, true
		c.AEs = []AE{{Title: "FILE"}, {Title: "BOTH", Address: "127.0.0.1:1"}}
	})
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	near, far := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("198.51.100.5")
	may := func(title string, act dicomsvc.Action) bool {
		return n.registry.allow(dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: title}, act)
	}
	if p := n.registry.peer("CT1", near); p.Known || p.Elsewhere || may("CT1", dicomsvc.ActionStore) {
		t.Errorf("a stranger is %+v", p)
	}
	if !n.registry.peer("FILE", far).Known || !may("FILE", dicomsvc.ActionRetrieve) {
		t.Error("an AE of the configuration is not known")
	}
	ct := AE{Title: "CT1", Address: "ct1:104", From: []string{"192.0.2.0/24"}, Services: []string{"store"}, Aliases: []string{"OLD"}, Issuer: "A"}
	if _, err := admin.AddAE(ctx, AEAdd{AE: ct}); err != nil {
		t.Fatal(err)
	}
	p := n.registry.peer("CT1", near)
	if !p.Known || p.Issuer != "A" || !slices.Equal(p.Aliases, []string{"OLD"}) || !slices.Equal(n.registry.addresses("CT1"), []string{"ct1:104"}) {
		t.Errorf("registered: %+v", p)
	}
	if p := n.registry.peer("CT1", far); p.Known || !p.Elsewhere {
		t.Errorf("from elsewhere: %+v", p)
	}
	if p := n.registry.peer("CT1", netip.Addr{}); p.Known {
		t.Errorf("from nowhere: %+v", p)
	}
	if !n.registry.peer("ct1", near).Known {
		t.Error("titles are lax, and another case is a stranger")
	}
	if !may("CT1", dicomsvc.ActionStore) || may("CT1", dicomsvc.ActionQuery) || may("CT1", dicomsvc.ActionAdmin) {
		t.Error("not the services of the record")
	}
	if _, err := admin.AddAE(ctx, AEAdd{AE: AE{Title: "CT1"}}); !errors.Is(err, ErrUsage) {
		t.Errorf("registered twice: %v", err)
	}
	ct.From = nil
	if _, err := admin.AddAE(ctx, AEAdd{AE: ct, Replace: true}); err != nil || !n.registry.peer("CT1", far).Known {
		t.Errorf("replaced: %v", err)
	}
	if _, err := admin.AddAE(ctx, AEAdd{AE: AE{Title: "BOTH", Address: "both:104"}}); err != nil || !slices.Equal(n.registry.addresses("BOTH"), []string{"both:104"}) {
		t.Errorf("the configuration's record counts before the ring's: %v", err)
	}
	var sources []string
	list, err := admin.AEs(ctx)
	for _, ae := range list {
		source := ae.Title + " " + ae.Source
		if ae.Shadowed {
			source += " shadowed"
		}
		sources = append(sources, source)
	}
	if want := []string{"BOTH ring", "CT1 ring", "FILE file", "BOTH file shadowed"}; err != nil || !reflect.DeepEqual(sources, want) {
		t.Errorf("list %q, %v; want %q", sources, err, want)
	}
	for title, want := range map[string]error{"CT1": nil, "FILE": ErrUsage, "NOBODY": ErrNotFound} {
		if err := admin.RemoveAE(ctx, title); !errors.Is(err, want) {
			t.Errorf("remove %s: %v, want %v", title, err, want)
		}
	}
	if n.registry.peer("CT1", near).Known || may("CT1", dicomsvc.ActionStore) {
		t.Error("removed, and known still")
	}
}

// TestHTTPTokensOfTheRing: a token is good from when it is created until it expires or is revoked, for its role; only its hash is
// kept.
func TestHTTPTokensOfTheRing(t *testing.T) {
	n, admin := registryNode(t, func(c *Config) { c.HTTP.Tokens = []string{"0123456789abcdef"} })
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	now := time.Now()
	n.registry.now = func() time.Time { return now }
	good := func(word string) bool {
		return slices.ContainsFunc(n.registry.tokens(), func(k dicomweb.Token) bool { return k.Hash == dicomweb.NewToken("", word).Hash })
	}
	may := func(name string, act dicomsvc.Action) bool {
		return n.registry.allow(dicomsvc.Principal{Kind: dicomsvc.PrincipalToken, Name: name}, act)
	}
	short, err := admin.CreateHTTPToken(ctx, HTTPTokenRequest{Name: "short", Roles: []string{"read"}, Valid: Duration(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	long, err := admin.CreateHTTPToken(ctx, HTTPTokenRequest{Name: "long", Roles: []string{"store", "admin"}})
	if err != nil {
		t.Fatal(err)
	}
	if !good(short.Token) || !good(long.Token) || !good("0123456789abcdef") || good("another") {
		t.Error("not the tokens that were created")
	}
	if !may("short", dicomsvc.ActionQuery) || may("short", dicomsvc.ActionStore) || !may("long", dicomsvc.ActionRetrieve) || !may("config-0", dicomsvc.ActionStore) || may("nobody", dicomsvc.ActionQuery) {
		t.Error("not what the roles say")
	}
	recorded, err := n.cat.Bearers(ctx)
	if want := dicomweb.NewToken("", long.Token).Hash; err != nil || len(recorded) != 2 || recorded[0].Hash != want || recorded[0].Roles != catalog.RoleStore|catalog.RoleAdmin {
		t.Errorf("recorded %+v, %v", recorded, err)
	}
	now = now.Add(2 * time.Hour)
	if good(short.Token) || !good(long.Token) {
		t.Error("expiry does not count")
	}
	if err := admin.RevokeHTTPToken(ctx, "long"); err != nil || good(long.Token) || may("long", dicomsvc.ActionQuery) {
		t.Errorf("revoked, and good still: %v", err)
	}
	if err := admin.RevokeHTTPToken(ctx, "long"); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}
}
