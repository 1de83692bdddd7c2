package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
)

// The words of the canary patient. None occurs anywhere by chance.
const (
	canaryFamily    = "Zqxcanaria"
	canaryGiven     = "Vwkquillon"
	canaryID        = "ZQX4471KANA"
	canaryAccession = "ZQXACC90317"
	canaryStudy     = "Zqxjabotstudie"
	canaryOther     = "Zqxfernsicht" // in private, trailing and pixel data
)

var canaryWords = []string{canaryFamily, canaryGiven, canaryID, canaryAccession, canaryStudy, canaryOther}

// No file of a ring, none of its answers about itself and nothing that its processes say holds a word of
// a patient, whatever was stored, asked, refused, sealed, restarted or copied.
func TestNoPlaintextPatientData(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	osteonBinary(t) // before the temporary directory moves
	t.Setenv("TMPDIR", temp)
	r := startRingIn(t, dir, 3, 1, "--log-level", "debug")
	for _, f := range exerciseCanary(t, r, temp) {
		t.Error(f)
	}
	r.checkNoUIDsInLogs()
	r.checkModes()
}

// The same search finds the patient in every kind of file of a ring whose build does not encrypt.
func TestPlaintextIsFound(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	program := filepath.Join(t.TempDir(), "osteon-plaintext")
	build := exec.Command("go", "build", "-tags", "plant_plaintext", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with plant_plaintext: %v\n%s", err, out)
	}
	t.Setenv("TMPDIR", temp)
	r := startRingOf(t, program, dir, 3, 1, "--log-level", "debug")
	found := map[string]int{}
	for _, f := range exerciseCanary(t, r, temp) {
		found[f.kind]++
	}
	for _, kind := range []string{"journal", "shards", "catalog", "raft log", "snapshot"} {
		if found[kind] == 0 {
			t.Errorf("no word of the patient found in %s of a ring that writes plaintext; found %v", kind, found)
		}
	}
	t.Logf("found by kind of file: %v", found)
}

// exerciseCanary takes a ring with a canary patient through its paces, searches it at every stage, and
// stops it. It returns what it found.
func exerciseCanary(t *testing.T, r *testRing, temp string) (found []finding) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*ringPatience)
	defer cancel()
	seen := map[finding]bool{}
	kinds := map[string]int{}
	search := func(stage string) {
		for _, f := range r.searchCanary(temp, kinds) {
			f.stage = ""
			if !seen[f] {
				seen[f] = true
				f.stage = stage
				found = append(found, f)
			}
		}
	}
	sent := canaryInstances()
	for i, in := range sent {
		if i == len(sent)-1 {
			r.stow(r.nodes[1], in)
			continue
		}
		r.mustStore(r.nodes[i%len(r.nodes)], in)
	}
	search("after the stores")
	r.refusals(sent[0])
	r.queries(ctx, sent)
	search("after refusals and queries")
	for _, study := range []string{sent[0].study, sent[len(sent)-1].study} { // others stay journalled
		if err := r.nodes[2].admin().Seal(ctx, study); err != nil {
			t.Fatalf("seal: %v", err)
		}
	}
	r.awaitApplied(r.nodes[2], r.nodes[0], r.nodes[1])
	for _, n := range r.nodes {
		if err := n.admin().Snapshot(ctx); err != nil {
			t.Fatalf("snapshot: %v", err)
		}
	}
	search("after seals and snapshots")
	r.kill(r.nodes[1])
	r.queries(ctx, sent)
	r.start(r.nodes[1])
	r.queries(ctx, sent)
	search("after a restart")
	r.stop()
	search("after the end")
	for _, kind := range []string{"journal", "shards", "catalog", "raft log", "snapshot", "local", "vault", "log", "configuration", "metrics", "status", "output", "names"} {
		if kinds[kind] == 0 {
			t.Errorf("the search saw no %s; it saw %v", kind, kinds)
		}
	}
	return found
}

