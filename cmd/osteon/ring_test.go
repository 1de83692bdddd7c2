package main

import (
	"context"
	"testing"

	"osteon/dicomsvc/dicom"
)

// A study stored at one node is found and read at every other, journalled and sealed, and with each
// site lost in turn.
func TestStoreAnywhereReadEverywhere(t *testing.T) {
	r := startRing(t, 3, 2)
	var sent []instance
	for i, n := range r.nodes {
		in := noiseInstance(i, 1, 1, 300_000, 1)
		r.mustStore(n, in)
		sent = append(sent, in)
	}
	check := func(when string, nodes []*testNode) {
		t.Helper()
		for _, n := range nodes {
			for _, in := range sent {
				r.eventually(when+": study found at "+n.ID, func() bool {
					matches, err := find(context.Background(), n, "STUDY", map[dicom.Tag]string{dicom.StudyInstanceUID: in.study})
					return err == nil && len(matches) == 1
				})
				r.checkReadable(n, in)
			}
		}
	}
	check("journalled", r.nodes)
	for _, in := range sent {
		if err := r.nodes[0].admin().Seal(context.Background(), in.study); err != nil {
			t.Fatalf("seal: %v", err)
		}
	}
	r.awaitApplied(r.nodes...)
	check("sealed", r.nodes)
	for _, site := range []string{"a", "b", "c"} {
		r.kill(r.site(site)...)
		var left []*testNode
		for _, n := range r.nodes {
			if n.Site != site {
				left = append(left, n)
			}
		}
		check("without site "+site, left)
		r.start(r.site(site)...)
		check("site "+site+" back", r.site(site))
	}
}
