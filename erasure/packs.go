package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/vault"
)

// PackRef is what the catalog keeps of a sealed pack and what reading it takes.
type PackRef struct {
	Pack                         place.PackID
	Encode                       place.EncodeID
	Geometry                     place.Geometry
	Placement                    place.Placement
	Generation                   uint64
	CellBytes, BlockBytes        int
	StreamBytes, PlainBytes      int64
	ManifestOffset, ManifestSize int64
	Key                          vault.Key
}

// SealedPack is an open pack; it is an Object over the pack's plaintext. Close it.
type SealedPack struct {
	reader  *PackReader
	sources []io.Closer
	size    int64
}

// OpenSealed opens a pack through the shards of its placement: those here first, then those of this
// site, then the rest. Nothing is read yet. Errors are those of OpenPack.
func (s *Store) OpenSealed(ctx context.Context, ref PackRef) (*SealedPack, error) {
	p := &SealedPack{size: ref.PlainBytes}
	spec := PackSpec{
		Ring: s.cfg.Ring, Pack: ref.Pack, Encode: ref.Encode, Geometry: ref.Geometry,
		CellBytes: ref.CellBytes, BlockBytes: ref.BlockBytes, StreamBytes: ref.StreamBytes,
		Keys: []PackKey{PackKey(ref.Key)}, Sections: OneSection(ref.ManifestOffset, ref.ManifestSize),
		OnBad: func(index int, err error) { s.cfg.BadShard(ref.Pack, index, err) },
		Now:   s.cfg.Now, Codec: &s.codec,
	}
	live := map[place.NodeID]place.Node{}
	for _, n := range s.cfg.Topology() {
		live[n.ID] = n
	}
	for i, slot := range ref.Placement {
		at := shardAddress{ref.Pack, ref.Encode, i, ref.Generation}
		source := Source{Cost: 2}
		switch node := live[slot.Node]; {
		case slot.Node == s.cfg.Self:
			own := &ownSource{store: s, at: at}
			source.Shard, source.Cost = own, 0
			p.sources = append(p.sources, own)
		case s.cfg.Mesh == nil || !node.Live:
		default:
			remote := &remoteSource{store: s, node: slot.Node, at: at}
			source.Shard, source.Pace = remote, s.pace(slot.Node)
			if slot.Site == s.cfg.Site {
				source.Cost = 1
			}
			p.sources = append(p.sources, remote)
		}
		spec.Sources = append(spec.Sources, source)
	}
	reader, err := OpenPack(ctx, spec)
	if err != nil {
		return nil, errors.Join(s.packError(err), p.Close())
	}
	p.reader = reader
	return p, nil
}

func (s *Store) packError(err error) error {
	if errors.Is(err, ErrTooFewShards) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// Size is the length of the pack's plaintext.
func (p *SealedPack) Size() int64 { return p.size }

// CopyRange writes n bytes at off of the plaintext to w, decoding around shards that are missing, bad or
// slow. Errors: ErrUnavailable, ErrPackCorrupt, ErrRange.
func (p *SealedPack) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	err := p.reader.CopyRange(ctx, w, off, n)
	if errors.Is(err, ErrTooFewShards) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// Manifest returns the index of the pack's study.
func (p *SealedPack) Manifest(ctx context.Context) (*Manifest, error) {
	m, err := p.reader.Manifest(ctx, 0)
	if errors.Is(err, ErrTooFewShards) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return m, err
}

// SeriesHeaders yields the kept headers of one series of the manifest, by ordinal, in one read.
func (p *SealedPack) SeriesHeaders(ctx context.Context, s ManifestSeries, yield func(ordinal int, header []byte) error) error {
	err := p.reader.SeriesHeaders(ctx, 0, s, yield)
	if errors.Is(err, ErrTooFewShards) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// Close ends the reads and closes the shards.
func (p *SealedPack) Close() error {
	var errs []error
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	for _, c := range p.sources {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// paces keeps what is known of each peer's speed.
type paces struct {
	mu sync.Mutex

	of map[place.NodeID]*Pace
}

func (s *Store) pace(node place.NodeID) *Pace {
	s.paces.mu.Lock()
	defer s.paces.mu.Unlock()
	if s.paces.of == nil {
		s.paces.of = map[place.NodeID]*Pace{}
	}
	p := s.paces.of[node]
	if p == nil {
		p = new(Pace)
		s.paces.of[node] = p
	}
	return p
}

// OpenHot opens the journal copy of a sealed version, kept after sealing. journal.ErrNotFound when it
// was evicted.
func (s *Store) OpenHot(key journal.Key) (Object, error) {
	local, err := s.journal.OpenObject(key)
	if err != nil {
		return nil, err
	}
	return &held{store: s, key: key, size: local.Size(), local: local}, nil
}

// VerifyShards reads every shard of the pack that this node holds and compares its root; it returns the
// indexes of the good ones and an error for each bad one.
func (s *Store) VerifyShards(ctx context.Context, ref PackRef, roots [][32]byte) (good []int, bad map[int]error) {
	bad = map[int]error{}
	for i, slot := range ref.Placement {
		if slot.Node != s.cfg.Self {
			continue
		}
		if err := s.verifyShard(ctx, shardAddress{ref.Pack, ref.Encode, i, ref.Generation}, roots[i]); err != nil {
			bad[i] = err
			continue
		}
		good = append(good, i)
	}
	return good, bad
}

func (s *Store) verifyShard(ctx context.Context, at shardAddress, want [32]byte) error {
	r, err := s.openShard(at)
	if err != nil {
		return err
	}
	defer r.Close()
	root, err := r.Verify(ctx)
	if err != nil {
		return err
	}
	if root != want {
		return ErrRootMismatch
	}
	return nil
}
