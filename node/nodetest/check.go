package nodetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/shard"
	"osteon/node"
	"osteon/raft/catalog"
)

// settleMax bounds the virtual time until a healed ring is quiet: an election, offers that were put off, and the
// longest pause between two attempts to seal.
const settleMax = 30 * time.Minute

// Settle waits until the ring is quiet: every node is ready and has applied the same, nothing waits to be offered, and,
// when sealed is set, nothing is unsealed. It returns what is still missing after settleMax.
func (w *Workload) Settle(sealed bool) error {
	deadline := time.Now().Add(settleMax)
	calm := 0
	for {
		why := w.unsettled(sealed)
		if why == nil {
			if calm++; calm == 3 {
				return nil
			}
		} else {
			calm = 0
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the ring is not quiet %s after it healed: %w", settleMax, why)
		}
		time.Sleep(time.Second)
	}
}

func (w *Workload) unsettled(sealed bool) error {
	var applied uint64
	for _, at := range w.ring.Nodes() {
		n := at.Node()
		if n == nil {
			if at.isGone() {
				continue
			}
			return fmt.Errorf("%s is down: %v", at.Name, at.Fenced())
		}
		if err := n.Ready(); err != nil {
			return fmt.Errorf("%s is not ready: %w", at.Name, err)
		}
		if waiting := n.Archive().Waiting(); waiting > 0 {
			return fmt.Errorf("%s has %d instances that the catalog does not know", at.Name, waiting)
		}
		now := n.Catalog().Applied()
		if applied == 0 {
			applied = now
		}
		if now != applied {
			return fmt.Errorf("%s applied %d, another node %d", at.Name, now, applied)
		}
		if !sealed {
			continue
		}
		if err := w.unsealed(n); err != nil {
			return fmt.Errorf("%s lists %w", at.Name, err)
		}
		if err := w.encodesUnderWay(n); err != nil {
			return fmt.Errorf("%s: %w", at.Name, err)
		}
	}
	return nil
}

// unsealed says which version is not sealed although a node that has it runs.
func (w *Workload) unsealed(n *node.Node) error {
	ctx := context.Background()
	due, err := n.Archive().Unsealed(ctx)
	if err != nil {
		return err
	}
	for _, d := range due {
		for l, err := range n.Archive().Versions(ctx, d.Study) {
			if err != nil {
				return err
			}
			if l.State == catalog.VersionJournalled && w.heldByRunning(l) && !w.awaits(l) {
				return fmt.Errorf("%d unsealed versions of %s: %s, spooled %t, is listed at %s", d.Unsealed, d.Study,
					l.Instance.Version, l.Spooled, w.names(l.Holders))
			}
		}
	}
	return nil
}

// awaits reports whether a version stays in the journals of two nodes because a third, whose disk is lost, would make
// them more than a pack is worth now: the ring cannot know that it never comes back.
func (w *Workload) awaits(l catalog.Located) bool {
	running := 0
	for _, at := range w.running() {
		if slices.Contains(l.Holders, at.Node().ID()) {
			running++
		}
	}
	return running >= 2 && len(l.Holders) > running
}

// names returns the names of the nodes that run, and the IDs of others.
func (w *Workload) names(ids []place.NodeID) (names []string) {
	for _, id := range ids {
		name := id.String()
		for _, at := range w.running() {
			if at.Node().ID() == id {
				name = at.Name
			}
		}
		names = append(names, name)
	}
	return names
}

func (w *Workload) heldByRunning(l catalog.Located) bool {
	return slices.ContainsFunc(w.running(), func(at *Node) bool { return slices.Contains(l.Holders, at.Node().ID()) })
}

// lost reports whether a version was never acknowledged and the only disk that had it is gone.
func (w *Workload) lost(v catalog.VersionID) bool {
	w.mu.Lock()
	acked := w.acked[v]
	w.mu.Unlock()
	if acked || len(w.running()) == len(w.ring.Nodes()) {
		return false
	}
	l, err := w.running()[0].Node().Catalog().Find(context.Background(), v)
	return err == nil && l.State == catalog.VersionJournalled && !w.heldByRunning(l)
}

