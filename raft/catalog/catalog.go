package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// Config is what Open needs. FS and MAC are required.
type Config struct {
	FS  vfs.FS // encrypting; the catalog holds patient data
	Dir string
	// MAC is the ring's keyed hash, the same on every node; UID hashes come from it.
	MAC func(label string, parts ...[]byte) [32]byte
	// Now is the clock whose time Do puts into batches; without it the time stays zero and ring
	// time stands still.
	Now func() time.Time
	Log *slog.Logger // nil discards
	// Damaged, when set, is told what a read of the database found not to be what was written. It must not block.
	Damaged func(error)
	// Failed, when set, is told of an error of the disk after which the database writes nothing more. It must not block.
	Failed     func(error)
	CacheBytes int64 // of Pebble's block cache and write buffers; 0 is 128 MiB, less than 80 MiB leaves no cache
}

// Proposer is the ring: Propose returns after the entry was applied somewhere, with its index and
// what Apply returned for it.
type Proposer interface {
	Propose(ctx context.Context, data []byte) (index uint64, result []byte, err error)
}

// Catalog is the replica of one node. All methods are safe for concurrent use; Apply, Restore and
// Checkpoint are called by the ring, one at a time. Its Reader sees the applied state.
type Catalog struct {
	*Reader
	cfg    Config
	cache  *pebble.Cache
	tables *tableCodec
	uids   uidKeys

	mu         sync.Mutex
	db         *database // nil: closed
	marker     *atomicfs.Marker
	generation uint64
	applied    uint64
	advanced   chan struct{} // closed and replaced when applied moves or a fault is found
	fault      error
	proposer   Proposer
}

// Names in tableMeta.
const (
	metaApplied    = "applied" // index and term of the last applied entry
	metaTime       = "time"    // ring time
	metaPacks      = "packs"   // number of the last pack
	metaTombstones = "tombstones"
	metaRegistry   = "registry" // how often AEs and HTTP tokens have changed
)

// Open opens or creates the catalog in cfg.Dir. The caller closes it. ErrDamaged when what is there cannot be used: a
// catalog that is empty is given everything by Raft again.
func Open(cfg Config) (*Catalog, error) {
	if cfg.FS == nil || cfg.MAC == nil {
		return nil, invalid("Config", "want FS and MAC")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	tables, err := newTableCodec()
	if err != nil {
		return nil, err
	}
	cache := pebble.NewCache(cfg.CacheBytes)
	c := &Catalog{cfg: cfg, cache: cache, tables: tables, advanced: make(chan struct{})}
	c.uids.key = cfg.MAC("osteon catalog uid")
	c.db, c.marker, c.generation, err = openCurrent(cfg, cache)
	if err == nil {
		c.applied, err = readApplied(c.db)
	}
	c.Reader = &Reader{catalog: c}
	if err != nil {
		return nil, firstError(damagedUnlessSystem(err), c.Close())
	}
	return c, nil
}

// Close closes the catalog. Reads that are under way end first with their own Close; the database
// closes with the last of them.
func (c *Catalog) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if c.db != nil {
		errs = append(errs, c.db.release())
		c.db = nil
	}
	if c.marker != nil {
		errs = append(errs, c.marker.Close())
		c.marker = nil
	}
	if c.cache != nil {
		c.cache.Unref()
		c.cache = nil
	}
	c.advance()
	return errors.Join(errs...)
}

// SetProposer tells Do where commands go.
func (c *Catalog) SetProposer(p Proposer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proposer = p
}

// UIDHash returns the keyed hash by which tombstones remember a UID.
func (c *Catalog) UIDHash(uid string) [32]byte { return c.uids.hash(uid) }

// use returns the database with a reference that the caller releases.
func (c *Catalog) use() (*database, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil || !c.db.acquire() {
		return nil, ErrClosed
	}
	return c.db, nil
}

// advance wakes all who wait; mu is held.
func (c *Catalog) advance() {
	close(c.advanced)
	c.advanced = make(chan struct{})
}

// Applied returns the index of the last applied log entry.
func (c *Catalog) Applied() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applied
}

// Fault returns why the catalog has stopped applying: ErrUnknownCommand, or damage or a disk error
// found by Apply; nil while all is well.
func (c *Catalog) Fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// WaitApplied returns when the entry at index has been applied here. Its error is the context's,
// the Fault that keeps it from happening, or ErrClosed.
func (c *Catalog) WaitApplied(ctx context.Context, index uint64) error {
	for {
		c.mu.Lock()
		applied, fault, advanced, closed := c.applied, c.fault, c.advanced, c.db == nil
		c.mu.Unlock()
		switch {
		case applied >= index:
			return nil
		case fault != nil:
			return fault
		case closed:
			return ErrClosed
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("wait for log entry %d: %w", index, ctx.Err())
		}
	}
}

