package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

const secondaryCapture = "1.2.840.10008.5.1.4.1.1.7"

// dcmtkPath finds a program of DCMTK, which the tests need.
func dcmtkPath(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is needed: install dcmtk (apt-get install dcmtk): %v", program, err)
	}
	return path
}

// storescp is DCMTK's storage SCP: it accepts every class and writes what it receives bit for bit.
type storescp struct {
	title, address, dir string
	accepts             map[string]bool // syntaxes that its --accept-all accepts
}

// takes reports whether storescp takes an instance: in a syntax that it knows, and even (PS3.8 Annex E.2).
func (p *storescp) takes(f *corpusFile) bool { return p.accepts[f.syntax] && len(f.data)%2 == 0 }

// takesDecoded reports whether storescp takes an instance with its pixels decoded, whose syntax it does not know.
func (p *storescp) takesDecoded(f *corpusFile) bool {
	return !p.accepts[f.syntax] && dicomsvc.Convertible(f.syntax, dicom.ExplicitVRLittleEndian)
}

// startStorescp runs storescp until the end of the test.
func startStorescp(t *testing.T, title string) *storescp {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &storescp{title: title, dir: filepath.Join(t.TempDir(), title), accepts: map[string]bool{}}
	p.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dcmtkPath(t, "storescp"), "--accept-all", "--promiscuous", "--bit-preserving", "--aetitle", title, "--output-directory", p.dir, strconv.Itoa(port))
	cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && output.Len() > 0 {
			t.Logf("storescp %s:\n%s", title, output.String())
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("storescp does not listen: %v\n%s", err, output.String())
		}
	}
	p.learn(t)
	return p
}

// learn asks storescp which syntaxes it takes; the common ones must be among them.
func (p *storescp) learn(t *testing.T) {
	t.Helper()
	var contexts []dul.ProposedContext
	dicom.TransferSyntaxes(func(s dicom.Syntax) bool {
		contexts = append(contexts, dul.ProposedContext{ID: byte(2*len(contexts) + 1), AbstractSyntax: secondaryCapture, TransferSyntaxes: []string{s.UID}})
		return true
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	client, err := dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{CallingAE: "TEST", CalledAE: p.title, Contexts: contexts}})
	if err != nil {
		t.Fatalf("associate with storescp: %v", err)
	}
	defer client.Close()
	for _, pc := range client.Contexts() {
		p.accepts[pc.TransferSyntax] = true
	}
	if err := client.Release(ctx); err != nil {
		t.Error(err)
	}
	for _, syntax := range []string{
		dicom.ImplicitVRLittleEndian, dicom.ExplicitVRLittleEndian, dicom.ExplicitVRBigEndian, dicom.DeflatedExplicitVRLittleEndian,
		dicom.JPEGBaseline8Bit, dicom.JPEGExtended12Bit, dicom.JPEGLosslessSV1, dicom.JPEGLSLossless,
		dicom.JPEGLSNearLossless, dicom.JPEG2000Lossless, dicom.JPEG2000, dicom.RLELossless, dicom.MPEG2MPML, dicom.MPEG4HP41,
	} {
		if !p.accepts[syntax] {
			t.Errorf("storescp --accept-all refuses %s", syntax)
		}
	}
}