// encodesUnderWay says which encode is neither sealed nor aborted and collected by everybody who runs.
func (w *Workload) encodesUnderWay(n *node.Node) error {
	encodes, err := n.Catalog().Encodes(context.Background())
	if err != nil {
		return err
	}
	for _, e := range encodes {
		if e.State == catalog.EncodeBegun {
			return fmt.Errorf("encode %s is begun", e.Encode)
		}
		for _, at := range w.running() {
			id := at.Node().ID()
			holds := slices.ContainsFunc(e.Placement, func(s place.Slot) bool { return s.Node == id })
			if holds && !slices.Contains(e.Forgotten, id) {
				return fmt.Errorf("encode %s is %v, %s has not collected it", e.Encode, e.State, at.Name)
			}
		}
	}
	return nil
}

// Check holds a ring that is quiet to everything that was promised, and returns the broken promises.
//
// With sealed set nothing may be under way.
func (w *Workload) Check(sealed bool) []error {
	ctx, cancel := context.WithTimeout(context.Background(), settleMax)
	defer cancel()
	w.checkReplicas(ctx)
	for _, at := range w.ring.Nodes() {
		if at.Node() != nil {
			w.checkCatalog(ctx, at)
			w.checkReads(ctx, at)
		}
	}
	w.checkCopies(ctx)
	w.checkShards(ctx, !sealed)
	if sealed {
		w.checkJournals(ctx)
	}
	return w.Faults()
}

// liveMax bounds the virtual time in which a quiet ring makes a new instance known everywhere.
const liveMax = 30 * time.Second

// CheckLive stores an instance at every node of a quiet ring and wants every catalog to know it soon.
func (w *Workload) CheckLive() []error {
	for _, at := range w.running() {
		o := w.fresh()
		if !w.put(at, o) {
			w.fault("store at %s of a quiet ring: refused", at.Name)
			continue
		}
		for deadline := time.Now().Add(liveMax); ; time.Sleep(50 * time.Millisecond) {
			missing := slices.DeleteFunc(w.running(), func(n *Node) bool {
				_, err := n.Node().Catalog().Find(context.Background(), o.version)
				return err == nil
			})
			if len(missing) == 0 {
				break
			}
			if time.Now().After(deadline) {
				w.fault("an instance stored at %s of a quiet ring is not known at %s after %s", at.Name, missing[0].Name, liveMax)
				break
			}
		}
	}
	return w.Faults()
}

// checkReplicas compares the catalogs as a whole.
func (w *Workload) checkReplicas(ctx context.Context) {
	hashes := map[uint64]map[[32]byte]string{}
	for _, at := range w.ring.Nodes() {
		n := at.Node()
		if n == nil {
			continue
		}
		hash, index, err := n.Catalog().StateHash(ctx)
		if err != nil {
			w.fault("state hash of %s: %v", at.Name, err)
			continue
		}
		if hashes[index] == nil {
			hashes[index] = map[[32]byte]string{}
		}
		hashes[index][hash] += " " + at.Name
	}
	for index, at := range hashes {
		if len(at) > 1 {
			w.fault("catalogs differ at index %d: %v", index, slices.Collect(maps.Values(at)))
		}
	}
}

// checkCatalog wants every acknowledged version, once, and nothing that nobody sent.
func (w *Workload) checkCatalog(ctx context.Context, at *Node) {
	w.mu.Lock()
	byUID := map[string][]catalog.VersionID{}
	for _, o := range w.order {
		if w.acked[o.version] {
			byUID[o.uid] = append(byUID[o.uid], o.version)
		}
	}
	w.mu.Unlock()
	c := at.Node().Catalog()
	for uid, want := range byUID {
		found, err := c.Locate(ctx, uid)
		if err != nil {
			w.fault("%s was acknowledged, %s does not know it: %v", uid, at.Name, err)
			continue
		}
		w.noteServed(at.Name, uid, found)
		for _, v := range want {
			times := 0
			for _, l := range found {
				if l.Instance.Version == v {
					times++
				}
			}
			if times != 1 {
				w.fault("version %s of %s was acknowledged, %s lists it %d times", v, uid, at.Name, times)
			}
		}
	}
}

