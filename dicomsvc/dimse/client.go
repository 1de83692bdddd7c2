package dimse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"sync"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// ClientConfig configures a Client. Association holds titles and contexts; its
// Timers.Idle is the longest wait for each response.
type ClientConfig struct {
	Association dul.RequestorConfig
	// Notify answers N-EVENT-REPORTs that arrive while the client reads (in an
	// operation or in Wait). Nil answers "SOP class not supported".
	Notify func(ctx context.Context, r *NRequest) NResponse
	// CancelGrace is how long a cancelled operation may take to end before the
	// association is aborted. Default 10 s.
	CancelGrace time.Duration
}

// StatusError is the final response of an operation that did not succeed.
type StatusError struct {
	Status            uint16
	ErrorComment      string
	OffendingElements []dicom.Tag
}

func (e *StatusError) Error() string { return fmt.Sprintf("peer answered status %04XH", e.Status) }

// Client asks another AE for its services over one association. Operations are
// done one at a time: a second caller waits. Abort and Close may be called at
// any time.
type Client struct {
	conn *Conn
	cfg  ClientConfig

	mu      sync.Mutex // held for a whole operation on purpose
	lastID  uint16
	handler func(ctx context.Context, r *StoreRequest) StoreResponse // during Get
}

// Dial opens an association on conn, which it owns from now on, also on
// failure. Errors are those of dul.Connect. The association is aborted when
// ctx ends.
func Dial(ctx context.Context, conn net.Conn, cfg ClientConfig) (*Client, error) {
	assoc, err := dul.Connect(ctx, conn, cfg.Association)
	if err != nil {
		return nil, err
	}
	if cfg.CancelGrace == 0 {
		cfg.CancelGrace = cancelGraceDefault
	}
	return &Client{conn: NewConn(assoc), cfg: cfg}, nil
}

// Contexts are the accepted presentation contexts.
func (c *Client) Contexts() []dul.Context { return c.conn.assoc.Contexts() }

// Accepts reports whether instances of a class can be stored in a syntax.
func (c *Client) Accepts(class, syntax string) bool {
	_, ok := findContext(c.Contexts(), class, syntax)
	return ok
}

// Association is the association under the client.
func (c *Client) Association() *dul.Association { return c.conn.assoc }

// Release releases the association and closes it.
func (c *Client) Release(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn.assoc.Release(ctx)
}

// Abort ends the association at once; an operation under way fails.
func (c *Client) Abort() { c.conn.assoc.Abort() }

// Close aborts the association if it was not released and frees it.
func (c *Client) Close() {
	c.Abort()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.assoc.Close()
}

// nextID draws a message ID; the mutex is held.
func (c *Client) nextID() uint16 {
	if c.lastID++; c.lastID == 0 {
		c.lastID = 1
	}
	return c.lastID
}

// guard aborts the association when ctx ends before the operation does.
func (c *Client) guard(ctx context.Context) func() bool { return context.AfterFunc(ctx, c.Abort) }

// explain puts the end of ctx before its consequence.
func explain(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// response reads to the response to a request, serving what the peer asks for
// meanwhile.
func (c *Client) response(ctx context.Context, field, id uint16) (*Message, error) {
	for {
		m, err := c.conn.Read()
		if err != nil {
			return nil, err
		}
		cmd := m.Command
		switch {
		case cmd.Field == field|responseBit && cmd.RespondedTo == id:
			return m, nil
		case cmd.IsResponse() || cmd.Field == CCancelRQ:
			c.Abort()
			return nil, fmt.Errorf("%w: %04XH for message %d", errMisuse, cmd.Field, cmd.RespondedTo)
		}
		if err := c.serve(ctx, m); err != nil {
			return nil, err
		}
	}
}

// serve answers a request of the peer.
func (c *Client) serve(ctx context.Context, m *Message) error {
	switch {
	case m.Command.Field == NEventRQ && c.cfg.Notify != nil:
		return answerNotify(ctx, c.conn, m, nil, c.cfg.Notify)
	case m.Command.Field == CStoreRQ && c.handler != nil:
		pc, _ := c.conn.assoc.Context(m.ContextID)
		req, res := storeRequest(m, pc)
		if req != nil {
			res = c.handler(ctx, req)
		}
		if err := c.conn.data.drain(); err != nil {
			return err
		}
		return c.conn.Write(m.ContextID, storeReply(m.Command, res), nil)
	}
	return c.conn.Write(m.ContextID, respond(m.Command, StatusClassNotSupported), nil)
}

// Wait reads until ctx ends or the association does, so that event reports of
// the peer reach Notify. It returns nil after ctx ended, when the association
// is aborted, or dul.ErrReleaseRequested after answering a release.
func (c *Client) Wait(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := c.guard(ctx)
	defer stop()
	for {
		m, err := c.conn.Read()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case errors.Is(err, dul.ErrReleaseRequested):
			return errors.Join(err, c.conn.assoc.ReplyRelease())
		case err != nil:
			return err
		}
		if err := c.serve(ctx, m); err != nil {
			return err
		}
	}
}

