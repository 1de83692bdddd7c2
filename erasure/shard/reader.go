package shard

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// Reader reads one shard file. Safe for concurrent use until Close.
type Reader struct {
	h         Header
	version   uint16
	headerSum uint32
	seed      seed
	at        location
	file      vfs.File
	scratch   sync.Pool
}

// Open opens the shard and checks its header, trailer and length, and that it is the one asked for.
// The caller closes it. Errors: [ErrNotFound], [ErrVersion], [CorruptError].
func Open(fs vfs.FS, dir string, pack place.PackID, encode place.EncodeID, index int) (*Reader, error) {
	r, err := openAny(fs, dir, encode, index)
	if err != nil {
		return nil, err
	}
	if r.h.Pack != pack {
		why := fmt.Sprintf("the file belongs to pack %v, not %v", r.h.Pack, pack)
		_ = r.Close() // nothing was read that a failure to close could spoil
		return nil, &CorruptError{Encode: encode, Index: index, Block: -1, Why: why}
	}
	return r, nil
}

func openAny(fs vfs.FS, dir string, encode place.EncodeID, index int) (*Reader, error) {
	at := locate(fs, dir, encode, index)
	file, err := fs.Open(at.path)
	if absent(err) {
		return nil, fmt.Errorf("open shard %v: %w", at, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open shard %v: %w", at, err)
	}
	r := &Reader{at: at, file: file, seed: newSeed(encode, index)}
	if err := r.load(); err != nil {
		_ = file.Close()
		return nil, err
	}
	return r, nil
}

// load reads header and trailer.
func (r *Reader) load() error {
	info, err := r.file.Stat()
	if err != nil {
		return fmt.Errorf("open shard %v: %w", r.at, err)
	}
	size := info.Size()
	if size < headerBytes+trailerBytes {
		return r.corrupt(-1, fmt.Sprintf("the file has only %d bytes", size))
	}
	var head [headerBytes]byte
	if _, err := r.file.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("read header of shard %v: %w", r.at, err)
	}
	var tail [trailerBytes]byte
	if _, err := r.file.ReadAt(tail[:], size-trailerBytes); err != nil {
		return fmt.Errorf("read trailer of shard %v: %w", r.at, err)
	}
	return r.parse(head[:], tail[:], size)
}

func (r *Reader) parse(head, tail []byte, size int64) error {
	h, version, err := parseHeader(head)
	if err != nil {
		return r.headerError(err)
	}
	r.version = version
	r.headerSum = binary.LittleEndian.Uint32(head[headerBytes-sumBytes:])
	if h.Encode != r.at.encode || h.Index != r.at.index {
		return r.corrupt(-1, fmt.Sprintf("the file is shard %v-%d", h.Encode, h.Index))
	}
	if h.StreamBytes, err = parseTrailer(tail, r.headerSum, h, size); err != nil {
		return r.corrupt(-1, err.Error())
	}
	r.h = h
	return nil
}

// Header returns what the file says of itself, StreamBytes included.
func (r *Reader) Header() Header { return r.h }

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }

// ReadCell reads the cell of a stripe into dst and returns its length, which is
// Header().Shape().CellLen(stripe); dst must have room for it. Errors as of ReadAt.
func (r *Reader) ReadCell(dst []byte, stripe int64) (int, error) {
	n := 0
	if stripe >= 0 {
		n = r.h.Shape().CellLen(stripe)
	}
	if n == 0 || len(dst) < n {
		return 0, fmt.Errorf("read shard %v stripe %d into %d bytes: want one of %d stripes and room for a cell",
			r.at, stripe, len(dst), r.h.Shape().Stripes())
	}
	return r.ReadAt(dst[:n], stripe*int64(r.h.CellBytes))
}

// ReadAt fills dst with the payload at off, where cells follow each other without checksums, and
// checks every block it touches; io.ReaderAt. A block whose checksum differs is a [CorruptError] that
// names it, and the bytes before it in dst are good. A range beyond the payload is io.EOF after what
// there is.
func (r *Reader) ReadAt(dst []byte, off int64) (int, error) {
	body := r.h.Shape().BodyBytes()
	if off < 0 || off > body {
		return 0, fmt.Errorf("read shard %v at %d of %d bytes: %w", r.at, off, body, io.EOF)
	}
	short := int64(len(dst)) > body-off
	if short {
		dst = dst[:body-off]
	}
	done := 0
	err := r.blocks(off, int64(len(dst)), func(block int64, payload, _ []byte) {
		start := max(off-block*int64(r.h.BlockBytes), 0)
		done += copy(dst[done:], payload[start:])
	}, nil)
	if err == nil && short {
		err = io.EOF
	}
	return done, err
}

