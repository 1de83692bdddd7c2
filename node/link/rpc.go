package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"osteon/erasure/place"
)

// Codes of RemoteError below 16 belong to this package; those from 16 on to the handlers of a kind.
const (
	CodeFailed    uint8 = 1 // the handler failed, the text says how
	CodePanicked  uint8 = 2 // the handler panicked: a bug, logged at the peer
	CodeMalformed uint8 = 3 // the request could not be read
	CodeTooLarge  uint8 = 4 // the request or the response exceeds its limit
	CodeBusy      uint8 = 5 // too much is being served; try again
	CodeRefused   uint8 = 6 // a join was refused
	// CodeOwn is the first code free for use by handlers.
	CodeOwn uint8 = 16
)

// RemoteError is a failure that the peer's handler reported. A handler that returns one sets its code.
type RemoteError struct {
	Code uint8
	Text string
}

// Error returns the text.
func (e *RemoteError) Error() string { return fmt.Sprintf("remote: %s (code %d)", e.Text, e.Code) }

const (
	frameMagic   = "OS"
	frameVersion = 1
	frameHead    = 12
	frameTail    = 4

	frameRequest  byte = 1
	frameResponse byte = 2
	frameError    byte = 3
)

// appendFrame writes one frame; the package comment draws it.
func appendFrame(dst []byte, typ, code byte, payload []byte) []byte {
	start := len(dst)
	dst = append(dst, frameMagic...)
	dst = append(dst, frameVersion, typ, code, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, payload...)
	return binary.LittleEndian.AppendUint32(dst, castagnoli(dst[start:]))
}

// frame is what was read, with its checksum good.
type frame struct {
	typ, code byte
	payload   []byte
}

// readFrame reads one frame of at most limit bytes of payload. reserve, when set, is asked before a payload of the given
// size is read. Errors: ErrMalformed, ErrTooLarge, or the stream's; io.EOF never.
func readFrame(r io.Reader, limit int, reserve func(n int) error) (frame, error) {
	head := make([]byte, frameHead)
	if _, err := io.ReadFull(r, head); err != nil {
		return frame{}, cutShort(err)
	}
	if string(head[:2]) != frameMagic || head[2] != frameVersion || head[3] < frameRequest || head[3] > frameError ||
		!bytes.Equal(head[5:8], []byte{0, 0, 0}) {
		return frame{}, fmt.Errorf("%w: not a frame of version %d", ErrMalformed, frameVersion)
	}
	n := binary.LittleEndian.Uint32(head[8:])
	if uint64(n) > uint64(limit) {
		return frame{}, fmt.Errorf("%w: %d bytes announced, at most %d", ErrTooLarge, n, limit)
	}
	if reserve != nil {
		if err := reserve(int(n)); err != nil {
			return frame{}, err
		}
	}
	body, err := readGrowing(r, head, int(n)+frameTail)
	if err != nil {
		return frame{}, cutShort(err)
	}
	end := len(body) - frameTail
	if binary.LittleEndian.Uint32(body[end:]) != castagnoli(body[:end]) {
		return frame{}, fmt.Errorf("%w: frame checksum", ErrMalformed)
	}
	return frame{typ: head[3], code: head[4], payload: body[frameHead:end:end]}, nil
}

// cutShort makes a stream that ends inside a frame an error of its own.
func cutShort(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: stream ends inside a frame", ErrMalformed)
	}
	return err
}

// readGrowing appends n bytes of r to b. Memory follows the bytes that came, not those that were promised.
func readGrowing(r io.Reader, b []byte, n int) ([]byte, error) {
	for step := readStepBytes; n > 0; step *= 2 {
		take := min(n, step)
		at := len(b)
		b = append(b, make([]byte, take)...)
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		n -= take
	}
	return b, nil
}

// Call sends one request to a node over the control class and returns the response, both at most CallBytesMax bytes.
// Errors: ErrUnreachable (not sent), ErrTooLarge (not sent), *RemoteError (the handler ran, or the peer could not read the request),
// ErrUnknownKind (nothing ran); after ErrLost, ErrReset, ErrMalformed or ctx's error it is not known whether the handler ran.
// Nothing is repeated.
func (l *Link) Call(ctx context.Context, node place.NodeID, kind Kind, request []byte) ([]byte, error) {
	if len(request) > CallBytesMax {
		return nil, fmt.Errorf("%w: request of %d bytes, at most %d", ErrTooLarge, len(request), CallBytesMax)
	}
	s, err := l.open(ctx, node, ClassControl, kind)
	if err != nil {
		return nil, err
	}
	l.counters.calls.Add(1)
	return Exchange(ctx, s, request)
}

