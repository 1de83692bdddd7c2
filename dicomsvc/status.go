package dicomsvc

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"osteon/dicomsvc/dicom"
)

// Errors that front ends branch on with errors.Is. Their wrapping errors carry a sentence that is safe
// to show to whoever asked.
var (
	ErrNotFound    = errors.New("not found")
	ErrDenied      = errors.New("not allowed")
	ErrMismatch    = errors.New("the object is not what the request says")
	ErrMalformed   = errors.New("the object cannot be understood")
	ErrUnsupported = errors.New("not supported")
	ErrResources   = errors.New("out of resources; try again later")
	ErrFull        = errors.New("out of storage space")
	ErrDraining    = errors.New("the node is shutting down; use another node")
	ErrCorrupt     = errors.New("the stored object failed its check")
	ErrUnavailable = errors.New("not enough of the object can be reached now")
	ErrLimit       = errors.New("beyond a limit")
	ErrConflict    = errors.New("in conflict with what is stored")
	ErrPoison      = errors.New("this object made the node fail before; it is refused now")
)

// Status codes of PS3.7 Annex C and PS3.4 §B.2.3, §C.4 that the archive answers with.
const (
	StatusSuccess          uint16 = 0x0000
	StatusCoerced          uint16 = 0xB000
	StatusOutOfResources   uint16 = 0xA700
	StatusMismatch         uint16 = 0xA900
	StatusCannotUnderstand uint16 = 0xC000
	StatusPoison           uint16 = 0xC0F0 // of the range for objects that cannot be understood (PS3.4 §B.2.3)
	StatusNotAuthorized    uint16 = 0x0124
	StatusProcessing       uint16 = 0x0110
	StatusNotSupported     uint16 = 0x0122
	StatusNoSuchInstance   uint16 = 0x0112
)

type statuses struct {
	err   error
	dimse uint16
	http  int
	do    string // for this node's admin
}

// statusTable is searched from the top; the first error that matches decides.
var statusTable = []statuses{
	{ErrPoison, StatusPoison, http.StatusConflict, "osteon status lists such objects: keep one for whoever maintains this program; a restart of the node lets them try again"},
	{ErrFull, StatusOutOfResources, http.StatusInsufficientStorage, "free or add space on the node that is full; other nodes take objects meanwhile"},
	{ErrDraining, StatusOutOfResources, http.StatusServiceUnavailable, "use another node of the ring; senders that retry find this one when it is back"},
	{ErrResources, StatusOutOfResources, http.StatusServiceUnavailable, "try again later; osteon status says which nodes are up and what they have left"},
	{ErrUnavailable, StatusOutOfResources, http.StatusServiceUnavailable, "bring back the nodes that osteon status shows down"},
	{ErrMismatch, StatusMismatch, http.StatusConflict, "let the sender put the same UIDs in the request and in the object"},
	{ErrMalformed, StatusCannotUnderstand, http.StatusConflict, "correct the object at the sender; nothing of it was stored"},
	{ErrUnsupported, StatusNotSupported, http.StatusUnsupportedMediaType, "use what the conformance statement offers"},
	{ErrDenied, StatusNotAuthorized, http.StatusForbidden, "give the caller the right in the configuration of this node"},
	{ErrNotFound, StatusNoSuchInstance, http.StatusNotFound, "search first to see what is stored"},
	{ErrLimit, StatusCannotUnderstand, http.StatusRequestEntityTooLarge, "correct or split the object; the limits are in the conformance statement"},
	{ErrConflict, StatusProcessing, http.StatusConflict, "see the node's log"},
	{ErrCorrupt, StatusProcessing, http.StatusInternalServerError, "osteon study verify shows what is damaged; the node's log says where"},
	{context.DeadlineExceeded, StatusOutOfResources, http.StatusServiceUnavailable, "try again"},
	{context.Canceled, StatusOutOfResources, http.StatusServiceUnavailable, "try again"},
}

// DIMSEStatus returns the C-STORE style status of err: StatusSuccess for nil, StatusProcessing for an
// error that is not in the table.
func DIMSEStatus(err error) uint16 {
	if err == nil {
		return StatusSuccess
	}
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return s.dimse
		}
	}
	return StatusProcessing
}

// HTTPStatus returns the HTTP status of err: 200 for nil, 500 for an error that is not in the table.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return s.http
		}
	}
	return http.StatusInternalServerError
}

// Remedy returns what an admin may do about err.
func Remedy(err error) string {
	for _, s := range statusTable {
		if errors.Is(err, s.err) {
			return s.do
		}
	}
	return "see the node's log"
}

// Kind returns the words of the kind of err, which hold nothing of what was asked.
func Kind(err error) string { return kindOf(err) }

// Fault returns the element at which err found fault, and what is wrong with it, without offset or value; "" when
// it names none.
func Fault(err error) (element, what string) {
	var parse *dicom.ParseError
	var attribute *dicom.AttributeError
	switch {
	case errors.As(err, &attribute):
		return fmt.Sprintf("element %v", attribute.Tag), attribute.Kind.Error()
	case errors.As(err, &parse) && parse.Tag != 0:
		return fmt.Sprintf("element %v", parse.Tag), parse.What
	}
	return "", ""
}
