package main

import (
	"context"
	"io"
	"net"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
)

// F01: a node that dies before it has answered an association request leaves its caller with an error at once, and
// nothing of what the caller wanted to send.
func TestF01KilledBeforeAssociateAC(t *testing.T) {
	r := startRing(t, 1, 1)
	n := r.nodes[0]
	if err := syscall.Kill(n.PID, syscall.SIGSTOP); err != nil { // the kernel takes the connection, nobody answers
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(n.DIMSE)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sender := exec.CommandContext(ctx, "storescu", "-aec", n.AET, host, port, "../../testdata/samples/ct-small.dcm")
	sender.Env = append(sender.Environ(), "TCP_NODELAY=1")
	ended := make(chan error, 1)
	if err := sender.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- sender.Wait() }() // ends with the sender, which ctx bounds
	select {
	case err := <-ended:
		t.Fatalf("the sender ended before the node was killed: %v", err)
	case <-time.After(500 * time.Millisecond): // it has sent its request meanwhile
	}
	r.kill(n)
	if err := <-ended; err == nil {
		t.Error("storescu says that it succeeded")
	}
	if ctx.Err() != nil {
		t.Error("storescu hung until it was ended")
	}
	r.start(n)
	r.awaitReady(n)
	if found, err := find(t.Context(), n, "STUDY", map[dicom.Tag]string{dicom.StudyInstanceUID: ""}); err != nil || len(found) != 0 {
		t.Errorf("found %d studies (%v), want none", len(found), err)
	}
}

// F08: a node that dies between its acknowledgement and the arrival of the response has the object; the sender, who
// does not know, sends it again, and there is one.
func TestF08KilledBeforeTheResponseArrives(t *testing.T) {
	r := startRing(t, 3, 1)
	n := r.nodes[0]
	in := noiseInstance(8, 1, 1, 200_000, 8)
	relay := startOneWay(t, n.DIMSE)
	through := *n
	through.DIMSE = relay.address()
	sent := make(chan error, 1)
	go func() { // ends when the relay is cut
		_, err := store(t.Context(), &through, in)
		sent <- err
	}()
	r.eventually("another node knows the object", func() bool {
		found, err := find(t.Context(), r.nodes[1], "IMAGE", map[dicom.Tag]string{
			dicom.StudyInstanceUID: in.study, dicom.SeriesInstanceUID: in.series, dicom.SOPInstanceUID: in.uid,
		})
		return err == nil && len(found) == 1
	})
	r.kill(n)
	relay.cut()
	if err := <-sent; err == nil {
		t.Fatal("the sender got a response through a relay that lets none pass")
	}
	r.start(n)
	r.awaitReady(n)
	r.mustStore(n, in)
	r.awaitApplied(r.nodes...)
	for _, m := range r.nodes {
		r.checkReadable(m, in)
		found, err := find(t.Context(), m, "IMAGE", map[dicom.Tag]string{
			dicom.StudyInstanceUID: in.study, dicom.SeriesInstanceUID: in.series, dicom.SOPInstanceUID: "",
		})
		if err != nil || len(found) != 1 {
			t.Errorf("%s lists %d instances (%v), want 1", m.ID, len(found), err)
		}
	}
}

// oneWay is a relay that passes everything to the node, and back only until the association stands.
type oneWay struct {
	listener net.Listener
	conns    atomic.Pointer[[2]net.Conn]
}

func startOneWay(t *testing.T, to string) *oneWay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &oneWay{listener: l}
	done := make(chan struct{})
	go func() { // ends when the listener and the connections are closed
		defer close(done)
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", to)
		if err != nil {
			client.Close()
			return
		}
		o.conns.Store(&[2]net.Conn{client, server})
		go func() { // ends with either connection
			answer := make([]byte, 64<<10)
			if read, err := server.Read(answer); err == nil { // A-ASSOCIATE-AC
				_, _ = client.Write(answer[:read])
			}
			_, _ = io.Copy(io.Discard, server)
		}()
		_, _ = io.Copy(server, client)
	}()
	t.Cleanup(func() {
		l.Close()
		o.cut()
		<-done
	})
	return o
}

func (o *oneWay) address() string { return o.listener.Addr().String() }

func (o *oneWay) cut() {
	if conns := o.conns.Load(); conns != nil {
		conns[0].Close()
		conns[1].Close()
	}
}
