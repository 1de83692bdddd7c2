package dul

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
)

// table910 is PS3.8 Table 9-10 written down a second time, by rows of states
// 1 to 13; "-" is an empty cell. It guards the one in state.go.
var table910 = [eventCount]string{
	"AE1 - - - - - - - - - - - -",
	"- - - AE2 - - - - - - - - -",
	"- AA1 AA8 - AE3 AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA6",
	"- AA1 AA8 - AE4 AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA6",
	"AE5 - - - - - - - - - - - -",
	"- AE6 AA8 - AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA7",
	"- - AE7 - - - - - - - - - -",
	"- - AE8 - - - - - - - - - -",
	"- - - - - DT1 - AR7 - - - - -",
	"- AA1 AA8 - AA8 DT2 AR6 AA8 AA8 AA8 AA8 AA8 AA6",
	"- - - - - AR1 - - - - - - -",
	"- AA1 AA8 - AA8 AR2 AR8 AA8 AA8 AA8 AA8 AA8 AA6",
	"- AA1 AA8 - AA8 AA8 AR3 AA8 AA8 AR10 AR3 AA8 AA6",
	"- - - - - - - AR4 AR9 - - AR4 -",
	"- - AA1 AA2 AA1 AA1 AA1 AA1 AA1 AA1 AA1 AA1 -",
	"- AA2 AA3 - AA3 AA3 AA3 AA3 AA3 AA3 AA3 AA3 AA2",
	"- AA5 AA4 AA4 AA4 AA4 AA4 AA4 AA4 AA4 AA4 AA4 AR5",
	"- AA2 - - - - - - - - - - AA2",
	"- AA1 AA8 - AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA8 AA7",
}

var actionNames = map[string]action{
	"-": noAction, "AE1": ae1, "AE2": ae2, "AE3": ae3, "AE4": ae4, "AE5": ae5, "AE6": ae6, "AE7": ae7, "AE8": ae8,
	"DT1": dt1, "DT2": dt2, "AR1": ar1, "AR2": ar2, "AR3": ar3, "AR4": ar4, "AR5": ar5, "AR6": ar6, "AR7": ar7,
	"AR8": ar8, "AR9": ar9, "AR10": ar10, "AA1": aa1, "AA2": aa2, "AA3": aa3, "AA4": aa4, "AA5": aa5, "AA6": aa6, "AA7": aa7, "AA8": aa8,
}

// B20: all 13 states and 19 events.
func TestTable910(t *testing.T) {
	for e, row := range table910 {
		for s, name := range bytes.Fields([]byte(row)) {
			want, ok := actionNames[string(name)]
			if !ok {
				t.Fatalf("no action %s", name)
			}
			from := state(s + 1)
			got, next := step(from, event(e+1), false)
			if got != want {
				t.Errorf("event %d in state %d: got action %d, want %s", e+1, s+1, got, name)
			}
			if want == noAction && next != from {
				t.Errorf("event %d in state %d: an impossible event led to state %d", e+1, s+1, next)
			}
			if next < sta1 || next > sta13 {
				t.Errorf("event %d in state %d leads to state %d", e+1, s+1, next)
			}
		}
	}
	for _, c := range []struct {
		requestor bool
		want      state
	}{{true, sta9}, {false, sta10}} {
		if _, next := step(sta7, evtReleaseRQ, c.requestor); next != c.want {
			t.Errorf("collision, requestor %v: state %d, want %d", c.requestor, next, c.want)
		}
	}
}

// FuzzEvents drives the machine with lists of events.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{5, 6, 7, 10, 10, 12, 14, 17}, false)
	f.Add([]byte{1, 2, 3, 9, 11, 12, 14, 13}, true)
	f.Add([]byte{5, 6, 7, 11, 12, 13, 14, 17}, false)
	f.Fuzz(func(t *testing.T, events []byte, requestor bool) {
		m := machine{requestor: requestor, st: sta1}
		for _, b := range events {
			e := event(b)
			before := m.state()
			act := m.on(e)
			after := m.state()
			switch {
			case after < sta1 || after > sta13:
				t.Fatalf("state %d", after)
			case act == noAction && after != before:
				t.Fatalf("event %d did nothing and moved %d to %d", e, before, after)
			case (act == dt1 || act == ar7) && before != sta6 && before != sta8:
				t.Fatalf("data sent in state %d", before)
			case e == evtTransportClosed && before != sta1 && after != sta1:
				t.Fatalf("transport closed left state %d", after)
			case e >= evtAC && e <= evtInvalid && before == sta13 && after != sta13 && after != sta1:
				t.Fatalf("left state 13 to %d", after)
			}
		}
	})
}

// FuzzAcceptor gives arbitrary bytes to an acceptor, first from the open
// transport on and then inside an association.
func FuzzAcceptor(f *testing.F) {
	f.Add(request(), false)
	f.Add(dataPDU(pdv{1, 3, "command"}, pdv{1, 2, "data"}), true)
	f.Add(append(dataPDU(pdv{1, 1, "com"}), dataPDU(pdv{1, 3, "mand"})...), true)
	f.Add(append(releaseRQPDU(), releaseRPPDU()...), true)
	f.Add(abortPDU(2, 2), true)
	f.Add([]byte{typeData, 0, 0xFF, 0xFF, 0xFF, 0xFF}, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, established bool) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			go func() {
				go io.Copy(io.Discard, client)
				if established {
					client.Write(request())
				}
				client.Write(b)
				client.Close()
			}()
			data := make(chan []byte, len(b)+1)
			serveRaw(server, accepting(), data)
		})
	})
}

func FuzzDecodePDU(f *testing.F) {
	f.Add(request()[6:])
	f.Add(appendAccept(nil, &acceptPDU{appCtx: ApplicationContext, contexts: []ContextResult{{1, 0, implicitLE}}, user: UserInfo{ImplClassUID: "1.2"}})[6:])
	f.Add(request(func(r *Request) {
		r.User.AsyncOps = &AsyncOps{1, 2}
		r.User.Roles = []Role{{ctStorage, true, true}}
		r.User.Extended = []ExtendedNegotiation{{ctStorage, []byte{1}}}
		r.User.CommonExtended = []CommonExtended{{ctStorage, "1.2", []string{"1.3"}}}
		r.User.Identity = &UserIdentity{Type: 2, Primary: []byte("a"), Secondary: []byte("b")}
	})[6:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRequest(b); err == nil {
			again, err := decodeRequest(appendRequest(nil, r)[6:])
			if err != nil {
				t.Fatalf("own encoding is refused: %v", err)
			}
			if len(again.Contexts) != len(r.Contexts) || len(again.User.Roles) != len(r.User.Roles) {
				t.Fatal("own encoding reads otherwise")
			}
			standard().Answer(r).complete(r)
		}
		if p, err := decodeAccept(b); err == nil {
			if _, err := decodeAccept(appendAccept(nil, p)[6:]); err != nil {
				t.Fatalf("own encoding is refused: %v", err)
			}
		}
	})
}

// B19: refused associations leave nothing behind.
func TestManyRejections(t *testing.T) {
	cfg := AcceptorConfig{Negotiate: func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, RejectCalledAE() }}
	for range 500 {
		client, server := net.Pipe()
		go func() {
			client.Write(request())
			io.ReadFull(client, make([]byte, 10))
			client.Close()
		}()
		if _, err := Accept(context.Background(), server, cfg); !IsRejected(err) {
			t.Fatal(err)
		}
	}
}
