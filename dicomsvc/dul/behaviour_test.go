package dul

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// Behaviour 1.
func TestBehaviour01EveryContextAnswered(t *testing.T) {
	r := newRaw(t, accepting())
	ac := r.associate(func(q *Request) {
		q.Contexts = []ProposedContext{
			{5, ctStorage, []string{jpegLS}},
			{1, "1.2.3.4", []string{implicitLE}},
			{3, mrStorage, []string{jpegLS, implicitLE}},
			{255, verification, nil},
		}
	})
	want := []ContextResult{{5, ContextTransferSyntaxes, jpegLS}, {1, ContextAbstractSyntax, implicitLE},
		{3, ContextAccepted, implicitLE}, {255, ContextTransferSyntaxes, implicitLE}}
	if !reflect.DeepEqual(ac.contexts, want) {
		t.Errorf("got %v, want %v", ac.contexts, want)
	}
	r.end()

	r = newRaw(t, accepting())
	ac = r.associate(func(q *Request) { q.Contexts = []ProposedContext{{7, "1.2.3.4", []string{implicitLE}}} })
	if len(ac.contexts) != 1 || ac.contexts[0].Result != ContextAbstractSyntax {
		t.Errorf("all rejected: got %v, want one result 3 in an A-ASSOCIATE-AC", ac.contexts)
	}
	r.send(releaseRQPDU())
	r.want(typeReleaseRP)
	if err := r.end(); err != nil {
		t.Errorf("release of an association without contexts: %v", err)
	}
}

// Behaviour 2.
func TestBehaviour02SameAbstractSyntax128Times(t *testing.T) {
	var contexts []ProposedContext
	for i := range 128 {
		syntaxes := []string{implicitLE}
		if i%2 == 1 {
			syntaxes = []string{jpegLS, explicitLE}
		}
		contexts = append(contexts, ProposedContext{byte(2*i + 1), ctStorage, syntaxes})
	}
	req, acc := pair(t, accepting(), calling(contexts...))
	for _, side := range []*Association{req, acc} {
		if n := len(side.Contexts()); n != 128 {
			t.Fatalf("got %d contexts, want 128", n)
		}
		for i, c := range side.Contexts() {
			want := implicitLE
			if i%2 == 1 {
				want = explicitLE
			}
			if c.TransferSyntax != want {
				t.Fatalf("context %d: got syntax %s, want %s", c.ID, c.TransferSyntax, want)
			}
		}
	}
}

// Behaviour 3.
func TestBehaviour03Titles(t *testing.T) {
	var got *Request
	cfg := AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) {
		got = r
		return standard().Answer(r), nil
	}}
	r := newRaw(t, cfg)
	b := request()
	copy(b[10:], "  Osteon\x00       ")
	copy(b[26:], " mOdality       ")
	copy(b[42:], "reserved")
	r.send(b)
	ac := r.want(typeAC)
	if !bytes.Equal(ac[4:68], b[10:74]) {
		t.Errorf("got % x, want the fields of the request echoed", ac[4:68])
	}
	if got.CalledAE != "Osteon" || got.CallingAE != "mOdality" {
		t.Errorf("got %q and %q", got.CalledAE, got.CallingAE)
	}
	r.end()
}

