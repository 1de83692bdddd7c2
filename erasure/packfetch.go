package erasure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"osteon/erasure/shard"
)

// shyReads is for how many reads a source that had to be hedged is not asked first.
const shyReads = 32

// segment is a stretch of the stream inside one stripe.
type segment struct {
	bytes []byte
	whole *[]byte // the pooled memory that bytes is part of
	err   error
}

// fetchSegment reads stream bytes [from, to), which lie in one stripe, without the shards in avoid. The
// caller releases the result.
func (r *PackReader) fetchSegment(ctx context.Context, from, to int64, avoid []int) segment {
	cell, block := int64(r.shape.CellBytes), int64(r.shape.BlockBytes)
	stripeBytes := int64(r.shape.Geometry.K) * cell
	stripe := from / stripeBytes
	each := int64(r.shape.CellLen(stripe))
	if each == 0 {
		return segment{err: ErrRange}
	}
	from, to = from-stripe*stripeBytes, to-stripe*stripeBytes
	// Widen to whole blocks inside the first and last cell.
	lo := from - (from%each)%block
	end := (to-1)%each + 1
	hi := to - end + min((end+block-1)/block*block, each)

	whole := r.slabs.get(int(hi - lo))
	f := &fetch{r: r, stripe: stripe, each: int(each), avoid: avoid}
	for at := lo; at < hi; {
		stop := min((at/each+1)*each, hi)
		f.pieces = append(f.pieces, &piece{
			cell: int(at / each), from: int(at % each), to: int(stop - at + at%each), dst: (*whole)[at-lo : stop-lo],
		})
		at = stop
	}
	if err := f.run(ctx); err != nil {
		r.slabs.put(whole)
		return segment{err: err}
	}
	return segment{bytes: (*whole)[from-lo : to-lo], whole: whole}
}

func (r *PackReader) release(s segment) {
	if s.whole != nil {
		r.slabs.put(s.whole)
	}
}

// byCost orders shard numbers by the cost of their sources, data before parity.
func byCost(sources []Source) []int {
	order := make([]int, len(sources))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sources[a].Cost, sources[b].Cost) })
	return order
}

// piece is the part of one data cell that is wanted, a range of whole blocks.
type piece struct {
	cell     int
	from, to int // in the cell
	dst      []byte
	done     bool
}

// span is a range inside the cells of a stripe.
type span struct{ from, to int }

func (s span) covers(o span) bool { return s.from <= o.from && o.to <= s.to }

// read is one read of a shard that was started.
type read struct {
	shard int
	span
	buf  *[]byte
	slow bool // did not answer within the hedge time
	err  error
}

// fetch gets the pieces of one stripe. One goroutine runs it and decides everything; reads run in
// goroutines of their own, into memory of their own, so that one that never returns holds nothing up.
type fetch struct {
	r      *PackReader
	stripe int64
	each   int // length of the stripe's cells
	avoid  []int
	pieces []*piece

	fresh   bool // reads were started since the timer was set
	results chan *read
	flying  map[*read]bool
	have    map[int]*read // shards whose read came back good, the widest of each
	failed  map[int]error
}

