package erasure

import (
	"context"
	"errors"
	"fmt"

	"osteon/erasure/shard"
	"osteon/erasure/stripe"
)

// PackWriter takes the plaintext of a pack from the source of an [Encode]. For each section in order
// the source writes the data sets and then calls Finish once. Not safe for concurrent use.
type PackWriter struct {
	ctx     context.Context // of the encode that this writer lives in
	e       *encoder
	id      packID
	sealer  *sealer
	regions []region
	chunk   int64  // number of the next chunk
	plain   []byte // of the chunk being filled, at most chunkBytes
	bytes   int64  // of the region so far, plain included
	base    int64  // plaintext before this region
	spare   []byte // a sealed chunk that crosses stripes

	stripe      *stripe.Stripe
	fill        int
	streamBytes int64
}

func newPackWriter(ctx context.Context, e *encoder) *PackWriter {
	return &PackWriter{
		ctx: ctx, e: e, id: packID{e.spec.Ring, e.spec.Pack, e.spec.Encode},
		plain: make([]byte, 0, chunkBytes), spare: make([]byte, 0, chunkBytes+tagBytes),
	}
}

// Offset returns the pack address of the next byte written.
func (w *PackWriter) Offset() int64 { return w.base + w.bytes }

// Write appends to the data region of the current section. It fails when the encode failed, and
// then src should return.
func (w *PackWriter) Write(p []byte) (int, error) {
	if err := w.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *PackWriter) write(p []byte) error {
	if w.section() >= len(w.e.spec.Keys) {
		return errors.New("write after the last section was finished")
	}
	if int64(len(p)) > packBytesMax-w.Offset() {
		return fmt.Errorf("pack grows beyond %d bytes", int64(packBytesMax))
	}
	for len(p) > 0 {
		// A full chunk waits until more follows: only then is it known not to be the region's last.
		if len(w.plain) == chunkBytes {
			if err := w.seal(w.plain, false); err != nil {
				return err
			}
			w.plain = w.plain[:0]
		}
		if len(w.plain) == 0 && len(p) > chunkBytes {
			if err := w.seal(p[:chunkBytes], false); err != nil {
				return err
			}
			w.bytes += chunkBytes
			p = p[chunkBytes:]
			continue
		}
		n := min(len(p), chunkBytes-len(w.plain))
		w.plain = append(w.plain, p[:n]...)
		w.bytes += int64(n)
		p = p[n:]
	}
	return nil
}

// Finish ends the section: its data is complete and manifest, encoded, follows it. A further Write
// begins the next section, which needs a further key.
func (w *PackWriter) Finish(manifest []byte) error {
	if len(manifest) > manifestBytesMax {
		return fmt.Errorf("manifest of %d bytes: want at most %d", len(manifest), manifestBytesMax)
	}
	if w.section() >= len(w.e.spec.Keys) {
		return errors.New("finish after the last section was finished")
	}
	if err := w.endRegion(regionData); err != nil {
		return err
	}
	if err := w.write(manifest); err != nil {
		return err
	}
	return w.endRegion(regionManifest)
}

func (w *PackWriter) section() int { return len(w.regions) / 2 }

func (w *PackWriter) endRegion(kind regionKind) error {
	if len(w.plain) > 0 {
		if err := w.seal(w.plain, true); err != nil {
			return err
		}
		w.plain = w.plain[:0]
	}
	w.regions = append(w.regions, region{section: w.section(), kind: kind, bytes: w.bytes})
	if kind == regionManifest {
		w.sealer = nil
	}
	w.base += w.bytes
	w.bytes = 0
	return nil
}

// seal encrypts a chunk into the stripe, in place where it fits.
func (w *PackWriter) seal(plain []byte, last bool) error {
	if w.sealer == nil {
		w.sealer = newSealer(w.id, w.e.spec.Keys[w.section()])
	}
	if err := w.room(); err != nil {
		return err
	}
	chunk := w.chunk
	w.chunk++
	data := w.stripe.Data()
	if sealed := len(plain) + tagBytes; len(data)-w.fill >= sealed {
		w.sealer.seal(data[w.fill:w.fill], plain, chunk, last)
		w.fill += sealed
		w.streamBytes += int64(sealed)
		return nil
	}
	w.spare = w.sealer.seal(w.spare[:0], plain, chunk, last)
	return w.put(w.spare)
}

// put copies stream bytes into stripes.
func (w *PackWriter) put(b []byte) error {
	w.streamBytes += int64(len(b))
	for len(b) > 0 {
		if err := w.room(); err != nil {
			return err
		}
		n := copy(w.stripe.Data()[w.fill:], b)
		w.fill += n
		b = b[n:]
	}
	return nil
}

// room makes sure that the stripe has some, passing a full one on.
func (w *PackWriter) room() error {
	if w.stripe != nil && w.fill < len(w.stripe.Data()) {
		return nil
	}
	if err := w.pass(); err != nil {
		return err
	}
	select {
	case w.stripe = <-w.e.free:
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
	if w.stripe == nil {
		w.stripe = w.e.pool.Get()
	}
	w.fill = 0
	return nil
}

// pass hands the stripe to the coder; the last one is cut short and padded with zeros.
func (w *PackWriter) pass() error {
	if w.stripe == nil {
		return nil
	}
	cellBytes := w.e.spec.CellBytes
	if w.fill < len(w.stripe.Data()) {
		cellBytes = shard.LastCellLen(w.e.spec.Geometry, int64(w.fill))
		clear(w.stripe.Data()[w.fill : cellBytes*w.e.spec.Geometry.K])
	}
	select {
	case w.e.filled <- filled{w.stripe, cellBytes}:
		w.stripe = nil
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// end writes the directory and passes the last stripe on.
func (w *PackWriter) end() error {
	if w.section() != len(w.e.spec.Keys) || len(w.plain) > 0 || len(w.regions)%2 != 0 {
		return fmt.Errorf("source finished %d of %d sections", w.section(), len(w.e.spec.Keys))
	}
	chain(w.regions)
	if err := w.put(appendDirectory(nil, w.id.Encode, w.regions)); err != nil {
		return err
	}
	return w.pass()
}
