// Package refusal remembers what a node refused, so that its admin can answer the question "why was I
// rejected?" with the exact codes that the peer was sent.
//
// Its door is Log: front ends Note events, `osteon ae log` lists them.
//
//	log := refusal.NewLog(refusal.Config{Now: time.Now, Log: logger})
//	log.Note(refusal.Event{What: "association", Calling: "CT1", Code: "1/1/3", Why: "...", Do: "..."})
//
// The record is kept in memory, bounded, and ends with the process. The same event again is counted, not
// kept twice. When places run out the kind of refusal that holds most of them gives one up: a flood of one
// kind pushes out nothing but itself. Events name titles and addresses, never a patient, a UID or a value.
package refusal

import (
	"cmp"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Event is one thing that was refused, or several that are alike. Titles and texts are quoted and cut by
// Note: a peer chooses them.
type Event struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count"`
	// What was refused: connection, association, or an operation such as C-STORE or STOW-RS.
	What string `json:"what"`
	// Calling and Called are the AE titles, as far as they are known. Of HTTP, Calling is the principal.
	Calling string `json:"calling"`
	Called  string `json:"called"`
	// From is the peer's network address, without port.
	From string `json:"from"`
	// Code is what the peer was told: result/source/reason of a rejection, source/reason of an abort, the
	// status of an operation; empty when it was told nothing.
	Code string `json:"code"`
	// Words are the standard's words for Code.
	Words string `json:"words"`
	// Why is the reason in plain words, Do the remedy.
	Why string `json:"why"`
	Do  string `json:"do"`
}

// Config is what a Log is made of.
type Config struct {
	Now func() time.Time // required
	// Log gets a line for the first, the tenth, the hundredth ... of the same event. Nil discards.
	Log *slog.Logger
}

// Log is the record. A nil *Log takes and holds nothing. It is safe for concurrent use.
type Log struct {
	cfg Config

	mu      sync.Mutex
	events  []*Event
	byKey   map[key]*Event
	sources map[string]int // events by From
	classes map[class]int
}

// key is what makes two events the same.
type key struct{ what, calling, called, from, code, why string }

func keyOf(e *Event) key { return key{e.What, e.Calling, e.Called, e.From, e.Code, e.Why} }

// class is the kind of an event: what is crowded out first when a flood fills the record.
type class struct{ what, code string }

// NewLog returns an empty record.
func NewLog(cfg Config) *Log {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Log{cfg: cfg, byKey: map[key]*Event{}, sources: map[string]int{}, classes: map[class]int{}}
}

// Several stands for the titles of one address that has too many events to keep each.
const Several = "(several)"

// Note records an event; its times and count are set here.
func (l *Log) Note(e Event) {
	if l == nil {
		return
	}
	e.clean()
	now := l.cfg.Now()
	l.mu.Lock()
	kept := l.note(e, now)
	count, line := kept.Count, *kept
	l.mu.Unlock()
	if powerOfTen(count) {
		l.cfg.Log.Warn("refused", "what", line.What, "calling", line.Calling, "called", line.Called, "from", line.From,
			"code", line.Code, "words", line.Words, "why", line.Why, "do", line.Do, "count", count)
	}
}

// note counts e into the event it repeats or keeps it; the mutex is held.
func (l *Log) note(e Event, now time.Time) *Event {
	if known := l.find(&e, now); known != nil {
		known.Count++
		known.Last = now
		return known
	}
	if l.sources[e.From] >= perSourceMax {
		e.Calling, e.Called, e.Why = Several, Several, "further refusals of callers at this address; see its events before"
		if known := l.find(&e, now); known != nil {
			known.Count++
			known.Last = now
			return known
		}
	}
	if len(l.events) >= eventsMax {
		l.evict()
	}
	e.First, e.Last, e.Count = now, now, 1
	kept := &e
	l.events = append(l.events, kept)
	l.byKey[keyOf(kept)] = kept
	l.sources[e.From]++
	l.classes[class{e.What, e.Code}]++
	return kept
}

func (l *Log) find(e *Event, now time.Time) *Event {
	known := l.byKey[keyOf(e)]
	if known == nil || now.Sub(known.First) > spanMax {
		return nil
	}
	return known
}

// evict drops the event of the most crowded class that was not seen for longest; the mutex is held.
func (l *Log) evict() {
	var crowded class
	for c, n := range l.classes {
		if n > l.classes[crowded] {
			crowded = c
		}
	}
	oldest := -1
	for i, e := range l.events {
		if (class{e.What, e.Code}) == crowded && (oldest < 0 || e.Last.Before(l.events[oldest].Last)) {
			oldest = i
		}
	}
	gone := l.events[oldest]
	l.events = slices.Delete(l.events, oldest, oldest+1)
	if l.byKey[keyOf(gone)] == gone {
		delete(l.byKey, keyOf(gone))
	}
	decrement(l.sources, gone.From)
	decrement(l.classes, crowded)
}

func decrement[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// Events returns the events last seen at or after since, of one title when it is given, the latest last.
func (l *Log) Events(since time.Time, title string) []Event {
	out := []Event{}
	if l == nil {
		return out
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if !e.Last.Before(since) && (title == "" || e.Calling == title || e.Called == title) {
			out = append(out, *e)
		}
	}
	slices.SortStableFunc(out, func(a, b Event) int { return cmp.Or(a.Last.Compare(b.Last), a.First.Compare(b.First)) })
	return out
}

func (e *Event) clean() {
	e.Calling, e.Called = Quote(e.Calling, titleBytesMax), Quote(e.Called, titleBytesMax)
	for _, text := range []*string{&e.What, &e.From, &e.Code, &e.Words, &e.Why, &e.Do} {
		*text = Quote(*text, textBytesMax)
	}
}

// Quote makes text that a peer chose fit for a log and a terminal: what is not printable ASCII is escaped as
// in a Go string, and the whole is cut to at most n bytes.
func Quote(text string, n int) string {
	cut := len(text) > n
	if cut {
		text = text[:n]
	}
	quoted := text
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		quoted = strconv.QuoteToASCII(text)
		quoted = quoted[1 : len(quoted)-1]
	}
	if cut || len(quoted) > n {
		return quoted[:min(len(quoted), n-3)] + "..."
	}
	return quoted
}

// Stack names the functions and lines that led to a panic, for the one who recovers from it in a deferred
// function: without arguments and without the panic's text, which may hold a piece of what was worked on.
func Stack() string {
	var pcs [stackDepthMax]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var out strings.Builder
	for {
		f, more := frames.Next()
		out.WriteString(f.Function + ":" + strconv.Itoa(f.Line) + " ")
		if !more {
			return strings.TrimSpace(out.String())
		}
	}
}

func powerOfTen(n int) bool {
	for n >= 10 && n%10 == 0 {
		n /= 10
	}
	return n == 1
}
