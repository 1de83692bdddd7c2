package scp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// selection reads the unique keys of a retrieve identifier (PS3.4 §C.4.2.1.4): one value each above the
// level, one Patient ID or a list of UIDs at it, no wild cards anywhere.
func (s *Server) selection(c *caller, r *dimse.FindRequest) (dicomsvc.Selection, error) {
	var sel dicomsvc.Selection
	q, err := s.parse(c, r)
	if err != nil {
		return sel, err
	}
	lists := map[dicomsvc.Level]*[]string{
		dicomsvc.LevelPatient: &sel.PatientIDs, dicomsvc.LevelStudy: &sel.StudyInstanceUIDs,
		dicomsvc.LevelSeries: &sel.SeriesInstanceUIDs, dicomsvc.LevelImage: &sel.SOPInstanceUIDs,
	}
	for l := topLevel(q.model); l <= q.level; l++ {
		if *lists[l], err = uniqueValues(q.id, uniqueKey(l)); err != nil {
			return sel, err
		}
	}
	switch tag := uniqueKey(q.level); {
	case len(*lists[q.level]) == 0:
		return sel, mismatch(tag, "the unique key of the level is missing")
	case tag == dicom.PatientID && len(*lists[q.level]) > 1:
		return sel, mismatch(tag, "one Patient ID is needed")
	}
	return sel, nil
}

// uniqueValues returns the values of a unique key, each once.
func uniqueValues(id *dicom.Dataset, tag dicom.Tag) ([]string, error) {
	var list []string
	seen := map[string]bool{"": true}
	for _, v := range id.Strings(tag) {
		if hasWildcard(v) {
			return nil, mismatch(tag, "a retrieve request takes no wild cards")
		}
		if !seen[v] {
			seen[v] = true
			list = append(list, v)
		}
	}
	return list, nil
}

// wanted is one instance that is to be sent. Class and syntax share their memory with other instances.
type wanted struct{ instance, class, syntax string }

// transfer is one C-MOVE or C-GET under way.
type transfer struct {
	server   *Server
	caller   *caller
	session  uint64
	progress *dimse.Progress
	list     []wanted
	stop     func() // ends the pending responses on a timer, and waits for that

	mu sync.Mutex

	counters dimse.Counters
	failed   []string
}

// begin lists what a request asks for. Pending responses are sent on a timer from now on until stop.
func (s *Server) begin(ctx context.Context, r *dimse.FindRequest, p *dimse.Progress) (*transfer, error) {
	c := callerOf(r.Session)
	sel, err := s.selection(c, r)
	if err != nil {
		return nil, err
	}
	t := &transfer{server: s, caller: c, session: r.Session.ID, progress: p}
	t.stop = t.report()
	if err := t.collect(ctx, sel); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *transfer) collect(ctx context.Context, sel dicomsvc.Selection) error {
	shared := map[string]string{}
	share := func(s string) string {
		if _, ok := shared[s]; !ok {
			shared[s] = s
		}
		return shared[s]
	}
	for in, err := range t.server.cfg.Archive.Instances(ctx, t.caller.principal, sel) {
		if err != nil {
			return err
		}
		if len(t.list) == retrieveMax {
			return fmt.Errorf("%w: more than %d instances in one request", dicomsvc.ErrResources, retrieveMax)
		}
		t.list = append(t.list, wanted{in.SOPInstanceUID, share(in.SOPClassUID), share(in.TransferSyntaxUID)})
		t.mu.Lock()
		t.counters.Remaining++
		t.mu.Unlock()
	}
	return nil
}

// notBegun is the final response when the instances could not even be listed (PS3.4 Table C.4-2, C.4-3).
func notBegun(err error) dimse.Result {
	r := failure(err)
	if r.Status == dimse.StatusOutOfResources {
		r.Status = dimse.StatusNoMatches // A701: unable to calculate the number of matches
	}
	return r
}

// done counts one sub-operation by its status.
func (t *transfer) done(instance string, status uint16, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counters.Remaining--
	switch {
	case err == nil && status == dimse.StatusSuccess:
		t.counters.Completed++
	case err == nil && dimse.IsWarning(status):
		t.counters.Warning++
	default:
		t.counters.Failed++
		t.failed = append(t.failed, instance)
	}
}

func (t *transfer) count() dimse.Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counters
}

// report sends pending responses on a timer until stop is called, which waits for it.
func (t *transfer) report() (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() { // owned by the operation; stop ends it
		defer close(ended)
		tick := time.NewTicker(t.server.waits.pending)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if t.progress.Pending(t.count()) != nil {
					return
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// result is the final response (PS3.4 Tables C.4-2 and C.4-3): success, B000 when something failed or was warned
// of, A702 when nothing could be sent, FE00 after a C-CANCEL; with the instances that failed.
func (t *transfer) result(ctx context.Context) dimse.Result {
	n := t.count()
	r := dimse.Result{Status: dimse.StatusSuccess, Counters: &n, FailedInstances: t.failed}
	switch {
	case ctx.Err() != nil && n.Remaining > 0:
		r.Status = dimse.StatusCancel
	case n.Failed > 0 && n.Completed+n.Warning == 0:
		r.Status, r.ErrorComment = dimse.StatusSubOperations, "no instance could be sent"
	case n.Failed > 0 || n.Warning > 0:
		r.Status = dimse.StatusCoerced
	}
	return r
}

// finishing returns a context in which the sub-operation under way when ctx is cancelled by the peer may still
// end within the grace: breaking it off would cost the association. release frees it.
func finishing(ctx context.Context, grace time.Duration) (work context.Context, release func()) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { // ends with work at the latest
		if errors.Is(context.Cause(ctx), dimse.ErrCancelled) {
			timer := time.NewTimer(grace)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-work.Done():
			}
		}
		cancel(context.Cause(ctx))
	})
	return work, func() {
		stop()
		cancel(nil)
	}
}