// blocks reads the blocks that hold [off, off+n) of the payload in large reads, checks each and hands
// it with its checksum to use. Each read's raw bytes go to raw, when set, before they are checked.
func (r *Reader) blocks(off, n int64, use func(block int64, payload, sum []byte), raw func([]byte)) error {
	if n <= 0 {
		return nil
	}
	blockBytes, body := int64(r.h.BlockBytes), r.h.Shape().BodyBytes()
	first, last := off/blockBytes, (off+n-1)/blockBytes
	perRead := max(int64(verifyBytes)/(blockBytes+sumBytes), 1)
	buf := r.get(min(last-first+1, perRead) * (blockBytes + sumBytes))
	defer r.scratch.Put(buf)
	for ; first <= last; first += perRead {
		count := min(last-first+1, perRead)
		payload := min(count*blockBytes, body-first*blockBytes)
		chunk := (*buf)[:payload+count*sumBytes]
		if _, err := r.file.ReadAt(chunk, headerBytes+first*(blockBytes+sumBytes)); err != nil {
			return fmt.Errorf("read shard %v block %d: %w", r.at, first, err)
		}
		if raw != nil {
			raw(chunk)
		}
		for b := first; b < first+count; b++ {
			size := min(blockBytes, body-b*blockBytes)
			payload, sum := chunk[:size], chunk[size:size+sumBytes]
			if r.seed.sum(b, payload) != binary.LittleEndian.Uint32(sum) && !plant.Is(plant.BlockSumSkipped) {
				return r.corrupt(b, "block checksum differs")
			}
			use(b, payload, sum)
			chunk = chunk[size+sumBytes:]
		}
	}
	return nil
}

// get returns a pooled buffer of at least n bytes.
func (r *Reader) get(n int64) *[]byte {
	if buf, ok := r.scratch.Get().(*[]byte); ok && int64(len(*buf)) >= n {
		return buf
	}
	buf := make([]byte, n)
	return &buf
}

// Verify reads the whole file again, checks everything and returns its root. It stops at the first
// bad block with a [CorruptError], and between reads when ctx ends.
func (r *Reader) Verify(ctx context.Context) (Root, error) {
	sum := sha256.New()
	add := func(b []byte) { sum.Write(b) }
	scan := scan{ends: add, sums: add}
	if r.version == versionWhole {
		scan.sums, scan.raw = nil, add
	}
	if err := r.scan(ctx, scan); err != nil {
		return Root{}, err
	}
	return Root(sum.Sum(nil)), nil
}

// Scrub reads the whole file and returns the numbers of its bad blocks, so that repair fetches
// only those. A bad header or trailer is the [CorruptError] instead.
func (r *Reader) Scrub(ctx context.Context) (bad []int64, err error) {
	err = r.scan(ctx, scan{bad: func(block int64) { bad = append(bad, block) }})
	return bad, err
}

// scan is what a pass over the whole file does with it; what is nil is not done.
type scan struct {
	ends func([]byte) // takes header and trailer
	sums func([]byte) // takes the checksum of each block, which is right
	raw  func([]byte) // takes blocks and checksums as they lie in the file
	bad  func(int64)  // takes the numbers of bad blocks; nil: the first one ends the pass
}

func (r *Reader) scan(ctx context.Context, do scan) error {
	if do.ends == nil {
		do.ends = func([]byte) {}
	}
	if err := r.again(0, headerBytes, do.ends); err != nil {
		return err
	}
	use := func(int64, []byte, []byte) {}
	if do.sums != nil {
		use = func(_ int64, _, sum []byte) { do.sums(sum) }
	}
	body := r.h.Shape().BodyBytes()
	step := max(verifyBytes/int64(r.h.BlockBytes), 1) * int64(r.h.BlockBytes)
	if do.bad != nil {
		step = int64(r.h.BlockBytes)
	}
	for off := int64(0); off < body; off += step {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify shard %v: %w", r.at, err)
		}
		err := r.blocks(off, min(step, body-off), use, do.raw)
		var at *CorruptError
		if do.bad != nil && errors.As(err, &at) {
			do.bad(at.Block)
			continue
		}
		if err != nil {
			return err
		}
	}
	return r.again(r.h.Shape().FileBytes()-trailerBytes, trailerBytes, do.ends)
}

// again rereads and rechecks header or trailer, which Open read some time ago.
func (r *Reader) again(off int64, n int, raw func([]byte)) error {
	var buf [headerBytes]byte
	if _, err := r.file.ReadAt(buf[:n], off); err != nil {
		return fmt.Errorf("verify shard %v: %w", r.at, err)
	}
	raw(buf[:n])
	if off == 0 {
		if h, version, err := parseHeader(buf[:n]); err != nil {
			return r.headerError(err)
		} else if h.StreamBytes = r.h.StreamBytes; h != r.h || version != r.version {
			return r.corrupt(-1, "the header changed since the file was opened")
		}
		return nil
	}
	if _, err := parseTrailer(buf[:n], r.headerSum, r.h, r.h.Shape().FileBytes()); err != nil {
		return r.corrupt(-1, err.Error())
	}
	return nil
}

func (r *Reader) headerError(err error) error {
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("open shard %v: %w", r.at, err)
	}
	return r.corrupt(-1, err.Error())
}

func (r *Reader) corrupt(block int64, why string) error {
	return &CorruptError{Encode: r.at.encode, Index: r.at.index, Block: block, Why: why}
}
