package catalog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/s2"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/ring"
)

// everyCommand returns one of each command, in the order of their numbers.
func everyCommand(t testing.TB) []Command {
	add := items(t, ct(1, 1, 1), ct(1, 1, 2))
	add.Items[1].Version = VersionID{7}
	add.Items[1].Spooled = true
	begin, seal := sealOf(1, add.Items)
	seal.Roots[1] = [32]byte{1, 2}
	return []Command{
		add, begin, seal, SealAbort{Encode: begin.Encode, Why: "a node left"}, ForgetEncode{Encode: begin.Encode, Node: nodeID(2)},
		PutNode{Node: Node{ID: nodeID(1), Name: "n1", Site: "a", Disk: place.DiskID{1}, Address: "h:1", Incarnation: 2, Role: RoleWitness, State: NodeCordoned}},
		PutToken{Hash: [32]byte{1}, Site: "a", Created: at(0), Expires: at(60)}, UseToken{Hash: [32]byte{1}, Node: nodeID(2)},
		PutSetting{Key: "survive", Value: []byte("site")}, Tombstone{UIDHash: [32]byte{9}, Level: LevelStudy, Reason: "asked for"},
		PutOverlay{Target: "1.2", ID: [16]byte{1}, Body: []byte("b")}, Hold{Target: "1.2", ID: [16]byte{2}, Body: []byte("b")},
		CommitmentRequest{ID: [16]byte{3}, Body: []byte("b")},
		PutAE{AE: testAE}, RemoveAE{Title: "CT2"}, PutBearer{Bearer: testBearer}, RemoveBearer{Name: "old viewer"},
	}
}

// registryCommands is the number of the first command of the registry in everyCommand, from 0. Each group of
// commands has golden files of its own, which later groups leave as they are.
const registryCommands = 13

func TestBatchRoundTrip(t *testing.T) {
	batch := Batch{Time: at(3), By: Principal{Kind: PrincipalAE, Name: "CT1", Node: nodeID(1)}, Commands: everyCommand(t)}
	entry, err := Encode(batch)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeBatch(entry)
	if err != nil {
		t.Fatal(err)
	}
	add := got.Commands[0].(Add)
	for i := range add.Items {
		if want := []string{"muller1^anna"}; !reflect.DeepEqual(add.Items[i].names, want) {
			t.Errorf("got names %q, want %q", add.Items[i].names, want)
		}
		add.Items[i].names = nil
	}
	if !reflect.DeepEqual(got, batch) {
		t.Errorf("got %+v\nwant %+v", got, batch)
	}
	seen := map[commandNumber]bool{}
	for i, c := range batch.Commands {
		if n := c.number(); n != commandNumber(i+1) || seen[n] {
			t.Errorf("command %T has number %d", c, n)
		}
		seen[c.number()] = true
	}
}