// checkReads reads every instance whole, and wants queries to agree with retrieval.
func (w *Workload) checkReads(ctx context.Context, at *Node) {
	n := at.Node()
	studies := map[string]int{}
	w.mu.Lock()
	for _, o := range w.order {
		studies[o.study] = 0
	}
	w.mu.Unlock()
	for _, study := range slices.Sorted(maps.Keys(studies)) {
		found := map[string]int{}
		for in, err := range n.Archive().Instances(ctx, storePrincipal, dicomsvc.Selection{StudyInstanceUIDs: []string{study}}) {
			if err != nil {
				w.fault("instances of %s at %s: %v", study, at.Name, err)
				break
			}
			found[in.SOPInstanceUID]++
			version := catalog.VersionOf(in.SOPInstanceUID, in.TransferSyntaxUID, in.Digest)
			if got := w.read(ctx, n, in, at.Name); got != "read "+version.String() && !w.lost(version) {
				w.fault("%s cannot be read at %s: %s", in.SOPInstanceUID, at.Name, got)
			}
		}
		w.checkQuery(ctx, at, study, found)
	}
}

// checkQuery compares an IMAGE level query with what retrieval gives.
func (w *Workload) checkQuery(ctx context.Context, at *Node, study string, found map[string]int) {
	q := &dicomsvc.Query{Level: dicomsvc.LevelImage, Relational: true, Keys: []dicomsvc.Key{{Tag: dicom.StudyInstanceUID, VR: dicom.UI, Values: []string{study}}}}
	matched := map[string]int{}
	for m, err := range at.Node().Archive().Search(ctx, storePrincipal, q) {
		if err != nil {
			w.fault("query of %s at %s: %v", study, at.Name, err)
			return
		}
		matched[m.SOPInstanceUID]++
	}
	for uid, times := range matched {
		if times != 1 || found[uid] != 1 {
			w.fault("%s at %s: the query matches it %d times, retrieval gives it %d times", uid, at.Name, times, found[uid])
		}
	}
	if len(matched) != len(found) {
		w.fault("%s at %s: the query matches %d instances, retrieval gives %d", study, at.Name, len(matched), len(found))
	}
}

// checkCopies wants every unsealed version in the journals of two of its holders, and what the journal has to be whole.
func (w *Workload) checkCopies(ctx context.Context) {
	nodes := map[place.NodeID]*Node{}
	var any *Node
	gone := 0
	for _, at := range w.ring.Nodes() {
		n := at.Node()
		if n == nil {
			gone++
			continue
		}
		nodes[n.ID()] = at
		any = at
		if err := n.Archive().Store().Journal().Verify(ctx, nil); err != nil {
			w.fault("journal of %s: %v", at.Name, err)
		}
		// What was never acknowledged may be torn for good: its sync failed, the power went, and nobody else has it.
		for _, key := range n.Archive().Store().Journal().Corrupt() {
			if _, err := n.Catalog().Find(ctx, catalog.VersionID(key)); err == nil {
				w.fault("journal of %s has damaged version %x", at.Name, key[:8])
			}
		}
	}
	if any == nil {
		return
	}
	w.mu.Lock()
	order := slices.Clone(w.order)
	w.mu.Unlock()
	for _, o := range order {
		l, err := any.Node().Catalog().Find(ctx, o.version)
		if err != nil || l.State != catalog.VersionJournalled {
			continue
		}
		held := 0
		for _, h := range l.Holders {
			if at := nodes[h]; at != nil {
				if _, ok := at.Node().Archive().Store().Journal().Stat(journal.Key(o.version)); ok {
					held++
				} else {
					w.fault("%s is not in the journal of %s, which is listed as its holder", o, at.Name)
				}
			}
		}
		w.mu.Lock()
		acked := w.acked[o.version]
		w.mu.Unlock()
		if acked && held < min(2, len(nodes)) && gone == 0 {
			w.fault("%s was acknowledged and is unsealed in %d journals, listed are %d", o, held, len(l.Holders))
		}
	}
}

