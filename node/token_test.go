package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"osteon/erasure/place"
)

func TestTokenSurvivesCopying(t *testing.T) {
	want := Token{
		Ring: place.RingID{1, 2}, Secret: []byte("0123456789abcdef"), CA: [32]byte{9, 8, 7},
		Addresses: []string{"10.0.0.1:7400", "10.0.0.2:7400"}, Site: "b", Expires: time.Unix(1_800_000_000, 0).UTC(),
	}
	got, err := ParseToken("  " + want.String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got.Ring != want.Ring || got.CA != want.CA || string(got.Secret) != string(want.Secret) || got.Site != want.Site ||
		!got.Expires.Equal(want.Expires) || len(got.Addresses) != 2 || got.hash() != want.hash() {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDamagedTokensAreRefused(t *testing.T) {
	good := Token{Secret: []byte("0123456789abcdef"), Addresses: []string{"10.0.0.1:7400"}}.String()
	for name, word := range map[string]string{
		"empty":           "",
		"another word":    "hello",
		"cut short":       good[:len(good)-3],
		"one letter lost": good[:40] + good[41:],
		"one changed":     good[:40] + string(flip(good[40])) + good[41:],
		"too long":        tokenPrefix + strings.Repeat("A", tokenBytesMax+4),
		"no addresses":    Token{Secret: []byte("0123456789abcdef")}.String(),
	} {
		if _, err := ParseToken(word); !errors.Is(err, ErrToken) {
			t.Errorf("%s: got %v, want ErrToken", name, err)
		}
	}
}

func flip(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{Secret: []byte("0123456789abcdef"), Addresses: []string{"10.0.0.1:7400"}}.String())
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ParseToken(s); err == nil && len(token.Addresses) == 0 {
			t.Errorf("token %q has no address", s)
		}
	})
}
