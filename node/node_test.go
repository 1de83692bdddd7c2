package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

const testPatience = 60 * time.Second

// testConfig is a node of its own directory on ports that are free now.
func testConfig(t *testing.T, dir string) Config {
	t.Helper()
	cfg := Config{Dir: dir}
	cfg.DIMSE.Listen, cfg.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0"
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Link.Listen = conn.LocalAddr().String()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Fill()
	return cfg
}

// running is a node that serves in this process.
type running struct {
	*Node
	stop  context.CancelFunc
	ended chan error
}

func startNode(t *testing.T, cfg Config) *running {
	t.Helper()
	n, err := Open(cfg, Env{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Node: n, stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- n.Serve(ctx) }() // ends with stop
	t.Cleanup(cancel)
	return r
}

// end stops the node and wants an orderly end.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(testPatience):
		t.Fatal("serve does not end")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testPatience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %s", what, testPatience)
		}
	}
}

func put(n *Node, number int) error {
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.SetStrings(dicom.SOPInstanceUID, fmt.Sprintf("2.25.1.1.%d", number))
	d.SetStrings(dicom.StudyInstanceUID, "2.25.1")
	d.SetStrings(dicom.SeriesInstanceUID, "2.25.1.1")
	d.SetStrings(dicom.PatientID, "P")
	data, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		return err
	}
	_, err = n.Archive().Put(context.Background(), dicomsvc.PutRequest{
		Principal:         dicomsvc.Principal{Kind: dicomsvc.PrincipalAE, Name: "TEST"},
		TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(data),
	})
	return err
}

// Two nodes of one ring in this process store, seal, stop and start again, and leave no goroutine behind.
func TestServeLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	root := t.TempDir()
	first := testConfig(t, filepath.Join(root, "a1"))
	if _, err := Init(ctx, first, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); err != nil {
		t.Fatal(err)
	}
	a := startNode(t, first)
	await(t, "first node ready", func() bool { return a.Ready() == nil })
	token, err := a.CreateToken(ctx, "b", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	second := testConfig(t, filepath.Join(root, "b1"))
	if _, err := Join(ctx, second, Env{}, JoinRequest{Token: token, NodeName: "b1"}); err != nil {
		t.Fatal(err)
	}
	b := startNode(t, second)
	await(t, "second node ready", func() bool { return b.Ready() == nil })
	for i, n := range []*running{a, b} {
		if err := put(n.Node, i); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "both nodes know both instances", func() bool {
		for _, n := range []*running{a, b} {
			if s, err := n.Archive().Study(ctx, "2.25.1"); err != nil || s.Instances != 2 {
				return false
			}
		}
		return true
	})
	if err := a.Archive().SealNow(ctx, "2.25.1"); err != nil {
		t.Fatal(err)
	}
	b.end(t)
	a.end(t)

	a, b = startNode(t, first), startNode(t, second)
	await(t, "both ready again", func() bool { return a.Ready() == nil && b.Ready() == nil })
	if r, err := b.Verify(ctx, b.admin(), "2.25.1"); err != nil || r.Good != 2 {
		t.Errorf("verify after the restart: %+v, %v", r, err)
	}
	a.end(t)
	b.end(t)
}

// A node that is opened and never served, or cannot be opened, leaves nothing behind either.
func TestOpenRefusals(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	if _, err := Open(cfg, Env{}); !errors.Is(err, ErrNoNode) {
		t.Errorf("open of an empty directory: %v, want ErrNoNode", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("open left %v in an empty directory (%v)", left, err)
	}
	if _, err := Init(t.Context(), cfg, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), cfg, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); !errors.Is(err, ErrNodeExists) {
		t.Errorf("init again: %v, want ErrNodeExists", err)
	}
	moved := cfg
	moved.Link.Advertise = "127.0.0.1:9"
	if _, err := Open(moved, Env{}); !errors.Is(err, ErrUsage) {
		t.Errorf("open with another link address: %v, want ErrUsage", err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := cfg
	busy.DIMSE.Listen = taken.Addr().String()
	if _, err := Open(busy, Env{}); err == nil {
		t.Error("open on a port that is taken: no error")
	}
	if err := os.Rename(filepath.Join(dir, "node"), filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, Env{}); !errors.Is(err, ErrNoNode) {
		t.Errorf("open without the node's file: %v, want ErrNoNode", err)
	}
	if _, err := Init(t.Context(), cfg, Env{}, InitRequest{RingName: "test", NodeName: "a1", Site: "a"}); !errors.Is(err, ErrNodeExists) {
		t.Errorf("init over the remains of a node: %v, want ErrNodeExists", err)
	}
}
