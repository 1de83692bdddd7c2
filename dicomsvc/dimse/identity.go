package dimse

import (
	"context"

	"osteon/dicomsvc/dul"
)

// identify judges the user identity that a request carries (PS3.7 §D.3.3.7) and gives the server response, which goes
// out only where one was asked for.
//
// A user name alone (type 1) proves nothing and claims nothing here: it is let in, with the empty response that the
// standard has for it, and not used. A passcode, a Kerberos ticket, a SAML assertion and a JSON Web Token (types 2 to 5)
// are shown to be checked: without a Verify nothing could, so they are refused, as are types that the standard does not have.
// To answer them positively would tell the peer that its user was authenticated.
func (s *Server) identify(ctx context.Context, r *dul.Request) (response []byte, rej *dul.Rejection, advice Advice) {
	id := r.User.Identity
	switch {
	case id == nil:
		return nil, nil, Advice{}
	case id.Type < dul.IdentityUsername || id.Type > dul.IdentityJWT:
		return nil, dul.RejectIdentity(), Advice{"the user identity is of a type that does not exist", "tell the maker of the peer's software"}
	case s.cfg.Verify == nil && id.Type == dul.IdentityUsername:
		return []byte{}, nil, Advice{}
	case s.cfg.Verify == nil:
		return nil, dul.RejectIdentity(), Advice{"the peer shows a user identity, and nothing here can verify it", "turn user identity negotiation off at the peer"}
	}
	response, err := s.cfg.Verify(ctx, r)
	if err != nil {
		return nil, dul.RejectIdentity(), Advice{"the user identity was not verified", "see whether the credentials configured at the peer are valid"}
	}
	if response == nil {
		response = []byte{}
	}
	return response, nil, Advice{}
}
