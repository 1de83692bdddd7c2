package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"osteon/dicomsvc/refusal"
	"osteon/node"
)

type aeCmd struct {
	Log  aeLogCmd  `cmd:"" help:"Show what the node refused: who, when, the exact code, why, and what to do."`
	List aeListCmd `cmd:"" help:"List the AEs of the node's configuration."`
	Test aeTestCmd `cmd:"" help:"Call an AE of the configuration with C-ECHO and say at which step it fails."`
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
		fmt.Fprintln(t, "TITLE\tADDRESS")
		for _, ae := range list {
			address := ae.Address
			if address == "" {
				address = "- (may call, cannot be moved to)"
			}
			fmt.Fprintf(t, "%s\t%s\n", ae.Title, address)
		}
	})
}

type aeTestCmd struct {
	Title string `arg:"" help:"AE title, as in aes: of the configuration."`
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