// run returns when every piece is there, or fails with ErrTooFewShards and the reasons. When shards
// are bad in different blocks the stripe may still have K good cells for each row of blocks, so then it
// is read row by row.
func (f *fetch) run(ctx context.Context) error {
	err := f.attempt(ctx)
	block := f.r.shape.BlockBytes
	if !errors.Is(err, ErrTooFewShards) || !errors.Is(err, shard.ErrCorrupt) {
		return err
	}
	rows := 0
	for _, p := range f.pieces {
		rows += (p.to - p.from + block - 1) / block
	}
	if rows <= 1 {
		return err
	}
	for _, p := range f.pieces {
		for at := p.from; at < p.to; at += block {
			stop := min(at+block, p.to)
			row := &fetch{r: f.r, stripe: f.stripe, each: f.each, avoid: f.avoid,
				pieces: []*piece{{cell: p.cell, from: at, to: stop, dst: p.dst[at-p.from : stop-p.from]}}}
			if err := row.attempt(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fetch) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the reads that are not needed any more
	n := f.r.shape.Geometry.N()
	f.results = make(chan *read, n)
	f.flying = make(map[*read]bool)
	f.have = make(map[int]*read)
	f.failed = make(map[int]error)
	defer f.drop()

	f.startPieces(ctx)
	timer := time.NewTimer(hedgeMost) // set again as soon as reads are started
	defer timer.Stop()
	for {
		done, err := f.advance(ctx)
		if done || err != nil {
			return err
		}
		if f.fresh {
			f.fresh = false
			timer.Reset(f.patience())
		}
		select {
		case got := <-f.results:
			f.take(ctx, got)
		case <-timer.C:
			for read := range f.flying {
				read.slow = true
			}
			timer.Reset(f.patience())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// startPieces reads every piece from its own shard, or for copies from the cheapest. Shards out of
// reach are left for decoding to replace.
func (f *fetch) startPieces(ctx context.Context) {
	for _, p := range f.pieces {
		i := p.cell
		if f.r.shape.Geometry.K == 1 {
			i = f.cheapest()
		}
		if i >= 0 && f.usable(i) && !f.r.down[i].Load() && !f.r.isShy(i) {
			f.start(ctx, i, span{p.from, p.to})
		}
	}
}

// cheapest returns the first shard in order of cost that is not known to be out of reach, or -1.
func (f *fetch) cheapest() int {
	for _, i := range f.r.order {
		if f.usable(i) && !f.r.down[i].Load() {
			return i
		}
	}
	return -1
}

// usable reports whether shard i may be asked at all in this fetch.
func (f *fetch) usable(i int) bool {
	return f.r.spec.Sources[i].Shard != nil && f.failed[i] == nil && !slices.Contains(f.avoid, i)
}

// isShy reports whether the shard was hedged a short while ago, and counts the read.
func (r *PackReader) isShy(i int) bool {
	if r.shy[i].Load() <= 0 {
		return false
	}
	return r.shy[i].Add(-1) >= 0
}

// start reads a span of shard i.
func (f *fetch) start(ctx context.Context, i int, s span) {
	rd := &read{shard: i, span: s, buf: f.r.slabs.get(s.to - s.from)}
	f.flying[rd], f.fresh = true, true
	off := f.stripe*int64(f.r.shape.CellBytes) + int64(s.from)
	src, now, results := f.r.spec.Sources[i], f.r.spec.Now, f.results
	// Ends when the source returns, which it does soon after ctx ends; Close waits for it. It owns
	// rd until it has sent it.
	f.r.reading.Go(func() {
		var began time.Time
		if now != nil {
			began = now()
		}
		rd.err = src.Shard.ReadShard(ctx, *rd.buf, off)
		if now != nil && src.Pace != nil && rd.err == nil {
			src.Pace.Record(now().Sub(began))
		}
		select {
		case results <- rd:
		case <-ctx.Done():
		}
	})
}

// take books a result.
func (f *fetch) take(ctx context.Context, rd *read) {
	delete(f.flying, rd)
	if rd.err != nil && ctx.Err() != nil {
		return // it says nothing of the shard
	}
	if rd.err != nil {
		f.r.slabs.put(rd.buf)
		rd.buf = nil
		f.failed[rd.shard] = rd.err
		f.r.report(rd.shard, rd.err)
		// A corrupt block says nothing of the shard's others; anything else does.
		if !errors.Is(rd.err, shard.ErrCorrupt) {
			f.r.down[rd.shard].Store(true)
		}
		return
	}
	f.r.down[rd.shard].Store(false)
	f.keep(rd)
	for _, p := range f.pieces {
		if !p.done && f.serves(rd.shard, p.cell) && rd.covers(span{p.from, p.to}) {
			copy(p.dst, (*rd.buf)[p.from-rd.from:p.to-rd.from])
			p.done = true
		}
	}
}

// serves reports whether shard i holds data cell cell as it is.
func (f *fetch) serves(i, cell int) bool { return i == cell || f.r.shape.Geometry.K == 1 }

// keep remembers a good read for decoding.
func (f *fetch) keep(rd *read) {
	old := f.have[rd.shard]
	if old != nil && old.covers(rd.span) {
		f.r.slabs.put(rd.buf)
		rd.buf = old.buf
		rd.span = old.span
		return
	}
	if old != nil {
		f.r.slabs.put(old.buf)
	}
	f.have[rd.shard] = rd
}

// advance decodes when it can and starts reads that decoding lacks. It reports whether all is there.
func (f *fetch) advance(ctx context.Context) (done bool, err error) {
	missing, lost := f.missing()
	if missing.to == 0 {
		return true, nil
	}
	if !lost {
		return false, nil // everything missing is on its way
	}
	k := f.r.shape.Geometry.K
	good, coming := 0, 0
	for _, rd := range f.have {
		if rd.covers(missing) {
			good++
		}
	}
	if good >= k {
		return true, f.decode(missing)
	}
	for rd := range f.flying {
		if !rd.slow && rd.covers(missing) {
			coming++
		}
	}
	for hope := range 3 {
		for _, i := range f.r.order {
			if good+coming >= k {
				return false, nil
			}
			if f.usable(i) && f.r.hope(i) == hope && !f.has(i, missing) {
				f.start(ctx, i, missing)
				coming++
			}
		}
	}
	if good+len(f.flying) < k && !f.mayComeAlone(missing) {
		return false, f.tooFew()
	}
	return false, nil
}

// hope orders shards of equal cost: 0 as good as any, 1 slow a short while ago, 2 out of reach when last
// asked.
func (r *PackReader) hope(i int) int {
	switch {
	case r.down[i].Load():
		return 2
	case r.shy[i].Load() > 0:
		return 1
	}
	return 0
}

// missing returns the span that holds what every unfinished piece lacks, and whether one of
// them is not to be waited for: its read failed, is slow or was never started.
func (f *fetch) missing() (all span, lost bool) {
	for _, p := range f.pieces {
		if p.done {
			continue
		}
		if all.to == 0 {
			all = span{p.from, p.to}
		}
		all = span{min(all.from, p.from), max(all.to, p.to)}
		if !f.awaited(p) {
			lost = true
		}
	}
	return all, lost
}

// awaited reports whether a read that will bring the piece is flying and not slow.
func (f *fetch) awaited(p *piece) bool {
	for rd := range f.flying {
		if !rd.slow && f.serves(rd.shard, p.cell) && rd.covers(span{p.from, p.to}) {
			return true
		}
	}
	return false
}

// mayComeAlone reports whether a piece can still come by itself, or a read is flying whose shard can be
// asked again for all of s.
func (f *fetch) mayComeAlone(s span) bool {
	for rd := range f.flying {
		if !rd.covers(s) {
			return true
		}
		for _, p := range f.pieces {
			if !p.done && f.serves(rd.shard, p.cell) {
				return true
			}
		}
	}
	return false
}

// has reports whether shard i was read, or is being read, at least as wide as s.
func (f *fetch) has(i int, s span) bool {
	if rd := f.have[i]; rd != nil && rd.covers(s) {
		return true
	}
	for rd := range f.flying {
		if rd.shard == i && rd.covers(s) {
			return true
		}
	}
	return false
}

// decode computes the unfinished pieces over span s from K good reads. Any same range of the cells of a
// stripe is a stripe of its own, since the code works byte by byte.
func (f *fetch) decode(s span) error {
	g := f.r.shape.Geometry
	cells := make([][]byte, g.N())
	n := 0
	for _, i := range f.r.order {
		if rd := f.have[i]; rd != nil && rd.covers(s) && n < g.K {
			cells[i] = (*rd.buf)[s.from-rd.from : s.to-rd.from]
			n++
		}
	}
	want := make([]bool, g.N())
	for _, p := range f.pieces {
		if p.done || len(cells[p.cell]) > 0 {
			continue
		}
		want[p.cell] = true
		if p.from == s.from && p.to == s.to {
			cells[p.cell] = p.dst[:0:len(p.dst)] // decoded in place
			continue
		}
		room := f.r.slabs.get(s.to - s.from)
		defer f.r.slabs.put(room)
		cells[p.cell] = (*room)[:0]
	}
	if err := f.r.coder.ReconstructSome(cells, want); err != nil {
		return err
	}
	for _, p := range f.pieces {
		if p.done {
			continue
		}
		if from := cells[p.cell][p.from-s.from : p.to-s.from]; &from[0] != &p.dst[0] {
			copy(p.dst, from)
		}
		p.done = true
	}
	f.markShy()
	return nil
}

// markShy remembers the sources that were overtaken.
func (f *fetch) markShy() {
	for rd := range f.flying {
		if rd.slow {
			f.r.shy[rd.shard].Store(shyReads)
		}
	}
}

// patience returns how long to wait for the reads that fly.
func (f *fetch) patience() time.Duration {
	wait := time.Duration(0)
	for rd := range f.flying {
		if !rd.slow {
			wait = max(wait, f.r.spec.Sources[rd.shard].hedgeAfter(f.r.spec.Hedge))
		}
	}
	if wait == 0 {
		return hedgeMost
	}
	return wait
}

// drop gives the memory of finished reads back; that of reads still flying is theirs.
func (f *fetch) drop() {
	for _, rd := range f.have {
		f.r.slabs.put(rd.buf)
	}
}

// tooFew names every shard that failed this fetch.
func (f *fetch) tooFew() error {
	errs := []error{fmt.Errorf("stripe %d needs %d shards: %w", f.stripe, f.r.shape.Geometry.K, ErrTooFewShards)}
	for i := range f.r.spec.Sources {
		switch {
		case f.failed[i] != nil:
			errs = append(errs, fmt.Errorf("shard %d: %w", i, f.failed[i]))
		case f.r.spec.Sources[i].Shard == nil:
			errs = append(errs, fmt.Errorf("shard %d: out of reach", i))
		}
	}
	return errors.Join(errs...)
}
