package scp

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// Echo answers C-ECHO (PS3.7 §9.1.5).
func (s *Server) Echo(context.Context, *dimse.EchoRequest) uint16 { return dimse.StatusSuccess }

// Store answers C-STORE (PS3.4 §B.2): success follows the archive's durable acknowledgement. Statuses: those
// of dicomsvc.DIMSEStatus, B000 for a version that is kept but not served, and 0122 for a SOP class that is
// not stored.
func (s *Server) Store(ctx context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
	if !isStorage(r.SOPClass) {
		return dimse.StoreResponse{Status: dimse.StatusClassNotSupported, ErrorComment: "this SOP class is not stored",
			OffendingElements: []dicom.Tag{affectedClass}}
	}
	from := callerOf(r.Session)
	result, err := s.cfg.Archive.Put(ctx, dicomsvc.PutRequest{
		Principal: from.principal, SOPClassUID: r.SOPClass, SOPInstanceUID: r.SOPInstance,
		TransferSyntaxUID: r.Syntax, Body: r.Data, CallingAE: from.title, Issuer: from.issuer,
	})
	if err != nil {
		s.cfg.Log.Warn("object refused", "session", r.Session.ID, "err", err)
		return refused(r, result, err)
	}
	response := dimse.StoreResponse{Status: dimse.StatusSuccess}
	if result.Outcome == dicomsvc.OutcomeFurtherVersion || result.Outcome == dicomsvc.OutcomeLimbo {
		response.Status, response.ErrorComment = dimse.StatusCoerced, printable(result.Comment)
	}
	return response
}

// refused names the element at fault where one is.
func refused(r *dimse.StoreRequest, result dicomsvc.PutResult, err error) dimse.StoreResponse {
	response := dimse.StoreResponse{Status: dicomsvc.DIMSEStatus(err), ErrorComment: comment(err),
		Advice: dimse.Advice{Do: dicomsvc.Remedy(err)}}
	var attribute *dicom.AttributeError
	var parse *dicom.ParseError
	switch {
	case errors.Is(err, dicomsvc.ErrMismatch) && result.SOPInstanceUID != r.SOPInstance:
		response.OffendingElements = []dicom.Tag{dicom.SOPInstanceUID}
		response.ErrorComment = "SOP Instance UID differs from the command's"
	case errors.Is(err, dicomsvc.ErrMismatch):
		response.OffendingElements = []dicom.Tag{dicom.SOPClassUID}
		response.ErrorComment = "SOP Class UID differs from the command's"
	case errors.As(err, &attribute):
		response.OffendingElements = []dicom.Tag{attribute.Tag}
	case errors.As(err, &parse) && parse.Tag != 0:
		response.OffendingElements = []dicom.Tag{parse.Tag}
	}
	response.Advice.Why = why(err, response.ErrorComment)
	return response
}

// why is the reason for this node's admin: the comment, without the offset, which would make each a reason of
// its own.
func why(err error, comment string) string {
	if element, what := dicomsvc.Fault(err); element != "" {
		return dicomsvc.Kind(err) + ": " + element + ": " + what
	}
	return comment
}

// Notify refuses the N- services, none of which is offered.
func (s *Server) Notify(context.Context, *dimse.NRequest) dimse.NResponse {
	return dimse.NResponse{Status: dimse.StatusClassNotSupported, ErrorComment: "the N- services are not offered"}
}

// affectedClass is (0000,0002), Affected SOP Class UID, of a command (PS3.7 §E.1).
const affectedClass dicom.Tag = 0x0000_0002

// kinds are the errors whose own words a peer is told; what they wrap may speak of this node's inside.
var kinds = []error{
	dicomsvc.ErrPoison, dicomsvc.ErrFull, dicomsvc.ErrDraining, dicomsvc.ErrResources, dicomsvc.ErrUnavailable, dicomsvc.ErrMismatch,
	dicomsvc.ErrUnsupported, dicomsvc.ErrDenied, dicomsvc.ErrNotFound, dicomsvc.ErrLimit, dicomsvc.ErrConflict,
	dicomsvc.ErrCorrupt, dicomsvc.ErrMalformed,
}

// comment turns an error into an Error Comment.
func comment(err error) string {
	var identifier *identifierError
	var attribute *dicom.AttributeError
	var parse *dicom.ParseError
	switch {
	case errors.As(err, &identifier):
		return printable(identifier.text)
	case errors.As(err, &attribute):
		return printable(attribute.Error())
	case errors.As(err, &parse):
		return printable(fmt.Sprintf("%v %s at offset %d", parse.Tag, parse.What, parse.Offset))
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return printable(kind.Error())
		}
	}
	return "processing failure; tell the administrator of this archive"
}

// printable fits text into an Error Comment.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '\\' {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), commentMax)]
}
