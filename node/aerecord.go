package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"osteon/raft/catalog"
)

// AE is an application entity: what `ae add` takes, and an entry of aes: in the configuration.
type AE struct {
	Title string `yaml:"title" json:"title"`
	// Address is host:port for C-MOVE; empty: may call, cannot be moved to.
	Address string `yaml:"address" json:"address"`
	// Addresses are further ones, tried in this order when Address does not answer.
	Addresses []string `yaml:"addresses" json:"addresses,omitempty"`
	// From are the addresses and networks (CIDR) that it may call from. Default: any.
	From []string `yaml:"from" json:"from,omitempty"`
	// Services are what it may use: store, query, retrieve, commitment, worklist, mpps. Default: all.
	Services []string `yaml:"services" json:"services,omitempty"`
	// Aliases are titles besides the node's own under which it may call this ring: those of an archive that was before.
	Aliases []string `yaml:"aliases" json:"aliases,omitempty"`
	// Issuer is the issuer of patient IDs in its objects that name none (0010,0021).
	Issuer string `yaml:"issuer" json:"issuer,omitempty"`
	// Commitment is the host:port that gets its Storage Commitment reports. Default: Address.
	Commitment string `yaml:"commitment" json:"commitment,omitempty"`
}

// services are the words for the services of an AE, in the order of their bits.
var services = []string{"store", "query", "retrieve", "commitment", "worklist", "mpps"}

func servicesOf(words []string) (bits catalog.Services, err error) {
	for _, word := range words {
		i := slices.Index(services, word)
		if i < 0 {
			return 0, fmt.Errorf("%.20q is no service: want some of %s", word, strings.Join(services, ", "))
		}
		bits |= 1 << i
	}
	if bits == 0 {
		bits = catalog.AllServices
	}
	return bits, nil
}

func serviceWords(bits catalog.Services) (words []string) {
	for i, word := range services {
		if bits&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	return words
}

// checkTitle returns why s is no AE title (PS3.5 §6.2, AE: 16 bytes of the default character repertoire without
// backslash and control characters, not of spaces only). Surrounding spaces mean nothing to a peer and are refused, so
// that a title is written in one way only.
func checkTitle(s string) error {
	switch {
	case s == "" || len(s) > catalog.MaxTitleBytes:
		return fmt.Errorf("%.40q is not an AE title: want 1 to %d characters", s, catalog.MaxTitleBytes)
	case strings.TrimSpace(s) != s:
		return fmt.Errorf("%q is not an AE title: spaces around it mean nothing; leave them out", s)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '\\' }):
		return fmt.Errorf("%q is not an AE title: want ASCII without backslash and control characters", s)
	}
	return nil
}

// checkAddress returns why s is no host:port.
func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || host == "" {
		return fmt.Errorf("%.80q is not host:port", s)
	}
	return nil
}

// prefixOf reads an IP address or a network in CIDR form.
func prefixOf(s string) (netip.Prefix, error) {
	if at, err := netip.ParseAddr(s); err == nil && at.Zone() == "" {
		at = at.Unmap()
		return netip.PrefixFrom(at, at.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%.60q is no IP address and no network such as 192.0.2.0/24", s)
	}
	return p.Masked(), nil
}

// faults are what is wrong with an AE, each with the name of its setting.
type faults []error

func (f *faults) add(setting string, err error) {
	if err != nil {
		*f = append(*f, fmt.Errorf("%s: %w", setting, err))
	}
}

// record checks an AE and brings it into the form of the catalog. Its error names every fault.
func (ae AE) record() (catalog.AE, error) {
	var f faults
	r := catalog.AE{Title: ae.Title, Aliases: ae.Aliases, Issuer: ae.Issuer, Commitment: ae.Commitment}
	f.add("title", checkTitle(ae.Title))
	for _, alias := range ae.Aliases {
		f.add("aliases", checkTitle(alias))
	}
	if ae.Address != "" {
		r.Addresses = append(r.Addresses, ae.Address)
		f.add("address", checkAddress(ae.Address))
	}
	for _, address := range ae.Addresses {
		r.Addresses = append(r.Addresses, address)
		f.add("addresses", checkAddress(address))
	}
	for _, from := range ae.From {
		p, err := prefixOf(from)
		f.add("from", err)
		if text := p.String(); !slices.Contains(r.From, text) {
			r.From = append(r.From, text)
		}
	}
	bits, err := servicesOf(ae.Services)
	r.Services = bits
	f.add("services", err)
	if ae.Commitment != "" {
		f.add("commitment", checkAddress(ae.Commitment))
	}
	if len(ae.Issuer) > issuerBytesMax || strings.ContainsFunc(ae.Issuer, func(r rune) bool { return r < ' ' || r == '\\' }) {
		f.add("issuer", fmt.Errorf("want at most %d characters without backslash and control characters (LO)", issuerBytesMax))
	}
	if n := max(len(r.Aliases), len(r.Addresses), len(r.From)); n > catalog.MaxAEList {
		f.add("aliases, addresses, from", fmt.Errorf("%d are more than %d", n, catalog.MaxAEList))
	}
	return r, errors.Join(f...)
}

// issuerBytesMax bounds an issuer of patient IDs: an LO has 64 characters.
const issuerBytesMax = 64

// listed turns a record into what lists show.
func listed(r catalog.AE) AE {
	ae := AE{Title: r.Title, From: r.From, Services: serviceWords(r.Services), Aliases: r.Aliases, Issuer: r.Issuer, Commitment: r.Commitment}
	if len(r.Addresses) > 0 {
		ae.Address, ae.Addresses = r.Addresses[0], r.Addresses[1:]
	}
	return ae
}
