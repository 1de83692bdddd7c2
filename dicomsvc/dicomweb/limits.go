package dicomweb

import "time"

// Limits of the HTTP front end. Every length, count and wait that a peer can influence is bounded here;
// none of them bounds the size of an object, which streams.
const (
	// partsMax bounds the parts of one request or the frames of one response: above any real study sent
	// in one request, below what makes the per-part outcome list a memory problem.
	partsMax = 10_000
	// partHeaderBytesMax bounds the header block of one part. Real ones are about 200 bytes.
	partHeaderBytesMax = 8 << 10
	// preambleBytesMax bounds the text before the first boundary, which RFC 2046 lets a sender write.
	preambleBytesMax = 64 << 10
	// boundaryBytesMax is the limit of RFC 2046 §5.1.1.
	boundaryBytesMax = 70
	// readBufferBytes is the buffer of the multipart reader: big enough for one system call per 64 KiB.
	readBufferBytes = 64 << 10
	// paddingBytesMax bounds the white space that may follow a boundary on its line.
	paddingBytesMax = 64

	// metadataBytesMax bounds the metadata of one store request: those of some 2,000 CT slices.
	metadataBytesMax = 16 << 20
	// heldBytesMax bounds the bulk data that one store request keeps in memory until their instance is complete: a frame of mammography, and
	// the tables and overlays of many. assembliesMax bounds how many requests do so at once.
	heldBytesMax  = 64 << 20
	assembliesMax = 8
	// jpegHeadBytes is how far into a JPEG image its frame header is looked for.
	jpegHeadBytes = 64 << 10

	// drainBytesMax is how much of a refused request is read, so that its sender gets to read the answer: a
	// large image.
	drainBytesMax = 64 << 20

	// urlBytesMax bounds path and query: room for about a thousand UIDs in one list.
	urlBytesMax = 64 << 10
	// queryParametersMax bounds the parameters of one query string.
	queryParametersMax = 512
	// queryValuesMax bounds the UIDs in one list, all parameters together.
	queryValuesMax = 2_000
	// queryDepthMax bounds the dotted path of an attribute: real queries use two.
	queryDepthMax = 8
	// acceptRangesMax bounds the media ranges considered in one request; browsers send about ten.
	acceptRangesMax = 64

	// resultsMax caps an answer over all studies; more must be asked for by offset and limit.
	resultsMax = 10_000
	// resultsInStudyMax caps an answer within one study: whole studies are listed by viewers in one go.
	resultsInStudyMax = 250_000
	// holdBytes is how much of a search answer is held back before the status line is sent, so that small
	// answers get a length, a true Warning and a clean error.
	holdBytes = 256 << 10

	// pathItemMax bounds the item numbers in the path of a bulk data URI.
	pathItemMax = 100_000
	// pathDepthMax bounds the nesting of a bulk data path, as the parser bounds that of sequences.
	pathDepthMax = 64

	// rateBytes and rateWindow are the slowest transfer that is put up with, in either direction: a peer
	// that moves less than rateBytes in a rateWindow is cut off, so that it cannot hold a stream for ever.
	rateBytes  = 30 << 10
	rateWindow = 30 * time.Second

	// lateBytes is how much of a streamed body is held back until the first bytes were read: more than a part
	// header and file meta information, less than any image.
	lateBytes = 8 << 10
	// inlineBytesMax is the longest binary value sent inside metadata; longer ones get a BulkDataURI.
	inlineBytesMax = 1 << 10
	// copyBytes is the buffer through which frames and bulk values are copied.
	copyBytes = 128 << 10
	// tokenBytesMax bounds an Authorization header before it is hashed.
	tokenBytesMax = 4 << 10
	// preflightAge is how long a browser may remember the answer to a preflight request.
	preflightAge = 10 * time.Minute
	// thumbnailSide is the box of a thumbnail for which no viewport is asked.
	thumbnailSide = 128
	// paintersMax bounds the frames that are decoded and rendered at a time, each of which takes up to some 500 MiB.
	paintersMax = 4
	// animationPixelsMax bounds an animated GIF, which is held in memory: 256 frames of 512 x 512.
	animationPixelsMax = 1 << 26
	// retryAfterSeconds is told to a client that was refused for want of resources.
	retryAfterSeconds = 10
	// problemTextMax bounds what is echoed of a request in a problem reply.
	problemTextMax = 64
)
