package node

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// descriptorsKept is how many file descriptors new associations leave to the ring, the databases, the journal and the
	// admin: tables, segments, shards and the streams of what is open already.
	descriptorsKept = 96
	// descriptorsPercent is kept of a limit so small that descriptorsKept would be most of it.
	descriptorsPercent = 25
)

// shortOfDescriptors reports whether hardly any descriptor is left. It is false where they cannot be counted. They are
// counted each time: a burst of callers takes hundreds within a moment.
func shortOfDescriptors() bool {
	open, limit := countDescriptors()
	return limit > 0 && open > limit-min(descriptorsKept, limit*descriptorsPercent/100)
}

// countDescriptors returns how many descriptors the process has open and may have, zeros when it cannot be told.
func countDescriptors() (open, limit uint64) {
	var r unix.Rlimit
	if runtime.GOOS != "linux" || unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0, 0
	}
	const list = "/proc/self/fd"
	if info, err := os.Stat(list); err == nil && info.Size() > 0 { // Linux 6.2 and later say it here
		return uint64(info.Size()), r.Cur
	}
	names, err := os.ReadDir(list)
	if err != nil {
		return 0, 0
	}
	return uint64(len(names)), r.Cur
}