// Behaviour 4.
func TestBehaviour04RejectionTriples(t *testing.T) {
	for name, c := range map[string]struct {
		rej    *Rejection
		want   [3]byte
		change func(*Request)
	}{
		"calling AE":          {rej: RejectCallingAE(), want: [3]byte{1, 1, 3}},
		"called AE":           {rej: RejectCalledAE(), want: [3]byte{1, 1, 7}},
		"congestion":          {rej: RejectCongestion(), want: [3]byte{2, 3, 1}},
		"local limit":         {rej: RejectLocalLimit(), want: [3]byte{2, 3, 2}},
		"no decision":         {want: [3]byte{2, 3, 1}},
		"application context": {want: [3]byte{1, 1, 2}, change: func(r *Request) { r.ApplicationContext = "1.2.3" }},
		"no context":          {want: [3]byte{1, 1, 1}, change: func(r *Request) { r.Contexts = nil }},
		"tiny PDU":            {want: [3]byte{1, 1, 1}, change: func(r *Request) { r.User.MaxLength = 7 }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, AcceptorConfig{Negotiate: func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, c.rej }})
			if c.change == nil {
				c.change = func(*Request) {}
			}
			r.send(request(c.change))
			r.want(typeRJ, 0, c.want[0], c.want[1], c.want[2])
			var rej *Rejection
			if err := r.end(); !errors.As(err, &rej) || rej.Transient() != (c.want[0] == 2) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("protocol version", func(t *testing.T) {
		r := newRaw(t, accepting())
		b := request()
		b[7] = 2
		r.send(b)
		r.want(typeRJ, 0, 1, 2, 2)
		r.end()
	})
	t.Run("seen by the requestor", func(t *testing.T) {
		client, server := tcpPair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			Accept(context.Background(), server, AcceptorConfig{Negotiate: func(context.Context, *Request) (*Acceptance, *Rejection) { return nil, RejectLocalLimit() }})
		}()
		_, err := Connect(context.Background(), client, calling())
		client.Close()
		var rej *Rejection
		if !errors.As(err, &rej) || *rej != *RejectLocalLimit() || !IsRejected(err) {
			t.Errorf("got %v, want local limit", err)
		}
		<-done
	})
}

// Behaviour 5.
func TestBehaviour05MaximumLength(t *testing.T) {
	for _, peer := range []uint32{0, 128, 129, 4096, 16384, 1 << 31} {
		t.Run(fmt.Sprint(peer), func(t *testing.T) {
			client, server := tcpPair(t)
			var sizes []uint32
			done := make(chan error, 1)
			body := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
			go func() {
				a, err := Accept(context.Background(), server, accepting())
				if err == nil {
					err = a.Send(1, []byte("command!"), bytes.NewReader(body))
					a.Abort()
					a.Close()
				}
				done <- err
			}()
			r := &raw{t: t, conn: client}
			if ac := r.associate(func(q *Request) { q.User.MaxLength = peer }); ac.user.MaxLength != AdvertisedPDU {
				t.Errorf("announced %d", ac.user.MaxLength)
			}
			var got []byte
			for {
				typ, b := r.pdu()
				if typ == typeAbort {
					break
				}
				sizes = append(sizes, uint32(len(b)))
				if n := int(be.Uint32(b)); n != len(b)-4 || n%2 != 0 {
					t.Fatalf("fragment of %d bytes in a PDU of %d", n, len(b))
				}
				got = append(got, b[6:]...)
			}
			client.Close()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if want := "command!" + string(body); string(got) != want {
				t.Error("data came out changed")
			}
			for _, n := range sizes {
				if peer > 0 && n > peer {
					t.Fatalf("PDU of %d bytes for a peer that takes %d", n, peer)
				}
			}
		})
	}
}

// B14: the declared length is not believed.
// Behaviour 5.
func TestBehaviour05DeclaredLength(t *testing.T) {
	for name, b := range map[string][]byte{
		"request 4 GiB":     {typeRQ, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 1},
		"request limit + 1": {typeRQ, 0, 0, 4, 0, 1},
		"HTTP":              []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"TLS":               {0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, accepting())
			r.send(b)
			r.want(typeAbort, 0, 0, SourceUser, 0) // AA-1 of Sta2
			if err := r.end(); err == nil {
				t.Error("no error")
			}
		})
	}
	r := newRaw(t, accepting())
	r.associate()
	r.send([]byte{typeData, 0, 0xFF, 0xFF, 0xFF, 0xFF})
	r.want(typeAbort, 0, 0, SourceProvider, ReasonInvalidParam)
	r.end()

	// A declared length costs nothing until bytes come.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all []*raw
	for range 50 {
		r := newRaw(t, accepting())
		r.send([]byte{typeRQ, 0, 0, 4, 0, 0})
		all = append(all, r)
	}
	runtime.ReadMemStats(&after)
	for _, r := range all {
		r.end()
	}
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 50*(readBufferBytes+32<<10) {
		t.Errorf("50 requests of a declared 256 KiB allocated %d bytes", grown)
	}
}

// Behaviour 5.
func TestBehaviour05PDUAtAndOverTheLimit(t *testing.T) {
	r := newRaw(t, accepting())
	r.associate()
	r.send(dataPDU(pdv{1, 3, strings.Repeat("x", pduBytesMax-6)}))
	if got := <-r.data; len(got) != pduBytesMax-6 {
		t.Errorf("got %d bytes", len(got))
	}
	r.send([]byte{typeData, 0, 0, 4, 0, 1})
	r.want(typeAbort, 0, 0, SourceProvider, ReasonInvalidParam)
	r.end()
}

