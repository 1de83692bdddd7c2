package dicomsvc

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/raft/catalog"
)

// Outcome is what became of a stored object.
type Outcome uint8

const (
	// OutcomeStored: a new instance.
	OutcomeStored Outcome = iota
	// OutcomeIdentical: the same bytes are stored already.
	OutcomeIdentical
	// OutcomeFurtherVersion: other bytes are served under this SOP Instance UID; these are kept beside
	// them until quality control decides.
	OutcomeFurtherVersion
	// OutcomeLimbo: the UID was erased; the object is neither served nor committed.
	OutcomeLimbo
)

// String returns the word of the audit record.
func (o Outcome) String() string {
	return [...]string{"stored", "identical", "further version", "limbo"}[o&3]
}

// PutRequest is one object on its way in.
type PutRequest struct {
	Principal Principal
	// SOPClassUID and SOPInstanceUID are what the C-STORE command says; empty when nothing does.
	SOPClassUID, SOPInstanceUID string
	// StudyInstanceUID is the study that the object must belong to; empty: any.
	StudyInstanceUID string
	// TransferSyntaxUID is the syntax in which Body is encoded.
	TransferSyntaxUID string
	// Body is the data set, without file meta information.
	Body io.Reader
	// CallingAE is the sender's AE title, kept as provenance.
	CallingAE string
	// Issuer is who issued the Patient ID where the data set does not say (0010,0021). Empty: nobody known.
	Issuer string
	// ClaimedUID is the SOP Instance UID that something beside the data set names, file meta information for
	// instance; it is not held against the data set. Empty: SOPInstanceUID.
	ClaimedUID string
}

// PutResult is what Put acknowledged.
type PutResult struct {
	SOPClassUID, SOPInstanceUID, StudyInstanceUID, SeriesInstanceUID string
	Digest                                                           [sha256.Size]byte
	Size                                                             int64
	Outcome                                                          Outcome
	Spooled                                                          bool
	// Comment explains an outcome other than OutcomeStored; it fits an Error Comment (64 characters).
	Comment string
}

// Put stores one object. When it returns without error the bytes are fsynced in the journals that the
// acknowledgement rule demands (design P1, PS3.4 §B.2.3); it streams and holds no more than the header.
//
// Errors: ErrMismatch when the data set's UIDs are not those of the command or of the study asked for,
// ErrMalformed and ErrLimit when it cannot be read, ErrResources and ErrFull when it cannot be made safe
// now, ErrDraining, ErrDenied, ErrPoison when the object made the node panic before. The identifying UIDs in
// the result are set as far as they were read.
func (a *Archive) Put(ctx context.Context, req PutRequest) (PutResult, error) {
	c := access{act: ActionStore, began: a.cfg.Now()}
	var result PutResult
	survived, err := a.poison.watch(req)
	if err != nil {
		a.stats.Refused.Add(1)
		c.who = req.Principal
		c.who.Node = a.cfg.Self
		a.record(ctx, &c, err)
		return PutResult{SOPClassUID: req.SOPClassUID, SOPInstanceUID: req.SOPInstanceUID}, err
	}
	defer survived()
	if c.who, err = a.permit(req.Principal, ActionStore); err == nil {
		result, err = a.put(ctx, req)
	} else {
		result = PutResult{SOPClassUID: req.SOPClassUID, SOPInstanceUID: req.SOPInstanceUID}
	}
	if err != nil {
		a.stats.Refused.Add(1)
	} else {
		c.instances, c.bytes, c.outcome = 1, result.Size, result.Outcome.String()
	}
	c.study = result.StudyInstanceUID
	a.record(ctx, &c, err)
	return result, err
}

