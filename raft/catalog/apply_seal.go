package catalog

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// refuse returns a result with a sentence for operators.
func refuse(code ResultCode, detail string) Result { return Result{Code: code, Detail: detail} }

// versionsHash returns the hash that binds a Seal to the versions of its SealBegin.
func versionsHash(versions []VersionID) [32]byte {
	sorted := slices.Clone(versions)
	slices.SortFunc(sorted, func(a, b VersionID) int { return bytes.Compare(a[:], b[:]) })
	h := sha256.New()
	for i := range sorted {
		h.Write(sorted[i][:])
	}
	return [32]byte(h.Sum(nil))
}

// encodeRow returns the record of an encode, nil when there is none.
func (s *state) encodeRow(id place.EncodeID) (*encodeRow, error) {
	v, err := s.get(keyID(tableEncode, id))
	if v == nil || err != nil {
		return nil, err
	}
	r, err := decodeEncodeRow(v)
	if err != nil {
		return nil, s.fault(err)
	}
	return r, nil
}

// putEncode writes the record and lists it as open unless it is sealed.
func (s *state) putEncode(r *encodeRow) {
	id := r.EncodeRecord.Encode
	s.set(keyID(tableEncode, id), r.encode())
	if r.State == EncodeSealed {
		s.delete(keyID(tableEncodeOpen, id))
		return
	}
	s.mark(keyID(tableEncodeOpen, id))
}

func (s *state) sealBegin(c SealBegin) (Result, error) {
	hash := versionsHash(c.Versions)
	known, err := s.encodeRow(c.Encode)
	if err != nil {
		return Result{}, err
	}
	if known != nil {
		if known.State == EncodeBegun && known.Pack == c.Pack && known.Study == c.Study && known.versionsHash == hash {
			return Result{}, nil
		}
		return refuse(CodeRaced, "the encode has a record already"), nil
	}
	packed, err := s.get(keyID(tablePackID, c.Pack))
	if err != nil {
		return Result{}, err
	}
	if packed != nil {
		return refuse(CodeRaced, "the pack exists already"), nil
	}
	for _, v := range c.Versions {
		if r, err := s.sealable(v, c.Study); err != nil || r.Code != CodeOK {
			return r, err
		}
	}
	s.putEncode(&encodeRow{
		EncodeRecord: EncodeRecord{
			Encode: c.Encode, Pack: c.Pack, Study: c.Study, State: EncodeBegun, Sealer: c.Sealer,
			Geometry: c.Geometry, Placement: c.Placement, Generation: c.Generation,
			CellBytes: c.CellBytes, BlockBytes: c.BlockBytes, Versions: len(c.Versions), BegunAt: s.now,
		},
		versionsHash: hash,
	})
	return Result{}, nil
}

// sealable tells why a version may not be sealed into a pack of the study, with CodeOK when it may.
func (s *state) sealable(v VersionID, study string) (Result, error) {
	key, err := s.get(keyUnsealedID(v))
	if err != nil {
		return Result{}, err
	}
	if key == nil {
		sealed, err := s.sealed.byVersion(v)
		if err != nil {
			return Result{}, s.fault(err)
		}
		if sealed != nil {
			return refuse(CodeRaced, "a version is sealed already"), nil
		}
		return refuse(CodeUnknown, "a version is not in the catalog"), nil
	}
	if !bytes.HasPrefix(key, appendKeyString(keyOf(tableUnsealed), study)) {
		return refuse(CodeInvalid, "a version is in another study or in limbo"), nil
	}
	return Result{}, nil
}

func (s *state) seal(c Seal) (Result, error) {
	row, err := s.encodeRow(c.Encode)
	if err != nil {
		return Result{}, err
	}
	if refusal := sealRefusal(row, &c); refusal.Code != CodeOK || row.State == EncodeSealed {
		return refusal, nil
	}
	versions, refusal, err := s.takeVersions(row, c.Entries)
	if err != nil {
		return Result{}, err
	}
	if refusal.Code != CodeOK {
		row.State, row.Why = EncodeAborted, refusal.Detail
		s.putEncode(row)
		return refusal, nil
	}
	if err := s.putPack(row, &c, versions); err != nil {
		return Result{}, err
	}
	row.State = EncodeSealed
	s.putEncode(row)
	return Result{}, nil
}

