package dicomsvc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"osteon/dicomsvc/dicom"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// A description is what the manifest of a pack keeps of an instance's header, so that metadata and
// frames are served without touching its pixels:
//
//	version u8 = 1 | inflated u8 | header bytes uvarint | header | frame table (dicom.FrameTable)
//
// header is the data set up to and including the head of the pixel data element. inflated = 1 says that
// it is the inflated form of a deflated data set, in Explicit VR Little Endian.
const (
	descriptionVersion = 1
	// pixelHeadBytes is the longest element head (PS3.5 §7.1.2).
	pixelHeadBytes = 12
	// descriptionOverhead is what an entry of the cache takes besides its bytes.
	descriptionOverhead = 64
)

var errDescription = errors.New("malformed description")

// description is the decoded form.
type description struct {
	header []byte
	syntax string // of header
	frames *dicom.FrameTable
}

func appendDescription(header []byte, inflated bool, frames *dicom.FrameTable) ([]byte, error) {
	out := []byte{descriptionVersion, 0}
	if inflated {
		out[1] = 1
	}
	out = binary.AppendUvarint(out, uint64(len(header)))
	out = append(out, header...)
	if frames == nil {
		return out, nil
	}
	return frames.AppendBinary(out)
}

func parseDescription(b []byte, syntax string) (description, error) {
	if len(b) < 2 || b[0] != descriptionVersion {
		return description{}, errDescription
	}
	d := description{syntax: syntax}
	if b[1] == 1 {
		d.syntax = dicom.ExplicitVRLittleEndian
	}
	n, size := binary.Uvarint(b[2:])
	if size <= 0 || n > uint64(len(b)-2-size) {
		return description{}, errDescription
	}
	d.header = b[2+size : 2+size+int(n)]
	if rest := b[2+size+int(n):]; len(rest) > 0 {
		frames, err := dicom.ParseFrameTable(rest)
		if err != nil {
			return description{}, fmt.Errorf("%w: %w", errDescription, err)
		}
		d.frames = frames
	}
	return d, nil
}

// dataset returns the header as a data set with its pixel data element as a reference.
func (d description) dataset() (*dicom.Dataset, error) {
	return headerOf(bytes.NewReader(d.header), d.syntax)
}

// headerOf scans the beginning of a data set: everything before the pixel data, and their element.
func headerOf(r io.Reader, syntax string) (*dicom.Dataset, error) {
	scanner := dicom.NewScanner(r, syntax, dicom.Limits{})
	header, err := scanner.Header()
	if err != nil {
		return nil, fmt.Errorf("read stored header: %w", err)
	}
	pixel, err := scanner.PixelReference()
	if err != nil {
		return nil, fmt.Errorf("read stored header: %w", err)
	}
	if pixel != nil {
		header.Set(*pixel)
	}
	return header, nil
}

// Described is an instance with its header.
type Described struct {
	Instance *Instance
	// Header is the data set with long values and pixel data as references into Object.Section.
	Header *dicom.Dataset
}

// Headers yields the headers of the served versions that sel names, in the order of Instances. Sealed
// instances come from their packs' manifests, one read a series; pixels are never read.
func (a *Archive) Headers(ctx context.Context, p Principal, sel Selection) iter.Seq2[*Described, error] {
	return func(yield func(*Described, error) bool) {
		for in, err := range a.Instances(ctx, p, sel) {
			if err != nil {
				yield(nil, err)
				return
			}
			header, err := a.header(ctx, in)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&Described{Instance: in, Header: header}, nil) {
				return
			}
		}
	}
}

// Header returns the data set of an instance with long values and pixel data as dicom.Bulk references
// into Object.Section.
func (a *Archive) Header(ctx context.Context, p Principal, in *Instance) (*dicom.Dataset, error) {
	if err := a.permitRead(ctx, p); err != nil {
		return nil, err
	}
	return a.header(ctx, in)
}

func (a *Archive) header(ctx context.Context, in *Instance) (*dicom.Dataset, error) {
	if d, ok := a.described(ctx, in); ok {
		return d.dataset()
	}
	o, err := a.open(ctx, in)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return headerOf(&ranged{o: o, n: o.Size(), step: headerStep}, in.TransferSyntaxUID)
}

