package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

const (
	saltBytes = 16
	tagBytes  = 16
)

var errOpen = errors.New("authentication failed")

// seal appends salt, ciphertext and tag of plain under key to dst. Equal inputs give equal outputs.
func seal(dst []byte, key *Key, plain, aad []byte) []byte {
	salt := syntheticSalt(key, plain, aad)
	dst = append(dst, salt[:]...)
	return saltedAEAD(key, salt[:]).Seal(dst, make([]byte, 12), plain, aad)
}

// open returns the plaintext of what seal appended, or errOpen.
func open(key *Key, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < saltBytes+tagBytes {
		return nil, errOpen
	}
	salt := sealed[:saltBytes]
	plain, err := saltedAEAD(key, salt).Open(nil, make([]byte, 12), sealed[saltBytes:], aad)
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

func syntheticSalt(key *Key, plain, aad []byte) (salt [saltBytes]byte) {
	sum := keyedHash(key, "osteon vault salt 1", aad, plain)
	copy(salt[:], sum[:])
	return salt
}

func saltedAEAD(key *Key, salt []byte) cipher.AEAD {
	subkey := Key(keyedHash(key, "osteon vault key 1", salt))
	return NewAEAD(&subkey)
}

// NewAEAD returns AES-256-GCM under key. The caller owns the uniqueness of nonces.
func NewAEAD(key *Key) cipher.AEAD {
	return newGCM(newBlock(key))
}

func newBlock(key *Key) cipher.Block {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(fmt.Sprintf("vault: AES-256: %v", err)) // cannot happen: the key length is a type
	}
	return block
}

// keyedHash is HMAC-SHA256 over the label and the parts, each preceded by its length.
func keyedHash(key *Key, label string, parts ...[]byte) (sum [32]byte) {
	mac := hmac.New(sha256.New, key[:])
	writePart(mac, []byte(label))
	for _, part := range parts {
		writePart(mac, part)
	}
	mac.Sum(sum[:0])
	return sum
}

func writePart(mac hash.Hash, part []byte) {
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(len(part)))
	mac.Write(length[:])
	mac.Write(part)
}
