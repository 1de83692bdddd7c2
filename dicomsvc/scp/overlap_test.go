package scp

import (
	"bytes"
	"context"
	"crypto/rand"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
)

// slowDisk holds every sync of a journal segment back while it is shut.
type slowDisk struct {
	vfs.FS
	shut    atomic.Pointer[chan struct{}]
	waiting atomic.Int64
}

func (d *slowDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, opts...)
	if err != nil || !strings.Contains(name, "journal") {
		return f, err
	}
	return &slowFile{f, d}, nil
}

type slowFile struct {
	vfs.File
	disk *slowDisk
}

func (f *slowFile) SyncData() error { f.disk.pause(); return f.File.SyncData() }
func (f *slowFile) Sync() error     { f.disk.pause(); return f.File.Sync() }

func (d *slowDisk) pause() {
	if open := d.shut.Load(); open != nil {
		d.waiting.Add(1)
		<-*open
		d.waiting.Add(-1)
	}
}

// While one C-STORE waits for the journal's fsync, the next is received; neither is answered before. Without a window
// the second waits for the first, fsync and all.
// Behaviours 12, 20.
func TestBehaviour12NextStoreArrivesDuringFsync(t *testing.T) {
	for name, window := range map[string]*dul.AsyncOps{"window": {}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			disk := &slowDisk{FS: vfs.Default}
			dir := t.TempDir()
			archive := openArchive(t, dir, func(c *dicomsvc.Config) {
				self := c.Topology()[0]
				c.Store = func(cb dicomsvc.Callbacks) (*erasure.Store, error) {
					return erasure.Open(erasure.Config{
						FS: disk, Dir: dir, Ring: c.Ring, Self: c.Self, Site: self.Site, Disk: self.Disk, Vault: c.Vault, Topology: c.Topology,
						Held:     func(k journal.Key, note []byte, from place.NodeID) { cb.Held(k, note, from) },
						BadShard: cb.BadShard, Now: time.Now, Rand: rand.Reader,
					})
				}
			})
			s := start(t, func(c *Config) { c.Archive = archive })
			c, err := s.associate(func(c *dul.RequestorConfig) { c.AsyncOps = window }, []string{ctStorage, explicit})
			if err != nil {
				t.Fatal(err)
			}
			conn := dimse.NewConn(c.Association())
			send := func(id uint16, sop string, n int) error {
				b := encode(t, image("1.2.3", "1.2.3.1", sop, n), explicit)
				cmd := &dimse.Command{Field: dimse.CStoreRQ, MessageID: id, AffectedClass: ctStorage, AffectedInstance: sop}
				return conn.Write(1, cmd, bytes.NewReader(b))
			}
			answer := func(id uint16) {
				m, err := conn.Read()
				if err != nil {
					t.Fatal(err)
				}
				if c := m.Command; c.RespondedTo != id && window == nil || c.Status != dimse.StatusSuccess {
					t.Errorf("got %+v, want success of message %d", c, id)
				}
			}
			if err := send(1, "1.2.3.1.1", 1000); err != nil { // makes the segment
				t.Fatal(err)
			}
			answer(1)
			open := make(chan struct{})
			disk.shut.Store(&open)
			if err := send(2, "1.2.3.1.2", 1000); err != nil {
				t.Fatal(err)
			}
			wait(t, "the fsync", func() bool { return disk.waiting.Load() > 0 })
			const large = 32 << 20 // more than the sockets and buffers between hold
			sent := make(chan error, 1)
			go func() { sent <- send(3, "1.2.3.1.3", large) }()
			if window != nil {
				select {
				case err := <-sent:
					if err != nil {
						t.Fatal(err)
					}
				case <-time.After(2 * time.Second): // the node gives a disk that answers nothing 3 s
					t.Error("the second object was not taken while the first waits for its fsync")
				}
			} else {
				select {
				case <-sent:
					t.Error("the second object was taken before the first was answered")
				case <-time.After(100 * time.Millisecond):
				}
			}
			if n := s.Stats().Stores.Load(); n != 1 {
				t.Errorf("%d stores answered while the disk is shut", n)
			}
			disk.shut.Store(nil)
			close(open)
			answer(2)
			answer(3)
			if err := c.Release(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The window that a node agrees to is that of its configuration.
// Behaviour 12.
func TestBehaviour12ConfiguredWindow(t *testing.T) {
	for configured, want := range map[int]uint16{0: 8, 1: 1, 3: 3} {
		s := start(t, func(c *Config) { c.OperationsMax = configured })
		c, err := s.associate(func(c *dul.RequestorConfig) { c.AsyncOps = &dul.AsyncOps{} }, []string{ctStorage, explicit})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Association().AsyncOps(); got != (dul.AsyncOps{Invoked: want, Performed: want}) {
			t.Errorf("configured %d: agreed to %v", configured, got)
		}
	}
}
