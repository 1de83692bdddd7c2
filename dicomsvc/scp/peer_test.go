package scp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

// Behaviours 3, 4.
func TestBehaviour03And04WhoMayCall(t *testing.T) {
	peers := func(title string, from netip.Addr) Peer {
		switch {
		case from != netip.MustParseAddr("127.0.0.1"):
			t.Errorf("asked for address %s", from)
		case title == "CT1":
			return Peer{Known: true, Aliases: []string{"OLDPACS"}}
		case title == "MOVED":
			return Peer{Elsewhere: true}
		}
		return Peer{}
	}
	for _, tt := range []struct {
		name, calling, called string
		change                func(*Config)
		want                  string
	}{
		{"its own title", "CT1", "OSTEON", nil, ""},
		{"an alias", "CT1", "OLDPACS", nil, ""},
		{"an alias of another", "STRANGER", "OLDPACS", func(c *Config) { c.Promiscuous = true }, "1/1/7"},
		{"another case", "CT1", "Osteon", nil, "1/1/7"},
		{"another case, lax", "CT1", "Osteon", func(c *Config) { c.LaxTitles = true }, ""},
		{"an alias in another case, lax", "CT1", "oldpacs", func(c *Config) { c.LaxTitles = true }, ""},
		{"a stranger", "STRANGER", "OSTEON", nil, "1/1/3"},
		{"a stranger where any may call", "STRANGER", "OSTEON", func(c *Config) { c.Promiscuous = true }, ""},
		{"a known title elsewhere", "MOVED", "OSTEON", nil, "1/1/3"},
		{"a known title elsewhere where any may call", "MOVED", "OSTEON", func(c *Config) { c.Promiscuous = true }, "1/1/3"},
		{"a stranger before the registry is there", "STRANGER", "OSTEON", func(c *Config) { c.Settled = func() bool { return false } }, "2/3/1"},
		{"a known one before the registry is there", "CT1", "OSTEON", func(c *Config) { c.Settled = func() bool { return false } }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := refusal.NewLog(refusal.Config{Now: time.Now})
			s := start(t, func(c *Config) {
				c.StrictCalled, c.Promiscuous, c.Peer, c.Refusals = true, false, peers, log
				if tt.change != nil {
					tt.change(c)
				}
			})
			_, err := s.associate(func(c *dul.RequestorConfig) { c.CallingAE, c.CalledAE = tt.calling, tt.called }, []string{dimse.VerificationClass, implicit})
			var got *dul.Rejection
			if errors.As(err, &got); got == nil && (err != nil || tt.want != "") || got != nil && got.Code() != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if events := log.Events(time.Time{}, ""); tt.want != "" && (len(events) != 1 || events[0].Code != tt.want || events[0].Why == "" || events[0].Do == "") {
				t.Errorf("the record has %+v", events)
			}
		})
	}
}

// limited starts a service in which the caller may take the given actions only.
func limited(t *testing.T, may ...dicomsvc.Action) *service {
	return start(t, func(c *Config) {
		c.Archive = openArchive(t, t.TempDir(), func(c *dicomsvc.Config) {
			c.Policy.Allow = func(p dicomsvc.Principal, act dicomsvc.Action) bool {
				for _, m := range may {
					if m == act && p.Kind == dicomsvc.PrincipalAE && p.Name == "TESTSCU" {
						return true
					}
				}
				return false
			}
		})
		c.Refusals = refusal.NewLog(refusal.Config{Now: time.Now})
	})
}

// TestServicesAreLimited: a context of a service that the caller may not use is refused by the user, and noted; all others are
// open.
// Behaviour 1.
func TestServicesAreLimited(t *testing.T) {
	contexts := [][]string{{dimse.VerificationClass, implicit}, {ctStorage, explicit}, {dimse.StudyRootFind, explicit},
		{dimse.PatientRootFind, explicit}, {dimse.StudyRootMove, explicit}, {dimse.PatientRootGet, explicit}}
	for _, tt := range []struct {
		may  []dicomsvc.Action
		open string // which contexts are accepted
	}{
		{[]dicomsvc.Action{dicomsvc.ActionStore}, "110000"}, {[]dicomsvc.Action{dicomsvc.ActionQuery}, "101100"},
		{[]dicomsvc.Action{dicomsvc.ActionRetrieve}, "100011"}, {nil, "100000"},
		{[]dicomsvc.Action{dicomsvc.ActionStore, dicomsvc.ActionQuery, dicomsvc.ActionRetrieve}, "111111"},
	} {
		s := limited(t, tt.may...)
		accepted := []byte("000000")
		for _, pc := range s.client(contexts...).Contexts() {
			accepted[pc.ID/2] = '1'
		}
		if string(accepted) != tt.open {
			t.Errorf("%v: accepted %s, want %s", tt.may, accepted, tt.open)
		}
		events := s.cfg.Refusals.Events(time.Time{}, "TESTSCU")
		if refused := tt.open != "111111"; refused != (len(events) == 1) || refused && (events[0].Code != "1" || events[0].Words != "user-rejection") {
			t.Errorf("%v: the record has %+v", tt.may, events)
		}
	}
}