// canaryInstances are instances of the canary patient in two studies, in different encodings.
func canaryInstances() (out []instance) {
	for i, c := range []struct {
		study   int
		name    string
		charset string
		syntax  string
	}{
		{901, canaryFamily + "^" + canaryGiven, "", dicom.ExplicitVRLittleEndian},
		{901, strings.ToUpper(canaryFamily + "^" + canaryGiven), "", dicom.ImplicitVRLittleEndian},
		{902, canaryFamily + "é^" + canaryGiven + "^^Dr", "ISO_IR 192", dicom.ExplicitVRLittleEndian},
		{903, canaryFamily + "^" + canaryGiven + "=王^小東", "ISO_IR 192", dicom.ExplicitVRLittleEndian},
	} {
		in := noiseInstance(c.study, 1, i+1, 0, 9)
		d, err := dicom.Decode(in.data, in.syntax, dicom.Limits{})
		if err != nil {
			panic(err)
		}
		if c.charset != "" {
			d.SetStrings(dicom.SpecificCharacterSet, c.charset)
		}
		d.SetStrings(dicom.PatientName, c.name)
		d.SetStrings(dicom.PatientID, canaryID)
		d.SetStrings(dicom.AccessionNumber, canaryAccession)
		d.SetStrings(dicom.StudyDescription, canaryStudy)
		d.SetStrings(dicom.ReferringPhysicianName, canaryGiven+"^"+canaryFamily)
		d.Set(dicom.Element{Tag: dicom.NewTag(0x0011, 0x0010), VR: dicom.LO, Value: []byte(canaryOther)})
		d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OW, Value: bytes.Repeat([]byte(canaryOther), 5000)})
		d.Set(dicom.Element{Tag: dicom.DataSetTrailingPadding, VR: dicom.OB, Value: []byte(canaryOther)})
		in.syntax = c.syntax
		if in.data, err = d.Encode(nil, in.syntax); err != nil {
			panic(err)
		}
		out = append(out, in)
	}
	return out
}

// refusals sends what must be refused, with words of the canary wherever a message might quote them.
func (r *testRing) refusals(good instance) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	with := func(change func(*dicom.Dataset)) instance {
		in := good
		d, err := dicom.Decode(good.data, good.syntax, dicom.Limits{})
		if err != nil {
			r.t.Fatal(err)
		}
		change(d)
		if in.data, err = d.Encode(nil, in.syntax); err != nil {
			r.t.Fatal(err)
		}
		return in
	}
	bad := map[string]instance{
		"other UID than the command": with(func(d *dicom.Dataset) { d.SetStrings(dicom.SOPInstanceUID, "2.25.77") }),
		"no UID but a word":          with(func(d *dicom.Dataset) { d.SetStrings(dicom.StudyInstanceUID, canaryFamily) }),
		"no instance UID but a word": with(func(d *dicom.Dataset) { d.SetStrings(dicom.SOPInstanceUID, canaryID) }),
		"no study UID":               with(func(d *dicom.Dataset) { d.Remove(dicom.StudyInstanceUID) }),
	}
	cut := good
	cut.data = good.data[:bytes.Index(good.data, []byte(canaryFamily))+5]
	bad["cut in the name"] = cut
	tail := good
	tail.data = good.data[:len(good.data)-7]
	bad["cut in the end"] = tail
	words := good
	words.data = []byte(strings.Repeat(canaryFamily+"^"+canaryGiven+" "+canaryID, 20))
	bad["words for a data set"] = words
	for what, in := range bad {
		response, err := store(ctx, r.nodes[0], in)
		if err == nil && response.Status == dimse.StatusSuccess {
			r.t.Errorf("store of an object with %s succeeded", what)
		}
	}
	for _, address := range []string{r.nodes[0].DIMSE, r.nodes[0].HTTP} {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			r.t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, "\x01\x00"+canaryFamily+" / "+canaryID+"\r\n\r\n")
		conn.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	contentType := `multipart/related; type="application/dicom"; boundary=` + canaryFamily
	for _, body := range []string{"--" + canaryFamily + "\r\n\r\n" + canaryID, "--" + canaryFamily + "\r\nContent-Type: application/dicom\r\n\r\n" + canaryID + "\r\n--" + canaryFamily + "--", canaryID} {
		if status := r.http("POST", r.nodes[0], "/dicom-web/studies", contentType, strings.NewReader(body)); status < 400 && status != http.StatusAccepted {
			r.t.Errorf("STOW of nonsense was answered with %d", status)
		}
	}
	r.http("POST", r.nodes[0], "/dicom-web/studies/"+canaryFamily, "text/"+canaryFamily, strings.NewReader(canaryID))
}

