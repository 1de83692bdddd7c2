package catalog

import (
	"fmt"
	"time"

	"osteon/erasure/place"
)

// Command is one change of the catalog: Add, SealBegin, Seal, SealAbort, ForgetEncode, PutNode,
// PutToken, UseToken, PutSetting, Tombstone, PutOverlay, Hold, CommitmentRequest, PutAE, RemoveAE,
// PutBearer or RemoveBearer. Every command is idempotent by its content, so that a proposal whose fate
// is unknown may be repeated.
type Command interface {
	number() commandNumber
	// check returns an error that wraps ErrInvalid when the command cannot be encoded.
	check() error
	append(b []byte, w *blobWriter) []byte
}

// commandNumber tells commands apart in the log. Numbers are never given out again.
type commandNumber uint8

const (
	numberAdd               commandNumber = 1
	numberSealBegin         commandNumber = 2
	numberSeal              commandNumber = 3
	numberSealAbort         commandNumber = 4
	numberForgetEncode      commandNumber = 5
	numberPutNode           commandNumber = 6
	numberPutToken          commandNumber = 7
	numberUseToken          commandNumber = 8
	numberPutSetting        commandNumber = 9
	numberTombstone         commandNumber = 10
	numberPutOverlay        commandNumber = 11
	numberHold              commandNumber = 12
	numberCommitmentRequest commandNumber = 13
	numberPutAE             commandNumber = 14
	numberRemoveAE          commandNumber = 15
	numberPutBearer         commandNumber = 16
	numberRemoveBearer      commandNumber = 17
)

// Add offers versions of instances that are durable in the journals of their holders. A version
// that is known gains the new holders; the first applied version of a SOP Instance UID is the one
// served, further ones are kept and raise a QC item. Result.Items tells each item's outcome.
type Add struct{ Items []AddItem }

// AddItem is one version and the nodes that have it in their journal. Spooled tells that it was
// acknowledged without a copy on a second site; a later offer without it clears it.
type AddItem struct {
	Instance
	Holders []place.NodeID
	Spooled bool

	names []string // folded component groups of the patient's name, see normalised
}

// SealBegin announces an encode before any byte of it is written. It is refused with CodeUnknown
// when a version is not in the catalog and with CodeRaced when one is sealed already or when the
// encode or the pack exists with other content.
type SealBegin struct {
	Encode     place.EncodeID
	Pack       place.PackID
	Study      string // StudyInstanceUID that all versions belong to
	Sealer     place.NodeID
	Geometry   place.Geometry
	Placement  place.Placement // Geometry.N() slots
	Generation uint64
	Versions   []VersionID // 1 to MaxPackVersions
	CellBytes  int
	BlockBytes int
}

// SealEntry tells where in the plain stream of a pack a version is.
type SealEntry struct {
	Version     VersionID
	Offset      int64 // of the data set
	Size        int64 // of the data set
	PixelOffset int64 // of the pixel data, as the sealer defines it
}

// Seal makes a begun encode the place where its versions are: a compare-and-set that names exactly
// the versions of the SealBegin, all still unsealed, and one root for each shard. It is refused
// with CodeUnknown when the encode has no record and with CodeRaced when another seal was first;
// the encode is aborted then.
type Seal struct {
	Encode         place.EncodeID
	StreamBytes    int64
	PlainBytes     int64
	Roots          [][32]byte
	WrappedKey     []byte
	Entries        []SealEntry
	ManifestOffset int64
	ManifestSize   int64
}

// SealAbort gives an encode up. It is refused with CodeRaced when the encode is sealed. An encode
// that was never begun is recorded as aborted, so that a late SealBegin of it is refused.
type SealAbort struct {
	Encode place.EncodeID
	Why    string // for operators; no patient data
}

// ForgetEncode tells that Node keeps nothing of an aborted or superseded encode. When every node
// of the placement that is still in the ring said so, the record goes.
type ForgetEncode struct {
	Encode place.EncodeID
	Node   place.NodeID
}