func TestItemRoundTrip(t *testing.T) {
	want := ct(1, 1, 1).item(t)
	b, err := EncodeItem(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeItem(b)
	got.names = nil
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for i := range b {
		torn := append([]byte(nil), b...)
		torn[i] ^= 0x40
		if _, err := DecodeItem(torn); !errors.Is(err, ErrMalformed) {
			t.Fatalf("byte %d flipped: got %v", i, err)
		}
	}
	long := want
	long.PatientKey.ID = strings.Repeat("ä", 4000)
	long.Attributes = set(t, dicom.ImageComments, strings.Repeat("x", 40000), dicom.InstanceNumber, "3")
	if b, err = EncodeItem(long); err != nil {
		t.Fatal(err)
	}
	if got, err = DecodeItem(b); err != nil || len(got.PatientKey.ID) > maxStringBytes || instanceNumber(got.Attributes) != 3 {
		t.Errorf("long item came back with an ID of %d bytes, %v", len(got.PatientKey.ID), err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	good := ct(1, 1, 1).item(t)
	change := func(f func(*AddItem)) Add {
		it := good
		f(&it)
		return Add{Items: []AddItem{it}}
	}
	begin, seal := sealOf(1, []AddItem{good})
	beginWith := func(f func(*SealBegin)) SealBegin { b := begin; f(&b); return b }
	sealWith := func(f func(*Seal)) Seal { s := seal; f(&s); return s }
	for i, c := range []Command{
		change(func(it *AddItem) { it.SOPInstanceUID = "" }),
		change(func(it *AddItem) { it.SeriesInstanceUID = strings.Repeat("1", 65) }),
		change(func(it *AddItem) { it.Size = -1 }),
		change(func(it *AddItem) { it.Holders = make([]place.NodeID, maxHolders+1) }),
		Add{Items: make([]AddItem, maxItems+1)},
		beginWith(func(b *SealBegin) { b.Versions = nil }),
		beginWith(func(b *SealBegin) { b.Versions = make([]VersionID, MaxPackVersions+1) }),
		beginWith(func(b *SealBegin) { b.Versions = make([]VersionID, 2) }),
		beginWith(func(b *SealBegin) { b.Placement = b.Placement[:2] }),
		beginWith(func(b *SealBegin) { b.Geometry.K = 0 }),
		beginWith(func(b *SealBegin) { b.Study = "" }),
		beginWith(func(b *SealBegin) { b.Pack = place.PackID{} }),
		sealWith(func(s *Seal) { s.Entries = nil }),
		sealWith(func(s *Seal) { s.WrappedKey = make([]byte, maxWrappedKeyBytes+1) }),
		sealWith(func(s *Seal) { s.StreamBytes = -1 }),
		sealWith(func(s *Seal) { s.Entries = []SealEntry{{Offset: -1}} }),
		SealAbort{Why: strings.Repeat("x", maxStringBytes+1)},
		PutNode{},
		PutNode{Node: Node{ID: nodeID(1), State: 9}},
		PutSetting{},
		PutSetting{Key: "k", Value: make([]byte, maxSettingBytes+1)},
		Tombstone{Level: LevelPatient},
		Hold{Body: make([]byte, maxBodyFieldBytes+1)},
		PutAE{},
		PutAE{AE: AE{Title: "SEVENTEEN LETTERS"}},
		PutAE{AE: AE{Title: "CT1", From: make([]string, MaxAEList+1)}},
		PutAE{AE: AE{Title: "CT1", Services: AllServices + 1}},
		RemoveAE{},
		PutBearer{Bearer: Bearer{Name: "viewer"}},
		PutBearer{Bearer: Bearer{Roles: RoleRead}},
		RemoveBearer{Name: strings.Repeat("x", maxStringBytes+1)},
	} {
		if _, err := Encode(Batch{Commands: []Command{c}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("command %d (%T): got %v, want ErrInvalid", i, c, err)
		}
	}
	if _, err := Encode(Batch{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty batch: got %v", err)
	}
}

func TestLargestSealFitsTheRing(t *testing.T) {
	list := make([]AddItem, MaxPackVersions)
	for i := range list {
		list[i] = AddItem{Instance: Instance{StudyInstanceUID: "1.2", Size: 500_000 + int64(i), PixelOffset: 3000}}
		list[i].Version = VersionOf("1.2", "1.2", [32]byte{byte(i), byte(i >> 8)})
	}
	begin, seal := sealOf(1, list)
	for _, c := range []Command{begin, seal} {
		entry, err := Encode(Batch{Commands: []Command{c}})
		if err != nil || len(entry) > ring.CommandBytesMax {
			t.Errorf("%T: %d bytes, %v", c, len(entry), err)
		}
	}
	if maxEntryBytes > ring.CommandBytesMax {
		t.Error("an entry may be larger than the ring takes")
	}
}

// golden compares got with a file of testdata that holds it in hexadecimal.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dump, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(dump) != hex.Dump(got) {
		t.Errorf("%s: format differs; a new layout needs a new version", name)
	}
	return got
}

func TestGoldenBatch(t *testing.T) {
	entry, err := Encode(Batch{Time: at(3), By: Principal{Kind: PrincipalAE, Name: "CT1", Node: nodeID(1)}, Commands: everyCommand(t)[:registryCommands]})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "batch-1.golden", entry)
	golden(t, "results-1.golden", appendResults(nil, []Result{
		{Items: []ItemOutcome{OutcomeServed, OutcomeFurther}}, {Code: CodeRaced, Detail: "a version is sealed already"},
	}))
}

// TestGoldenRows holds every row of a catalog in which everything has happened, tables decompressed.
func TestGoldenRows(t *testing.T) {
	c := openTest(t)
	add := items(t, ct(1, 1, 1), ct(1, 1, 2), ct(1, 2, 1), ct(2, 1, 1))
	further := ct(1, 1, 1)
	further.content = 1
	begin, seal := sealOf(1, add.Items[:2])
	apply(t, c, at(1), Tombstone{UIDHash: c.UIDHash(ct(3, 1, 1).uid()), Level: LevelImage}, add, items(t, further, ct(3, 1, 1)), begin, seal)
	apply(t, c, at(2), everyCommand(t)[3:registryCommands]...)
	iter, err := c.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer iter.Close()
	var b bytes.Buffer
	for valid := iter.First(); valid; valid = iter.Next() {
		value := append([]byte(nil), iter.Value()...)
		if table(iter.Key()[1]) == tableInstances {
			if value, err = c.tables.body(value); err != nil {
				t.Fatal(err)
			}
		}
		b.WriteString(hex.Dump(iter.Key()) + "=\n" + hex.Dump(value) + "\n")
	}
	path := filepath.Join("testdata", "rows-1.golden")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("rows differ from rows-1.golden; a new layout needs a new version")
	}
}

func FuzzDecodeBatch(f *testing.F) {
	entry, err := Encode(Batch{Time: at(3), Commands: everyCommand(f)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(entry)
	f.Add([]byte("OC\x01"))
	f.Fuzz(func(t *testing.T, entry []byte) {
		batch, err := decodeBatch(entry)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownCommand) {
				t.Fatal(err)
			}
			return
		}
		if _, err := Encode(batch); err != nil && len(batch.Commands) > 0 {
			t.Fatalf("a decoded batch does not encode: %v", err)
		}
	})
}

// FuzzApply applies bodies as if their checksums were right, twice, on two replicas. They are begun anew now and then, and with
// the first input, so that what is found with one input is found again with it, and no run slows down under what it stored.
func FuzzApply(f *testing.F) {
	for _, c := range everyCommand(f) {
		entry, err := Encode(Batch{Time: at(3), Commands: []Command{c}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bodyOf(f, entry))
	}
	const inputs = 256 // on one pair of replicas
	var pair []*Catalog
	end := func() {
		for _, c := range pair {
			if err := c.Close(); err != nil {
				f.Error(err)
			}
		}
		pair = nil
	}
	f.Cleanup(end)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(pair) == 0 || pair[0].Applied() >= 2*inputs {
			end()
			for range 2 {
				c, err := Open(testConfig(vfs.NewMem(), "catalog"))
				if err != nil {
					t.Fatal(err)
				}
				pair = append(pair, c)
			}
		}
		a, b := pair[0], pair[1]
		for _, c := range pair {
			c.fault = nil
			c.Apply([]ring.Entry{{Index: c.Applied() + 1, Data: entryOf(body)}, {Index: c.Applied() + 2, Data: entryOf(body)}})
			if err := c.Fault(); err != nil && !errors.Is(err, ErrUnknownCommand) {
				t.Fatal(err)
			}
		}
		if n := a.Applied(); (n == 2 || n%64 == 0) && stateHash(t, a) != stateHash(t, b) {
			t.Fatal("replicas differ")
		}
	})
}

