package dicomsvc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Action is what a Principal asks for.
type Action string

const (
	ActionStore    Action = "store"
	ActionQuery    Action = "query"
	ActionRetrieve Action = "retrieve"
	ActionCommit   Action = "commitment"
	ActionWorklist Action = "worklist"
	ActionMPPS     Action = "mpps"
	ActionAdmin    Action = "admin"
)

// Policy decides whether a principal may act. The zero value allows everything.
type Policy struct {
	// Allow reports whether p may act; nil allows everything. It must not block.
	Allow func(p Principal, act Action) bool
}

// permit is the one place where access is decided. It returns the principal with the node at which it
// speaks.
func (a *Archive) permit(p Principal, act Action) (Principal, error) {
	if p.Node.IsZero() {
		p.Node = a.cfg.Self
	}
	if a.Permits(p, act) {
		return p, nil
	}
	return p, fmt.Errorf("%s: %w", act, ErrDenied)
}

// Permits reports whether p may act, for front ends that answer before there is a call.
func (a *Archive) Permits(p Principal, act Action) bool {
	return a.cfg.Policy.Allow == nil || a.cfg.Policy.Allow(p, act)
}

// Authorize returns nil when p may act. A denial wraps ErrDenied and is recorded, so that a front end may refuse a
// request before it reads its body.
func (a *Archive) Authorize(ctx context.Context, p Principal, act Action) error {
	began := a.cfg.Now()
	p, err := a.permit(p, act)
	if err != nil {
		a.record(ctx, &access{who: p, act: act, began: began}, err)
	}
	return err
}

// permitRead decides over the bytes of an instance that Instances, which records what is retrieved, has
// named; only a denial is recorded again.
func (a *Archive) permitRead(ctx context.Context, p Principal) error {
	return a.Authorize(ctx, p, ActionRetrieve)
}

// access is one call on its way to its audit record: who asked for what, what became of it and how much it
// was. It names no patient and no UID; a study is named by the keyed hash that only the ring can compute.
type access struct {
	who       Principal
	act       Action
	study     string // Study Instance UID; empty: none or several
	instances int    // stored, matched or named
	bytes     int64
	outcome   string // of a success; empty: "success"
	began     time.Time
}

// record writes the audit record of a call that ended with err.
func (a *Archive) record(ctx context.Context, c *access, err error) {
	level, outcome := slog.LevelInfo, c.outcome
	switch {
	case errors.Is(err, ErrDenied):
		level, outcome = slog.LevelWarn, "denied"
	case err != nil:
		outcome = "refused: " + kindOf(err)
	case outcome == "":
		outcome = "success"
	}
	if !a.cfg.Audit.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("action", string(c.act)), slog.String("outcome", outcome),
		slog.String("kind", kindWord(c.who.Kind)), slog.String("name", c.who.Name), slog.String("node", c.who.Node.String()),
		slog.Int("instances", c.instances), slog.Int64("bytes", c.bytes),
		slog.Int64("ms", a.cfg.Now().Sub(c.began).Milliseconds()),
	}
	if c.study != "" {
		hash := a.catalog.UIDHash(c.study)
		attrs = append(attrs, slog.String("study", hex.EncodeToString(hash[:8])))
	}
	a.cfg.Audit.LogAttrs(ctx, level, "access", attrs...)
}

// kindOf returns the sentence of the kind of err, which holds nothing of what was asked.
func kindOf(err error) string {
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return s.err.Error()
		}
	}
	return "failed"
}

func kindWord(k PrincipalKind) string {
	switch k {
	case PrincipalSystem:
		return "system"
	case PrincipalNode:
		return "node"
	case PrincipalAE:
		return "ae"
	case PrincipalToken:
		return "token"
	case PrincipalPerson:
		return "person"
	default:
		return "anonymous"
	}
}

// only returns the one element of list, "" when there are none or several.
func only(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return ""
}