// PutNode records a node as it is from now on. A removed node cannot come back under its ID:
// CodeRaced.
type PutNode struct{ Node Node }

// PutToken records a join token by its hash. One that is recorded already stays as it is.
type PutToken struct {
	Hash             [32]byte
	Site             place.SiteID
	Created, Expires time.Time
}

// UseToken spends a token for a node. The result is CodeOK, CodeUnknown, CodeExpired (by ring
// time) or CodeUsed; the node that spent it may repeat the command.
type UseToken struct {
	Hash [32]byte
	Node place.NodeID
}

// PutSetting sets a value of the whole ring; an empty value removes it.
type PutSetting struct {
	Key   string
	Value []byte
}

// Tombstone remembers an erased UID for ever by its keyed hash, see Catalog.UIDHash. Whatever is
// added under it later goes to limbo. What is in the catalog already stays.
type Tombstone struct {
	UIDHash [32]byte
	Level   Level // LevelStudy, LevelSeries or LevelImage
	Reason  string
}

// PutOverlay records a correction, version by version, that is applied on output. The body is
// opaque to the catalog.
type PutOverlay struct {
	Target string // UID or patient that it corrects
	ID     [16]byte
	Body   []byte // empty removes it
}

// Hold records that nothing under the target may be erased. The body is opaque to the catalog.
type Hold struct {
	Target string
	ID     [16]byte
	Body   []byte // empty lifts it
}

// CommitmentRequest records a Storage Commitment request until it has been answered. The body is
// opaque to the catalog.
type CommitmentRequest struct {
	ID   [16]byte
	Body []byte // empty when answered
}

// Batch is what one log entry holds.
type Batch struct {
	Time     time.Time // the proposer's; ring time becomes the latest seen
	By       Principal
	Commands []Command
}

func (Add) number() commandNumber               { return numberAdd }
func (SealBegin) number() commandNumber         { return numberSealBegin }
func (Seal) number() commandNumber              { return numberSeal }
func (SealAbort) number() commandNumber         { return numberSealAbort }
func (ForgetEncode) number() commandNumber      { return numberForgetEncode }
func (PutNode) number() commandNumber           { return numberPutNode }
func (PutToken) number() commandNumber          { return numberPutToken }
func (UseToken) number() commandNumber          { return numberUseToken }
func (PutSetting) number() commandNumber        { return numberPutSetting }
func (Tombstone) number() commandNumber         { return numberTombstone }
func (PutOverlay) number() commandNumber        { return numberPutOverlay }
func (Hold) number() commandNumber              { return numberHold }
func (CommitmentRequest) number() commandNumber { return numberCommitmentRequest }

// invalid returns an ErrInvalid that says what is wrong with the named field.
func invalid(field, want string) error { return fmt.Errorf("%w: %s: %s", ErrInvalid, field, want) }

func checkUID(field, uid string) error {
	if uid == "" || len(uid) > maxUIDBytes {
		return invalid(field, "want 1 to 64 bytes")
	}
	return nil
}

func checkText(field, s string) error {
	if len(s) > maxStringBytes {
		return invalid(field, "want at most 1024 bytes")
	}
	return nil
}

