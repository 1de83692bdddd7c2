package node

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"osteon/raft/catalog"
)

const (
	// bearerPrefix begins every HTTP token, so that one found in a file or a log is known for what it is.
	bearerPrefix = "osteon-http-1."
	// bearerSecretBytes is the random part.
	bearerSecretBytes = 32
)

// roles are the words for the roles of HTTP tokens, in the order of their bits.
var roles = []string{"read", "store", "admin"}

func rolesOf(words []string) (bits catalog.Roles, err error) {
	for _, word := range words {
		i := slices.Index(roles, word)
		if i < 0 {
			return 0, fmt.Errorf("%.20q is no role: want some of %s", word, strings.Join(roles, ", "))
		}
		bits |= 1 << i
	}
	if bits == 0 {
		return 0, errors.New("a token needs a role: some of " + strings.Join(roles, ", "))
	}
	return bits, nil
}

func roleWords(bits catalog.Roles) (words []string) {
	for i, word := range roles {
		if bits&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	return words
}

// HTTPToken is what lists show of an HTTP token: never the token.
type HTTPToken struct {
	Name    string     `json:"name"`
	Roles   []string   `json:"roles"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
}

// NewHTTPToken is a token and, this once, the word that its bearer shows.
type NewHTTPToken struct {
	HTTPToken
	Token string `json:"token"`
}

// HTTPTokenRequest is what `token create --http` asks for.
type HTTPTokenRequest struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
	// Valid is how long the token may be used; zero: until it is revoked.
	Valid Duration `json:"valid"`
}

func (n *Node) bearerRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/http-tokens", answer(func(r *http.Request) (any, error) { return n.bearers(r.Context()) }))
	mux.HandleFunc("POST /v1/http-tokens", answer(n.adminCreateBearer))
	mux.HandleFunc("DELETE /v1/http-tokens/{name}", answer(func(r *http.Request) (any, error) {
		return struct{}{}, n.revokeBearer(r.Context(), r.PathValue("name"))
	}))
}

func (n *Node) bearers(ctx context.Context) ([]HTTPToken, error) {
	recorded, err := n.cat.Bearers(ctx)
	list := make([]HTTPToken, 0, len(recorded))
	for _, t := range recorded {
		list = append(list, listedToken(t))
	}
	return list, err
}

func listedToken(t catalog.Bearer) HTTPToken {
	l := HTTPToken{Name: t.Name, Roles: roleWords(t.Roles), Created: t.Created}
	if !t.Expires.IsZero() {
		l.Expires = &t.Expires
	}
	return l
}

func (n *Node) adminCreateBearer(r *http.Request) (any, error) {
	var req HTTPTokenRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&req); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return n.createBearer(r.Context(), req)
}

// createBearer records an HTTP token and returns the word, of which only the SHA-256 stays.
func (n *Node) createBearer(ctx context.Context, req HTTPTokenRequest) (t NewHTTPToken, err error) {
	if err := checkName(req.Name); err != nil {
		return t, err
	}
	if strings.HasPrefix(req.Name, fileTokenPrefix) {
		return t, fmt.Errorf("%w: name %s: names that begin with %s are those of http.tokens in the configuration", ErrUsage, req.Name, fileTokenPrefix)
	}
	bits, err := rolesOf(req.Roles)
	if err != nil {
		return t, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if req.Valid < 0 {
		return t, fmt.Errorf("%w: validity %s is negative", ErrUsage, time.Duration(req.Valid))
	}
	secret := make([]byte, bearerSecretBytes)
	if _, err := io.ReadFull(n.env.Rand, secret); err != nil {
		return t, err
	}
	t.Token = bearerPrefix + base64.RawURLEncoding.EncodeToString(secret)
	record := catalog.Bearer{Name: req.Name, Hash: sha256.Sum256([]byte(t.Token)), Roles: bits, Created: n.env.Now().UTC().Truncate(time.Second)}
	if req.Valid > 0 {
		record.Expires = record.Created.Add(time.Duration(req.Valid))
	}
	if err := n.fresh(ctx); err != nil {
		return t, err
	}
	err = n.do(ctx, catalog.PutBearer{Bearer: record})
	if errors.Is(err, catalog.ErrRaced) {
		return t, fmt.Errorf("%w: an HTTP token of the name %s exists; osteon token revoke %s first, or choose another name", ErrUsage, req.Name, req.Name)
	}
	if err != nil {
		return t, fmt.Errorf("record the token: %w", err)
	}
	n.env.Log.Info("HTTP token created", "name", record.Name, "roles", roleWords(bits))
	t.HTTPToken = listedToken(record)
	return t, nil
}

func (n *Node) revokeBearer(ctx context.Context, name string) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	list, err := n.bearers(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(t HTTPToken) bool { return t.Name == name }) {
		return fmt.Errorf("%w: no HTTP token of the name %.60q; osteon token list shows those there are", ErrNotFound, name)
	}
	if err := n.do(ctx, catalog.RemoveBearer{Name: name}); err != nil {
		return fmt.Errorf("revoke the token: %w", err)
	}
	n.env.Log.Info("HTTP token revoked", "name", name)
	return nil
}

// HTTPTokens lists the HTTP tokens of the ring.
func (a *Admin) HTTPTokens(ctx context.Context) (list []HTTPToken, err error) {
	return list, a.call(ctx, "GET", "/v1/http-tokens", nil, &list)
}

// CreateHTTPToken issues an HTTP token. Errors: ErrUsage, ErrRing.
func (a *Admin) CreateHTTPToken(ctx context.Context, req HTTPTokenRequest) (t NewHTTPToken, err error) {
	return t, a.call(ctx, "POST", "/v1/http-tokens", req, &t)
}

// RevokeHTTPToken ends the use of an HTTP token at once. Errors: ErrNotFound, ErrRing.
func (a *Admin) RevokeHTTPToken(ctx context.Context, name string) error {
	var none struct{}
	return a.call(ctx, "DELETE", "/v1/http-tokens/"+url.PathEscape(name), nil, &none)
}
