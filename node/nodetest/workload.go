package nodetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"osteon/dicomsvc"
	"osteon/node"
	"osteon/raft/catalog"
)

// Workload sends instances to a ring, finds and reads them, and remembers what it was told, so that Check can hold the
// ring to it. All methods are safe for concurrent use.
type Workload struct {
	ring    *Ring
	history history
	seals   bool

	mu        sync.Mutex
	rng       *rand.Rand
	attempted map[catalog.VersionID]*object
	acked     map[catalog.VersionID]bool
	order     []*object                    // of attempted, by first attempt
	served    map[string]catalog.VersionID // by SOP Instance UID, as an applied catalog showed it first
	sealed    map[catalog.VersionID]bool   // an applied catalog showed it in a pack
	next      int                          // number of the next instance
	faults    []error
}

// NewWorkload returns a workload on a ring. Studies are sealed on demand too when seals is set.
func NewWorkload(r *Ring, seed uint64, seals bool) *Workload {
	return &Workload{
		ring: r, history: history{began: time.Now()}, seals: seals, rng: rand.New(rand.NewPCG(seed, 0x776f726b)),
		attempted: map[catalog.VersionID]*object{}, acked: map[catalog.VersionID]bool{},
		served: map[string]catalog.VersionID{}, sealed: map[catalog.VersionID]bool{},
	}
}

const (
	studiesMax = 5
	callMax    = 30 * time.Second
)

var storePrincipal = dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}

// Run sends from several senders with pauses of about the given length until ctx ends.
func (w *Workload) Run(ctx context.Context, senders int, pause time.Duration) {
	var running sync.WaitGroup
	for range senders {
		running.Go(func() {
			for ctx.Err() == nil {
				w.step()
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(w.draw(int(2 * pause)))):
				}
			}
		})
	}
	running.Wait()
}

// draw returns a number below n.
func (w *Workload) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(max(1, n))
}

// step does one thing.
func (w *Workload) step() {
	n := w.anyNode()
	if n == nil {
		return
	}
	switch roll := w.draw(100); {
	case roll < 45:
		w.put(n, w.fresh())
	case roll < 57:
		if o := w.earlier(); o != nil {
			w.put(n, o)
		}
	case roll < 62:
		w.putTwice(w.fresh())
	case roll < 68:
		if o := w.furtherVersion(); o != nil {
			w.put(n, o)
		}
	case roll < 71:
		w.race()
	case roll < 85:
		if o := w.earlier(); o != nil {
			w.retrieve(n, o)
		}
	case roll < 94:
		w.look(n)
	case w.seals:
		w.seal(n)
	}
}

// anyNode returns a running node, mostly.
func (w *Workload) anyNode() *Node {
	var running []*Node
	for _, n := range w.ring.Nodes() {
		if n.Node() != nil {
			running = append(running, n)
		}
	}
	if len(running) == 0 {
		return nil
	}
	return running[w.draw(len(running))]
}

// fresh makes an instance that nobody has.
func (w *Workload) fresh() *object {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	return w.remember(newObject(w.rng, w.rng.IntN(studiesMax), w.next, 1))
}

// remember keeps an object; mu is held.
func (w *Workload) remember(o *object, err error) *object {
	if err != nil {
		panic(err) // the data set is ours
	}
	w.attempted[o.version] = o
	w.order = append(w.order, o)
	return o
}

// earlier returns an object that was sent before, later ones more often.
func (w *Workload) earlier() *object {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) == 0 {
		return nil
	}
	if w.rng.IntN(2) == 0 {
		return w.order[len(w.order)-1-w.rng.IntN(min(5, len(w.order)))]
	}
	return w.order[w.rng.IntN(len(w.order))]
}

// furtherVersion makes other bytes under a known UID, one time in three in another study.
func (w *Workload) furtherVersion() *object {
	o := w.earlier()
	if o == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	study, instance := 0, 0
	if _, err := fmt.Sscanf(o.study+" "+o.uid, "2.25.%d 2.25.7.%d", &study, &instance); err != nil {
		panic(err)
	}
	study -= 1000
	if w.rng.IntN(3) == 0 {
		study = w.rng.IntN(studiesMax)
	}
	return w.remember(newObject(w.rng, study, instance, o.number+1))
}

