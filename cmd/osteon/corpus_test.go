package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// The corpus lies beside the repository. Its manifest names its files; what is to become of each stands in
// testdata/corpus-outcomes.tsv, one line a file:
//
//	file <tab> served
//	file <tab> kept <tab> the file that is served under the same SOP Instance UID
//	file <tab> refused <tab> status, offending elements and comment of the C-STORE response <tab> what is wrong with it
const (
	corpusDir      = "../../../shared/corpus"
	corpusListing  = "../../testdata/corpus-outcomes.tsv"
	corpusFound    = time.Second // after the acknowledgement, at another node
	corpusWorkers  = 3
	corpusOwnAE    = "CORPUS_OWN"
	corpusPatience = 60 * time.Second
)

var corpusUpdate = flag.Bool("corpus-update", false, "write testdata/corpus-outcomes.tsv from what TestCorpus saw")

// corpusFile is one file with what is to become of it.
type corpusFile struct {
	instance
	corpusVerdict
	path string // as the manifest has it
	name string // Patient's Name as the file has it, decoded

	got, gotBecause string // what became of it
}

// corpusVerdict is a line of the listing.
type corpusVerdict struct{ outcome, because, remark string }

// corpusStudy is the instances of one study, stored at one node.
type corpusStudy struct {
	uid   string
	files []*corpusFile
	home  int // index into testRing.nodes
}

// served returns the files that a retrieval of the study gives.
func (s *corpusStudy) served() (out []*corpusFile) {
	for _, f := range s.files {
		if f.outcome == "served" {
			out = append(out, f)
		}
	}
	return out
}

// TestCorpus sends every file of the corpus, bit for bit, and holds what becomes of it against the listing.
// What is served is found at a second node within a second and retrieved at a third by C-GET, C-MOVE and
// WADO-RS: out of the journals, sealed, and with the site gone that it came in at.
func TestCorpus(t *testing.T) {
	files := corpusFiles(t)
	own := startCorpusReceiver(t)
	flags := []string{"--seal-quiet", "1h", "--ae", corpusOwnAE + "=" + own.address}
	var peers []*storescp
	for i := range corpusWorkers {
		p := startStorescp(t, fmt.Sprintf("STORESCP%d", i))
		peers = append(peers, p)
		flags = append(flags, "--ae", p.title+"="+p.address)
	}
	c := &corpusRun{t: t, r: startRing(t, 3, 2, flags...), own: own, peers: peers}
	c.studies = corpusStudies(files, len(c.r.nodes))
	t.Cleanup(c.logWarnings)

	c.stage("store, find and retrieve out of the journals", func(w *corpusWorker, s *corpusStudy) {
		w.store(s, func(f *corpusFile) bool { return f.outcome != "kept" })
		w.check(s)
	})
	c.r.awaitApplied(c.r.nodes...)
	c.stage("store further versions", func(w *corpusWorker, s *corpusStudy) {
		w.store(s, func(f *corpusFile) bool { return f.outcome == "kept" })
	})
	c.compareListing(files)
	c.stage("offer what was refused by STOW-RS", (*corpusWorker).stowRefused)
	if t.Failed() {
		return
	}
	c.r.awaitApplied(c.r.nodes...)
	c.checkKept("journalled")
	c.stage("seal", func(w *corpusWorker, s *corpusStudy) {
		if len(s.served()) == 0 {
			return
		}
		if err := c.r.nodes[s.home].admin().Seal(w.ctx, s.uid); err != nil {
			t.Errorf("seal the study of %s: %v", s.files[0].path, err)
		}
	})
	c.r.awaitApplied(c.r.nodes...)
	c.stage("find and retrieve sealed", func(w *corpusWorker, s *corpusStudy) { w.check(s) })
	c.checkKept("sealed")
	for _, site := range []string{"a", "b", "c"} {
		lost := c.r.site(site)
		c.r.kill(lost...)
		c.stage("find and retrieve what came in at site "+site+" without it", func(w *corpusWorker, s *corpusStudy) {
			if c.r.nodes[s.home].Site == site {
				w.check(s)
			}
		})
		c.r.start(lost...)
	}
}

