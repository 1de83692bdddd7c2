package catalog

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/ring"
)

func TestAddIsIdempotent(t *testing.T) {
	once, twice := openTest(t), openTest(t)
	add := items(t, ct(1, 1, 1), ct(1, 1, 2), ct(1, 2, 1), ct(2, 1, 1))
	mustOK(t, apply(t, once, at(0), add))
	mustOK(t, apply(t, twice, at(0), add))
	results := apply(t, twice, at(0), add)
	for i, o := range results[0].Items {
		if o != OutcomeKnown {
			t.Errorf("item %d again: got %v, want known", i, o)
		}
	}
	if stateHash(t, once) != stateHash(t, twice) {
		t.Error("a repeated Add changed the state")
	}
	begin, seal := sealOf(1, add.Items[:3])
	for range 2 {
		mustOK(t, apply(t, twice, at(0), begin))
	}
	for range 2 {
		mustOK(t, apply(t, twice, at(0), seal))
	}
	mustOK(t, apply(t, once, at(0), begin, seal))
	mustOK(t, apply(t, twice, at(0), add))
	if stateHash(t, once) != stateHash(t, twice) {
		t.Error("a repeated seal or an Add after it changed the state")
	}
}

func TestAddOrderDoesNotMatter(t *testing.T) {
	a, b := openTest(t), openTest(t)
	var list []AddItem
	for i := range 40 {
		list = append(list, ct(i%3, i%2, i).item(t))
	}
	apply(t, a, at(0), Add{Items: list})
	slices.Reverse(list)
	for i := range list {
		apply(t, b, at(0), Add{Items: list[i : i+1]})
	}
	if stateHash(t, a) != stateHash(t, b) {
		t.Error("order or batching of Adds changed the state")
	}
}

func TestHoldersAreUnited(t *testing.T) {
	c := openTest(t)
	it := ct(1, 1, 1).item(t)
	it.Spooled, it.Holders = true, []place.NodeID{nodeID(3)}
	apply(t, c, at(0), Add{Items: []AddItem{it}})
	study, err := c.Study(context.Background(), it.StudyInstanceUID)
	if err != nil || study.Spooled != 1 {
		t.Fatalf("study %+v, %v: want one spooled", study, err)
	}
	it.Spooled, it.Holders = false, []place.NodeID{nodeID(1), nodeID(3)}
	apply(t, c, at(1), Add{Items: []AddItem{it}})
	found, err := c.Locate(context.Background(), it.SOPInstanceUID)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	if want := []place.NodeID{nodeID(1), nodeID(3)}; !slices.Equal(found[0].Holders, want) || found[0].Spooled {
		t.Errorf("got holders %v spooled %v, want %v, not spooled", found[0].Holders, found[0].Spooled, want)
	}
	if study, _ = c.Study(context.Background(), it.StudyInstanceUID); study.Spooled != 0 {
		t.Error("study still counts it as spooled")
	}
	if got := found[0].Instance; !reflect.DeepEqual(got.Attributes, it.Attributes) || got.CallingAE != "CT1" || got.PatientKey != it.PatientKey {
		t.Errorf("got %+v, want what was added", got)
	}
}

func TestFirstVersionIsServed(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprint("sealed=", sealed), func(t *testing.T) {
			c := openTest(t)
			first, other := ct(1, 1, 1), ct(1, 1, 1)
			other.content = 9
			elsewhere := ct(2, 1, 1).item(t)
			elsewhere.SOPInstanceUID = first.uid()
			elsewhere.Version = VersionOf(elsewhere.SOPInstanceUID, elsewhere.TransferSyntaxUID, elsewhere.Digest)
			add := items(t, first)
			mustOK(t, apply(t, c, at(0), add))
			if sealed {
				begin, seal := sealOf(1, add.Items)
				mustOK(t, apply(t, c, at(0), begin, seal))
			}
			results := apply(t, c, at(1), Add{Items: []AddItem{other.item(t), elsewhere}})
			if got := results[0].Items; got[0] != OutcomeFurther || got[1] != OutcomeFurther {
				t.Fatalf("got %v, want both further versions", got)
			}
			if got := apply(t, c, at(1), items(t, first, other))[0].Items; got[0] != OutcomeKnown || got[1] != OutcomeKnownUnused {
				t.Errorf("again: got %v", got)
			}
			found, err := c.Locate(context.Background(), first.uid())
			if err != nil || len(found) != 3 || !found[0].Served || found[1].Served || found[2].Served ||
				found[0].Instance.Version != add.Items[0].Version {
				t.Fatalf("got %+v, %v: want the first applied first and alone served", found, err)
			}
			study, _ := c.Study(context.Background(), first.studyUID())
			if study.Instances != 1 || study.Versions != 2 {
				t.Errorf("got %d instances, %d versions, want 1 and 2", study.Instances, study.Versions)
			}
			kinds := map[QCKind]int{}
			for _, it := range all(t, c.QC(context.Background())) {
				kinds[it.Kind]++
				if it.Served != add.Items[0].Version {
					t.Errorf("QC item names served version %v", it.Served)
				}
			}
			if kinds[QCDigest] != 1 || kinds[QCPlace] != 1 || len(kinds) != 2 {
				t.Errorf("got QC %v", kinds)
			}
			if got, _ := find(t, c.Reader, Query{Level: LevelStudy}); !slices.Equal(got, []string{first.studyUID()}) {
				t.Errorf("got studies %v, want only that with a served instance", got)
			}
		})
	}
}

