package dimse

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"

	"osteon/dicomsvc/dul"
)

// A user identity that nothing here can verify is refused with the standard's triple; a response goes out only where
// one was asked for, empty for user names, and what the verifier gives otherwise.
// Behaviour 15.
func TestBehaviour15UserIdentity(t *testing.T) {
	verify := func(_ context.Context, r *dul.Request) ([]byte, error) {
		id := r.User.Identity
		switch {
		case string(id.Primary) != "proof":
			return nil, errors.New("not proven")
		case id.Type == dul.IdentityKerberos:
			return []byte("ticket"), nil
		}
		return nil, nil
	}
	for _, c := range []struct {
		name     string
		verify   func(context.Context, *dul.Request) ([]byte, error)
		identity *dul.UserIdentity
		refused  bool
		response []byte // nil: none is sent
	}{
		{"none", verify, nil, false, nil},
		{"name, nothing verifies", nil, &dul.UserIdentity{Type: dul.IdentityUsername, Primary: []byte("anybody"), ResponseRequested: true}, false, []byte{}},
		{"name, no response asked", nil, &dul.UserIdentity{Type: dul.IdentityUsername, Primary: []byte("anybody")}, false, nil},
		{"passcode, nothing verifies", nil, &dul.UserIdentity{Type: dul.IdentityPasscode, Primary: []byte("proof"), Secondary: []byte("x")}, true, nil},
		{"Kerberos, nothing verifies", nil, &dul.UserIdentity{Type: dul.IdentityKerberos, Primary: []byte("proof")}, true, nil},
		{"SAML, nothing verifies", nil, &dul.UserIdentity{Type: dul.IdentitySAML, Primary: []byte("proof")}, true, nil},
		{"JWT, nothing verifies", nil, &dul.UserIdentity{Type: dul.IdentityJWT, Primary: []byte("proof")}, true, nil},
		{"type 0", verify, &dul.UserIdentity{Type: 0, Primary: []byte("proof")}, true, nil},
		{"type 6", verify, &dul.UserIdentity{Type: 6, Primary: []byte("proof")}, true, nil},
		{"name refused", verify, &dul.UserIdentity{Type: dul.IdentityUsername, Primary: []byte("other")}, true, nil},
		{"passcode refused", verify, &dul.UserIdentity{Type: dul.IdentityPasscode, Primary: []byte("other"), ResponseRequested: true}, true, nil},
		{"passcode", verify, &dul.UserIdentity{Type: dul.IdentityPasscode, Primary: []byte("proof"), ResponseRequested: true}, false, []byte{}},
		{"Kerberos", verify, &dul.UserIdentity{Type: dul.IdentityKerberos, Primary: []byte("proof"), ResponseRequested: true}, false, []byte("ticket")},
		{"Kerberos, no response asked", verify, &dul.UserIdentity{Type: dul.IdentityKerberos, Primary: []byte("proof")}, false, nil},
		{"SAML", verify, &dul.UserIdentity{Type: dul.IdentitySAML, Primary: []byte("proof"), ResponseRequested: true}, false, []byte{}},
		{"JWT", verify, &dul.UserIdentity{Type: dul.IdentityJWT, Primary: []byte("proof"), ResponseRequested: true}, false, []byte{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, &archive{}, func(cfg *ServerConfig) { cfg.Verify = c.verify })
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.dialConfig()
			cfg.Association.Identity = c.identity
			client, err := Dial(t.Context(), conn, cfg)
			if c.refused {
				var rej *dul.Rejection
				if !errors.As(err, &rej) || rej.Code() != "1/2/1" {
					t.Fatalf("got %v, want 1/2/1", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			got := client.Association().Peer().IdentityResponse
			if (got == nil) != (c.response == nil) || !bytes.Equal(got, c.response) {
				t.Errorf("response %q, want %q", got, c.response)
			}
			if err := client.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// DCMTK asks for a positive response and goes on only when it gets one.
// Behaviour 15.
func TestBehaviour15DCMTK(t *testing.T) {
	a := &archive{}
	s := start(t, a, func(cfg *ServerConfig) {
		cfg.Verify = func(_ context.Context, r *dul.Request) ([]byte, error) {
			if string(r.User.Identity.Primary) != "someone" || string(r.User.Identity.Secondary) != "secret" {
				return nil, errors.New("not proven")
			}
			return nil, nil
		}
	})
	file := part10(t, t.TempDir(), uidOf(1), 1<<10)
	dcmtk(t, "1", "storescu", append(s.target("-usr", "someone", "-pwd", "secret", "-rsp"), file)...)
	if n := len(a.list()); n != 1 {
		t.Errorf("%d objects", n)
	}
	plain := start(t, a)
	dcmtk(t, "1", "storescu", append(plain.target("-usr", "someone", "-rsp"), file)...)
	if n := len(a.list()); n != 2 {
		t.Errorf("%d objects", n)
	}
}
