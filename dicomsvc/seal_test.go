package dicomsvc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/raft/catalog"
)

// sealedAt counts the versions of a study that the node's catalog has in packs, and the others.
func (m *member) sealedAt(study string) (sealed, unsealed int) {
	m.t.Helper()
	for l, err := range m.cat.Versions(context.Background(), study, "") {
		if err != nil {
			m.t.Fatal(err)
		}
		if l.State == catalog.VersionSealed {
			sealed++
		} else {
			unsealed++
		}
	}
	return sealed, unsealed
}

// A version whose holders are all gone keeps nothing else of its study from being sealed.
func TestLostVersionDoesNotBlockItsStudy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c", "d"}, nil)
	lost := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	c.nodes[0].mustPut(lost)
	c.settled()
	l, err := c.nodes[0].located("1.2.3.1.1")
	if err != nil || len(l.Holders) != 2 {
		t.Fatalf("%v at %d holders", err, len(l.Holders))
	}
	var rest []*member
	for _, m := range c.nodes {
		if m.place.ID == l.Holders[0] || m.place.ID == l.Holders[1] {
			m.shut()
			continue
		}
		rest = append(rest, m)
	}
	kept := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.2", 1000, "P1")
	rest[0].mustPut(kept)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := rest[1].archive.SealNow(ctx, "1.2.3"); !errors.Is(err, dicomsvc.ErrUnavailable) {
		t.Errorf("seal: got %v, want ErrUnavailable for what is lost", err)
	}
	if sealed, unsealed := rest[1].sealedAt("1.2.3"); sealed != 1 || unsealed != 1 {
		t.Errorf("%d sealed, %d not; want 1 and 1", sealed, unsealed)
	}
	for _, m := range c.nodes {
		if !m.isUp() {
			m.start()
		}
	}
	if err := rest[1].archive.SealNow(ctx, "1.2.3"); err != nil {
		t.Errorf("seal with all holders back: %v", err)
	}
	if got, err := rest[0].fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, lost) {
		t.Errorf("fetch: %v", err)
	}
}

// A node that is believed to be alive and takes no shard does not stop the seal.
func TestSealWithoutNodeThatTakesNoShard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	c.nodes[0].mustPut(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 100_000, "P1"))
	c.settled()
	deaf := c.nodes[2]
	deaf.mu.Lock()
	deaf.deaf = true
	deaf.mu.Unlock()
	if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Fatalf("seal: %v", err)
	}
	if sealed, unsealed := c.nodes[1].sealedAt("1.2.3"); sealed != 1 || unsealed != 0 {
		t.Errorf("%d sealed, %d not", sealed, unsealed)
	}
	if got, err := c.nodes[1].fetch("1.2.3.1.1"); err != nil || len(got) == 0 {
		t.Errorf("fetch: %v", err)
	}
}

// Sealers that race are harmless: everything is sealed once, and what the losers left goes away.
func TestRacingSealers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	const instances = 12
	for i := range instances {
		sop := fmt.Sprintf("1.2.3.1.%d", i+1)
		c.nodes[i%3].mustPut(object(t, "1.2.3", "1.2.3.1", sop, 20_000, "P1"))
	}
	further := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 500, "P1")
	c.settled()
	if r := c.nodes[1].mustPut(further); r.Outcome != dicomsvc.OutcomeFurtherVersion {
		t.Errorf("other content: outcome %d", r.Outcome)
	}
	c.settled()
	var wg sync.WaitGroup
	for _, m := range c.nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := m.archive.SealNow(context.Background(), "1.2.3"); err != nil {
				t.Errorf("seal at %s: %v", m.place.Name, err)
			}
		}()
	}
	wg.Wait()
	for _, m := range c.nodes {
		if sealed, unsealed := m.sealedAt("1.2.3"); sealed != instances+1 || unsealed != 0 {
			t.Errorf("%s: %d sealed, %d not", m.place.Name, sealed, unsealed)
		}
	}
	eventually(t, "losers' encodes are forgotten", func() bool {
		encodes, err := c.nodes[0].cat.Encodes(context.Background())
		return err == nil && len(encodes) == 0
	})
	packs := 0
	for _, err := range c.nodes[0].cat.AllPacks(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		packs++
	}
	if packs != 1 {
		t.Errorf("%d packs, want 1", packs)
	}
	files := 0
	for _, m := range c.nodes {
		filepath.WalkDir(m.dir+"/shards", func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files++
			}
			return nil
		})
	}
	if files != 3 {
		t.Errorf("%d shard files, want those of one pack", files)
	}
	for _, m := range c.nodes {
		if n := m.archive.Store().Journal().Stats(); n.Released != n.Objects {
			eventually(t, "journal records are released", func() bool {
				n := m.archive.Store().Journal().Stats()
				return n.Released == n.Objects
			})
		}
	}
}

// What a disk altered is served from the other holder and journalled again.
func TestDamagedJournalIsMended(t *testing.T) {
	for _, tt := range []struct {
		name   string
		offset int64
	}{
		{"body of a chunk, found when it is read", 100_000},
		{"head of a chunk, found at the start", 512 + 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, []string{"a", "b"}, nil)
			b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 200_000, "P1")
			c.nodes[0].mustPut(b)
			c.settled()
			c.nodes[0].shut()
			flip(t, c.nodes[0].dir+"/journal", tt.offset)
			c.nodes[0].start()
			if got, err := c.nodes[0].fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("fetch at the damaged node: %v", err)
			}
			eventually(t, "mended", func() bool {
				return c.nodes[0].archive.Stats().Mended.Load() == 1 && len(c.nodes[0].archive.Store().Journal().Corrupt()) == 0
			})
			c.settled()
			c.nodes[1].shut()
			if got, err := c.nodes[0].fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, b) {
				t.Errorf("fetch from the mended copy alone: %v", err)
			}
		})
	}
}

// flip inverts a byte of the first segment with objects.
func flip(t *testing.T, dir string, offset int64) {
	t.Helper()
	names, err := filepath.Glob(dir + "/*.seg")
	if err != nil || len(names) == 0 {
		t.Fatalf("no segment: %v", err)
	}
	f, err := os.OpenFile(names[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

// Whoever is told to seal a study while another node does finds it sealed: the other's journals let go of what it was about
// to read.
func TestSealersOnDemandAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	for round := range 15 {
		study := fmt.Sprintf("1.2.3.%d", round)
		for i := range 3 {
			c.nodes[i].mustPut(object(t, study, study+".1", fmt.Sprintf("%s.1.%d", study, i), 50_000, "P1"))
		}
		c.settled()
		var sealers sync.WaitGroup
		for _, m := range c.nodes {
			sealers.Go(func() {
				time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
				if err := m.archive.SealNow(t.Context(), study); err != nil {
					t.Errorf("round %d: seal at %s: %v", round, m.place.Name, err)
				}
			})
		}
		sealers.Wait()
	}
}
