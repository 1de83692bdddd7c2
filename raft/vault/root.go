package vault

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// RootKey seals the keys file. It is the seam for hardware and remote keys.
type RootKey interface {
	// Wrap seals plain, bound to aad.
	Wrap(plain, aad []byte) ([]byte, error)
	// Unwrap opens what Wrap returned for the same aad. It fails with ErrWrongRoot or ErrTampered.
	Unwrap(sealed, aad []byte) ([]byte, error)
	// Describe names the key for logs and errors, without any of its bytes.
	Describe() string
}

const (
	rootMagic      = "OSTVROOT"
	rootFileBytes  = 8 + 2 + 2 + 32 + checksumBytes
	rootSealMagic  = "OVR1"
	rootCheckBytes = 8
	rootHeadBytes  = 4 + rootCheckBytes
)

// rootKeyFile is a root key that was read from a file.
type rootKeyFile struct {
	path string
	key  Key
}

// CreateRootKeyFile draws a root key and writes it to a new file that only its owner may read, in a
// directory that exists. The file is durable when it returns. It fails with ErrExists.
func CreateRootKeyFile(fs vfs.FS, path string, rand io.Reader) (RootKey, error) {
	k := &rootKeyFile{path: path}
	if _, err := io.ReadFull(rand, k.key[:]); err != nil {
		return nil, fmt.Errorf("create root key %s: %w", path, err)
	}
	file := append([]byte(rootMagic), formatVersion, 0, 0, 0)
	file = appendChecksum(append(file, k.key[:]...))
	if err := writeNew(fs, path, file); err != nil {
		return nil, fmt.Errorf("create root key %s: %w", path, err)
	}
	return k, nil
}

// OpenRootKeyFile reads a root key. It fails with ErrNotFound, ErrTampered or ErrVersion.
func OpenRootKeyFile(fs vfs.FS, path string) (RootKey, error) {
	file, err := readFile(fs, path, rootFileBytes)
	if oserror.IsNotExist(err) {
		return nil, fmt.Errorf("open root key %s: %w", path, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open root key %s: %w", path, err)
	}
	body, err := checked(file, rootMagic, rootFileBytes-checksumBytes)
	if err != nil {
		return nil, fmt.Errorf("open root key %s: %w", path, err)
	}
	return &rootKeyFile{path: path, key: Key(body[12:])}, nil
}

// Describe returns the path and a check value of the key.
func (k *rootKeyFile) Describe() string {
	check := k.check()
	return fmt.Sprintf("root key %s in file %s", hex.EncodeToString(check[:]), k.path)
}

// check identifies the key without helping to find it.
func (k *rootKeyFile) check() (c [rootCheckBytes]byte) {
	sum := keyedHash(&k.key, "osteon vault root check 1")
	copy(c[:], sum[:])
	return c
}

func (k *rootKeyFile) Wrap(plain, aad []byte) ([]byte, error) {
	check := k.check()
	b := append([]byte(rootSealMagic), check[:]...)
	return seal(b, &k.key, plain, append(bytes.Clone(b), aad...)), nil
}

func (k *rootKeyFile) Unwrap(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < rootHeadBytes || string(sealed[:4]) != rootSealMagic {
		return nil, fmt.Errorf("not sealed by a root key file: %w", ErrWrongRoot)
	}
	head := sealed[:rootHeadBytes]
	if check := k.check(); !bytes.Equal(head[4:], check[:]) {
		return nil, fmt.Errorf("needs root key %s: %w", hex.EncodeToString(head[4:]), ErrWrongRoot)
	}
	plain, err := open(&k.key, sealed[rootHeadBytes:], append(bytes.Clone(head), aad...))
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}
