package erasure

import (
	"context"
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/shard"
)

// LocalSink starts the shard file of h under dir and returns a sink that, after its commit, opens the
// file again and reports the root of what is on the disk. Errors as of [shard.Create].
func LocalSink(fs vfs.FS, dir string, h shard.Header) (ShardSink, error) {
	w, err := shard.Create(fs, dir, h)
	if err != nil {
		return nil, err
	}
	return &localSink{fs, dir, h, w}, nil
}

type localSink struct {
	fs  vfs.FS
	dir string
	h   shard.Header
	w   *shard.Writer
}

func (s *localSink) WriteCell(ctx context.Context, cell []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.w.WriteCell(cell)
}

func (s *localSink) Commit(ctx context.Context, streamBytes int64) (root shard.Root, err error) {
	if _, err := s.w.Commit(streamBytes); err != nil {
		return shard.Root{}, err
	}
	r, err := shard.Open(s.fs, s.dir, s.h.Pack, s.h.Encode, s.h.Index)
	if err != nil {
		return shard.Root{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return r.Verify(ctx)
}

func (s *localSink) Abort() { s.w.Abort() }

// LocalSource returns a source over a shard file of this node. The caller closes r.
func LocalSource(r *shard.Reader) ShardSource { return localSource{r} }

type localSource struct{ r *shard.Reader }

func (s localSource) ReadShard(ctx context.Context, dst []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := s.r.ReadAt(dst, off)
	if n == len(dst) && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
