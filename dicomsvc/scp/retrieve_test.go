package scp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// destination is a C-MOVE destination in this process. It takes every storage class in the syntaxes that takes
// allows.
type destination struct {
	dimse.Unsupported
	takes func(class, syntax string) bool
	store func(n int, r *dimse.StoreRequest, data []byte) dimse.StoreResponse // n counts from 1

	mu           sync.Mutex
	associations []*dul.Request
	got          map[string][]byte
	syntax       map[string]string
	requests     []*dimse.StoreRequest
	open         atomic.Int64
}

func (d *destination) Associate(_ context.Context, r *dul.Request) dimse.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.associations = append(d.associations, r)
	a := &dul.Acceptance{}
	for _, pc := range r.Contexts {
		res := dul.ContextResult{ID: pc.ID, Result: dul.ContextTransferSyntaxes}
		if d.takes == nil || d.takes(pc.AbstractSyntax, pc.TransferSyntaxes[0]) {
			res.Result, res.TransferSyntax = dul.ContextAccepted, pc.TransferSyntaxes[0]
		}
		a.Contexts = append(a.Contexts, res)
	}
	d.open.Add(1)
	return dimse.Decision{Acceptance: a, Ended: func(error) { d.open.Add(-1) }}
}

func (d *destination) Store(_ context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
	b, err := io.ReadAll(r.Data)
	if err != nil {
		return dimse.StoreResponse{Status: dimse.StatusProcessingFailure}
	}
	d.mu.Lock()
	d.requests = append(d.requests, r)
	n := len(d.requests)
	d.mu.Unlock()
	if d.store != nil {
		if res := d.store(n, r, b); !dimse.IsSuccess(res.Status) || res.Status != 0 {
			return res
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got[r.SOPInstance], d.syntax[r.SOPInstance] = b, r.Syntax
	return dimse.StoreResponse{}
}

// destinationAt serves d under the title DEST.
func (s *service) destinationAt(d *destination) {
	s.t.Helper()
	d.got, d.syntax = map[string][]byte{}, map[string]string{}
	srv, err := dimse.NewServer(dimse.ServerConfig{Handler: d, Grace: 10 * time.Millisecond, Timers: dul.Timers{Linger: 100 * time.Millisecond}})
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, l) }()
	s.t.Cleanup(func() { cancel(); <-ended })
	s.destination("DEST", l.Addr().String())
}

// move asks for a C-MOVE to title and checks that the counters are those of the final response.
func (s *service) move(id *dicom.Dataset, title string, progress func(dimse.Response) bool) dimse.Response {
	s.t.Helper()
	r, err := s.client([]string{dimse.StudyRootMove, explicit}).Move(context.Background(),
		dimse.QueryArgs{SOPClass: dimse.StudyRootMove, Identifier: id, Destination: title, Priority: dimse.PriorityHigh}, progress)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *service) check(what string, r dimse.Response, status uint16, completed, failed, warning int, failedUIDs ...string) {
	s.t.Helper()
	want := dimse.Counters{Completed: completed, Failed: failed, Warning: warning}
	if r.Status != status || r.Counters != want {
		s.t.Errorf("%s: %04X %+v %q, want %04X %+v", what, r.Status, r.Counters, r.ErrorComment, status, want)
	}
	if !slices.Equal(r.FailedInstances, failedUIDs) {
		s.t.Errorf("%s: failed instances %v, want %v", what, r.FailedInstances, failedUIDs)
	}
}

// series puts n CT images, by instance number, and returns their data sets by UID.
func (s *service) series(n, bytes int) map[string][]byte {
	all := map[string][]byte{}
	for i := 1; i <= n; i++ {
		sop := fmt.Sprintf("1.2.9.1.%d", i)
		all[sop] = s.put(image("1.2.9", "1.2.9.1", sop, bytes, func(d *dicom.Dataset) { d.SetInt(dicom.InstanceNumber, i) }), explicit)
	}
	return all
}

