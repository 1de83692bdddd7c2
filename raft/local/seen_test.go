package local

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
)

func sampleSeen() Seen {
	s := Seen{Incarnation: 2, Boot: 3, Index: 4, Term: 5}
	for i := range s.Instance {
		s.Instance[i] = byte(i + 1)
	}
	return s
}

// What is remembered of other nodes is there after a power cut, each node's by itself, and can be forgotten.
func TestSeen(t *testing.T) {
	fs := vfs.NewCrashableMem()
	d := open(t, fs, "local")
	a, b := place.NodeID{1}, place.NodeID{2}
	if _, err := d.Seen(a); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown node: %v, want ErrNotFound", err)
	}
	other := Seen{Incarnation: 1, Boot: 7}
	must(t, d.PutSeen(a, Seen{Boot: 1}))
	must(t, d.PutSeen(b, other))
	must(t, d.PutSeen(a, sampleSeen()))
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	must(t, d.Close())
	d = open(t, after, "local")
	if got, err := d.Seen(a); err != nil || got != sampleSeen() {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := d.Seen(b); err != nil || got != other {
		t.Errorf("got %+v, %v", got, err)
	}
	must(t, d.ForgetSeen(a))
	must(t, d.ForgetSeen(a))
	if _, err := d.Seen(a); !errors.Is(err, ErrNotFound) {
		t.Errorf("a forgotten node: %v, want ErrNotFound", err)
	}
	value := sampleSeen().encode()
	for n := range value {
		if _, err := decodeSeen(value[:n]); !errors.Is(err, ErrFormat) {
			t.Errorf("cut to %d bytes: %v, want ErrFormat", n, err)
		}
	}
}
