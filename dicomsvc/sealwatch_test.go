package dicomsvc

import (
	"testing"
	"time"

	"osteon/raft/catalog"
)

// A study is due when it rests, is old or is large, by ring time or by what this node has seen: the clock of whoever
// brought it may have been wrong by any time.
func TestSealWatch(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	study := func(first, last, size int) []catalog.StudyDue {
		return []catalog.StudyDue{{Study: "1.2.3", Unsealed: 1, UnsealedBytes: int64(size), First: at(first), Last: at(last)}}
	}
	policy := SealPolicy{Quiet: time.Minute, Old: 10 * time.Minute, Bytes: 1000}
	type step struct {
		now    int
		listed []catalog.StudyDue
		due    bool
	}
	const ahead = 1_000_000 // the ring's time
	for name, steps := range map[string][]step{
		"rests":                     {{100, study(0, 100, 1), false}, {159, study(0, 100, 1), false}, {160, study(0, 100, 1), true}},
		"rested before the start":   {{100, study(0, 40, 1), true}},
		"old":                       {{599, study(0, 590, 1), false}, {600, study(0, 599, 1), true}},
		"large":                     {{0, study(0, 0, 1000), true}},
		"from the future":           {{0, study(ahead, ahead, 1), false}, {59, study(ahead, ahead, 1), false}, {60, study(ahead, ahead, 1), true}},
		"from the future, goes on":  {{0, study(ahead, ahead, 1), false}, {50, study(ahead, ahead+1, 1), false}, {100, study(ahead, ahead+1, 1), false}, {110, study(ahead, ahead+1, 1), true}},
		"from the future, old":      {{0, study(ahead, ahead, 1), false}, {590, study(ahead, ahead+590, 1), false}, {600, study(ahead, ahead+600, 1), true}},
		"seen anew when it is back": {{0, study(ahead, ahead, 1), false}, {60, nil, false}, {61, study(ahead, ahead, 1), false}},
	} {
		w := sealWatch{}
		for i, s := range steps {
			if due := w.due(s.listed, at(s.now), policy); len(due) == 1 != s.due {
				t.Errorf("%s, step %d: due %t, want %t", name, i, len(due) == 1, s.due)
			}
		}
	}
}