var wholeStudy = identifier("STUDY", dicom.StudyInstanceUID, "1.2.9")

// TestBehaviour33Move: counters, the originator, the priority, and the statuses of what goes wrong.
// Behaviour 33.
func TestBehaviour33Move(t *testing.T) {
	s := start(t)
	sent := s.series(5, 1000)
	d := &destination{}
	s.destinationAt(d)
	var seen []dimse.Counters
	r := s.move(wholeStudy, "DEST", func(r dimse.Response) bool { seen = append(seen, r.Counters); return true })
	s.check("all well", r, dimse.StatusSuccess, 5, 0, 0)
	for i, n := range seen {
		if n.Remaining+n.Completed != 5 || n.Failed+n.Warning != 0 || i > 0 && n.Completed < seen[i-1].Completed {
			t.Errorf("pending %d: %+v", i, n)
		}
	}
	if len(seen) < 5 || seen[len(seen)-1].Remaining != 0 {
		t.Errorf("%d pending responses, the last %+v", len(seen), seen[len(seen)-1:])
	}
	for sop, b := range sent {
		if !bytes.Equal(d.got[sop], b) {
			t.Errorf("%s arrived different", sop)
		}
	}
	for i, q := range d.requests {
		if q.MoveOriginator != "TESTSCU" || q.MoveOriginatorMessageID == 0 || q.Priority != dimse.PriorityHigh || q.SOPInstance != fmt.Sprintf("1.2.9.1.%d", i+1) {
			t.Errorf("store %d: originator %q %d, priority %d, instance %s", i, q.MoveOriginator, q.MoveOriginatorMessageID, q.Priority, q.SOPInstance)
		}
	}
	if len(d.associations) != 1 || d.associations[0].CallingAE != "OSTEON" || d.associations[0].CalledAE != "DEST" {
		t.Errorf("%d associations, the first %+v", len(d.associations), d.associations[0])
	}

	s.check("unknown destination", s.move(wholeStudy, "NOBODY", nil), dimse.StatusUnknownDestination, 0, 0, 0)
	s.check("nothing found", s.move(identifier("STUDY", dicom.StudyInstanceUID, "1.2.404"), "DEST", nil), dimse.StatusSuccess, 0, 0, 0)
	one := identifier("IMAGE", dicom.StudyInstanceUID, "1.2.9", dicom.SeriesInstanceUID, "1.2.9.1", dicom.SOPInstanceUID, `1.2.9.1.2\1.2.9.1.4\1.2.9.1.2\1.2.9.1.404`)
	s.check("a list with a repetition and an unknown UID", s.move(one, "DEST", nil), dimse.StatusSuccess, 2, 0, 0)

	d.requests = nil
	d.store = func(n int, r *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		return dimse.StoreResponse{Status: []uint16{0, dimse.StatusCoerced, dimse.StatusOutOfResources, 0, dimse.StatusCannotUnderstand}[n-1]}
	}
	s.check("refused and warned of", s.move(wholeStudy, "DEST", nil), dimse.StatusCoerced, 2, 2, 1, "1.2.9.1.3", "1.2.9.1.5")
	all := []string{"1.2.9.1.1", "1.2.9.1.2", "1.2.9.1.3", "1.2.9.1.4", "1.2.9.1.5"}
	d.store = func(int, *dimse.StoreRequest, []byte) dimse.StoreResponse {
		return dimse.StoreResponse{Status: dimse.StatusOutOfResources}
	}
	s.check("all refused", s.move(wholeStudy, "DEST", nil), dimse.StatusSubOperations, 0, 5, 0, all...)
	d.requests = nil
	d.store = func(n int, _ *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		return dimse.StoreResponse{Status: dimse.StatusElementsDiscarded}
	}
	s.check("all warned of", s.move(wholeStudy, "DEST", nil), dimse.StatusCoerced, 0, 0, 5)
}

