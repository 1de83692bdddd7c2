package scp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// Move answers C-MOVE (PS3.4 §C.4.2): C-STORE sub-operations on associations to the destination, one after
// another, as few as the presentation contexts allow. The final response follows the last answer of the
// destination. Statuses: those of result; A801 for a destination that is not registered; A701 when the
// instances cannot be listed; A900 with the element at fault; 0124; C000.
func (s *Server) Move(ctx context.Context, r *dimse.MoveRequest, p *dimse.Progress) dimse.Result {
	addresses := s.cfg.Destination(r.Destination)
	if len(addresses) == 0 || s.cfg.Dial == nil {
		return dimse.Result{Status: dimse.StatusUnknownDestination, ErrorComment: "the move destination is not registered here"}
	}
	t, err := s.begin(ctx, &r.FindRequest, p)
	if err != nil {
		return notBegun(err)
	}
	defer t.stop()
	work, release := finishing(ctx, s.waits.cancel)
	defer release()
	m := &move{transfer: t, request: r, addresses: addresses}
	err = m.run(ctx, work)
	result := t.result(ctx)
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("move destination failed", "session", t.session, "err", err)
		result.Advice = dimse.Advice{
			Why: "destination " + r.Destination + " failed: " + err.Error(),
			Do:  "see that it is up and takes what is sent: osteon ae test " + r.Destination,
		}
	}
	return result
}

// move is a C-MOVE under way.
type move struct {
	*transfer
	request   *dimse.MoveRequest
	addresses []string
}

// run sends everything; what cannot be sent counts as failed unless the peer cancelled. It returns why the
// destination was given up.
func (m *move) run(ctx, work context.Context) (err error) {
	rest := m.list
	defer func() {
		if ctx.Err() != nil {
			return
		}
		for _, w := range rest {
			m.done(w.instance, 0, dicomsvc.ErrUnavailable)
		}
	}()
	if len(rest) == 0 {
		return nil
	}
	leave, err := m.server.takeTurn(ctx, m.request.Destination)
	if err != nil {
		return err
	}
	defer leave()
	for fruitless := 0; len(rest) > 0 && ctx.Err() == nil; {
		contexts, n := plan(rest)
		before := m.count().Completed
		sent, err := m.batch(ctx, work, contexts, rest[:n])
		rest = rest[sent:]
		if m.count().Completed > before {
			fruitless = 0
		} else if fruitless++; err != nil && fruitless == fruitlessMax {
			return err
		}
		if err != nil && (sent == 0 || gone(err)) {
			return err
		}
	}
	return nil
}

// gone reports that a destination fell silent: another association would cost as long.
func gone(err error) bool {
	return errors.Is(err, dul.ErrIdle) || errors.Is(err, dul.ErrStalled) || errors.Is(err, dul.ErrARTIM)
}

// takeTurn waits until fewer than destinationMax associations are open to a destination.
func (s *Server) takeTurn(ctx context.Context, title string) (leave func(), err error) {
	s.mu.Lock()
	places, ok := s.turns[title]
	if !ok { // only registered titles come here
		places = make(chan struct{}, destinationMax)
		s.turns[title] = places
	}
	s.mu.Unlock()
	timer := time.NewTimer(s.waits.queue)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
		return nil, fmt.Errorf("%w: other retrievals keep the destination busy", dicomsvc.ErrResources)
	}
}

// plan returns the presentation contexts for as many of the instances as one association can carry: one for each
// class and syntax in which its instances may be sent.
func plan(list []wanted) (contexts []dul.ProposedContext, n int) {
	type pair struct{ class, syntax string }
	seen, planned := map[pair]bool{}, map[pair]bool{}
	for ; n < len(list); n++ {
		w := list[n]
		if planned[pair{w.class, w.syntax}] {
			continue
		}
		var missing []pair
		for _, syntax := range sendable(w.syntax) {
			if p := (pair{w.class, syntax}); !seen[p] {
				missing = append(missing, p)
			}
		}
		if len(contexts)+len(missing) > contextsMax {
			break
		}
		for _, p := range missing {
			seen[p] = true
			contexts = append(contexts, dul.ProposedContext{
				ID: byte(2*len(contexts) + 1), AbstractSyntax: p.class, TransferSyntaxes: []string{p.syntax},
			})
		}
		planned[pair{w.class, w.syntax}] = true
	}
	return contexts, n
}

// sendable lists the syntaxes in which an object can be sent, the stored one first.
func sendable(stored string) []string {
	list := []string{stored}
	for _, syntax := range []string{dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian} {
		if dicomsvc.Convertible(stored, syntax) {
			list = append(list, syntax)
		}
	}
	return list
}

// batch sends instances over one association and returns how many it has counted.
func (m *move) batch(ctx, work context.Context, contexts []dul.ProposedContext, list []wanted) (sent int, err error) {
	client, err := m.associate(work, contexts)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	sent, err = m.send(ctx, work, list, takenBy(client), func(a dimse.StoreArgs) (uint16, error) {
		a.Priority, a.MoveOriginator, a.MoveOriginatorID = m.request.Priority, m.caller.title, m.request.MessageID
		response, err := client.Store(work, a)
		return response.Status, err
	})
	if err != nil && !errors.Is(err, dimse.ErrCancelled) {
		return sent, err
	}
	// All is sent and answered: what becomes of the association now changes nothing.
	if rerr := client.Release(work); rerr != nil {
		m.server.cfg.Log.Debug("destination did not release", "session", m.session, "err", rerr)
	}
	return sent, err
}

func (m *move) associate(work context.Context, contexts []dul.ProposedContext) (*dimse.Client, error) {
	s := m.server
	conn, err := s.dialAny(work, m.addresses)
	if err != nil {
		return nil, fmt.Errorf("connect to the destination: %w", err)
	}
	client, err := dimse.Dial(work, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: s.cfg.AETitle, CalledAE: m.request.Destination, Contexts: contexts,
		Timers: dul.Timers{Idle: s.waits.response, ARTIM: s.waits.connect, Linger: s.waits.linger},
	}})
	if err != nil {
		return nil, fmt.Errorf("associate with the destination: %w", err)
	}
	return client, nil
}

// takenBy returns which syntaxes the destination takes for a class.
func takenBy(client *dimse.Client) func(class string) []string {
	taken := map[string][]string{}
	for _, pc := range client.Contexts() {
		taken[pc.AbstractSyntax] = append(taken[pc.AbstractSyntax], pc.TransferSyntax)
	}
	return func(class string) []string { return taken[class] }
}