// Frames returns where the frames of an instance are, for Object.Section; nil for one without pixels.
func (a *Archive) Frames(ctx context.Context, p Principal, in *Instance) (*dicom.FrameTable, error) {
	if err := a.permitRead(ctx, p); err != nil {
		return nil, err
	}
	if d, ok := a.described(ctx, in); ok && d.frames != nil {
		return d.frames, nil
	}
	o, err := a.open(ctx, in)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	scanner := dicom.NewScanner(&ranged{o: o, n: o.Size()}, in.TransferSyntaxUID, dicom.Limits{})
	if err := scanner.Rest(); err != nil {
		return nil, fmt.Errorf("read stored pixel data: %w", err)
	}
	return scanner.Frames(), nil
}

// described looks an instance up in its pack's manifest; false when it is not sealed or the manifest
// has no header of it, or cannot be read: the object itself is the way then.
func (a *Archive) described(ctx context.Context, in *Instance) (description, bool) {
	l := in.located
	if l.State != catalog.VersionSealed {
		return description{}, false
	}
	series, err := a.manifests.series(ctx, a, l.Pack, in.SeriesInstanceUID)
	if err != nil {
		a.cfg.Log.Warn("manifest cannot be read", "pack", l.Pack, "err", err)
		return description{}, false
	}
	raw, ok := series.of[l.Instance.Version]
	if !ok {
		return description{}, false
	}
	d, err := parseDescription(raw, in.TransferSyntaxUID)
	if err != nil {
		a.cfg.Log.Warn("manifest cannot be read", "pack", l.Pack, "err", err)
		return description{}, false
	}
	return d, true
}

// manifestCache keeps the descriptions of the series used last, manifestCacheBytes of them. A series is
// read once however many ask for it at a time.
type manifestCache struct {
	mu sync.Mutex

	entries map[seriesKey]*seriesDescriptions
	order   []seriesKey // least recently used first
	bytes   int
	filling map[seriesKey]chan struct{} // closed when the read under way has ended
}

type seriesKey struct {
	pack   place.PackID
	series string
}

// seriesDescriptions are the descriptions of a series by version; of is nil when they are too many to keep.
type seriesDescriptions struct {
	of    map[catalog.VersionID][]byte
	bytes int
}

func (c *manifestCache) series(ctx context.Context, a *Archive, pack place.PackID, uid string) (*seriesDescriptions, error) {
	key := seriesKey{pack, uid}
	for {
		s, busy := c.get(key)
		if s != nil {
			return s, nil
		}
		if busy == nil {
			break
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s, err := a.readSeries(ctx, pack, uid)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.filling[key])
	delete(c.filling, key)
	if err != nil {
		return nil, err
	}
	c.entries[key] = s
	c.order = append(c.order, key)
	c.bytes += s.bytes
	for c.bytes > manifestCacheBytes && len(c.order) > 1 {
		old := c.order[0]
		c.order = c.order[1:]
		c.bytes -= c.entries[old].bytes
		delete(c.entries, old)
	}
	return s, nil
}

// get returns the entry, or what to wait for; neither when the caller is to fill it.
func (c *manifestCache) get(key seriesKey) (*seriesDescriptions, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries, c.filling = map[seriesKey]*seriesDescriptions{}, map[seriesKey]chan struct{}{}
	}
	if s := c.entries[key]; s != nil {
		i := slices.Index(c.order, key)
		c.order = append(slices.Delete(c.order, i, i+1), key)
		return s, nil
	}
	if busy := c.filling[key]; busy != nil {
		return nil, busy
	}
	c.filling[key] = make(chan struct{})
	return nil, nil
}

// errSeriesLong ends the read of a series whose descriptions are too many to keep.
var errSeriesLong = errors.New("series longer than the cache")

func (a *Archive) readSeries(ctx context.Context, id place.PackID, uid string) (*seriesDescriptions, error) {
	pack, err := a.openPack(ctx, id)
	if err != nil {
		return nil, err
	}
	defer pack.Close()
	manifest, err := pack.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	out := &seriesDescriptions{of: map[catalog.VersionID][]byte{}, bytes: descriptionOverhead}
	for _, s := range manifest.Series {
		if s.SeriesInstanceUID != uid {
			continue
		}
		err := pack.SeriesHeaders(ctx, s, func(ordinal int, header []byte) error {
			if out.bytes > manifestCacheBytes {
				return errSeriesLong
			}
			version := catalog.VersionID(manifest.Instances[ordinal].Version)
			out.of[version] = bytes.Clone(header)
			out.bytes += len(header) + descriptionOverhead
			return nil
		})
		if errors.Is(err, errSeriesLong) { // its objects are read one by one
			return &seriesDescriptions{bytes: descriptionOverhead}, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
