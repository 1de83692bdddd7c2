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

// untouched is a body that counts what is read of it.
type untouched struct {
	bytes.Reader
	reads int
}

func (u *untouched) Read(p []byte) (int, error) {
	u.reads++
	return u.Reader.Read(p)
}

// A full disk refuses instances before a byte of them is taken, as receiver and as partner, while everything is read; it takes
// them again when there is room. With a quorum full the one that has room has no partner and refuses too.
func TestF18FullDiskRefusesAndRecovers(t *testing.T) {
	for _, full := range []int{1, 2} {
		t.Run(fmt.Sprint(full, " of 3 full"), func(t *testing.T) {
			base := crashBase(t, 3)
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Hour)
				w := newCrashWorld(t, 1, base)
				defer w.ring.Close()
				if err := w.fullLife(t.Context(), full); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func (w *crashWorld) fullLife(ctx context.Context, full int) error {
	if err := allRun(ctx, w); err != nil {
		return err
	}
	if err := storeMany(ctx, w, 1, 300, 20_000); err != nil {
		return err
	}
	for _, m := range w.nodes[:full] {
		m.Disk.SetFree(1<<30, 1<<40)
	}
	time.Sleep(10 * time.Second) // the answer of the disk is remembered for a second
	for _, m := range w.nodes[:full] {
		if err := refusesUnread(ctx, m); err != nil {
			return err
		}
	}
	err := w.store(ctx, w.nodes[2], 2, 50, 9000)
	if full == 1 && err != nil {
		return fmt.Errorf("two nodes with room: %w", err)
	}
	if full == 2 && err == nil {
		return errors.New("acknowledged although no other node has room")
	}
	if err := w.await("offers applied", w.settled); err != nil {
		return err
	}
	if _, err := w.readAll(ctx); err != nil {
		return fmt.Errorf("reads with full disks: %w", err)
	}
	for _, m := range w.nodes[:full] {
		m.Disk.SetFree(1<<39, 1<<40)
	}
	return w.check(ctx)
}

// refusesUnread wants a store refused for want of room, with nothing of it read, and a node that says so.
func refusesUnread(ctx context.Context, m *nodetest.Node) error {
	_, data, err := dataset(3, 60, 5000)
	if err != nil {
		return err
	}
	body := &untouched{Reader: *bytes.NewReader(data)}
	n := m.Node()
	_, err = n.Archive().Put(ctx, dicomsvc.PutRequest{
		Principal: crashPrincipal, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: body,
	})
	if !errors.Is(err, dicomsvc.ErrFull) || body.reads > 0 {
		return fmt.Errorf("%s, full: %v after %d reads", m.Name, err, body.reads)
	}
	if n.Ready() == nil {
		return fmt.Errorf("%s says that it is ready", m.Name)
	}
	return nil
}
