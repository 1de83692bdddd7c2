package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

var (
	speedTime     = flag.Duration("speed", 0, "how long each load of TestSpeed lasts; 0: a short one, without judging the rates")
	speedProfiles = flag.String("speed.profiles", "", "directory in which TestSpeed leaves a CPU profile of every node and phase")
)

const (
	speedSmoke = 3 * time.Second
	// speedBytes are the pixel data of one CT slice, 512 x 512 of 16 bits.
	speedBytes = 512 * 512 * 2
	// speedStudy is how many instances a study has.
	speedStudy = 200
	// speedDrainMax is how long sealing may take to be done once the senders rest.
	speedDrainMax = 30 * time.Second
	// speedRSSMax is what a node may have resident under this load.
	speedRSSMax = 300 << 20
)

// speedLoad is one row of the floor: a ring, its senders, and what it has to take.
type speedLoad struct {
	name         string
	sites        int
	associations int
	least        float64 // acknowledged instances a second
	dcmtk        bool    // an unmodified storescu instead of the senders of this test
}

var speedLoads = []speedLoad{
	{"one node, 1 association", 1, 1, 250, false},
	{"one node, 4 associations", 1, 4, 400, false},
	{"one node, storescu with Nagle's algorithm", 1, 1, 100, true},
	{"3 sites x 1 node, 1 association", 3, 1, 120, false},
	{"3 sites x 1 node, 4 associations", 3, 4, 200, false},
	{"3 sites x 1 node, storescu with Nagle's algorithm", 3, 1, 100, true},
}

// TestSpeed sends distinct CT slices of noise to rings of real processes and says how many a second were
// acknowledged, what that and sealing cost each node, and how long sealing took to catch up. `make speed`
// judges the rates; without -speed it only shows that it works. Its nodes and senders share the machine.
func TestSpeed(t *testing.T) {
	loads := speedLoads
	if *speedTime == 0 {
		loads = []speedLoad{{"smoke", 3, 2, 0, false}}
	}
	for _, l := range loads {
		t.Run(strings.ReplaceAll(l.name, " ", "_"), func(t *testing.T) { l.run(t) })
	}
}

func (l speedLoad) run(t *testing.T) {
	lasts := *speedTime
	if lasts == 0 {
		lasts = speedSmoke
	}
	r := startRing(t, l.sites, 1, "--seal-quiet", "2s")
	for _, n := range r.nodes {
		r.awaitReady(n)
	}
	send := func() int64 { return l.send(r, lasts) }
	if l.dcmtk {
		send = storescuSender(t, r.nodes[0], int(lasts.Seconds()*150))
	}
	start, before := time.Now(), r.costs()
	stop := r.profile("ingest", lasts)
	stored := send()
	took, sent := time.Since(start), r.costs()
	stop()
	stop = r.profile("drain", 5*time.Second)
	backlog := r.unsealed()
	drained := r.drain(max(ringPatience, lasts))
	stop()
	after := r.costs()

	rate := float64(stored) / took.Seconds()
	t.Logf("%s: %.0f instances/s, %.1f MB/s; %.0f MB unsealed at the end, sealed %.1f s later",
		l.name, rate, rate*speedBytes/1e6, float64(backlog)/1e6, drained.Seconds())
	gb := float64(stored) * speedBytes / 1e9
	for i, n := range r.nodes {
		t.Logf("%s: CPU %.2f s while storing + %.2f s while sealing the rest = %.2f s per GB stored in the ring; RSS %d MiB at most",
			n.ID, sent[i].cpu-before[i].cpu, after[i].cpu-sent[i].cpu, (after[i].cpu-before[i].cpu)/gb, after[i].rss>>20)
		if after[i].rss > speedRSSMax && *speedTime > 0 {
			t.Errorf("%s had %d MiB resident, more than %d", n.ID, after[i].rss>>20, speedRSSMax>>20)
		}
	}
	if stored == 0 {
		t.Error("nothing was stored")
	}
	if *speedTime > 0 && rate < l.least {
		t.Errorf("%.0f instances/s, want %.0f", rate, l.least)
	}
	if *speedTime > 0 && drained > speedDrainMax {
		t.Errorf("sealing took %s to catch up, want at most %s", drained, speedDrainMax)
	}
}

// send runs the senders and returns how many instances were acknowledged.
func (l speedLoad) send(r *testRing, lasts time.Duration) (stored int64) {
	counts := make([]int64, l.associations)
	var wg sync.WaitGroup
	until := time.Now().Add(lasts)
	for a := range l.associations {
		wg.Go(func() {
			var err error
			if counts[a], err = sendSlices(r.nodes[a%len(r.nodes)], a, until); err != nil {
				r.t.Errorf("association %d: %v", a, err)
			}
		})
	}
	wg.Wait()
	for _, n := range counts {
		stored += n
	}
	return stored
}

// slicer makes instances that cost their sender nearly nothing: the pixel data are a stretch of one noise,
// at another offset for every instance, under a header of its own.
type slicer struct {
	noise []byte
	study int
}

func newSlicer(study int) *slicer {
	s := &slicer{noise: make([]byte, 2*speedBytes), study: study}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(study))
	rand.NewChaCha8(seed).Read(s.noise)
	return s
}

