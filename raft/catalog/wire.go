package catalog

import (
	"fmt"

	"osteon/erasure/place"
)

// Flags of an item on the wire.
const (
	itemSpooled   = 1 << 0
	itemOwnID     = 1 << 1 // the version is not VersionOf its fields and is written out
	itemFlagsKnow = itemSpooled | itemOwnID
)

func (c Add) append(b []byte, w *blobWriter) []byte {
	b = appendUint(b, uint64(len(c.Items)))
	for i := range c.Items {
		b = c.Items[i].normalised(w.names).append(b, w)
	}
	return b
}

// append writes an item whose names have been folded.
func (it AddItem) append(b []byte, w *blobWriter) []byte {
	flags := byte(0)
	if it.Spooled {
		flags |= itemSpooled
	}
	if it.Version != VersionOf(it.SOPInstanceUID, it.TransferSyntaxUID, it.Digest) {
		flags |= itemOwnID
	}
	b = append(b, flags)
	if flags&itemOwnID != 0 {
		b = append(b, it.Version[:]...)
	}
	b = append(b, it.Digest[:]...)
	b = appendString(b, it.SOPInstanceUID)
	b = w.ref(b, it.StudyInstanceUID)
	b = w.ref(b, it.SeriesInstanceUID)
	b = w.ref(b, it.SOPClassUID)
	b = w.ref(b, it.TransferSyntaxUID)
	b = appendInt(b, it.Size)
	b = appendInt(b, it.PixelOffset)
	b = appendUint(b, uint64(it.Frames))
	b = w.ref(b, it.PatientKey.Issuer)
	b = w.ref(b, it.PatientKey.ID)
	b = w.refBytes(b, it.PatientAttributes)
	b = w.refBytes(b, it.StudyAttributes)
	b = w.refBytes(b, it.SeriesAttributes)
	b = appendBytes(b, it.Attributes)
	b = appendTime(b, it.ReceivedAt)
	b = append(b, it.ReceivedBy[:]...)
	b = w.ref(b, it.CallingAE)
	b = appendUint(b, uint64(len(it.names)))
	for _, name := range it.names {
		b = w.ref(b, name)
	}
	return appendNodes(b, it.Holders)
}

func decodeItem(r *blobReader) AddItem {
	var it AddItem
	flags := r.byte()
	if flags&^itemFlagsKnow != 0 {
		r.fail()
	}
	it.Spooled = flags&itemSpooled != 0
	if flags&itemOwnID != 0 {
		r.fixed(it.Version[:])
	}
	r.fixed(it.Digest[:])
	it.SOPInstanceUID = r.string(maxUIDBytes)
	it.StudyInstanceUID = r.refString(maxUIDBytes)
	it.SeriesInstanceUID = r.refString(maxUIDBytes)
	it.SOPClassUID = r.refString(maxUIDBytes)
	it.TransferSyntaxUID = r.refString(maxUIDBytes)
	if flags&itemOwnID == 0 {
		it.Version = VersionOf(it.SOPInstanceUID, it.TransferSyntaxUID, it.Digest)
	}
	it.Size = r.int()
	it.PixelOffset = r.int()
	it.Frames = uint32(r.size(1<<32 - 1))
	it.PatientKey.Issuer = r.refString(maxStringBytes)
	it.PatientKey.ID = r.refString(maxStringBytes)
	it.PatientAttributes = r.ref()
	it.StudyAttributes = r.ref()
	it.SeriesAttributes = r.ref()
	it.Attributes = r.bytes(maxAttributesBytes)
	it.ReceivedAt = r.time()
	r.fixed(it.ReceivedBy[:])
	it.CallingAE = r.refString(maxStringBytes)
	for n := r.count(maxNames); n > 0; n-- {
		it.names = append(it.names, r.refString(maxIndexBytes))
	}
	it.Holders = decodeNodes(r.decoder, maxHolders)
	return it
}

// EncodeItem returns item in the form that DecodeItem reads, to be kept beside its bytes until it
// has been applied: version u8 | strings and attributes | item | CRC32C. Its error wraps
// ErrInvalid.
func EncodeItem(item AddItem) ([]byte, error) {
	if err := item.check(); err != nil {
		return nil, err
	}
	return Encode(Batch{Commands: []Command{Add{Items: []AddItem{item}}}})
}

// DecodeItem reverses EncodeItem, save that names and attributes beyond the limits were cut. Its
// error wraps ErrMalformed, or ErrUnknownCommand for one of a newer program.
func DecodeItem(b []byte) (AddItem, error) {
	batch, err := decodeBatch(b)
	if err != nil {
		return AddItem{}, err
	}
	if add, ok := batch.Commands[0].(Add); ok && len(batch.Commands) == 1 && len(add.Items) == 1 {
		return add.Items[0], nil
	}
	return AddItem{}, fmt.Errorf("%w item: not one item", ErrMalformed)
}

