package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"osteon/dicomsvc/dimse"
)

// rawPeer writes and reads PDUs byte by byte (PS3.8 §9.3).
type rawPeer struct{ net.Conn }

func dialRaw(ctx context.Context, address string) (rawPeer, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return rawPeer{}, err
	}
	deadline, _ := ctx.Deadline()
	return rawPeer{conn}, conn.SetDeadline(deadline)
}

func rawPDU(typ byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typ, 0}, uint32(len(body))), body...)
}

func rawItem(typ byte, value []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{typ, 0}, uint16(len(value))), value...)
}

// rawContext proposes one presentation context.
func rawContext(id byte, abstract, syntax string) []byte {
	return rawItem(0x20, append(append([]byte{id, 0, 0, 0}, rawItem(0x30, []byte(abstract))...), rawItem(0x40, []byte(syntax))...))
}

// rawUser is the user information item with further sub-items.
func rawUser(more ...[]byte) []byte {
	value := append(rawItem(0x51, []byte{0, 0, 0x40, 0}), rawItem(0x52, []byte("1.2.3"))...)
	return rawItem(0x50, append(value, bytes.Join(more, nil)...))
}

const implicitSyntax = "1.2.840.10008.1.2"

// rawRequest is an A-ASSOCIATE-RQ of these items.
func rawRequest(called, calling string, items ...[]byte) []byte {
	body := append([]byte{0, 1, 0, 0}, fmt.Sprintf("%-16.16s%-16.16s", called, calling)...)
	body = append(append(body, make([]byte, 32)...), rawItem(0x10, []byte("1.2.840.10008.3.1.1.1"))...)
	return rawPDU(1, append(body, bytes.Join(items, nil)...))
}

// echoRequest proposes Verification as context 1.
func (b *badBench) echoRequest(user ...[]byte) []byte {
	return rawRequest(b.n.AET, "TEST", rawContext(1, dimse.VerificationClass, implicitSyntax), rawUser(user...))
}

// rawData is a P-DATA-TF of one fragment.
func rawData(id, control byte, value []byte) []byte {
	return rawPDU(4, append(append(binary.BigEndian.AppendUint32(nil, uint32(len(value)+2)), id, control), value...))
}

func echoCommand() []byte {
	return (&dimse.Command{Field: dimse.CEchoRQ, MessageID: 1, AffectedClass: dimse.VerificationClass}).Append(nil)
}

// next reads one PDU, or io.EOF.
func (p rawPeer) next() (typ byte, body []byte, err error) {
	var head [6]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[2:])
	if length > 1<<20 {
		return head[0], nil, fmt.Errorf("PDU of %d bytes", length)
	}
	body = make([]byte, length)
	_, err = io.ReadFull(p, body)
	return head[0], body, err
}

func (p rawPeer) want(typ byte, body ...byte) error {
	got, b, err := p.next()
	if err == nil && (got != typ || len(body) > 0 && !bytes.Equal(b, body)) {
		err = fmt.Errorf("PDU %02XH % x, want %02XH % x", got, b[:min(len(b), 24)], typ, body)
	}
	return err
}

// wantAbort wants an A-ABORT and then the end of the connection (PS3.8 §9.3.8).
func (p rawPeer) wantAbort(source, reason byte) error { return p.wantLast(7, 0, source, reason) }

// wantReject wants an A-ASSOCIATE-RJ and then the end of the connection (PS3.8 §9.3.4).
func (p rawPeer) wantReject(result, source, reason byte) error {
	return p.wantLast(3, result, source, reason)
}

func (p rawPeer) wantLast(typ, result, source, reason byte) error {
	if err := p.want(typ, 0, result, source, reason); err != nil {
		return err
	}
	p.Conn.(*net.TCPConn).CloseWrite() // the peer that gets it closes; the other side waits for that a while
	if n, err := io.Copy(io.Discard, p); n > 0 || err != nil && !closedByPeer(err) {
		return fmt.Errorf("%d bytes after the last PDU, %w", n, err)
	}
	return nil
}

