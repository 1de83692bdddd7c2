package dul

import (
	"errors"
	"fmt"
	"io"
)

// Inbound is one stream of presentation data, a command set or a data set,
// joined over all its fragments. It is valid until the next call of Next.
type Inbound struct {
	ContextID byte
	Command   bool

	a       *Association
	left    int64 // unread bytes of the current fragment
	last    bool  // the current fragment is the last
	reading bool  // the stream is not read to its end
}

// Next waits for the next stream, dropping what is unread of the one before.
// It returns ErrReleaseRequested when the peer asks to release, an *AbortError
// after an abort by either side, ErrIdle or ErrStalled inside one after a
// time-out, and else the transport's error. After an error it returns the same
// again.
func (a *Association) Next() (*Inbound, error) {
	if a.in.reading {
		if _, err := io.Copy(io.Discard, &a.in); err != nil {
			return nil, err
		}
	}
	if a.readErr != nil {
		return nil, a.readErr
	}
	f, err := a.nextFragment(true)
	if err != nil {
		return nil, err
	}
	a.in.ContextID, a.in.Command, a.in.left, a.in.last, a.in.reading = f.id, f.command, f.length, f.last, true
	return &a.in, nil
}

// Read reads the stream. io.EOF means that the last fragment was read to its
// end; any other end of the association is another error.
func (in *Inbound) Read(p []byte) (int, error) {
	a := in.a
	if a.readErr != nil {
		return 0, a.readErr
	}
	for in.left == 0 {
		if in.last {
			in.reading = false
			return 0, io.EOF
		}
		f, err := a.nextFragment(false)
		if err != nil {
			return 0, err
		}
		if f.id != in.ContextID || f.command != in.Command {
			return 0, a.readFault(&pduError{ReasonUnexpectedPara, "fragments of two messages interleave"})
		}
		in.left, in.last = f.length, f.last
	}
	if int64(len(p)) > in.left {
		p = p[:in.left]
	}
	n, err := a.br.Read(p)
	in.left -= int64(n)
	a.pduLeft -= int64(n)
	if err != nil && n == 0 {
		return 0, a.readFailed(midPDU(err))
	}
	return n, nil
}

// fragment is the header of a presentation data value item, PS3.8 §9.3.5.1
// and §E.2.
type fragment struct {
	id            byte
	command, last bool
	length        int64
}

// nextFragment reads up to the bytes of the next fragment. A release request
// is only in order between messages.
func (a *Association) nextFragment(between bool) (fragment, error) {
	for a.pduLeft == 0 {
		if err := a.nextData(between); err != nil {
			a.readErr = err
			return fragment{}, err
		}
	}
	if a.pduLeft < 6 {
		return fragment{}, a.readFault(invalid("presentation data item cut after %d bytes", a.pduLeft))
	}
	var h [6]byte
	if _, err := io.ReadFull(a.br, h[:]); err != nil {
		return fragment{}, a.readFailed(midPDU(err))
	}
	a.pduLeft -= 6
	f := fragment{id: h[4], command: h[5]&1 != 0, last: h[5]&2 != 0, length: int64(be.Uint32(h[:])) - 2}
	if f.length < 0 || f.length > a.pduLeft {
		return fragment{}, a.readFault(invalid("fragment of %d bytes in %d", f.length, a.pduLeft))
	}
	if _, ok := a.contexts[f.id]; !ok {
		return fragment{}, a.readFault(invalid("presentation context %d was not accepted", f.id))
	}
	return f, nil
}

// nextData reads the header of the next P-DATA-TF and performs the actions for
// whatever else arrives.
func (a *Association) nextData(between bool) error {
	wait := phaseIdle
	typ, length, err := a.readPDU(wait)
	if err != nil {
		return a.transportLost(err)
	}
	if a.aborted.Load() {
		return &AbortError{Source: SourceUser, Cause: ErrClosed}
	}
	ev, fault := eventOf(typ, length)
	if fault == nil && ev == evtData && length < 6 {
		ev, fault = evtInvalid, invalid("P-DATA-TF of %d bytes", length)
	}
	if ev == evtReleaseRQ && !between {
		ev, fault = evtInvalid, unexpected(typ)
	}
	switch act := a.machine.on(ev); act {
	case dt2:
		a.pduLeft = int64(length)
		return nil
	case ar2:
		if _, err := a.readBody(length); err != nil {
			return a.transportLost(err)
		}
		return ErrReleaseRequested
	case aa2, aa3:
		return a.remoteAbort(length)
	case noAction, aa6:
		return ErrClosed
	default:
		if fault == nil {
			fault = unexpected(typ)
		}
		return a.protocolFault(act, fault)
	}
}

// readFault answers an invalid PDU; the error sticks.
func (a *Association) readFault(cause error) error {
	a.readErr = a.protocolFault(a.machine.on(evtInvalid), cause)
	return a.readErr
}

// readFailed notes the loss of the transport; the error sticks.
func (a *Association) readFailed(err error) error {
	a.readErr = a.transportLost(err)
	return a.readErr
}

// Send writes one message in a presentation context: the command set, and if
// data is not nil the data set read from it until io.EOF. Everything that fits
// the peer's maximum length and our buffer leaves in one write. It blocks
// other senders until the message is complete. When data fails the message
// cannot be completed: the association is aborted and the error returned. It
// returns ErrClosed when the association no longer carries data.
func (a *Association) Send(contextID byte, command []byte, data io.Reader) error {
	if data == nil {
		return a.sendLocked(contextID, command, nil)
	}
	return a.sendLocked(contextID, command, func(p *packer) error { return p.readFrom(data) })
}

