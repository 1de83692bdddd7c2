package journal

const (
	// chunkBytes is the plaintext of a full chunk frame: long enough that seal, system call and header
	// vanish beside the copying, short enough that a hundred writers fit in memory.
	chunkBytes = 256 << 10
	// NoteBytesMax bounds the note of a commit: what the catalog needs to index an instance.
	NoteBytesMax = 256 << 10
	// extentsMax bounds the runs of frames in a commit record. A writer that never gets two frames in
	// a row reaches it at 256 GiB.
	extentsMax = 1 << 20
	// recordBytesMax bounds the plaintext of a commit record.
	recordBytesMax = recordHeadBytes + extentsMax*extentBytes + NoteBytesMax
	// bufferBytes holds a full chunk frame with the commit frame of a usual note behind it, so that
	// the end of an object goes out in one write.
	bufferBytes = frameOverhead + chunkBytes + frameOverhead + 16<<10
	// segmentBytesDefault is the size at which a segment is full: the unit of giving space back, and a
	// quarter of a second of writing.
	segmentBytesDefault = 256 << 20
	// segmentBytesMin and segmentBytesMax bound Config.SegmentBytes; positions in a segment are 32 bits
	// wide, and one frame may be added to a segment just below its size.
	segmentBytesMin = 8 << 10
	segmentBytesMax = 1 << 30
	// hotBytesDefault is what is kept of segments whose objects are all released.
	hotBytesDefault = 2 << 30
	// dirtyBytesMax is how much may be written beyond the last sync before one is made without being
	// asked for, so that one long object does not make everybody's commit slow.
	dirtyBytesMax = 8 << 20
	// preallocateBytes is reserved ahead of the end of the active segment, so that a full disk shows
	// before a frame is placed, and little is wasted when a segment ends early.
	preallocateBytes = 16 << 20
	// scanWindowBytes is read at a time when a segment is scanned; peekBytes when frames are long and
	// only their headers matter.
	scanWindowBytes = 256 << 10
	peekBytes       = 4 << 10
)
