package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

const (
	// storePace leaves two cores headroom: the load is to notice stalls, not to make them.
	storePace = 120 * time.Millisecond
	queryPace = 150 * time.Millisecond
	readPace  = 200 * time.Millisecond
	// One in largeEvery instances does not fit into what waits for a partner: its partner may die in the middle.
	largeEvery = 40
	largeBytes = 2 << 20
	// requestPatience is far above every promise: what takes longer is given up and counts as failed.
	requestPatience = 20 * time.Second
	// stallMax is the promise for live nodes.
	stallMax = 2 * time.Second
)

// entry is one instance in the ledger.
type entry struct {
	instance      // without data once it was acknowledged
	acked    bool // some node answered success
	at       time.Time
}

// ledger remembers everything that was sent and what was acknowledged.
type ledger struct {
	mu sync.Mutex

	entries map[string]*entry   // by SOP Instance UID
	studies map[string][]*entry // by Study Instance UID
}

func newLedger() *ledger {
	return &ledger{entries: map[string]*entry{}, studies: map[string][]*entry{}}
}

func (l *ledger) sent(in instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[in.uid] != nil {
		return // sent again after an interruption
	}
	e := &entry{instance: in}
	e.data = nil
	l.entries[in.uid] = e
	l.studies[in.study] = append(l.studies[in.study], e)
}

func (l *ledger) acked(in instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[in.uid]
	e.acked, e.at = true, time.Now()
}

// of returns the digests of a study's acknowledged instances, and of all that were sent.
func (l *ledger) of(study string) (acked, sent map[string][sha256.Size]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked, sent = map[string][sha256.Size]byte{}, map[string][sha256.Size]byte{}
	for _, e := range l.studies[study] {
		sent[e.uid] = e.digest
		if e.acked {
			acked[e.uid] = e.digest
		}
	}
	return acked, sent
}

func (l *ledger) studyUIDs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for study := range l.studies {
		out = append(out, study)
	}
	slices.Sort(out)
	return out
}

// settled returns an acknowledged instance that every live node has had time to hear of.
func (l *ledger) settled(rng *rand.Rand) (instance, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	studies := make([]string, 0, len(l.studies))
	for s := range l.studies {
		studies = append(studies, s)
	}
	slices.Sort(studies)
	for range 20 {
		if len(studies) == 0 {
			break
		}
		list := l.studies[studies[rng.IntN(len(studies))]]
		if e := list[rng.IntN(len(list))]; e.acked && time.Since(e.at) > settleTime {
			return e.instance, true
		}
	}
	return instance{}, false
}

// settleTime is beyond an election and the batches after it.
const settleTime = 15 * time.Second

func (l *ledger) count() (sent, acked int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.acked {
			acked++
		}
	}
	return len(l.entries), acked
}

// request is one request of the load.
type request struct {
	node       *testNode
	kind       string // store, query, read
	start, end time.Time
	err        error // at a node that was to serve
}

func (s request) took() time.Duration { return s.end.Sub(s.start) }

// load stores, queries and reads at every node that is up, over associations that stay open, until stop.
type load struct {
	ring   *testRing
	ledger *ledger
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
	seed   uint64
	number atomic.Int64
	study  atomic.Int64 // first of the studies that are being stored
	canary canary
	apart  atomic.Bool // nodes are up, but not everybody reaches somebody who has the instance: reads may fail

	mu      sync.Mutex
	up      map[*testNode]bool
	again   []instance // interrupted by a kill: sent again elsewhere, as a modality does
	samples []request
}

const studiesAtOnce = 3

func startLoad(r *testRing, seed uint64) *load { return startLoadFrom(r, seed, 0) }

