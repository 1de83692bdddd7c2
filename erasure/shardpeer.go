package erasure

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/node/link"
)

// The shard write stream (kind KindShardWrite), little-endian. The sealer sends
//
//	version u8 = 1, pack 16, encode 16, k u8, m u8, index u8, zero u8, cell bytes u32, block bytes u32, generation u64
//	frame*: op u8 (1 cell, 2 commit), length u32, payload (a cell; for commit the stream's bytes u64)
//
// and the holder answers the commit, after fsync and reading the file again, with status u8 (0 = durable),
// length u16, and the root (32 bytes) or a text. A stream that ends before its commit leaves nothing.
//
// The shard read stream (kind KindShardRead) carries any number of requests
//
//	version u8 = 1, pack 16, encode 16, index u8, zero u8, generation u64, offset u64, length u32
//
// each answered with status u8 (0 = ok, 1 not found, 2 corrupt, 3 failed, 4 stale generation) and, when
// ok, the payload followed by its CRC32C u32.
const (
	shardVersion     = 1
	shardWriteHead   = 1 + 16 + 16 + 4 + 4 + 4 + 8
	shardReadRequest = 1 + 16 + 16 + 2 + 8 + 8 + 4

	opCell        = 1
	opShardCommit = 2

	shardOK       = 0
	shardNotFound = 1
	shardCorrupt  = 2
	shardFailed   = 3
	shardStale    = 4

	// shardReadMax bounds one read request; readers split longer ranges.
	shardReadMax = 8 << 20
	// shardStreamsMax bounds the idle read streams of one source.
	shardStreamsMax = 4
)

// shardAddress names one shard and the placement generation it is wanted for.
type shardAddress struct {
	pack       place.PackID
	encode     place.EncodeID
	index      int
	generation uint64
}

// newLocalSink begins a shard file here, once its placement generation is on record.
func (s *Store) newLocalSink(h shard.Header, generation uint64) (ShardSink, error) {
	if s.cfg.Shards != nil {
		if err := s.cfg.Shards.Hold(h.Pack, h.Encode, h.Index, generation); err != nil {
			return nil, err
		}
	}
	return LocalSink(s.cfg.FS, s.shardDir(), h)
}

// remoteSink writes a shard file at another node.
type remoteSink struct {
	store  *Store
	stream link.Stream
	stop   func() bool
}

func (s *Store) newRemoteSink(ctx context.Context, node place.NodeID, h shard.Header, generation uint64) (*remoteSink, error) {
	st, err := s.cfg.Mesh.OpenStream(ctx, node, link.ClassBulk, link.KindShardWrite)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 0, shardWriteHead)
	head = append(head, shardVersion)
	head = append(head, h.Pack[:]...)
	head = append(head, h.Encode[:]...)
	head = append(head, byte(h.Geometry.K), byte(h.Geometry.M), byte(h.Index), 0)
	head = binary.LittleEndian.AppendUint32(head, uint32(h.CellBytes))
	head = binary.LittleEndian.AppendUint32(head, uint32(h.BlockBytes))
	head = binary.LittleEndian.AppendUint64(head, generation)
	if _, err := st.Write(head); err != nil {
		link.Abort(st)
		return nil, fmt.Errorf("open shard at %s: %w", node, err)
	}
	return &remoteSink{store: s, stream: st, stop: context.AfterFunc(ctx, func() { link.Abort(st) })}, nil
}

func (r *remoteSink) frame(op byte, payload []byte) error {
	if err := r.stream.SetWriteDeadline(r.store.cfg.Now().Add(appendIdle)); err != nil {
		return err
	}
	var head [5]byte
	head[0] = op
	binary.LittleEndian.PutUint32(head[1:], uint32(len(payload)))
	return link.WriteParts(r.stream, head[:], payload)
}

func (r *remoteSink) WriteCell(_ context.Context, cell []byte) error { return r.frame(opCell, cell) }

