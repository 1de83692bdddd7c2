package dul

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"strings"
)

// PDU types, PS3.8 §9.3.1.
const (
	typeRQ        byte = 1
	typeAC        byte = 2
	typeRJ        byte = 3
	typeData      byte = 4
	typeReleaseRQ byte = 5
	typeReleaseRP byte = 6
	typeAbort     byte = 7
)

const (
	// ApplicationContext is the DICOM application context name, PS3.7 §A.2.1.
	ApplicationContext = "1.2.840.10008.3.1.1.1"
	// ImplementationClassUID names this implementation (PS3.7 §D.3.3.2). It was
	// derived from one random UUID drawn for the project, PS3.5 §B.2.
	ImplementationClassUID = "2.25.191147412569828771770245159889088008107"
	// ImplementationVersion is the version name that goes with it.
	ImplementationVersion = "OSTEON_0"
)

// Request is what an A-ASSOCIATE-RQ asks for, PS3.8 §9.3.2.
type Request struct {
	CalledAE, CallingAE string // without surrounding spaces
	ApplicationContext  string
	Contexts            []ProposedContext
	User                UserInfo

	RemoteAddr net.Addr             // set by Accept
	TLS        *tls.ConnectionState // set by Accept on a TLS connection

	version uint16
	echo    [64]byte // AE title and reserved fields, sent back as they came
}

// ProposedContext is one proposed presentation context.
type ProposedContext struct {
	ID               byte // odd
	AbstractSyntax   string
	TransferSyntaxes []string
}

// UserInfo is the user information item of a request or an acceptance.
type UserInfo struct {
	MaxLength      uint32 // of PDUs the sender is ready to receive; 0 = no limit
	ImplClassUID   string
	ImplVersion    string
	AsyncOps       *AsyncOps // nil: (1,1)
	Roles          []Role
	Extended       []ExtendedNegotiation
	CommonExtended []CommonExtended
	Identity       *UserIdentity
	// IdentityResponse is the server's answer in an acceptance, nil if none.
	IdentityResponse []byte
}

// AsyncOps is the asynchronous operations window, PS3.7 §D.3.3.3; 0 means
// without limit.
type AsyncOps struct{ Invoked, Performed uint16 }

// Role is an SCP/SCU role selection for one SOP class, PS3.7 §D.3.3.4: the
// roles the association requestor takes.
type Role struct {
	SOPClass string
	SCU, SCP bool
}

// ExtendedNegotiation is the service class application information for one
// SOP class, PS3.7 §D.3.3.5.
type ExtendedNegotiation struct {
	SOPClass string
	Info     []byte
}

// CommonExtended is a SOP class common extended negotiation, PS3.7 §D.3.3.6.
type CommonExtended struct {
	SOPClass, ServiceClass string
	Related                []string
}

// User identity types, PS3.7 §D.3.3.7.1.
const (
	IdentityUsername byte = 1
	IdentityPasscode byte = 2
	IdentityKerberos byte = 3
	IdentitySAML     byte = 4
	IdentityJWT      byte = 5
)

// UserIdentity is a user identity negotiation, PS3.7 §D.3.3.7. Its fields are
// secrets: never log them.
type UserIdentity struct {
	Type              byte
	ResponseRequested bool
	Primary           []byte // user name, ticket, assertion or token
	Secondary         []byte // passcode
}

// Results of a presentation context, PS3.8 §9.3.3.2.
const (
	ContextAccepted         byte = 0
	ContextUserRejection    byte = 1
	ContextNoReason         byte = 2
	ContextAbstractSyntax   byte = 3
	ContextTransferSyntaxes byte = 4
)

// ContextResult is the answer to one proposed context.
type ContextResult struct {
	ID             byte
	Result         byte
	TransferSyntax string // significant when accepted
}

// acceptPDU is an A-ASSOCIATE-AC, PS3.8 §9.3.3.
type acceptPDU struct {
	echo     [64]byte
	appCtx   string
	contexts []ContextResult
	user     UserInfo
}

