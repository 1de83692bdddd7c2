package catalog

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestFindAndSealedAfter(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	add := items(t, ct(1, 1, 1), ct(1, 1, 2), ct(2, 1, 1), ct(2, 1, 2))
	if _, err := c.Find(ctx, add.Items[0].Version); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v before it was added", err)
	}
	apply(t, c, at(0), add)
	l, err := c.Find(ctx, add.Items[0].Version)
	if err != nil || l.State != VersionJournalled || len(l.Holders) != 2 || l.Instance.SOPInstanceUID != add.Items[0].SOPInstanceUID {
		t.Fatalf("got %+v, %v", l, err)
	}
	for i := range 2 {
		begin, seal := sealOf(byte(i+1), add.Items[2*i:2*i+2])
		mustOK(t, apply(t, c, at(1), begin, seal))
	}
	l, err = c.Find(ctx, add.Items[0].Version)
	if err != nil || l.State != VersionSealed || l.Entry.Version != add.Items[0].Version {
		t.Fatalf("sealed: got %+v, %v", l, err)
	}
	var got []VersionID
	last := uint32(0)
	for n := uint32(1); n <= 2; n++ {
		versions, next, err := c.SealedAfter(ctx, last, 1)
		if err != nil || next != n {
			t.Fatalf("got pack %d, %v, want %d", next, err, n)
		}
		got, last = append(got, versions...), next
	}
	for _, it := range add.Items {
		if !slices.Contains(got, it.Version) {
			t.Error("a sealed version is missing")
		}
	}
	unknown := VersionID{9}
	found := 0
	for l, err := range c.FindEach(ctx, append([]VersionID{unknown}, got...)) {
		if err != nil || l.State != VersionSealed || l.Instance.Version != got[found] {
			t.Fatalf("each: got %+v, %v", l, err)
		}
		found++
	}
	if found != len(got) {
		t.Errorf("each: found %d versions, want %d", found, len(got))
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, err := range c.FindEach(cancelled, got) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("each after the context ended: %v", err)
		}
	}
	if versions, next, err := c.SealedAfter(ctx, last, 9); len(versions) != 0 || next != 2 || err != nil {
		t.Errorf("after the last: %d versions, pack %d, %v", len(versions), next, err)
	}
	if n, err := c.LastPack(ctx); n != 2 || err != nil {
		t.Errorf("last pack %d, %v", n, err)
	}
}

func TestErased(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	if yes, err := c.Erased(ctx, "1.2.3"); yes || err != nil {
		t.Fatalf("empty catalog: %v %v", yes, err)
	}
	apply(t, c, at(0), Tombstone{UIDHash: c.UIDHash("1.2.3"), Level: LevelImage})
	if yes, err := c.Erased(ctx, "1.2.4", "1.2.3"); !yes || err != nil {
		t.Errorf("erased: %v %v", yes, err)
	}
	if yes, err := c.Erased(ctx, "1.2.4"); yes || err != nil {
		t.Errorf("not erased: %v %v", yes, err)
	}
}
