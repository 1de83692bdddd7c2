package erasure

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/node/link"
)

// FuzzShards encodes a pack into shard files, spoils files (removed, cut, a byte changed, put under another
// shard's name) and reads everything: the plain bytes whenever at most M files were touched, and otherwise
// these or an error, never others.
func FuzzShards(f *testing.F) {
	f.Add(byte(3), byte(2), uint16(5000), []byte{1, 0, 10, 2, 4, 90})
	f.Add(byte(1), byte(2), uint16(0), []byte{0, 3, 0, 1, 3, 0})
	f.Add(byte(5), byte(4), uint16(40_000), []byte{0, 2, 0, 4, 2, 200, 7, 1, 30, 8, 0, 7})
	f.Add(byte(2), byte(0), uint16(9), []byte{1, 2, 120})
	f.Fuzz(func(t *testing.T, k, m byte, size uint16, spoil []byte) {
		g := place.Geometry{K: 1 + int(k)%6, M: int(m) % 5}
		spec := specOf(g, 1)
		spec.BlockBytes, spec.CellBytes = 64, 256
		fs, dir := vfs.NewMem(), "shards"
		var sinks []ShardSink
		for i := range g.N() {
			s, err := LocalSink(fs, dir, spec.Header(i))
			if err != nil {
				t.Fatal(err)
			}
			sinks = append(sinks, s)
		}
		plain := randomBytes(uint64(size), int(size))
		info, err := Encode(t.Context(), spec, func(w *PackWriter) error {
			if _, err := w.Write(plain); err != nil {
				return err
			}
			return w.Finish([]byte("manifest"))
		}, sinks)
		if err != nil {
			t.Fatal(err)
		}
		touched := map[int]bool{}
		for ; len(spoil) >= 3 && len(touched) < g.N(); spoil = spoil[3:] {
			spoilShard(t, fs, dir, spec, int(spoil[0]), spoil[1], int(spoil[2]), touched)
		}
		ps := PackSpec{Ring: spec.Ring, Pack: spec.Pack, Encode: spec.Encode, Geometry: g, CellBytes: info.CellBytes,
			BlockBytes: info.BlockBytes, StreamBytes: info.StreamBytes, Keys: spec.Keys}
		for i := range g.N() {
			r, err := shard.Open(fs, dir, spec.Pack, spec.Encode, i)
			if err != nil {
				ps.Sources = append(ps.Sources, Source{})
				continue
			}
			defer r.Close()
			ps.Sources = append(ps.Sources, Source{Shard: LocalSource(r)})
		}
		r, err := OpenPack(t.Context(), ps)
		var got bytes.Buffer
		if err == nil {
			defer r.Close()
			err = r.CopyRange(t.Context(), &got, 0, int64(len(plain)))
		}
		if err != nil && len(touched) <= g.M {
			t.Fatalf("%v with %d files touched: %v", g, len(touched), err)
		}
		if !bytes.Equal(got.Bytes(), plain[:got.Len()]) || err == nil && got.Len() != len(plain) {
			t.Fatalf("%v with %d files touched: other bytes", g, len(touched))
		}
	})
}

// spoilShard does one thing to the file of one shard and notes which shards it touched.
func spoilShard(t *testing.T, fs vfs.FS, dir string, spec EncodeSpec, n int, how byte, where int, touched map[int]bool) {
	t.Helper()
	n %= spec.Geometry.N()
	path := func(i int) string {
		name := fmt.Sprintf("%x-%d.shard", spec.Encode[:], i)
		return filepath.Join(dir, name[:2], name[2:4], name)
	}
	file, err := fs.Open(path(n))
	if err != nil {
		return // removed before
	}
	b, err := io.ReadAll(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return // cut before
	}
	touched[n] = true
	to := path(n)
	switch how % 4 {
	case 0:
		fs.Remove(to)
		return
	case 1:
		b = b[:where*len(b)/256]
	case 2:
		b = bytes.Clone(b)
		b[where*len(b)/256] ^= how | 1
	case 3:
		other := (n + 1 + where) % spec.Geometry.N()
		touched[other] = true
		to = path(other)
	}
	out, err := fs.Create(to, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	out.Close()
}

// scriptStream is a peer that says what it has to say at once and hears what it is answered.
type scriptStream struct {
	in     *bytes.Reader
	out    bytes.Buffer
	closed bool
}

func (s *scriptStream) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *scriptStream) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *scriptStream) CloseWrite() error                { return nil }
func (s *scriptStream) Close() error                     { s.closed = true; return nil }
func (s *scriptStream) SetDeadline(time.Time) error      { return nil }
func (s *scriptStream) SetReadDeadline(time.Time) error  { return nil }
func (s *scriptStream) SetWriteDeadline(time.Time) error { return nil }
func (s *scriptStream) Peer() link.Peer                  { return link.Peer{Node: place.NodeID{9}, Site: "a"} }

