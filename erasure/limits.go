package erasure

import "time"

const (
	// partnerChunkBytes is how much of an object travels to a partner in one frame: large enough that
	// framing and wake-ups cost nothing beside the copy, small enough that a slow partner holds little.
	partnerChunkBytes = 128 << 10
	// frameHeadBuffer is read ahead of a peer's frames: enough for a head and a small payload. What is larger goes straight to where
	// it belongs; a buffer of a chunk's size would copy half of it once more.
	frameHeadBuffer = 4 << 10
	// partnerQueueChunks bounds what waits for a partner: 1 MiB an association.
	partnerQueueChunks = 8
	// noteBytesMax bounds the note that travels with a commit; the journal's own limit is the same.
	noteBytesMax = 256 << 10
	// partnerIdleStreamsMax bounds the streams kept open to one peer for the next object.
	partnerIdleStreamsMax = 16
	// suspectFor is how long a peer that failed or stalled is asked last: a little longer than gossip
	// takes to notice that it is gone.
	suspectFor = 5 * time.Second
	// answerShare is the part of Ack.Wait that is left for the answer itself: a sender hears within Ack.Wait.
	answerShare = 20
	// localCommitMax bounds the wait for this node's own disk; beyond it the sender is told to retry (P2:
	// no single fault delays a response by more than 5 s, the wait for a partner included).
	localCommitMax = 3 * time.Second
	// freeReservePercent of the disk is left to seals, the catalog and the log: below it the node takes no
	// instances.
	freeReservePercent = 5
	// freeAskEvery is how often the file system is asked for its free space at most.
	freeAskEvery = time.Second
	// appendIdle bounds the silence of a sender in the middle of an object at the receiving holder.
	appendIdle = 30 * time.Second
	// answerSoon is how long a reader waits for the answer of one holder while there is another: a dead one is
	// not known to be dead for a second or two.
	answerSoon = 500 * time.Millisecond
	// shardCommitMax bounds the wait for a holder that syncs a shard and reads it again: 1 GiB on a slow disk.
	shardCommitMax = 2 * time.Minute
	// readIdle bounds the wait for the next bytes of a remote read before another holder is tried.
	readIdle = 5 * time.Second
	// remoteTextMax bounds an error text that a peer sends.
	remoteTextMax = 1 << 10
)