func (r *remoteSink) Commit(_ context.Context, streamBytes int64) (shard.Root, error) {
	var root shard.Root
	if err := r.frame(opShardCommit, binary.LittleEndian.AppendUint64(nil, uint64(streamBytes))); err != nil {
		return root, err
	}
	if err := r.stream.SetReadDeadline(r.store.cfg.Now().Add(shardCommitMax)); err != nil {
		return root, err
	}
	var head [3]byte
	if _, err := io.ReadFull(r.stream, head[:]); err != nil {
		return root, fmt.Errorf("read holder's answer: %w", err)
	}
	text := make([]byte, min(int(binary.LittleEndian.Uint16(head[1:])), remoteTextMax))
	if _, err := io.ReadFull(r.stream, text); err != nil {
		return root, fmt.Errorf("read holder's answer: %w", err)
	}
	if head[0] != shardOK || len(text) != len(root) {
		return root, fmt.Errorf("holder refused (status %d): %s", head[0], text)
	}
	r.stop()
	copy(root[:], text)
	return root, r.stream.Close()
}

func (r *remoteSink) Abort() {
	r.stop()
	link.Abort(r.stream)
}

// serveShardWrite is the holder's side of a shard write stream.
func (s *Store) serveShardWrite(ctx context.Context, st link.Stream) {
	defer st.Close()
	root, err := s.receiveShard(ctx, st)
	answer := append([]byte{shardOK, 0, 0}, root[:]...)
	if err != nil {
		s.cfg.Log.Warn("shard from peer refused", "peer", st.Peer().Node, "err", err)
		text := err.Error()
		answer = append([]byte{shardFailed, 0, 0}, text[:min(len(text), remoteTextMax)]...)
	}
	binary.LittleEndian.PutUint16(answer[1:], uint16(len(answer)-3))
	if _, err := st.Write(answer); err != nil {
		s.cfg.Log.Debug("shard answer not delivered", "peer", st.Peer().Node, "err", err)
	}
}

func (s *Store) receiveShard(ctx context.Context, st link.Stream) (root shard.Root, err error) {
	r := bufio.NewReaderSize(&patient{stream: st, store: s, idle: appendIdle}, frameHeadBuffer)
	var head [shardWriteHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return root, fmt.Errorf("read shard header: %w", err)
	}
	if head[0] != shardVersion {
		return root, fmt.Errorf("shard write version %d", head[0])
	}
	h := shard.Header{
		Ring: s.cfg.Ring, Pack: place.PackID(head[1:17]), Encode: place.EncodeID(head[17:33]),
		Geometry: place.Geometry{K: int(head[33]), M: int(head[34])}, Index: int(head[35]),
		CellBytes:  int(binary.LittleEndian.Uint32(head[37:])),
		BlockBytes: int(binary.LittleEndian.Uint32(head[41:])),
	}
	sink, err := s.newLocalSink(h, binary.LittleEndian.Uint64(head[45:]))
	if err != nil {
		return root, err
	}
	defer func() {
		if err != nil {
			sink.Abort()
		}
	}()
	cell := make([]byte, 0, min(h.CellBytes, shard.CellBytesMax))
	for {
		var frame [5]byte
		if _, err := io.ReadFull(r, frame[:]); err != nil {
			return root, fmt.Errorf("read shard: %w", err)
		}
		length := int(binary.LittleEndian.Uint32(frame[1:]))
		switch {
		case frame[0] == opCell && length <= cap(cell):
			cell = cell[:length]
			if _, err := io.ReadFull(r, cell); err != nil {
				return root, fmt.Errorf("read shard: %w", err)
			}
			if err := sink.WriteCell(ctx, cell); err != nil {
				return root, err
			}
		case frame[0] == opShardCommit && length == 8:
			var size [8]byte
			if _, err := io.ReadFull(r, size[:]); err != nil {
				return root, fmt.Errorf("read shard: %w", err)
			}
			return sink.Commit(ctx, int64(binary.LittleEndian.Uint64(size[:])))
		default:
			return root, fmt.Errorf("shard write: malformed frame")
		}
	}
}

