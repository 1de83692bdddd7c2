package main

import "osteon/erasure/plant"

// table has a row for every planted bug; TestEveryBugHasARow holds it against the package.
var table = []row{
	{plant.AckBeforeFsync, "erasure/journal", "^TestCrash$|^TestSlowSync$"},
	{plant.FsyncErrorIgnored, "erasure/journal", "^TestFence$"},
	{plant.SegmentNameNotSynced, "erasure/journal", "^TestCrash$"},
	{plant.NonceReused, "erasure/journal", "^TestEqualObjectsDifferOnDisk$"},
	{plant.DamageTakenForTear, "erasure/journal", "^TestFlips$"},
	{plant.PartnerNotAwaited, "erasure", "^TestAppend$"},
	{plant.SpoolNotMarked, "erasure", "^TestAppend$"},
	{plant.FullDiskIgnored, "dicomsvc", "^TestFullDiskRefusesBeforeBytesAreTaken$"},
	{plant.ShardNotSynced, "erasure/shard", "^TestCrash$"},
	{plant.ShardNameNotSynced, "erasure/shard", "^TestCrash$"},
	{plant.BlockSumSkipped, "erasure/shard", "^TestEveryFlippedByteIsFound$|^TestMisplacedBytesAreFound$"},
	{plant.GenerationIgnored, "raft/local", "^TestHolderIndexOverEncryptedDisk$"},
	{plant.ProofSkipped, "erasure", "^TestProofFindsAFlippedBit$"},
	{plant.ProofOfDataOnly, "erasure", "^TestProofFindsAFlippedBit$"},
	{plant.RootNotCompared, "erasure", "^TestEncodeRootMismatch$"},
	{plant.DigestNotCompared, "dicomsvc", "^TestDigestIsCompared$"},
	{plant.SealDigestNotCompared, "dicomsvc", "^TestDigestIsCompared$"},
	{plant.JournalFreedEarly, "dicomsvc", "^TestSealWithoutQuorumAtTheEnd$"},
	{plant.EncodeCollectedEarly, "dicomsvc", "^TestSealWithoutQuorumAtTheEnd$"},
	{plant.ReplayForgotten, "dicomsvc", "^TestReadsAndStoresWithoutQuorum$"},
	{plant.AddedTwice, "raft/catalog", "^TestAddIsIdempotent$|^TestSearchModel$"},
	{plant.LaterVersionServed, "raft/catalog", "^TestFirstVersionIsServed$"},
	{plant.AbortedSealAccepted, "raft/catalog", "^TestSealRefusals$"},
	{plant.TokenReused, "raft/catalog", "^TestTokensNodesSettings$"},
	{plant.StaleMark, "raft/ring", "^TestDamagedWAL$|^TestMarkTorn$"},
	{plant.MarkNotLowered, "raft/ring", "^TestCrash$"},
	{plant.RecordHashSkipped, "raft/ring", "^TestBits$"},
	{plant.SnapshotNotVerified, "raft/ring", "^TestF41DamagedSnapshot$"},
	{plant.PeerNotChecked, "node/link", "^TestIdentityRefusals$"},
}