// number returns the instance of that number, whose data set is head and then pixels.
func (s *slicer) number(i int) (in instance, pixels []byte) {
	in = noiseInstance(s.study*1000+i/speedStudy, 1, i, 0, 1)
	in.data = in.data[:len(in.data)-4]
	in.data = binary.LittleEndian.AppendUint32(in.data, speedBytes)
	return in, s.noise[i*2%speedBytes:][:speedBytes]
}

// sendSlices stores one instance after the other over one association.
func sendSlices(n *testNode, number int, until time.Time) (stored int64, err error) {
	ctx, cancel := context.WithDeadline(context.Background(), until.Add(ringPatience))
	defer cancel()
	source := newSlicer(number)
	first, _ := source.number(0)
	client, err := connect(ctx, n, contextFor(first))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	for i := 0; time.Now().Before(until); i++ {
		in, pixels := source.number(i)
		response, err := client.Store(ctx, dimse.StoreArgs{
			SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax,
			Data: io.MultiReader(bytes.NewReader(in.data), bytes.NewReader(pixels)),
		})
		if err != nil {
			return stored, err
		}
		if response.Status != dimse.StatusSuccess {
			return stored, fmt.Errorf("status %04XH %s", response.Status, response.ErrorComment)
		}
		stored++
	}
	return stored, client.Release(ctx)
}

// storescuSender writes files for DCMTK's storescu and returns a function that sends them with the program
// as it comes: Nagle's algorithm on.
func storescuSender(t *testing.T, n *testNode, count int) func() int64 {
	t.Helper()
	dir := t.TempDir()
	source := newSlicer(1)
	for i := range count {
		in, pixels := source.number(i)
		file := dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "2.25.1", "", "")
		file = append(append(file, in.data...), pixels...)
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".dcm"), file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func() int64 {
		dcmtkRun(t, nil, "storescu", append([]string{"-R", "+sd"}, append(n.target(), dir)...)...)
		return int64(count)
	}
}

// cost is what a process has used so far.
type cost struct {
	cpu float64 // seconds
	rss int64   // the most that was resident, in bytes
}

func (r *testRing) costs() (out []cost) {
	const ticksPerSecond = 100 // USER_HZ of every Linux that Go runs on
	for _, n := range r.nodes {
		var c cost
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID))
		fields := strings.Fields(string(stat))
		for _, i := range []int{13, 14} { // utime, stime: proc(5)
			if len(fields) > i {
				ticks, _ := strconv.ParseFloat(fields[i], 64)
				c.cpu += ticks / ticksPerSecond
			}
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID))
		for line := range strings.Lines(string(status)) {
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &c.rss); err == nil {
				c.rss <<= 10
			}
		}
		out = append(out, c)
	}
	return out
}

// unsealed returns how many bytes wait for their pack as the node that knows of most of them sees it, or 1
// when instances still wait for the catalog.
func (r *testRing) unsealed() int64 {
	r.t.Helper()
	var bytes, waiting float64
	for _, n := range r.nodes {
		m := n.metrics()
		here, err1 := strconv.ParseFloat(m["osteon_archive_unsealed_bytes"], 64)
		instances, err2 := strconv.ParseFloat(m["osteon_archive_waiting_instances"], 64)
		if err := errors.Join(err1, err2); err != nil {
			r.t.Fatalf("the metrics of %s do not say what waits: %v", n.ID, err)
		}
		bytes, waiting = max(bytes, here), waiting+instances
		if here < 0 { // the catalog did not answer in time
			waiting++
		}
	}
	if waiting > 0 {
		return max(int64(bytes), 1)
	}
	return int64(bytes)
}

// drain waits until everything is sealed and returns how long that took.
func (r *testRing) drain(patience time.Duration) time.Duration {
	began := time.Now()
	for r.unsealed() > 0 {
		if time.Since(began) > patience {
			r.t.Errorf("%d bytes unsealed after %s", r.unsealed(), patience)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(began)
}

// profile records a CPU profile of every node where -speed.profiles asks for it; the function it returns
// waits for its end.
func (r *testRing) profile(phase string, lasts time.Duration) (wait func()) {
	if *speedProfiles == "" {
		return func() {}
	}
	var wg sync.WaitGroup
	for _, n := range r.nodes {
		wg.Go(func() {
			client := adminHTTP(n)
			defer client.CloseIdleConnections()
			response, err := client.Get(fmt.Sprintf("http://node/debug/pprof/profile?seconds=%d", int(lasts.Seconds())))
			if err != nil {
				r.t.Errorf("profile %s: %v", n.ID, err)
				return
			}
			defer response.Body.Close()
			raw, err := io.ReadAll(response.Body)
			if err == nil {
				name := fmt.Sprintf("%s-%s-%s.pprof", strings.ReplaceAll(r.t.Name(), "/", "-"), n.ID, phase)
				err = os.WriteFile(filepath.Join(*speedProfiles, name), raw, 0o600)
			}
			if err != nil {
				r.t.Errorf("profile %s: %v", n.ID, err)
			}
		})
	}
	return wg.Wait
}
