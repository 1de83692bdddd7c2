package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicomweb"
	"osteon/dicomsvc/scp"
	"osteon/raft/catalog"
)

// registry answers who is known here and may do what: the AEs and HTTP tokens of the catalog, and those of this
// node's configuration besides. A record of the catalog wins over one of the configuration with the same title. What
// the catalog applies counts for the next association, call and request. It is safe for concurrent use.
type registry struct {
	catalog     *catalog.Catalog
	file        []AE
	fileTokens  []dicomweb.Token
	promiscuous bool
	lax         bool // titles are compared regardless of case
	now         func() time.Time
	log         *slog.Logger

	mu sync.Mutex // held while the catalog is read, so that a change is read once

	book    *book
	version uint64
}

// book is one state of the registry. It is not changed once it is made.
type book struct {
	aes     map[string]*knownAE // by title, by folded title where titles are lax
	list    []*knownAE          // the catalog's in the order of their titles, then the configuration's
	tokens  []catalog.Bearer
	bearers map[string]catalog.Bearer // by name
}

// knownAE is an AE ready to be compared with.
type knownAE struct {
	catalog.AE
	from     []netip.Prefix
	fromFile bool
}

func newRegistry(c *core) *registry {
	r := &registry{
		catalog: c.cat, file: c.cfg.AEs, promiscuous: c.cfg.promiscuous(), lax: c.cfg.DIMSE.LaxTitles, now: c.env.Now, log: c.env.Log,
	}
	for i, t := range c.cfg.HTTP.Tokens {
		r.fileTokens = append(r.fileTokens, dicomweb.NewToken(fmt.Sprintf("%s%d", fileTokenPrefix, i), t))
	}
	return r
}

// fileTokenPrefix begins the names of the tokens of the configuration; no other token may have such a name.
const fileTokenPrefix = "config-"

// current returns the registry as the catalog has it now. When the catalog cannot be read, what was read last stays.
func (r *registry) current() *book {
	version, err := r.catalog.RegistryVersion()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.book != nil && (err != nil || version == r.version) {
		return r.book
	}
	b, rerr := r.read()
	switch err = errors.Join(err, rerr); {
	case err == nil:
		r.book, r.version = b, version
	case r.book == nil:
		r.book = b
	}
	if err != nil {
		r.log.Error("registry of AEs and HTTP tokens not read", "err", err)
	}
	return r.book
}

// read makes a book; of the configuration alone when the catalog cannot be read.
func (r *registry) read() (*book, error) {
	b := &book{aes: map[string]*knownAE{}, bearers: map[string]catalog.Bearer{}}
	aes, err := r.catalog.AEs(context.Background())
	for _, ae := range aes {
		b.add(ae, false, r.lax)
	}
	for _, ae := range r.file {
		record, _ := ae.record() // Validate has taken it
		b.add(record, true, r.lax)
	}
	if err != nil {
		return b, err
	}
	b.tokens, err = r.catalog.Bearers(context.Background())
	for _, t := range b.tokens {
		b.bearers[t.Name] = t
	}
	return b, err
}

func (b *book) add(ae catalog.AE, fromFile, lax bool) {
	known := &knownAE{AE: ae, fromFile: fromFile}
	for _, s := range ae.From {
		if p, err := prefixOf(s); err == nil {
			known.from = append(known.from, p)
		}
	}
	b.list = append(b.list, known)
	keys := []string{ae.Title}
	if lax {
		keys = append(keys, strings.ToUpper(ae.Title))
	}
	for _, key := range keys {
		if _, taken := b.aes[key]; !taken {
			b.aes[key] = known
		}
	}
}

// ae returns what is known of a title, nil for a stranger.
func (r *registry) ae(title string) *knownAE {
	b := r.current()
	known := b.aes[title]
	if known == nil && r.lax {
		known = b.aes[strings.ToUpper(title)]
	}
	return known
}

// mayCallFrom reports whether an address is among those of the AE. A network that cannot be read lets nobody in.
func (ae *knownAE) mayCallFrom(at netip.Addr) bool {
	for _, p := range ae.from {
		if p.Contains(at) {
			return true
		}
	}
	return len(ae.From) == 0
}

// callers says who may call over DIMSE, for the log.
func (r *registry) callers() string {
	if r.promiscuous {
		return "any AE (promiscuous)"
	}
	return "registered AEs"
}

// peer tells the DIMSE front end about a caller.
func (r *registry) peer(title string, at netip.Addr) scp.Peer {
	ae := r.ae(title)
	switch {
	case ae == nil:
		return scp.Peer{}
	case !ae.mayCallFrom(at):
		return scp.Peer{Elsewhere: true}
	}
	return scp.Peer{Known: true, Aliases: ae.Aliases, Issuer: ae.Issuer}
}

// addresses returns where an AE is found, none when it is not known or only calls.
func (r *registry) addresses(title string) []string {
	if ae := r.ae(title); ae != nil {
		return ae.Addresses
	}
	return nil
}

// tokens returns the HTTP tokens that are good now.
func (r *registry) tokens() []dicomweb.Token {
	b, now := r.current(), r.now()
	list := make([]dicomweb.Token, 0, len(r.fileTokens)+len(b.tokens))
	list = append(list, r.fileTokens...)
	for _, t := range b.tokens {
		if t.Expires.IsZero() || now.Before(t.Expires) {
			list = append(list, dicomweb.Token{Name: t.Name, Hash: t.Hash})
		}
	}
	return list
}

// allow is the policy of the archive: an AE may use the services of its record, a stranger all where any may call, an
// HTTP token what its roles say; the admin socket and the ring itself may do everything.
func (r *registry) allow(p dicomsvc.Principal, act dicomsvc.Action) bool {
	switch p.Kind {
	case dicomsvc.PrincipalAE:
		ae := r.ae(p.Name)
		if ae == nil {
			return r.promiscuous
		}
		return ae.Services&serviceFor[act] != 0
	case dicomsvc.PrincipalToken:
		if strings.HasPrefix(p.Name, fileTokenPrefix) {
			return true
		}
		t, known := r.current().bearers[p.Name]
		return known && t.Roles&(roleFor[act]|catalog.RoleAdmin) != 0
	}
	return true
}

// serviceFor and roleFor say which service of an AE, and which role of a token besides admin, an action takes.
var (
	serviceFor = map[dicomsvc.Action]catalog.Services{
		dicomsvc.ActionStore: catalog.ServiceStore, dicomsvc.ActionQuery: catalog.ServiceQuery,
		dicomsvc.ActionRetrieve: catalog.ServiceRetrieve, dicomsvc.ActionCommit: catalog.ServiceCommitment,
		dicomsvc.ActionWorklist: catalog.ServiceWorklist, dicomsvc.ActionMPPS: catalog.ServiceMPPS,
	}
	roleFor = map[dicomsvc.Action]catalog.Roles{
		dicomsvc.ActionStore: catalog.RoleStore, dicomsvc.ActionQuery: catalog.RoleRead, dicomsvc.ActionRetrieve: catalog.RoleRead,
	}
)
