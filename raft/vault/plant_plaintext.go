//go:build plant_plaintext

package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
)

// A build with this tag writes plaintext. It exists for one test, which searches all files of a ring for
// a patient's name and must find it in a ring of this build: a search that finds nothing anywhere proves
// nothing. Nothing else may be built with it.

// newGCM returns a cipher that authenticates as AES-256-GCM does and encrypts nothing.
func newGCM(block cipher.Block) cipher.AEAD {
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(fmt.Sprintf("vault: AES-GCM: %v", err))
	}
	return plainAEAD{aead}
}

type plainAEAD struct{ cipher.AEAD }

func (p plainAEAD) tag(nonce, plain, aad []byte) []byte {
	return p.AEAD.Seal(nil, nonce, nil, append(append([]byte{}, plain...), aad...))
}

func (p plainAEAD) Seal(dst, nonce, plain, aad []byte) []byte {
	tag := p.tag(nonce, plain, aad)
	return append(append(dst, plain...), tag...)
}

func (p plainAEAD) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - p.Overhead()
	if n < 0 || string(p.tag(nonce, sealed[:n], aad)) != string(sealed[n:]) {
		return nil, errOpen
	}
	return append(dst, sealed[:n]...), nil
}

// newCTR returns a key stream of zeros.
func newCTR(cipher.Block, [aes.BlockSize]byte) cipher.Stream { return plainStream{} }

type plainStream struct{}

func (plainStream) XORKeyStream(dst, src []byte) { copy(dst, src) }
