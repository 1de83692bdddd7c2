package dicomweb

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
)

// fakeArchive holds objects in memory; its hooks put faults where a real archive has none to order.
type fakeArchive struct {
	mu    sync.Mutex
	items []*fakeItem

	ready     error
	put       func(n int) error // before the n-th object, from 0, is stored
	open      func(n int) error // before the n-th object is opened
	cut       int64             // WriteTo and Section of every object end here with ErrCorrupt; 0: never
	search    func(n int) error // before the n-th match
	deny      func(dicomsvc.Principal, dicomsvc.Action) bool
	principal []dicomsvc.Principal // of every call
	puts      int
	opens     int
	discard   bool // Put reads and forgets pixel data
}

type fakeItem struct {
	in      *dicomsvc.Instance
	data    []byte
	set     *dicom.Dataset
	frames  *dicom.FrameTable
	facts   dicom.Facts
	virtual int64 // length of a made up object, whose bytes are zeros
}

func (a *fakeArchive) Ready() error { return a.ready }

func (a *fakeArchive) Authorize(_ context.Context, p dicomsvc.Principal, act dicomsvc.Action) error {
	if a.deny != nil && a.deny(p, act) {
		return fmt.Errorf("%s: %w", act, dicomsvc.ErrDenied)
	}
	return nil
}

func (a *fakeArchive) saw(p dicomsvc.Principal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.principal = append(a.principal, p)
}

func (a *fakeArchive) Put(ctx context.Context, req dicomsvc.PutRequest) (dicomsvc.PutResult, error) {
	a.saw(req.Principal)
	var result dicomsvc.PutResult
	var data bytes.Buffer
	body := io.Reader(io.TeeReader(req.Body, &data))
	if a.discard {
		body = req.Body
	}
	scanner := dicom.NewScanner(body, req.TransferSyntaxUID, dicom.Limits{})
	header, err := scanner.Header()
	if err != nil {
		return result, fmt.Errorf("%w: %w", dicomsvc.ErrMalformed, err)
	}
	facts, err := dicom.ExtractFacts(header)
	if err != nil {
		return result, fmt.Errorf("%w: %w", dicomsvc.ErrMalformed, err)
	}
	result = dicomsvc.PutResult{
		SOPClassUID: facts.SOPClassUID, SOPInstanceUID: facts.SOPInstanceUID,
		StudyInstanceUID: facts.StudyInstanceUID, SeriesInstanceUID: facts.SeriesInstanceUID,
	}
	if req.StudyInstanceUID != "" && req.StudyInstanceUID != facts.StudyInstanceUID {
		return result, fmt.Errorf("%w: Study Instance UID differs", dicomsvc.ErrMismatch)
	}
	a.mu.Lock()
	n := a.puts
	a.puts++
	a.mu.Unlock()
	if a.put != nil {
		if err := a.put(n); err != nil {
			return result, err
		}
	}
	if err := scanner.Rest(); err != nil {
		return result, fmt.Errorf("%w: %w", dicomsvc.ErrMalformed, err)
	}
	result.Size, result.Digest = int64(data.Len()), sha256.Sum256(data.Bytes())
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, it := range a.items {
		if it.in.SOPInstanceUID == facts.SOPInstanceUID {
			result.Outcome = dicomsvc.OutcomeFurtherVersion
			if it.in.Digest == result.Digest {
				result.Outcome = dicomsvc.OutcomeIdentical
			}
			return result, nil
		}
	}
	a.items = append(a.items, &fakeItem{
		in: &dicomsvc.Instance{
			SOPInstanceUID: facts.SOPInstanceUID, SOPClassUID: facts.SOPClassUID,
			StudyInstanceUID: facts.StudyInstanceUID, SeriesInstanceUID: facts.SeriesInstanceUID,
			TransferSyntaxUID: req.TransferSyntaxUID, Size: result.Size, Digest: result.Digest, Frames: facts.Frames,
		},
		data: data.Bytes(), set: scanner.Dataset(), frames: scanner.Frames(), facts: facts,
	})
	return result, nil
}

