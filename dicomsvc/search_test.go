package dicomsvc_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
)

// A study of more than one page is listed whole, once and in order while more of it arrives and some of it
// is sealed.
func TestInstancesInPages(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a"}, nil)
	m, ctx := c.nodes[0], context.Background()
	const instances = 1100
	var wg sync.WaitGroup
	for part := range 11 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := part; i < instances; i += 11 {
				b := object(t, "1.2.3", fmt.Sprintf("1.2.3.%d", i%3+1), fmt.Sprintf("1.2.3.0.%d", i+1), 0, "P1")
				if _, err := m.put(b); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	seen := map[string]bool{}
	series := ""
	for in, err := range m.archive.Instances(ctx, anyone, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen[in.SOPInstanceUID] || in.SeriesInstanceUID < series {
			t.Fatalf("twice or out of order after %d", len(seen))
		}
		seen[in.SOPInstanceUID], series = true, in.SeriesInstanceUID
		switch len(seen) {
		case 100:
			m.mustPut(object(t, "1.2.3", "1.2.3.1", "1.2.3.0.0", 0, "P1"))
		case 200:
			if err := m.archive.SealNow(ctx, "1.2.3"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(seen) != instances && len(seen) != instances+1 {
		t.Errorf("%d instances, want %d", len(seen), instances)
	}
}

// A query whose consumer is slower than its lease goes on where it was, with its limit.
func TestSearchBeyondItsLease(t *testing.T) {
	t.Parallel()
	var skew atomic.Int64 // seconds that the archive's clock is ahead
	c := newCluster(t, []string{"a"}, func(d *dicomsvc.Config, _ *erasure.Config) {
		d.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load()) * time.Second) }
	})
	m := c.nodes[0]
	for i := range 6 {
		m.mustPut(object(t, "1.2.3", "1.2.3.1", fmt.Sprintf("1.2.3.0.%d", i+1), 0, "P1"))
	}
	for _, limit := range []int{0, 5} {
		seen := map[string]bool{}
		q := &dicomsvc.Query{Level: dicomsvc.LevelImage, Relational: true, Offset: 1, Limit: limit}
		for match, err := range m.archive.Search(context.Background(), anyone, q) {
			if err != nil {
				t.Fatal(err)
			}
			if seen[match.SOPInstanceUID] {
				t.Errorf("limit %d: a match came twice", limit)
			}
			seen[match.SOPInstanceUID] = true
			skew.Add(7)
		}
		if len(seen) != 5 {
			t.Errorf("limit %d: %d matches, want 5", limit, len(seen))
		}
	}
}

// The rows that queries read and the records that they found are counted for the metrics.
func TestQueriesAreCounted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a"}, nil)
	m := c.nodes[0]
	for i := range 3 {
		m.mustPut(object(t, "1.2."+fmt.Sprint(i), "1.2.3.1", fmt.Sprintf("1.2.3.%d.1", i), 0, "P1"))
	}
	stats := m.archive.Stats()
	for range 2 {
		q := &dicomsvc.Query{Level: dicomsvc.LevelStudy, Keys: []dicomsvc.Key{{Tag: dicom.PatientID, VR: dicom.LO, Values: []string{"P1"}}}}
		for _, err := range m.archive.Search(context.Background(), anyone, q) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if matched, examined := stats.Matched.Load(), stats.Examined.Load(); matched != 6 || examined < 6 || examined > 18 {
		t.Errorf("%d rows examined, %d records found, want 6 and at most three times as many rows", examined, matched)
	}
}
