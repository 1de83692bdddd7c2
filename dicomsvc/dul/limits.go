package dul

import "time"

const (
	// AdvertisedPDU is the maximum length we announce: large enough that PDU
	// headers cost nothing, small enough that a thousand associations fit.
	AdvertisedPDU = 128 << 10

	// pduBytesMax bounds every PDU received. Twice what we announce, because
	// some peers count the headers differently.
	pduBytesMax = 256 << 10

	// sendBytesMax is the largest single write of presentation data.
	sendBytesMax = 128 << 10

	// peerPDUMin is the smallest maximum length a peer may announce. Below it a
	// data set costs more in headers than in data.
	peerPDUMin = 128

	// contextsMax is the number of odd presentation context ids.
	contextsMax = 128

	// syntaxesMax bounds the transfer syntaxes of one proposed context. There
	// are about sixty in PS3.6, retired and video ones included.
	syntaxesMax = 256

	// uidBytesMax is the longest UID of PS3.5 §9.1, with room for one pad byte.
	uidBytesMax = 65

	// subItemsMax bounds the user information sub-items: three for each of the
	// contexts and some more.
	subItemsMax = 1024

	// itemBytesMax is the largest item value: its length field has 16 bits.
	itemBytesMax = 1<<16 - 1

	// identityBytesMax bounds each field of a user identity: tokens and
	// assertions are a few KiB.
	identityBytesMax = 60 << 10

	// readBufferBytes lets one read bring several small PDUs; larger ones
	// bypass the buffer.
	readBufferBytes = 32 << 10

	// progressBytesPerSecond is the slowest peer we wait for inside a PDU.
	progressBytesPerSecond = 1 << 10
)

// Default timers.
const (
	defaultARTIM    = 30 * time.Second
	defaultLinger   = 5 * time.Second
	defaultIdle     = 120 * time.Second
	defaultWindow   = 10 * time.Second
	defaultWrite    = 60 * time.Second
	keepAliveIdle   = 15 * time.Second // first probe; with the next two: a vanished peer is noticed after 45 s
	keepAliveStep   = 10 * time.Second
	keepAliveProbes = 3
	abortWait       = 250 * time.Millisecond // for a write under way to end before an abort
	unackedMax      = 45 * time.Second       // sent data nobody acknowledges
)