func (a *fakeArchive) chosen(sel dicomsvc.Selection) []*fakeItem {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := func(list []string, s string) bool { return len(list) == 0 || slices.Contains(list, s) }
	var out []*fakeItem
	for _, it := range a.items {
		if in(sel.StudyInstanceUIDs, it.in.StudyInstanceUID) && in(sel.SeriesInstanceUIDs, it.in.SeriesInstanceUID) &&
			in(sel.SOPInstanceUIDs, it.in.SOPInstanceUID) {
			out = append(out, it)
		}
	}
	return out
}

func (a *fakeArchive) Instances(ctx context.Context, p dicomsvc.Principal, sel dicomsvc.Selection) iter.Seq2[*dicomsvc.Instance, error] {
	a.saw(p)
	return func(yield func(*dicomsvc.Instance, error) bool) {
		for _, it := range a.chosen(sel) {
			if !yield(it.in, nil) {
				return
			}
		}
	}
}

func (a *fakeArchive) Headers(ctx context.Context, p dicomsvc.Principal, sel dicomsvc.Selection) iter.Seq2[*dicomsvc.Described, error] {
	a.saw(p)
	return func(yield func(*dicomsvc.Described, error) bool) {
		for _, it := range a.chosen(sel) {
			if !yield(&dicomsvc.Described{Instance: it.in, Header: it.set}, nil) {
				return
			}
		}
	}
}

func (a *fakeArchive) item(in *dicomsvc.Instance) *fakeItem {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.items[slices.IndexFunc(a.items, func(it *fakeItem) bool { return it.in.SOPInstanceUID == in.SOPInstanceUID })]
}

