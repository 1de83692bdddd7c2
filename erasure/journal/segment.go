package journal

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"osteon/erasure/plant"
	"osteon/raft/vault"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	segmentMagic   = "OSTJSEGM"
	segmentVersion = 1
	headBytes      = 512
	headFixedBytes = 8 + 2 + 2 + 16 + 16 + 8 + 8 + 8
	segmentSuffix  = ".seg"
)

const writeCategory vfs.DiskWriteCategory = "osteon-journal"

// segment is a segment with bytes on disk. Journal.mu guards the counts.
type segment struct {
	number      uint64
	incarnation uint64
	aead        cipher.AEAD

	size     uint32 // bytes on disk
	live     int    // objects with bytes here that are not released
	released int    // objects with bytes here that are
	pins     int    // open objects and unfinished writers with bytes here
	writing  bool   // not yet sealed and synced
	damaged  bool   // synced bytes of it are bad: what they were is unknown

	// fileMu is held for reading over reads, so that closing waits for them, and held over the opening,
	// for which only readers of this segment wait.
	fileMu sync.RWMutex
	file   vfs.File // for reading; opened when first needed
	gone   bool     // closed for good
}

func (j *Journal) segmentPath(number uint64) string {
	return j.cfg.FS.PathJoin(j.cfg.Dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

// parseSegmentName returns the number of the segment with that file name.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 16, 64)
	return number, err == nil
}

// readAt reads exactly len(b) bytes of the segment, or fails with io.ErrUnexpectedEOF.
func (j *Journal) readAt(s *segment, b []byte, offset int64) error {
	n, err := j.readSome(s, b, offset)
	if err == nil && n < len(b) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readSome reads up to len(b) bytes of the segment; fewer only at its end.
func (j *Journal) readSome(s *segment, b []byte, offset int64) (int, error) {
	if err := j.openForRead(s); err != nil {
		return 0, err
	}
	s.fileMu.RLock()
	defer s.fileMu.RUnlock()
	if s.file == nil {
		return 0, ErrClosed
	}
	n, err := s.file.ReadAt(b, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (j *Journal) openForRead(s *segment) error {
	s.fileMu.RLock()
	ready := s.file != nil || s.gone
	s.fileMu.RUnlock()
	if ready {
		return nil
	}
	s.fileMu.Lock()
	defer s.fileMu.Unlock()
	if s.file != nil || s.gone {
		return nil
	}
	f, err := j.cfg.FS.Open(j.segmentPath(s.number))
	if err == nil {
		s.file = f
	}
	return err
}

// closeFile waits for reads under way; later ones fail with ErrClosed.
func (s *segment) closeFile() error {
	s.fileMu.Lock()
	defer s.fileMu.Unlock()
	s.gone = true
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// createSegment makes a durable segment with a new key and no frames.
func (j *Journal) createSegment(number uint64) (*tail, error) {
	key, wrapped, err := j.cfg.Vault.NewKey(j.keyAAD(number))
	if err != nil {
		return nil, err
	}
	path := j.segmentPath(number)
	f, err := j.cfg.FS.OpenReadWrite(path, writeCategory)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(j.encodeSegmentHead(number, wrapped), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && !plant.Is(plant.SegmentNameNotSynced) {
		err = syncDir(j.cfg.FS, j.cfg.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), j.cfg.FS.Remove(path))
	}
	s := &segment{number: number, incarnation: j.incarnation, aead: vault.NewAEAD(&key), size: headBytes, writing: true}
	return &tail{segment: s, file: f, end: headBytes, written: headBytes, durable: headBytes}, nil
}

// keyAAD is what a segment's key is bound to.
func (j *Journal) keyAAD(number uint64) []byte {
	b := []byte("osteon journal segment 1")
	b = append(b, j.cfg.Ring[:]...)
	b = append(b, j.cfg.Disk[:]...)
	return binary.LittleEndian.AppendUint64(b, number)
}

func (j *Journal) encodeSegmentHead(number uint64, wrapped vault.WrappedKey) []byte {
	b := make([]byte, 0, headBytes)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint16(b, segmentVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(wrapped)))
	b = append(b, j.cfg.Ring[:]...)
	b = append(b, j.cfg.Disk[:]...)
	b = binary.LittleEndian.AppendUint64(b, number)
	b = binary.LittleEndian.AppendUint64(b, j.incarnation)
	b = binary.LittleEndian.AppendUint64(b, uint64(j.cfg.Now().UnixNano()))
	b = append(b, wrapped...)
	b = b[:headBytes-4] // the rest is zero
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

var errHead = errors.New("damaged segment header")

// decodeSegmentHead checks the header of segment number and returns the segment. It fails with errHead
// for damage; other errors are refusals that the operator must look at.
func (j *Journal) decodeSegmentHead(b []byte, number uint64) (*segment, error) {
	if len(b) < headBytes || string(b[:8]) != segmentMagic ||
		binary.LittleEndian.Uint32(b[headBytes-4:]) != crc32.Checksum(b[:headBytes-4], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, errHead
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != segmentVersion {
		return nil, fmt.Errorf("segment version %d, want %d: written by a newer program", v, segmentVersion)
	}
	if !bytes.Equal(b[12:28], j.cfg.Ring[:]) || !bytes.Equal(b[28:44], j.cfg.Disk[:]) {
		return nil, errors.New("segment of another ring or disk: is the right volume mounted?")
	}
	length := int(binary.LittleEndian.Uint16(b[10:]))
	if binary.LittleEndian.Uint64(b[44:]) != number || length > headBytes-4-headFixedBytes {
		return nil, errHead
	}
	key, err := j.cfg.Vault.Unwrap(vault.WrappedKey(b[headFixedBytes:headFixedBytes+length]), j.keyAAD(number))
	if errors.Is(err, vault.ErrTampered) {
		return nil, errHead
	}
	if err != nil {
		return nil, err
	}
	return &segment{number: number, incarnation: binary.LittleEndian.Uint64(b[52:]), aead: vault.NewAEAD(&key)}, nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
