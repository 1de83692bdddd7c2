package dicomsvc

import (
	"context"
	"sync/atomic"
	"time"
)

// sealPace leaves the machine to senders while there are any: sealing costs as much as storing and can be
// done later. While bytes arrive, sealing gets sealShare of their number and sealFloor a second, whatever is
// more than nothing; it runs at full speed when no sender has sent for sealIdle, when somebody waits for a seal
// and when more than sealBehindMax waits. So a node under a steady load keeps a bounded backlog and makes it
// up in the first pause.
//
// One goroutine at a time calls wait; the fields above it are anybody's.
type sealPace struct {
	arrived atomic.Int64 // bytes that senders have sent
	urgent  atomic.Int32 // callers that wait for a seal
	behind  atomic.Bool  // more than sealBehindMax waits

	now    func() time.Time
	seen   int64     // of arrived
	last   time.Time // when arrived was seen to grow
	asked  time.Time // when credit was last added to
	credit int64     // bytes that may be sealed
}

// wait returns once n more bytes may be sealed, or ctx ends.
func (p *sealPace) wait(ctx context.Context, n int64) error {
	for {
		p.earn()
		if p.credit >= n || p.urgent.Load() > 0 || p.behind.Load() || p.asked.Sub(p.last) >= sealIdle {
			p.credit = max(0, p.credit-n)
			return nil
		}
		if err := pause(ctx, sealPause); err != nil {
			return err
		}
	}
}

// earn adds what came to be allowed since the last time.
func (p *sealPace) earn() {
	now, arrived := p.now(), p.arrived.Load()
	fresh := arrived - p.seen
	p.seen = arrived
	if fresh > 0 {
		p.last = now
	}
	passed := min(max(0, now.Sub(p.asked)), sealIdle)
	p.asked = now
	p.credit = min(p.credit+fresh/sealShare+int64(passed)*sealFloor/int64(time.Second), sealBurst)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
