package catalog

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"time"

	"osteon/erasure/place"
)

// read opens a view for the time of f.
func (r *Reader) read(ctx context.Context, f func(*view) error) error {
	v, err := r.view(ctx)
	if err != nil {
		return err
	}
	defer v.close()
	return f(v)
}

// Has reports whether a version is in the catalog, limbo included, and whether a pack has it.
func (r *Reader) Has(ctx context.Context, version VersionID) (known, sealed bool, err error) {
	err = r.read(ctx, func(v *view) error {
		key, err := v.get(keyUnsealedID(version))
		if err != nil || key != nil {
			known = key != nil
			return err
		}
		found, err := v.sealed.byVersion(version)
		known, sealed = found != nil, found != nil
		return err
	})
	return known, sealed, err
}

// Locate returns all versions of a SOP Instance UID, the served one first, then in the order of
// their VersionID. ErrNotFound when there is none.
func (r *Reader) Locate(ctx context.Context, sopInstanceUID string) (found []Located, err error) {
	err = r.read(ctx, func(v *view) error {
		found, err = v.locate(sopInstanceUID)
		return err
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("locate instance: %w", ErrNotFound)
	}
	return found, err
}

func (v *view) locate(uid string) ([]Located, error) {
	row, err := v.get(keyUID(uid))
	if err != nil {
		return nil, err
	}
	entries, err := decodeUIDRow(row)
	if err != nil {
		return nil, err
	}
	var found []Located
	for _, e := range entries {
		l, err := v.unsealed(e.key)
		if err != nil {
			return nil, err
		}
		found = append(found, l)
	}
	sealed, err := v.sealed.byUID(uid)
	if err != nil {
		return nil, err
	}
	for i := range sealed {
		found = append(found, sealed[i].located())
	}
	slices.SortStableFunc(found, func(a, b Located) int {
		switch {
		case a.Served != b.Served && a.Served:
			return -1
		case a.Served != b.Served:
			return 1
		}
		return compareVersions(0, &a.Instance, 0, &b.Instance)
	})
	return found, nil
}

// unsealed reads a row of tableUnsealed or tableLimbo.
func (v *view) unsealed(key []byte) (Located, error) {
	value, err := v.get(key)
	if err != nil {
		return Located{}, err
	}
	row, err := decodeVersionRow(value)
	if err != nil {
		return Located{}, err
	}
	return v.marked(row.located()), nil
}

// marked sets Provisional.
func (v *view) marked(l Located) Located {
	_, l.Provisional = v.over.versions[l.Instance.Version]
	return l
}

// Versions yields the versions of a study, or of one of its series, served or not, in the order of
// series UID, instance number, SOP Instance UID and version. Limbo is not among them. A study that
// is not there yields nothing.
func (r *Reader) Versions(ctx context.Context, study, series string) iter.Seq2[Located, error] {
	return func(yield func(Located, error) bool) {
		err := r.read(ctx, func(v *view) error {
			return v.eachSeries(study, series, func(row *seriesRow) (bool, error) {
				more := true
				err := v.eachVersion(row, func(l Located, _ int32) bool {
					more = yield(l, nil)
					return more
				})
				return more, err
			})
		})
		if err != nil {
			yield(Located{}, err)
		}
	}
}

// eachSeries calls f with the rows of a study's series, or of the one named, in the order of UIDs.
func (v *view) eachSeries(study, series string, f func(*seriesRow) (more bool, err error)) error {
	if series != "" {
		row, err := v.seriesRow(study, series)
		if row == nil || err != nil {
			return err
		}
		_, err = f(row)
		return err
	}
	c, err := v.scanPrefix(keySeriesOf(study))
	if err != nil {
		return err
	}
	defer c.close()
	for c.next() {
		uid, ok := keyStringAt(c.key, 1)
		if !ok {
			return fmt.Errorf("%w key of a series", ErrMalformed)
		}
		row, err := decodeSeriesRow(study, uid, c.value)
		if err != nil {
			return err
		}
		if more, err := f(row); !more || err != nil {
			return err
		}
	}
	return c.err
}

func (v *view) seriesRow(study, series string) (*seriesRow, error) {
	value, err := v.get(keySeries(study, series))
	if value == nil || err != nil {
		return nil, err
	}
	if err := v.examine(); err != nil {
		return nil, err
	}
	return decodeSeriesRow(study, series, value)
}

func (v *view) studyRow(study string) (*studyRow, error) {
	value, err := v.get(keyStudy(study))
	if value == nil || err != nil {
		return nil, err
	}
	if err := v.examine(); err != nil {
		return nil, err
	}
	return decodeStudyRow(study, value)
}

// Study returns one study. ErrNotFound when no version of it is in the catalog.
func (r *Reader) Study(ctx context.Context, studyInstanceUID string) (study *Study, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.studyRow(studyInstanceUID)
		if err != nil {
			return err
		}
		if row == nil {
			return fmt.Errorf("study: %w", ErrNotFound)
		}
		study = row.study()
		return nil
	})
	return study, err
}