// sealRefusal tells why a Seal does not fit its record. A Seal of a sealed encode that names the
// same versions is a repetition.
func sealRefusal(row *encodeRow, c *Seal) Result {
	if row == nil {
		return refuse(CodeUnknown, "the encode has no record")
	}
	versions := make([]VersionID, len(c.Entries))
	for i := range c.Entries {
		versions[i] = c.Entries[i].Version
	}
	switch {
	case (row.State == EncodeAborted || row.State == EncodeSuperseded) && !plant.Is(plant.AbortedSealAccepted):
		return refuse(CodeRaced, "the encode is "+row.State.String())
	case len(versions) != row.Versions || versionsHash(versions) != row.versionsHash:
		return refuse(CodeInvalid, "the entries are not the versions that the encode began with")
	case len(c.Roots) != len(row.Placement):
		return refuse(CodeInvalid, "want one root for each shard of the placement")
	}
	return Result{}
}

// takeVersions returns the versions to seal in the order of the pack, or why one may not be sealed
// any more.
func (s *state) takeVersions(row *encodeRow, entries []SealEntry) ([]sealedVersion, Result, error) {
	for _, e := range entries {
		if r, err := s.sealable(e.Version, row.Study); err != nil || r.Code != CodeOK {
			return nil, r, err
		}
	}
	versions := make([]sealedVersion, 0, len(entries))
	for _, e := range entries {
		key, err := s.get(keyUnsealedID(e.Version))
		if err != nil {
			return nil, Result{}, err
		}
		v, err := s.get(key)
		if err != nil {
			return nil, Result{}, err
		}
		r, err := decodeVersionRow(v)
		if err != nil {
			return nil, Result{}, s.fault(err)
		}
		if err := s.removeUnsealed(r, key); err != nil {
			return nil, Result{}, err
		}
		r.in.Attributes = keptAttributes(r.in.Attributes)
		versions = append(versions, sealedVersion{in: r.in, number: r.number, served: r.served, entry: e})
	}
	slices.SortFunc(versions, func(a, b sealedVersion) int {
		if c := strings.Compare(a.in.SeriesInstanceUID, b.in.SeriesInstanceUID); c != 0 {
			return c
		}
		return compareSealed(&a, &b)
	})
	return versions, Result{}, nil
}

// removeUnsealed takes a version out of the unsealed rows and of what they count.
func (s *state) removeUnsealed(r *versionRow, key []byte) error {
	study, err := s.study(r.in.StudyInstanceUID)
	if err != nil {
		return err
	}
	series, err := s.seriesOf(seriesName{r.in.StudyInstanceUID, r.in.SeriesInstanceUID})
	if err != nil {
		return err
	}
	if study == nil || series == nil {
		return s.fault(fmt.Errorf("%w catalog: a version without its study or series", ErrMalformed))
	}
	v, err := s.get(keyUID(r.in.SOPInstanceUID))
	if err != nil {
		return err
	}
	uids, err := decodeUIDRow(v)
	if err != nil {
		return s.fault(err)
	}
	uids = slices.DeleteFunc(uids, func(e uidEntry) bool { return e.version == r.in.Version })
	s.set(keyUID(r.in.SOPInstanceUID), encodeUIDRow(uids))
	s.delete(keyUnsealedID(r.in.Version))
	s.delete(key)
	study.unsealed--
	study.unsealedBytes -= r.in.Size
	if r.spooled {
		study.spooled--
	}
	series.unsealed--
	return nil
}

