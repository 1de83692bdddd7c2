package scp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// Peer is what is known of a calling title at an address. The zero value is a stranger.
type Peer struct {
	// Known: the title is registered and may call from there.
	Known bool
	// Elsewhere: the title is registered, for other addresses.
	Elsewhere bool
	// Aliases are titles besides this node's own under which it may call us.
	Aliases []string
	// Issuer is the issuer of the patient IDs in its objects that name none.
	Issuer string
}

// peer looks a caller up.
func (s *Server) peer(r *dul.Request) Peer {
	return s.cfg.Peer(r.CallingAE, addressOf(r.RemoteAddr))
}

// addressOf returns the IP address of a network address, the zero value when it has none.
func addressOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// hostOf is addressOf as text, empty when there is none.
func hostOf(a net.Addr) string {
	if at := addressOf(a); at.IsValid() {
		return at.String()
	}
	return ""
}

// sameTitle compares AE titles: exactly, case included (PS3.5 §6.2), or regardless of case where LaxTitles is set.
func (s *Server) sameTitle(a, b string) bool {
	return a == b || s.cfg.LaxTitles && strings.EqualFold(a, b)
}

// judge returns why an association is rejected (PS3.8 §9.3.4), nil when it is not. The called title comes first: who
// calls another title means another machine.
func (s *Server) judge(r *dul.Request, p Peer) *dimse.Decision {
	reject := func(rej *dul.Rejection, why, do string) *dimse.Decision {
		return &dimse.Decision{Rejection: rej, Advice: dimse.Advice{Why: why, Do: do}}
	}
	called := func(title string) bool { return s.sameTitle(title, r.CalledAE) }
	switch {
	case errors.Is(s.cfg.Archive.Ready(), dicomsvc.ErrDraining): // a full disk refuses objects, not reads
		return reject(dul.RejectCongestion(), dicomsvc.ErrDraining.Error(), dicomsvc.Remedy(dicomsvc.ErrDraining))
	case s.cfg.StrictCalled && !called(s.cfg.AETitle) && !slices.ContainsFunc(p.Aliases, called):
		return reject(dul.RejectCalledAE(), "the called title is not this node's",
			"let the peer call "+s.cfg.AETitle+", register the title as its alias, or set dimse.strict_called: false in the configuration")
	case p.Elsewhere:
		return reject(dul.RejectCallingAE(), "the calling title is registered for other addresses",
			"if this is the AE, register its address: osteon ae add --replace with --from; else find out who calls under its title")
	case p.Known || s.cfg.Promiscuous:
		return nil
	case !s.cfg.Settled():
		return reject(dul.RejectCongestion(), "this node does not have the ring's registry of AEs yet", "try again, or use another node of the ring")
	}
	return reject(dul.RejectCallingAE(), "the calling title is not registered",
		"register the AE with osteon ae add, or set promiscuous where only this machine can call")
}

// permitted tells which actions a caller may take; each is asked for once.
func (s *Server) permitted(p dicomsvc.Principal) func(dicomsvc.Action) bool {
	known := map[dicomsvc.Action]bool{}
	return func(act dicomsvc.Action) bool {
		may, asked := known[act]
		if !asked {
			may = s.cfg.Archive.Permits(p, act)
			known[act] = may
		}
		return may
	}
}

// actionOf is the action that the service of a SOP class is; none of those that everybody may use.
func actionOf(abstract string) (act dicomsvc.Action, limited bool) {
	switch abstract {
	case dimse.VerificationClass:
		return "", false
	case dimse.PatientRootFind, dimse.StudyRootFind:
		return dicomsvc.ActionQuery, true
	case dimse.PatientRootMove, dimse.StudyRootMove, dimse.PatientRootGet, dimse.StudyRootGet:
		return dicomsvc.ActionRetrieve, true
	case dimse.StorageCommitmentClass:
		return dicomsvc.ActionCommit, true
	case dimse.ModalityWorklistFind:
		return dicomsvc.ActionWorklist, true
	case dimse.ModalityPerformedStep:
		return dicomsvc.ActionMPPS, true
	}
	return dicomsvc.ActionStore, isStorage(abstract)
}

// restrict takes back what the caller may not use: its contexts are refused with result 1, user-rejection (PS3.8
// §9.3.3.2). Who may retrieve and not store keeps the storage classes in which it offers to be the SCP, for C-GET,
// without the role of the SCU (PS3.7 §D.3.3.4); a C-STORE all the same is answered 0124H, not authorised.
func restrict(r *dul.Request, a *dul.Acceptance, may func(dicomsvc.Action) bool) {
	receives := map[string]bool{}
	for i, role := range a.Roles {
		receives[role.SOPClass] = role.SCP && may(dicomsvc.ActionRetrieve)
		a.Roles[i].SCU = role.SCU && may(dicomsvc.ActionStore)
		a.Roles[i].SCP = receives[role.SOPClass]
	}
	for i, c := range a.Contexts {
		abstract := r.Contexts[i].AbstractSyntax
		act, limited := actionOf(abstract)
		if c.Result != dul.ContextAccepted || !limited || may(act) || act == dicomsvc.ActionStore && receives[abstract] {
			continue
		}
		a.Contexts[i] = dul.ContextResult{ID: c.ID, Result: dul.ContextUserRejection}
	}
}

// dialAny connects to the first of the addresses that answers.
func (s *Server) dialAny(ctx context.Context, addresses []string) (conn net.Conn, err error) {
	for _, address := range addresses {
		connecting, cancel := context.WithTimeout(ctx, s.waits.connect)
		conn, err = s.cfg.Dial(connecting, address)
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return conn, err
}
