package scp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

const (
	// pendingEvery is how often a C-MOVE or C-GET says that it is still at work: clients give up after 30 s
	// of silence.
	pendingEvery = 2 * time.Second
	// contextsMax is what one association can propose (PS3.8 §9.3.2.2: odd IDs of one byte).
	contextsMax = 128
	// moveConnectTimeout bounds the connection to a C-MOVE destination.
	moveConnectTimeout = 15 * time.Second
	// retrieveMax bounds the instances of one retrieve request, which are listed before the first is sent.
	retrieveMax = 1 << 20
)

// selection reads the unique keys of a retrieve identifier (PS3.4 §C.4.2.1.4): one value each above the
// level, one or a list at it.
func (s *Server) selection(c *caller, r *dimse.FindRequest) (dicomsvc.Selection, error) {
	var sel dicomsvc.Selection
	level, err := levelOf(r.SOPClass, r.Identifier)
	if err != nil {
		return sel, err
	}
	relational := s.cfg.Relational || c.relational[r.SOPClass]
	if err := upperKeys(r.SOPClass, level, r.Identifier, relational); err != nil {
		return sel, err
	}
	for l, list := range map[dicomsvc.Level]*[]string{
		dicomsvc.LevelPatient: &sel.PatientIDs, dicomsvc.LevelStudy: &sel.StudyInstanceUIDs,
		dicomsvc.LevelSeries: &sel.SeriesInstanceUIDs, dicomsvc.LevelImage: &sel.SOPInstanceUIDs,
	} {
		if l > level || l == dicomsvc.LevelPatient && !isPatientRoot(r.SOPClass) {
			continue
		}
		for _, v := range r.Identifier.Strings(uniqueKeys[l]) {
			if v != "" {
				*list = append(*list, v)
			}
		}
	}
	if len(r.Identifier.Strings(uniqueKeys[level])) == 0 {
		return sel, mismatch(uniqueKeys[level], "the unique key of the level is missing")
	}
	return sel, nil
}

// transfer is one C-MOVE or C-GET under way.
type transfer struct {
	server    *Server
	caller    *caller
	instances []*dicomsvc.Instance
	progress  *dimse.Progress

	mu sync.Mutex

	counters dimse.Counters
	failed   []string
}

func (s *Server) newTransfer(ctx context.Context, r *dimse.FindRequest, p *dimse.Progress) (*transfer, error) {
	c := callerOf(r.Session)
	sel, err := s.selection(c, r)
	if err != nil {
		return nil, err
	}
	t := &transfer{server: s, caller: c, progress: p}
	for in, err := range s.cfg.Archive.Instances(ctx, c.principal, sel) {
		if err != nil {
			return nil, err
		}
		if len(t.instances) == retrieveMax {
			return nil, fmt.Errorf("%w: more than %d instances in one request", dicomsvc.ErrResources, retrieveMax)
		}
		t.instances = append(t.instances, in)
	}
	t.counters.Remaining = len(t.instances)
	return t, nil
}

