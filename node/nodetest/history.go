package nodetest

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// op is one call of the workload and what came of it.
type op struct {
	began, ended time.Duration // since the beginning
	node         string
	what         string
	result       string
}

// history is what was asked of a ring.
type history struct {
	began time.Time

	mu  sync.Mutex
	ops []op
}

func (h *history) now() time.Duration { return time.Since(h.began) }

// add notes an operation that ends now.
func (h *history) add(began time.Duration, node, what, result string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op{began: began, ended: h.now(), node: node, what: what, result: result})
}

// write prints the operations in the order of their ends.
func (h *history) write(w io.Writer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		if _, err := fmt.Fprintf(w, "%10.3f - %10.3f  %-4s %s: %s\n", o.began.Seconds(), o.ended.Seconds(), o.node, o.what, o.result); err != nil {
			return err
		}
	}
	return nil
}