// TestBehaviour28RetrieveKeys: what a retrieve identifier has to hold.
// Behaviour 28.
func TestBehaviour28RetrieveKeys(t *testing.T) {
	s := start(t)
	s.series(2, 10)
	s.destinationAt(&destination{})
	U, S := dicom.StudyInstanceUID, dicom.SeriesInstanceUID
	for _, tt := range []struct {
		name      string
		model     string
		id        *dicom.Dataset
		offending dicom.Tag
	}{
		{"no unique key", dimse.StudyRootMove, identifier("STUDY", dicom.PatientID, "P1"), U},
		{"an empty one", dimse.StudyRootMove, identifier("STUDY", U, ""), U},
		{"every study", dimse.StudyRootMove, identifier("STUDY", U, "*"), U},
		{"a wild card", dimse.StudyRootMove, identifier("SERIES", U, "1.2.9", S, "1.2.9.?"), S},
		{"no study", dimse.StudyRootMove, identifier("SERIES", S, "1.2.9.1"), U},
		{"PATIENT in Study Root", dimse.StudyRootMove, identifier("PATIENT", dicom.PatientID, "P1"), dicom.QueryRetrieveLevel},
		{"two patients", dimse.PatientRootMove, identifier("PATIENT", dicom.PatientID, `P1\P2`), dicom.PatientID},
		{"no level", dimse.PatientRootMove, identifier("", dicom.PatientID, "P1"), dicom.QueryRetrieveLevel},
		{"a patient", dimse.PatientRootMove, identifier("PATIENT", dicom.PatientID, "P1"), 0},
		{"a study of a patient", dimse.PatientRootMove, identifier("STUDY", dicom.PatientID, "P1", U, "1.2.9"), 0},
		{"studies", dimse.StudyRootMove, identifier("STUDY", U, `1.2.9\1.2.8\1.2.9`), 0},
		{"a series", dimse.StudyRootMove, identifier("SERIES", U, "1.2.9", S, "1.2.9.1"), 0},
	} {
		r, err := s.client([]string{tt.model, implicit}).Move(t.Context(), dimse.QueryArgs{SOPClass: tt.model, Identifier: tt.id, Destination: "DEST"}, nil)
		switch {
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.offending == 0:
			s.check(tt.name, r, dimse.StatusSuccess, 2, 0, 0)
		case r.Status != dimse.StatusMismatch || !slices.Equal(r.OffendingElements, []dicom.Tag{tt.offending}) || r.ErrorComment == "":
			t.Errorf("%s: %04X %v %q", tt.name, r.Status, r.OffendingElements, r.ErrorComment)
		}
	}
	// Another patient's study.
	r, _ := s.client([]string{dimse.PatientRootMove, implicit}).Move(t.Context(), dimse.QueryArgs{SOPClass: dimse.PatientRootMove,
		Identifier: identifier("STUDY", dicom.PatientID, "P9", U, "1.2.9"), Destination: "DEST"}, nil)
	s.check("a study of another patient", r, dimse.StatusSuccess, 0, 0, 0)
}

// TestBehaviour36ManyClasses: more classes than one association can name are spread over several.
// Behaviour 36.
func TestBehaviour36ManyClasses(t *testing.T) {
	s := start(t)
	const n = 150
	for i := 1; i <= n; i++ {
		s.put(image("1.2.9", "1.2.9.1", fmt.Sprintf("1.2.9.1.%d", i), 10, set(dicom.SOPClassUID, fmt.Sprintf("1.2.840.99999.4.%d", i)),
			func(d *dicom.Dataset) { d.SetInt(dicom.InstanceNumber, i) }), explicit)
	}
	d := &destination{takes: func(class, syntax string) bool { return class != "1.2.840.99999.4.7" && syntax == explicit }}
	s.destinationAt(d)
	s.check("many classes", s.move(wholeStudy, "DEST", nil), dimse.StatusCoerced, n-1, 1, 0, "1.2.9.1.7")
	contexts := 0
	for _, a := range d.associations {
		contexts += len(a.Contexts)
		if len(a.Contexts) > 128 {
			t.Errorf("%d contexts proposed", len(a.Contexts))
		}
		for i, pc := range a.Contexts {
			if pc.ID != byte(2*i+1) || len(pc.TransferSyntaxes) != 1 {
				t.Errorf("context %d: %+v", i, pc)
			}
		}
	}
	if len(d.associations) != 3 || contexts != 2*n {
		t.Errorf("%d associations with %d contexts, want 3 with %d", len(d.associations), contexts, 2*n)
	}
}