// stow stores one instance by STOW-RS.
func (r *testRing) stow(n *testNode, in instance) {
	r.t.Helper()
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	part, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/dicom"}})
	if err != nil {
		r.t.Fatal(err)
	}
	part.Write(append(dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "", "", ""), in.data...))
	parts.Close()
	contentType := `multipart/related; type="application/dicom"; boundary=` + parts.Boundary()
	if status := r.http("POST", n, "/dicom-web/studies", contentType, &body); status != http.StatusOK {
		r.t.Fatalf("STOW was answered with %d", status)
	}
}

// http makes a request, reads the answer to its end and returns the status.
func (r *testRing) http(method string, n *testNode, path, contentType string, body io.Reader) int {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ringPatience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+n.HTTP+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", "application/dicom+json, multipart/related; type=\"application/dicom\"; x="+canaryFamily+", */*")
	request.Header.Set("User-Agent", canaryFamily)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// queries asks every live node for the canary in right and in wrong ways. The right ones must match.
func (r *testRing) queries(ctx context.Context, sent []instance) {
	r.t.Helper()
	for _, n := range r.nodes {
		if _, err := n.admin().Status(ctx); err != nil {
			continue
		}
		for _, key := range []map[dicom.Tag]string{
			{dicom.PatientName: canaryFamily + "*"},
			{dicom.PatientName: strings.ToLower(canaryFamily) + "^" + strings.ToUpper(canaryGiven) + "*"},
			{dicom.PatientID: canaryID},
			{dicom.AccessionNumber: canaryAccession},
		} {
			r.eventually("the patient is found at "+n.ID, func() bool {
				key[dicom.StudyInstanceUID] = ""
				matches, err := find(ctx, n, "STUDY", key)
				return err == nil && len(matches) > 0
			})
		}
		for _, wrong := range []struct {
			level string
			keys  map[dicom.Tag]string
		}{
			{canaryFamily, map[dicom.Tag]string{dicom.PatientName: canaryFamily}},
			{"STUDY", map[dicom.Tag]string{dicom.StudyDate: canaryID}},
			{"STUDY", map[dicom.Tag]string{dicom.StudyDate: canaryID + "-" + canaryFamily, dicom.PatientName: canaryGiven + "^" + canaryFamily}},
			{"STUDY", map[dicom.Tag]string{dicom.StudyInstanceUID: canaryFamily}},
			{"STUDY", map[dicom.Tag]string{dicom.PatientName: strings.Repeat(canaryFamily+"*", 300)}},
			{"IMAGE", map[dicom.Tag]string{dicom.PatientID: canaryID}},
			{"SERIES", map[dicom.Tag]string{dicom.StudyInstanceUID: canaryID, dicom.SeriesInstanceUID: canaryFamily}},
			{"STUDY", map[dicom.Tag]string{dicom.ReferringPhysicianName: canaryFamily, dicom.StudyDescription: canaryStudy}},
		} {
			if _, err := find(ctx, n, wrong.level, wrong.keys); errors.Is(err, context.DeadlineExceeded) {
				r.t.Errorf("query at %s: %v", n.ID, err)
			}
		}
		name := url.QueryEscape(canaryFamily + "^" + canaryGiven)
		for _, path := range []string{
			"/dicom-web/studies?PatientName=" + name + "&includefield=all",
			"/dicom-web/studies?PatientID=" + canaryID + "&limit=3",
			"/dicom-web/studies/" + sent[0].study + "/metadata",
			"/dicom-web/studies/" + sent[0].study,
		} {
			if status := r.http("GET", n, path, "", nil); status != http.StatusOK {
				r.t.Errorf("GET %s at %s: %d", path, n.ID, status)
			}
		}
		for _, path := range []string{
			"/dicom-web/studies?PatientName=" + canaryFamily + "&fuzzymatching=true", "/dicom-web/studies?PatientName=%ff" + canaryFamily,
			"/dicom-web/studies?" + canaryFamily + "=" + canaryID, "/dicom-web/studies?00100020=" + canaryID + "&00100020=" + canaryFamily,
			"/dicom-web/studies?limit=" + canaryID, "/dicom-web/studies?StudyDate=" + canaryFamily, "/dicom-web/studies?includefield=" + canaryFamily,
			"/dicom-web/studies/" + canaryFamily, "/dicom-web/studies/" + canaryFamily + "/metadata", "/dicom-web/series?PatientName=" + name,
			"/dicom-web/instances?PatientID=" + canaryID, "/dicom-web/studies/1.2.3/series/" + canaryID + "/instances/" + canaryFamily + "/frames/" + canaryID,
			"/dicom-web/" + canaryFamily, "/" + canaryFamily, "/metrics?" + canaryFamily, "/dicom-web/patients?PatientName=" + name,
		} {
			r.http("GET", n, path, "", nil)
		}
		r.http("DELETE", n, "/dicom-web/studies/"+canaryFamily, "", nil)
		for _, uid := range []string{canaryGiven, canaryID + "/" + canaryGiven} {
			admin := n.admin()
			_, showErr := admin.Study(ctx, uid)
			_, verifyErr := admin.Verify(ctx, uid)
			_, exportErr := admin.Export(ctx, uid)
			if showErr == nil || verifyErr == nil || exportErr == nil || admin.Seal(ctx, uid) == nil {
				r.t.Errorf("the admin socket of %s knows a study %q", n.ID, uid)
			}
		}
	}
}

