package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
)

// Bad input against a running node, by the rows Bnn of the catalogue of bad input; testdata/bad/README.md says which
// parts of a row have no test because the feature does not exist. Each row is a table of cases; each case states
// the exact status, HTTP code, rejection or abort. One harness holds the rest of the oracle for every row: the
// process lives, its memory stays within badRSS of idle, a neighbour goes on storing and finding without an error
// and at 80 % of its pace, the log holds neither the canary nor a control character, and afterwards the node stores
// and serves.

// badLong makes the rows that repeat do so as often as the catalogue says.
var badLong = flag.Bool("badlong", false, "repeat bad input 10^5 times where the rows ask for it")

const (
	// badRSS is how much more than idle a node may have resident while bad input arrives.
	badRSS = 64 << 20
	// badRSSAll is what it may have resident after all of it, and after all that the neighbour stored.
	badRSSAll = 300 << 20
	// badCanary is part of every name and title in bad input: it must never be seen in a log.
	badCanary = "CANARY77"
	// badPatience is the deadline of a case that names no other.
	badPatience = 10 * time.Second
	// badRate is the part of its pace that a neighbour keeps.
	badRate = 0.8
	// badWindow is for how long bad input arrives at least before paces are compared, badWindowMost for how long a
	// row is repeated.
	badWindow, badWindowMost = 300 * time.Millisecond, 20 * time.Second
	// badEvery is how often a piece of bad input arrives at most, and each is followed by a pause of twice the time
	// it took; badPause is the neighbour's pause between two requests. So what is compared is the node's answers,
	// not which process of this machine gets the processor and the disk.
	badEvery, badPause = 12 * time.Millisecond, 5 * time.Millisecond
)

// badBench is one node under test.
type badBench struct {
	r       *testRing
	n       *testNode
	next    atomic.Int64 // numbers of instances
	log     string       // path of the node's log
	good    *neighbour
	idle    int64
	offered int64 // of the log, already searched
}

// TestBadInput runs all rows against one node. A row alone: -run TestBadInput/B14.
func TestBadInput(t *testing.T) {
	b := newBadBench(t)
	for _, row := range []struct {
		name  string
		cases func(*badBench) []badCase
	}{
		{"B05UIDsAsPaths", casesB05}, {"B09Lengths", casesB09}, {"B10Dimensions", casesB10}, {"B11WrongVR", casesB11},
		{"B12Offsets", casesB12}, {"B13Codestreams", casesB13}, {"B14WrongProtocol", casesB14}, {"B15BodyCut", casesB15},
		{"B17Inflation", casesB17}, {"B18Nesting", casesB18}, {"B20ProtocolState", casesB20}, {"B20Negotiation", casesB20Negotiation},
		{"B22Scripts", casesB22}, {"B24XML", casesB24}, {"B25Polyglots", casesB25}, {"B28LogInjection", casesB28}, {"B29QueryBlowUp", casesB29},
	} {
		t.Run(row.name, func(t *testing.T) { b.run(t, row.cases(b)) })
	}
	t.Run("B19Repeated", func(t *testing.T) { b.runB19(t) })
	if all := residentOf(t, b.n.PID); all > badRSSAll {
		t.Errorf("%d MiB resident after all rows", all>>20)
	}
	b.checkServes(t)
	b.checkLog(t)
}

// badCase is one piece of bad input. do sends it and returns an error when the answer is not the one expected.
type badCase struct {
	name string
	do   func(ctx context.Context) error
}

func newBadBench(t *testing.T) *badBench {
	// TEST is known, so that its address is not held back for what the rows send from there.
	r := startRing(t, 1, 1, "--log-level", "debug", "--seal-quiet", "1h", "--ae", "TEST=127.0.0.1:9")
	b := &badBench{r: r, n: r.nodes[0]}
	logs, _ := filepath.Glob(filepath.Join(r.dir, "*.log"))
	if len(logs) != 1 {
		t.Fatalf("logs of one node: %v", logs)
	}
	b.log = logs[0]
	b.good = newNeighbour(b)
	t.Cleanup(b.good.end)
	b.good.await(t, 200) // what a node keeps for its work is there
	return b
}

