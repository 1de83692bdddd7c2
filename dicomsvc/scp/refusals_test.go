package scp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/dicomsvc/refusal"
)

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// answered is what the peer of a refusal was told.
type answered struct {
	code    string // of the rejection, or the status
	comment string
	element dicom.Tag
}

func rejectedWith(err error) answered {
	var rej *dul.Rejection
	if errors.As(err, &rej) {
		return answered{code: rej.Code()}
	}
	return answered{code: fmt.Sprint(err)}
}

func statusOf(status uint16, comment string, elements []dicom.Tag) answered {
	a := answered{code: fmt.Sprintf("%04X", status), comment: comment}
	if len(elements) > 0 {
		a.element = elements[0]
	}
	return a
}

// TestRefusals: whatever is refused is refused with the standard's code, an Error Comment and the Offending Element
// where there are such, a line in the log, and an event for `osteon ae log` with the same code, why and what to do.
// Nothing of it holds a value of the object.
func TestRefusals(t *testing.T) {
	const canary = "Doe" // the patient of image
	good := func(sop string, set ...func(*dicom.Dataset)) []byte {
		b, err := image("1.2.9", "1.2.9.1", sop, 1000, set...).Encode(nil, explicit)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	storing := func(title, sop string, b []byte) func(*service) answered {
		return func(s *service) answered {
			c, err := s.associate(func(r *dul.RequestorConfig) {
				r.CallingAE, r.Roles = title, []dul.Role{{SOPClass: ctStorage, SCU: true, SCP: true}}
			}, []string{ctStorage, explicit})
			if err != nil {
				return rejectedWith(err)
			}
			r := store(s.t, c, ctStorage, sop, explicit, b)
			return statusOf(r.Status, r.ErrorComment, r.OffendingElements)
		}
	}
	finding := func(id *dicom.Dataset) func(*service) answered {
		return func(s *service) answered {
			_, status := s.find(dimse.StudyRootFind, id)
			if status == nil {
				return answered{}
			}
			return statusOf(status.Status, status.ErrorComment, status.OffendingElements)
		}
	}
	calling := func(change func(*dul.RequestorConfig), contexts ...string) func(*service) answered {
		if contexts == nil {
			contexts = []string{ctStorage, explicit}
		}
		return func(s *service) answered {
			_, err := s.associate(change, contexts)
			return rejectedWith(err)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		do     func(*service) answered

		what, code string
		element    dicom.Tag
		why        string // a piece
		mute       bool   // the peer hears of it in another way than by this code
	}{
		{name: "unknown caller", change: func(c *Config) { c.Promiscuous = false }, do: calling(nil),
			what: "association", code: "1/1/3", why: "the calling title is not registered"},
		{name: "another called title", change: func(c *Config) { c.StrictCalled = true }, do: calling(func(r *dul.RequestorConfig) { r.CalledAE = "OTHER" }),
			what: "association", code: "1/1/7", why: "the called title is not this node's"},
		{name: "another application context", do: func(s *service) answered {
			_, err := s.spoilt(func(b []byte) { copy(b[bytes.Index(b, []byte(dul.ApplicationContext)):], "9.9.840") })
			return rejectedWith(err)
		}, what: "association", code: "1/1/2", why: "none that this node can take"},
		{name: "draining", change: func(c *Config) { c.Archive.Drain() }, do: calling(nil),
			what: "association", code: "2/3/1", why: "shutting down"},
		{name: "too many of one title", change: func(c *Config) { c.PerAEMax = 1 }, do: func(s *service) answered {
			s.client([]string{ctStorage, explicit})
			return calling(nil)(s)
		}, what: "association", code: "2/3/2", why: "this calling title"},
		{name: "too many of one address", change: func(c *Config) { c.PerHostMax = 1 }, do: func(s *service) answered {
			s.client([]string{ctStorage, explicit})
			return calling(func(r *dul.RequestorConfig) { r.CallingAE = "SECOND" })(s)
		}, what: "association", code: "2/3/2", why: "callers at this address"},
		{name: "too many in all", change: func(c *Config) { c.AssociationsMax = 1 }, do: func(s *service) answered {
			s.client([]string{ctStorage, explicit})
			return calling(func(r *dul.RequestorConfig) { r.CallingAE = "SECOND" })(s)
		}, what: "association", code: "2/3/2", why: "places"},
		{name: "no class is offered", do: calling(nil, "1.2.840.10008.5.1.1.9", explicit), what: "presentation contexts", code: "3", why: "SOP classes", mute: true},
		{name: "no syntax is taken", do: calling(nil, dimse.VerificationClass, "1.2.840.10008.1.2.4.50"), what: "presentation contexts", code: "4", why: "transfer syntaxes", mute: true},

		{name: "another instance than the command's", do: storing("TESTSCU", "1.2.9.9", good("1.2.9.1.1")),
			what: "C-STORE", code: "A900", element: dicom.SOPInstanceUID, why: "SOP Instance UID differs"},
		{name: "another class than the command's", do: storing("TESTSCU", "1.2.9.1.1", good("1.2.9.1.1", func(d *dicom.Dataset) { d.SetStrings(dicom.SOPClassUID, mrStorage) })),
			what: "C-STORE", code: "A900", element: dicom.SOPClassUID, why: "SOP Class UID differs"},
		{name: "no study", do: storing("TESTSCU", "1.2.9.1.1", good("1.2.9.1.1", func(d *dicom.Dataset) { d.Remove(dicom.StudyInstanceUID) })),
			what: "C-STORE", code: "C000", element: dicom.StudyInstanceUID, why: "required attribute is missing"},
		{name: "cut off", do: storing("TESTSCU", "1.2.9.1.1", good("1.2.9.1.1")[:600]),
			what: "C-STORE", code: "C000", element: dicom.PixelData, why: "cut off"},
		{name: "no instance in the command", do: storing("TESTSCU", "", good("1.2.9.1.1")), what: "C-STORE", code: "0117", element: 0x0000_1000, why: "no SOP instance UID"},
		{name: "not allowed", do: storing("DENIED", "1.2.9.1.1", good("1.2.9.1.1")), what: "C-STORE", code: "0124", why: "not allowed"},

		{name: "no level", do: finding(identifier("", dicom.StudyInstanceUID, "")), what: "C-FIND", code: "A900", element: dicom.QueryRetrieveLevel, why: "missing"},
		{name: "another level", do: finding(identifier("PATIENT")), what: "C-FIND", code: "A900", element: dicom.QueryRetrieveLevel, why: "no PATIENT level"},
		{name: "no key above", do: finding(identifier("SERIES", dicom.Modality, "CT")), what: "C-FIND", code: "A900", element: dicom.StudyInstanceUID, why: "one value is needed"},
		{name: "unknown destination", do: func(s *service) answered {
			r := s.move(wholeStudy, "NOWHERE", nil)
			return statusOf(r.Status, r.ErrorComment, nil)
		}, what: "C-MOVE", code: "A801", why: "not registered"},
		{name: "destination that is down", do: func(s *service) answered {
			s.putBytes(good("1.2.9.1.1"), explicit)
			s.destination("GONE", "127.0.0.1:1")
			r := s.move(wholeStudy, "GONE", nil)
			return statusOf(r.Status, r.ErrorComment, nil)
		}, what: "C-MOVE", code: "A702", why: "destination GONE failed: connect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said lines
			log := refusal.NewLog(refusal.Config{Now: time.Now, Log: slog.New(slog.NewTextHandler(&said, nil))})
			s := start(t, func(c *Config) {
				c.Refusals = log
				c.Archive = openArchive(t, t.TempDir(), func(d *dicomsvc.Config) {
					d.Policy.Allow = func(p dicomsvc.Principal, act dicomsvc.Action) bool {
						return p.Name != "DENIED" || act == dicomsvc.ActionRetrieve
					}
				})
				if tt.change != nil {
					tt.change(c)
				}
			})
			s.archive = s.cfg.Archive
			got := tt.do(s)
			if !tt.mute && got.code != tt.code || got.element != tt.element {
				t.Errorf("told %s with element %v, want %s with %v", got.code, got.element, tt.code, tt.element)
			}
			if isStatus := !strings.Contains(tt.code, "/") && !tt.mute; isStatus && (got.comment == "" || len(got.comment) > commentMax) {
				t.Errorf("Error Comment %q", got.comment)
			}
			var events []refusal.Event
			wait(t, "the event", func() bool {
				events = slices.DeleteFunc(log.Events(time.Time{}, ""), func(e refusal.Event) bool { return e.What != tt.what || e.Code != tt.code })
				return len(events) > 0 && said.String() != "" // the line follows the event
			})
			e := events[0]
			if !strings.Contains(e.Why, tt.why) || e.Do == "" || e.Words == "" || e.From != "127.0.0.1" || e.Calling == "" || len(events) > 1 {
				t.Errorf("events %+v", events)
			}
			if text := said.String(); !strings.Contains(text, "code="+tt.code) || !strings.Contains(text, "do=") || strings.Contains(text+fmt.Sprint(events)+got.comment, canary) {
				t.Errorf("log: %s", text)
			}
		})
	}
}

// Every kind of error has a status, a comment that fits its element, a reason and a remedy.
func TestEveryKindHasRemedy(t *testing.T) {
	for _, kind := range kinds {
		r := refused(&dimse.StoreRequest{SOPInstance: "1.2"}, dicomsvc.PutResult{SOPInstanceUID: "1.2"}, fmt.Errorf("inside: %w", kind))
		if r.Status == 0 || r.ErrorComment == "" || len(r.ErrorComment) > commentMax || strings.Contains(r.ErrorComment, "inside") || r.Advice.Why == "" || r.Advice.Do == "" {
			t.Errorf("%v: %+v", kind, r)
		}
		if words, do := dimse.Meaning(r.Status); words == "" || do == "" {
			t.Errorf("%04X has no words", r.Status)
		}
	}
}

// F56: an object on which this program panics costs its sender the association, three times; then it is refused at
// once with C0F0 and listed. The planted fault is in the policy, which the archive asks about each sender.
func TestF56PoisonIsSetAside(t *testing.T) {
	log := refusal.NewLog(refusal.Config{Now: time.Now})
	var asked atomic.Int64 // about the sender: when its contexts are negotiated, and again when it stores
	s := start(t, func(c *Config) {
		c.Refusals = log
		c.Archive = openArchive(t, t.TempDir(), func(d *dicomsvc.Config) {
			d.Policy.Allow = func(p dicomsvc.Principal, _ dicomsvc.Action) bool {
				if p.Name == "POISON" && asked.Add(1)%2 == 0 {
					panic("planted")
				}
				return true
			}
		})
	})
	s.archive = s.cfg.Archive
	b, err := image("1.2.9", "1.2.9.1", "1.2.9.1.1", 1000).Encode(nil, explicit)
	if err != nil {
		t.Fatal(err)
	}
	send := func() (dimse.StoreResponse, error) {
		c, err := s.associate(func(r *dul.RequestorConfig) { r.CallingAE = "POISON" }, []string{ctStorage, explicit})
		if err != nil {
			t.Fatal(err)
		}
		return c.Store(context.Background(), dimse.StoreArgs{SOPClass: ctStorage, SOPInstance: "1.2.9.1.1", Syntax: explicit, Data: bytes.NewReader(b)})
	}
	bystander := s.client([]string{ctStorage, explicit})
	for strike := range 3 {
		var abort *dul.AbortError
		if r, err := send(); !errors.As(err, &abort) || !abort.Remote {
			t.Errorf("strike %d: %04X, %v; want an A-ABORT", strike, r.Status, err)
		}
	}
	if r, err := send(); err != nil || r.Status != dicomsvc.StatusPoison || !strings.Contains(r.ErrorComment, "made the node fail") {
		t.Errorf("fourth time: %04X %q, %v; want C0F0", r.Status, r.ErrorComment, err)
	}
	if list := s.archive.Poison(); len(list) != 1 || list[0].Caller != "POISON" || !list[0].Refused {
		t.Errorf("listed: %+v", list)
	}
	if n := s.Stats().Panics.Load(); n != 3 {
		t.Errorf("%d panics counted", n)
	}
	if r := store(t, bystander, ctStorage, "1.2.9.1.1", explicit, b); r.Status != dimse.StatusSuccess {
		t.Errorf("another sender's association: %04X %q", r.Status, r.ErrorComment)
	}
	codes := map[string]int{}
	wait(t, "the events", func() bool {
		clear(codes)
		for _, e := range log.Events(time.Time{}, "POISON") {
			codes[e.What+" "+e.Code] += e.Count
		}
		return codes["association 0/0"] == 3 && codes["C-STORE C0F0"] == 1
	})
}

// spoilt sends an association request that change has spoilt and returns the rejection.
func (s *service) spoilt(change func([]byte)) (*dimse.Client, error) {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return dimse.Dial(context.Background(), &spoiling{Conn: conn, change: change}, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: "TESTSCU", CalledAE: "OSTEON", Timers: dul.Timers{Linger: 200 * time.Millisecond},
		Contexts: []dul.ProposedContext{{ID: 1, AbstractSyntax: ctStorage, TransferSyntaxes: []string{explicit}}},
	}})
}

// spoiling changes what is written first.
type spoiling struct {
	net.Conn
	change func([]byte)
}

func (c *spoiling) Write(p []byte) (int, error) {
	if c.change != nil {
		p = bytes.Clone(p)
		c.change(p)
		c.change = nil
	}
	return c.Conn.Write(p)
}