// finding is a word of the canary where none may be.
type finding struct{ kind, place, word, form, stage string }

func (f finding) String() string {
	return fmt.Sprintf("%s %s holds %q in %s %s", f.kind, f.place, f.word, f.form, f.stage)
}

// searchCanary searches the ring's directory, its temporary directory, the names of all files, what its
// processes said, and what live nodes tell about themselves. It counts in kinds what it has seen.
func (r *testRing) searchCanary(temp string, kinds map[string]int) (found []finding) {
	r.t.Helper()
	search := func(kind, place string, text []byte) {
		kinds[kind]++
		for word, form := range canaryIn(text) {
			found = append(found, finding{kind: kind, place: place, word: word, form: form})
		}
	}
	var names []string
	for _, root := range []string{r.dir, temp} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone since the directory was listed
			}
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			names = append(names, name)
			if !d.Type().IsRegular() {
				return nil
			}
			text, err := os.ReadFile(path)
			if err == nil {
				search(kindOf(name), name, text)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	search("names", "of files", []byte(strings.Join(names, "\n")))
	search("output", "of osteon dev", r.said.bytes())
	for _, n := range r.nodes {
		status, err := n.admin().Status(context.Background())
		if err != nil {
			continue // it is down
		}
		text, err := json.Marshal(status)
		if err != nil {
			r.t.Fatal(err)
		}
		search("status", "of "+n.ID, text)
		for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
			response, err := http.Get("http://" + n.HTTP + path)
			if err != nil {
				r.t.Fatal(err)
			}
			text, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil {
				r.t.Fatal(err)
			}
			search(strings.TrimPrefix(path, "/"), "of "+n.ID, text)
		}
	}
	return found
}

// kindOf tells what a file is by its place in the ring's directory.
func kindOf(name string) string {
	parts := strings.Split(filepath.ToSlash(name), "/")
	switch {
	case len(parts) == 1 && strings.HasSuffix(name, ".log"):
		return "log"
	case len(parts) == 1 && strings.HasSuffix(name, ".yaml"):
		return "configuration"
	case len(parts) < 3:
		return "other"
	case parts[1] == "raft" && slices.Contains(parts, "snapshots"):
		return "snapshot"
	case parts[1] == "raft":
		return "raft log"
	default:
		return parts[1]
	}
}

// canaryIn yields every word of the canary in text, with the form that it has there: whatever its case, in
// UTF-16, hexadecimal or base64.
func canaryIn(text []byte) map[string]string {
	folded := bytes.Clone(text)
	for i, c := range folded {
		if c >= 'A' && c <= 'Z' {
			folded[i] = c + 'a' - 'A'
		}
	}
	found := map[string]string{}
	for _, word := range canaryWords {
		low := strings.ToLower(word)
		for form, needle := range map[string][]byte{
			"letters": []byte(low), "UTF-16 LE": wide(low, 0), "UTF-16 BE": wide(low, 1),
			"hexadecimal": []byte(hex.EncodeToString([]byte(low))), "hexadecimal as written": []byte(hex.EncodeToString([]byte(word))),
		} {
			if bytes.Contains(folded, needle) {
				found[word] = form
			}
		}
		for _, spelling := range []string{word, low, strings.ToUpper(word)} {
			for shift := range 3 {
				if bytes.Contains(text, inBase64(spelling, shift)) {
					found[word] = "base64"
				}
			}
		}
	}
	return found
}

