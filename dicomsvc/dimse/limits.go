package dimse

import "time"

const (
	// commandBytesMax bounds a command set. The longest have a few hundred
	// bytes; an Attribute Identifier List may add some.
	commandBytesMax = 64 << 10

	// identifierBytesMax bounds the identifier of a query and the data set of an
	// N- service, which are held in memory.
	identifierBytesMax = 4 << 20

	// operationsMax is how many C-FIND, C-MOVE and C-GET run at once on one
	// association, or as many as its window has if that is more.
	operationsMax = 4

	// windowDefault is the asynchronous operations window: with eight stores
	// under way the wait for two fsyncs is hidden behind the next data sets.
	// windowMax bounds it, whatever a configuration says.
	windowDefault = 8
	windowMax     = 64

	// overlapDefault is how many stores may run beside others of their
	// association: each may hold the header of its object in memory.
	overlapDefault = 256

	// failedUIDsMax bounds the Failed SOP Instance UID List: in Explicit VR its
	// length field has 16 bits.
	failedUIDsMax = 65534 / 65

	// commentBytesMax is the length of an Error Comment (VR LO).
	commentBytesMax = 64

	associationsDefault = 200
	perAEDefault        = 64
	perHostDefault      = 128
	reservePercent      = 5

	// Connections whose request has not arrived yet, in all and of one host.
	// When all places are taken the one that waits longest makes room: a real
	// modality sends its request at once.
	lobbyDefault        = 256
	lobbyPerHostDefault = 64

	// Connections of one address that came to nothing, before further ones are closed at once, and how many of
	// them are forgotten a second: more than a modality with a wrong title in its settings makes, little beside
	// what a flood makes.
	fruitlessDefault  = 200
	fruitlessForgiven = 20
	// throttledMax bounds the addresses that are counted, trustedMax those at which a known caller was let in.
	throttledMax = 4096
	trustedMax   = 4096

	forgiveEvery       = time.Second
	responseDefault    = 60 * time.Second
	graceDefault       = 30 * time.Second
	drainIdleMax       = time.Second // without a request on a draining association: longer than senders pause between two
	cancelGraceDefault = 10 * time.Second
	acceptPauseMin     = 5 * time.Millisecond
	acceptPauseMax     = time.Second
)