// writeFrames is what a sealer sends for one shard.
func writeFrames(h shard.Header, streamBytes int64, cells ...[]byte) []byte {
	b := append([]byte{shardVersion}, h.Pack[:]...)
	b = append(b, h.Encode[:]...)
	b = append(b, byte(h.Geometry.K), byte(h.Geometry.M), byte(h.Index), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.CellBytes))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.BlockBytes))
	b = binary.LittleEndian.AppendUint64(b, 1)
	for _, c := range cells {
		b = append(binary.LittleEndian.AppendUint32(append(b, opCell), uint32(len(c))), c...)
	}
	b = binary.LittleEndian.AppendUint32(append(b, opShardCommit), 8)
	return binary.LittleEndian.AppendUint64(b, uint64(streamBytes))
}

// readFrame is one request of a reader.
func readFrame(h shard.Header, off int64, n uint32) []byte {
	b := append([]byte{shardVersion}, h.Pack[:]...)
	b = append(b, h.Encode[:]...)
	b = append(b, byte(h.Index), 0)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	return binary.LittleEndian.AppendUint32(b, n)
}

// appendFrames is what a receiver sends its partner for one object.
func appendFrames(key journal.Key, data, note []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{appendVersion, opData}, uint32(len(data)))
	b = append(b, data...)
	b = append(b, opCommit)
	b = binary.LittleEndian.AppendUint32(b, uint32(commitFixed+len(note)))
	b = append(b, key[:]...)
	return append(append(b, make([]byte, commitFixed-len(key))...), note...)
}

// FuzzShardFrames is what an authenticated peer may send on the streams that carry bytes: shards written and
// read, journal records appended and read (B26). Each stream ends; a shard that was written right is read right
// afterwards.
func FuzzShardFrames(f *testing.F) {
	store := openStores(f, "a", testAck).nodes[0].Store
	spec := specOf(place.Geometry{K: 2, M: 1}, 1)
	spec.BlockBytes, spec.CellBytes = 64, 128
	h := spec.Header(1)
	cells := [][]byte{randomBytes(1, 128), randomBytes(2, 128)}
	payload := append(bytes.Clone(cells[0]), cells[1]...)
	whole := writeFrames(h, 4*128, cells...)
	serve := []func(context.Context, link.Stream){store.serveShardWrite, store.serveShardRead, store.serveAppend, store.serveJournalRead}
	say := func(kind int, b []byte) []byte {
		st := &scriptStream{in: bytes.NewReader(b)}
		serve[kind](context.Background(), st)
		if !st.closed {
			f.Fatalf("kind %d: stream left open", kind)
		}
		return st.out.Bytes()
	}
	if got := say(0, whole); len(got) != 3+32 || got[0] != shardOK {
		f.Fatalf("whole shard answered % x", got)
	}
	intact := func(t testing.TB) {
		got := say(1, readFrame(h, 0, 256))
		if len(got) != 1+256+4 || got[0] != shardOK || !bytes.Equal(got[1:257], payload) {
			t.Fatalf("the shard reads as %d bytes, % x", len(got), got[:min(len(got), 8)])
		}
	}
	intact(f)
	other := h
	other.Index = 0
	f.Add(byte(0), writeFrames(other, 4*128, cells...))
	f.Add(byte(0), whole)
	f.Add(byte(0), whole[:len(whole)-20])
	f.Add(byte(0), writeFrames(other, -1, cells[0], nil, cells[1][:3]))
	f.Add(byte(1), append(readFrame(h, 100, 64), readFrame(other, 0, 1)...))
	f.Add(byte(1), readFrame(h, 1<<62, shardReadMax))
	f.Add(byte(1), readFrame(h, -1, 1<<31))
	f.Add(byte(2), appendFrames(journal.Key{1}, []byte("data of an object"), []byte("note")))
	f.Add(byte(2), []byte{appendVersion, opAbort, 0, 0, 0, 0, opData, 255, 255, 255, 255})
	f.Add(byte(3), append([]byte{journalReadVersion, 1}, make([]byte, journalReadRequest-2)...))
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		kind %= byte(len(serve))
		got := say(int(kind), b)
		if kind == 0 && len(got) == 0 {
			t.Fatal("a shard write was not answered")
		}
		if kind == 0 || kind == 1 && len(b) > 16 {
			intact(t)
		}
	})
}