// Do proposes commands and returns their results, in order, and the index of the last entry. Adds
// are split so that no log entry exceeds MaxBatchItems instances or, with the other commands,
// about MaxBatchBytes; every entry stands alone, so on an error a part may have been applied, and
// repeating the whole is safe. Results tell what was refused; the error is the proposer's, or
// wraps ErrInvalid or ErrNoProposer.
func (c *Catalog) Do(ctx context.Context, p Principal, cmds ...Command) (results []Result, index uint64, err error) {
	c.mu.Lock()
	proposer := c.proposer
	c.mu.Unlock()
	if proposer == nil {
		return nil, 0, ErrNoProposer
	}
	results = make([]Result, len(cmds))
	for _, part := range split(cmds) {
		batch := Batch{By: p, Commands: part.commands}
		if c.cfg.Now != nil {
			batch.Time = c.cfg.Now()
		}
		entry, err := Encode(batch)
		if err != nil {
			return nil, index, err
		}
		at, encoded, err := proposer.Propose(ctx, entry)
		if err != nil {
			return nil, index, fmt.Errorf("propose to the catalog: %w", err)
		}
		index = max(index, at)
		got, err := DecodeResults(encoded)
		if err != nil {
			return nil, index, err
		}
		if err := part.merge(results, got); err != nil {
			return nil, index, err
		}
	}
	return results, index, nil
}

// part is what travels in one log entry, and which of the commands of Do each piece belongs to.
type part struct {
	commands []Command
	of       []int
	items    int
	bytes    int
}

// merge puts the results of the part where they belong.
func (p *part) merge(results, got []Result) error {
	if len(got) == 1 && len(p.of) != 1 && got[0].Code != CodeOK {
		return got[0].Err()
	}
	if len(got) != len(p.of) {
		return fmt.Errorf("%w result of a log entry: %d for %d commands", ErrMalformed, len(got), len(p.of))
	}
	for i, r := range got {
		to := &results[p.of[i]]
		to.Items = append(to.Items, r.Items...)
		if r.Code != CodeOK {
			to.Code, to.Detail = r.Code, r.Detail
		}
	}
	return nil
}

// split cuts commands into parts of at most MaxBatchItems and about MaxBatchBytes.
func split(cmds []Command) []*part {
	var parts []*part
	current := &part{}
	put := func(c Command, of, items, bytes int) {
		full := current.items+items > MaxBatchItems || current.bytes+bytes > MaxBatchBytes || len(current.commands) == maxCommands
		if full && len(current.commands) > 0 {
			parts = append(parts, current)
			current = &part{}
		}
		current.commands, current.of = append(current.commands, c), append(current.of, of)
		current.items += items
		current.bytes += bytes
	}
	for i, c := range cmds {
		switch c := c.(type) {
		case *Add:
			putAdd(*c, i, put)
		case Add:
			putAdd(c, i, put)
		default:
			put(c, i, 0, len(c.append(nil, &blobWriter{refs: map[string]uint64{}, names: folder{}})))
		}
	}
	if len(current.commands) > 0 {
		parts = append(parts, current)
	}
	return parts
}

// putAdd puts the items of an Add in pieces. What the items of a piece share counts once.
func putAdd(c Add, of int, put func(c Command, of, items, bytes int)) {
	for first := 0; first < len(c.Items) || first == 0; {
		bytes, n := 0, 0
		var before *AddItem
		for n < MaxBatchItems && first+n < len(c.Items) {
			it := &c.Items[first+n]
			size := it.size(before)
			if n > 0 && bytes+size > MaxBatchBytes {
				break
			}
			bytes += size
			before = it
			n++
		}
		put(Add{Items: c.Items[first : first+n]}, of, n, bytes)
		if first += n; n == 0 {
			return
		}
	}
}

// size returns about how many bytes the item takes after one like before.
func (it *AddItem) size(before *AddItem) int {
	n := 256 + len(it.Attributes) + 16*len(it.Holders)
	if before == nil || before.StudyInstanceUID != it.StudyInstanceUID {
		n += len(it.PatientAttributes) + len(it.StudyAttributes)
	}
	if before == nil || before.SeriesInstanceUID != it.SeriesInstanceUID {
		n += len(it.SeriesAttributes)
	}
	return n
}
