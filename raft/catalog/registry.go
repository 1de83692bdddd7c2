package catalog

import (
	"context"
	"fmt"
	"time"
)

// Services are what an AE may use, as bits.
type Services uint16

// The services of an AE. Numbers are never given out again: rows and log entries hold them.
const (
	ServiceStore Services = 1 << iota
	ServiceQuery
	ServiceRetrieve
	ServiceCommitment
	ServiceWorklist
	ServiceMPPS

	servicesKnown = 1<<iota - 1
)

// AllServices are all that there are.
const AllServices Services = servicesKnown

// AE is a DICOM application entity that the ring knows: where it is found, from where it may call, and
// what it may do. Titles are as the AE writes them, without surrounding spaces.
type AE struct {
	Title     string
	Aliases   []string // titles besides the node's own under which it may call us
	Addresses []string // host:port, in the order in which they are tried; none: nothing is ever sent to it
	From      []string // network prefixes that it may call from; none: any
	Services  Services
	Issuer    string // of the patient IDs in its objects that name no issuer; empty: none
	// Commitment is the host:port that gets its Storage Commitment reports; empty: the first of Addresses.
	Commitment string
}

// Roles are what a bearer of an HTTP token may do, as bits.
type Roles uint8

// The roles of HTTP tokens. Numbers are never given out again.
const (
	RoleRead  Roles = 1 << iota // search and retrieve
	RoleStore                   // store
	RoleAdmin                   // everything

	rolesKnown = 1<<iota - 1
)

// Bearer is an HTTP token as recorded: never the token, only its hash.
type Bearer struct {
	Name    string // whom it speaks for
	Hash    [32]byte
	Roles   Roles
	Created time.Time
	Expires time.Time // zero: never
}

// PutAE records an AE as it is from now on.
type PutAE struct{ AE AE }

// RemoveAE removes an AE; one that is not recorded stays so.
type RemoveAE struct{ Title string }

// PutBearer records an HTTP token. It is refused with CodeRaced when another has its name.
type PutBearer struct{ Bearer Bearer }

// RemoveBearer revokes an HTTP token; one that is not recorded stays so.
type RemoveBearer struct{ Name string }

func (PutAE) number() commandNumber        { return numberPutAE }
func (RemoveAE) number() commandNumber     { return numberRemoveAE }
func (PutBearer) number() commandNumber    { return numberPutBearer }
func (RemoveBearer) number() commandNumber { return numberRemoveBearer }

// check holds what every program version agrees on; what makes a good record is for the caller to say.
func (c PutAE) check() error {
	for _, list := range [][]string{c.AE.Aliases, c.AE.Addresses, c.AE.From} {
		if len(list) > MaxAEList {
			return invalid("AE", "more than 64 aliases, addresses or networks")
		}
		for _, s := range list {
			if err := checkText("AE", s); err != nil {
				return err
			}
		}
	}
	if c.AE.Services&^AllServices != 0 {
		return invalid("AE.Services", "unknown service")
	}
	return firstError(checkTitle(c.AE.Title), checkText("AE.Issuer", c.AE.Issuer), checkText("AE.Commitment", c.AE.Commitment))
}

func (c RemoveAE) check() error { return checkTitle(c.Title) }

func (c PutBearer) check() error {
	if c.Bearer.Roles == 0 || c.Bearer.Roles&^rolesKnown != 0 {
		return invalid("Bearer.Roles", "want known roles, at least one")
	}
	return RemoveBearer{Name: c.Bearer.Name}.check()
}

func (c RemoveBearer) check() error {
	if c.Name == "" {
		return invalid("Bearer.Name", "empty")
	}
	return checkText("Bearer.Name", c.Name)
}

// checkTitle bounds an AE title (PS3.5 §6.2, AE).
func checkTitle(title string) error {
	if title == "" || len(title) > MaxTitleBytes {
		return invalid("AE.Title", "want 1 to 16 bytes")
	}
	return nil
}

// The layouts of an AE and of a bearer in log entries and rows, each with a version of its own:
//
//	title | aliases | addresses | from, each count, strings | services | issuer | commitment
//	name | hash [32] | roles u8 | created | expires
const (
	aeVersion     = 1
	bearerVersion = 1
)

