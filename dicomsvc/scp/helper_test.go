package scp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/ring"
	"osteon/raft/vault"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2.(*tableCacheShard).releaseLoop"))
}

const (
	ctStorage = "1.2.840.10008.5.1.4.1.1.2"
	mrStorage = "1.2.840.10008.5.1.4.1.1.4"
	explicit  = dicom.ExplicitVRLittleEndian
	implicit  = dicom.ImplicitVRLittleEndian
)

// soloRing applies what is proposed at once, as a ring of one voter does.
type soloRing struct {
	mu  sync.Mutex
	cat *catalog.Catalog
}

func (s *soloRing) Propose(_ context.Context, data []byte) (uint64, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := s.cat.Applied() + 1
	return index, s.cat.Apply([]ring.Entry{{Index: index, Term: 1, Data: data}})[0], nil
}

// openArchive opens a real archive of one node on a directory of its own.
func openArchive(t testing.TB, dir string, change ...func(*dicomsvc.Config)) *dicomsvc.Archive {
	t.Helper()
	ringID, _ := place.NewRingID(rand.Reader)
	id, _ := place.NewNodeID(rand.Reader)
	disk, _ := place.NewDiskID(rand.Reader)
	node := place.Node{ID: id, Name: "a1", Site: "a", Disk: disk, Live: true, Data: true}
	root, err := vault.CreateRootKeyFile(vfs.Default, dir+"/root.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := vfs.Default.MkdirAll(dir+"/vault", 0o700); err != nil {
		t.Fatal(err)
	}
	keys, err := vault.Create(vault.Config{FS: vfs.Default, Dir: dir + "/vault", Ring: ringID, Root: root, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Open(catalog.Config{FS: keys.FS(), Dir: dir + "/catalog", MAC: keys.MAC, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	cat.SetProposer(&soloRing{cat: cat})
	topology := func() []place.Node { return []place.Node{node} }
	cfg := dicomsvc.Config{
		Ring: ringID, Self: id, Catalog: cat, Vault: keys, Topology: topology,
		Survive: func() place.Survive { return "" },
		Store: func(cb dicomsvc.Callbacks) (*erasure.Store, error) {
			return erasure.Open(erasure.Config{
				FS: vfs.Default, Dir: dir, Ring: ringID, Self: id, Site: "a", Disk: disk, Vault: keys, Topology: topology,
				Held:     func(k journal.Key, note []byte, from place.NodeID) { cb.Held(k, note, from) },
				BadShard: cb.BadShard, Now: time.Now, Rand: rand.Reader,
			})
		},
		Seal: dicomsvc.SealPolicy{Quiet: time.Hour, Old: time.Hour}, Now: time.Now, Rand: rand.Reader,
	}
	for _, f := range change {
		f(&cfg)
	}
	a, err := dicomsvc.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.Run(context.Background())
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), cat.Close()); err != nil {
			t.Error(err)
		}
	})
	return a
}

// service is a Server over a real archive, on a port of its own.
type service struct {
	*Server
	t       testing.TB
	dir     string
	archive *dicomsvc.Archive
	addr    string

	mu           sync.Mutex
	destinations map[string]string
}

