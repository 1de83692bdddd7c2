package main

import "osteon/erasure/plant"

// table has a row for every planted bug; TestEveryBugHasARow holds it against the package.
var table = []row{
	{plant.AckBeforeFsync, "erasure/journal", "."},
	{plant.FsyncErrorIgnored, "erasure/journal", "."},
	{plant.SegmentNameNotSynced, "erasure/journal", "."},
	{plant.NonceReused, "erasure/journal", "."},
	{plant.DamageTakenForTear, "erasure/journal", "."},
	{plant.PartnerNotAwaited, "erasure", "."},
	{plant.SpoolNotMarked, "erasure", "."},
	{plant.FullDiskIgnored, "erasure", "."},
	{plant.ShardNotSynced, "erasure/shard", "."},
	{plant.ShardNameNotSynced, "erasure/shard", "."},
	{plant.BlockSumSkipped, "erasure/shard", "."},
	{plant.GenerationIgnored, "raft/local", "."},
	{plant.ProofSkipped, "erasure", "."},
	{plant.ProofOfDataOnly, "erasure", "."},
	{plant.RootNotCompared, "erasure", "."},
	{plant.DigestNotCompared, "dicomsvc", "."},
	{plant.SealDigestNotCompared, "dicomsvc", "."},
	{plant.JournalFreedEarly, "dicomsvc", "."},
	{plant.EncodeCollectedEarly, "dicomsvc", "."},
	{plant.ReplayForgotten, "dicomsvc", "."},
	{plant.AddedTwice, "raft/catalog", "."},
	{plant.LaterVersionServed, "raft/catalog", "."},
	{plant.AbortedSealAccepted, "raft/catalog", "."},
	{plant.TokenReused, "raft/catalog", "."},
	{plant.StaleMark, "raft/ring", "."},
	{plant.MarkNotLowered, "raft/ring", "."},
	{plant.RecordHashSkipped, "raft/ring", "."},
	{plant.SnapshotNotVerified, "raft/ring", "."},
	{plant.PeerNotChecked, "node/link", "."},
}
