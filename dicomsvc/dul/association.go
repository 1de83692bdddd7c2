package dul

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Association is an open association on one connection, which it owns. Next
// and the Inbound it returns belong to one goroutine at a time; Send, Abort,
// BeginWork and EndWork are safe for concurrent use. Close must be called in
// the end.
type Association struct {
	conn     *transport
	br       *bufio.Reader
	watch    *watch
	machine  machine
	log      *slog.Logger
	request  *Request
	peer     UserInfo
	contexts map[byte]Context
	async    AsyncOps
	maxPDU   uint32 // of PDUs we announced
	sendMax  int    // fragment bytes in one of our PDUs
	stopCtx  func() bool

	in      Inbound
	pduLeft int64 // unread bytes of the current P-DATA-TF
	readErr error // sticky, owned by the reader

	// inStep says that Sta13 was entered in good order, with whole PDUs read.
	inStep bool

	aborted atomic.Bool // locally, by Abort
	closing sync.Once

	write chan struct{} // full while somebody writes a message: they must not interleave
	buf   []byte        // the write buffer, of whoever filled write
}

func newAssociation(conn net.Conn, t Timers, requestor bool, log *slog.Logger) *Association {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	raw := tuneTCP(conn)
	w := newWatch(conn, t.withDefaults())
	tr := &transport{Conn: conn, w: w, raw: raw}
	a := &Association{conn: tr, watch: w, log: log, br: bufio.NewReaderSize(tr, readBufferBytes), maxPDU: AdvertisedPDU}
	a.write = make(chan struct{}, 1)
	a.machine = machine{requestor: requestor, st: sta1}
	a.in.a = a
	return a
}

// follow aborts the association when ctx ends.
func (a *Association) follow(ctx context.Context) {
	a.stopCtx = context.AfterFunc(ctx, func() { a.Abort() })
}

// Request is what was proposed. It must not be changed.
func (a *Association) Request() *Request { return a.request }

// Peer is the user information the peer sent.
func (a *Association) Peer() UserInfo { return a.peer }

// Context returns the accepted presentation context with an id.
func (a *Association) Context(id byte) (Context, bool) {
	c, ok := a.contexts[id]
	return c, ok
}

// Contexts returns the accepted presentation contexts in order of their ids.
func (a *Association) Contexts() []Context {
	out := make([]Context, 0, len(a.contexts))
	for id := 1; id < 256; id += 2 {
		if c, ok := a.contexts[byte(id)]; ok {
			out = append(out, c)
		}
	}
	return out
}

// AsyncOps is the negotiated window; (1,1) unless more was agreed.
func (a *Association) AsyncOps() AsyncOps { return a.async }

// Requestor reports whether this side asked for the association.
func (a *Association) Requestor() bool { return a.machine.requestor }

// RemoteAddr is the peer's network address.
func (a *Association) RemoteAddr() net.Addr { return a.conn.RemoteAddr() }

// BeginWork suspends the idle timer until the matching EndWork: the silence of
// a peer that waits for our answer is no fault.
func (a *Association) BeginWork() { a.watch.work.Add(1) }

// EndWork ends what BeginWork began; the idle time starts anew.
func (a *Association) EndWork() { a.watch.work.Add(-1) }

// readPDU reads a PDU header. The idle or ARTIM time runs until its first byte
// is there, unless the phase is one of those that span PDUs.
func (a *Association) readPDU(wait phase) (typ byte, length uint32, err error) {
	if a.br.Buffered() == 0 {
		a.watch.enter(wait)
		if _, err := a.br.Peek(1); err != nil {
			return 0, 0, err
		}
	}
	if wait == phaseIdle {
		a.watch.enter(phaseBody)
	}
	var h [6]byte
	if _, err := io.ReadFull(a.br, h[:]); err != nil {
		return 0, 0, midPDU(err)
	}
	return h[0], be.Uint32(h[2:]), nil
}

