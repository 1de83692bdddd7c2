package dicomsvc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/vault"
)

// sealLoop seals the studies that are due and whose first live node is this one.
func (a *Archive) sealLoop(ctx context.Context) {
	tick := time.NewTicker(sealTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due, err := a.catalog.Due(ctx, a.cfg.Now(), a.cfg.Seal.Quiet, a.cfg.Seal.Old, a.cfg.Seal.Bytes)
		if err != nil {
			a.cfg.Log.Error("look for studies to seal", "err", err)
			continue
		}
		for _, d := range due {
			if ctx.Err() != nil {
				return
			}
			if !a.sealsHere(d.Study) {
				continue
			}
			if err := a.sealStudy(ctx, d.Study); err != nil && ctx.Err() == nil {
				a.stats.SealFailed.Add(1)
				a.cfg.Log.Warn("study not sealed, will be tried again", "versions", d.Unsealed, "err", err)
			}
		}
	}
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

// SealNow seals everything of a study that is journalled, here, whichever node would do it by itself. A
// study without unsealed versions is fine. Racing sealers are harmless: one of them loses. Errors:
// ErrNotFound when there is no such study.
func (a *Archive) SealNow(ctx context.Context, study string) error {
	if _, err := a.Study(ctx, study); err != nil {
		return err
	}
	for {
		s, err := a.catalog.Study(ctx, study)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			return err
		}
		if err == nil && s.Unsealed == 0 && len(a.pending.ofStudy(study)) == 0 {
			return nil
		}
		if err == nil && s.Unsealed > 0 {
			if err := a.sealStudy(ctx, study); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(offerEvery): // what is pending may be of this study
		}
	}
}

// Unsealed lists the studies that have journalled versions.
func (a *Archive) Unsealed(ctx context.Context) ([]catalog.StudyDue, error) {
	return a.catalog.Due(ctx, a.cfg.Now(), 0, 0, 0)
}

// sealing attempt of one pack.
type attempt struct {
	archive  *Archive
	study    string
	pack     place.PackID
	encode   place.EncodeID
	plan     place.Plan
	key      vault.Key
	wrapped  vault.WrappedKey
	versions []catalog.Located
	entries  []catalog.SealEntry

	manifestOffset, manifestSize int64
}

