package scp

import "time"

const (
	// pendingEvery is how often a C-MOVE or C-GET says that it is still at work: clients give up after 30 s
	// of silence.
	pendingEvery = 2 * time.Second
	// connectMax bounds the connection to a C-MOVE destination.
	connectMax = 15 * time.Second
	// responseMax is how long a C-MOVE destination may take to answer one C-STORE; after that it is given up,
	// so that pending responses do not go on for ever.
	responseMax = 60 * time.Second
	// cancelGrace is how long the sub-operation under way may go on after a C-CANCEL.
	cancelGrace = 5 * time.Second
	// queueMax is how long a C-MOVE waits for its turn at a destination.
	queueMax = 5 * time.Minute
	// destinationMax bounds the associations open to one C-MOVE destination: small archives and viewers take
	// few, and refuse the rest.
	destinationMax = 4
	// fruitlessMax bounds the associations in a row that a destination ends before it stored anything.
	fruitlessMax = 3

	// contextsMax is what one association can propose (PS3.8 §9.3.2.2: odd IDs of one byte).
	contextsMax = 128
	// retrieveMax bounds the instances of one retrieve request, which are listed, at about 100 bytes each,
	// before the first is sent.
	retrieveMax = 1 << 20
	// resolveBatch is how many of them are looked up again at a time when their turn comes.
	resolveBatch = 64
	// wholeBytesMax is the largest object that is read and checked whole before its C-STORE begins, so that
	// one which cannot be read costs a sub-operation and not the association.
	wholeBytesMax = 1 << 20

	// commentMax is the length of an Error Comment (0000,0902), VR LO.
	commentMax = 64
)

// waits are the times above; tests shorten them.
type waits struct {
	pending, connect, response, cancel, queue time.Duration
	linger                                    time.Duration // for a destination to close; 0: the default of package dul
}

func defaultWaits() waits {
	return waits{pending: pendingEvery, connect: connectMax, response: responseMax, cancel: cancelGrace, queue: queueMax}
}