// midPDU makes an end of stream inside a PDU an unexpected one.
func midPDU(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readBody reads a PDU body into memory as it arrives, in growing steps.
func (a *Association) readBody(length uint32) ([]byte, error) {
	var b bytes.Buffer
	if _, err := io.CopyN(&b, a.br, int64(length)); err != nil {
		return nil, midPDU(err)
	}
	return b.Bytes(), nil
}

// eventOf gives the event of a received PDU; a wrong type or length is
// evtInvalid with its error.
func eventOf(typ byte, length uint32) (event, error) {
	if typ < typeRQ || typ > typeAbort {
		return evtInvalid, &pduError{ReasonUnrecognized, fmt.Sprintf("PDU type %02XH%s", typ, foreign(typ))}
	}
	if length > pduBytesMax {
		return evtInvalid, invalid("PDU of %d bytes, the limit is %d", length, pduBytesMax)
	}
	if typ != typeRQ && typ != typeAC && typ != typeData && length != 4 {
		return evtInvalid, invalid("PDU type %02XH of %d bytes", typ, length)
	}
	return [...]event{typeRQ: evtRQ, typeAC: evtAC, typeRJ: evtRJ, typeData: evtData,
		typeReleaseRQ: evtReleaseRQ, typeReleaseRP: evtReleaseRP, typeAbort: evtAbort}[typ], nil
}

// foreign says what a first byte that is no PDU type is likely to be: whoever called meant another port.
func foreign(typ byte) string {
	switch {
	case typ == 0x16: // a TLS handshake record, RFC 8446 §5.1
		return ", a TLS handshake, which this port does not speak"
	case typ >= 'A' && typ <= 'Z', typ >= 'a' && typ <= 'z':
		return ", text such as HTTP, which this port does not speak"
	}
	return ""
}

// transportLost turns a read or write error into the association's error and
// closes the transport.
func (a *Association) transportLost(err error) error {
	if a.aborted.Load() {
		return &AbortError{Source: SourceUser, Cause: ErrClosed}
	}
	if cause := a.watch.err(); cause != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return a.timedOut(cause)
	}
	a.machine.on(evtTransportClosed)
	a.conn.Close()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("association lost: %w", err)
}

// timedOut ends the association after the watch gave up: ARTIM closes, a
// peer that does not read would not read an abort either, and the other timers
// abort.
func (a *Association) timedOut(cause error) error {
	if cause == ErrARTIM && a.machine.on(evtARTIM) == aa2 {
		a.conn.Close()
		return cause
	}
	if cause == errWriteStalled {
		a.machine.on(evtTransportClosed)
		a.conn.Close()
		return cause
	}
	a.log.Debug("association aborted", "source", SourceProvider, "reason", ReasonNotSpecified, "err", cause)
	a.conn.SetDeadline(time.Time{})
	a.abortWith(SourceProvider, ReasonNotSpecified)
	return &AbortError{Source: SourceProvider, Reason: ReasonNotSpecified, Cause: cause}
}

// abortWith sends an A-ABORT if the state still allows it. It does not wait
// long for a writer: then the transport is closed under it.
func (a *Association) abortWith(source, reason byte) {
	switch a.machine.on(evtAbortRequest) {
	case aa1:
		a.sendAbort(source, reason)
	case noAction:
		if a.machine.state() == sta2 { // not yet associated: nothing to abort
			a.conn.Close()
		}
	default:
		a.conn.Close()
	}
}

func (a *Association) sendAbort(source, reason byte) {
	timer := time.NewTimer(abortWait)
	defer timer.Stop()
	select {
	case a.write <- struct{}{}:
	case <-timer.C:
		a.conn.Close()
		return
	}
	defer func() { <-a.write }()
	if _, err := a.conn.Write(abortPDU(source, reason)); err != nil {
		a.conn.Close()
	}
}