// Item types, PS3.8 §9.3 and PS3.7 §D.3.3.
const (
	itemApplicationContext = 0x10
	itemContextRQ          = 0x20
	itemContextAC          = 0x21
	itemAbstractSyntax     = 0x30
	itemTransferSyntax     = 0x40
	itemUserInfo           = 0x50
	itemMaxLength          = 0x51
	itemImplClass          = 0x52
	itemAsyncOps           = 0x53
	itemRole               = 0x54
	itemImplVersion        = 0x55
	itemExtended           = 0x56
	itemCommonExtended     = 0x57
	itemIdentityRQ         = 0x58
	itemIdentityAC         = 0x59
)

var be = binary.BigEndian

// items walks (type, reserved, length, value) items without copying.
type items struct {
	rest []byte
	typ  byte
	val  []byte
	err  error
}

func (it *items) next() bool {
	if it.err != nil || len(it.rest) == 0 {
		return false
	}
	if len(it.rest) < 4 {
		it.err = invalid("item header cut after %d bytes", len(it.rest))
		return false
	}
	n := int(be.Uint16(it.rest[2:]))
	if n > len(it.rest)-4 {
		it.err = invalid("item %02XH of %d bytes in %d", it.rest[0], n, len(it.rest)-4)
		return false
	}
	it.typ, it.val, it.rest = it.rest[0], it.rest[4:4+n], it.rest[4+n:]
	return true
}

// uid takes a UID value, tolerating pad bytes.
func uid(b []byte) (string, error) {
	if len(b) > uidBytesMax {
		return "", invalid("UID of %d bytes", len(b))
	}
	s := strings.TrimRight(string(b), "\x00 ")
	for i := 0; i < len(s); i++ {
		if c := s[i]; c != '.' && (c < '0' || c > '9') {
			return "", invalid("UID with byte %02XH", c)
		}
	}
	return s, nil
}

// title takes an AE title: spaces around it are not significant, and some
// senders pad with NUL.
func title(b []byte) string { return strings.Trim(string(b), " \x00") }

// Title pads and cuts an AE title to its sixteen bytes.
func putTitle(dst []byte, s string) {
	for i := range dst {
		dst[i] = ' '
	}
	copy(dst, s)
}

// decodeRequest decodes the body of an A-ASSOCIATE-RQ.
func decodeRequest(b []byte) (*Request, error) {
	if len(b) < 68 {
		return nil, invalid("A-ASSOCIATE-RQ of %d bytes", len(b))
	}
	r := &Request{version: be.Uint16(b), CalledAE: title(b[4:20]), CallingAE: title(b[20:36])}
	copy(r.echo[:], b[4:68])
	var seen [256]bool
	it := items{rest: b[68:]}
	for it.next() {
		var err error
		switch it.typ {
		case itemApplicationContext:
			r.ApplicationContext, err = uid(it.val)
		case itemContextRQ:
			var pc ProposedContext
			if pc, err = decodeProposed(it.val); err != nil {
				break
			}
			if pc.ID%2 == 0 || seen[pc.ID] {
				return nil, invalid("presentation context id %d is even or repeated", pc.ID)
			}
			seen[pc.ID] = true
			r.Contexts = append(r.Contexts, pc)
		case itemUserInfo:
			r.User, err = decodeUser(it.val)
		}
		if err != nil {
			return nil, err
		}
	}
	return r, it.err
}

func decodeProposed(b []byte) (ProposedContext, error) {
	if len(b) < 4 {
		return ProposedContext{}, invalid("presentation context item of %d bytes", len(b))
	}
	pc := ProposedContext{ID: b[0]}
	it := items{rest: b[4:]}
	for it.next() {
		switch it.typ {
		case itemAbstractSyntax:
			s, err := uid(it.val)
			if err != nil {
				return pc, err
			}
			pc.AbstractSyntax = s
		case itemTransferSyntax:
			s, err := uid(it.val)
			if err != nil {
				return pc, err
			}
			if len(pc.TransferSyntaxes) == syntaxesMax {
				return pc, invalid("more than %d transfer syntaxes in one context", syntaxesMax)
			}
			pc.TransferSyntaxes = append(pc.TransferSyntaxes, s)
		}
	}
	return pc, it.err
}

