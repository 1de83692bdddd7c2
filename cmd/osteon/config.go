package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"osteon/node"
)

var errConfig = errors.New("configuration")

// listenFlags override the configuration file.
type listenFlags struct {
	DIMSE     string `name:"dimse" help:"DIMSE listener, host:port or off." env:"OSTEON_DIMSE" placeholder:"ADDR"`
	AET       string `name:"aet" help:"AE title." env:"OSTEON_AET"`
	HTTP      string `name:"http" help:"HTTP listener, host:port or off." env:"OSTEON_HTTP" placeholder:"ADDR"`
	Link      string `name:"link" help:"Link listener (UDP), host:port." env:"OSTEON_LINK" placeholder:"ADDR"`
	Advertise string `name:"advertise" help:"Where other nodes find this one's link, host:port." env:"OSTEON_ADVERTISE" placeholder:"ADDR"`
	LogLevel  string `name:"log-level" help:"debug, info, warn or error." env:"OSTEON_LOG_LEVEL"`
}

func (f listenFlags) apply(cfg *node.Config) {
	for _, o := range []struct {
		to   *string
		from string
	}{
		{&cfg.DIMSE.Listen, f.DIMSE}, {&cfg.DIMSE.AET, f.AET}, {&cfg.HTTP.Listen, f.HTTP},
		{&cfg.Link.Listen, f.Link}, {&cfg.Link.Advertise, f.Advertise}, {&cfg.Log.Level, f.LogLevel},
	} {
		if o.from != "" {
			*o.to = o.from
		}
	}
}

// load reads the configuration file, if one is named, lays flags over it and fills in defaults. faults
// are what is wrong in the file, each with its line; the rest of it is read all the same. The caller
// validates.
func (g *Globals) load(flags listenFlags) (cfg node.Config, faults []string, err error) {
	if g.File != "" {
		raw, err := os.ReadFile(g.File)
		if err != nil {
			return cfg, nil, fmt.Errorf("%w: %w", errConfig, err)
		}
		dec := yaml.NewDecoder(bytes.NewReader(raw))
		dec.KnownFields(true)
		if err := dec.Decode(&cfg); err != nil && !errors.Is(err, io.EOF) {
			faults = fileFaults(g.File, err)
		}
	}
	if g.Dir != "" {
		cfg.Dir = g.Dir
	}
	flags.apply(&cfg)
	cfg.Fill()
	return cfg, faults, nil
}

// unknownKey is how the YAML decoder words a key that no setting has.
var unknownKey = regexp.MustCompile(`^(line \d+): field (\S+) not found in type \S+$`)

func fileFaults(file string, err error) []string {
	var several *yaml.TypeError
	if !errors.As(err, &several) {
		return []string{file + ": " + err.Error()}
	}
	var faults []string
	for _, text := range several.Errors {
		faults = append(faults, file+": "+unknownKey.ReplaceAllString(text, "$1: there is no setting $2"))
	}
	return faults
}

// loadValid is load and Validate; every fault is in the error, one a line.
func (g *Globals) loadValid(flags listenFlags) (node.Config, error) {
	return g.loadWith(flags, func(*node.Config) {})
}

// loadWith is loadValid with a command's own settings laid over the rest.
func (g *Globals) loadWith(flags listenFlags, change func(*node.Config)) (node.Config, error) {
	cfg, faults, err := g.load(flags)
	if err != nil {
		return cfg, err
	}
	change(&cfg)
	if faults = append(faults, validate(cfg)...); len(faults) > 0 {
		return cfg, fmt.Errorf("%w: %s", errConfig, strings.Join(faults, "\n"))
	}
	return cfg, nil
}

func validate(cfg node.Config) []string {
	if err := cfg.Validate(); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Name every fault of the configuration at once."`
}

type configCheckCmd struct{ listenFlags }

func (c configCheckCmd) Run(g *Globals) error {
	cfg, wrong, err := g.load(c.listenFlags)
	if err != nil {
		return err
	}
	faults := append([]string{}, wrong...) // never null in JSON
	faults = append(faults, validate(cfg)...)
	err = g.print(map[string]any{"ok": len(faults) == 0, "faults": faults, "config": cfg}, func(w io.Writer) {
		for _, f := range faults {
			fmt.Fprintln(w, f)
		}
		if len(faults) == 0 {
			fmt.Fprintln(w, "configuration is valid")
		}
	})
	if err == nil && len(faults) > 0 {
		err = fmt.Errorf("%w: faults found: %d", errConfig, len(faults))
	}
	return err
}
