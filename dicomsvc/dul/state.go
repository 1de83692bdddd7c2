package dul

import "sync"

// state is a state of the upper layer machine, PS3.8 §9.2.1.
type state uint8

const (
	sta1  state = iota + 1 // idle
	sta2                   // transport open, awaiting A-ASSOCIATE-RQ
	sta3                   // awaiting the local answer to the request
	sta4                   // awaiting the transport to open
	sta5                   // awaiting A-ASSOCIATE-AC or -RJ
	sta6                   // association established
	sta7                   // awaiting A-RELEASE-RP
	sta8                   // awaiting the local release response
	sta9                   // release collision, requestor: awaiting local response
	sta10                  // release collision, acceptor: awaiting A-RELEASE-RP
	sta11                  // release collision, requestor: awaiting A-RELEASE-RP
	sta12                  // release collision, acceptor: awaiting local response
	sta13                  // awaiting the transport to close
)

// event is an event of PS3.8 Table 9-10, numbered as there.
type event uint8

const (
	evtAssociateRequest event = iota + 1
	evtTransportConfirmed
	evtAC
	evtRJ
	evtTransportIndicated
	evtRQ
	evtAccept
	evtReject
	evtDataRequest
	evtData
	evtReleaseRequest
	evtReleaseRQ
	evtReleaseRP
	evtReleaseResponse
	evtAbortRequest
	evtAbort
	evtTransportClosed
	evtARTIM
	evtInvalid
)

const (
	stateCount = int(sta13)
	eventCount = int(evtInvalid)
)

// action is an action of PS3.8 Tables 9-6 to 9-9.
type action uint8

const (
	noAction action = iota // the event cannot happen in that state
	ae1
	ae2
	ae3
	ae4
	ae5
	ae6
	ae7
	ae8
	dt1
	dt2
	ar1
	ar2
	ar3
	ar4
	ar5
	ar6
	ar7
	ar8
	ar9
	ar10
	aa1
	aa2
	aa3
	aa4
	aa5
	aa6
	aa7
	aa8
)

// transitions is PS3.8 Table 9-10, one row an event, one column a state
// (index 0 is unused).
var transitions = [eventCount + 1][stateCount + 1]action{
	evtAssociateRequest:   {sta1: ae1},
	evtTransportConfirmed: {sta4: ae2},
	evtAC:                 {sta2: aa1, sta3: aa8, sta5: ae3, sta6: aa8, sta7: aa8, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa6},
	evtRJ:                 {sta2: aa1, sta3: aa8, sta5: ae4, sta6: aa8, sta7: aa8, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa6},
	evtTransportIndicated: {sta1: ae5},
	evtRQ:                 {sta2: ae6, sta3: aa8, sta5: aa8, sta6: aa8, sta7: aa8, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa7},
	evtAccept:             {sta3: ae7},
	evtReject:             {sta3: ae8},
	evtDataRequest:        {sta6: dt1, sta8: ar7},
	evtData:               {sta2: aa1, sta3: aa8, sta5: aa8, sta6: dt2, sta7: ar6, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa6},
	evtReleaseRequest:     {sta6: ar1},
	evtReleaseRQ:          {sta2: aa1, sta3: aa8, sta5: aa8, sta6: ar2, sta7: ar8, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa6},
	evtReleaseRP:          {sta2: aa1, sta3: aa8, sta5: aa8, sta6: aa8, sta7: ar3, sta8: aa8, sta9: aa8, sta10: ar10, sta11: ar3, sta12: aa8, sta13: aa6},
	evtReleaseResponse:    {sta8: ar4, sta9: ar9, sta12: ar4},
	evtAbortRequest:       {sta3: aa1, sta4: aa2, sta5: aa1, sta6: aa1, sta7: aa1, sta8: aa1, sta9: aa1, sta10: aa1, sta11: aa1, sta12: aa1},
	evtAbort:              {sta2: aa2, sta3: aa3, sta5: aa3, sta6: aa3, sta7: aa3, sta8: aa3, sta9: aa3, sta10: aa3, sta11: aa3, sta12: aa3, sta13: aa2},
	evtTransportClosed:    {sta2: aa5, sta3: aa4, sta4: aa4, sta5: aa4, sta6: aa4, sta7: aa4, sta8: aa4, sta9: aa4, sta10: aa4, sta11: aa4, sta12: aa4, sta13: ar5},
	evtARTIM:              {sta2: aa2, sta13: aa2},
	evtInvalid:            {sta2: aa1, sta3: aa8, sta5: aa8, sta6: aa8, sta7: aa8, sta8: aa8, sta9: aa8, sta10: aa8, sta11: aa8, sta12: aa8, sta13: aa7},
}

// nextState is the state each action leads to, PS3.8 Tables 9-6 to 9-9. AR-8
// depends on the side and AE-6 is split by its caller: refused requests go on
// through evtReject.
var nextState = [...]state{
	ae1: sta4, ae2: sta5, ae3: sta6, ae4: sta1, ae5: sta2, ae6: sta3, ae7: sta6, ae8: sta13,
	dt1: sta6, dt2: sta6,
	ar1: sta7, ar2: sta8, ar3: sta1, ar4: sta13, ar5: sta1, ar6: sta7, ar7: sta8, ar9: sta11, ar10: sta12,
	aa1: sta13, aa2: sta1, aa3: sta1, aa4: sta1, aa5: sta1, aa6: sta13, aa7: sta13, aa8: sta13,
}

// step looks an event up. An impossible event gives noAction and leaves the
// state as it was.
func step(s state, e event, requestor bool) (action, state) {
	if int(s) > stateCount || int(e) > eventCount {
		return noAction, s
	}
	act := transitions[e][s]
	switch {
	case act == noAction:
		return noAction, s
	case act == ar8 && requestor:
		return act, sta9
	case act == ar8:
		return act, sta10
	}
	return act, nextState[act]
}

// machine is the state of one association.
type machine struct {
	requestor bool

	mu sync.Mutex
	st state
}

// on applies an event and returns the action to perform.
func (m *machine) on(e event) action {
	m.mu.Lock()
	defer m.mu.Unlock()
	act, next := step(m.st, e, m.requestor)
	m.st = next
	return act
}

// state returns the present state.
func (m *machine) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st
}
