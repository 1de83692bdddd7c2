package link

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"osteon/erasure/place"
)

// benchPair opens two links that know each other.
func benchPair(b *testing.B, bulk Bulk, bulkConns int) (from, to *Link) {
	b.Helper()
	ring, err := place.NewRingID(rand.Reader)
	must(b, err)
	ca, err := NewCA(ring, rand.Reader, time.Now)
	must(b, err)
	addrs := make(map[place.NodeID]string)
	var links [2]*Link
	for i := range links {
		node := newNode(b)
		conn, listener, dial := udpAndTCP(b)
		addrs[node] = conn.LocalAddr().String()
		links[i], err = Open(Config{Conn: conn, Identity: identityOf(b, ca, node, "a", time.Hour), BulkConns: bulkConns, Now: time.Now,
			Bulk: bulk, Listener: listener, Dial: dial,
			Resolve: func(n place.NodeID) (string, bool) { return addrs[n], true }})
		must(b, err)
		l := links[i]
		b.Cleanup(func() { _ = l.Close() })
	}
	return links[0], links[1]
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// BenchmarkBulk sends 64 MiB a round, both ends in one process; cpu-s/GB counts both.
func BenchmarkBulk(b *testing.B) {
	const total = 64 << 20
	for _, tt := range []struct {
		bulk           Bulk
		conns, streams int
	}{{BulkQUIC, 1, 1}, {BulkQUIC, 1, 4}, {BulkQUIC, 2, 4}, {BulkQUIC, 4, 4}, {BulkTCP, 1, 1}, {BulkTCP, 1, 4}} {
		b.Run(fmt.Sprintf("%v/conns=%d/streams=%d", tt.bulk, tt.conns, tt.streams), func(b *testing.B) {
			from, to := benchPair(b, tt.bulk, tt.conns)
			to.Handle(KindShardWrite, func(_ context.Context, s Stream) {
				buf := make([]byte, 256<<10)
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{s}, buf)
				_, _ = s.Write([]byte{1})
				_ = s.Close()
			})
			for range 50 { // let all connections come up
				_, err := roundTrip(b.Context(), from, to.Self().Node, ClassBulk, KindShardWrite, "x")
				must(b, err)
			}
			b.SetBytes(total)
			cpu := cpuSeconds()
			b.ResetTimer()
			for range b.N {
				var wg sync.WaitGroup
				for range tt.streams {
					wg.Go(func() {
						s, err := from.OpenStream(b.Context(), to.Self().Node, ClassBulk, KindShardWrite)
						if err != nil {
							b.Error(err)
							return
						}
						defer s.Close()
						buf := make([]byte, 256<<10)
						for left := total / tt.streams; left > 0; left -= len(buf) {
							if _, err := s.Write(buf); err != nil {
								b.Error(err)
							}
						}
						_ = s.CloseWrite()
						if _, err := io.ReadFull(s, buf[:1]); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
			b.StopTimer()
			b.ReportMetric((cpuSeconds()-cpu)/(float64(b.N)*total/1e9), "cpu-s/GB")
		})
	}
}

func BenchmarkCall(b *testing.B) {
	from, to := benchPair(b, BulkQUIC, 1)
	to.HandleCall(KindAdmin, func(_ context.Context, _ Peer, req []byte) ([]byte, error) { return req, nil })
	req := make([]byte, 200)
	b.Run("serial", func(b *testing.B) {
		for range b.N {
			if _, err := from.Call(b.Context(), to.Self().Node, KindAdmin, req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := from.Call(b.Context(), to.Self().Node, KindAdmin, req); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
