package dicomsvc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
)

// Every store, query and retrieve call leaves one record, and none of them names a patient or a UID.
func TestAuditRecords(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	denied := dicomsvc.Principal{Kind: dicomsvc.PrincipalToken, Name: "viewer"}
	c := newCluster(t, []string{"a"}, func(d *dicomsvc.Config, _ *erasure.Config) {
		d.Audit = slog.New(slog.NewJSONHandler(&out, nil))
		d.Policy.Allow = func(p dicomsvc.Principal, act dicomsvc.Action) bool {
			if p.Node != d.Self {
				t.Errorf("%s: the principal's node is not filled in", act)
			}
			return p.Name != denied.Name || act == dicomsvc.ActionQuery
		}
	})
	m, ctx := c.nodes[0], context.Background()
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "PATIENT7")
	m.mustPut(b)
	m.mustPut(b)
	if _, err := m.put(b[:len(b)-10]); !errors.Is(err, dicomsvc.ErrMalformed) {
		t.Errorf("cut short: %v", err)
	}
	_, err := m.archive.Put(ctx, dicomsvc.PutRequest{Principal: denied, TransferSyntaxUID: dicom.ExplicitVRLittleEndian, Body: bytes.NewReader(b)})
	if !errors.Is(err, dicomsvc.ErrDenied) {
		t.Errorf("denied store: %v", err)
	}
	for _, err := range m.archive.Search(ctx, denied, &dicomsvc.Query{Level: dicomsvc.LevelStudy}) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range m.archive.Instances(ctx, anyone, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range m.archive.Instances(ctx, denied, dicomsvc.Selection{StudyInstanceUIDs: []string{"1.2.3"}}) {
		if !errors.Is(err, dicomsvc.ErrDenied) {
			t.Errorf("denied retrieve: %v", err)
		}
	}
	type row struct {
		Msg, Level, Action, Outcome, Kind, Name, Node, Study string
		Instances                                            int
		Bytes                                                int64
	}
	var got []row
	for dec := json.NewDecoder(bytes.NewReader(out.Bytes())); dec.More(); {
		var r row
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Msg != "access" || r.Node != m.place.ID.String() {
			t.Errorf("record %+v", r)
		}
		got = append(got, r)
	}
	want := []row{
		{Action: "store", Outcome: "stored", Instances: 1, Bytes: int64(len(b))},
		{Action: "store", Outcome: "identical", Instances: 1, Bytes: int64(len(b))},
		{Action: "store", Outcome: "refused: the object cannot be understood"},
		{Action: "store", Outcome: "denied"},
		{Action: "query", Outcome: "success", Instances: 1},
		{Action: "retrieve", Outcome: "success", Instances: 1, Bytes: int64(len(b))},
		{Action: "retrieve", Outcome: "denied"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d:\n%s", len(got), len(want), out.String())
	}
	for i, w := range want {
		g := got[i]
		if g.Action != w.Action || g.Outcome != w.Outcome || g.Instances != w.Instances || g.Bytes != w.Bytes {
			t.Errorf("record %d: got %+v, want %+v", i, g, w)
		}
	}
	if got[0].Study == "" || got[0].Study != got[5].Study {
		t.Error("the study is not recognisable in the records")
	}
	for _, secret := range []string{"PATIENT7", "Doe", "1.2.3"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the records contain %q", secret)
		}
	}
}
