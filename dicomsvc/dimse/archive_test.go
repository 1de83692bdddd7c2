package dimse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dul"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ctStorage = "1.2.840.10008.5.1.4.1.1.2"
	mrStorage = "1.2.840.10008.5.1.4.1.1.4"
	jpegLS    = "1.2.840.10008.1.2.4.80"
	studyUID  = "2.25.1001"
	seriesUID = "2.25.1002"
)

type object struct {
	class, uid, syntax string
	data               []byte
	from               *StoreRequest
}

// archive is a tiny archive in memory. Fields that are funcs replace a
// service.
type archive struct {
	Unsupported
	destination func(ae string) (string, bool)

	associate func(*dul.Request) *dul.Rejection
	storing   func(context.Context, *StoreRequest) StoreResponse
	finding   func(context.Context, *FindRequest, func(*dicom.Dataset, uint16) error) Result
	moving    func(context.Context, *MoveRequest, *Progress) Result
	getting   func(context.Context, *GetRequest, *Getter) Result
	notifying func(context.Context, *NRequest) NResponse
	ended     func(error)

	mu      sync.Mutex
	objects []object
}

func policy() dul.Policy {
	return dul.Policy{
		Syntaxes: func(abstract string) []string {
			switch abstract {
			case ctStorage, mrStorage:
				return []string{ExplicitLittleEndian, ImplicitLittleEndian, jpegLS}
			case VerificationClass, StudyRootFind, StudyRootMove, StudyRootGet, PatientRootFind, StorageCommitmentClass, ModalityPerformedStep:
				return []string{ExplicitLittleEndian, ImplicitLittleEndian}
			}
			return nil
		},
		RequestorOrder: true,
		SCPRole:        func(abstract string) bool { return abstract == ctStorage || abstract == mrStorage },
	}
}

func (a *archive) Associate(_ context.Context, r *dul.Request) Decision {
	if a.associate != nil {
		if rej := a.associate(r); rej != nil {
			return Decision{Rejection: rej}
		}
	}
	return Decision{Acceptance: policy().Answer(r), Value: r.CallingAE, Ended: a.ended}
}

func (a *archive) Store(ctx context.Context, r *StoreRequest) StoreResponse {
	if a.storing != nil {
		return a.storing(ctx, r)
	}
	b, err := io.ReadAll(r.Data)
	if err != nil {
		return StoreResponse{Status: StatusOutOfResources}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects = append(a.objects, object{r.SOPClass, r.SOPInstance, r.Syntax, b, r})
	return StoreResponse{}
}

func (a *archive) list() []object {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]object(nil), a.objects...)
}

func (a *archive) Find(ctx context.Context, r *FindRequest, yield func(*dicom.Dataset, uint16) error) Result {
	if a.finding != nil {
		return a.finding(ctx, r, yield)
	}
	for _, o := range a.list() {
		if err := yield(identifier("IMAGE", o.uid), StatusPending); err != nil {
			return Result{Status: StatusProcessingFailure}
		}
	}
	return Result{}
}

func identifier(level, sopInstance string) *dicom.Dataset {
	ds := &dicom.Dataset{}
	ds.SetStrings(dicom.QueryRetrieveLevel, level)
	ds.SetStrings(dicom.StudyInstanceUID, studyUID)
	ds.SetStrings(dicom.SeriesInstanceUID, seriesUID)
	ds.SetStrings(dicom.SOPInstanceUID, sopInstance)
	return ds
}

func (a *archive) Get(ctx context.Context, r *GetRequest, g *Getter) Result {
	if a.getting != nil {
		return a.getting(ctx, r, g)
	}
	all := a.list()
	n := Counters{Remaining: len(all)}
	var failed []string
	for _, o := range all {
		status, err := g.Store(StoreArgs{SOPClass: o.class, SOPInstance: o.uid, Syntax: o.syntax, From: bytes.NewReader(o.data)})
		n.Remaining--
		switch {
		case errors.Is(err, ErrCancelled):
			return Result{Status: StatusCancel, Counters: &n}
		case err == nil && IsSuccess(status):
			n.Completed++
		default:
			n.Failed++
			failed = append(failed, o.uid)
		}
		if n.Remaining > 0 {
			g.Pending(n)
		}
	}
	return Result{Status: outcome(n), Counters: &n, FailedInstances: failed}
}

func outcome(n Counters) uint16 {
	switch {
	case n.Failed > 0 && n.Completed == 0:
		return StatusSubOperations
	case n.Failed > 0:
		return StatusCoerced
	}
	return StatusSuccess
}

