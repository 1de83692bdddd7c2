package dimse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// startQuery reads the identifier of a C-FIND, C-MOVE or C-GET and runs it
// beside the reader.
func (s *Session) startQuery(ctx context.Context, m *Message) error {
	pc := s.context(m)
	ds, fault, broken := readIdentifier(m, pc.TransferSyntax)
	if broken != nil {
		return broken
	}
	c := m.Command
	refuse := func(status uint16, comment string) error {
		s.note(operationName(c.Field), status, comment, Advice{})
		rsp := respond(c, status)
		rsp.AffectedClass, rsp.ErrorComment = c.AffectedClass, comment
		return s.conn.Write(m.ContextID, rsp, nil)
	}
	switch {
	case c.AffectedClass != pc.AbstractSyntax:
		return refuse(StatusClassNotSupported, "SOP class is not that of the presentation context")
	case fault != nil:
		return refuse(StatusCannotUnderstand, "identifier cannot be decoded")
	case ds == nil:
		return refuse(StatusMismatch, "no identifier")
	}
	ctx, stop := context.WithCancelCause(ctx)
	if status := s.register(c.MessageID, stop); status != StatusSuccess {
		stop(nil)
		return refuse(status, registerComment(status))
	}
	s.begin()
	s.ops.Add(1)
	// Stopped by the association's end or a C-CANCEL; run waits for it.
	go func() {
		defer s.ops.Done()
		defer s.end()
		defer stop(nil)
		o := &operation{s: s, ctx: ctx, pc: pc, cmd: c, unregister: sync.OnceFunc(func() { s.unregister(c.MessageID) })}
		defer o.unregister()
		err := s.server.guarded(func() error { return o.run(ds) })
		if errors.Is(err, ErrPanic) {
			s.noteBroken(err)
		}
		if err != nil {
			s.Abort()
		}
	}()
	return nil
}

func registerComment(status uint16) string {
	if status == StatusDuplicateInvoke {
		return "the message ID is in use by an operation under way"
	}
	return "too many operations at once on this association"
}

// register notes a running operation for C-CANCEL.
func (s *Session) register(id uint16, stop context.CancelCauseFunc) uint16 {
	s.ops.mu.Lock()
	defer s.ops.mu.Unlock()
	if _, used := s.ops.ids[id]; used {
		return StatusDuplicateInvoke
	}
	if s.ops.queries >= max(operationsMax, cap(s.overlap.turns)) {
		return StatusResourceLimitation
	}
	s.ops.queries++
	s.noteID(id, stop)
	return StatusSuccess
}

// noteID notes an operation under way; the mutex is held.
func (s *Session) noteID(id uint16, stop context.CancelCauseFunc) {
	if s.ops.ids == nil {
		s.ops.ids = map[uint16]context.CancelCauseFunc{}
	}
	s.ops.ids[id] = stop
}

func (s *Session) unregister(id uint16) {
	s.ops.mu.Lock()
	defer s.ops.mu.Unlock()
	if s.ops.ids[id] != nil {
		s.ops.queries--
	}
	delete(s.ops.ids, id)
}

// cancel handles a C-CANCEL-RQ, which has no response of its own. One that
// comes too late is ignored.
func (s *Session) cancel(id uint16) {
	s.ops.mu.Lock()
	stop := s.ops.ids[id]
	s.ops.mu.Unlock()
	if stop != nil {
		s.server.stats.Cancels.Add(1)
		stop(ErrCancelled)
	}
}

// operation is one C-FIND, C-MOVE or C-GET at the server.
type operation struct {
	s   *Session
	ctx context.Context // of this operation alone, as http.Request has one
	pc  dul.Context
	cmd *Command
	// unregister gives the message ID free, once.
	unregister func()
}

// run calls the handler and sends the final response.
func (o *operation) run(ds *dicom.Dataset) error {
	h, c := o.s.server.cfg.Handler, o.cmd
	req := FindRequest{Session: o.s, Context: o.pc, MessageID: c.MessageID, SOPClass: c.AffectedClass, Priority: c.Priority, Identifier: ds}
	stats := &o.s.server.stats
	var res Result
	switch c.Field {
	case CFindRQ:
		stats.Finds.Add(1)
		res = h.Find(o.ctx, &req, o.match)
	case CMoveRQ:
		stats.Moves.Add(1)
		res = h.Move(o.ctx, &MoveRequest{FindRequest: req, Destination: c.MoveDestination}, &Progress{o})
	default:
		stats.Gets.Add(1)
		res = h.Get(o.ctx, &GetRequest{req}, &Getter{Progress{o}})
	}
	if errors.Is(context.Cause(o.ctx), ErrCancelled) && res.Status != StatusSuccess {
		res.Status = StatusCancel
	}
	return o.final(res)
}

// stopped is why no more responses may be sent, or nil.
func (o *operation) stopped() error { return context.Cause(o.ctx) }

func (o *operation) reply(status uint16) *Command {
	rsp := respond(o.cmd, status)
	rsp.AffectedClass = o.cmd.AffectedClass
	return rsp
}

func (o *operation) match(id *dicom.Dataset, status uint16) error {
	if err := o.stopped(); err != nil {
		return err
	}
	o.s.server.stats.Matches.Add(1)
	return writeDataset(o.s.conn, o.pc.ID, o.reply(status), id, o.pc.TransferSyntax)
}

