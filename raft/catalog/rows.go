package catalog

import (
	"slices"
	"sort"
	"time"

	"osteon/erasure/place"
)

// Rows are what the keys of keys.go hold. Each begins with rowVersion; a later layout gets the
// next number and its decoder stays.
const rowVersion = 1

// tally counts things by name, in ascending order of names.
type tally []tallied

type tallied struct {
	name string
	n    int
}

// add changes the count of name by n and returns the count after; a name with no count left goes.
func (t *tally) add(name string, n int) int {
	i := sort.Search(len(*t), func(i int) bool { return (*t)[i].name >= name })
	if i == len(*t) || (*t)[i].name != name {
		*t = slices.Insert(*t, i, tallied{name: name})
	}
	(*t)[i].n += n
	left := (*t)[i].n
	if left <= 0 {
		*t = slices.Delete(*t, i, i+1)
	}
	return left
}

func (t tally) names() []string {
	names := make([]string, len(t))
	for i := range t {
		names[i] = t[i].name
	}
	return names
}

func (t tally) append(b []byte) []byte {
	b = appendUint(b, uint64(len(t)))
	for _, e := range t {
		b = appendInt(appendString(b, e.name), int64(e.n))
	}
	return b
}

func decodeTally(d *decoder) tally {
	var t tally
	for n := d.count(maxTableBytes); n > 0 && !d.bad; n-- {
		t = append(t, tallied{name: d.string(maxStringBytes), n: int(d.int())})
	}
	return t
}

type packRef struct {
	seq uint32
	id  place.PackID
}

// studyRow is what is kept of a study.
type studyRow struct {
	uid           string // from the key
	patient       PatientKey
	patientSet    []byte // attributes
	studySet      []byte
	names         []string // folded, as the index has them
	modalities    tally    // of series with a served instance: number of such series
	classes       tally    // of served instances
	series        int      // with a served instance
	instances     int      // served
	versions      int
	bytes         int64
	unsealed      int
	unsealedBytes int64
	spooled       int
	packs         []packRef
	first, last   time.Time
	unsealedFirst time.Time
	unsealedLast  time.Time
}

func (r *studyRow) encode() []byte {
	b := make([]byte, 0, 256+len(r.patientSet)+len(r.studySet))
	b = append(b, rowVersion)
	b = appendString(b, r.patient.Issuer)
	b = appendString(b, r.patient.ID)
	b = appendBytes(b, r.patientSet)
	b = appendBytes(b, r.studySet)
	b = appendUint(b, uint64(len(r.names)))
	for _, n := range r.names {
		b = appendString(b, n)
	}
	b = r.modalities.append(b)
	b = r.classes.append(b)
	for _, n := range []int{r.series, r.instances, r.versions, r.unsealed, r.spooled} {
		b = appendInt(b, int64(n))
	}
	b = appendInt(b, r.bytes)
	b = appendInt(b, r.unsealedBytes)
	b = appendUint(b, uint64(len(r.packs)))
	for _, p := range r.packs {
		b = append(appendUint(b, uint64(p.seq)), p.id[:]...)
	}
	for _, t := range []time.Time{r.first, r.last, r.unsealedFirst, r.unsealedLast} {
		b = appendTime(b, t)
	}
	return b
}

func decodeStudyRow(uid string, b []byte) (*studyRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	r := &studyRow{uid: uid}
	r.patient.Issuer = d.string(maxStringBytes)
	r.patient.ID = d.string(maxStringBytes)
	r.patientSet = d.bytes(maxAttributesBytes)
	r.studySet = d.bytes(maxAttributesBytes)
	for n := d.count(maxNames); n > 0; n-- {
		r.names = append(r.names, d.string(maxIndexBytes))
	}
	r.modalities = decodeTally(d)
	r.classes = decodeTally(d)
	for _, n := range []*int{&r.series, &r.instances, &r.versions, &r.unsealed, &r.spooled} {
		*n = int(d.int())
	}
	r.bytes = d.int()
	r.unsealedBytes = d.int()
	for n := d.count(maxTableBytes); n > 0 && !d.bad; n-- {
		p := packRef{seq: uint32(d.uint())}
		d.fixed(p.id[:])
		r.packs = append(r.packs, p)
	}
	for _, t := range []*time.Time{&r.first, &r.last, &r.unsealedFirst, &r.unsealedLast} {
		*t = d.time()
	}
	return r, rowError("study", d)
}

