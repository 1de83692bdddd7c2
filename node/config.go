package node

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"osteon/erasure/place"
	"osteon/node/link"
)

// Config is everything that an admin may set of one node. The zero value works once Dir is set: every
// listener on loopback at its standard port.
type Config struct {
	// Dir holds everything that the node keeps. Required.
	Dir string `yaml:"dir" json:"dir"`

	DIMSE   DIMSEConfig   `yaml:"dimse" json:"dimse"`
	HTTP    HTTPConfig    `yaml:"http" json:"http"`
	Link    LinkConfig    `yaml:"link" json:"link"`
	Ack     AckConfig     `yaml:"ack" json:"ack"`
	Seal    SealConfig    `yaml:"seal" json:"seal"`
	Journal JournalConfig `yaml:"journal" json:"journal"`
	Log     LogConfig     `yaml:"log" json:"log"`

	// Survive is what new packs shall survive: node, site, site+node, two-sites; empty: the strongest of
	// site+node, site and node that the ring can meet.
	Survive place.Survive `yaml:"survive" json:"survive"`
	// AEs are AEs that this node knows besides those of osteon ae.
	AEs []AE `yaml:"aes" json:"aes"`
	// Promiscuous lets AEs call that nobody registered. Only while DIMSE listens on loopback, where it is the default.
	Promiscuous *bool `yaml:"promiscuous" json:"promiscuous"`
}

// DIMSEConfig is the DICOM listener.
type DIMSEConfig struct {
	// Listen is host:port. Default 127.0.0.1:11112; "off" turns it off.
	Listen string `yaml:"listen" json:"listen"`
	// AET is this node's AE title. Default OSTEON.
	AET string `yaml:"aet" json:"aet"`
	// AssociationsMax bounds the associations open at once. Default 200.
	AssociationsMax int `yaml:"associations_max" json:"associations_max"`
	// AssociationsPerAE bounds those of one calling title. Default 64.
	AssociationsPerAE int `yaml:"associations_per_ae" json:"associations_per_ae"`
	// AssociationsPerHost bounds those of one address whose callers are not registered. Default 128.
	AssociationsPerHost int `yaml:"associations_per_host" json:"associations_per_host"`
	// OperationsMax is the asynchronous operations window agreed to where a caller negotiates one: how many stores and
	// queries of an association are under way at once, 64 at most. 1 turns it off. Default 8.
	OperationsMax int `yaml:"operations_max" json:"operations_max"`
	// StrictCalled rejects associations that call another title than AET. Default true.
	StrictCalled *bool `yaml:"strict_called" json:"strict_called"`
	// LaxTitles compares AE titles, called and calling, regardless of case. Default false: case is significant.
	LaxTitles bool `yaml:"lax_titles" json:"lax_titles"`
	// Relational answers queries and retrievals that lack the unique keys of upper levels although the caller
	// did not negotiate it; some callers expect that. Default false.
	Relational bool `yaml:"relational" json:"relational"`
}

// HTTPConfig is the DICOMweb and health listener.
type HTTPConfig struct {
	// Listen is host:port. Default 127.0.0.1:8104; "off" turns it off. Anything but loopback needs TLSCert and Auth.
	Listen string `yaml:"listen" json:"listen"`
	// Auth lets in only who shows a bearer token. Default: on, but on loopback only where Tokens are.
	Auth *bool `yaml:"auth" json:"auth"`
	// Tokens are bearer tokens of this node, each good for everything, beside those of osteon token.
	Tokens []string `yaml:"tokens" json:"-"`
	// PublicRoot is the URL under which clients reach /dicom-web, for the links in answers. Default: what
	// the request says.
	PublicRoot string `yaml:"public_root" json:"public_root"`
	// TLSCert and TLSKey are PEM files; both or none.
	TLSCert string `yaml:"tls_cert" json:"tls_cert"`
	TLSKey  string `yaml:"tls_key" json:"tls_key"`
	// ConnectionsMax bounds the connections open at once. Default 1024.
	ConnectionsMax int `yaml:"connections_max" json:"connections_max"`
	// ConnectionsPerHost bounds those of one address. Default 256.
	ConnectionsPerHost int `yaml:"connections_per_host" json:"connections_per_host"`
}

// LinkConfig is the mesh between nodes.
type LinkConfig struct {
	// Listen is host:port over UDP, and over TCP unless Bulk is quic. Default 127.0.0.1:7400.
	Listen string `yaml:"listen" json:"listen"`
	// Advertise is host:port where other nodes find this one. Default: Listen.
	Advertise string `yaml:"advertise" json:"advertise"`
	// Bulk is how objects and shards travel: tcp, which costs a third of the processor time, quic (one UDP port and nothing
	// else), or auto: tcp where the other node's answers, else quic. Default auto.
	Bulk string `yaml:"bulk" json:"bulk"`
}

