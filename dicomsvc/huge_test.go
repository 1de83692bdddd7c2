package dicomsvc_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// F57: a study of 100,000 instances is listed for retrieval and found instance by instance, in order, without more
// memory than a page of it takes.
func TestF57StudyOfHundredThousandInstances(t *testing.T) {
	const batch, study, series = 256, "1.2.3", "1.2.3.1"
	instances := 100_000
	if testing.Short() {
		instances = 10_000
	}
	s := newSolo(t)
	ctx := context.Background()
	set := func(tags ...any) []byte {
		d := new(dicom.Dataset)
		for i := 0; i < len(tags); i += 2 {
			d.SetStrings(tags[i].(dicom.Tag), tags[i+1].(string))
		}
		b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	patient, level := set(dicom.PatientID, "P1"), set(dicom.StudyInstanceUID, study)
	seriesSet := set(dicom.Modality, "CT", dicom.SeriesInstanceUID, series)
	uid := func(n int) string { return fmt.Sprintf("%s.%d", series, n) }
	for from := 0; from < instances; from += batch {
		var items []catalog.AddItem
		for n := from; n < min(from+batch, instances); n++ {
			digest := sha256.Sum256([]byte(uid(n)))
			items = append(items, catalog.AddItem{Holders: []place.NodeID{s.node.ID}, Instance: catalog.Instance{
				Version:        catalog.VersionOf(uid(n), dicom.ExplicitVRLittleEndian, digest),
				SOPInstanceUID: uid(n), SOPClassUID: "1.2.840.10008.5.1.4.1.1.2", StudyInstanceUID: study, SeriesInstanceUID: series,
				TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Digest: digest, Size: 1 << 19,
				PatientKey: catalog.PatientKey{ID: "P1"}, ReceivedAt: time.Now(), ReceivedBy: s.node.ID, CallingAE: "TEST",
				PatientAttributes: patient, StudyAttributes: level, SeriesAttributes: seriesSet,
				Attributes: set(dicom.SOPInstanceUID, uid(n), dicom.InstanceNumber, fmt.Sprint(n)),
			}})
		}
		results, _, err := s.cat.Do(ctx, dicomsvc.Principal{Kind: dicomsvc.PrincipalSystem}, catalog.Add{Items: items})
		if err != nil || results[0].Err() != nil {
			t.Fatalf("add from %d: %v, %v", from, err, results)
		}
	}
	idle := liveHeap()
	peak := idle
	check := func(what string, next func(yield func(string, error) bool)) {
		t.Helper()
		n := 0
		began := time.Now()
		for got, err := range next {
			if err != nil {
				t.Fatalf("%s: after %d: %v", what, n, err)
			}
			if want := uid(n); got != want {
				t.Fatalf("%s: number %d is %s, want %s", what, n, got, want)
			}
			if n++; n%20_000 == 0 {
				peak = max(peak, liveHeap())
			}
		}
		if n != instances {
			t.Errorf("%s: %d instances of %d", what, n, instances)
		}
		t.Logf("%s: %d in %s", what, n, time.Since(began).Round(time.Millisecond))
	}
	list := func() {
		t.Helper()
		listBoth(t, s, study, series, check)
	}
	list() // fills the caches, which have bounds of their own
	idle = liveHeap()
	peak = idle
	list()
	if grown := int64(peak) - int64(idle); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB while a study was listed", grown>>20)
	}
}

// listBoth hands check the instances of a study as a retrieval and as a query find them.
func listBoth(t *testing.T, s *solo, study, series string, check func(what string, next func(yield func(string, error) bool))) {
	t.Helper()
	ctx := context.Background()
	check("retrieval", func(yield func(string, error) bool) {
		for in, err := range s.archive.Instances(ctx, anyone, dicomsvc.Selection{StudyInstanceUIDs: []string{study}}) {
			if err != nil {
				yield("", err)
				return
			}
			if !yield(in.SOPInstanceUID, nil) {
				return
			}
		}
	})
	check("query", func(yield func(string, error) bool) {
		q := &dicomsvc.Query{Level: dicomsvc.LevelImage, Keys: []dicomsvc.Key{
			{Tag: dicom.StudyInstanceUID, VR: dicom.UI, Values: []string{study}},
			{Tag: dicom.SeriesInstanceUID, VR: dicom.UI, Values: []string{series}},
		}}
		for m, err := range s.archive.Search(ctx, anyone, q) {
			if err != nil {
				yield("", err)
				return
			}
			if !yield(m.SOPInstanceUID, nil) {
				return
			}
		}
	})
}

// liveHeap is what is reachable.
func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
