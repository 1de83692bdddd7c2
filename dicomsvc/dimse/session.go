package dimse

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// ErrCancelled is the cause of the context of an operation the peer cancelled,
// and what its responders return.
var ErrCancelled = errors.New("operation cancelled by the peer")

// ErrNoResponse means that the peer did not answer a request in time.
var ErrNoResponse = errors.New("no response in time")

// errMisuse marks a command that has no business on an association; the
// association is aborted.
var errMisuse = errors.New("unexpected command")

// Session is one association at a server.
type Session struct {
	// ID is unique in the server's life and fit for logs.
	ID uint64
	// Value is what Associate gave.
	Value any

	conn   *Conn
	server *Server
	peer   peer
	waits  waiters

	ops struct {
		sync.WaitGroup
		mu      sync.Mutex
		ids     map[uint16]context.CancelCauseFunc // of all operations under way; nil for a store
		queries int
	}
	stores   sync.WaitGroup
	overlap  overlap
	asking   chan struct{} // full while as many requests of this side wait for their response as were agreed to
	busy     atomic.Int64
	begun    atomic.Int64 // operations so far
	draining atomic.Bool
}

// Request is what the peer proposed.
func (s *Session) Request() *dul.Request { return s.conn.assoc.Request() }

// Contexts are the accepted presentation contexts.
func (s *Session) Contexts() []dul.Context { return s.conn.assoc.Contexts() }

// Association is the association under the session.
func (s *Session) Association() *dul.Association { return s.conn.assoc }

// Abort ends the association at once.
func (s *Session) Abort() { s.conn.assoc.Abort() }

// open sizes the windows by what was agreed to.
func (s *Session) open() {
	agreed := s.conn.assoc.AsyncOps()
	s.overlap.turns = make(chan struct{}, window(agreed.Invoked))
	s.asking = make(chan struct{}, window(agreed.Performed))
}

// run serves the association until it ends; nil after a release.
func (s *Session) run(ctx context.Context) error {
	s.open()
	ctx, stop := context.WithCancel(ctx)
	err := s.loop(ctx)
	s.waits.fail(err)
	s.stores.Wait() // whatever became of the association: what has arrived is made safe, and answered before a release is
	stop()
	s.ops.Wait()
	if errors.Is(err, dul.ErrReleaseRequested) {
		return s.conn.assoc.ReplyRelease()
	}
	return err
}

func (s *Session) loop(ctx context.Context) error {
	for {
		m, err := s.conn.Read()
		if err != nil {
			return err
		}
		if err := s.server.guarded(func() error { return s.dispatch(ctx, m) }); err != nil {
			return err
		}
	}
}

// begin and end bracket whatever a peer waits for.
func (s *Session) begin() {
	s.begun.Add(1)
	s.busy.Add(1)
	s.conn.assoc.BeginWork()
}

func (s *Session) end() {
	s.conn.assoc.EndWork()
	if s.busy.Add(-1) == 0 && s.draining.Load() {
		s.abortWhenIdle()
	}
}

// drain lets a peer that is in the middle of its work go on to its release; the association is aborted
// once nothing was asked of it for drainIdle.
func (s *Session) drain() {
	s.draining.Store(true)
	if s.busy.Load() == 0 {
		s.abortWhenIdle()
	}
}

func (s *Session) abortWhenIdle() {
	begun := s.begun.Load()
	time.AfterFunc(s.server.drainIdle(), func() {
		if s.begun.Load() == begun && s.busy.Load() == 0 {
			s.Abort()
		}
	})
}

func (s *Session) dispatch(ctx context.Context, m *Message) error {
	c := m.Command
	switch {
	case c.Field == CCancelRQ:
		s.cancel(c.RespondedTo)
		return nil
	case c.IsResponse():
		return s.deliver(m)
	}
	switch {
	case c.Field == CFindRQ || c.Field == CMoveRQ || c.Field == CGetRQ:
		return s.startQuery(ctx, m)
	case c.Field == CStoreRQ && cap(s.overlap.turns) > 1:
		return s.storeBeside(ctx, m)
	}
	s.begin()
	defer s.end()
	switch c.Field {
	case CEchoRQ:
		return s.echo(ctx, m)
	case CStoreRQ:
		return s.store(ctx, m)
	case NEventRQ, NGetRQ, NSetRQ, NActionRQ, NCreateRQ, NDeleteRQ:
		return s.notify(ctx, m)
	}
	s.note(operationName(c.Field), StatusUnrecognized, "", Advice{Why: "the command is none that a server takes"})
	return s.conn.Write(m.ContextID, respond(c, StatusUnrecognized), nil)
}

// respond begins the response to a request.
func respond(c *Command, status uint16) *Command {
	return &Command{Field: c.Field | responseBit, RespondedTo: c.MessageID, Status: status}
}

func (s *Session) context(m *Message) dul.Context {
	pc, _ := s.conn.assoc.Context(m.ContextID)
	return pc
}

