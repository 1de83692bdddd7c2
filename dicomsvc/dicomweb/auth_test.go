package dicomweb

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"osteon/dicomsvc"
)

// TestRegisteredTokens: tokens of a registry come and go while the server runs; a token that is shown is looked at over
// loopback, too, where none is asked for.
func TestRegisteredTokens(t *testing.T) {
	var registered atomic.Pointer[[]Token]
	registered.Store(&[]Token{NewToken("viewer", "secret-1")})
	for _, always := range []bool{false, true} {
		s := newService(t, func(c *Config, _ *fakeArchive) {
			c.Registered, c.Authenticate = func() []Token { return *registered.Load() }, always
		})
		anonymous := 200
		if always {
			anonymous = 401
		}
		s.get(t, "/studies").want(t, anonymous)
		s.get(t, "/studies", "Authorization", "Bearer secret-1").want(t, 200)
		if last := s.archive.principal[len(s.archive.principal)-1]; last.Kind != dicomsvc.PrincipalToken || last.Name != "viewer" {
			t.Errorf("principal %+v", last)
		}
		registered.Store(&[]Token{NewToken("modality", "secret-2")})
		s.get(t, "/studies", "Authorization", "Bearer secret-1").want(t, 401)
		s.get(t, "/studies", "Authorization", "Basic secret-2").want(t, 401)
		s.get(t, "/studies", "Authorization", "Bearer secret-2").want(t, 200)
		registered.Store(&[]Token{NewToken("viewer", "secret-1")})
	}
}

// TestWrongRoleIsForbidden: a token that is known and not good for what is asked is 403 with the scope named as the fault (RFC
// 6750 §3.1), before the body is read; the archive is asked nothing.
func TestWrongRoleIsForbidden(t *testing.T) {
	var asked []dicomsvc.Action
	s := newService(t, func(c *Config, a *fakeArchive) {
		c.Tokens = []Token{NewToken("viewer", "secret-1")}
		a.deny = func(p dicomsvc.Principal, act dicomsvc.Action) bool {
			if p.Name != "viewer" {
				t.Errorf("asked about %+v", p)
			}
			asked = append(asked, act)
			return true
		}
	})
	in := s.load(t, fileCT1)[0]
	for _, tt := range []struct {
		method, path string
		act          dicomsvc.Action
	}{
		{"POST", "/studies", dicomsvc.ActionStore}, {"POST", "/studies/1.2", dicomsvc.ActionStore}, {"GET", "/studies", dicomsvc.ActionQuery},
		{"GET", "/studies/1.2/series", dicomsvc.ActionQuery}, {"HEAD", "/instances", dicomsvc.ActionQuery}, {"GET", "/studies/1.2", dicomsvc.ActionRetrieve},
		{"GET", "/studies/1.2/metadata", dicomsvc.ActionRetrieve}, {"GET", urlOf(in) + "/frames/1", dicomsvc.ActionRetrieve},
	} {
		asked = nil
		r := s.do(t, tt.method, tt.path, nil, "Authorization", "Bearer secret-1").want(t, http.StatusForbidden)
		if !strings.Contains(r.Header.Get("WWW-Authenticate"), "insufficient_scope") {
			t.Errorf("%s %s: WWW-Authenticate %q", tt.method, tt.path, r.Header.Get("WWW-Authenticate"))
		}
		if len(asked) != 1 || asked[0] != tt.act {
			t.Errorf("%s %s: asked for %v, want %s", tt.method, tt.path, asked, tt.act)
		}
	}
	if n := len(s.archive.principal); n != 1 { // load's own
		t.Errorf("the archive was asked %d times", n-1)
	}
}
