package dicomsvc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
)

// gateFS is a file system whose writes and syncs of opened files wait while the gate is shut, as on a disk
// that does not answer.
type gateFS struct {
	vfs.FS
	mu     sync.RWMutex
	writes bool // they wait too
}

type gateFile struct {
	vfs.File
	fs *gateFS
}

func (g *gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &gateFile{File: f, fs: g}, nil
}

func (f *gateFile) SyncData() error {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	return f.File.SyncData()
}

func (f *gateFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fs.writes {
		f.fs.mu.RLock()
		defer f.fs.mu.RUnlock()
	}
	return f.File.WriteAt(p, off)
}

func TestStalledDiskRefusesInTime(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes bool
		size   int
	}{
		{"small object, sync stalls", false, 1000},
		{"large object, writes stall", true, 4_000_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gate := &gateFS{FS: vfs.Default, writes: tt.writes}
			c := newCluster(t, []string{"a"}, func(_ *dicomsvc.Config, e *erasure.Config) { e.FS = gate })
			m := c.nodes[0]
			first := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.9", 1000, "P1")
			m.mustPut(first)
			b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", tt.size, "P1")
			gate.mu.Lock()
			began := time.Now()
			_, err := m.put(b)
			if !errors.Is(err, dicomsvc.ErrResources) || dicomsvc.DIMSEStatus(err) != 0xA700 {
				t.Errorf("got %v, want ErrResources", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("refused after %v, want 5 s at most", took)
			}
			began = time.Now()
			if _, err := m.put(b); !errors.Is(err, dicomsvc.ErrResources) || time.Since(began) > time.Second {
				t.Errorf("next: got %v after %v, want ErrResources at once", err, time.Since(began))
			}
			if got, err := m.fetch("1.2.3.1.9"); err != nil || !bytes.Equal(got, first) {
				t.Errorf("read while the disk stalls: %v", err)
			}
			gate.mu.Unlock()
			eventually(t, "ready again", func() bool { return m.archive.Ready() == nil })
			if !tt.writes {
				eventually(t, "what was committed late is listed", func() bool {
					got, err := m.fetch("1.2.3.1.1")
					return err == nil && bytes.Equal(got, b)
				})
			}
			m.mustPut(b)
		})
	}
}

func TestFullDiskRefusesBeforeBytesAreTaken(t *testing.T) {
	var mu sync.Mutex
	free := int64(50)
	c := newCluster(t, []string{"a", "b"}, func(_ *dicomsvc.Config, e *erasure.Config) {
		if e.Site == "a" {
			e.Free = func() (int64, int64, error) {
				mu.Lock()
				defer mu.Unlock()
				return free, 1000, nil
			}
		}
		e.Ack.Degraded = erasure.AckRefuse
	})
	full := c.nodes[0]
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	full.mustPut(b)
	mu.Lock()
	free = 49
	mu.Unlock()
	eventually(t, "not ready", func() bool { return errors.Is(full.archive.Ready(), dicomsvc.ErrFull) })
	body := bytes.NewReader(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.2", 1000, "P1"))
	size := body.Len()
	_, err := full.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: anyone, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: body,
	})
	if !errors.Is(err, dicomsvc.ErrFull) || body.Len() != size {
		t.Errorf("got %v with %d bytes taken, want ErrFull with none", err, size-body.Len())
	}
	if got, err := full.fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read from a full node: %v", err)
	}
	if _, err := c.nodes[1].put(b[:len(b):len(b)]); !errors.Is(err, dicomsvc.ErrResources) {
		t.Errorf("a full node took a copy: %v", err)
	}
}

// What was refused for want of a second copy is in the journal; it is listed as spooled, not forgotten.
func TestRefusedCopyIsOffered(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b"}, func(_ *dicomsvc.Config, e *erasure.Config) { e.Ack.Degraded = erasure.AckRefuse })
	c.nodes[1].shut()
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	if _, err := c.nodes[0].put(b); !errors.Is(err, dicomsvc.ErrResources) {
		t.Fatalf("got %v, want ErrResources", err)
	}
	c.settled()
	l, err := c.nodes[0].located("1.2.3.1.1")
	if err != nil || !l.Spooled || len(l.Holders) != 1 {
		t.Errorf("got %+v, %v; want one holder, spooled", l.Holders, err)
	}
	c.nodes[1].start()
	if r := c.nodes[0].mustPut(b); r.Outcome != dicomsvc.OutcomeIdentical {
		t.Errorf("sent again: outcome %d", r.Outcome)
	}
	c.settled()
	if l, err := c.nodes[0].located("1.2.3.1.1"); err != nil || l.Spooled || len(l.Holders) != 2 {
		t.Errorf("after it was sent again: spooled %v at %d, %v", l.Spooled, len(l.Holders), err)
	}
}

// Close does not wait for a sender in the middle of an object, and nothing of it is left behind.
func TestCloseInTheMiddleOfAnObject(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b"}, nil)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 2_000_000, "P1")
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := c.nodes[0].archive.Put(context.Background(), dicomsvc.PutRequest{
			Principal: anyone, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: r,
		})
		r.Close() // what is still sent finds nobody
		ended <- err
	}()
	if _, err := w.Write(b[:1_000_000]); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.nodes[0].shut()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("close took %v", took)
	}
	w.Write(b[1_000_000:])
	w.Close()
	if err := <-ended; err == nil {
		t.Error("an object was acknowledged by a closed archive")
	}
	c.nodes[0].start()
	if n := c.nodes[0].archive.Store().Journal().Stats().Objects + c.nodes[1].archive.Store().Journal().Stats().Objects; n != 0 {
		t.Errorf("%d journal records of an object that never ended", n)
	}
}
