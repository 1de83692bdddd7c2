package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/quic-go/quic-go"
)

var (
	// ErrUnreachable: no connection to the node could be had; nothing was sent. The cause is wrapped.
	ErrUnreachable = errors.New("node unreachable")
	// ErrRefused: one side ended the handshake; errors.As with *RefusedError tells why.
	ErrRefused = errors.New("handshake refused")
	// ErrLost: the connection broke under the stream. What was sent may or may not have been acted on.
	ErrLost = errors.New("connection lost")
	// ErrReset: the peer gave the stream up.
	ErrReset = errors.New("stream reset by peer")
	// ErrUnknownKind: the peer handles no stream of this kind; it probably runs an older release.
	ErrUnknownKind = errors.New("peer does not know this kind of stream")
	// ErrClosed: the stream or the link was closed on this side.
	ErrClosed = errors.New("closed")
	// ErrTooLarge: a message exceeds its limit; nothing was sent.
	ErrTooLarge = errors.New("message too large")
	// ErrMalformed: bytes from the peer are not what the protocol says.
	ErrMalformed = errors.New("malformed message")
	// ErrIdentity: a certificate is not one of this ring's, is out of date, or does not match its key.
	ErrIdentity = errors.New("identity not valid in this ring")
	// ErrWrongNode: another node than the one dialled answered at its address.
	ErrWrongNode = errors.New("another node answers at this address")
	// ErrJoinRefused: the ring did not accept the join request.
	ErrJoinRefused = errors.New("join refused")
)

// Refusal says why a handshake was refused or a connection ended. It travels as the QUIC application error code.
type Refusal uint8

const (
	// RefusalClosed: the peer closed its link in good order.
	RefusalClosed Refusal = 0
	// RefusalRing: the two nodes belong to different rings.
	RefusalRing Refusal = 1
	// RefusalEpoch: the two nodes differ in ring epoch: one side was left behind by an unsafe recovery.
	RefusalEpoch Refusal = 2
	// RefusalNotAllowed: the node was removed or revoked.
	RefusalNotAllowed Refusal = 3
	// RefusalDuplicate: another process is connected under the same node ID.
	RefusalDuplicate Refusal = 4
	// RefusalMalformed: the hello could not be read.
	RefusalMalformed Refusal = 5
	// RefusalBusy: too many connections or outsiders at once.
	RefusalBusy Refusal = 6
	// RefusalDown: the peer believes this node to be down (MarkDown).
	RefusalDown Refusal = 7
	// RefusalSuperseded: a newer process or connection of the same node took over.
	RefusalSuperseded Refusal = 8
	// RefusalExpired: the certificate shown at the handshake has run out since.
	RefusalExpired Refusal = 9
)

// RefusedError carries the reason of a refusal. Remote tells which side refused.
type RefusedError struct {
	Code   Refusal
	Text   string
	Remote bool
}

// Error says who refused and why.
func (e *RefusedError) Error() string {
	if e.Remote {
		return "refused by peer: " + e.Text
	}
	return "refused: " + e.Text
}

// Is makes errors.Is(err, ErrRefused) true.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Stream error codes.
const (
	resetClosed      quic.StreamErrorCode = 0
	resetUnknownKind quic.StreamErrorCode = 1
	resetPanicked    quic.StreamErrorCode = 2
	resetTimeout     quic.StreamErrorCode = 3
	resetAborted     quic.StreamErrorCode = 4
)

// streamError turns an error of quic-go's streams into this package's, and leaves io.EOF and deadlines alone.
func streamError(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	var reset *quic.StreamError
	switch {
	case errors.As(err, &reset) && !reset.Remote, errors.Is(err, quic.ErrStreamClosed):
		return fmt.Errorf("stream %w", ErrClosed)
	case reset != nil:
		return resetError(uint64(reset.ErrorCode))
	}
	return connError(err)
}

// resetError is what a stream's user learns of a reset by the peer.
func resetError(code uint64) error {
	if code == uint64(resetUnknownKind) {
		return ErrUnknownKind
	}
	return fmt.Errorf("%w (code %d)", ErrReset, code)
}

// connError says that a connection ended under a stream, and why.
func connError(err error) error { return fmt.Errorf("%w: %w", ErrLost, connCause(err)) }

// connCause names the reason for which a connection ended or did not come about.
func connCause(err error) error {
	var app *quic.ApplicationError
	if errors.As(err, &app) {
		if app.ErrorCode == quic.ApplicationErrorCode(RefusalClosed) && !app.Remote {
			return fmt.Errorf("link %w", ErrClosed)
		}
		return &RefusedError{Code: Refusal(app.ErrorCode & 0xff), Text: app.ErrorMessage, Remote: app.Remote}
	}
	var transport *quic.TransportError
	if errors.As(err, &transport) && transport.Remote && transport.ErrorCode.IsCryptoError() {
		return fmt.Errorf("%w: the peer did not accept this node's certificate (%v): it has expired, was revoked or is another ring's",
			ErrRefused, transport.ErrorCode)
	}
	// The cause goes in as text only: quic-go's idle timeout would pass for an expired deadline of the caller.
	return errors.New(err.Error())
}

// dialError names the reason for which a connection did not come about.
func dialError(ctx context.Context, err error) error {
	var app *quic.ApplicationError
	var transport *quic.TransportError
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.As(err, &app) && !errors.As(err, &transport) {
		return fmt.Errorf("no answer within %v", dialTime)
	}
	return connCause(err)
}
