package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"osteon/erasure/place"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	// ErrExists is returned where a keys file or root key file is already there.
	ErrExists = errors.New("exists already")
	// ErrNotFound is returned where there is no keys file or root key file.
	ErrNotFound = errors.New("not found")
	// ErrTampered is returned for bytes that are damaged, forged, or bound to something else.
	ErrTampered = errors.New("damaged or tampered with")
	// ErrWrongRoot is returned when the keys file was sealed by another root key.
	ErrWrongRoot = errors.New("sealed by another root key")
	// ErrWrongRing is returned when keys belong to another ring.
	ErrWrongRing = errors.New("keys of another ring")
	// ErrUnknownEpoch is returned for a key wrapped in an epoch that the vault does not hold: it was
	// destroyed, or has not reached this node.
	ErrUnknownEpoch = errors.New("unknown key epoch")
	// ErrVersion is returned for a format version that this program does not know.
	ErrVersion = errors.New("unknown format version")
)

// Key is a secret key of 256 bits.
type Key [32]byte

// String keeps keys out of logs and error texts.
func (Key) String() string { return "[key]" }

// GoString keeps keys out of logs and error texts.
func (Key) GoString() string { return "[key]" }

// WrappedKey is a key sealed by a KEK, with the number of the KEK's epoch; under 128 bytes. It may be
// stored and sent anywhere.
type WrappedKey []byte

// wrappedMagic names the format and its version.
const wrappedMagic = "OVK1"

// Epoch returns the number of the KEK epoch that wrapped the key, or false if w is no wrapped key.
func (w WrappedKey) Epoch() (uint32, bool) {
	if len(w) < 8 || string(w[:4]) != wrappedMagic {
		return 0, false
	}
	return binary.LittleEndian.Uint32(w[4:]), true
}

// Config says where a vault is and what opens it. Every field is needed.
type Config struct {
	FS   vfs.FS       // plain file system; FS() of the vault encrypts over it
	Dir  string       // directory of the keys file, created where missing
	Ring place.RingID // the ring whose keys these are
	Root RootKey      // seals the keys file
	Rand io.Reader    // cryptographic; need not be safe for concurrent use
	// Damaged, when set, is told of every encrypted file whose header is damaged. It must not block.
	Damaged func(name string, err error)
}

func (cfg *Config) validate() error {
	var faults []error
	if cfg.FS == nil {
		faults = append(faults, errors.New("no file system"))
	}
	if cfg.Dir == "" {
		faults = append(faults, errors.New("no directory"))
	}
	if cfg.Ring.IsZero() {
		faults = append(faults, errors.New("no ring"))
	}
	if cfg.Root == nil {
		faults = append(faults, errors.New("no root key"))
	}
	if cfg.Rand == nil {
		faults = append(faults, errors.New("no source of randomness"))
	}
	return errors.Join(faults...)
}

func (cfg *Config) keysPath() string { return cfg.FS.PathJoin(cfg.Dir, "keys") }

// Vault holds the keys of one ring on one node. It is safe for concurrent use and needs no closing.
type Vault struct {
	ring   place.RingID
	keys   keyring
	fs     *cryptFS
	random randomness
}

// Create makes the keys of a new ring: KEK epoch 1 and the MAC key. The keys file is durable when it
// returns. It fails with ErrExists when the directory has keys already.
func Create(cfg Config) (*Vault, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("create keys: %w", err)
	}
	keys := keyring{ring: cfg.Ring, epochs: []epoch{{number: 1}}}
	if _, err := io.ReadFull(cfg.Rand, keys.epochs[0].kek[:]); err != nil {
		return nil, fmt.Errorf("create keys: draw KEK: %w", err)
	}
	if _, err := io.ReadFull(cfg.Rand, keys.mac[:]); err != nil {
		return nil, fmt.Errorf("create keys: draw MAC key: %w", err)
	}
	return store(cfg, keys)
}

// Install makes the keys file of a joining node from the Bundle of a node of the ring. It fails with
// ErrExists, ErrTampered, ErrVersion or ErrWrongRing.
func Install(cfg Config, bundle []byte) (*Vault, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("install keys: %w", err)
	}
	keys, err := decodeBundle(bundle)
	if err != nil {
		return nil, fmt.Errorf("install keys: %w", err)
	}
	if keys.ring != cfg.Ring {
		return nil, fmt.Errorf("install keys: bundle of ring %s, want %s: %w", keys.ring, cfg.Ring, ErrWrongRing)
	}
	return store(cfg, keys)
}

