package catalog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"osteon/erasure/place"
)

// VersionID names one version of an instance: the SHA-256 that VersionOf computes over its SOP
// Instance UID, transfer syntax and data set digest. Two sends of the same bytes have one
// VersionID, two different data sets under one UID have two.
type VersionID [32]byte

// VersionOf returns the identity of the version whose data set, in the transfer syntax named by
// transferSyntaxUID, has the SHA-256 digest. A catalog accepts any VersionID that callers agree
// on, but keeps sealed versions in 32 bytes less each when they come from here.
func VersionOf(sopInstanceUID, transferSyntaxUID string, digest [32]byte) VersionID {
	b := make([]byte, 0, 192)
	b = append(b, "osteon version 1\x00"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(sopInstanceUID)))
	b = append(b, sopInstanceUID...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(transferSyntaxUID)))
	b = append(b, transferSyntaxUID...)
	b = append(b, digest[:]...)
	return sha256.Sum256(b)
}

// String returns the first eight bytes in hexadecimal, enough for a log line.
func (v VersionID) String() string { return hex.EncodeToString(v[:8]) }

// PrincipalKind tells what sort of actor a Principal is.
type PrincipalKind uint8

// The kinds of actors on whose behalf commands are proposed and reads are made.
const (
	PrincipalSystem    PrincipalKind = iota // background work of the ring itself
	PrincipalNode                           // another node
	PrincipalAE                             // a DICOM application entity
	PrincipalToken                          // the subject of an access token
	PrincipalPerson                         // a signed-in person
	PrincipalAnonymous                      // somebody on this machine, unnamed
)

// Principal is on whose behalf a command is proposed or a read is made. The catalog records it and
// passes it on; who may do what is decided above, in dicomsvc.
type Principal struct {
	Kind PrincipalKind
	Name string       // AE title, token subject or account; at most 256 bytes
	Node place.NodeID // the node at which it spoke
}

// PatientKey names a patient within the ring: an ID and who issued it. An empty Issuer is a value
// of its own; the caller fills in its default issuer where it has one.
type PatientKey struct{ Issuer, ID string }

// Instance is what the catalog is told about one version of an instance. The four attribute
// fields are small data sets in Explicit VR Little Endian and UTF-8, one for each information
// level; the first version applied in a study decides its patient and study attributes, the first
// in a series those of the series.
type Instance struct {
	Version           VersionID
	SOPInstanceUID    string
	SOPClassUID       string
	StudyInstanceUID  string
	SeriesInstanceUID string
	TransferSyntaxUID string

	Digest      [32]byte // SHA-256 over the data set as received
	Size        int64    // bytes of the data set
	PixelOffset int64    // where pixel data begin in the data set, bytes; Size or 0 without any
	Frames      uint32

	PatientKey        PatientKey
	PatientAttributes []byte
	StudyAttributes   []byte
	SeriesAttributes  []byte
	Attributes        []byte // of the instance itself

	ReceivedAt time.Time
	ReceivedBy place.NodeID
	CallingAE  string
}

// NodeRole tells what a node is for.
type NodeRole uint8

// The roles of nodes.
const (
	RoleData    NodeRole = iota // keeps journals and shards
	RoleWitness                 // only votes
)

// String returns the word that the command line uses.
func (r NodeRole) String() string { return word(int(r), "data", "witness") }

// NodeState tells whether a node takes part.
type NodeState uint8

// The states of nodes.
const (
	NodeActive   NodeState = iota
	NodeCordoned           // keeps what it has and gets nothing new
	NodeRemoved            // never comes back under this ID
)

// String returns the word that the command line uses.
func (s NodeState) String() string { return word(int(s), "active", "cordoned", "removed") }

// Node is a member of the ring as the catalog records it.
type Node struct {
	ID              place.NodeID
	Name            string
	Site            place.SiteID
	Disk            place.DiskID
	Address         string // host:port of its link
	Incarnation     uint64 // raised each time that the node joins Raft afresh
	Role            NodeRole
	State           NodeState
	CertFingerprint [32]byte // SHA-256 of its certificate
}

// VersionState tells where the bytes of a version are.
type VersionState uint8

// The states of versions.
const (
	VersionJournalled VersionState = iota // in the journals of its holders
	VersionSealed                         // in a pack
	VersionLimbo                          // journalled under an erased UID; neither served nor sealed
)

// String returns the word that the command line uses.
func (s VersionState) String() string { return word(int(s), "journalled", "sealed", "limbo") }

// Located is one version of an instance and where its bytes are.
type Located struct {
	// Instance is what was added. Only its own Attributes are filled in, of a sealed version only
	// the few that IMAGE level queries ask for; those of the levels above are in Study and Search.
	Instance Instance
	Served   bool // the version that queries and retrievals give for its UID
	Spooled  bool // acknowledged on one site only, not yet safe elsewhere
	// Provisional tells that it comes from the pending items of With, not from the applied state.
	Provisional bool
	State       VersionState
	Holders     []place.NodeID // nodes that have it in their journal, ascending; empty once sealed
	Pack        place.PackID   // zero unless sealed
	Entry       SealEntry      // where in the pack; zero unless sealed
	AddedAt     time.Time      // ring time of the Add that was applied first; zero once sealed
}

