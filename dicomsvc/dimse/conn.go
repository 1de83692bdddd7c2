package dimse

import (
	"errors"
	"fmt"
	"io"

	"osteon/dicomsvc/dul"
)

// Conn reads and writes messages on an association. One goroutine at a time
// reads; any may write.
type Conn struct {
	assoc *dul.Association
	data  dataStream
}

// NewConn wraps an association, which stays the caller's to close.
func NewConn(a *dul.Association) *Conn { return &Conn{assoc: a} }

// Association is what the connection was made with.
func (c *Conn) Association() *dul.Association { return c.assoc }

// Message is one received message. Data is nil when no data set follows the
// command; else it is the data set, valid until the next Read of the Conn.
type Message struct {
	ContextID byte
	Command   *Command
	Data      io.Reader
}

// Read waits for the next message, dropping what is unread of the data set
// before. Its errors are those of dul.Association.Next; a malformed command
// set or a data set where none belongs also aborts the association and wraps
// ErrCommand.
func (c *Conn) Read() (*Message, error) {
	if err := c.data.drain(); err != nil {
		return nil, err
	}
	in, err := c.assoc.Next()
	if err != nil {
		return nil, err
	}
	if !in.Command {
		return nil, c.fault(bad("data set without a command"))
	}
	b, err := io.ReadAll(io.LimitReader(in, commandBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(b) > commandBytesMax {
		return nil, c.fault(bad("longer than %d bytes", commandBytesMax))
	}
	cmd, err := DecodeCommand(b)
	if err != nil {
		return nil, c.fault(err)
	}
	m := &Message{ContextID: in.ContextID, Command: cmd}
	if cmd.HasData {
		c.data = dataStream{c: c, id: in.ContextID, due: true}
		m.Data = &c.data
	}
	return m, nil
}

func (c *Conn) fault(err error) error {
	c.assoc.Abort()
	return err
}

// Write sends a message; data may be nil. It sets c's HasData. See
// dul.Association.Send.
func (c *Conn) Write(contextID byte, cmd *Command, data io.Reader) error {
	cmd.HasData = data != nil
	return c.assoc.Send(contextID, cmd.Append(nil), data)
}

// WriteFrom is Write for a data set that writes itself.
func (c *Conn) WriteFrom(contextID byte, cmd *Command, data io.WriterTo) error {
	cmd.HasData = true
	return c.assoc.SendFrom(contextID, cmd.Append(nil), data)
}

// dataStream is the data set of the message last read. It asks the association
// for the stream only when first read.
type dataStream struct {
	c   *Conn
	id  byte
	due bool // the data set is not read to its end
	in  *dul.Inbound
	err error
}

func (d *dataStream) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if d.in == nil {
		if d.err = d.begin(); d.err != nil {
			return 0, d.err
		}
	}
	n, err := d.in.Read(p)
	if err != nil {
		d.err = err
		d.due = err != io.EOF
	}
	return n, err
}

func (d *dataStream) begin() error {
	in, err := d.c.assoc.Next()
	switch {
	case errors.Is(err, dul.ErrReleaseRequested):
		return d.c.fault(bad("release instead of a data set"))
	case err != nil:
		return err
	case in.Command || in.ContextID != d.id:
		return d.c.fault(bad("another message instead of a data set"))
	}
	d.in = in
	return nil
}

func (d *dataStream) drain() error {
	if !d.due {
		return nil
	}
	if _, err := io.Copy(io.Discard, d); err != nil {
		return fmt.Errorf("drain data set: %w", err)
	}
	return nil
}
