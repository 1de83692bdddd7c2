package catalog

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"osteon/dicomsvc/dicom"
	"osteon/raft/ring"
)

// realistic returns the n-th instance of a CT series of n instances in full dress.
func realistic(t testing.TB, study, number int) AddItem {
	it := ct(study, 1, number).item(t)
	it.SeriesInstanceUID = fmt.Sprintf("1.3.12.2.1107.5.1.4.73793.300000210105064417400000%05d", study)
	it.SOPInstanceUID = fmt.Sprintf("1.3.12.2.1107.5.1.4.73793.30000021010506441740000%06d", study*1000+number*7)
	it.Digest = sha256.Sum256([]byte(it.SOPInstanceUID))
	it.Version = VersionOf(it.SOPInstanceUID, it.TransferSyntaxUID, it.Digest)
	it.Size = 526_000 + int64(number%9)*2
	it.Attributes = set(t, dicom.SOPClassUID, it.SOPClassUID, dicom.SOPInstanceUID, it.SOPInstanceUID,
		dicom.InstanceNumber, fmt.Sprint(number), dicom.ContentDate, "20260105", dicom.ContentTime, fmt.Sprintf("0644%02d.%06d", number%60, number*7919%1000000),
		dicom.AcquisitionDate, "20260105", dicom.AcquisitionTime, fmt.Sprintf("0644%02d.%06d", number%60, number*104729%1000000),
		dicom.ImageType, `ORIGINAL\PRIMARY\AXIAL\CT_SOM5 SPI`, dicom.PhotometricInterpretation, "MONOCHROME2",
		dicom.AcquisitionNumber, "3", dicom.ImagePositionPatient, fmt.Sprintf(`-170\-310\%d.5`, number),
		dicom.SliceLocation, fmt.Sprintf("%d.5", number), dicom.PixelSpacing, `0.6640625\0.6640625`)
	return it
}

// TestSealedInstancesAreSmall measures what a sealed instance costs: its share of the rows, before
// Pebble compresses hash rows further.
func TestSealedInstancesAreSmall(t *testing.T) {
	const studies, instances = 8, 500
	c := openTest(t)
	for study := range studies {
		var list []AddItem
		for n := range instances {
			list = append(list, realistic(t, study, n+1))
		}
		begin, seal := sealOf(byte(study+1), list)
		mustOK(t, apply(t, c, at(study), Add{Items: list}, begin, seal))
	}
	bytes := map[table]int{}
	total := 0
	iter, err := c.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer iter.Close()
	for valid := iter.First(); valid; valid = iter.Next() {
		n := len(iter.Key()) + len(iter.Value())
		bytes[table(iter.Key()[1])] += n
		total += n
	}
	each := func(n int) float64 { return float64(n) / (studies * instances) }
	t.Logf("bytes an instance: %.1f in all, %.1f in tables, %.1f in hash rows", each(total),
		each(bytes[tableInstances]), each(bytes[tableHashUID]+bytes[tableHashVersion]))
	if each(total) > 110 {
		t.Errorf("a sealed instance takes %.1f bytes, want at most 110", each(total))
	}
	if n := bytes[tableUnsealed] + bytes[tableUnsealedID] + bytes[tableUID]; n != 0 {
		t.Errorf("%d bytes of unsealed rows are left", n)
	}
}

func BenchmarkApply256(b *testing.B) {
	c := openTest(b)
	entries := make([][]byte, b.N)
	for i := range entries {
		var add Add
		for n := range 256 {
			add.Items = append(add.Items, realistic(b, i, n))
		}
		var err error
		if entries[i], err = Encode(Batch{Time: at(i), Commands: []Command{add}}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(entries[0]))/256, "entry-bytes/instance")
	b.ResetTimer()
	for i := range entries {
		c.Apply([]ring.Entry{{Index: uint64(i + 1), Data: entries[i]}})
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*256), "µs/instance")
}

func BenchmarkEncode256(b *testing.B) {
	var add Add
	for n := range 256 {
		add.Items = append(add.Items, realistic(b, 1, n))
	}
	for b.Loop() {
		if _, err := Encode(Batch{Commands: []Command{add}}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*256), "µs/instance")
}

func BenchmarkSeal500(b *testing.B) {
	c := openTest(b)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		var list []AddItem
		for n := range 500 {
			list = append(list, realistic(b, i, n))
		}
		begin, seal := sealOf(1, list)
		begin.Encode[8], begin.Encode[9], begin.Pack[8], begin.Pack[9] = byte(i), byte(i>>8), byte(i), byte(i>>8)
		seal.Encode = begin.Encode
		apply(b, c, at(i), Add{Items: list}, begin)
		b.StartTimer()
		mustOK(b, apply(b, c, at(i), seal))
	}
}

func BenchmarkPatientQuery(b *testing.B) {
	c := openTest(b)
	for study := 0; study < 5000; study += 250 {
		var add Add
		for n := range 250 {
			add.Items = append(add.Items, realistic(b, study+n, 1))
			add.Items[n].PatientKey.ID = fmt.Sprint("PAT", study+n)
		}
		apply(b, c, at(0), add)
	}
	for b.Loop() {
		q := Query{Level: LevelStudy, Keys: []Key{key(dicom.PatientID, "PAT2500")}}
		n := 0
		for range c.Search(context.Background(), Principal{}, &q) {
			n++
		}
		if n != 1 {
			b.Fatal(n)
		}
	}
}

func BenchmarkWith100(b *testing.B) {
	c := openTest(b)
	var list []AddItem
	for n := range 100 {
		list = append(list, realistic(b, 1, n))
	}
	for b.Loop() {
		r, err := c.With(list)
		if err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
