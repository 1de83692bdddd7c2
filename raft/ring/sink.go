package ring

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/zeebo/blake3"
)

// sink receives one snapshot: by Write the stream of another node, or by adopt a checkpoint of this one. One goroutine uses it.
type sink struct {
	store  *snapStore
	number uint64 // 0: no directory yet
	want   meta   // what the library announced; files are filled in
	local  bool   // adopted

	head  []byte // META as far as it came
	ready bool   // META is whole and sound
	at    int    // the file being written
	file  vfs.File
	left  uint64
	hash  *blake3.Hasher
	done  bool // closed or cancelled
}

// Create implements raft.SnapshotStore.
func (st *snapStore) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{store: st, want: meta{index: index, term: term, configIndex: configIndex, configuration: raft.EncodeConfiguration(c)}}, nil
}

// ID implements raft.SnapshotSink.
func (k *sink) ID() string { return id(k.number) }

// adopt takes the checkpoint in the directory number as the snapshot's state. Hashes of files that never change are taken over from
// the snapshot before, so that the cost is that of what is new.
func (k *sink) adopt(number uint64) error {
	k.number, k.local = number, true
	known := map[string]fileEntry{}
	if last := k.store.newest(); last != nil {
		for _, f := range last.meta.files {
			known[f.name] = f
		}
	}
	names, err := k.store.fs.List(k.store.statePath(number))
	if err != nil {
		return fmt.Errorf("list checkpoint: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		f, err := k.store.describe(number, name, known)
		if err != nil {
			return fmt.Errorf("hash checkpoint: %w", err)
		}
		k.want.files = append(k.want.files, f)
	}
	return nil
}

// describe returns the entry of one file of a checkpoint, and makes the file durable.
func (st *snapStore) describe(number uint64, name string, known map[string]fileEntry) (e fileEntry, err error) {
	if !nameOK(name) {
		return e, fmt.Errorf("%w: file name %.40q", ErrRefused, name)
	}
	f, err := st.fs.Open(st.filePath(number, name))
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return e, err
	}
	if last, ok := known[name]; ok && immutable(name) && last.size == uint64(info.Size()) {
		return last, nil
	}
	h := blake3.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return e, err
	}
	e = fileEntry{name: name, size: uint64(n), sum: [32]byte(h.Sum(nil))}
	return e, f.Sync()
}

// Write implements io.Writer. Nothing is written to disk before META was received whole and found genuine and to be what
// the leader announced.
func (k *sink) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		var n int
		var err error
		if k.ready {
			n, err = k.writeFile(p)
		} else {
			n, err = k.writeHead(p)
		}
		if err != nil {
			return total - len(p), err
		}
		p = p[n:]
	}
	return total, nil
}

// writeHead takes bytes of META, first those that tell its length.
func (k *sink) writeHead(p []byte) (int, error) {
	need := 16
	if len(k.head) >= 16 {
		var err error
		if need, err = metaLength(k.head); err != nil {
			return 0, err
		}
	}
	n := min(need-len(k.head), len(p))
	k.head = append(k.head, p[:n]...)
	if len(k.head) < need || need == 16 {
		return n, nil
	}
	m, err := decodeMeta(k.store.seal, k.head)
	if err != nil {
		return 0, err
	}
	if m.index != k.want.index || m.term != k.want.term || m.configIndex != k.want.configIndex {
		return 0, fmt.Errorf("%w: snapshot is of entry %d, the leader announced %d", ErrDamaged, m.index, k.want.index)
	}
	k.want, k.ready = m, true
	if k.number, err = k.store.scratch(); err != nil {
		return 0, err
	}
	if err := k.store.fs.MkdirAll(k.store.statePath(k.number), 0o700); err != nil {
		return 0, fmt.Errorf("make snapshot directory: %w", err)
	}
	return n, k.openFiles()
}

// openFiles opens the next file, and finishes those without content on the way.
func (k *sink) openFiles() error {
	for k.at < len(k.want.files) {
		f := k.want.files[k.at]
		file, err := k.store.fs.Create(k.store.filePath(k.number, f.name), diskCategory)
		if err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
		k.file, k.left, k.hash = file, f.size, blake3.New()
		if f.size > 0 {
			return nil
		}
		if err := k.endFile(); err != nil {
			return err
		}
	}
	return nil
}

// writeFile takes bytes of the file being written.
func (k *sink) writeFile(p []byte) (int, error) {
	if k.at == len(k.want.files) {
		return 0, fmt.Errorf("%w: snapshot stream is longer than announced", ErrDamaged)
	}
	p = p[:min(uint64(len(p)), k.left)]
	_, _ = k.hash.Write(p) // never fails; first, for a vfs may change what it writes
	n, err := k.file.Write(p)
	if err != nil {
		return n, fmt.Errorf("write snapshot: %w", err)
	}
	k.left -= uint64(n)
	if k.left > 0 {
		return n, nil
	}
	if err := k.endFile(); err != nil {
		return 0, err
	}
	return n, k.openFiles()
}

// endFile checks the file being written and makes it durable.
func (k *sink) endFile() error {
	f := k.want.files[k.at]
	k.at++
	file := k.file
	k.file = nil
	if [32]byte(k.hash.Sum(nil)) != f.sum {
		return errors.Join(fmt.Errorf("%w: snapshot file %s does not match its hash", ErrDamaged, f.name), file.Close())
	}
	return errors.Join(file.Sync(), file.Close())
}

// Close implements raft.SnapshotSink: the snapshot becomes the newest, durably, or an error says why not.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	if !k.local && (!k.ready || k.at < len(k.want.files)) {
		return errors.Join(fmt.Errorf("%w: snapshot stream ended early", ErrDamaged), k.Cancel())
	}
	k.done = true
	return k.store.publish(k.number, k.want)
}

// Cancel implements raft.SnapshotSink: what was received is removed.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	var err error
	if k.file != nil {
		err = k.file.Close()
		k.file = nil
	}
	if k.number > 0 {
		k.store.discard(k.number)
	}
	return err
}
