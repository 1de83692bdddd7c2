package dicomsvc_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/raft/catalog"
)

// fiveSites is a ring of five nodes whose audit records are kept.
func fiveSites(t *testing.T) (*cluster, *auditText) {
	t.Helper()
	audit := new(auditText)
	return newCluster(t, []string{"a", "b", "c", "d", "e"}, func(d *dicomsvc.Config, _ *erasure.Config) {
		d.Audit = slog.New(slog.NewJSONHandler(audit, nil))
	}), audit
}

type auditText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (a *auditText) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.text.Write(p)
}

// outcomes counts the outcomes of stores in the audit records.
func (a *auditText) outcomes(t *testing.T) map[string]int {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	counts := map[string]int{}
	for line := range bytes.Lines(a.text.Bytes()) {
		var r struct{ Action, Outcome string }
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		if r.Action == "store" {
			counts[r.Outcome]++
		}
	}
	return counts
}

// versions are what every node knows under a UID once all is applied.
func (c *cluster) versions(sop string) []catalog.Located {
	c.t.Helper()
	c.settled()
	var first []catalog.Located
	for i, m := range c.nodes {
		list, err := m.cat.Locate(context.Background(), sop)
		if err != nil {
			c.t.Fatal(err)
		}
		if i == 0 {
			first = list
			continue
		}
		if len(list) != len(first) {
			c.t.Fatalf("node %s knows %d versions, the first %d", m.place.Name, len(list), len(first))
		}
		for j := range list {
			if list[j].Instance.Version != first[j].Instance.Version || list[j].Served != first[j].Served {
				c.t.Fatalf("node %s knows other versions than the first, or serves another", m.place.Name)
			}
		}
	}
	return first
}

// F53: the same bytes sent 1,000 times, at five nodes at once: all succeed, one copy is kept, and each further
// time has its audit record.
// Behaviours 63, 67.
func TestF53ResentThousandTimesAtFiveNodes(t *testing.T) {
	t.Parallel()
	c, audit := fiveSites(t)
	b := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 20_000, "P1")
	var stored, identical atomic.Int64
	var wait sync.WaitGroup
	for _, m := range c.nodes {
		for range 8 {
			wait.Go(func() {
				for range 25 {
					r, err := m.put(b)
					switch {
					case err != nil:
						t.Errorf("put at %s: %v", m.place.Name, err)
					case r.Outcome == dicomsvc.OutcomeStored:
						stored.Add(1)
					case r.Outcome == dicomsvc.OutcomeIdentical:
						identical.Add(1)
					default:
						t.Errorf("put at %s: %v", m.place.Name, r.Outcome)
					}
				}
			})
		}
	}
	wait.Wait()
	// Nodes that have not heard of each other's copy yet take it for new, once each.
	if n := stored.Load(); n < 1 || n > int64(len(c.nodes)) {
		t.Errorf("%d of 1000 were taken for new, want 1 to %d", n, len(c.nodes))
	}
	if got := audit.outcomes(t); got["identical"] != int(identical.Load()) || got["stored"]+got["identical"] != 1000 {
		t.Errorf("audit records %v, want %d of identical and 1000 in all", got, identical.Load())
	}
	if list := c.versions("1.2.3.1.1"); len(list) != 1 || !list[0].Served {
		t.Errorf("%d versions are kept, want one, served", len(list))
	}
	if err := c.nodes[0].archive.SealNow(context.Background(), "1.2.3"); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.nodes {
		got, err := m.fetch("1.2.3.1.1")
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("node %s: %d bytes, %v", m.place.Name, len(got), err)
		}
	}
	if r := c.nodes[3].mustPut(b); r.Outcome != dicomsvc.OutcomeIdentical {
		t.Errorf("sent again after sealing: %v", r.Outcome)
	}
}

