package nodetest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/node"
	"osteon/raft/ring"
)

var (
	damageOffsets = flag.Int("damage.offsets", 1, "bit flips a kind of file")
	damageKind    = flag.String("damage.kind", "", "kinds of file to damage, a regular expression; empty: all")
	damageSeed    = flag.Uint64("damage.seed", 1, "seed of files and offsets")
)

// damageKinds sorts the files of a node's directory.
var damageKinds = []struct{ kind, pattern string }{
	{"identity", `^node$`}, {"root key", `^root\.key$`}, {"link key", `^link\.key$`}, {"vault keys", `^vault/keys$`},
	{"raft mark", `^raft/mark$`},
	{"raft table", `^raft/log/\d+\.sst$`}, {"raft WAL", `^raft/log/\d+\.log$`}, {"raft MANIFEST", `^raft/log/MANIFEST`},
	{"raft OPTIONS", `^raft/log/OPTIONS`}, {"raft marker", `^raft/log/marker`},
	{"snapshot CURRENT", `^raft/snapshots/CURRENT$`}, {"snapshot META", `^raft/snapshots/[^/]+/META$`}, {"snapshot state", `^raft/snapshots/[^/]+/state/`},
	{"catalog table", `^catalog/[^/]+/\d+\.sst$`}, {"catalog WAL", `^catalog/[^/]+/\d+\.log$`}, {"catalog MANIFEST", `^catalog/[^/]+/MANIFEST`},
	{"catalog OPTIONS", `^catalog/[^/]+/OPTIONS`}, {"catalog marker", `^catalog/([^/]+/)?marker`},
	{"local table", `^local/\d+\.sst$`}, {"local WAL", `^local/\d+\.log$`}, {"local MANIFEST", `^local/MANIFEST`},
	{"local OPTIONS", `^local/OPTIONS`}, {"local marker", `^local/marker`},
	{"journal segment", `^journal/`}, {"shard", `^shards/`},
}

// keyKinds are files without which a node cannot be itself: it must refuse to start and say what to do.
var keyKinds = []string{"identity", "root key", "link key", "vault keys"}

func kindOf(name string) string {
	for _, k := range damageKinds {
		if regexp.MustCompile(k.pattern).MatchString(name) {
			return k.kind
		}
	}
	return ""
}

// damage is one way to damage a file. other is another file of the kind, foreign the one of another node; it reports false
// where it does not apply.
type damage struct {
	name  string
	apply func(d *damaged, rng *rand.Rand) bool
}

// damaged is a file to be damaged.
type damaged struct {
	fs             vfs.FS
	file           string
	other, foreign string
	foreignFS      vfs.FS
}

func damages(offsets int) []damage {
	out := []damage{
		{"truncated", func(d *damaged, rng *rand.Rand) bool {
			b := d.read()
			return len(b) > 0 && d.replace(b[:rng.IntN(len(b))])
		}},
		{"torn at the tail", func(d *damaged, rng *rand.Rand) bool {
			b := d.read()
			if len(b) == 0 {
				return false
			}
			for i := len(b) - 1 - rng.IntN(min(len(b), 64)); i < len(b); i++ {
				b[i] = byte(rng.Uint32())
			}
			return d.overwrite(b)
		}},
		{"zeroed range", func(d *damaged, rng *rand.Rand) bool {
			b := d.read()
			if len(b) == 0 {
				return false
			}
			from := rng.IntN(len(b))
			clear(b[from:min(len(b), from+512)])
			return d.overwrite(b)
		}},
		{"missing", func(d *damaged, _ *rand.Rand) bool { return d.fs.Remove(d.file) == nil }},
		{"another node's", func(d *damaged, _ *rand.Rand) bool {
			return d.foreign != "" && d.replace(readFile(d.foreignFS, d.foreign))
		}},
		{"swapped with another", func(d *damaged, _ *rand.Rand) bool {
			if d.other == "" {
				return false
			}
			a, b := d.read(), readFile(d.fs, d.other)
			d.replace(b)
			d.file = d.other
			return d.replace(a)
		}},
	}
	for range offsets {
		out = append(out, damage{"bit flipped", func(d *damaged, rng *rand.Rand) bool {
			b := d.read()
			if len(b) == 0 {
				return false
			}
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			return d.overwrite(b)
		}})
	}
	return out
}

