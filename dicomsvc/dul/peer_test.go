package dul

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	verification = "1.2.840.10008.1.1"
	ctStorage    = "1.2.840.10008.5.1.4.1.1.2"
	mrStorage    = "1.2.840.10008.5.1.4.1.1.4"
	implicitLE   = "1.2.840.10008.1.2"
	explicitLE   = "1.2.840.10008.1.2.1"
	jpegLS       = "1.2.840.10008.1.2.4.80"
)

// standard accepts verification, CT and MR in both uncompressed syntaxes.
func standard() Policy {
	return Policy{
		Syntaxes: func(abstract string) []string {
			switch abstract {
			case verification, ctStorage, mrStorage:
				return []string{explicitLE, implicitLE}
			}
			return nil
		},
		SCPRole: func(abstract string) bool { return abstract == ctStorage },
	}
}

func accepting() AcceptorConfig {
	return AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) { return standard().Answer(r), nil }}
}

func calling(contexts ...ProposedContext) RequestorConfig {
	if len(contexts) == 0 {
		contexts = []ProposedContext{{1, ctStorage, []string{implicitLE, explicitLE}}}
	}
	return RequestorConfig{CallingAE: "MODALITY", CalledAE: "OSTEON", Contexts: contexts}
}

// tcpPair gives both ends of a loopback connection.
func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

type accepted2 struct {
	a   *Association
	err error
}

// pair opens an association over loopback.
func pair(t testing.TB, ac AcceptorConfig, rc RequestorConfig) (requestor, acceptor *Association) {
	t.Helper()
	client, server := tcpPair(t)
	ch := make(chan accepted2, 1)
	go func() { // ends with Accept
		a, err := Accept(context.Background(), server, ac)
		ch <- accepted2{a, err}
	}()
	req, err := Connect(context.Background(), client, rc)
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	got := <-ch
	if got.err != nil {
		t.Fatalf("Accept: %v", got.err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
		req.Close()
		got.a.Close()
	})
	return req, got.a
}

// raw is a peer that writes and reads bytes; the other end runs Accept and
// then serves streams until the association ends.
type raw struct {
	t    testing.TB
	conn net.Conn
	got  chan error // the end of the acceptor
	data chan []byte
}

func newRaw(t testing.TB, cfg AcceptorConfig) *raw {
	t.Helper()
	client, server := tcpPair(t)
	return startRaw(t, client, server, cfg)
}

func startRaw(t testing.TB, client, server net.Conn, cfg AcceptorConfig) *raw {
	r := &raw{t: t, conn: client, got: make(chan error, 1), data: make(chan []byte, 64)}
	go func() { // ends with the association
		r.got <- serveRaw(server, cfg, r.data)
	}()
	return r
}

func serveRaw(conn net.Conn, cfg AcceptorConfig, data chan []byte) error {
	a, err := Accept(context.Background(), conn, cfg)
	if err != nil {
		return err
	}
	defer a.Close()
	for {
		in, err := a.Next()
		if errors.Is(err, ErrReleaseRequested) {
			return a.ReplyRelease()
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		data <- b
	}
}

func (r *raw) send(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatalf("write: %v", err)
	}
}

// pdu reads one PDU.
func (r *raw) pdu() (typ byte, body []byte) {
	r.t.Helper()
	var h [6]byte
	r.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(r.conn, h[:]); err != nil {
		r.t.Fatalf("read PDU header: %v", err)
	}
	body = make([]byte, be.Uint32(h[2:]))
	if _, err := io.ReadFull(r.conn, body); err != nil {
		r.t.Fatalf("read PDU body: %v", err)
	}
	return h[0], body
}

func (r *raw) want(typ byte, body ...byte) []byte {
	r.t.Helper()
	got, b := r.pdu()
	if got != typ || len(body) > 0 && !bytes.Equal(b, body) {
		r.t.Fatalf("got PDU %d % x, want %d % x", got, b[:min(len(b), 16)], typ, body)
	}
	return b
}

func (r *raw) wantClosed() {
	r.t.Helper()
	r.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(r.conn); err != nil || len(b) > 0 {
		r.t.Fatalf("got % x, %v, want the end of the stream", b, err)
	}
}

// end closes the peer's side and returns how the acceptor ended.
func (r *raw) end() error {
	r.conn.Close()
	return <-r.got
}

// request encodes an A-ASSOCIATE-RQ with changes.
func request(change ...func(*Request)) []byte {
	r := &Request{
		CalledAE: "OSTEON", CallingAE: "MODALITY", ApplicationContext: ApplicationContext,
		Contexts: []ProposedContext{{1, ctStorage, []string{implicitLE, explicitLE}}},
		User:     UserInfo{MaxLength: 16384, ImplClassUID: "1.2.3", ImplVersion: "TEST"},
	}
	for _, f := range change {
		f(r)
	}
	return appendRequest(nil, r)
}

func (r *raw) associate(change ...func(*Request)) *acceptPDU {
	r.t.Helper()
	r.send(request(change...))
	p, err := decodeAccept(r.want(typeAC))
	if err != nil {
		r.t.Fatalf("decode A-ASSOCIATE-AC: %v", err)
	}
	return p
}

type pdv struct {
	id, control byte
	body        string
}

// dataPDU encodes a P-DATA-TF of several fragments.
func dataPDU(values ...pdv) []byte {
	return pdu(nil, typeData, func(b []byte) []byte {
		for _, v := range values {
			b = be.AppendUint32(b, uint32(len(v.body)+2))
			b = append(append(b, v.id, v.control), v.body...)
		}
		return b
	})
}
