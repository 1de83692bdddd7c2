package dicom

// Bounds on what bytes from outside may cost. Limits changes those that a caller may want to differ.
const (
	// depthMax: real data nests 5 to 10 deep; 64 leaves room and keeps every walk of a data set cheap.
	depthMax = 64
	// elementsMax: an enhanced MR of 8,800 frames has about 400,000 elements.
	elementsMax = 1 << 20
	// itemsMax bounds one sequence; the largest per-frame functional groups seen have some 10,000 items.
	itemsMax = 100_000
	// valueBytesMax: a longer value outside pixel data is left in the stream as Bulk.
	valueBytesMax = 4 << 20
	// headerBytesMax: once this much is in memory, further values above spillBytes become Bulk.
	headerBytesMax = 16 << 20
	// headerBytesHard stops a header made of countless small values.
	headerBytesHard = 4 * headerBytesMax
	// spillBytes is the smallest value left in the stream once a header has grown past its limit.
	spillBytes = 1 << 10
	// inflateRatioMax applies once inflateFree bytes have come out: a header of spaces may compress better than that.
	inflateRatioMax = 200
	inflateFree     = 16 << 20
	// inflateBytesMax: one deflated data set; PS3.5 A.5 is meant for reports and the like.
	inflateBytesMax = 2 << 30
	// fragmentTableBytes bounds the table of fragment lengths: about 5 million fragments of 64 KiB each.
	fragmentTableBytes = 16 << 20
	// offsetTableBytes bounds the Basic Offset Table kept in memory: 4 million frames.
	offsetTableBytes = 16 << 20
	// metaBytesMax bounds the File Meta Information; (0002,0102) Private Information is the only part without a small natural size.
	metaBytesMax = 1 << 20
	// uidBytesMax is PS3.5 9.1.
	uidBytesMax = 64
	// jsonBytesMax bounds what ParseJSON takes: the caller streams bulk data apart from it.
	jsonBytesMax = 64 << 20

	// xmlTagBytesMax bounds one tag of an XML document: names, tags and a URI.
	xmlTagBytesMax = 64 << 10
	// valueGapMax is how many numbers may be left out between two values of the Native DICOM Model.
	valueGapMax = 1 << 10

	// windowBytes is the scanner's read-ahead while it parses; CT headers are about 2 KiB.
	windowBytes = 8 << 10
	// bulkWindowBytes is its read size while bulk data flows by.
	bulkWindowBytes = 128 << 10
	// scratchKept is the longest scratch list that a reused scanner keeps: a CT header has about 100 elements.
	scratchKept = 1024
	// growStep is the first allocation for a value of unproven length; it doubles as bytes arrive.
	growStep = 64 << 10
	// emptyReadsMax is how many reads in a row may return nothing before the reader is called broken.
	emptyReadsMax = 100
)

// Limits bounds a decoder. A zero field means the default in parentheses; see limits.go for the reasons.
type Limits struct {
	Depth        int   // nested sequences (64)
	Elements     int   // elements and items in one data set (1,048,576)
	Items        int   // items in one sequence (100,000)
	ValueBytes   int   // a value longer than this becomes Bulk (4 MiB)
	HeaderBytes  int   // values kept in memory; beyond it those over 1 KiB become Bulk, at four times it ErrLimit (16 MiB)
	InflateRatio int   // inflated to deflated bytes, once 16 MiB have come out (200)
	InflateBytes int64 // inflated bytes in all (2 GiB)
}

func (l Limits) filled() Limits {
	setDefault(&l.Depth, depthMax)
	setDefault(&l.Elements, elementsMax)
	setDefault(&l.Items, itemsMax)
	setDefault(&l.ValueBytes, valueBytesMax)
	setDefault(&l.HeaderBytes, headerBytesMax)
	setDefault(&l.InflateRatio, inflateRatioMax)
	setDefault(&l.InflateBytes, inflateBytesMax)
	return l
}

func setDefault[T int | int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