func TestPlan(t *testing.T) {
	list := []wanted{
		{"1", ctStorage, explicit}, {"2", ctStorage, implicit}, {"3", ctStorage, dicom.RLELossless}, {"4", ctStorage, explicit},
		{"5", mrStorage, dicom.ExplicitVRBigEndian}, {"6", mrStorage, "1.2.840.113619.5.2"},
	}
	contexts, n := plan(list)
	var got []string
	for _, pc := range contexts {
		got = append(got, pc.AbstractSyntax+" "+pc.TransferSyntaxes[0])
	}
	want := []string{ctStorage + " " + explicit, ctStorage + " " + implicit, ctStorage + " " + dicom.RLELossless,
		mrStorage + " " + dicom.ExplicitVRBigEndian, mrStorage + " " + explicit, mrStorage + " " + implicit, mrStorage + " 1.2.840.113619.5.2"}
	if n != len(list) || !slices.Equal(got, want) {
		t.Errorf("%d instances, contexts %v", n, got)
	}
}

// TestBehaviour37And48SentAsTheDestinationTakesIt: as stored, else rewritten or decoded without loss, else
// not at all.
// Behaviours 37, 48.
func TestBehaviour37And48SentAsTheDestinationTakesIt(t *testing.T) {
	s := start(t)
	big := image("1.2.9", "1.2.9.1", "1.2.9.1.1", 4000, func(d *dicom.Dataset) { d.SetInt(dicom.Rows, 513) })
	for i, syntax := range []string{explicit, implicit, dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian} {
		big.SetStrings(dicom.SOPInstanceUID, fmt.Sprintf("1.2.9.1.%d", i+1))
		s.put(big, syntax)
	}
	large := image("1.2.9", "1.2.9.1", "1.2.9.1.5", 3<<20)
	s.put(large, dicom.ExplicitVRBigEndian)
	rle, j2k := samples(t, "mr-rle.dcm")[0], samples(t, "ct-jpeg2000.dcm")[0]
	s.putBytes(rle.data, rle.syntax)
	s.putBytes(j2k.data, j2k.syntax)
	for i, only := range []string{explicit, implicit, explicit, implicit} {
		if i == 2 { // the same again out of a pack
			if err := s.archive.SealNow(t.Context(), "1.2.9"); err != nil {
				t.Fatal(err)
			}
		}
		d := &destination{takes: func(_, syntax string) bool { return syntax == only }}
		s.destinationAt(d)
		s.check("takes only "+only, s.move(wholeStudy, "DEST", nil), dimse.StatusSuccess, 5, 0, 0)
		for sop, b := range d.got {
			want := big
			if sop == "1.2.9.1.5" {
				want = large
			}
			want.SetStrings(dicom.SOPInstanceUID, sop)
			if !bytes.Equal(b, encode(t, want, only)) {
				t.Errorf("%s in %s is not what it is in that syntax", sop, only)
			}
		}
		s.check("not decoded here", s.move(identifier("STUDY", dicom.StudyInstanceUID, j2k.study), "DEST", nil), dimse.StatusSubOperations, 0, 1, 0, j2k.instance)
		s.check("compressed", s.move(identifier("STUDY", dicom.StudyInstanceUID, rle.study), "DEST", nil), dimse.StatusSuccess, 1, 0, 0)
		if n := len(d.got[rle.instance]); n < 2*64*64 || bytes.Contains(d.got[rle.instance], []byte{0xFE, 0xFF, 0x00, 0xE0}) {
			t.Errorf("%d bytes of a decoded image, or fragments in it", n)
		}
	}
	d := &destination{}
	s.destinationAt(d)
	s.check("takes all", s.move(wholeStudy, "DEST", nil), dimse.StatusSuccess, 5, 0, 0)
	if d.syntax["1.2.9.1.3"] != dicom.ExplicitVRBigEndian || d.syntax["1.2.9.1.4"] != dicom.DeflatedExplicitVRLittleEndian {
		t.Errorf("sent in %v, want each as stored", d.syntax)
	}
}