// AckConfig is the acknowledgement rule (design P1).
type AckConfig struct {
	// Wait bounds the wait for another site. Default 2s.
	Wait Duration `yaml:"wait" json:"wait"`
	// Degraded is local (two copies here, spooled) or refuse. Default local.
	Degraded string `yaml:"degraded" json:"degraded"`
	// Single acknowledges one copy when no other node answers. Default false.
	Single bool `yaml:"single" json:"single"`
	// Policy is journalled or catalogued (wait until the catalog has it too). Default journalled.
	Policy string `yaml:"policy" json:"policy"`
}

// SealConfig says when studies are sealed.
type SealConfig struct {
	// Quiet is how long nothing arrived for the study. Default 60s.
	Quiet Duration `yaml:"quiet" json:"quiet"`
	// Old is how long an instance may wait although more arrive. Default 10m.
	Old Duration `yaml:"old" json:"old"`
	// Bytes is how much a study may hold unsealed. Default 1 GiB.
	Bytes int64 `yaml:"bytes" json:"bytes"`
}

// JournalConfig sizes the journal.
type JournalConfig struct {
	// SegmentBytes is the size of one segment file. Default 256 MiB.
	SegmentBytes int64 `yaml:"segment_bytes" json:"segment_bytes"`
	// HotBytes is how much is kept of what is sealed. Default 2 GiB.
	HotBytes int64 `yaml:"hot_bytes" json:"hot_bytes"`
}

// LogConfig is where and what the node logs.
type LogConfig struct {
	// Level is debug, info, warn or error. Default info.
	Level string `yaml:"level" json:"level"`
}

// Duration is a time.Duration written as 90s or 10m.
type Duration time.Duration

// UnmarshalYAML is UnmarshalText for a configuration file: its error has the line and lets the decoder go on
// to further faults.
func (d *Duration) UnmarshalYAML(value *yaml.Node) error {
	if err := d.UnmarshalText([]byte(value.Value)); err != nil || value.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %.40q is no duration: want 90s or 10m", value.Line, value.Value)}}
	}
	return nil
}

// UnmarshalText reads the form of time.ParseDuration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("parse duration: %w", err)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the form of time.Duration.String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Off turns a listener off.
const Off = "off"

// Fill sets every value that is not set to its default.
func (c *Config) Fill() {
	setString(&c.DIMSE.Listen, "127.0.0.1:11112")
	setString(&c.DIMSE.AET, "OSTEON")
	setString(&c.HTTP.Listen, "127.0.0.1:8104")
	setString(&c.Link.Listen, "127.0.0.1:7400")
	setString(&c.Link.Advertise, c.Link.Listen)
	setString(&c.Link.Bulk, link.BulkAuto.String())
	setString(&c.Ack.Degraded, "local")
	setString(&c.Ack.Policy, "journalled")
	setString(&c.Log.Level, "info")
	setDuration(&c.Ack.Wait, 2*time.Second)
	setDuration(&c.Seal.Quiet, 60*time.Second)
	setDuration(&c.Seal.Old, 10*time.Minute)
	if c.Seal.Bytes == 0 {
		c.Seal.Bytes = 1 << 30
	}
	setInt(&c.DIMSE.AssociationsMax, 200)
	setInt(&c.DIMSE.AssociationsPerAE, 64)
	setInt(&c.DIMSE.AssociationsPerHost, 128)
	setInt(&c.DIMSE.OperationsMax, 8)
	setInt(&c.HTTP.ConnectionsMax, 1024)
	setInt(&c.HTTP.ConnectionsPerHost, 256)
}