// SendFrom is Send for a data set that writes itself. When data.WriteTo fails
// the association is aborted, so what it withheld is never taken for the end.
func (a *Association) SendFrom(contextID byte, command []byte, data io.WriterTo) error {
	return a.sendLocked(contextID, command, func(p *packer) error { return p.writeFrom(data) })
}

func (a *Association) sendLocked(contextID byte, command []byte, fill func(*packer) error) error {
	if _, ok := a.contexts[contextID]; !ok {
		return ErrContext
	}
	a.write <- struct{}{}
	err := a.send(contextID, command, fill)
	<-a.write
	var src *sourceError
	switch {
	case err == nil || errors.Is(err, ErrClosed):
		return err
	case errors.As(err, &src):
		a.Abort()
		return err
	}
	return a.transportLost(err)
}

// sourceError is the failure of the data set given to Send.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return fmt.Sprintf("read data set to send: %v", e.err) }
func (e *sourceError) Unwrap() error { return e.err }

const (
	bitCommand = 1
	bitLast    = 2
	headBytes  = 12 // PDU and fragment header
)

func (a *Association) send(id byte, command []byte, fill func(*packer) error) error {
	a.buf = a.buf[:0]
	if fill == nil && len(command) <= a.sendMax { // small: no large buffer
		a.buf = append(a.buf, make([]byte, headBytes)...)
		a.head(0, id, bitCommand|bitLast, len(command))
		a.buf = append(a.buf, command...)
		return a.flush()
	}
	p := packer{a: a, id: id, control: bitCommand}
	if _, err := p.Write(command); err != nil {
		return err
	}
	if err := p.finish(); err != nil {
		return err
	}
	if fill != nil {
		if err := fill(&packer{a: a, id: id}); err != nil {
			return err
		}
	}
	return a.flush()
}

// packer cuts one stream into fragments, each in a PDU of its own, in the
// write buffer, which it flushes when the next PDU might not fit.
type packer struct {
	a       *Association
	id      byte
	control byte // bitCommand or 0
	at      int  // where the open PDU begins in the buffer
	n       int  // bytes in its fragment
	open    bool
}

// begin opens a PDU with an empty fragment.
func (p *packer) begin() error {
	if err := p.a.room(); err != nil {
		return err
	}
	p.at, p.n, p.open = len(p.a.buf), 0, true
	p.a.buf = p.a.buf[:p.at+headBytes]
	return nil
}

// end closes the open PDU.
func (p *packer) end(last byte) {
	p.a.head(p.at, p.id, p.control|last, p.n)
	p.open = false
}

// finish closes the open PDU as the last; an empty stream is one empty last
// fragment.
func (p *packer) finish() error {
	if !p.open {
		if err := p.begin(); err != nil {
			return err
		}
	}
	p.end(bitLast)
	return nil
}

// Write appends b; a full fragment is closed only when more follows it.
func (p *packer) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		if p.open && p.n == p.a.sendMax {
			p.end(0)
		}
		if !p.open {
			if err := p.begin(); err != nil {
				return total - len(b), err
			}
		}
		k := min(len(b), p.a.sendMax-p.n)
		p.a.buf = append(p.a.buf, b[:k]...)
		p.n += k
		b = b[k:]
	}
	return total, nil
}

func (p *packer) writeFrom(data io.WriterTo) error {
	var w writeNote
	w.p = p
	if _, err := data.WriteTo(&w); err != nil {
		if w.err != nil {
			return w.err
		}
		return &sourceError{err}
	}
	if w.err != nil {
		return w.err
	}
	return p.finish()
}

// writeNote remembers the packer's own error, to tell the network's failures
// from the source's.
type writeNote struct {
	p   *packer
	err error
}

func (w *writeNote) Write(b []byte) (int, error) {
	n, err := w.p.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

// readFrom reads data straight into the buffer. One byte is read ahead of each
// fragment, to know which is the last.
func (p *packer) readFrom(data io.Reader) error {
	a := p.a
	var ahead [1]byte
	carry := 0
	for {
		if err := p.begin(); err != nil {
			return err
		}
		body := a.buf[p.at+headBytes : p.at+headBytes+a.sendMax+1]
		copy(body, ahead[:carry])
		n, err := readUp(data, body[carry:])
		n += carry
		if err != nil {
			return &sourceError{err}
		}
		last := byte(0)
		if n <= a.sendMax {
			last = bitLast
		}
		p.n = min(n, a.sendMax)
		a.buf = a.buf[:p.at+headBytes+p.n]
		p.end(last)
		if last != 0 {
			return nil
		}
		ahead[0], carry = body[a.sendMax], 1
	}
}

// readUp fills b as far as data goes. Only io.EOF is its end: an unexpected one says that it broke off.
func readUp(data io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = data.Read(b[n:])
		n += k
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// head writes the headers of the PDU with one fragment of n bytes that begins
// at an offset of the buffer.
func (a *Association) head(at int, id, control byte, n int) {
	h := a.buf[at : at+headBytes]
	h[0], h[1] = typeData, 0
	be.PutUint32(h[2:], uint32(n+6))
	be.PutUint32(h[6:], uint32(n+2))
	h[10], h[11] = id, control
}

// room makes sure that one more full PDU and the byte ahead fit the buffer.
func (a *Association) room() error {
	need := headBytes + a.sendMax + 1
	if cap(a.buf) < max(need, sendBytesMax) {
		a.buf = append(make([]byte, 0, max(need, sendBytesMax)), a.buf...)
	}
	if len(a.buf)+need <= cap(a.buf) {
		return nil
	}
	return a.flush()
}

// flush writes the buffer if the state allows data.
func (a *Association) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	if act := a.machine.on(evtDataRequest); act == noAction {
		return ErrClosed
	}
	_, err := a.conn.Write(a.buf)
	a.buf = a.buf[:0]
	return err
}
