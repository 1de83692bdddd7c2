// Package engine opens Pebble as all three databases of a node want it: the log of Raft, the catalog and the local index.
//
// Pebble's own scheduler of compactions wakes up ten times a second, and lets compactions begin while the database is still being
// opened. When the opening then fails it leaves both behind: a goroutine that never ends, and a compaction that panics in the caches
// closed under it, so that a disk's error ends the process before anybody could say which file it was.
package engine

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Open is pebble.Open with a scheduler that lets no compaction begin before the database is open, and does nothing while there is
// none to do. It sets the scheduler in o. The caller closes the database.
func Open(dir string, o *pebble.Options) (*pebble.DB, error) {
	s := &scheduler{CompactionScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()}
	o.Experimental.CompactionScheduler = s
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, err
	}
	s.open.Store(true)
	return db, nil
}

// scheduler is Pebble's but for the time before open is set: the compactions that were refused then are asked for again with
// the next flush.
type scheduler struct {
	pebble.CompactionScheduler
	open atomic.Bool
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !s.open.Load() {
		return false, nil
	}
	return s.CompactionScheduler.TrySchedule()
}
