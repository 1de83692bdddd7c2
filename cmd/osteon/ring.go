package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"osteon/erasure/place"
	"osteon/node"
)

type initCmd struct {
	listenFlags
	Ring    string `help:"Name of the ring, for people." default:"osteon"`
	Name    string `help:"Name of this node, unique in the ring." default:"a1"`
	Site    string `help:"Site (data centre) of this node." default:"a"`
	Survive string `help:"What new packs shall survive: node, site, site+node, two-sites; default: the strongest the ring can meet."`
}

func (c initCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := g.loadWith(c.listenFlags, func(cfg *node.Config) {
		if c.Survive != "" {
			cfg.Survive = place.Survive(c.Survive)
		}
	})
	if err != nil {
		return err
	}
	result, err := node.Init(ctx, cfg, node.Env{}, node.InitRequest{
		RingName: c.Ring, NodeName: c.Name, Site: place.SiteID(c.Site),
	})
	if err != nil {
		return err
	}
	return g.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "Ring %s founded; this is node %s of site %s in %s.\n", result.Ring, result.Name, result.Site, cfg.Dir)
		fmt.Fprintf(w, "Root key: %s\n  %s\n", result.RootKey, result.RootKeyNote)
		fmt.Fprintf(w, "Next: osteon serve --dir %s\nThen, for each further node: osteon token create --dir %s\n", cfg.Dir, cfg.Dir)
	})
}

type joinCmd struct {
	listenFlags
	JoinToken string `arg:"" name:"token" help:"The word that osteon token create printed, or @FILE that holds it."`
	Name      string `help:"Name of this node, unique in the ring." required:""`
	Site      string `help:"Site (data centre) of this node; default: the token's."`
	Witness   bool   `help:"Vote only, keep no data."`
}

func (c joinCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := g.loadValid(c.listenFlags)
	if err != nil {
		return err
	}
	word := c.JoinToken
	if file, ok := strings.CutPrefix(word, "@"); ok {
		raw, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		word = string(raw)
	}
	token, err := node.ParseToken(word)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	result, err := node.Join(ctx, cfg, node.Env{}, node.JoinRequest{
		Token: token, NodeName: c.Name, Site: place.SiteID(c.Site), Witness: c.Witness,
	})
	if err != nil {
		return err
	}
	return g.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "Node %s of site %s enrolled in ring %s.\nRoot key: %s\n  %s\nNext: osteon serve --dir %s\n",
			result.Name, result.Site, result.Ring, result.RootKey, result.RootKeyNote, cfg.Dir)
	})
}

type serveCmd struct{ listenFlags }

func (c serveCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := g.loadValid(c.listenFlags)
	if err != nil {
		return err
	}
	log, err := node.NewLog(g.stderr, cfg.Log)
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return node.Run(ctx, cfg, node.Env{Log: log})
}

// admin returns a client of the node that the flags name.
func (g *Globals) admin() (*node.Admin, error) {
	cfg, faults, err := g.load(listenFlags{})
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: %s", errConfig, strings.Join(faults, "\n"))
	}
	if cfg.Dir == "" {
		return nil, fmt.Errorf("%w: name the node's directory with --dir or OSTEON_DIR", errUsage)
	}
	return node.Dial(cfg.Dir), nil
}

type statusCmd struct{}

func (statusCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	s, err := admin.Status(ctx)
	if err != nil {
		return err
	}
	return g.print(s, func(w io.Writer) { printStatus(w, s) })
}

func printStatus(w io.Writer, s node.Status) {
	fmt.Fprintf(w, "ring      %s %s\n", s.RingName, s.Ring)
	fmt.Fprintf(w, "node      %s at site %s, up %s, %s\n", s.Name, s.Site, s.Uptime, readiness(s))
	fmt.Fprintf(w, "listens   DIMSE %s (AE %s), HTTP %s, link %s\n", s.DIMSE, s.AET, s.HTTP, s.Link)
	fmt.Fprintf(w, "catalog   applied %d of %d, leader %s, %d instances waiting\n", s.Applied, s.Commit, orNone(s.Leader), s.Waiting)
	fmt.Fprintf(w, "promise   new packs survive: %s\n", s.Survive.Phrase())
	fmt.Fprintf(w, "now       data %s; stores %s; commitment %s; quorum %s\n", s.Survives.Data, s.Survives.Stores, s.Survives.Commitment, s.Survives.Quorum)
	if s.Note != "" {
		fmt.Fprintf(w, "note      %s\n", s.Note)
	}
	for _, p := range s.Poison {
		fmt.Fprintf(w, "poison    %s from %s made this node fail %d times, last %s\n", p.SOPInstanceUID, p.Caller, p.Strikes, p.Last.Local().Format(time.DateTime))
	}
	printNodes(w, s.Nodes)
}