// TestBehaviour31MoveIsCancelled: the sub-operation under way ends, no other begins, the rest is counted as remaining.
// Behaviour 31.
func TestBehaviour31MoveIsCancelled(t *testing.T) {
	s := start(t)
	s.waits.pending = 5 * time.Millisecond
	s.series(5, 1000)
	second, goOn := make(chan struct{}), make(chan struct{})
	d := &destination{store: func(n int, _ *dimse.StoreRequest, _ []byte) dimse.StoreResponse {
		if n == 2 {
			close(second)
			<-goOn
		}
		return dimse.StoreResponse{}
	}}
	s.destinationAt(d)
	cancelled := false
	go func() { // ends when the server has seen the cancel
		<-second
		wait(t, "the cancel", func() bool { return s.Stats().Cancels.Load() == 1 })
		close(goOn)
	}()
	r := s.move(wholeStudy, "DEST", func(r dimse.Response) bool {
		select {
		case <-second:
			cancelled = true
			return false
		default:
			return true
		}
	})
	want := dimse.Counters{Remaining: 3, Completed: 2}
	if !cancelled || r.Status != dimse.StatusCancel || r.Counters != want {
		t.Errorf("cancelled %v: %04X %+v, want FE00 %+v", cancelled, r.Status, r.Counters, want)
	}
	wait(t, "the association with the destination to be released", func() bool { return d.open.Load() == 0 })
	if len(d.got) != 2 {
		t.Errorf("%d instances arrived, want 2", len(d.got))
	}
}

// retriever is an association that takes classes by C-GET.
func (s *service) retriever(syntaxes []string, roles bool, classes ...string) *dimse.Client {
	s.t.Helper()
	contexts := [][]string{{dimse.StudyRootGet, explicit}, {dimse.VerificationClass, implicit}}
	for _, class := range classes {
		for _, syntax := range syntaxes {
			contexts = append(contexts, []string{class, syntax})
		}
	}
	c, err := s.associate(func(c *dul.RequestorConfig) {
		if roles {
			for _, class := range classes {
				c.Roles = append(c.Roles, dul.Role{SOPClass: class, SCP: true})
			}
		}
	}, contexts...)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func get(t testing.TB, c *dimse.Client, id *dicom.Dataset, progress func(dimse.Response) bool, status ...uint16) (dimse.Response, map[string][]byte) {
	t.Helper()
	got := map[string][]byte{}
	r, err := c.Get(context.Background(), dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
			b, err := io.ReadAll(r.Data)
			if err != nil {
				t.Error(err)
			}
			got[r.SOPInstance] = b
			if len(got) <= len(status) {
				return dimse.StoreResponse{Status: status[len(got)-1]}
			}
			return dimse.StoreResponse{}
		}, progress)
	if err != nil {
		t.Fatal(err)
	}
	return r, got
}