// Get answers C-GET (PS3.4 §C.4.3): C-STORE sub-operations on the same association, in the contexts where the
// peer took the SCP role. Statuses: those of result; A701 when the instances cannot be listed; A900 with the
// element at fault; 0124; C000.
func (s *Server) Get(ctx context.Context, r *dimse.GetRequest, g *dimse.Getter) dimse.Result {
	t, err := s.begin(ctx, &r.FindRequest, &g.Progress)
	if err != nil {
		return notBegun(err)
	}
	defer t.stop()
	work, release := finishing(ctx, s.waits.cancel)
	defer release()
	_, err = t.send(ctx, work, t.list, g.Syntaxes, func(a dimse.StoreArgs) (uint16, error) {
		a.Priority = r.Priority
		return g.Store(a)
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("retrieval broken off", "session", t.session, "err", err)
	}
	return t.result(ctx)
}

// send sends the instances in list one after another in a syntax that the peer takes for their class, until ctx
// ends or the association is lost. It returns how many it has counted.
func (t *transfer) send(ctx, work context.Context, list []wanted, takes func(class string) []string, store func(dimse.StoreArgs) (uint16, error)) (n int, err error) {
	var found map[string]*dicomsvc.Instance
	for ; n < len(list); n++ {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		if n%resolveBatch == 0 {
			found = t.resolve(work, list[n:min(n+resolveBatch, len(list))])
		}
		status, sent, err := t.sendOne(work, found[list[n].instance], takes, store)
		switch {
		case errors.Is(err, dimse.ErrCancelled) && ctx.Err() != nil:
			return n, err // before it began
		case err != nil && ctx.Err() == nil:
			t.server.cfg.Log.Warn("sub-operation failed", "session", t.session, "err", err)
		}
		t.done(list[n].instance, status, err)
		if sent && err != nil && !errors.Is(err, dul.ErrContext) {
			return n + 1, err // the association is gone
		}
		if err := t.progress.Pending(t.count()); err != nil {
			return n + 1, err
		}
	}
	return n, nil
}

// resolve looks up what is to be sent next: where it is may have changed since it was listed.
func (t *transfer) resolve(ctx context.Context, batch []wanted) map[string]*dicomsvc.Instance {
	var sel dicomsvc.Selection
	for _, w := range batch {
		sel.SOPInstanceUIDs = append(sel.SOPInstanceUIDs, w.instance)
	}
	found := make(map[string]*dicomsvc.Instance, len(batch))
	for in, err := range t.server.cfg.Archive.Instances(ctx, t.caller.principal, sel) {
		if err != nil {
			t.server.cfg.Log.Warn("instances not found again", "session", t.session, "err", err)
			break
		}
		found[in.SOPInstanceUID] = in
	}
	return found
}

// sendOne sends one instance, nil for one that is gone. sent is false when it failed before the peer heard of
// it. The status is that of the peer's response.
func (t *transfer) sendOne(ctx context.Context, in *dicomsvc.Instance, takes func(class string) []string, store func(dimse.StoreArgs) (uint16, error)) (status uint16, sent bool, err error) {
	if in == nil {
		return 0, false, fmt.Errorf("instance: %w", dicomsvc.ErrNotFound)
	}
	syntax := choose(in.TransferSyntaxUID, takes(in.SOPClassUID))
	if syntax == "" {
		return 0, false, fmt.Errorf("%w: the peer takes neither the stored transfer syntax nor one it can be rewritten in", dicomsvc.ErrUnsupported)
	}
	o, err := t.server.cfg.Archive.Open(ctx, t.caller.principal, in)
	if err != nil {
		return 0, false, err
	}
	defer o.Close()
	args := dimse.StoreArgs{SOPClass: in.SOPClassUID, SOPInstance: in.SOPInstanceUID, Syntax: syntax, From: o}
	switch {
	case syntax != in.TransferSyntaxUID:
		rewritten, err := dicomsvc.Rewrite(o, in.TransferSyntaxUID, syntax)
		if err != nil {
			return 0, false, err
		}
		args.From = rewritten
	case o.Size() <= wholeBytesMax:
		whole := bytes.NewBuffer(make([]byte, 0, o.Size()))
		if _, err := o.WriteTo(whole); err != nil {
			return 0, false, err
		}
		args.From = whole
	}
	status, err = store(args)
	return status, true, err
}

// choose returns the stored syntax when the peer takes it, else one that the object can be rewritten in without
// loss, explicit before implicit VR; "" when there is none.
func choose(stored string, takes []string) string {
	for _, syntax := range []string{stored, dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian} {
		if slices.Contains(takes, syntax) && (syntax == stored || dicomsvc.Convertible(stored, syntax)) {
			return syntax
		}
	}
	return ""
}
