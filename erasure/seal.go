package erasure

import (
	"context"
	"errors"
	"fmt"

	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/raft/vault"
)

// SealSpec says what to encode and where its shards go.
type SealSpec struct {
	Pack       place.PackID
	Encode     place.EncodeID
	Geometry   place.Geometry
	Placement  place.Placement
	Generation uint64
	Key        vault.Key
}

// Cells returns the cell and block size that a seal of this release uses, in bytes.
func Cells() (cell, block int) {
	spec := EncodeSpec{}
	spec.setDefaults()
	return spec.CellBytes, spec.BlockBytes
}

// Seal encodes what src writes into one shard a slot of the placement, each fsynced and read back by its
// holder. On error nothing of the attempt may be used; shards that were committed wait to be collected. A
// [SinkError] names the slot that failed.
func (s *Store) Seal(ctx context.Context, spec SealSpec, src func(w *PackWriter) error) (PackInfo, error) {
	espec := EncodeSpec{
		Ring: s.cfg.Ring, Pack: spec.Pack, Encode: spec.Encode, Geometry: spec.Geometry,
		Keys: []PackKey{PackKey(spec.Key)}, Codec: &s.codec,
	}
	sinks := make([]ShardSink, 0, len(spec.Placement))
	for i, slot := range spec.Placement {
		sink, err := s.openSink(ctx, slot.Node, espec.Header(i), spec.Generation)
		if err != nil {
			s.suspect(slot.Node)
			for _, open := range sinks {
				open.Abort()
			}
			return PackInfo{}, fmt.Errorf("open shard at node %s: %w", slot.Node, &SinkError{i, err})
		}
		sinks = append(sinks, sink)
	}
	return Encode(ctx, espec, src, sinks)
}

func (s *Store) openSink(ctx context.Context, node place.NodeID, h shard.Header, generation uint64) (ShardSink, error) {
	switch {
	case node == s.cfg.Self:
		return s.newLocalSink(h, generation)
	case s.cfg.Mesh == nil:
		return nil, errors.New("this node has no link")
	default:
		return s.newRemoteSink(ctx, node, h, generation)
	}
}

// RemoveShards deletes the shards of encode that this node holds for the given indexes. A shard that is
// not here is fine.
func (s *Store) RemoveShards(pack place.PackID, encode place.EncodeID, indexes []int) error {
	var errs []error
	for _, i := range indexes {
		if err := shard.Remove(s.cfg.FS, s.shardDir(), encode, i); err != nil && !errors.Is(err, shard.ErrNotFound) {
			errs = append(errs, fmt.Errorf("remove shard %d of encode %s: %w", i, encode, err))
			continue
		}
		if s.cfg.Shards != nil {
			errs = append(errs, s.cfg.Shards.Forget(pack, encode, i))
		}
	}
	return errors.Join(errs...)
}
