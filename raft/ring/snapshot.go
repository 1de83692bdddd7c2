package ring

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/zeebo/blake3"

	"osteon/erasure/plant"
)

// errSuperseded: a newer snapshot was stored while this one was being made.
var errSuperseded = errors.New("a newer snapshot exists")

// snapStore keeps the newest snapshot, in a numbered directory that CURRENT names. Older ones are deleted as soon as nobody
// reads them; whatever else is found in its directory at the start is what a crash left over.
type snapStore struct {
	fs      vfs.FS
	dir     string
	seal    seal
	log     *slog.Logger
	damaged func(error)              // told when files do not match their description
	durable func(index uint64) error // told when a snapshot has become the newest

	pub sync.Mutex // held over I/O while CURRENT changes, so that it never goes back

	mu      sync.Mutex
	next    uint64 // number of the next directory
	current *stored
	pins    map[uint64]int // readers by number
}

// stored is a snapshot on disk.
type stored struct {
	number uint64
	meta   meta
	raw    []byte // META
}

// openSnapStore finds the newest snapshot below dir and removes leftovers. It fails with ErrDamaged when CURRENT or META cannot be
// read, or files are missing or of another size; contents are checked when they are read.
func openSnapStore(fsys vfs.FS, dir string, s seal, log *slog.Logger) (*snapStore, error) {
	if err := makeDir(fsys, dir); err != nil {
		return nil, fmt.Errorf("make snapshot directory: %w", err)
	}
	st := &snapStore{fs: fsys, dir: dir, seal: s, log: log, next: 1, pins: map[uint64]int{}}
	b, err := st.readFile(fsys.PathJoin(dir, "CURRENT"), currentBytes)
	if err == nil {
		if err := st.load(b); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read newest snapshot's name: %w", damagedUnlessSystem(err))
	}
	return st, st.clean()
}

// load reads the snapshot that the content b of CURRENT names.
func (st *snapStore) load(b []byte) error {
	number, index, err := decodeCurrent(b)
	if err != nil {
		return err
	}
	raw, err := st.readFile(st.fs.PathJoin(st.path(number), "META"), metaBytesMax)
	if err != nil {
		return fmt.Errorf("%w: read snapshot %d: %w", ErrDamaged, number, err)
	}
	m, err := decodeMeta(st.seal, raw)
	if err != nil {
		return err
	}
	if m.index != index {
		return fmt.Errorf("%w: snapshot %d is of entry %d, not %d", ErrDamaged, number, m.index, index)
	}
	for _, f := range m.files {
		info, err := st.fs.Stat(st.filePath(number, f.name))
		if err != nil || uint64(info.Size()) != f.size {
			return fmt.Errorf("%w: snapshot %d: file %s is missing or of another size", ErrDamaged, number, f.name)
		}
	}
	st.current = &stored{number: number, meta: m, raw: raw}
	return nil
}

// clean removes what CURRENT does not name, and finds the next free number.
func (st *snapStore) clean() error {
	names, err := st.fs.List(st.dir)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, name := range names {
		if name == "CURRENT.tmp" {
			if err := st.fs.Remove(st.fs.PathJoin(st.dir, name)); err != nil {
				return fmt.Errorf("remove unfinished name of a snapshot: %w", err)
			}
		}
		number, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			continue
		}
		st.next = max(st.next, number+1)
		if st.current != nil && st.current.number == number {
			continue
		}
		if err := st.fs.RemoveAll(st.fs.PathJoin(st.dir, name)); err != nil {
			return fmt.Errorf("remove unfinished snapshot: %w", err)
		}
	}
	return nil
}

func (st *snapStore) path(number uint64) string {
	return st.fs.PathJoin(st.dir, fmt.Sprintf("%016x", number))
}

func (st *snapStore) statePath(number uint64) string {
	return st.fs.PathJoin(st.path(number), "state")
}

func (st *snapStore) filePath(number uint64, name string) string {
	return st.fs.PathJoin(st.statePath(number), name)
}

