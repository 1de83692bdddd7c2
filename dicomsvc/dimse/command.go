package dimse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Command fields, PS3.7 §E.1. A response has the top bit set.
const (
	CStoreRQ  uint16 = 0x0001
	CGetRQ    uint16 = 0x0010
	CFindRQ   uint16 = 0x0020
	CMoveRQ   uint16 = 0x0021
	CEchoRQ   uint16 = 0x0030
	NEventRQ  uint16 = 0x0100
	NGetRQ    uint16 = 0x0110
	NSetRQ    uint16 = 0x0120
	NActionRQ uint16 = 0x0130
	NCreateRQ uint16 = 0x0140
	NDeleteRQ uint16 = 0x0150
	CCancelRQ uint16 = 0x0FFF

	responseBit uint16 = 0x8000
)

// ErrCommand wraps every fault of a command set.
var ErrCommand = errors.New("malformed command set")

// Priorities, PS3.7 §9.1.1.
const (
	PriorityMedium uint16 = 0
	PriorityHigh   uint16 = 1
	PriorityLow    uint16 = 2
)

const noDataSet uint16 = 0x0101

// Counters are the numbers of sub-operations of a C-MOVE or C-GET response.
type Counters struct {
	// Remaining is sent with pending and cancelled responses only.
	Remaining, Completed, Failed, Warning int
}

// Command is a command set. Which fields are encoded follows from Field:
// message IDs, Priority in C- requests, Status in responses and type IDs
// always; other fields when they are not zero.
type Command struct {
	Field       uint16
	MessageID   uint16 // of a request
	RespondedTo uint16 // of a response or a cancel
	Priority    uint16
	Status      uint16
	HasData     bool

	AffectedClass, AffectedInstance   string
	RequestedClass, RequestedInstance string

	MoveDestination       string
	MoveOriginator        string // AE title; with MoveOriginatorID
	MoveOriginatorID      uint16
	EventType, ActionType uint16
	AttributeIDs          []uint32 // tags
	OffendingElements     []uint32 // tags
	ErrorComment          string   // at most 64 bytes are sent
	ErrorID               uint16
	// Counters is nil where the response has none.
	Counters *Counters
}

// IsResponse reports whether the command answers another.
func (c *Command) IsResponse() bool { return c.Field&responseBit != 0 }

// Elements of group 0000, PS3.7 §E.1.
const (
	elGroupLength       = 0x0000
	elAffectedClass     = 0x0002
	elRequestedClass    = 0x0003
	elField             = 0x0100
	elMessageID         = 0x0110
	elRespondedTo       = 0x0120
	elMoveDestination   = 0x0600
	elPriority          = 0x0700
	elDataSetType       = 0x0800
	elStatus            = 0x0900
	elOffending         = 0x0901
	elErrorComment      = 0x0902
	elErrorID           = 0x0903
	elAffectedInstance  = 0x1000
	elRequestedInstance = 0x1001
	elEventType         = 0x1002
	elAttributeIDs      = 0x1005
	elActionType        = 0x1008
	elRemaining         = 0x1020
	elCompleted         = 0x1021
	elFailed            = 0x1022
	elWarning           = 0x1023
	elMoveOriginator    = 0x1030
	elMoveOriginatorID  = 0x1031
)

var le = binary.LittleEndian

// builder appends elements in ascending order.
type builder struct{ b []byte }

func (w *builder) header(el uint16, n int) {
	w.b = le.AppendUint16(w.b, 0)
	w.b = le.AppendUint16(w.b, el)
	w.b = le.AppendUint32(w.b, uint32(n))
}

func (w *builder) us(el, v uint16) {
	w.header(el, 2)
	w.b = le.AppendUint16(w.b, v)
}

func (w *builder) text(el uint16, s string, pad byte) {
	if s == "" {
		return
	}
	w.header(el, len(s)+len(s)%2)
	w.b = append(w.b, s...)
	if len(s)%2 != 0 {
		w.b = append(w.b, pad)
	}
}

func (w *builder) tags(el uint16, tags []uint32) {
	if len(tags) == 0 {
		return
	}
	w.header(el, 4*len(tags))
	for _, t := range tags {
		w.b = le.AppendUint16(le.AppendUint16(w.b, uint16(t>>16)), uint16(t))
	}
}

// Append encodes the command set, group length included.
func (c *Command) Append(dst []byte) []byte {
	at := len(dst)
	w := builder{dst}
	w.header(elGroupLength, 4)
	w.b = le.AppendUint32(w.b, 0)
	w.text(elAffectedClass, c.AffectedClass, 0)
	w.text(elRequestedClass, c.RequestedClass, 0)
	w.us(elField, c.Field)
	answers := c.IsResponse() || c.Field == CCancelRQ
	if answers {
		w.us(elRespondedTo, c.RespondedTo)
	} else {
		w.us(elMessageID, c.MessageID)
	}
	w.text(elMoveDestination, c.MoveDestination, ' ')
	switch c.Field {
	case CStoreRQ, CFindRQ, CGetRQ, CMoveRQ:
		w.us(elPriority, c.Priority)
	}
	if c.HasData {
		w.us(elDataSetType, 1)
	} else {
		w.us(elDataSetType, noDataSet)
	}
	if c.IsResponse() {
		c.appendOutcome(&w)
	}
	c.appendTail(&w)
	le.PutUint32(w.b[at+8:], uint32(len(w.b)-at-12))
	return w.b
}

func (c *Command) appendOutcome(w *builder) {
	w.us(elStatus, c.Status)
	w.tags(elOffending, c.OffendingElements)
	w.text(elErrorComment, cut(c.ErrorComment, commentBytesMax), ' ')
	if c.ErrorID != 0 {
		w.us(elErrorID, c.ErrorID)
	}
}

