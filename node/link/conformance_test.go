package link

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
)

// The promises of Stream that mesh_test.go does not come to, over both transports.

// noise is a stream of bytes of its own for each seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func TestBytesArriveAsWritten(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		b.Handle(KindShardWrite, func(_ context.Context, s Stream) { // reads and writes at once, in other sizes
			defer s.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{s}, make([]byte, 70_001))
		})
		var wg sync.WaitGroup
		for i, size := range []int{0, 1, writeCoalesce, writeCoalesce + 1, lineChunkBytes - 1, lineChunkBytes, lineChunkBytes + 1, 3<<20 + 7, 12 << 20} {
			wg.Go(func() {
				s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardWrite)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				want := noise(uint64(i), size)
				go func() {
					for rest, step := want, 1; len(rest) > 0; step = step*3 + 1 {
						n, err := s.Write(rest[:min(step, len(rest))])
						if err != nil {
							t.Errorf("%d bytes: write: %v", size, err)
						}
						rest = rest[n:]
					}
					if err := s.CloseWrite(); err != nil {
						t.Errorf("%d bytes: close: %v", size, err)
					}
				}()
				got, err := io.ReadAll(s)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes: got %d of sum %x, %v", size, len(got), crc32.ChecksumIEEE(got), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestPartsArriveAsWritten(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		b.Handle(KindShardWrite, echo)
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardWrite)
		must(t, err)
		defer s.Close()
		head := []byte("head5")
		for i, size := range []int{0, 1, writeCoalesce, lineChunkBytes - len(head), lineChunkBytes, 2 * lineChunkBytes} {
			body := noise(uint64(i), size)
			go func() {
				if err := WriteParts(s, head, body); err != nil {
					t.Error(err)
				}
			}()
			got := make([]byte, len(head)+size)
			if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, append(head[:len(head):len(head)], body...)) {
				t.Fatalf("%d bytes: %v, or others arrived", size, err)
			}
		}
	})
}

func TestManyStreamsAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		a.Handle(KindAdmin, echo)
		b.Handle(KindAdmin, echo)
		var wg sync.WaitGroup
		for i := range 3 * linesPeerMax {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			wg.Go(func() {
				want := string(noise(uint64(i), 20_000))
				if got, err := roundTrip(ctx, from, to.Self().Node, ClassBulk, KindAdmin, want); got != want || err != nil {
					t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		want := noise(1, 1<<20)
		closed := make(chan struct{})
		b.Handle(KindShardRead, func(_ context.Context, s Stream) {
			if _, err := s.Write(want); err != nil {
				t.Error(err)
			}
			_ = s.Close() // while the peer has read nothing and its direction is open
			close(closed)
		})
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardRead)
		must(t, err)
		defer s.Close()
		_, err = s.Write([]byte("go"))
		must(t, err)
		<-closed
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
}

func TestCloseRefusesWhatThePeerStillSends(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		sent := make(chan error, 1)
		b.Handle(KindShardRead, func(_ context.Context, s Stream) {
			defer s.Close()
			var err error
			for chunk := make([]byte, 64<<10); err == nil; {
				_, err = s.Write(chunk)
			}
			sent <- err
		})
		b.Handle(KindAdmin, echo)
		for _, end := range []func(Stream){func(s Stream) { _ = s.Close() }, Abort} {
			s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardRead)
			must(t, err)
			_, err = io.ReadFull(s, make([]byte, 100_000)) // in the middle of a frame
			must(t, err)
			end(s)
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
				t.Errorf("read after the end: %v, want ErrClosed", err)
			}
			if _, err := s.Write([]byte("x")); !errors.Is(err, ErrClosed) {
				t.Errorf("write after the end: %v, want ErrClosed", err)
			}
			// A line goes too, when too much came after the end: its loss may be seen first.
			if err := <-sent; !errors.Is(err, ErrReset) && !(r.bulk != BulkQUIC && errors.Is(err, ErrLost)) {
				t.Errorf("the peer's write: %v, want ErrReset", err)
			}
			if got, err := roundTrip(ctx, a, b.Self().Node, ClassBulk, KindAdmin, "next"); got != "next" || err != nil {
				t.Errorf("stream after it: %q, %v", got, err)
			}
		}
	})
}