// putTwice sends one object to two nodes at once.
func (w *Workload) putTwice(o *object) {
	a, b := w.anyNode(), w.anyNode()
	if a == nil || b == nil {
		return
	}
	var both sync.WaitGroup
	acks := make([]bool, 2)
	both.Go(func() { acks[0] = w.put(a, o) })
	both.Go(func() { acks[1] = w.put(b, o) })
	both.Wait()
	if a != b && acks[0] && acks[1] {
		w.ring.Sometimes("duplicate stored at two nodes at once")
	}
}

// race sends two versions of one instance to two nodes at once.
func (w *Workload) race() {
	a, b := w.anyNode(), w.anyNode()
	if a == nil || b == nil {
		return
	}
	first := w.fresh()
	w.mu.Lock()
	study, instance := 0, 0
	_, err := fmt.Sscanf(first.study+" "+first.uid, "2.25.%d 2.25.7.%d", &study, &instance)
	second := w.remember(newObject(w.rng, study-1000, instance, 2))
	w.mu.Unlock()
	if err != nil {
		panic(err)
	}
	var both sync.WaitGroup
	acks := make([]bool, 2)
	both.Go(func() { acks[0] = w.put(a, first) })
	both.Go(func() { acks[1] = w.put(b, second) })
	both.Wait()
	if a != b && acks[0] && acks[1] {
		w.ring.Sometimes("two versions stored at two nodes at once")
	}
}

// put sends an object to a node and reports whether it was acknowledged. One time in three what was acknowledged is
// asked for at once: a holder knows what it holds (P2).
func (w *Workload) put(at *Node, o *object) bool {
	n, generation := at.Current()
	if n == nil {
		return false
	}
	began := w.history.now()
	ctx, cancel := context.WithTimeout(context.Background(), callMax)
	defer cancel()
	result, err := putObject(ctx, n, o)
	if _, now := at.Current(); now != generation {
		w.history.add(began, at.Name, "put "+o.String(), "unknown: the node went away")
		return false
	}
	if err != nil {
		w.history.add(began, at.Name, "put "+o.String(), err.Error())
		if errors.Is(err, dicomsvc.ErrMalformed) || errors.Is(err, dicomsvc.ErrMismatch) || errors.Is(err, dicomsvc.ErrCorrupt) {
			w.fault("put of %s at %s: %v", o, at.Name, err)
		}
		return false
	}
	what := result.Outcome.String()
	if result.Spooled {
		what += ", spooled"
		w.ring.Sometimes("spooled ack")
	}
	w.history.add(began, at.Name, "put "+o.String(), what)
	if result.Digest != o.digest {
		w.fault("put of %s at %s: acknowledged with digest %x", o, at.Name, result.Digest)
	}
	w.mu.Lock()
	w.acked[o.version] = true
	w.mu.Unlock()
	if w.draw(3) == 0 {
		w.findAtHolder(at, generation, o)
	}
	return true
}

func putObject(ctx context.Context, n *node.Node, o *object) (dicomsvc.PutResult, error) {
	return n.Archive().Put(ctx, dicomsvc.PutRequest{
		Principal: storePrincipal, TransferSyntaxUID: objectSyntax, Body: bytes.NewReader(o.data), CallingAE: "TEST",
	})
}

// findAtHolder wants a UID to be found and readable where it was acknowledged a moment ago.
func (w *Workload) findAtHolder(at *Node, generation int, o *object) {
	n, now := at.Current()
	if n == nil || now != generation {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callMax)
	defer cancel()
	found := 0
	for _, err := range n.Archive().Instances(ctx, storePrincipal, dicomsvc.Selection{SOPInstanceUIDs: []string{o.uid}}) {
		if err != nil {
			found = -1
			break
		}
		found++
	}
	if _, now := at.Current(); now != generation {
		return
	}
	if found != 1 {
		w.fault("%s was acknowledged at %s, which then finds %d instances of it", o, at.Name, found)
	}
}

