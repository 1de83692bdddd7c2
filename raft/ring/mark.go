package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
)

const (
	markMagic  = "OSRM"
	slotBytes  = 220  // used bytes of a slot
	slotStride = 4096 // a slot never shares a disk page with the other
)

// diskCategory labels the ring's own writes in Pebble's disk statistics.
const diskCategory = vfs.DiskWriteCategory("osteon-raft")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// position is where the log ended, and what was voted, when last acknowledged.
type position struct {
	node        place.NodeID
	incarnation uint64
	lastIndex   uint64 // 0: the log is empty
	lastTerm    uint64
	lastTag     tag // of the last record; through the chain it stands for the whole log
	vote        vote
	snapshot    uint64 // index of the newest snapshot
}

// mark is the high-water mark: a small file beside the log that remembers its end, because Pebble reopens a damaged log without
// an error and without its last records. Not safe for concurrent use.
type mark struct {
	file vfs.File
	seal seal
	seq  uint64 // of the slot written last
	page [slotStride]byte
}

// openMark reads the mark at path. fresh says that there was none and one at zero was made for p's node.
// It fails with ErrDamaged when no slot can be read.
func openMark(fsys vfs.FS, path string, s seal, node place.NodeID, incarnation uint64) (m *mark, p position, fresh bool, err error) {
	p = position{node: node, incarnation: incarnation}
	if _, err := fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
		fresh = true
		if err := createMark(fsys, path, s, p); err != nil {
			return nil, p, false, fmt.Errorf("create raft mark: %w", err)
		}
	} else if err != nil {
		return nil, p, false, fmt.Errorf("find raft mark: %w", err)
	}
	f, err := fsys.OpenReadWrite(path, diskCategory)
	if err != nil {
		return nil, p, false, fmt.Errorf("open raft mark: %w", err)
	}
	m = &mark{file: f, seal: s}
	if p, err = m.read(); err != nil {
		_ = f.Close() // nothing was written
		return nil, p, false, err
	}
	return m, p, fresh, nil
}

// createMark writes a whole mark file under a temporary name first, so that a crash leaves a whole one or none.
func createMark(fsys vfs.FS, path string, s seal, p position) error {
	b := make([]byte, 2*slotStride)
	copy(b, encodeSlot(nil, s, 1, p))
	return writeAtomic(fsys, path, b)
}

// writeAtomic makes the file path with content b appear durably or not at all.
func writeAtomic(fsys vfs.FS, path string, b []byte) error {
	f, err := fsys.Create(path+".tmp", diskCategory)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Clone(b)) // a vfs may change what it writes
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(fsys, fsys.PathDir(path))
}

// makeDir makes dir and its parents, durably.
func makeDir(fsys vfs.FS, dir string) error {
	var created []string
	for p := dir; ; p = fsys.PathDir(p) {
		if _, err := fsys.Stat(p); err == nil || p == fsys.PathDir(p) {
			break
		}
		created = append(created, p)
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, p := range created {
		if err := syncDir(fsys, fsys.PathDir(p)); err != nil {
			return err
		}
	}
	return nil
}

// syncDir makes the names in dir durable.
func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// encodeSlot appends the slot of p with sequence seq.
func encodeSlot(dst []byte, s seal, seq uint64, p position) []byte {
	at := len(dst)
	dst = append(dst, markMagic...)
	dst = append(dst, formatVersion, byte(len(p.vote.candidate)), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, seq)
	dst = append(dst, p.node[:]...)
	for _, v := range []uint64{p.incarnation, p.lastIndex, p.lastTerm} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = append(dst, p.lastTag[:]...)
	for _, v := range []uint64{p.vote.seq, p.vote.term, p.vote.voteTerm, p.snapshot} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	var candidate [candidateBytesMax]byte
	copy(candidate[:], p.vote.candidate)
	dst = append(dst, candidate[:]...)
	own := s.of(labelMark, dst[at:])
	dst = append(dst, own[:]...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// decodeSlot undoes encodeSlot. ok is false for a slot that is torn, empty, altered or of another version.
func decodeSlot(b []byte, s seal) (seq uint64, p position, ok bool) {
	if len(b) < slotBytes || string(b[:4]) != markMagic || b[4] != formatVersion || b[5] > candidateBytesMax {
		return 0, p, false
	}
	b = b[:slotBytes]
	body, sum := b[:slotBytes-20], b[slotBytes-20:slotBytes-4]
	if crc32.Checksum(b[:slotBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[slotBytes-4:]) {
		return 0, p, false
	}
	if !s.checks(labelMark, body, sum) {
		return 0, p, false
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	copy(p.node[:], b[16:])
	copy(p.lastTag[:], b[56:])
	p.incarnation, p.lastIndex, p.lastTerm = at(32), at(40), at(48)
	p.vote = vote{seq: at(72), term: at(80), voteTerm: at(88), candidate: string(b[104 : 104+int(b[5])])}
	p.snapshot = at(96)
	return at(8), p, true
}

// read returns the newest sound slot.
func (m *mark) read() (position, error) {
	var best position
	found := false
	for i := int64(0); i < 2; i++ {
		b := m.page[:slotBytes]
		if _, err := m.file.ReadAt(b, i*slotStride); err != nil && !errors.Is(err, io.EOF) {
			return position{}, fmt.Errorf("%w: read raft mark: %w", ErrDisk, err)
		}
		if seq, p, ok := decodeSlot(b, m.seal); ok && (!found || seq > m.seq) {
			m.seq, best, found = seq, p, true
		}
	}
	if !found {
		return position{}, fmt.Errorf("%w: no slot of the raft mark can be read", ErrDamaged)
	}
	return best, nil
}

// write makes p the mark, durably. A crash on the way leaves the mark before it.
func (m *mark) write(p position) error {
	m.seq++
	clear(m.page[:])
	encodeSlot(m.page[:0], m.seal, m.seq, p)
	if _, err := m.file.WriteAt(m.page[:], int64((m.seq+1)%2)*slotStride); err != nil {
		return fmt.Errorf("%w: write raft mark: %w", ErrDisk, err)
	}
	if err := m.file.SyncData(); err != nil {
		return fmt.Errorf("%w: sync raft mark: %w", ErrDisk, err)
	}
	return nil
}

// close lets go of the file; everything in it is durable already.
func (m *mark) close() error { return m.file.Close() }
