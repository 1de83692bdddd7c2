package link

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"
)

// Join asks a node of a ring, at addr ("host:port"), to let this one in: it sends request and returns the ring's response. The
// answering node must show a certificate signed by the CA with the given fingerprint, which the join token carries; this
// side shows none. ErrIdentity when the fingerprint does not fit, ErrJoinRefused (errors.As with *RemoteError gives the ring's words)
// when the ring says no, ErrTooLarge, ErrUnreachable. conn is lent for the call and not closed; it
// must not be in use by a Link. After an error other than ErrUnreachable the ring may have acted on the request.
func Join(ctx context.Context, conn net.PacketConn, addr string, fingerprint [32]byte, request []byte) ([]byte, error) {
	if len(request) > JoinRequestBytesMax {
		return nil, fmt.Errorf("%w: join request of %d bytes, at most %d", ErrTooLarge, len(request), JoinRequestBytesMax)
	}
	local, _ := conn.LocalAddr().(*net.UDPAddr)
	remote, err := lookup(ctx, addr, local)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	tr := &quic.Transport{Conn: conn}
	defer tr.Close()
	var verdict error
	q, err := tr.Dial(ctx, remote, joinClientTLS(fingerprint, &verdict), &quic.Config{MaxIdleTimeout: joinTime})
	if err != nil {
		if verdict != nil {
			return nil, verdict
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, addr, connCause(err))
	}
	defer q.CloseWithError(quic.ApplicationErrorCode(RefusalClosed), "")
	return joinExchange(ctx, q, request)
}

func joinExchange(ctx context.Context, q *quic.Conn, request []byte) ([]byte, error) {
	opened, err := q.OpenStreamSync(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, connCause(err))
	}
	s := &stream{q: opened}
	s.started.Store(true) // the join protocol has no kinds
	defer context.AfterFunc(ctx, s.Abort)()
	response, err := exchange(s, request, JoinResponseBytesMax)
	var remote *RemoteError
	switch {
	case errors.As(err, &remote):
		return nil, fmt.Errorf("%w: %w", ErrJoinRefused, remote)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("join: %w", ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("join: %w", err)
	}
	return response, nil
}

// serveJoin answers one request of an outsider and closes the connection.
func (l *Link) serveJoin(q *quic.Conn) {
	c := &conn{q: q}
	select {
	case l.joins <- struct{}{}:
		defer func() { <-l.joins }()
	default:
		c.end(RefusalBusy, "too many nodes are joining at once: try again")
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, joinTime)
	defer cancel()
	opened, err := q.AcceptStream(ctx)
	if err != nil {
		c.end(RefusalMalformed, "no request")
		return
	}
	s := &stream{q: opened}
	s.started.Store(true)
	defer context.AfterFunc(ctx, s.Abort)()
	response, err := l.joinAnswer(ctx, s)
	answer(s, response, err)
	select { // the outsider closes once it has the answer; closing first could overtake it
	case <-q.Context().Done():
	case <-ctx.Done():
	}
	c.end(RefusalClosed, "")
}

// joinAnswer runs Config.Join. An outsider learns no more of a refusal than a *RemoteError says.
func (l *Link) joinAnswer(ctx context.Context, s *stream) ([]byte, error) {
	refused := &RemoteError{Code: CodeRefused, Text: "the ring did not accept this request: ask for a new token"}
	f, err := readFrame(s, JoinRequestBytesMax, nil)
	if err != nil || f.typ != frameRequest {
		l.log.Warn("join request not understood", "err", err)
		return nil, &RemoteError{Code: CodeMalformed, Text: "join request not understood"}
	}
	response, err := l.runCall(ctx, Peer{}, 0, f.payload, func(ctx context.Context, _ Peer, request []byte) ([]byte, error) {
		return l.cfg.Join(ctx, request)
	})
	var said *RemoteError
	switch {
	case errors.As(err, &said):
		l.log.Warn("join refused", "err", err)
		return nil, said
	case err != nil || response == nil || len(response) > JoinResponseBytesMax:
		l.log.Warn("join refused", "err", err, "bytes", len(response))
		return nil, refused
	}
	l.log.Info("join answered")
	return response, nil
}