func readiness(s node.Status) string {
	if s.Ready {
		return "ready"
	}
	return "not ready: " + s.NotReady
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

type nodeCmd struct {
	List nodeListCmd `cmd:"" help:"List the ring's nodes."`
}

type nodeListCmd struct{}

func (nodeListCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	s, err := admin.Status(ctx)
	if err != nil {
		return err
	}
	return g.print(s.Nodes, func(w io.Writer) { printNodes(w, s.Nodes) })
}

func printNodes(w io.Writer, nodes []node.NodeStatus) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NODE\tSITE\tLIVE\tVOTE\tROLE\tSTATE\tLINK\tFREE")
	for _, n := range nodes {
		vote := "-"
		switch {
		case n.Leader:
			vote = "leader"
		case n.Voter:
			vote = "voter"
		}
		live := "up"
		if !n.Live {
			live = "down"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Site, live, vote, n.Role, n.State, n.Address, bytesText(n.Free))
	}
}

func bytesText(n int64) string {
	switch {
	case n <= 0:
		return "-"
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	default:
		return fmt.Sprintf("%d B", n)
	}
}

type studyCmd struct {
	List   studyListCmd   `cmd:"" help:"List studies."`
	Show   studyShowCmd   `cmd:"" help:"Show where a study's bytes are and what they survive."`
	Verify studyVerifyCmd `cmd:"" help:"Read every instance of a study and compare its digest."`
	Seal   studySealCmd   `cmd:"" help:"Seal a study now instead of when it has been quiet."`
}

type studyListCmd struct {
	Limit int `help:"How many at most." default:"100"`
}

func (c studyListCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	list, err := admin.Studies(ctx, c.Limit)
	if err != nil {
		return err
	}
	return g.print(list, func(w io.Writer) {
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "STUDY\tDATE\tMODALITY\tSERIES\tINSTANCES\tSTATE")
		for _, s := range list {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\n", s.Study, s.Date, s.Modality, s.Series, s.Instances, s.State)
		}
		if len(list) == c.Limit {
			fmt.Fprintf(t, "(the first %d; --limit shows more)\n", c.Limit)
		}
	})
}

type studyShowCmd struct {
	UID string `arg:"" help:"Study Instance UID."`
}

func (c studyShowCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	r, err := admin.Study(ctx, c.UID)
	if err != nil {
		return err
	}
	return g.print(r, func(w io.Writer) { printStudy(w, r) })
}

func printStudy(w io.Writer, r node.StudyReport) {
	fmt.Fprintf(w, "study     %s\nstate     %s, %d instances in %d series, %s\n", r.Study, r.State, r.Instances, r.Series, bytesText(r.Bytes))
	fmt.Fprintf(w, "survives  data %s; stores %s; commitment %s; quorum %s\n", r.Survives.Data, r.Survives.Stores, r.Survives.Commitment, r.Survives.Quorum)
	for _, p := range r.Packs {
		fmt.Fprintf(w, "pack      %s  %s, %s, survives %s\n", p.Pack, p.Geometry, bytesText(p.Bytes), p.Survives)
		for i, s := range p.Shards {
			state := ""
			if !s.Live {
				state = " (down)"
			}
			fmt.Fprintf(w, "  shard %d at %s%s\n", i, s.Node, state)
		}
	}
	for _, v := range r.Versions {
		served := "served"
		if !v.Served {
			served = "further version, in QC"
		}
		where := strings.Join(v.Holders, ", ")
		if v.Pack != "" {
			where = "pack " + v.Pack
		}
		fmt.Fprintf(w, "version   %s  %s, %s, %s: %s\n", v.SOPInstanceUID, served, v.State, bytesText(v.Bytes), where)
	}
}

type studyVerifyCmd struct {
	UID string `arg:"" help:"Study Instance UID."`
}

func (c studyVerifyCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	r, err := admin.Verify(ctx, c.UID)
	if err != nil {
		return err
	}
	err = g.print(r, func(w io.Writer) {
		fmt.Fprintf(w, "%d of %d instances good, %s read\n", r.Good, r.Instances, bytesText(r.Bytes))
		for _, f := range r.Faults {
			fmt.Fprintln(w, f)
		}
	})
	if err == nil && r.Good < r.Instances {
		err = fmt.Errorf("%w: %d of %d instances are not readable", errPartly, r.Instances-r.Good, r.Instances)
	}
	return err
}

type studySealCmd struct {
	UID string `arg:"" help:"Study Instance UID."`
}

func (c studySealCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	if err := admin.Seal(ctx, c.UID); err != nil {
		return err
	}
	return g.print(map[string]string{"study": c.UID, "state": "sealed"}, func(w io.Writer) { fmt.Fprintln(w, "sealed") })
}

type exportCmd struct {
	UID string `arg:"" help:"Study Instance UID."`
	Out string `help:"Directory to write to; it is made when missing." required:"" type:"path"`
}

func (c exportCmd) Run(ctx context.Context, g *Globals) error {
	admin, err := g.admin()
	if err != nil {
		return err
	}
	body, err := admin.Export(ctx, c.UID)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := os.MkdirAll(c.Out, 0o700); err != nil {
		return err
	}
	files, err := untar(body, c.Out)
	switch {
	case err != nil && files == 0:
		return fmt.Errorf("nothing exported: %w", err)
	case err != nil:
		return fmt.Errorf("%w: files written to %s: %d: %w", errPartly, c.Out, files, err)
	}
	return g.print(map[string]any{"study": c.UID, "files": files, "dir": c.Out}, func(w io.Writer) {
		fmt.Fprintf(w, "%d files written to %s\n", files, filepath.Clean(c.Out))
	})
}
