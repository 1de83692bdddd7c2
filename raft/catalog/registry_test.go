package catalog

import (
	"context"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"

	"osteon/raft/ring"
)

var (
	testAE = AE{
		Title: "CT1", Aliases: []string{"OLDPACS"}, Addresses: []string{"192.0.2.7:104", "ct1.example.org:11112"},
		From: []string{"192.0.2.0/24", "2001:db8::/32"}, Services: ServiceStore | ServiceCommitment, Issuer: "HOSPITAL A", Commitment: "192.0.2.8:104",
	}
	testBearer = Bearer{Name: "viewer", Hash: [32]byte{1, 2, 3}, Roles: RoleRead | RoleStore, Created: at(0), Expires: at(60)}
)

// TestGoldenRegistry holds the log entry and the rows of AEs and HTTP tokens. Others of their tables are in the goldens of
// the first commands.
func TestGoldenRegistry(t *testing.T) {
	entry, err := Encode(Batch{Time: at(3), Commands: everyCommand(t)[registryCommands:]})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "batch-registry-1.golden", entry)
	c := openTest(t)
	apply(t, c, at(2), everyCommand(t)[registryCommands:]...)
	var rows []byte
	for _, key := range [][]byte{keyText(tableAE, "CT1"), keyText(tableBearer, "viewer"), keyMeta(metaRegistry)} {
		value, err := readKey(c.db, key)
		if err != nil || value == nil {
			t.Fatalf("no row at %x: %v", key, err)
		}
		rows = append(append(rows, key...), value...)
	}
	golden(t, "rows-registry-1.golden", rows)
}

// registryOf returns what a catalog has of AEs and HTTP tokens, and how often they changed.
func registryOf(t *testing.T, c *Catalog) (aes []AE, tokens []Bearer, version uint64) {
	t.Helper()
	aes, err1 := c.AEs(context.Background())
	tokens, err2 := c.Bearers(context.Background())
	version, err3 := c.RegistryVersion()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return aes, tokens, version
}

func TestAEsComeAndGo(t *testing.T) {
	c := openTest(t)
	if aes, tokens, n := registryOf(t, c); len(aes)+len(tokens) != 0 || n != 0 {
		t.Fatalf("a new catalog has %v, %v, version %d", aes, tokens, n)
	}
	mr := AE{Title: "MR1", Services: AllServices}
	mustOK(t, apply(t, c, at(1), PutAE{AE: mr}, PutAE{AE: testAE}))
	aes, _, before := registryOf(t, c)
	if want := []AE{testAE, mr}; !reflect.DeepEqual(aes, want) || before != 2 {
		t.Errorf("got %+v, version %d\nwant %+v, version 2", aes, before, want)
	}
	hash := stateHash(t, c)
	mustOK(t, apply(t, c, at(1), PutAE{AE: testAE}, RemoveAE{Title: "CT2"}))
	if _, _, n := registryOf(t, c); n != before {
		t.Errorf("a repetition moved the version to %d", n)
	}
	changed := testAE
	changed.From = nil
	mustOK(t, apply(t, c, at(1), PutAE{AE: changed}, RemoveAE{Title: "MR1"}))
	if aes, _, n := registryOf(t, c); !reflect.DeepEqual(aes, []AE{changed}) || n != before+2 {
		t.Errorf("got %+v, version %d; want %+v, version %d", aes, n, changed, before+2)
	}
	if stateHash(t, c) == hash {
		t.Error("the hash of the state does not cover the registry")
	}
}

func TestHTTPTokensComeAndGo(t *testing.T) {
	c := openTest(t)
	mustOK(t, apply(t, c, at(1), PutBearer{Bearer: testBearer}, PutBearer{Bearer: testBearer}))
	other := testBearer
	other.Hash[0]++
	if r := apply(t, c, at(2), PutBearer{Bearer: other}); !errors.Is(r[0].Err(), ErrRaced) {
		t.Errorf("a second token of the name: %v", r[0].Err())
	}
	if _, tokens, n := registryOf(t, c); !reflect.DeepEqual(tokens, []Bearer{testBearer}) || n != 1 {
		t.Errorf("got %+v, version %d", tokens, n)
	}
	mustOK(t, apply(t, c, at(3), RemoveBearer{Name: "viewer"}, RemoveBearer{Name: "viewer"}, PutBearer{Bearer: other}))
	if _, tokens, n := registryOf(t, c); !reflect.DeepEqual(tokens, []Bearer{other}) || n != 3 {
		t.Errorf("got %+v, version %d", tokens, n)
	}
}

// TestANewerRegistryRecordStopsTheCatalog: a field that this program does not know must not be dropped in silence.
func TestANewerRegistryRecordStopsTheCatalog(t *testing.T) {
	for _, c := range []Command{PutAE{AE: testAE}, PutBearer{Bearer: testBearer}} {
		entry, err := Encode(Batch{Time: at(1), Commands: []Command{c}})
		if err != nil {
			t.Fatal(err)
		}
		body := bodyOf(t, entry)
		number := slices.Index(body[10:], byte(c.number())) + 10
		if body[number+1] != 1 {
			t.Fatalf("no version behind the number in %s", hex.Dump(body))
		}
		body[number+1] = 2
		cat := openTest(t)
		cat.Apply([]ring.Entry{{Index: 1, Term: 1, Data: entryOf(body)}})
		if !errors.Is(cat.Fault(), ErrUnknownCommand) || cat.Applied() != 0 {
			t.Errorf("%T of a newer program: fault %v, applied %d", c, cat.Fault(), cat.Applied())
		}
	}
}