func (s *Session) echo(ctx context.Context, m *Message) error {
	status := s.server.cfg.Handler.Echo(ctx, &EchoRequest{Session: s, Command: m.Command})
	s.server.stats.Echoes.Add(1)
	s.note(operationName(CEchoRQ), status, "", Advice{})
	rsp := respond(m.Command, status)
	rsp.AffectedClass = m.Command.AffectedClass
	return s.conn.Write(m.ContextID, rsp, nil)
}

// store answers a C-STORE, PS3.7 §9.1.1. The response goes out when the data
// set has been read or drained: a sender does not look for it earlier.
func (s *Session) store(ctx context.Context, m *Message) error {
	req, res := storeRequest(m, s.context(m))
	if req != nil {
		req.Session = s
		res = s.server.cfg.Handler.Store(ctx, req)
	}
	return s.answerStore(m, res)
}

// answerStore answers once the rest of the data set is drained.
func (s *Session) answerStore(m *Message, res StoreResponse) error {
	if err := s.conn.data.drain(); err != nil {
		s.server.stats.StoresBroken.Add(1)
		return err
	}
	return s.replyStore(m.ContextID, m.Command, res)
}

func (s *Session) replyStore(contextID byte, c *Command, res StoreResponse) error {
	if IsSuccess(res.Status) {
		s.server.stats.Stores.Add(1)
	} else {
		s.server.stats.StoresRefused.Add(1)
	}
	s.note(operationName(CStoreRQ), res.Status, res.ErrorComment, res.Advice)
	return s.conn.Write(contextID, storeReply(c, res), nil)
}

// storeRequest gives the request for a handler, or nil and the refusal.
func storeRequest(m *Message, pc dul.Context) (*StoreRequest, StoreResponse) {
	c := m.Command
	switch {
	case c.AffectedInstance == "":
		return nil, StoreResponse{Status: StatusInvalidInstance, ErrorComment: "no SOP instance UID in the command",
			OffendingElements: []dicom.Tag{elAffectedInstance}}
	case c.AffectedClass != pc.AbstractSyntax:
		return nil, StoreResponse{Status: StatusClassNotSupported, ErrorComment: "SOP class is not that of the presentation context",
			OffendingElements: []dicom.Tag{elAffectedClass}}
	case m.Data == nil:
		return nil, StoreResponse{Status: StatusCannotUnderstand, ErrorComment: "no data set",
			OffendingElements: []dicom.Tag{elDataSetType}}
	}
	return &StoreRequest{
		Context: pc, MessageID: c.MessageID,
		SOPClass: c.AffectedClass, SOPInstance: c.AffectedInstance, Syntax: pc.TransferSyntax,
		Priority: c.Priority, MoveOriginator: c.MoveOriginator, MoveOriginatorMessageID: c.MoveOriginatorID,
		Data: m.Data,
	}, StoreResponse{}
}

// storeReply echoes class and instance UID, on which senders match.
func storeReply(c *Command, res StoreResponse) *Command {
	rsp := respond(c, res.Status)
	rsp.AffectedClass, rsp.AffectedInstance = c.AffectedClass, c.AffectedInstance
	rsp.ErrorComment, rsp.OffendingElements = res.ErrorComment, rawTags(res.OffendingElements)
	return rsp
}

func rawTags(tags []dicom.Tag) []uint32 {
	var out []uint32
	for _, t := range tags {
		out = append(out, uint32(t))
	}
	return out
}

func dicomTags(tags []uint32) []dicom.Tag {
	var out []dicom.Tag
	for _, t := range tags {
		out = append(out, dicom.Tag(t))
	}
	return out
}

// errTooLong is the failure of an identifier over the limit.
var errTooLong = errors.New("identifier is too long")