// protocolFault performs the action the table gives for an event that must not
// happen and returns the association's error.
func (a *Association) protocolFault(act action, cause error) error {
	switch act {
	case aa1:
		a.sendAbort(SourceUser, ReasonNotSpecified)
		return &AbortError{Source: SourceUser, Cause: cause}
	case aa7, aa8:
		reason := reasonOf(cause)
		a.log.Debug("association aborted", "source", SourceProvider, "reason", reason, "err", cause)
		a.sendAbort(SourceProvider, reason)
		return &AbortError{Source: SourceProvider, Reason: reason, Cause: cause}
	}
	a.conn.Close()
	return cause
}

func unexpected(typ byte) error {
	return &pduError{ReasonUnexpected, fmt.Sprintf("unexpected PDU type %02XH", typ)}
}

// remoteAbort reads an A-ABORT and closes the transport (AA-2, AA-3).
func (a *Association) remoteAbort(length uint32) error {
	b, err := a.readBody(length)
	a.conn.Close()
	if err != nil || len(b) < 4 {
		return &AbortError{Remote: true}
	}
	return &AbortError{Source: b[2], Reason: b[3], Remote: true}
}

// Abort sends an A-ABORT from the service user and makes pending reads and
// writes fail. It may be called from any goroutine and more than once, and does
// not wait long for a write under way: the transport is closed under that. Close
// must still follow.
func (a *Association) Abort() {
	if a.aborted.Swap(true) {
		return
	}
	a.abortWith(SourceUser, ReasonNotSpecified)
	a.conn.SetReadDeadline(time.Unix(longAgo, 0))
}

// ReplyRelease answers the release request that Next reported. Close must
// still follow.
func (a *Association) ReplyRelease() error {
	if a.machine.on(evtReleaseResponse) != ar4 {
		return ErrClosed
	}
	a.inStep = true
	return a.writeControl(releaseRPPDU())
}

func (a *Association) writeControl(b []byte) error {
	a.write <- struct{}{}
	defer func() { <-a.write }()
	if _, err := a.conn.Write(b); err != nil {
		return a.transportLost(err)
	}
	return nil
}

// Close ends the association: an open one is aborted; then, so that the peer
// can read our last PDU, it waits for the peer to close for at most the linger
// time. The reader must have stopped. It may be called more than once.
func (a *Association) Close() {
	a.closing.Do(func() {
		if a.stopCtx != nil {
			a.stopCtx()
		}
		if s := a.machine.state(); s != sta1 && s != sta13 {
			a.Abort()
		}
		a.linger()
		a.conn.Close()
		a.watch.stop()
	})
}

// linger drains the transport in Sta13 until the peer closes it.
func (a *Association) linger() {
	if a.machine.state() != sta13 {
		return
	}
	a.watch.cause.Store(nil)
	a.conn.SetDeadline(time.Time{})
	a.watch.enter(phaseLinger)
	for a.inStep && a.latePDU() {
	}
	if a.machine.state() != sta13 {
		return
	}
	// Bytes that are in the middle of a PDU cannot be told apart any more, so
	// what arrives is dropped unread; Table 9-10 asks no answer to it but AA-7,
	// an abort, and one was sent.
	io.Copy(io.Discard, a.br)
	a.machine.on(evtTransportClosed)
}

// latePDU performs the action for one PDU that comes in Sta13: AA-6 drops it, AA-2 after the peer's abort closes, AA-7
// aborts; after that the stream is not looked at any more. The linger time spans all of them.
func (a *Association) latePDU() bool {
	var h [6]byte
	if _, err := io.ReadFull(a.br, h[:]); err != nil {
		return false
	}
	length := be.Uint32(h[2:])
	ev, fault := eventOf(h[0], length)
	switch a.machine.on(ev) {
	case aa6:
		_, err := io.CopyN(io.Discard, a.br, int64(length))
		return err == nil
	case aa7:
		if fault == nil {
			fault = unexpected(h[0])
		}
		a.sendAbort(SourceProvider, reasonOf(fault))
	}
	return false
}
