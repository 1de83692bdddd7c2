package refusal

import "time"

const (
	// eventsMax bounds the record: some 400 bytes each, so half a MiB.
	eventsMax = 1024
	// perSourceMax bounds the events of one address; further ones from there share one event a
	// code, so that a caller who makes up a title for each call has little more than that.
	perSourceMax = 48
	// spanMax is how long repetitions are counted into one event; then another begins, so that the record
	// tells when a fault that lasts was seen.
	spanMax = time.Hour
	// textBytesMax bounds each text of an event; a title has 16 bytes, four times that when all are quoted.
	textBytesMax = 240
	// titleBytesMax bounds a quoted title.
	titleBytesMax = 64
	// stackDepthMax bounds the calls that are logged of a panic.
	stackDepthMax = 32
)
