package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/ring"
)

var update = flag.Bool("update", false, "rewrite golden files")

// testMAC stands in for the vault's keyed hash.
func testMAC(label string, parts ...[]byte) [32]byte {
	h := sha256.New()
	h.Write([]byte("test key" + label))
	for _, p := range parts {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

func testConfig(fs vfs.FS, dir string) Config {
	return Config{FS: fs, Dir: dir, MAC: testMAC, CacheBytes: 96 << 20}
}

func openTest(t testing.TB) *Catalog {
	t.Helper()
	c, err := Open(testConfig(vfs.NewMem(), "catalog"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// at returns a moment of the tests' time.
func at(second int) time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(second) * time.Second)
}

// apply applies commands as the next entry and returns their results.
func apply(t testing.TB, c *Catalog, now time.Time, cmds ...Command) []Result {
	t.Helper()
	entry, err := Encode(Batch{Time: now, Commands: cmds})
	if err != nil {
		t.Fatal(err)
	}
	encoded := c.Apply([]ring.Entry{{Index: c.Applied() + 1, Term: 1, Data: entry}})
	results, err := DecodeResults(encoded[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Fault(); err != nil {
		t.Fatal(err)
	}
	return results
}

func stateHash(t testing.TB, c *Catalog) [32]byte {
	t.Helper()
	hash, _, err := c.StateHash(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// set encodes attributes: tag, value, tag, value...
func set(t testing.TB, pairs ...any) []byte {
	t.Helper()
	d := &dicom.Dataset{}
	for i := 0; i < len(pairs); i += 2 {
		d.SetStrings(pairs[i].(dicom.Tag), pairs[i+1].(string))
	}
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func nodeID(n byte) place.NodeID { return place.NodeID{15: n} }

// shot describes an instance of the tests by the few things that vary.
type shot struct {
	patient, name, date, accession, modality string
	study, series, instance                  int
	content                                  byte
}

func (s shot) studyUID() string  { return fmt.Sprintf("1.2.826.0.1.%d", s.study) }
func (s shot) seriesUID() string { return fmt.Sprintf("%s.%d", s.studyUID(), s.series) }
func (s shot) uid() string       { return fmt.Sprintf("%s.%d", s.seriesUID(), s.instance) }

func (s shot) item(t testing.TB) AddItem {
	t.Helper()
	in := Instance{
		SOPInstanceUID: s.uid(), SOPClassUID: "1.2.840.10008.5.1.4.1.1.2", TransferSyntaxUID: "1.2.840.10008.1.2.1",
		StudyInstanceUID: s.studyUID(), SeriesInstanceUID: s.seriesUID(),
		Digest: sha256.Sum256([]byte(fmt.Sprint(s.uid(), s.content))), Size: int64(1000 + s.instance), PixelOffset: 900, Frames: 1,
		PatientKey:        PatientKey{ID: s.patient},
		PatientAttributes: set(t, dicom.PatientName, s.name, dicom.PatientID, s.patient),
		StudyAttributes: set(t, dicom.StudyDate, s.date, dicom.AccessionNumber, s.accession,
			dicom.StudyInstanceUID, s.studyUID(), dicom.StudyDescription, "Thorax"),
		SeriesAttributes: set(t, dicom.Modality, s.modality, dicom.SeriesInstanceUID, s.seriesUID(), dicom.SeriesNumber, fmt.Sprint(s.series)),
		Attributes: set(t, dicom.SOPInstanceUID, s.uid(), dicom.InstanceNumber, fmt.Sprint(s.instance),
			dicom.ContentDate, s.date, dicom.SliceLocation, fmt.Sprintf("%d.5", s.instance)),
		ReceivedAt: at(s.instance), ReceivedBy: nodeID(1), CallingAE: "CT1",
	}
	in.Version = VersionOf(in.SOPInstanceUID, in.TransferSyntaxUID, in.Digest)
	return AddItem{Instance: in, Holders: []place.NodeID{nodeID(1), nodeID(2)}}
}

func ct(study, series, instance int) shot {
	return shot{
		patient: fmt.Sprintf("P%d", study%7), name: fmt.Sprintf("Müller%d^Anna", study%7), date: fmt.Sprintf("202601%02d", 1+study%28),
		accession: fmt.Sprintf("A%d", study), modality: "CT", study: study, series: series, instance: instance,
	}
}

func items(t testing.TB, shots ...shot) Add {
	t.Helper()
	var a Add
	for _, s := range shots {
		a.Items = append(a.Items, s.item(t))
	}
	return a
}

// sealOf returns the commands that seal the versions of items, which are of one study.
func sealOf(n byte, list []AddItem) (SealBegin, Seal) {
	begin := SealBegin{
		Encode: place.EncodeID{0: n, 1: 0xE}, Pack: place.PackID{0: n, 1: 0xF}, Study: list[0].StudyInstanceUID, Sealer: nodeID(1),
		Geometry: place.Geometry{K: 2, M: 1}, Generation: 1, CellBytes: 1 << 16, BlockBytes: 1 << 12,
		Placement: place.Placement{{Node: nodeID(1), Site: "a"}, {Node: nodeID(2), Site: "b"}, {Node: nodeID(3), Site: "c"}},
	}
	seal := Seal{
		Encode: begin.Encode, StreamBytes: 1 << 20, PlainBytes: 1 << 19, Roots: make([][32]byte, 3), WrappedKey: []byte("wrapped"),
		ManifestOffset: 1 << 18, ManifestSize: 99,
	}
	offset := int64(0)
	for _, it := range list {
		begin.Versions = append(begin.Versions, it.Version)
		seal.Entries = append(seal.Entries, SealEntry{Version: it.Version, Offset: offset, Size: it.Size, PixelOffset: it.PixelOffset})
		offset += it.Size
	}
	return begin, seal
}

func mustOK(t testing.TB, results []Result) {
	t.Helper()
	for i, r := range results {
		if err := r.Err(); err != nil {
			t.Fatalf("command %d: %v", i, err)
		}
	}
}

func all[T any](t testing.TB, seq iter.Seq2[T, error]) []T {
	t.Helper()
	list, err := collect(seq)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// find returns the UIDs of the lowest level of what matches, and the work it took.
func find(t testing.TB, r *Reader, q Query) ([]string, Stats) {
	t.Helper()
	q.Stats = &Stats{}
	q.Relational = true
	var uids []string
	for m, err := range r.Search(context.Background(), Principal{}, &q) {
		if err != nil {
			t.Fatal(err)
		}
		switch q.Level {
		case LevelPatient:
			uids = append(uids, m.PatientKey.ID)
		case LevelStudy:
			uids = append(uids, m.StudyInstanceUID)
		case LevelSeries:
			uids = append(uids, m.SeriesInstanceUID)
		default:
			uids = append(uids, m.SOPInstanceUID)
		}
	}
	return uids, *q.Stats
}

func key(tag dicom.Tag, values ...string) Key {
	return Key{Tag: tag, VR: dicom.VROf(tag), Values: values}
}
