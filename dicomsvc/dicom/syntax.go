package dicom

// Transfer syntaxes named in code (PS3.5 Annex A, PS3.6 Table A-1).
const (
	ImplicitVRLittleEndian         = "1.2.840.10008.1.2"
	ExplicitVRLittleEndian         = "1.2.840.10008.1.2.1"
	ExplicitVRBigEndian            = "1.2.840.10008.1.2.2"
	DeflatedExplicitVRLittleEndian = "1.2.840.10008.1.2.1.99"
	EncapsulatedUncompressed       = "1.2.840.10008.1.2.1.98"
	JPEGBaseline8Bit               = "1.2.840.10008.1.2.4.50"
	JPEGExtended12Bit              = "1.2.840.10008.1.2.4.51"
	JPEGLossless                   = "1.2.840.10008.1.2.4.57"
	JPEGLosslessSV1                = "1.2.840.10008.1.2.4.70"
	JPEGLSLossless                 = "1.2.840.10008.1.2.4.80"
	JPEGLSNearLossless             = "1.2.840.10008.1.2.4.81"
	JPEG2000Lossless               = "1.2.840.10008.1.2.4.90"
	JPEG2000                       = "1.2.840.10008.1.2.4.91"
	MPEG2MPML                      = "1.2.840.10008.1.2.4.100"
	MPEG4HP41                      = "1.2.840.10008.1.2.4.102"
	HEVCMP51                       = "1.2.840.10008.1.2.4.107"
	JPEGXLLossless                 = "1.2.840.10008.1.2.4.110"
	JPEGXLJPEGRecompression        = "1.2.840.10008.1.2.4.111"
	JPEGXL                         = "1.2.840.10008.1.2.4.112"
	HTJ2KLossless                  = "1.2.840.10008.1.2.4.201"
	HTJ2KLosslessRPCL              = "1.2.840.10008.1.2.4.202"
	HTJ2K                          = "1.2.840.10008.1.2.4.203"
	RLELossless                    = "1.2.840.10008.1.2.5"
	DeflatedImageFrame             = "1.2.840.10008.1.2.8.1"
)

// Syntax describes how a transfer syntax encodes a data set.
type Syntax struct {
	UID  string
	Name string
	// Explicit, BigEndian and Deflated describe the data set; Encapsulated says that Pixel Data is made of fragments.
	Explicit, BigEndian, Deflated, Encapsulated bool
	// Video says that the fragments hold one stream for all frames, so that frames cannot be told apart without decoding.
	Video bool
	// Marks are the byte strings one of which begins each frame's compressed stream; none when frames cannot be told so.
	marks [][]byte
}

var (
	marksJPEG   = [][]byte{{0xFF, 0xD8}}
	marksJ2K    = [][]byte{{0xFF, 0x4F, 0xFF, 0x51}}
	marksJPEGXL = [][]byte{{0xFF, 0x0A}, {0x00, 0x00, 0x00, 0x0C, 'J', 'X', 'L', ' '}}
)

func native(uid, name string, explicit bool) Syntax {
	return Syntax{UID: uid, Name: name, Explicit: explicit}
}

func encapsulated(uid, name string, marks [][]byte) Syntax {
	return Syntax{UID: uid, Name: name, Explicit: true, Encapsulated: true, marks: marks}
}

func video(uid, name string) Syntax {
	return Syntax{UID: uid, Name: name, Explicit: true, Encapsulated: true, Video: true}
}

