package dul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// The 13 states and 19 events of PS3.8 Table 9-10, each pair performed on a connection: a peer that writes bytes brings
// the association into the state, makes the event happen and sees what Tables 9-6 to 9-9 say it has to see.

// cell is one association in one state.
type cell struct {
	t    *testing.T
	a    *Association
	peer *raw
	err  error // how what ran when the event came has ended
	in   state // seen while the event's action was performed, when it passed through
}

// outcome is what an action has to lead to.
type outcome struct {
	next   state
	sees   byte // PDU type at the peer
	source byte // of an A-ABORT
	closed bool // by this side, while the peer keeps its side open
	remote bool // the error is the peer's abort
}

var outcomes = map[string]outcome{
	"AE1": {next: sta4}, "AE2": {next: sta5, sees: typeRQ}, "AE3": {next: sta6}, "AE4": {next: sta1, closed: true},
	"AE5": {next: sta2}, "AE6": {next: sta3}, "AE7": {next: sta6, sees: typeAC}, "AE8": {next: sta13, sees: typeRJ},
	"DT1": {next: sta6, sees: typeData}, "DT2": {next: sta6},
	"AR1": {next: sta7, sees: typeReleaseRQ}, "AR2": {next: sta8}, "AR3": {next: sta1, closed: true}, "AR4": {next: sta13, sees: typeReleaseRP},
	"AR5": {next: sta1}, "AR6": {next: sta7}, "AR7": {next: sta8, sees: typeData}, "AR8": {next: sta10},
	"AR9": {next: sta11, sees: typeReleaseRP}, "AR10": {next: sta12},
	"AA1": {next: sta13, sees: typeAbort, source: SourceUser}, "AA2": {next: sta1, closed: true}, "AA3": {next: sta1, closed: true, remote: true},
	"AA4": {next: sta1}, "AA5": {next: sta1}, "AA6": {next: sta13}, "AA7": {next: sta13, sees: typeAbort, source: SourceProvider},
	"AA8": {next: sta13, sees: typeAbort, source: SourceProvider},
}

// received are the events that the peer makes, by what it writes.
var received = map[event][]byte{
	evtAC: appendAccept(nil, &acceptPDU{appCtx: ApplicationContext, contexts: []ContextResult{{1, 0, implicitLE}}, user: UserInfo{ImplClassUID: "1.2"}}),
	evtRJ: rejectPDU(RejectCalledAE()), evtRQ: request(), evtData: dataPDU(pdv{1, 3, "command"}),
	evtReleaseRQ: releaseRQPDU(), evtReleaseRP: releaseRPPDU(), evtAbort: abortPDU(0, 0),
	evtInvalid: {0x55, 0, 0, 0, 0, 0}, evtTransportClosed: nil,
}

// seamOnly are the pairs at which no connection can be looked at: none is open yet, or nobody reads.
var seamOnly = map[[2]int]bool{
	{1, int(evtAssociateRequest)}: true, {1, int(evtTransportIndicated)}: true, // before there is a connection
	{4, int(evtAbortRequest)}: true, {4, int(evtTransportClosed)}: true, // it is opened by whoever calls Connect
	{3, int(evtTransportClosed)}: true, // seen by whoever reads after the answer
}

// Behaviours 8, 9, 11.
func TestEveryStateAndEvent(t *testing.T) {
	driven, empty := 0, 0
	for e, row := range table910 {
		for s, name := range strings.Fields(row) {
			st, ev := state(s+1), event(e+1)
			if name == "-" {
				empty++
				if act, next := step(st, ev, false); act != noAction || next != st {
					t.Errorf("event %d in Sta%d: action %d to Sta%d, want none", ev, st, act, next)
				}
				continue
			}
			for _, requestor := range []bool{false, true} {
				act, next := step(st, ev, requestor)
				want := outcomes[name]
				if name == "AR8" && requestor {
					want.next = sta9
				}
				if act != actionNames[name] || next != want.next {
					t.Errorf("event %d in Sta%d, requestor %v: action %d to Sta%d, want %s to Sta%d", ev, st, requestor, act, next, name, want.next)
				}
			}
			if seamOnly[[2]int{int(st), int(ev)}] {
				continue
			}
			driven++
			t.Run(fmt.Sprintf("Sta%d/event %d %s", st, ev, name), func(t *testing.T) {
				t.Parallel()
				c := &cell{t: t}
				c.drive(st, ev)
				c.check(ev, name)
			})
		}
	}
	if all := stateCount * eventCount; driven+empty+len(seamOnly) != all {
		t.Errorf("%d driven, %d empty, %d at the seam: not all %d", driven, empty, len(seamOnly), all)
	}
	t.Logf("%d pairs on a connection, %d at the seam, %d that cannot happen", driven, len(seamOnly), empty)
}

