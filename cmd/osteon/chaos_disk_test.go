//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/node"
)

// ballast fills a file system.
type ballast struct {
	t    testing.TB
	path string
}

// fill takes all but a share of the volume's room; the share is of the whole.
func (v *volume) fill(freePercent uint64) *ballast {
	v.t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(v.dir, &s); err != nil {
		v.t.Fatal(err)
	}
	b := &ballast{t: v.t, path: filepath.Join(v.dir, "ballast")}
	f, err := os.Create(b.path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	take := int64(s.Bavail-s.Blocks*freePercent/100) * s.Bsize
	if err := unix.Fallocate(int(f.Fd()), 0, 0, take); err != nil {
		v.t.Fatalf("fill %s: %v", v.dir, err)
	}
	return b
}

func (b *ballast) drop() {
	b.t.Helper()
	if err := os.Remove(b.path); err != nil {
		b.t.Fatal(err)
	}
}

// F18: a disk runs full, then those of two nodes of three. A full node refuses objects before it takes a byte of them
// (0xA700, 507), is no partner either, and goes on answering queries and reads; while there is room on two nodes elsewhere
// nobody else notices; the ring goes on deciding; when there is room again, all is as before.
func TestChaosF18FullDisks(t *testing.T) {
	chaos(t)
	needNamespaces(t)
	needLoopMounts(t)
	dir := t.TempDir()
	plan := seats(3, 1)
	volumes := map[string]*volume{}
	for i := range plan[1:] {
		id := plan[i+1].id
		volumes[id] = newVolume(t, filepath.Join(dir, id))
		plan[i+1].configure = func(c *node.Config, _ *host) { c.Journal.SegmentBytes = 8 << 20 }
	}
	f := startFleetIn(t, dir, plan)
	f.row(t, 0, func(r *fault) {
		a, b, c := r.node("a1"), r.node("b1"), r.node("c1")
		held := noiseInstance(int(r.load.study.Load())+3, 1, 1, 30_000, r.load.seed)
		r.load.ledger.sent(held)
		r.mustStore(b, held)
		r.load.ledger.acked(held)
		r.load.expect(false, b)
		at := time.Now()
		first := volumes["b1"].fill(3)
		r.until(at, "b1 says that it is full", func() bool { return b.metrics()["osteon_node_ready"] == "0" })
		r.refuses(b)
		r.checkReadable(b, held)
		for _, n := range []*testNode{a, c} {
			r.until(at, n.ID+" stores", func() bool { return r.load.acksAfter(n, at) >= 10 })
		}

		r.load.expect(false, a, c)
		at = time.Now()
		second := volumes["c1"].fill(3)
		r.until(at, "c1 says that it is full", func() bool { return c.metrics()["osteon_node_ready"] == "0" })
		r.refuses(c)
		r.refuses(a) // it has room, but nobody who takes the second copy
		for _, n := range r.nodes {
			r.checkReadable(n, held)
		}
		r.within("the ring decides", r.decides(time.Now(), a), oneWayMax, time.Now())
		r.keep(at, 0, 20*time.Second)

		first.drop()
		second.drop()
		at = time.Now()
		for _, n := range r.nodes {
			r.until(at, n.ID+" takes stores again", func() bool {
				response, _, err := r.probe(n, 10_000)
				return err == nil && response.Status == dimse.StatusSuccess
			})
		}
	})
}

// refuses wants a node to refuse objects, over DIMSE and HTTP, and to keep nothing of them.
func (r *fault) refuses(n *testNode) {
	r.t.Helper()
	before := journalBytes(r.t, n)
	for range 3 {
		response, took, err := r.probe(n, 1<<20)
		if err != nil || response.Status != dimse.StatusOutOfResources {
			r.t.Errorf("store at %s: %04XH %q, %v; want A700H", n.ID, response.Status, response.ErrorComment, err)
		}
		r.within("refusal at "+n.ID, took, responseMax, time.Now().Add(-took))
	}
	status, answer, err := r.stow(n, noiseInstance(int(r.load.study.Load()), 1, int(r.load.number.Add(1)), 1<<20, r.load.seed))
	if err != nil || status != http.StatusInsufficientStorage && status != http.StatusServiceUnavailable {
		r.t.Errorf("STOW-RS at %s: %d %.200s, %v; want 507, or 503 for want of a partner", n.ID, status, answer, err)
	}
	if full := n.ID != "a1"; full {
		if status != http.StatusInsufficientStorage {
			r.t.Errorf("STOW-RS at the full node %s: %d, want 507", n.ID, status)
		}
		if grown := journalBytes(r.t, n) - before; grown > 1<<20 {
			r.t.Errorf("the journal of the full node %s grew by %d bytes", n.ID, grown)
		}
	}
}

// stow sends one instance by STOW-RS.
func (r *fault) stow(n *testNode, in instance) (status int, answer []byte, err error) {
	r.load.ledger.sent(in)
	meta := dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "2.25.1", "", "")
	var body bytes.Buffer
	fmt.Fprintf(&body, "--%s\r\nContent-Type: application/dicom\r\n\r\n%s%s\r\n--%s--\r\n", stowBoundary, meta, in.data, stowBoundary)
	ctx, cancel := context.WithTimeout(context.Background(), requestPatience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "POST", "http://"+n.HTTP+"/dicom-web/studies", &body)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", `multipart/related; type="application/dicom"; boundary=`+stowBoundary)
	response, err := n.web.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return response.StatusCode, answer, err
}

// journalBytes is what the node's journal has on disk.
func journalBytes(t testing.TB, n *testNode) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(n.Dir, "journal"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // a segment may go meanwhile
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// F30, its bandwidth: with 20 Mbit/s out of every node stores go on being acknowledged, at no less than a third of the
// rate before, within the time that any single fault may cost, and the leader stays.
func TestChaosF30NarrowWire(t *testing.T) {
	chaos(t)
	f := startFleet(t, seats(3, 1))
	f.row(t, 0, func(r *fault) {
		measure := func(d time.Duration) (acks int) {
			at := time.Now()
			r.load.pause(d)
			for _, n := range r.nodes {
				acks += r.load.acksAfter(n, at)
			}
			return acks
		}
		before := measure(span(3*time.Second, 20*time.Second))
		for _, h := range r.hosts(r.nodes...) {
			h.must(t, "", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "20mbit", "burst", "64kb", "latency", "100ms")
		}
		at := time.Now()
		during := measure(span(3*time.Second, 20*time.Second))
		t.Logf("%d acknowledged before, %d on the narrow wire", before, during)
		if during*3 < before {
			t.Errorf("%d acknowledged on the narrow wire, %d before: want a third at least", during, before)
		}
		r.storm(at)
		for _, h := range r.hosts(r.nodes...) {
			h.must(t, "", "tc", "qdisc", "del", "dev", "eth0", "root")
		}
	})
}
