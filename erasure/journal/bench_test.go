package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkCommit writes objects with real syncs; MB/s are of plaintext.
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct{ writers, size int }{{1, 530_532}, {4, 530_532}, {8, 530_532}, {1, 1024}, {8, 1024}, {64, 1024}} {
		b.Run(fmt.Sprintf("%dx%d", c.writers, c.size), func(b *testing.B) {
			cfg := newConfig(b, vfs.Default, b.TempDir())
			cfg.SegmentBytes = 0
			j := open(b, cfg)
			object := make([]byte, c.size)
			_, _ = rand.Read(object)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			b.ResetTimer()
			var next atomic.Int64
			var wg sync.WaitGroup
			for range c.writers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						var key Key
						binary.LittleEndian.PutUint64(key[:], uint64(n))
						w := j.Begin()
						if _, err := w.Write(object); err != nil {
							b.Error(err)
						}
						if err := w.Commit(context.Background(), key, object[:200]); err != nil {
							b.Error(err)
						}
						if c.size > 100_000 { // keep the disk from filling
							j.Drop(key)
							if n%200 == 0 {
								if err := j.Evict(); err != nil {
									b.Error(err)
								}
							}
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(b.N)/float64(max(1, j.Stats().Syncs)), "commits/sync")
		})
	}
}

// BenchmarkRead reads objects of one CT slice from the page cache.
func BenchmarkRead(b *testing.B) {
	cfg := newConfig(b, vfs.Default, b.TempDir())
	cfg.SegmentBytes = 0
	j := open(b, cfg)
	var keys []Key
	for n := range 100 {
		keys = append(keys, put(b, j, n, 530_532))
	}
	b.SetBytes(530_532)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		o, err := j.OpenObject(keys[n%len(keys)])
		must(b, err)
		if _, err := o.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		must(b, o.Close())
	}
}

// BenchmarkReplay opens a journal of 100,000 objects of 1 KB.
func BenchmarkReplay(b *testing.B) {
	const objects = 100_000
	cfg := newConfig(b, vfs.Default, b.TempDir())
	cfg.SegmentBytes = 0
	j := open(b, cfg)
	object := make([]byte, 1024)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 128 {
		wg.Go(func() {
			for n := next.Add(1); n <= objects; n = next.Add(1) {
				key, _, _ := content(int(n), 0)
				w := j.Begin()
				_, err := w.Write(object)
				must(b, err)
				must(b, w.Commit(context.Background(), key, object[:200]))
			}
		})
	}
	wg.Wait()
	must(b, j.Close())
	var grown int64
	for b.Loop() {
		before := heap()
		j, err := Open(cfg)
		must(b, err)
		grown = heap() - before
		if j.Stats().Objects != objects {
			b.Fatalf("%+v", j.Stats())
		}
		must(b, j.Close())
	}
	b.ReportMetric(float64(grown)/objects, "bytes/object")
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/open")
}
