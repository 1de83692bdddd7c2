package pixel

import "errors"

var (
	// ErrUnsupportedSyntax says that pixel data are encoded in a way that is not decoded here.
	ErrUnsupportedSyntax = errors.New("pixel data in this transfer syntax are not decoded here")
	// ErrNoImage says that a data set describes no frames of pixels.
	ErrNoImage = errors.New("no image")
	// ErrMalformed says that the bytes of a frame, or the attributes that describe it, contradict themselves or each other.
	ErrMalformed = errors.New("malformed pixel data")
	// ErrLimit says that a frame is larger than what is decoded.
	ErrLimit = errors.New("pixel data beyond the limits")
)