func appendNodes(b []byte, nodes []place.NodeID) []byte {
	b = appendUint(b, uint64(len(nodes)))
	for _, n := range nodes {
		b = append(b, n[:]...)
	}
	return b
}

func decodeNodes(d *decoder, max int) []place.NodeID {
	n := d.count(max)
	if n == 0 {
		return nil
	}
	nodes := make([]place.NodeID, n)
	for i := range nodes {
		d.fixed(nodes[i][:])
	}
	return nodes
}

func appendPlacement(b []byte, g place.Geometry, p place.Placement) []byte {
	b = appendUint(b, uint64(g.K))
	b = appendUint(b, uint64(g.M))
	b = appendUint(b, uint64(len(p)))
	for _, s := range p {
		b = append(b, s.Node[:]...)
		b = append(b, s.Disk[:]...)
		b = appendString(b, string(s.Site))
	}
	return b
}

func decodePlacement(d *decoder) (place.Geometry, place.Placement) {
	g := place.Geometry{K: d.size(maxShards), M: d.size(maxShards)}
	p := make(place.Placement, d.count(maxShards))
	for i := range p {
		d.fixed(p[i].Node[:])
		d.fixed(p[i].Disk[:])
		p[i].Site = place.SiteID(d.string(maxStringBytes))
	}
	return g, p
}

func (c SealBegin) append(b []byte, _ *blobWriter) []byte {
	b = append(b, c.Encode[:]...)
	b = append(b, c.Pack[:]...)
	b = appendString(b, c.Study)
	b = append(b, c.Sealer[:]...)
	b = appendPlacement(b, c.Geometry, c.Placement)
	b = appendUint(b, c.Generation)
	b = appendUint(b, uint64(c.CellBytes))
	b = appendUint(b, uint64(c.BlockBytes))
	b = appendUint(b, uint64(len(c.Versions)))
	for i := range c.Versions {
		b = append(b, c.Versions[i][:]...)
	}
	return b
}

func decodeSealBegin(d *decoder) SealBegin {
	var c SealBegin
	d.fixed(c.Encode[:])
	d.fixed(c.Pack[:])
	c.Study = d.string(maxUIDBytes)
	d.fixed(c.Sealer[:])
	c.Geometry, c.Placement = decodePlacement(d)
	c.Generation = d.uint()
	c.CellBytes = d.size(1<<31 - 1)
	c.BlockBytes = d.size(1<<31 - 1)
	c.Versions = make([]VersionID, d.count(MaxPackVersions))
	for i := range c.Versions {
		d.fixed(c.Versions[i][:])
	}
	return c
}

func (c Seal) append(b []byte, _ *blobWriter) []byte {
	b = append(b, c.Encode[:]...)
	b = appendInt(b, c.StreamBytes)
	b = appendInt(b, c.PlainBytes)
	b = appendRoots(b, c.Roots)
	b = appendBytes(b, c.WrappedKey)
	b = appendInt(b, c.ManifestOffset)
	b = appendInt(b, c.ManifestSize)
	b = appendUint(b, uint64(len(c.Entries)))
	for i := range c.Entries {
		e := &c.Entries[i]
		b = append(b, e.Version[:]...)
		b = appendInt(b, e.Offset)
		b = appendInt(b, e.Size)
		b = appendInt(b, e.PixelOffset)
	}
	return b
}

func decodeSeal(d *decoder) Seal {
	var c Seal
	d.fixed(c.Encode[:])
	c.StreamBytes = d.int()
	c.PlainBytes = d.int()
	c.Roots = decodeRoots(d)
	c.WrappedKey = d.bytes(maxWrappedKeyBytes)
	c.ManifestOffset = d.int()
	c.ManifestSize = d.int()
	c.Entries = make([]SealEntry, d.count(MaxPackVersions))
	for i := range c.Entries {
		e := &c.Entries[i]
		d.fixed(e.Version[:])
		e.Offset, e.Size, e.PixelOffset = d.int(), d.int(), d.int()
	}
	return c
}

func appendRoots(b []byte, roots [][32]byte) []byte {
	b = appendUint(b, uint64(len(roots)))
	for i := range roots {
		b = append(b, roots[i][:]...)
	}
	return b
}

func decodeRoots(d *decoder) [][32]byte {
	roots := make([][32]byte, d.count(maxShards))
	for i := range roots {
		d.fixed(roots[i][:])
	}
	return roots
}

func (c SealAbort) append(b []byte, _ *blobWriter) []byte {
	return appendString(append(b, c.Encode[:]...), c.Why)
}

func (c ForgetEncode) append(b []byte, _ *blobWriter) []byte {
	return append(append(b, c.Encode[:]...), c.Node[:]...)
}

