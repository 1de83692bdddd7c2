package dicomsvc

import (
	"context"
	"errors"
	"net/http"
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
)

// Status codes of PS3.7 Annex C and PS3.4 §B.2.3, §C.4 that the archive answers with.
const (
	StatusSuccess          uint16 = 0x0000
	StatusCoerced          uint16 = 0xB000
	StatusOutOfResources   uint16 = 0xA700
	StatusMismatch         uint16 = 0xA900
	StatusCannotUnderstand uint16 = 0xC000
	StatusNotAuthorized    uint16 = 0x0124
	StatusProcessing       uint16 = 0x0110
	StatusNotSupported     uint16 = 0x0122
	StatusNoSuchInstance   uint16 = 0x0112
)

type statuses struct {
	err   error
	dimse uint16
	http  int
}

// statusTable is searched from the top; the first error that matches decides.
var statusTable = []statuses{
	{ErrFull, StatusOutOfResources, http.StatusInsufficientStorage},
	{ErrDraining, StatusOutOfResources, http.StatusServiceUnavailable},
	{ErrResources, StatusOutOfResources, http.StatusServiceUnavailable},
	{ErrUnavailable, StatusOutOfResources, http.StatusServiceUnavailable},
	{ErrMismatch, StatusMismatch, http.StatusConflict},
	{ErrMalformed, StatusCannotUnderstand, http.StatusConflict},
	{ErrUnsupported, StatusNotSupported, http.StatusUnsupportedMediaType},
	{ErrDenied, StatusNotAuthorized, http.StatusForbidden},
	{ErrNotFound, StatusNoSuchInstance, http.StatusNotFound},
	{ErrLimit, StatusCannotUnderstand, http.StatusRequestEntityTooLarge},
	{ErrConflict, StatusProcessing, http.StatusConflict},
	{ErrCorrupt, StatusProcessing, http.StatusInternalServerError},
	{context.DeadlineExceeded, StatusOutOfResources, http.StatusServiceUnavailable},
	{context.Canceled, StatusOutOfResources, http.StatusServiceUnavailable},
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
