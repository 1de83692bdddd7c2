package local

import "time"

const (
	// KeyBytesMax bounds a key of Put: names of settings, not data.
	KeyBytesMax = 256
	// ValueBytesMax bounds a value of Put and the body of a spool entry: this database is no place for objects.
	ValueBytesMax = 1 << 20

	cacheBytes    = 8 << 20 // holds the holder index of some 100,000 shards
	memTableBytes = 4 << 20 // small: every write is synced, and few are under way
	openFilesMax  = 100
	holderPage    = 1024 // entries of the holder index read at a time
	lockStripes   = 64   // writers of different shards seldom wait for each other
)

// damagePause slows a compaction that comes upon damage: Pebble tries it again at once, until the database is closed.
const damagePause = 100 * time.Millisecond