// encodeDue returns the row of the study in tableDue, nil when nothing is left to seal.
func (r *studyRow) encodeDue() []byte {
	if r.unsealed <= 0 {
		return nil
	}
	b := append(make([]byte, 0, 48), rowVersion)
	b = appendUint(b, uint64(r.unsealed))
	b = appendInt(b, r.unsealedBytes)
	b = appendInt(b, int64(r.spooled))
	b = appendTime(b, r.unsealedFirst)
	return appendTime(b, r.unsealedLast)
}

func decodeDue(study string, b []byte) (StudyDue, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	due := StudyDue{Study: study, Unsealed: int(d.uint()), UnsealedBytes: d.int(), Spooled: int(d.int())}
	due.First, due.Last = d.time(), d.time()
	return due, rowError("due study", d)
}

// tablePart is a piece of a series in a pack: the instance table that starts at ordinal first.
type tablePart struct{ seq, first, count uint32 }

// seriesRow is what is kept of a series.
type seriesRow struct {
	study, uid string // from the key
	modality   string
	set        []byte // attributes
	classes    tally  // of served instances
	instances  int    // served
	versions   int
	unsealed   int
	parts      []tablePart
}

func (r *seriesRow) encode() []byte {
	b := append(make([]byte, 0, 96+len(r.set)), rowVersion)
	b = appendString(b, r.modality)
	b = appendBytes(b, r.set)
	b = r.classes.append(b)
	for _, n := range []int{r.instances, r.versions, r.unsealed} {
		b = appendInt(b, int64(n))
	}
	b = appendUint(b, uint64(len(r.parts)))
	for _, p := range r.parts {
		b = appendUint(appendUint(appendUint(b, uint64(p.seq)), uint64(p.first)), uint64(p.count))
	}
	return b
}

func decodeSeriesRow(study, uid string, b []byte) (*seriesRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	r := &seriesRow{study: study, uid: uid}
	r.modality = d.string(maxStringBytes)
	r.set = d.bytes(maxAttributesBytes)
	r.classes = decodeTally(d)
	for _, n := range []*int{&r.instances, &r.versions, &r.unsealed} {
		*n = int(d.int())
	}
	for n := d.count(maxTableBytes); n > 0 && !d.bad; n-- {
		r.parts = append(r.parts, tablePart{uint32(d.uint()), uint32(d.uint()), uint32(d.uint())})
	}
	return r, rowError("series", d)
}

// patientRow is what is kept of a patient with at least one served instance.
type patientRow struct {
	key       PatientKey // from the key
	set       []byte     // attributes, as the first study had them
	studies   int
	series    int
	instances int
}

func (r *patientRow) encode() []byte {
	b := append(make([]byte, 0, 32+len(r.set)), rowVersion)
	b = appendBytes(b, r.set)
	for _, n := range []int{r.studies, r.series, r.instances} {
		b = appendInt(b, int64(n))
	}
	return b
}

func decodePatientRow(key PatientKey, b []byte) (*patientRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	r := &patientRow{key: key, set: d.bytes(maxAttributesBytes)}
	for _, n := range []*int{&r.studies, &r.series, &r.instances} {
		*n = int(d.int())
	}
	return r, rowError("patient", d)
}

// Flags of a version.
const (
	versionServed       = 1 << 0
	versionSpooled      = 1 << 1
	versionLimbo        = 1 << 2
	versionOtherPatient = 1 << 3 // names another patient than the study's row
	versionOwnID        = 1 << 4 // is not VersionOf its fields
	versionFlags        = 1<<5 - 1
)

// versionRow is one version that is not sealed.
type versionRow struct {
	in      Instance // without the attributes of the levels above
	number  int32
	served  bool
	spooled bool
	limbo   bool
	holders []place.NodeID // ascending
	addedAt time.Time
}

func (r *versionRow) flags() byte {
	var f byte
	if r.served {
		f |= versionServed
	}
	if r.spooled {
		f |= versionSpooled
	}
	if r.limbo {
		f |= versionLimbo
	}
	return f
}

func (r *versionRow) key() []byte {
	if r.limbo {
		return keyLimbo(r.in.SOPInstanceUID, r.in.Version)
	}
	return keyUnsealed(r.in.StudyInstanceUID, r.in.SeriesInstanceUID, r.number, r.in.SOPInstanceUID, r.in.Version)
}

func (r *versionRow) encode() []byte {
	in := &r.in
	b := append(make([]byte, 0, 512+len(in.Attributes)), rowVersion, r.flags())
	b = append(b, in.Version[:]...)
	b = appendString(b, in.SOPInstanceUID)
	b = appendString(b, in.SOPClassUID)
	b = appendString(b, in.StudyInstanceUID)
	b = appendString(b, in.SeriesInstanceUID)
	b = appendString(b, in.TransferSyntaxUID)
	b = append(b, in.Digest[:]...)
	b = appendInt(b, in.Size)
	b = appendInt(b, in.PixelOffset)
	b = appendUint(b, uint64(in.Frames))
	b = appendString(b, in.PatientKey.Issuer)
	b = appendString(b, in.PatientKey.ID)
	b = appendBytes(b, in.Attributes)
	b = appendTime(b, in.ReceivedAt)
	b = append(b, in.ReceivedBy[:]...)
	b = appendString(b, in.CallingAE)
	b = appendInt(b, int64(r.number))
	b = appendNodes(b, r.holders)
	return appendTime(b, r.addedAt)
}

