package scp

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// TestBehaviour33BadDestinations: unreachable, refusing, aborting and silent ones cost no more than they have to.
// Behaviour 33.
func TestBehaviour33BadDestinations(t *testing.T) {
	s := start(t)
	s.series(6, 1000)
	all := []string{"1.2.9.1.1", "1.2.9.1.2", "1.2.9.1.3", "1.2.9.1.4", "1.2.9.1.5", "1.2.9.1.6"}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.destination("GONE", l.Addr().String())
	l.Close()
	s.check("unreachable", s.move(wholeStudy, "GONE", nil), dimse.StatusSubOperations, 0, 6, 0, all...)

	refusing := start(t, func(c *Config) { c.Promiscuous = false })
	s.destination("REFUSES", refusing.addr)
	s.check("refusing", s.move(wholeStudy, "REFUSES", nil), dimse.StatusSubOperations, 0, 6, 0, all...)

	d := &destination{takes: func(class, _ string) bool { return class != ctStorage }}
	s.destinationAt(d)
	s.check("takes other classes", s.move(wholeStudy, "DEST", nil), dimse.StatusSubOperations, 0, 6, 0, all...)
	if len(d.associations) != 1 {
		t.Errorf("%d associations to say so", len(d.associations))
	}

	// One object that the destination dies of does not keep the others away.
	d = &destination{store: func(_ int, r *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		if r.SOPInstance == "1.2.9.1.3" {
			r.Session.Abort()
		}
		return dimse.StoreResponse{}
	}}
	s.destinationAt(d)
	s.check("dies of one", s.move(wholeStudy, "DEST", nil), dimse.StatusCoerced, 5, 1, 0, "1.2.9.1.3")
	if len(d.associations) != 2 {
		t.Errorf("%d associations, want 2", len(d.associations))
	}
	d = &destination{store: func(_ int, r *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		r.Session.Abort()
		return dimse.StoreResponse{}
	}}
	s.destinationAt(d)
	s.check("dies of each", s.move(wholeStudy, "DEST", nil), dimse.StatusSubOperations, 0, 6, 0, all...)
	if len(d.associations) != fruitlessMax {
		t.Errorf("%d associations, want %d", len(d.associations), fruitlessMax)
	}
}

// TestBehaviour34SilentDestination: pending responses come on a timer, but not for ever.
// Behaviour 34.
func TestBehaviour34SilentDestination(t *testing.T) {
	s := start(t)
	s.waits.pending, s.waits.response, s.waits.linger = 5*time.Millisecond, 400*time.Millisecond, 100*time.Millisecond
	s.series(3, 1000)
	silent := make(chan struct{})
	d := &destination{store: func(n int, _ *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		if n == 2 {
			<-silent
		}
		return dimse.StoreResponse{}
	}}
	s.destinationAt(d)
	t.Cleanup(func() { close(silent) })
	waiting := 0
	began := time.Now()
	r := s.move(wholeStudy, "DEST", func(r dimse.Response) bool {
		if r.Counters.Completed == 1 {
			waiting++
		}
		return true
	})
	s.check("silent", r, dimse.StatusCoerced, 1, 2, 0, "1.2.9.1.2", "1.2.9.1.3")
	if waiting < 5 {
		t.Errorf("%d pending responses while the destination was silent", waiting)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if len(d.associations) != 1 {
		t.Errorf("%d associations", len(d.associations))
	}
}

// TestUnreadableObjects: one that fails its check never passes for whole and takes as few others with it as the
// protocol allows.
func TestUnreadableObjects(t *testing.T) {
	s := start(t)
	s.series(2, 1000)
	s.spoil(func() {
		s.put(image("1.2.9", "1.2.9.1", "1.2.9.1.3", 3<<20, func(d *dicom.Dataset) { d.SetInt(dicom.InstanceNumber, 3) }), explicit)
	})
	s.spoil(func() {
		s.put(image("1.2.9", "1.2.9.1", "1.2.9.1.4", 4000, func(d *dicom.Dataset) { d.SetInt(dicom.InstanceNumber, 4) }), explicit)
	})
	s.put(image("1.2.9", "1.2.9.1", "1.2.9.1.5", 3<<20, func(d *dicom.Dataset) { d.SetInt(dicom.InstanceNumber, 5) }), explicit)
	for _, only := range []string{explicit, implicit} {
		d := &destination{takes: func(_, syntax string) bool { return syntax == only }}
		s.destinationAt(d)
		s.check(only, s.move(wholeStudy, "DEST", nil), dimse.StatusCoerced, 3, 2, 0, "1.2.9.1.3", "1.2.9.1.4")
		wait(t, "the associations to end", func() bool { return d.open.Load() == 0 })
		if len(d.got) != 3 || d.got["1.2.9.1.3"] != nil || d.got["1.2.9.1.4"] != nil {
			t.Errorf("%d objects taken for whole", len(d.got))
		}
		if n := len(d.associations); only == implicit && n != 1 || n > 2 {
			t.Errorf("%s: %d associations", only, n)
		}
	}
}

// spoil flips a byte in the middle of what put appends to the journal.
func (s *service) spoil(put func()) {
	s.t.Helper()
	segment := func() (string, []byte) {
		names, _ := filepath.Glob(filepath.Join(s.dir, "journal", "*"))
		var name string
		var b []byte
		for _, n := range names {
			if one, err := os.ReadFile(n); err == nil && len(bytes.TrimRight(one, "\x00")) > len(bytes.TrimRight(b, "\x00")) {
				name, b = n, one
			}
		}
		return name, bytes.TrimRight(b, "\x00")
	}
	_, before := segment()
	put()
	name, after := segment()
	if len(after) < len(before)+1000 {
		s.t.Fatalf("the journal did not grow: %d to %d bytes", len(before), len(after))
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	at := int64(len(before)+len(after)) / 2
	if _, err := f.WriteAt([]byte{after[at] ^ 1}, at); err != nil {
		s.t.Fatal(err)
	}
}

// TestDestinationTurns: no more associations than a small archive takes are open to one destination.
func TestDestinationTurns(t *testing.T) {
	s := start(t)
	s.series(1, 100)
	goOn := make(chan struct{})
	d := &destination{store: func(int, *dimse.StoreRequest, []byte) dimse.StoreResponse {
		<-goOn
		return dimse.StoreResponse{}
	}}
	s.destinationAt(d)
	var running sync.WaitGroup
	const n = destinationMax + 3
	responses := make([]dimse.Response, n)
	for i := range n {
		c := s.client([]string{dimse.StudyRootMove, explicit})
		running.Add(1)
		go func() {
			defer running.Done()
			var err error
			if responses[i], err = c.Move(context.Background(), dimse.QueryArgs{SOPClass: dimse.StudyRootMove, Identifier: wholeStudy, Destination: "DEST"}, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wait(t, "all to be asked for", func() bool { return s.Stats().Moves.Load() == n && d.open.Load() == destinationMax })
	if got := d.open.Load(); got != destinationMax {
		t.Errorf("%d associations at once, want %d", got, destinationMax)
	}
	close(goOn)
	running.Wait()
	for _, r := range responses {
		s.check("in turn", r, dimse.StatusSuccess, 1, 0, 0)
	}
	// Whose turn does not come in time has failed.
	s.waits.queue = time.Millisecond
	for range destinationMax {
		leave, err := s.takeTurn(t.Context(), "DEST")
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	s.check("too late", s.move(wholeStudy, "DEST", nil), dimse.StatusSubOperations, 0, 1, 0, "1.2.9.1.1")
}
