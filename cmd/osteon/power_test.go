//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

// The tests of this file take the power away: from all processes at once, and from the file systems
// below them. What was acknowledged must be there afterwards, bit for bit.

// Every node is killed at one moment, while stores and seals run, and the ring is started again in the
// same directory.
func TestAllNodesKilledAtOnce(t *testing.T) {
	dir := t.TempDir()
	r := startRingIn(t, dir, 3, 2, "--seal-quiet", "1s")
	var acked []instance
	for round := range 2 {
		l := r.startPowerLoad(round)
		l.await(40)
		r.kill(r.nodes...)
		acked = append(acked, l.stop()...)
		r.stop()
		r = startRingIn(t, dir, 3, 2, "--seal-quiet", "1s")
		r.checkAcked(fmt.Sprintf("round %d", round), acked, r.nodes...)
	}
	t.Logf("%d acknowledged instances read back", len(acked))
}

// Every node keeps its directory on a file system of its own, which is shut down as by a power cut: what
// was not flushed is gone. All of them at once, then one, then two.
func TestF16PowerCut(t *testing.T) {
	needLoopMounts(t)
	dir := t.TempDir()
	volumes := map[string]*volume{}
	for _, id := range []string{"a1", "b1", "c1"} {
		volumes[id] = newVolume(t, filepath.Join(dir, id))
		configureNode(t, filepath.Join(dir, id), func(cfg *node.Config) {
			// No hot copies: what is sealed is soon nowhere but in its shards.
			cfg.Journal.SegmentBytes, cfg.Journal.HotBytes = 1<<20, 1
		})
	}
	r := startRingIn(t, dir, 3, 1, "--seal-quiet", "1s")
	var acked []instance
	for round, ids := range [][]string{{"a1", "b1", "c1"}, {"b1"}, {"c1", "a1"}} {
		var victims []*testNode
		for _, id := range ids {
			victims = append(victims, r.node(id))
		}
		sealed := r.sealedStudies()
		l := r.startPowerLoad(round)
		l.await(40)
		r.eventually("studies sealed under load", func() bool { return r.sealedStudies() >= sealed+3 })
		l.await(10)
		for _, id := range ids {
			volumes[id].cut()
		}
		r.killDying(victims...)
		if len(ids) == 1 {
			l.await(10) // the others go on
		}
		acked = append(acked, l.stop()...)
		for _, id := range ids {
			volumes[id].unmount()
		}
		if round == 0 {
			r.checkRefusesUnmounted(victims[0])
		}
		for _, id := range ids {
			volumes[id].mount()
		}
		r.start(victims...)
		r.checkAcked(fmt.Sprintf("round %d, power back at %v", round, ids), acked, r.nodes...)
	}
	// Each journal kept its own copy: with any one node gone the others still have everything.
	for _, lost := range r.nodes {
		r.kill(lost)
		left := slices.DeleteFunc(slices.Clone(r.nodes), func(n *testNode) bool { return n == lost })
		r.checkAcked("node "+lost.ID+" gone", acked, left...)
		r.start(lost)
	}
	t.Logf("%d acknowledged instances read back", len(acked))
}

// killDying is kill for nodes that may have ended by themselves, for want of a disk.
func (r *testRing) killDying(nodes ...*testNode) {
	r.t.Helper()
	for _, n := range nodes {
		if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			r.t.Fatalf("kill %s: %v", n.ID, err)
		}
	}
	for _, n := range nodes {
		r.awaitEvent("down", n.ID)
	}
}

// sealedStudies counts the studies that are sealed as far as the first node knows.
func (r *testRing) sealedStudies() (sealed int) {
	r.t.Helper()
	studies, err := r.nodes[0].admin().Studies(context.Background(), 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range studies {
		if s.State == "sealed" {
			sealed++
		}
	}
	return sealed
}

// configureNode writes the configuration of a node that osteon dev is to start, with ports that are free
// now and what set changes.
func configureNode(t *testing.T, dir string, set func(*node.Config)) {
	t.Helper()
	cfg := node.Config{Dir: dir}
	for _, listen := range []*string{&cfg.DIMSE.Listen, &cfg.HTTP.Listen, &cfg.Link.Listen} {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		*listen = fmt.Sprintf("127.0.0.1:%d", port)
	}
	set(&cfg)
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".yaml", raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkRefusesUnmounted starts a node whose volume is not there: it must end, say why, and leave the
// empty directory empty.
func (r *testRing) checkRefusesUnmounted(n *testNode) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.process.Path, "serve", "--config", n.Dir+".yaml").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "mount the volume") {
		r.t.Errorf("serve without its volume: %v, said %q", err, out)
	}
	left, err := os.ReadDir(n.Dir)
	if err != nil || len(left) > 0 {
		r.t.Errorf("serve without its volume left %v, %v", left, err)
	}
}