// checkShards wants every shard of every pack on its disk, as it was sealed, and no other. While begun is allowed there
// may be shards of encodes under way.
func (w *Workload) checkShards(ctx context.Context, begun bool) {
	want := map[slot][32]byte{}
	listed := map[place.EncodeID]bool{}
	first := w.running()[0]
	for p, err := range first.Node().Catalog().AllPacks(ctx) {
		if err != nil {
			w.fault("packs at %s: %v", first.Name, err)
			return
		}
		for i, s := range p.Placement {
			want[slot{p.Encode, i, s.Node}] = p.Roots[i]
		}
	}
	encodes, err := first.Node().Catalog().Encodes(ctx)
	if err != nil {
		w.fault("encodes at %s: %v", first.Name, err)
	}
	for _, e := range encodes {
		listed[e.Encode] = true
	}
	for _, at := range w.running() {
		here := w.shardsAt(ctx, at, want, func(e place.EncodeID) bool { return begun && (listed[e] || w.knows(ctx, e)) })
		for key := range want {
			if key.node == at.Node().ID() && !here[key] {
				w.fault("shard %d of encode %s is not at %s", key.index, key.encode, at.Name)
			}
		}
	}
}

// knows reports whether a running node's catalog has an encode by now, under way or sealed.
func (w *Workload) knows(ctx context.Context, encode place.EncodeID) bool {
	for _, at := range w.running() {
		if encodes, err := at.Node().Catalog().Encodes(ctx); err == nil &&
			slices.ContainsFunc(encodes, func(e catalog.EncodeRecord) bool { return e.Encode == encode }) {
			return true
		}
		for p, err := range at.Node().Catalog().AllPacks(ctx) {
			if err == nil && p.Encode == encode {
				return true
			}
		}
	}
	return false
}

// slot is where a shard belongs.
type slot struct {
	encode place.EncodeID
	index  int
	node   place.NodeID
}

// shardsAt reads every shard at a node and returns those that are wanted there.
func (w *Workload) shardsAt(ctx context.Context, at *Node, want map[slot][32]byte, allowed func(place.EncodeID) bool) map[slot]bool {
	fs, dir := at.Disk.Mount(), at.Config().Dir+"/shards"
	here := map[slot]bool{}
	for e, err := range shard.List(fs, dir) {
		key := slot{e.Encode, e.Index, at.Node().ID()}
		root, known := want[key]
		switch {
		case err != nil || e.Err != nil:
			w.fault("shard %d of %s at %s: %v %v", e.Index, e.Encode, at.Name, err, e.Err)
		case known:
			here[key] = true
			if got, err := verifyShard(ctx, fs, dir, e); err != nil || got != root {
				w.fault("shard %d of encode %s at %s is not as it was sealed: %v", e.Index, e.Encode, at.Name, err)
			}
		case !allowed(e.Encode):
			w.fault("orphan shard %d of encode %s at %s", e.Index, e.Encode, at.Name)
		}
	}
	return here
}

func verifyShard(ctx context.Context, fs vfs.FS, dir string, e shard.Entry) (root [32]byte, err error) {
	r, err := shard.Open(fs, dir, e.Pack, e.Encode, e.Index)
	if err != nil {
		return root, err
	}
	defer r.Close()
	return r.Verify(ctx)
}

// checkJournals wants nothing in a journal that the catalog does not know, and what a good pack has to be released.
func (w *Workload) checkJournals(ctx context.Context) {
	for _, at := range w.running() {
		n := at.Node()
		for info := range n.Archive().Store().Journal().Keys {
			v := catalog.VersionID(info.Key)
			l, err := n.Catalog().Find(ctx, v)
			if err != nil {
				w.fault("version %s is in the journal of %s and not in its catalog: %v", v, at.Name, err)
				continue
			}
			if l.State != catalog.VersionSealed || info.Released {
				continue
			}
			p, err := n.Catalog().Pack(ctx, l.Pack)
			if err != nil {
				w.fault("pack of version %s at %s: %v", v, at.Name, err)
			} else if place.Survives(p.Geometry, p.Placement, nil).Meets(place.SurviveSite) {
				w.fault("version %s is sealed in a good pack and still kept in the journal of %s", v, at.Name)
			}
		}
	}
}

// running returns the nodes that run.
func (w *Workload) running() []*Node {
	var out []*Node
	for _, n := range w.ring.Nodes() {
		if n.Node() != nil {
			out = append(out, n)
		}
	}
	return out
}
