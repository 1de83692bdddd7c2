package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
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

// load reads the configuration file, if one is named, lays flags over it and fills in defaults. The
// caller validates.
func (g *Globals) load(flags listenFlags) (node.Config, error) {
	var cfg node.Config
	if g.File != "" {
		raw, err := os.ReadFile(g.File)
		if err != nil {
			return cfg, fmt.Errorf("%w: %w", errConfig, err)
		}
		dec := yaml.NewDecoder(bytes.NewReader(raw))
		dec.KnownFields(true)
		if err := dec.Decode(&cfg); err != nil && !errors.Is(err, io.EOF) {
			return cfg, fmt.Errorf("%w: %s: %w", errConfig, g.File, err)
		}
	}
	if g.Dir != "" {
		cfg.Dir = g.Dir
	}
	flags.apply(&cfg)
	cfg.Fill()
	return cfg, nil
}

// loadValid is load and Validate.
func (g *Globals) loadValid(flags listenFlags) (node.Config, error) {
	cfg, err := g.load(flags)
	if err != nil {
		return cfg, err
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%w: %w", errConfig, err)
	}
	return cfg, nil
}

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Name every fault of the configuration at once."`
}

type configCheckCmd struct{ listenFlags }

func (c configCheckCmd) Run(g *Globals) error {
	cfg, err := g.load(c.listenFlags)
	if err != nil {
		return err
	}
	faults := []string{}
	if err := cfg.Validate(); err != nil {
		faults = strings.Split(err.Error(), "\n")
	}
	err = g.print(map[string]any{"ok": len(faults) == 0, "faults": faults, "config": cfg}, func(w io.Writer) {
		for _, f := range faults {
			fmt.Fprintln(w, f)
		}
		if len(faults) == 0 {
			fmt.Fprintln(w, "configuration is valid")
		}
	})
	if err == nil && len(faults) > 0 {
		err = fmt.Errorf("%w: %d faults", errConfig, len(faults))
	}
	return err
}