// Study is one study: what it counts, whom it belongs to and where it is.
type Study struct {
	StudyInstanceUID  string
	PatientKey        PatientKey
	PatientAttributes []byte // Explicit VR Little Endian, UTF-8, as its first version had them
	StudyAttributes   []byte
	Modalities        []string // of series with a served instance, ascending
	SOPClasses        []string // of served instances, ascending
	Series            int      // series with a served instance
	Instances         int      // served instances
	Versions          int      // all versions, sealed or not, limbo apart
	Bytes             int64    // of all those versions' data sets
	Unsealed          int      // versions not yet in a pack
	UnsealedBytes     int64
	Spooled           int            // unsealed versions that are not yet safe on another site
	Packs             []place.PackID // in the order of sealing
	First, Last       time.Time      // ring time of the first and of the latest new version
}

// Pack is a sealed pack: its placement and what is needed to read it.
type Pack struct {
	ID             place.PackID
	Encode         place.EncodeID
	Study          string // StudyInstanceUID
	Sealer         place.NodeID
	Geometry       place.Geometry
	Placement      place.Placement
	Generation     uint64 // of the placement
	CellBytes      int
	BlockBytes     int
	StreamBytes    int64 // of the encrypted stream that is cut into shards
	PlainBytes     int64
	Roots          [][32]byte // one for each shard, in shard order
	WrappedKey     []byte
	ManifestOffset int64 // in the plain stream
	ManifestSize   int64
	Instances      int       // versions in it
	SealedAt       time.Time // ring time
}

// EncodeState tells what became of an attempt to encode a pack.
type EncodeState uint8

// The states of encodes.
const (
	EncodeBegun      EncodeState = iota
	EncodeSealed                 // its pack is the one to read
	EncodeAborted                // given up or beaten by another; its shards may be deleted
	EncodeSuperseded             // replaced by a later encode; its shards may be deleted
)

// String returns the word that the command line uses.
func (s EncodeState) String() string {
	return word(int(s), "begun", "sealed", "aborted", "superseded")
}

// EncodeRecord is one attempt to encode a pack. Shards of an encode that has no record belong in
// quarantine, those of an aborted or superseded one may be deleted and then acknowledged with
// ForgetEncode.
type EncodeRecord struct {
	Encode     place.EncodeID
	Pack       place.PackID
	Study      string // StudyInstanceUID
	State      EncodeState
	Sealer     place.NodeID
	Geometry   place.Geometry
	Placement  place.Placement
	Generation uint64
	CellBytes  int
	BlockBytes int
	Versions   int            // how many it would seal
	BegunAt    time.Time      // ring time
	Why        string         // of an abort
	Forgotten  []place.NodeID // nodes that acknowledged, ascending
}

// StudyDue is a study that has versions to seal.
type StudyDue struct {
	Study         string // StudyInstanceUID
	Unsealed      int
	UnsealedBytes int64
	Spooled       int       // of the unsealed, how many are not yet safe on another site
	First, Last   time.Time // ring time of the oldest and the newest unsealed version
}

// Token is a join token as recorded: never the token, only its hash.
type Token struct {
	Hash             [32]byte
	Site             place.SiteID
	Created, Expires time.Time
	UsedBy           place.NodeID // zero while unused
}

// QCKind tells what a person has to decide.
type QCKind uint8

// The kinds of quality control items.
const (
	QCDigest  QCKind = iota + 1 // a further data set under a UID that is served already
	QCPlace                     // a UID that is served in another series or study
	QCPatient                   // a version that names another patient than its study has
	QCErased                    // a version that came in under an erased UID; it is in limbo
)

// String returns a word for lists.
func (k QCKind) String() string {
	return word(int(k), "none", "digest", "place", "patient", "erased")
}

// QCItem is one thing for a person to decide. There is one at most for each kind and version.
type QCItem struct {
	Kind              QCKind
	Version           VersionID // the version that raised it
	SOPInstanceUID    string
	StudyInstanceUID  string    // of that version
	SeriesInstanceUID string    // of that version
	ServedStudy       string    // QCPlace: the study that the UID is served in
	Served            VersionID // QCDigest and QCPlace: the version that is served
	At                time.Time // ring time
}

// Level is an information level that tombstones, overlays, holds and queries speak of.
type Level uint8

// The information levels (PS3.4 §C.3), from the top.
const (
	LevelPatient Level = iota + 1
	LevelStudy
	LevelSeries
	LevelImage
)

// String returns the value of Query/Retrieve Level (0008,0052).
func (l Level) String() string {
	return word(int(l), "", "PATIENT", "STUDY", "SERIES", "IMAGE")
}

// word returns words[i], or "unknown" outside of them.
func word(i int, words ...string) string {
	if i < 0 || i >= len(words) {
		return "unknown"
	}
	return words[i]
}