func TestOtherPatientInStudy(t *testing.T) {
	c := openTest(t)
	odd := ct(1, 1, 2)
	odd.patient = "OTHER"
	results := apply(t, c, at(0), items(t, ct(1, 1, 1), odd))
	if got := results[0].Items[1]; got != OutcomeServed {
		t.Errorf("got %v, want served", got)
	}
	qc := all(t, c.QC(context.Background()))
	if len(qc) != 1 || qc[0].Kind != QCPatient || qc[0].SOPInstanceUID != odd.uid() {
		t.Errorf("got QC %+v", qc)
	}
	study, _ := c.Study(context.Background(), odd.studyUID())
	if study.PatientKey.ID != "P1" {
		t.Errorf("got patient %q, want the first's", study.PatientKey.ID)
	}
}

func TestTombstoneSendsToLimbo(t *testing.T) {
	c := openTest(t)
	byInstance, byStudy, free := ct(1, 1, 1), ct(2, 1, 1), ct(1, 1, 2)
	tombs := []Command{
		Tombstone{UIDHash: c.UIDHash(byInstance.uid()), Level: LevelImage},
		Tombstone{UIDHash: c.UIDHash(byStudy.studyUID()), Level: LevelStudy, Reason: "asked for"},
	}
	mustOK(t, apply(t, c, at(0), tombs...))
	for range 2 {
		got := apply(t, c, at(1), items(t, byInstance, byStudy, free))[0].Items
		if got[0] != OutcomeLimbo || got[1] != OutcomeLimbo || !got[2].Served() {
			t.Fatalf("got %v", got)
		}
	}
	if _, err := c.Study(context.Background(), byStudy.studyUID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want no study", err)
	}
	found, err := c.Locate(context.Background(), byInstance.uid())
	if err != nil || len(found) != 1 || found[0].State != VersionLimbo || found[0].Served {
		t.Errorf("got %+v, %v", found, err)
	}
	if n := len(all(t, c.Limbo(context.Background()))); n != 2 {
		t.Errorf("got %d in limbo, want 2", n)
	}
	known, sealed, err := c.Has(context.Background(), byInstance.item(t).Version)
	if !known || sealed || err != nil {
		t.Errorf("Has: %v %v %v", known, sealed, err)
	}
	begin, _ := sealOf(1, items(t, byInstance).Items)
	if r := apply(t, c, at(2), begin)[0]; r.Code != CodeInvalid {
		t.Errorf("sealing limbo: got %+v", r)
	}
	due, _ := c.Unsealed(context.Background())
	if len(due) != 1 || due[0].Study != free.studyUID() || due[0].Unsealed != 1 {
		t.Errorf("got due %+v", due)
	}
}

