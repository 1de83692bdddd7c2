package dul

import (
	"errors"
	"fmt"
)

var (
	// ErrReleaseRequested is returned by Next when the peer asked to release
	// the association. Data may still be sent; answer with ReplyRelease.
	ErrReleaseRequested = errors.New("peer asked to release the association")
	// ErrClosed is returned for any use of an association that has ended here.
	ErrClosed = errors.New("association is closed")
	// ErrARTIM means that the peer did not finish opening or closing the
	// association within the ARTIM time.
	ErrARTIM = errors.New("ARTIM timer expired")
	// ErrIdle means that nothing arrived for the idle time while no operation
	// was under way.
	ErrIdle = errors.New("idle timer expired")
	// ErrStalled means that a PDU begun by the peer, or sent to it, made too
	// little progress.
	ErrStalled = errors.New("peer stalled inside a PDU")
	// ErrContext is returned by Send for a presentation context that was not
	// accepted.
	ErrContext = errors.New("presentation context was not accepted")
)

// Sources and reasons of A-ABORT, PS3.8 §9.3.8.
const (
	SourceUser     byte = 0
	SourceProvider byte = 2

	ReasonNotSpecified   byte = 0
	ReasonUnrecognized   byte = 1 // unrecognised PDU
	ReasonUnexpected     byte = 2 // unexpected PDU
	ReasonUnknownParam   byte = 4 // unrecognised PDU parameter
	ReasonUnexpectedPara byte = 5 // unexpected PDU parameter
	ReasonInvalidParam   byte = 6 // invalid PDU parameter value
)

// AbortError says that the association was aborted, by whom and why.
type AbortError struct {
	Source, Reason byte
	Remote         bool  // the peer sent the abort
	Cause          error // what made us send it, or nil
}

func (e *AbortError) Error() string {
	who := "here"
	if e.Remote {
		who = "by the peer"
	}
	s := fmt.Sprintf("association aborted %s (source %d, reason %d)", who, e.Source, e.Reason)
	if e.Cause != nil {
		return s + ": " + e.Cause.Error()
	}
	return s
}

func (e *AbortError) Unwrap() error { return e.Cause }

// Code is source/reason.
func (e *AbortError) Code() string { return fmt.Sprintf("%d/%d", e.Source, e.Reason) }

// Words are the names that PS3.8 Table 9-26 gives source and reason; those of a service user have no reason.
func (e *AbortError) Words() string {
	if e.Source != SourceProvider {
		return "A-ABORT by service-user"
	}
	reason := "reason-not-specified"
	switch e.Reason {
	case ReasonUnrecognized:
		reason = "unrecognized-PDU"
	case ReasonUnexpected:
		reason = "unexpected-PDU"
	case ReasonUnknownParam:
		reason = "unrecognized-PDU parameter"
	case ReasonUnexpectedPara:
		reason = "unexpected-PDU parameter"
	case ReasonInvalidParam:
		reason = "invalid-PDU-parameter value"
	}
	return "A-ABORT by service-provider, " + reason
}

// Rejection is the triple of an A-ASSOCIATE-RJ, PS3.8 §9.3.4. As an error it
// is what Connect returns when the peer refuses and what Accept returns after
// refusing.
type Rejection struct {
	Result, Source, Reason byte
}

func (r *Rejection) Error() string {
	return fmt.Sprintf("association rejected: result %d, source %d, reason %d (%s)", r.Result, r.Source, r.Reason, r.text())
}

// Transient reports whether the peer may succeed by trying again later.
func (r *Rejection) Transient() bool { return r.Result == resultTransient }

const (
	resultPermanent byte = 1
	resultTransient byte = 2

	sourceUser         byte = 1
	sourceACSE         byte = 2
	sourcePresentation byte = 3
)

// The rejections a server chooses from. Each call returns a new value.

// RejectNoReason refuses for good without saying why.
func RejectNoReason() *Rejection { return &Rejection{resultPermanent, sourceUser, 1} }

// RejectApplicationContext refuses an application context other than DICOM's.
func RejectApplicationContext() *Rejection { return &Rejection{resultPermanent, sourceUser, 2} }

// RejectCallingAE refuses an unknown calling AE title.
func RejectCallingAE() *Rejection { return &Rejection{resultPermanent, sourceUser, 3} }

// RejectCalledAE refuses a called AE title that is not ours.
func RejectCalledAE() *Rejection { return &Rejection{resultPermanent, sourceUser, 7} }

// RejectProtocol refuses a protocol version other than 1.
func RejectProtocol() *Rejection { return &Rejection{resultPermanent, sourceACSE, 2} }

// RejectIdentity refuses a user identity (PS3.7 §D.3.3.7).
func RejectIdentity() *Rejection { return &Rejection{resultPermanent, sourceACSE, 1} }

// RejectCongestion asks the peer to come back: the node is overloaded,
// draining or without quorum.
func RejectCongestion() *Rejection { return &Rejection{resultTransient, sourcePresentation, 1} }

// RejectLocalLimit asks the peer to come back: too many associations.
func RejectLocalLimit() *Rejection { return &Rejection{resultTransient, sourcePresentation, 2} }

// Code is the triple as result/source/reason.
func (r *Rejection) Code() string { return fmt.Sprintf("%d/%d/%d", r.Result, r.Source, r.Reason) }

// Words are the names that PS3.8 Table 9-21 gives the triple.
func (r *Rejection) Words() string {
	result, source := "unknown result", "unknown source"
	switch r.Result {
	case resultPermanent:
		result = "rejected-permanent"
	case resultTransient:
		result = "rejected-transient"
	}
	switch r.Source {
	case sourceUser:
		source = "DICOM UL service-user"
	case sourceACSE:
		source = "DICOM UL service-provider (ACSE)"
	case sourcePresentation:
		source = "DICOM UL service-provider (presentation)"
	}
	return result + ", " + source + ", " + r.text()
}

func (r *Rejection) text() string {
	switch [2]byte{r.Source, r.Reason} {
	case [2]byte{sourceUser, 2}:
		return "application-context-name-not-supported"
	case [2]byte{sourceUser, 3}:
		return "calling-AE-title-not-recognized"
	case [2]byte{sourceUser, 7}:
		return "called-AE-title-not-recognized"
	case [2]byte{sourceACSE, 2}:
		return "protocol-version-not-supported"
	case [2]byte{sourcePresentation, 1}:
		return "temporary-congestion"
	case [2]byte{sourcePresentation, 2}:
		return "local-limit-exceeded"
	}
	return "no-reason-given"
}

// pduError is a fault in what the peer sent; reason goes into our A-ABORT.
type pduError struct {
	reason byte
	what   string
}

func (e *pduError) Error() string { return e.what }

func invalid(format string, args ...any) error {
	return &pduError{ReasonInvalidParam, fmt.Sprintf(format, args...)}
}

// reasonOf is the abort reason for a decoding error.
func reasonOf(err error) byte {
	var p *pduError
	if errors.As(err, &p) {
		return p.reason
	}
	return ReasonNotSpecified
}
