package dicomsvc_test

import (
	"bytes"
	"context"
	"io/fs"
	"path/filepath"
	"testing"

	"osteon/dicomsvc"
	"osteon/raft/catalog"
)

// shardFiles counts the shards on the node's disk.
func (s *solo) shardFiles() int {
	s.t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(s.dir, "shards"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// A seal whose last step finds no quorum changes nothing: what was journalled stays, and so do the shards, because
// only the catalog can call the encode dead.
func TestSealWithoutQuorumAtTheEnd(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSolo(t)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 100_000, "P1")
	s.put(b)
	eventually(t, "applied", func() bool { known, err := s.archive.Study(ctx, "1.2.3"); return err == nil && known.Instances == 1 })
	s.quorum.mu.Lock()
	s.quorum.cut = true
	s.quorum.mu.Unlock()
	if err := s.archive.SealNow(ctx, "1.2.3"); err == nil {
		t.Fatal("sealed without a quorum")
	}
	if got := s.get(dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}); len(got) != 1 || !bytes.Equal(got[0], b) {
		t.Fatal("the instance cannot be read after the seal that failed")
	}
	encodes, err := s.cat.Encodes(ctx)
	if err != nil || len(encodes) != 1 || encodes[0].State != catalog.EncodeBegun {
		t.Fatalf("encodes %+v, %v; want one that was begun", encodes, err)
	}
	tried := s.quorum.refusals()
	eventually(t, "the collector has been by twice", func() bool { return s.quorum.refusals() >= tried+2 })
	if n := s.shardFiles(); n != 1 {
		t.Errorf("%d shard files, want that of the encode which no catalog calls aborted", n)
	}
	s.quorum.mu.Lock()
	s.quorum.cut, s.quorum.down = false, false
	s.quorum.mu.Unlock()
	eventually(t, "the aborted encode's shard is removed", func() bool { return s.shardFiles() == 0 })
	if err := s.archive.SealNow(ctx, "1.2.3"); err != nil {
		t.Error(err)
	}
	if got := s.get(dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}); len(got) != 1 || !bytes.Equal(got[0], b) {
		t.Error("the instance cannot be read after the seal")
	}
}
