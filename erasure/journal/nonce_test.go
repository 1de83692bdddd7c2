package journal

import (
	"bytes"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// No two frames of a segment are encrypted with the same key stream: equal objects lie on the disk as
// different bytes.
func TestEqualObjectsDifferOnDisk(t *testing.T) {
	mem := vfs.NewMem()
	cfg := newConfig(t, mem, "/j")
	j := open(t, cfg)
	const size = 4096
	plain := bytes.Repeat([]byte{0}, size)
	for n := range 8 {
		key, _, _ := content(n, 0)
		must(t, tryPut(j, key, plain, nil))
	}
	must(t, j.Close())
	names, err := mem.List("/j")
	must(t, err)
	seen := map[[64]byte]bool{} // windows of what, encrypting zeros, is the key stream itself
	for _, name := range names {
		f, err := mem.Open("/j/" + name)
		must(t, err)
		b, err := io.ReadAll(f)
		must(t, err)
		must(t, f.Close())
		for at := 0; ; {
			i := bytes.Index(b[at:], []byte(frameMagic))
			if i < 0 {
				break
			}
			at += i
			body := b[at+frameHeadBytes:]
			if len(body) > size {
				window := [64]byte(body[:64])
				if seen[window] {
					t.Fatalf("%s: two frames begin with the same bytes", name)
				}
				seen[window] = true
			}
			at += len(frameMagic)
		}
	}
	if len(seen) < 8 {
		t.Fatalf("%d frames found, want 8 or more", len(seen))
	}
}
