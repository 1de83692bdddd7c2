package pixel

import (
	"errors"
	"testing"

	"osteon/dicomsvc/dicom"
)

// losslessStream encodes 8-bit gray samples as JPEG lossless with predictor 1 and a restart marker after every so many samples: each
// difference category has a code of 4 bits, its own number.
func losslessStream(columns, rows, restart int, samples []byte) []byte {
	out := []byte{0xFF, 0xD8, 0xFF, 0xC3, 0, 11, 8, 0, byte(rows), 0, byte(columns), 1, 1, 0x11, 0, 0xFF, 0xC4, 0, 28, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	out = append(out, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	out = append(out, 0xFF, 0xDD, 0, 4, 0, byte(restart), 0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 0, 0)
	acc, n := 0, 0
	put := func(v, width int) {
		for acc, n = acc<<width|v, n+width; n >= 8; n -= 8 {
			b := byte(acc >> (n - 8))
			if out = append(out, b); b == 0xFF {
				out = append(out, 0)
			}
		}
		acc &= 1<<n - 1
	}
	fresh := 0
	for i, v := range samples {
		if i > 0 && i%restart == 0 {
			if n > 0 {
				put(1<<(8-n)-1, 8-n)
			}
			out = append(out, 0xFF, 0xD0+byte(i/restart-1)%8)
			fresh = i / columns
		}
		var guess int
		switch {
		case i%restart == 0 && i/columns == fresh:
			guess = 128
		case i%columns == 0:
			guess = int(samples[i-columns])
		default:
			guess = int(samples[i-1])
		}
		diff, size := int(v)-guess, 0
		for a := max(diff, -diff); a > 0; a >>= 1 {
			size++
		}
		put(size, 4)
		if diff < 0 {
			diff += 1<<size - 1
		}
		if size > 0 {
			put(diff, size)
		}
	}
	if n > 0 {
		put(1<<(8-n)-1, 8-n)
	}
	return append(out, 0xFF, 0xD9)
}

// TestRestartIntervals: DCMTK writes no restart markers, other encoders do (ISO 10918-1 §H.1.1, §H.1.2.1).
// Behaviour 37.
func TestRestartIntervals(t *testing.T) {
	const columns, rows = 11, 9
	samples := make([]byte, columns*rows)
	for i := range samples {
		samples[i] = byte(i * i * 7)
	}
	f := Format{Rows: rows, Columns: columns, Samples: 1, BitsAllocated: 8, BitsStored: 8, HighBit: 7, Photometric: Monochrome2}
	for _, restart := range []int{columns, 2 * columns, 5 * columns} {
		b := losslessStream(columns, rows, restart, samples)
		got, err := Decode(t.Context(), Source{Syntax: dicom.JPEGLosslessSV1}, f, b)
		if err != nil {
			t.Fatalf("%d: %v", restart, err)
		}
		for i, v := range got.Samples {
			if v != int32(samples[i]) {
				t.Fatalf("%d: sample %d is %d, want %d", restart, i, v, samples[i])
			}
		}
		for i := len(b) - 3; i > 0; i-- {
			if b[i] == 0xFF && b[i+1] >= 0xD0 && b[i+1] <= 0xD7 {
				b[i+1] = 0xD9
				break
			}
		}
		if _, err := Decode(t.Context(), Source{Syntax: dicom.JPEGLosslessSV1}, f, b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d: EOI in place of a restart marker: %v", restart, err)
		}
	}
}
