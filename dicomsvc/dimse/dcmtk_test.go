package dimse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDCMTKEchoAndStore(t *testing.T) {
	a := &archive{}
	s := start(t, a)
	dcmtk(t, "1", "echoscu", s.target("-aec", "OSTEON")...)
	dir := t.TempDir()
	var want []string
	for i := range 3 {
		want = append(want, uidOf(i))
		part10(t, dir, uidOf(i), 64<<10)
	}
	dcmtk(t, "1", "storescu", append(s.target("-aec", "OSTEON", "+sd"), dir)...)
	dcmtk(t, "1", "dcmsend", append(s.target("-aec", "OSTEON", "+sd"), dir)...)
	dcmtk(t, "1", "storescu", append(s.target("-pdu", "4096", "+sd", "-xi"), dir)...)
	got := a.list()
	if len(got) != 9 {
		t.Fatalf("got %d objects", len(got))
	}
	for _, o := range got[:6] {
		if !strings.Contains(strings.Join(want, " "), o.uid) || o.class != ctStorage || !bytes.Equal(o.data, image(t, o.uid, 64<<10)) {
			t.Errorf("object %s differs", o.uid)
		}
	}
	if n := s.Stats().Released.Load(); n != 4 {
		t.Errorf("%d releases", n)
	}
}

func TestDCMTKQuery(t *testing.T) {
	a := &archive{}
	for i := range 5 {
		a.objects = append(a.objects, object{ctStorage, uidOf(i), ExplicitLittleEndian, image(t, uidOf(i), 32<<10), nil})
	}
	s := start(t, a)
	out := dcmtk(t, "1", "findscu", append([]string{"-v", "-S", "-aec", "OSTEON", "-k", "QueryRetrieveLevel=IMAGE", "-k", "SOPInstanceUID"}, s.target()...)...)
	if n := strings.Count(out, "Find Response"); n < 5 {
		t.Errorf("%d responses:\n%s", n, out)
	}
	out = dcmtk(t, "1", "findscu", append([]string{"-v", "-S", "--cancel", "2", "-k", "QueryRetrieveLevel=IMAGE"}, s.target()...)...)
	t.Logf("cancelled: %d bytes of output", len(out))
}

func TestDCMTKGet(t *testing.T) {
	a := &archive{}
	for i := range 5 {
		a.objects = append(a.objects, object{ctStorage, uidOf(i), ExplicitLittleEndian, image(t, uidOf(i), 512<<10), nil})
	}
	s := start(t, a)
	dir := t.TempDir()
	dcmtk(t, "1", "getscu", append([]string{"-S", "-B", "-od", dir, "-aec", "OSTEON", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=" + studyUID}, s.target()...)...)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 5 {
		t.Fatalf("got %d files", len(files))
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, o := range a.objects {
			found = found || bytes.HasSuffix(b, o.data)
		}
		if !found {
			t.Errorf("%s does not end with a data set we sent", filepath.Base(name))
		}
	}
}

func TestDCMTKMove(t *testing.T) {
	path, err := exec.LookPath("storescp")
	if err != nil {
		t.Skip("storescp is not installed")
	}
	dir := t.TempDir()
	port := freePort(t)
	scp := exec.Command(path, "-B", "-od", dir, port)
	scp.Env = append(os.Environ(), "TCP_NODELAY=1")
	if err := scp.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { scp.Process.Kill(); scp.Wait() }()
	addr := net.JoinHostPort("127.0.0.1", port)
	wait(t, "storescp to listen", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	a := &archive{destination: func(ae string) (string, bool) { return addr, ae == "STORESCP" }}
	for i := range 5 {
		a.objects = append(a.objects, object{ctStorage, uidOf(i), ExplicitLittleEndian, image(t, uidOf(i), 512<<10), nil})
	}
	s := start(t, a)
	move := func(dest string) string {
		return dcmtk(t, "1", "movescu", append([]string{"-v", "-S", "-aec", "OSTEON", "-aem", dest, "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=" + studyUID}, s.target()...)...)
	}
	out := move("STORESCP")
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 5 {
		t.Errorf("got %d files\n%s", len(files), out)
	}
	if _, err := exec.Command("movescu", append([]string{"-S", "-aem", "NOBODY", "-k", "QueryRetrieveLevel=STUDY"}, s.target()...)...).CombinedOutput(); err == nil {
		t.Log("movescu exits 0 for an unknown destination")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// The client against DCMTK's storescp.
func TestDCMTKClientStores(t *testing.T) {
	path, err := exec.LookPath("storescp")
	if err != nil {
		t.Skip("storescp is not installed")
	}
	dir := t.TempDir()
	port := freePort(t)
	scp := exec.Command(path, "-B", "-od", dir, port)
	if err := scp.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { scp.Process.Kill(); scp.Wait() }()
	s := &service{addr: net.JoinHostPort("127.0.0.1", port)}
	wait(t, "storescp to listen", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	c := s.dial(t, s.dialConfig(VerificationClass, ctStorage))
	if err := c.Echo(t.Context()); err != nil {
		t.Fatal(err)
	}
	data := image(t, uidOf(1), 512<<10)
	res, err := c.Store(t.Context(), StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(1), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(data)})
	if err != nil || res.Status != StatusSuccess {
		t.Fatalf("got %v, %v", res, err)
	}
	if err := c.Release(t.Context()); err != nil {
		t.Error(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 1 {
		t.Fatalf("got %d files", len(files))
	}
	if b, err := os.ReadFile(files[0]); err != nil || !bytes.HasSuffix(b, data) {
		t.Errorf("the file does not end with our data set: %v", err)
	}
}

// discard is a handler that keeps nothing.
func discard() *archive {
	return &archive{storing: func(_ context.Context, r *StoreRequest) StoreResponse {
		io.Copy(io.Discard, struct{ io.Reader }{r.Data})
		return StoreResponse{}
	}}
}

// BenchmarkDCMTKStore measures storescu into a discarding handler, with and
// without Nagle's algorithm at the sender.
func BenchmarkDCMTKStore(b *testing.B) {
	for _, env := range []string{"1", ""} {
		b.Run("TCP_NODELAY="+env, func(b *testing.B) {
			s := start(b, discard())
			dir := b.TempDir()
			for i := range 20 {
				part10(b, dir, uidOf(i), 512<<10)
			}
			const repeat = 20
			b.SetBytes(512 << 10 * 20 * repeat)
			for b.Loop() {
				began, before := time.Now(), s.Stats().Stores.Load()
				dcmtk(b, env, "storescu", append(s.target("--repeat", fmt.Sprint(repeat), "+sd"), dir)...)
				b.ReportMetric(float64(s.Stats().Stores.Load()-before)/time.Since(began).Seconds(), "inst/s")
			}
		})
	}
}

// BenchmarkClientStore measures our own client into a discarding handler.
func BenchmarkClientStore(b *testing.B) {
	s := start(b, discard())
	c := s.dial(b, s.dialConfig())
	data := image(b, uidOf(1), 512<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		res, err := c.Store(context.Background(), StoreArgs{SOPClass: ctStorage, SOPInstance: uidOf(1), Syntax: ExplicitLittleEndian, Data: bytes.NewReader(data)})
		if err != nil || res.Status != 0 {
			b.Fatal(res, err)
		}
	}
}
