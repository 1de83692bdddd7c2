package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

const (
	demoAET      = "OSTEON_DEMO"
	demoPatience = 60 * time.Second
)

// sample is one DICOM file that the demonstration stores.
type sample struct {
	path                  string
	class, instance       string
	study, series, syntax string
	offset                int64 // where the data set begins in the file
	digest                [sha256.Size]byte
}

// demo stores samples at different nodes, loses a site, reads everything at each remaining node, and
// brings the site back.
func (r *devRing) demo(ctx context.Context, dir string) error {
	samples, err := readSamples(dir)
	if err != nil {
		return err
	}
	studies := byStudy(samples)
	r.say("\n1. store %d instances of %d studies, each study at another node", len(samples), len(studies))
	if err := r.storeAll(ctx, studies, len(samples)); err != nil {
		return err
	}
	if err := r.showStudies(ctx, studies, "on two sites", func(s node.StudyReport) bool { return r.cmd.Sites == 1 || s.State != "spooled" }); err != nil {
		return err
	}
	r.say("\n2. seal: encrypt, erasure-code and spread them over the sites (by itself after %s of quiet)", r.cmd.Quiet)
	if err := r.sealAll(ctx, studies); err != nil {
		return err
	}
	if err := r.showStudies(ctx, studies, "sealed", func(s node.StudyReport) bool { return s.State == "sealed" }); err != nil {
		return err
	}
	lost := r.Nodes[0].Site
	if r.cmd.Sites < 3 {
		r.say("\n3. with fewer than three sites no site is given up here; reading everything at every node instead")
		lost = ""
	} else {
		r.say("\n3. kill every process of site %s", lost)
	}
	for _, n := range r.Nodes {
		if n.Site == lost {
			r.kill(n)
		}
	}
	r.say("\n4. find and retrieve every study at each remaining node, compare SHA-256")
	for _, n := range r.Nodes {
		if n.Site == lost {
			continue
		}
		if err := r.readAll(ctx, n, studies); err != nil {
			return fmt.Errorf("at node %s: %w", n.ID, err)
		}
	}
	if lost == "" {
		return nil
	}
	r.say("\n5. start site %s again and let it catch up", lost)
	return r.bringBack(ctx, lost)
}

// storeAll sends each study to another node in turn.
func (r *devRing) storeAll(ctx context.Context, studies map[string][]sample, instances int) error {
	bar := r.bar("storing", instances)
	defer bar.done()
	var lines []string
	for i, uid := range sortedKeys(studies) {
		n := r.Nodes[i%len(r.Nodes)]
		if err := storeSamples(ctx, n, studies[uid], bar.step); err != nil {
			return fmt.Errorf("store at %s: %w", n.ID, err)
		}
		lines = append(lines, fmt.Sprintf("   study %d of %d: %d instances -> %s", i+1, len(studies), len(studies[uid]), n.ID))
	}
	bar.done()
	for _, line := range lines {
		r.say("%s", line)
	}
	return nil
}

// sealAll seals every study now instead of after its quiet time.
func (r *devRing) sealAll(ctx context.Context, studies map[string][]sample) error {
	bar := r.bar("sealing", len(studies))
	defer bar.done()
	for _, uid := range sortedKeys(studies) {
		if err := node.Dial(r.Nodes[0].Dir).Seal(ctx, uid); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
		bar.step()
	}
	return nil
}

func readSamples(dir string) ([]sample, error) {
	var out []sample
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".dcm" {
			return err
		}
		s, err := readSample(path)
		if err != nil {
			return fmt.Errorf("sample %s: %w", path, err)
		}
		out = append(out, s)
		return nil
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%w: no .dcm file in %s", errUsage, dir)
	}
	return out, err
}

