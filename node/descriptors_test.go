//go:build linux

package node

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// F45: a process near its limit of open files is short, and no longer once some are closed.
func TestF45ShortOfDescriptors(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	open, limit := countDescriptors()
	if open < 3 || limit != before.Cur {
		t.Fatalf("%d open of %d, want some of %d", open, limit, before.Cur)
	}
	if shortOfDescriptors() {
		t.Fatalf("short with %d of %d open", open, limit)
	}
	small := before
	small.Cur = open + 120 // of which a quarter is kept
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for range 100 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if !shortOfDescriptors() {
		t.Error("not short with 100 more open")
	}
	for _, f := range files {
		f.Close()
	}
	if shortOfDescriptors() {
		t.Error("still short with these closed")
	}
}
