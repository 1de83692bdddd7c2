package dicomweb

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
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

// authenticate returns who asks. Where tokens are configured one must be shown. Without any, only a
// request over a loopback address is let in, as the anonymous principal, and only under a loopback name:
// a web page that rebinds its own name to 127.0.0.1 must not read the archive through a browser.
func (s *Server) authenticate(r *http.Request) (dicomsvc.Principal, *problem) {
	if len(s.cfg.Tokens) > 0 {
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

// bearer finds the token shown among those configured. All are compared, each in constant time.
func (s *Server) bearer(r *http.Request) (dicomsvc.Principal, *problem) {
	header := r.Header.Get("Authorization")
	scheme, secret, _ := strings.Cut(header, " ")
	if header == "" || !strings.EqualFold(scheme, "Bearer") || len(header) > tokenBytesMax {
		return dicomsvc.Principal{}, unauthorized("a bearer token is required", "send Authorization: Bearer <token>")
	}
	hash := sha256.Sum256([]byte(strings.TrimSpace(secret)))
	found := -1
	for i := range s.cfg.Tokens {
		if subtle.ConstantTimeCompare(hash[:], s.cfg.Tokens[i].Hash[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return dicomsvc.Principal{}, unauthorized("the bearer token is not known", "check the token, or ask the administrator for a new one")
	}
	return dicomsvc.Principal{Kind: dicomsvc.PrincipalToken, Name: s.cfg.Tokens[found].Name}, nil
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
