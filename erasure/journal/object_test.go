package journal

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// CopyRange writes what ReadAt reads, over the ends of chunks too, and nothing for a range that is not there.
func TestCopyRange(t *testing.T) {
	cfg := newConfig(t, vfs.NewMem(), "/journal")
	cfg.SegmentBytes = 4 * chunkBytes
	j := open(t, cfg)
	const size = 2*chunkBytes + 777
	key := put(t, j, 1, size)
	_, want, _ := content(1, size)
	o, err := j.OpenObject(key)
	must(t, err)
	defer func() { must(t, o.Close()) }()
	ranges := [][2]int64{{0, size}, {0, 0}, {size, 0}, {chunkBytes, chunkBytes}, {chunkBytes - 1, 2}, {5, 5}, {6, 5}, {2 * chunkBytes, 777}}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := rng.Int64N(size)
		ranges = append(ranges, [2]int64{off, rng.Int64N(size - off + 1)})
	}
	for _, r := range ranges {
		var got bytes.Buffer
		n, err := o.CopyRange(&got, r[0], r[1])
		if err != nil || n != r[1] || !bytes.Equal(got.Bytes(), want[r[0]:r[0]+r[1]]) {
			t.Errorf("%d bytes at %d: copied %d, %v", r[1], r[0], n, err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, size + 1}, {size, 1}, {size + 1, 0}, {1, -1}, {1 << 62, 1 << 62}} {
		if n, err := o.CopyRange(io.Discard, r[0], r[1]); n != 0 || err == nil {
			t.Errorf("%d bytes at %d: copied %d, %v", r[1], r[0], n, err)
		}
	}
}
