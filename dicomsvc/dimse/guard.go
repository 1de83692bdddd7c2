package dimse

import (
	"errors"
	"fmt"

	"osteon/dicomsvc/refusal"
)

// ErrPanic means that this program failed while it worked on an association, which is aborted; others go on.
var ErrPanic = errors.New("fault in this program")

// guarded runs f. A panic in it is counted, logged and returned as ErrPanic: one object that a decoder cannot
// stand costs its sender the association and nobody else anything. The log gets the kind of the panic and where
// it happened, not its text, which may hold a piece of the object.
func (s *Server) guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.stats.Panics.Add(1)
			s.cfg.Log.Error("panic: the association is aborted", "kind", fmt.Sprintf("%T", v), "stack", refusal.Stack())
			err = ErrPanic
		}
	}()
	return f()
}