func (r *studyRow) study() *Study {
	s := &Study{
		StudyInstanceUID: r.uid, PatientKey: r.patient, PatientAttributes: r.patientSet, StudyAttributes: r.studySet,
		Modalities: r.modalities.names(), SOPClasses: r.classes.names(),
		Series: r.series, Instances: r.instances, Versions: r.versions, Bytes: r.bytes,
		Unsealed: r.unsealed, UnsealedBytes: r.unsealedBytes, Spooled: r.spooled, First: r.first, Last: r.last,
	}
	for _, p := range r.packs {
		s.Packs = append(s.Packs, p.id)
	}
	return s
}

// Pack returns a sealed pack. ErrNotFound when no Seal made it.
func (r *Reader) Pack(ctx context.Context, id place.PackID) (pack *Pack, err error) {
	err = r.read(ctx, func(v *view) error {
		value, err := v.get(keyID(tablePackID, id))
		if err != nil {
			return err
		}
		if value == nil {
			return fmt.Errorf("pack %s: %w", id, ErrNotFound)
		}
		seq, n := binary.Uvarint(value)
		if n <= 0 {
			return fmt.Errorf("%w row of pack %s", ErrMalformed, id)
		}
		row, err := v.sealed.pack(uint32(seq))
		if err == nil {
			pack = &row.Pack
		}
		return err
	})
	return pack, err
}

// Packs returns the packs of a study in the order of sealing, none for an unknown study.
func (r *Reader) Packs(ctx context.Context, studyInstanceUID string) (packs []Pack, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.studyRow(studyInstanceUID)
		if row == nil || err != nil {
			return err
		}
		for _, p := range row.packs {
			pack, err := v.sealed.pack(p.seq)
			if err != nil {
				return err
			}
			packs = append(packs, pack.Pack)
		}
		return nil
	})
	return packs, err
}

// AllPacks yields every pack in the order of sealing.
func (r *Reader) AllPacks(ctx context.Context) iter.Seq2[*Pack, error] {
	return eachRow(ctx, r, tablePack, func(_, value []byte) (*Pack, error) {
		row, err := decodePackRow(value)
		if err != nil {
			return nil, err
		}
		return &row.Pack, nil
	})
}

// eachRow yields the decoded rows of a table in the order of their keys.
func eachRow[T any](ctx context.Context, r *Reader, t table, decode func(key, value []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		err := r.read(ctx, func(v *view) error {
			c, err := v.scanPrefix(keyOf(t))
			if err != nil {
				return err
			}
			defer c.close()
			for c.next() {
				row, err := decode(c.key, c.value)
				if err != nil {
					return err
				}
				if !yield(row, nil) {
					return nil
				}
			}
			return c.err
		})
		if err != nil {
			var none T
			yield(none, err)
		}
	}
}

// collect returns what seq yields until its first error.
func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for row, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, nil
}

// Unsealed returns every study that has versions to seal, in the order of UIDs. It reads no others.
func (r *Reader) Unsealed(ctx context.Context) ([]StudyDue, error) {
	return collect(eachRow(ctx, r, tableDue, func(key, value []byte) (StudyDue, error) {
		study, ok := keyStringAt(key, 0)
		if !ok {
			return StudyDue{}, fmt.Errorf("%w key of a due study", ErrMalformed)
		}
		return decodeDue(study, value)
	}))
}

// Encodes returns the encodes that are begun, aborted or superseded. The sealed ones are the packs.
func (r *Reader) Encodes(ctx context.Context) ([]EncodeRecord, error) {
	ids, err := collect(eachRow(ctx, r, tableEncodeOpen, func(key, _ []byte) (place.EncodeID, error) {
		var id place.EncodeID
		if copy(id[:], key[2:]) != len(id) {
			return id, fmt.Errorf("%w key of an encode", ErrMalformed)
		}
		return id, nil
	}))
	if err != nil {
		return nil, err
	}
	var records []EncodeRecord
	err = r.read(ctx, func(v *view) error {
		for _, id := range ids {
			row, err := v.encodeRow(id)
			if err != nil {
				return err
			}
			if row != nil && row.State != EncodeSealed { // else it changed since
				records = append(records, row.EncodeRecord)
			}
		}
		return nil
	})
	return records, err
}