func (a *archive) Move(ctx context.Context, r *MoveRequest, p *Progress) Result {
	if a.moving != nil {
		return a.moving(ctx, r, p)
	}
	addr, ok := a.destination(r.Destination)
	if !ok {
		return Result{Status: StatusUnknownDestination}
	}
	all := a.list()
	n := Counters{Remaining: len(all)}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return Result{Status: StatusSubOperations, Counters: &n}
	}
	cfg := ClientConfig{Association: dul.RequestorConfig{CallingAE: "OSTEON", CalledAE: r.Destination,
		Contexts: []dul.ProposedContext{{ID: 1, AbstractSyntax: ctStorage, TransferSyntaxes: []string{ExplicitLittleEndian}}}}}
	client, err := Dial(ctx, conn, cfg)
	if err != nil {
		return Result{Status: StatusSubOperations, Counters: &n}
	}
	defer client.Close()
	var failed []string
	for _, o := range all {
		res, err := client.Store(ctx, StoreArgs{SOPClass: o.class, SOPInstance: o.uid, Syntax: o.syntax, Data: bytes.NewReader(o.data),
			MoveOriginator: r.Session.Value.(string), MoveOriginatorID: r.MessageID})
		n.Remaining--
		if err == nil && IsSuccess(res.Status) {
			n.Completed++
		} else {
			n.Failed++
			failed = append(failed, o.uid)
		}
		if n.Remaining > 0 {
			p.Pending(n)
		}
	}
	client.Release(ctx)
	return Result{Status: outcome(n), Counters: &n, FailedInstances: failed}
}

func (a *archive) Notify(ctx context.Context, r *NRequest) NResponse {
	if a.notifying != nil {
		return a.notifying(ctx, r)
	}
	return a.Unsupported.Notify(ctx, r)
}

// service is a running server.
type service struct {
	*Server
	addr string
	stop context.CancelFunc
	done chan error
}

// start serves a handler until the test ends.
func start(t testing.TB, h Handler, change ...func(*ServerConfig)) *service {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ServerConfig{Handler: h, Grace: 5 * time.Second, MaxPerHost: 1000, Timers: dul.Timers{Linger: 200 * time.Millisecond}}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{Server: srv, addr: l.Addr().String(), stop: cancel, done: make(chan error, 1)}
	go func() { s.done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-s.done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// wait is for a counter or state that another goroutine is about to change.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (s *service) dialConfig(classes ...string) ClientConfig {
	if len(classes) == 0 {
		classes = []string{VerificationClass, ctStorage, StudyRootFind, StudyRootMove, StudyRootGet}
	}
	cfg := ClientConfig{Association: dul.RequestorConfig{CallingAE: "TESTSCU", CalledAE: "OSTEON", Timers: dul.Timers{Linger: 200 * time.Millisecond}}}
	for i, c := range classes {
		cfg.Association.Contexts = append(cfg.Association.Contexts,
			dul.ProposedContext{ID: byte(2*i + 1), AbstractSyntax: c, TransferSyntaxes: []string{ExplicitLittleEndian}})
	}
	return cfg
}

func (s *service) dial(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(context.Background(), conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); c.Close() })
	return c
}

// image makes the data set of a CT image with n bytes of pixel data.
func image(t testing.TB, uid string, n int) []byte {
	t.Helper()
	ds := identifier("", uid)
	ds.Remove(dicom.QueryRetrieveLevel)
	ds.SetStrings(dicom.SOPClassUID, ctStorage)
	ds.SetStrings(dicom.PatientID, "P1")
	ds.SetStrings(dicom.PatientName, "Test^Subject")
	ds.SetStrings(dicom.Modality, "CT")
	ds.SetStrings(dicom.StudyDate, "20260101")
	ds.SetStrings(dicom.PhotometricInterpretation, "MONOCHROME2")
	for tag, v := range map[dicom.Tag]int{dicom.Rows: 512, dicom.Columns: n / 1024, dicom.BitsAllocated: 16, dicom.BitsStored: 16,
		dicom.HighBit: 15, dicom.PixelRepresentation: 0, dicom.SamplesPerPixel: 1} {
		ds.Set(dicom.Element{Tag: tag, VR: dicom.VROf(tag), Value: binary.LittleEndian.AppendUint16(nil, uint16(v))})
	}
	pixels := make([]byte, n)
	for i := range pixels {
		pixels[i] = byte(i * 7)
	}
	ds.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.VROf(dicom.PixelData), Value: pixels})
	b, err := ds.Encode(nil, ExplicitLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// part10 writes an image as a file.
func part10(t testing.TB, dir, uid string, n int) string {
	t.Helper()
	b := dicom.AppendMeta(nil, ctStorage, uid, ExplicitLittleEndian, dul.ImplementationClassUID, dul.ImplementationVersion, "TEST")
	name := filepath.Join(dir, uid+".dcm")
	if err := os.WriteFile(name, append(b, image(t, uid, n)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// dcmtk runs a DCMTK program, or skips the test when there is none.
func dcmtk(t testing.TB, env string, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "TCP_NODELAY="+env)
	if env == "" {
		cmd.Env = nil
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "TCP_NODELAY=") {
				cmd.Env = append(cmd.Env, v)
			}
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (s *service) target(args ...string) []string {
	host, port, _ := net.SplitHostPort(s.addr)
	return append(args, host, port)
}

func uidOf(n int) string { return fmt.Sprintf("2.25.1003.%d", n) }
