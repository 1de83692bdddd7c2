package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/erasure/stripe"
)

// Source is where one shard of a pack can be read.
type Source struct {
	// Shard is nil when the shard is known to be out of reach.
	Shard ShardSource
	// Cost orders the sources that are read only when needed, cheapest first: 0 this node, 1 this
	// site, 2 elsewhere.
	Cost int
	// Pace is what is known of the source's speed; share one for each peer. May be nil.
	Pace *Pace
}

// PackSpec says which pack to read and from where. All but Sources come from the catalog.
type PackSpec struct {
	Ring     place.RingID
	Pack     place.PackID
	Encode   place.EncodeID
	Geometry place.Geometry
	// CellBytes, BlockBytes and StreamBytes are those of the encode's [PackInfo].
	CellBytes, BlockBytes int
	StreamBytes           int64
	// Keys has the key of each section; Sections may be nil, then the pack's directory is read.
	Keys     []PackKey
	Sections []Section
	// Sources are by shard number, as many as the geometry has.
	Sources []Source
	// OnBad is told once for each shard that was corrupt ([shard.ErrCorrupt]), absent
	// ([shard.ErrNotFound]) or unreachable, while the read goes on around it. It may be called from several
	// goroutines and must not block. May be nil.
	OnBad func(index int, err error)
	// Now measures the pace of sources; nil leaves paces as they are.
	Now func() time.Time
	// Hedge is after how long a read gets another beside it; 0 means the 95th percentile of the
	// source's Pace, and a fixed time where there is none.
	Hedge time.Duration
	// Codec may be shared; nil means one of its own.
	Codec *Codec
}

// PackReader reads the plaintext of one pack. It reads data cells straight from their shards and only
// those blocks that a range touches; where one is missing, corrupt or slow it decodes the same range of
// the stripe from any K others, in the same call. Nothing that does not authenticate is ever returned.
// Safe for concurrent use.
type PackReader struct {
	spec    PackSpec
	shape   shard.Shape
	coder   *stripe.Coder
	id      packID
	regions []region
	order   []int // shard numbers by cost, data before parity

	down     []atomic.Bool  // could not be reached: asked last
	shy      []atomic.Int32 // was hedged: skipped for that many more reads
	reported []atomic.Bool
	reading  sync.WaitGroup
	slabs    *slabs
}

// OpenPack returns a reader, after reading the directory when spec has no Sections. It opens nothing
// that spec.Sources did not bring; the caller closes those after Close. Errors: [ErrTooFewShards],
// [ErrPackCorrupt], and a spec that contradicts itself.
func OpenPack(ctx context.Context, spec PackSpec) (*PackReader, error) {
	r, err := newPackReader(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("open pack %v: %w", spec.Pack, err)
	}
	return r, nil
}

func newPackReader(ctx context.Context, spec PackSpec) (*PackReader, error) {
	h := shard.Header{Geometry: spec.Geometry, CellBytes: spec.CellBytes, BlockBytes: spec.BlockBytes, StreamBytes: spec.StreamBytes}
	if err := h.Check(); err != nil {
		return nil, err
	}
	n := spec.Geometry.N()
	if len(spec.Sources) != n || spec.StreamBytes < int64(directoryTail) || spec.StreamBytes > shard.StreamBytesMax {
		return nil, fmt.Errorf("geometry %v with %d sources and a stream of %d bytes", spec.Geometry, len(spec.Sources), spec.StreamBytes)
	}
	if spec.Codec == nil {
		spec.Codec = new(Codec)
	}
	coder, err := spec.Codec.coder(spec.Geometry)
	if err != nil {
		return nil, err
	}
	r := &PackReader{
		spec: spec, shape: h.Shape(), coder: coder, id: packID{spec.Ring, spec.Pack, spec.Encode},
		order: byCost(spec.Sources), slabs: &spec.Codec.slabs,
		down: make([]atomic.Bool, n), shy: make([]atomic.Int32, n), reported: make([]atomic.Bool, n),
	}
	if spec.Sections != nil {
		r.regions, err = regionsOf(spec.Sections)
	} else {
		r.regions, err = r.readDirectory(ctx)
	}
	if err == nil {
		err = r.checkLayout()
	}
	if err != nil {
		r.reading.Wait() // the caller, who gets no reader to close, closes the sources next
		return nil, err
	}
	return r, nil
}

