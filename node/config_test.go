package node

import (
	"strings"
	"testing"
)

func TestEveryFaultOfAConfigurationIsNamedAtOnce(t *testing.T) {
	yes := true
	c := Config{
		DIMSE:       DIMSEConfig{Listen: "0.0.0.0:11112", AET: "A TITLE THAT IS FAR TOO LONG"},
		HTTP:        HTTPConfig{Listen: "0.0.0.0:8104", TLSCert: "cert.pem"},
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

func TestANonLoopbackHTTPListenerNeedsTokens(t *testing.T) {
	c := Config{Dir: "/srv/osteon", HTTP: HTTPConfig{Listen: "192.0.2.1:8104"}}
	c.Fill()
	if c.Validate() == nil {
		t.Error("accepted without a token")
	}
	c.HTTP.Tokens = []string{"a-token-of-some-length"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