// serveStorage runs a DIMSE server of ours until the end of the test and returns its address.
func serveStorage(t *testing.T, h dimse.Handler) string {
	t.Helper()
	server, err := dimse.NewServer(dimse.ServerConfig{Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		server.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l.Addr().String()
}

// dcmtkRun runs a program of DCMTK and returns what it printed.
func dcmtkRun(t *testing.T, env []string, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, dcmtkPath(t, program), args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// target is the node's address as DCMTK's programs take it.
func (n *testNode) target() []string {
	host, port, _ := net.SplitHostPort(n.DIMSE)
	return []string{"-aec", n.AET, host, port}
}

// dcmtkProposals are the options that make storescu propose a syntax.
var dcmtkProposals = map[string]string{
	dicom.ImplicitVRLittleEndian: "-xi", dicom.ExplicitVRLittleEndian: "-xe", dicom.ExplicitVRBigEndian: "-xb",
	dicom.DeflatedExplicitVRLittleEndian: "-xd", dicom.JPEGBaseline8Bit: "-xy", dicom.JPEGExtended12Bit: "-xx",
	dicom.JPEGLosslessSV1: "-xs", dicom.JPEGLSLossless: "-xt", dicom.JPEGLSNearLossless: "-xu",
	dicom.JPEG2000Lossless: "-xv", dicom.JPEG2000: "-xw", dicom.RLELossless: "-xr",
}

// TestDCMTK works a ring with DCMTK's programs: what storescu sends to one node, with Nagle's algorithm and
// without, findscu finds at a second and movescu and getscu retrieve from a third, as WADO-RS gives it.
func TestDCMTK(t *testing.T) {
	peer := startStorescp(t, "STORESCP")
	r := startRing(t, 3, 1, "--seal-quiet", "1h", "--ae", peer.title+"="+peer.address)
	in, find, out := r.nodes[0], r.nodes[1], r.nodes[2]
	for _, n := range r.nodes {
		dcmtkRun(t, nil, "echoscu", n.target()...)
	}
	samples, err := readSamples("../../testdata/samples")
	if err != nil {
		t.Fatal(err)
	}
	var sent []sample
	for _, s := range samples {
		proposal, ok := dcmtkProposals[s.syntax]
		if !ok { // DCMTK 3.6 does not know it
			continue
		}
		args := append([]string{"-R", proposal}, append(in.target(), s.path)...)
		dcmtkRun(t, []string{"TCP_NODELAY=1"}, "storescu", args...)
		dcmtkRun(t, nil, "storescu", args...) // the same again: nothing new
		sent = append(sent, s)
	}
	if len(sent) < len(samples)-5 {
		t.Errorf("storescu can send %d of %d samples only", len(sent), len(samples))
	}
	for uid, instances := range byStudy(sent) {
		r.eventually("the study of "+instances[0].path+" found by findscu", func() bool {
			args := append([]string{"-v", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=" + uid,
				"-k", "NumberOfStudyRelatedInstances", "-k", "PatientName"}, find.target()...)
			answer := dcmtkRun(t, nil, "findscu", args...)
			return strings.Count(answer, "Pending") == 1 && strings.Contains(answer, "IS ["+strconv.Itoa(len(instances)))
		})
		r.awaitApplied(find, out)
		checkDCMTKRetrieval(t, out, peer, uid, instances)
	}
}

// checkDCMTKRetrieval moves and gets a study and compares what came with WADO-RS's answer.
func checkDCMTKRetrieval(t *testing.T, n *testNode, peer *storescp, uid string, instances []sample) {
	t.Helper()
	want, err := wadoStudy(context.Background(), n, uid)
	if err != nil || len(want) != len(instances) {
		t.Fatalf("WADO-RS gives %d of %d instances: %v", len(want), len(instances), err)
	}
	keys := []string{"-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=" + uid}
	dcmtkRun(t, nil, "movescu", append(append(keys[:len(keys):len(keys)], "-aem", peer.title), n.target()...)...)
	moved, err := peer.take()
	if err != nil {
		t.Fatal(err)
	}
	compareReceived(t, "movescu, study of "+instances[0].path, moved, want)
	native := map[string]received{} // getscu proposes uncompressed syntaxes
	for uid, in := range want {
		if syntax, ok := dicom.LookupSyntax(in.syntax); ok && !syntax.Encapsulated && !syntax.Deflated {
			native[uid] = in
		}
	}
	if len(native) < len(want) {
		return
	}
	dir := t.TempDir()
	prefer := "+xe"
	for _, in := range native { // the instances of a sample study are in one syntax
		if in.syntax == dicom.ExplicitVRBigEndian {
			prefer = "+xb"
		}
	}
	dcmtkRun(t, nil, "getscu", append(append(keys[:len(keys):len(keys)], "+B", prefer, "-od", dir), n.target()...)...)
	got, err := (&storescp{dir: dir}).take()
	if err != nil {
		t.Fatal(err)
	}
	compareReceived(t, "getscu, study of "+instances[0].path, got, native)
}

// compareReceived wants the same bytes, or where a program asked for another syntax the same values.
func compareReceived(t *testing.T, what string, got, want map[string]received) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d instances, want %d", what, len(got), len(want))
	}
	for uid, in := range want {
		g := got[uid]
		equal := bytes.Equal(g.data, in.data)
		if g.syntax != in.syntax {
			equal = bytes.Equal(explicitBytes(t, g), explicitBytes(t, in))
		}
		if !equal {
			t.Errorf("%s: %d bytes in %s differ from %d in %s", what, len(g.data), g.syntax, len(in.data), in.syntax)
		}
	}
}

// explicitBytes is a native data set in Explicit VR Little Endian.
func explicitBytes(t *testing.T, in received) []byte {
	t.Helper()
	d, err := dicom.Decode(in.data, in.syntax, dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.EncodeCharset(nil, dicom.ExplicitVRLittleEndian, d.Charset())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A sender that leaves Nagle's algorithm on waits for our acknowledgement in every C-STORE. It must not
// wait for the kernel's delayed one, 40 ms and more, which it meets where an instance fits into few segments.
func TestDCMTKWithNagle(t *testing.T) {
	const count, delayed = 40, 40 * time.Millisecond
	r := startRing(t, 1, 1)
	dir := t.TempDir()
	for i := range count {
		in := noiseInstance(1, 1, i+1, 20<<10, 1)
		file := dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "2.25.1", "", "")
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".dcm"), append(file, in.data...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	send := func(env ...string) time.Duration {
		began := time.Now()
		dcmtkRun(t, env, "storescu", append([]string{"-R", "+sd"}, append(r.nodes[0].target(), dir)...)...)
		return time.Since(began)
	}
	var with, without time.Duration
	for range 3 { // a busy machine may slow one of them
		without, with = send("TCP_NODELAY=1"), send()
		t.Logf("%d instances: %s with TCP_NODELAY, %s with Nagle's algorithm", count, without, with)
		if with < without+count*delayed/2 {
			return
		}
	}
	t.Errorf("%d instances take %s with Nagle's algorithm, %s without", count, with, without)
}
