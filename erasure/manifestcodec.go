package erasure

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"osteon/erasure/place"
)

const (
	manifestMagic     = "OSTMANI\x01"
	manifestHeadBytes = 32
	manifestSumBytes  = 4
)

func manifestSum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

func appendSum(dst, of []byte) []byte {
	return binary.LittleEndian.AppendUint32(dst, manifestSum(of))
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendHead(dst []byte, indexBytes, headersBytes int64) []byte {
	start := len(dst)
	dst = append(dst, manifestMagic...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(indexBytes))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(headersBytes))
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	return appendSum(dst, dst[start:])
}

// ManifestIndexBytes reads from the first [ManifestHeadBytes] bytes of a manifest how many bytes head
// and index take together, so that a reader fetches those and not the headers.
func ManifestIndexBytes(head []byte) (int64, error) {
	index, _, err := parseHead(head)
	return manifestHeadBytes + index, err
}

// ManifestHeadBytes is the length of a manifest's head.
const ManifestHeadBytes = manifestHeadBytes

func parseHead(b []byte) (indexBytes, headersBytes int64, err error) {
	if len(b) < manifestHeadBytes || string(b[:7]) != manifestMagic[:7] {
		return 0, 0, fmt.Errorf("no manifest head: %w", ErrManifest)
	}
	if b[7] != manifestMagic[7] {
		return 0, 0, fmt.Errorf("manifest version %d: %w", b[7], ErrManifestVersion)
	}
	if manifestSum(b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, 0, fmt.Errorf("manifest head checksum differs: %w", ErrManifest)
	}
	index, headers := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	if index > manifestBytesMax || headers > manifestBytesMax || index < manifestSumBytes {
		return 0, 0, fmt.Errorf("manifest of %d and %d bytes: %w", index, headers, ErrManifest)
	}
	return int64(index), int64(headers), nil
}

// interned numbers the strings that repeat.
type interned struct {
	number map[string]uint64
	all    []string
}

func (t *interned) of(s string) uint64 {
	n, ok := t.number[s]
	if !ok {
		n = uint64(len(t.all))
		t.number[s] = n
		t.all = append(t.all, s)
	}
	return n
}

// appendIndex writes the records of the index, not compressed.
func appendIndex(dst []byte, m *Manifest, series map[string]*seriesBuilder) []byte {
	table := interned{number: make(map[string]uint64)}
	var instances []byte
	for i := range m.Instances {
		in := &m.Instances[i]
		instances = binary.AppendUvarint(instances, uint64(series[in.SeriesInstanceUID].number))
		instances = appendInstance(instances, in, &table)
	}
	dst = appendString(dst, m.StudyInstanceUID)
	dst = binary.AppendUvarint(dst, uint64(len(table.all)))
	for _, s := range table.all {
		dst = appendString(dst, s)
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.Series)))
	for _, s := range m.Series {
		dst = appendString(dst, s.SeriesInstanceUID)
		dst = binary.AppendUvarint(dst, uint64(len(s.Groups)))
		for _, g := range s.Groups {
			dst = binary.AppendUvarint(dst, uint64(g.Offset))
			dst = binary.AppendUvarint(dst, uint64(g.Bytes))
			dst = binary.AppendUvarint(dst, uint64(g.Instances))
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.Instances)))
	return append(dst, instances...)
}

func appendInstance(dst []byte, in *ManifestInstance, table *interned) []byte {
	dst = append(dst, in.Version[:]...)
	dst = append(dst, in.Digest[:]...)
	dst = appendString(dst, in.SOPInstanceUID)
	dst = binary.AppendUvarint(dst, table.of(in.SOPClassUID))
	dst = binary.AppendUvarint(dst, table.of(in.TransferSyntaxUID))
	dst = binary.AppendUvarint(dst, uint64(in.Offset))
	dst = binary.AppendUvarint(dst, uint64(in.Size))
	dst = binary.AppendUvarint(dst, uint64(in.PixelOffset))
	dst = binary.AppendUvarint(dst, table.of(in.Provenance.CallingAE))
	dst = append(dst, in.Provenance.Node[:]...)
	dst = binary.AppendUvarint(dst, uint64(max(in.Provenance.At.UnixMilli(), 0)))
	kept := byte(0)
	if in.HeaderKept {
		kept = 1
	}
	dst = append(dst, kept)
	dst = binary.AppendUvarint(dst, uint64(len(in.Frames)))
	end := int64(0)
	for _, f := range in.Frames {
		dst = binary.AppendVarint(dst, f.Offset-end)
		dst = binary.AppendUvarint(dst, uint64(f.Length))
		end = f.Offset + f.Length
	}
	return dst
}

