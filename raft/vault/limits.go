package vault

const (
	// epochsMax bounds a bundle; a ring starts a new epoch for each batch of erasures, and drops the
	// epochs whose living keys have been wrapped again.
	epochsMax = 4096
	// bundleBytesMax is the size of a bundle with epochsMax epochs.
	bundleBytesMax = bundleHeadBytes + epochsMax*epochBytes + checksumBytes
	// keysFileBytesMax bounds what is read as a keys file: a bundle, its envelope, and room for what a
	// hardware or remote root key adds when it seals.
	keysFileBytesMax = bundleBytesMax + 64<<10
	// headerBytes is the size of an encrypted file's header: one page, so that the alignment of the
	// body is the alignment of the file.
	headerBytes = 4096
	// wrappedBytesMax bounds a wrapped key in a file's header; catalogs and headers reserve this much.
	wrappedBytesMax = 128
	// scratchBytes is how much is encrypted at a time when writing: big enough that Pebble's writes go
	// out whole, small enough to stay in the cache.
	scratchBytes = 64 << 10
)
