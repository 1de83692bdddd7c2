package main

import (
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// progress shows how far a long step is: a bar on a terminal, nothing elsewhere, where the plain lines of
// the steps themselves are enough.
type progress struct {
	container *mpb.Progress
	bar       *mpb.Bar
}

const progressRefresh = 100 * time.Millisecond

// newProgress begins a bar of total steps on w. The caller ends it with done.
func newProgress(w io.Writer, what string, total int) *progress {
	f, ok := w.(*os.File)
	if !ok || !isTerminal(f) {
		return &progress{}
	}
	p := &progress{container: mpb.New(mpb.WithOutput(f), mpb.WithWidth(48), mpb.WithRefreshRate(progressRefresh))}
	p.bar = p.container.New(int64(total), mpb.BarStyle(), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name("   "+what+" ")), mpb.AppendDecorators(decor.CountersNoUnit("%d of %d")))
	return p
}

// step says that one more is done.
func (p *progress) step() {
	if p.bar != nil {
		p.bar.Increment()
	}
}

// done takes the bar away, complete or not; a second call does nothing.
func (p *progress) done() {
	if p.bar == nil {
		return
	}
	p.bar.Abort(true)
	p.container.Wait()
	p.bar = nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
