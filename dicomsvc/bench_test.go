package dicomsvc_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// withUID returns a copy of an object made with SOP Instance UID 1.2.3.1.100000000 that has number n in it.
func withUID(b []byte, n int64) []byte {
	out := append([]byte(nil), b...)
	copy(out[uidDigits(b):], strconv.FormatInt(100000000+n, 10))
	return out
}

func uidDigits(b []byte) int {
	for i := range b {
		if string(b[i:i+9]) == "100000000" {
			return i
		}
	}
	panic("no UID in the object")
}

// BenchmarkPut stores instances of one study at a node alone, eight senders at once.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 512 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := newCluster(b, []string{"a"}, nil)
			base := object(b, "1.2.3", "1.2.3.1", "1.2.3.1.100000000", size, "P1")
			var n atomic.Int64
			b.SetBytes(int64(len(base)))
			b.ReportAllocs()
			b.SetParallelism(4)
			b.ResetTimer()
			began := processorTime(b)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					c.nodes[0].mustPut(withUID(base, n.Add(1)))
				}
			})
			b.ReportMetric((processorTime(b)-began).Seconds()*1e3/float64(b.N), "cpu-ms/op")
		})
	}
}

// BenchmarkSearchIsland queries while that many instances wait for a quorum and one more arrives before
// each query.
func BenchmarkSearchIsland(b *testing.B) {
	for _, waiting := range []int{100, 1000, 8000} {
		b.Run(strconv.Itoa(waiting), func(b *testing.B) {
			c := newCluster(b, []string{"a"}, nil)
			c.setQuorum(false)
			base := object(b, "1.2.3", "1.2.3.1", "1.2.3.1.100000000", 0, "P1")
			var n atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range waiting / 16 {
						c.nodes[0].mustPut(withUID(base, n.Add(1)))
					}
				}()
			}
			wg.Wait()
			b.ResetTimer()
			for b.Loop() {
				c.nodes[0].mustPut(withUID(base, n.Add(1)))
				queryOne(b, c.nodes[0])
			}
		})
	}
}

// BenchmarkSearchWhileStoring queries while 300 instances arrive in a second.
func BenchmarkSearchWhileStoring(b *testing.B) {
	c := newCluster(b, []string{"a", "b"}, nil)
	base := object(b, "1.2.3", "1.2.3.1", "1.2.3.1.100000000", 0, "P1")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var n atomic.Int64
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			tick := time.NewTicker(4 * time.Second / 300)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					c.nodes[0].mustPut(withUID(base, n.Add(1)))
				}
			}
		}()
	}
	began := time.Now()
	for b.Loop() {
		queryOne(b, c.nodes[0])
	}
	b.ReportMetric(float64(n.Load())/time.Since(began).Seconds(), "stored/s")
	cancel()
	wg.Wait()
}

func queryOne(b *testing.B, m *member) {
	q := &dicomsvc.Query{Level: dicomsvc.LevelStudy, Keys: []dicomsvc.Key{{Tag: dicom.PatientID, VR: dicom.LO, Values: []string{"P1"}}}}
	for _, err := range m.archive.Search(context.Background(), anyone, q) {
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSeal seals studies of 64 CT slices at a node alone. The processor time is its own figure: it holds
// on a busy machine too.
func BenchmarkSeal(b *testing.B) {
	const slices = 64
	c := newCluster(b, []string{"a"}, nil)
	base := object(b, "1.2.3", "1.2.3.1", "1.2.3.1.100000000", 512<<10, "P1")
	b.SetBytes(slices * int64(len(base)))
	b.ReportAllocs()
	var used time.Duration
	for n := range b.N {
		b.StopTimer()
		for i := range slices {
			c.nodes[0].mustPut(withUID(base, int64(n*slices+i)))
		}
		began := processorTime(b)
		b.StartTimer()
		if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); err != nil {
			b.Fatal(err)
		}
		used += processorTime(b) - began
	}
	b.ReportMetric(used.Seconds()*1e9/float64(b.N*slices*len(base)), "cpu-s/GB")
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