// drive brings an association into a state and makes the event happen.
func (c *cell) drive(st state, ev event) {
	switch st {
	case sta2:
		c.open(false)
		c.happen(ev, func() error { return c.a.accept(context.Background(), c.negotiating(nil)) })
	case sta3:
		c.open(false)
		c.driveSta3(ev)
	case sta4:
		c.open(true)
		c.err = c.a.ask(calling())
	case sta5:
		c.open(true)
		if ev == evtAbortRequest {
			c.a.ask(calling())
			c.peer.want(typeRQ)
			c.a.Abort()
			return
		}
		c.happen(ev, func() error { return c.a.connect(calling()) }, typeRQ)
	case sta6:
		c.establish(false)
		c.driveSta6(ev)
	case sta7, sta10:
		c.establish(false)
		c.askRelease(st)
		c.releasing(ev)
	case sta11:
		c.establish(true)
		c.askRelease(st)
		c.releasing(ev)
	case sta8:
		c.establish(false)
		c.peer.send(releaseRQPDU())
		if _, err := c.a.Next(); err != ErrReleaseRequested {
			c.t.Fatalf("Next: %v", err)
		}
		c.driveSta8(ev)
	case sta9, sta12:
		c.establish(st == sta9)
		c.a.machine.st = st // passed through at once: this side answers a collision by itself
		c.driveSta8(ev)
	case sta13:
		c.open(false)
		c.driveSta13(ev)
	}
}

// open makes the connection.
func (c *cell) open(requestor bool) {
	client, server := tcpPair(c.t)
	ours, theirs := server, client
	if requestor {
		ours, theirs = client, server
	}
	timers := Timers{Linger: time.Minute, ARTIM: time.Minute} // what ends does so by its event
	c.a = newAssociation(ours, timers, requestor, nil)
	c.peer = &raw{t: c.t, conn: theirs}
	c.t.Cleanup(func() { theirs.Close(); ours.Close(); c.a.watch.stop() })
}

func (c *cell) negotiating(f func()) AcceptorConfig {
	return AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) {
		c.in = c.a.machine.state()
		if f != nil {
			f()
		}
		return standard().Answer(r), nil
	}}
}

// happen runs what waits for the peer, after whose PDU the peer makes the event happen.
func (c *cell) happen(ev event, wait func() error, first ...byte) {
	done := make(chan error, 1)
	go func() { done <- wait() }() // ends with the event
	for _, typ := range first {
		c.peer.want(typ)
	}
	c.make(ev)
	c.err = <-done
}

// make makes an event of the peer or of a timer happen.
func (c *cell) make(ev event) {
	switch {
	case ev == evtTransportClosed:
		c.peer.conn.(*net.TCPConn).CloseWrite()
	case ev == evtARTIM:
		c.a.watch.expire(ErrARTIM)
	default:
		c.peer.send(received[ev])
	}
}

// establish opens the association.
func (c *cell) establish(requestor bool) {
	c.open(requestor)
	if requestor {
		c.happen(evtAC, func() error { return c.a.connect(calling()) }, typeRQ)
	} else {
		c.happen(evtRQ, func() error { return c.a.accept(context.Background(), c.negotiating(nil)) })
		c.peer.want(typeAC)
	}
	if c.err != nil || c.a.machine.state() != sta6 {
		c.t.Fatalf("not established: %v", c.err)
	}
	c.in = 0
}

// driveSta3: what comes with the request is read before the answer is sent.
func (c *cell) driveSta3(ev event) {
	cfg := c.negotiating(nil)
	switch ev {
	case evtAccept:
	case evtReject:
		cfg.Negotiate = func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, RejectCalledAE() }
	case evtAbortRequest:
		cfg = c.negotiating(c.a.Abort)
	default:
		c.peer.send(append(request(), received[ev]...))
		c.err = c.a.accept(context.Background(), cfg)
		return
	}
	c.peer.send(request())
	c.err = c.a.accept(context.Background(), cfg)
}

func (c *cell) driveSta6(ev event) {
	switch ev {
	case evtDataRequest:
		c.err = c.a.Send(1, []byte("command"), nil)
	case evtReleaseRequest:
		c.askRelease(sta7)
	case evtAbortRequest:
		c.a.Abort()
	default:
		c.happen(ev, func() error { _, err := c.a.Next(); return err })
	}
}