// TestRetrieverMayNotStore: who may only retrieve gets its objects by C-GET over storage contexts, in which its own C-STORE is
// answered 0124H and stores nothing.
// Behaviours 13, 19.
func TestRetrieverMayNotStore(t *testing.T) {
	s := limited(t, dicomsvc.ActionRetrieve)
	open := dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TESTSCU"}
	c, err := s.associate(func(c *dul.RequestorConfig) {
		c.Roles = []dul.Role{{SOPClass: ctStorage, SCU: true, SCP: true}}
	}, []string{dimse.StudyRootGet, explicit}, []string{ctStorage, explicit})
	if err != nil {
		t.Fatal(err)
	}
	if list := c.Contexts(); len(list) != 2 || list[1].RequestorSCU || !list[1].RequestorSCP {
		t.Fatalf("contexts %+v", list)
	}
	data, err := image("1.2.9", "1.2.9.1", "1.2.9.1.1", 1000).Encode(nil, explicit)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Store(t.Context(), dimse.StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2.9.1.1", Syntax: explicit, Data: bytes.NewReader(data)})
	if err != nil || r.Status != dimse.StatusNotAuthorized {
		t.Errorf("store: %04X, %v; want 0124", r.Status, err)
	}
	for in := range s.cfg.Archive.Instances(t.Context(), open, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.9"}}) {
		t.Errorf("stored: %v", in)
	}
}

// TestIssuerOfTheCaller: a patient ID without an issuer belongs to the issuer that the caller is registered with.
func TestIssuerOfTheCaller(t *testing.T) {
	s := start(t, func(c *Config) {
		c.Peer = func(string, netip.Addr) Peer { return Peer{Known: true, Issuer: "HOSPITAL A"} }
	})
	c := s.client([]string{ctStorage, explicit})
	for sop, want := range map[string]string{"1.2.9.1.1": "HOSPITAL A", "1.2.8.1.1": "LAB"} {
		study := sop[:5]
		data, err := image(study, study+".1", sop, 1000, func(d *dicom.Dataset) {
			if want == "LAB" {
				d.SetStrings(dicom.IssuerOfPatientID, "LAB")
			}
		}).Encode(nil, explicit)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := c.Store(t.Context(), dimse.StoreArgs{SOPClass: ctStorage, SOPInstance: sop, Syntax: explicit, Data: bytes.NewReader(data)}); err != nil || r.Status != 0 {
			t.Fatalf("store: %04X, %v", r.Status, err)
		}
		got, err := s.archive.Study(t.Context(), study)
		if err != nil || got.PatientKey.Issuer != want {
			t.Errorf("study %s: issuer %q, %v; want %q", study, got.PatientKey.Issuer, err, want)
		}
	}
}

// TestDestinationWithSeveralAddresses: the next address of a C-MOVE destination is tried where one does not answer.
func TestDestinationWithSeveralAddresses(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	closed.Close()
	s := start(t)
	s.waits.connect = 5 * time.Second
	for i, tt := range []struct {
		addresses []string
		ok        bool
	}{{[]string{gone, s.addr}, true}, {[]string{s.addr, gone}, true}, {[]string{gone}, false}} {
		conn, err := s.dialAny(context.Background(), tt.addresses)
		if (err == nil) != tt.ok {
			t.Errorf("%d: %v", i, err)
		}
		if err == nil {
			if conn.RemoteAddr().String() != s.addr {
				t.Errorf("%d: reached %s", i, conn.RemoteAddr())
			}
			conn.Close()
		}
	}
}
