package dicomsvc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/plant"
)

// sealStep is what the sealer takes of an object at once: a chunk of the journal, so that each is decrypted
// once and is still in the processor's cache when it is hashed and encrypted for the pack.
const sealStep = 256 << 10

// copier copies one object after the other into a pack with the same memory.
type copier struct {
	pace    func(n int) error // waits until n more bytes may be taken
	scanner dicom.Scanner
	from    ranged
	pass    sealCopy
}

// copyDescribed copies a whole object to w, proves its digest, and describes it on the way. An object
// that cannot be described is copied all the same: its bytes are what was acknowledged.
func (c *copier) copyDescribed(w io.Writer, o *Object) ([]byte, error) {
	c.from.reset(o, sealStep)
	pass, scanner := &c.pass, &c.scanner
	*pass = sealCopy{from: &c.from, to: w, pace: c.pace, hash: sha256.New(), kept: pass.kept[:0]}
	scanner.Reset(pass, o.instance.TransferSyntaxUID, dicom.Limits{})
	_, scanErr := scanner.Header()
	at := scanner.Offset()
	pass.until = at + pixelHeadBytes
	if scanErr == nil {
		scanErr = scanner.Rest()
	}
	if _, err := io.Copy(io.Discard, readerOnly{pass}); err != nil {
		return nil, err
	}
	var digest [sha256.Size]byte
	pass.hash.Sum(digest[:0])
	if digest != o.instance.Digest && !plant.Is(plant.SealDigestNotCompared) || pass.size != o.Size() {
		return nil, fmt.Errorf("%w: SHA-256 differs from the one recorded at arrival", ErrCorrupt)
	}
	if scanErr != nil {
		return nil, nil
	}
	deflated := scanner.Syntax().Deflated
	head := pass.kept[:min(at+pixelHeadBytes, int64(len(pass.kept)))]
	if deflated {
		inflated, err := io.ReadAll(io.LimitReader(o.Section(0, at+pixelHeadBytes), at+pixelHeadBytes))
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil
		}
		head = inflated
	}
	blob, err := appendDescription(head, deflated, scanner.Frames())
	if err != nil {
		return nil, nil
	}
	return blob, nil
}

type readerOnly struct{ io.Reader }

// sealCopy passes an object through: what is read of it goes to the pack and the hash, and its beginning
// is kept until the header has been scanned.
type sealCopy struct {
	from *ranged
	to   io.Writer
	pace func(n int) error
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	kept  []byte
	until int64 // how much to keep; 0 while that is not known
	size  int64
}

func (c *sealCopy) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if n > 0 {
		c.hash.Write(p[:n])
		c.size += int64(n)
		if c.until == 0 || int64(len(c.kept)) < c.until {
			c.kept = append(c.kept, p[:n]...)
		}
		if _, werr := c.to.Write(p[:n]); werr != nil {
			return 0, werr
		}
		if perr := c.pace(n); perr != nil {
			return 0, perr
		}
	}
	return n, err
}
