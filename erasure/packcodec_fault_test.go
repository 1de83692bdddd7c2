package erasure

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"osteon/erasure/place"
	"osteon/erasure/shard"
)

// bad collects what a reader reports.
type bad struct {
	mu   sync.Mutex
	list map[int]error
	n    int
}

func (b *bad) note(i int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.list == nil {
		b.list = map[int]error{}
	}
	b.list[i] = err
	b.n++
}

// F13: one bad block in a shard: served, decoded around in the same read, reported once.
func TestReadAroundBitRot(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 5, M: 4}, 1), [][2]int{{6 << 20, 1000}})
	sources := p.sources()
	block := int64(p.info.BlockBytes)
	sources[2].before = func(_ context.Context, off int64, n int) error {
		if off <= 3*block && 3*block < off+int64(n) {
			return &shard.CorruptError{Index: 2, Block: 3, Why: "test"}
		}
		return nil
	}
	var seen bad
	r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note })
	for range 3 {
		if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
			t.Fatal("bytes differ")
		}
	}
	if seen.n != 1 || !errors.Is(seen.list[2], shard.ErrCorrupt) {
		t.Errorf("reported %d times: %v", seen.n, seen.list)
	}
	if len(sources[2].reads) == 0 {
		t.Error("the good blocks of the shard were not used")
	}
}

// F14: every shard is bad somewhere, at most M of each row of blocks, more than M of each cell.
func TestReadAroundHelicalRot(t *testing.T) {
	g := place.Geometry{K: 4, M: 2}
	p := encodePack(t, specOf(g, 1), [][2]int{{5 << 20, 1000}})
	sources := p.sources()
	for i, s := range sources {
		s.before = func(_ context.Context, off int64, n int) error {
			for b := off / int64(p.info.BlockBytes); b*int64(p.info.BlockBytes) < off+int64(n); b++ {
				if int(b)%g.N() == i || int(b+1)%g.N() == i {
					return &shard.CorruptError{Index: i, Block: b, Why: "test"}
				}
			}
			return nil
		}
	}
	r := p.open(t, sources, nil)
	if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
		t.Fatal("bytes differ")
	}
}

// More than M shards gone: a clear error, no bytes that are not right.
func TestTooFewShards(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 3, M: 1}, 1), [][2]int{{2 << 20, 1000}})
	sources := p.sources()
	sources[0], sources[3] = nil, nil
	var seen bad
	r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note })
	var out bytes.Buffer
	if err := r.CopyRange(t.Context(), &out, 0, int64(len(p.plain))); !errors.Is(err, ErrTooFewShards) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(out.Bytes(), p.plain[:out.Len()]) {
		t.Error("wrong bytes before the error")
	}
	// What the living shards hold as it is can still be read.
	got := make([]byte, 1000)
	if _, err := r.ReadAt(t.Context(), got, 300_000); err != nil || !bytes.Equal(got, p.plain[300_000:301_000]) {
		t.Errorf("a range on a living shard: %v", err)
	}
}

// OpenPack that fails has no read under way any more: its caller closes the sources next. Found by FuzzShards.
func TestOpenPackFailsWithoutReadsLeft(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 1, M: 1}, 1), [][2]int{{5000, 100}})
	sources := p.sources()
	var reading atomic.Int32
	sources[0].before = func(ctx context.Context, _ int64, _ int) error { // slow: the copy is read in its place
		reading.Add(1)
		defer reading.Add(-1)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // as long as a disk may take to notice
		return ctx.Err()
	}
	_, err := OpenPack(t.Context(), PackSpec{
		Ring: p.spec.Ring, Pack: p.spec.Pack, Encode: p.spec.Encode, Geometry: p.spec.Geometry, Keys: append(p.spec.Keys, PackKey{}),
		CellBytes: p.info.CellBytes, BlockBytes: p.info.BlockBytes, StreamBytes: p.info.StreamBytes,
		Sources: []Source{{Shard: sources[0]}, {Shard: sources[1]}}, Hedge: time.Millisecond,
	})
	if err == nil {
		t.Fatal("two keys for one section pass")
	}
	if n := reading.Load(); n != 0 {
		t.Errorf("%d reads go on after OpenPack failed", n)
	}
}

// A holder whose own checks pass and whose bytes are wrong (a stale or misdirected shard): found by
// authentication, decoded around, named. Also two of them at once, one of them parity in use.
func TestDoubtNamesLiars(t *testing.T) {
	for _, liars := range [][]int{{1}, {0, 4}, {2, 3}} {
		g := place.Geometry{K: 4, M: 3}
		p := encodePack(t, specOf(g, 1), [][2]int{{3 << 20, 1000}})
		sources := p.sources()
		if slices.Contains(liars, 4) {
			sources[1] = nil // so that parity is in use from the start
		}
		for _, i := range liars {
			sources[i].body = randomBytes(uint64(i), len(p.body[i]))
		}
		var seen bad
		r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note })
		got := make([]byte, 900_000)
		if _, err := r.ReadAt(t.Context(), got, 100_000); err != nil || !bytes.Equal(got, p.plain[100_000:1_000_000]) {
			t.Errorf("liars %v: %v", liars, err)
		}
		for i := range seen.list {
			if !slices.Contains(liars, i) {
				t.Errorf("liars %v: shard %d accused", liars, i)
			}
		}
		if len(seen.list) == 0 {
			t.Errorf("liars %v: nobody accused", liars)
		}
	}
}

