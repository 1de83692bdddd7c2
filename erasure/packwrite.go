package erasure

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"osteon/erasure/place"
	"osteon/erasure/plant"
	"osteon/erasure/shard"
	"osteon/erasure/stripe"
)

// Codec keeps the coders and stripe memory that encodes and reads share. The zero value works; one for
// each node is enough. Safe for concurrent use.
type Codec struct {
	mu      sync.Mutex
	coders  map[place.Geometry]*stripe.Coder
	buffers map[bufferShape]*stripe.Buffers

	slabs slabs // has its own locks
}

type bufferShape struct {
	g         place.Geometry
	cellBytes int
}

func (c *Codec) coder(g place.Geometry) (*stripe.Coder, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if coder, ok := c.coders[g]; ok {
		return coder, nil
	}
	coder, err := stripe.New(g)
	if err != nil {
		return nil, err
	}
	if c.coders == nil {
		c.coders = make(map[place.Geometry]*stripe.Coder)
	}
	c.coders[g] = coder
	return coder, nil
}

func (c *Codec) stripes(g place.Geometry, cellBytes int) *stripe.Buffers {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := bufferShape{g, cellBytes}
	b := c.buffers[key]
	if b == nil {
		b = stripe.NewBuffers(g, cellBytes)
		if c.buffers == nil {
			c.buffers = make(map[bufferShape]*stripe.Buffers)
		}
		c.buffers[key] = b
	}
	return b
}

// EncodeSpec says what to encode a pack as.
type EncodeSpec struct {
	Ring     place.RingID
	Pack     place.PackID
	Encode   place.EncodeID // new for every attempt: keys and nonces depend on it
	Geometry place.Geometry
	// Keys has one new key for each section that the source will write.
	Keys []PackKey
	// CellBytes and BlockBytes default to 256 KiB and 32 KiB; see [shard.Header].
	CellBytes, BlockBytes int
	// Codec may be shared between encodes; nil means one of its own.
	Codec *Codec
}

func (s *EncodeSpec) setDefaults() {
	if s.CellBytes == 0 {
		s.CellBytes = cellBytesUsual
	}
	if s.BlockBytes == 0 {
		s.BlockBytes = min(blockBytesUsual, s.CellBytes)
	}
	if s.Codec == nil {
		s.Codec = new(Codec)
	}
}

// Header returns the header that the shard of that number has, for the sink that will write it.
func (s EncodeSpec) Header(index int) shard.Header {
	s.setDefaults()
	return shard.Header{
		Ring: s.Ring, Pack: s.Pack, Encode: s.Encode, Geometry: s.Geometry, Index: index,
		CellBytes: s.CellBytes, BlockBytes: s.BlockBytes,
	}
}

// PackInfo is what an encode made.
type PackInfo struct {
	StreamBytes int64 // ciphertext with tags and directory: what the shards carry, without parity and padding
	PlainBytes  int64
	CellBytes   int
	BlockBytes  int
	Sections    []Section
	Roots       []shard.Root // by shard number
}

// Encode runs src, which writes the plaintext of a pack, encrypts it, codes it and gives the cells of
// shard i to sinks[i], all at the same time, holding a few stripes however long the pack is. Before a
// stripe is let go it has been decoded from other cells than its data and found equal. At the end all
// sinks commit at once and each must return the root that Encode computed itself.
//
// src runs in another goroutine and returns after its last Finish. Encode returns when src, all sinks
// and all goroutines are done. On failure every sink is aborted, those that had committed keep their
// file, and nothing of the attempt may be used: draw a new encode UUID and new keys. The error wraps that of src, a
// [SinkError] that names the shard (also for [ErrRootMismatch]), or [stripe.MismatchError].
func Encode(ctx context.Context, spec EncodeSpec, src func(w *PackWriter) error, sinks []ShardSink) (PackInfo, error) {
	info, committed, err := encode(ctx, spec, src, sinks)
	if err != nil {
		for i, sink := range sinks {
			if !committed[i] {
				sink.Abort()
			}
		}
		return PackInfo{}, fmt.Errorf("encode pack %v: %w", spec.Pack, err)
	}
	return info, nil
}

func encode(ctx context.Context, spec EncodeSpec, src func(w *PackWriter) error, sinks []ShardSink) (PackInfo, []bool, error) {
	committed := make([]bool, len(sinks))
	spec.setDefaults()
	e, err := newEncoder(spec, sinks)
	if err != nil {
		return PackInfo{}, committed, err
	}
	w, err := e.run(ctx, src)
	if err != nil {
		return PackInfo{}, committed, err
	}
	info := PackInfo{
		StreamBytes: w.streamBytes, CellBytes: spec.CellBytes, BlockBytes: spec.BlockBytes,
		Sections: sectionsOf(w.regions), Roots: make([]shard.Root, len(sinks)),
	}
	last := w.regions[len(w.regions)-1]
	info.PlainBytes = last.plain + last.bytes
	return info, committed, e.commit(ctx, info, committed)
}

// encoder is one running encode: src fills stripes, one goroutine codes them, one a shard
// hashes and sends its cells; stripes go round through free.
type encoder struct {
	spec   EncodeSpec
	coder  *stripe.Coder
	pool   *stripe.Buffers
	sinks  []ShardSink
	builds []*shard.Builder
	free   chan *stripe.Stripe
	filled chan filled
	cells  []chan *flight
}

// filled is a stripe of data that waits for its parity.
type filled struct {
	s         *stripe.Stripe
	cellBytes int
}

// flight is a coded stripe on its way to the sinks; the last to send its cell frees it.
type flight struct {
	s       *stripe.Stripe
	cells   [][]byte
	pending atomic.Int32
}

