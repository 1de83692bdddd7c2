package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

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