// Exchange sends one request frame on a fresh stream, ends its write side, and returns the response. It closes the stream.
// Errors are those of Call.
func Exchange(ctx context.Context, s Stream, request []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { Abort(s) })
	defer stop()
	response, err := exchange(s, request, CallBytesMax)
	if err != nil {
		var remote *RemoteError
		if ctx.Err() != nil && !errors.As(err, &remote) {
			err = fmt.Errorf("call node %s: %w", s.Peer().Node, ctx.Err())
		}
		Abort(s)
		return nil, err
	}
	_ = s.Close()
	return response, nil
}

func exchange(s Stream, request []byte, limit int) ([]byte, error) {
	_, werr := s.Write(appendFrame(make([]byte, 0, len(request)+frameHead+frameTail), frameRequest, 0, request))
	if werr == nil {
		werr = s.CloseWrite()
	}
	f, err := readFrame(s, limit, nil) // even after a failed write: the peer may have answered why
	switch {
	case err != nil && werr != nil:
		return nil, werr
	case err != nil:
		return nil, err
	case f.typ == frameError:
		return nil, &RemoteError{Code: f.code, Text: string(f.payload)}
	case f.typ != frameResponse:
		return nil, fmt.Errorf("%w: frame of type %d instead of a response", ErrMalformed, f.typ)
	}
	return f.payload, nil
}

// HandleCall registers the handler of a kind used with Call. It may run many times at once. A *RemoteError goes to the
// caller as it is, any other error as CodeFailed with its text, so texts hold nothing of a patient. ctx ends when the caller gives up.
func (l *Link) HandleCall(kind Kind, h func(ctx context.Context, from Peer, request []byte) ([]byte, error)) {
	l.Handle(kind, func(ctx context.Context, s Stream) {
		if own, ok := s.(interface{ Context() context.Context }); ok {
			ctx = own.Context() // ends also when the caller gives this stream up
		}
		slow := time.AfterFunc(requestTime, func() { Abort(s) })
		var reserved int64
		f, err := readFrame(s, CallBytesMax, func(n int) error {
			if n <= largeCallBytes {
				return nil
			}
			if err := l.inbound.Acquire(ctx, int64(n)); err != nil {
				return err
			}
			reserved = int64(n)
			return nil
		})
		slow.Stop()
		defer func() { l.inbound.Release(reserved) }()
		if err == nil && f.typ != frameRequest {
			err = fmt.Errorf("%w: frame of type %d instead of a request", ErrMalformed, f.typ)
		}
		var response []byte
		if err == nil {
			response, err = l.runCall(ctx, s.Peer(), kind, f.payload, h)
		}
		if err == nil && len(response) > CallBytesMax {
			err = fmt.Errorf("%w: response of %d bytes, at most %d", ErrTooLarge, len(response), CallBytesMax)
		}
		answer(s, response, err)
	})
}

// answer writes the response, or the error frame that stands for err, and closes the stream.
func answer(s Stream, response []byte, err error) {
	var out []byte
	if err == nil {
		out = appendFrame(make([]byte, 0, len(response)+frameHead+frameTail), frameResponse, 0, response)
	} else {
		code, text := errorCode(err)
		out = appendFrame(nil, frameError, code, []byte(text))
	}
	if _, err := s.Write(out); err != nil {
		Abort(s)
		return
	}
	_ = s.Close()
}

// errorCode chooses what a caller is told.
func errorCode(err error) (uint8, string) {
	code, text := CodeFailed, err.Error()
	var remote *RemoteError
	switch {
	case errors.As(err, &remote):
		code, text = remote.Code, remote.Text
	case errors.Is(err, ErrMalformed):
		code = CodeMalformed
	case errors.Is(err, ErrTooLarge):
		code = CodeTooLarge
	}
	if len(text) > errorTextBytesMax {
		text = text[:errorTextBytesMax]
	}
	return code, text
}

// runCall keeps a panic of a handler from ending the node.
func (l *Link) runCall(ctx context.Context, from Peer, kind Kind, request []byte,
	h func(context.Context, Peer, []byte) ([]byte, error)) (response []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			l.counters.panics.Add(1)
			l.log.Error("call handler panicked", "kind", kind, "node", from.Node, "panic", v, "stack", string(debug.Stack()))
			response, err = nil, &RemoteError{Code: CodePanicked, Text: "the handler panicked; see the peer's log"}
		}
	}()
	return h(ctx, from, request)
}
