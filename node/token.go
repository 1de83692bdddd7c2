package node

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"osteon/erasure/place"
)

// ErrToken means that a join token cannot be read or was refused; the text says why.
var ErrToken = errors.New("join token")

const (
	tokenPrefix   = "osteon-join-1."
	tokenBytesMax = 4 << 10
)

// Token is what an admin carries from a ring to a new node: where the ring is, how to be sure of it, and
// a secret that lets one node join once.
type Token struct {
	Ring      place.RingID `json:"r"`
	Secret    []byte       `json:"s"`
	CA        [32]byte     `json:"-"` // SHA-256 of the ring CA's certificate
	CAText    []byte       `json:"c"`
	Addresses []string     `json:"a"`
	Site      place.SiteID `json:"i,omitempty"`
	Expires   time.Time    `json:"e"`
}

// String returns the token as one word to copy.
func (t Token) String() string {
	t.CAText = t.CA[:]
	body, err := json.Marshal(t)
	if err != nil {
		panic(err) // a Token holds nothing that JSON cannot
	}
	body = fmt.Appendf(body, "%08x", crc32.Checksum(body, castagnoli))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(body)
}

// ParseToken reads the form of String. Errors wrap ErrToken and say what is wrong with the word.
func ParseToken(s string) (Token, error) {
	var t Token
	encoded, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok || len(encoded) > tokenBytesMax {
		return t, fmt.Errorf("%w: does not begin with %s; copy the whole word that osteon token create printed", ErrToken, tokenPrefix)
	}
	body, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || len(body) < 8 {
		return t, fmt.Errorf("%w: is not whole; copy it again", ErrToken)
	}
	sum := body[len(body)-8:]
	body = body[:len(body)-8]
	if string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return t, fmt.Errorf("%w: is not whole; copy it again", ErrToken)
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return t, fmt.Errorf("%w: %w", ErrToken, err)
	}
	if len(t.CAText) != len(t.CA) || len(t.Addresses) == 0 {
		return t, fmt.Errorf("%w: lacks the ring's fingerprint or addresses", ErrToken)
	}
	copy(t.CA[:], t.CAText)
	return t, nil
}

// hash is what the catalog keeps of the secret.
func (t Token) hash() [32]byte {
	return sha256.Sum256(append([]byte("osteon join token\x00"), t.Secret...))
}
