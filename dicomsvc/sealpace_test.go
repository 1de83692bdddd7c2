package dicomsvc

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// While senders send, sealing leaves them most of the machine; without them, or when it is urgent or too
// much has gathered, it waits for nothing.
func TestSealingYieldsToSenders(t *testing.T) {
	const mega = 1 << 20
	for _, tc := range []struct {
		name        string
		arriving    int64 // bytes in every 10 ms
		set         func(*sealPace)
		seals       int64
		least, most time.Duration
	}{
		{"nobody sends", 0, nil, 1 << 30, 0, 2 * sealIdle},
		{"100 MiB/s arrive", mega, nil, 660 * mega, 9 * time.Second, 11 * time.Second},
		{"a thin line", mega / 100, nil, 165 * mega, 9 * time.Second, 11 * time.Second},
		{"somebody waits for it", mega, func(p *sealPace) { p.urgent.Add(1) }, 1 << 30, 0, 0},
		{"far behind", mega, func(p *sealPace) { p.behind.Store(true) }, 1 << 30, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &sealPace{now: time.Now}
				if tc.set != nil {
					tc.set(p)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var senders sync.WaitGroup
				defer senders.Wait()
				defer cancel()
				senders.Go(func() {
					for ctx.Err() == nil {
						p.arrived.Add(tc.arriving)
						time.Sleep(10 * time.Millisecond)
					}
				})
				synctest.Wait()
				began := time.Now()
				for range tc.seals / (256 << 10) {
					if err := p.wait(ctx, 256<<10); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began); took < tc.least || took > tc.most {
					t.Errorf("%d MiB took %s, want %s to %s", tc.seals/mega, took, tc.least, tc.most)
				}
			})
		})
	}
}

func TestSealingThatWaitsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &sealPace{now: time.Now}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		p.arrived.Add(1)
		if err := p.wait(ctx, 1<<30); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait says %v", err)
		}
	})
}