func (v *view) encodeRow(id place.EncodeID) (*encodeRow, error) {
	value, err := v.get(keyID(tableEncode, id))
	if value == nil || err != nil {
		return nil, err
	}
	return decodeEncodeRow(value)
}

// Encode returns the record of one encode. ErrNotFound when there is none: it was never begun, or
// every node forgot it.
func (r *Reader) Encode(ctx context.Context, id place.EncodeID) (record EncodeRecord, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.encodeRow(id)
		if err != nil {
			return err
		}
		if row == nil {
			return fmt.Errorf("encode %s: %w", id, ErrNotFound)
		}
		record = row.EncodeRecord
		return nil
	})
	return record, err
}

// Nodes returns the nodes of the ring, removed ones included, in the order of their IDs.
func (r *Reader) Nodes(ctx context.Context) ([]Node, error) {
	return collect(eachRow(ctx, r, tableNode, func(_, value []byte) (Node, error) { return decodeNodeRow(value) }))
}

// Setting returns a value of the ring. ErrNotFound when it is not set.
func (r *Reader) Setting(key string) (value []byte, err error) {
	err = r.read(context.Background(), func(v *view) error {
		row, err := v.get(keyText(tableSetting, key))
		if err != nil {
			return err
		}
		if len(row) == 0 {
			return fmt.Errorf("setting %s: %w", key, ErrNotFound)
		}
		value = row[1:]
		return nil
	})
	return value, err
}

// Token returns a join token by its hash. ErrNotFound when it was never made.
func (r *Reader) Token(ctx context.Context, hash [32]byte) (token Token, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.get(keyHash(tableToken, hash))
		if err != nil {
			return err
		}
		if row == nil {
			return fmt.Errorf("token: %w", ErrNotFound)
		}
		token, err = decodeTokenRow(hash, row)
		return err
	})
	return token, err
}

// QC yields what people have to decide, by kind.
func (r *Reader) QC(ctx context.Context) iter.Seq2[QCItem, error] {
	return eachRow(ctx, r, tableQC, decodeQCRow)
}

// Limbo yields the versions that came in under erased UIDs, in the order of SOP Instance UIDs.
func (r *Reader) Limbo(ctx context.Context) iter.Seq2[Located, error] {
	return eachRow(ctx, r, tableLimbo, func(_, value []byte) (Located, error) {
		row, err := decodeVersionRow(value)
		if err != nil {
			return Located{}, err
		}
		return row.located(), nil
	})
}

// Record is an opaque body that PutOverlay, Hold or CommitmentRequest recorded.
type Record struct {
	Target string // empty for a commitment request
	ID     [16]byte
	Body   []byte
	At     time.Time // ring time
}

// Overlays yields the corrections in the order of their targets.
func (r *Reader) Overlays(ctx context.Context) iter.Seq2[Record, error] {
	return eachRow(ctx, r, tableOverlay, decodeTargetRecord)
}

// Holds yields the holds in the order of their targets.
func (r *Reader) Holds(ctx context.Context) iter.Seq2[Record, error] {
	return eachRow(ctx, r, tableHold, decodeTargetRecord)
}

// CommitmentRequests yields the requests that have not been answered, in the order of their IDs.
func (r *Reader) CommitmentRequests(ctx context.Context) iter.Seq2[Record, error] {
	return eachRow(ctx, r, tableCommitment, func(key, value []byte) (Record, error) {
		return decodeRecord(Record{}, key[2:], value)
	})
}

func decodeTargetRecord(key, value []byte) (Record, error) {
	target, id, ok := cutKeyString(key[2:])
	if !ok {
		return Record{}, fmt.Errorf("%w key of a record", ErrMalformed)
	}
	return decodeRecord(Record{Target: target}, id, value)
}

func decodeRecord(rec Record, id, value []byte) (Record, error) {
	if copy(rec.ID[:], id) != len(rec.ID) {
		return rec, fmt.Errorf("%w key of a record", ErrMalformed)
	}
	d := &decoder{b: value}
	d.version(rowVersion)
	rec.At = d.time()
	rec.Body, d.b = d.b, nil
	return rec, rowError("record", d)
}