// Behaviour 6.
func TestBehaviour06Fragments(t *testing.T) {
	r := newRaw(t, accepting())
	r.associate(func(q *Request) { q.Contexts = append(q.Contexts, ProposedContext{3, mrStorage, []string{implicitLE}}) })
	r.send(dataPDU(pdv{1, 1, "com"}, pdv{1, 1, ""}, pdv{1, 3, "mand"}, pdv{1, 0, "da"}))
	r.send(dataPDU(pdv{1, 0, "ta "}))
	r.send(dataPDU(pdv{1, 2, "set"}, pdv{3, 3, "next"}))
	for _, want := range []string{"command", "data set", "next"} {
		if got := <-r.data; string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	r.send(releaseRQPDU())
	r.want(typeReleaseRP)
	if err := r.end(); err != nil {
		t.Error(err)
	}

	for name, c := range map[string]struct {
		send   []byte
		reason byte
	}{
		"other context":        {dataPDU(pdv{1, 0, "a"}, pdv{3, 0, "b"}), ReasonUnexpectedPara},
		"other kind":           {dataPDU(pdv{1, 0, "a"}, pdv{1, 1, "b"}), ReasonUnexpectedPara},
		"unknown context":      {dataPDU(pdv{5, 0, "a"}), ReasonInvalidParam},
		"context 0":            {dataPDU(pdv{0, 0, "a"}), ReasonInvalidParam},
		"fragment over PDU":    {[]byte{typeData, 0, 0, 0, 0, 8, 0, 0, 0, 5, 1, 0, 'a', 'b'}, ReasonInvalidParam},
		"fragment 4 GiB":       {[]byte{typeData, 0, 0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 'a', 'b'}, ReasonInvalidParam},
		"fragment length 1":    {[]byte{typeData, 0, 0, 0, 0, 8, 0, 0, 0, 1, 1, 0, 'a', 'b'}, ReasonInvalidParam},
		"header cut":           {[]byte{typeData, 0, 0, 0, 0, 3, 0, 0, 0}, ReasonInvalidParam},
		"empty":                {[]byte{typeData, 0, 0, 0, 0, 0}, ReasonInvalidParam},
		"release in a message": {append(dataPDU(pdv{1, 0, "a"}), releaseRQPDU()...), ReasonUnexpected},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, accepting())
			r.associate(func(q *Request) { q.Contexts = append(q.Contexts, ProposedContext{3, mrStorage, []string{implicitLE}}) })
			r.send(c.send)
			r.want(typeAbort, 0, 0, SourceProvider, c.reason)
			var abort *AbortError
			if err := r.end(); !errors.As(err, &abort) || abort.Remote || abort.Reason != c.reason {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Behaviour 9.
func TestBehaviour09UnexpectedPDU(t *testing.T) {
	for name, c := range map[string]struct {
		send   []byte
		reason byte
	}{
		"request again":     {request(), ReasonUnexpected},
		"accept":            {appendAccept(nil, &acceptPDU{}), ReasonUnexpected},
		"reject":            {rejectPDU(RejectCalledAE()), ReasonUnexpected},
		"release reply":     {releaseRPPDU(), ReasonUnexpected},
		"unrecognised":      {[]byte{8, 0, 0, 0, 0, 0}, ReasonUnrecognized},
		"type 0":            {[]byte{0, 0, 0, 0, 0, 0}, ReasonUnrecognized},
		"release of length": {[]byte{typeReleaseRQ, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0}, ReasonInvalidParam},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, accepting())
			r.associate()
			r.send(c.send)
			r.want(typeAbort, 0, 0, SourceProvider, c.reason)
			r.end()
		})
	}
	for name, b := range map[string][]byte{
		"data first": dataPDU(pdv{1, 3, "x"}), "release first": releaseRQPDU(),
		"even context":     request(func(r *Request) { r.Contexts[0].ID = 2 }),
		"context 0":        request(func(r *Request) { r.Contexts[0].ID = 0 }),
		"repeated context": request(func(r *Request) { r.Contexts = append(r.Contexts, r.Contexts[0]) }),
		"item overruns":    append([]byte{typeRQ, 0, 0, 0, 0, 72}, append(make([]byte, 68), 0x10, 0, 0, 9)...),
		"129 contexts": request(func(r *Request) {
			r.Contexts = nil
			for i := range 129 {
				r.Contexts = append(r.Contexts, ProposedContext{byte(2*i + 1), ctStorage, []string{implicitLE}})
			}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, accepting())
			r.send(b)
			r.want(typeAbort, 0, 0, SourceUser, 0)
			r.end()
		})
	}
	t.Run("abort first", func(t *testing.T) {
		r := newRaw(t, accepting())
		r.send(abortPDU(0, 0))
		r.wantClosed()
		r.end()
	})
}