func newEncoder(spec EncodeSpec, sinks []ShardSink) (*encoder, error) {
	if len(sinks) != spec.Geometry.N() {
		return nil, fmt.Errorf("geometry %v with %d sinks", spec.Geometry, len(sinks))
	}
	if len(spec.Keys) == 0 || len(spec.Keys) > sectionsMax {
		return nil, fmt.Errorf("%d sections: want 1 to %d", len(spec.Keys), sectionsMax)
	}
	coder, err := spec.Codec.coder(spec.Geometry)
	if err != nil {
		return nil, err
	}
	e := &encoder{
		spec: spec, coder: coder, sinks: sinks,
		pool:   spec.Codec.stripes(spec.Geometry, spec.CellBytes),
		free:   make(chan *stripe.Stripe, stripesInFlight),
		filled: make(chan filled, 1),
	}
	for i := range sinks {
		b, err := shard.NewBuilder(spec.Header(i))
		if err != nil {
			return nil, err
		}
		e.builds = append(e.builds, b)
		e.cells = append(e.cells, make(chan *flight, stripesInFlight))
	}
	return e, nil
}

func (e *encoder) run(ctx context.Context, src func(w *PackWriter) error) (*PackWriter, error) {
	for range stripesInFlight {
		e.free <- nil // made when first needed: a tiny pack uses one
	}
	g, ctx := errgroup.WithContext(ctx)
	w := newPackWriter(ctx, e)
	// Each goroutine ends when the one before it closes its channel or when ctx ends; Wait is below.
	g.Go(func() error {
		defer close(e.filled)
		if err := src(w); err != nil {
			return err
		}
		return w.end()
	})
	g.Go(func() error {
		defer func() {
			for _, c := range e.cells {
				close(c)
			}
		}()
		return e.code(ctx)
	})
	for i := range e.sinks {
		g.Go(func() error { return e.send(ctx, i) })
	}
	return w, g.Wait()
}

// code adds parity to stripes, proves them and hands their cells out.
func (e *encoder) code(ctx context.Context) error {
	n := e.spec.Geometry.N()
	scratch := make([][]byte, e.spec.Geometry.M)
	for number := 0; ; number++ {
		f, ok := <-e.filled
		if !ok {
			return nil
		}
		cells := f.s.Cells(f.cellBytes)
		if err := e.fill(cells, number, scratch); err != nil {
			return err
		}
		fl := &flight{s: f.s, cells: cells}
		fl.pending.Store(int32(n))
		for _, c := range e.cells {
			select {
			case c <- fl:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// fill gives the stripe its cells behind the data and proves them. Copies are the data cell itself: every
// sink gets the same memory, so nothing is computed that could go wrong.
func (e *encoder) fill(cells [][]byte, number int, scratch [][]byte) error {
	if e.spec.Geometry.K == 1 {
		for i := range cells {
			cells[i] = cells[0]
		}
		return nil
	}
	if err := e.coder.Encode(cells); err != nil {
		return err
	}
	if err := e.prove(cells, number, scratch); err != nil {
		return fmt.Errorf("stripe %d: %w", number, err)
	}
	return nil
}

// prove decodes M cells of the stripe from the other K and compares. Which M rotates with the stripe,
// starting at a number drawn with the encode UUID, so that over N stripes every shard has been both lost
// and used; the first stripe, which may be the only one, tries every rotation. Decoding runs at memory speed and
// costs a tenth of the encode, so nothing is sampled: a bit that flips in a table, in a register or in a
// stripe's memory between the coding and the sending is found while the originals still exist.
func (e *encoder) prove(cells [][]byte, number int, scratch [][]byte) error {
	m, n := e.spec.Geometry.M, e.spec.Geometry.N()
	if m == 0 || plant.Is(plant.ProofSkipped) {
		return nil
	}
	if scratch[0] == nil {
		for i := range scratch {
			scratch[i] = make([]byte, len(cells[0]))
		}
	}
	rounds := 1
	if number == 0 {
		rounds = n
	}
	lost := make([]int, m)
	for round := range rounds {
		first := int(e.spec.Encode[15]) + number + round
		for i := range lost {
			lost[i] = (first + i) % n
		}
		if plant.Is(plant.ProofOfDataOnly) {
			lost = []int{first % e.spec.Geometry.K}
		}
		if err := e.coder.Check(cells, lost, scratch); err != nil {
			return err
		}
	}
	return nil
}

// send hashes and sends the cells of one shard.
func (e *encoder) send(ctx context.Context, i int) error {
	for fl := range e.cells[i] {
		if err := e.builds[i].Hash(fl.cells[i]); err != nil {
			return err
		}
		if err := e.sinks[i].WriteCell(ctx, fl.cells[i]); err != nil {
			return &SinkError{i, err}
		}
		if fl.pending.Add(-1) == 0 {
			e.free <- fl.s // has room for every stripe there is
		}
	}
	return nil
}

// commit finishes all sinks at once and compares their roots with ours.
func (e *encoder) commit(ctx context.Context, info PackInfo, committed []bool) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, sink := range e.sinks {
		_, want, err := e.builds[i].Finish(info.StreamBytes)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		info.Roots[i] = want
		// Ends with the sink's Commit; each writes its own element of committed.
		g.Go(func() error {
			root, err := sink.Commit(ctx, info.StreamBytes)
			if err == nil && root != want && !plant.Is(plant.RootNotCompared) {
				err = ErrRootMismatch
			}
			if err != nil {
				return &SinkError{i, err}
			}
			committed[i] = true
			return nil
		})
	}
	err := g.Wait()
	for len(e.free) > 0 {
		if s := <-e.free; s != nil {
			e.pool.Put(s)
		}
	}
	return err
}
