package dicomweb

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"osteon/dicomsvc"
)

// Token is a bearer token (RFC 6750) by its hash; the secret itself is not kept.
type Token struct {
	// Name is whom the token speaks for: the name of its Principal, and what audit records show.
	Name string
	// Hash is the SHA-256 of the secret.
	Hash [sha256.Size]byte
}

// NewToken returns the Token that secret is the bearer's proof of.
func NewToken(name, secret string) Token {
	return Token{Name: name, Hash: sha256.Sum256([]byte(secret))}
}

// authenticate returns who asks. A token that is shown has to be known. Without one, only a
// request over a loopback address is let in, as the anonymous principal, where no token is asked for, and only under
// a loopback name: a web page that rebinds its own name to 127.0.0.1 must not read the archive through a browser.
func (s *Server) authenticate(r *http.Request) (dicomsvc.Principal, *problem) {
	if s.cfg.Authenticate || len(s.cfg.Tokens) > 0 || s.cfg.Registered != nil && r.Header.Get("Authorization") != "" {
		return s.bearer(r)
	}
	if !overLoopback(r) {
		return dicomsvc.Principal{}, unauthorized("no tokens are configured, so that this address serves nobody",
			"configure at least one token on this node, or ask over a loopback address")
	}
	if !s.loopbackName(r.Host) {
		return dicomsvc.Principal{}, newProblem(http.StatusForbidden, "the Host field does not name this machine",
			"ask for localhost or a loopback address, set the public root to the name used, or configure tokens")
	}
	return dicomsvc.Principal{Kind: dicomsvc.PrincipalAnonymous}, nil
}

func unauthorized(what, remedy string) *problem {
	return newProblem(http.StatusUnauthorized, what, remedy).with("WWW-Authenticate", `Bearer realm="dicomweb"`)
}

// bearer finds the token shown among those there are. All are compared, each in constant time.
func (s *Server) bearer(r *http.Request) (dicomsvc.Principal, *problem) {
	header := r.Header.Get("Authorization")
	scheme, secret, _ := strings.Cut(header, " ")
	if header == "" || !strings.EqualFold(scheme, "Bearer") || len(header) > tokenBytesMax {
		return dicomsvc.Principal{}, unauthorized("a bearer token is required", "send Authorization: Bearer <token>")
	}
	hash := sha256.Sum256([]byte(strings.TrimSpace(secret)))
	tokens := s.cfg.Tokens
	if s.cfg.Registered != nil {
		tokens = slices.Concat(tokens, s.cfg.Registered())
	}
	name := ""
	for i := range tokens {
		if subtle.ConstantTimeCompare(hash[:], tokens[i].Hash[:]) == 1 {
			name = tokens[i].Name
		}
	}
	if name == "" {
		return dicomsvc.Principal{}, unauthorized("the bearer token is not known", "check the token, or ask the administrator for a new one")
	}
	return dicomsvc.Principal{Kind: dicomsvc.PrincipalToken, Name: name}, nil
}

// authorize refuses, before a body is read, what the archive's policy does not let who do (RFC 6750 §3.1). Methods
// that no resource has are answered later.
func (s *Server) authorize(r *http.Request, who dicomsvc.Principal, t target) *problem {
	act := dicomsvc.ActionRetrieve
	switch {
	case r.Method == http.MethodPost:
		act = dicomsvc.ActionStore
	case t.resource == resStudies || t.resource == resSeries || t.resource == resInstances:
		act = dicomsvc.ActionQuery
	}
	err := s.archive.Authorize(r.Context(), who, act)
	if err == nil {
		return nil
	}
	bad := failure(err)
	if bad.status == http.StatusForbidden {
		bad.with("WWW-Authenticate", `Bearer realm="dicomweb", error="insufficient_scope"`)
	}
	return bad
}

// overLoopback tells whether the connection came in on a loopback address. What is not known is not.
func overLoopback(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	address, err := netip.ParseAddrPort(local.String())
	return err == nil && address.Addr().Unmap().IsLoopback()
}

// loopbackName tells whether host is a loopback name or address, or the name of the public root.
func (s *Server) loopbackName(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	if address, err := netip.ParseAddr(name); err == nil {
		return address.Unmap().IsLoopback()
	}
	if public, err := url.Parse(s.cfg.PublicRoot); err == nil && public.Hostname() != "" {
		return strings.EqualFold(name, public.Hostname())
	}
	return false
}
