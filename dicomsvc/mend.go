package dicomsvc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// mending brings journal records that this node lost to damage back from their other holders, so that an
// unsealed version has its two copies again (design P1). It belongs to one goroutine.
type mending struct {
	archive   *Archive
	retryAt   time.Time // of the damaged records
	compareAt time.Time // of the catalog with the journal
}

// run does what is due.
func (m *mending) run(ctx context.Context) {
	a := m.archive
	now := a.cfg.Now()
	if !now.Before(m.retryAt) {
		for _, key := range a.store.Journal().Corrupt() {
			if err := m.damaged(ctx, catalog.VersionID(key)); err != nil && ctx.Err() == nil {
				a.cfg.Log.Error("damaged journal record not mended, will be tried again", "version", catalog.VersionID(key), "err", err)
				m.retryAt = now.Add(mendRetry)
			}
		}
	}
	if now.Before(m.compareAt) {
		return
	}
	m.compareAt = now.Add(mendCompareEvery)
	if err := m.compare(ctx); err != nil && ctx.Err() == nil {
		a.cfg.Log.Error("compare the journal with the catalog", "err", err)
	}
}

// damaged mends one record that the journal calls corrupt. One that the catalog does not know is left: its
// other holder offers it, or it was never acknowledged.
func (m *mending) damaged(ctx context.Context, v catalog.VersionID) error {
	l, err := m.archive.catalog.Find(ctx, v)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return err
	case l.State == catalog.VersionSealed:
		m.archive.store.Journal().Drop(journal.Key(v))
		return nil
	}
	return m.refetch(ctx, l)
}

// compare looks for unsealed versions that this node is listed for and does not have: damage that took a
// record away without a trace.
func (m *mending) compare(ctx context.Context) error {
	a := m.archive
	var missing []catalog.Located
	unsealed, err := a.catalog.Unsealed(ctx)
	if err != nil {
		return err
	}
	for _, due := range unsealed {
		for l, err := range a.catalog.Versions(ctx, due.Study, "") {
			if err != nil {
				return err
			}
			if l.State != catalog.VersionJournalled || !holds(l.Holders, a.cfg.Self) {
				continue
			}
			if _, here := a.store.Journal().Stat(journal.Key(l.Instance.Version)); !here && len(missing) < mendItemsMax {
				missing = append(missing, l)
			}
		}
	}
	var errs []error
	for _, l := range missing {
		if err := m.refetch(ctx, l); err != nil {
			errs = append(errs, fmt.Errorf("version %s: %w", l.Instance.Version, err))
		}
	}
	return errors.Join(errs...)
}

// refetch journals a version again from another holder, its digest checked and its note made anew.
func (m *mending) refetch(ctx context.Context, l catalog.Located) error {
	a := m.archive
	from, err := a.store.OpenElsewhere(ctx, journal.Key(l.Instance.Version), l.Instance.Size, l.Holders)
	if err != nil {
		return storeError(err)
	}
	o := &Object{ctx: ctx, instance: newInstance(l), from: from}
	defer o.Close()
	to := a.store.Journal().Begin()
	defer to.Abort()
	hash := sha256.New()
	in := io.TeeReader(&ranged{o: o, n: o.Size()}, io.MultiWriter(hash, to))
	scanner := dicom.NewScanner(in, l.Instance.TransferSyntaxUID, dicom.Limits{})
	header, err := scanner.Header()
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	facts, err := dicom.ExtractFacts(header)
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	if _, err := io.Copy(io.Discard, readerOnly{in}); err != nil {
		return err
	}
	result := PutResult{Size: o.Size()}
	hash.Sum(result.Digest[:0])
	if result.Digest != l.Instance.Digest {
		return fmt.Errorf("%w: SHA-256 differs from the one recorded at arrival", ErrCorrupt)
	}
	req := PutRequest{TransferSyntaxUID: l.Instance.TransferSyntaxUID, CallingAE: l.Instance.CallingAE, Issuer: l.Instance.PatientKey.Issuer}
	item, err := a.newItem(req, facts, result, l.Instance.PixelOffset)
	if err != nil {
		return err
	}
	item.Instance.ReceivedAt, item.Instance.ReceivedBy = l.Instance.ReceivedAt, l.Instance.ReceivedBy
	note, err := catalog.EncodeItem(item)
	if err != nil {
		return err
	}
	if err := to.Commit(ctx, journal.Key(l.Instance.Version), note); err != nil {
		return storeError(err)
	}
	a.stats.Mended.Add(1)
	a.cfg.Log.Info("journal record fetched again from another holder", "version", l.Instance.Version, "bytes", o.Size())
	item.Holders = []place.NodeID{a.cfg.Self}
	a.pending.add(item, a.cfg.Now())
	return nil
}
