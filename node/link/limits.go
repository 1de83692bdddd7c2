package link

import "time"

// Limits of the mesh. Each is a bound on what one peer, or one outsider, can make this node hold or wait for.
const (
	// CallBytesMax bounds a request or a response of Call: the largest is a batch of catalog commands.
	CallBytesMax = 16 << 20
	// DatagramBytesMax bounds SendDatagram: it fits a QUIC packet of 1200 bytes, the least that a path must carry.
	DatagramBytesMax = 1100
	// JoinRequestBytesMax bounds what a node without a certificate may send: a token and a signing request.
	JoinRequestBytesMax = 64 << 10
	// JoinResponseBytesMax bounds the answer to it: a certificate, the key bundle and the addresses of the ring.
	JoinResponseBytesMax = 1 << 20
	// SiteBytesMax bounds a site's name, which travels in every certificate and gossip record.
	SiteBytesMax = 64
	// BulkConnsMax bounds Config.BulkConns: one connection is one goroutine of sending, and more than the
	// cores of a common machine bring nothing.
	BulkConnsMax = 4

	streamsIncomingMax  = 1024             // streams a peer may hold open on one connection; each costs a goroutine
	peerConnsMax        = 8                // accepted connections of one peer and class; the oldest is closed beyond it
	joinsMax            = 4                // outsiders served at once
	handshakesVerifyMin = 32               // unfinished handshakes from which on a caller must prove its address first
	handshakesMax       = 256              // unfinished handshakes from which on callers are refused
	errorTextBytesMax   = 4 << 10          // text of a remote error
	refusalTextBytesMax = 512              // reason in a closed connection; must fit one packet
	inboundBytesMax     = 64 << 20         // requests of more than largeCallBytes held at once, over all peers
	largeCallBytes      = 64 << 10         // requests up to this size are not counted against inboundBytesMax
	readStepBytes       = 64 << 10         // first allocation for a message of unknown truth; doubled as bytes arrive
	datagramQueue       = 64               // datagrams waiting for one connection; more are dropped, as a network would
	datagramPending     = 16               // datagrams kept while the first connection to a peer is dialled
	joinTime            = 30 * time.Second // an outsider's whole visit: it waits for a Raft commit at most

	dialTime       = 2 * time.Second        // handshake and hello; three round trips of the slowest WAN and some loss
	helloTime      = 3 * time.Second        // the same seen from the accepting side
	kindTime       = 5 * time.Second        // from a stream's first sign to its kind byte
	requestTime    = 30 * time.Second       // from a call's kind byte to the end of its request
	handlerGrace   = time.Second            // after Open, a stream of a kind nobody handles yet waits this long
	backoffFirst   = 250 * time.Millisecond // after one failed dial
	backoffMax     = 2 * time.Second        // after many
	idleControl    = 5 * time.Second        // a silent peer's control connection is closed after this
	idleBulk       = 15 * time.Second       // the same for bulk and raft connections, which have timeouts of their own
	keepAlive      = 5 * time.Second        // at most; halved idle time where that is less
	keepAliveClose = 1500 * time.Millisecond

	lineChunkBytes   = 256<<10 + 256          // of a large write in one frame of a line, and in one system call: a shard's cell and its head
	lineBufferBytes  = lineChunkBytes + 8<<10 // the same encrypted, its heads included
	lineBytesMax     = 64 << 30               // after which a line is not used again: AES-GCM under one key has its limits (RFC 8446 §5.5)
	lineDataBytesMax = 1 << 20                // bytes of a frame that are taken; its reader holds none of them
	linesPeerMax     = 64                     // lines that each side dials to one peer; more streams at once go over QUIC, or wait where TCP alone is allowed
	lineDialsMax     = 4                      // attempts at once to dial a line to one peer; the handshakes of more would slow each other down
	linesIdleMax     = 16                     // lines to one peer that rest between two streams
	lineIdleTime     = 30 * time.Second       // after which a resting line is closed
	lineSoon         = 5 * time.Millisecond   // last frames that the network does not take at once are sent in the background
	lineCloseTime    = 2 * time.Second        // for the rest of a closed stream to go out and the peer's to end
	linePatience     = 500 * time.Millisecond // wait for a new line before QUIC is taken: three round trips of the slowest WAN
	lineRestMax      = 30 * time.Second       // between attempts to dial a line where none comes about
	lineDropBytesMax = 32 << 20               // that a peer may have sent before it heard that its stream was closed
	lineAddressMax   = 64                     // unfinished handshakes from one address
	lineAcceptPause  = 50 * time.Millisecond  // after a failed accept: the process may be out of descriptors
	lineSilence      = 15 * time.Second       // unanswered by a peer's kernel, a line is broken; idleBulk of QUIC

	windowStreamInitial = 2 << 20
	windowStreamMax     = 8 << 20
	windowConnMax       = 24 << 20
	writeCoalesce       = 4 << 10 // a first write up to this size travels with its kind byte
)
