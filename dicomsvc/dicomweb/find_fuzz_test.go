package dicomweb

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// found is one match: the instance, the series or the study, by its UIDs.
type found struct{ study, series, instance string }

// FuzzSearchFinds asks a catalog what a query string asks for, in each resource, and holds the answer against a full scan: every
// study, series or instance that is there is asked for by its own UID with the same keys, so that no index of the query's plan takes part.
func FuzzSearchFinds(f *testing.F) {
	for _, seed := range []string{
		"PatientName=M*", "PatientID=P1&StudyDate=20260102-", "StudyDate=-20260103&ModalitiesInStudy=CT", "Modality=SR", "00100010=*ANNA*",
		"StudyInstanceUID=1.2.1,1.2.3&SeriesNumber=2", "SOPInstanceUID=1.2.1.1.1", "SeriesInstanceUID=1.2.2.1&InstanceNumber=1", "AccessionNumber=A2",
		"NumberOfStudyRelatedInstances=4", "PatientID=*", "StudyDescription=?horax&offset=1", "PatientName=M%C3%BCller1%5EAnna", "StudyDate=20260101\\20260102",
	} {
		f.Add(seed)
	}
	cat := fuzzCatalog(f)
	f.Fuzz(func(t *testing.T, raw string) {
		params, bad := parseQuery(raw)
		if bad != nil {
			return
		}
		for _, res := range []resource{resStudies, resSeries, resInstances} {
			q, bad := parseSearch(target{resource: res}, params)
			if bad != nil {
				return
			}
			q.query.Offset = 0 // of an order that is the plan's own
			got, err := findAll(cat, q.query)
			if err != nil {
				continue // refused as a whole
			}
			every, err := findAll(cat, catalog.Query{Level: q.query.Level, Relational: true})
			if err != nil {
				t.Fatal(err)
			}
			var want []found
			for _, e := range every {
				alone, err := findAll(cat, catalog.Query{Level: q.query.Level, Relational: true, Keys: append(uidKeys(e), q.query.Keys...)})
				if err != nil || len(alone) > 1 {
					t.Fatalf("%q: %d matches of one, %v", raw, len(alone), err)
				}
				want = append(want, alone...)
			}
			if !slices.Equal(sortedFinds(got), sortedFinds(want)) {
				t.Fatalf("%q, %s: found %v, a scan finds %v", raw, res, got, want)
			}
		}
	})
}

func sortedFinds(list []found) []found {
	slices.SortFunc(list, func(a, b found) int {
		return slices.Compare([]string{a.study, a.series, a.instance}, []string{b.study, b.series, b.instance})
	})
	return list
}

func findAll(cat *catalog.Catalog, q catalog.Query) (list []found, err error) {
	for m, err := range cat.Search(context.Background(), catalog.Principal{}, &q) {
		if err != nil {
			return nil, err
		}
		one := found{study: m.StudyInstanceUID}
		if q.Level >= catalog.LevelSeries {
			one.series = m.SeriesInstanceUID
		}
		if q.Level == catalog.LevelImage {
			one.instance = m.SOPInstanceUID
		}
		list = append(list, one)
	}
	return list, nil
}

// uidKeys are the keys that name one match and nothing else.
func uidKeys(e found) []catalog.Key {
	keys := []catalog.Key{{Tag: dicom.StudyInstanceUID, VR: dicom.UI, Values: []string{e.study}}}
	if e.series != "" {
		keys = append(keys, catalog.Key{Tag: dicom.SeriesInstanceUID, VR: dicom.UI, Values: []string{e.series}})
	}
	if e.instance != "" {
		keys = append(keys, catalog.Key{Tag: dicom.SOPInstanceUID, VR: dicom.UI, Values: []string{e.instance}})
	}
	return keys
}

// fuzzCatalog holds three studies of two patients, and one without patient, date and accession number.
func fuzzCatalog(f *testing.F) *catalog.Catalog {
	f.Helper()
	mac := func(label string, parts ...[]byte) [32]byte {
		h := sha256.New()
		for _, p := range append([][]byte{[]byte(label)}, parts...) {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
		return [32]byte(h.Sum(nil))
	}
	cat, err := catalog.Open(catalog.Config{FS: vfs.NewMem(), Dir: "catalog", MAC: mac, CacheBytes: 96 << 20, Now: time.Now})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := cat.Close(); err != nil {
			f.Error(err)
		}
	})
	cat.SetProposer(&soloRing{cat: cat})
	var add catalog.Add
	for study := 1; study <= 4; study++ {
		for n := range 4 {
			add.Items = append(add.Items, fuzzItem(f, study, 1+n/2, 1+n%2))
		}
	}
	results, _, err := cat.Do(context.Background(), catalog.Principal{}, add)
	if err != nil {
		f.Fatal(err, results)
	}
	if all, err := findAll(cat, catalog.Query{Level: catalog.LevelImage, Relational: true}); err != nil || len(all) != len(add.Items) {
		f.Fatalf("%d instances of %d in the catalog, %v", len(all), len(add.Items), err)
	}
	return cat
}

func fuzzItem(f *testing.F, study, series, n int) catalog.AddItem {
	f.Helper()
	encode := func(d *dicom.Dataset) []byte {
		b, err := d.Encode(nil, dicom.ExplicitVRLittleEndian)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	var patient, inStudy, inSeries, own dicom.Dataset
	studyUID := fmt.Sprintf("1.2.%d", study)
	seriesUID := fmt.Sprintf("%s.%d", studyUID, series)
	in := catalog.Instance{
		SOPInstanceUID: fmt.Sprintf("%s.%d", seriesUID, n), SOPClassUID: "1.2.840.10008.5.1.4.1.1.2", TransferSyntaxUID: dicom.ExplicitVRLittleEndian,
		StudyInstanceUID: studyUID, SeriesInstanceUID: seriesUID, Size: 1000, PixelOffset: 900, Frames: 1,
		ReceivedAt: time.Unix(int64(study), 0), ReceivedBy: place.NodeID{1}, CallingAE: "CT1",
	}
	in.Digest = sha256.Sum256([]byte(in.SOPInstanceUID))
	if study < 4 {
		in.PatientKey.ID = fmt.Sprintf("P%d", study%2)
		patient.SetStrings(dicom.PatientID, in.PatientKey.ID)
		patient.SetStrings(dicom.PatientName, fmt.Sprintf("Müller%d^Anna", study%2))
		inStudy.SetStrings(dicom.StudyDate, fmt.Sprintf("2026010%d", study))
		inStudy.SetStrings(dicom.AccessionNumber, fmt.Sprintf("A%d", study))
	}
	inStudy.SetStrings(dicom.StudyInstanceUID, studyUID)
	inStudy.SetStrings(dicom.StudyDescription, "Thorax")
	inSeries.SetStrings(dicom.SeriesInstanceUID, seriesUID)
	inSeries.SetStrings(dicom.Modality, []string{"CT", "SR"}[series*study%2])
	inSeries.SetStrings(dicom.SeriesNumber, fmt.Sprint(series))
	own.SetStrings(dicom.SOPInstanceUID, in.SOPInstanceUID)
	own.SetStrings(dicom.InstanceNumber, fmt.Sprint(n))
	in.PatientAttributes, in.StudyAttributes, in.SeriesAttributes, in.Attributes = encode(&patient), encode(&inStudy), encode(&inSeries), encode(&own)
	in.Version = catalog.VersionOf(in.SOPInstanceUID, in.TransferSyntaxUID, in.Digest)
	return catalog.AddItem{Instance: in, Holders: []place.NodeID{{1}, {2}}}
}
