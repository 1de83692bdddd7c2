package refusal

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newTest() (*Log, *clock, *bytes.Buffer) {
	c := &clock{time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)}
	var said bytes.Buffer
	return NewLog(Config{Now: c.now, Log: slog.New(slog.NewTextHandler(&said, nil))}), c, &said
}

func rejected(calling, from string) Event {
	return Event{What: "association", Calling: calling, Called: "OSTEON", From: from, Code: "1/1/3", Why: "not known", Do: "add it"}
}

func TestTheSameEventIsCounted(t *testing.T) {
	l, c, said := newTest()
	for range 100 {
		l.Note(rejected("CT1", "10.0.0.1"))
		c.at = c.at.Add(time.Second)
	}
	got := l.Events(time.Time{}, "")
	if len(got) != 1 || got[0].Count != 100 || got[0].Last.Sub(got[0].First) != 99*time.Second {
		t.Errorf("got %+v, want one event counted 100 times over 99 s", got)
	}
	if n := strings.Count(said.String(), "msg=refused"); n != 3 {
		t.Errorf("%d lines in the log, want one for the 1st, the 10th and the 100th:\n%s", n, said)
	}
	c.at = c.at.Add(spanMax)
	l.Note(rejected("CT1", "10.0.0.1"))
	if got := l.Events(c.at, ""); len(got) != 1 || got[0].Count != 1 {
		t.Errorf("an hour later: got %+v, want a new event", got)
	}
	if got := l.Events(time.Time{}, "CT1"); len(got) != 2 {
		t.Errorf("of CT1: %d events, want 2", len(got))
	}
	if got := l.Events(time.Time{}, "CT2"); len(got) != 0 {
		t.Errorf("of CT2: %+v, want none", got)
	}
}

// F46: neither made-up titles from one address nor an address for each call push out another's refusal.
func TestF46FloodPushesOutNothingButItself(t *testing.T) {
	l, c, _ := newTest()
	l.Note(Event{What: "C-STORE", Calling: "MR1", From: "10.0.0.9", Code: "A700", Why: "out of storage space"})
	for i := range 20000 {
		c.at = c.at.Add(time.Millisecond)
		l.Note(rejected(fmt.Sprintf("X%d", i), "10.6.6.6"))
	}
	if got := l.Events(time.Time{}, ""); len(got) != perSourceMax+2 {
		t.Errorf("one address: %d events, want %d", len(got), perSourceMax+2)
	}
	several := l.Events(time.Time{}, Several)
	if len(several) != 1 || several[0].Count != 20000-perSourceMax {
		t.Errorf("further titles: got %+v, want one event for %d", several, 20000-perSourceMax)
	}
	for i := range 5 * eventsMax {
		c.at = c.at.Add(time.Millisecond)
		l.Note(rejected("X", fmt.Sprintf("10.7.%d.%d", i/256, i%256)))
	}
	if got := len(l.Events(time.Time{}, "")); got != eventsMax {
		t.Errorf("%d events are kept, want %d", got, eventsMax)
	}
	if got := l.Events(time.Time{}, "MR1"); len(got) != 1 {
		t.Error("the store refused before the flood is forgotten")
	}
	if len(l.byKey) != len(l.events) || len(l.sources) > len(l.events) {
		t.Errorf("%d keys and %d sources for %d events", len(l.byKey), len(l.sources), len(l.events))
	}
}

// B28: what a peer chose reaches neither log nor terminal as it is.
func TestB28TitlesAreQuoted(t *testing.T) {
	l, _, said := newTest()
	l.Note(Event{What: "association", Calling: "A\r\n\x1b[2J\x00\xff", Called: strings.Repeat("\x01", 1<<20), Why: strings.Repeat("w", 1<<20)})
	e := l.Events(time.Time{}, "")[0]
	if e.Calling != `A\r\n\x1b[2J\x00\xff` {
		t.Errorf("calling title %s", e.Calling)
	}
	if len(e.Called) > titleBytesMax || len(e.Why) > textBytesMax {
		t.Errorf("texts of %d and %d bytes", len(e.Called), len(e.Why))
	}
	if strings.ContainsAny(said.String(), "\x1b\x00\r") {
		t.Errorf("log holds control characters: %q", said)
	}
}
