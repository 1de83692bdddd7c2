package shard

import "osteon/erasure/place"

const (
	// CellBytesMax bounds a cell, and with it the memory of one stripe to 20 MiB.
	CellBytesMax = 1 << 20
	// BlockBytesMax bounds a block: the least that a range read transfers and checks.
	BlockBytesMax = 64 << 10
	// cellAlign is what the cells of the last, short stripe are rounded up to: a cache line, so that
	// padding is at most 64 bytes a shard and the codec's kernels need no scalar tail.
	cellAlign = 64
	// StreamBytesMax bounds a pack's stream; above any study, below where products of
	// lengths could overflow.
	StreamBytesMax = 1 << 50
	// indexMax bounds a shard number by the widest geometry.
	indexMax = place.ShardsMax - 1
	// quarantinedMax bounds how many copies of one shard quarantine keeps apart; more of them
	// mean a disk that needs replacing, not more evidence.
	quarantinedMax = 100
	// syncEveryBytes starts write-back while a shard is being written, so that the fsync at
	// its end does not wait for all of it.
	syncEveryBytes = 16 << 20
	// verifyBytes is how much of a file Verify and ReadAt take from the disk in one call.
	verifyBytes = 1 << 20
)
