package dicomsvc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/plant"
	"osteon/raft/catalog"
	"osteon/raft/vault"
)

// sealLoop seals the studies that are due and whose first live node is this one.
func (a *Archive) sealLoop(ctx context.Context) {
	tick := time.NewTicker(sealTick)
	defer tick.Stop()
	retries := map[string]sealRetry{}
	watch := sealWatch{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if a.cfg.Settled != nil && !a.cfg.Settled() {
			continue
		}
		unsealed, err := a.Unsealed(ctx)
		due := watch.due(unsealed, a.cfg.Now(), a.cfg.Seal)
		if err != nil {
			a.cfg.Log.Error("look for studies to seal", "err", err)
			continue
		}
		for study := range retries { // sealed meanwhile, by whomever
			if !slices.ContainsFunc(due, func(d catalog.StudyDue) bool { return d.Study == study }) {
				delete(retries, study)
			}
		}
		a.pace.behind.Store(a.backlog(due) > sealBehindMax)
		for _, d := range due {
			if ctx.Err() != nil {
				return
			}
			retry := retries[d.Study]
			if a.cfg.Now().Before(retry.at) || !a.sealsHere(d.Study) {
				continue
			}
			sealed, err := a.sealStudy(ctx, d.Study)
			switch {
			case sealed > 0 && err == nil, errors.Is(err, catalog.ErrRaced), ctx.Err() != nil:
				delete(retries, d.Study)
				continue
			case err != nil:
				a.stats.SealFailed.Add(1)
				a.cfg.Log.Warn("study not sealed, will be tried again", "versions", d.Unsealed, "err", err)
			}
			retries[d.Study] = retry.next(a.cfg.Now())
		}
	}
}

// sealWatch is what a sealer has seen of the studies that are not sealed. Ring time may be ahead of this node's clock, for as
// long as somebody's clock once was: a study is also due after it has been seen without a change for long enough.
type sealWatch map[string]sealSeen

type sealSeen struct {
	last           time.Time // ring time of the version that was added last
	first, changed time.Time // by this node's clock
}

// due returns the studies that rest for cfg.Quiet, are older than cfg.Old, or as large as cfg.Bytes, and forgets the ones that
// are not listed any more.
func (w sealWatch) due(unsealed []catalog.StudyDue, now time.Time, cfg SealPolicy) (due []catalog.StudyDue) {
	listed := map[string]bool{}
	for _, d := range unsealed {
		listed[d.Study] = true
		seen, known := w[d.Study]
		if !known {
			seen.first = now
		}
		if !known || !seen.last.Equal(d.Last) {
			seen.last, seen.changed = d.Last, now
		}
		w[d.Study] = seen
		rests := max(now.Sub(d.Last), now.Sub(seen.changed))
		age := max(now.Sub(d.First), now.Sub(seen.first))
		if rests >= cfg.Quiet || age >= cfg.Old || d.UnsealedBytes >= cfg.Bytes {
			due = append(due, d)
		}
	}
	maps.DeleteFunc(w, func(study string, _ sealSeen) bool { return !listed[study] })
	return due
}

// backlog is how many bytes of what is due this node has to seal.
func (a *Archive) backlog(due []catalog.StudyDue) (total int64) {
	for _, d := range due {
		if a.sealsHere(d.Study) {
			total += d.UnsealedBytes
		}
	}
	return total
}

// sealRetry says when a study that could not be sealed is tried again.
type sealRetry struct {
	at    time.Time
	pause time.Duration
}

func (r sealRetry) next(now time.Time) sealRetry {
	pause := min(max(2*r.pause, sealRetryMin), sealRetryMax)
	return sealRetry{at: now.Add(pause), pause: pause}
}

// sealsHere reports whether this node is the first live one of the study's rendezvous order.
func (a *Archive) sealsHere(study string) bool {
	var live []place.NodeID
	for _, n := range a.cfg.Topology() {
		if n.Live && n.Data {
			live = append(live, n.ID)
		}
	}
	order := place.Rendezvous([]byte(study), live)
	return len(order) > 0 && order[0] == a.cfg.Self
}

