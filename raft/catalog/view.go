package catalog

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Reader reads the catalog. The one in Catalog sees, in every call, the state applied then; the
// one that With returns sees the state at that moment and pending items besides. Every call reads
// one consistent state. All methods are safe for concurrent use. Their errors wrap ErrNotFound
// where documented, ErrMalformed on damage of the database, ErrClosed, or the context's error.
type Reader struct {
	catalog *Catalog
	fixed   *fixedState // nil: the applied state
}

// fixedState is a snapshot and what pending items would change.
type fixedState struct {
	*sharedSnapshot
	over overlay
}

// sharedSnapshot closes with the last reader that uses it.
type sharedSnapshot struct {
	db       *database
	snapshot *pebble.Snapshot
	users    atomic.Int32
}

func (s *sharedSnapshot) close() error {
	if s.users.Add(-1) > 0 {
		return nil
	}
	return firstError(s.snapshot.Close(), s.db.release())
}

// overlay is a set of changes over a snapshot. It is not changed after it is made.
type overlay struct {
	writes   map[string][]byte // nil: deleted
	sorted   []string          // keys of writes
	versions map[VersionID]struct{}
	studies  map[string]struct{}
	series   map[seriesName]struct{}
	patients map[PatientKey]struct{}
}

// With returns a reader over the state as it is now, and as if the pending items had been added:
// what a node holds and the ring has not applied yet. Items that are applied already change
// nothing. The caller closes it, soon: it holds a snapshot. Its error wraps ErrInvalid for items
// that could not be added.
func (c *Catalog) With(pending []AddItem) (*Reader, error) {
	db, err := c.use()
	if err != nil {
		return nil, err
	}
	shared := &sharedSnapshot{db: db, snapshot: db.NewSnapshot()}
	return c.fix(shared, &overlay{}, pending)
}

// Extend returns a reader like r, which With made, over the same moment and as if more items had been
// added behind the others. It costs what the new items cost, and copying references to what changed
// before. Both readers are closed, in any order; r must be open until Extend returns. Its error wraps
// ErrInvalid for items that could not be added.
func (r *Reader) Extend(more []AddItem) (*Reader, error) {
	return r.catalog.fix(r.fixed.sharedSnapshot, &r.fixed.over, more)
}

func (c *Catalog) fix(shared *sharedSnapshot, under *overlay, pending []AddItem) (r *Reader, err error) {
	shared.users.Add(1)
	r = &Reader{catalog: c, fixed: &fixedState{sharedSnapshot: shared}}
	if r.fixed.over, err = c.pend(shared.snapshot, under, pending); err != nil {
		return nil, firstError(err, r.Close())
	}
	return r, nil
}

// pend applies pending items over a snapshot and what is pending under them.
func (c *Catalog) pend(snapshot *pebble.Snapshot, under *overlay, pending []AddItem) (overlay, error) {
	s := newState(snapshot, c.uids, c.tables)
	s.under = under.writes
	defer s.close()
	var err error
	if s.now, err = readTime(snapshot); err != nil {
		return overlay{}, err
	}
	over := overlay{versions: maps.Clone(under.versions)}
	if over.versions == nil {
		over.versions = map[VersionID]struct{}{}
	}
	names := folder{}
	for i := range pending {
		if err := pending[i].check(); err != nil {
			return overlay{}, err
		}
		it := pending[i].normalised(names)
		outcome, err := s.addItem(&it)
		if err != nil {
			return overlay{}, err
		}
		if outcome.New() || outcome == OutcomeLimbo {
			over.versions[it.Version] = struct{}{}
		}
	}
	over.studies = keySet(s.studies, under.studies)
	over.series = keySet(s.series, under.series)
	over.patients = keySet(s.patients, under.patients)
	s.finish()
	over.writes, over.sorted = merged(under, s.writes)
	return over, nil
}

// merged returns the writes of under and those over them, and their keys in order.
func merged(under *overlay, writes map[string][]byte) (all map[string][]byte, sorted []string) {
	fresh := make([]string, 0, len(writes))
	for k := range writes {
		if _, known := under.writes[k]; !known {
			fresh = append(fresh, k)
		}
	}
	slices.Sort(fresh)
	if len(under.writes) == 0 {
		return writes, fresh
	}
	all = maps.Clone(under.writes)
	maps.Copy(all, writes)
	sorted = make([]string, 0, len(all))
	old := under.sorted
	for _, k := range fresh {
		n := sort.SearchStrings(old, k)
		sorted = append(append(sorted, old[:n]...), k)
		old = old[n:]
	}
	return all, append(sorted, old...)
}

// keySet returns the keys of m and those of set.
func keySet[K comparable, V any](m map[K]V, set map[K]struct{}) map[K]struct{} {
	all := make(map[K]struct{}, len(m)+len(set))
	maps.Copy(all, set)
	for k := range m {
		all[k] = struct{}{}
	}
	return all
}

