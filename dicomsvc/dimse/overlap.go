package dimse

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
)

// The asynchronous operations window (PS3.7 §D.3.3.3): where more than one operation was agreed to, the next C-STORE is
// received while those before it wait to be made safe. Only one data set arrives at a time, for nothing interleaves on
// an association; so the association's reader lends the stream to the goroutine of a store and goes on when that has
// read it to its end.

// window is what was agreed to in one direction of an association, in operations; what is unlimited is cut.
func window(agreed uint16) int {
	if agreed == 0 {
		return windowMax
	}
	return min(int(agreed), windowMax)
}

// errHandlerReturned is what a handler reads that goes on after its return, or after the end.
var errHandlerReturned = errors.New("the data set was given back")

// lent is the data set of a C-STORE while its goroutine reads it.
type lent struct {
	data io.Reader
	back chan struct{} // closed when the association's reader may read on
	err  error
}

// Read reads the data set; its end gives the stream back.
func (l *lent) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.data.Read(p)
	if err != nil {
		l.giveBack(err)
	}
	return n, err
}

func (l *lent) giveBack(err error) {
	if l.err == nil {
		l.err = err
		close(l.back)
	}
}

// overlap is the stores of one association that run beside its reader.
type overlap struct {
	turns   chan struct{} // full while as many run as were agreed to
	running atomic.Int64
}

// storeBeside receives a C-STORE and returns when its data set has been read, while the handler may still be making
// it safe. Only the association's reader calls it.
func (s *Session) storeBeside(ctx context.Context, m *Message) error {
	req, res := storeRequest(m, s.context(m))
	if req != nil && s.registerStore(m.Command.MessageID) != StatusSuccess {
		req, res = nil, StoreResponse{Status: StatusDuplicateInvoke, ErrorComment: registerComment(StatusDuplicateInvoke)}
	}
	if req == nil {
		s.begin()
		defer s.end()
		return s.answerStore(m, res)
	}
	s.overlap.turns <- struct{}{} // those who have them need nothing more from this reader
	place := s.overlapPlace()
	s.begin()
	s.overlap.running.Add(1)
	s.stores.Add(1)
	l := &lent{data: m.Data, back: make(chan struct{})}
	req.Session, req.Data = s, l
	drained := make(chan error, 1)
	// Ends when the handler does, which the end of the data set or of the association brings about; run waits.
	go func() {
		defer s.stores.Done()
		defer s.end()
		err := s.runStore(ctx, m.ContextID, m.Command, req, l, drained)
		s.overlap.running.Add(-1)
		if place {
			<-s.server.overlapping
		}
		<-s.overlap.turns
		if errors.Is(err, ErrPanic) {
			s.noteBroken(err)
		}
		if err != nil {
			s.Abort()
		}
	}()
	<-l.back
	err := s.conn.data.drain()
	drained <- err
	if err != nil {
		s.server.stats.StoresBroken.Add(1)
	}
	return err
}

// overlapPlace takes one of the server's places for stores beyond the first of an association. When there is none
// it waits until no other store of this association runs.
func (s *Session) overlapPlace() bool {
	if s.overlap.running.Load() == 0 {
		return false
	}
	select {
	case s.server.overlapping <- struct{}{}:
		return true
	default:
		s.stores.Wait()
		return false
	}
}

// runStore calls the handler and answers, once the rest of the data set is drained.
func (s *Session) runStore(ctx context.Context, contextID byte, c *Command, req *StoreRequest, l *lent, drained <-chan error) error {
	var res StoreResponse
	err := s.server.guarded(func() error { res = s.server.cfg.Handler.Store(ctx, req); return nil })
	l.giveBack(errHandlerReturned)
	s.unregister(c.MessageID) // before the response, behind which the peer may use the ID again
	if err != nil {
		return err
	}
	if <-drained != nil {
		return nil // the reader has it, and ends the association
	}
	return s.replyStore(contextID, c, res)
}

// registerStore notes the message ID of a store under way.
func (s *Session) registerStore(id uint16) uint16 {
	s.ops.mu.Lock()
	defer s.ops.mu.Unlock()
	if _, used := s.ops.ids[id]; used {
		return StatusDuplicateInvoke
	}
	s.noteID(id, nil)
	return StatusSuccess
}
