package dicomweb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc"
	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/raft/catalog"
	"osteon/raft/ring"
	"osteon/raft/vault"
)

// soloRing applies what is proposed at once, as a ring of one voter does.
type soloRing struct {
	mu  sync.Mutex
	cat *catalog.Catalog
}

func (s *soloRing) Propose(_ context.Context, data []byte) (uint64, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := s.cat.Applied() + 1
	return index, s.cat.Apply([]ring.Entry{{Index: index, Term: 1, Data: data}})[0], nil
}

// newRealService is a Server over a real archive on a directory of its own.
func newRealService(t *testing.T) (*service, *dicomsvc.Archive) {
	return newRealServiceOn(t, vfs.Default)
}

// newRealServiceOn is newRealService with the bytes of objects on fs.
func newRealServiceOn(t *testing.T, fs vfs.FS) (*service, *dicomsvc.Archive) {
	t.Helper()
	dir := t.TempDir()
	ringID, _ := place.NewRingID(rand.Reader)
	id, _ := place.NewNodeID(rand.Reader)
	disk, _ := place.NewDiskID(rand.Reader)
	node := place.Node{ID: id, Name: "a1", Site: "a", Disk: disk, Live: true, Data: true}
	root, err := vault.CreateRootKeyFile(vfs.Default, dir+"/root.key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := vfs.Default.MkdirAll(dir+"/vault", 0o700); err != nil {
		t.Fatal(err)
	}
	keys, err := vault.Create(vault.Config{FS: vfs.Default, Dir: dir + "/vault", Ring: ringID, Root: root, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Open(catalog.Config{FS: keys.FS(), Dir: dir + "/catalog", MAC: keys.MAC, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	cat.SetProposer(&soloRing{cat: cat})
	topology := func() []place.Node { return []place.Node{node} }
	a, err := dicomsvc.Open(dicomsvc.Config{
		Ring: ringID, Self: id, Catalog: cat, Vault: keys, Topology: topology,
		Survive: func() place.Survive { return "" },
		Store: func(cb dicomsvc.Callbacks) (*erasure.Store, error) {
			return erasure.Open(erasure.Config{
				FS: fs, Dir: dir, Ring: ringID, Self: id, Site: "a", Disk: disk, Vault: keys, Topology: topology,
				Held:     func(k journal.Key, note []byte, from place.NodeID) { cb.Held(k, note, from) },
				BadShard: cb.BadShard, Now: time.Now, Rand: rand.Reader,
			})
		},
		Seal: dicomsvc.SealPolicy{Quiet: time.Hour, Old: time.Hour}, Now: time.Now, Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Run(t.Context())
	web, err := New(Config{Archive: a, Now: time.Now, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(web)
	t.Cleanup(func() {
		srv.Close()
		if err := errors.Join(a.Close(), cat.Close()); err != nil {
			t.Error(err)
		}
	})
	return &service{Server: srv, root: srv.URL + "/dicom-web"}, a
}

// TestRealArchive stores real objects of every kind of syntax, and finds and reads them journalled and
// again sealed.
//
// Behaviours 54, 55, 56, 57, 58, 59, 60, 62, 63.
func TestRealArchive(t *testing.T) {
	s, a := newRealService(t)
	files := map[string][]byte{} // by instance URL
	studies := map[string]bool{}
	names := []string{fileCT2, "dcmqi/liver.dcm", "dcmjs-dimse/pdf.dcm", "dcmjs-dimse/sr.dcm", "dcmjs/sample-op.dcm"}
	for _, name := range bySyntax {
		names = append(names, name)
	}
	for _, name := range names {
		f := corpusFile(t, name)
		r := s.stow(t, "/studies", multipartBody("XX", f))
		if r.StatusCode == 202 {
			continue // the same instance in another syntax: a further version
		}
		item := r.want(t, 200).object(t).items(t, "00081199")[0]
		files[item.first("00081190")] = f
		study, _, _ := strings.Cut(strings.TrimPrefix(item.first("00081190"), s.root+"/studies/"), "/")
		studies[study] = true
	}
	if len(files) < 6 {
		t.Fatalf("%d instances stored", len(files))
	}
	check := func(state string) {
		if n := len(s.get(t, "/studies").want(t, 200).list(t)); n != len(studies) {
			t.Errorf("%s: %d studies, want %d", state, n, len(studies))
		}
		if n := len(s.get(t, "/instances").want(t, 200).list(t)); n != len(files) {
			t.Errorf("%s: %d instances, want %d", state, n, len(files))
		}
		for url, f := range files {
			body, syntax := dataset(t, f)
			parts := s.get(t, url, "Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`).want(t, 200).pieces(t)
			if got, said := dataset(t, parts[0].body); !bytes.Equal(got, body) || said != syntax {
				t.Errorf("%s: %s came back different", state, url)
			}
			if explicitable(syntax) {
				if _, said := dataset(t, s.get(t, url, "Accept", "application/dicom").want(t, 200).body); said != dicom.ExplicitVRLittleEndian {
					t.Errorf("%s: %s rewritten in %s", state, url, said)
				}
			}
			meta := s.get(t, url+"/metadata").want(t, 200).list(t)[0]
			if uri := meta["7FE00010"].BulkDataURI; uri != "" {
				s.get(t, uri, "Accept", "*/*").want(t, 200)
				s.get(t, url+"/frames/1").want(t, 200).pieces(t)
			}
			study, rest, _ := strings.Cut(strings.TrimPrefix(url, s.root+"/studies/"), "/series/")
			series, instance, _ := strings.Cut(rest, "/instances/")
			found := s.get(t, "/instances?StudyInstanceUID="+study+"&SeriesInstanceUID="+series+"&SOPInstanceUID="+instance).want(t, 200).list(t)
			if len(found) != 1 || found[0].first("00081190") != url || found[0].first("00080016") != meta.first("00080016") {
				t.Errorf("%s: %d results for %s", state, len(found), url)
			}
			if found := s.get(t, "/studies?PatientID="+strings.ReplaceAll(meta.first("00100020"), " ", "%20")+"&includefield=all&StudyInstanceUID="+study).want(t, 200).list(t); len(found) != 1 {
				t.Errorf("%s: %d studies of the patient of %s", state, len(found), url)
			}
			// Identical bytes again are a success and no second instance (63).
			s.stow(t, "/studies/"+study, multipartBody("XX", f)).want(t, 200)
		}
		// Pages follow each other without gap or repetition (59).
		var pages, whole []string
		for offset := 0; offset < len(files)+2; offset += 2 {
			for _, found := range s.get(t, "/instances?limit=2&offset="+strconv.Itoa(offset)).want(t, 200).list(t) {
				pages = append(pages, found.first("00081190"))
			}
		}
		for _, found := range s.get(t, "/instances").want(t, 200).list(t) {
			whole = append(whole, found.first("00081190"))
		}
		if !slices.Equal(pages, whole) {
			t.Errorf("%s: pages %q, the whole list %q", state, pages, whole)
		}
		s.get(t, "/studies?PatientName=Nobody*&StudyDate=19000101-19000102").want(t, 200).list(t)
		s.get(t, "/studies/1.2.3/metadata").want(t, 404)
	}
	check("journalled")
	for study := range studies {
		if err := a.SealNow(t.Context(), study); err != nil {
			t.Fatal(err)
		}
	}
	check("sealed")
	a.Drain()
	for _, f := range files {
		s.stow(t, "/studies", multipartBody("XX", f)).want(t, 503)
		break
	}
}

// countingFS counts what is read of journals and shards.
type countingFS struct {
	vfs.FS
	read *atomic.Int64
}

func (c countingFS) count(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.Contains(name, "shards") && !strings.Contains(name, "journal") {
		return f, err
	}
	return countingFile{f, c.read}, nil
}

func (c countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	return c.count(name, f, err)
}

func (c countingFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.OpenReadWrite(name, category, opts...)
	return c.count(name, f, err)
}

type countingFile struct {
	vfs.File
	read *atomic.Int64
}

func (f countingFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.read.Add(int64(n))
	return n, err
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.read.Add(int64(n))
	return n, err
}

// TestSeriesMetadataReadsNoPixels: the metadata of a sealed series come out of its pack's directory.
//
// Behaviour 61.
func TestSeriesMetadataReadsNoPixels(t *testing.T) {
	var read atomic.Int64
	s, a := newRealServiceOn(t, countingFS{vfs.Default, &read})
	const slices, pixels = 30, 256 << 10
	for i := range slices {
		meta := imageJSON(fmt.Sprintf("1.2.3.%d", i+1), bulk("7FE00010", "OW", "a"))
		meta = strings.NewReplacer(`"00280010":{"vr":"US","Value":[2]}`, `"00280010":{"vr":"US","Value":[512]}`, `"00280011":{"vr":"US","Value":[2]}`, `"00280011":{"vr":"US","Value":[256]}`).Replace(meta)
		noise := make([]byte, pixels)
		rand.Read(noise)
		var body mixed
		body.part([]byte(meta), "Content-Type", mediaDICOMJSON).part(noise, "Content-Location", "a")
		s.stowMixed(t, "/studies", mediaDICOMJSON, body.end()).want(t, 200)
	}
	if err := a.SealNow(t.Context(), "1.2"); err != nil {
		t.Fatal(err)
	}
	read.Store(0)
	if list := s.get(t, "/studies/1.2/series/1.2.3/metadata").want(t, 200).list(t); len(list) != slices {
		t.Fatalf("%d instances", len(list))
	}
	if n := read.Load(); n > slices*pixels/10 || n == 0 {
		t.Errorf("%d KiB were read for the metadata of %d KiB", n>>10, slices*pixels>>10)
	}
	read.Store(0)
	s.get(t, "/studies/1.2/series/1.2.3/instances/1.2.3.1/frames/1").want(t, 200)
	if n := read.Load(); n < pixels {
		t.Errorf("%d KiB counted for a frame of %d KiB", n>>10, pixels>>10)
	}
}