// An abort or a reset in the middle of a data set is an error to its reader.
// Behaviour 9.
func TestBehaviour09CutDataSet(t *testing.T) {
	for name, cut := range map[string]func(*raw){
		"abort":        func(r *raw) { r.send(abortPDU(SourceUser, 0)) },
		"close":        func(r *raw) { r.conn.Close() },
		"reset":        func(r *raw) { r.conn.(*net.TCPConn).SetLinger(0); r.conn.Close() },
		"close in PDV": func(r *raw) { r.send([]byte{typeData, 0, 0, 0, 0, 200, 0, 0, 0, 196, 1, 2, 'x'}); r.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t, accepting())
			r.associate()
			r.send(dataPDU(pdv{1, 3, "command"}, pdv{1, 0, "begin"}))
			cut(r)
			err := <-r.got
			if err == nil || errors.Is(err, io.EOF) {
				t.Fatalf("got %v, want an error other than io.EOF", err)
			}
			var abort *AbortError
			if name == "abort" && (!errors.As(err, &abort) || !abort.Remote) {
				t.Errorf("got %v, want the peer's abort", err)
			}
			if n := len(r.data); n != 1 {
				t.Errorf("got %d complete streams, want the command alone", n)
			}
		})
	}
}

// Behaviour 10.
func TestBehaviour10UserInformation(t *testing.T) {
	r := newRaw(t, accepting())
	b := request()
	// Unknown sub-items at the end of the user information item.
	extra := []byte{0x5F, 0, 0, 3, 1, 2, 3, 0xEE, 0, 0, 0}
	b = append(b, extra...)
	be.PutUint32(b[2:], uint32(len(b)-6))
	at := bytes.LastIndex(b, []byte{itemUserInfo, 0, 0})
	be.PutUint16(b[at+2:], be.Uint16(b[at+2:])+uint16(len(extra)))
	r.send(b)
	ac, err := decodeAccept(r.want(typeAC))
	if err != nil {
		t.Fatal(err)
	}
	if ac.user.ImplClassUID != ImplementationClassUID || ac.user.ImplVersion != ImplementationVersion || ac.appCtx != ApplicationContext {
		t.Errorf("got %q %q %q", ac.user.ImplClassUID, ac.user.ImplVersion, ac.appCtx)
	}
	if len(ImplementationVersion) > 16 || len(ImplementationClassUID) > 64 || !strings.HasPrefix(ImplementationClassUID, "2.25.") {
		t.Error("our own names break the rules")
	}
	r.end()
}

