package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// options make every flush a file that must be compacted soon.
func options(fs vfs.FS) *pebble.Options {
	return &pebble.Options{FS: fs, MemTableSize: 64 << 10, L0CompactionThreshold: 1, Logger: quiet{}, DisableAutomaticCompactions: false}
}

type quiet struct{}

func (quiet) Infof(string, ...any)           {}
func (quiet) Errorf(string, ...any)          {}
func (quiet) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

// fill writes keys all over the key space and flushes them.
func fill(t *testing.T, db *pebble.DB, round int) {
	t.Helper()
	for i := range 100 {
		if err := db.Set(fmt.Appendf(nil, "%03d", i), fmt.Appendf(nil, "%d", round), pebble.Sync); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
}

// An opening that fails leaves nothing behind that runs, however much there would be to compact: the bubble would not end.
func TestFailedOpeningLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		busy := options(fs)
		busy.DisableAutomaticCompactions = true
		db, err := Open("/db", busy)
		if err != nil {
			t.Fatal(err)
		}
		for round := range 8 {
			fill(t, db, round)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		failed := errors.New("planted")
		broken := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpRename && strings.Contains(filepath.Base(op.Path), "OPTIONS") || op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".dbtmp") {
				return failed // near the end of the opening
			}
			return nil
		}))
		if _, err := Open("/db", options(broken)); !errors.Is(err, failed) {
			t.Fatalf("open: %v, want the planted error", err)
		}
		time.Sleep(time.Minute)
	})
}

// What could not be compacted during the opening is compacted afterwards.
func TestCompactsOnceOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := Open("/db", options(vfs.NewMem()))
		if err != nil {
			t.Fatal(err)
		}
		for round := range 20 {
			fill(t, db, round)
			time.Sleep(time.Second)
		}
		if m := db.Metrics(); m.Compact.Count == 0 || m.Levels[0].TablesCount > 4 {
			t.Errorf("%d compactions, %d files in level 0", m.Compact.Count, m.Levels[0].TablesCount)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