func readFile(fs vfs.FS, name string) []byte {
	f, err := fs.Open(name)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		panic(err)
	}
	return b
}

func (d *damaged) read() []byte { return readFile(d.fs, d.file) }

// overwrite changes the file in place, under all its names, as a disk does.
func (d *damaged) overwrite(b []byte) bool {
	f, err := d.fs.OpenReadWrite(d.file, vfs.WriteCategoryUnspecified)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		panic(err)
	}
	return true
}

// replace gives the name to a file with another content.
func (d *damaged) replace(b []byte) bool {
	if err := d.fs.Remove(d.file); err != nil {
		panic(err)
	}
	f, err := d.fs.Create(d.file, vfs.WriteCategoryUnspecified)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		panic(err)
	}
	return true
}

// filesOf lists all files of a node's directory.
func filesOf(fs vfs.FS, dir, below string) (out []string) {
	names, err := fs.List(path.Join(dir, below))
	if err != nil {
		return nil
	}
	slices.Sort(names)
	for _, name := range names {
		rel := path.Join(below, name)
		info, err := fs.Stat(path.Join(dir, rel))
		switch {
		case err != nil:
		case info.IsDir():
			out = append(out, filesOf(fs, dir, rel)...)
		default:
			out = append(out, rel)
		}
	}
	return out
}

const damageDir = "/osteon"

var damageNames = []string{"a1", "b1", "c1"}

// damageObject is an instance of one of the studies of the damage table.
func damageObject(study, number int) []byte {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.SetStrings(dicom.SOPInstanceUID, fmt.Sprintf("2.25.%d.1.%d", study, number))
	d.SetStrings(dicom.StudyInstanceUID, fmt.Sprintf("2.25.%d", study))
	d.SetStrings(dicom.SeriesInstanceUID, fmt.Sprintf("2.25.%d.1", study))
	d.SetStrings(dicom.PatientID, "P")
	d.SetStrings(dicom.ImageComments, strings.Repeat(fmt.Sprintf("%d of %d. ", number, study), 200))
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		panic(err)
	}
	return b
}

func putDamageObject(n *node.Node, object []byte) error {
	_, err := n.Archive().Put(context.Background(), dicomsvc.PutRequest{
		Principal:         dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"},
		TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(object),
	})
	return err
}

// readObjects reads a study at a node; an object is there whole or not at all.
func readObjects(n *node.Node, study int) (out [][]byte, err error) {
	ctx, by := context.Background(), dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}
	sel := dicomsvc.Selection{StudyInstanceUIDs: []string{fmt.Sprintf("2.25.%d", study)}}
	for in, err := range n.Archive().Instances(ctx, by, sel) {
		if err != nil {
			return out, err
		}
		o, err := n.Archive().Open(ctx, by, in)
		if err != nil {
			return out, err
		}
		var b bytes.Buffer
		_, err = o.WriteTo(&b)
		if cerr := o.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return out, err
		}
		out = append(out, b.Bytes())
	}
	return out, nil
}

const (
	sealedStudy, journalledStudy = 1, 2
	damageObjects                = 6
)

// damageWorld is the disks of a ring that was stopped.
type damageWorld struct {
	disks map[string]*Disk
}

func damageConfig() Config {
	return Config{Seed: 1, Configure: func(_ string, cfg *node.Config) {
		cfg.Seal.Quiet, cfg.Seal.Old = node.Duration(1000*time.Hour), node.Duration(1000*time.Hour)
	}, Raft: func(cfg *ring.Config) { cfg.TrailingEntries = 8 }}
}

