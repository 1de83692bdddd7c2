package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"osteon/dicomsvc/dicom"
	"osteon/dicomsvc/dimse"
	"osteon/dicomsvc/dul"
	"osteon/node"
)

var bigBytes = flag.Int64("bigbytes", 2<<30, "bytes of each of the two objects of TestMemoryStaysBounded")

// nodeRSSMax is what a node may have resident while an object of any size passes through (design P9).
const nodeRSSMax = 400 << 20

// frameBytes is one frame of a bigInstance: 1024 x 1024 of 16 bits.
const frameBytes = 2 << 20

// bigInstance is an Enhanced CT of any number of frames that exists nowhere as a whole: reader makes its
// bytes, always the same ones.
type bigInstance struct {
	instance
	head   []byte // the data set up to the value of the pixel data
	frames int
	noise  []byte // one frame; each frame begins with its number
}

func newBigInstance(study int, size int64) *bigInstance {
	b := &bigInstance{frames: int(size / frameBytes), noise: make([]byte, frameBytes)}
	b.class, b.syntax = "1.2.840.10008.5.1.4.1.1.2.1", dicom.ExplicitVRLittleEndian
	b.study = fmt.Sprintf("2.25.%d", 7_000_000+study)
	b.series, b.uid = b.study+".1", b.study+".1.1"
	var seed [32]byte
	seed[0] = byte(study)
	rand.NewChaCha8(seed).Read(b.noise)
	d := new(dicom.Dataset)
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: b.class, dicom.SOPInstanceUID: b.uid, dicom.StudyInstanceUID: b.study,
		dicom.SeriesInstanceUID: b.series, dicom.Modality: "CT", dicom.PatientID: "BIG", dicom.PatientName: "Big^Study",
		dicom.StudyDate: "20250102", dicom.NumberOfFrames: fmt.Sprint(b.frames), dicom.PhotometricInterpretation: "MONOCHROME2",
	} {
		d.SetStrings(tag, value)
	}
	for tag, value := range map[dicom.Tag]uint16{
		dicom.Rows: 1024, dicom.Columns: 1024, dicom.BitsAllocated: 16, dicom.BitsStored: 16, dicom.HighBit: 15,
		dicom.PixelRepresentation: 0, dicom.SamplesPerPixel: 1,
	} {
		d.Set(dicom.Element{Tag: tag, VR: dicom.US, Value: binary.LittleEndian.AppendUint16(nil, value)})
	}
	head, err := d.Encode(nil, b.syntax)
	if err != nil {
		panic(err) // the data set is our own
	}
	head = append(head, 0xE0, 0x7F, 0x10, 0x00, 'O', 'W', 0, 0)
	b.head = binary.LittleEndian.AppendUint32(head, uint32(b.frames*frameBytes))
	return b
}

func (b *bigInstance) size() int64 { return int64(len(b.head)) + int64(b.frames)*frameBytes }

// frame returns the bytes of frame n, counted from 0, which are valid until the next call.
func (b *bigInstance) frame(n int) []byte {
	binary.LittleEndian.PutUint64(b.noise, uint64(n))
	return b.noise
}

// reader returns the whole data set as a stream. One is read at a time.
func (b *bigInstance) reader() io.Reader {
	return io.MultiReader(bytes.NewReader(b.head), &frameReader{b: b})
}

type frameReader struct {
	b    *bigInstance
	next int
	left []byte
}

func (r *frameReader) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.next == r.b.frames {
			return 0, io.EOF
		}
		r.left = r.b.frame(r.next)
		r.next++
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// storeBig sends b by C-STORE and remembers the digest of what went out.
func storeBig(ctx context.Context, n *testNode, b *bigInstance) error {
	client, err := connect(ctx, n, contextFor(b.instance))
	if err != nil {
		return err
	}
	defer client.Close()
	hash := sha256.New()
	response, err := client.Store(ctx, dimse.StoreArgs{
		SOPClass: b.class, SOPInstance: b.uid, Syntax: b.syntax, Data: io.TeeReader(b.reader(), hash),
	})
	if err != nil {
		return err
	}
	if response.Status != dimse.StatusSuccess {
		return fmt.Errorf("C-STORE status %04XH %s", response.Status, response.ErrorComment)
	}
	hash.Sum(b.digest[:0])
	return client.Release(ctx)
}

const stowBoundary = "part-of-the-test"

