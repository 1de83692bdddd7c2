package dimse

import (
	"context"
	"io"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

// Handler is what a Server serves. Its methods are called from several
// goroutines; those of one association in order, except that Find, Move and
// Get run beside what follows them, and so does Store, once it has read its
// data set, where an asynchronous window was agreed to. The context of each ends when the
// association ends and when the server's grace is over; that of Find, Move and
// Get also with a C-CANCEL, and context.Cause is then ErrCancelled.
//
// Embed Unsupported to leave services out.
type Handler interface {
	// Associate decides on an association before anything else.
	Associate(ctx context.Context, r *dul.Request) Decision
	// Echo answers C-ECHO with a status.
	Echo(ctx context.Context, r *EchoRequest) uint16
	// Store answers C-STORE. It need not read all of r.Data.
	Store(ctx context.Context, r *StoreRequest) StoreResponse
	// Find answers C-FIND: yield sends one pending response with an identifier
	// and blocks while the peer is slow. When yield fails (ErrCancelled or the
	// end of the association) Find returns.
	Find(ctx context.Context, r *FindRequest, yield func(id *dicom.Dataset, status uint16) error) Result
	// Move answers C-MOVE; p sends pending responses.
	Move(ctx context.Context, r *MoveRequest, p *Progress) Result
	// Get answers C-GET; g stores on the same association.
	Get(ctx context.Context, r *GetRequest, g *Getter) Result
	// Notify answers the N- services; Field tells which.
	Notify(ctx context.Context, r *NRequest) NResponse
}

// Decision is the answer to an association request: a Rejection, or else an
// Acceptance.
type Decision struct {
	Acceptance *dul.Acceptance
	Rejection  *dul.Rejection
	// Advice explains a Rejection to this node's admin.
	Advice
	// Value is kept in the Session: who the peer is, for instance.
	Value any
	// Ended, if set, is called once when an accepted association has ended and
	// its operations have returned, with nil after an orderly release.
	Ended func(err error)
}

// Advice explains a refusal to this node's admin: why, in plain words, and what to do. The peer is sent
// neither. What is left empty is filled in from the status. It holds no patient data and no UID.
type Advice struct{ Why, Do string }

// EchoRequest is a C-ECHO-RQ.
type EchoRequest struct {
	Session *Session
	Command *Command
}

// StoreRequest is a C-STORE-RQ, PS3.7 §9.1.1. Class and instance UID are those
// of the command, not checked against the data set; the class is the abstract
// syntax of the presentation context.
type StoreRequest struct {
	Session                 *Session // nil at a Client
	Context                 dul.Context
	MessageID               uint16
	SOPClass, SOPInstance   string
	Syntax                  string // transfer syntax of Data
	Priority                uint16
	MoveOriginator          string // AE title, "" when not part of a C-MOVE
	MoveOriginatorMessageID uint16
	// Data is the data set as it arrives, without file meta information. An
	// abort or a lost connection is an error, never io.EOF.
	Data io.Reader
}

// StoreResponse answers a C-STORE. Class and instance UID are echoed by this
// package.
type StoreResponse struct {
	Status            uint16
	ErrorComment      string
	OffendingElements []dicom.Tag
	Advice            Advice
}

// FindRequest is a C-FIND-RQ, PS3.7 §9.1.2.
type FindRequest struct {
	Session    *Session
	Context    dul.Context
	MessageID  uint16
	SOPClass   string // information model
	Priority   uint16
	Identifier *dicom.Dataset
}

// MoveRequest is a C-MOVE-RQ, PS3.7 §9.1.4.
type MoveRequest struct {
	FindRequest
	Destination string // AE title
}

// GetRequest is a C-GET-RQ, PS3.7 §9.1.3.
type GetRequest struct{ FindRequest }

// Result is the final response of C-FIND, C-MOVE and C-GET. A cancelled
// operation is answered FE00 unless it succeeded, whatever Status says.
type Result struct {
	Status            uint16
	ErrorComment      string
	OffendingElements []dicom.Tag
	Counters          *Counters // of C-MOVE and C-GET
	// FailedInstances become the Failed SOP Instance UID List; the list is cut
	// where an element ends.
	FailedInstances []string
	Advice          Advice
}

// NRequest is a request of the N- services, PS3.7 §10.1.
type NRequest struct {
	Session      *Session // nil at a Client
	Context      dul.Context
	Field        uint16 // NEventRQ, NGetRQ, NSetRQ, NActionRQ, NCreateRQ or NDeleteRQ
	MessageID    uint16
	SOPClass     string // affected or requested
	SOPInstance  string // may be empty for N-CREATE
	EventType    uint16
	ActionType   uint16
	AttributeIDs []dicom.Tag
	Dataset      *dicom.Dataset // nil when there is none
}

// NResponse answers an NRequest. UIDs and type IDs are echoed unless given.
type NResponse struct {
	Status            uint16
	ErrorComment      string
	ErrorID           uint16
	OffendingElements []dicom.Tag
	SOPInstance       string         // of an N-CREATE without one in the request
	Dataset           *dicom.Dataset // nil for none
	Advice            Advice
}

// Unsupported is a Handler that rejects every association and answers every
// service "SOP class not supported". It is meant to be embedded.
type Unsupported struct{}

// Associate rejects for good.
func (Unsupported) Associate(context.Context, *dul.Request) Decision {
	return Decision{Rejection: dul.RejectNoReason()}
}

// Echo answers success.
func (Unsupported) Echo(context.Context, *EchoRequest) uint16 { return StatusSuccess }

// Store refuses.
func (Unsupported) Store(context.Context, *StoreRequest) StoreResponse {
	return StoreResponse{Status: StatusClassNotSupported}
}

// Find refuses.
func (Unsupported) Find(context.Context, *FindRequest, func(*dicom.Dataset, uint16) error) Result {
	return Result{Status: StatusClassNotSupported}
}

// Move refuses.
func (Unsupported) Move(context.Context, *MoveRequest, *Progress) Result {
	return Result{Status: StatusClassNotSupported}
}

// Get refuses.
func (Unsupported) Get(context.Context, *GetRequest, *Getter) Result {
	return Result{Status: StatusClassNotSupported}
}

// Notify refuses.
func (Unsupported) Notify(context.Context, *NRequest) NResponse {
	return NResponse{Status: StatusClassNotSupported}
}