// startLoadFrom is startLoad with the number of the first study.
func startLoadFrom(r *testRing, seed uint64, study int64) *load {
	l := &load{ring: r, ledger: newLedger(), seed: seed, up: map[*testNode]bool{}}
	l.study.Store(study)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for _, n := range r.nodes {
		l.up[n] = true
	}
	for i, n := range r.nodes { // all end with ctx
		l.wait.Go(func() { l.storer(n, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	l.wait.Go(func() { l.asker("query", queryPace, rand.New(rand.NewPCG(seed, 100)), l.query) })
	l.wait.Go(func() { l.asker("read", readPace, rand.New(rand.NewPCG(seed, 101)), l.read) })
	l.wait.Go(func() { l.canary.run(l.ctx, r.dir) })
	return l
}

func (l *load) stop() {
	l.cancel()
	l.wait.Wait()
}

// expect says whether nodes have to serve from now on.
func (l *load) expect(up bool, nodes ...*testNode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range nodes {
		l.up[n] = up
	}
}

func (l *load) isUp(n *testNode) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up[n]
}

// record files a request; its error counts only if the node was to serve all the time.
func (l *load) record(s request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up[s.node] || s.kind == "read" && l.apart.Load() {
		s.err = nil
	}
	l.samples = append(l.samples, s)
}

func (l *load) pause(d time.Duration) bool {
	select {
	case <-l.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (l *load) next(rng *rand.Rand) instance {
	l.mu.Lock()
	if n := len(l.again); n > 0 {
		in := l.again[n-1]
		l.again = l.again[:n-1]
		l.mu.Unlock()
		return in
	}
	l.mu.Unlock()
	number := int(l.number.Add(1))
	study := int(l.study.Load()) + rng.IntN(studiesAtOnce)
	size := 2048 + rng.IntN(40_000)
	if rng.IntN(largeEvery) == 0 {
		size = largeBytes
	}
	return noiseInstance(study, 1, number, size, l.seed)
}

// storer keeps one association with a node and stores one instance after the other.
func (l *load) storer(n *testNode, rng *rand.Rand) {
	var client *dimse.Client
	drop := func() {
		if client != nil {
			client.Close()
			client = nil
		}
	}
	defer drop()
	for l.pause(storePace) {
		if !l.isUp(n) {
			drop()
			continue
		}
		in := l.next(rng)
		l.ledger.sent(in)
		s := request{node: n, kind: "store", start: time.Now()}
		client, s.err = l.store(client, n, in)
		s.end = time.Now()
		if s.err != nil {
			drop()
			l.mu.Lock()
			l.again = append(l.again, in)
			l.mu.Unlock()
			if l.ctx.Err() != nil {
				return
			}
		}
		l.record(s)
	}
}

func (l *load) store(client *dimse.Client, n *testNode, in instance) (*dimse.Client, error) {
	ctx, cancel := context.WithTimeout(l.ctx, requestPatience)
	defer cancel()
	if client == nil {
		var err error
		if client, err = connect(l.ctx, n, contextFor(in)); err != nil { // the association outlives this request
			return nil, err
		}
	}
	response, err := client.Store(ctx, dimse.StoreArgs{
		SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data),
	})
	switch {
	case err != nil:
		return client, err
	case response.Status != dimse.StatusSuccess:
		return client, fmt.Errorf("status %04XH %q", response.Status, response.ErrorComment)
	}
	l.ledger.acked(in)
	return client, nil
}

// asker makes a request at one node that is up after the other.
func (l *load) asker(kind string, pace time.Duration, rng *rand.Rand, ask func(context.Context, *testNode, *rand.Rand) error) {
	for l.pause(pace) {
		n := l.ring.nodes[rng.IntN(len(l.ring.nodes))]
		if !l.isUp(n) {
			continue
		}
		ctx, cancel := context.WithTimeout(l.ctx, requestPatience)
		s := request{node: n, kind: kind, start: time.Now()}
		s.err = ask(ctx, n, rng)
		s.end = time.Now()
		cancel()
		if s.err != nil && l.ctx.Err() != nil {
			return
		}
		l.record(s)
	}
}

// query asks for the instances of a study; nothing may be in the answer that was never sent.
func (l *load) query(ctx context.Context, n *testNode, rng *rand.Rand) error {
	studies := l.ledger.studyUIDs()
	if len(studies) == 0 {
		return nil
	}
	study := studies[rng.IntN(len(studies))]
	found, err := findInstances(ctx, n, study)
	if err != nil {
		return err
	}
	_, sent := l.ledger.of(study)
	for uid := range found {
		if _, ok := sent[uid]; !ok {
			return errors.New("an instance was found that nobody sent")
		}
	}
	return nil
}

// read retrieves an instance that was acknowledged a while ago and compares its digest.
func (l *load) read(ctx context.Context, n *testNode, rng *rand.Rand) error {
	in, ok := l.ledger.settled(rng)
	if !ok {
		return nil
	}
	got, err := get(ctx, n, in)
	if err == nil && sha256.Sum256(got) != in.digest {
		err = errors.New("the bytes read are not the bytes sent")
	}
	return err
}

// since returns the samples that ended after a moment.
func (l *load) since(at time.Time) (out []request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		if s.end.After(at) {
			out = append(out, s)
		}
	}
	return out
}

// firstAck returns when the first store begun at n after a moment was acknowledged.
func (l *load) firstAck(n *testNode, at time.Time) (time.Time, bool) {
	for _, s := range l.since(at) {
		if s.node == n && s.kind == "store" && s.err == nil && s.start.After(at) {
			return s.end, true
		}
	}
	return time.Time{}, false
}

// acksAfter counts the acknowledgements of stores begun at n after a moment.
func (l *load) acksAfter(n *testNode, at time.Time) (count int) {
	for _, s := range l.since(at) {
		if s.node == n && s.kind == "store" && s.err == nil && s.start.After(at) {
			count++
		}
	}
	return count
}

// canary measures what the machine itself makes everybody wait: a small fsync beside the ring's files and
// a timer that fires late.
type canary struct {
	mu     sync.Mutex
	delays []canaryDelay
}

type canaryDelay struct {
	start, end time.Time
	over       time.Duration
}

const canaryPace = 50 * time.Millisecond

func (c *canary) run(ctx context.Context, dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "canary"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	block := make([]byte, 4096)
	for ctx.Err() == nil {
		start := time.Now()
		time.Sleep(canaryPace)
		if _, err := f.WriteAt(block, 0); err != nil || f.Sync() != nil {
			return
		}
		end := time.Now()
		c.mu.Lock()
		c.delays = append(c.delays, canaryDelay{start: start, end: end, over: end.Sub(start) - canaryPace})
		c.mu.Unlock()
	}
}

// worst returns the longest delay that overlaps a span.
func (c *canary) worst(start, end time.Time) (worst time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.delays {
		if d.end.After(start) && d.start.Before(end) {
			worst = max(worst, d.over)
		}
	}
	return worst
}

// findInstances returns the SOP Instance UIDs that a node finds in the one series of a noise study; each may be
// found once.
func findInstances(ctx context.Context, n *testNode, study string) (map[string]bool, error) {
	matches, err := find(ctx, n, "IMAGE", map[dicom.Tag]string{
		dicom.StudyInstanceUID: study, dicom.SeriesInstanceUID: study + ".1", dicom.SOPInstanceUID: "",
	})
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, m := range matches {
		uid := m.String(dicom.SOPInstanceUID)
		if found[uid] {
			return nil, errors.New("an instance was found twice")
		}
		found[uid] = true
	}
	return found, nil
}

// studyDigests retrieves a study of CT instances by C-GET and returns the digest of each.
func studyDigests(ctx context.Context, n *testNode, study string) (map[string][sha256.Size]byte, error) {
	ct := "1.2.840.10008.5.1.4.1.1.2"
	client, err := connect(ctx, n, []dul.ProposedContext{
		{ID: 1, AbstractSyntax: ct, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian}},
		{ID: 3, AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian}},
	}, dul.Role{SOPClass: ct, SCP: true})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, study)
	got := map[string][sha256.Size]byte{}
	var readErr error
	response, err := client.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			hash := sha256.New()
			if _, err := io.Copy(hash, sub.Data); err != nil {
				readErr = err
			}
			got[sub.SOPInstance] = [sha256.Size]byte(hash.Sum(nil))
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	switch {
	case err != nil:
		return nil, err
	case readErr != nil:
		return nil, readErr
	case response.Status != dimse.StatusSuccess:
		return got, fmt.Errorf("C-GET ended with %04XH %q", response.Status, response.ErrorComment)
	}
	return got, client.Release(ctx)
}