// decodeAccept decodes the body of an A-ASSOCIATE-AC.
func decodeAccept(b []byte) (*acceptPDU, error) {
	if len(b) < 68 {
		return nil, invalid("A-ASSOCIATE-AC of %d bytes", len(b))
	}
	p := &acceptPDU{}
	copy(p.echo[:], b[4:68])
	var seen [256]bool
	it := items{rest: b[68:]}
	for it.next() {
		var err error
		switch it.typ {
		case itemApplicationContext:
			p.appCtx, err = uid(it.val)
		case itemContextAC:
			var c ContextResult
			if c, err = decodeResult(it.val); err != nil {
				break
			}
			if c.ID%2 == 0 || seen[c.ID] {
				return nil, invalid("presentation context id %d is even or repeated", c.ID)
			}
			seen[c.ID] = true
			p.contexts = append(p.contexts, c)
		case itemUserInfo:
			p.user, err = decodeUser(it.val)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, it.err
}

func decodeResult(b []byte) (ContextResult, error) {
	if len(b) < 4 {
		return ContextResult{}, invalid("presentation context item of %d bytes", len(b))
	}
	c := ContextResult{ID: b[0], Result: b[2]}
	it := items{rest: b[4:]}
	for it.next() {
		if it.typ != itemTransferSyntax {
			continue
		}
		s, err := uid(it.val)
		if err != nil && c.Result == ContextAccepted {
			return c, err
		}
		c.TransferSyntax = s
	}
	return c, it.err
}

// item appends an item whose value is written by fill.
func item(dst []byte, typ byte, fill func([]byte) []byte) []byte {
	at := len(dst)
	dst = fill(append(dst, typ, 0, 0, 0))
	be.PutUint16(dst[at+2:], uint16(len(dst)-at-4))
	return dst
}

func textItem(dst []byte, typ byte, s string) []byte {
	return item(dst, typ, func(b []byte) []byte { return append(b, s...) })
}

// pdu appends a PDU whose body is written by fill.
func pdu(dst []byte, typ byte, fill func([]byte) []byte) []byte {
	at := len(dst)
	dst = fill(append(dst, typ, 0, 0, 0, 0, 0))
	be.PutUint32(dst[at+2:], uint32(len(dst)-at-6))
	return dst
}

// appendRequest encodes an A-ASSOCIATE-RQ.
func appendRequest(dst []byte, r *Request) []byte {
	return pdu(dst, typeRQ, func(b []byte) []byte {
		b = append(b, 0, 1, 0, 0)
		var ae [64]byte
		putTitle(ae[:16], r.CalledAE)
		putTitle(ae[16:32], r.CallingAE)
		b = append(b, ae[:]...)
		b = textItem(b, itemApplicationContext, r.ApplicationContext)
		for _, pc := range r.Contexts {
			b = item(b, itemContextRQ, func(b []byte) []byte {
				b = textItem(append(b, pc.ID, 0, 0, 0), itemAbstractSyntax, pc.AbstractSyntax)
				for _, s := range pc.TransferSyntaxes {
					b = textItem(b, itemTransferSyntax, s)
				}
				return b
			})
		}
		return appendUser(b, &r.User)
	})
}

// appendAccept encodes an A-ASSOCIATE-AC.
func appendAccept(dst []byte, p *acceptPDU) []byte {
	return pdu(dst, typeAC, func(b []byte) []byte {
		b = append(b, 0, 1, 0, 0)
		b = append(b, p.echo[:]...)
		b = textItem(b, itemApplicationContext, p.appCtx)
		for _, c := range p.contexts {
			b = item(b, itemContextAC, func(b []byte) []byte {
				return textItem(append(b, c.ID, 0, c.Result, 0), itemTransferSyntax, c.TransferSyntax)
			})
		}
		return appendUser(b, &p.user)
	})
}

// small PDUs of four body bytes.
func shortPDU(typ, b1, b2, b3 byte) []byte { return []byte{typ, 0, 0, 0, 0, 4, 0, b1, b2, b3} }

func rejectPDU(r *Rejection) []byte       { return shortPDU(typeRJ, r.Result, r.Source, r.Reason) }
func abortPDU(source, reason byte) []byte { return shortPDU(typeAbort, 0, source, reason) }
func releaseRQPDU() []byte                { return shortPDU(typeReleaseRQ, 0, 0, 0) }
func releaseRPPDU() []byte                { return shortPDU(typeReleaseRP, 0, 0, 0) }
