package dul

import "slices"

// Context is an accepted presentation context.
type Context struct {
	ID             byte
	AbstractSyntax string
	TransferSyntax string
	// The roles the association requestor has in this context. Without role
	// selection it is SCU only.
	RequestorSCU, RequestorSCP bool
}

// Acceptance is the answer to a Request that is not refused. Contexts left
// out are answered "no reason".
type Acceptance struct {
	Contexts []ContextResult
	Roles    []Role // never more than was proposed: Accept cuts them
	Extended []ExtendedNegotiation
	// AsyncOps is the largest window to agree to; nil means (1,1). The answer
	// never exceeds the proposal.
	AsyncOps *AsyncOps
	// IdentityResponse is sent when the peer asked for one; nil means none.
	IdentityResponse []byte
}

// Policy says which presentation contexts a server takes.
type Policy struct {
	// Syntaxes returns the transfer syntaxes acceptable for an abstract
	// syntax, best first, or nil if the abstract syntax is not supported.
	Syntaxes func(abstract string) []string
	// RequestorOrder prefers the requestor's order of transfer syntaxes to
	// that of Syntaxes.
	RequestorOrder bool
	// SCPRole reports whether the requestor may be SCP for an abstract syntax
	// (C-GET storage, storage commitment reports). Nil means never.
	SCPRole func(abstract string) bool
}

// Answer decides every proposed context: exactly one transfer syntax for each
// accepted one, remembered by context and not by abstract syntax, and the
// role selections (PS3.8 §9.3.2.2, §9.3.3.2; PS3.7 §D.3.3.4). It cannot fail:
// when nothing is acceptable the answer is an acceptance of no context.
func (p Policy) Answer(r *Request) *Acceptance {
	a := &Acceptance{}
	for _, pc := range r.Contexts {
		a.Contexts = append(a.Contexts, p.answer(pc))
	}
	for _, role := range r.User.Roles {
		if p.Syntaxes(role.SOPClass) == nil {
			continue
		}
		scp := role.SCP && p.SCPRole != nil && p.SCPRole(role.SOPClass)
		a.Roles = append(a.Roles, Role{SOPClass: role.SOPClass, SCU: role.SCU, SCP: scp})
	}
	return a
}

func (p Policy) answer(pc ProposedContext) ContextResult {
	res := ContextResult{ID: pc.ID, Result: ContextTransferSyntaxes}
	ours := p.Syntaxes(pc.AbstractSyntax)
	if ours == nil {
		res.Result = ContextAbstractSyntax
		return res
	}
	first, second := ours, pc.TransferSyntaxes
	if p.RequestorOrder {
		first, second = second, first
	}
	for _, s := range first {
		if slices.Contains(second, s) {
			res.Result, res.TransferSyntax = ContextAccepted, s
			break
		}
	}
	return res
}

// complete gives the results of a in the order of r, one for each proposed
// context, and never accepts a syntax that was not proposed.
func (a *Acceptance) complete(r *Request) []ContextResult {
	out := make([]ContextResult, 0, len(r.Contexts))
	for _, pc := range r.Contexts {
		res := ContextResult{ID: pc.ID, Result: ContextNoReason}
		for _, c := range a.Contexts {
			if c.ID == pc.ID {
				res = c
			}
		}
		if res.Result == ContextAccepted && !slices.Contains(pc.TransferSyntaxes, res.TransferSyntax) {
			res.Result = ContextTransferSyntaxes
		}
		if res.Result != ContextAccepted {
			// Not significant, but the sub-item must be there.
			res.TransferSyntax = firstOr(pc.TransferSyntaxes, "1.2.840.10008.1.2")
		}
		out = append(out, res)
	}
	return out
}

func firstOr(s []string, other string) string {
	if len(s) > 0 {
		return s[0]
	}
	return other
}

// cutRoles keeps the answered roles that were proposed, and of each no more
// than was proposed. An answer of no role at all is left out: the default
// roles hold.
func cutRoles(proposed, answered []Role) []Role {
	var out []Role
	for _, p := range proposed {
		for _, a := range answered {
			if a.SOPClass != p.SOPClass {
				continue
			}
			cut := Role{SOPClass: p.SOPClass, SCU: a.SCU && p.SCU, SCP: a.SCP && p.SCP}
			if cut.SCU || cut.SCP {
				out = append(out, cut)
			}
			break
		}
	}
	return out
}

// answerAsync never exceeds the proposal; no proposal, no answer.
func answerAsync(proposed, allowed *AsyncOps) *AsyncOps {
	if proposed == nil {
		return nil
	}
	if allowed == nil {
		allowed = &AsyncOps{1, 1}
	}
	return &AsyncOps{
		Invoked:   smallerWindow(proposed.Invoked, allowed.Invoked),
		Performed: smallerWindow(proposed.Performed, allowed.Performed),
	}
}

// smallerWindow is the minimum where 0 stands for infinity.
func smallerWindow(a, b uint16) uint16 {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

// accepted joins proposals and results into the contexts in force.
func accepted(proposed []ProposedContext, results []ContextResult, roles []Role) map[byte]Context {
	out := make(map[byte]Context, len(results))
	for _, pc := range proposed {
		for _, res := range results {
			if res.ID != pc.ID || res.Result != ContextAccepted {
				continue
			}
			c := Context{ID: pc.ID, AbstractSyntax: pc.AbstractSyntax, TransferSyntax: res.TransferSyntax, RequestorSCU: true}
			for _, r := range roles {
				if r.SOPClass == pc.AbstractSyntax {
					c.RequestorSCU, c.RequestorSCP = r.SCU, r.SCP
				}
			}
			out[pc.ID] = c
		}
	}
	return out
}