func (a *fakeArchive) Frames(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (*dicom.FrameTable, error) {
	return a.item(in).frames, nil
}

func (a *fakeArchive) Open(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (object, error) {
	a.mu.Lock()
	n := a.opens
	a.opens++
	a.mu.Unlock()
	if a.open != nil {
		if err := a.open(n); err != nil {
			return nil, err
		}
	}
	return &fakeObject{item: a.item(in), cut: a.cut}, nil
}

type fakeObject struct {
	item *fakeItem
	cut  int64
}

func (o *fakeObject) Size() int64  { return max(int64(len(o.item.data)), o.item.virtual) }
func (o *fakeObject) Close() error { return nil }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, dicomsvc.ErrCorrupt }

func (o *fakeObject) limited(r io.Reader, n int64) io.Reader {
	if o.cut > 0 && n > o.cut {
		return io.MultiReader(io.LimitReader(r, o.cut), failing{})
	}
	return r
}

func (o *fakeObject) WriteTo(w io.Writer) (int64, error) {
	var src io.Reader = bytes.NewReader(o.item.data)
	if o.item.virtual > 0 {
		src = io.LimitReader(zeros{}, o.item.virtual)
	}
	return io.Copy(w, o.limited(src, o.Size()))
}

func (o *fakeObject) Section(off, n int64) io.Reader {
	if dicom.SyntaxOf(o.item.in.TransferSyntaxUID).Deflated {
		plain := inflate(o.item.data)
		return o.limited(io.NewSectionReader(bytes.NewReader(plain), off, n), n)
	}
	return o.limited(io.NewSectionReader(bytes.NewReader(o.item.data), off, n), n)
}

// Search knows no more of matching than these tests need: values are compared as they are, a star at the
// end matches anything behind it.
func (a *fakeArchive) Search(ctx context.Context, p dicomsvc.Principal, q *dicomsvc.Query) iter.Seq2[*dicomsvc.Match, error] {
	a.saw(p)
	return func(yield func(*dicomsvc.Match, error) bool) {
		seen := map[string]bool{}
		skip, n := q.Offset, 0
		items := a.chosen(dicomsvc.Selection{})
		slices.SortStableFunc(items, func(x, y *fakeItem) int {
			return cmp.Compare(x.in.StudyInstanceUID+x.in.SeriesInstanceUID, y.in.StudyInstanceUID+y.in.SeriesInstanceUID)
		})
		for _, it := range items {
			m, id := it.match(q.Level)
			if seen[id] || !matchesAll(m.Attributes, q.Keys) {
				continue
			}
			seen[id] = true
			if skip > 0 {
				skip--
				continue
			}
			if q.Limit > 0 && n == q.Limit {
				return
			}
			var err error
			if a.search != nil {
				err = a.search(n)
			}
			n++
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

func matchesAll(d *dicom.Dataset, keys []dicomsvc.Key) bool {
	for _, k := range keys {
		if len(k.Item) > 0 {
			el := d.Get(k.Tag)
			if el == nil || !slices.ContainsFunc(el.Items, func(item *dicom.Dataset) bool { return matchesAll(item, k.Item) }) {
				return false
			}
			continue
		}
		if len(k.Values) > 0 && !slices.ContainsFunc(k.Values, func(v string) bool {
			front, star := bytes.CutSuffix([]byte(v), []byte("*"))
			have := d.String(k.Tag)
			return have == v || star && bytes.HasPrefix([]byte(have), front)
		}) {
			return false
		}
	}
	return true
}

func (it *fakeItem) match(level dicomsvc.Level) (*dicomsvc.Match, string) {
	d := &dicom.Dataset{}
	add := func(from *dicom.Dataset) {
		for _, el := range from.Clone().Elements {
			d.Set(el)
		}
	}
	add(it.facts.Patient)
	add(it.facts.Study)
	m := &dicomsvc.Match{Attributes: d, StudyInstanceUID: it.in.StudyInstanceUID}
	id := it.in.StudyInstanceUID
	if level >= dicomsvc.LevelSeries {
		add(it.facts.Series)
		m.SeriesInstanceUID = it.in.SeriesInstanceUID
		id = it.in.SeriesInstanceUID
	}
	if level >= dicomsvc.LevelImage {
		add(it.facts.Instance)
		m.SOPInstanceUID = it.in.SOPInstanceUID
		id = it.in.SOPInstanceUID
	}
	return m, id
}

// corpusDir is where the real files are.
const corpusDir = "../../../shared/corpus"

// corpusFile reads a real file, or skips the test where the corpus is not at hand.
func corpusFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(corpusDir, name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("corpus file %s is not here", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// service is a Server over a fake archive, listening on loopback.
type service struct {
	*httptest.Server
	archive *fakeArchive
	root    string

	dial      sync.Once
	transport *http.Transport
}

func newService(t testing.TB, change func(*Config, *fakeArchive)) *service {
	t.Helper()
	cfg := Config{Now: time.Now, Rand: rand.Reader}
	a := &fakeArchive{}
	if change != nil {
		change(&cfg, a)
	}
	srv := httptest.NewServer(newServer(cfg, a))
	t.Cleanup(srv.Close)
	return &service{Server: srv, archive: a, root: srv.URL + "/dicom-web"}
}

// load puts corpus files into the fake archive without going through HTTP.
func (s *service) load(t testing.TB, names ...string) []*dicomsvc.Instance {
	t.Helper()
	var out []*dicomsvc.Instance
	for _, name := range names {
		_, syntax, body, err := dicom.ReadPart10(bytes.NewReader(corpusFile(t, name)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		res, err := s.archive.Put(t.Context(), dicomsvc.PutRequest{TransferSyntaxUID: syntax, Body: body})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, s.archive.item(&dicomsvc.Instance{SOPInstanceUID: res.SOPInstanceUID}).in)
	}
	return out
}

// corpusNames lists the real files.
func corpusNames(t testing.TB) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(corpusDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) != ".tsv" {
			path, err = filepath.Rel(corpusDir, path)
			names = append(names, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no corpus here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return names
}