// checkLayout refuses regions that do not fill the stream, before any offset is computed from them.
func (r *PackReader) checkLayout() error {
	var bytes int64
	for _, g := range r.regions {
		bytes += g.cipherBytes()
	}
	bytes += int64(len(r.regions))*regionEntry + int64(directoryTail)
	if bytes != r.spec.StreamBytes {
		return fmt.Errorf("sections take %d bytes of a stream of %d: %w", bytes, r.spec.StreamBytes, ErrPackCorrupt)
	}
	if len(r.spec.Keys) != len(r.regions)/2 {
		return fmt.Errorf("%d keys for %d sections", len(r.spec.Keys), len(r.regions)/2)
	}
	return nil
}

func (r *PackReader) readDirectory(ctx context.Context) ([]region, error) {
	end := r.spec.StreamBytes
	tail, err := r.cipher(ctx, end-int64(directoryTail), end)
	if err != nil {
		return nil, err
	}
	n, err := directoryBytes(tail)
	if err != nil {
		return nil, err
	}
	if n > end {
		return nil, fmt.Errorf("directory is longer than the pack: %w", ErrPackCorrupt)
	}
	whole, err := r.cipher(ctx, end-n, end)
	if err != nil {
		return nil, err
	}
	return parseDirectory(whole, r.spec.Encode)
}

// Sections returns where the studies are. The caller must not change it.
func (r *PackReader) Sections() []Section { return sectionsOf(r.regions) }

// Close waits for reads that were given up in favour of faster ones. Reads in flight must have ended.
func (r *PackReader) Close() error {
	r.reading.Wait()
	return nil
}

// ReadAt fills p with the plaintext at address off. Errors: [ErrRange], [ErrTooFewShards],
// [ErrPackCorrupt], those of ctx.
func (r *PackReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	err := r.stream(ctx, off, int64(len(p)), func(b []byte) error {
		done += copy(p[done:], b)
		return nil
	})
	return done, err
}

// CopyRange writes the n bytes of plaintext at address off to w, fetching the next stripes while it writes.
// Every byte was authenticated before it is written. Errors as of ReadAt, and w's.
func (r *PackReader) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	return r.stream(ctx, off, n, func(b []byte) error {
		_, err := w.Write(b)
		return err
	})
}

// ManifestBytes returns the encoded manifest of a section; see [DecodeManifest].
func (r *PackReader) ManifestBytes(ctx context.Context, section int) ([]byte, error) {
	if section < 0 || section >= len(r.regions)/2 {
		return nil, fmt.Errorf("section %d of %d: %w", section, len(r.regions)/2, ErrRange)
	}
	g := r.regions[2*section+1]
	if g.bytes > manifestBytesMax {
		return nil, fmt.Errorf("manifest of %d bytes: want at most %d", g.bytes, manifestBytesMax)
	}
	b := make([]byte, g.bytes)
	_, err := r.ReadAt(ctx, b, g.plain)
	return b, err
}

// stream emits the plaintext [off, off+n) in order, region by region.
func (r *PackReader) stream(ctx context.Context, off, n int64, emit func([]byte) error) error {
	if n == 0 {
		return nil
	}
	end := off + n
	for _, g := range r.regions {
		if n < 0 || off < 0 || end < off || off >= end {
			break
		}
		if off >= g.plain+g.bytes || off < g.plain {
			continue
		}
		take := min(end, g.plain+g.bytes) - off
		if err := r.streamRegion(ctx, g, off-g.plain, take, emit); err != nil {
			return fmt.Errorf("read pack %v at %d: %w", r.spec.Pack, off, err)
		}
		off += take
	}
	if off != end || n < 0 {
		return fmt.Errorf("read pack %v at %d: %w", r.spec.Pack, off, ErrRange)
	}
	return nil
}

// streamRegion emits [off, off+n) of a region: n > 0 bytes that it has.
func (r *PackReader) streamRegion(ctx context.Context, g region, off, n int64, emit func([]byte) error) error {
	s := newSealer(r.id, r.spec.Keys[g.section])
	first, last := off/chunkBytes, (off+n-1)/chunkBytes
	const sealedBytes = chunkBytes + tagBytes
	from := g.cipher + first*sealedBytes
	to := min(g.cipher+(last+1)*sealedBytes, g.cipher+g.cipherBytes())

	chunk := first
	plain := make([]byte, 0, min(chunkBytes, g.bytes))
	open := func(sealed []byte) error {
		final := chunk == g.chunks()-1
		at := g.cipher + chunk*sealedBytes
		var err error
		plain, err = s.open(plain[:0], sealed, g.chunk+chunk, final)
		if err != nil {
			plain, err = r.doubt(ctx, at, at+int64(len(sealed)), func(b []byte) ([]byte, error) {
				return s.open(plain[:0], b, g.chunk+chunk, final)
			})
		}
		if err != nil {
			return err
		}
		start := max(off-chunk*chunkBytes, 0)
		stop := min(off+n-chunk*chunkBytes, int64(len(plain)))
		chunk++
		return emit(plain[start:stop])
	}
	cut := chunker{size: sealedBytes, left: to - from}
	return r.segments(ctx, from, to, func(b []byte) error { return cut.feed(b, open) })
}