// TestBehaviour13And33Get: sub-operations on the same association, and only where the peer took the SCP role.
// Behaviours 13, 33.
func TestBehaviour13And33Get(t *testing.T) {
	s := start(t)
	sent := s.series(4, 1000)
	c := s.retriever([]string{explicit}, true, ctStorage)
	r, got := get(t, c, wholeStudy, nil)
	s.check("all well", r, dimse.StatusSuccess, 4, 0, 0)
	for sop, b := range sent {
		if !bytes.Equal(got[sop], b) {
			t.Errorf("%s came back different", sop)
		}
	}
	r, _ = get(t, c, wholeStudy, nil, 0, dimse.StatusCoerced, dimse.StatusOutOfResources, 0)
	s.check("refused and warned of", r, dimse.StatusCoerced, 2, 1, 1, "1.2.9.1.3")
	r, _ = get(t, c, identifier("STUDY", dicom.StudyInstanceUID, "1.2.404"), nil)
	s.check("nothing found", r, dimse.StatusSuccess, 0, 0, 0)
	r, got = get(t, s.retriever([]string{implicit}, true, ctStorage), wholeStudy, nil)
	if s.check("rewritten", r, dimse.StatusSuccess, 4, 0, 0); bytes.Equal(got["1.2.9.1.1"], sent["1.2.9.1.1"]) {
		t.Error("not rewritten")
	}
	all := []string{"1.2.9.1.1", "1.2.9.1.2", "1.2.9.1.3", "1.2.9.1.4"}
	r, _ = get(t, s.retriever([]string{explicit}, false, ctStorage), wholeStudy, nil)
	s.check("without roles", r, dimse.StatusSubOperations, 0, 4, 0, all...)
	r, _ = get(t, s.retriever([]string{explicit}, true, mrStorage), wholeStudy, nil)
	s.check("other classes", r, dimse.StatusSubOperations, 0, 4, 0, all...)
}

// TestBehaviour31GetIsCancelled cancels in the middle of an object: it ends, and the association goes on.
// Behaviour 31.
func TestBehaviour31GetIsCancelled(t *testing.T) {
	s := start(t)
	s.waits.pending = 2 * time.Millisecond
	s.series(4, 4<<20)
	c := s.retriever([]string{explicit}, true, ctStorage)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	whole := 0
	r, err := c.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: wholeStudy},
		func(_ context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
			io.CopyN(io.Discard, r.Data, 1<<20)
			cancel() // the server is sending this object
			wait(t, "the cancel", func() bool { return s.Stats().Cancels.Load() == 1 })
			n, err := io.Copy(io.Discard, r.Data)
			if err == nil && n > 2<<20 {
				whole++
			}
			return dimse.StoreResponse{}
		}, nil)
	want := dimse.Counters{Remaining: 3, Completed: 1}
	if !errors.Is(err, context.Canceled) || r.Status != dimse.StatusCancel || r.Counters != want || whole != 1 {
		t.Errorf("%v: %04X %+v, %d objects whole, want FE00 %+v and 1", err, r.Status, r.Counters, whole, want)
	}
	if err := c.Echo(t.Context()); err != nil {
		t.Errorf("the association is gone: %v", err)
	}
}

// TestComments: a peer is told what concerns it and nothing of this node's inside.
func TestComments(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("retrieve: %w", dicomsvc.ErrDenied), "not allowed"},
		{fmt.Errorf("pack 12: %w", dicomsvc.ErrUnavailable), dicomsvc.ErrUnavailable.Error()},
		{errors.New("open /var/lib/osteon: no such file"), "processing failure; tell the administrator of this archive"},
		{mismatch(dicom.PatientID, `a\b`+"\n"+strings.Repeat("x", 80)), "a b " + strings.Repeat("x", 60)},
	} {
		if got := comment(tt.err); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if r := notBegun(fmt.Errorf("too many: %w", dicomsvc.ErrResources)); r.Status != dimse.StatusNoMatches {
		t.Errorf("too many instances: %04X, want A701", r.Status)
	}
}
