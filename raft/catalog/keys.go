package catalog

import (
	"encoding/binary"
	"math"
)

// table is the second byte of every key; see the package comment. Numbers are never given out
// again.
type table byte

const (
	tableMeta       table = 0x01
	tableStudy      table = 0x10
	tableSeries     table = 0x11
	tableUnsealed   table = 0x12
	tableUnsealedID table = 0x13 // version -> key of its unsealed row
	tableUID        table = 0x14 // SOP Instance UID -> its unsealed and limbo versions
	tablePatient    table = 0x15
	tableLimbo      table = 0x16
	tableDue        table = 0x17

	tableByPatientID   table = 0x20
	tableByName        table = 0x21
	tableByDate        table = 0x22
	tableByAccession   table = 0x23
	tableByModality    table = 0x24
	tableBySeries      table = 0x25
	tablePatientByName table = 0x26

	tableHashUID     table = 0x30 // hash of a SOP Instance UID -> places in packs
	tableHashVersion table = 0x31 // start of a version -> places in packs
	tableInstances   table = 0x32 // the compressed instance tables
	tablePack        table = 0x33
	tablePackID      table = 0x34
	tableEncode      table = 0x35
	tableEncodeOpen  table = 0x36

	tableQC table = 0x40

	tableNode    table = 0x50
	tableToken   table = 0x51
	tableSetting table = 0x52
	tableAE      table = 0x53
	tableBearer  table = 0x54

	tableTombstone  table = 0x60
	tableOverlay    table = 0x61
	tableHold       table = 0x62
	tableCommitment table = 0x63
)

const (
	ringGroup = 0x00 // the one Raft group there is so far

	escape     = 0x00
	escapeNull = 0xFF // escape escapeNull: a zero byte of the string
	escapeEnd  = 0x01 // escape escapeEnd: the end of the string
)

func keyOf(t table) []byte { return append(make([]byte, 0, 96), ringGroup, byte(t)) }

// appendKeyString writes s so that encodings compare as the strings do and none is the start of
// another.
func appendKeyString(b []byte, s string) []byte {
	return append(appendKeyPrefix(b, s), escape, escapeEnd)
}

// appendKeyPrefix writes what the keys of all strings that start with s begin with.
func appendKeyPrefix(b []byte, s string) []byte {
	for i := range len(s) {
		if b = append(b, s[i]); s[i] == escape {
			b = append(b, escapeNull)
		}
	}
	return b
}

// cutKeyString reverses appendKeyString and returns what follows.
func cutKeyString(b []byte) (s string, rest []byte, ok bool) {
	var out []byte
	for i := 0; i < len(b); i++ {
		if b[i] != escape {
			out = append(out, b[i])
			continue
		}
		if i++; i == len(b) {
			break
		}
		switch b[i] {
		case escapeEnd:
			return string(out), b[i+1:], true
		case escapeNull:
			out = append(out, escape)
		default:
			return "", nil, false
		}
	}
	return "", nil, false
}

// lastKeyString returns the n-th string of a key of table t, counted from 0.
func keyStringAt(key []byte, n int) (string, bool) {
	if len(key) < 2 {
		return "", false
	}
	rest := key[2:]
	for {
		s, tail, ok := cutKeyString(rest)
		if !ok {
			return "", false
		}
		if n == 0 {
			return s, true
		}
		rest = tail
		n--
	}
}

// after returns the smallest key behind all that start with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// appendKeyInt writes v so that keys compare as the numbers do.
func appendKeyInt(b []byte, v int32) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(int64(v)-math.MinInt32))
}

func keyStudy(study string) []byte { return appendKeyString(keyOf(tableStudy), study) }

func keySeries(study, series string) []byte {
	return appendKeyString(appendKeyString(keyOf(tableSeries), study), series)
}

func keySeriesOf(study string) []byte { return appendKeyString(keyOf(tableSeries), study) }

// keyUnsealed orders the versions of a series by instance number, UID and version.
func keyUnsealed(study, series string, number int32, uid string, v VersionID) []byte {
	b := appendKeyString(appendKeyString(keyOf(tableUnsealed), study), series)
	return append(appendKeyString(appendKeyInt(b, number), uid), v[:]...)
}

func keyUnsealedOf(study, series string) []byte {
	return appendKeyString(appendKeyString(keyOf(tableUnsealed), study), series)
}

func keyLimbo(uid string, v VersionID) []byte {
	return append(appendKeyString(keyOf(tableLimbo), uid), v[:]...)
}

func keyUnsealedID(v VersionID) []byte { return append(keyOf(tableUnsealedID), v[:]...) }
func keyUID(uid string) []byte         { return appendKeyString(keyOf(tableUID), uid) }
func keyDue(study string) []byte       { return appendKeyString(keyOf(tableDue), study) }

func keyPatient(p PatientKey) []byte {
	return appendKeyString(appendKeyString(keyOf(tablePatient), p.ID), p.Issuer)
}

// keyIndex is the key of a study in the index t under value.
func keyIndex(t table, value, study string) []byte {
	return appendKeyString(appendKeyString(keyOf(t), clip(value, maxIndexBytes)), study)
}

func keyByPatientID(p PatientKey, study string) []byte {
	b := appendKeyString(keyOf(tableByPatientID), clip(p.ID, maxIndexBytes))
	return appendKeyString(b, study)
}

func keyByModality(modality, date, study string) []byte {
	b := appendKeyString(keyOf(tableByModality), clip(modality, maxIndexBytes))
	return appendKeyString(appendKeyString(b, date), study)
}

func keyPatientByName(name string, p PatientKey) []byte {
	b := appendKeyString(keyOf(tablePatientByName), clip(name, maxIndexBytes))
	return appendKeyString(appendKeyString(b, p.ID), p.Issuer)
}

func keyHashUID(hash [32]byte) []byte     { return append(keyOf(tableHashUID), hash[:8]...) }
func keyHashVersion(v VersionID) []byte   { return append(keyOf(tableHashVersion), v[:8]...) }
func keyPack(seq uint32) []byte           { return binary.BigEndian.AppendUint32(keyOf(tablePack), seq) }
func keyID(t table, id [16]byte) []byte   { return append(keyOf(t), id[:]...) }
func keyHash(t table, h [32]byte) []byte  { return append(keyOf(t), h[:]...) }
func keyText(t table, text string) []byte { return appendKeyString(keyOf(t), text) }
func keyMeta(name string) []byte          { return append(keyOf(tableMeta), name...) }
func keyQC(k QCKind, v VersionID) []byte  { return append(append(keyOf(tableQC), byte(k)), v[:]...) }

func keyInstances(seq, first uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(keyOf(tableInstances), seq), first)
}

func keyTarget(t table, target string, id [16]byte) []byte {
	return append(appendKeyString(keyOf(t), target), id[:]...)
}