// Behaviour 11.
func TestBehaviour11ReleaseCollision(t *testing.T) {
	req, acc := pair(t, accepting(), calling())
	errs := make(chan error, 2)
	start := make(chan struct{})
	for _, a := range []*Association{req, acc} {
		go func() {
			<-start
			errs <- a.Release(context.Background())
		}()
	}
	close(start)
	for range 2 {
		if err := <-errs; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("Release: %v", err)
		}
	}

	t.Run("acceptor, by the letter", func(t *testing.T) {
		client, server := tcpPair(t)
		done := make(chan error, 1)
		go func() {
			a, err := Accept(context.Background(), server, accepting())
			if err == nil {
				err = a.Release(context.Background())
			}
			done <- err
		}()
		r := &raw{t: t, conn: client}
		r.associate()
		r.want(typeReleaseRQ)
		r.send(dataPDU(pdv{1, 3, "late"})) // Sta7 still takes data
		r.send(releaseRQPDU())             // collision: acceptor in Sta10
		r.send(releaseRPPDU())             // we, the requestor, answer first
		r.want(typeReleaseRP)
		client.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("requestor, by the letter", func(t *testing.T) {
		client, server := tcpPair(t)
		done := make(chan error, 1)
		go func() {
			a, err := Connect(context.Background(), client, calling())
			if err == nil {
				err = a.Release(context.Background())
			}
			done <- err
		}()
		r := &raw{t: t, conn: server}
		r.want(typeRQ)
		r.send(appendAccept(nil, &acceptPDU{appCtx: ApplicationContext, contexts: []ContextResult{{1, 0, implicitLE}}}))
		r.want(typeReleaseRQ)
		r.send(releaseRQPDU())
		r.want(typeReleaseRP) // Sta9 answers, Sta11 waits
		r.send(releaseRPPDU())
		r.wantClosed()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("data after the peer's request", func(t *testing.T) {
		client, server := tcpPair(t)
		done := make(chan error, 1)
		go func() {
			a, err := Accept(context.Background(), server, accepting())
			if err == nil {
				if _, err = a.Next(); errors.Is(err, ErrReleaseRequested) {
					err = errors.Join(a.Send(1, []byte("rest"), nil), a.ReplyRelease())
				}
				a.Close()
			}
			done <- err
		}()
		r := &raw{t: t, conn: client}
		r.associate()
		r.send(releaseRQPDU())
		r.want(typeData)
		r.want(typeReleaseRP)
		client.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Behaviour 12.
func TestBehaviour12AsyncWindow(t *testing.T) {
	for name, c := range map[string]struct {
		proposed, allowed, answer *AsyncOps
		inForce                   AsyncOps
	}{
		"none proposed":     {nil, &AsyncOps{5, 5}, nil, AsyncOps{1, 1}},
		"not allowed":       {&AsyncOps{0, 0}, nil, &AsyncOps{1, 1}, AsyncOps{1, 1}},
		"never over":        {&AsyncOps{3, 2}, &AsyncOps{0, 8}, &AsyncOps{3, 2}, AsyncOps{3, 2}},
		"unlimited is cut":  {&AsyncOps{0, 9}, &AsyncOps{4, 4}, &AsyncOps{4, 4}, AsyncOps{4, 4}},
		"unlimited on both": {&AsyncOps{0, 0}, &AsyncOps{0, 0}, &AsyncOps{0, 0}, AsyncOps{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) {
				a := standard().Answer(r)
				a.AsyncOps = c.allowed
				return a, nil
			}}
			rc := calling()
			rc.AsyncOps = c.proposed
			req, acc := pair(t, cfg, rc)
			if !reflect.DeepEqual(req.Peer().AsyncOps, c.answer) || req.AsyncOps() != c.inForce || acc.AsyncOps() != c.inForce {
				t.Errorf("got answer %v, in force %v and %v", req.Peer().AsyncOps, req.AsyncOps(), acc.AsyncOps())
			}
		})
	}
}

// Behaviour 13.
func TestBehaviour13Roles(t *testing.T) {
	rc := calling(ProposedContext{1, ctStorage, []string{implicitLE}}, ProposedContext{3, mrStorage, []string{implicitLE}},
		ProposedContext{5, verification, []string{implicitLE}})
	rc.Roles = []Role{{ctStorage, false, true}, {mrStorage, true, true}, {"1.2.3.4", true, true}}
	req, acc := pair(t, accepting(), rc)
	if got, want := req.Peer().Roles, []Role{{ctStorage, false, true}, {mrStorage, true, false}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got roles %v, want %v", got, want)
	}
	for _, a := range []*Association{req, acc} {
		for id, want := range map[byte][2]bool{1: {false, true}, 3: {true, false}, 5: {true, false}} {
			if c, _ := a.Context(id); c.RequestorSCU != want[0] || c.RequestorSCP != want[1] {
				t.Errorf("context %d: got SCU %v SCP %v", id, c.RequestorSCU, c.RequestorSCP)
			}
		}
	}
	if got := cutRoles([]Role{{ctStorage, true, false}}, []Role{{ctStorage, true, true}, {mrStorage, true, true}}); !reflect.DeepEqual(got, []Role{{ctStorage, true, false}}) {
		t.Errorf("got %v, want no more than was proposed", got)
	}
}

// Behaviour 14.
func TestBehaviour14ExtendedNegotiation(t *testing.T) {
	var seen UserInfo
	cfg := AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) {
		seen = r.User
		a := standard().Answer(r)
		a.Extended = []ExtendedNegotiation{{ctStorage, []byte{1, 0}}}
		return a, nil
	}}
	rc := calling()
	rc.Extended = []ExtendedNegotiation{{ctStorage, []byte{1, 1, 0, 1, 1}}}
	rc.CommonExtended = []CommonExtended{{mrStorage, "1.2.840.10008.4.2", []string{ctStorage, "1.2"}}, {ctStorage, "1.2.840.10008.4.2", nil}}
	req, _ := pair(t, cfg, rc)
	if !reflect.DeepEqual(seen.Extended, rc.Extended) || !reflect.DeepEqual(seen.CommonExtended, rc.CommonExtended) {
		t.Errorf("acceptor saw %v and %v", seen.Extended, seen.CommonExtended)
	}
	if got := req.Peer().Extended; len(got) != 1 || !bytes.Equal(got[0].Info, []byte{1, 0}) {
		t.Errorf("requestor saw %v", got)
	}
	// The common extended negotiation has no answer (PS3.7 §D.3.3.6).
	if got := req.Peer().CommonExtended; got != nil {
		t.Errorf("requestor saw %v", got)
	}
}

// Behaviour 15.
func TestBehaviour15UserIdentity(t *testing.T) {
	for kind := IdentityUsername; kind <= IdentityJWT; kind++ {
		for _, ask := range []bool{false, true} {
			var seen *UserIdentity
			cfg := AcceptorConfig{Negotiate: func(_ context.Context, r *Request) (*Acceptance, *Rejection) {
				seen = r.User.Identity
				a := standard().Answer(r)
				a.IdentityResponse = []byte("ticket")
				return a, nil
			}}
			rc := calling()
			rc.Identity = &UserIdentity{Type: kind, ResponseRequested: ask, Primary: []byte("primary"), Secondary: []byte("pass")}
			req, _ := pair(t, cfg, rc)
			if !reflect.DeepEqual(seen, rc.Identity) {
				t.Errorf("type %d: acceptor saw another identity", kind)
			}
			if got := req.Peer().IdentityResponse; (got != nil) != ask {
				t.Errorf("type %d, asked %v: got response %q", kind, ask, got)
			}
		}
	}
}

// A sender with Nagle's algorithm on must not wait for delayed
// acknowledgements: without them 50 messages take over two seconds.
// Behaviour 17.
func TestBehaviour17Nagle(t *testing.T) {
	rc := calling()
	client, server := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		a, err := Accept(context.Background(), server, accepting())
		if err != nil {
			done <- err
			return
		}
		defer a.Close()
		for n := 0; ; n++ {
			in, err := a.Next()
			if err != nil {
				done <- nil
				return
			}
			io.Copy(io.Discard, in)
			if !in.Command {
				a.Send(1, []byte("response"), nil)
			}
		}
	}()
	req, err := Connect(context.Background(), client, rc)
	if err != nil {
		t.Fatal(err)
	}
	client.(*net.TCPConn).SetNoDelay(false)
	began := time.Now()
	const messages = 50
	for range messages {
		// Two writes a message, as unmodified senders do.
		if err := req.Send(1, []byte("command"), nil); err != nil {
			t.Fatal(err)
		}
		req.conn.Write(dataPDU(pdv{1, 2, strings.Repeat("x", 100)}))
		if _, err := req.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > messages*20*time.Millisecond {
		t.Errorf("%d messages took %v: acknowledgements are delayed", messages, took)
	}
	client.Close()
	req.Close()
	<-done
}

func TestSendOneWrite(t *testing.T) {
	client, server := net.Pipe()
	r := &raw{t: t, conn: client}
	done := make(chan error, 1)
	go func() {
		a, err := Accept(context.Background(), server, accepting())
		if err == nil {
			err = a.Send(1, []byte("command"), strings.NewReader("identifier"))
			a.Abort()
			a.Close()
		}
		done <- err
	}()
	go r.conn.Write(request())
	r.want(typeAC)
	// A pipe gives one write at a time.
	b := make([]byte, 1000)
	n, err := client.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	want := append(dataPDU(pdv{1, 3, "command"}), dataPDU(pdv{1, 2, "identifier"})...)
	if !bytes.Equal(b[:n], want) {
		t.Errorf("first write was % x", b[:n])
	}
	r.want(typeAbort)
	client.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSendSources(t *testing.T) {
	body := make([]byte, 1<<20+3)
	rand.Read(body)
	for _, n := range []int{0, 1, 4089, 4090, 4091, 8180, len(body)} {
		for name, send := range map[string]func(a *Association) error{
			"reader": func(a *Association) error { return a.Send(1, []byte("cmd"), bytes.NewReader(body[:n])) },
			"one byte": func(a *Association) error {
				return a.Send(1, []byte("cmd"), iotest.HalfReader(bytes.NewReader(body[:n])))
			},
			"writer": func(a *Association) error { return a.SendFrom(1, []byte("cmd"), bytes.NewReader(body[:n])) },
		} {
			cfg := accepting()
			cfg.MaxPDU = 4096
			req, acc := pair(t, cfg, calling())
			errs := make(chan error, 1)
			go func() { errs <- send(req) }()
			for _, want := range [][]byte{[]byte("cmd"), body[:n]} {
				in, err := acc.Next()
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(in)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s of %d bytes: got %d bytes, %v", name, n, len(got), err)
				}
			}
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("failing source", func(t *testing.T) {
		req, acc := pair(t, accepting(), calling())
		cause := errors.New("disk gone")
		errs := make(chan error, 1)
		go func() {
			errs <- req.Send(1, []byte("cmd"), io.MultiReader(bytes.NewReader(body), iotest.ErrReader(cause)))
		}()
		in, err := acc.Next()
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, in)
		if in, err = acc.Next(); err != nil {
			t.Fatal(err)
		}
		var abort *AbortError
		if _, err := io.ReadAll(in); !errors.As(err, &abort) || !abort.Remote {
			t.Errorf("reader got %v, want the abort", err)
		}
		if err := <-errs; !errors.Is(err, cause) {
			t.Errorf("sender got %v", err)
		}
		if err := req.Send(1, nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("later Send: %v", err)
		}
	})
}

func TestContextEndsAssociation(t *testing.T) {
	client, server := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	r := &raw{t: t, conn: client}
	done := make(chan error, 1)
	go func() {
		a, err := Accept(ctx, server, accepting())
		if err == nil {
			_, err = a.Next()
			a.Close()
		}
		done <- err
	}()
	r.associate()
	cancel()
	r.want(typeAbort, 0, 0, SourceUser, 0)
	client.Close()
	var abort *AbortError
	if err := <-done; !errors.As(err, &abort) || abort.Remote {
		t.Errorf("got %v", err)
	}
}

// The words of a refusal are the standard's, for logs and for whoever asks (PS3.8 Tables 9-21 and 9-26).
func TestWordsOfRefusals(t *testing.T) {
	for _, c := range []struct {
		said interface {
			Code() string
			Words() string
		}
		code, words string
	}{
		{RejectCallingAE(), "1/1/3", "rejected-permanent, DICOM UL service-user, calling-AE-title-not-recognized"},
		{RejectCalledAE(), "1/1/7", "rejected-permanent, DICOM UL service-user, called-AE-title-not-recognized"},
		{RejectIdentity(), "1/2/1", "rejected-permanent, DICOM UL service-provider (ACSE), no-reason-given"},
		{RejectProtocol(), "1/2/2", "rejected-permanent, DICOM UL service-provider (ACSE), protocol-version-not-supported"},
		{RejectCongestion(), "2/3/1", "rejected-transient, DICOM UL service-provider (presentation), temporary-congestion"},
		{RejectLocalLimit(), "2/3/2", "rejected-transient, DICOM UL service-provider (presentation), local-limit-exceeded"},
		{&AbortError{}, "0/0", "A-ABORT by service-user"},
		{&AbortError{Source: 2, Reason: 6}, "2/6", "A-ABORT by service-provider, invalid-PDU-parameter value"},
	} {
		if got := c.said.Code(); got != c.code {
			t.Errorf("code %s, want %s", got, c.code)
		}
		if got := c.said.Words(); got != c.words {
			t.Errorf("%s: words %q, want %q", c.code, got, c.words)
		}
	}
}
