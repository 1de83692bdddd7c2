package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/node"
)

func put(n *node.Node, number int) error {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.SetStrings(dicom.SOPInstanceUID, fmt.Sprintf("2.25.1.1.%d", number))
	d.SetStrings(dicom.StudyInstanceUID, "2.25.1")
	d.SetStrings(dicom.SeriesInstanceUID, "2.25.1.1")
	d.SetStrings(dicom.PatientID, "P")
	data, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		return err
	}
	_, err = n.Archive().Put(context.Background(), dicomsvc.PutRequest{
		Principal:         dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"},
		TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(data),
	})
	return err
}

// A ring that is stored to survives kills and power cuts of each of its nodes and of all at once.
func TestRingSurvivesPowerCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := New(t, Config{Seed: 1})
		defer ring.Close()
		ring.Found("a1", "a")
		ring.Join("b1", "b")
		ring.Join("c1", "c")
		ring.AwaitReady()
		stored := 0
		store := func() {
			for _, n := range ring.Nodes() {
				stored++
				ring.Await("stored", func() bool { return put(n.Node(), stored) == nil })
			}
		}
		complete := func() bool {
			for _, n := range ring.Nodes() {
				if s, err := n.Node().Archive().Study(t.Context(), "2.25.1"); err != nil || s.Instances != stored {
					return false
				}
			}
			return true
		}
		store()
		for _, n := range ring.Nodes() {
			n.Kill()
			n.Start()
			ring.AwaitReady()
			store()
			n.PowerCut(0.5)
			n.Start()
			ring.AwaitReady()
			store()
		}
		for _, n := range ring.Nodes() {
			n.PowerCut(0)
		}
		for _, n := range ring.Nodes() {
			n.Start()
		}
		ring.AwaitReady()
		ring.Await("all are known everywhere", complete)
		t.Logf("%d instances, virtual time %s", stored, time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)))
	})
}

// What Sub says of two times of a clock that was set between them is what passed.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock()
		a, right := c.Now(), time.Now()
		if !a.Equal(right) {
			t.Errorf("a clock that is right shows %v at %v", a, right)
		}
		time.Sleep(3 * time.Second)
		c.Set(-10 * time.Minute)
		b := c.Now()
		if got := b.Sub(a); got != 3*time.Second {
			t.Errorf("%v passed across a jump, want 3s", got)
		}
		if got := b.Round(0).Sub(a.Round(0)); got != 3*time.Second-10*time.Minute {
			t.Errorf("the wall clock moved by %v, want -9m57s", got)
		}
		if got, want := b.Sub(origin), time.Since(origin); got != want {
			t.Errorf("%v passed since the real clock's origin, want %v: deadlines of libraries are wrong", got, want)
		}
		c.Freeze()
		frozen := c.Now()
		time.Sleep(time.Minute)
		if got := c.Now(); !got.Round(0).Equal(frozen.Round(0)) || got.Sub(frozen) != time.Minute {
			t.Errorf("a frozen clock went from %v to %v, %v passed", frozen, got, got.Sub(frozen))
		}
	})
}