// corpusFiles reads the files that the manifest names, what is to become of each, and the objects made here
// for what no file of the corpus has.
func corpusFiles(t *testing.T) []*corpusFile {
	t.Helper()
	listing := readCorpusListing(t)
	raw, err := os.ReadFile(filepath.Join(corpusDir, "manifest.tsv"))
	if err != nil {
		t.Fatalf("the corpus is to lie in ../shared/corpus beside the repository: %v", err)
	}
	var files []*corpusFile
	for i, line := range strings.Split(strings.TrimSpace(string(raw)), "\n")[1:] {
		path, _, _ := strings.Cut(line, "\t")
		f := readCorpusFile(t, path, i)
		verdict, ok := listing[path]
		if !ok && !*corpusUpdate {
			t.Errorf("%s has no line in %s", path, corpusListing)
		}
		f.corpusVerdict = verdict
		delete(listing, path)
		files = append(files, f)
	}
	for path := range listing {
		t.Errorf("%s is listed in %s but not in the manifest", path, corpusListing)
	}
	if len(files) != 236 {
		t.Errorf("the manifest names %d files, want 236", len(files))
	}
	return append(files, madeFiles(t)...)
}

func readCorpusListing(t *testing.T) map[string]corpusVerdict {
	t.Helper()
	raw, err := os.ReadFile(corpusListing)
	if err != nil && !*corpusUpdate {
		t.Fatal(err)
	}
	out := map[string]corpusVerdict{}
	for _, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		field := append(strings.Split(line, "\t"), "", "", "")
		if line != "" && !strings.HasPrefix(line, "#") {
			out[field[0]] = corpusVerdict{field[1], field[2], field[3]}
		}
	}
	return out
}

// readCorpusFile reads one file as a sender does that looks at nothing it need not see: the data set as it
// is, class and instance from the data set, else from the meta information, else made up. A file that is no
// DICOM file is sent as it is.
func readCorpusFile(t *testing.T, path string, number int) *corpusFile {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(corpusDir, path))
	if err != nil {
		t.Fatal(err)
	}
	f := &corpusFile{path: path, instance: instance{
		class: "1.2.840.10008.5.1.4.1.1.2", uid: fmt.Sprintf("2.25.404.%d", number+1),
		syntax: dicom.ExplicitVRLittleEndian, data: raw,
	}}
	meta, syntax, body, err := dicom.ReadPart10(bytes.NewReader(raw))
	if err != nil {
		return f
	}
	if f.data, err = io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
	f.syntax = syntax
	if dicom.SyntaxOf(syntax).Deflated && len(f.data)%2 == 1 {
		f.data = append(f.data, 0) // PS3.5 §A.5: the pad that makes the last fragment even
	}
	header, err := dicom.NewScanner(bytes.NewReader(f.data), syntax, dicom.Limits{}).Header()
	if err != nil {
		header = new(dicom.Dataset)
	}
	take := func(to *string, values ...string) {
		for _, v := range values {
			if v != "" {
				*to = v
				return
			}
		}
	}
	take(&f.class, header.String(dicom.SOPClassUID), meta.String(dicom.MediaStorageSOPClassUID))
	take(&f.uid, header.String(dicom.SOPInstanceUID), meta.String(dicom.MediaStorageSOPInstanceUID))
	take(&f.study, header.String(dicom.StudyInstanceUID))
	take(&f.series, header.String(dicom.SeriesInstanceUID))
	take(&f.name, header.String(dicom.PatientName))
	return f
}

