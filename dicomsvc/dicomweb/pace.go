package dicomweb

import (
	"io"
	"net/http"
	"time"
)

// pacer cuts off a peer that sends or takes less than rateBytes in rateWindow (slow loris). Only the
// time spent waiting for the peer counts, not that of the archive. A connection that cannot have
// deadlines, as in some tests, is left alone.
type pacer struct {
	control *http.ResponseController
	now     func() time.Time
}

// release takes the deadlines away again, for the next request on the connection.
func (p *pacer) release() {
	_ = p.control.SetReadDeadline(time.Time{})
	_ = p.control.SetWriteDeadline(time.Time{})
}

// budget is the time that is left for the next rateBytes.
type budget struct {
	moved int
	spent time.Duration
}

func (b *budget) left() time.Duration { return rateWindow - b.spent }

// spend books one transfer of n bytes that took d; every rateBytes start a new window.
func (b *budget) spend(n int, d time.Duration) {
	b.moved += n
	b.spent += d
	if b.moved >= rateBytes {
		b.moved, b.spent = 0, 0
	}
}

// pacedBody is a request body under a pacer.
type pacedBody struct {
	body io.ReadCloser
	pace *pacer
	budget
}

func (b *pacedBody) Read(p []byte) (int, error) {
	start := b.pace.now()
	_ = b.pace.control.SetReadDeadline(start.Add(b.left()))
	n, err := b.body.Read(p)
	b.spend(n, b.pace.now().Sub(start))
	if err != nil {
		// From here on net/http itself reads, to see the client leave.
		_ = b.pace.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *pacedBody) Close() error { return b.body.Close() }

// pacedWriter is a response under a pacer. It counts what was sent, for the log.
type pacedWriter struct {
	http.ResponseWriter
	pace   *pacer
	status int
	sent   int64
	budget
}

func (w *pacedWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	start := w.pace.now()
	// A long write gets a window for each of its parts.
	windows := time.Duration(len(p)/rateBytes) * rateWindow
	_ = w.pace.control.SetWriteDeadline(start.Add(w.left() + windows))
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	w.spend(n, w.pace.now().Sub(start))
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
