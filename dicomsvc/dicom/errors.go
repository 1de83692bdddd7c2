package dicom

import (
	"errors"
	"fmt"
)

// Kinds of failure; every error about the bytes of a data set wraps one of them.
var (
	// ErrTruncated: the stream ended inside an element or inside something of declared length.
	ErrTruncated = errors.New("data set is truncated")
	// ErrLimit: a bound of Limits was passed.
	ErrLimit = errors.New("data set exceeds a limit")
	// ErrMalformed: the bytes are no data set in the transfer syntax given.
	ErrMalformed = errors.New("data set is malformed")
	// ErrNotDICOM: the file has neither a DICM prefix nor anything like a data set.
	ErrNotDICOM = errors.New("not a DICOM file")
	// ErrNotLoaded: an element's value was left in the stream (Bulk) and cannot be encoded.
	ErrNotLoaded = errors.New("value is not in memory")
	// ErrMissing: an attribute that an instance must have is absent or empty.
	ErrMissing = errors.New("required attribute is missing")
	// ErrBadUID: an identifying UID breaks PS3.5 9.1.
	ErrBadUID = errors.New("UID is not valid")
	// ErrCharset: text cannot be written in the character set asked for.
	ErrCharset = errors.New("text does not fit the character set")
)

// ParseError says where decoding failed. It names tag and offset and never holds a value.
type ParseError struct {
	Kind   error // one of the sentinels above
	Tag    Tag   // the element at fault, 0 when none was read yet
	Offset int64 // bytes from the start of the data set; of the inflated stream when deflated
	What   string
	Cause  error // nil unless another reader failed
}

// Error returns kind, place and reason.
func (e *ParseError) Error() string {
	s := fmt.Sprintf("%v: %s at offset %d", e.Kind, e.What, e.Offset)
	if e.Tag != 0 {
		s = fmt.Sprintf("%v: element %v: %s at offset %d", e.Kind, e.Tag, e.What, e.Offset)
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the kind and the cause.
func (e *ParseError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// AttributeError says which attribute of an instance is at fault, without its value.
type AttributeError struct {
	Kind error // ErrMissing or ErrBadUID
	Tag  Tag
}

// Error returns kind, tag and keyword.
func (e *AttributeError) Error() string {
	return fmt.Sprintf("%v: %s %s", e.Kind, e.Tag, e.Tag.Keyword())
}

// Unwrap returns the kind.
func (e *AttributeError) Unwrap() error { return e.Kind }