// F54: other bytes under one SOP Instance UID, at five nodes at once: all are kept, the first that was applied is
// served everywhere and stays so, every digest is read again.
// Behaviour 67.
func TestF54OtherBytesUnderOneUIDAtFiveNodes(t *testing.T) {
	t.Parallel()
	c, _ := fiveSites(t)
	const uid = "1.2.3.1.1"
	sent := map[[sha256.Size]byte][]byte{}
	var wait sync.WaitGroup
	for i, m := range c.nodes {
		for j := range 8 {
			b := object(t, "1.2.3", "1.2.3.1", uid, 20_000+2*(8*i+j), "P1")
			sent[sha256.Sum256(b)] = b
			wait.Go(func() {
				r, err := m.put(b)
				if err != nil || r.Outcome != dicomsvc.OutcomeStored && r.Outcome != dicomsvc.OutcomeFurtherVersion || r.Digest != sha256.Sum256(b) {
					t.Errorf("put at %s: %v, %v", m.place.Name, r.Outcome, err)
				}
			})
		}
	}
	wait.Wait()
	first := c.checkVersions(uid, sent, nil)
	if r := c.nodes[2].mustPut(object(t, "1.2.3", "1.2.3.1", uid, 30_000, "P1")); r.Outcome != dicomsvc.OutcomeFurtherVersion || r.Comment == "" {
		t.Errorf("a further one later: %v %q, want a further version with a comment", r.Outcome, r.Comment)
	}
	c.nodes[4].shut()
	c.nodes[4].start()
	list := c.versions(uid)
	if len(list) != len(sent)+1 {
		t.Fatalf("%d versions are kept of %d", len(list), len(sent)+1)
	}
	for _, m := range c.nodes {
		if got, err := m.fetch(uid); err != nil || !bytes.Equal(got, first) {
			t.Errorf("node %s serves other bytes than before: %d, %v", m.place.Name, len(got), err)
		}
	}
	qc := 0
	reader, err := c.nodes[0].cat.With(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for item, err := range reader.QC(context.Background()) {
		if err != nil || item.Kind != catalog.QCDigest || item.SOPInstanceUID != uid {
			t.Errorf("QC item %+v, %v", item, err)
		}
		qc++
	}
	if qc != len(sent) {
		t.Errorf("%d QC items, want one for each of the %d that are not served", qc, len(sent))
	}
}

// checkVersions reads every version of a UID at every node and returns the one that is served.
func (c *cluster) checkVersions(uid string, sent map[[sha256.Size]byte][]byte, served []byte) []byte {
	c.t.Helper()
	list := c.versions(uid)
	if len(list) != len(sent) {
		c.t.Errorf("%d versions are kept of %d sent", len(list), len(sent))
	}
	for _, l := range list {
		want := sent[l.Instance.Digest]
		if l.Served {
			if served != nil {
				c.t.Error("two versions are served")
			}
			served = want
		}
		for _, m := range c.nodes {
			o, err := m.archive.OpenVersion(context.Background(), l)
			if err != nil {
				c.t.Errorf("node %s: version %s: %v", m.place.Name, l.Instance.Version, err)
				continue
			}
			var got bytes.Buffer
			if _, err := o.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) || want == nil {
				c.t.Errorf("node %s: version %s: %d bytes, %v", m.place.Name, l.Instance.Version, got.Len(), err)
			}
			o.Close()
		}
	}
	for _, m := range c.nodes {
		if got, err := m.fetch(uid); err != nil || !bytes.Equal(got, served) {
			c.t.Errorf("node %s serves %d bytes that are not the served version's, %v", m.place.Name, len(got), err)
		}
	}
	return served
}

// patientObject is object with an issuer of the Patient ID.
func patientObject(t *testing.T, study, sop, patient, issuer string) []byte {
	t.Helper()
	d, err := dicom.Decode(object(t, study, study+".1", sop, 1000, patient), dicom.ExplicitVRLittleEndian, dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	d.SetStrings(dicom.IssuerOfPatientID, issuer)
	b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// F55: one SOP Instance UID in two series and two studies, one Patient ID of two issuers, one study of two patients:
// nothing is merged by itself, the first is served, and each conflict is listed once.
// Behaviours 68, 69.
func TestF55ConflictsAreListedAndNotMerged(t *testing.T) {
	t.Parallel()
	c, _ := fiveSites(t)
	first := object(t, "1.2.3", "1.2.3.1", "1.2.3.1.1", 1000, "P1")
	c.nodes[0].mustPut(first)
	c.settled()
	for i, o := range [][]byte{
		object(t, "1.2.3", "1.2.3.2", "1.2.3.1.1", 1000, "P1"), // another series
		object(t, "1.2.4", "1.2.4.1", "1.2.3.1.1", 1000, "P1"), // another study
	} {
		if r := c.nodes[1+i].mustPut(o); r.Outcome != dicomsvc.OutcomeFurtherVersion {
			t.Errorf("the UID elsewhere: %v", r.Outcome)
		}
	}
	for i, issuer := range []string{"HOSPITAL-A", "HOSPITAL-B"} { // one ID, two people
		if r := c.nodes[3+i].mustPut(patientObject(t, fmt.Sprint("1.2.5.", i), fmt.Sprint("1.2.5.1.", i), "4711", issuer)); r.Outcome != dicomsvc.OutcomeStored {
			t.Errorf("issuer %s: %v", issuer, r.Outcome)
		}
	}
	c.settled()
	c.nodes[0].mustPut(patientObject(t, "1.2.5.0", "1.2.5.1.9", "4711", "HOSPITAL-B")) // another patient in that study
	c.settled()
	for _, m := range c.nodes {
		if got, err := m.fetch("1.2.3.1.1"); err != nil || !bytes.Equal(got, first) {
			t.Errorf("node %s serves other bytes than the first: %d, %v", m.place.Name, len(got), err)
		}
		patients := 0
		q := &dicomsvc.Query{Level: dicomsvc.LevelPatient, Keys: []dicomsvc.Key{{Tag: dicom.PatientID, VR: dicom.LO, Values: []string{"4711"}}}}
		for _, err := range m.archive.Search(context.Background(), anyone, q) {
			if err != nil {
				t.Fatal(err)
			}
			patients++
		}
		if patients != 2 {
			t.Errorf("node %s knows %d patients of that ID, want 2", m.place.Name, patients)
		}
		kinds := map[catalog.QCKind]int{}
		reader, err := m.cat.With(nil)
		if err != nil {
			t.Fatal(err)
		}
		for item, err := range reader.QC(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			kinds[item.Kind]++
		}
		reader.Close()
		if kinds[catalog.QCPlace] != 2 || kinds[catalog.QCPatient] != 1 || len(kinds) != 2 {
			t.Errorf("node %s lists %v, want two of place and one of patient", m.place.Name, kinds)
		}
	}
}
