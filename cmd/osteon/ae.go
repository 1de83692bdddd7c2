package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"osteon/dicomsvc/refusal"
	"osteon/node"
)

type aeCmd struct {
	Add    aeAddCmd    `cmd:"" help:"Register an AE with the ring: who may call, from where and for what, and where C-MOVE finds it."`
	List   aeListCmd   `cmd:"" help:"List the AEs of the ring and those of the node's configuration."`
	Show   aeShowCmd   `cmd:"" help:"Show all that is recorded of an AE."`
	Remove aeRemoveCmd `cmd:"" help:"Take an AE out of the ring's registry; nothing of what it stored changes."`
	Test   aeTestCmd   `cmd:"" help:"Call an AE with C-ECHO and say at which step it fails."`
	Log    aeLogCmd    `cmd:"" help:"Show what the node refused: who, when, the exact code, why, and what to do."`
}

type aeAddCmd struct {
	Title      string   `arg:"" help:"AE title, 1 to 16 characters; case is significant."`
	Address    []string `help:"host:port where it listens; again for further ones, tried in this order. Default: nothing can be sent to it." placeholder:"HOST:PORT"`
	From       []string `help:"IP address or network (CIDR) that it may call from, several with commas; any: from everywhere. Default: the IP addresses of --address." placeholder:"NETWORK"`
	Allow      []string `help:"What it may use: store, query, retrieve, commitment, worklist, mpps. Default: all." placeholder:"SERVICE"`
	Alias      []string `help:"Further title under which it may call this ring, such as that of an archive that was before." placeholder:"TITLE"`
	Issuer     string   `help:"Issuer of the patient IDs in its objects that name none (0010,0021)."`
	Commitment string   `help:"host:port for its Storage Commitment reports, once that service is offered; default: --address." placeholder:"HOST:PORT"`
	Replace    bool     `help:"Take the place of the record of this title."`
}

func (c aeAddCmd) Run(ctx context.Context, g *Globals) error {
	add, err := c.request()
	if err != nil {
		return err
	}
	admin, err := g.admin()
	if err != nil {
		return err
	}
	ae, err := admin.AddAE(ctx, add)
	if err != nil {
		return err
	}
	return g.print(ae, func(w io.Writer) { printAE(w, ae) })
}

// anywhere as the value of --from binds a title to no address.
const anywhere = "any"

func (c aeAddCmd) request() (node.AEAdd, error) {
	add := node.AEAdd{Replace: c.Replace, AE: node.AE{
		Title: c.Title, From: c.From, Services: c.Allow, Aliases: c.Alias, Issuer: c.Issuer, Commitment: c.Commitment,
	}}
	if len(c.Address) > 0 {
		add.Address, add.Addresses = c.Address[0], c.Address[1:]
	}
	if slices.Equal(c.From, []string{anywhere}) {
		add.From = nil
		return add, nil
	}
	for _, address := range c.Address {
		if at, err := netip.ParseAddrPort(address); err == nil && len(c.From) == 0 {
			add.From = append(add.From, at.Addr().Unmap().String())
		}
	}
	if len(add.From) == 0 {
		return add, fmt.Errorf("%w: from where may %s call? name its IP address or network with --from, or --from any", errUsage, c.Title)
	}
	return add, nil
}

func printAE(w io.Writer, ae node.ListedAE) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	defer t.Flush()
	addresses := "none: nothing can be sent to it"
	if ae.Address != "" {
		addresses = strings.Join(append([]string{ae.Address}, ae.Addresses...), ", ")
	}
	fmt.Fprintf(t, "title\t%s\naddresses\t%s\ncalls from\t%s\nmay\t%s\n", ae.Title, addresses, fromText(ae.AE), strings.Join(ae.Services, ", "))
	for _, line := range []struct{ name, text string }{
		{"calls us also", strings.Join(ae.Aliases, ", ")}, {"issuer", ae.Issuer}, {"commitment", ae.Commitment}, {"recorded in", sourceText(ae)},
	} {
		if line.text != "" {
			fmt.Fprintf(t, "%s\t%s\n", line.name, line.text)
		}
	}
}

