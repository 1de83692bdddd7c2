package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// casesB20: every PDU in every state that a peer can bring an acceptor to (PS3.8 Table 9-10; all 13 states and 19
// events are in package dul, TestTable910), and command sets that are none.
func casesB20(b *badBench) (cases []badCase) {
	short := func(typ byte) []byte { return rawPDU(typ, make([]byte, 4)) }
	pdus := map[string][]byte{
		"A-ASSOCIATE-RQ": b.echoRequest(), "A-ASSOCIATE-AC": append([]byte{2}, b.echoRequest()[1:]...), "A-ASSOCIATE-RJ": short(3),
		"P-DATA-TF": rawData(1, 3, echoCommand()), "A-RELEASE-RQ": short(5), "A-RELEASE-RP": short(6), "A-ABORT": short(7),
		"unknown PDU": short(8), "A-RELEASE-RQ of 5 bytes": rawPDU(5, make([]byte, 5)), "empty P-DATA-TF": rawPDU(4, nil),
	}
	closed := func(p rawPeer) error {
		if _, _, err := p.next(); err != io.EOF && !closedByPeer(err) {
			return fmt.Errorf("%v, want the end", err)
		}
		return nil
	}
	sta2 := map[string]func(rawPeer) error{
		"A-ASSOCIATE-RQ": func(p rawPeer) error { return p.want(2) }, "A-ABORT": closed,
	}
	sta6 := map[string]func(rawPeer) error{
		"P-DATA-TF": func(p rawPeer) error { return p.want(4) }, "A-RELEASE-RQ": func(p rawPeer) error { return p.want(6) }, "A-ABORT": closed,
		"unknown PDU": aborted(2, 1), "A-RELEASE-RQ of 5 bytes": aborted(2, 6), "empty P-DATA-TF": aborted(2, 6),
	}
	for name, send := range pdus {
		want, ok := sta2[name]
		if !ok {
			want = aborted(0, 0) // AA-1
		}
		cases = append(cases, b.exchange("Sta2 "+name, false, send, want))
		if want, ok = sta6[name]; !ok {
			want = aborted(2, 2) // AA-8, unexpected PDU
		}
		cases = append(cases, b.exchange("Sta6 "+name, true, send, want))
		// Sta13: our release was answered; whatever comes is not answered, or by an abort (AA-7).
		cases = append(cases, b.exchange("Sta13 "+name, true, short(5), func(p rawPeer) error {
			if err := p.want(6); err != nil {
				return err
			}
			p.Write(send)
			p.Conn.(*net.TCPConn).CloseWrite()
			answer, err := io.ReadAll(p)
			if len(answer) > 0 && answer[0] != 7 || err != nil && !closedByPeer(err) {
				return fmt.Errorf("% x after the release, %w", answer, err)
			}
			return nil
		}))
	}
	return append(cases, b.casesCommands()...)
}

// casesCommands are messages that no peer should send.
func (b *badBench) casesCommands() []badCase {
	echo := echoCommand()
	lying := bytes.Clone(echo)
	binary.LittleEndian.PutUint32(lying[8:], 0xFFFFFF00)
	command := func(c dimse.Command) []byte { return rawData(1, 3, c.Append(nil)) }
	status := func(want uint16) func(rawPeer) error {
		return func(p rawPeer) error {
			typ, body, err := p.next()
			if err != nil || typ != 4 || len(body) < 6 {
				return fmt.Errorf("PDU %02XH of %d bytes, %w", typ, len(body), err)
			}
			answer, err := dimse.DecodeCommand(body[6:])
			if err == nil && answer.Status != want {
				err = fmt.Errorf("status %04XH, want %04XH", answer.Status, want)
			}
			return err
		}
	}
	two := func(first, second []byte) []byte { return append(bytes.Clone(first), second...) }
	return []badCase{
		b.exchange("context not accepted", true, rawData(3, 3, echo), aborted(2, 6)),
		b.exchange("context 0", true, rawData(0, 3, echo), aborted(2, 6)),
		b.exchange("fragments of two messages", true, two(rawData(1, 1, echo[:20]), rawData(1, 2, []byte("data"))), aborted(2, 5)),
		b.exchange("group length lies", true, rawData(1, 3, lying), status(dimse.StatusSuccess)),
		b.exchange("no command", true, rawData(1, 3, []byte("no command set")), aborted(0, 0)),
		b.exchange("empty command", true, rawData(1, 3, nil), aborted(0, 0)),
		b.exchange("data set without a command", true, rawData(1, 2, []byte("data")), aborted(0, 0)),
		b.exchange("data set that is not announced", true, two(rawData(1, 3, echo), rawData(1, 2, []byte("data"))), func(p rawPeer) error {
			if err := p.want(4); err != nil {
				return err
			}
			return p.wantAbort(0, 0)
		}),
		b.exchange("unknown command", true, command(dimse.Command{Field: 0x0999, MessageID: 1}), status(dimse.StatusUnrecognized)),
		b.exchange("response to nobody", true, command(dimse.Command{Field: dimse.CFindRQ | 0x8000, RespondedTo: 9}), aborted(0, 0)),
		b.exchange("C-STORE without UIDs", true, two(command(dimse.Command{Field: dimse.CStoreRQ, MessageID: 1, HasData: true}), rawData(1, 2, []byte("data"))),
			status(dimse.StatusInvalidInstance)),
		b.exchange("C-STORE of another class", true, two(command(dimse.Command{Field: dimse.CStoreRQ, MessageID: 1, HasData: true, AffectedClass: ctClass,
			AffectedInstance: "1.2.3"}), rawData(1, 2, []byte("data"))), status(dimse.StatusClassNotSupported)),
		b.exchange("C-STORE without a data set", true, command(dimse.Command{Field: dimse.CStoreRQ, MessageID: 1,
			AffectedClass: dimse.VerificationClass, AffectedInstance: "1.2.3"}), status(dimse.StatusCannotUnderstand)),
		b.exchange("cancel of nothing", true, two(command(dimse.Command{Field: dimse.CCancelRQ, RespondedTo: 7}), rawData(1, 3, echo)), status(dimse.StatusSuccess)),
		b.exchange("command of 1 MiB", true, bytes.Repeat(rawData(1, 1, make([]byte, 16<<10)), 64), aborted(0, 0)),
		b.exchange("release inside a message", true, two(rawData(1, 1, echo[:20]), rawPDU(5, make([]byte, 4))), aborted(2, 2)),
	}
}