// chunker cuts a stream of cipher bytes, which arrives in pieces, into sealed chunks.
type chunker struct {
	size  int
	left  int64 // bytes that will still come or are in carry
	carry []byte
}

// feed calls open for every chunk that b completes.
func (c *chunker) feed(b []byte, open func([]byte) error) error {
	for len(b) > 0 {
		want := int(min(int64(c.size), c.left))
		if len(c.carry) == 0 && len(b) >= want {
			c.left -= int64(want)
			if err := open(b[:want]); err != nil {
				return err
			}
			b = b[want:]
			continue
		}
		n := min(want-len(c.carry), len(b))
		c.carry = append(c.carry, b[:n]...)
		b = b[n:]
		if len(c.carry) == want {
			c.left -= int64(want)
			if err := open(c.carry); err != nil {
				return err
			}
			c.carry = c.carry[:0]
		}
	}
	return nil
}

// segments fetches stream bytes [from, to) stripe by stripe, windowStripes ahead, and hands them on in
// order.
func (r *PackReader) segments(ctx context.Context, from, to int64, use func([]byte) error) error {
	stripeBytes := int64(r.shape.Geometry.K) * int64(r.shape.CellBytes)
	if (to-1)/stripeBytes == from/stripeBytes {
		seg := r.fetchSegment(ctx, from, to, nil)
		defer r.release(seg)
		if seg.err != nil {
			return seg.err
		}
		return use(seg.bytes)
	}
	ctx, cancel := context.WithCancel(ctx)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	defer cancel()
	var ahead []chan segment
	for from < to || len(ahead) > 0 {
		for from < to && len(ahead) <= windowStripes {
			next := min((from/stripeBytes+1)*stripeBytes, to)
			ch := make(chan segment, 1)
			a, b := from, next
			// Ends with its reads or with ctx, which ends with this function; never blocks on ch.
			fetching.Go(func() { ch <- r.fetchSegment(ctx, a, b, nil) })
			ahead, from = append(ahead, ch), next
		}
		seg := <-ahead[0]
		ahead = ahead[1:]
		if seg.err != nil {
			return seg.err
		}
		err := use(seg.bytes)
		r.release(seg)
		if err != nil {
			return err
		}
	}
	return nil
}

// cipher returns stream bytes [from, to), which are few.
func (r *PackReader) cipher(ctx context.Context, from, to int64) ([]byte, error) {
	var out []byte
	err := r.segments(ctx, from, to, func(b []byte) error {
		out = append(out, b...)
		return nil
	})
	return out, err
}

// doubt reads stream bytes [from, to) again without one shard, then without two, until they
// authenticate: some holder passed its own checks and yet gave wrong bytes. The shards left out are
// reported as corrupt.
func (r *PackReader) doubt(ctx context.Context, from, to int64, open func([]byte) ([]byte, error)) ([]byte, error) {
	tries := 0
	for _, avoid := range suspects(r.shape.Geometry) {
		if tries++; tries > doubtTriesMax {
			break
		}
		var sealed []byte
		for at := from; at < to; {
			stripeBytes := int64(r.shape.Geometry.K) * int64(r.shape.CellBytes)
			next := min((at/stripeBytes+1)*stripeBytes, to)
			seg := r.fetchSegment(ctx, at, next, avoid)
			sealed = append(sealed, seg.bytes...)
			r.release(seg)
			if seg.err != nil {
				break
			}
			at = next
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if int64(len(sealed)) != to-from {
			continue
		}
		if plain, err := open(sealed); err == nil {
			for _, i := range avoid {
				r.report(i, fmt.Errorf("shard %d decodes to bytes that do not authenticate: %w", i, shard.ErrCorrupt))
			}
			return plain, nil
		}
	}
	return nil, ErrPackCorrupt
}

// suspects lists the sets of shards to leave out: every one, then every pair, as parity allows.
func suspects(g place.Geometry) [][]int {
	var sets [][]int
	if g.M >= 1 {
		for i := range g.N() {
			sets = append(sets, []int{i})
		}
	}
	if g.M >= 2 {
		for i := range g.N() {
			for j := i + 1; j < g.N(); j++ {
				sets = append(sets, []int{i, j})
			}
		}
	}
	return sets
}

// report tells the owner once of a bad shard.
func (r *PackReader) report(i int, err error) {
	if r.spec.OnBad == nil || errors.Is(err, context.Canceled) || r.reported[i].Swap(true) {
		return
	}
	r.spec.OnBad(i, err)
}
