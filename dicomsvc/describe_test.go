package dicomsvc_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// Many callers who ask for the headers of sealed series at once all get them.
func TestHeadersAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b"}, nil)
	const instances = 12
	for i := range instances {
		c.nodes[0].mustPut(object(t, "1.2.3", fmt.Sprintf("1.2.3.%d", i%2+1), fmt.Sprintf("1.2.3.0.%d", i+1), 100, "P1"))
	}
	c.settled()
	if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			n := 0
			for d, err := range c.nodes[i%2].archive.Headers(context.Background(), anyone, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}) {
				if err != nil {
					t.Error(err)
					return
				}
				if d.Header.String(dicom.PatientID) != "P1" || d.Header.String(dicom.SOPInstanceUID) != d.Instance.SOPInstanceUID {
					t.Error("not the header of the instance")
				}
				n++
			}
			if n != instances {
				t.Errorf("%d headers, want %d", n, instances)
			}
		}()
	}
	wg.Wait()
}
