package scp

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

func TestStorageClasses(t *testing.T) {
	n := 0
	for uid, name := range dicom.StorageClasses {
		n++
		if got, want := isStorage(uid), uid != dicom.MediaStorageDirectoryStorage; got != want {
			t.Errorf("%s (%s): got %v", uid, name, got)
		}
	}
	if n < 170 {
		t.Errorf("%d storage classes", n)
	}
	for uid, want := range map[string]bool{
		"1.2.840.10008.5.1.4.1.1.999.1": true, // the standard may define it yet
		"1.3.12.2.1107.5.9.1":           true, // CSA Non-Image, private
		"1.2.840.113619.4.30":           true,
		dimse.VerificationClass:         false, dimse.StorageCommitmentClass: false, dimse.ModalityWorklistFind: false,
		dimse.ModalityPerformedStep: false, dimse.CompositeInstanceRootGet: false, dimse.PatientStudyOnlyFind: false,
		"1.2.840.10008.5.1.1.9": false, "1.2.840.10008.5.1.1.40.1": false, "1.2.840.10008.5.1.4.34.6.1": false,
		"1.2.840.10008.5.1.4.38.2": false, "1.2.840.10008.5.1.4.39.2": false, "1.2.840.10008.5.1.4.1.1.200.4": false,
		"1.2.840.10008.5.1.4.1.1.201.6": false, "1.2.840.10008.5.1.4.1.1.": false, "": false, "ABC": false,
	} {
		if got := isStorage(uid); got != want {
			t.Errorf("%q: got %v, want %v", uid, got, want)
		}
	}
}

// Behaviour 1.
func TestBehaviour01EveryContextIsAnswered(t *testing.T) {
	s := start(t)
	c := s.client([]string{dimse.VerificationClass, implicit}, []string{dimse.ModalityWorklistFind, explicit},
		[]string{ctStorage, "1.2.840.10008.1.2.6.2"}, []string{"1.2.826.0.1.3680043.2.1545.9", explicit})
	var ids []byte
	for _, pc := range c.Contexts() {
		ids = append(ids, pc.ID)
	}
	if !slices.Equal(ids, []byte{1, 7}) {
		t.Errorf("accepted contexts %v, want 1 and 7", ids)
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Error(err)
	}
	// All rejected is still an acceptance.
	if c, err := s.associate(nil, []string{dimse.ModalityWorklistFind, explicit}); err != nil || len(c.Contexts()) != 0 {
		t.Errorf("got %v, want an association without contexts", err)
	}
}

// Behaviour 2.
func TestBehaviour02SyntaxIsRememberedByContext(t *testing.T) {
	s := start(t)
	c := s.client([]string{ctStorage, implicit}, []string{ctStorage, dicom.JPEGLSLossless}, []string{ctStorage, implicit, explicit},
		[]string{ctStorage, "1.2.3.4", implicit}, []string{ctStorage, "1.2.3.4"}, []string{ctStorage, dicom.ExplicitVRBigEndian, explicit})
	var got []string
	for _, pc := range c.Contexts() {
		got = append(got, pc.TransferSyntax)
	}
	if want := []string{implicit, dicom.JPEGLSLossless, explicit, implicit, "1.2.3.4", dicom.ExplicitVRBigEndian}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Behaviours 3, 4.
func TestBehaviour03And04TitlesAndRejections(t *testing.T) {
	s := start(t, func(c *Config) {
		c.StrictCalled, c.Promiscuous = true, false
		c.Peer = func(title string, _ netip.Addr) Peer { return Peer{Known: title == "TESTSCU"} }
	})
	for _, tt := range []struct {
		name            string
		calling, called string
		want            *dul.Rejection
	}{
		{"known", "TESTSCU", "OSTEON", nil},
		{"padded", " TESTSCU", "OSTEON ", nil},
		{"another called title", "TESTSCU", "OTHER", dul.RejectCalledAE()},
		{"unknown caller", "NOBODY", "OSTEON", dul.RejectCallingAE()},
	} {
		_, err := s.associate(func(c *dul.RequestorConfig) { c.CallingAE, c.CalledAE = tt.calling, tt.called }, []string{dimse.VerificationClass, implicit})
		var got *dul.Rejection
		errors.As(err, &got)
		if (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	s.archive.Drain()
	_, err := s.associate(nil, []string{dimse.VerificationClass, implicit})
	var got *dul.Rejection
	if !errors.As(err, &got) || !got.Transient() {
		t.Errorf("draining: got %v, want a transient rejection", err)
	}
}

// Behaviour 13.
func TestBehaviour13Roles(t *testing.T) {
	s := start(t)
	c, err := s.associate(func(c *dul.RequestorConfig) {
		c.Roles = []dul.Role{{SOPClass: ctStorage, SCP: true}, {SOPClass: dimse.StudyRootFind, SCU: true, SCP: true}}
	}, []string{ctStorage, explicit}, []string{dimse.StudyRootFind, explicit}, []string{mrStorage, explicit})
	if err != nil {
		t.Fatal(err)
	}
	for _, pc := range c.Contexts() {
		if want := pc.AbstractSyntax == ctStorage; pc.RequestorSCP != want || pc.RequestorSCU == want {
			t.Errorf("%s: roles SCU %v SCP %v", pc.AbstractSyntax, pc.RequestorSCU, pc.RequestorSCP)
		}
	}
}

// Behaviour 14.
func TestBehaviour14ExtendedNegotiation(t *testing.T) {
	s := start(t)
	c, err := s.associate(func(c *dul.RequestorConfig) {
		c.Extended = []dul.ExtendedNegotiation{
			{SOPClass: dimse.StudyRootFind, Info: []byte{1, 1, 1, 1}},
			{SOPClass: ctStorage, Info: []byte{2, 0, 0, 0, 2, 0}},
			{SOPClass: "1.2.840.10008.5.1.4.31", Info: []byte{1}},
		}
		c.CommonExtended = []dul.CommonExtended{{SOPClass: "1.2.3.4.5", ServiceClass: "1.2.840.10008.4.2"}, {SOPClass: "1.2.3.4.6", ServiceClass: "1.2.3"}}
	}, []string{dimse.StudyRootFind, explicit}, []string{ctStorage, explicit}, []string{"1.2.3.4.5", explicit}, []string{"1.2.3.4.6", explicit})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string][]byte{}
	for _, e := range c.Association().Peer().Extended {
		answers[e.SOPClass] = e.Info
	}
	if got := answers[dimse.StudyRootFind]; !slices.Equal(got, []byte{1, 0, 0, 0}) {
		t.Errorf("queries: got % X, want relational alone", got)
	}
	if got := answers[ctStorage]; !slices.Equal(got, []byte{2, 0, 3, 0, 0, 0}) {
		t.Errorf("storage: got % X, want level 2, signatures 3, no coercion", got)
	}
	if len(answers) != 2 {
		t.Errorf("%d answers, want 2", len(answers))
	}
	if n := len(c.Contexts()); n != 3 {
		t.Errorf("%d contexts accepted, want 3: one is no storage class by its own word", n)
	}
	// Relational was agreed to: no Study Instance UID is needed.
	s.put(image("1.2.3", "1.2.3.1", "1.2.3.1.1", 100), explicit)
	list, status := findOn(t, c, dimse.StudyRootFind, identifier("IMAGE", dicom.Modality, "CT", dicom.SOPInstanceUID, ""))
	if status != nil || len(list) != 1 {
		t.Errorf("relational query: %d answers, %v", len(list), status)
	}
}
