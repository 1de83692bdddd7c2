package dicomsvc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/ring"
	"osteon/raft/vault"
)

// soloRing applies what is proposed at once, as a ring of one voter would.
type soloRing struct {
	mu    sync.Mutex
	cat   *catalog.Catalog
	index uint64
	down  bool
	cut   bool // goes down once an encode has begun
	tried int  // proposals while it was down
}

// refusals counts what was proposed while the ring was down.
func (s *soloRing) refusals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tried
}

func (s *soloRing) Propose(_ context.Context, data []byte) (uint64, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		s.tried++
		return 0, nil, errors.New("no quorum")
	}
	s.index = s.cat.Applied() + 1
	results := s.cat.Apply([]ring.Entry{{Index: s.index, Term: 1, Data: data}})
	if s.cut {
		begun, err := s.cat.Encodes(context.Background())
		s.down = err != nil || len(begun) > 0
	}
	return s.index, results[0], nil
}

// solo is one node's archive on a real directory.
type solo struct {
	t       testing.TB
	dir     string
	node    place.Node
	ring    place.RingID
	vault   *vault.Vault
	cat     *catalog.Catalog
	quorum  *soloRing
	archive *dicomsvc.Archive
	seal    dicomsvc.SealPolicy
}

func newSolo(t testing.TB) *solo {
	t.Helper()
	s := &solo{t: t, dir: t.TempDir(), seal: dicomsvc.SealPolicy{Quiet: time.Hour, Old: time.Hour}}
	s.ring, _ = place.NewRingID(rand.Reader)
	id, _ := place.NewNodeID(rand.Reader)
	disk, _ := place.NewDiskID(rand.Reader)
	s.node = place.Node{ID: id, Name: "a1", Site: "a", Disk: disk, Live: true, Data: true}
	root, err := vault.CreateRootKeyFile(vfs.Default, s.dir+"/root.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vcfg := vault.Config{FS: vfs.Default, Dir: s.dir + "/vault", Ring: s.ring, Root: root, Rand: rand.Reader}
	if err := vfs.Default.MkdirAll(vcfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if s.vault, err = vault.Create(vcfg); err != nil {
		t.Fatal(err)
	}
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *solo) open() {
	s.t.Helper()
	var err error
	s.cat, err = catalog.Open(catalog.Config{FS: s.vault.FS(), Dir: s.dir + "/catalog", MAC: s.vault.MAC, Now: time.Now})
	if err != nil {
		s.t.Fatal(err)
	}
	s.quorum = &soloRing{cat: s.cat}
	s.cat.SetProposer(s.quorum)
	topology := func() []place.Node { return []place.Node{s.node} }
	s.archive, err = dicomsvc.Open(dicomsvc.Config{
		Ring: s.ring, Self: s.node.ID, Catalog: s.cat, Vault: s.vault, Topology: topology,
		Survive: func() place.Survive { return "" },
		Store: func(cb dicomsvc.Callbacks) (*erasure.Store, error) {
			return erasure.Open(erasure.Config{
				FS: vfs.Default, Dir: s.dir, Ring: s.ring, Self: s.node.ID, Site: "a", Disk: s.node.Disk, Vault: s.vault,
				Topology: topology, Held: func(k journal.Key, note []byte, from place.NodeID) { cb.Held(k, note, from) },
				BadShard: cb.BadShard, Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler),
			})
		},
		Seal: s.seal, Now: time.Now, Rand: rand.Reader,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.archive.Run(context.Background())
}

func (s *solo) close() {
	if s.archive == nil {
		return
	}
	if err := errors.Join(s.archive.Close(), s.cat.Close()); err != nil {
		s.t.Error(err)
	}
	s.archive = nil
}

func (s *solo) reopen() {
	s.close()
	s.open()
}

var anyone = dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}

// object builds a small data set; frames of noise make it size bytes or more.
func object(t testing.TB, study, series, sop string, size int, patient string) []byte {
	t.Helper()
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2")
	d.SetStrings(dicom.SOPInstanceUID, sop)
	d.SetStrings(dicom.StudyDate, "20250102")
	d.SetStrings(dicom.Modality, "CT")
	d.SetStrings(dicom.PatientName, "Doe^Jane")
	d.SetStrings(dicom.PatientID, patient)
	d.SetStrings(dicom.StudyInstanceUID, study)
	d.SetStrings(dicom.SeriesInstanceUID, series)
	noise := make([]byte, size&^1)
	rand.Read(noise)
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: noise})
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *solo) put(b []byte) dicomsvc.PutResult {
	s.t.Helper()
	r, err := s.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: anyone, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(b), CallingAE: "TEST",
	})
	if err != nil {
		s.t.Fatalf("put: %v", err)
	}
	return r
}

