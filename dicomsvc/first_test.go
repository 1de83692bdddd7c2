package dicomsvc_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// The first objects of a study, sent over many associations at once at two nodes, make one patient, one study and one
// series, and none is lost.
// Behaviour 70.
func TestFirstObjectsMakeOneStudy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b"}, nil)
	const senders = 16
	var wg sync.WaitGroup
	for i := range senders {
		b := object(t, "1.2.70", "1.2.70.1", fmt.Sprint("1.2.70.1.", i+1), 1000, "P70")
		wg.Go(func() {
			if r, err := c.nodes[i%len(c.nodes)].put(b); err != nil || r.Outcome != dicomsvc.OutcomeStored {
				t.Errorf("sender %d: outcome %d, %v", i, r.Outcome, err)
			}
		})
	}
	wg.Wait()
	c.settled()
	for _, m := range c.nodes {
		for level, want := range map[dicomsvc.Level]int{dicomsvc.LevelPatient: 1, dicomsvc.LevelStudy: 1, dicomsvc.LevelSeries: 1, dicomsvc.LevelImage: senders} {
			n := 0
			q := &dicomsvc.Query{Level: level, Relational: true, Keys: []dicomsvc.Key{{Tag: dicom.PatientID, VR: dicom.LO, Values: []string{"P70"}}}}
			for _, err := range m.archive.Search(context.Background(), anyone, q) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != want {
				t.Errorf("node %s knows %d at level %v, want %d", m.place.Name, n, level, want)
			}
		}
	}
}