func store(cfg Config, keys keyring) (*Vault, error) {
	file, err := encodeKeysFile(cfg.Root, keys)
	if err != nil {
		return nil, fmt.Errorf("write keys %s: %w", cfg.keysPath(), err)
	}
	if err := MakeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("write keys %s: %w", cfg.keysPath(), err)
	}
	if err := writeNew(cfg.FS, cfg.keysPath(), file); err != nil {
		return nil, fmt.Errorf("write keys %s: %w", cfg.keysPath(), err)
	}
	return newVault(cfg, keys), nil
}

// Open reads the keys file. It fails with ErrNotFound, ErrTampered, ErrVersion, ErrWrongRing or, when
// the file was sealed by another root key, ErrWrongRoot.
func Open(cfg Config) (*Vault, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	file, err := readFile(cfg.FS, cfg.keysPath(), keysFileBytesMax)
	if oserror.IsNotExist(err) {
		return nil, fmt.Errorf("open keys %s: %w: is the right volume mounted? init or join makes keys", cfg.keysPath(), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open keys %s: %w", cfg.keysPath(), err)
	}
	keys, err := decodeKeysFile(cfg.Root, cfg.Ring, file)
	if err != nil {
		return nil, fmt.Errorf("open keys %s with %s: %w", cfg.keysPath(), cfg.Root.Describe(), err)
	}
	return newVault(cfg, keys), nil
}

func newVault(cfg Config, keys keyring) *Vault {
	v := &Vault{ring: cfg.Ring, keys: keys, random: randomness{source: cfg.Rand}}
	v.fs = &cryptFS{base: cfg.FS, vault: v, damaged: cfg.Damaged}
	v.fs.scratch.New = func() any { return new([scratchBytes]byte) }
	return v
}

// Ring returns the ring whose keys these are.
func (v *Vault) Ring() place.RingID { return v.ring }

// Epoch returns the number of the KEK epoch that wraps new keys.
func (v *Vault) Epoch() uint32 { return v.keys.newest().number }

// Bundle returns every KEK and the MAC key in plaintext, for Install on a joining node. It must travel
// over an authenticated, encrypted link only, and rest nowhere.
func (v *Vault) Bundle() []byte { return encodeBundle(v.keys) }

// FS returns the encrypting file system over Config.FS. Every file that is read through it must have
// been created through it; directories and lock files are shared with the plain one.
func (v *Vault) FS() vfs.FS { return v.fs }

// NewKey draws a key and wraps it, bound to aad. The error is that of the source of randomness.
func (v *Vault) NewKey(aad []byte) (Key, WrappedKey, error) {
	var k Key
	if err := v.random.read(k[:]); err != nil {
		return Key{}, nil, fmt.Errorf("draw key: %w", err)
	}
	w, err := v.Wrap(k, aad)
	return k, w, err
}

// Wrap seals k under the newest KEK, bound to the ring and to aad. The same key and aad give the same
// wrapped key within an epoch.
func (v *Vault) Wrap(k Key, aad []byte) (WrappedKey, error) {
	newest := v.keys.newest()
	w := make(WrappedKey, 0, 8+saltBytes+len(k)+tagBytes)
	w = append(w, wrappedMagic...)
	w = binary.LittleEndian.AppendUint32(w, newest.number)
	return seal(w, &newest.kek, k[:], v.wrapAAD(w, aad)), nil
}

// Unwrap returns the key that was wrapped with the same aad. It fails with ErrTampered, also for
// another aad or ring, and with ErrUnknownEpoch.
func (v *Vault) Unwrap(w WrappedKey, aad []byte) (Key, error) {
	number, ok := w.Epoch()
	if !ok {
		return Key{}, fmt.Errorf("unwrap key: no wrapped key of version 1: %w", ErrTampered)
	}
	kek := v.keys.find(number)
	if kek == nil {
		return Key{}, fmt.Errorf("unwrap key of epoch %d: %w", number, ErrUnknownEpoch)
	}
	plain, err := open(kek, w[8:], v.wrapAAD(w[:8], aad))
	if err != nil || len(plain) != len(Key{}) {
		return Key{}, fmt.Errorf("unwrap key of epoch %d: %w", number, ErrTampered)
	}
	return Key(plain), nil
}

func (v *Vault) wrapAAD(head, aad []byte) []byte {
	b := make([]byte, 0, len(head)+len(v.ring)+len(aad))
	b = append(b, head...)
	b = append(b, v.ring[:]...)
	return append(b, aad...)
}

// MAC returns the ring-wide keyed hash of the parts under label; each use of it has its own label.
// Moving bytes from one part to the next changes it. All nodes of a ring agree on it for ever.
func (v *Vault) MAC(label string, parts ...[]byte) [32]byte {
	return keyedHash(&v.keys.mac, label, parts...)
}

// randomness serialises reads of a source that need not be safe for concurrent use.
type randomness struct {
	mu     sync.Mutex
	source io.Reader
}

func (r *randomness) read(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := io.ReadFull(r.source, p)
	return err
}