// readFile reads a small file of at most limit bytes.
func (st *snapStore) readFile(path string, limit int64) (b []byte, err error) {
	f, err := st.fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// scratch makes the directory of a new snapshot and returns its number.
func (st *snapStore) scratch() (uint64, error) {
	st.mu.Lock()
	number := st.next
	st.next++
	st.mu.Unlock()
	if err := st.fs.MkdirAll(st.path(number), 0o700); err != nil {
		return 0, fmt.Errorf("make snapshot directory: %w", err)
	}
	return number, nil
}

// newest returns the newest snapshot, nil when there is none.
func (st *snapStore) newest() *stored {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.current
}

// publish makes the snapshot number the newest: META, names, CURRENT, each durable before the next. A
// snapshot older than the newest is removed and reported as errSuperseded.
func (st *snapStore) publish(number uint64, m meta) error {
	st.pub.Lock()
	defer st.pub.Unlock()
	if now := st.newest(); now != nil && now.meta.index > m.index {
		st.discard(number)
		return fmt.Errorf("%w: at %d, this one is at %d", errSuperseded, now.meta.index, m.index)
	}
	raw := encodeMeta(st.seal, m)
	if len(raw) > metaBytesMax || len(m.files) > snapshotFilesMax {
		return fmt.Errorf("%w: snapshot of %d files", ErrTooLarge, len(m.files))
	}
	if err := st.write(number, m.index, raw); err != nil {
		return fmt.Errorf("%w: store snapshot: %w", ErrDisk, err)
	}
	st.mu.Lock()
	old := st.current
	st.current = &stored{number: number, meta: m, raw: raw}
	unread := old != nil && st.pins[old.number] == 0
	st.mu.Unlock()
	if err := st.durable(m.index); err != nil {
		return err
	}
	if unread {
		st.discard(old.number)
	}
	st.log.Info("snapshot stored", "index", m.index, "files", len(m.files), "bytes", m.streamBytes(len(raw)))
	return nil
}

func (st *snapStore) write(number, index uint64, raw []byte) error {
	if err := syncDir(st.fs, st.statePath(number)); err != nil {
		return err
	}
	if err := writeAtomic(st.fs, st.fs.PathJoin(st.path(number), "META"), raw); err != nil {
		return err
	}
	if err := syncDir(st.fs, st.dir); err != nil {
		return err
	}
	return writeAtomic(st.fs, st.fs.PathJoin(st.dir, "CURRENT"), encodeCurrent(number, index))
}

// discard removes a snapshot's directory. What cannot be removed now is removed at the next start.
func (st *snapStore) discard(number uint64) {
	if err := st.fs.RemoveAll(st.path(number)); err != nil {
		st.log.Warn("snapshot not removed", "number", number, "err", err)
	}
}

// unpin lets go of a reader's hold, and of the snapshot when it was the last one on an old snapshot.
func (st *snapStore) unpin(number uint64) {
	st.mu.Lock()
	st.pins[number]--
	last := st.pins[number] == 0
	if last {
		delete(st.pins, number)
	}
	old := st.current == nil || st.current.number != number
	st.mu.Unlock()
	if last && old {
		st.discard(number)
	}
}

// id returns the library's name for the snapshot number.
func id(number uint64) string { return fmt.Sprintf("%016x", number) }

// List implements raft.SnapshotStore. It never returns more than the newest snapshot.
func (st *snapStore) List() ([]*raft.SnapshotMeta, error) {
	now := st.newest()
	if now == nil {
		return nil, nil
	}
	m, err := now.libraryMeta()
	return []*raft.SnapshotMeta{m}, err
}

func (s *stored) libraryMeta() (*raft.SnapshotMeta, error) {
	c, err := decodeConfiguration(s.meta.configuration)
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: id(s.number), Index: s.meta.index, Term: s.meta.term,
		Configuration: c, ConfigurationIndex: s.meta.configIndex, Size: s.meta.streamBytes(len(s.raw)),
	}, err
}

// Open implements raft.SnapshotStore. The reader yields META and the files, and fails with ErrDamaged at the end of a file
// that does not match.
func (st *snapStore) Open(name string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	st.mu.Lock()
	now := st.current
	if now == nil || id(now.number) != name {
		st.mu.Unlock()
		return nil, nil, fmt.Errorf("%w: snapshot %.40q is not the newest", ErrRefused, name)
	}
	st.pins[now.number]++
	st.mu.Unlock()
	m, err := now.libraryMeta()
	r := &snapReader{store: st, snap: now, head: now.raw}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return m, r, nil
}

// verify reads the whole snapshot s and fails with ErrDamaged when it does not match its description.
func (st *snapStore) verify(s *stored) error {
	_, r, err := st.Open(id(s.number))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// snapReader streams a stored snapshot. One goroutine may use it.
type snapReader struct {
	store  *snapStore
	snap   *stored
	head   []byte // what is left of META
	at     int    // the file being read
	file   vfs.File
	left   uint64
	hash   *blake3.Hasher
	err    error
	closed bool
}

// Read implements io.Reader.
func (r *snapReader) Read(p []byte) (n int, err error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(r.head) > 0 {
		n = copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	n, r.err = r.readFiles(p)
	if errors.Is(r.err, ErrDamaged) {
		r.store.damaged(r.err)
	}
	return n, r.err
}

// readFiles reads from the file being read, opening and checking files on the way.
func (r *snapReader) readFiles(p []byte) (int, error) {
	for {
		if r.file == nil {
			if r.at == len(r.snap.meta.files) {
				return 0, io.EOF
			}
			if err := r.openFile(); err != nil {
				return 0, err
			}
		}
		if r.left > 0 {
			n, err := r.file.Read(p[:min(uint64(len(p)), r.left)])
			r.left -= uint64(n)
			_, _ = r.hash.Write(p[:n]) // never fails
			if err != nil && !(errors.Is(err, io.EOF) && r.left == 0) {
				return n, fmt.Errorf("%w: snapshot file %s: %w", ErrDamaged, r.snap.meta.files[r.at].name, err)
			}
			if n > 0 {
				return n, nil
			}
			continue
		}
		if err := r.endFile(); err != nil {
			return 0, err
		}
	}
}

func (r *snapReader) openFile() error {
	f := r.snap.meta.files[r.at]
	file, err := r.store.fs.Open(r.store.filePath(r.snap.number, f.name))
	if err != nil {
		return fmt.Errorf("%w: snapshot file %s: %w", ErrDamaged, f.name, err)
	}
	r.file, r.left, r.hash = file, f.size, blake3.New()
	return nil
}

func (r *snapReader) endFile() error {
	f := r.snap.meta.files[r.at]
	err := r.file.Close()
	r.file = nil
	r.at++
	if [32]byte(r.hash.Sum(nil)) != f.sum && !plant.Is(plant.SnapshotNotVerified) {
		return fmt.Errorf("%w: snapshot file %s does not match its hash", ErrDamaged, f.name)
	}
	return err
}

// Close implements io.Closer. It may be called more than once.
func (r *snapReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.store.unpin(r.snap.number)
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// immutable reports whether a file of that name never changes, so that its hash can be taken over from the last snapshot.
func immutable(name string) bool { return strings.HasSuffix(name, ".sst") }