// run sends all cases, each followed by as long a time without bad input, and holds the oracle. Rounds are repeated
// until one shows the neighbour at its pace: what else happens on this machine slows it in some, bad input in all.
func (b *badBench) run(t *testing.T, cases []badCase) {
	t.Helper()
	b.idle = residentOf(t, b.n.PID)
	var bad, quiet pace
	for began := time.Now(); ; bad, quiet = (pace{}), (pace{}) {
		for bad.time < badWindow {
			for _, c := range cases {
				b.measure(t, c, &bad, &quiet)
			}
		}
		if t.Failed() || bad.rate() >= badRate*quiet.rate() {
			break
		}
		if time.Since(began) > badWindowMost {
			t.Errorf("the neighbour did %.0f requests/s beside bad input and %.0f without", bad.rate(), quiet.rate())
			break
		}
	}
	b.check(t)
	t.Logf("%d cases, %v of bad input; neighbour %.0f/s beside it, %.0f/s without; peak RSS %+d MiB over idle", len(cases),
		bad.time.Round(time.Millisecond), bad.rate(), quiet.rate(), (peakRSS(t, b.n.PID)-b.idle)>>20)
}

// measure sends one case and counts what the neighbour did meanwhile and in as long a time after it.
func (b *badBench) measure(t *testing.T, c badCase, bad, quiet *pace) {
	t.Helper()
	var took time.Duration
	all := bad.measure(b.good, func() {
		began := time.Now()
		b.one(t, c)
		took = time.Since(began)
		time.Sleep(max(badEvery-took, 2*took))
	})
	if took > time.Second {
		t.Logf("%s took %v", c.name, took)
	}
	if t.Failed() && b.dead() {
		t.Fatalf("%s: the node has ended\n%s", c.name, b.r.logs())
	}
	quiet.measure(b.good, func() { time.Sleep(min(all, time.Second)) })
}

func (b *badBench) one(t *testing.T, c badCase) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), badPatience)
	defer cancel()
	if err := c.do(ctx); err != nil {
		t.Errorf("%s: %v", c.name, err)
	}
}

// check holds what every row promises.
func (b *badBench) check(t *testing.T) {
	t.Helper()
	if b.dead() {
		t.Fatalf("the node has ended\n%s", b.r.logs())
	}
	if err := b.good.failure(); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	if peak := peakRSS(t, b.n.PID); peak > b.idle+badRSS {
		t.Errorf("%d MiB resident, %d when idle", peak>>20, b.idle>>20)
		b.r.keepHeap(b.n, filepath.Base(t.Name()))
	}
	b.checkServes(t)
	b.checkLog(t)
}

func (b *badBench) dead() bool { return syscall.Kill(b.n.PID, 0) != nil }

// checkServes stores and reads an instance.
func (b *badBench) checkServes(t *testing.T) {
	t.Helper()
	in := b.instance(nil)
	ctx, cancel := context.WithTimeout(context.Background(), badPatience)
	defer cancel()
	response, err := store(ctx, b.n, in)
	if err != nil || response.Status != dimse.StatusSuccess {
		t.Fatalf("store afterwards: %04XH %q, %v", response.Status, response.ErrorComment, err)
	}
	if got, err := get(ctx, b.n, in); err != nil || !bytes.Equal(got, in.data) {
		t.Fatalf("read afterwards: %d bytes, %v", len(got), err)
	}
}