// stowBig sends b by STOW-RS in one chunked request and remembers the digest of its data set.
func stowBig(ctx context.Context, n *testNode, b *bigInstance) error {
	hash := sha256.New()
	meta := dicom.AppendMeta(nil, b.class, b.uid, b.syntax, "2.25.1", "", "")
	body := io.MultiReader(
		strings.NewReader("--"+stowBoundary+"\r\nContent-Type: application/dicom\r\n\r\n"), bytes.NewReader(meta),
		io.TeeReader(b.reader(), hash), strings.NewReader("\r\n--"+stowBoundary+"--\r\n"))
	request, err := http.NewRequestWithContext(ctx, "POST", "http://"+n.HTTP+"/dicom-web/studies", body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", `multipart/related; type="application/dicom"; boundary=`+stowBoundary)
	request.Header.Set("Accept", "application/dicom+json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("STOW-RS answered %s: %s", response.Status, answer)
	}
	hash.Sum(b.digest[:0])
	return err
}

// wadoBig retrieves b by WADO-RS in its stored syntax and compares the digest.
func wadoBig(ctx context.Context, n *testNode, b *bigInstance) error {
	url := "http://" + n.HTTP + "/dicom-web/studies/" + b.study + "/series/" + b.series + "/instances/" + b.uid
	parts, closeBody, err := getMultipart(ctx, url, `multipart/related; type="application/dicom"; transfer-syntax=*`)
	if err != nil {
		return err
	}
	defer closeBody()
	part, err := parts.NextRawPart()
	if err != nil {
		return err
	}
	_, syntax, body, err := dicom.ReadPart10(part)
	if err != nil {
		return err
	}
	if syntax != b.syntax {
		return fmt.Errorf("retrieved in syntax %s", syntax)
	}
	if err := b.check(body); err != nil {
		return err
	}
	if _, err := parts.NextRawPart(); err != io.EOF {
		return fmt.Errorf("after the instance: %v, want the end", err)
	}
	return nil
}

// wadoFrame retrieves one frame, numbered from 0, and compares its bytes.
func wadoFrame(ctx context.Context, n *testNode, b *bigInstance, number int) error {
	url := fmt.Sprintf("http://%s/dicom-web/studies/%s/series/%s/instances/%s/frames/%d", n.HTTP, b.study, b.series, b.uid, number+1)
	parts, closeBody, err := getMultipart(ctx, url, `multipart/related; type="application/octet-stream"; transfer-syntax=*`)
	if err != nil {
		return err
	}
	defer closeBody()
	part, err := parts.NextRawPart()
	if err != nil {
		return err
	}
	got, err := io.ReadAll(part)
	if err == nil && !bytes.Equal(got, b.frame(number)) {
		err = fmt.Errorf("frame %d: %d bytes are not those sent", number, len(got))
	}
	return err
}

func getMultipart(ctx context.Context, url, accept string) (*multipart.Reader, func() error, error) {
	request, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Accept", accept)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	_, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if response.StatusCode != http.StatusOK || err != nil {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return nil, nil, fmt.Errorf("%s answered %s: %s", url, response.Status, text)
	}
	return multipart.NewReader(response.Body, params["boundary"]), response.Body.Close, nil
}

// getBig retrieves b by C-GET and compares the digest.
func getBig(ctx context.Context, n *testNode, b *bigInstance) error {
	contexts := append(contextFor(b.instance), dul.ProposedContext{
		ID: 3, AbstractSyntax: dimse.StudyRootGet, TransferSyntaxes: []string{dicom.ExplicitVRLittleEndian},
	})
	client, err := connect(ctx, n, contexts, dul.Role{SOPClass: b.class, SCP: true})
	if err != nil {
		return err
	}
	defer client.Close()
	id := new(dicom.Dataset)
	id.SetStrings(dicom.QueryRetrieveLevel, "STUDY")
	id.SetStrings(dicom.StudyInstanceUID, b.study)
	checked := errMissing
	response, err := client.Get(ctx, dimse.QueryArgs{SOPClass: dimse.StudyRootGet, Identifier: id},
		func(_ context.Context, sub *dimse.StoreRequest) dimse.StoreResponse {
			checked = b.check(sub.Data)
			return dimse.StoreResponse{Status: dimse.StatusSuccess}
		}, nil)
	switch {
	case err != nil:
		return err
	case response.Status != dimse.StatusSuccess:
		return fmt.Errorf("C-GET ended with %04XH %q", response.Status, response.ErrorComment)
	}
	return errors.Join(checked, client.Release(ctx))
}

// check reads a retrieved data set to its end and compares it with what was sent.
func (b *bigInstance) check(r io.Reader) error {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	switch {
	case err != nil:
		return err
	case n != b.size() || [sha256.Size]byte(hash.Sum(nil)) != b.digest:
		return fmt.Errorf("%d bytes came back, not the %d sent", n, b.size())
	}
	return nil
}

// peakRSS returns the most that a process had resident since resetRSS.
func peakRSS(t testing.TB, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib int64
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}

