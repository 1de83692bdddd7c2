//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/node"
)

// checkHealed holds all nodes against the ledger and against each other once a fault is over: everything that was
// acknowledged is found once and read bit for bit at every node, nothing that was not sent is there, queries agree with
// retrieval, and the catalogs are the same.
func (l *load) checkHealed(t *testing.T) {
	t.Helper()
	r := l.ring
	for _, n := range r.nodes {
		r.awaitStatus(n, "is ready and has nothing waiting", func(s node.Status) bool { return s.Ready && s.Waiting == 0 })
	}
	r.awaitSameState(r.nodes...)
	sent, acked := l.ledger.count()
	if acked == 0 {
		t.Error("nothing was acknowledged")
	}
	var wait sync.WaitGroup
	for _, n := range r.nodes {
		wait.Go(func() { // ends with its queries
			for _, study := range l.ledger.studyUIDs() {
				l.checkStudyAt(t, n, study)
			}
		})
	}
	wait.Wait()
	for _, study := range l.ledger.studyUIDs() {
		l.checkAlike(t, study)
	}
	t.Logf("%d instances sent, %d acknowledged, in %d studies at %d nodes", sent, acked, len(l.ledger.studyUIDs()), len(r.nodes))
}

// checkStudyAt compares what one node finds and gives of a study with the ledger.
func (l *load) checkStudyAt(t *testing.T, n *testNode, study string) {
	acked, sent := l.ledger.of(study)
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	found, err := findInstances(ctx, n, study)
	if err != nil {
		t.Errorf("query at %s: %v", n.ID, err)
		return
	}
	if lost := missing(acked, found); len(lost) > 0 {
		t.Errorf("query at %s: %d of %d acknowledged instances of study %s not found", n.ID, len(lost), len(acked), study)
	}
	if len(found) == 0 {
		return
	}
	got, err := studyDigests(ctx, n, study)
	if err != nil {
		t.Errorf("read study %s at %s: %v", study, n.ID, err)
	}
	for uid, digest := range got {
		switch want, known := sent[uid]; {
		case !known:
			t.Errorf("read at %s: %s, which nobody sent", n.ID, uid)
		case want != digest:
			t.Errorf("read at %s: %s is altered", n.ID, uid)
		case !found[uid]:
			t.Errorf("read at %s: %s, which the query did not find", n.ID, uid)
		}
	}
	if len(got) != len(found) {
		t.Errorf("at %s: %d instances of study %s found, %d read", n.ID, len(found), study, len(got))
	}
}

// checkAlike wants every node to find the same instances of a study, DCMTK's findscu too.
func (l *load) checkAlike(t *testing.T, study string) {
	t.Helper()
	var first []string
	for i, n := range l.ring.nodes {
		found, err := findInstances(context.Background(), n, study)
		if err != nil {
			t.Errorf("query at %s: %v", n.ID, err)
			continue
		}
		list := slices.Sorted(maps.Keys(found))
		if i == 0 {
			first = list
		} else if !slices.Equal(list, first) {
			t.Errorf("study %s: %s finds %d instances, %s %d", study, l.ring.nodes[0].ID, len(first), n.ID, len(list))
		}
	}
}

// awaitSameState waits until all nodes have applied the same entries, and wants their catalogs to be equal then.
func (r *testRing) awaitSameState(nodes ...*testNode) {
	r.t.Helper()
	var states []node.StateReport
	r.eventually("all nodes at one index", func() bool {
		states = states[:0]
		for _, n := range nodes {
			s, err := n.admin().State(context.Background())
			if err != nil {
				return false
			}
			states = append(states, s)
		}
		return !slices.ContainsFunc(states, func(s node.StateReport) bool { return s.Applied != states[0].Applied })
	})
	for i, s := range states {
		if s.Hash != states[0].Hash {
			r.t.Errorf("at index %d the catalog of %s is not that of %s", s.Applied, nodes[i].ID, nodes[0].ID)
		}
	}
}