func readSample(path string) (sample, error) {
	s := sample{path: path}
	raw, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(raw))
	if err != nil {
		return s, err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return s, err
	}
	header, err := dicom.NewScanner(bytes.NewReader(data), syntax, dicom.Limits{}).Header()
	if err != nil {
		return s, err
	}
	facts, err := dicom.ExtractFacts(header)
	if err != nil {
		return s, err
	}
	s.class, s.instance, s.study, s.series = facts.SOPClassUID, facts.SOPInstanceUID, facts.StudyInstanceUID, facts.SeriesInstanceUID
	s.syntax, s.offset = syntax, int64(len(raw)-len(data))
	if dicom.SyntaxOf(syntax).Deflated && len(data)%2 == 1 {
		data = append(data, 0) // DIMSE carries an even number of bytes: the pad of PS3.5 §A.5
	}
	s.digest = sha256.Sum256(data)
	return s, nil
}

func byStudy(samples []sample) map[string][]sample {
	out := map[string][]sample{}
	for _, s := range samples {
		out[s.study] = append(out[s.study], s)
	}
	return out
}

func sortedKeys(m map[string][]sample) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// dial opens an association with a node of the ring.
func dial(ctx context.Context, n *devNode, contexts []dul.ProposedContext, roles []dul.Role) (*dimse.Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.DIMSE)
	if err != nil {
		return nil, err
	}
	return dimse.Dial(ctx, conn, dimse.ClientConfig{Association: dul.RequestorConfig{
		CallingAE: demoAET, CalledAE: n.AET, Contexts: contexts, Roles: roles,
	}})
}

// contextsOf proposes one context for each class and syntax of the samples.
func contextsOf(samples []sample) (contexts []dul.ProposedContext, roles []dul.Role) {
	type pair struct{ class, syntax string }
	seen, classes := map[pair]bool{}, map[string]bool{}
	for _, s := range samples {
		if p := (pair{s.class, s.syntax}); !seen[p] {
			seen[p] = true
			contexts = append(contexts, dul.ProposedContext{
				ID: byte(2*len(contexts) + 1), AbstractSyntax: s.class, TransferSyntaxes: []string{s.syntax},
			})
		}
		if !classes[s.class] {
			classes[s.class] = true
			roles = append(roles, dul.Role{SOPClass: s.class, SCU: false, SCP: true})
		}
	}
	return contexts, roles
}

func storeSamples(ctx context.Context, n *devNode, samples []sample, stored func()) error {
	contexts, _ := contextsOf(samples)
	client, err := dial(ctx, n, contexts, nil)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, s := range samples {
		if err := storeSample(ctx, client, s); err != nil {
			return err
		}
		stored()
	}
	return client.Release(ctx)
}

func storeSample(ctx context.Context, client *dimse.Client, s sample) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(s.offset, io.SeekStart); err != nil {
		return err
	}
	response, err := client.Store(ctx, dimse.StoreArgs{SOPClass: s.class, SOPInstance: s.instance, Syntax: s.syntax, Data: f})
	if err != nil {
		return err
	}
	if !dimse.IsSuccess(response.Status) {
		return fmt.Errorf("%s: status %04XH %s", s.path, response.Status, response.ErrorComment)
	}
	return nil
}

// showStudies prints each study's state and what its data survive, once the last node of the ring sees
// it as ok says.
func (r *devRing) showStudies(ctx context.Context, studies map[string][]sample, what string, ok func(node.StudyReport) bool) error {
	admin := node.Dial(r.Nodes[len(r.Nodes)-1].Dir)
	for i, uid := range sortedKeys(studies) {
		report, err := r.awaitStudy(ctx, admin, uid, what, func(s node.StudyReport) bool { return s.Instances >= len(studies[uid]) && ok(s) })
		if err != nil {
			return err
		}
		geometry := ""
		for _, p := range report.Packs {
			geometry += " " + p.Geometry
		}
		r.say("   study %d: %s%s, %d instances, data survives the loss of: %s", i+1, report.State, geometry, report.Instances, report.Survives.Data)
	}
	return nil
}

// awaitStudy waits until a node sees a study as ok says: at a node that took no part that is when its
// catalog has applied it.
func (r *devRing) awaitStudy(ctx context.Context, admin *node.Admin, uid, what string, ok func(node.StudyReport) bool) (node.StudyReport, error) {
	deadline := time.After(demoPatience)
	for {
		report, err := admin.Study(ctx, uid)
		if err == nil && ok(report) {
			return report, nil
		}
		if err != nil && !errors.Is(err, node.ErrNotFound) {
			return report, err
		}
		select {
		case <-ctx.Done():
			return report, ctx.Err()
		case <-deadline:
			return report, fmt.Errorf("a study is not %s after %s: %d instances, %s", what, demoPatience, report.Instances, report.State)
		case <-time.After(devPoll):
		}
	}
}

