package dul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// RequestorConfig says what association to ask for. Both titles and at least
// one context are required; every other zero value is good.
type RequestorConfig struct {
	CallingAE, CalledAE string // at most 16 bytes
	Contexts            []ProposedContext
	Roles               []Role
	Extended            []ExtendedNegotiation
	CommonExtended      []CommonExtended
	AsyncOps            *AsyncOps
	Identity            *UserIdentity
	// MaxPDU is the maximum length announced, AdvertisedPDU if 0; at most
	// 256 KiB.
	MaxPDU uint32
	Timers Timers
	Log    *slog.Logger // nil discards
}

// Validate reports everything that is wrong with the configuration.
func (c *RequestorConfig) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.CallingAE) > 16 || c.CallingAE == "" || len(c.CalledAE) > 16 || c.CalledAE == "" {
		fault("AE titles have 1 to 16 bytes")
	}
	if len(c.Contexts) == 0 || len(c.Contexts) > contextsMax {
		fault("%d presentation contexts, want 1 to %d", len(c.Contexts), contextsMax)
	}
	var seen [256]bool
	for _, pc := range c.Contexts {
		if pc.ID%2 == 0 || seen[pc.ID] {
			fault("presentation context id %d is even or repeated", pc.ID)
		}
		seen[pc.ID] = true
		if pc.AbstractSyntax == "" || len(pc.TransferSyntaxes) == 0 {
			fault("presentation context %d lacks a syntax", pc.ID)
		}
	}
	return errors.Join(errs...)
}

// Connect asks for an association on conn, which it owns from now on: also
// when it fails conn is closed. It returns an established association, a
// *Rejection when the peer refuses, an *AbortError, ErrARTIM when no answer
// comes in time, or the transport's error. An acceptance of no context is
// still an association. It is aborted when ctx ends. PS3.8 §9.2, states 4
// and 5.
func Connect(ctx context.Context, conn net.Conn, cfg RequestorConfig) (*Association, error) {
	if err := cfg.Validate(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("request association: %w", err)
	}
	a := newAssociation(conn, cfg.Timers, true, cfg.Log)
	if cfg.MaxPDU > 0 {
		a.maxPDU = min(cfg.MaxPDU, pduBytesMax)
	}
	a.follow(ctx)
	if err := a.connect(cfg); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Association) connect(cfg RequestorConfig) error {
	if err := a.ask(cfg); err != nil {
		return err
	}
	return a.awaitAnswer()
}

// ask sends the A-ASSOCIATE-RQ.
func (a *Association) ask(cfg RequestorConfig) error {
	a.request = &Request{
		CalledAE: cfg.CalledAE, CallingAE: cfg.CallingAE,
		ApplicationContext: ApplicationContext, Contexts: cfg.Contexts,
		User: UserInfo{
			MaxLength: a.maxPDU, ImplClassUID: ImplementationClassUID, ImplVersion: ImplementationVersion,
			AsyncOps: cfg.AsyncOps, Roles: cfg.Roles, Extended: cfg.Extended,
			CommonExtended: cfg.CommonExtended, Identity: cfg.Identity,
		},
		RemoteAddr: a.conn.RemoteAddr(),
	}
	a.machine.on(evtAssociateRequest)
	a.machine.on(evtTransportConfirmed)
	b := appendRequest(nil, a.request)
	if err := sendable(b, &a.request.User); err != nil {
		return fmt.Errorf("request association: %w", err)
	}
	return a.writeControl(b)
}

// awaitAnswer reads the A-ASSOCIATE-AC or -RJ.
func (a *Association) awaitAnswer() error {
	typ, length, err := a.readPDU(phaseARTIM)
	if err != nil {
		return a.transportLost(err)
	}
	ev, fault := eventOf(typ, length)
	var body []byte
	var ac *acceptPDU
	if ev == evtAC || ev == evtRJ {
		if body, err = a.readBody(length); err != nil {
			return a.transportLost(err)
		}
	}
	if ev == evtAC {
		if ac, fault = decodeAccept(body); fault == nil && ac.user.MaxLength > 0 && ac.user.MaxLength < peerPDUMin {
			fault = invalid("maximum length %d", ac.user.MaxLength)
		}
		if fault != nil {
			ev = evtInvalid
		}
	}
	switch act := a.machine.on(ev); act {
	case ae3:
		a.peer = ac.user
		roles := cutRoles(a.request.User.Roles, ac.user.Roles)
		a.agree(accepted(a.request.Contexts, ac.contexts, roles), ac.user.AsyncOps)
		a.watch.enter(phaseNone)
		return nil
	case ae4:
		a.conn.Close()
		return &Rejection{Result: body[1], Source: body[2], Reason: body[3]}
	case aa3:
		return a.remoteAbort(length)
	default:
		if fault == nil {
			fault = unexpected(typ)
		}
		return a.protocolFault(act, fault)
	}
}

// Release releases the association and closes the transport, dropping data
// that still arrives; a release the peer asks for at the same time is answered
// as PS3.8 §9.2 wants it. It must not run beside Next. The peer has the ARTIM
// time for its answer; when ctx ends the association is aborted.
func (a *Association) Release(ctx context.Context) error {
	defer a.Close()
	stop := context.AfterFunc(ctx, a.Abort)
	defer stop()
	if a.in.reading && !(a.in.last && a.in.left == 0) {
		a.Abort() // in the middle of a message the stream cannot be left in order
		return ErrClosed
	}
	if a.machine.on(evtReleaseRequest) != ar1 {
		return ErrClosed
	}
	if err := a.writeControl(releaseRQPDU()); err != nil {
		return err
	}
	a.watch.enter(phaseARTIM)
	if _, err := a.br.Discard(int(a.pduLeft)); err != nil {
		return a.transportLost(midPDU(err))
	}
	a.pduLeft = 0
	for {
		done, err := a.awaitRelease()
		if done || err != nil {
			return err
		}
	}
}

// awaitRelease handles one PDU while a release is under way.
func (a *Association) awaitRelease() (done bool, err error) {
	typ, length, err := a.readPDU(phaseARTIM)
	if err != nil {
		if werr := a.watch.err(); werr == ErrARTIM {
			a.conn.SetDeadline(time.Time{})
			a.abortWith(SourceUser, ReasonNotSpecified)
			return false, &AbortError{Source: SourceUser, Cause: ErrARTIM}
		}
		return false, a.transportLost(err)
	}
	ev, fault := eventOf(typ, length)
	act := a.machine.on(ev)
	if act == aa3 {
		return false, a.remoteAbort(length)
	}
	if ev != evtInvalid {
		if _, err := a.br.Discard(int(length)); err != nil {
			return false, a.transportLost(midPDU(err))
		}
	}
	switch act {
	case ar3:
		a.conn.Close()
		return true, nil
	case ar6:
		return false, nil
	case ar8:
		if a.machine.on(evtReleaseResponse) == ar9 {
			return false, a.writeControl(releaseRPPDU())
		}
		return false, nil // Sta10: the other side answers first
	case ar10:
		a.machine.on(evtReleaseResponse)
		a.inStep = true
		return true, a.writeControl(releaseRPPDU())
	default:
		if fault == nil {
			fault = unexpected(typ)
		}
		return false, a.protocolFault(act, fault)
	}
}
