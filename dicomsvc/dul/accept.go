package dul

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// AcceptorConfig says how to answer associations. Negotiate is required; every
// other zero value is good.
type AcceptorConfig struct {
	// Negotiate decides on a request: an acceptance, or a rejection. It runs
	// while the peer waits and must heed ctx. When both are nil the request is
	// rejected as congestion.
	Negotiate func(ctx context.Context, r *Request) (*Acceptance, *Rejection)
	// Seen, if set, is told of each request before anything is decided.
	Seen func(r *Request)
	// MaxPDU is the maximum length announced, AdvertisedPDU if 0; at most
	// 256 KiB.
	MaxPDU uint32
	Timers Timers
	Log    *slog.Logger // nil discards
}

// Accept answers the association request that is to arrive on conn, which it
// owns from now on. It returns an established association, or an error after
// which conn is closed: a *Rejection when the request was refused, an
// *AbortError, ErrARTIM, or that of the transport. The association is aborted
// when ctx ends. PS3.8 §9.2, states 2 and 3.
func Accept(ctx context.Context, conn net.Conn, cfg AcceptorConfig) (*Association, error) {
	a := newAssociation(conn, cfg.Timers, false, cfg.Log)
	if cfg.MaxPDU > 0 {
		a.maxPDU = min(cfg.MaxPDU, pduBytesMax)
	}
	a.follow(ctx)
	if err := a.accept(ctx, cfg); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Association) accept(ctx context.Context, cfg AcceptorConfig) error {
	a.machine.on(evtTransportIndicated)
	r, err := a.awaitRequest()
	if err != nil {
		return err
	}
	if cfg.Seen != nil {
		cfg.Seen(r)
	}
	acc, rej := check(r)
	if rej == nil {
		acc, rej = cfg.Negotiate(ctx, r)
	}
	if rej == nil && acc == nil {
		rej = RejectCongestion()
	}
	if rej != nil {
		if a.machine.on(evtReject) != ae8 {
			return ErrClosed
		}
		if err := a.writeControl(rejectPDU(rej)); err != nil {
			return err
		}
		a.inStep = true
		return rej
	}
	if a.br.Buffered() > 0 {
		return a.early()
	}
	return a.establish(r, acc)
}

// early performs the action for what came together with the request: nothing but an abort may come before the answer
// (PS3.8 Table 9-10, Sta3).
func (a *Association) early() error {
	typ, length, err := a.readPDU(phaseARTIM)
	if err != nil {
		return a.transportLost(err)
	}
	ev, fault := eventOf(typ, length)
	act := a.machine.on(ev)
	if act == aa3 {
		return a.remoteAbort(length)
	}
	if fault == nil {
		fault = unexpected(typ)
	}
	return a.protocolFault(act, fault)
}

// awaitRequest reads the A-ASSOCIATE-RQ under the ARTIM timer.
func (a *Association) awaitRequest() (*Request, error) {
	typ, length, err := a.readPDU(phaseARTIM)
	if err != nil {
		return nil, a.transportLost(err)
	}
	ev, fault := eventOf(typ, length)
	var r *Request
	if ev == evtRQ {
		body, err := a.readBody(length)
		if err != nil {
			return nil, a.transportLost(err)
		}
		if r, fault = decodeRequest(body); fault != nil {
			ev = evtInvalid
		}
	}
	act := a.machine.on(ev)
	if act != ae6 {
		if fault == nil {
			fault = unexpected(typ)
		}
		if act == aa2 {
			return nil, a.remoteAbort(length)
		}
		return nil, a.protocolFault(act, fault)
	}
	a.watch.enter(phaseNone)
	r.RemoteAddr = a.conn.RemoteAddr()
	if c, ok := a.conn.Conn.(*tls.Conn); ok {
		state := c.ConnectionState()
		r.TLS = &state
	}
	return r, nil
}

// check refuses what no configuration could take.
func check(r *Request) (*Acceptance, *Rejection) {
	switch {
	case r.version&1 == 0:
		return nil, RejectProtocol()
	case r.ApplicationContext != ApplicationContext:
		return nil, RejectApplicationContext()
	case len(r.Contexts) == 0 || len(r.Contexts) > contextsMax,
		r.User.MaxLength > 0 && r.User.MaxLength < peerPDUMin:
		return nil, RejectNoReason()
	}
	return nil, nil
}

// establish sends the A-ASSOCIATE-AC.
func (a *Association) establish(r *Request, acc *Acceptance) error {
	p := &acceptPDU{echo: r.echo, appCtx: ApplicationContext, contexts: acc.complete(r)}
	p.user = UserInfo{
		MaxLength:    a.maxPDU,
		ImplClassUID: ImplementationClassUID,
		ImplVersion:  ImplementationVersion,
		AsyncOps:     answerAsync(r.User.AsyncOps, acc.AsyncOps),
		Roles:        cutRoles(r.User.Roles, acc.Roles),
		Extended:     acc.Extended,
	}
	if r.User.Identity != nil && r.User.Identity.ResponseRequested {
		p.user.IdentityResponse = acc.IdentityResponse
	}
	b := appendAccept(nil, p)
	if err := sendable(b, &p.user); err != nil {
		return fmt.Errorf("answer association: %w", err)
	}
	a.request, a.peer = r, r.User
	a.agree(accepted(r.Contexts, p.contexts, p.user.Roles), p.user.AsyncOps)
	if a.machine.on(evtAccept) != ae7 {
		return ErrClosed
	}
	return a.writeControl(b)
}

// agree sets what both sides now know.
func (a *Association) agree(contexts map[byte]Context, async *AsyncOps) {
	a.contexts = contexts
	a.async = AsyncOps{1, 1}
	if async != nil {
		a.async = *async
	}
	peer := int(min(a.peer.MaxLength, sendBytesMax))
	if peer == 0 {
		peer = sendBytesMax
	}
	// Fragments are of even length (PS3.8 §E.2).
	a.sendMax = min(peer-6, sendBytesMax-headBytes-1) &^ 1
}

// IsRejected reports whether err is or wraps a *Rejection.
func IsRejected(err error) bool {
	var r *Rejection
	return errors.As(err, &r)
}
