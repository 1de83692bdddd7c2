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
	if _, ok := a.contexts[contextID]; !ok {
		return ErrContext
	}
	a.wmu.Lock()
	err := a.send(contextID, command, data)
	a.wmu.Unlock()
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

func (a *Association) send(id byte, command []byte, data io.Reader) error {
	a.buf = a.buf[:0]
	if data == nil && len(command) <= a.sendMax { // small: no large buffer
		a.head(id, bitCommand|bitLast, len(command))
		a.buf = append(a.buf, command...)
		return a.flush()
	}
	for len(command) > a.sendMax {
		if err := a.room(); err != nil {
			return err
		}
		a.head(id, bitCommand, a.sendMax)
		a.buf = append(a.buf, command[:a.sendMax]...)
		command = command[a.sendMax:]
	}
	if err := a.room(); err != nil {
		return err
	}
	a.head(id, bitCommand|bitLast, len(command))
	a.buf = append(a.buf, command...)
	if data != nil {
		if err := a.sendData(id, data); err != nil {
			return err
		}
	}
	return a.flush()
}

// sendData cuts data into fragments. One byte is read ahead of each, to know
// which is the last.
func (a *Association) sendData(id byte, data io.Reader) error {
	var ahead [1]byte
	carry := 0
	for {
		if err := a.room(); err != nil {
			return err
		}
		at := len(a.buf)
		body := a.buf[at+headBytes : at+headBytes+a.sendMax+1]
		copy(body, ahead[:carry])
		n, err := io.ReadFull(data, body[carry:])
		n += carry
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return &sourceError{err}
		}
		if n <= a.sendMax {
			a.head(id, bitLast, n)
			a.buf = a.buf[:at+headBytes+n]
			return nil
		}
		ahead[0], carry = body[a.sendMax], 1
		a.head(id, 0, a.sendMax)
		a.buf = a.buf[:at+headBytes+a.sendMax]
	}
}

// head appends the headers of a PDU with one fragment of n bytes.
func (a *Association) head(id, control byte, n int) {
	a.buf = append(a.buf, typeData, 0)
	a.buf = be.AppendUint32(a.buf, uint32(n+6))
	a.buf = be.AppendUint32(a.buf, uint32(n+2))
	a.buf = append(a.buf, id, control)
}

// room makes sure that one more full PDU and the byte ahead fit the buffer.
func (a *Association) room() error {
	need := headBytes + a.sendMax + 1
	if cap(a.buf) < need {
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