// madeFiles are objects of our own making, all of which are served.
func madeFiles(t *testing.T) []*corpusFile {
	t.Helper()
	var out []*corpusFile
	add := func(path, class, syntax string, tail []byte) {
		n := len(out) + 1
		f := &corpusFile{path: "made: " + path, name: fmt.Sprintf("Made^%d", n)}
		f.outcome = "served"
		f.class, f.syntax = class, syntax
		f.study = fmt.Sprintf("2.25.9000%d", n)
		f.series, f.uid = f.study+".1", f.study+".1.1"
		d := new(dicom.Dataset)
		for tag, value := range map[dicom.Tag]string{
			dicom.SOPClassUID: class, dicom.SOPInstanceUID: f.uid, dicom.StudyInstanceUID: f.study,
			dicom.SeriesInstanceUID: f.series, dicom.PatientName: f.name, dicom.PatientID: "M", dicom.Modality: "OT",
		} {
			d.SetStrings(tag, value)
		}
		encoded := syntax
		if _, known := dicom.LookupSyntax(syntax); !known {
			encoded = dicom.ExplicitVRLittleEndian
		}
		data, err := d.Encode(nil, encoded)
		if err != nil {
			t.Fatal(err)
		}
		f.data = append(data, tail...)
		out = append(out, f)
	}
	pixels := func(vr string, length uint32, value ...byte) []byte {
		b := append([]byte{0xE0, 0x7F, 0x10, 0x00}, vr...)
		b = append(b, 0, 0, byte(length), byte(length>>8), byte(length>>16), byte(length>>24))
		return append(b, value...)
	}
	const undefined = 0xFFFFFFFF
	offsets := []byte{0xFE, 0xFF, 0x00, 0xE0, 0, 0, 0, 0}
	end := []byte{0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0}
	fragment := []byte{0xFE, 0xFF, 0x00, 0xE0, 4, 0, 0, 0, 1, 2, 3, 4}
	add("private SOP class", "2.25.7000.1", dicom.ExplicitVRLittleEndian, nil)
	add("private transfer syntax", secondaryCapture, "2.25.7000.2", pixels("OB", undefined, slices.Concat(offsets, fragment, end)...))
	add("private transfer syntax, native", secondaryCapture, "2.25.7000.3", pixels("OW", 4, 1, 2, 3, 4))
	add("zero frames, encapsulated", secondaryCapture, dicom.JPEGBaseline8Bit, pixels("OB", undefined, slices.Concat(offsets, end)...))
	add("zero frames, native", secondaryCapture, dicom.ExplicitVRLittleEndian, pixels("OW", 0))
	add("odd length", secondaryCapture, dicom.ExplicitVRLittleEndian, pixels("OB", 3, 1, 2, 3))
	add("retired hardcopy class", "1.2.840.10008.5.1.1.29", dicom.ImplicitVRLittleEndian, nil)
	return out
}

// corpusStudies groups files by study, in the order of the manifest, and gives each study a home.
func corpusStudies(files []*corpusFile, nodes int) []*corpusStudy {
	var out []*corpusStudy
	byUID := map[string]*corpusStudy{}
	for _, f := range files {
		key := f.study
		if key == "" {
			key = f.path
		}
		s := byUID[key]
		if s == nil {
			s = &corpusStudy{uid: f.study, home: len(out) % nodes}
			byUID[key] = s
			out = append(out, s)
		}
		s.files = append(s.files, f)
	}
	return out
}

// corpusRun is one run of the test.
type corpusRun struct {
	t       *testing.T
	r       *testRing
	own     *corpusReceiver
	peers   []*storescp
	studies []*corpusStudy

	mu      sync.Mutex
	slowest time.Duration // from acknowledgement to being found
}

// logWarnings shows, when the test failed, what the nodes complained of while they ran.
func (c *corpusRun) logWarnings() {
	if !c.t.Failed() {
		return
	}
	for _, n := range c.r.nodes {
		raw, _ := os.ReadFile(n.Dir + ".log")
		for _, line := range strings.Split(string(raw), "\n") {
			if (strings.Contains(line, `"WARN"`) || strings.Contains(line, `"ERROR"`)) && !strings.Contains(line, `"part":"raft"`) {
				c.t.Logf("%s: %s", n.ID, line)
			}
		}
	}
}

// corpusWorker does one study at a time.
type corpusWorker struct {
	*corpusRun
	ctx     context.Context
	peer    *storescp
	finders map[*testNode]*dimse.Client
}

// stage does something for every study, with corpusWorkers at once.
func (c *corpusRun) stage(what string, do func(*corpusWorker, *corpusStudy)) {
	c.t.Helper()
	began := time.Now()
	queue := make(chan *corpusStudy)
	var wait sync.WaitGroup
	for i := range corpusWorkers {
		wait.Add(1)
		go func() { // ends with the queue
			defer wait.Done()
			w := &corpusWorker{corpusRun: c, ctx: context.Background(), peer: c.peers[i], finders: map[*testNode]*dimse.Client{}}
			for s := range queue {
				ctx, cancel := context.WithTimeout(context.Background(), corpusPatience)
				w.ctx = ctx
				do(w, s)
				cancel()
			}
			for _, client := range w.finders {
				client.Close()
			}
		}()
	}
	for _, s := range c.studies {
		queue <- s
	}
	close(queue)
	wait.Wait()
	c.t.Logf("%s: %s, slowest find %s", what, time.Since(began).Round(time.Millisecond), c.slowest.Round(time.Millisecond))
}