func start(t testing.TB, change ...func(*Config)) *service {
	t.Helper()
	s := &service{t: t, dir: t.TempDir(), destinations: map[string]string{}}
	s.archive = openArchive(t, s.dir)
	cfg := Config{
		Archive: s.archive, AETitle: "OSTEON", Promiscuous: true, Now: time.Now, Grace: 5 * time.Second,
		Destination: func(title string) []string {
			s.mu.Lock()
			defer s.mu.Unlock()
			if addr, ok := s.destinations[title]; ok {
				return []string{addr}
			}
			return nil
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if s.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

func (s *service) destination(title, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.destinations[title] = addr
}

// associate opens an association; each of contexts is an abstract syntax and transfer syntaxes.
func (s *service) associate(change func(*dul.RequestorConfig), contexts ...[]string) (*dimse.Client, error) {
	s.t.Helper()
	cfg := dul.RequestorConfig{CallingAE: "TESTSCU", CalledAE: "OSTEON", Timers: dul.Timers{Linger: 200 * time.Millisecond}}
	for i, c := range contexts {
		cfg.Contexts = append(cfg.Contexts, dul.ProposedContext{ID: byte(2*i + 1), AbstractSyntax: c[0], TransferSyntaxes: c[1:]})
	}
	if change != nil {
		change(&cfg)
	}
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := dimse.Dial(context.Background(), conn, dimse.ClientConfig{Association: cfg})
	if err == nil {
		s.t.Cleanup(func() { conn.Close(); c.Close() })
	}
	return c, err
}

func (s *service) client(contexts ...[]string) *dimse.Client {
	s.t.Helper()
	c, err := s.associate(nil, contexts...)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// put stores a data set straight in the archive.
func (s *service) put(d *dicom.Dataset, syntax string) []byte {
	s.t.Helper()
	b, err := d.Encode(nil, syntax)
	if err != nil {
		s.t.Fatal(err)
	}
	s.putBytes(b, syntax)
	return b
}

func (s *service) putBytes(b []byte, syntax string) dicomsvc.PutResult {
	s.t.Helper()
	r, err := s.archive.Put(context.Background(), dicomsvc.PutRequest{
		Principal: dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"}, TransferSyntaxUID: syntax, Body: bytes.NewReader(b),
	})
	if err != nil {
		s.t.Fatalf("put: %v", err)
	}
	return r
}

// image is a data set with n bytes of noise as pixels: instance number k of its series. set changes it.
func image(study, series, sop string, n int, set ...func(*dicom.Dataset)) *dicom.Dataset {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, ctStorage)
	d.SetStrings(dicom.SOPInstanceUID, sop)
	d.SetStrings(dicom.StudyDate, "20250102")
	d.SetStrings(dicom.Modality, "CT")
	d.SetStrings(dicom.PatientName, "Doe^Jane")
	d.SetStrings(dicom.PatientID, "P1")
	d.SetStrings(dicom.StudyInstanceUID, study)
	d.SetStrings(dicom.SeriesInstanceUID, series)
	d.SetInt(dicom.InstanceNumber, 1)
	noise := make([]byte, n&^1)
	rand.Read(noise)
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: noise})
	for _, f := range set {
		f(d)
	}
	return d
}

// sample reads a sample file: its data set and what it is.
type sample struct {
	path, class, instance, study, syntax string
	data                                 []byte
}

func samples(t testing.TB, names ...string) []sample {
	t.Helper()
	if len(names) == 0 {
		all, _ := filepath.Glob("../../testdata/samples/*.dcm")
		for _, p := range all {
			names = append(names, filepath.Base(p))
		}
	}
	var list []sample
	for _, name := range names {
		x := sample{path: filepath.Join("../../testdata/samples", name)}
		b, err := os.ReadFile(x.path)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, x.from(t, b))
	}
	return list
}

func (x sample) from(t testing.TB, file []byte) sample {
	t.Helper()
	_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(file))
	if err != nil {
		t.Fatalf("%s: %v", x.path, err)
	}
	x.syntax = syntax
	if x.data, err = io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
	h, err := dicom.NewScanner(bytes.NewReader(x.data), syntax, dicom.Limits{}).Header()
	if err != nil {
		t.Fatalf("%s: %v", x.path, err)
	}
	x.class, x.instance, x.study = h.String(dicom.SOPClassUID), h.String(dicom.SOPInstanceUID), h.String(dicom.StudyInstanceUID)
	return x
}

// identifier makes an identifier of tags and values; a value "" makes a return key.
func identifier(level string, keys ...any) *dicom.Dataset {
	id := new(dicom.Dataset)
	if level != "" {
		id.SetStrings(dicom.QueryRetrieveLevel, level)
	}
	for i := 0; i < len(keys); i += 2 {
		if v := keys[i+1].(string); v != "" {
			id.SetStrings(keys[i].(dicom.Tag), strings.Split(v, `\`)...)
		} else {
			id.SetStrings(keys[i].(dicom.Tag))
		}
	}
	return id
}

// find asks and returns what was answered.
func (s *service) find(model string, id *dicom.Dataset) ([]*dicom.Dataset, *dimse.StatusError) {
	s.t.Helper()
	return findOn(s.t, s.client([]string{model, explicit}), model, id)
}

func findOn(t testing.TB, c *dimse.Client, model string, id *dicom.Dataset) (list []*dicom.Dataset, status *dimse.StatusError) {
	t.Helper()
	for m, err := range c.Find(context.Background(), dimse.QueryArgs{SOPClass: model, Identifier: id}) {
		if errors.As(err, &status) {
			return list, status
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list, nil
}

// dcmtk runs a DCMTK program, or skips the test when there is none.
func dcmtk(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tool is dcmtk for a program that has to succeed against the service.
func (s *service) tool(name string, args ...string) string {
	s.t.Helper()
	host, port := s.hostPort()
	out, err := dcmtk(s.t, name, append(args, host, port)...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

// wait is for a state that another goroutine or process is about to reach.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *service) hostPort() (host, port string) {
	host, port, _ = net.SplitHostPort(s.addr)
	return host, port
}