func FuzzDecodeRows(f *testing.F) {
	c := openTest(f)
	add := items(f, ct(1, 1, 1), ct(1, 1, 2), ct(2, 1, 1))
	begin, seal := sealOf(1, add.Items[:2])
	apply(f, c, at(1), add, begin, seal)
	iter, err := c.db.NewIter(nil)
	if err != nil {
		f.Fatal(err)
	}
	for valid := iter.First(); valid; valid = iter.Next() {
		f.Add(append([]byte(nil), iter.Value()...))
	}
	iter.Close()
	f.Add(appendAE(nil, testAE))
	f.Add(appendBearer(nil, testBearer))
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeStudyRow("1", b)
		decodeDue("1", b)
		decodeSeriesRow("1", "2", b)
		decodePatientRow(PatientKey{}, b)
		decodeVersionRow(b)
		decodeUIDRow(b)
		decodeHashRow(b)
		decodePackRow(b)
		decodeEncodeRow(b)
		decodeTokenRow([32]byte{}, b)
		decodeNodeRow(b)
		decodeAERow(b)
		decodeBearerRow(b)
		decodeQCRow(b, b)
		DecodeResults(b)
		c.tables.decode(b)
		cutKeyString(b)
		trimAttributes(b, 100)
		eachItem(b, func(set []byte) bool { return true })
		if a, _, ok := nextAttribute(b); ok {
			elementOf(a)
			valuesOf(a)
		}
	})
}

// bodyOf returns the body of a log entry.
func bodyOf(t testing.TB, entry []byte) []byte {
	t.Helper()
	body, err := s2.Decode(nil, entry[3:len(entry)-4])
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// entryOf makes a log entry of a body.
func entryOf(body []byte) []byte {
	entry := append([]byte{batchMagic0, batchMagic1, batchVersion}, s2.Encode(nil, body)...)
	return appendChecksum(entry)
}