// Echo verifies the peer (C-ECHO). A *StatusError is an answer other than
// success.
func (c *Client) Echo(ctx context.Context) error {
	pc, ok := findContext(c.Contexts(), VerificationClass, "")
	if !ok {
		return dul.ErrContext
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := c.guard(ctx)
	defer stop()
	cmd := &Command{Field: CEchoRQ, MessageID: c.nextID(), AffectedClass: VerificationClass}
	if err := c.conn.Write(pc.ID, cmd, nil); err != nil {
		return explain(ctx, c.lost(err))
	}
	m, err := c.response(ctx, CEchoRQ, cmd.MessageID)
	if err != nil {
		return explain(ctx, err)
	}
	return statusError(m.Command)
}

func statusError(c *Command) error {
	if IsSuccess(c.Status) {
		return nil
	}
	return &StatusError{c.Status, c.ErrorComment, dicomTags(c.OffendingElements)}
}

// lost replaces a failed write by the abort that caused it, if the peer sent
// one.
func (c *Client) lost(err error) error {
	var abort *dul.AbortError
	if errors.As(err, &abort) || errors.Is(err, dul.ErrContext) {
		return err
	}
	if _, rerr := c.conn.assoc.Next(); errors.As(rerr, &abort) && abort.Remote {
		return rerr
	}
	return err
}

// Store sends one instance as it is and waits for the answer, which may be a
// failure: only the association's troubles are errors. dul.ErrContext means
// that no context was accepted for class and syntax. When the data cannot be
// read to its end, or ctx ends, the association is aborted.
func (c *Client) Store(ctx context.Context, a StoreArgs) (StoreResponse, error) {
	pc, ok := findContext(c.Contexts(), a.SOPClass, a.Syntax)
	if !ok {
		return StoreResponse{}, dul.ErrContext
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := c.guard(ctx)
	defer stop()
	id := c.nextID()
	if err := a.write(c.conn, pc.ID, id); err != nil {
		return StoreResponse{}, explain(ctx, c.lost(err))
	}
	m, err := c.response(ctx, CStoreRQ, id)
	if err != nil {
		return StoreResponse{}, explain(ctx, err)
	}
	cmd := m.Command
	return StoreResponse{Status: cmd.Status, ErrorComment: cmd.ErrorComment, OffendingElements: dicomTags(cmd.OffendingElements)}, nil
}

// QueryArgs is a C-FIND, C-MOVE or C-GET.
type QueryArgs struct {
	SOPClass    string // information model
	Identifier  *dicom.Dataset
	Priority    uint16
	Destination string // AE title, of C-MOVE
}

// Response is one response to a C-MOVE or C-GET.
type Response struct {
	Status            uint16
	ErrorComment      string
	OffendingElements []dicom.Tag
	Counters          Counters
	FailedInstances   []string // of the final response
}

// Find yields the identifiers of the matches in the order they come. A final
// response other than success or cancel is yielded as *StatusError. When the
// loop is left early or ctx ends the query is cancelled and its remaining
// responses are dropped.
func (c *Client) Find(ctx context.Context, q QueryArgs) iter.Seq2[*dicom.Dataset, error] {
	return func(yield func(*dicom.Dataset, error) bool) {
		more := true
		_, err := c.query(ctx, CFindRQ, q, func(m *Message, ds *dicom.Dataset) bool {
			more = more && yield(ds, nil)
			return more
		})
		if err != nil && more {
			yield(nil, err)
		}
	}
}

// Move asks the peer to send instances to another AE. progress, if not nil,
// sees every pending response; it returns false to cancel. The error is that
// of the association only; the status is in the final Response.
func (c *Client) Move(ctx context.Context, q QueryArgs, progress func(Response) bool) (Response, error) {
	return c.retrieve(ctx, CMoveRQ, q, progress)
}

// Get asks the peer to send instances on this association; store answers each.
// The contexts of the instances need the SCP role (dul.RequestorConfig.Roles).
func (c *Client) Get(ctx context.Context, q QueryArgs, store func(context.Context, *StoreRequest) StoreResponse, progress func(Response) bool) (Response, error) {
	return c.retrieve(ctx, CGetRQ, q, progress, store)
}

func (c *Client) retrieve(ctx context.Context, field uint16, q QueryArgs, progress func(Response) bool, store ...func(context.Context, *StoreRequest) StoreResponse) (Response, error) {
	pending := func(m *Message, _ *dicom.Dataset) bool {
		return progress == nil || progress(toResponse(m.Command, nil))
	}
	return c.query(ctx, field, q, pending, store...)
}

func toResponse(cmd *Command, ds *dicom.Dataset) Response {
	r := Response{Status: cmd.Status, ErrorComment: cmd.ErrorComment, OffendingElements: dicomTags(cmd.OffendingElements)}
	if cmd.Counters != nil {
		r.Counters = *cmd.Counters
	}
	if ds != nil {
		r.FailedInstances = ds.Strings(dicom.FailedSOPInstanceUIDList)
	}
	return r
}

// query sends a request with an identifier and reads its responses; pending
// sees each but the last and returns false to cancel.
func (c *Client) query(ctx context.Context, field uint16, q QueryArgs, pending func(*Message, *dicom.Dataset) bool, store ...func(context.Context, *StoreRequest) StoreResponse) (Response, error) {
	pc, ok := findContext(c.Contexts(), q.SOPClass, "")
	if !ok {
		return Response{}, dul.ErrContext
	}
	id, err := q.Identifier.Encode(nil, pc.TransferSyntax)
	if err != nil {
		return Response{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(store) > 0 {
		c.handler = store[0]
		defer func() { c.handler = nil }()
	}
	cmd := &Command{Field: field, MessageID: c.nextID(), AffectedClass: q.SOPClass, Priority: q.Priority, MoveDestination: q.Destination}
	if err := c.conn.Write(pc.ID, cmd, bytes.NewReader(id)); err != nil {
		return Response{}, c.lost(err)
	}
	cancel := c.canceller(pc.ID, cmd.MessageID)
	defer cancel.done()
	stop := context.AfterFunc(ctx, cancel.send)
	defer stop()
	// The peer may still store while the cancel is on its way.
	rctx := context.WithoutCancel(ctx)
	for {
		m, err := c.response(rctx, field, cmd.MessageID)
		if err != nil {
			return Response{}, explain(ctx, err)
		}
		ds, fault, broken := readIdentifier(m, pc.TransferSyntax)
		if broken != nil {
			return Response{}, explain(ctx, broken)
		}
		if IsPending(m.Command.Status) {
			if ctx.Err() == nil && !cancel.sent() && fault == nil && !pending(m, ds) {
				cancel.send()
			}
			if fault == nil {
				continue
			}
			cancel.send()
			return Response{}, fmt.Errorf("decode identifier of response: %w", fault)
		}
		return c.outcome(ctx, field, m.Command, ds)
	}
}

// outcome turns the final response into the caller's.
func (c *Client) outcome(ctx context.Context, field uint16, cmd *Command, ds *dicom.Dataset) (Response, error) {
	r := toResponse(cmd, ds)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	if field == CFindRQ && cmd.Status != StatusCancel {
		return r, statusError(cmd)
	}
	return r, nil
}

// canceller sends one C-CANCEL and aborts when that has no effect in time.
type canceller struct {
	c             *Client
	contextID     byte
	message       uint16
	mu            sync.Mutex
	timer         *time.Timer
	isSent, ended bool
}

func (c *Client) canceller(contextID byte, message uint16) *canceller {
	return &canceller{c: c, contextID: contextID, message: message}
}

func (x *canceller) send() {
	x.mu.Lock()
	if x.isSent || x.ended {
		x.mu.Unlock()
		return
	}
	x.isSent = true
	x.timer = time.AfterFunc(x.c.cfg.CancelGrace, x.c.Abort)
	x.mu.Unlock()
	if err := x.c.conn.Write(x.contextID, &Command{Field: CCancelRQ, RespondedTo: x.message}, nil); err != nil {
		x.c.Abort()
	}
}

func (x *canceller) sent() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.isSent
}

func (x *canceller) done() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	if x.timer != nil {
		x.timer.Stop()
	}
}

// Notify sends an N- request and returns the answer; its data set is decoded.
// Only the association's troubles are errors.
func (c *Client) Notify(ctx context.Context, r NRequest) (NResponse, error) {
	pc, ok := findContext(c.Contexts(), first(r.Context.AbstractSyntax, r.SOPClass), "")
	if !ok {
		return NResponse{}, dul.ErrContext
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := c.guard(ctx)
	defer stop()
	cmd := &Command{Field: r.Field, MessageID: c.nextID(), EventType: r.EventType, ActionType: r.ActionType, AttributeIDs: rawTags(r.AttributeIDs)}
	if r.Field == NEventRQ || r.Field == NCreateRQ {
		cmd.AffectedClass, cmd.AffectedInstance = r.SOPClass, r.SOPInstance
	} else {
		cmd.RequestedClass, cmd.RequestedInstance = r.SOPClass, r.SOPInstance
	}
	if err := writeDataset(c.conn, pc.ID, cmd, r.Dataset, pc.TransferSyntax); err != nil {
		return NResponse{}, explain(ctx, c.lost(err))
	}
	m, err := c.response(ctx, r.Field, cmd.MessageID)
	if err != nil {
		return NResponse{}, explain(ctx, err)
	}
	ds, fault, broken := readIdentifier(m, pc.TransferSyntax)
	if broken != nil {
		return NResponse{}, explain(ctx, broken)
	}
	rsp := m.Command
	return NResponse{Status: rsp.Status, ErrorComment: rsp.ErrorComment, ErrorID: rsp.ErrorID,
		OffendingElements: dicomTags(rsp.OffendingElements), SOPInstance: rsp.AffectedInstance, Dataset: ds}, fault
}
