package dicomsvc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// explosive is a data set on which whoever reads it panics, as a decoder with a fault does.
type explosive struct {
	data io.Reader
	read int
}

func (e *explosive) Read(p []byte) (int, error) {
	if e.read++; e.read > 1 {
		panic("planted")
	}
	return e.data.Read(p[:min(len(p), 64)])
}

// putExplosive stores an object that makes the archive panic and says whether it did.
func putExplosive(s *solo, from, claimed string) (panicked bool, err error) {
	defer func() { panicked = recover() != nil }()
	_, err = s.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: from}, ClaimedUID: claimed,
		TransferSyntaxUID: dicom.ExplicitVRLittleEndian,
		Body:              &explosive{data: bytes.NewReader(object(s.t, "1.2.3", "1.2.3.1", claimed, 1000, "P1"))},
	})
	return false, err
}

// F56: an object that made the node panic three times is refused before a byte of it is read; others of the same
// sender and the same object of another are not.
func TestF56PoisonIsRefusedAfterThreeStrikes(t *testing.T) {
	s := newSolo(t)
	for strike := range 3 {
		if panicked, err := putExplosive(s, "CT1", "6.6.6"); !panicked {
			t.Fatalf("strike %d: no panic passed through Put, error %v", strike, err)
		}
	}
	panicked, err := putExplosive(s, "CT1", "6.6.6")
	if panicked || !errors.Is(err, dicomsvc.ErrPoison) || dicomsvc.DIMSEStatus(err) != 0xC0F0 {
		t.Errorf("fourth time: panicked %v, error %v, status %04X; want ErrPoison, C0F0", panicked, err, dicomsvc.DIMSEStatus(err))
	}
	list := s.archive.Poison()
	if len(list) != 1 || list[0].Caller != "CT1" || list[0].SOPInstanceUID != "6.6.6" || list[0].Strikes != 3 || !list[0].Refused {
		t.Errorf("listed: %+v", list)
	}
	if panicked, _ := putExplosive(s, "MR1", "6.6.6"); !panicked {
		t.Error("another sender is refused for it")
	}
	if got := s.put(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")); got.Outcome != dicomsvc.OutcomeStored {
		t.Errorf("a good object: %v", got.Outcome)
	}
	if _, err := s.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "CT1"}, ClaimedUID: "1.2.3.1.2",
		TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.2", 1000, "P1")),
	}); err != nil {
		t.Errorf("a good object of the same sender: %v", err)
	}
	for i := range 3000 { // what is remembered is bounded
		putExplosive(s, "CT1", fmt.Sprintf("7.%d", i))
	}
	if n := len(s.archive.Poison()); n != 1024 {
		t.Errorf("%d objects are remembered, want 1024", n)
	}
}