// powerLoad is stores that run at every node of a ring until it is stopped.
type powerLoad struct {
	r    *testRing
	quit context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	acked []instance
	news  chan struct{} // a token after every acknowledgement
}

const loadStudyInstances = 6

// startPowerLoad begins to store at every node, one instance after the other, each node into studies of its
// own of a few instances each. Loads of different rounds store different studies.
func (r *testRing) startPowerLoad(round int) *powerLoad {
	ctx, quit := context.WithCancel(context.Background())
	l := &powerLoad{r: r, quit: quit, news: make(chan struct{}, 1)}
	for i, n := range r.nodes {
		l.done.Go(func() { l.run(ctx, n, 10_000*(round+1)+1_000*i) })
	}
	r.t.Cleanup(func() { l.stop() })
	return l
}

func (l *powerLoad) run(ctx context.Context, n *testNode, study int) {
	for number := 0; ctx.Err() == nil; number++ {
		in := noiseInstance(study+number/loadStudyInstances, 1, number%loadStudyInstances+1, 50_000+number%7*60_000, uint64(study))
		response, err := store(ctx, n, in)
		if err == nil && response.Status == dimse.StatusSuccess {
			l.mu.Lock()
			l.acked = append(l.acked, in)
			l.mu.Unlock()
			select {
			case l.news <- struct{}{}:
			default:
			}
			continue
		}
		select { // the node is gone or has no partner: ask again, but not as fast as the machine can
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// await waits until so many more instances were acknowledged.
func (l *powerLoad) await(more int) {
	l.r.t.Helper()
	l.mu.Lock()
	want := len(l.acked) + more
	l.mu.Unlock()
	deadline := time.After(ringPatience)
	for {
		l.mu.Lock()
		enough := len(l.acked) >= want
		l.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-l.news:
		case <-deadline:
			l.r.t.Fatalf("no %d stores acknowledged after %s\n%s", more, ringPatience, l.r.logs())
		}
	}
}

// stop ends the load and returns what was acknowledged.
func (l *powerLoad) stop() []instance {
	l.quit()
	l.done.Wait()
	return l.acked
}

// checkAcked retrieves every study that has one of the instances, each at another node in turn, and
// compares the instances bit for bit. A study may also list what was never acknowledged and may be lost.
func (r *testRing) checkAcked(when string, want []instance, nodes ...*testNode) {
	r.t.Helper()
	studies := map[string][]instance{}
	for _, in := range want {
		studies[in.study] = append(studies[in.study], in)
	}
	turn := 0
	for study, instances := range studies {
		n := nodes[turn%len(nodes)]
		turn++
		for _, fault := range studyFaults(n, instances) {
			report, err := n.admin().Study(context.Background(), study)
			packs, _ := json.Marshal(report.Packs)
			r.t.Errorf("%s: at %s: %v; study is %s, %v, packs %s", when, n.ID, fault, report.State, err, packs)
		}
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// studyFaults reads a study's acknowledged instances at a node, all in one retrieval; what that did not
// give is asked for alone.
func studyFaults(n *testNode, instances []instance) (faults []error) {
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	got, studyErr := retrieveStudy(ctx, n, instances[0])
	for _, in := range instances {
		data, ok := got[in.uid]
		if !ok {
			var err error
			if data, err = get(ctx, n, in); err != nil {
				faults = append(faults, fmt.Errorf("instance %s: %w (of its study: %w)", in.uid, err, studyErr))
				continue
			}
		}
		if !bytes.Equal(data, in.data) {
			faults = append(faults, fmt.Errorf("instance %s: %d bytes differ from the %d acknowledged", in.uid, len(data), len(in.data)))
		}
	}
	return faults
}

// retrieveStudy retrieves the study of one instance by C-GET; all of it must be of that class and syntax.
func retrieveStudy(ctx context.Context, n *testNode, in instance) (map[string][]byte, error) {
	contexts := append(contextFor(in), dul.ProposedContext{
		ID: 3, AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	})
	client, err := connect(ctx, n, contexts, dul.Role{SOPClass: in.class, SCP: true})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, in.study)
	got := map[string][]byte{}
	var readErr error
	response, err := client.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			data, err := io.ReadAll(sub.Data)
			if err != nil {
				readErr = err
			} else {
				got[sub.SOPInstance] = data
			}
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	if err == nil && response.Status != dimse.StatusSuccess {
		err = fmt.Errorf("C-GET ended with %04XH %q", response.Status, response.ErrorComment)
	}
	return got, errors.Join(err, readErr)
}

// needLoopMounts ends the test where file systems cannot be mounted at all: without root, or in a
// container that was given no loop devices. Everywhere else what is missing is a failure.
func needLoopMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a power cut needs root: it mounts file systems of its own")
	}
	if _, err := os.Stat("/dev/loop-control"); errors.Is(err, os.ErrNotExist) {
		t.Skip("a power cut needs loop devices, and this machine has no /dev/loop-control")
	}
	needTools(t, "mkfs.ext4", "mount", "umount")
}

func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v: install it (Debian packages: e2fsprogs, mount, strace)", err)
		}
	}
}