// DecodeManifest decodes the index of a manifest, given at least its first [ManifestIndexBytes] bytes; headers
// are not looked at. Errors: [ErrManifest], [ErrManifestVersion].
func DecodeManifest(b []byte) (*Manifest, error) {
	indexBytes, headersBytes, err := parseHead(b)
	if err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if int64(len(b)) < manifestHeadBytes+indexBytes {
		return nil, fmt.Errorf("decode manifest: it is cut short: %w", ErrManifest)
	}
	raw, err := unpack(b[manifestHeadBytes:manifestHeadBytes+indexBytes], manifestIndexMax)
	if err != nil {
		return nil, fmt.Errorf("decode manifest index: %w", err)
	}
	d := decoder{b: raw}
	m := d.manifest(manifestHeadBytes+indexBytes, headersBytes)
	if d.bad || len(d.b) > 0 {
		return nil, fmt.Errorf("decode manifest index: %d bytes from its end: %w", len(d.b), ErrManifest)
	}
	return m, nil
}

// DecodeHeaders decodes a header group, from the bytes that it names, into the raw headers of its
// instances. The result shares one buffer.
func DecodeHeaders(g HeaderGroup, b []byte) ([][]byte, error) {
	if int64(len(b)) != g.Bytes {
		return nil, fmt.Errorf("decode header group of %d bytes from %d: %w", g.Bytes, len(b), ErrManifest)
	}
	raw, err := unpack(b, headerGroupBytes+HeaderBytesMax+binary.MaxVarintLen64)
	if err != nil {
		return nil, fmt.Errorf("decode header group: %w", err)
	}
	d := decoder{b: raw}
	var out [][]byte
	for len(d.b) > 0 && !d.bad {
		out = append(out, d.take(d.count(HeaderBytesMax)))
	}
	if d.bad || len(out) != g.Instances {
		return nil, fmt.Errorf("decode header group: %d of %d headers: %w", len(out), g.Instances, ErrManifest)
	}
	return out, nil
}

// unpack checks and decompresses b, which ends in a checksum, into at most limit bytes. Memory grows
// with what really comes out.
func unpack(b []byte, limit int64) ([]byte, error) {
	if len(b) < manifestSumBytes {
		return nil, ErrManifest
	}
	packed, sum := b[:len(b)-manifestSumBytes], b[len(b)-manifestSumBytes:]
	if manifestSum(packed) != binary.LittleEndian.Uint32(sum) {
		return nil, fmt.Errorf("checksum differs: %w", ErrManifest)
	}
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	defer z.Close()
	raw, err := io.ReadAll(io.LimitReader(z, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, ErrManifest)
	}
	return raw, nil
}

// decoder reads records; after the first fault bad is set and everything reads as zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of at most limit.
func (d *decoder) count(limit int64) int64 {
	v := d.uvarint()
	if v > uint64(limit) {
		d.bad, d.b = true, nil
		return 0
	}
	return int64(v)
}

func (d *decoder) take(n int64) []byte {
	if n > int64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) string() string { return string(d.take(d.count(manifestStringMax))) }

// fixed fills dst, which stays zero after a fault.
func (d *decoder) fixed(dst []byte) { copy(dst, d.take(int64(len(dst)))) }

func (d *decoder) pick(table []string) string {
	i := d.uvarint()
	if i >= uint64(len(table)) {
		d.bad, d.b = true, nil
		return ""
	}
	return table[i]
}

// manifest reads all records. Slices grow with the records that are really there: each takes at least a
// byte of the index.
func (d *decoder) manifest(headersAt, headersBytes int64) *Manifest {
	m := &Manifest{StudyInstanceUID: d.string()}
	var table []string
	for n := d.count(manifestInstancesMax * 3); n > 0 && !d.bad; n-- {
		table = append(table, d.string())
	}
	for n := d.count(manifestInstancesMax); n > 0 && !d.bad; n-- {
		m.Series = append(m.Series, d.series(headersAt, headersBytes))
	}
	frames := int64(manifestFramesMax)
	for n := d.count(manifestInstancesMax); n > 0 && !d.bad; n-- {
		s := d.uvarint()
		if s >= uint64(len(m.Series)) {
			d.bad = true
			return m
		}
		in := d.instance(table, &frames)
		in.Ordinal = len(m.Instances)
		in.SeriesInstanceUID = m.Series[s].SeriesInstanceUID
		if in.HeaderKept {
			m.Series[s].Ordinals = append(m.Series[s].Ordinals, in.Ordinal)
		}
		m.Instances = append(m.Instances, in)
	}
	for _, s := range m.Series {
		kept := 0
		for _, g := range s.Groups {
			kept += g.Instances
		}
		d.bad = d.bad || kept != len(s.Ordinals)
	}
	return m
}

func (d *decoder) series(headersAt, headersBytes int64) ManifestSeries {
	s := ManifestSeries{SeriesInstanceUID: d.string()}
	for n := d.count(manifestInstancesMax); n > 0 && !d.bad; n-- {
		at := d.count(headersBytes)
		g := HeaderGroup{Offset: headersAt + at, Bytes: d.count(headersBytes - at), Instances: int(d.count(manifestInstancesMax))}
		s.Groups = append(s.Groups, g)
	}
	return s
}