func TestSeal(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	add := items(t, ct(1, 1, 2), ct(1, 1, 1), ct(1, 2, 1), ct(1, 1, 10))
	apply(t, c, at(0), add)
	begin, seal := sealOf(1, add.Items[:3])
	mustOK(t, apply(t, c, at(5), begin))
	open, err := c.Encodes(ctx)
	if err != nil || len(open) != 1 || open[0].State != EncodeBegun || open[0].Versions != 3 || !reflect.DeepEqual(open[0].Placement, begin.Placement) {
		t.Fatalf("got %+v, %v", open, err)
	}
	mustOK(t, apply(t, c, at(9), seal))
	pack, err := c.Pack(ctx, begin.Pack)
	if err != nil {
		t.Fatal(err)
	}
	want := &Pack{
		ID: begin.Pack, Encode: begin.Encode, Study: begin.Study, Sealer: begin.Sealer, Geometry: begin.Geometry, Placement: begin.Placement,
		Generation: 1, CellBytes: begin.CellBytes, BlockBytes: begin.BlockBytes, StreamBytes: seal.StreamBytes, PlainBytes: seal.PlainBytes,
		Roots: seal.Roots, WrappedKey: seal.WrappedKey, ManifestOffset: seal.ManifestOffset, ManifestSize: 99, Instances: 3, SealedAt: at(9),
	}
	if !reflect.DeepEqual(pack, want) {
		t.Errorf("got %+v\nwant %+v", pack, want)
	}
	study, _ := c.Study(ctx, begin.Study)
	if study.Unsealed != 1 || study.UnsealedBytes != 1010 || study.Versions != 4 || study.Instances != 4 || len(study.Packs) != 1 {
		t.Errorf("got %+v", study)
	}
	for i, it := range add.Items {
		known, sealed, err := c.Has(ctx, it.Version)
		if !known || sealed != (i < 3) || err != nil {
			t.Errorf("Has %d: %v %v %v", i, known, sealed, err)
		}
	}
	found, err := c.Locate(ctx, add.Items[1].SOPInstanceUID)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	l := found[0]
	if l.State != VersionSealed || l.Pack != begin.Pack || l.Entry != seal.Entries[1] || !l.Served || l.Instance.Digest != add.Items[1].Digest ||
		l.Instance.Version != add.Items[1].Version || l.Instance.PatientKey.ID != "P1" || l.Instance.CallingAE != "CT1" ||
		!l.Instance.ReceivedAt.Equal(add.Items[1].ReceivedAt) || l.Instance.ReceivedBy != nodeID(1) || l.Instance.Size != 1001 {
		t.Errorf("got %+v", l)
	}
	if got := textOf(l.Instance.Attributes, dicom.InstanceNumber); got != "1" {
		t.Errorf("got Instance Number %q", got)
	}
	if got := textOf(l.Instance.Attributes, dicom.SliceLocation); got != "" {
		t.Errorf("Slice Location %q is still in the catalog", got)
	}
	var order []string
	for _, l := range all(t, c.Versions(ctx, begin.Study, "")) {
		order = append(order, l.Instance.SOPInstanceUID)
	}
	if want := []string{ct(1, 1, 1).uid(), ct(1, 1, 2).uid(), ct(1, 1, 10).uid(), ct(1, 2, 1).uid()}; !slices.Equal(order, want) {
		t.Errorf("got order %v, want %v", order, want)
	}
	if got, _ := find(t, c.Reader, Query{Level: LevelImage, Keys: []Key{key(dicom.InstanceNumber, "1")}}); len(got) != 2 {
		t.Errorf("IMAGE query: got %v", got)
	}
	if open, _ := c.Encodes(ctx); len(open) != 0 {
		t.Errorf("sealed encode is still listed: %+v", open)
	}
	if e, err := c.Encode(ctx, begin.Encode); err != nil || e.State != EncodeSealed {
		t.Errorf("got %+v, %v", e, err)
	}
	if packs, err := c.Packs(ctx, begin.Study); err != nil || len(packs) != 1 || packs[0].ID != begin.Pack {
		t.Errorf("got %v, %v", packs, err)
	}
	if n := len(all(t, c.AllPacks(ctx))); n != 1 {
		t.Errorf("got %d packs", n)
	}
	if r := apply(t, c, at(10), SealAbort{Encode: begin.Encode})[0]; r.Code != CodeRaced {
		t.Errorf("abort of a sealed encode: %+v", r)
	}
}