func decodeVersionRow(b []byte) (*versionRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	f := d.byte()
	r := &versionRow{served: f&versionServed != 0, spooled: f&versionSpooled != 0, limbo: f&versionLimbo != 0}
	in := &r.in
	d.fixed(in.Version[:])
	in.SOPInstanceUID = d.string(maxUIDBytes)
	in.SOPClassUID = d.string(maxUIDBytes)
	in.StudyInstanceUID = d.string(maxUIDBytes)
	in.SeriesInstanceUID = d.string(maxUIDBytes)
	in.TransferSyntaxUID = d.string(maxUIDBytes)
	d.fixed(in.Digest[:])
	in.Size = d.int()
	in.PixelOffset = d.int()
	in.Frames = uint32(d.uint())
	in.PatientKey.Issuer = d.string(maxStringBytes)
	in.PatientKey.ID = d.string(maxStringBytes)
	in.Attributes = d.bytes(maxAttributesBytes)
	in.ReceivedAt = d.time()
	d.fixed(in.ReceivedBy[:])
	in.CallingAE = d.string(maxStringBytes)
	r.number = int32(d.int())
	r.holders = decodeNodes(d, maxHolders)
	r.addedAt = d.time()
	return r, rowError("version", d)
}

// located returns the row as readers see it.
func (r *versionRow) located() Located {
	l := Located{Instance: r.in, Served: r.served, Spooled: r.spooled, Holders: r.holders, AddedAt: r.addedAt}
	if r.limbo {
		l.State = VersionLimbo
	}
	return l
}

// uidEntry is one unsealed or limbo version of a UID.
type uidEntry struct {
	version VersionID
	served  bool
	key     []byte // of its row
}

func encodeUIDRow(entries []uidEntry) []byte {
	if len(entries) == 0 {
		return nil
	}
	b := append(make([]byte, 0, 8+200*len(entries)), rowVersion)
	b = appendUint(b, uint64(len(entries)))
	for _, e := range entries {
		var f byte
		if e.served {
			f = versionServed
		}
		b = append(append(b, f), e.version[:]...)
		b = appendBytes(b, e.key)
	}
	return b
}

func decodeUIDRow(b []byte) ([]uidEntry, error) {
	if b == nil {
		return nil, nil
	}
	d := &decoder{b: b}
	d.version(rowVersion)
	var entries []uidEntry
	for n := d.count(maxTableBytes); n > 0 && !d.bad; n-- {
		e := uidEntry{served: d.byte()&versionServed != 0}
		d.fixed(e.version[:])
		e.key = d.bytes(4096)
		entries = append(entries, e)
	}
	return entries, rowError("UID", d)
}

// hashPlace is where a sealed version may be: pack and ordinal.
type hashPlace struct{ seq, ordinal uint32 }

func encodeHashRow(places []hashPlace) []byte {
	b := make([]byte, 0, 8*len(places))
	for _, p := range places {
		b = appendUint(appendUint(b, uint64(p.seq)), uint64(p.ordinal))
	}
	return b
}

func decodeHashRow(b []byte) ([]hashPlace, error) {
	d := &decoder{b: b}
	var places []hashPlace
	for len(d.b) > 0 {
		places = append(places, hashPlace{uint32(d.uint()), uint32(d.uint())})
	}
	return places, rowError("hash", d)
}

// packRow is a sealed pack with its instance tables.
type packRow struct {
	Pack
	firsts []uint32 // the ordinal at which each instance table starts
}

func (r *packRow) encode() []byte {
	b := append(make([]byte, 0, 1024), rowVersion)
	b = append(b, r.ID[:]...)
	b = append(b, r.Encode[:]...)
	b = appendString(b, r.Study)
	b = append(b, r.Sealer[:]...)
	b = appendPlacement(b, r.Geometry, r.Placement)
	b = appendUint(b, r.Generation)
	for _, n := range []int64{int64(r.CellBytes), int64(r.BlockBytes), r.StreamBytes, r.PlainBytes, r.ManifestOffset, r.ManifestSize} {
		b = appendInt(b, n)
	}
	b = appendRoots(b, r.Roots)
	b = appendBytes(b, r.WrappedKey)
	b = appendUint(b, uint64(r.Instances))
	b = appendTime(b, r.SealedAt)
	b = appendUint(b, uint64(len(r.firsts)))
	for _, n := range r.firsts {
		b = appendUint(b, uint64(n))
	}
	return b
}