// volume is an ext4 file system in a file, mounted on a directory.
type volume struct {
	t          *testing.T
	image, dir string
	mounted    bool
}

const volumeBytes = 1 << 30 // sparse: only what is written takes room

// newVolume makes and mounts a file system on dir. It is gone at the end of the test, and also when the
// test process dies before that.
func newVolume(t *testing.T, dir string) *volume {
	t.Helper()
	v := &volume{t: t, image: dir + ".ext4", dir: dir}
	for _, err := range []error{os.Mkdir(dir, 0o700), os.WriteFile(v.image, nil, 0o600), os.Truncate(v.image, volumeBytes)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	v.command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", v.image)
	v.watch()
	t.Cleanup(v.unmount)
	v.mount()
	return v
}

// watch starts a process that unmounts the volume when this one ends, however it ends.
func (v *volume) watch() {
	v.t.Helper()
	watcher := exec.Command("sh", "-c", `cat >/dev/null; while umount -l "$0" 2>/dev/null; do :; done`, v.dir)
	watcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := watcher.StdinPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := watcher.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		stdin.Close()
		watcher.Wait()
	})
}

func (v *volume) command(name string, args ...string) {
	v.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		v.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// mount mounts the volume, which replays the file system's journal. The file system writes by itself as
// seldom as it may, so that all that is durable was made so by a sync.
func (v *volume) mount() {
	v.t.Helper()
	v.command("mount", "-t", "ext4", "-o", "loop,commit=300", v.image, v.dir)
	v.mounted = true
}

// unmount waits until nobody uses the volume.
func (v *volume) unmount() {
	v.t.Helper()
	if !v.mounted {
		return
	}
	deadline := time.Now().Add(ringPatience)
	for {
		err := unix.Unmount(v.dir, 0)
		if err == nil {
			v.mounted = false
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			v.t.Errorf("unmount %s: %v", v.dir, err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const (
	ext4IOCShutdown          = 0x8004587d // _IOR('X', 125, __u32)
	ext4GoingFlagsNoLogFlush = 2
)

// cut shuts the file system down as a power cut does: nothing more reaches the disk, not even its
// journal.
func (v *volume) cut() {
	v.t.Helper()
	d, err := os.Open(v.dir)
	if err != nil {
		v.t.Fatal(err)
	}
	defer d.Close()
	if err := unix.IoctlSetPointerInt(int(d.Fd()), ext4IOCShutdown, ext4GoingFlagsNoLogFlush); err != nil {
		v.t.Fatalf("shut the file system of %s down: %v", v.dir, err)
	}
}