// newDamageWorld makes a ring with a sealed and a journalled study, snapshots, logs beyond them, and databases that have been
// opened more than once.
func newDamageWorld(t *testing.T) (w damageWorld) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t, damageConfig())
		defer r.Close()
		r.Found("a1", "a")
		r.Join("b1", "b")
		r.Join("c1", "c")
		r.AwaitReady()
		s := &stored{t: t, ring: r}
		s.awaitVotes(3)
		for i := range damageObjects {
			n := r.Nodes()[i%3]
			r.Await("stored", func() bool { return putDamageObject(n.Node(), damageObject(sealedStudy, i)) == nil })
		}
		r.Await("known at a1", func() bool {
			study, err := r.Nodes()[0].Node().Archive().Study(t.Context(), fmt.Sprintf("2.25.%d", sealedStudy))
			return err == nil && study.Instances == damageObjects
		})
		if err := r.Nodes()[0].Node().Archive().SealNow(t.Context(), fmt.Sprintf("2.25.%d", sealedStudy)); err != nil {
			t.Fatal(err)
		}
		for _, n := range r.Nodes() {
			if err := n.Node().Ring().Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for i := range damageObjects {
			n := r.Nodes()[i%3]
			r.Await("stored", func() bool { return putDamageObject(n.Node(), damageObject(journalledStudy, i)) == nil })
		}
		for _, n := range r.Nodes() {
			n.Stop()
			n.Start()
			r.AwaitReady()
		}
		time.Sleep(10 * time.Second)
		for _, n := range r.Nodes() {
			n.Stop()
		}
		w.disks = map[string]*Disk{}
		for _, n := range r.Nodes() {
			w.disks[n.Name] = n.Disk.Copy()
		}
	})
	return w
}

// start opens the ring again on copies of the disks, with b1 down.
func (w damageWorld) start(t *testing.T) *stored {
	r := New(t, damageConfig())
	s := &stored{t: t, ring: r}
	for _, name := range damageNames {
		n := r.add(name, "")
		n.Disk.Restore(w.disks[name])
	}
	s.a, s.b, s.c = r.Nodes()[0], r.Nodes()[1], r.Nodes()[2]
	s.a.Start()
	s.c.Start()
	return s
}

// damageCase is one row of the table.
type damageCase struct {
	kind   string
	damage damage
	seed   uint64
}

func (c damageCase) rng() *rand.Rand { return rand.New(rand.NewPCG(c.seed, *damageSeed)) }

// apply damages a file of the kind on b1's disk; it returns which, empty when there is none.
func (c damageCase) apply(b, a *Disk) string {
	rng := c.rng()
	fs, foreign := b.Mount(), a.Mount()
	pick := func(fs vfs.FS) (out []string) {
		for _, f := range filesOf(fs, damageDir, "") {
			if kindOf(f) == c.kind {
				out = append(out, path.Join(damageDir, f))
			}
		}
		return out
	}
	files := pick(fs)
	if len(files) == 0 {
		return ""
	}
	at := rng.IntN(len(files))
	d := &damaged{fs: fs, file: files[at], foreignFS: foreign}
	if len(files) > 1 {
		d.other = files[(at+1)%len(files)]
	}
	if theirs := pick(foreign); len(theirs) > 0 {
		d.foreign = theirs[rng.IntN(len(theirs))]
	}
	if !c.damage.apply(d, rng) {
		return ""
	}
	return files[at]
}