func closedByPeer(err error) bool {
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// exchange opens a connection to the DIMSE port, associates when established is set, sends and looks at the answer.
func (b *badBench) exchange(name string, established bool, send []byte, want func(rawPeer) error) badCase {
	return badCase{name, func(ctx context.Context) error {
		p, err := dialRaw(ctx, b.n.DIMSE)
		if err != nil {
			return err
		}
		defer p.Close()
		if established {
			if _, err := p.Write(b.echoRequest()); err != nil {
				return err
			}
			if err := p.want(2); err != nil {
				return err
			}
		}
		if _, err := p.Write(send); err != nil && len(send) < 1<<16 {
			return err
		}
		return want(p)
	}}
}

func aborted(source, reason byte) func(rawPeer) error {
	return func(p rawPeer) error { return p.wantAbort(source, reason) }
}

// clientHello is the beginning of a TLS 1.3 handshake.
const clientHello = "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"

// casesB14: other protocols, noise and a declared length of 2^32-1.
func casesB14(b *badBench) (cases []badCase) {
	noise := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{14}).Read(noise)
	noise[0] = 0x99 // no PDU type
	huge := []byte{1, 0, 0xFF, 0xFF, 0xFF, 0xFF}
	cases = []badCase{ // Sta2, AA-1: an abort of the service user
		b.exchange("request of 4 GiB", false, huge, aborted(0, 0)),
		b.exchange("data of 4 GiB before a request", false, []byte{4, 0, 0xFF, 0xFF, 0xFF, 0xFF}, aborted(0, 0)),
		b.exchange("HTTP on the DIMSE port", false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), aborted(0, 0)),
		b.exchange("TLS on the DIMSE port", false, []byte(clientHello), aborted(0, 0)),
		b.exchange("noise on the DIMSE port", false, noise, aborted(0, 0)),
		b.exchange("zeros on the DIMSE port", false, make([]byte, 1000), aborted(0, 0)),
		// Sta6, AA-8: an abort of the provider; 6: invalid parameter, 1: unrecognized PDU.
		b.exchange("data of 4 GiB", true, []byte{4, 0, 0xFF, 0xFF, 0xFF, 0xFF}, aborted(2, 6)),
		b.exchange("fragment of 4 GiB", true, rawPDU(4, []byte{0xFF, 0xFF, 0xFF, 0xFF, 1, 3}), aborted(2, 6)),
		b.exchange("noise inside an association", true, noise, aborted(2, 1)),
		b.exchange("HTTP inside an association", true, []byte("POST /dicom-web/studies HTTP/1.1\r\n\r\n"), aborted(2, 1)),
	}
	for name, send := range map[string]string{"DIMSE": string(b.echoRequest()), "TLS": clientHello, "noise": string(noise[:4096]) + "\r\n\r\n"} {
		cases = append(cases, badCase{name + " on the HTTP port", func(ctx context.Context) error {
			p, err := dialRaw(ctx, b.n.HTTP)
			if err != nil {
				return err
			}
			defer p.Close()
			if _, err := p.Write([]byte(send)); err != nil {
				return err
			}
			p.Conn.(*net.TCPConn).CloseWrite()
			answer, err := io.ReadAll(p)
			if text := string(answer); !strings.HasPrefix(text, "HTTP/1.1 400 ") && (text != "" || err != nil) {
				return fmt.Errorf("%.100q, %v", text, err)
			}
			return nil
		}})
	}
	return cases
}