// readIdentifier reads and decodes a small data set. A second return other
// than nil is the peer's fault in the data set; a third ends the association.
func readIdentifier(m *Message, syntax string) (ds *dicom.Dataset, fault, broken error) {
	if m.Data == nil {
		return nil, nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(m.Data, identifierBytesMax+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > identifierBytesMax {
		return nil, errTooLong, nil
	}
	ds, fault = dicom.Decode(b, syntax, dicom.Limits{})
	return ds, fault, nil
}

func (s *Session) notify(ctx context.Context, m *Message) error {
	s.server.stats.Notifications.Add(1)
	return answerNotify(ctx, s.conn, m, s, s.server.cfg.Handler.Notify)
}

// noteResponse notes an N- response; a client, which has no session, notes nothing.
func (s *Session) noteResponse(field uint16, res NResponse) {
	if s != nil {
		s.note(operationName(field), res.Status, res.ErrorComment, res.Advice)
	}
}

// answerNotify runs an N- request through a handler, PS3.7 §10.1.
func answerNotify(ctx context.Context, conn *Conn, m *Message, s *Session, handle func(context.Context, *NRequest) NResponse) error {
	c := m.Command
	pc, _ := conn.assoc.Context(m.ContextID)
	ds, fault, broken := readIdentifier(m, pc.TransferSyntax)
	if broken != nil {
		return broken
	}
	req := &NRequest{
		Session: s, Context: pc, Field: c.Field, MessageID: c.MessageID, Dataset: ds,
		SOPClass: first(c.AffectedClass, c.RequestedClass), SOPInstance: first(c.AffectedInstance, c.RequestedInstance),
		EventType: c.EventType, ActionType: c.ActionType, AttributeIDs: dicomTags(c.AttributeIDs),
	}
	res := NResponse{Status: StatusInvalidArgument, ErrorComment: "data set cannot be decoded"}
	switch {
	case fault != nil:
	case req.SOPInstance == "" && c.Field != NCreateRQ:
		res = NResponse{Status: StatusInvalidInstance, ErrorComment: "no SOP instance UID in the command"}
	default:
		res = handle(ctx, req)
	}
	s.noteResponse(c.Field, res)
	rsp := respond(c, res.Status)
	rsp.AffectedClass, rsp.AffectedInstance = req.SOPClass, first(res.SOPInstance, req.SOPInstance)
	rsp.EventType, rsp.ActionType = c.EventType, c.ActionType
	rsp.ErrorComment, rsp.ErrorID, rsp.OffendingElements = res.ErrorComment, res.ErrorID, rawTags(res.OffendingElements)
	return writeDataset(conn, m.ContextID, rsp, res.Dataset, pc.TransferSyntax)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// waiters are the requests this side sent on an association whose responses
// its reader delivers.
type waiters struct {
	mu   sync.Mutex
	next uint16
	wait map[uint16]chan *Command
	err  error
}

// open draws a message ID. The channel gets one response, or is closed when
// the association ends.
func (w *waiters) open() (uint16, chan *Command, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, nil, w.err
	}
	if w.wait == nil {
		w.wait = map[uint16]chan *Command{}
	}
	for {
		w.next++
		if _, used := w.wait[w.next]; !used && w.next != 0 {
			break
		}
	}
	ch := make(chan *Command, 1)
	w.wait[w.next] = ch
	return w.next, ch, nil
}

func (w *waiters) close(id uint16) {
	w.mu.Lock()
	delete(w.wait, id)
	w.mu.Unlock()
}

// deliver hands a response to whoever waits; false if nobody does.
func (w *waiters) deliver(c *Command) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ch, ok := w.wait[c.RespondedTo]
	if ok {
		delete(w.wait, c.RespondedTo)
		ch <- c
	}
	return ok
}

// ended is why the association ended.
func (w *waiters) ended() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// fail ends all waiting.
func (w *waiters) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		err = dul.ErrClosed
	}
	w.err = err
	for id, ch := range w.wait {
		delete(w.wait, id)
		close(ch)
	}
}

// deliver passes a response on. One nobody waits for is a protocol error,
// except the late response to a request given up.
func (s *Session) deliver(m *Message) error {
	expected := []uint16{CStoreRQ | responseBit, NEventRQ | responseBit}
	if !slices.Contains(expected, m.Command.Field) {
		s.Abort()
		return errMisuse
	}
	s.waits.deliver(m.Command)
	return nil
}

// EventReport sends an N-EVENT-REPORT on this association and waits for its
// response (storage commitment results, PS3.4 §J.3.3). The peer must have a
// presentation context for the SOP class; else the error is dul.ErrContext.
func (s *Session) EventReport(ctx context.Context, class, instance string, event uint16, info *dicom.Dataset) (status uint16, err error) {
	pc, ok := findContext(s.Contexts(), class, "")
	if !ok {
		return 0, dul.ErrContext
	}
	leave, err := s.askTurn(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	id, ch, err := s.waits.open()
	if err != nil {
		return 0, err
	}
	defer s.waits.close(id)
	s.begin()
	defer s.end()
	cmd := &Command{Field: NEventRQ, MessageID: id, AffectedClass: class, AffectedInstance: instance, EventType: event}
	if err := writeDataset(s.conn, pc.ID, cmd, info, pc.TransferSyntax); err != nil {
		return 0, err
	}
	return s.awaitResponse(ctx, ch)
}

// askTurn waits until one more request of this side may be under way (PS3.7 §D.3.3.3).
func (s *Session) askTurn(ctx context.Context) (leave func(), err error) {
	select {
	case s.asking <- struct{}{}:
		return func() { <-s.asking }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// awaitResponse waits for the response to a request of this side. A peer that
// stays silent for the response time is aborted.
func (s *Session) awaitResponse(ctx context.Context, ch chan *Command) (uint16, error) {
	timer := time.NewTimer(s.server.cfg.ResponseTime)
	defer timer.Stop()
	select {
	case c, ok := <-ch:
		if !ok {
			return 0, s.waits.ended()
		}
		return c.Status, nil
	case <-timer.C:
		s.Abort()
		return 0, ErrNoResponse
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// findContext finds an accepted context for a class; syntax "" matches any.
func findContext(all []dul.Context, class, syntax string) (dul.Context, bool) {
	for _, pc := range all {
		if pc.AbstractSyntax == class && (syntax == "" || pc.TransferSyntax == syntax) {
			return pc, true
		}
	}
	return dul.Context{}, false
}