// checkLog searches what the node logged since the last time: every line is a JSON object without the canary and
// without control characters in any of its strings.
func (b *badBench) checkLog(t *testing.T) {
	t.Helper()
	file, err := os.Open(b.log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Seek(b.offered, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.LastIndexByte(raw, '\n') + 1
	b.offered += int64(whole)
	found := 0
	for line := range bytes.Lines(raw[:whole]) {
		if fault := badLine(line); fault != "" && found < 10 {
			found++
			t.Errorf("log line with %s: %.300q", fault, line)
		}
	}
}

func badLine(line []byte) string {
	var record map[string]any
	if err := json.Unmarshal(line, &record); err != nil {
		return "no JSON object"
	}
	if bytes.Contains(bytes.ToUpper(line), []byte(badCanary)) {
		return "the canary"
	}
	for key, value := range record {
		text := key + " " + fmt.Sprint(value)
		if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Cf, r) }); i >= 0 {
			return fmt.Sprintf("control character %q", text[i])
		}
	}
	return ""
}

// pace is how many of the neighbour's requests were answered in how much time.
type pace struct {
	time time.Duration
	done int64
}

func (p *pace) measure(n *neighbour, work func()) time.Duration {
	done, began := n.done.Load(), time.Now()
	work()
	took := time.Since(began)
	p.time += took
	p.done += n.done.Load() - done
	return took
}

func (p *pace) rate() float64 { return float64(p.done) / p.time.Seconds() }

// neighbour is a modality that stores and finds on one association all the while.
type neighbour struct {
	done atomic.Int64

	quit chan struct{}
	over sync.WaitGroup
	once sync.Once

	mu  sync.Mutex
	err error
}

func newNeighbour(b *badBench) *neighbour {
	n := &neighbour{quit: make(chan struct{})}
	n.over.Go(func() { // ends with quit or its first error
		if err := n.work(b); err != nil {
			n.mu.Lock()
			n.err = err
			n.mu.Unlock()
		}
	})
	return n
}

func (n *neighbour) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

func (n *neighbour) end() {
	n.once.Do(func() { close(n.quit) })
	n.over.Wait()
}

func (n *neighbour) stop(t *testing.T) {
	t.Helper()
	n.end()
	if err := n.failure(); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
}

// await waits until the neighbour has done so many requests.
func (n *neighbour) await(t *testing.T, count int64) {
	t.Helper()
	for began := time.Now(); n.done.Load() < count; time.Sleep(badPause) {
		if err := n.failure(); err != nil || time.Since(began) > ringPatience {
			t.Fatalf("the neighbour did %d requests: %v", n.done.Load(), err)
		}
	}
}

func (n *neighbour) work(b *badBench) error {
	ctx := context.Background()
	client, err := connect(ctx, b.n, append(contextFor(b.instance(nil)), dul.ProposedContext{
		ID: 3, AbstractSyntax: dimse.StudyRootFind, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	}))
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		select {
		case <-n.quit:
			return client.Release(ctx)
		case <-time.After(badPause):
		}
		in := b.instance(nil)
		ctx, cancel := context.WithTimeout(ctx, badPatience)
		response, err := client.Store(ctx, dimse.StoreArgs{SOPClass: in.class, SOPInstance: in.uid, Syntax: in.syntax, Data: bytes.NewReader(in.data)})
		if err == nil && response.Status != dimse.StatusSuccess {
			err = fmt.Errorf("status %04XH %s", response.Status, response.ErrorComment)
		}
		if err != nil {
			cancel()
			return fmt.Errorf("store: %w", err)
		}
		n.done.Add(1)
		id := new(dicom.Dataset)
		id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
		id.SetStrings(dicom.StudyInstanceUID, in.study)
		found := 0
		for _, ferr := range client.Find(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootFind, Identifier: id}) {
			if found++; ferr != nil {
				err = ferr
			}
		}
		cancel()
		if err != nil || found != 1 {
			return fmt.Errorf("find: %d matches, %w", found, err)
		}
		n.done.Add(1)
	}
}

// residentOf is what a process has resident now.
func residentOf(t testing.TB, pid int) int64 {
	t.Helper()
	resetRSS(t, pid)
	return peakRSS(t, pid)
}