func decodePackRow(b []byte) (*packRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	r := &packRow{}
	d.fixed(r.ID[:])
	d.fixed(r.Encode[:])
	r.Study = d.string(maxUIDBytes)
	d.fixed(r.Sealer[:])
	r.Geometry, r.Placement = decodePlacement(d)
	r.Generation = d.uint()
	r.CellBytes, r.BlockBytes = int(d.int()), int(d.int())
	r.StreamBytes, r.PlainBytes, r.ManifestOffset, r.ManifestSize = d.int(), d.int(), d.int(), d.int()
	r.Roots = decodeRoots(d)
	r.WrappedKey = d.bytes(maxWrappedKeyBytes)
	r.Instances = int(d.uint())
	r.SealedAt = d.time()
	for n := d.count(MaxPackVersions); n > 0; n-- {
		r.firsts = append(r.firsts, uint32(d.uint()))
	}
	return r, rowError("pack", d)
}

// encodeRow is an EncodeRecord and what its Seal must name.
type encodeRow struct {
	EncodeRecord
	versionsHash [32]byte // over the versions in ascending order
}

func (r *encodeRow) encode() []byte {
	b := append(make([]byte, 0, 1024), rowVersion, byte(r.State))
	b = append(b, r.EncodeRecord.Encode[:]...)
	b = append(b, r.Pack[:]...)
	b = appendString(b, r.Study)
	b = append(b, r.Sealer[:]...)
	b = appendPlacement(b, r.Geometry, r.Placement)
	b = appendUint(b, r.Generation)
	b = appendUint(b, uint64(r.CellBytes))
	b = appendUint(b, uint64(r.BlockBytes))
	b = appendUint(b, uint64(r.Versions))
	b = append(b, r.versionsHash[:]...)
	b = appendTime(b, r.BegunAt)
	b = appendString(b, r.Why)
	return appendNodes(b, r.Forgotten)
}

func decodeEncodeRow(b []byte) (*encodeRow, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	r := &encodeRow{}
	r.State = EncodeState(d.byte())
	d.fixed(r.EncodeRecord.Encode[:])
	d.fixed(r.Pack[:])
	r.Study = d.string(maxUIDBytes)
	d.fixed(r.Sealer[:])
	r.Geometry, r.Placement = decodePlacement(d)
	r.Generation = d.uint()
	r.CellBytes, r.BlockBytes = d.size(1<<31-1), d.size(1<<31-1)
	r.Versions = int(d.uint())
	d.fixed(r.versionsHash[:])
	r.BegunAt = d.time()
	r.Why = d.string(maxStringBytes)
	r.Forgotten = decodeNodes(d, 4*maxShards)
	return r, rowError("encode", d)
}

func encodeTokenRow(t Token) []byte {
	b := appendString([]byte{rowVersion}, string(t.Site))
	b = appendTime(appendTime(b, t.Created), t.Expires)
	return append(b, t.UsedBy[:]...)
}

func decodeTokenRow(hash [32]byte, b []byte) (Token, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	t := Token{Hash: hash, Site: place.SiteID(d.string(maxStringBytes))}
	t.Created, t.Expires = d.time(), d.time()
	d.fixed(t.UsedBy[:])
	return t, rowError("token", d)
}

func decodeNodeRow(b []byte) (Node, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	n := decodeNode(d)
	return n, rowError("node", d)
}

func encodeQCRow(it QCItem) []byte {
	b := appendString([]byte{rowVersion}, it.SOPInstanceUID)
	b = appendString(appendString(b, it.StudyInstanceUID), it.SeriesInstanceUID)
	b = appendString(b, it.ServedStudy)
	return appendTime(append(b, it.Served[:]...), it.At)
}

func decodeQCRow(key, b []byte) (QCItem, error) {
	d := &decoder{b: b}
	d.version(rowVersion)
	var it QCItem
	if len(key) == 3+len(it.Version) {
		it.Kind = QCKind(key[2])
		copy(it.Version[:], key[3:])
	}
	it.SOPInstanceUID = d.string(maxUIDBytes)
	it.StudyInstanceUID = d.string(maxUIDBytes)
	it.SeriesInstanceUID = d.string(maxUIDBytes)
	it.ServedStudy = d.string(maxUIDBytes)
	d.fixed(it.Served[:])
	it.At = d.time()
	return it, rowError("QC", d)
}
