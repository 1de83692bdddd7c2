package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/node/nodetest"
)

// fatalBody is a body whose sender's node dies when so many bytes of it were read.
type fatalBody struct {
	*bytes.Reader
	left int
	die  func()
}

func (b *fatalBody) Read(p []byte) (int, error) {
	if b.left <= 0 && b.die != nil {
		b.die()
		b.die = nil
	}
	n, err := b.Reader.Read(p[:min(len(p), max(1, min(b.left, 5000)))])
	b.left -= n
	return n, err
}

// A receiver that dies in the middle of an object, whatever its partner has of it by then, leaves nothing of it visible
// anywhere, then or after its return, and no file of it.
func TestF02F05ReceiverKilledMidway(t *testing.T) {
	base := crashBase(t, 3)
	for i := range max(6, *crashStates) {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Hour)
			w := newCrashWorld(t, uint64(i+1), base)
			w.loss = []loss{lossUnsynced, lossSome, lossNone}[i%3]
			err := w.killMidway(context.Background())
			w.ring.Close()
			if err != nil {
				t.Errorf("kill %d, loss of what was not synced: %s: %v", i, w.loss, err)
			}
		})
	}
}

func (w *crashWorld) killMidway(ctx context.Context) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	receiver := w.nodes[w.rng.IntN(3)]
	uid, data, err := dataset(1+w.rng.IntN(5), 77, 700_000)
	if err != nil {
		return err
	}
	body := &fatalBody{Reader: bytes.NewReader(data), left: w.rng.IntN(len(data)), die: func() { w.crash(receiver) }}
	_, _ = receiver.Node().Archive().Put(ctx, dicomsvc.PutRequest{ // nobody hears what a dead node says
		Principal: crashPrincipal, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: body,
	})
	if body.die != nil {
		return errors.New("the receiver did not die")
	}
	time.Sleep(time.Duration(w.rng.IntN(30)) * time.Second)
	if err := reviveAll(ctx, w); err != nil {
		return err
	}
	if err := w.check(ctx); err != nil {
		return err
	}
	for _, m := range w.nodes {
		if _, err := read(ctx, m.Node(), uid); !errors.Is(err, dicomsvc.ErrNotFound) {
			return fmt.Errorf("%s: read what was cut: %v", m.Name, err)
		}
	}
	return nil
}

// Both holders die right after the acknowledgement, before the catalog knows: nothing is lost once either returns.
func TestF06BothHoldersKilledAfterAck(t *testing.T) {
	base := crashBase(t, 3)
	for first := range 2 {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Hour)
			w := newCrashWorld(t, uint64(first+1), base)
			err := w.killHolders(context.Background(), first)
			w.ring.Close()
			if err != nil {
				t.Errorf("holder %d returns first: %v", first, err)
			}
		})
	}
}

func (w *crashWorld) killHolders(ctx context.Context, first int) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	for study := 1; study < 6; study++ { // a study whose partner is the second node among others
		if err := w.store(ctx, w.nodes[0], study, 80+study, 9000); err != nil {
			return err
		}
	}
	holders := []*nodetest.Node{w.nodes[0], w.nodes[1]}
	w.nodes[2].PowerCut(0) // so that nobody keeps what the catalog was told
	for _, m := range holders {
		m.PowerCut(0)
	}
	if err := w.nodes[2].TryStart(); err != nil {
		return err
	}
	if err := holders[first].TryStart(); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	if err := reviveAll(ctx, w); err != nil {
		return err
	}
	return w.check(ctx)
}