// others returns a node of each of the other sites.
func (c *corpusRun) others(s *corpusStudy) (finder, reader *testNode) {
	home := c.r.nodes[s.home]
	for i := range c.r.nodes {
		n := c.r.nodes[(s.home+1+i)%len(c.r.nodes)]
		switch {
		case n.Site == home.Site:
		case finder == nil:
			finder = n
		case n.Site != finder.Site:
			return finder, n
		}
	}
	c.t.Fatal("the ring has fewer than three sites")
	return nil, nil
}

// store sends the chosen files of a study over one association and notes what became of each.
func (w *corpusWorker) store(s *corpusStudy, chosen func(*corpusFile) bool) {
	var files []*corpusFile
	for _, f := range s.files {
		if chosen(f) {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return
	}
	contexts, _ := corpusContexts(files)
	client, err := connect(w.ctx, w.r.nodes[s.home], contexts)
	if err != nil {
		w.t.Errorf("%s: associate: %v", files[0].path, err)
		return
	}
	defer client.Close()
	for _, f := range files {
		response, err := client.Store(w.ctx, dimse.StoreArgs{
			SOPClass: f.class, SOPInstance: f.uid, Syntax: f.syntax, Data: bytes.NewReader(f.data),
		})
		acked := time.Now()
		if err != nil && !errors.Is(err, dul.ErrContext) {
			w.t.Errorf("%s: store: %v", f.path, err)
			return
		}
		f.note(response, err)
		if f.got == "served" {
			w.awaitFound(s, f, acked)
		}
	}
	if err := client.Release(w.ctx); err != nil {
		w.t.Errorf("%s: release: %v", files[0].path, err)
	}
}

// note keeps what the response says became of the file.
func (f *corpusFile) note(response dimse.StoreResponse, err error) {
	switch {
	case err != nil:
		f.got, f.gotBecause = "refused", "presentation context not accepted"
	case response.Status == dimse.StatusSuccess:
		f.got, f.gotBecause = "served", ""
	case response.Status == dimse.StatusCoerced:
		f.got, f.gotBecause = "kept", response.ErrorComment
	default:
		elements := ""
		for _, tag := range response.OffendingElements {
			elements += fmt.Sprintf(" %v", tag)
		}
		f.got, f.gotBecause = "refused", fmt.Sprintf("%04X%s %s", response.Status, elements, response.ErrorComment)
	}
}

// awaitFound waits until the instance is found at both other nodes, for at most corpusFound after acked.
func (w *corpusWorker) awaitFound(s *corpusStudy, f *corpusFile, acked time.Time) {
	finder, reader := w.others(s)
	for _, n := range []*testNode{finder, reader} {
		for matches := 0; matches != 1; {
			found, err := w.find(n, f.study, f.series, f.uid)
			matches = len(found)
			took := time.Since(acked)
			if err != nil || took > corpusFound {
				w.t.Errorf("%s: %d matches at %s %s after the acknowledgement: %v", f.path, matches, n.ID, took, err)
				return
			}
			w.mu.Lock()
			w.slowest = max(w.slowest, took)
			w.mu.Unlock()
			if matches != 1 {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
}

// find asks a node for instances of a series over an association that stays open.
func (w *corpusWorker) find(n *testNode, study, series string, uids ...string) ([]*dicom.Dataset, error) {
	client := w.finders[n]
	if client == nil {
		var err error
		client, err = connect(context.Background(), n, []dul.ProposedContext{{
			ID: 1, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
		}})
		if err != nil {
			return nil, err
		}
		w.finders[n] = client
	}
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "IMAGE")
	id.SetStrings(dicom.StudyInstanceUID, study)
	id.SetStrings(dicom.SeriesInstanceUID, series)
	id.SetStrings(dicom.SOPInstanceUID, uids...)
	id.SetStrings(dicom.PatientName, "")
	var out []*dicom.Dataset
	for match, err := range client.Find(w.ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootFind, Identifier: id}) {
		if err != nil {
			return out, err
		}
		out = append(out, match)
	}
	return out, nil
}

// compareListing holds what became of each file against the listing.
func (c *corpusRun) compareListing(files []*corpusFile) {
	c.t.Helper()
	servedAs := map[string]*corpusFile{}
	for _, f := range files {
		if f.got == "served" && servedAs[f.uid] == nil {
			servedAs[f.uid] = f
		}
	}
	var listing strings.Builder
	listing.WriteString("# what becomes of each file of the corpus: served; kept as a further version beside the file named; refused because\n")
	counts := map[string]int{}
	for _, f := range files {
		if f.got == "kept" {
			f.gotBecause = servedAs[f.uid].path
		}
		counts[f.got]++
		if f.got != f.outcome || f.gotBecause != f.because {
			c.t.Errorf("%s: %s %s, listed as %s %s", f.path, f.got, f.gotBecause, f.outcome, f.because)
		}
		if !strings.HasPrefix(f.path, "made: ") {
			listing.WriteString(strings.TrimRight(f.path+"\t"+f.got+"\t"+f.gotBecause+"\t"+f.remark, "\t") + "\n")
		}
	}
	c.t.Logf("outcomes: %v", counts)
	if *corpusUpdate {
		if err := os.WriteFile(corpusListing, []byte(listing.String()), 0o644); err != nil {
			c.t.Error(err)
		}
	}
}

// checkKept looks further versions up at a node that did not receive them: there with their digests, not
// served.
func (c *corpusRun) checkKept(when string) {
	c.t.Helper()
	for _, s := range c.studies {
		finder, _ := c.others(s)
		for _, f := range s.files {
			if f.outcome != "kept" {
				continue
			}
			report, err := finder.admin().Study(context.Background(), s.uid)
			if err != nil {
				c.t.Errorf("%s: study of %s at %s: %v", when, f.path, finder.ID, err)
				break
			}
			found := false
			for _, v := range report.Versions {
				digest := sha256.Sum256(f.data)
				if v.SOPInstanceUID == f.uid && v.Digest == hex.EncodeToString(digest[:]) && v.TransferSyntax == f.syntax {
					found = !v.Served
				}
			}
			if !found {
				c.t.Errorf("%s: %s is not among the further versions at %s", when, f.path, finder.ID)
			}
		}
	}
}

// stowRefused offers the files that C-STORE refused by STOW-RS, as they are: refused too.
func (w *corpusWorker) stowRefused(s *corpusStudy) {
	for _, f := range s.files {
		if f.outcome != "refused" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(corpusDir, f.path))
		if err != nil {
			w.t.Fatal(err)
		}
		var body bytes.Buffer
		parts := multipart.NewWriter(&body)
		part, _ := parts.CreatePart(map[string][]string{"Content-Type": {"application/dicom"}})
		part.Write(raw)
		parts.Close()
		url := "http://" + w.r.nodes[s.home].HTTP + "/dicom-web/studies"
		response, err := http.Post(url, `multipart/related; type="application/dicom"; boundary=`+parts.Boundary(), &body)
		if err != nil {
			w.t.Errorf("%s: STOW-RS: %v", f.path, err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != http.StatusConflict && response.StatusCode != http.StatusBadRequest {
			w.t.Errorf("%s: STOW-RS answers %s", f.path, response.Status)
		}
	}
}

// check finds and retrieves everything of a study that is served, at nodes of other sites than its home, in
// every way.
func (w *corpusWorker) check(s *corpusStudy) {
	want := s.served()
	if len(want) == 0 {
		return
	}
	finder, reader := w.others(s)
	w.checkFound(s, finder, want)
	for _, way := range []struct {
		name     string
		retrieve func(*testNode, *corpusStudy, []*corpusFile) (map[string]received, error)
	}{
		{"C-GET", w.get}, {"C-MOVE", w.move}, {"C-MOVE to storescp", w.moveToStorescp}, {"WADO-RS", w.wado},
	} {
		got, err := way.retrieve(reader, s, want)
		if err != nil {
			w.t.Errorf("%s at %s: study of %s: %v", way.name, reader.ID, want[0].path, err)
		}
		for _, f := range want {
			decoded := way.name == "C-MOVE to storescp" && w.peer.takesDecoded(f)
			if way.name == "C-MOVE to storescp" && !w.peer.takes(f) && !decoded {
				continue
			}
			in, ok := got[f.uid]
			switch {
			case ok && in.times == 1 && decoded: // what came of it is held against DCMTK in package dicomsvc
				if in.syntax != dicom.ExplicitVRLittleEndian && in.syntax != dicom.ImplicitVRLittleEndian {
					w.t.Errorf("%s at %s: %s came in %s, want it decoded", way.name, reader.ID, f.path, in.syntax)
				}
			case !ok:
				w.t.Errorf("%s at %s: %s is missing", way.name, reader.ID, f.path)
			case in.times != 1:
				w.t.Errorf("%s at %s: %s came %d times", way.name, reader.ID, f.path, in.times)
			case in.syntax != f.syntax:
				w.t.Errorf("%s at %s: %s is in %s, sent in %s", way.name, reader.ID, f.path, in.syntax, f.syntax)
			case !bytes.Equal(in.data, f.data):
				w.t.Errorf("%s at %s: %s: %d bytes differ from the %d sent", way.name, reader.ID, f.path, len(in.data), len(f.data))
			}
			delete(got, f.uid)
		}
		if len(got) > 0 {
			w.t.Errorf("%s at %s: %d more instances than were sent with %s", way.name, reader.ID, len(got), want[0].path)
		}
	}
}

func (w *corpusWorker) checkFound(s *corpusStudy, finder *testNode, want []*corpusFile) {
	series := map[string][]string{}
	for _, f := range want {
		series[f.series] = append(series[f.series], f.uid)
	}
	for uid, instances := range series {
		matches, err := w.find(finder, s.uid, uid, instances...)
		if err != nil || len(matches) != len(instances) {
			w.t.Errorf("find at %s: %d of %d instances with %s, %v", finder.ID, len(matches), len(instances), want[0].path, err)
			continue
		}
		if name := matches[0].String(dicom.PatientName); name != want[0].name {
			w.t.Errorf("find at %s: Patient's Name is not that of %s", finder.ID, want[0].path)
		}
	}
}

// received is an instance as it came out.
type received struct {
	syntax string
	data   []byte
	times  int
}

func collect(into map[string]received, uid, syntax string, data []byte) {
	into[uid] = received{syntax: syntax, data: data, times: into[uid].times + 1}
}

// corpusContexts proposes a context for each class and syntax of the files.
func corpusContexts(files []*corpusFile) (contexts []dul.ProposedContext, roles []dul.Role) {
	seen := map[[2]string]bool{}
	for _, f := range files {
		if !seen[[2]string{f.class}] {
			roles = append(roles, dul.Role{SOPClass: f.class, SCP: true})
		}
		if key := [2]string{f.class, f.syntax}; !seen[key] {
			seen[key], seen[[2]string{f.class}] = true, true
			contexts = append(contexts, dul.ProposedContext{
				ID: byte(2*len(contexts) + 1), AbstractSyntax: f.class, TransferSyntaxes: []string{f.syntax},
			})
		}
	}
	return contexts, roles
}

// studyKeys is the identifier of a C-GET or C-MOVE of a study.
func studyKeys(uid string) *dicom.Dataset {
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, uid)
	return id
}

func (w *corpusWorker) get(n *testNode, s *corpusStudy, want []*corpusFile) (map[string]received, error) {
	contexts, roles := corpusContexts(want)
	contexts = append(contexts, dul.ProposedContext{
		ID: byte(2*len(contexts) + 1), AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	})
	client, err := connect(w.ctx, n, contexts, roles...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	got := map[string]received{}
	var readErr error
	response, err := client.Get(w.ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: studyKeys(s.uid)},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			data, err := io.ReadAll(sub.Data)
			if err != nil {
				readErr = err
				return dimse.StoreResponse{Status: dimse.StatusOutOfResources}
			}
			collect(got, sub.SOPInstance, sub.Syntax, data)
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	if err := errors.Join(err, readErr); err != nil {
		return got, err
	}
	if response.Status != dimse.StatusSuccess || response.Counters.Completed != len(want) {
		return got, fmt.Errorf("ended with %04XH %q, %+v", response.Status, response.ErrorComment, response.Counters)
	}
	return got, client.Release(w.ctx)
}

// moveTo has a study moved to an AE and returns the final response.
func (w *corpusWorker) moveTo(n *testNode, s *corpusStudy, title string) (dimse.Response, error) {
	client, err := connect(w.ctx, n, []dul.ProposedContext{{
		ID: 1, AbstractSyntax: dimse.StudyRootMove, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	}})
	if err != nil {
		return dimse.Response{}, err
	}
	defer client.Close()
	response, err := client.Move(w.ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootMove, Identifier: studyKeys(s.uid), Destination: title}, nil)
	if err != nil {
		return response, err
	}
	return response, client.Release(w.ctx)
}

func (w *corpusWorker) move(n *testNode, s *corpusStudy, want []*corpusFile) (map[string]received, error) {
	response, err := w.moveTo(n, s, corpusOwnAE)
	got := w.own.take(want)
	if err == nil && (response.Status != dimse.StatusSuccess || response.Counters.Completed != len(want)) {
		err = fmt.Errorf("ended with %04XH %q, %+v", response.Status, response.ErrorComment, response.Counters)
	}
	return got, err
}

// moveToStorescp has a study moved to DCMTK. Instances in syntaxes that it refuses come decoded, or must be reported as
// failed, no others: nobody here decodes them, or they are of odd length, which it takes for a broken sender.
func (w *corpusWorker) moveToStorescp(n *testNode, s *corpusStudy, want []*corpusFile) (map[string]received, error) {
	var refused []string
	for _, f := range want {
		if !w.peer.takes(f) && !w.peer.takesDecoded(f) {
			refused = append(refused, f.uid)
		}
	}
	if len(refused) == len(want) {
		return nil, nil
	}
	response, err := w.moveTo(n, s, w.peer.title)
	if err != nil {
		return nil, err
	}
	got, err := w.peer.take()
	if err == nil && (response.Counters.Completed != len(want)-len(refused) || !slices.Equal(slices.Sorted(slices.Values(response.FailedInstances)), slices.Sorted(slices.Values(refused)))) {
		err = fmt.Errorf("ended with %04XH %q, %+v, want %d failed", response.Status, response.ErrorComment, response.Counters, len(refused))
	}
	return got, err
}

func (w *corpusWorker) wado(n *testNode, s *corpusStudy, _ []*corpusFile) (map[string]received, error) {
	return wadoStudy(w.ctx, n, s.uid)
}

// wadoStudy retrieves a study as it is stored.
func wadoStudy(ctx context.Context, n *testNode, uid string) (map[string]received, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/dicom-web/studies/"+uid, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`)
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		problem, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return nil, fmt.Errorf("%s: %s", response.Status, problem)
	}
	_, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	got := map[string]received{}
	for parts := multipart.NewReader(response.Body, params["boundary"]); ; {
		part, err := parts.NextPart()
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if err := collectPart10(got, part); err != nil {
			return got, err
		}
	}
}

// collectPart10 takes a file apart: under the UID and the syntax that its meta information gives.
func collectPart10(into map[string]received, r io.Reader) error {
	meta, syntax, body, err := dicom.ReadPart10(r)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	collect(into, meta.String(dicom.MediaStorageSOPInstanceUID), syntax, data)
	return nil
}

// take empties the directory that storescp writes to.
func (p *storescp) take() (map[string]received, error) {
	got := map[string]received{}
	paths, err := filepath.Glob(filepath.Join(p.dir, "*"))
	if err != nil {
		return got, err
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return got, err
		}
		if err := collectPart10(got, bytes.NewReader(raw)); err != nil {
			return got, err
		}
		if err := os.Remove(path); err != nil {
			return got, err
		}
	}
	return got, nil
}