func (c *Command) appendTail(w *builder) {
	w.text(elAffectedInstance, c.AffectedInstance, 0)
	w.text(elRequestedInstance, c.RequestedInstance, 0)
	if c.Field == NEventRQ || c.EventType != 0 {
		w.us(elEventType, c.EventType)
	}
	w.tags(elAttributeIDs, c.AttributeIDs)
	if c.Field == NActionRQ || c.ActionType != 0 {
		w.us(elActionType, c.ActionType)
	}
	if n := c.Counters; n != nil {
		if IsPending(c.Status) || c.Status == StatusCancel {
			w.us(elRemaining, clamp(n.Remaining))
		}
		w.us(elCompleted, clamp(n.Completed))
		w.us(elFailed, clamp(n.Failed))
		w.us(elWarning, clamp(n.Warning))
	}
	if c.MoveOriginator != "" {
		w.text(elMoveOriginator, c.MoveOriginator, ' ')
		w.us(elMoveOriginatorID, c.MoveOriginatorID)
	}
}

// clamp fits a counter into the 16 bits its element has.
func clamp(n int) uint16 { return uint16(min(max(n, 0), 0xFFFF)) }

// cut shortens s to n bytes without splitting a UTF-8 character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCommand}, args...)...)
}

// DecodeCommand decodes a command set. It is strict where a reader could be
// led astray (order, lengths, repeated or foreign elements, a missing Command
// Field or Data Set Type) and ignores the group length, which the PDV headers
// make redundant and some senders get wrong. Retired and unknown elements of
// group 0000 are skipped. Errors wrap ErrCommand.
func DecodeCommand(b []byte) (*Command, error) {
	c := &Command{}
	d := decoder{c: c}
	last := -1
	for off := 0; len(b) > off; {
		rest := b[off:]
		if len(rest) < 8 {
			return nil, bad("element header cut at offset %d", off)
		}
		group, el, n := le.Uint16(rest), le.Uint16(rest[2:]), le.Uint32(rest[4:])
		switch {
		case group != 0:
			return nil, bad("element of group %04X at offset %d", group, off)
		case int(el) <= last:
			return nil, bad("element (0000,%04X) out of order at offset %d", el, off)
		case uint64(n) > uint64(len(rest)-8):
			return nil, bad("element (0000,%04X) of %d bytes in %d", el, n, len(rest)-8)
		}
		if err := d.element(el, rest[8:8+n]); err != nil {
			return nil, err
		}
		last, off = int(el), off+8+int(n)
	}
	if !d.field || !d.dataSetType {
		return nil, bad("no Command Field or no Command Data Set Type")
	}
	return c, nil
}

type decoder struct {
	c                  *Command
	field, dataSetType bool
}

func (d *decoder) counters() *Counters {
	if d.c.Counters == nil {
		d.c.Counters = &Counters{}
	}
	return d.c.Counters
}

func (d *decoder) element(el uint16, v []byte) error {
	c := d.c
	if us := d.short(el); us != nil {
		if len(v) != 2 {
			if len(v) == 0 && el != elField && el != elDataSetType {
				return nil
			}
			return bad("element (0000,%04X) of %d bytes, want 2", el, len(v))
		}
		*us = le.Uint16(v)
	}
	switch el {
	case elField:
		d.field = true
	case elDataSetType:
		d.dataSetType = true
		c.HasData = le.Uint16(v) != noDataSet
	case elRemaining:
		d.counters().Remaining = int(us16(v))
	case elCompleted:
		d.counters().Completed = int(us16(v))
	case elFailed:
		d.counters().Failed = int(us16(v))
	case elWarning:
		d.counters().Warning = int(us16(v))
	case elAffectedClass:
		c.AffectedClass = text(v)
	case elRequestedClass:
		c.RequestedClass = text(v)
	case elAffectedInstance:
		c.AffectedInstance = text(v)
	case elRequestedInstance:
		c.RequestedInstance = text(v)
	case elMoveDestination:
		c.MoveDestination = text(v)
	case elMoveOriginator:
		c.MoveOriginator = text(v)
	case elErrorComment:
		c.ErrorComment = text(v)
	case elOffending:
		return tagList(&c.OffendingElements, v)
	case elAttributeIDs:
		return tagList(&c.AttributeIDs, v)
	}
	return nil
}

// short returns where a 16-bit element goes, nil for others.
func (d *decoder) short(el uint16) *uint16 {
	var scratch uint16
	switch el {
	case elField:
		return &d.c.Field
	case elMessageID:
		return &d.c.MessageID
	case elRespondedTo:
		return &d.c.RespondedTo
	case elPriority:
		return &d.c.Priority
	case elStatus:
		return &d.c.Status
	case elErrorID:
		return &d.c.ErrorID
	case elEventType:
		return &d.c.EventType
	case elActionType:
		return &d.c.ActionType
	case elMoveOriginatorID:
		return &d.c.MoveOriginatorID
	case elDataSetType, elRemaining, elCompleted, elFailed, elWarning:
		return &scratch
	}
	return nil
}

func us16(v []byte) uint16 {
	if len(v) != 2 {
		return 0
	}
	return le.Uint16(v)
}

func text(v []byte) string { return strings.Trim(string(v), " \x00") }

func tagList(dst *[]uint32, v []byte) error {
	if len(v)%4 != 0 {
		return bad("tag list of %d bytes", len(v))
	}
	for ; len(v) > 0; v = v[4:] {
		*dst = append(*dst, uint32(le.Uint16(v))<<16|uint32(le.Uint16(v[2:])))
	}
	return nil
}
