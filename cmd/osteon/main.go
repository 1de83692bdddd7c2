// Command osteon is the node of an Osteon ring and its command line.
//
// `osteon serve` runs one node; `osteon init` and `osteon join` make one first; `osteon dev` runs a whole
// ring of child processes on this machine. All other commands talk to a running node over its admin
// socket. Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not found, 4 ring unavailable, 5 done in
// part.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"

	"osteon/node"
)

// Exit codes (design §7).
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitRing     = 4
	exitPartly   = 5
)

var errPartly = errors.New("done in part")

// cli is the command line. Flags may also be set by OSTEON_* variables; a flag wins over the variable, the
// variable over the configuration file.
type cli struct {
	Globals

	Init    initCmd    `cmd:"" help:"Found a new ring: its first node, keys and certificate authority."`
	Join    joinCmd    `cmd:"" help:"Enrol this machine as a new node of a ring, with a token; then run serve."`
	Serve   serveCmd   `cmd:"" help:"Run the node that a directory holds."`
	Dev     devCmd     `cmd:"" help:"Run a whole ring of child processes on this machine, for trying and testing."`
	Status  statusCmd  `cmd:"" help:"Show the node and the ring: members, votes, and what is survived now."`
	Token   tokenCmd   `cmd:"" help:"Make join tokens; make, list and revoke HTTP tokens."`
	Node    nodeCmd    `cmd:"" help:"List nodes."`
	Study   studyCmd   `cmd:"" help:"List, show, verify and seal studies."`
	AE      aeCmd      `cmd:"" name:"ae" help:"Show what AEs were refused and why; list and test the AEs of the configuration."`
	Export  exportCmd  `cmd:"" help:"Write a study as plain DICOM files."`
	Config  configCmd  `cmd:"" help:"Check the configuration."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// Globals are the flags of every command.
type Globals struct {
	Dir    string `help:"Directory of the node." env:"OSTEON_DIR" placeholder:"DIR"`
	File   string `name:"config" short:"c" help:"Configuration file (YAML)." env:"OSTEON_CONFIG" placeholder:"FILE"`
	JSON   bool   `help:"Print JSON." env:"OSTEON_JSON"`
	stdout io.Writer
	stderr io.Writer
}

func main() {
	// Whatever a node makes, databases and sockets too, is its owner's alone from the first moment.
	syscall.Umask(0o077)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run parses and runs one command line and returns its exit code.
func run(args []string, stdout, stderr io.Writer) (code int) {
	var c cli
	c.stdout, c.stderr = stdout, stderr
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("osteon"),
		kong.Description("A self-hosted, distributed archive for medical images."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Bind(&c.Globals),
	)
	if err != nil {
		fmt.Fprintln(stderr, "osteon:", err)
		return exitFailed
	}
	command, err := parser.Parse(args)
	if exited == 0 { // --help was asked for
		return exitOK
	}
	if err != nil {
		c.JSON = c.JSON || slices.Contains(args, "--json") // parsing may have stopped before it
		return report(&c.Globals, fmt.Errorf("%w: %w; run osteon --help, or osteon COMMAND --help", errUsage, err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(&c.Globals); err != nil {
		return report(&c.Globals, err)
	}
	return exitOK
}

// report prints an error once and chooses the exit code.
func report(g *Globals, err error) int {
	code := exitCode(err)
	if g.JSON {
		json.NewEncoder(g.stderr).Encode(map[string]any{"error": err.Error(), "exit": code})
		return code
	}
	fmt.Fprintln(g.stderr, "osteon:", err)
	return code
}

var errUsage = errors.New("usage")

func exitCode(err error) int {
	switch {
	case errors.Is(err, errUsage), errors.Is(err, node.ErrUsage), errors.Is(err, node.ErrNoNode),
		errors.Is(err, node.ErrNodeExists), errors.Is(err, errConfig):
		return exitUsage
	case errors.Is(err, node.ErrNotFound):
		return exitNotFound
	case errors.Is(err, node.ErrRing):
		return exitRing
	case errors.Is(err, errPartly):
		return exitPartly
	default:
		return exitFailed
	}
}

// print writes value as JSON when asked for, else as text says.
func (g *Globals) print(value any, text func(w io.Writer)) error {
	if g.JSON {
		enc := json.NewEncoder(g.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	}
	text(g.stdout)
	return nil
}

type versionCmd struct{}

func (versionCmd) Run(g *Globals) error {
	v := versionInfo()
	return g.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "osteon %s (%s)\n", v.Version, v.Go)
		if v.Revision != "" {
			fmt.Fprintf(w, "revision %s %s\n", v.Revision, v.Time)
		}
	})
}

// version says what this binary was built from.
type version struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
}

func versionInfo() version {
	v := version{Version: "development"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		}
	}
	return v
}