// ownSource reads a shard file here; it opens the file at the first read.
type ownSource struct {
	store *Store
	at    shardAddress

	mu     sync.Mutex
	reader *shard.Reader
}

func (o *ownSource) open() (*shard.Reader, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reader == nil {
		r, err := o.store.openShard(o.at)
		if err != nil {
			return nil, err
		}
		o.reader = r
	}
	return o.reader, nil
}

func (o *ownSource) ReadShard(ctx context.Context, dst []byte, off int64) error {
	r, err := o.open()
	if err != nil {
		return err
	}
	return LocalSource(r).ReadShard(ctx, dst, off)
}

func (o *ownSource) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reader == nil {
		return nil
	}
	return o.reader.Close()
}

func (s *Store) openShard(at shardAddress) (*shard.Reader, error) {
	if s.cfg.Shards != nil {
		if err := s.cfg.Shards.Check(at.pack, at.encode, at.index, at.generation); err != nil {
			return nil, err
		}
	}
	return shard.Open(s.cfg.FS, s.shardDir(), at.pack, at.encode, at.index)
}

// remoteSource reads a shard file at another node over a few streams that it keeps.
type remoteSource struct {
	store *Store
	node  place.NodeID
	at    shardAddress

	mu     sync.Mutex
	idle   []link.Stream
	closed bool
}

func (r *remoteSource) ReadShard(ctx context.Context, dst []byte, off int64) error {
	for len(dst) > shardReadMax {
		if err := r.read(ctx, dst[:shardReadMax], off); err != nil {
			return err
		}
		dst, off = dst[shardReadMax:], off+shardReadMax
	}
	return r.read(ctx, dst, off)
}

// read reads once more, on a stream of its own, when the connection was lost: the holder may have been started
// again a moment ago, and a whole site may have been.
func (r *remoteSource) read(ctx context.Context, dst []byte, off int64) error {
	err := r.ask(ctx, dst, off)
	if errors.Is(err, link.ErrLost) && ctx.Err() == nil {
		r.forget()
		err = r.ask(ctx, dst, off)
	}
	return err
}

func (r *remoteSource) ask(ctx context.Context, dst []byte, off int64) error {
	st, err := r.take(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { link.Abort(st) })
	err = r.exchange(st, dst, off)
	if !stop() || err != nil && !errors.Is(err, shard.ErrCorrupt) && !errors.Is(err, shard.ErrNotFound) {
		link.Abort(st)
		return err
	}
	r.keep(st)
	return err
}

func (r *remoteSource) exchange(st link.Stream, dst []byte, off int64) error {
	request := make([]byte, 0, shardReadRequest)
	request = append(request, shardVersion)
	request = append(request, r.at.pack[:]...)
	request = append(request, r.at.encode[:]...)
	request = append(request, byte(r.at.index), 0)
	request = binary.LittleEndian.AppendUint64(request, r.at.generation)
	request = binary.LittleEndian.AppendUint64(request, uint64(off))
	request = binary.LittleEndian.AppendUint32(request, uint32(len(dst)))
	if _, err := st.Write(request); err != nil {
		return fmt.Errorf("ask for shard: %w", err)
	}
	in := &patient{stream: st, store: r.store, idle: readIdle}
	var status [1]byte
	if _, err := io.ReadFull(in, status[:]); err != nil {
		return fmt.Errorf("read shard: %w", err)
	}
	switch status[0] {
	case shardOK:
	case shardNotFound:
		return shard.ErrNotFound
	case shardCorrupt:
		return shard.ErrCorrupt
	default:
		return fmt.Errorf("read shard: holder's status %d", status[0])
	}
	if _, err := io.ReadFull(in, dst); err != nil {
		return fmt.Errorf("read shard: %w", err)
	}
	var sum [4]byte
	if _, err := io.ReadFull(in, sum[:]); err != nil {
		return fmt.Errorf("read shard: %w", err)
	}
	if binary.LittleEndian.Uint32(sum[:]) != checksum(dst) {
		return errors.New("read shard: checksum of the answer differs")
	}
	return nil
}

