//go:build !plant_plaintext

package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
)

// Whatever a node writes for itself is encrypted by one of these two; see plant_plaintext.go for why
// they are here.

// newGCM returns AES-256-GCM.
func newGCM(block cipher.Block) cipher.AEAD {
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(fmt.Sprintf("vault: AES-GCM: %v", err)) // cannot happen: the block size is AES's
	}
	return aead
}

// newCTR returns the key stream of AES-256-CTR from a counter block on.
func newCTR(block cipher.Block, counter [aes.BlockSize]byte) cipher.Stream {
	return cipher.NewCTR(block, counter[:])
}
