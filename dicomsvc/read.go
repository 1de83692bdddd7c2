package dicomsvc

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"osteon/dicomsvc/dicom"
	"osteon/erasure"
	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/plant"
	"osteon/raft/catalog"
	"osteon/raft/vault"
)

type tagValue struct {
	tag dicom.Tag
	vr  dicom.VR
}

var (
	keyPatient = tagValue{dicom.PatientID, dicom.LO}
	keyStudy   = tagValue{dicom.StudyInstanceUID, dicom.UI}
	keySeries  = tagValue{dicom.SeriesInstanceUID, dicom.UI}
)

func isNotFound(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, catalog.ErrNotFound)
}

// Object is one stored data set, in the transfer syntax in which it was received. It is used by one
// goroutine at a time; Close it.
type Object struct {
	ctx      context.Context
	instance *Instance
	from     erasure.Object
	base     int64 // where the data set begins in from
}

// Open opens the bytes of a found instance: a journal or hot copy here or at its holders, else any k
// shards. Errors: ErrDenied, ErrUnavailable when too little of it can be reached, ErrNotFound when it is
// gone since it was found. ctx bounds every read of the object.
func (a *Archive) Open(ctx context.Context, p Principal, in *Instance) (*Object, error) {
	if err := a.permitRead(ctx, p); err != nil {
		return nil, err
	}
	return a.open(ctx, in)
}

func (a *Archive) open(ctx context.Context, in *Instance) (*Object, error) {
	o, err := a.openLocated(ctx, in)
	if err == nil || ctx.Err() != nil {
		return o, err
	}
	// It may have been sealed and its journal records freed between the search and now.
	list, lerr := a.locate(ctx, in.SOPInstanceUID)
	if lerr != nil {
		return nil, errors.Join(err, lerr)
	}
	for _, l := range list {
		if l.Instance.Version == in.located.Instance.Version && l.State != in.located.State {
			moved := *in
			moved.located = l
			return a.openLocated(ctx, &moved)
		}
	}
	return nil, err
}

func (a *Archive) openLocated(ctx context.Context, in *Instance) (*Object, error) {
	l := in.located
	key := journal.Key(l.Instance.Version)
	if l.State != catalog.VersionSealed {
		from, err := a.store.OpenJournalled(ctx, key, in.Size, l.Holders)
		if err != nil {
			return nil, storeError(err)
		}
		return &Object{ctx: ctx, instance: in, from: &journalCopy{Object: from, archive: a, located: l}}, nil
	}
	if hot, err := a.store.OpenHot(key); err == nil {
		return &Object{ctx: ctx, instance: in, from: &journalCopy{Object: hot, archive: a, located: l}}, nil
	}
	from, err := a.openPack(ctx, l.Pack)
	if err != nil {
		return nil, err
	}
	return &Object{ctx: ctx, instance: in, from: from, base: l.Entry.Offset}, nil
}

// journalCopy is a copy in a journal, here or at its holders. A read that it fails goes on in the version's pack:
// a hot copy is damaged or evicted, or the version was sealed and its records were freed since it was found.
type journalCopy struct {
	erasure.Object
	archive *Archive
	located catalog.Located
}

func (j *journalCopy) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	out := &tally{w: w}
	err := j.Object.CopyRange(ctx, out, off, n)
	if err == nil || out.err != nil || ctx.Err() != nil {
		return err
	}
	l := j.located
	if l.State == catalog.VersionSealed {
		j.archive.cfg.Log.Error("hot copy unreadable, read from the pack", "pack", l.Pack, "err", err)
	} else if now, ferr := j.archive.catalog.Find(ctx, l.Instance.Version); ferr != nil || now.State != catalog.VersionSealed {
		return err
	} else {
		l = now
	}
	pack, perr := j.archive.openPack(ctx, l.Pack)
	if perr != nil {
		return errors.Join(err, perr)
	}
	defer pack.Close()
	return pack.CopyRange(ctx, w, l.Entry.Offset+off+out.n, n-out.n)
}

// Size is the length of the data set as received, in bytes.
func (o *Object) Size() int64 { return o.instance.Size }

// Close frees the object.
func (o *Object) Close() error { return o.from.Close() }

// ReadAt reads from the data set as received. Every byte was authenticated.
func (o *Object) ReadAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if off < 0 || off > o.Size() {
		return 0, io.EOF
	}
	short := n > o.Size()-off
	n = min(n, o.Size()-off)
	out := fill{p: p}
	if err := o.from.CopyRange(o.ctx, &out, o.base+off, n); err != nil {
		return out.n, readError(err)
	}
	if short {
		return out.n, io.EOF
	}
	return out.n, nil
}

type fill struct {
	p []byte
	n int
}

func (f *fill) Write(b []byte) (int, error) {
	n := copy(f.p[f.n:], b)
	f.n += n
	return n, nil
}

// WriteTo writes the whole data set as received. Its SHA-256 is checked on the way and the last bytes
// are withheld when it differs: ErrCorrupt.
func (o *Object) WriteTo(w io.Writer) (int64, error) {
	out := &guarded{w: w, hash: sha256.New(), left: o.Size()}
	if err := o.from.CopyRange(o.ctx, out, o.base, o.Size()); err != nil {
		return out.n, readError(err)
	}
	var digest [sha256.Size]byte
	out.hash.Sum(digest[:0])
	if digest != o.instance.Digest && !plant.Is(plant.DigestNotCompared) {
		return out.n, fmt.Errorf("%w: SHA-256 differs from the one recorded at arrival", ErrCorrupt)
	}
	n, err := w.Write(out.held)
	return out.n + int64(n), err
}