func (r *remoteSource) take(ctx context.Context) (link.Stream, error) {
	r.mu.Lock()
	if n := len(r.idle); n > 0 {
		st := r.idle[n-1]
		r.idle = r.idle[:n-1]
		r.mu.Unlock()
		return st, nil
	}
	r.mu.Unlock()
	return r.store.cfg.Mesh.OpenStream(ctx, r.node, link.ClassBulk, link.KindShardRead)
}

func (r *remoteSource) keep(st link.Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.idle) >= shardStreamsMax {
		st.Close()
		return
	}
	r.idle = append(r.idle, st)
}

// forget drops the streams that were kept.
func (r *remoteSource) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, st := range r.idle {
		st.Close()
	}
	r.idle = nil
}

func (r *remoteSource) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.forget()
	return nil
}

// serveShardRead answers read requests until the reader closes the stream.
func (s *Store) serveShardRead(ctx context.Context, st link.Stream) {
	defer st.Close()
	serving := &shardServing{store: s, stream: st}
	defer serving.close()
	for ctx.Err() == nil {
		if err := serving.next(); err != nil {
			if !errors.Is(err, io.EOF) {
				s.cfg.Log.Debug("shard read stream ended", "peer", st.Peer().Node, "err", err)
			}
			return
		}
	}
}

// shardServing is one shard read stream at the holder; it keeps the last shard open.
type shardServing struct {
	store  *Store
	stream link.Stream
	at     shardAddress
	reader *shard.Reader
	buffer []byte
}

func (v *shardServing) close() {
	if v.reader != nil {
		v.reader.Close()
		v.reader = nil
	}
}

func (v *shardServing) next() error {
	var request [shardReadRequest]byte
	if _, err := io.ReadFull(v.stream, request[:]); err != nil {
		return err
	}
	at := shardAddress{
		pack: place.PackID(request[1:17]), encode: place.EncodeID(request[17:33]), index: int(request[33]),
		generation: binary.LittleEndian.Uint64(request[35:]),
	}
	off := int64(binary.LittleEndian.Uint64(request[43:]))
	length := int(binary.LittleEndian.Uint32(request[51:]))
	if request[0] != shardVersion || length > shardReadMax || off < 0 {
		return errors.New("shard read: malformed request")
	}
	if v.reader == nil || v.at != at {
		v.close()
		r, err := v.store.openShard(at)
		if err != nil {
			return v.answer(shardStatus(err))
		}
		v.reader, v.at = r, at
	}
	if cap(v.buffer) < 1+length+4 {
		v.buffer = make([]byte, 1+length+4)
	}
	out := v.buffer[:1+length+4]
	if err := LocalSource(v.reader).ReadShard(context.Background(), out[1:1+length], off); err != nil {
		v.store.cfg.Log.Error("shard cannot be read", "pack", at.pack, "shard", at.index, "err", err)
		v.close()
		return v.answer(shardStatus(err))
	}
	out[0] = shardOK
	binary.LittleEndian.PutUint32(out[1+length:], checksum(out[1:1+length]))
	return v.write(out)
}

func (v *shardServing) answer(status byte) error { return v.write([]byte{status}) }

func (v *shardServing) write(b []byte) error {
	if err := v.stream.SetWriteDeadline(v.store.cfg.Now().Add(appendIdle)); err != nil {
		return err
	}
	_, err := v.stream.Write(b)
	return err
}

func shardStatus(err error) byte {
	switch {
	case errors.Is(err, shard.ErrNotFound):
		return shardNotFound
	case errors.Is(err, shard.ErrCorrupt):
		return shardCorrupt
	default:
		return shardFailed
	}
}