// Close ends the reader of With or Extend. Close of a Catalog's own reader is Close of the catalog.
func (r *Reader) Close() error {
	if r.fixed == nil {
		return r.catalog.Close()
	}
	return r.fixed.close()
}

// view is one consistent state for the time of one call; it belongs to one goroutine.
type view struct {
	ctx      context.Context
	snapshot *pebble.Snapshot
	over     *overlay
	sealed   *sealedIndex
	stats    *Stats
	close    func()
}

// view opens the state that r sees. The caller closes it.
func (r *Reader) view(ctx context.Context) (*view, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := &view{ctx: ctx, over: &overlay{}, stats: &Stats{}, close: func() {}}
	if r.fixed != nil {
		v.snapshot, v.over = r.fixed.snapshot, &r.fixed.over
	} else {
		db, err := r.catalog.use()
		if err != nil {
			return nil, err
		}
		v.snapshot = db.NewSnapshot()
		v.close = func() {
			v.snapshot.Close()
			db.release()
		}
	}
	v.sealed = newSealedIndex(v.get, r.catalog.uids, r.catalog.tables)
	return v, nil
}

// get returns the value at key, nil when there is none.
func (v *view) get(key []byte) ([]byte, error) {
	if value, changed := v.over.writes[string(key)]; changed {
		return value, nil
	}
	return readKey(v.snapshot, key)
}

// examine counts a row and looks at the context now and then.
func (v *view) examine() error {
	if v.stats.Examined++; v.stats.Examined%checkEvery == 0 {
		return v.ctx.Err()
	}
	return nil
}

// cursor walks the keys of a range, one way, over the snapshot and the overlay.
type cursor struct {
	v       *view
	iter    *pebble.Iterator
	started bool
	reverse bool
	keys    []string // of the overlay, in the range, in ascending order
	key     []byte   // current; valid until next
	value   []byte
	err     error
}

// scan returns a cursor over [lower, upper), before the first key or behind the last.
func (v *view) scan(lower, upper []byte, reverse bool) (*cursor, error) {
	iter, err := v.snapshot.NewIterWithContext(v.ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("scan the catalog: %w", err)
	}
	c := &cursor{v: v, iter: iter, reverse: reverse}
	from := sort.SearchStrings(v.over.sorted, string(lower))
	to := len(v.over.sorted)
	if upper != nil {
		to = sort.SearchStrings(v.over.sorted, string(upper))
	}
	c.keys = v.over.sorted[from:max(from, to)]
	return c, nil
}

// scanPrefix returns a cursor over all keys that begin with prefix.
func (v *view) scanPrefix(prefix []byte) (*cursor, error) {
	return v.scan(prefix, after(prefix), false)
}

func (c *cursor) close() { c.iter.Close() }

// next moves to the next key and reports whether there is one; err tells why not.
func (c *cursor) next() bool {
	c.start()
	for c.err == nil {
		key, value, over := c.pick()
		if key == nil {
			c.err = c.iter.Error()
			return false
		}
		if over && value == nil {
			continue
		}
		c.key, c.value = key, value
		c.err = c.v.examine()
		return c.err == nil
	}
	return false
}

// start moves the snapshot's side to its first key.
func (c *cursor) start() {
	switch {
	case c.started:
	case c.reverse:
		c.iter.Last()
	default:
		c.iter.First()
	}
	c.started = true
}

// pick takes the next key off the overlay or the snapshot, off both when they have the same one;
// the overlay's value counts then.
func (c *cursor) pick() (key, value []byte, over bool) {
	var head string
	hasHead := len(c.keys) > 0
	if hasHead {
		if head = c.keys[0]; c.reverse {
			head = c.keys[len(c.keys)-1]
		}
	}
	if !c.iter.Valid() && !hasHead {
		return nil, nil, false
	}
	order := -1 // the overlay's key comes first
	switch {
	case !hasHead:
		order = 1
	case c.iter.Valid():
		if order = bytes.Compare([]byte(head), c.iter.Key()); c.reverse {
			order = -order
		}
	}
	if order > 0 {
		key = append([]byte(nil), c.iter.Key()...)
		value = append(make([]byte, 0, len(c.iter.Value())), c.iter.Value()...)
		c.step()
		return key, value, false
	}
	if order == 0 {
		c.step()
	}
	if c.reverse {
		c.keys = c.keys[:len(c.keys)-1]
	} else {
		c.keys = c.keys[1:]
	}
	return []byte(head), c.v.over.writes[head], true
}

func (c *cursor) step() {
	if c.reverse {
		c.iter.Prev()
	} else {
		c.iter.Next()
	}
}