// firstError returns the first of errs that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c Add) check() error {
	if len(c.Items) > maxItems {
		return invalid("Add.Items", "more than one batch holds")
	}
	for i := range c.Items {
		if err := c.Items[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (it *AddItem) check() error {
	if len(it.Holders) > maxHolders {
		return invalid("Holders", "want at most 64")
	}
	if it.Size < 0 || it.PixelOffset < 0 {
		return invalid("Size", "negative")
	}
	return firstError(
		checkUID("SOPInstanceUID", it.SOPInstanceUID),
		checkUID("StudyInstanceUID", it.StudyInstanceUID),
		checkUID("SeriesInstanceUID", it.SeriesInstanceUID),
		checkUID("SOPClassUID", it.SOPClassUID),
		checkUID("TransferSyntaxUID", it.TransferSyntaxUID),
	)
}

func (c SealBegin) check() error {
	if len(c.Versions) == 0 || len(c.Versions) > MaxPackVersions {
		return invalid("SealBegin.Versions", "want 1 to MaxPackVersions")
	}
	if hasDuplicate(c.Versions) {
		return invalid("SealBegin.Versions", "names one twice")
	}
	if c.Geometry.K < 1 || c.Geometry.M < 0 || len(c.Placement) != c.Geometry.K+c.Geometry.M || len(c.Placement) > maxShards {
		return invalid("SealBegin.Placement", "want one slot for each shard")
	}
	if c.Encode.IsZero() || c.Pack.IsZero() || c.CellBytes < 0 || c.BlockBytes < 0 {
		return invalid("SealBegin", "want an encode, a pack and no negative size")
	}
	for _, s := range c.Placement {
		if err := checkText("Slot.Site", string(s.Site)); err != nil {
			return err
		}
	}
	return checkUID("SealBegin.Study", c.Study)
}

func hasDuplicate(versions []VersionID) bool {
	seen := make(map[VersionID]struct{}, len(versions))
	for _, v := range versions {
		seen[v] = struct{}{}
	}
	return len(seen) != len(versions)
}

func (c Seal) check() error {
	if len(c.Entries) == 0 || len(c.Entries) > MaxPackVersions {
		return invalid("Seal.Entries", "want 1 to MaxPackVersions")
	}
	if len(c.Roots) > maxShards || len(c.WrappedKey) > maxWrappedKeyBytes {
		return invalid("Seal", "too many roots or too long a wrapped key")
	}
	if c.StreamBytes < 0 || c.PlainBytes < 0 || c.ManifestOffset < 0 || c.ManifestSize < 0 {
		return invalid("Seal", "negative size")
	}
	for _, e := range c.Entries {
		if e.Offset < 0 || e.Size < 0 || e.PixelOffset < 0 {
			return invalid("SealEntry", "negative offset or size")
		}
	}
	return nil
}

func (c SealAbort) check() error { return checkText("SealAbort.Why", c.Why) }

func (c ForgetEncode) check() error { return nil }

func (c PutNode) check() error {
	if c.Node.ID.IsZero() {
		return invalid("Node.ID", "zero")
	}
	if c.Node.Role > RoleWitness || c.Node.State > NodeRemoved {
		return invalid("Node", "unknown role or state")
	}
	return firstError(checkText("Node.Name", c.Node.Name), checkText("Node.Site", string(c.Node.Site)),
		checkText("Node.Address", c.Node.Address))
}

func (c PutToken) check() error { return checkText("PutToken.Site", string(c.Site)) }

func (c UseToken) check() error { return nil }

func (c PutSetting) check() error {
	if len(c.Value) > maxSettingBytes {
		return invalid("PutSetting.Value", "want at most 256 KiB")
	}
	if c.Key == "" {
		return invalid("PutSetting.Key", "empty")
	}
	return checkText("PutSetting.Key", c.Key)
}

func (c Tombstone) check() error {
	if c.Level < LevelStudy || c.Level > LevelImage {
		return invalid("Tombstone.Level", "want study, series or image")
	}
	return checkText("Tombstone.Reason", c.Reason)
}

func (c PutOverlay) check() error        { return checkBody("PutOverlay", c.Target, c.Body) }
func (c Hold) check() error              { return checkBody("Hold", c.Target, c.Body) }
func (c CommitmentRequest) check() error { return checkBody("CommitmentRequest", "", c.Body) }

func checkBody(name, target string, body []byte) error {
	if len(body) > maxBodyFieldBytes {
		return invalid(name, "body longer than 256 KiB")
	}
	return checkText(name, target)
}
