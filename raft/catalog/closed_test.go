package catalog

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// F15: a MANIFEST whose end is gone opens as an older database under newer records. It is found out after an orderly close.
func TestF15ShortManifest(t *testing.T) {
	fs := vfs.NewMem()
	dir := "db"
	for range 3 {
		cfg := Config{FS: fs, Dir: dir, MAC: testMAC}
		c, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	below := fs.PathJoin(dir, databaseName(firstGeneration))
	names, err := fs.List(below)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		path := fs.PathJoin(below, name)
		b, err := readWhole(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b[:len(b)-1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(Config{FS: fs, Dir: dir, MAC: testMAC}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open with a MANIFEST cut short: %v, want ErrDamaged", err)
	}
}
