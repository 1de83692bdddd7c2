package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"osteon/erasure/place"
)

const (
	keysMagic       = "OSTVKEYS"
	bundleMagic     = "OSTVBNDL"
	formatVersion   = 1
	checksumBytes   = 4
	keysHeadBytes   = 8 + 2 + 2 + 16 + 4
	bundleHeadBytes = 8 + 2 + 2 + 16 + 32
	epochBytes      = 4 + 32
)

// epoch is a KEK with its number.
type epoch struct {
	number uint32
	kek    Key
}

// keyring is what a bundle carries. It has at least one epoch, numbers rising.
type keyring struct {
	ring   place.RingID
	mac    Key
	epochs []epoch
}

func (r *keyring) newest() *epoch { return &r.epochs[len(r.epochs)-1] }

func (r *keyring) find(number uint32) *Key {
	for i := range r.epochs {
		if r.epochs[i].number == number {
			return &r.epochs[i].kek
		}
	}
	return nil
}

func encodeBundle(r keyring) []byte {
	b := make([]byte, 0, bundleHeadBytes+len(r.epochs)*epochBytes+checksumBytes)
	b = append(b, bundleMagic...)
	b = binary.LittleEndian.AppendUint16(b, formatVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.epochs)))
	b = append(b, r.ring[:]...)
	b = append(b, r.mac[:]...)
	for i := range r.epochs {
		b = binary.LittleEndian.AppendUint32(b, r.epochs[i].number)
		b = append(b, r.epochs[i].kek[:]...)
	}
	return appendChecksum(b)
}

func decodeBundle(b []byte) (keyring, error) {
	body, err := checked(b, bundleMagic, bundleHeadBytes)
	if err != nil {
		return keyring{}, fmt.Errorf("key bundle: %w", err)
	}
	count := int(binary.LittleEndian.Uint16(body[10:]))
	if count == 0 || count > epochsMax || len(body) != bundleHeadBytes+count*epochBytes {
		return keyring{}, fmt.Errorf("key bundle: %d epochs in %d bytes: %w", count, len(b), ErrTampered)
	}
	r := keyring{ring: place.RingID(body[12:28]), mac: Key(body[28:60])}
	for rest := body[bundleHeadBytes:]; len(rest) > 0; rest = rest[epochBytes:] {
		e := epoch{number: binary.LittleEndian.Uint32(rest), kek: Key(rest[4:epochBytes])}
		if len(r.epochs) > 0 && e.number <= r.newest().number {
			return keyring{}, fmt.Errorf("key bundle: epoch %d out of order: %w", e.number, ErrTampered)
		}
		r.epochs = append(r.epochs, e)
	}
	return r, nil
}

func encodeKeysFile(root RootKey, r keyring) ([]byte, error) {
	b := make([]byte, 0, keysHeadBytes)
	b = append(b, keysMagic...)
	b = binary.LittleEndian.AppendUint16(b, formatVersion)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = append(b, r.ring[:]...)
	sealed, err := root.Wrap(encodeBundle(r), b)
	if err != nil {
		return nil, fmt.Errorf("seal with %s: %w", root.Describe(), err)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(sealed)))
	b = append(b, sealed...)
	if len(b)+checksumBytes > keysFileBytesMax {
		return nil, fmt.Errorf("seal with %s: %d bytes are more than a keys file holds", root.Describe(), len(b))
	}
	return appendChecksum(b), nil
}

// decodeKeysFile looks at damage first, then at the ring, then at the root key, so that each has an
// error of its own.
func decodeKeysFile(root RootKey, ring place.RingID, b []byte) (keyring, error) {
	body, err := checked(b, keysMagic, keysHeadBytes)
	if err != nil {
		return keyring{}, err
	}
	if binary.LittleEndian.Uint16(body[10:]) != 0 ||
		binary.LittleEndian.Uint32(body[28:]) != uint32(len(body)-keysHeadBytes) {
		return keyring{}, ErrTampered
	}
	if found := place.RingID(body[12:28]); found != ring {
		return keyring{}, fmt.Errorf("keys of ring %s, want %s: %w", found, ring, ErrWrongRing)
	}
	bundle, err := root.Unwrap(body[keysHeadBytes:], body[:28])
	if err != nil {
		return keyring{}, err
	}
	r, err := decodeBundle(bundle)
	if err != nil {
		return keyring{}, err
	}
	if r.ring != ring {
		return keyring{}, fmt.Errorf("bundle of ring %s: %w", r.ring, ErrTampered)
	}
	return r, nil
}

var errShort = errors.New("too short")

// checked verifies magic, version and trailing checksum of a record and returns it without the
// checksum, at least head bytes long. The version follows the magic.
func checked(b []byte, magic string, head int) ([]byte, error) {
	if len(b) < head+checksumBytes {
		return nil, fmt.Errorf("%d bytes: %w: %w", len(b), errShort, ErrTampered)
	}
	if string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("no %s: %w", magic, ErrTampered)
	}
	body := b[:len(b)-checksumBytes]
	if binary.LittleEndian.Uint32(b[len(body):]) != checksum(body) {
		return nil, fmt.Errorf("%s checksum: %w", magic, ErrTampered)
	}
	if v := binary.LittleEndian.Uint16(b[len(magic):]); v != formatVersion {
		return nil, fmt.Errorf("%s version %d, want %d: %w", magic, v, formatVersion, ErrVersion)
	}
	return body, nil
}

func appendChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