// putPack writes the pack, its instance tables and the hash rows that lead to them.
func (s *state) putPack(row *encodeRow, c *Seal, versions []sealedVersion) error {
	last, err := s.count(metaPacks)
	if err != nil {
		return err
	}
	seq := uint32(last) + 1
	s.setCount(metaPacks, uint64(seq))
	pack := &packRow{Pack: Pack{
		ID: row.Pack, Encode: c.Encode, Study: row.Study, Sealer: row.Sealer,
		Geometry: row.Geometry, Placement: row.Placement, Generation: row.Generation,
		CellBytes: row.CellBytes, BlockBytes: row.BlockBytes, StreamBytes: c.StreamBytes, PlainBytes: c.PlainBytes,
		Roots: c.Roots, WrappedKey: c.WrappedKey, ManifestOffset: c.ManifestOffset, ManifestSize: c.ManifestSize,
		Instances: len(versions), SealedAt: s.now,
	}}
	for first := 0; first < len(versions); {
		n := tableLength(versions[first:])
		if err := s.putTable(seq, uint32(first), versions[first:first+n]); err != nil {
			return err
		}
		pack.firsts = append(pack.firsts, uint32(first))
		first += n
	}
	s.set(keyPack(seq), pack.encode())
	s.set(keyID(tablePackID, pack.ID), appendUint(nil, uint64(seq)))
	study, err := s.study(row.Study)
	if err != nil {
		return err
	}
	study.packs = append(study.packs, packRef{seq: seq, id: pack.ID})
	if row.BegunAt.After(study.unsealedFirst) {
		study.unsealedFirst = row.BegunAt // what is left came in later, or waits for its own seal
	}
	return nil
}

// tableLength returns how many of versions, one series after another, the next table takes.
func tableLength(versions []sealedVersion) int {
	n, bytes := 0, 0
	for n < len(versions) && n < tableEntries && versions[n].in.SeriesInstanceUID == versions[0].in.SeriesInstanceUID {
		if bytes += 512 + len(versions[n].in.Attributes); bytes > maxTableBytes/2 && n > 0 {
			break
		}
		n++
	}
	return n
}

func (s *state) putTable(seq, first uint32, versions []sealedVersion) error {
	name := seriesName{versions[0].in.StudyInstanceUID, versions[0].in.SeriesInstanceUID}
	series, err := s.seriesOf(name)
	if err != nil {
		return err
	}
	series.parts = append(series.parts, tablePart{seq: seq, first: first, count: uint32(len(versions))})
	t := &instanceTable{study: name.study, series: name.series, versions: versions}
	s.set(keyInstances(seq, first), s.sealed.tables.encode(t))
	for i := range versions {
		place := hashPlace{seq: seq, ordinal: first + uint32(i)}
		uid := keyHashUID(s.sealed.keys.hash(versions[i].in.SOPInstanceUID))
		if err := s.addPlace(uid, place); err != nil {
			return err
		}
		if err := s.addPlace(keyHashVersion(versions[i].in.Version), place); err != nil {
			return err
		}
	}
	return nil
}

// addPlace appends a place to the hash row at key.
func (s *state) addPlace(key []byte, p hashPlace) error {
	row, err := s.get(key)
	if err != nil {
		return err
	}
	s.set(key, append(slices.Clip(row), encodeHashRow([]hashPlace{p})...))
	return nil
}

func (s *state) sealAbort(c SealAbort) (Result, error) {
	row, err := s.encodeRow(c.Encode)
	if err != nil {
		return Result{}, err
	}
	switch {
	case row == nil:
		row = &encodeRow{EncodeRecord: EncodeRecord{Encode: c.Encode, BegunAt: s.now}}
	case row.State == EncodeSealed:
		return refuse(CodeRaced, "the encode is sealed"), nil
	case row.State != EncodeBegun:
		return Result{}, nil
	}
	row.State, row.Why = EncodeAborted, c.Why
	s.putEncode(row)
	return Result{}, nil
}

func (s *state) forgetEncode(c ForgetEncode) (Result, error) {
	row, err := s.encodeRow(c.Encode)
	if row == nil || err != nil {
		return Result{}, err
	}
	if row.State == EncodeBegun || row.State == EncodeSealed {
		return refuse(CodeRaced, "the encode is "+row.State.String()), nil
	}
	row.Forgotten = union(row.Forgotten, []place.NodeID{c.Node})
	for _, slot := range row.Placement {
		if slices.Contains(row.Forgotten, slot.Node) {
			continue
		}
		node, err := s.node(slot.Node)
		if err != nil {
			return Result{}, err
		}
		if node == nil || node.State != NodeRemoved {
			s.putEncode(row)
			return Result{}, nil
		}
	}
	s.delete(keyID(tableEncode, c.Encode))
	s.delete(keyID(tableEncodeOpen, c.Encode))
	return Result{}, nil
}
