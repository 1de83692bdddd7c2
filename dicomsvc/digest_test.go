package dicomsvc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"osteon/dicomsvc/dicom"
)

// inMemory is an object whose bytes pass every check below the digest.
type inMemory []byte

func (m inMemory) Size() int64  { return int64(len(m)) }
func (m inMemory) Close() error { return nil }
func (m inMemory) CopyRange(_ context.Context, w io.Writer, off, n int64) error {
	_, err := w.Write(m[off : off+n])
	return err
}

func objectOf(b []byte, digest [sha256.Size]byte) *Object {
	in := &Instance{Size: int64(len(b)), Digest: digest, TransferSyntaxUID: dicom.ExplicitVRLittleEndian}
	return &Object{ctx: context.Background(), instance: in, from: inMemory(b)}
}

// Bytes that are not those that arrived neither leave whole nor get into a pack, although every checksum below says
// that they are as they were written.
func TestDigestIsCompared(t *testing.T) {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPInstanceUID, "1.2.3")
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: make([]byte, 200_000)})
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	good := sha256.Sum256(b)
	b[len(b)/2] ^= 1
	var out bytes.Buffer
	if _, err := objectOf(b, good).WriteTo(&out); !errors.Is(err, ErrCorrupt) || out.Len() >= len(b) {
		t.Errorf("read of other bytes: %v after %d of %d bytes, want ErrCorrupt and some withheld", err, out.Len(), len(b))
	}
	out.Reset()
	if _, err := (&copier{pace: func(int) error { return nil }}).copyDescribed(&out, objectOf(b, good)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("seal of other bytes: %v, want ErrCorrupt", err)
	}
	b[len(b)/2] ^= 1
	out.Reset()
	if _, err := objectOf(b, good).WriteTo(&out); err != nil || !bytes.Equal(out.Bytes(), b) {
		t.Errorf("read of the right bytes: %v", err)
	}
	out.Reset()
	if _, err := (&copier{pace: func(int) error { return nil }}).copyDescribed(&out, objectOf(b, good)); err != nil || !bytes.Equal(out.Bytes(), b) {
		t.Errorf("seal of the right bytes: %v", err)
	}
}
