package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"osteon/erasure/place"
)

func TestCallErrors(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	a, b := r.open(newNode(t), nil), r.open(newNode(t), nil)
	to := b.Self().Node
	gaveUp := make(chan struct{})
	b.HandleCall(KindAdmin, func(ctx context.Context, _ Peer, req []byte) ([]byte, error) {
		switch string(req) {
		case "own":
			return nil, &RemoteError{Code: 42, Text: "stale generation"}
		case "plain":
			return nil, errors.New(strings.Repeat("x", 10000))
		case "panic":
			panic("planted")
		case "large":
			return make([]byte, CallBytesMax+1), nil
		case "hang":
			<-ctx.Done()
			close(gaveUp)
			return nil, ctx.Err()
		}
		return req, nil
	})
	b.handlers.close()
	for _, tt := range []struct {
		request string
		code    uint8
	}{{"own", 42}, {"plain", CodeFailed}, {"panic", CodePanicked}, {"large", CodeTooLarge}} {
		_, err := a.Call(ctx, to, KindAdmin, []byte(tt.request))
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Code != tt.code || len(remote.Text) > errorTextBytesMax {
			t.Errorf("%s: %.100v, want code %d", tt.request, err, tt.code)
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := a.Call(short, to, KindAdmin, []byte("hang")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging handler: %v, want the caller's deadline", err)
	}
	select {
	case <-gaveUp:
	case <-ctx.Done():
		t.Errorf("handler did not learn that its caller gave up")
	}
	if _, err := a.Call(ctx, to, KindSeal, nil); !errors.Is(err, ErrUnknownKind) {
		t.Errorf("unhandled kind: %v, want ErrUnknownKind", err)
	}
	if _, err := a.Call(ctx, to, KindAdmin, make([]byte, CallBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large request: %v, want ErrTooLarge", err)
	}
	big := make([]byte, CallBytesMax)
	_, _ = rand.Read(big)
	if got, err := a.Call(ctx, to, KindAdmin, big); err != nil || !bytes.Equal(got, big) {
		t.Errorf("largest request: %d bytes, %v", len(got), err)
	}
	if got, err := a.Call(ctx, to, KindAdmin, nil); err != nil || len(got) != 0 {
		t.Errorf("empty request: %d bytes, %v", len(got), err)
	}
	s, err := a.OpenStream(ctx, to, ClassControl, KindAdmin)
	must(t, err)
	_, err = s.Write([]byte("this is not a frame at all"))
	must(t, err)
	f, err := readFrame(s, 1000, nil)
	if err != nil || f.typ != frameError || f.code != CodeMalformed {
		t.Errorf("garbage was answered with %+v, %v", f, err)
	}
	_ = s.Close()
	b.MarkDown(a.Self().Node)
	if b.inbound.TryAcquire(inboundBytesMax) == false {
		t.Errorf("bytes of requests that are over are still reserved")
	}
}

func TestJoin(t *testing.T) {
	r := newRing(t)
	ctx := testContext(t)
	node := newNode(t)
	server := r.open(newNode(t), func(c *Config) {
		c.Join = func(_ context.Context, req []byte) ([]byte, error) {
			switch {
			case string(req) == "spent":
				return nil, &RemoteError{Code: 20, Text: "this token was used already"}
			case string(req) == "secret":
				return nil, errors.New("something an outsider must not learn")
			case string(req) == "panic":
				panic("planted")
			case string(req) == "nothing":
				return nil, nil
			}
			return r.ca.Sign(req, node, "west", time.Hour)
		}
	})
	closed := r.open(newNode(t), nil) // accepts no joins
	key, err := NewNodeKey(rand.Reader)
	must(t, err)
	csr, err := NewCSR(rand.Reader, key)
	must(t, err)
	print, addr := Fingerprint(r.ca.Certificate()), server.Addr().String()
	conn := udp(t, 0)
	defer conn.Close()

	cert, err := Join(ctx, conn, addr, print, csr)
	must(t, err)
	id, err := NewIdentity(r.ca.Certificate().Raw, cert, key)
	must(t, err)
	if id.Node != node || id.Site != "west" || id.Ring != r.ring {
		t.Errorf("joined as %v %v", id.Node, id.Site)
	}
	for _, tt := range []struct {
		name    string
		addr    string
		print   [32]byte
		request string
		want    error
		text    string
	}{
		{"wrong fingerprint", addr, [32]byte{1}, "x", ErrIdentity, "fingerprint"},
		{"fingerprint of the leaf", addr, Fingerprint(server.identity.Load().leaf()), "x", ErrIdentity, ""},
		{"refused with words", addr, print, "spent", ErrJoinRefused, "used already"},
		{"refused without words", addr, print, "secret", ErrJoinRefused, "new token"},
		{"refused by nil", addr, print, "nothing", ErrJoinRefused, "new token"},
		{"handler panics", addr, print, "panic", ErrJoinRefused, ""},
		{"too large", addr, print, strings.Repeat("x", JoinRequestBytesMax+1), ErrTooLarge, ""},
		{"no joins here", closed.Addr().String(), print, "x", ErrUnreachable, ""},
		{"bad address", "nonsense", print, "x", ErrUnreachable, "host:port"},
	} {
		_, err := Join(ctx, conn, tt.addr, tt.print, []byte(tt.request))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v %q", tt.name, err, tt.want, tt.text)
		}
		if err != nil && strings.Contains(err.Error(), "must not learn") {
			t.Errorf("%s: outsider learnt %v", tt.name, err)
		}
	}

	// The same socket then serves the new node.
	joined := r.open(node, func(c *Config) { c.Conn, c.Identity = udp(t, 0), id })
	server.Handle(KindAdmin, echo)
	if _, err := roundTrip(ctx, joined, server.Self().Node, ClassControl, KindAdmin, "x"); err != nil {
		t.Errorf("after join: %v", err)
	}
}

func TestCA(t *testing.T) {
	r := newRing(t)
	again, err := OpenCA(r.ca.Certificate(), r.ca.PrivateDER(), rand.Reader, time.Now)
	must(t, err)
	if again.Ring() != r.ring {
		t.Errorf("ring %v, want %v", again.Ring(), r.ring)
	}
	node := newNode(t)
	id := identityOf(t, again, node, "süd & west/1", time.Hour)
	if peer, err := id.verify(idChain(id), time.Now()); err != nil || peer.Site != "süd & west/1" || peer.Node != node {
		t.Errorf("got %+v, %v", peer, err)
	}
	long := identityOf(t, again, node, "a", 100*365*24*time.Hour)
	if long.leaf().NotAfter.After(again.Certificate().NotAfter) {
		t.Errorf("certificate outlives its CA")
	}
	other := newRing(t)
	if _, err := OpenCA(r.ca.Certificate(), other.ca.PrivateDER(), rand.Reader, time.Now); !errors.Is(err, ErrIdentity) {
		t.Errorf("key of another CA: %v", err)
	}
	if _, err := OpenCA(id.leaf(), r.ca.PrivateDER(), rand.Reader, time.Now); !errors.Is(err, ErrIdentity) {
		t.Errorf("leaf as CA: %v", err)
	}
	key, _ := NewNodeKey(rand.Reader)
	if _, err := NewIdentity(r.ca.Certificate().Raw, id.Cert.Certificate[0], key); !errors.Is(err, ErrIdentity) {
		t.Errorf("certificate with a foreign key: %v", err)
	}
	csr, _ := NewCSR(rand.Reader, key)
	for _, site := range []place.SiteID{"", place.SiteID(strings.Repeat("x", SiteBytesMax+1))} {
		if _, err := r.ca.Sign(csr, node, site, time.Hour); !errors.Is(err, ErrIdentity) {
			t.Errorf("site of %d bytes: %v", len(site), err)
		}
	}
	csr[len(csr)-1] ^= 1
	if _, err := r.ca.Sign(csr, node, "a", time.Hour); !errors.Is(err, ErrIdentity) {
		t.Errorf("request with a broken signature: %v", err)
	}
	// A node's certificate must not be able to sign another node's.
	forger := &CA{cert: id.leaf(), key: mustKey(t, id), ring: r.ring, rand: rand.Reader, now: time.Now}
	good, _ := NewCSR(rand.Reader, key)
	der, err := forger.Sign(good, node, "a", time.Hour)
	if err == nil {
		_, err = NewIdentity(r.ca.Certificate().Raw, der, key)
	}
	if !errors.Is(err, ErrIdentity) {
		t.Errorf("certificate signed by a node: %v", err)
	}
}