// guarded passes bytes on and holds the last guardBytes back until their digest was checked.
type guarded struct {
	w    io.Writer
	hash hash.Hash
	held []byte
	left int64
	n    int64
}

const guardBytes = 64

func (g *guarded) Write(p []byte) (int, error) {
	if _, err := g.hash.Write(p); err != nil {
		return 0, err
	}
	g.left -= int64(len(p))
	pass := len(p)
	if g.left < guardBytes {
		pass = int(max(0, int64(len(p))-(guardBytes-g.left)))
	}
	if pass > 0 {
		n, err := g.w.Write(p[:pass])
		g.n += int64(n)
		if err != nil {
			return n, err
		}
	}
	g.held = append(g.held, p[pass:]...)
	return len(p), nil
}

// Section returns a reader of n bytes at off, in the offsets that dicom.Bulk and dicom.FrameTable use:
// those of the inflated stream when the transfer syntax is deflated.
func (o *Object) Section(off, n int64) io.Reader {
	if !dicom.SyntaxOf(o.instance.TransferSyntaxUID).Deflated {
		return &ranged{o: o, off: off, n: n}
	}
	return &inflated{raw: flate.NewReader(&ranged{o: o, n: o.Size()}), skip: off, left: n}
}

// ranged reads a range of an object through a pipe-less pull: each Read asks for a bounded piece.
type ranged struct {
	o      *Object
	off, n int64
	step   int64 // bytes fetched at once; 0 means rangedStep
	buf    bytes.Buffer
}

const (
	rangedStep = 1 << 20
	// headerStep is what a header scan fetches at once: most headers are far shorter.
	headerStep = 64 << 10
)

// reset makes r read all of o in pieces of step, with the memory it has.
func (r *ranged) reset(o *Object, step int64) {
	r.buf.Reset()
	*r = ranged{o: o, n: o.Size(), step: step, buf: r.buf}
}

func (r *ranged) Read(p []byte) (int, error) {
	if r.buf.Len() == 0 {
		step := r.step
		if step == 0 {
			step = rangedStep
		}
		step = min(step, r.n)
		if step == 0 {
			return 0, io.EOF
		}
		r.buf.Reset()
		if err := r.o.from.CopyRange(r.o.ctx, &r.buf, r.o.base+r.off, step); err != nil {
			return 0, readError(err)
		}
		r.off, r.n = r.off+step, r.n-step
	}
	return r.buf.Read(p)
}

// WriteTo passes the whole range through without a buffer between.
func (r *ranged) WriteTo(w io.Writer) (int64, error) {
	n, err := r.buf.WriteTo(w)
	if err != nil {
		return n, err
	}
	out := &tally{w: w}
	err = r.o.from.CopyRange(r.o.ctx, out, r.o.base+r.off, r.n)
	r.n = 0
	return n + out.n, readError(err)
}

// tally counts what its writer took and remembers that writer's error.
type tally struct {
	w   io.Writer
	n   int64
	err error
}

func (t *tally) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.n += int64(n)
	if err != nil {
		t.err = err
	}
	return n, err
}

// inflated reads a section of the inflated stream.
type inflated struct {
	raw        io.Reader
	skip, left int64
}

func (r *inflated) Read(p []byte) (int, error) {
	if r.skip > 0 {
		if _, err := io.CopyN(io.Discard, r.raw, r.skip); err != nil {
			return 0, err
		}
		r.skip = 0
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.raw.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// readError names the kind of an error of a read under way.
func readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, erasure.ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, erasure.ErrPackCorrupt), errors.Is(err, journal.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	default:
		return err
	}
}

// openPack opens a sealed pack for reading.
func (a *Archive) openPack(ctx context.Context, id place.PackID) (*erasure.SealedPack, error) {
	p, err := a.catalog.Pack(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("look up pack %s: %w", id, err)
	}
	ref, err := a.packRef(p)
	if err != nil {
		return nil, err
	}
	pack, err := a.store.OpenSealed(ctx, ref)
	if err != nil {
		return nil, readError(err)
	}
	return pack, nil
}

func (a *Archive) packRef(p *catalog.Pack) (erasure.PackRef, error) {
	key, err := a.cfg.Vault.Unwrap(vault.WrappedKey(p.WrappedKey), packKeyAAD(a.cfg.Ring, p.ID, p.Encode))
	if err != nil {
		return erasure.PackRef{}, fmt.Errorf("unwrap the key of pack %s: %w", p.ID, err)
	}
	return erasure.PackRef{
		Pack: p.ID, Encode: p.Encode, Geometry: p.Geometry, Placement: p.Placement, Generation: p.Generation,
		CellBytes: p.CellBytes, BlockBytes: p.BlockBytes, StreamBytes: p.StreamBytes, PlainBytes: p.PlainBytes,
		ManifestOffset: p.ManifestOffset, ManifestSize: p.ManifestSize, Key: key,
	}, nil
}