// casesB15: a Content-Length of 4 GiB and bodies that end early, by both sides of the connection.
func casesB15(b *badBench) (cases []badCase) {
	in := b.instance(nil)
	file := string(part10(in, ""))
	head := "--" + stowBoundary + "\r\nContent-Type: application/dicom\r\n\r\n"
	fields := "Host: " + b.n.HTTP + "\r\nContent-Type: multipart/related; type=\"application/dicom\"; boundary=" + stowBoundary + "\r\n"
	for name, c := range map[string]struct{ length, body string }{
		"4 GiB, nothing":          {"Content-Length: 4294967296", ""},
		"4 GiB, half an object":   {"Content-Length: 4294967296", head + file[:len(file)/2]},
		"2^63, half an object":    {"Content-Length: 9223372036854775807", head + file[:len(file)/2]},
		"closing boundary absent": {"Content-Length: 4294967296", head + file},
		"chunked, cut":            {"Transfer-Encoding: chunked", "1000\r\n" + head + file[:1000]},
	} {
		for _, half := range []bool{true, false} {
			cases = append(cases, badCase{fmt.Sprintf("%s, half closed %v", name, half), func(ctx context.Context) error {
				p, err := dialRaw(ctx, b.n.HTTP)
				if err != nil {
					return err
				}
				defer p.Close()
				if _, err := p.Write([]byte("POST /dicom-web/studies HTTP/1.1\r\n" + fields + c.length + "\r\n\r\n" + c.body)); err != nil {
					return err
				}
				if !half {
					return p.Close()
				}
				p.Conn.(*net.TCPConn).CloseWrite()
				answer, err := io.ReadAll(p)
				if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
					return fmt.Errorf("%.200q, %v; want 400", answer, err)
				}
				return nil
			}})
		}
	}
	for name, length := range map[string]string{"negative": "-1", "no number": "many", "2^64": "18446744073709551616"} {
		cases = append(cases, badCase{"Content-Length " + name, func(ctx context.Context) error {
			p, err := dialRaw(ctx, b.n.HTTP)
			if err != nil {
				return err
			}
			defer p.Close()
			if _, err := p.Write([]byte("POST /dicom-web/studies HTTP/1.1\r\n" + fields + "Content-Length: " + length + "\r\n\r\n")); err != nil {
				return err
			}
			response, err := http.ReadResponse(newReader(p), nil)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if response.StatusCode != 400 {
				return fmt.Errorf("HTTP %d, want 400", response.StatusCode)
			}
			return nil
		}})
	}
	return append(cases, b.findWant("nothing of it is stored", nil, dimse.StatusSuccess, in.study))
}

// runB19 sends the same refused things over and over: what a node has resident comes back to what it was. The
// neighbour has to rest, since its work moves memory too.
func (b *badBench) runB19(t *testing.T) {
	b.good.stop(t)
	times := 5000
	if *badLong {
		times = 100_000
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(times)*5*time.Millisecond+time.Minute)
	defer cancel()
	meta := part10(b.instance(nil), "")[:200]
	request := bytes.Replace(b.echoRequest(), []byte("10008.3.1.1.1"), []byte("10008.3.1.1.9"), 1)
	kinds := []badCase{
		b.exchange("association rejected", false, request,
			func(p rawPeer) error { return p.wantReject(1, 1, 2) }), // permanent, service user, application context
		b.exchange("request malformed", false, rawPDU(1, []byte{0, 1}), aborted(0, 0)),
		b.stowWant("bad meta information", append(bytes.Clone(meta), "\xff\xff\xff\xff"...), 400, dimse.StatusCannotUnderstand),
	}
	repeat := func(n int) {
		for i := range n {
			for k, c := range kinds {
				if k > 0 && i%10 > 0 {
					continue
				}
				if err := c.do(ctx); err != nil {
					t.Fatalf("%s, time %d: %v", c.name, i, err)
				}
			}
		}
	}
	repeat(times / 10)
	before := b.settled(t)
	repeat(times)
	var after int64
	b.r.eventually("memory back within 5 %", func() bool {
		after = b.settled(t)
		return after <= before+before/20
	})
	t.Logf("%d times: %d MiB before, %d MiB after", times, before>>20, after>>20)
	b.check(t)
}

// settled is what the node has resident once its garbage is collected.
func (b *badBench) settled(t *testing.T) int64 {
	t.Helper()
	client := adminHTTP(b.n)
	defer client.CloseIdleConnections()
	response, err := client.Get("http://node/debug/pprof/heap?gc=1")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	return residentOf(t, b.n.PID)
}