func resetRSS(t testing.TB, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
		t.Fatal(err)
	}
}

// A node's resident memory does not grow with the objects that pass through it: 2 GB in by C-STORE and
// 2 GB by STOW-RS, one of them sealed, and out by WADO-RS and C-GET at the node that has to ask the
// others for all of it.
func TestMemoryStaysBounded(t *testing.T) {
	size := *bigBytes
	if testing.Short() {
		size = 256 << 20
	}
	dir := t.TempDir()
	for _, id := range []string{"a1", "b1", "c1"} { // only what the test asks for is sealed
		writeDevConfig(t, dir, id, func(c *node.Config) { c.Seal.Bytes = 1 << 40 })
	}
	r := startRingIn(t, dir, 3, 1, "--seal-quiet", "1h")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	first, second := newBigInstance(1, size), newBigInstance(2, size)
	step := func(what string, run func() error) {
		t.Helper()
		for _, n := range r.nodes {
			resetRSS(t, n.PID)
		}
		began := time.Now()
		if err := run(); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, r.logs())
		}
		line := fmt.Sprintf("%-14s %5.1f s ", what, time.Since(began).Seconds())
		for _, n := range r.nodes {
			peak := peakRSS(t, n.PID)
			line += fmt.Sprintf("  %s %d MB", n.ID, peak>>20)
			if peak > nodeRSSMax {
				t.Errorf("%s: node %s had %d MB resident, want at most %d", what, n.ID, peak>>20, nodeRSSMax>>20)
				r.keepHeap(n, what)
			}
		}
		t.Log(line)
	}
	step("C-STORE", func() error { return storeBig(ctx, r.nodes[0], first) })
	step("STOW-RS", func() error { return stowBig(ctx, r.nodes[1], second) })
	without := func(big *bigInstance) *testNode { // the node that holds no copy
		report := r.awaitStudy(r.nodes[2], big.study)
		if report.Bytes != big.size() || len(report.Versions) != 1 {
			t.Fatalf("study report: %d bytes in %d versions, want %d in one", report.Bytes, len(report.Versions), big.size())
		}
		for _, n := range r.nodes {
			if !slices.Contains(report.Versions[0].Holders, n.ID) {
				r.awaitStudy(n, big.study) // holders know it before the catalog does
				return n
			}
		}
		t.Fatalf("every node holds the study: %v", report.Versions[0].Holders)
		return nil
	}
	step("C-GET", func() error { return getBig(ctx, without(second), second) })
	reader := without(first)
	step("seal", func() error { return reader.admin().Seal(ctx, first.study) })
	if report := r.awaitStudy(reader, first.study); report.State != "sealed" {
		t.Errorf("study is %s after sealing", report.State)
	}
	step("WADO-RS", func() error { return wadoBig(ctx, reader, first) })
	step("WADO-RS frame", func() error { return wadoFrame(ctx, reader, first, first.frames-1) })
}

// writeDevConfig writes the configuration that `osteon dev` finds for one of its nodes.
func writeDevConfig(t testing.TB, dir, id string, change func(*node.Config)) {
	t.Helper()
	cfg := node.Config{Dir: filepath.Join(dir, id)}
	for _, listen := range []*string{&cfg.DIMSE.Listen, &cfg.HTTP.Listen, &cfg.Link.Listen} {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		*listen = fmt.Sprintf("127.0.0.1:%d", port)
	}
	change(&cfg)
	raw, err := yaml.Marshal(cfg)
	if err == nil {
		err = os.WriteFile(cfg.Dir+".yaml", raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitStudy waits until a node's catalog knows the study.
func (r *testRing) awaitStudy(n *testNode, study string) (report node.StudyReport) {
	r.t.Helper()
	r.eventually("study known at "+n.ID, func() bool {
		var err error
		report, err = n.admin().Study(context.Background(), study)
		return err == nil
	})
	return report
}

// keepHeap writes a node's heap profile beside its log, for whoever looks into a failure.
func (r *testRing) keepHeap(n *testNode, what string) {
	client := adminHTTP(n)
	defer client.CloseIdleConnections()
	response, err := client.Get("http://node/debug/pprof/heap")
	if err != nil {
		r.t.Logf("heap profile of %s: %v", n.ID, err)
		return
	}
	defer response.Body.Close()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("osteon-heap-%s-%s.pprof", n.ID, strings.ReplaceAll(what, " ", "-")))
	raw, err := io.ReadAll(response.Body)
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	r.t.Logf("heap profile of %s: %s %v", n.ID, path, err)
}

// adminHTTP returns a client for paths of the node's admin socket that node.Admin has no call for.
func adminHTTP(n *testNode) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", node.AdminSocket(n.Dir))
		},
	}}
}