// wide returns text in UTF-16 with the low byte of each pair at that place.
func wide(text string, low int) (out []byte) {
	for _, u := range utf16.Encode([]rune(text)) {
		pair := [2]byte{}
		pair[low], pair[1-low] = byte(u), byte(u>>8)
		out = append(out, pair[:]...)
	}
	return out
}

// inBase64 returns the part of the base64 of text that does not depend on what surrounds it, when text
// begins at that place of a group of three.
func inBase64(text string, shift int) []byte {
	padded := append(make([]byte, shift), text...)
	encoded := base64.StdEncoding.EncodeToString(padded[:len(padded)/3*3])
	return []byte(encoded[(shift*4+2)/3:])
}

func TestCanaryIsRecognised(t *testing.T) {
	for form, text := range map[string][]byte{
		"as written":       []byte("x" + canaryFamily + "^" + canaryGiven),
		"reversed order":   []byte(canaryGiven + " " + canaryFamily),
		"lower case":       []byte(strings.ToLower(canaryFamily)),
		"UTF-16 LE":        wide("xy"+strings.ToUpper(canaryFamily), 0),
		"UTF-16 BE":        wide("x"+canaryFamily, 1),
		"odd UTF-16":       append([]byte{1}, wide(canaryFamily, 0)...),
		"hexadecimal":      []byte(strings.ToUpper(hex.EncodeToString([]byte(canaryFamily)))),
		"base64":           []byte(base64.StdEncoding.EncodeToString([]byte("a" + canaryFamily + "^x"))),
		"shifted base64":   []byte(base64.StdEncoding.EncodeToString([]byte("ab" + canaryFamily + "^x"))),
		"aligned base64":   []byte(base64.RawURLEncoding.EncodeToString([]byte("abc" + canaryFamily))),
		"among other data": append(bytes.Repeat([]byte{0}, 1<<20), canaryFamily...),
	} {
		if canaryIn(text)[canaryFamily] == "" {
			t.Errorf("the canary is not recognised %s", form)
		}
	}
	if found := canaryIn([]byte("Zqx canaria Vwk")); len(found) > 0 {
		t.Errorf("found %v where nothing is", found)
	}
	for text, want := range map[string]bool{
		`{"study":"2.25.1000901"}`: true, "class 1.2.840.10008.5.1.4.1.1.2 refused": true, "2.25.7777.1": true,
		"127.0.0.1:7400": false, "go1.26.8, 12.25 ms, v2.1.7": false,
	} {
		if uidText.MatchString(text) != want {
			t.Errorf("%q names a UID: %v, want %v", text, !want, want)
		}
	}
}

// uidText is a UID in running text: five or more components, which no address or version here has, or a
// UUID's.
var uidText = regexp.MustCompile(`(^|[^0-9.a-f])([0-2](\.(0|[1-9][0-9]*)){4,}|2\.25\.[1-9][0-9]{3})`)

// checkNoUIDsInLogs looks through all that the processes said.
func (r *testRing) checkNoUIDsInLogs() {
	r.t.Helper()
	logs, err := filepath.Glob(filepath.Join(r.dir, "*.log"))
	if err != nil || len(logs) != len(r.nodes) {
		r.t.Fatalf("%d logs of %d nodes, %v", len(logs), len(r.nodes), err)
	}
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range bytes.Lines(append(raw, r.said.bytes()...)) {
			if uidText.Match(line) {
				r.t.Errorf("%s names a UID: %.500s", filepath.Base(path), line)
			}
		}
	}
}

// checkModes holds every file and directory below the ring's own against the owner's alone.
func (r *testRing) checkModes() {
	r.t.Helper()
	checked := 0
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == r.dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		checked++
		if info.Mode().Perm()&0o077 != 0 {
			r.t.Errorf("%s has mode %v; want nothing for group and others", path, info.Mode())
		}
		return nil
	})
	if err != nil || checked < 20 {
		r.t.Errorf("looked at %d files, %v", checked, err)
	}
}

// What init makes is its owner's alone, and init says what the root key does not protect.
func TestInitSaysWhatItsKeyDoesNotProtect(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node")
	out, err := exec.Command(osteonBinary(t), "init", "--dir", dir, "--link", "127.0.0.1:0").CombinedOutput()
	if err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	for _, want := range []string{filepath.Join(dir, "root.key"), "protects no stolen", "Keep a copy"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("init does not say %q:\n%s", want, out)
		}
	}
	(&testRing{t: t, dir: filepath.Dir(dir)}).checkModes()
}
