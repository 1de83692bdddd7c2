package dimse

import (
	"errors"
	"fmt"

	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

// What is refused here or fails is noted for this node's admin: the code that the peer was sent, the standard's
// words for it, why, and what to do.

// peer is who is at the other end, as far as it is known.
type peer struct{ host, calling, called string }

var panicAdvice = Advice{"a fault in this program: the node's log has the place", "send the log to whoever maintains this program; the object that causes it is refused after the third time"}

func (p peer) event(what, code, words string, advice Advice) refusal.Event {
	return refusal.Event{What: what, Calling: p.calling, Called: p.called, From: p.host, Code: code, Words: words, Why: advice.Why, Do: advice.Do}
}

func (p peer) noteRejection(s *Server, rej *dul.Rejection, advice Advice) {
	if advice.Why == "" {
		advice.Why = rej.Words()
	}
	if advice.Do == "" {
		advice.Do = "try again later"
		if !rej.Transient() {
			advice.Do = "correct the titles at the peer, or register the AE with osteon ae add"
		}
	}
	s.cfg.Refusals.Note(p.event("association", rej.Code(), rej.Words(), advice))
}

// noteDropped notes a connection that ended before an association. One that the peer just closes is a health
// check of some kind and no refusal.
func (p peer) noteDropped(s *Server, err error) {
	var abort *dul.AbortError
	switch {
	case errors.Is(err, dul.ErrARTIM):
		s.cfg.Refusals.Note(p.event("association", "", "closed when the ARTIM timer expired",
			Advice{"no complete association request came within 30 s", "see that what calls there speaks DICOM, and that nothing between cuts connections"}))
	case errors.As(err, &abort) && !abort.Remote && abort.Cause != nil && !errors.Is(err, dul.ErrClosed):
		s.cfg.Refusals.Note(p.event("association", abort.Code(), abort.Words(),
			Advice{"what came is no association request: " + abort.Cause.Error(), "see that what calls there means this port: it speaks DICOM without TLS"}))
	}
}

func (s *Server) noteEvicted(host string) {
	s.cfg.Refusals.Note(peer{host: host}.event("connection", "", "closed without an answer",
		Advice{"it sent no association request while others waited for a place", "find out what holds connections open there without using them"}))
}

func (s *Server) noteHeldBack(host string) {
	s.cfg.Refusals.Note(peer{host: host}.event("connection", "", "closed without an answer",
		Advice{fmt.Sprintf("connections from this address come to nothing many times a second (%d are put up with)", s.cfg.MaxFruitless),
			"find out what calls there; register its AE with osteon ae add if it may call"}))
}

// noteBroken notes an association that did not end with a release.
func (s *Session) noteBroken(err error) {
	var abort *dul.AbortError
	code, words, advice := "", "connection lost", Advice{"the connection broke inside the association", "see whether the peer or the network between failed"}
	switch {
	case errors.Is(err, ErrPanic):
		code, words, advice = "0/0", (&dul.AbortError{}).Words(), panicAdvice
	case s.draining.Load() && errors.Is(err, dul.ErrClosed):
		code, words = "0/0", (&dul.AbortError{}).Words()
		advice = Advice{"this node is shutting down", "use another node of the ring"}
	case errors.As(err, &abort):
		code, words, advice = abort.Code(), abort.Words(), abortAdvice(abort)
	case errors.Is(err, ErrCommand), errors.Is(err, errMisuse):
		code, words = "0/0", (&dul.AbortError{}).Words()
		advice = Advice{"the peer sent a command that cannot be understood or does not belong there", "tell the maker of the peer's software"}
	}
	s.server.cfg.Refusals.Note(s.peer.event("association", code, words, advice))
}

func abortAdvice(abort *dul.AbortError) Advice {
	switch {
	case abort.Remote:
		return Advice{"the peer aborted", "see the peer's log"}
	case errors.Is(abort.Cause, dul.ErrIdle):
		return Advice{"nothing came for the idle time", "let the peer release associations that it does not use"}
	case errors.Is(abort.Cause, dul.ErrStalled):
		return Advice{"the peer sent or took less than 1 KiB/s inside a PDU", "see whether the peer hangs or the network between is overloaded"}
	case abort.Cause == nil || errors.Is(abort.Cause, dul.ErrClosed):
		return Advice{"this node gave the association up", "see the node's log"}
	}
	return Advice{"the peer broke the protocol: " + abort.Cause.Error(), "tell the maker of the peer's software"}
}

// note notes an operation that was refused or failed.
func (s *Session) note(what string, status uint16, comment string, advice Advice) {
	if IsPending(status) || status == StatusCancel || IsSuccess(status) && advice.Why == "" {
		return
	}
	meaning, remedy := Meaning(status)
	if advice.Why == "" {
		advice.Why = first(comment, meaning)
	}
	if advice.Do == "" {
		advice.Do = remedy
	}
	s.server.cfg.Refusals.Note(s.peer.event(what, fmt.Sprintf("%04X", status), meaning, advice))
}

func operationName(field uint16) string {
	switch field &^ responseBit {
	case CStoreRQ:
		return "C-STORE"
	case CFindRQ:
		return "C-FIND"
	case CMoveRQ:
		return "C-MOVE"
	case CGetRQ:
		return "C-GET"
	case CEchoRQ:
		return "C-ECHO"
	case NEventRQ:
		return "N-EVENT-REPORT"
	case NGetRQ:
		return "N-GET"
	case NSetRQ:
		return "N-SET"
	case NActionRQ:
		return "N-ACTION"
	case NCreateRQ:
		return "N-CREATE"
	case NDeleteRQ:
		return "N-DELETE"
	}
	return "unknown command"
}

// meanings are the standard's words for a status (PS3.7 Annex C, PS3.4 §B.2.3 and §C.4) and what helps.
var meanings = map[uint16][2]string{
	StatusProcessingFailure:  {"processing failure", "see the node's log"},
	StatusDuplicateInstance:  {"duplicate SOP instance", "see the node's log"},
	StatusNoSuchInstance:     {"no such SOP instance", "search first to see what is stored"},
	StatusInvalidInstance:    {"invalid SOP instance", "correct the SOP Instance UID at the sender: digits and dots, at most 64 characters"},
	StatusInvalidArgument:    {"invalid argument value", "correct the data set at the sender"},
	StatusClassNotSupported:  {"SOP class not supported", "use a SOP class of the conformance statement, in a presentation context of its own"},
	StatusNotAuthorized:      {"refused: not authorized", "give the AE the right in this node's configuration"},
	StatusDuplicateInvoke:    {"duplicate invocation", "tell the maker of the peer's software: message IDs of operations under way differ"},
	StatusUnrecognized:       {"unrecognized operation", "tell the maker of the peer's software"},
	StatusResourceLimitation: {"resource limitation", "let the peer wait for its operations, or open another association"},
	StatusOutOfResources:     {"refused: out of resources", "try again later or at another node; osteon status says what this one lacks"},
	StatusNoMatches:          {"refused: out of resources, unable to calculate number of matches", "try again later or at another node"},
	StatusSubOperations:      {"refused: out of resources, unable to perform sub-operations", "see whether the destination takes the objects; the node's log says why each failed"},
	StatusUnknownDestination: {"refused: move destination unknown", "register the destination with its address: osteon ae add TITLE --address HOST:PORT"},
	StatusMismatch:           {"data set or identifier does not match SOP class", "correct the element at fault at the sender"},
	StatusCoerced:            {"warning: sub-operations complete, one or more failures", "see the failed instances in the response, and the node's log"},
}

// Meaning returns the standard's words for a status of failure and what to do about it.
func Meaning(status uint16) (words, remedy string) {
	if m, ok := meanings[status]; ok {
		return m[0], m[1]
	}
	switch status >> 12 {
	case 0xA:
		return "failure", "see the node's log"
	case 0xC:
		return "error: cannot understand", "check the object at the sender; it cannot be read as it is"
	}
	return "failure", "see the node's log"
}