func appendStrings(b []byte, list []string) []byte {
	b = appendUint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

func (d *decoder) strings() (list []string) {
	for n := d.count(MaxAEList); n > 0 && !d.bad; n-- {
		list = append(list, d.string(maxStringBytes))
	}
	return list
}

func appendAE(b []byte, ae AE) []byte {
	b = appendString(append(b, aeVersion), ae.Title)
	b = appendStrings(appendStrings(appendStrings(b, ae.Aliases), ae.Addresses), ae.From)
	return appendString(appendString(appendUint(b, uint64(ae.Services)), ae.Issuer), ae.Commitment)
}

func decodeAE(d *decoder) (ae AE) {
	ae.Title = d.string(maxStringBytes)
	ae.Aliases, ae.Addresses, ae.From = d.strings(), d.strings(), d.strings()
	ae.Services = Services(d.size(1<<16 - 1))
	ae.Issuer, ae.Commitment = d.string(maxStringBytes), d.string(maxStringBytes)
	return ae
}

func appendBearer(b []byte, t Bearer) []byte {
	b = append(appendString(append(b, bearerVersion), t.Name), t.Hash[:]...)
	return appendTime(appendTime(append(b, byte(t.Roles)), t.Created), t.Expires)
}

func decodeBearer(d *decoder) (t Bearer) {
	t.Name = d.string(maxStringBytes)
	d.fixed(t.Hash[:])
	t.Roles = Roles(d.byte())
	t.Created, t.Expires = d.time(), d.time()
	return t
}

func (c PutAE) append(b []byte, _ *blobWriter) []byte        { return appendAE(b, c.AE) }
func (c RemoveAE) append(b []byte, _ *blobWriter) []byte     { return appendString(b, c.Title) }
func (c PutBearer) append(b []byte, _ *blobWriter) []byte    { return appendBearer(b, c.Bearer) }
func (c RemoveBearer) append(b []byte, _ *blobWriter) []byte { return appendString(b, c.Name) }

// decodeRegistryCommand reads the commands of this file. A layout of a newer program is ErrUnknownCommand.
func decodeRegistryCommand(n commandNumber, d *decoder) (Command, error) {
	switch n {
	case numberRemoveAE:
		return RemoveAE{Title: d.string(maxStringBytes)}, nil
	case numberRemoveBearer:
		return RemoveBearer{Name: d.string(maxStringBytes)}, nil
	case numberPutAE:
		if v := d.byte(); v != aeVersion && !d.bad {
			return nil, fmt.Errorf("%w: AE version %d", ErrUnknownCommand, v)
		}
		return PutAE{AE: decodeAE(d)}, nil
	case numberPutBearer:
		if v := d.byte(); v != bearerVersion && !d.bad {
			return nil, fmt.Errorf("%w: HTTP token version %d", ErrUnknownCommand, v)
		}
		return PutBearer{Bearer: decodeBearer(d)}, nil
	}
	return nil, fmt.Errorf("%w: command %d", ErrUnknownCommand, n)
}

// putRegistry writes a row of the registry, nil to remove it, and counts what changes, so that readers know when to look
// again.
func (s *state) putRegistry(key, row []byte) (Result, error) {
	known, err := s.get(key)
	if err != nil || (known == nil) == (row == nil) && string(known) == string(row) {
		return Result{}, err
	}
	n, err := s.count(metaRegistry)
	if err != nil {
		return Result{}, err
	}
	s.setCount(metaRegistry, n+1)
	s.set(key, row)
	return Result{}, nil
}

func (s *state) putAE(c PutAE) (Result, error) {
	return s.putRegistry(keyText(tableAE, c.AE.Title), appendAE(nil, c.AE))
}

func (s *state) putBearer(c PutBearer) (Result, error) {
	key := keyText(tableBearer, c.Bearer.Name)
	known, err := s.get(key)
	if err != nil {
		return Result{}, err
	}
	if known != nil {
		t, err := decodeBearerRow(known)
		if err != nil {
			return Result{}, s.fault(err)
		}
		if t.Hash != c.Bearer.Hash {
			return refuse(CodeRaced, "another HTTP token has this name; revoke it, or choose another name"), nil
		}
	}
	return s.putRegistry(key, appendBearer(nil, c.Bearer))
}

// decodeAERow reads a row of tableAE.
func decodeAERow(b []byte) (AE, error) {
	d := &decoder{b: b}
	d.version(aeVersion)
	ae := decodeAE(d)
	return ae, rowError("AE", d)
}

// decodeBearerRow reads a row of tableBearer.
func decodeBearerRow(b []byte) (Bearer, error) {
	d := &decoder{b: b}
	d.version(bearerVersion)
	t := decodeBearer(d)
	return t, rowError("HTTP token", d)
}

// AEs returns the AEs of the registry in the order of their titles.
func (r *Reader) AEs(ctx context.Context) ([]AE, error) {
	return collect(eachRow(ctx, r, tableAE, func(_, value []byte) (AE, error) { return decodeAERow(value) }))
}

// Bearers returns the HTTP tokens in the order of their names.
func (r *Reader) Bearers(ctx context.Context) ([]Bearer, error) {
	return collect(eachRow(ctx, r, tableBearer, func(_, value []byte) (Bearer, error) { return decodeBearerRow(value) }))
}

// RegistryVersion returns how often AEs and HTTP tokens have changed: while it is the same, so are they.
func (r *Reader) RegistryVersion() (n uint64, err error) {
	err = r.read(context.Background(), func(v *view) error {
		row, err := v.get(keyMeta(metaRegistry))
		if row == nil || err != nil {
			return err
		}
		d := &decoder{b: row}
		n = d.uint()
		return rowError("counter", d)
	})
	return n, err
}
