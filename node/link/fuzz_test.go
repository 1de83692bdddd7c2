package link

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

func idChain(id Identity) []*x509.Certificate { return []*x509.Certificate{id.leaf()} }

func mustKey(t *testing.T, id Identity) *ecdsa.PrivateKey {
	t.Helper()
	key, ok := id.Cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("key is a %T", id.Cert.PrivateKey)
	}
	return key
}

func sampleHello() hello {
	h := hello{Class: ClassBulk, Features: 3, Epoch: 5, Boot: 7}
	for i := range 16 {
		h.Ring[i], h.Instance[i] = byte(i), byte(0xf0+i)
	}
	return h
}

func TestGoldenWireFormats(t *testing.T) {
	for name, got := range map[string][]byte{
		"hello-v1.bin":    sampleHello().append(nil, helloMagic),
		"request-v1.bin":  appendFrame(nil, frameRequest, 0, []byte("payload")),
		"error-v1.bin":    appendFrame(nil, frameError, 42, []byte("text")),
		"response-v1.bin": appendFrame(nil, frameResponse, 0, nil),
	} {
		path := filepath.Join("testdata", name)
		if *update {
			must(t, os.MkdirAll("testdata", 0o755))
			must(t, os.WriteFile(path, got, 0o644))
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrote %x, the format is %x", name, got, want)
		}
	}
	golden, err := os.ReadFile(filepath.Join("testdata", "hello-v1.bin"))
	must(t, err)
	if h, err := parseHello(golden, helloMagic); err != nil || h != sampleHello() {
		t.Errorf("golden hello reads as %+v, %v", h, err)
	}
}

func FuzzHello(f *testing.F) {
	f.Add(sampleHello().append(nil, helloMagic))
	f.Add(sampleHello().append(nil, welcomeMagic))
	f.Add([]byte("OSLK"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b, helloMagic)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%x: %v is not ErrMalformed", b, err)
			}
			return
		}
		if again := h.append(nil, helloMagic); !bytes.Equal(again, b) {
			t.Errorf("%x is written again as %x", b, again)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameRequest, 0, []byte("payload")))
	f.Add(appendFrame(nil, frameError, 9, nil))
	f.Add([]byte("OS\x01\x01\x00\x00\x00\x00\xff\xff\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := readFrame(bytes.NewReader(b), 1<<20, nil)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%x: %v", b, err)
			}
			return
		}
		if again := appendFrame(nil, fr.typ, fr.code, fr.payload); !bytes.HasPrefix(b, again) {
			t.Errorf("%x is written again as %x", b, again)
		}
	})
}

func FuzzNodeURI(f *testing.F) {
	f.Add("osteon://ring/00112233-4455-6677-8899-aabbccddeeff/node/00112233-4455-6677-8899-aabbccddee00?site=north")
	f.Add("osteon://ring/x/node/y?site=")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		ring, peer, err := parseNodeURI(u)
		if err == nil && nodeURI(ring, peer.Node, peer.Site).String() != u.String() {
			t.Errorf("%q reads as %v %v", s, ring, peer)
		}
	})
}