func fromText(ae node.AE) string {
	if len(ae.From) == 0 {
		return "anywhere"
	}
	return strings.Join(ae.From, ", ")
}

func sourceText(ae node.ListedAE) string {
	switch {
	case ae.Shadowed:
		return "this node's configuration; the ring's record counts instead"
	case ae.Source == node.SourceFile:
		return "this node's configuration"
	}
	return "the ring"
}

type aeShowCmd struct {
	Title string `arg:"" help:"AE title."`
}

func (c aeShowCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	ae, err := admin.AE(ctx, c.Title)
	if err != nil {
		return err
	}
	return g.print(ae, func(w io.Writer) { printAE(w, ae) })
}

type aeRemoveCmd struct {
	Title string `arg:"" help:"AE title."`
}

func (c aeRemoveCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	if err := admin.RemoveAE(ctx, c.Title); err != nil {
		return err
	}
	return g.print(map[string]string{"title": c.Title, "state": "removed"}, func(w io.Writer) { fmt.Fprintf(w, "%s removed\n", c.Title) })
}

type aeLogCmd struct {
	AE    string        `name:"ae" help:"Only this AE title, calling or called." placeholder:"TITLE"`
	Since time.Duration `help:"Only what was seen within this time, for instance 1h; default: all since the node started."`
}

func (c aeLogCmd) Run(ctx context.Context, g *Globals) error {
	if c.Since < 0 {
		return fmt.Errorf("%w: --since %s is negative", errUsage, c.Since)
	}
	admin, err := g.admin()
	if err != nil {
		return err
	}
	l, err := admin.AELog(ctx, c.Since, c.AE)
	if err != nil {
		return err
	}
	return g.print(l, func(w io.Writer) { printAELog(w, l) })
}

func printAELog(w io.Writer, l node.AELog) {
	if len(l.Events) == 0 {
		fmt.Fprintf(w, "nothing was refused at %s (the record begins with the process, %s)\n", l.Node, l.Kept.Local().Format(time.DateTime))
		return
	}
	for _, e := range l.Events {
		printRefusal(w, e)
	}
}

func printRefusal(w io.Writer, e refusal.Event) {
	fmt.Fprintf(w, "%s  %s", e.Last.Local().Format(time.DateTime), e.What)
	if e.Calling != "" || e.Called != "" {
		fmt.Fprintf(w, "  %s -> %s", orNone(e.Calling), orNone(e.Called))
	}
	fmt.Fprintf(w, "  from %s", orNone(e.From))
	if e.Count > 1 {
		fmt.Fprintf(w, "  %d times since %s", e.Count, e.First.Local().Format(time.DateTime))
	}
	fmt.Fprintf(w, "\n  told: %s %s\n  why:  %s\n  do:   %s\n", e.Code, e.Words, e.Why, e.Do)
}

type aeListCmd struct{}

func (aeListCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	list, err := admin.AEs(ctx)
	if err != nil {
		return err
	}
	return g.print(list, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "TITLE\tADDRESS\tCALLS FROM\tMAY\tRECORDED IN")
		for _, ae := range list {
			address := ae.Address
			if address == "" {
				address = "-"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", ae.Title, address, fromText(ae.AE), strings.Join(ae.Services, ","), sourceText(ae))
		}
	})
}

type aeTestCmd struct {
	Title string `arg:"" help:"AE title, as in ae list."`
}

var errAE = errors.New("the AE did not answer as it should")

func (c aeTestCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	t, err := admin.TestAE(ctx, c.Title)
	if err != nil {
		return err
	}
	err = g.print(t, func(w io.Writer) {
		if t.OK {
			fmt.Fprintf(w, "%s at %s answered C-ECHO in %d ms\n", t.Title, t.Address, t.MS)
			return
		}
		fmt.Fprintf(w, "%s at %s: %s failed\n  why: %s\n  do:  %s\n", t.Title, orNone(t.Address), t.Step, t.Why, t.Do)
	})
	if err == nil && !t.OK {
		err = fmt.Errorf("%w: %s failed at %s", errAE, t.Step, t.Title)
	}
	return err
}