// storeWant sends in by C-STORE and wants one status. The data set goes out as it is; the command names in's UIDs.
func (b *badBench) storeWant(name string, in instance, want ...uint16) badCase {
	return badCase{"C-STORE " + name, func(ctx context.Context) error {
		response, err := store(ctx, b.n, in)
		if err != nil {
			return err
		}
		if !slices.Contains(want, response.Status) {
			return fmt.Errorf("status %04XH %q, want %04XH", response.Status, response.ErrorComment, want)
		}
		if strings.Contains(response.ErrorComment, badCanary) {
			return fmt.Errorf("the comment %q holds a name", response.ErrorComment)
		}
		return nil
	}}
}

// keptWant sends in by C-STORE, wants success, and reads the same bytes back by C-GET.
func (b *badBench) keptWant(name string, in instance) badCase {
	send := b.storeWant(name, in, dimse.StatusSuccess)
	return badCase{send.name, func(ctx context.Context) error {
		if err := send.do(ctx); err != nil {
			return err
		}
		got, err := get(ctx, b.n, in)
		if err == nil && !bytes.Equal(got, in.data) {
			err = fmt.Errorf("%d bytes came back, not the %d sent", len(got), len(in.data))
		}
		return err
	}}
}

// part10 is in as a file with the given preamble.
func part10(in instance, preamble string) []byte {
	file := dicom.AppendMeta(nil, in.class, in.uid, in.syntax, "2.25.1", "", "")
	copy(file, preamble)
	return append(file, in.data...)
}

// stowWant sends one file by STOW-RS and wants an HTTP code, and of a refused object its Failure Reason.
func (b *badBench) stowWant(name string, file []byte, code int, reason uint16) badCase {
	return badCase{"STOW-RS " + name, func(ctx context.Context) error {
		body := "--" + stowBoundary + "\r\nContent-Type: application/dicom\r\n\r\n" + string(file) + "\r\n--" + stowBoundary + "--\r\n"
		answer, err := b.request(ctx, "POST", "/dicom-web/studies", strings.NewReader(body), code,
			"Content-Type", `multipart/related; type="application/dicom"; boundary=`+stowBoundary)
		if err != nil || reason == 0 {
			return err
		}
		if want := fmt.Sprintf(`"00081197":{"vr":"US","Value":[%d]}`, reason); !bytes.Contains(answer, []byte(want)) {
			return fmt.Errorf("want Failure Reason %04XH: %.300s", reason, answer)
		}
		return nil
	}}
}

// getWant asks for a path and wants an HTTP code.
func (b *badBench) getWant(name, path string, code int) badCase {
	return badCase{"GET " + name, func(ctx context.Context) error {
		_, err := b.request(ctx, "GET", path, nil, code)
		return err
	}}
}

// request sends an HTTP request, checks code and the fields that keep browsers from running what they get, and
// returns the answer's body.
func (b *badBench) request(ctx context.Context, method, path string, body io.Reader, code int, fields ...string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+b.n.HTTP+path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/dicom+json")
	for i := 0; i+1 < len(fields); i += 2 {
		request.Header.Set(fields[i], fields[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != code {
		return answer, fmt.Errorf("HTTP %d, want %d: %.300s", response.StatusCode, code, answer)
	}
	h := response.Header
	if h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
		return answer, fmt.Errorf("HTTP %d without nosniff or content security policy", code)
	}
	return answer, nil
}

// The search of the log finds what it is there for.
func TestBadLine(t *testing.T) {
	for line, bad := range map[string]bool{
		`{"msg":"object refused","err":"UID is not valid"}`: false, `{"msg":"forged` + "\n": true, `{"msg":"a\nb"}`: true, `{"msg":"\u001b[31m"}`: true,
		`{"msg":"\u0000"}`: true, `{"msg":"` + strings.ToLower(badCanary) + `"}`: true, `{"msg":"\u202etxt"}`: true, `msg=x`: true, `{"a":{"b":"\r"}}`: true,
	} {
		if got := badLine([]byte(line)); (got != "") != bad {
			t.Errorf("%s: %q", line, got)
		}
	}
}