// sealStudy turns up to one pack's worth of a study's journalled versions into a pack: SealBegin before
// any byte, shards fsynced and verified, then one compare-and-set.
func (a *Archive) sealStudy(ctx context.Context, study string) error {
	a.sealing.Lock()
	defer a.sealing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, sealTimeout)
	defer cancel()
	t := &attempt{archive: a, study: study}
	if err := t.collect(ctx); err != nil || len(t.versions) == 0 {
		return err
	}
	if err := t.prepare(); err != nil {
		return err
	}
	began := a.cfg.Now()
	if err := t.begin(ctx); err != nil {
		return fmt.Errorf("begin: %w", err)
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

func (t *attempt) collect(ctx context.Context) error {
	var total int64
	for l, err := range t.archive.catalog.Versions(ctx, t.study, "") {
		if err != nil {
			return err
		}
		if l.State != catalog.VersionJournalled {
			continue
		}
		total += l.Instance.Size
		if len(t.versions) > 0 && (total > t.archive.cfg.Seal.Bytes || len(t.versions) == catalog.MaxPackVersions) {
			return nil
		}
		t.versions = append(t.versions, l)
	}
	return nil
}

func (t *attempt) prepare() (err error) {
	a := t.archive
	if t.pack, err = place.NewPackID(a.cfg.Rand); err != nil {
		return err
	}
	if t.encode, err = place.NewEncodeID(a.cfg.Rand); err != nil {
		return err
	}
	if t.plan, err = place.Choose(a.cfg.Topology(), a.cfg.Survive(), t.pack[:]); err != nil {
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

func (t *attempt) propose(ctx context.Context, c catalog.Command) error {
	a := t.archive
	results, index, err := a.catalog.Do(ctx, Principal{Kind: PrincipalNode, Node: a.cfg.Self}, c)
	if err != nil {
		return err
	}
	if err := results[0].Err(); err != nil {
		return err
	}
	return a.catalog.WaitApplied(ctx, index)
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
	return t.propose(ctx, begin)
}

// write streams every version into the pack, checked against its digest, and then the manifest.
func (t *attempt) write(ctx context.Context, w *erasure.PackWriter) error {
	manifest, err := erasure.NewManifestBuilder(t.study)
	if err != nil {
		return err
	}
	for _, v := range t.versions {
		if err := t.writeVersion(ctx, w, manifest, v); err != nil {
			return fmt.Errorf("version %s: %w", v.Instance.Version, err)
		}
	}
	encoded, err := manifest.Bytes()
	if err != nil {
		return err
	}
	t.manifestOffset, t.manifestSize = w.Offset(), int64(len(encoded))
	return w.Finish(encoded)
}

func (t *attempt) writeVersion(ctx context.Context, w *erasure.PackWriter, manifest *erasure.ManifestBuilder, v catalog.Located) error {
	in := v.Instance
	o, err := t.archive.open(ctx, newInstance(v))
	if err != nil {
		return err
	}
	defer o.Close()
	entry := catalog.SealEntry{Version: in.Version, Offset: w.Offset(), Size: in.Size, PixelOffset: in.PixelOffset}
	blob, err := copyDescribed(w, o)
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

// copyDescribed copies a whole object to w, proves its digest, and describes it on the way. An object
// that cannot be described is copied all the same: its bytes are what was acknowledged.
func copyDescribed(w io.Writer, o *Object) ([]byte, error) {
	pass := &sealCopy{from: &ranged{o: o, n: o.Size()}, to: w, hash: sha256.New()}
	scanner := dicom.NewScanner(pass, o.instance.TransferSyntaxUID, dicom.Limits{})
	_, scanErr := scanner.Header()
	at := scanner.Offset()
	pass.until = at + pixelHeadBytes
	if scanErr == nil {
		scanErr = scanner.Rest()
	}
	if _, err := io.Copy(io.Discard, readerOnly{pass}); err != nil {
		return nil, err
	}
	var digest [sha256.Size]byte
	pass.hash.Sum(digest[:0])
	if digest != o.instance.Digest || pass.size != o.Size() {
		return nil, fmt.Errorf("%w: SHA-256 differs from the one recorded at arrival", ErrCorrupt)
	}
	if scanErr != nil {
		return nil, nil
	}
	deflated := scanner.Syntax().Deflated
	head := pass.kept[:min(at+pixelHeadBytes, int64(len(pass.kept)))]
	if deflated {
		inflated, err := io.ReadAll(io.LimitReader(o.Section(0, at+pixelHeadBytes), at+pixelHeadBytes))
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil
		}
		head = inflated
	}
	blob, err := appendDescription(head, deflated, scanner.Frames())
	if err != nil {
		return nil, nil
	}
	return blob, nil
}

type readerOnly struct{ io.Reader }

// sealCopy passes an object through: what is read of it goes to the pack and the hash, and its beginning
// is kept until the header has been scanned.
type sealCopy struct {
	from *ranged
	to   io.Writer
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	kept  []byte
	until int64 // how much to keep; 0 while that is not known
	size  int64
}

func (c *sealCopy) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if n > 0 {
		c.hash.Write(p[:n])
		c.size += int64(n)
		if c.until == 0 || int64(len(c.kept)) < c.until {
			c.kept = append(c.kept, p[:n]...)
		}
		if _, werr := c.to.Write(p[:n]); werr != nil {
			return 0, werr
		}
	}
	return n, err
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
	if err := t.propose(ctx, seal); err != nil {
		return fmt.Errorf("record pack: %w", err)
	}
	return nil
}

// abort tells the ring that the encode is dead; its shards are collected by their holders. When even
// that fails, another node aborts it later.
func (t *attempt) abort(cause error) error {
	if errors.Is(cause, catalog.ErrRaced) {
		return nil // aborted by the state machine
	}
	ctx, cancel := context.WithTimeout(context.Background(), offerTimeout)
	defer cancel()
	err := t.propose(ctx, catalog.SealAbort{Encode: t.encode, Why: "the encode failed"})
	if err != nil && !errors.Is(err, catalog.ErrRaced) {
		return fmt.Errorf("abort encode %s: %w", t.encode, err)
	}
	return nil
}

// openPack opens a sealed pack for reading.
func (a *Archive) openPack(ctx context.Context, id place.PackID) (*erasure.SealedPack, error) {
	p, err := a.catalog.Pack(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("look up pack %s: %w", id, err)
	}
	ref, err := a.packRef(p)
	if err != nil {
		return nil, err
	}
	pack, err := a.store.OpenSealed(ctx, ref)
	if err != nil {
		return nil, readError(err)
	}
	return pack, nil
}

func (a *Archive) packRef(p *catalog.Pack) (erasure.PackRef, error) {
	key, err := a.cfg.Vault.Unwrap(vault.WrappedKey(p.WrappedKey), packKeyAAD(a.cfg.Ring, p.ID, p.Encode))
	if err != nil {
		return erasure.PackRef{}, fmt.Errorf("unwrap the key of pack %s: %w", p.ID, err)
	}
	return erasure.PackRef{
		Pack: p.ID, Encode: p.Encode, Geometry: p.Geometry, Placement: p.Placement, Generation: p.Generation,
		CellBytes: p.CellBytes, BlockBytes: p.BlockBytes, StreamBytes: p.StreamBytes, PlainBytes: p.PlainBytes,
		ManifestOffset: p.ManifestOffset, ManifestSize: p.ManifestSize, Key: key,
	}, nil
}

// releaseLoop frees journal records whose versions an applied Seal lists, and collects the shards of
// encodes that the catalog calls aborted or superseded.
func (a *Archive) releaseLoop(ctx context.Context) {
	tick := time.NewTicker(releaseTick)
	defer tick.Stop()
	var seen uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		applied := a.catalog.Applied()
		if applied == seen {
			continue
		}
		seen = applied
		if err := a.release(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("release journal records", "err", err)
		}
		if err := a.collectEncodes(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("collect dead encodes", "err", err)
		}
	}
}

// release marks every journal record whose version is sealed as evictable and evicts.
func (a *Archive) release(ctx context.Context) error {
	j := a.store.Journal()
	var failed error
	for info := range j.Keys {
		if info.Released {
			continue
		}
		_, sealed, err := a.catalog.Has(ctx, catalog.VersionID(info.Key))
		if err != nil {
			failed = err
			break
		}
		if sealed {
			j.Release(journal.Key(info.Key))
		}
	}
	return errors.Join(failed, j.Evict())
}

// collectEncodes removes this node's shards of dead encodes and says so; the ring's leader also aborts
// encodes whose sealer went away.
func (a *Archive) collectEncodes(ctx context.Context) error {
	encodes, err := a.catalog.Encodes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range encodes {
		switch e.State {
		case catalog.EncodeAborted, catalog.EncodeSuperseded:
			errs = append(errs, a.forgetEncode(ctx, e))
		case catalog.EncodeBegun:
			errs = append(errs, a.abortStale(ctx, e))
		}
	}
	return errors.Join(errs...)
}

func (a *Archive) forgetEncode(ctx context.Context, e catalog.EncodeRecord) error {
	var mine []int
	for i, slot := range e.Placement {
		if slot.Node == a.cfg.Self {
			mine = append(mine, i)
		}
	}
	if len(mine) == 0 || holds(e.Forgotten, a.cfg.Self) {
		return nil
	}
	if err := a.store.RemoveShards(e.Pack, e.Encode, mine); err != nil {
		return err
	}
	t := attempt{archive: a}
	return t.propose(ctx, catalog.ForgetEncode{Encode: e.Encode, Node: a.cfg.Self})
}

func (a *Archive) abortStale(ctx context.Context, e catalog.EncodeRecord) error {
	if a.cfg.Leads == nil || !a.cfg.Leads() || a.cfg.Now().Sub(e.BegunAt) < staleEncode {
		return nil
	}
	for _, n := range a.cfg.Topology() {
		if n.ID == e.Sealer && n.Live && a.cfg.Now().Sub(e.BegunAt) < 2*sealTimeout {
			return nil
		}
	}
	t := attempt{archive: a}
	err := t.propose(ctx, catalog.SealAbort{Encode: e.Encode, Why: "its sealer is gone"})
	if errors.Is(err, catalog.ErrRaced) {
		return nil
	}
	return err
}