// corpusReceiver is a storage SCP that takes every class in every syntax.
type corpusReceiver struct {
	dimse.Unsupported
	address string

	mu  sync.Mutex
	got map[string]received
}

func (c *corpusReceiver) Associate(_ context.Context, r *dul.Request) dimse.Decision {
	a := &dul.Acceptance{}
	for _, pc := range r.Contexts {
		a.Contexts = append(a.Contexts, dul.ContextResult{ID: pc.ID, Result: dul.ContextAccepted, TransferSyntax: pc.TransferSyntaxes[0]})
	}
	return dimse.Decision{Acceptance: a}
}

func (c *corpusReceiver) Store(_ context.Context, r *dimse.StoreRequest) dimse.StoreResponse {
	data, err := io.ReadAll(r.Data)
	if err != nil {
		return dimse.StoreResponse{Status: dimse.StatusOutOfResources}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	collect(c.got, r.SOPInstance, r.Syntax, data)
	return dimse.StoreResponse{Status: dimse.StatusSuccess}
}

// take returns and forgets what came of the given instances.
func (c *corpusReceiver) take(files []*corpusFile) map[string]received {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]received{}
	for _, f := range files {
		if in, ok := c.got[f.uid]; ok {
			out[f.uid] = in
			delete(c.got, f.uid)
		}
	}
	return out
}

func startCorpusReceiver(t *testing.T) *corpusReceiver {
	t.Helper()
	c := &corpusReceiver{got: map[string]received{}}
	c.address = serveStorage(t, c)
	return c
}