// done counts one sub-operation by its status.
func (t *transfer) done(in *dicomsvc.Instance, status uint16, err error) {
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
		t.failed = append(t.failed, in.SOPInstanceUID)
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
		tick := time.NewTicker(pendingEvery)
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

// result is the final response (PS3.4 §C.4.2.1.5): success, B000 with the failed instances, or A702 when
// nothing was sent.
func (t *transfer) result(ctx context.Context) dimse.Result {
	n := t.count()
	r := dimse.Result{Status: dimse.StatusSuccess, Counters: &n, FailedInstances: t.failed}
	switch {
	case ctx.Err() != nil:
		r.Status = dimse.StatusCancel
	case n.Failed > 0 && n.Completed+n.Warning == 0:
		r.Status = dimse.StatusSubOperations
	case n.Failed > 0 || n.Warning > 0:
		r.Status = dimse.StatusCoerced
	}
	if r.Status != dimse.StatusCancel {
		n.Remaining = 0
	}
	return r
}

// Get answers C-GET (PS3.4 §C.4.3): C-STORE sub-operations on the same association.
func (s *Server) Get(ctx context.Context, r *dimse.GetRequest, g *dimse.Getter) dimse.Result {
	t, err := s.newTransfer(ctx, &r.FindRequest, &g.Progress)
	if err != nil {
		return failure(err)
	}
	stop := t.report()
	defer stop()
	for _, in := range t.instances {
		if ctx.Err() != nil {
			break
		}
		status, err := s.send(ctx, t.caller, in, g.Syntaxes(in.SOPClassUID), func(a dimse.StoreArgs) (uint16, error) {
			a.Priority = r.Priority
			return g.Store(a)
		})
		if errors.Is(err, dimse.ErrCancelled) {
			break
		}
		if err != nil {
			s.cfg.Log.Warn("sub-operation failed", "session", r.Session.ID, "err", err)
		}
		t.done(in, status, err)
		if err := g.Pending(t.count()); err != nil {
			break
		}
	}
	return t.result(ctx)
}

// send opens one instance and hands it to store in a syntax that the peer takes. The status is that of the
// peer's response.
func (s *Server) send(ctx context.Context, c *caller, in *dicomsvc.Instance, takes []string, store func(dimse.StoreArgs) (uint16, error)) (uint16, error) {
	syntax, convert := choose(in.TransferSyntaxUID, takes)
	if syntax == "" {
		return 0, fmt.Errorf("%w: the peer takes neither the stored transfer syntax nor one it can be re-encoded in", dicomsvc.ErrUnsupported)
	}
	o, err := s.cfg.Archive.Open(ctx, c.principal, in)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	args := dimse.StoreArgs{SOPClass: in.SOPClassUID, SOPInstance: in.SOPInstanceUID, Syntax: syntax, From: o}
	if convert {
		args.From = &reencoded{from: o, instance: in, to: syntax}
	}
	return store(args)
}

// choose returns the stored syntax when the peer takes it, else an uncompressed one that the object can be
// re-encoded in without loss, else "".
func choose(stored string, takes []string) (syntax string, convert bool) {
	native := ""
	for _, t := range takes {
		switch {
		case t == stored:
			return stored, false
		case t == dicom.ExplicitVRLittleEndian, t == dicom.ImplicitVRLittleEndian && native == "":
			native = t
		}
	}
	if from, ok := dicom.LookupSyntax(stored); native == "" || !ok || from.Encapsulated || from.BigEndian {
		return "", false
	}
	return native, true
}

// Move answers C-MOVE (PS3.4 §C.4.2): C-STORE sub-operations on associations to the destination.
func (s *Server) Move(ctx context.Context, r *dimse.MoveRequest, p *dimse.Progress) dimse.Result {
	address, ok := s.cfg.Destination(r.Destination)
	if !ok || s.cfg.Dial == nil {
		return dimse.Result{Status: dimse.StatusUnknownDestination, ErrorComment: "move destination is not registered here"}
	}
	t, err := s.newTransfer(ctx, &r.FindRequest, p)
	if err != nil {
		return failure(err)
	}
	stop := t.report()
	defer stop()
	rest := t.instances
	for len(rest) > 0 && ctx.Err() == nil {
		contexts, n := plan(rest)
		if err := s.moveBatch(ctx, t, r, address, contexts, rest[:n]); err != nil {
			s.cfg.Log.Warn("move destination failed", "session", r.Session.ID, "err", err)
		}
		rest = rest[n:]
	}
	return t.result(ctx)
}

// plan returns the presentation contexts for as many of the instances as one association can carry: a
// context for each class and stored syntax, one more for each class with the uncompressed syntaxes.
func plan(instances []*dicomsvc.Instance) (contexts []dul.ProposedContext, n int) {
	seen := map[[2]string]bool{}
	for _, in := range instances {
		wants := [][]string{{in.TransferSyntaxUID}}
		if native, ok := dicom.LookupSyntax(in.TransferSyntaxUID); ok && !native.Encapsulated && !native.BigEndian {
			wants = append(wants, []string{dicom.ExplicitVRLittleEndian, dicom.ImplicitVRLittleEndian})
		}
		var missing []dul.ProposedContext
		for _, syntaxes := range wants {
			key := [2]string{in.SOPClassUID, fmt.Sprint(syntaxes)}
			if !seen[key] {
				missing = append(missing, dul.ProposedContext{AbstractSyntax: in.SOPClassUID, TransferSyntaxes: syntaxes})
			}
		}
		if len(contexts)+len(missing) > contextsMax {
			return contexts, n
		}
		for _, pc := range missing {
			seen[[2]string{pc.AbstractSyntax, fmt.Sprint(pc.TransferSyntaxes)}] = true
			pc.ID = byte(2*len(contexts) + 1)
			contexts = append(contexts, pc)
		}
		n++
	}
	return contexts, n
}

// moveBatch sends instances over one association; those that were not sent count as failed.
func (s *Server) moveBatch(ctx context.Context, t *transfer, r *dimse.MoveRequest, address string, contexts []dul.ProposedContext, batch []*dicomsvc.Instance) error {
	sent := 0
	defer func() {
		if ctx.Err() == nil {
			for _, in := range batch[sent:] {
				t.done(in, 0, dicomsvc.ErrUnavailable)
			}
		}
	}()
	connecting, cancel := context.WithTimeout(ctx, moveConnectTimeout)
	defer cancel()
	conn, err := s.cfg.Dial(connecting, address)
	if err != nil {
		return fmt.Errorf("connect to the destination: %w", err)
	}
	client, err := dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: s.cfg.AETitle, CalledAE: r.Destination, Contexts: contexts,
	}})
	if err != nil {
		return fmt.Errorf("associate with the destination: %w", err)
	}
	defer client.Close()
	for _, in := range batch {
		if ctx.Err() != nil {
			client.Abort()
			return ctx.Err()
		}
		var takes []string
		for _, pc := range client.Contexts() {
			if pc.AbstractSyntax == in.SOPClassUID {
				takes = append(takes, pc.TransferSyntax)
			}
		}
		lost := false
		status, err := s.send(ctx, t.caller, in, takes, func(a dimse.StoreArgs) (uint16, error) {
			a.Priority, a.MoveOriginator, a.MoveOriginatorID = r.Priority, t.caller.title, r.MessageID
			response, err := client.Store(ctx, a)
			lost = err != nil && !errors.Is(err, dul.ErrContext)
			return response.Status, err
		})
		sent++
		t.done(in, status, err)
		if lost {
			return err
		}
		if err != nil {
			s.cfg.Log.Warn("sub-operation failed", "session", r.Session.ID, "err", err)
		}
		if err := t.progress.Pending(t.count()); err != nil {
			client.Abort()
			return err
		}
	}
	return client.Release(ctx)
}
