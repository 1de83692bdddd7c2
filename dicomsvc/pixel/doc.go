// Package pixel decodes pixel data frame by frame, encodes what it decoded as native Explicit VR Little Endian, and renders it
// for displays of 8 bits (PS3.3 §C.7.6.3, §C.11; PS3.5 §8 and Annex G).
//
// A Format holds what the Image Pixel Module says of the frames, Decode turns the bytes of one frame into samples, an Image reads and
// renders the frames of one instance. Decoded here, in Go alone: native pixels of 1, 8, 16 and 32 bits, deflated frames, RLE Lossless, JPEG with
// Huffman coding (baseline, extended, progressive, lossless) and JPEG-LS. JPEG 2000, HTJ2K, JPEG XL, video and arithmetic coding are
// refused with ErrUnsupportedSyntax.
//
// Bytes of a frame are never trusted: nothing here panics, allocates or works beyond what limits.go says, whatever they hold, and
// a context ends the work within a row of the frame.
package pixel