// A source that hangs costs one hedge time and one extra read, then is asked last.
func TestHedgedRead(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 4, M: 2}, 1), [][2]int{{7 << 20, 1000}})
	synctest.Test(t, func(t *testing.T) {
		sources := p.sources()
		var hung atomic.Int32
		sources[1].before = func(ctx context.Context, _ int64, _ int) error {
			hung.Add(1)
			<-ctx.Done()
			return ctx.Err()
		}
		var seen bad
		r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note; s.Hedge = 100 * time.Millisecond; s.Now = time.Now })
		began := time.Now()
		if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
			t.Fatal("bytes differ")
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("a hung source cost %v, want one hedge of 100ms", took)
		}
		// The window's reads all hang at once; after them the source is skipped.
		if n := hung.Load(); n > windowStripes+2 {
			t.Errorf("the hung source was asked %d times", n)
		}
		extra := len(sources[4].reads) + len(sources[5].reads)
		stripes := int(r.shape.Stripes())
		if extra > stripes {
			t.Errorf("%d parity reads for %d stripes", extra, stripes)
		}
		if seen.n != 0 {
			t.Errorf("a slow source was reported bad: %v", seen.list)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A parity source that hangs while it stands in for a lost shard is itself replaced after one hedge time.
func TestHedgedDecode(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 4, M: 2}, 1), [][2]int{{700_000, 1000}})
	synctest.Test(t, func(t *testing.T) {
		sources := p.sources()
		sources[0] = nil
		sources[4].before = func(ctx context.Context, _ int64, _ int) error { <-ctx.Done(); return ctx.Err() }
		r := p.open(t, sources, func(s *PackSpec) { s.Hedge = 100 * time.Millisecond })
		began := time.Now()
		if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
			t.Fatal("bytes differ")
		}
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("took %v, want one hedge of 100ms", took)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A source that fails outright costs no waiting and is asked again only when others fail.
func TestDownSourceIsAskedLast(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 2, M: 1}, 1), [][2]int{{7 << 20, 1000}})
	sources := p.sources()
	var asked atomic.Int32
	sources[0].before = func(context.Context, int64, int) error {
		asked.Add(1)
		return errors.New("connection refused")
	}
	var seen bad
	r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note })
	for range 5 {
		if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
			t.Fatal("bytes differ")
		}
	}
	if n := asked.Load(); n > windowStripes+1 {
		t.Errorf("asked %d times", n)
	}
	if seen.n != 1 {
		t.Errorf("reported %d times", seen.n)
	}
	// It comes back while another fails: used again.
	sources[0].before = nil
	sources[2].before = func(context.Context, int64, int) error { return errors.New("gone") }
	if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
		t.Fatal("bytes differ after the swap")
	}
}

func TestCopiesAreReadFromTheNearest(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 1, M: 2}, 1), [][2]int{{1 << 20, 1000}})
	sources := p.sources()
	r := p.open(t, sources, func(s *PackSpec) {
		for i := range s.Sources {
			s.Sources[i].Cost = 2 - i
		}
	})
	if !bytes.Equal(readAll(t, r, len(p.plain)), p.plain) {
		t.Fatal("bytes differ")
	}
	if len(sources[0].reads)+len(sources[1].reads) != 0 || len(sources[2].reads) == 0 {
		t.Error("the nearest copy was not the one read")
	}
}

func TestReadEndsWithContext(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 2, M: 1}, 1), [][2]int{{1 << 20, 1000}})
	sources := p.sources()
	for _, s := range sources {
		s.before = func(ctx context.Context, _ int64, _ int) error { <-ctx.Done(); return ctx.Err() }
	}
	var seen bad
	r := p.open(t, sources, func(s *PackSpec) { s.OnBad = seen.note })
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if err := r.CopyRange(ctx, &bytes.Buffer{}, 0, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if seen.n != 0 {
		t.Errorf("cancelled reads were reported: %v", seen.list)
	}
}

func TestPace(t *testing.T) {
	var p Pace
	if _, ok := p.P95(); ok {
		t.Error("an empty pace knows something")
	}
	for i := range 100 {
		p.Record(time.Duration(i) * time.Millisecond)
	}
	if d, ok := p.P95(); !ok || d < 90*time.Millisecond || d > 99*time.Millisecond {
		t.Errorf("p95 %v", d)
	}
}

func TestConcurrentReads(t *testing.T) {
	p := encodePack(t, specOf(place.Geometry{K: 4, M: 2}, 1), [][2]int{{4 << 20, 1000}})
	sources := p.sources()
	sources[3].before = corruptEvery(3)
	r := p.open(t, sources, nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				off := (w*531_977 + i*104_729) % (3 << 20)
				got := make([]byte, 150_000)
				if _, err := r.ReadAt(t.Context(), got, int64(off)); err != nil || !bytes.Equal(got, p.plain[off:off+len(got)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
