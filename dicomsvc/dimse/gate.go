package dimse

import (
	"context"
	"errors"
	"net"

	"osteon/dicomsvc/dul"
)

// gate counts one association against the limits.
type gate struct {
	s             *Server
	conn          net.Conn
	host, ae      string
	inside, known bool
	told          bool // a refusal was noted
	peer          peer
	decision      Decision
}

// seen remembers who asks.
func (g *gate) seen(r *dul.Request) { g.peer.calling, g.peer.called = r.CallingAE, r.CalledAE }

// negotiate asks the handler, then applies the limits: a title that nobody knows is told so for good even while
// all places are taken, and whoever may come in is told to try again (PS3.8 §9.3.4).
func (g *gate) negotiate(ctx context.Context, r *dul.Request) (*dul.Acceptance, *dul.Rejection) {
	if g.s.isDraining() {
		g.s.stats.Limited.Add(1)
		return g.refuse(dul.RejectCongestion(), Advice{"this node is shutting down", "use another node of the ring; senders that retry find this one when it is back"})
	}
	var decision Decision
	if g.s.guarded(func() error { decision = g.s.cfg.Handler.Associate(ctx, r); return nil }) != nil {
		return g.refuse(dul.RejectCongestion(), panicAdvice)
	}
	if decision.Rejection != nil || decision.Acceptance == nil {
		if decision.Rejection == nil {
			decision.Rejection = dul.RejectCongestion()
		}
		g.s.stats.Rejected.Add(1)
		return g.refuse(decision.Rejection, decision.Advice)
	}
	var response []byte
	var rej *dul.Rejection
	var advice Advice
	if g.s.guarded(func() error { response, rej, advice = g.s.identify(ctx, r); return nil }) != nil {
		return g.refuse(dul.RejectCongestion(), panicAdvice)
	}
	if rej != nil {
		g.s.stats.Rejected.Add(1)
		return g.refuse(rej, advice)
	}
	decision.Acceptance.IdentityResponse = response
	if rej, advice := g.enter(r); rej != nil {
		g.s.stats.Limited.Add(1)
		return g.refuse(rej, advice)
	}
	g.s.limitWindow(decision.Acceptance)
	g.decision = decision
	g.s.leaveLobby(g.conn)
	g.s.welcome(g.host, g.known)
	return decision.Acceptance, nil
}

// limitWindow agrees to MaxOperations in each direction, or to less where the handler did.
func (s *Server) limitWindow(a *dul.Acceptance) {
	limit := uint16(s.cfg.MaxOperations)
	if a.AsyncOps == nil {
		a.AsyncOps = &dul.AsyncOps{}
	}
	for _, n := range []*uint16{&a.AsyncOps.Invoked, &a.AsyncOps.Performed} {
		if *n == 0 || *n > limit {
			*n = limit
		}
	}
}

func (g *gate) refuse(rej *dul.Rejection, advice Advice) (*dul.Acceptance, *dul.Rejection) {
	g.told = true
	g.peer.noteRejection(g.s, rej, advice)
	return nil, rej
}

// enter takes a place, or says why there is none. All of these are transient:
// the peer is to try again (PS3.8 §9.3.4).
func (g *gate) enter(r *dul.Request) (*dul.Rejection, Advice) {
	known := g.s.cfg.Known != nil && g.s.cfg.Known(r)
	s := g.s
	if s.cfg.Short != nil && s.cfg.Short() {
		return dul.RejectLocalLimit(), Advice{"this process has hardly any file descriptors left, which are kept for the ring and the disk",
			"raise the limit of open files (LimitNOFILE= of the service, ulimit -n), or lower dimse.associations_max"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	limit, reserved := s.cfg.MaxAssociations, false
	if s.cfg.Known != nil && !known {
		limit, reserved = limit-s.cfg.Reserve, true
	}
	switch {
	case s.draining > 0:
		return dul.RejectCongestion(), Advice{"this node is shutting down", "use another node of the ring"}
	case s.total >= limit && reserved:
		return dul.RejectLocalLimit(), Advice{"all places for callers that are not registered are taken",
			"register the AE with osteon ae add, for which places are kept, or raise dimse.associations_max"}
	case s.total >= limit:
		return dul.RejectLocalLimit(), Advice{"all associations that this node takes are open", "raise dimse.associations_max, or spread senders over the nodes"}
	case s.perAE[r.CallingAE] >= s.cfg.MaxPerAE:
		return dul.RejectLocalLimit(), Advice{"this calling title has as many associations open as one may have",
			"see whether it leaves associations open; raise dimse.associations_per_ae"}
	case !known && s.perHost[g.host] >= s.cfg.MaxPerHost:
		return dul.RejectLocalLimit(), Advice{"callers at this address that are not registered have as many associations open as one address may have",
			"register the AE with osteon ae add; raise dimse.associations_per_host"}
	}
	s.total++
	s.perAE[r.CallingAE]++
	if !known {
		s.perHost[g.host]++
	}
	g.ae, g.inside, g.known = r.CallingAE, true, known
	return nil, Advice{}
}

// leave gives the place back.
func (g *gate) leave() {
	if !g.inside {
		return
	}
	g.inside = false
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	dec(s.perAE, g.ae)
	if !g.known {
		dec(s.perHost, g.host)
	}
}

func dec(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// ended tells the handler about an association it accepted.
func (g *gate) ended(err error) {
	if g.decision.Acceptance != nil && g.decision.Ended != nil {
		g.decision.Ended(err)
	}
}

// notOpened counts and notes a connection that became no association.
func (g *gate) notOpened(err error) {
	s := g.s
	s.fruitless(g.host)
	var rej *dul.Rejection
	if errors.As(err, &rej) {
		if !g.told { // refused below: no configuration could take it
			s.stats.Rejected.Add(1)
			g.peer.noteRejection(s, rej, Advice{"the request is none that this node can take: " + rej.Words(), "see that the peer's software speaks DICOM with protocol version 1 and proposes 1 to 128 presentation contexts"})
		}
		return
	}
	s.stats.Dropped.Add(1)
	s.cfg.Log.Debug("association not opened", "err", err)
	g.peer.noteDropped(s, err)
}