// Every file of a node is damaged in every way, one at a time. The node is as before, or returns as a new incarnation, or does not
// start and says what to do; the others do not notice, and nobody ever serves other bytes than were stored. F15, F12, F41.
func TestF15DamagedFiles(t *testing.T) {
	w := newDamageWorld(t)
	var only *regexp.Regexp
	if *damageKind != "" {
		only = regexp.MustCompile(*damageKind)
	}
	outcomes := map[string]int{}
	for _, k := range damageKinds {
		if only != nil && !only.MatchString(k.kind) {
			continue
		}
		applied := 0
		for i, d := range damages(*damageOffsets) {
			h := fnv.New64()
			fmt.Fprint(h, k.kind, d.name, i)
			c := damageCase{kind: k.kind, damage: d, seed: h.Sum64()}
			t.Run(strings.ReplaceAll(fmt.Sprintf("%s/%s %d", k.kind, d.name, i), " ", "_"), func(t *testing.T) {
				outcome := c.run(t, w)
				outcomes[outcome]++
				if outcome != "" {
					applied++
				}
			})
		}
		if applied == 0 {
			t.Errorf("there is no %s to be damaged", k.kind)
		}
	}
	t.Logf("outcomes: %v", outcomes)
}

// mayRefuse reports whether a node may refuse to start with this error, which says what to do: without the files that make it
// what it is, and among another node's files, which a wrong volume may have brought.
func (c damageCase) mayRefuse(err error) bool {
	says := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(err.Error(), text) })
	}
	switch {
	case slices.Contains(keyKinds, c.kind):
		return says("restore", "mount the volume", "set --link or --advertise")
	case c.damage.name == "another node's":
		return says("mount this node's own volume", "is the right volume mounted?")
	}
	return false
}

// run damages a file, starts the node, and checks everything. It returns how the node came back.
func (c damageCase) run(t *testing.T, w damageWorld) (outcome string) {
	synctest.Test(t, func(t *testing.T) {
		s := w.start(t)
		defer s.ring.Close()
		defer func() {
			if t.Failed() && testing.Verbose() {
				_ = s.ring.WriteLog(os.Stderr)
			}
		}()
		file := c.apply(s.b.Disk, w.disks["a1"])
		if file == "" {
			return
		}
		err := s.b.TryStart()
		switch {
		case err != nil && c.mayRefuse(err):
			outcome = "refused"
		case err != nil:
			t.Errorf("%s: does not start: %v", file, err)
		default:
			outcome = "as before"
			s.awaitVotes(3)
			if s.ring.Logged(saysAnew) {
				outcome = "new incarnation"
			} else if s.ring.Logged("made anew") || s.ring.Logged("begun anew") {
				outcome = "part made anew"
			}
		}
		s.checkDamaged(file)
		if s.ring.Logged("panicked") {
			t.Errorf("%s: a panic", file)
		}
	})
	return outcome
}

// checkDamaged reads everything at every node that runs, stores more through each, and compares their catalogs.
func (s *stored) checkDamaged(file string) {
	s.t.Helper()
	var running []*Node
	for _, n := range s.ring.Nodes() {
		if n.Node() != nil {
			running = append(running, n)
		}
	}
	count := damageObjects
	for _, n := range running {
		s.ring.Await(file+": stored at "+n.Name, func() bool {
			return n.Node() != nil && putDamageObject(n.Node(), damageObject(journalledStudy, count)) == nil
		})
		count++
	}
	for _, n := range running {
		for study, want := range map[int]int{sealedStudy: damageObjects, journalledStudy: count} {
			s.ring.Await(fmt.Sprintf("%s: study %d read at %s", file, study, n.Name), func() bool {
				if n.Node() == nil {
					return false
				}
				objects, err := readObjects(n.Node(), study)
				for _, o := range objects {
					if !isDamageObject(study, want, o) {
						s.t.Errorf("%s: %s served what was never stored", file, n.Name)
					}
				}
				return err == nil && len(objects) == want
			})
		}
	}
	s.ring.Await(file+": the same catalog everywhere", func() bool {
		var hashes [][32]byte
		for _, n := range running {
			if n.Node() == nil {
				return false
			}
			h, _, err := n.Node().Catalog().StateHash(s.t.Context())
			if err != nil {
				return false
			}
			hashes = append(hashes, h)
		}
		return len(slices.Compact(hashes)) == 1
	})
}

func isDamageObject(study, count int, o []byte) bool {
	for i := range count {
		if bytes.Equal(o, damageObject(study, i)) {
			return true
		}
	}
	return false
}
