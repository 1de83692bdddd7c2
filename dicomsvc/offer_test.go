package dicomsvc_test

import (
	"context"
	"sync"
	"testing"

	"osteon/dicomsvc"
)

// An instance that both of its holders at one site offer stays spooled.
func TestSecondHolderDoesNotClearSpooled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "a", "b"}, nil)
	c.nodes[2].shut()
	if r := c.nodes[0].mustPut(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")); !r.Spooled {
		t.Fatal("not spooled although the other site is down")
	}
	c.settled() // the second holder too: after it would have offered
	l, err := c.nodes[0].located("1.2.3.1.1")
	if err != nil || !l.Spooled || len(l.Holders) != 2 {
		t.Errorf("spooled %v at %d holders, %v; want spooled at 2", l.Spooled, len(l.Holders), err)
	}
	c.nodes[0].shut()
	c.nodes[0].start()
	c.settled()
	if l, err := c.nodes[1].located("1.2.3.1.1"); err != nil || !l.Spooled {
		t.Errorf("after a restart: spooled %v, %v", l.Spooled, err)
	}
}

// A holder that was down when the other one offered names itself when it is back.
func TestReturnedHolderIsListed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b", "c"}, nil)
	c.setQuorum(false)
	c.nodes[0].mustPut(object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1"))
	c.nodes[0].shut()
	c.setQuorum(true)
	var l, err = c.nodes[1].located("1.2.3.1.1")
	eventually(t, "the other holder offered it", func() bool {
		l, err = c.nodes[1].located("1.2.3.1.1")
		return err == nil
	})
	if len(l.Holders) != 1 {
		t.Fatalf("%d holders, want the one that is up", len(l.Holders))
	}
	if !l.Spooled {
		t.Error("one holder of one site is named and the instance is not spooled")
	}
	c.nodes[0].start()
	eventually(t, "both holders are listed and on two sites", func() bool {
		l, err = c.nodes[1].located("1.2.3.1.1")
		return err == nil && len(l.Holders) == 2 && !l.Spooled
	})
}

// Of different contents under one UID that arrive at once, one sender hears that its is served.
func TestOutcomesOfConcurrentPuts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a"}, nil)
	const senders = 8
	var wg sync.WaitGroup
	outcomes := make([]dicomsvc.Outcome, senders)
	bodies := make([][]byte, senders)
	for i := range bodies {
		bodies[i] = object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	}
	for i := range outcomes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := c.nodes[0].put(bodies[i])
			if err != nil {
				t.Error(err)
			}
			outcomes[i] = r.Outcome
		}()
	}
	wg.Wait()
	served := 0
	for i, o := range outcomes {
		switch o {
		case dicomsvc.OutcomeStored:
			served++
			c.settled()
			if got, err := c.nodes[0].fetch("1.2.3.1.1"); err != nil || string(got) != string(bodies[i]) {
				t.Errorf("sender %d was told that its version is served, %v", i, err)
			}
		case dicomsvc.OutcomeFurtherVersion:
		default:
			t.Errorf("sender %d: outcome %d", i, o)
		}
	}
	if served != 1 {
		t.Errorf("%d senders were told that theirs is served, want 1", served)
	}
}

// Identical content sent at once and again is one version, whichever node takes it.
func TestIdenticalPuts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, []string{"a", "b"}, nil)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	if r := c.nodes[0].mustPut(b); r.Outcome != dicomsvc.OutcomeStored {
		t.Errorf("first: outcome %d", r.Outcome)
	}
	if r := c.nodes[0].mustPut(b); r.Outcome != dicomsvc.OutcomeIdentical {
		t.Errorf("again, perhaps before it is applied: outcome %d", r.Outcome)
	}
	c.settled()
	if r := c.nodes[1].mustPut(b); r.Outcome != dicomsvc.OutcomeIdentical {
		t.Errorf("at the other node: outcome %d", r.Outcome)
	}
	c.settled()
	n := 0
	for _, err := range c.nodes[1].archive.Versions(context.Background(), "1.2.3") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d versions, want 1", n)
	}
}
