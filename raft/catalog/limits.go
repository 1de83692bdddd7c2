package catalog

import "time"

const (
	// MaxBatchItems bounds the instances that Do puts into one log entry: a batch applies in a few
	// milliseconds, so that no other entry waits long behind it.
	MaxBatchItems = 256
	// MaxBatchBytes is the size, before compression, at which Do starts another log entry; one
	// command that is larger travels alone.
	MaxBatchBytes = 256 << 10
	// MaxPackVersions bounds the versions that one encode seals, so that SealBegin and Seal stay
	// below the megabyte that the ring takes; a larger study is sealed into several packs.
	MaxPackVersions = 16384

	// maxEntryBytes and maxBodyBytes bound a log entry before and after decompression. The ring takes
	// a megabyte; the largest command, a Seal of MaxPackVersions, needs about 750 KiB.
	maxEntryBytes = 1 << 20
	maxBodyBytes  = 16 << 20
	// maxCommands bounds the commands of one batch.
	maxCommands = 4096
	// maxItems bounds the items of one Add in a decoded batch; Do never exceeds MaxBatchItems.
	maxItems = 4096
	// maxBlobs bounds the distinct strings and attribute sets that the items of a batch share.
	maxBlobs = 1 << 16
	// maxHolders bounds the nodes named as holders of one version: two is the rule, more follow
	// when a holder was lost.
	maxHolders = 64
	// maxShards bounds the shards of a placement; geometries stop at 10+10.
	maxShards = 64

	// MaxTitleBytes is the length of an AE title (PS3.5 §6.2).
	MaxTitleBytes = 16
	// MaxAEList bounds the aliases, the addresses and the networks of an AE: a modality has one or two of each.
	MaxAEList = 64

	// maxUIDBytes is the length of a UID (PS3.5 §9.1).
	maxUIDBytes = 64
	// maxStringBytes bounds names, addresses, titles and reasons.
	maxStringBytes = 1024
	// maxAttributesBytes bounds the attributes of one level of one instance; larger sets lose their
	// largest elements, see trimAttributes.
	maxAttributesBytes = 32 << 10
	// maxSettingBytes bounds the value of a setting: certificates and wrapped keys are far smaller.
	maxSettingBytes = 256 << 10
	// maxBodyFieldBytes bounds the opaque body of an overlay, a hold or a commitment request.
	maxBodyFieldBytes = 256 << 10
	// maxWrappedKeyBytes bounds a wrapped pack key; vault makes them shorter than 128 bytes.
	maxWrappedKeyBytes = 1024
	// maxIndexBytes bounds one string within an index key. Longer values share a prefix there and
	// are told apart by the row.
	maxIndexBytes = 128
	// maxNames bounds the folded component groups of a patient's name (PS3.5 §6.2: three).
	maxNames = 3

	// tableEntries bounds the sealed instances in one table row: small enough that a single lookup
	// decompresses little, large enough to compress well.
	tableEntries = 512
	// tablesKept is the number of decoded instance tables that one read or one Apply keeps.
	tablesKept = 16
	// maxTableBytes bounds a decompressed table row.
	maxTableBytes = 16 << 20

	// maxDepth bounds nested sequences in attributes and in query keys, as in the data sets
	// themselves.
	maxDepth = 64
	// maxQueryValues bounds all values of a query together; a list of UIDs is the long case.
	maxQueryValues = 100_000
	// maxPatternBytes bounds one value of a query key.
	maxPatternBytes = 16 << 10
	// maxDetailBytes bounds the sentence in a result.
	maxDetailBytes = 256

	// memTableBytes is the size of Pebble's write buffer, of which up to memTables wait to be flushed;
	// Pebble takes them out of the block cache, so the cache has to be larger than all of them.
	memTableBytes     = 16 << 20
	memTables         = 4
	defaultCacheBytes = 128 << 20
	// checkEvery is the number of rows between looks at the context.
	checkEvery = 64
)

// damagePause slows a compaction that comes upon damage: Pebble tries it again at once, until the database is closed.
const damagePause = 100 * time.Millisecond
