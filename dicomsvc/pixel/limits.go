package pixel

const (
	// frameSamplesMax bounds one frame: 8192 x 8192 gray pixels, 256 MiB in memory. The largest frames of mammography and whole chest
	// images have 16 million.
	frameSamplesMax = 1 << 26
	// FrameBytesMax bounds the stored bytes of one frame that are read at once: frameSamplesMax of 32 bits.
	FrameBytesMax = 4 * frameSamplesMax
	// sideMax is the largest number of rows or columns: both are 16-bit numbers (PS3.3 §C.7.6.3).
	sideMax = 1<<16 - 1
	// samplesPerPixelMax: 1 or 3 by PS3.3 §C.7.6.3.1.1, 4 for the retired ARGB and CMYK.
	samplesPerPixelMax = 4

	// samplesPerByteMax is what a byte of a DCT frame can give at the utmost: with one bit for each block of 64 samples, and chrominance
	// halved both ways, 1024. A frame that claims more is not worth its memory.
	samplesPerByteMax = 1024
	// scansMax bounds the scans of one progressive frame; encoders write about ten.
	scansMax = 100

	// tableEntriesMax bounds a lookup table: 16-bit indices (PS3.3 §C.11.1.1).
	tableEntriesMax = 1 << 16
	// tableBytesMax bounds the bytes of a lookup table that was left in the stream.
	tableBytesMax = 4 * tableEntriesMax
	// directBits is the widest sample for which a table of all gray values is made.
	directBits = 16

	// ViewSideMax bounds the columns and rows of a rendered image: four times a display of 4096 pixels, and what both JPEG
	// and GIF can hold.
	ViewSideMax = 1 << 14
	// viewPixelsMax bounds its area.
	viewPixelsMax = frameSamplesMax
)
