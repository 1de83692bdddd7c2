package nodetest

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	"osteon/dicomsvc/dicom"
	"osteon/raft/catalog"
)

// object is one data set that the workload sends.
type object struct {
	study, series, uid string
	number             int // of the version under uid
	data               []byte
	version            catalog.VersionID
	digest             [32]byte
}

func (o *object) String() string {
	return fmt.Sprintf("%s v%d %s of %s (%d bytes)", o.uid, o.number, o.version, o.study, len(o.data))
}

const (
	objectClass  = "1.2.840.10008.5.1.4.1.1.7"
	objectSyntax = dicom.ExplicitVRLittleEndian
	// bigBytes is more than one chunk of the journal and of the partner's stream.
	bigBytes = 300 << 10
)

// newObject makes a data set with random pixels.
func newObject(rng *rand.Rand, study int, instance int, version int) (*object, error) {
	o := &object{
		study: fmt.Sprintf("2.25.%d", 1000+study), number: version,
		uid: fmt.Sprintf("2.25.7.%d", instance),
	}
	o.series = fmt.Sprintf("%s.%d", o.study, instance%3+1)
	size := 100 + rng.IntN(3000)
	if rng.IntN(25) == 0 {
		size = bigBytes + rng.IntN(bigBytes)
	}
	pixels := make([]byte, size&^1)
	for i := range pixels {
		pixels[i] = byte(rng.Uint32())
	}
	d := new(dicom.Dataset)
	d.SetStrings(dicom.SOPClassUID, objectClass)
	d.SetStrings(dicom.SOPInstanceUID, o.uid)
	d.SetStrings(dicom.StudyInstanceUID, o.study)
	d.SetStrings(dicom.SeriesInstanceUID, o.series)
	d.SetStrings(dicom.PatientID, fmt.Sprintf("P%d", study))
	d.SetStrings(dicom.PatientName, fmt.Sprintf("Name^%d", study))
	d.SetStrings(dicom.Modality, "OT")
	d.SetStrings(dicom.InstanceNumber, fmt.Sprint(instance))
	d.Set(dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Value: pixels})
	var err error
	if o.data, err = d.Encode(nil, objectSyntax); err != nil {
		return nil, err
	}
	o.digest = sha256.Sum256(o.data)
	o.version = catalog.VersionOf(o.uid, objectSyntax, o.digest)
	return o, nil
}