func TestSealRace(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	add := items(t, ct(1, 1, 1), ct(1, 1, 2))
	apply(t, c, at(0), add)
	beginA, sealA := sealOf(1, add.Items)
	beginB, sealB := sealOf(2, add.Items[1:])
	mustOK(t, apply(t, c, at(1), beginA, beginB))
	mustOK(t, apply(t, c, at(2), sealB))
	before := stateHash(t, c)
	if r := apply(t, c, at(2), sealA)[0]; r.Code != CodeRaced || !errors.Is(r.Err(), ErrRaced) {
		t.Fatalf("got %+v, want the second to lose", r)
	}
	if before == stateHash(t, c) {
		t.Error("the loser was not aborted")
	}
	if r := apply(t, c, at(2), sealA)[0]; r.Code != CodeRaced {
		t.Errorf("got %+v", r)
	}
	if _, sealed, _ := c.Has(ctx, add.Items[0].Version); sealed {
		t.Error("the loser sealed a version")
	}
	e, err := c.Encode(ctx, beginA.Encode)
	if err != nil || e.State != EncodeAborted {
		t.Fatalf("got %+v, %v", e, err)
	}
	study, _ := c.Study(ctx, beginA.Study)
	if study.Unsealed != 1 || len(study.Packs) != 1 {
		t.Errorf("got %+v", study)
	}
	apply(t, c, at(3), PutNode{Node: Node{ID: nodeID(3), State: NodeRemoved}})
	for n := byte(1); n <= 2; n++ {
		if e, err = c.Encode(ctx, beginA.Encode); err != nil || len(e.Forgotten) != int(n)-1 {
			t.Fatalf("before node %d forgot: %+v, %v", n, e, err)
		}
		mustOK(t, apply(t, c, at(3), ForgetEncode{Encode: beginA.Encode, Node: nodeID(n)}))
	}
	if _, err = c.Encode(ctx, beginA.Encode); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want the record gone once all living nodes forgot it", err)
	}
}

func TestSealRefusals(t *testing.T) {
	c := openTest(t)
	add := items(t, ct(1, 1, 1), ct(1, 1, 2), ct(2, 1, 1))
	apply(t, c, at(0), add)
	begin, seal := sealOf(1, add.Items[:2])
	unknown, _ := sealOf(2, items(t, ct(1, 1, 9)).Items)
	mixed, _ := sealOf(3, add.Items[1:])
	short, roots := seal, seal
	short.Entries = seal.Entries[:1]
	roots.Roots = seal.Roots[:2]
	samePack, _ := sealOf(4, add.Items[2:])
	samePack.Pack = begin.Pack
	late, _ := sealOf(5, add.Items[2:])
	dead, deadSeal := sealOf(6, add.Items[2:])
	for _, step := range []struct {
		name string
		cmd  Command
		want ResultCode
	}{
		{"unknown version", unknown, CodeUnknown},
		{"two studies", mixed, CodeInvalid},
		{"seal before begin", seal, CodeUnknown},
		{"begin", begin, CodeOK},
		{"fewer versions than begun", short, CodeInvalid},
		{"too few roots", roots, CodeInvalid},
		{"seal", seal, CodeOK},
		{"seal again", seal, CodeOK},
		{"begin again", begin, CodeRaced},
		{"same pack", samePack, CodeRaced},
		{"abort unbegun", SealAbort{Encode: late.Encode, Why: "gave up"}, CodeOK},
		{"begin aborted", late, CodeRaced},
		{"begin another", dead, CodeOK},
		{"abort it", SealAbort{Encode: dead.Encode, Why: "gave up"}, CodeOK},
		{"seal what was aborted", deadSeal, CodeRaced},
	} {
		if r := apply(t, c, at(1), step.cmd)[0]; r.Code != step.want {
			t.Errorf("%s: got %+v, want code %d", step.name, r, step.want)
		}
	}
}

func TestSealManySeriesAndTables(t *testing.T) {
	c := openTest(t)
	var shots []shot
	for i := range 1300 {
		shots = append(shots, ct(1, i%2, 1300-i))
	}
	add := items(t, shots...)
	apply(t, c, at(0), add)
	for n := range 2 { // two packs whose instance numbers interleave
		var part []AddItem
		for i := range add.Items {
			if i/2%2 == n {
				part = append(part, add.Items[i])
			}
		}
		begin, seal := sealOf(byte(1+n), part)
		mustOK(t, apply(t, c, at(1), begin, seal))
	}
	last := ""
	n, number := 0, int32(0)
	for _, l := range all(t, c.Versions(context.Background(), shots[0].studyUID(), "")) {
		if l.Instance.SeriesInstanceUID != last {
			last, number = l.Instance.SeriesInstanceUID, 0
		}
		if got := instanceNumber(l.Instance.Attributes); got <= number {
			t.Fatalf("instance number %d after %d", got, number)
		} else {
			number = got
		}
		n++
	}
	if n != len(shots) {
		t.Errorf("got %d versions, want %d", n, len(shots))
	}
	for _, s := range shots {
		if found, err := c.Locate(context.Background(), s.uid()); err != nil || len(found) != 1 || found[0].Instance.SOPInstanceUID != s.uid() {
			t.Fatalf("locate: %v, %v", found, err)
		}
	}
}