// SealNow seals everything of a study that is journalled, here, whichever node would do it by itself. What
// arrives meanwhile may be left. A study without unsealed versions is fine. Racing sealers are harmless: one
// of them loses, and what is left is looked at again. Errors: ErrNotFound when there is no such study,
// ErrUnavailable when a version cannot be read from any holder now, or is safer in the journals than in a
// pack on the nodes that are up; all others are sealed then.
func (a *Archive) SealNow(ctx context.Context, study string) error {
	if _, err := a.Study(ctx, study); err != nil {
		return err
	}
	for _, applied := range a.pending.ofStudy(study) {
		select {
		case <-applied:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a.pace.urgent.Add(1)
	defer a.pace.urgent.Add(-1)
	for {
		s, err := a.catalog.Study(ctx, study)
		if err != nil || s.Unsealed == 0 {
			return err
		}
		sealed, err := a.sealStudy(ctx, study)
		switch {
		case errors.Is(err, catalog.ErrRaced):
		case err != nil:
			return err
		case sealed == 0 && !a.sealedMeanwhile(ctx, s):
			return fmt.Errorf("%w: %d versions of the study cannot be read from any holder", ErrUnavailable, s.Unsealed)
		}
	}
}

// sealedMeanwhile reports whether another sealer has taken of a study what was to be sealed here: holders let go of their journals'
// copies as soon as they have applied that, which may be sooner than here.
func (a *Archive) sealedMeanwhile(ctx context.Context, before *catalog.Study) bool {
	for until := a.cfg.Now().Add(sealRaceWait); ; {
		s, err := a.catalog.Study(ctx, before.StudyInstanceUID)
		if err != nil || s.Unsealed < before.Unsealed {
			return true // the caller looks again
		}
		select {
		case <-ctx.Done():
			return true
		case <-time.After(sealRaceLook):
		}
		if a.cfg.Now().After(until) {
			return false
		}
	}
}

// Unsealed lists the studies that have journalled versions.
func (a *Archive) Unsealed(ctx context.Context) ([]catalog.StudyDue, error) {
	return a.catalog.Unsealed(ctx)
}

// sealing is one study's way into a pack: a few attempts, each without what failed the one before.
type sealing struct {
	archive *Archive
	study   string
	skip    map[catalog.VersionID]bool // cannot be read now
	avoid   map[place.NodeID]bool      // did not take their shard
}

// attempt is one encode.
type attempt struct {
	*sealing
	pack     place.PackID
	encode   place.EncodeID
	plan     place.Plan
	key      vault.Key
	wrapped  vault.WrappedKey
	versions []catalog.Located
	entries  []catalog.SealEntry

	manifestOffset, manifestSize int64
}

// unreadableError names a version that stopped an encode.
type unreadableError struct {
	version catalog.VersionID
	err     error
}

func (e *unreadableError) Error() string { return fmt.Sprintf("version %s: %v", e.version, e.err) }
func (e *unreadableError) Unwrap() error { return e.err }

// sealStudy turns up to one pack's worth of a study's journalled versions into a pack and returns how many:
// none when none can be read. A version that no holder can give and a node that takes no shard keep nothing
// else from being sealed: they are left out, and the rest is tried again.
func (a *Archive) sealStudy(ctx context.Context, study string) (int, error) {
	select {
	case a.sealing <- struct{}{}:
		defer func() { <-a.sealing }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, sealTimeout)
	defer cancel()
	s := &sealing{archive: a, study: study, skip: map[catalog.VersionID]bool{}, avoid: map[place.NodeID]bool{}}
	for tries := 1; ; tries++ {
		t := &attempt{sealing: s}
		err := t.seal(ctx)
		if err == nil {
			return len(t.versions), nil
		}
		var unreadable *unreadableError
		var sink *erasure.SinkError
		switch {
		case ctx.Err() != nil || tries == sealTriesMax:
			return 0, err
		case errors.As(err, &sink) && sink.Shard < len(t.plan.Placement) && t.plan.Placement[sink.Shard].Node != a.cfg.Self:
			s.avoid[t.plan.Placement[sink.Shard].Node] = true
			a.cfg.Log.Warn("node took no shard, sealed without it", "node", t.plan.Placement[sink.Shard].Node, "err", err)
		case errors.As(err, &unreadable):
			s.skip[unreadable.version] = true
			a.cfg.Log.Error("version left out of its pack: no holder can give it", "version", unreadable.version, "err", err)
		default:
			return 0, err
		}
	}
}

// seal is one attempt: SealBegin before any byte, shards fsynced and verified, then one compare-and-set.
func (t *attempt) seal(ctx context.Context) error {
	a := t.archive
	if err := t.prepare(); err != nil {
		return err
	}
	if err := t.collect(ctx); err != nil || len(t.versions) == 0 {
		return err
	}
	began := a.cfg.Now()
	a.encoding.set(t.encode)
	defer a.encoding.set(place.EncodeID{})
	if err := t.begin(ctx); err != nil {
		return errors.Join(fmt.Errorf("begin: %w", err), t.abort(err))
	}
	info, err := a.store.Seal(ctx, erasure.SealSpec{
		Pack: t.pack, Encode: t.encode, Geometry: t.plan.Geometry, Placement: t.plan.Placement,
		Generation: firstGeneration, Key: t.key,
	}, func(w *erasure.PackWriter) error { return t.write(ctx, w) })
	if err == nil {
		err = t.finish(ctx, info)
	}
	if err != nil {
		return errors.Join(err, t.abort(err))
	}
	a.stats.Sealed.Add(1)
	a.stats.SealedBytes.Add(info.PlainBytes)
	a.cfg.Log.Info("pack sealed", "pack", t.pack, "geometry", t.plan.Geometry.String(), "survives", string(t.plan.Survives),
		"instances", len(t.versions), "bytes", info.PlainBytes, "ms", a.cfg.Now().Sub(began).Milliseconds())
	if t.plan.Fallback {
		a.cfg.Log.Warn("pack sealed in a weaker geometry than wanted", "pack", t.pack, "why", t.plan.Why)
	}
	return nil
}

const firstGeneration = 1

// collect takes the study's journalled versions that somebody can give now, up to one pack's worth, apart
// from those that are safer where they are. Errors: ErrUnavailable when that is all of them.
func (t *attempt) collect(ctx context.Context) error {
	nodes, live := map[place.NodeID]place.Node{}, map[place.NodeID]bool{}
	for _, n := range t.archive.cfg.Topology() {
		nodes[n.ID], live[n.ID] = n, n.Live
	}
	var total int64
	held := 0
	for l, err := range t.archive.catalog.Versions(ctx, t.study, "") {
		if err != nil {
			return err
		}
		if l.State != catalog.VersionJournalled || t.skip[l.Instance.Version] || !t.within(l, live) {
			continue
		}
		if !t.improves(l.Holders, nodes) {
			held++
			continue
		}
		total += l.Instance.Size
		if len(t.versions) > 0 && (total > t.archive.cfg.Seal.Bytes || len(t.versions) == catalog.MaxPackVersions) {
			return nil
		}
		t.versions = append(t.versions, l)
	}
	if held > 0 && len(t.versions) == 0 {
		return fmt.Errorf("%w: the journals' copies survive more than a pack would now: %s", ErrUnavailable, t.plan.Why)
	}
	return nil
}

// improves reports whether the planned pack may take the place of a version's journal copies, which
// sealing frees: it survives what they survive, as far as the admin wants that survived, or more than
// those of them that are within reach.
func (t *attempt) improves(holders []place.NodeID, nodes map[place.NodeID]place.Node) bool {
	var copies place.Placement
	for _, id := range holders {
		if n, known := nodes[id]; known {
			copies = append(copies, place.Slot{Node: id, Disk: n.Disk, Site: n.Site})
		}
	}
	mirror := place.Geometry{K: 1, M: max(0, len(copies)-1)}
	floor := place.Survives(mirror, copies, nil)
	if !floor.Meets(place.SurviveNode) {
		floor = place.SurviveNode // a second holder that has not come forward yet
	}
	if !t.plan.Wanted.Meets(floor) {
		floor = t.plan.Wanted
	}
	if t.plan.Survives.Meets(floor) {
		return true
	}
	reached := place.Survives(mirror, copies, func(id place.NodeID) bool { return nodes[id].Live })
	return t.plan.Survives.Meets(place.SurviveNode) && !reached.Meets(t.plan.Survives)
}

// within reports whether the version is in this node's journal or in that of another live holder.
func (t *attempt) within(l catalog.Located, live map[place.NodeID]bool) bool {
	self := t.archive.cfg.Self
	if _, here := t.archive.store.Journal().Stat(journal.Key(l.Instance.Version)); here {
		return true
	}
	return slices.ContainsFunc(l.Holders, func(id place.NodeID) bool { return id != self && live[id] })
}

// nodes returns the topology without the nodes that did not take their shard.
func (t *attempt) nodes() []place.Node {
	nodes := slices.Clone(t.archive.cfg.Topology())
	for i := range nodes {
		nodes[i].Live = nodes[i].Live && !t.avoid[nodes[i].ID]
	}
	return nodes
}

func (t *attempt) prepare() (err error) {
	a := t.archive
	if t.pack, err = place.NewPackID(a.cfg.Rand); err != nil {
		return err
	}
	if t.encode, err = place.NewEncodeID(a.cfg.Rand); err != nil {
		return err
	}
	if t.plan, err = place.Choose(t.nodes(), a.cfg.Survive(), t.pack[:]); err != nil {
		return fmt.Errorf("choose geometry: %w", err)
	}
	t.key, t.wrapped, err = a.cfg.Vault.NewKey(packKeyAAD(a.cfg.Ring, t.pack, t.encode))
	return err
}

// packKeyAAD binds a wrapped study key to its encode.
func packKeyAAD(ring place.RingID, pack place.PackID, encode place.EncodeID) []byte {
	aad := []byte("osteon pack key 1")
	aad = append(aad, ring[:]...)
	aad = append(aad, pack[:]...)
	return append(aad, encode[:]...)
}

// propose proposes a command of the archive's own and returns once it is applied here, refused or not.
func (a *Archive) propose(ctx context.Context, c catalog.Command) error {
	results, index, err := a.catalog.Do(ctx, Principal{Kind: PrincipalNode, Node: a.cfg.Self}, c)
	if err != nil {
		return err
	}
	return cmp.Or(a.catalog.WaitApplied(ctx, index), results[0].Err())
}

func (t *attempt) begin(ctx context.Context) error {
	cell, block := erasure.Cells()
	begin := catalog.SealBegin{
		Encode: t.encode, Pack: t.pack, Study: t.study, Sealer: t.archive.cfg.Self,
		Geometry: t.plan.Geometry, Placement: t.plan.Placement, Generation: firstGeneration,
		CellBytes: cell, BlockBytes: block,
	}
	for _, v := range t.versions {
		begin.Versions = append(begin.Versions, v.Instance.Version)
	}
	return t.archive.propose(ctx, begin)
}

// write streams every version into the pack, checked against its digest, and then the manifest.
func (t *attempt) write(ctx context.Context, w *erasure.PackWriter) error {
	manifest, err := erasure.NewManifestBuilder(t.study)
	if err != nil {
		return err
	}
	c := copier{pace: func(n int) error { return t.archive.pace.wait(ctx, int64(n)) }}
	for _, v := range t.versions {
		if err := t.writeVersion(ctx, w, manifest, &c, v); err != nil {
			return err
		}
	}
	encoded, err := manifest.Bytes()
	if err != nil {
		return err
	}
	t.manifestOffset, t.manifestSize = w.Offset(), int64(len(encoded))
	return w.Finish(encoded)
}

func (t *attempt) writeVersion(ctx context.Context, w *erasure.PackWriter, manifest *erasure.ManifestBuilder, c *copier, v catalog.Located) error {
	in := v.Instance
	o, err := t.archive.open(ctx, newInstance(v))
	if err != nil {
		return t.unreadable(ctx, in.Version, err)
	}
	defer o.Close()
	entry := catalog.SealEntry{Version: in.Version, Offset: w.Offset(), Size: in.Size, PixelOffset: in.PixelOffset}
	out := &tally{w: w}
	blob, err := c.copyDescribed(out, o)
	if err != nil && out.err == nil {
		return t.unreadable(ctx, in.Version, err)
	}
	if err != nil {
		return err
	}
	t.entries = append(t.entries, entry)
	_, err = manifest.Add(erasure.ManifestInstance{
		Version: in.Version, SOPInstanceUID: in.SOPInstanceUID, SOPClassUID: in.SOPClassUID,
		SeriesInstanceUID: in.SeriesInstanceUID, TransferSyntaxUID: in.TransferSyntaxUID,
		Digest: in.Digest, Offset: entry.Offset, Size: in.Size, PixelOffset: in.PixelOffset,
		Provenance: erasure.Provenance{CallingAE: in.CallingAE, Node: in.ReceivedBy, At: in.ReceivedAt},
	}, blob)
	return err
}

// unreadable tells a version that cannot be given from an attempt whose time is over or that was sealed
// by another meanwhile.
func (t *attempt) unreadable(ctx context.Context, v catalog.VersionID, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if l, ferr := t.archive.catalog.Find(ctx, v); ferr == nil && l.State == catalog.VersionSealed {
		return fmt.Errorf("version %s: %w", v, catalog.ErrRaced)
	}
	return &unreadableError{v, err}
}

// finish records the pack in the catalog.
func (t *attempt) finish(ctx context.Context, info erasure.PackInfo) error {
	seal := catalog.Seal{
		Encode: t.encode, StreamBytes: info.StreamBytes, PlainBytes: info.PlainBytes, WrappedKey: t.wrapped,
		Entries: t.entries, ManifestOffset: t.manifestOffset, ManifestSize: t.manifestSize,
	}
	for _, r := range info.Roots {
		seal.Roots = append(seal.Roots, r)
	}
	if plant.Is(plant.JournalFreedEarly) {
		for _, e := range t.entries {
			t.archive.store.Journal().Drop(journal.Key(e.Version))
		}
	}
	if err := t.archive.propose(ctx, seal); err != nil {
		return fmt.Errorf("record pack: %w", err)
	}
	return nil
}

// abort tells the ring that the encode is dead; its shards are collected by their holders. When even
// that fails, another node aborts it later.
func (t *attempt) abort(cause error) error {
	if errors.Is(cause, catalog.ErrInvalid) {
		return nil // never begun
	}
	ctx, cancel := context.WithTimeout(context.Background(), offerTimeout)
	defer cancel()
	err := t.archive.propose(ctx, catalog.SealAbort{Encode: t.encode, Why: "the encode failed"})
	if err != nil && !errors.Is(err, catalog.ErrRaced) {
		return fmt.Errorf("abort encode %s: %w", t.encode, err)
	}
	return nil
}
