package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// cryptFile is an open encrypted file. As with every vfs.File, Read and Write are sequential and
// share one position; ReadAt may run beside them and beside itself.
type cryptFile struct {
	base  vfs.File
	block cipher.Block // nil: a file whose Create never finished; it is empty and only read
	pos   int64        // of Read and Write, in the body

	scratch *sync.Pool // of *[scratchBytes]byte

	// stream continues at streamPos, so that sequential writes need no new one.
	stream    cipher.Stream
	streamPos int64
}

var _ vfs.File = (*cryptFile)(nil)

// Read decrypts from the position.
func (f *cryptFile) Read(p []byte) (int, error) {
	if f.block == nil {
		return 0, io.EOF
	}
	n, err := f.base.Read(p)
	streamAt(f.block, f.pos).XORKeyStream(p[:n], p[:n])
	f.pos += int64(n)
	return n, err
}

// ReadAt decrypts from off in the body.
func (f *cryptFile) ReadAt(p []byte, off int64) (int, error) {
	if f.block == nil {
		return 0, io.EOF
	}
	n, err := f.base.ReadAt(p, off+headerBytes)
	streamAt(f.block, off).XORKeyStream(p[:n], p[:n])
	return n, err
}

// Write encrypts at the position; it does not change p.
func (f *cryptFile) Write(p []byte) (int, error) {
	if f.block == nil {
		return 0, io.ErrClosedPipe
	}
	if f.stream == nil || f.streamPos != f.pos {
		f.stream, f.streamPos = streamAt(f.block, f.pos), f.pos
	}
	return f.encryptTo(f.stream, p, func(sealed []byte) (int, error) {
		f.streamPos += int64(len(sealed))
		n, err := f.base.Write(sealed)
		f.pos += int64(n)
		return n, err
	})
}

// WriteAt encrypts at off in the body of a file from OpenReadWrite.
func (f *cryptFile) WriteAt(p []byte, off int64) (int, error) {
	if f.block == nil {
		return 0, io.ErrClosedPipe
	}
	at := off + headerBytes
	return f.encryptTo(streamAt(f.block, off), p, func(sealed []byte) (int, error) {
		n, err := f.base.WriteAt(sealed, at)
		at += int64(n)
		return n, err
	})
}

// encryptTo hands p to write, encrypted, in pieces of at most scratchBytes.
func (f *cryptFile) encryptTo(stream cipher.Stream, p []byte, write func([]byte) (int, error)) (int, error) {
	buf := f.scratch.Get().(*[scratchBytes]byte)
	defer f.scratch.Put(buf)
	done := 0
	for done < len(p) {
		piece := p[done:min(done+scratchBytes, len(p))]
		stream.XORKeyStream(buf[:len(piece)], piece)
		n, err := write(buf[:len(piece)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// streamAt returns the key stream from position pos of the body on.
func streamAt(block cipher.Block, pos int64) cipher.Stream {
	var counter, skipped [aes.BlockSize]byte
	binary.BigEndian.PutUint64(counter[8:], uint64(pos)/aes.BlockSize)
	stream := newCTR(block, counter)
	if skip := pos % aes.BlockSize; skip > 0 {
		stream.XORKeyStream(skipped[:skip], skipped[:skip])
	}
	return stream
}

// Close closes the file.
func (f *cryptFile) Close() error { return f.base.Close() }

// Sync makes the file durable.
func (f *cryptFile) Sync() error { return f.base.Sync() }

// SyncData makes the file's data durable.
func (f *cryptFile) SyncData() error { return f.base.SyncData() }

// SyncTo begins to sync the header and length bytes of the body.
func (f *cryptFile) SyncTo(length int64) (bool, error) { return f.base.SyncTo(length + headerBytes) }

// Preallocate reserves a range of the body.
func (f *cryptFile) Preallocate(offset, length int64) error {
	return f.base.Preallocate(offset+headerBytes, length)
}

// Prefetch announces reads of a range of the body.
func (f *cryptFile) Prefetch(offset, length int64) error {
	return f.base.Prefetch(offset+headerBytes, length)
}

// Stat returns the info with the size of the body.
func (f *cryptFile) Stat() (vfs.FileInfo, error) { return bodyInfo(f.base.Stat()) }

// Fd returns the descriptor of the underlying file, for advice and range syncs; reading from it gives
// ciphertext.
func (f *cryptFile) Fd() uintptr { return f.base.Fd() }

// info is a file's info with the header taken off its size.
type info struct{ vfs.FileInfo }

func (i info) Size() int64 { return max(0, i.FileInfo.Size()-headerBytes) }

func bodyInfo(i vfs.FileInfo, err error) (vfs.FileInfo, error) {
	if err != nil || i.IsDir() {
		return i, err
	}
	return info{i}, nil
}
