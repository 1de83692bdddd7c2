package catalog

import (
	"context"
	"fmt"
	"reflect"
	"testing"

	"osteon/dicomsvc/dicom"
)

// A reader extended step by step is the reader made of everything at once.
func TestExtendIsWithOfAll(t *testing.T) {
	ctx := context.Background()
	c := openTest(t)
	apply(t, c, at(0), items(t, ct(1, 1, 1), ct(1, 2, 1), ct(2, 1, 1)))
	further := ct(1, 1, 1)
	further.content = 7
	pending := items(t, ct(1, 1, 2), ct(3, 1, 1), further, ct(1, 1, 1), ct(3, 1, 2), ct(4, 1, 1), ct(1, 3, 1), further).Items
	whole, err := c.With(pending)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	steps, err := c.With(pending[:2])
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i < len(pending); i += 2 {
		next, err := steps.Extend(pending[i : i+2])
		if err != nil {
			t.Fatal(err)
		}
		if err := steps.Close(); err != nil { // the next one lives on
			t.Fatal(err)
		}
		steps = next
		apply(t, c, at(i), items(t, ct(9, 1, i))) // not seen by either
	}
	defer steps.Close()
	if !reflect.DeepEqual(whole.fixed.over, steps.fixed.over) {
		t.Error("the overlays differ")
	}
	for _, level := range []Level{LevelPatient, LevelStudy, LevelSeries, LevelImage} {
		q := Query{Level: level, Keys: []Key{key(dicom.PatientID, "")}}
		want, _ := find(t, whole, q)
		got, _ := find(t, steps, q)
		if fmt.Sprint(got) != fmt.Sprint(want) || len(got) == 0 {
			t.Errorf("%v: got %v, want %v", level, got, want)
		}
	}
	s, err := steps.Study(ctx, pending[0].StudyInstanceUID)
	if err != nil || s.Instances != 4 || s.Versions != 5 {
		t.Errorf("got %+v, %v", s, err)
	}
}