// run runs a program beside the node, in its namespace if it has one.
func (n *testNode) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
	if n.space != nil {
		return n.space.output(cmd)
	}
	return cmd.CombinedOutput()
}

// dcmtk returns the arguments by which DCMTK's programs reach the node; files come last on their command lines.
func (n *testNode) dcmtk(options []string, files ...string) []string {
	host, port, _ := strings.Cut(n.DIMSE, ":")
	args := append([]string{"-aet", "DCMTK", "-aec", n.AET, "-to", "10", "-ta", "20", "-td", "20"}, options...)
	return append(append(args, host, port), files...)
}

// dcmtkPace leaves DCMTK's processes a small share of the machine.
const dcmtkPace = 700 * time.Millisecond

// startDCMTK adds to the load what storescu sends, to every node that is up in turn.
func (l *load) startDCMTK(t *testing.T) {
	t.Helper()
	program, dir := dcmtkPath(t, "storescu"), t.TempDir()
	l.wait.Go(func() { // ends with the load
		for i := 0; l.pause(dcmtkPace); i++ {
			n := l.ring.nodes[i%len(l.ring.nodes)]
			if l.isUp(n) {
				l.storescu(n, program, filepath.Join(dir, strconv.Itoa(i)+".dcm"))
			}
		}
	})
}

// storescu sends one new instance by DCMTK.
func (l *load) storescu(n *testNode, program, file string) {
	number := int(l.number.Add(1))
	in := noiseInstance(int(l.study.Load()), 1, number, 20_000, l.seed)
	meta := dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "2.25.1", "", "")
	if err := os.WriteFile(file, append(meta, in.data...), 0o600); err != nil {
		return
	}
	l.ledger.sent(in)
	s := request{node: n, kind: "storescu", start: time.Now()}
	ctx, cancel := context.WithTimeout(l.ctx, requestPatience)
	defer cancel()
	out, err := n.run(ctx, program, n.dcmtk(nil, file)...)
	s.end = time.Now()
	if l.ctx.Err() != nil {
		return
	}
	if err == nil {
		l.ledger.acked(in)
	} else {
		s.err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	l.record(s)
}

// checkDCMTK finds one study by findscu and gets it by getscu at every node.
func (l *load) checkDCMTK(t *testing.T) {
	t.Helper()
	studies := l.ledger.studyUIDs()
	if len(studies) == 0 {
		return
	}
	study := studies[0]
	for _, n := range l.ring.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
		if err := l.getscu(ctx, t, n, study); err != nil {
			t.Errorf("DCMTK at %s: %v", n.ID, err)
		}
		cancel()
	}
}

func (l *load) getscu(ctx context.Context, t *testing.T, n *testNode, study string) error {
	acked, sent := l.ledger.of(study)
	keys := []string{"-k", "StudyInstanceUID=" + study}
	out, err := n.run(ctx, dcmtkPath(t, "findscu"), n.dcmtk(append([]string{"-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "NumberOfStudyRelatedInstances"}, keys...))...)
	if err != nil {
		return fmt.Errorf("findscu: %w\n%s", err, out)
	}
	dir := t.TempDir()
	out, err = n.run(ctx, dcmtkPath(t, "getscu"), n.dcmtk(append([]string{"-S", "+B", "-od", dir, "-k", "QueryRetrieveLevel=STUDY"}, keys...))...)
	if err != nil {
		return fmt.Errorf("getscu: %w\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	got := map[string][sha256.Size]byte{}
	for _, file := range files {
		in, err := fileInstance(file)
		if err != nil {
			return err
		}
		if want, ok := sent[in.uid]; !ok || want != in.digest {
			return errors.New("getscu brought an instance that was not sent like this")
		}
		got[in.uid] = in.digest
	}
	if lost := missing(acked, got); len(lost) > 0 {
		return fmt.Errorf("getscu brought %d instances, %d acknowledged are missing", len(got), len(lost))
	}
	return nil
}
