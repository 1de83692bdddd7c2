package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"osteon/erasure/place"
	"osteon/node"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a one-time join token or, with --http, a bearer token for HTTP."`
	List   tokenListCmd   `cmd:"" help:"List the HTTP tokens of the ring; the words themselves are not kept."`
	Revoke tokenRevokeCmd `cmd:"" help:"End the use of an HTTP token at once, at every node."`
}

// joinValidity is how long a join token may be used when nothing else is said.
const joinValidity = time.Hour

type tokenCreateCmd struct {
	Site  string         `help:"Site that the new node must belong to; default: any."`
	Valid *time.Duration `help:"How long the token may be used; default: 1h to join, until it is revoked for HTTP."`
	HTTP  bool           `name:"http" help:"A bearer token for DICOMweb; needs --name and --role."`
	Name  string         `help:"Whom the HTTP token speaks for, as audit records show it."`
	Role  []string       `help:"What the HTTP token is good for: read (search and retrieve), store, admin (everything); several with commas."`
}

func (c tokenCreateCmd) Run(ctx context.Context, g *Globals) error {
	switch {
	case c.HTTP && c.Site != "":
		return fmt.Errorf("%w: --site is for join tokens, not for --http", errUsage)
	case c.HTTP && (c.Name == "" || len(c.Role) == 0):
		return fmt.Errorf("%w: an HTTP token needs --name and --role read, store or admin", errUsage)
	case !c.HTTP && (c.Name != "" || len(c.Role) > 0):
		return fmt.Errorf("%w: --name and --role are for HTTP tokens: add --http", errUsage)
	}
	admin, err := g.admin()
	if err != nil {
		return err
	}
	if c.HTTP {
		return c.createHTTP(ctx, g, admin)
	}
	valid := joinValidity
	if c.Valid != nil {
		valid = *c.Valid
	}
	t, err := admin.CreateToken(ctx, place.SiteID(c.Site), valid)
	if err != nil {
		return err
	}
	return g.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
}

func (c tokenCreateCmd) createHTTP(ctx context.Context, g *Globals, admin *node.Admin) error {
	request := node.HTTPTokenRequest{Name: c.Name, Roles: c.Role}
	if c.Valid != nil {
		if *c.Valid <= 0 {
			return fmt.Errorf("%w: --valid %s: want more than 0; leave it out for a token that is good until it is revoked", errUsage, *c.Valid)
		}
		request.Valid = node.Duration(*c.Valid)
	}
	t, err := admin.CreateHTTPToken(ctx, request)
	if err != nil {
		return err
	}
	return g.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
}

type tokenListCmd struct{}

func (tokenListCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	list, err := admin.HTTPTokens(ctx)
	if err != nil {
		return err
	}
	return g.print(list, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "NAME\tROLES\tCREATED\tEXPIRES")
		for _, token := range list {
			expires := "when revoked"
			if token.Expires != nil {
				expires = token.Expires.Local().Format(time.DateTime)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", token.Name, strings.Join(token.Roles, ","), token.Created.Local().Format(time.DateTime), expires)
		}
	})
}

type tokenRevokeCmd struct {
	Name string `arg:"" help:"Name of the HTTP token, as in token list."`
}

func (c tokenRevokeCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	if err := admin.RevokeHTTPToken(ctx, c.Name); err != nil {
		return err
	}
	return g.print(map[string]string{"name": c.Name, "state": "revoked"}, func(w io.Writer) { fmt.Fprintf(w, "%s revoked\n", c.Name) })
}