// readAll finds every study at one node by C-FIND and retrieves it by C-GET.
func (r *devRing) readAll(ctx context.Context, n *devNode, studies map[string][]sample) error {
	bar := r.bar("reading at "+n.ID, len(studies))
	defer bar.done()
	began := time.Now()
	var total, count int64
	for _, uid := range sortedKeys(studies) {
		if err := findStudy(ctx, n, uid); err != nil {
			return err
		}
		bytes, err := getStudy(ctx, n, uid, studies[uid])
		if err != nil {
			return err
		}
		total += bytes
		count += int64(len(studies[uid]))
		bar.step()
	}
	bar.done()
	r.say("   %s: %d studies found, %d instances retrieved, %s, every digest equal, in %s",
		n.ID, len(studies), count, bytesText(total), time.Since(began).Round(time.Millisecond))
	return nil
}

func findStudy(ctx context.Context, n *devNode, uid string) error {
	client, err := dial(ctx, n, []dul.ProposedContext{{
		ID: 1, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	}}, nil)
	if err != nil {
		return err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, uid)
	found := 0
	for _, err := range client.Find(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootFind, Identifier: id}) {
		if err != nil {
			return err
		}
		found++
	}
	if found != 1 {
		return fmt.Errorf("found %d studies under one Study Instance UID", found)
	}
	return client.Release(ctx)
}

// getStudy retrieves a study and compares every instance with what was sent; it returns the bytes.
func getStudy(ctx context.Context, n *devNode, uid string, samples []sample) (total int64, err error) {
	contexts, roles := contextsOf(samples)
	contexts = append(contexts, dul.ProposedContext{
		ID: byte(2*len(contexts) + 1), AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	})
	client, err := dial(ctx, n, contexts, roles)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	want := map[string]sample{}
	for _, s := range samples {
		want[s.instance] = s
	}
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, uid)
	var differ error
	response, err := client.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			hash := sha256.New()
			size, err := io.Copy(hash, sub.Data)
			if err != nil {
				return dimse.StoreResponse{Status: dimse.StatusOutOfResources}
			}
			total += size
			s, ok := want[sub.SOPInstance]
			switch {
			case !ok:
				differ = errors.New("an instance came that was not sent, or came twice")
			case sub.Syntax != s.syntax:
				differ = fmt.Errorf("%s came in transfer syntax %s, not %s", s.path, sub.Syntax, s.syntax)
			case [sha256.Size]byte(hash.Sum(nil)) != s.digest:
				differ = fmt.Errorf("%s came with other bytes than were sent (%d)", s.path, size)
			}
			delete(want, sub.SOPInstance)
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	switch {
	case err != nil:
		return total, err
	case differ != nil:
		return total, differ
	case response.Status != dimse.StatusSuccess || len(want) > 0:
		return total, fmt.Errorf("C-GET ended with %04XH %s, %d instances missing", response.Status, response.ErrorComment, len(want))
	}
	return total, client.Release(ctx)
}

// bringBack starts the nodes of a site and waits until each is ready and has applied what the others have.
func (r *devRing) bringBack(ctx context.Context, site string) error {
	var survivor *devNode
	for _, n := range r.Nodes {
		if n.Site != site {
			survivor = n
		}
	}
	for _, n := range r.Nodes {
		if n.Site != site {
			continue
		}
		if err := r.start(ctx, n); err != nil {
			return err
		}
	}
	for _, n := range r.Nodes {
		if n.Site != site {
			continue
		}
		other, err := node.Dial(survivor.Dir).Status(ctx)
		if err != nil {
			return err
		}
		s, err := r.poll(ctx, n, func(s node.Status) bool { return s.Ready && s.Applied >= other.Applied })
		if err != nil {
			return err
		}
		r.say("   %s: applied index %d (%s has %d), /readyz ok, pid %d", n.ID, s.Applied, survivor.ID, other.Applied, r.pid(n))
	}
	return nil
}
