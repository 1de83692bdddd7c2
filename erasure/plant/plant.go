// Package plant has the bugs that tests must catch. A harness is worth what it finds: each Bug is a mistake that
// somebody could make in the place that asks for it, and `make planted` shows for each that a test goes red.
//
// Without the build tag planted, Is is constantly false and the compiler drops what it guards: no binary that anybody
// runs contains a bug or a way to switch one on. With the tag, the linker sets which one is there:
//
//	go test -tags planted -ldflags '-X osteon/erasure/plant.bug=nonce-reused' ./erasure/journal
//
// The table that says which test catches which bug is cmd/planted.
package plant

// Bug names one planted bug.
type Bug string

// The bugs, from the bottom of the store path upwards.
const (
	// AckBeforeFsync: the journal confirms a commit without having synced its segment.
	AckBeforeFsync Bug = "ack-before-fsync"
	// FsyncErrorIgnored: after a failed sync the journal goes on as if it had succeeded.
	FsyncErrorIgnored Bug = "fsync-error-ignored"
	// SegmentNameNotSynced: a new segment's directory entry is not made durable.
	SegmentNameNotSynced Bug = "segment-name-not-synced"
	// NonceReused: every frame of a segment is encrypted under the same nonce.
	NonceReused Bug = "nonce-reused"
	// DamageTakenForTear: a bad record before a good one passes for what a crash leaves.
	DamageTakenForTear Bug = "damage-taken-for-tear"
	// PartnerNotAwaited: a store is acknowledged although the partner has not answered.
	PartnerNotAwaited Bug = "partner-not-awaited"
	// SpoolNotMarked: an instance on one site only is not marked as spooled.
	SpoolNotMarked Bug = "spool-not-marked"
	// FullDiskIgnored: stores are taken below the reserve of free space.
	FullDiskIgnored Bug = "full-disk-ignored"
	// ShardNotSynced: a shard's holder confirms it without an fsync of the file.
	ShardNotSynced Bug = "shard-not-synced"
	// ShardNameNotSynced: a new shard's directory entries are not made durable.
	ShardNameNotSynced Bug = "shard-name-not-synced"
	// BlockSumSkipped: blocks of a shard are not held against their checksums.
	BlockSumSkipped Bug = "block-sum-skipped"
	// GenerationIgnored: a holder serves a shard for an older placement generation.
	GenerationIgnored Bug = "generation-ignored"
	// ProofSkipped: stripes are not decoded from other cells before they are let go.
	ProofSkipped Bug = "proof-skipped"
	// ProofOfDataOnly: that proof never uses parity.
	ProofOfDataOnly Bug = "proof-of-data-only"
	// RootNotCompared: the sealer does not compare the root that a holder read back.
	RootNotCompared Bug = "root-not-compared"
	// DigestNotCompared: a whole object leaves without its SHA-256 being compared.
	DigestNotCompared Bug = "digest-not-compared"
	// SealDigestNotCompared: an object is sealed without its SHA-256 being compared.
	SealDigestNotCompared Bug = "seal-digest-not-compared"
	// JournalFreedEarly: journal records go before the Seal is applied.
	JournalFreedEarly Bug = "journal-freed-early"
	// EncodeCollectedEarly: shards of an encode go before the catalog calls it aborted.
	EncodeCollectedEarly Bug = "encode-collected-early"
	// ReplayForgotten: what the journal holds unapplied is not offered again after a restart.
	ReplayForgotten Bug = "replay-forgotten"
	// AddedTwice: a version that is known is added again.
	AddedTwice Bug = "added-twice"
	// LaterVersionServed: a further version takes the place of the one that is served.
	LaterVersionServed Bug = "later-version-served"
	// AbortedSealAccepted: a Seal of an aborted encode is accepted.
	AbortedSealAccepted Bug = "aborted-seal-accepted"
	// TokenReused: a join token is good for a second node.
	TokenReused Bug = "token-reused"
	// StaleMark: the Raft log acknowledges entries without moving its mark.
	StaleMark Bug = "stale-mark"
	// MarkNotLowered: a suffix of the Raft log goes before the mark is lowered.
	MarkNotLowered Bug = "mark-not-lowered"
	// RecordHashSkipped: records of the Raft log are not held against their keyed hash.
	RecordHashSkipped Bug = "record-hash-skipped"
	// SnapshotNotVerified: a snapshot is restored unread.
	SnapshotNotVerified Bug = "snapshot-not-verified"
	// PeerNotChecked: whoever has a certificate of the ring passes for any node.
	PeerNotChecked Bug = "peer-not-checked"
)
