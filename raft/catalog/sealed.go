package catalog

import (
	"crypto/sha256"
	"fmt"
	"sort"
)

// uidKeys hashes UIDs under a key of the ring, so that a hash tells an outsider nothing and nobody
// can make UIDs whose hashes collide.
type uidKeys struct{ key [32]byte }

// hash returns the keyed SHA-256 of a UID.
func (k uidKeys) hash(uid string) [32]byte {
	b := make([]byte, 0, 2*len(k.key)+maxUIDBytes)
	b = append(b, k.key[:]...)
	b = append(b, uid...)
	b = append(b, k.key[:]...)
	return sha256.Sum256(b)
}

// sealedIndex reads sealed versions through the hash indexes.
type sealedIndex struct {
	get    func(key []byte) ([]byte, error)
	keys   uidKeys
	tables *tableCodec
	packs  map[uint32]*packRow
	loaded map[hashPlace]*instanceTable
}

func newSealedIndex(get func([]byte) ([]byte, error), keys uidKeys, tables *tableCodec) *sealedIndex {
	return &sealedIndex{get: get, keys: keys, tables: tables, packs: map[uint32]*packRow{}, loaded: map[hashPlace]*instanceTable{}}
}

// byUID returns the sealed versions of a SOP Instance UID, in the order of sealing.
func (x *sealedIndex) byUID(uid string) ([]sealedVersion, error) {
	return x.at(keyHashUID(x.keys.hash(uid)), func(v *sealedVersion) bool { return v.in.SOPInstanceUID == uid })
}

// byVersion returns the sealed version v, nil when it is not sealed.
func (x *sealedIndex) byVersion(v VersionID) (*sealedVersion, error) {
	found, err := x.at(keyHashVersion(v), func(s *sealedVersion) bool { return s.in.Version == v })
	if len(found) == 0 || err != nil {
		return nil, err
	}
	return &found[0], nil
}

// at returns the versions that the hash row at key leads to and that confirm holds for.
func (x *sealedIndex) at(key []byte, confirm func(*sealedVersion) bool) ([]sealedVersion, error) {
	row, err := x.get(key)
	if row == nil || err != nil {
		return nil, err
	}
	places, err := decodeHashRow(row)
	if err != nil {
		return nil, err
	}
	var found []sealedVersion
	for _, p := range places {
		v, err := x.version(p)
		if err != nil {
			return nil, err
		}
		if confirm(&v) {
			found = append(found, v)
		}
	}
	return found, nil
}

// version returns the version at a place.
func (x *sealedIndex) version(p hashPlace) (sealedVersion, error) {
	pack, err := x.pack(p.seq)
	if err != nil {
		return sealedVersion{}, err
	}
	i := sort.Search(len(pack.firsts), func(i int) bool { return pack.firsts[i] > p.ordinal }) - 1
	if i < 0 {
		return sealedVersion{}, fmt.Errorf("%w hash row: no table for its ordinal", ErrMalformed)
	}
	t, err := x.table(p.seq, pack.firsts[i])
	if err != nil {
		return sealedVersion{}, err
	}
	at := int(p.ordinal - pack.firsts[i])
	if at >= len(t.versions) {
		return sealedVersion{}, fmt.Errorf("%w hash row: ordinal beyond its table", ErrMalformed)
	}
	v := t.versions[at]
	v.pack = pack.ID
	return v, nil
}

// pack returns the row of the pack numbered seq.
func (x *sealedIndex) pack(seq uint32) (*packRow, error) {
	if r, known := x.packs[seq]; known {
		return r, nil
	}
	row, err := x.get(keyPack(seq))
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, fmt.Errorf("%w catalog: no row for a pack", ErrMalformed)
	}
	r, err := decodePackRow(row)
	if err != nil {
		return nil, err
	}
	x.packs[seq] = r
	return r, nil
}

// table returns the instance table that starts at ordinal first of pack seq. The last few are kept.
func (x *sealedIndex) table(seq, first uint32) (*instanceTable, error) {
	at := hashPlace{seq, first}
	if t, known := x.loaded[at]; known {
		return t, nil
	}
	row, err := x.get(keyInstances(seq, first))
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, fmt.Errorf("%w catalog: no instance table where a pack has one", ErrMalformed)
	}
	t, err := x.tables.decode(row)
	if err != nil {
		return nil, err
	}
	if len(x.loaded) >= tablesKept {
		clear(x.loaded)
	}
	x.loaded[at] = t
	return t, nil
}