func TestAbortDuringWriteIsAReset(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		read, begun, aborted := make(chan error, 1), make(chan struct{}), make(chan struct{})
		b.Handle(KindShardWrite, func(_ context.Context, s Stream) {
			defer s.Close()
			_, _ = io.ReadFull(s, make([]byte, 1))
			close(begun)
			<-aborted
			_, err := io.Copy(io.Discard, s)
			read <- err
		})
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardWrite)
		must(t, err)
		wrote := make(chan error, 1)
		go func() { _, err := s.Write(make([]byte, 64<<20)); wrote <- err }() // more than any buffer takes
		<-begun
		Abort(s)
		if err := <-wrote; !errors.Is(err, ErrClosed) {
			t.Errorf("write during Abort: %v, want ErrClosed", err)
		}
		close(aborted)
		if err := <-read; !errors.Is(err, ErrReset) {
			t.Errorf("the peer's read: %v, want ErrReset, never io.EOF", err)
		}
	})
}

func TestDeadlinesBreakNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		goOn, sum := make(chan struct{}), make(chan uint32, 1)
		b.Handle(KindShardWrite, func(_ context.Context, s Stream) {
			defer s.Close()
			<-goOn
			h := crc32.NewIEEE()
			if _, err := io.Copy(h, s); err != nil {
				t.Errorf("peer: %v", err)
			}
			sum <- h.Sum32()
			_, _ = s.Write([]byte("done"))
		})
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindShardWrite)
		must(t, err)
		defer s.Close()
		want := noise(9, 40<<20)
		must(t, s.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
		n, err := s.Write(want)
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == len(want) {
			t.Fatalf("blocked write: %d bytes, %v, want a deadline", n, err)
		}
		must(t, s.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("blocked read: %v, want a deadline", err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after the deadline: %v, want it again", err)
		}
		must(t, s.SetDeadline(time.Time{}))
		close(goOn)
		_, err = s.Write(want[n:])
		must(t, err)
		must(t, s.CloseWrite())
		if got := <-sum; got != crc32.ChecksumIEEE(want) {
			t.Errorf("what was written before and after a deadline arrives as something else")
		}
		if got, err := io.ReadAll(s); string(got) != "done" || err != nil {
			t.Errorf("answer: %q, %v", got, err)
		}
	})
}

func TestReadDeadlineMovedWhileReading(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		b.Handle(KindAdmin, echo)
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
		must(t, err)
		defer s.Close()
		_, err = s.Write([]byte("x"))
		must(t, err)
		_, err = io.ReadFull(s, make([]byte, 1))
		must(t, err)
		failed := make(chan error)
		go func() { _, err := s.Read(make([]byte, 1)); failed <- err }()
		must(t, s.SetReadDeadline(time.Now().Add(-time.Second)))
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want a deadline", err)
		}
		must(t, s.SetReadDeadline(time.Time{}))
		go func() { _, err := s.Read(make([]byte, 1)); failed <- err }()
		must(t, s.Close())
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Errorf("read during Close: %v, want ErrClosed", err)
		}
	})
}

func TestHandlerLearnsThatItsPeerIsGone(t *testing.T) {
	onBoth(t, func(t *testing.T, r *ringTest) {
		ctx := testContext(t)
		a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
		entered, left := make(chan struct{}), make(chan error, 1)
		b.Handle(KindAdmin, func(ctx context.Context, s Stream) {
			defer s.Close()
			_, _ = io.ReadFull(s, make([]byte, 1))
			close(entered)
			<-ctx.Done()
			_, err := s.Write([]byte("x"))
			left <- err
		})
		s, err := a.OpenStream(ctx, b.Self().Node, ClassBulk, KindAdmin)
		must(t, err)
		_, err = s.Write([]byte("x"))
		must(t, err)
		<-entered
		must(t, a.Close())
		select {
		case err := <-left:
			if !errors.Is(err, ErrLost) {
				t.Errorf("write: %v, want ErrLost", err)
			}
		case <-ctx.Done():
			t.Error("the handler's context did not end")
		}
	})
}