// get returns the served bytes of the instances that sel names.
func (s *solo) get(sel dicomsvc.Selection) [][]byte {
	s.t.Helper()
	ctx := context.Background()
	var out [][]byte
	for in, err := range s.archive.Instances(ctx, anyone, sel) {
		if err != nil {
			s.t.Fatal(err)
		}
		o, err := s.archive.Open(ctx, anyone, in)
		if err != nil {
			s.t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := o.WriteTo(&b); err != nil {
			s.t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			s.t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

func (s *solo) count(level dicomsvc.Level, keys ...dicomsvc.Key) int {
	s.t.Helper()
	n := 0
	for _, err := range s.archive.Search(context.Background(), anyone, &dicomsvc.Query{Level: level, Keys: keys, Relational: true}) {
		if err != nil {
			s.t.Fatal(err)
		}
		n++
	}
	return n
}

func TestStoreFindGetOnOneNode(t *testing.T) {
	s := newSolo(t)
	var sent [][]byte
	for i, size := range []int{100, 5000, 600_000, 3_000_000} {
		b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1."+string(rune('1'+i)), size, "P1")
		sent = append(sent, b)
		if r := s.put(b); r.Outcome != dicomsvc.OutcomeStored {
			t.Errorf("put %d: outcome %d, want stored", i, r.Outcome)
		}
	}
	check := func(when string) {
		t.Helper()
		if n := s.count(dicomsvc.LevelImage); n != len(sent) {
			t.Errorf("%s: found %d instances, want %d", when, n, len(sent))
		}
		got := s.get(dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}})
		if len(got) != len(sent) {
			t.Fatalf("%s: retrieved %d instances, want %d", when, len(got), len(sent))
		}
		for i := range got {
			if !bytes.Equal(got[i], sent[i]) {
				t.Errorf("%s: instance %d is not what was sent", when, i)
			}
		}
		for d, err := range s.archive.Headers(context.Background(), anyone, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}) {
			if err != nil {
				t.Fatalf("%s: headers: %v", when, err)
			}
			pixel := d.Header.Get(dicom.PixelData)
			if pixel == nil || pixel.Bulk == nil || d.Header.String(dicom.PatientID) != "P1" {
				t.Errorf("%s: header lacks pixel data reference or patient", when)
				continue
			}
			frames, err := s.archive.Frames(context.Background(), anyone, d.Instance)
			if err != nil || frames == nil {
				t.Errorf("%s: frames: %v %v", when, frames, err)
			}
		}
	}
	check("just stored")
	s.reopen()
	check("after restart")
	if err := s.archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Fatalf("seal: %v", err)
	}
	check("sealed")
	study, err := s.archive.Study(context.Background(), "1.2.3")
	if err != nil || study.Unsealed != 0 || len(study.Packs) == 0 { // more than one when offers were applied in pieces
		t.Fatalf("study after seal: %+v %v", study, err)
	}
	s.reopen()
	check("sealed, after restart")
	if r := s.put(sent[1]); r.Outcome != dicomsvc.OutcomeIdentical {
		t.Errorf("sent again: outcome %d, want identical", r.Outcome)
	}
	other := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.2", 5000, "P1")
	if r := s.put(other); r.Outcome != dicomsvc.OutcomeFurtherVersion || r.Comment == "" {
		t.Errorf("other bytes: outcome %d %q, want further version", r.Outcome, r.Comment)
	}
	check("with a further version")
}

func TestPutRefusals(t *testing.T) {
	s := newSolo(t)
	good := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 100, "P1")
	for _, tt := range []struct {
		name string
		req  dicomsvc.PutRequest
		want error
	}{
		{"instance of the command differs", dicomsvc.PutRequest{SOPInstanceUID: "1.9", Body: bytes.NewReader(good)}, dicomsvc.ErrMismatch},
		{"class of the command differs", dicomsvc.PutRequest{SOPClassUID: "1.9", Body: bytes.NewReader(good)}, dicomsvc.ErrMismatch},
		{"study of the request differs", dicomsvc.PutRequest{StudyInstanceUID: "1.9", Body: bytes.NewReader(good)}, dicomsvc.ErrMismatch},
		{"cut short", dicomsvc.PutRequest{Body: bytes.NewReader(good[:len(good)-10])}, dicomsvc.ErrMalformed},
		{"empty", dicomsvc.PutRequest{Body: bytes.NewReader(nil)}, dicomsvc.ErrMalformed},
		{"sender breaks off", dicomsvc.PutRequest{Body: io.MultiReader(bytes.NewReader(good[:50]), broken{})}, dicomsvc.ErrMalformed},
	} {
		tt.req.TransferSyntaxUID, tt.req.Principal = dicom.ExplicitVRLittleEndian, anyone
		if _, err := s.archive.Put(context.Background(), tt.req); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if n := s.count(dicomsvc.LevelImage); n != 0 {
		t.Errorf("%d instances visible after refusals", n)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestReadsAndStoresWithoutQuorum(t *testing.T) {
	s := newSolo(t)
	s.quorum.down = true
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	s.put(b)
	if n := s.count(dicomsvc.LevelStudy); n != 1 {
		t.Errorf("found %d studies without a quorum, want 1", n)
	}
	if got := s.get(dicomsvc.Selection{SOPInstanceUIDs: []string{"1.2.3.1.1"}}); len(got) != 1 || !bytes.Equal(got[0], b) {
		t.Error("instance not readable without a quorum")
	}
	s.reopen()
	if n := s.count(dicomsvc.LevelStudy); n != 1 {
		t.Errorf("found %d studies after a restart without the entry applied, want 1", n)
	}
}
