package scp

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// storescp starts DCMTK's receiver, which writes what it gets bit for bit.
func (s *service) storescp(args ...string) (dir string) {
	s.t.Helper()
	path, err := exec.LookPath("storescp")
	if err != nil {
		s.t.Skip("storescp is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	dir = s.t.TempDir()
	cmd := exec.Command(path, append(args, "-B", "-od", dir, port)...)
	cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	wait(s.t, "storescp to listen", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	s.destination("STORESCP", addr)
	return dir
}

// files reads what a DCMTK tool wrote, by SOP Instance UID.
func files(t testing.TB, dir string) map[string]sample {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	out := map[string]sample{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		x := sample{path: name}.from(t, b)
		out[x.instance] = x
	}
	return out
}

// trim drops the padding of texts.
func trim(d *dicom.Dataset) {
	for i := range d.Elements {
		el := &d.Elements[i]
		if el.VR.IsString() {
			el.Value = bytes.TrimRight(el.Value, " \x00")
		}
		for _, item := range el.Items {
			trim(item)
		}
	}
}

// meaning is what DCMTK keeps of a data set: it drops trailing padding and blanks and chooses the lengths of
// sequences anew.
func (x sample) meaning(t testing.TB) []byte {
	t.Helper()
	scanner := dicom.NewScanner(bytes.NewReader(x.data), x.syntax, dicom.Limits{})
	if err := scanner.Rest(); err != nil {
		t.Fatal(err)
	}
	d := scanner.Dataset()
	trim(d)
	pixel := d.Get(dicom.PixelData)
	if pixel == nil || dicom.SyntaxOf(x.syntax).Deflated {
		d.Remove(dicom.PixelData)
		return encode(t, d, explicit)
	}
	at, n := pixel.Bulk.Offset, pixel.Bulk.Length
	if pixel.Bulk.Encapsulated {
		n = int64(bytes.LastIndex(x.data, []byte{0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0})) - at
	}
	d.Remove(dicom.PixelData)
	return append(encode(t, d, explicit), x.data[at:at+n]...)
}

// TestBehaviour33And37DCMTKMove moves real objects of every syntax that storescp takes, and then those that it
// takes only rewritten.
// Behaviours 33, 37.
func TestBehaviour33And37DCMTKMove(t *testing.T) {
	s := start(t)
	stored := map[string]sample{}
	for _, x := range samples(t, "ct-small.dcm", "mr-implicit.dcm", "mr-bigendian.dcm", "mr-rle.dcm", "ct-jpeg2000.dcm", "us-multiframe-jpeg.dcm", "sr-basic.dcm", "sc-deflated.dcm") {
		if s.putBytes(x.data, x.syntax).Outcome == dicomsvc.OutcomeStored {
			stored[x.instance] = x
		}
	}
	dir := s.storescp("+xa")
	for _, x := range stored {
		out := s.tool("movescu", "-v", "-S", "-aec", "OSTEON", "-aem", "STORESCP", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="+x.study)
		if !strings.Contains(out, "Success") {
			t.Errorf("%s: %s", x.path, out)
		}
	}
	got := files(t, dir)
	if len(got) < len(stored)-1 {
		t.Errorf("%d files, want about %d", len(got), len(stored))
	}
	for _, x := range got {
		if want := stored[x.instance]; want.instance == "" || x.syntax == want.syntax && !bytes.Equal(x.meaning(t), want.meaning(t)) {
			t.Errorf("%s arrived different", x.path)
		}
	}
	host, port := s.hostPort()
	out, _ := dcmtk(t, "movescu", "-v", "-S", "-aec", "OSTEON", "-aem", "NOBODY", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3", host, port)
	if !strings.Contains(out, "MoveDestinationUnknown") {
		t.Errorf("unknown destination: %s", out)
	}
	// Only Implicit VR Little Endian: native ones come, rewritten, and DCMTK can read them.
	dir = s.storescp("+xi")
	for _, x := range stored {
		dcmtk(t, "movescu", "-S", "-aec", "OSTEON", "-aem", "STORESCP", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="+x.study, host, port)
	}
	native := 0
	for _, x := range files(t, dir) {
		native++
		if x.syntax != implicit {
			t.Errorf("%s came in %s", x.path, x.syntax)
		}
		if out, err := dcmtk(t, "dcmdump", "-q", x.path); err != nil {
			t.Errorf("%s: %v %s", x.path, err, out)
		}
	}
	if native < 4 {
		t.Errorf("%d objects came rewritten", native)
	}
}

// Behaviour 13.
func TestBehaviour13DCMTKGet(t *testing.T) {
	s := start(t)
	stored := map[string]sample{}
	for _, x := range samples(t, "ct-small.dcm", "mr-epi-001.dcm", "mr-epi-002.dcm", "mr-epi-003.dcm") {
		s.putBytes(x.data, x.syntax)
		stored[x.instance] = x
	}
	for _, x := range stored {
		dir := t.TempDir()
		s.tool("getscu", "-S", "-B", "-od", dir, "-aec", "OSTEON", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="+x.study)
		got, ok := files(t, dir)[x.instance]
		if !ok || got.syntax == x.syntax && !bytes.Equal(got.meaning(t), x.meaning(t)) {
			t.Errorf("%s did not come back the same", x.path)
		}
	}
}
