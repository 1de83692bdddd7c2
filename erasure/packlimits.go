package erasure

import "time"

const (
	// chunkBytes is the unit of encryption: small enough that a thumbnail's range costs little more
	// than itself, large enough that tags and calls cost nothing beside the bytes.
	chunkBytes = 64 << 10
	// cellBytesUsual keeps a whole slice in two or three cells, read in parallel, and the memory of a
	// stripe of the widest geometry at 5 MiB. A small pack needs no smaller cells: its last stripe is cut
	// short.
	cellBytesUsual = 256 << 10
	// blockBytesUsual is the least that a range read moves and checks.
	blockBytesUsual = 32 << 10
	// stripesInFlight bounds the stripes that an encode holds: one being filled, one being
	// coded, two waiting for the slowest sink.
	stripesInFlight = 4
	// sectionsMax bounds the studies of one pack; the directory of that many is one small read.
	sectionsMax = 1 << 10
	// packBytesMax bounds the plaintext of a pack, far below where chunk numbers would end.
	packBytesMax = 1 << 46
	// windowStripes is how many stripes a sequential read fetches ahead while one is written out.
	windowStripes = 2
	// hedgeLeast and hedgeUsual bound when a slow source gets a second read beside it: never
	// before hedgeLeast, and after hedgeUsual where nothing has been measured.
	hedgeLeast = 10 * time.Millisecond
	hedgeUsual = 150 * time.Millisecond
	hedgeMost  = 2 * time.Second
	// paceSamples is how many latencies a Pace remembers: enough for a 95th percentile, few enough
	// to follow a link that changes.
	paceSamples = 64
	// doubtTriesMax bounds the decodings tried when authentic-looking shards decode to bytes that do
	// not authenticate: every one and every pair of the widest geometry's shards left out.
	doubtTriesMax = 256
	// manifestBytesMax bounds an encoded manifest.
	manifestBytesMax = 1 << 30
)
