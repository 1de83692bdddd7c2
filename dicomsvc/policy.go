package dicomsvc

import "fmt"

// Action is what a Principal asks for.
type Action string

const (
	ActionStore    Action = "store"
	ActionQuery    Action = "query"
	ActionRetrieve Action = "retrieve"
	ActionAdmin    Action = "admin"
)

// Policy decides whether a principal may act. The zero value allows everything.
type Policy struct {
	// Allow reports whether p may act; nil allows everything. It must not block.
	Allow func(p Principal, act Action) bool
}

// permit is the one place where access is decided and denied access is recorded.
func (a *Archive) permit(p Principal, act Action) error {
	if a.cfg.Policy.Allow == nil || a.cfg.Policy.Allow(p, act) {
		return nil
	}
	a.cfg.Log.Warn("access denied", "kind", p.Kind, "action", string(act))
	return fmt.Errorf("%s: %w", act, ErrDenied)
}