// casesB20Negotiation: requests with contexts and user information as they must not be.
func casesB20Negotiation(b *badBench) (cases []badCase) {
	accepted := func(p rawPeer) error { return p.want(2) }
	context1 := rawContext(1, dimse.VerificationClass, implicitSyntax)
	many := func(ids ...byte) (out []byte) {
		for _, id := range ids {
			out = append(out, rawContext(id, dimse.VerificationClass, implicitSyntax)...)
		}
		return out
	}
	odd := make([]byte, 128)
	for i := range odd {
		odd[i] = byte(2*i + 1)
	}
	request := func(name string, want func(rawPeer) error, items ...[]byte) {
		cases = append(cases, b.exchange(name, false, rawRequest(b.n.AET, "TEST", items...), want))
	}
	rejected := func(result, source, reason byte) func(rawPeer) error {
		return func(p rawPeer) error { return p.wantReject(result, source, reason) }
	}
	request("context 0", aborted(0, 0), many(0), rawUser())
	request("even context", aborted(0, 0), many(1, 2), rawUser())
	request("context twice", aborted(0, 0), many(1, 3, 1), rawUser())
	request("128 contexts", accepted, many(odd...), rawUser())
	request("129 contexts", aborted(0, 0), many(append(odd, 1)...), rawUser())
	request("no context", rejected(1, 1, 1), rawUser())
	request("UID of 66 bytes", aborted(0, 0), rawContext(1, "1.2.3456789012345678901234567890123456789012345678901234567890123456", implicitSyntax), rawUser())
	request("UID as a path", aborted(0, 0), rawContext(1, "../../"+badCanary, implicitSyntax), rawUser())
	request("item over its parent", aborted(0, 0), context1, []byte{0x50, 0, 0xFF, 0xFF, 0x51})
	request("items nested in nothing", accepted, context1, rawUser(), rawItem(0x99, []byte("unknown")))
	request("no user information", accepted, context1)
	request("maximum length 1", rejected(1, 1, 1), context1, rawItem(0x50, rawItem(0x51, []byte{0, 0, 0, 1})))
	request("maximum length of 3 bytes", aborted(0, 0), context1, rawItem(0x50, rawItem(0x51, []byte{0, 0, 1})))
	request("role of an unknown class", accepted, context1, rawUser(rawItem(0x54, append([]byte{0, 3}, "1.2\x01\x01"...))))
	request("role cut", aborted(0, 0), context1, rawUser(rawItem(0x54, []byte{0, 200, '1'})))
	for typ := range 7 { // PS3.7 §D.3.3.7: 1 to 5 are defined; of these a user name alone needs nobody who verifies it
		judged := rejected(1, 2, 1)
		if typ == int(dul.IdentityUsername) {
			judged = accepted
		}
		identity := func(primary, secondary string) []byte {
			v := binary.BigEndian.AppendUint16([]byte{byte(typ), 1}, uint16(len(primary)))
			v = binary.BigEndian.AppendUint16(append(v, primary...), uint16(len(secondary)))
			return rawItem(0x58, append(v, secondary...))
		}
		request(fmt.Sprintf("user identity %d", typ), judged, context1, rawUser(identity(badCanary, badCanary)))
		request(fmt.Sprintf("user identity %d of nothing", typ), judged, context1, rawUser(identity("", "")))
		request(fmt.Sprintf("user identity %d, long", typ), judged, context1, rawUser(identity(string(bytes.Repeat([]byte(badCanary), 6000)), "")))
		request(fmt.Sprintf("user identity %d cut", typ), aborted(0, 0), context1, rawUser(rawItem(0x58, []byte{byte(typ), 1, 0xFF, 0xFF, 'x'})))
	}
	cases = append(cases, b.exchange("protocol version 2", false, func() []byte {
		r := b.echoRequest()
		r[7] = 2
		return r
	}(), rejected(1, 2, 2)))
	cases = append(cases, b.exchange("another application context", false, bytes.Replace(b.echoRequest(), []byte("10008.3.1.1.1"), []byte("10008.3.1.1.9"), 1), rejected(1, 1, 2)))
	return append(cases, badCase{"100 requests at once", func(ctx context.Context) error {
		var failed error
		for range 100 {
			p, err := dialRaw(ctx, b.n.DIMSE)
			if err != nil {
				return err
			}
			_, err = p.Write(b.echoRequest()[:40]) // and no more
			failed = errors.Join(failed, err, p.Close())
		}
		return failed
	}})
}