func (o *operation) final(res Result) error {
	if res.Status == StatusCoerced && res.Advice.Why == "" {
		res.Advice.Why = "some sub-operations failed or were warned of"
	}
	o.s.note(operationName(o.cmd.Field), res.Status, res.ErrorComment, res.Advice)
	rsp := o.reply(res.Status)
	rsp.ErrorComment, rsp.OffendingElements, rsp.Counters = res.ErrorComment, rawTags(res.OffendingElements), res.Counters
	var list *dicom.Dataset
	if len(res.FailedInstances) > 0 {
		list = &dicom.Dataset{}
		list.SetStrings(dicom.FailedSOPInstanceUIDList, res.FailedInstances[:min(len(res.FailedInstances), failedUIDsMax)]...)
	}
	o.unregister() // behind the response the peer may use the ID again
	return writeDataset(o.s.conn, o.pc.ID, rsp, list, o.pc.TransferSyntax)
}

// writeDataset sends a command with a data set that may be nil.
func writeDataset(c *Conn, contextID byte, cmd *Command, ds *dicom.Dataset, syntax string) error {
	if ds == nil {
		return c.Write(contextID, cmd, nil)
	}
	b, err := ds.Encode(nil, syntax)
	if err != nil {
		return err
	}
	return c.Write(contextID, cmd, bytes.NewReader(b))
}

// Progress sends the pending responses of a C-MOVE or C-GET. It may be used
// from several goroutines, a timer's among them.
type Progress struct{ o *operation }

// Pending sends a pending response with the counters. It returns ErrCancelled
// when the peer cancelled, or why the association ended.
func (p *Progress) Pending(n Counters) error {
	if err := p.o.stopped(); err != nil {
		return err
	}
	rsp := p.o.reply(StatusPending)
	rsp.Counters = &n
	return p.o.s.conn.Write(p.o.pc.ID, rsp, nil)
}

// Getter is Progress and the sub-operations of a C-GET, on the same
// association. As many run at once as were agreed to.
type Getter struct{ Progress }

// Syntaxes returns the transfer syntaxes in which the peer takes instances of
// a SOP class: those of the contexts where it has the SCP role.
func (g *Getter) Syntaxes(class string) []string {
	var out []string
	for _, pc := range g.o.s.Contexts() {
		if pc.AbstractSyntax == class && pc.RequestorSCP && !slices.Contains(out, pc.TransferSyntax) {
			out = append(out, pc.TransferSyntax)
		}
	}
	return out
}

// Store sends an instance and waits for the response, giving its status. It
// returns dul.ErrContext when the peer has no context for class and syntax
// (count the sub-operation as failed), ErrCancelled, the failure of the data
// (the association is then aborted), or why the association ended. PS3.4
// §C.4.3.
func (g *Getter) Store(a StoreArgs) (status uint16, err error) {
	o := g.o
	if err := o.stopped(); err != nil {
		return 0, err
	}
	var pc dul.Context
	for _, c := range o.s.Contexts() {
		if c.AbstractSyntax == a.SOPClass && c.TransferSyntax == a.Syntax && c.RequestorSCP {
			pc = c
			break
		}
	}
	if pc.ID == 0 {
		return 0, dul.ErrContext
	}
	leave, err := o.s.askTurn(o.ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	id, ch, err := o.s.waits.open()
	if err != nil {
		return 0, err
	}
	defer o.s.waits.close(id)
	if err := a.write(o.s.conn, pc.ID, id); err != nil {
		return 0, err
	}
	o.s.server.stats.SubOperations.Add(1)
	// A cancel does not end the wait for a store already sent: its response
	// must not meet the next operation.
	return o.s.awaitResponse(context.WithoutCancel(o.ctx), ch)
}

// StoreArgs is one instance to send.
type StoreArgs struct {
	SOPClass, SOPInstance string
	// Syntax is the transfer syntax of the data set, which is sent as it is.
	Syntax string
	// Data is the data set, without file meta information.
	Data io.Reader
	// From is used instead of Data when it is not nil.
	From io.WriterTo

	Priority         uint16
	MoveOriginator   string // AE title, "" when not part of a C-MOVE
	MoveOriginatorID uint16
}

func (a *StoreArgs) write(c *Conn, contextID byte, messageID uint16) error {
	cmd := &Command{
		Field: CStoreRQ, MessageID: messageID, Priority: a.Priority,
		AffectedClass: a.SOPClass, AffectedInstance: a.SOPInstance,
		MoveOriginator: a.MoveOriginator, MoveOriginatorID: a.MoveOriginatorID,
	}
	switch {
	case dicom.SyntaxOf(a.Syntax).Deflated:
		return c.WriteFrom(contextID, cmd, evenly{a})
	case a.From != nil:
		return c.WriteFrom(contextID, cmd, a.From)
	}
	return c.Write(contextID, cmd, a.Data)
}

// evenly writes a deflated data set, with a NUL behind one of odd length: fragments are even (PS3.8 Annex E.2),
// and the deflated stream is the one data set that may be padded (PS3.5 §A.5).
type evenly struct{ args *StoreArgs }

func (e evenly) WriteTo(w io.Writer) (n int64, err error) {
	if e.args.From != nil {
		n, err = e.args.From.WriteTo(w)
	} else {
		n, err = io.Copy(w, e.args.Data)
	}
	if err != nil || n%2 == 0 {
		return n, err
	}
	k, err := w.Write([]byte{0})
	return n + int64(k), err
}