func (c *cell) driveSta8(ev event) {
	switch ev {
	case evtDataRequest:
		c.err = c.a.Send(1, []byte("command"), nil)
	case evtReleaseResponse:
		if c.a.machine.requestor { // Sta9
			if act := c.a.machine.on(ev); act != ar9 {
				c.t.Fatalf("action %d", act)
			}
			c.err = c.a.writeControl(releaseRPPDU())
			return
		}
		c.err = c.a.ReplyRelease()
	case evtAbortRequest:
		c.a.Abort()
	default: // nobody has to read now; whoever does finds the table kept
		c.a.readErr = nil
		c.happen(ev, func() error { _, err := c.a.Next(); return err })
	}
}

// askRelease sends the A-RELEASE-RQ, and for a collision takes the peer's.
func (c *cell) askRelease(st state) {
	if act := c.a.machine.on(evtReleaseRequest); act != ar1 {
		c.t.Fatalf("action %d", act)
	}
	if err := c.a.writeControl(releaseRQPDU()); err != nil {
		c.t.Fatal(err)
	}
	if st == sta7 {
		return
	}
	c.peer.want(typeReleaseRQ)
	c.peer.send(releaseRQPDU())
	if done, err := c.a.awaitRelease(); done || err != nil || c.a.machine.state() != st {
		c.t.Fatalf("collision: done %v, %v in Sta%d", done, err, c.a.machine.state())
	}
	if st == sta11 {
		c.peer.want(typeReleaseRP)
	}
}

func (c *cell) releasing(ev event) {
	if c.a.machine.state() == sta7 && ev != evtReleaseRequest {
		c.peer.want(typeReleaseRQ)
	}
	if ev == evtAbortRequest {
		c.a.Abort()
		return
	}
	c.happen(ev, func() error { _, err := c.a.awaitRelease(); return err })
}

// driveSta13 rejects a request and lets the association wait for the peer to close.
func (c *cell) driveSta13(ev event) {
	c.peer.send(request())
	cfg := AcceptorConfig{Negotiate: func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, RejectCalledAE() }}
	if err := c.a.accept(context.Background(), cfg); !IsRejected(err) {
		c.t.Fatal(err)
	}
	c.peer.want(typeRJ)
	ended := make(chan struct{})
	go func() { // ends when the peer closes, at the latest
		defer close(ended)
		c.a.linger()
	}()
	c.t.Cleanup(func() { c.peer.conn.Close(); <-ended })
	if ev == evtARTIM {
		for c.a.watch.phase.Load()&(1<<phaseBits-1) != uint64(phaseLinger) {
			time.Sleep(time.Millisecond)
		}
	}
	c.make(ev)
	switch name := strings.Fields(table910[ev-1])[12]; name {
	case "AA6": // nothing happens: the next event finds it in the same state
		c.peer.send(request())
		c.peer.want(typeAbort, 0, 0, SourceProvider, ReasonUnexpected)
	case "AA2", "AR5":
		<-ended
		if name == "AA2" {
			c.a.conn.Close() // as Close does
		}
	}
}

// check holds what the peer sees, the next state and the error against the action.
func (c *cell) check(ev event, name string) {
	c.t.Helper()
	want := outcomes[name]
	var sees []byte
	switch {
	case want.sees == typeAbort:
		reason := ReasonUnexpected
		if ev == evtInvalid {
			reason = ReasonUnrecognized
		}
		if want.source == SourceUser {
			reason = ReasonNotSpecified
		}
		sees = []byte{0, 0, want.source, reason}
		fallthrough
	case want.sees != 0:
		c.peer.want(want.sees, sees...)
	case want.closed:
		c.peer.wantClosed()
	}
	got := c.a.machine.state()
	switch name {
	case "AE6": // answered at once: AE-7
		if c.in != sta3 {
			c.t.Errorf("negotiated in Sta%d", c.in)
		}
		want.next = sta6
	case "AR8":
		want.next = sta10
	case "AR10": // answered at once: AR-4
		c.peer.want(typeReleaseRP)
		want.next = sta13
	}
	if got != want.next {
		c.t.Errorf("then in Sta%d, want Sta%d", got, want.next)
	}
	var abort *AbortError
	if want.remote != (errors.As(c.err, &abort) && abort.Remote) && name != "AA2" {
		c.t.Errorf("the error is %v", c.err)
	}
	if name == "AA4" && !errors.Is(c.err, io.ErrUnexpectedEOF) {
		c.t.Errorf("the error is %v, want the loss of the transport", c.err)
	}
}