func setString(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func setInt(n *int, value int) {
	if *n == 0 {
		*n = value
	}
}

func setDuration(d *Duration, value time.Duration) {
	if *d == 0 {
		*d = Duration(value)
	}
}

// strictCalled returns the switch with its default.
func (c *Config) strictCalled() bool { return c.DIMSE.StrictCalled == nil || *c.DIMSE.StrictCalled }

// promiscuous returns the switch with its default: on while DIMSE listens on loopback only.
func (c *Config) promiscuous() bool {
	if c.Promiscuous != nil {
		return *c.Promiscuous
	}
	return c.DIMSE.Listen == Off || loopback(c.DIMSE.Listen)
}

// httpAuth returns the switch with its default: on, but on loopback only where the configuration has tokens.
func (c *Config) httpAuth() bool {
	if c.HTTP.Auth != nil {
		return *c.HTTP.Auth
	}
	return !loopback(c.HTTP.Listen) || len(c.HTTP.Tokens) > 0
}

// Validate reports every fault of a filled Config at once, each with the setting's name and what it takes.
func (c *Config) Validate() error {
	var faults []error
	fault := func(setting, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %s", setting, fmt.Sprintf(format, args...)))
	}
	if c.Dir == "" {
		fault("dir", "is required: the directory that holds everything the node keeps")
	}
	for _, s := range []struct {
		setting, address string
		mayBeOff         bool
	}{
		{"dimse.listen", c.DIMSE.Listen, true}, {"http.listen", c.HTTP.Listen, true},
		{"link.listen", c.Link.Listen, false}, {"link.advertise", c.Link.Advertise, false},
	} {
		if s.mayBeOff && s.address == Off {
			continue
		}
		if _, _, err := net.SplitHostPort(s.address); err != nil {
			fault(s.setting, "%q is not host:port", s.address)
		}
	}
	if host, _, err := net.SplitHostPort(c.Link.Advertise); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		fault("link.advertise", "%s is no address that other nodes can reach: name this machine's host:port", c.Link.Advertise)
	}
	if _, err := link.ParseBulk(c.Link.Bulk); err != nil {
		fault("link.bulk", "%v", err)
	}
	if err := checkTitle(c.DIMSE.AET); err != nil {
		fault("dimse.aet", "%v", err)
	}
	if c.HTTP.Listen != Off && !loopback(c.HTTP.Listen) {
		if c.HTTP.TLSCert == "" {
			fault("http.listen", "%s is not loopback: set http.tls_cert and http.tls_key, or listen on 127.0.0.1", c.HTTP.Listen)
		}
		if !c.httpAuth() {
			fault("http.auth", "is off while http.listen is %s: leave it on, or listen on 127.0.0.1", c.HTTP.Listen)
		}
	}
	for i, t := range c.HTTP.Tokens {
		if len(t) < 16 {
			fault(fmt.Sprintf("http.tokens[%d]", i), "is shorter than 16 characters")
		}
	}
	if (c.HTTP.TLSCert == "") != (c.HTTP.TLSKey == "") {
		fault("http.tls_cert", "and http.tls_key go together")
	}
	if c.Ack.Degraded != "local" && c.Ack.Degraded != "refuse" {
		fault("ack.degraded", "%q is neither local nor refuse", c.Ack.Degraded)
	}
	if c.Ack.Policy != "journalled" && c.Ack.Policy != "catalogued" {
		fault("ack.policy", "%q is neither journalled nor catalogued", c.Ack.Policy)
	}
	if c.Survive != "" && !c.Survive.Valid() {
		fault("survive", "%q is none of node, site, site+node, two-sites", c.Survive)
	}
	for _, s := range []struct {
		setting string
		d       Duration
	}{{"ack.wait", c.Ack.Wait}, {"seal.quiet", c.Seal.Quiet}, {"seal.old", c.Seal.Old}} {
		if s.d < 0 {
			fault(s.setting, "%s is negative", time.Duration(s.d))
		}
	}
	for _, s := range []struct {
		setting string
		n       int64
	}{
		{"seal.bytes", c.Seal.Bytes}, {"journal.segment_bytes", c.Journal.SegmentBytes},
		{"journal.hot_bytes", c.Journal.HotBytes}, {"dimse.associations_max", int64(c.DIMSE.AssociationsMax)},
		{"dimse.associations_per_ae", int64(c.DIMSE.AssociationsPerAE)}, {"dimse.associations_per_host", int64(c.DIMSE.AssociationsPerHost)},
		{"dimse.operations_max", int64(c.DIMSE.OperationsMax)},
		{"http.connections_max", int64(c.HTTP.ConnectionsMax)}, {"http.connections_per_host", int64(c.HTTP.ConnectionsPerHost)},
	} {
		if s.n < 0 {
			fault(s.setting, "%d is negative", s.n)
		}
	}
	if _, err := severity(c.Log.Level); err != nil {
		fault("log.level", "%v", err)
	}
	titles := map[string]bool{}
	for i, ae := range c.AEs {
		setting := fmt.Sprintf("aes[%d]", i)
		if _, err := ae.record(); err != nil {
			for line := range strings.Lines(err.Error()) {
				faults = append(faults, fmt.Errorf("%s.%s", setting, strings.TrimSuffix(line, "\n")))
			}
		}
		if titles[ae.Title] {
			fault(setting+".title", "%q is named twice", ae.Title)
		}
		titles[ae.Title] = true
	}
	if c.Promiscuous != nil && *c.Promiscuous && c.DIMSE.Listen != Off && !loopback(c.DIMSE.Listen) {
		fault("promiscuous", "is on while dimse.listen is %s: name the AEs, or listen on 127.0.0.1", c.DIMSE.Listen)
	}
	return errors.Join(faults...)
}

// loopback reports whether a listen address is reachable from this machine only.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
