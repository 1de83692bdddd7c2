package dul

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// within checks that a time-out came when it should: a tenth late is allowed,
// and two beats of rounding.
func within(t *testing.T, began time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(began); took < want || took > want+want/5+2*beatMax {
		t.Errorf("took %v, want %v", took, want)
	}
}

// Behaviour 8.
func TestBehaviour08ARTIM(t *testing.T) {
	for name, script := range map[string]func(net.Conn){
		"silence":      func(net.Conn) {},
		"half request": func(c net.Conn) { c.Write(request()[:40]) },
		"slow request": func(c net.Conn) {
			for _, b := range request() { // one byte in ten seconds: ARTIM runs on
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer client.Close()
					script(client)
					io.Copy(io.Discard, client)
				}()
				began := time.Now()
				_, err := Accept(context.Background(), server, accepting())
				if !errors.Is(err, ErrARTIM) {
					t.Errorf("got %v, want ErrARTIM", err)
				}
				within(t, began, defaultARTIM)
				<-done
			})
		})
	}
	t.Run("after a rejection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			go func() {
				client.Write(request())
				io.ReadFull(client, make([]byte, 10)) // the rejection, and then nothing
			}()
			began := time.Now()
			_, err := Accept(context.Background(), server, AcceptorConfig{
				Negotiate: func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, RejectCalledAE() }})
			if !IsRejected(err) {
				t.Errorf("got %v", err)
			}
			within(t, began, defaultLinger)
		})
	})
	t.Run("no answer to a request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				io.Copy(io.Discard, server)
			}()
			began := time.Now()
			_, err := Connect(context.Background(), client, calling())
			if !errors.Is(err, ErrARTIM) {
				t.Errorf("got %v, want ErrARTIM", err)
			}
			within(t, began, defaultARTIM)
		})
	})
	t.Run("no answer to a release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			req, acc := pipePair(t)
			go func() { // reads bytes, answers nothing
				io.Copy(io.Discard, acc.conn.Conn)
			}()
			began := time.Now()
			if err := req.Release(context.Background()); !errors.Is(err, ErrARTIM) {
				t.Errorf("got %v, want ErrARTIM", err)
			}
			within(t, began, defaultARTIM+defaultLinger)
			acc.Abort()
			acc.Close()
		})
	})
}

// pipePair opens an association over a pipe, for a bubble.
func pipePair(t *testing.T) (requestor, acceptor *Association) {
	t.Helper()
	client, server := net.Pipe()
	ch := make(chan accepted2, 1)
	go func() {
		a, err := Accept(context.Background(), server, accepting())
		ch <- accepted2{a, err}
	}()
	req, err := Connect(context.Background(), client, calling())
	if err != nil {
		t.Fatal(err)
	}
	got := <-ch
	if got.err != nil {
		t.Fatal(got.err)
	}
	return req, got.a
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, acc := pipePair(t)
		go io.Copy(io.Discard, req.conn.Conn)
		began := time.Now()
		acc.BeginWork()
		time.AfterFunc(10*time.Minute, acc.EndWork) // a long store: no idling
		if _, err := acc.Next(); !errors.Is(err, ErrIdle) {
			t.Errorf("got %v, want ErrIdle", err)
		}
		within(t, began, 10*time.Minute+defaultIdle)
		if _, err := acc.Next(); !errors.Is(err, ErrIdle) {
			t.Errorf("again: got %v, want ErrIdle", err)
		}
		acc.Close()
		req.Abort()
		req.Close()
	})
}

// F47: one byte in ten seconds, before the request and inside a data set.
func TestSlowLoris(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, acc := pipePair(t)
		go io.Copy(io.Discard, req.conn.Conn)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, b := range dataPDU(pdv{1, 3, string(make([]byte, 1000))}) {
				if _, err := req.conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		began := time.Now()
		in, err := acc.Next()
		if err == nil {
			_, err = io.ReadAll(in)
		}
		if !errors.Is(err, ErrStalled) {
			t.Errorf("got %v, want ErrStalled", err)
		}
		within(t, began, defaultWindow)
		acc.Close()
		req.Abort()
		req.Close()
		<-done
	})
}

// A slow but honest sender passes, and so does one whose data is taken slowly.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, acc := pipePair(t)
		b := dataPDU(pdv{1, 3, string(make([]byte, 128<<10-6))})
		go func() {
			for len(b) > 0 { // 2 KiB/s
				n := min(2<<10, len(b))
				req.conn.Write(b[:n])
				b = b[n:]
				time.Sleep(time.Second)
			}
			req.conn.Conn.Write(dataPDU(pdv{1, 2, string(make([]byte, 60<<10))})) // not under req's own watch
		}()
		in, err := acc.Next()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, in); err != nil {
			t.Fatal(err)
		}
		if in, err = acc.Next(); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 1000); ; time.Sleep(30 * time.Second) {
			if _, err := in.Read(buf); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("reading slowly: %v", err)
			}
		}
		req.Abort()
		acc.Abort()
		req.Close()
		acc.Close()
	})
}

func TestPeerDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, acc := pipePair(t)
		began := time.Now()
		if err := acc.Send(1, []byte("never read"), nil); !errors.Is(err, ErrStalled) {
			t.Errorf("got %v, want ErrStalled", err)
		}
		within(t, began, defaultWrite)
		acc.Close()
		req.Abort()
		req.Close()
	})
}

// Abort does not wait for a writer that hangs.
func TestAbortUnderAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		req, acc := pipePair(t)
		done := make(chan error, 1)
		go func() { done <- acc.Send(1, []byte("never read"), nil) }()
		synctest.Wait()
		began := time.Now()
		acc.Abort()
		if err := <-done; err == nil {
			t.Error("Send succeeded")
		}
		acc.Close()
		within(t, began, 0)
		req.Abort()
		req.Close()
	})
}
