package ring

import "time"

// Limits of what comes from other nodes or from disk.
const (
	// CommandBytesMax is the largest command that Propose takes. The catalog groups its records into
	// commands of 256 KiB; a single record with long attributes may be larger, never this large.
	CommandBytesMax = 1 << 20

	// replyBytesMax bounds the answer of a leader to a forwarded request. Results are a few bytes for
	// each record of a command.
	replyBytesMax = 1 << 20

	// recordBytesMax bounds a record of the log read back: a command, a configuration of a very large
	// ring, and the frame around them.
	recordBytesMax = CommandBytesMax + 1<<16

	// metaBytesMax bounds the description of a snapshot: about 40,000 files at a hundred bytes each,
	// a state of several terabytes.
	metaBytesMax = 4 << 20

	// snapshotFilesMax and fileNameMax bound what a snapshot may list.
	snapshotFilesMax = 1 << 16
	fileNameMax      = 128

	// configurationBytesMax bounds the membership kept in a snapshot's description: thousands of servers.
	configurationBytesMax = 1 << 20

	// candidateBytesMax bounds the name of a server in a vote: UUID, '#' and a 64-bit number need 57.
	candidateBytesMax = 96
)

// Limits of our own doing.
const (
	// tailBytesMax is how much of the log's end is kept in memory, so that entries just written are not
	// read back and authenticated again to be applied and sent to followers.
	tailBytesMax   = 16 << 20
	tailEntriesMax = 4096

	// stallSteps is in how many steps the time of a write is counted.
	stallSteps = 5
	// forwardsMax is how many requests of other nodes the leader works on at once; more wait in the
	// stream, which is the back-pressure.
	forwardsMax = 1024

	// acceptBacklog is how many inbound Raft streams may wait for the library to take them.
	acceptBacklog = 16

	// poolPerPeer is how many idle Raft streams are kept to a peer: heartbeat, replication, votes.
	poolPerPeer = 3

	// promoteLagMax is how many entries a non-voter may be behind and still be made a voter. A voter far
	// behind counts for the quorum without being able to help it.
	promoteLagMax = 4096

	// retryFirst and retryMax space the attempts of a proposal that found no leader.
	retryFirst = 10 * time.Millisecond
	retryMax   = 250 * time.Millisecond

	// attemptTime bounds one attempt at the leader: a leader that hears nothing from us but whose
	// heartbeats arrive (a one-way cut) must not hold a proposal for ever.
	attemptTime = 5 * time.Second

	// damagePause slows a compaction that comes upon damage: Pebble tries it again at once, until the log is closed.
	damagePause = 100 * time.Millisecond

	// probeTime bounds asking a node how far it has come.
	probeTime = 2 * time.Second
)

// Standards for zero fields of Config.
const (
	heartbeatStandard       = 500 * time.Millisecond
	commitWaitStandard      = 20 * time.Millisecond
	rpcTimeoutStandard      = 5 * time.Second
	diskStallStandard       = 5 * time.Second
	appendEntriesStandard   = 256
	snapshotEntriesStandard = 200_000
	snapshotBytesStandard   = 1 << 30
	trailingEntriesStandard = 100_000
	trailingBytesStandard   = 512 << 20
	snapshotCheckStandard   = 10 * time.Second

	// memTableBytes is how much of the log Pebble keeps in memory before it writes a table.
	memTableBytes = 16 << 20
	// blockCacheBytes is small: the tail is cached above, and old entries are read in order.
	blockCacheBytes = 4 << 20
)
