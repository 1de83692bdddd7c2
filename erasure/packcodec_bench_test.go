package erasure

import (
	"context"
	"fmt"
	"io"
	"testing"

	"osteon/erasure/place"
	"osteon/erasure/shard"
)

// rootSink costs nothing but is a sink: the benchmark measures the sealer alone.
type rootSink struct{}

func (rootSink) WriteCell(context.Context, []byte) error { return nil }
func (rootSink) Commit(context.Context, int64) (shard.Root, error) {
	return shard.Root{}, nil
}
func (rootSink) Abort() {}

func BenchmarkEncodePack(b *testing.B) {
	for _, g := range []place.Geometry{{K: 1}, {K: 1, M: 2}, {K: 4, M: 2}, {K: 5, M: 4}, {K: 10, M: 4}} {
		b.Run(fmt.Sprint(g), func(b *testing.B) {
			const size = 64 << 20
			data := randomBytes(1, 1<<20)
			spec := specOf(g, 1)
			spec.Codec = new(Codec)
			var sinks []ShardSink
			for range g.N() {
				sinks = append(sinks, rootSink{})
			}
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				_, committed, err := encode(b.Context(), spec, func(w *PackWriter) error {
					for range size >> 20 {
						if _, err := w.Write(data); err != nil {
							return err
						}
					}
					return w.Finish([]byte("m"))
				}, sinks)
				// The sinks report no root, which is the last thing that is checked.
				if err == nil || len(committed) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadPack(b *testing.B) {
	for _, lost := range []int{0, 2} {
		b.Run(fmt.Sprintf("lost%d", lost), func(b *testing.B) {
			p := encodePack(b, specOf(place.Geometry{K: 5, M: 4}, 1), [][2]int{{64 << 20, 10}})
			sources := p.sources()
			for i := range lost {
				sources[i] = nil
			}
			r := p.open(b, sources, nil)
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				for _, s := range sources {
					if s != nil {
						s.reads = s.reads[:0]
					}
				}
				if err := r.CopyRange(b.Context(), io.Discard, 0, 64<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadFrame(b *testing.B) {
	p := encodePack(b, specOf(place.Geometry{K: 5, M: 4}, 1), [][2]int{{64 << 20, 10}})
	sources := p.sources()
	r := p.open(b, sources, nil)
	buf := make([]byte, 50_000)
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off = (off + 524_287) % (60 << 20)
		if _, err := r.ReadAt(b.Context(), buf, off); err != nil {
			b.Fatal(err)
		}
	}
}
