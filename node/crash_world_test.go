package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/node"
	"osteon/node/nodetest"
	"osteon/raft/ring"
)

// crashWorld is a ring in this process. At one change of one disk it is struck: the victims lose their
// network, then their disks lose what a crash loses. What they go on to do afterwards nobody sees.
type crashWorld struct {
	t     *testing.T
	rng   *rand.Rand
	ring  *nodetest.Ring
	nodes []*nodetest.Node
	token node.Token // of the scenario join

	loss  loss
	power bool // every node dies, not only the one whose disk is counted

	working atomic.Bool // waits end when the world is struck
	struck  chan struct{}
	op      string // at which the world was struck

	mu      sync.Mutex
	points  *points
	sent    map[string]*sending // by SOP Instance UID
	crashed map[*nodetest.Node]bool
}

// sending is an instance that was offered to a node.
type sending struct {
	study, instance, size int
	data                  []byte
	acked                 bool
}

// loss is what a crash does to a disk.
type loss string

const (
	lossUnsynced loss = "all" // a power cut: everything that was not synced is gone
	lossSome     loss = "some"
	lossNone     loss = "none" // kill -9
)

// points counts the changes of one disk.
type points struct {
	within string // of paths that hold this
	at     int    // strikes here; 0: counts only
	n      int
}

const crashPatience = 5 * time.Minute // of virtual time

func newCrashWorld(t *testing.T, seed uint64, disks []*nodetest.Disk) *crashWorld {
	w := &crashWorld{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), struck: make(chan struct{}),
		sent: map[string]*sending{}, crashed: map[*nodetest.Node]bool{},
	}
	w.ring = nodetest.New(t, nodetest.Config{Seed: seed, Configure: crashConfig, Raft: crashRaft})
	for i, d := range disks {
		w.nodes = append(w.nodes, w.ring.Insert(fmt.Sprintf("n%d", i), place.SiteID("abc"[i%3:i%3+1]), d))
	}
	return w
}

// crashConfig makes segments so small that a few instances fill one, and seals nothing by itself.
func crashConfig(_ string, cfg *node.Config) {
	cfg.Journal.SegmentBytes, cfg.Journal.HotBytes = 64<<10, 1
	cfg.Seal.Quiet, cfg.Seal.Old = node.Duration(24*time.Hour), node.Duration(24*time.Hour)
}

// crashRaft takes no snapshot by itself, and lets one leave little of the log.
func crashRaft(c *ring.Config) {
	c.SnapshotEntries, c.SnapshotBytes, c.TrailingEntries = 1<<40, 1<<60, 4
}

// count begins to count the points of a node's disk; at the one numbered at the world is struck.
func (w *crashWorld) count(n *nodetest.Node, within string, at int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.points = &points{within: within, at: at}
	n.Disk.Watch(func(op nodetest.Op, name string) error {
		if w.isPoint(name) {
			w.strike(n, fmt.Sprintf("%s: %s %s", n.Name, op, name))
		}
		return nil
	})
}

func (w *crashWorld) isPoint(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.Contains(name, w.points.within) {
		return false
	}
	w.points.n++
	return w.points.n == w.points.at
}

// counted ends the counting and returns the number of points.
func (w *crashWorld) counted(n *nodetest.Node) int {
	n.Disk.Watch(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.points.n
}

// strike ends the world as it was: before the change of a disk that it is called from. All victims fall silent before
// any disk is cut, so that no disk shows less than its node told others.
func (w *crashWorld) strike(victim *nodetest.Node, op string) {
	victims := []*nodetest.Node{victim}
	if w.power {
		victims = w.nodes
	}
	w.mu.Lock()
	w.op = op
	for _, n := range victims {
		w.crashed[n] = true
	}
	w.mu.Unlock()
	for _, n := range victims {
		n.Unplug()
	}
	for _, n := range victims {
		w.crash(n)
	}
	close(w.struck)
}

func (w *crashWorld) crash(n *nodetest.Node) {
	switch w.loss {
	case lossUnsynced:
		n.PowerCut(0)
	case lossSome:
		n.PowerCut(0.5)
	default:
		n.Kill()
	}
}

func (w *crashWorld) isStruck() bool {
	select {
	case <-w.struck:
		return true
	default:
		return false
	}
}

// dataset makes the bytes of one instance with size bytes of pixels, the same for the same numbers.
func dataset(study, instance, size int) (uid string, data []byte, err error) {
	uid = fmt.Sprintf("2.25.%d.1.%d", study, instance)
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.SetStrings(dicom.SOPInstanceUID, uid)
	d.SetStrings(dicom.StudyInstanceUID, fmt.Sprintf("2.25.%d", study))
	d.SetStrings(dicom.SeriesInstanceUID, fmt.Sprintf("2.25.%d.1", study))
	d.SetStrings(dicom.PatientID, "P")
	if data, err = d.Encode(nil, dicom.ExplicitVRLittleEndian); err != nil {
		return uid, nil, err
	}
	pixels := make([]byte, size&^1) // Pixel Data (7FE0,0010), OW, behind everything else
	rng := rand.NewChaCha8([32]byte{byte(study), byte(instance), byte(instance >> 8)})
	_, _ = rng.Read(pixels) // never fails
	data = append(data, 0xe0, 0x7f, 0x10, 0x00, 'O', 'W', 0, 0,
		byte(len(pixels)), byte(len(pixels)>>8), byte(len(pixels)>>16), byte(len(pixels)>>24))
	return uid, append(data, pixels...), nil
}

var crashPrincipal = dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}

var errDown = errors.New("node is down")

// store sends one instance to the node and notes what it said, if it was alive to say so.
func (w *crashWorld) store(ctx context.Context, n *nodetest.Node, study, instance, size int) error {
	uid, data, err := dataset(study, instance, size)
	if err != nil {
		return err
	}
	w.mu.Lock()
	if w.sent[uid] == nil {
		w.sent[uid] = &sending{study: study, instance: instance, size: size, data: data}
	}
	w.mu.Unlock()
	running, generation := n.Current()
	if running == nil {
		return errDown
	}
	_, err = running.Archive().Put(ctx, dicomsvc.PutRequest{
		Principal: crashPrincipal, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(data),
	})
	if err != nil {
		return err
	}
	_, now := n.Current()
	w.mu.Lock()
	defer w.mu.Unlock()
	if now != generation || w.crashed[n] && w.working.Load() {
		return errDown // said by a dead process
	}
	w.sent[uid].acked = true
	return nil
}

// await wants a condition to come true in virtual time.
func (w *crashWorld) await(what string, ok func() error) error {
	var err error
	for deadline := time.Now().Add(crashPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if w.working.Load() && w.isStruck() {
			return errors.New("the world ended")
		}
		if err = ok(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: not so after %s: %w", what, crashPatience, err)
}

// running calls visit for every node that runs, until the first error.
func (w *crashWorld) running(visit func(name string, n *node.Node) error) error {
	for _, m := range w.nodes {
		if n := m.Node(); n != nil {
			if err := visit(m.Name, n); err != nil {
				return fmt.Errorf("%s: %w", m.Name, err)
			}
		}
	}
	return nil
}

// do asks one node, if it runs.
func (w *crashWorld) do(m *nodetest.Node, act func(n *node.Node) error) error {
	n := m.Node()
	if n == nil {
		return errDown
	}
	return act(n)
}

// allReady waits until every running node follows a leader and has caught up.
func (w *crashWorld) allReady() error {
	return w.await("ready", func() error {
		return w.running(func(_ string, n *node.Node) error { return n.Ready() })
	})
}