func (d *decoder) instance(table []string, frames *int64) ManifestInstance {
	var in ManifestInstance
	d.fixed(in.Version[:])
	d.fixed(in.Digest[:])
	in.SOPInstanceUID = d.string()
	in.SOPClassUID = d.pick(table)
	in.TransferSyntaxUID = d.pick(table)
	in.Offset = d.count(packBytesMax)
	in.Size = d.count(packBytesMax)
	in.PixelOffset = d.count(in.Size)
	in.Provenance.CallingAE = d.pick(table)
	var node place.NodeID
	d.fixed(node[:])
	in.Provenance.Node = node
	in.Provenance.At = time.UnixMilli(d.count(1 << 53)).UTC()
	in.HeaderKept = d.count(1) == 1
	n := d.count(*frames)
	*frames -= n
	end := int64(0)
	for ; n > 0 && !d.bad; n-- {
		f := Frame{Offset: end + d.varint()}
		if f.Offset < 0 || f.Offset > in.Size {
			d.bad = true
			break
		}
		f.Length = d.count(in.Size - f.Offset)
		end = f.Offset + f.Length
		in.Frames = append(in.Frames, f)
	}
	return in
}

// Manifest reads and decodes the index of a section's manifest, without its headers. Errors as of
// ReadAt and [DecodeManifest].
func (r *PackReader) Manifest(ctx context.Context, section int) (*Manifest, error) {
	if section < 0 || section >= len(r.regions)/2 {
		return nil, fmt.Errorf("section %d of %d: %w", section, len(r.regions)/2, ErrRange)
	}
	g := r.regions[2*section+1]
	// Most indexes fit one chunk, which is what a read of the head decrypts anyway.
	first := make([]byte, min(g.bytes, chunkBytes))
	if _, err := r.ReadAt(ctx, first, g.plain); err != nil {
		return nil, err
	}
	n, err := ManifestIndexBytes(first)
	if err != nil || n <= int64(len(first)) {
		if err != nil {
			return nil, err
		}
		return DecodeManifest(first)
	}
	if n > g.bytes {
		return nil, fmt.Errorf("manifest index of %d bytes in a region of %d: %w", n, g.bytes, ErrManifest)
	}
	whole := make([]byte, n)
	copy(whole, first)
	if _, err := r.ReadAt(ctx, whole[len(first):], g.plain+int64(len(first))); err != nil {
		return nil, err
	}
	return DecodeManifest(whole)
}

// SeriesHeaders reads the kept headers of a series of that section's manifest in one read and yields each with the
// ordinal of its instance; yield returns an error to stop. Groups are decompressed one at a time.
func (r *PackReader) SeriesHeaders(ctx context.Context, section int, s ManifestSeries, yield func(ordinal int, header []byte) error) error {
	if section < 0 || section >= len(r.regions)/2 {
		return fmt.Errorf("section %d of %d: %w", section, len(r.regions)/2, ErrRange)
	}
	if len(s.Groups) == 0 {
		return nil
	}
	region := r.regions[2*section+1]
	first, last := s.Groups[0], s.Groups[len(s.Groups)-1]
	cut := &groupCutter{s: s, yield: yield}
	from, n := first.Offset, last.Offset+last.Bytes-first.Offset
	if from < 0 || n < 0 || from > region.bytes || n > region.bytes-from {
		return fmt.Errorf("headers outside the manifest: %w", ErrManifest)
	}
	if err := r.stream(ctx, region.plain+from, n, cut.write); err != nil {
		return err
	}
	if cut.group != len(s.Groups) {
		return fmt.Errorf("header groups do not follow each other: %w", ErrManifest)
	}
	return nil
}

// groupCutter cuts a stream of groups and yields their headers.
type groupCutter struct {
	s      ManifestSeries
	group  int
	header int
	carry  []byte
	yield  func(int, []byte) error
}

func (c *groupCutter) write(b []byte) error {
	c.carry = append(c.carry, b...)
	for c.group < len(c.s.Groups) && int64(len(c.carry)) >= c.s.Groups[c.group].Bytes {
		g := c.s.Groups[c.group]
		headers, err := DecodeHeaders(g, c.carry[:g.Bytes])
		if err != nil {
			return err
		}
		for _, h := range headers {
			if c.header >= len(c.s.Ordinals) {
				return fmt.Errorf("more headers than instances: %w", ErrManifest)
			}
			if err := c.yield(c.s.Ordinals[c.header], h); err != nil {
				return err
			}
			c.header++
		}
		c.carry = append(c.carry[:0], c.carry[g.Bytes:]...)
		c.group++
	}
	return nil
}