// syntaxes is PS3.6 Table A-1 plus one private syntax that is common in old archives.
var syntaxes = [...]Syntax{
	native(ImplicitVRLittleEndian, "Implicit VR Little Endian", false),
	native(ExplicitVRLittleEndian, "Explicit VR Little Endian", true),
	encapsulated(EncapsulatedUncompressed, "Encapsulated Uncompressed Explicit VR Little Endian", nil),
	{UID: DeflatedExplicitVRLittleEndian, Name: "Deflated Explicit VR Little Endian", Explicit: true, Deflated: true},
	{UID: ExplicitVRBigEndian, Name: "Explicit VR Big Endian (Retired)", Explicit: true, BigEndian: true},
	encapsulated(JPEGBaseline8Bit, "JPEG Baseline (Process 1)", marksJPEG),
	encapsulated(JPEGExtended12Bit, "JPEG Extended (Process 2 & 4)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.52", "JPEG Extended (Process 3 & 5) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 & 8) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.54", "JPEG Spectral Selection, Non-Hierarchical (Process 7 & 9) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 & 12) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.56", "JPEG Full Progression, Non-Hierarchical (Process 11 & 13) (Retired)", marksJPEG),
	encapsulated(JPEGLossless, "JPEG Lossless, Non-Hierarchical (Process 14)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.58", "JPEG Lossless, Non-Hierarchical (Process 15) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.59", "JPEG Extended, Hierarchical (Process 16 & 18) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.60", "JPEG Extended, Hierarchical (Process 17 & 19) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.61", "JPEG Spectral Selection, Hierarchical (Process 20 & 22) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.62", "JPEG Spectral Selection, Hierarchical (Process 21 & 23) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.63", "JPEG Full Progression, Hierarchical (Process 24 & 26) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.64", "JPEG Full Progression, Hierarchical (Process 25 & 27) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.65", "JPEG Lossless, Hierarchical (Process 28) (Retired)", marksJPEG),
	encapsulated("1.2.840.10008.1.2.4.66", "JPEG Lossless, Hierarchical (Process 29) (Retired)", marksJPEG),
	encapsulated(JPEGLosslessSV1, "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])", marksJPEG),
	encapsulated(JPEGLSLossless, "JPEG-LS Lossless Image Compression", marksJPEG),
	encapsulated(JPEGLSNearLossless, "JPEG-LS Lossy (Near-Lossless) Image Compression", marksJPEG),
	encapsulated(JPEG2000Lossless, "JPEG 2000 Image Compression (Lossless Only)", marksJ2K),
	encapsulated(JPEG2000, "JPEG 2000 Image Compression", marksJ2K),
	encapsulated("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component Image Compression (Lossless Only)", marksJ2K),
	encapsulated("1.2.840.10008.1.2.4.93", "JPEG 2000 Part 2 Multi-component Image Compression", marksJ2K),
	native("1.2.840.10008.1.2.4.94", "JPIP Referenced", true),
	{UID: "1.2.840.10008.1.2.4.95", Name: "JPIP Referenced Deflate", Explicit: true, Deflated: true},
	video(MPEG2MPML, "MPEG2 Main Profile / Main Level"),
	video("1.2.840.10008.1.2.4.100.1", "Fragmentable MPEG2 Main Profile / Main Level"),
	video("1.2.840.10008.1.2.4.101", "MPEG2 Main Profile / High Level"),
	video("1.2.840.10008.1.2.4.101.1", "Fragmentable MPEG2 Main Profile / High Level"),
	video(MPEG4HP41, "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
	video("1.2.840.10008.1.2.4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1"),
	video("1.2.840.10008.1.2.4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1"),
	video("1.2.840.10008.1.2.4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1"),
	video("1.2.840.10008.1.2.4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video"),
	video("1.2.840.10008.1.2.4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video"),
	video("1.2.840.10008.1.2.4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video"),
	video("1.2.840.10008.1.2.4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video"),
	video("1.2.840.10008.1.2.4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2"),
	video("1.2.840.10008.1.2.4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2"),
	video(HEVCMP51, "HEVC/H.265 Main Profile / Level 5.1"),
	video("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 Profile / Level 5.1"),
	encapsulated(JPEGXLLossless, "JPEG XL Lossless", marksJPEGXL),
	encapsulated(JPEGXLJPEGRecompression, "JPEG XL JPEG Recompression", marksJPEGXL),
	encapsulated(JPEGXL, "JPEG XL", marksJPEGXL),
	encapsulated(HTJ2KLossless, "High-Throughput JPEG 2000 Image Compression (Lossless Only)", marksJ2K),
	encapsulated(HTJ2KLosslessRPCL, "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)", marksJ2K),
	encapsulated(HTJ2K, "High-Throughput JPEG 2000 Image Compression", marksJ2K),
	native("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced", true),
	{UID: "1.2.840.10008.1.2.4.205", Name: "JPIP HTJ2K Referenced Deflate", Explicit: true, Deflated: true},
	encapsulated(RLELossless, "RLE Lossless", nil),
	native("1.2.840.10008.1.2.6.1", "RFC 2557 MIME encapsulation (Retired)", true),
	native("1.2.840.10008.1.2.6.2", "XML Encoding (Retired)", true),
	native("1.2.840.10008.1.2.7.1", "SMPTE ST 2110-20 Uncompressed Progressive Active Video", true),
	native("1.2.840.10008.1.2.7.2", "SMPTE ST 2110-20 Uncompressed Interlaced Active Video", true),
	native("1.2.840.10008.1.2.7.3", "SMPTE ST 2110-30 PCM Digital Audio", true),
	encapsulated(DeflatedImageFrame, "Deflated Image Frame Compression", nil),
	native("1.2.840.10008.1.20", "Papyrus 3 Implicit VR Little Endian (Retired)", false),
	native("1.2.840.113619.5.2", "Implicit VR Little Endian with Big Endian Pixel Data (GE private)", false),
}

// LookupSyntax returns the description of a transfer syntax, and false for one the tables do not hold.
func LookupSyntax(uid string) (Syntax, bool) {
	for i := range syntaxes {
		if syntaxes[i].UID == uid {
			return syntaxes[i], true
		}
	}
	return Syntax{}, false
}

// SyntaxOf is LookupSyntax, with an unknown or private syntax taken for Explicit VR Little Endian, whose pixel data may be either
// native or encapsulated (PS3.5 A.4 makes every later encapsulated syntax Explicit VR Little Endian).
func SyntaxOf(uid string) Syntax {
	if s, ok := LookupSyntax(uid); ok {
		return s
	}
	return Syntax{UID: uid, Explicit: true}
}

// TransferSyntaxes yields the known transfer syntaxes until yield returns false.
func TransferSyntaxes(yield func(Syntax) bool) {
	for _, s := range syntaxes {
		if !yield(s) {
			return
		}
	}
}