func (c PutNode) append(b []byte, _ *blobWriter) []byte { return appendNode(b, c.Node) }

func appendNode(b []byte, n Node) []byte {
	b = append(b, n.ID[:]...)
	b = appendString(b, n.Name)
	b = appendString(b, string(n.Site))
	b = append(b, n.Disk[:]...)
	b = appendString(b, n.Address)
	b = appendUint(b, n.Incarnation)
	b = append(b, byte(n.Role), byte(n.State))
	return append(b, n.CertFingerprint[:]...)
}

func decodeNode(d *decoder) Node {
	var n Node
	d.fixed(n.ID[:])
	n.Name = d.string(maxStringBytes)
	n.Site = place.SiteID(d.string(maxStringBytes))
	d.fixed(n.Disk[:])
	n.Address = d.string(maxStringBytes)
	n.Incarnation = d.uint()
	n.Role, n.State = NodeRole(d.byte()), NodeState(d.byte())
	d.fixed(n.CertFingerprint[:])
	return n
}

func (c PutToken) append(b []byte, _ *blobWriter) []byte {
	b = append(b, c.Hash[:]...)
	b = appendString(b, string(c.Site))
	b = appendTime(b, c.Created)
	return appendTime(b, c.Expires)
}

func (c UseToken) append(b []byte, _ *blobWriter) []byte {
	return append(append(b, c.Hash[:]...), c.Node[:]...)
}

func (c PutSetting) append(b []byte, _ *blobWriter) []byte {
	return appendBytes(appendString(b, c.Key), c.Value)
}

func (c Tombstone) append(b []byte, _ *blobWriter) []byte {
	return appendString(append(append(b, c.UIDHash[:]...), byte(c.Level)), c.Reason)
}

func (c PutOverlay) append(b []byte, _ *blobWriter) []byte {
	return appendBytes(append(appendString(b, c.Target), c.ID[:]...), c.Body)
}

func (c Hold) append(b []byte, _ *blobWriter) []byte {
	return appendBytes(append(appendString(b, c.Target), c.ID[:]...), c.Body)
}

func (c CommitmentRequest) append(b []byte, _ *blobWriter) []byte {
	return appendBytes(append(b, c.ID[:]...), c.Body)
}

// decodeCommand reads the command of number n. Faults of its bytes show in r; the error is
// ErrUnknownCommand alone.
func decodeCommand(n commandNumber, r *blobReader) (Command, error) {
	d := r.decoder
	switch n {
	case numberAdd:
		var c Add
		for n := d.count(maxItems); n > 0 && !d.bad; n-- {
			c.Items = append(c.Items, decodeItem(r))
		}
		return c, nil
	case numberSealBegin:
		return decodeSealBegin(d), nil
	case numberSeal:
		return decodeSeal(d), nil
	case numberSealAbort:
		var c SealAbort
		d.fixed(c.Encode[:])
		c.Why = d.string(maxStringBytes)
		return c, nil
	case numberForgetEncode:
		var c ForgetEncode
		d.fixed(c.Encode[:])
		d.fixed(c.Node[:])
		return c, nil
	case numberPutNode:
		return PutNode{Node: decodeNode(d)}, nil
	case numberPutToken:
		var c PutToken
		d.fixed(c.Hash[:])
		c.Site = place.SiteID(d.string(maxStringBytes))
		c.Created, c.Expires = d.time(), d.time()
		return c, nil
	case numberUseToken:
		var c UseToken
		d.fixed(c.Hash[:])
		d.fixed(c.Node[:])
		return c, nil
	}
	return decodeRecordCommand(n, d)
}

// decodeRecordCommand reads the commands that record an opaque body.
func decodeRecordCommand(n commandNumber, d *decoder) (Command, error) {
	switch n {
	case numberPutSetting:
		return PutSetting{Key: d.string(maxStringBytes), Value: d.bytes(maxSettingBytes)}, nil
	case numberTombstone:
		var c Tombstone
		d.fixed(c.UIDHash[:])
		c.Level = Level(d.byte())
		c.Reason = d.string(maxStringBytes)
		return c, nil
	case numberPutOverlay:
		c := PutOverlay{Target: d.string(maxStringBytes)}
		d.fixed(c.ID[:])
		c.Body = d.bytes(maxBodyFieldBytes)
		return c, nil
	case numberHold:
		c := Hold{Target: d.string(maxStringBytes)}
		d.fixed(c.ID[:])
		c.Body = d.bytes(maxBodyFieldBytes)
		return c, nil
	case numberCommitmentRequest:
		var c CommitmentRequest
		d.fixed(c.ID[:])
		c.Body = d.bytes(maxBodyFieldBytes)
		return c, nil
	}
	return decodeRegistryCommand(n, d)
}