func (a *Archive) put(ctx context.Context, req PutRequest) (PutResult, error) {
	result := PutResult{SOPClassUID: req.SOPClassUID, SOPInstanceUID: req.SOPInstanceUID}
	if err := a.Ready(); err != nil { // before a byte is taken
		return result, err
	}
	in := &intake{source: req.Body, hash: sha256.New(), early: a.intakes.buffer(), arrived: &a.pace.arrived}
	defer func() { a.intakes.putBuffer(in.early) }()
	scanner := a.intakes.scanner()
	defer a.intakes.putScanner(scanner)
	scanner.Reset(in, req.TransferSyntaxUID, dicom.Limits{})
	header, err := scanner.Header()
	if err != nil {
		return result, in.explain(err)
	}
	facts, err := dicom.ExtractFacts(header)
	if err != nil {
		return result, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	result.SOPClassUID, result.SOPInstanceUID = facts.SOPClassUID, facts.SOPInstanceUID
	result.StudyInstanceUID, result.SeriesInstanceUID = facts.StudyInstanceUID, facts.SeriesInstanceUID
	if err := agree(req, facts); err != nil {
		return result, err
	}
	pixelOffset := scanner.Offset()
	in.to = a.store.Begin(ctx, []byte(facts.StudyInstanceUID))
	defer in.to.Abort()
	if err := in.release(); err != nil {
		return result, storeError(err)
	}
	if err := scanner.Rest(); err != nil {
		return result, in.explain(err)
	}
	if err := in.finish(); err != nil {
		return result, err
	}
	if scanner.Syntax().Deflated { // offsets of the inflated stream mean nothing in the stored one
		pixelOffset = in.size
	}
	in.hash.Sum(result.Digest[:0])
	result.Size = in.size
	item, err := a.newItem(req, facts, result, pixelOffset)
	if err != nil {
		return result, err
	}
	return a.commit(ctx, in.to, item, result)
}

// agree holds the data set against what the request says it is (behaviour 21: never store under one of
// two UIDs).
func agree(req PutRequest, facts dicom.Facts) error {
	switch {
	case req.SOPInstanceUID != "" && req.SOPInstanceUID != facts.SOPInstanceUID:
		return fmt.Errorf("%w: SOP Instance UID (0008,0018) differs from the command's", ErrMismatch)
	case req.SOPClassUID != "" && req.SOPClassUID != facts.SOPClassUID:
		return fmt.Errorf("%w: SOP Class UID (0008,0016) differs from the command's", ErrMismatch)
	case req.StudyInstanceUID != "" && req.StudyInstanceUID != facts.StudyInstanceUID:
		return fmt.Errorf("%w: Study Instance UID (0020,000D) differs from the request's", ErrMismatch)
	}
	return nil
}

func (a *Archive) newItem(req PutRequest, facts dicom.Facts, result PutResult, pixelOffset int64) (catalog.AddItem, error) {
	item := catalog.AddItem{Instance: catalog.Instance{
		Version:           catalog.VersionOf(facts.SOPInstanceUID, req.TransferSyntaxUID, result.Digest),
		SOPInstanceUID:    facts.SOPInstanceUID,
		SOPClassUID:       facts.SOPClassUID,
		StudyInstanceUID:  facts.StudyInstanceUID,
		SeriesInstanceUID: facts.SeriesInstanceUID,
		TransferSyntaxUID: req.TransferSyntaxUID,
		Digest:            result.Digest,
		Size:              result.Size,
		PixelOffset:       pixelOffset,
		Frames:            uint32(max(facts.Frames, 0)),
		PatientKey:        catalog.PatientKey{Issuer: cmp.Or(facts.Issuer, req.Issuer), ID: facts.PatientID},
		ReceivedAt:        a.cfg.Now(),
		ReceivedBy:        a.cfg.Self,
		CallingAE:         req.CallingAE,
	}}
	for _, level := range []struct {
		to   *[]byte
		from *dicom.Dataset
	}{
		{&item.Instance.PatientAttributes, facts.Patient},
		{&item.Instance.StudyAttributes, facts.Study},
		{&item.Instance.SeriesAttributes, facts.Series},
		{&item.Instance.Attributes, facts.Instance},
	} {
		encoded, err := level.from.Encode(nil, dicom.ExplicitVRLittleEndian)
		if err != nil {
			return item, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		*level.to = encoded
	}
	return item, nil
}

// commit makes the object durable, remembers its catalog entry as pending and tells what became of it.
func (a *Archive) commit(ctx context.Context, to *erasure.Append, item catalog.AddItem, result PutResult) (PutResult, error) {
	note, err := catalog.EncodeItem(item)
	if err != nil {
		return result, fmt.Errorf("%w: %w", ErrLimit, err)
	}
	before, err := located(a.catalog.Locate(ctx, item.Instance.SOPInstanceUID))
	if err != nil && !isNotFound(err) {
		return result, fmt.Errorf("%w: look the instance up: %w", ErrResources, err)
	}
	acked, err := to.Commit(ctx, journal.Key(item.Instance.Version), note)
	if err != nil {
		return result, storeError(err)
	}
	item.Holders, item.Spooled = acked.Holders, acked.Spooled
	applied, prior := a.pending.add(item, a.cfg.Now())
	result.Spooled = acked.Spooled
	result.Outcome, result.Comment = a.judge(ctx, item.Instance, before, prior)
	a.count(result)
	if a.cfg.Catalogued {
		return result, a.awaitApplied(ctx, applied)
	}
	return result, nil
}

// awaitApplied returns once the catalog here has an instance (ack: catalogued, design P1).
func (a *Archive) awaitApplied(ctx context.Context, applied <-chan struct{}) error {
	late := time.NewTimer(cataloguedMax)
	defer late.Stop()
	select {
	case <-applied:
		return nil
	case <-late.C:
		return fmt.Errorf("%w: the object is journalled, but the catalog has not confirmed it in time", ErrResources)
	case <-ctx.Done():
		return fmt.Errorf("%w: the object is journalled, but the catalog has not confirmed it: %w", ErrResources, ctx.Err())
	}
}

func (a *Archive) count(result PutResult) {
	a.stats.StoredBytes.Add(result.Size)
	switch result.Outcome {
	case OutcomeIdentical:
		a.stats.Identical.Add(1)
	case OutcomeFurtherVersion, OutcomeLimbo:
		a.stats.Further.Add(1)
	default:
		a.stats.Stored.Add(1)
	}
}

// judge says what a version that was just journalled is beside what this node knows under the same SOP
// Instance UID: before is the applied catalog as it was before the commit, prior the versions that waited
// here when it began to wait. The catalog is asked once more, after that: so of two versions that arrive at
// once, one sees the other.
func (a *Archive) judge(ctx context.Context, in catalog.Instance, before []catalog.Located, prior []catalog.VersionID) (Outcome, string) {
	const (
		identical = "identical instance already stored"
		further   = "other content stored under this UID; kept for QC"
		limbo     = "instance was erased before; kept aside for QC"
	)
	now, err := located(a.catalog.Locate(ctx, in.SOPInstanceUID))
	if err != nil && !isNotFound(err) {
		a.cfg.Log.Warn("stored instance not compared with the catalog", "version", in.Version, "err", err)
		now = before
	}
	if k := find(now, in.Version); k != nil && k.State == catalog.VersionLimbo {
		return OutcomeLimbo, limbo
	}
	for _, k := range now {
		if k.Served && k.Instance.Version != in.Version {
			return OutcomeFurtherVersion, further
		}
	}
	if k := find(now, in.Version); find(before, in.Version) != nil || k != nil && !sameArrival(k.Instance, in) {
		return OutcomeIdentical, identical
	}
	uids := []string{in.SOPInstanceUID, in.SeriesInstanceUID, in.StudyInstanceUID}
	if erased, err := a.catalog.Erased(ctx, uids...); err == nil && erased && find(now, in.Version) == nil {
		return OutcomeLimbo, limbo
	}
	switch {
	case len(prior) == 0 || find(now, in.Version) != nil:
		return OutcomeStored, ""
	case prior[0] == in.Version:
		return OutcomeIdentical, identical
	default:
		return OutcomeFurtherVersion, further
	}
}

// sameArrival reports whether what the catalog keeps of a version is of the arrival in, and not of an earlier one
// that was applied between the two looks at it.
func sameArrival(kept, in catalog.Instance) bool {
	return kept.ReceivedBy == in.ReceivedBy && kept.ReceivedAt.Equal(in.ReceivedAt)
}

func find(list []catalog.Located, v catalog.VersionID) *catalog.Located {
	for i := range list {
		if list[i].Instance.Version == v {
			return &list[i]
		}
	}
	return nil
}

// storeError names the kind of a blob store error.
func storeError(err error) error {
	switch {
	case errors.Is(err, journal.ErrFull):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, erasure.ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", ErrResources, err)
	}
}

// intakes recycles what every Put needs.
type intakes struct{ scanners, buffers sync.Pool }

func (p *intakes) scanner() *dicom.Scanner {
	if s, ok := p.scanners.Get().(*dicom.Scanner); ok {
		return s
	}
	return new(dicom.Scanner)
}

// putScanner takes a scanner back, without what it read from.
func (p *intakes) putScanner(s *dicom.Scanner) {
	s.Reset(strings.NewReader(""), dicom.ExplicitVRLittleEndian, dicom.Limits{})
	p.scanners.Put(s)
}

func (p *intakes) buffer() *bytes.Buffer {
	if b, ok := p.buffers.Get().(*bytes.Buffer); ok {
		return b
	}
	return new(bytes.Buffer)
}

// putBuffer takes a buffer back unless an unusual header made it large.
func (p *intakes) putBuffer(b *bytes.Buffer) {
	if b.Cap() <= earlyKeptMax {
		b.Reset()
		p.buffers.Put(b)
	}
}

// intake passes the sender's bytes to the scanner and the same bytes to the hash and, once the study is
// known, to the journals.
type intake struct {
	source  io.Reader
	hash    hash.Hash
	to      *erasure.Append
	early   *bytes.Buffer // what came before to was known
	size    int64
	arrived *atomic.Int64 // counts for all senders
	readErr error         // the sender's stream broke
	putErr  error         // the journal refused
}

func (in *intake) Read(p []byte) (int, error) {
	n, err := in.source.Read(p)
	if n > 0 {
		if perr := in.keep(p[:n]); perr != nil {
			return 0, perr
		}
	}
	if err != nil && err != io.EOF {
		in.readErr = err
	}
	return n, err
}

func (in *intake) keep(p []byte) error {
	in.size += int64(len(p))
	in.arrived.Add(int64(len(p)))
	in.hash.Write(p)
	if in.to == nil {
		if in.early.Len()+len(p) > headerSpillMax {
			in.putErr = fmt.Errorf("%w: more than %d bytes before the study is known", ErrLimit, headerSpillMax)
			return in.putErr
		}
		in.early.Write(p)
		return nil
	}
	if _, err := in.to.Write(p); err != nil {
		in.putErr = storeError(err)
		return in.putErr
	}
	return nil
}

// release moves what was held back into the journals.
func (in *intake) release() error {
	_, err := in.to.Write(in.early.Bytes())
	return err
}

// finish reads what the scanner left (a deflated stream may end before its source does).
func (in *intake) finish() error {
	var rest [512]byte
	for {
		switch _, err := in.Read(rest[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return in.explain(err)
		}
	}
}

// explain tells a broken sender and a refusing journal from a data set that cannot be understood.
func (in *intake) explain(err error) error {
	switch {
	case in.putErr != nil:
		return in.putErr
	case in.readErr != nil:
		return fmt.Errorf("%w: the sender's stream ended early: %w", ErrMalformed, in.readErr)
	case errors.Is(err, dicom.ErrLimit):
		return fmt.Errorf("%w: %w", ErrLimit, err)
	default:
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
}