func TestUnsealed(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	apply(t, c, at(0), items(t, ct(1, 1, 1)))
	apply(t, c, at(100), items(t, ct(1, 1, 2), ct(2, 1, 1)))
	due, err := c.Unsealed(ctx)
	if err != nil || len(due) != 2 || due[0].Unsealed != 2 || due[1].Unsealed != 1 {
		t.Fatalf("got %+v, %v", due, err)
	}
	if !due[0].First.Equal(at(0)) || !due[0].Last.Equal(at(100)) || !due[1].First.Equal(at(100)) {
		t.Errorf("times %+v", due)
	}
	list := items(t, ct(1, 1, 1), ct(1, 1, 2)).Items
	begin, seal := sealOf(1, list)
	apply(t, c, at(200), begin, seal)
	if due, _ := c.Unsealed(ctx); len(due) != 1 || due[0].Study != ct(2, 0, 0).studyUID() {
		t.Errorf("after the seal: got %+v", due)
	}
}

func TestTokensNodesSettings(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	token, late := [32]byte{1}, [32]byte{2}
	node := Node{
		ID: nodeID(4), Name: "n4", Site: "b", Disk: place.DiskID{7}, Address: "127.0.0.1:7400", Incarnation: 3,
		Role: RoleWitness, State: NodeCordoned, CertFingerprint: [32]byte{9},
	}
	gone := node
	gone.State = NodeRemoved
	for i, step := range []struct {
		at   int
		cmd  Command
		want ResultCode
	}{
		{0, PutToken{Hash: token, Site: "b", Created: at(0), Expires: at(60)}, CodeOK},
		{0, PutToken{Hash: late, Site: "b", Created: at(0), Expires: at(60)}, CodeOK},
		{1, UseToken{Hash: [32]byte{3}, Node: nodeID(4)}, CodeUnknown},
		{1, UseToken{Hash: token, Node: nodeID(4)}, CodeOK},
		{2, UseToken{Hash: token, Node: nodeID(5)}, CodeUsed},
		{2, PutToken{Hash: token, Site: "b", Created: at(0), Expires: at(600)}, CodeOK},
		{2, UseToken{Hash: token, Node: nodeID(5)}, CodeUsed},
		{60, UseToken{Hash: late, Node: nodeID(5)}, CodeExpired},
		{1, UseToken{Hash: late, Node: nodeID(5)}, CodeExpired}, // ring time never goes back
		{61, UseToken{Hash: token, Node: nodeID(4)}, CodeOK},
		{61, PutNode{Node: node}, CodeOK},
		{61, PutSetting{Key: "survive", Value: []byte("site")}, CodeOK},
		{61, PutSetting{Key: "name", Value: []byte("x")}, CodeOK},
		{61, PutSetting{Key: "name"}, CodeOK},
	} {
		if r := apply(t, c, at(step.at), step.cmd)[0]; r.Code != step.want {
			t.Errorf("step %d: got %+v, want code %d", i, r, step.want)
		}
	}
	if got, err := c.Nodes(ctx); err != nil || !reflect.DeepEqual(got, []Node{node}) {
		t.Errorf("got %+v, %v", got, err)
	}
	apply(t, c, at(62), PutNode{Node: gone})
	if r := apply(t, c, at(62), PutNode{Node: node})[0]; r.Code != CodeRaced {
		t.Errorf("removed node came back: %+v", r)
	}
	if v, err := c.Setting("survive"); err != nil || string(v) != "site" {
		t.Errorf("got %q, %v", v, err)
	}
	if _, err := c.Setting("name"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if got, err := c.Token(ctx, token); err != nil || got.UsedBy != nodeID(4) || got.Site != "b" || !got.Expires.Equal(at(60)) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRecords(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	id := [16]byte{5}
	for range 2 {
		apply(t, c, at(3), PutOverlay{Target: "1.2.3", ID: id, Body: []byte("o")}, Hold{Target: "1.2.3", ID: id, Body: []byte("h")},
			CommitmentRequest{ID: id, Body: []byte("c")})
	}
	apply(t, c, at(9), Hold{Target: "1.2.3", ID: id, Body: []byte("h")})
	want := func(body, target string) []Record {
		return []Record{{Target: target, ID: id, Body: []byte(body), At: at(3)}}
	}
	if got := all(t, c.Overlays(ctx)); !reflect.DeepEqual(got, want("o", "1.2.3")) {
		t.Errorf("got %+v", got)
	}
	if got := all(t, c.Holds(ctx)); !reflect.DeepEqual(got, want("h", "1.2.3")) {
		t.Errorf("got %+v", got)
	}
	if got := all(t, c.CommitmentRequests(ctx)); !reflect.DeepEqual(got, want("c", "")) {
		t.Errorf("got %+v", got)
	}
	apply(t, c, at(4), CommitmentRequest{ID: id}, Hold{Target: "1.2.3", ID: id})
	if len(all(t, c.CommitmentRequests(ctx)))+len(all(t, c.Holds(ctx))) != 0 {
		t.Error("empty bodies did not remove their records")
	}
}

func TestRestart(t *testing.T) {
	fs := vfs.NewMem()
	c, err := Open(testConfig(fs, "catalog"))
	if err != nil {
		t.Fatal(err)
	}
	add := items(t, ct(1, 1, 1), ct(1, 1, 2), ct(2, 1, 1))
	apply(t, c, at(0), add)
	begin, seal := sealOf(1, add.Items[:2])
	apply(t, c, at(1), begin, seal)
	c.Apply([]ring.Entry{{Index: 3, Term: 2}}) // a configuration: no data
	hash, index := stateHash(t, c), c.Applied()
	if index != 3 {
		t.Fatalf("got index %d, want 3", index)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = Open(testConfig(fs, "catalog")); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Applied() != index || stateHash(t, c) != hash {
		t.Errorf("after the restart: index %d, want %d and the same hash", c.Applied(), index)
	}
	entry, _ := Encode(Batch{Time: at(50), Commands: []Command{items(t, ct(9, 1, 1))}})
	if got := c.Apply([]ring.Entry{{Index: 2, Term: 1, Data: entry}}); got[0] != nil || stateHash(t, c) != hash {
		t.Error("an entry applied before was applied again")
	}
}

func TestCheckpointAndRestore(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	open := func(name string) *Catalog {
		c, err := Open(testConfig(vfs.Default, dir+"/"+name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	from, to := open("from"), open("to")
	defer from.Close()
	apply(t, from, at(0), items(t, ct(1, 1, 1), ct(2, 1, 1)))
	apply(t, to, at(0), items(t, ct(5, 1, 1)))
	if err := from.Checkpoint(dir + "/copy"); err != nil {
		t.Fatal(err)
	}
	hash := stateHash(t, from)
	apply(t, from, at(1), items(t, ct(3, 1, 1)))
	reader, err := to.With(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the checkpoint stays usable
		if err := to.Restore(dir + "/copy"); err != nil {
			t.Fatal(err)
		}
		if stateHash(t, to) != hash || to.Applied() != 1 {
			t.Error("restored state differs")
		}
	}
	if _, err := reader.Study(ctx, ct(5, 1, 1).studyUID()); err != nil {
		t.Errorf("reader opened before the restore: %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	if err := to.Restore(dir + "/absent"); err == nil {
		t.Error("restored from nothing")
	}
	if stateHash(t, to) != hash {
		t.Error("a failed restore changed the state")
	}
	apply(t, to, at(2), items(t, ct(4, 1, 1)))
	hash = stateHash(t, to)
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	to = open("to")
	defer to.Close()
	if stateHash(t, to) != hash || to.Applied() != 2 {
		t.Error("state after the restart differs")
	}
	names, _ := vfs.Default.List(dir + "/to")
	if len(names) != 2 {
		t.Errorf("got %v, want the marker and one database", names)
	}
}

func TestF42UnknownCommandStops(t *testing.T) {
	c := openTest(t)
	good, _ := Encode(Batch{Time: at(0), Commands: []Command{items(t, ct(1, 1, 1))}})
	newer := append([]byte(nil), good[:len(good)-4]...)
	newer[2] = 99
	newer = appendChecksum(newer)
	results := c.Apply([]ring.Entry{{Index: 1, Data: good}, {Index: 2, Data: newer}, {Index: 3, Data: good}})
	if c.Applied() != 1 || !errors.Is(c.Fault(), ErrUnknownCommand) {
		t.Fatalf("index %d, fault %v: want a stop before entry 2", c.Applied(), c.Fault())
	}
	for i, want := range []ResultCode{CodeOK, CodeStopped, CodeStopped} {
		if r, err := DecodeResults(results[i]); err != nil || r[0].Code != want {
			t.Errorf("entry %d: got %+v, %v", i+1, r, err)
		}
	}
	if err := c.WaitApplied(context.Background(), 2); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("got %v", err)
	}
	if err := c.Checkpoint("copy"); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("got %v", err)
	}
	if r, _ := DecodeResults(c.Apply([]ring.Entry{{Index: 2, Data: good}})[0]); r[0].Code != CodeStopped {
		t.Errorf("got %+v", r)
	}
}

func TestMalformedEntryChangesNothing(t *testing.T) {
	c := openTest(t)
	hash := stateHash(t, c)
	good, _ := Encode(Batch{Commands: []Command{items(t, ct(1, 1, 1))}})
	bad := append([]byte(nil), good...)
	bad[10] ^= 1
	for i, data := range [][]byte{bad, []byte("x"), good[:20]} {
		r, err := DecodeResults(c.Apply([]ring.Entry{{Index: uint64(i + 1), Data: data}})[0])
		if err != nil || r[0].Code != CodeMalformed || !errors.Is(r[0].Err(), ErrMalformed) {
			t.Errorf("entry %d: got %+v, %v", i, r, err)
		}
	}
	study := keyStudy(ct(1, 1, 1).studyUID())
	if v, _ := readKey(c.db, study); v != nil || c.Applied() != 3 || c.Fault() != nil {
		t.Error("a malformed entry was applied or stopped the catalog")
	}
	_ = hash
}

// loop proposes straight to the catalogs and counts entries.
type loop struct {
	catalogs []*Catalog
	entries  [][]byte
}

func (l *loop) Propose(_ context.Context, data []byte) (uint64, []byte, error) {
	l.entries = append(l.entries, data)
	var result []byte
	for _, c := range l.catalogs {
		result = c.Apply([]ring.Entry{{Index: uint64(len(l.entries)), Term: 1, Data: data}})[0]
	}
	return uint64(len(l.entries)), result, nil
}

func TestDoSplits(t *testing.T) {
	ctx := context.Background()
	a, b := openTest(t), openTest(t)
	a.cfg.Now = func() time.Time { return at(7) }
	if _, _, err := a.Do(ctx, Principal{}, PutSetting{Key: "k"}); !errors.Is(err, ErrNoProposer) {
		t.Fatal(err)
	}
	l := &loop{catalogs: []*Catalog{a, b}}
	a.SetProposer(l)
	var add Add
	for i := range 700 {
		add.Items = append(add.Items, ct(1, 1, i).item(t))
	}
	add.Items[5] = add.Items[4]
	results, index, err := a.Do(ctx, Principal{Kind: PrincipalNode, Node: nodeID(1)}, &add, UseToken{}, PutSetting{Key: "k", Value: []byte("v")})
	if err != nil || len(results) != 3 || len(results[0].Items) != 700 || index != uint64(len(l.entries)) {
		t.Fatalf("got %d results, index %d, %v", len(results), index, err)
	}
	if len(l.entries) != 3 {
		t.Errorf("got %d entries, want 3", len(l.entries))
	}
	if results[0].Items[5] != OutcomeKnown || results[0].Items[699] != OutcomeServed || results[1].Code != CodeUnknown || results[2].Code != CodeOK {
		t.Errorf("got %v %v %v", results[0].Items[5], results[1], results[2])
	}
	if err := b.WaitApplied(ctx, index); err != nil {
		t.Error(err)
	}
	if stateHash(t, a) != stateHash(t, b) {
		t.Error("replicas differ")
	}
	wait, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.WaitApplied(wait, index+1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWithPending(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	apply(t, c, at(0), items(t, ct(1, 1, 1), ct(2, 1, 1)))
	mr := ct(1, 2, 1)
	mr.modality = "MR"
	other := ct(1, 1, 1)
	other.content = 3
	pending := items(t, ct(1, 1, 1), mr, other, ct(8, 1, 1)).Items
	r, err := c.With(pending)
	if err != nil {
		t.Fatal(err)
	}
	before := stateHash(t, c)
	apply(t, c, at(1), items(t, ct(1, 1, 5), ct(9, 1, 1))) // moves on below the reader
	q := Query{Level: LevelStudy, Relational: true}
	seen := map[string]*Match{}
	for m, err := range r.Search(ctx, Principal{}, &q) {
		if err != nil {
			t.Fatal(err)
		}
		seen[m.StudyInstanceUID] = m
	}
	one, two, eight := seen[ct(1, 0, 0).studyUID()], seen[ct(2, 0, 0).studyUID()], seen[ct(8, 0, 0).studyUID()]
	if len(seen) != 3 || one == nil || two == nil || eight == nil {
		t.Fatalf("got %v", seen)
	}
	if !one.Provisional || two.Provisional || !eight.Provisional {
		t.Errorf("provisional: %v %v %v", one.Provisional, two.Provisional, eight.Provisional)
	}
	if got := one.Attributes.Strings(dicom.ModalitiesInStudy); !slices.Equal(got, []string{"CT", "MR"}) {
		t.Errorf("got modalities %v", got)
	}
	if got := one.Attributes.String(dicom.NumberOfStudyRelatedInstances); got != "2" {
		t.Errorf("got %s instances", got)
	}
	found, err := r.Locate(ctx, mr.uid())
	if err != nil || len(found) != 1 || !found[0].Provisional || !found[0].Served {
		t.Errorf("got %+v, %v", found, err)
	}
	found, err = r.Locate(ctx, other.uid())
	if err != nil || len(found) != 2 || found[0].Provisional || !found[1].Provisional || found[1].Served {
		t.Errorf("got %+v, %v", found, err)
	}
	if n := len(all(t, r.Versions(ctx, other.studyUID(), ""))); n != 3 {
		t.Errorf("got %d versions", n)
	}
	if got, _ := find(t, r, Query{Level: LevelImage, Keys: []Key{key(dicom.PatientID, "P1")}}); len(got) != 3 {
		t.Errorf("got %v", got)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if before == stateHash(t, c) {
		t.Error("the catalog did not move on")
	}
	bad := ct(1, 1, 1).item(t)
	bad.StudyInstanceUID = ""
	if _, err := c.With([]AddItem{bad}); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestStolenVersionIsRefused(t *testing.T) {
	c := openTest(t)
	mine, theirs := ct(1, 1, 1).item(t), ct(1, 1, 2).item(t)
	mine.Version = VersionID{1}
	theirs.Version = VersionID{1}
	got := apply(t, c, at(0), Add{Items: []AddItem{mine, theirs, mine}})[0].Items
	if !slices.Equal(got, []ItemOutcome{OutcomeServed, OutcomeRefused, OutcomeKnown}) {
		t.Fatalf("got %v", got)
	}
	begin, seal := sealOf(1, []AddItem{mine})
	mustOK(t, apply(t, c, at(0), begin, seal))
	got = apply(t, c, at(0), Add{Items: []AddItem{theirs, mine}})[0].Items
	if !slices.Equal(got, []ItemOutcome{OutcomeRefused, OutcomeKnown}) {
		t.Errorf("after the seal: got %v", got)
	}
}

func TestClosed(t *testing.T) {
	c, err := Open(testConfig(vfs.NewMem(), "catalog"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Study(context.Background(), "1.2"); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := c.WaitApplied(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

var _ ring.FSM = (*Catalog)(nil)

// TestConcurrentReads reads while entries are applied and the state is replaced; -race watches.
func TestConcurrentReads(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	apply(t, c, at(0), items(t, ct(1, 1, 1), ct(2, 1, 1)))
	if err := c.Checkpoint("copy"); err != nil {
		t.Fatal(err)
	}
	shared, err := c.With(items(t, ct(3, 1, 1)).Items)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	done := make(chan struct{})
	errs := make(chan error, 4)
	for i := range cap(errs) {
		r := c.Reader
		if i%2 == 1 {
			r = shared
		}
		go func() { // ends when done is closed
			for {
				select {
				case <-done:
					errs <- nil
					return
				default:
				}
				n := 0
				for _, err := range r.Search(ctx, Principal{}, &Query{Level: LevelImage, Relational: true}) {
					if n++; err != nil {
						errs <- err
						return
					}
				}
				if _, err := r.Locate(ctx, ct(1, 1, 1).uid()); err != nil || n < 2 {
					errs <- fmt.Errorf("saw %d instances: %w", n, err)
					return
				}
			}
		}()
	}
	for i := range 20 {
		add := items(t, ct(1, 1, 10+i))
		begin, seal := sealOf(byte(i+1), add.Items)
		mustOK(t, apply(t, c, at(i), add, begin, seal))
		if i%7 == 6 {
			if err := c.Restore("copy"); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(done)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
