package dicomsvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"osteon/erasure"
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/vault"
)

// The catalog's words that front ends use.
type (
	Principal     = catalog.Principal
	PrincipalKind = catalog.PrincipalKind
	Query         = catalog.Query
	Key           = catalog.Key
	Match         = catalog.Match
	Level         = catalog.Level
	Study         = catalog.Study
)

const (
	LevelPatient = catalog.LevelPatient
	LevelStudy   = catalog.LevelStudy
	LevelSeries  = catalog.LevelSeries
	LevelImage   = catalog.LevelImage

	PrincipalAE     = catalog.PrincipalAE
	PrincipalToken  = catalog.PrincipalToken
	PrincipalPerson = catalog.PrincipalPerson
	PrincipalNode   = catalog.PrincipalNode
	PrincipalSystem = catalog.PrincipalSystem
	// PrincipalAnonymous is whoever speaks over a loopback address without saying who.
	PrincipalAnonymous = catalog.PrincipalAnonymous
)

// SealPolicy says when a study is sealed. The zero value is the default.
type SealPolicy struct {
	// Quiet is how long no instance of the study arrived. Default 60 s.
	Quiet time.Duration
	// Old is how long an instance may stay unsealed although more arrive. Default 10 min.
	Old time.Duration
	// Bytes is how much a study may hold unsealed, and how much one pack takes. Default 1 GiB.
	Bytes int64
}

// Config is what an Archive is opened with.
type Config struct {
	Ring    place.RingID
	Self    place.NodeID
	Catalog *catalog.Catalog
	Vault   *vault.Vault
	// Store returns the blob store opened with the given callbacks; the archive closes it.
	Store func(Callbacks) (*erasure.Store, error)
	// Topology returns the ring's data nodes as seen from here, this one included.
	Topology func() []place.Node
	// Settled reports whether Topology has come up with the ring since this node started; before, nothing is
	// sealed by what it says. nil: always.
	Settled func() bool
	// Survive returns what new packs shall survive.
	Survive func() place.Survive
	// Leads reports whether this node leads the ring: the leader aborts encodes whose sealer went away.
	Leads func() bool
	// Policy decides who may do what. The zero value allows everything to everybody.
	Policy Policy
	// Catalogued makes Put wait until the catalog applied the instance here (ack: catalogued).
	Catalogued bool
	Seal       SealPolicy

	Now  func() time.Time
	Rand io.Reader
	Log  *slog.Logger
	// Audit takes one record a store, query and retrieve call, at level Info, or Warn when it was denied;
	// nil: Log. It names no patient and no UID.
	Audit *slog.Logger
}

// Callbacks are what the blob store tells the archive.
type Callbacks struct {
	Held     func(key [32]byte, note []byte, from place.NodeID)
	BadShard func(pack place.PackID, index int, err error)
}

// Archive stores, finds and reads instances. It is safe for concurrent use.
type Archive struct {
	cfg       Config
	catalog   *catalog.Catalog
	store     *erasure.Store
	pending   pendingSet
	overlay   overlayCache
	manifests manifestCache
	intakes   intakes
	draining  atomic.Bool
	poison    poison
	stats     Stats

	stop context.CancelFunc
	wait sync.WaitGroup

	sealing  chan struct{} // full while a study is encoded: one at a time
	encoding encoding
	pace     sealPace
	released uint32 // number of the last pack whose versions were released; of replay, then releaseLoop
}

// Stats counts what the archive did since it was opened.
type Stats struct {
	Stored, Identical, Further, Refused atomic.Int64
	StoredBytes                         atomic.Int64
	Sealed, SealFailed                  atomic.Int64
	SealedBytes                         atomic.Int64
	BadShards                           atomic.Int64
	Examined, Matched                   atomic.Int64 // catalog rows that queries read, and what they found
	Mended                              atomic.Int64 // journal records fetched again from another holder
}

// Open replays what this node holds, so that everything it acknowledged is found again, and opens the
// blob store. Call Run to begin the background work and Close to end it.
func Open(cfg Config) (*Archive, error) {
	if cfg.Catalog == nil || cfg.Store == nil || cfg.Topology == nil || cfg.Now == nil || cfg.Rand == nil {
		return nil, errors.New("open archive: Catalog, Store, Topology, Now and Rand are required")
	}
	if cfg.Seal.Quiet == 0 {
		cfg.Seal.Quiet = 60 * time.Second
	}
	if cfg.Seal.Old == 0 {
		cfg.Seal.Old = 10 * time.Minute
	}
	if cfg.Seal.Bytes == 0 {
		cfg.Seal.Bytes = 1 << 30
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = cfg.Log
	}
	a := &Archive{cfg: cfg, catalog: cfg.Catalog, sealing: make(chan struct{}, 1)}
	a.pace.now = cfg.Now
	a.pending.init()
	a.poison.init(cfg.Now)
	store, err := cfg.Store(Callbacks{Held: a.heldForPeer, BadShard: a.badShard})
	if err != nil {
		return nil, err
	}
	a.store = store
	if err := a.replay(); err != nil {
		return nil, errors.Join(fmt.Errorf("open archive: %w", err), store.Close())
	}
	return a, nil
}

// Run starts the loops that offer, seal, release and collect; they end with ctx or Close.
func (a *Archive) Run(ctx context.Context) {
	ctx, a.stop = context.WithCancel(ctx)
	for _, loop := range []func(context.Context){a.offerLoop, a.sealLoop, a.releaseLoop} {
		a.wait.Add(1)
		go func() { // ends with ctx; Close waits for it
			defer a.wait.Done()
			loop(ctx)
		}()
	}
}

// Drain makes Put refuse with ErrDraining; reads go on.
func (a *Archive) Drain() { a.draining.Store(true) }

// Close ends the loops and closes the blob store. The catalog stays open: its owner closes it.
func (a *Archive) Close() error {
	a.draining.Store(true)
	if a.stop != nil {
		a.stop()
	}
	a.wait.Wait()
	a.overlay.drop()
	return a.store.Close()
}

// Stats returns the live counters.
func (a *Archive) Stats() *Stats { return &a.stats }

// Store returns the blob store, for the node's own status.
func (a *Archive) Store() *erasure.Store { return a.store }

func (a *Archive) badShard(pack place.PackID, index int, err error) {
	a.stats.BadShards.Add(1)
	a.cfg.Log.Error("shard unreadable, decoded around it", "pack", pack, "shard", index, "err", err)
}

// Ready returns nil while the archive takes instances, else what Put would refuse them with: ErrDraining,
// ErrFull while the disk is below its reserve, ErrResources while its journal does not answer. Reads go on
// in all of these.
func (a *Archive) Ready() error {
	if a.draining.Load() {
		return ErrDraining
	}
	if err := a.store.Ready(); err != nil {
		return storeError(err)
	}
	return nil
}