// retrieve reads an instance at a node; what comes must be something that was sent under that UID.
func (w *Workload) retrieve(at *Node, o *object) {
	n, generation := at.Current()
	if n == nil {
		return
	}
	began := w.history.now()
	ctx, cancel := context.WithTimeout(context.Background(), callMax)
	defer cancel()
	result := "not found"
	for in, err := range n.Archive().Instances(ctx, storePrincipal, dicomsvc.Selection{SOPInstanceUIDs: []string{o.uid}}) {
		if err != nil {
			result = err.Error()
			break
		}
		result = w.read(ctx, n, in, at.Name)
	}
	if _, now := at.Current(); now != generation {
		result += " (but the node went away)"
	}
	w.history.add(began, at.Name, "retrieve "+o.uid, result)
}

// read reads an instance as found and returns what came of it. Bytes that nobody sent are a fault wherever they come from.
func (w *Workload) read(ctx context.Context, n *node.Node, in *dicomsvc.Instance, name string) string {
	object, err := n.Archive().Open(ctx, storePrincipal, in)
	if err != nil {
		return err.Error()
	}
	defer object.Close()
	var got bytes.Buffer
	if _, err := object.WriteTo(&got); err != nil {
		return err.Error()
	}
	version := catalog.VersionOf(in.SOPInstanceUID, in.TransferSyntaxUID, sha256.Sum256(got.Bytes()))
	w.mu.Lock()
	sent := w.attempted[version]
	w.mu.Unlock()
	if sent == nil || !bytes.Equal(sent.data, got.Bytes()) || sent.uid != in.SOPInstanceUID {
		w.fault("%s at %s gives %d bytes that nobody sent", in.SOPInstanceUID, name, got.Len())
		return "wrong bytes"
	}
	return "read " + version.String()
}

// look reads what the applied catalog of a node says of an instance: which version is served never changes.
func (w *Workload) look(at *Node) {
	n, generation := at.Current()
	o := w.earlier()
	if n == nil || o == nil {
		return
	}
	found, err := n.Catalog().Locate(context.Background(), o.uid)
	if _, now := at.Current(); now != generation || err != nil {
		return
	}
	w.noteServed(at.Name, o.uid, found)
}

// noteServed holds what an applied catalog shows against what any has shown before.
func (w *Workload) noteServed(name, uid string, found []catalog.Located) {
	w.mu.Lock()
	defer w.mu.Unlock()
	served := 0
	for _, l := range found {
		v := l.Instance.Version
		if w.attempted[v] == nil {
			w.faultLocked("%s lists version %s of %s, which nobody sent", name, v, uid)
		}
		if l.State == catalog.VersionSealed {
			w.sealed[v] = true
		}
		if !l.Served {
			continue
		}
		served++
		if before, known := w.served[uid]; known && before != v {
			w.faultLocked("%s serves version %s of %s; version %s was served before", name, v, uid, before)
		}
		w.served[uid] = v
	}
	if served != 1 {
		w.faultLocked("%s serves %d versions of %s, want 1", name, served, uid)
	}
}

// seal seals a study on demand.
func (w *Workload) seal(at *Node) {
	n, generation := at.Current()
	if n == nil {
		return
	}
	study := fmt.Sprintf("2.25.%d", 1000+w.draw(studiesMax))
	began := w.history.now()
	ctx, cancel := context.WithTimeout(context.Background(), callMax)
	defer cancel()
	result := "done"
	if err := n.Archive().SealNow(ctx, study); err != nil {
		result = err.Error()
	}
	if _, now := at.Current(); now != generation {
		result += " (but the node went away)"
		w.ring.Sometimes("sealer went away")
	}
	w.history.add(began, at.Name, "seal "+study, result)
}

// fault notes a broken promise.
func (w *Workload) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faultLocked(format, args...)
}

func (w *Workload) faultLocked(format string, args ...any) {
	err := fmt.Errorf("%.3f s: %w", w.history.now().Seconds(), fmt.Errorf(format, args...))
	w.faults = append(w.faults, err)
	w.ring.Logf("FAULT %v", err)
}

// Faults returns the broken promises seen so far.
func (w *Workload) Faults() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.faults)
}

// Acked returns how many versions were acknowledged, and how many were sent.
func (w *Workload) Acked() (acked, attempted int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked), len(w.attempted)
}
