package node

import (
	"fmt"
	"strings"
	"testing"
)

func TestEveryFaultOfAConfigurationIsNamedAtOnce(t *testing.T) {
	yes := true
	c := Config{
		DIMSE:       DIMSEConfig{Listen: "0.0.0.0:11112", AET: "A TITLE THAT IS FAR TOO LONG"},
		HTTP:        HTTPConfig{Listen: "0.0.0.0:8104", TLSKey: "key.pem"},
		Link:        LinkConfig{Listen: "nowhere", Bulk: "pigeon"},
		Ack:         AckConfig{Degraded: "maybe", Policy: "perhaps", Wait: -1},
		Seal:        SealConfig{Bytes: -1},
		Log:         LogConfig{Level: "loud"},
		Survive:     "everything",
		Promiscuous: &yes,
		AEs:         []AE{{Title: ""}, {Title: "X", Address: "nowhere"}, {Title: "X"}},
	}
	c.Fill()
	err := c.Validate()
	if err == nil {
		t.Fatal("no fault found")
	}
	text := err.Error()
	for _, setting := range []string{
		"dir:", "dimse.aet:", "http.listen:", "http.tls_cert:", "link.listen:", "link.bulk:", "ack.degraded:", "ack.policy:", "ack.wait:",
		"seal.bytes:", "log.level:", "survive:", "promiscuous:", "aes[0].title:", "aes[1].address:", "aes[2].title:",
	} {
		if !strings.Contains(text, setting) {
			t.Errorf("%s is not named in:\n%s", setting, text)
		}
	}
}

func TestTheZeroConfigurationWithADirectoryIsValid(t *testing.T) {
	c := Config{Dir: "/srv/osteon"}
	c.Fill()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if !c.promiscuous() || !c.strictCalled() {
		t.Error("on loopback any AE may call, by this node's title")
	}
	c.DIMSE.Listen = "0.0.0.0:11112"
	if c.promiscuous() {
		t.Error("off loopback only known AEs may call")
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// TestANonLoopbackHTTPListenerNeedsTLSAndTokens: what others can reach is encrypted and asks who they are; the tokens are those
// of the ring, so that the configuration needs none.
func TestANonLoopbackHTTPListenerNeedsTLSAndTokens(t *testing.T) {
	on, off := true, false
	for _, tt := range []struct {
		http  HTTPConfig
		fault string // the setting at fault; empty: none
		auth  bool
	}{
		{HTTPConfig{Listen: "192.0.2.1:8104"}, "http.listen", true},
		{HTTPConfig{Listen: "192.0.2.1:8104", Tokens: []string{"a-token-of-some-length"}}, "http.listen", true},
		{HTTPConfig{Listen: "192.0.2.1:8104", TLSCert: "c", TLSKey: "k"}, "", true},
		{HTTPConfig{Listen: "192.0.2.1:8104", TLSCert: "c", TLSKey: "k", Auth: &off}, "http.auth", false},
		{HTTPConfig{Listen: ":8104", TLSCert: "c", TLSKey: "k", Auth: &off}, "http.auth", false},
		{HTTPConfig{}, "", false},
		{HTTPConfig{Auth: &on}, "", true},
		{HTTPConfig{Tokens: []string{"a-token-of-some-length"}}, "", true},
	} {
		c := Config{Dir: "/srv/osteon", HTTP: tt.http}
		c.Fill()
		err := c.Validate()
		if (err == nil) != (tt.fault == "") || err != nil && !strings.HasPrefix(err.Error(), tt.fault+":") {
			t.Errorf("%+v: got %v, want a fault of %q", tt.http, err, tt.fault)
		}
		if c.httpAuth() != tt.auth {
			t.Errorf("%+v: authentication %v, want %v", tt.http, c.httpAuth(), tt.auth)
		}
	}
}

// TestAERecords: every fault of an AE is named, and what is written in several ways is recorded in one.
// Behaviour 3.
func TestAERecords(t *testing.T) {
	for _, tt := range []struct {
		ae   AE
		want string // a piece of the error; empty: none
	}{
		{AE{Title: "CT1"}, ""},
		{AE{Title: "SIXTEEN LETTERS!"}, ""},
		{AE{Title: "SEVENTEEN LETTERS"}, "title:"},
		{AE{Title: ""}, "title:"},
		{AE{Title: " CT1"}, "title:"},
		{AE{Title: `CT\1`}, "title:"},
		{AE{Title: "CT\x1b1"}, "title:"},
		{AE{Title: "RÖNTGEN"}, "title:"},
		{AE{Title: "CT1", Aliases: []string{"OLD", ""}}, "aliases:"},
		{AE{Title: "CT1", Address: "nowhere"}, "address:"},
		{AE{Title: "CT1", Addresses: []string{"host:99999"}}, "addresses:"},
		{AE{Title: "CT1", From: []string{"192.0.2.1/33"}}, "from:"},
		{AE{Title: "CT1", From: []string{"ct1.example.org"}}, "from:"},
		{AE{Title: "CT1", Services: []string{"print"}}, "services:"},
		{AE{Title: "CT1", Commitment: ":104"}, "commitment:"},
		{AE{Title: "CT1", Issuer: strings.Repeat("x", 65)}, "issuer:"},
		{AE{Title: "CT1", Addresses: make([]string, 65)}, "more than 64"},
	} {
		_, err := tt.ae.record()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.ae, err, tt.want)
		}
	}
	r, err := AE{Title: "CT1", Address: "a:1", Addresses: []string{"b:2"}, From: []string{"192.0.2.77/24", "::ffff:192.0.2.1", "2001:db8::1"},
		Services: []string{"store", "mpps"}}.record()
	if got := fmt.Sprint(r.Addresses, r.From, serviceWords(r.Services)); err != nil || got != "[a:1 b:2] [192.0.2.0/24 192.0.2.1/32 2001:db8::1/128] [store mpps]" {
		t.Errorf("got %s, %v", got, err)
	}
}
