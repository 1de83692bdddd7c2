package catalog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/s2"
)

const (
	batchMagic0  = 'O'
	batchMagic1  = 'C'
	batchVersion = 1
	// batchOverhead is magic, version and checksum.
	batchOverhead = 2 + 1 + 4
)

// Encode returns the log entry of a batch; see the package comment for its drawing. It folds the
// patients' names for the index, so that replicas never depend on the tables of their own
// program. Its error wraps ErrInvalid. It is safe for concurrent use.
func Encode(batch Batch) ([]byte, error) {
	if len(batch.Commands) == 0 || len(batch.Commands) > maxCommands {
		return nil, invalid("Batch.Commands", "want 1 to 4096")
	}
	if err := checkText("Principal.Name", batch.By.Name); err != nil {
		return nil, err
	}
	w := blobWriter{refs: map[string]uint64{}, names: folder{}}
	var commands []byte
	for _, c := range batch.Commands {
		if err := c.check(); err != nil {
			return nil, err
		}
		commands = append(commands, byte(c.number()))
		commands = c.append(commands, &w)
	}
	body := appendTime(nil, batch.Time)
	body = append(body, byte(batch.By.Kind))
	body = appendString(body, batch.By.Name)
	body = append(body, batch.By.Node[:]...)
	body = appendUint(body, uint64(len(w.refs)))
	body = append(body, w.blobs...)
	body = appendUint(body, uint64(len(batch.Commands)))
	body = append(body, commands...)
	if len(body) > maxBodyBytes || len(w.refs) > maxBlobs {
		return nil, invalid("Batch", "larger than 16 MiB")
	}
	entry := make([]byte, 3, batchOverhead+s2.MaxEncodedLen(len(body)))
	entry[0], entry[1], entry[2] = batchMagic0, batchMagic1, batchVersion
	entry = append(entry, s2.Encode(nil, body)...)
	if len(entry)+4 > maxEntryBytes {
		return nil, invalid("Batch", "larger than 1 MiB compressed")
	}
	return appendChecksum(entry), nil
}

func appendChecksum(entry []byte) []byte {
	return binary.LittleEndian.AppendUint32(entry, checksum(entry))
}

// checksum is CRC32C.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decodeBatch reverses Encode. Its error wraps ErrMalformed, or ErrUnknownCommand where whole
// bytes hold a version or a command number that this program does not know.
func decodeBatch(entry []byte) (Batch, error) {
	if len(entry) < batchOverhead || len(entry) > maxEntryBytes || entry[0] != batchMagic0 || entry[1] != batchMagic1 {
		return Batch{}, fmt.Errorf("%w batch: no magic or impossible length", ErrMalformed)
	}
	end := len(entry) - 4
	if binary.LittleEndian.Uint32(entry[end:]) != checksum(entry[:end]) {
		return Batch{}, fmt.Errorf("%w batch: checksum differs", ErrMalformed)
	}
	if entry[2] != batchVersion {
		return Batch{}, fmt.Errorf("%w: batch version %d", ErrUnknownCommand, entry[2])
	}
	compressed := entry[3:end]
	if n, err := s2.DecodedLen(compressed); err != nil || n > maxBodyBytes {
		return Batch{}, fmt.Errorf("%w batch: decompressed length", ErrMalformed)
	}
	body, err := s2.Decode(nil, compressed)
	if err != nil {
		return Batch{}, fmt.Errorf("%w batch: decompress: %w", ErrMalformed, err)
	}
	return decodeBody(body)
}

func decodeBody(body []byte) (Batch, error) {
	d := &decoder{b: body}
	batch := Batch{Time: d.time()}
	batch.By.Kind = PrincipalKind(d.byte())
	batch.By.Name = d.string(maxStringBytes)
	d.fixed(batch.By.Node[:])
	r := &blobReader{decoder: d}
	for n := d.count(maxBlobs); n > 0 && !d.bad; n-- {
		r.blobs = append(r.blobs, d.take(d.size(maxAttributesBytes)))
	}
	r.strings = make([]string, len(r.blobs))
	for n := d.count(maxCommands); n > 0 && !d.bad; n-- {
		number := commandNumber(d.byte())
		if d.bad {
			break
		}
		c, err := decodeCommand(number, r)
		if err != nil {
			return Batch{}, err
		}
		batch.Commands = append(batch.Commands, c)
	}
	if err := d.err(); err != nil {
		return Batch{}, fmt.Errorf("%w batch: %w", ErrMalformed, err)
	}
	for _, c := range batch.Commands {
		if err := c.check(); err != nil {
			return Batch{}, fmt.Errorf("%w batch: %w", ErrMalformed, err)
		}
	}
	return batch, nil
}

// blobWriter collects the strings and attribute sets of a batch, each once: the items of an Add
// share most of them.
type blobWriter struct {
	refs  map[string]uint64
	blobs []byte
	names folder
}

// ref appends the number of the blob s to b.
func (w *blobWriter) ref(b []byte, s string) []byte {
	n, known := w.refs[s]
	if !known {
		n = uint64(len(w.refs))
		w.refs[s] = n
		w.blobs = appendString(w.blobs, s)
	}
	return appendUint(b, n)
}

// refBytes is ref without a copy of a blob that is known.
func (w *blobWriter) refBytes(b, v []byte) []byte {
	if n, known := w.refs[string(v)]; known {
		return appendUint(b, n)
	}
	return w.ref(b, string(v))
}

// blobReader reads what blobWriter wrote.
type blobReader struct {
	*decoder
	blobs   [][]byte
	strings []string // blobs as strings, made on first use
}

// ref returns the blob that the next number names; it aliases the batch.
func (r *blobReader) ref() []byte {
	if n := r.uint(); n < uint64(len(r.blobs)) {
		return r.blobs[n]
	}
	r.fail()
	return nil
}

// refString returns the blob that the next number names as a string that items share.
func (r *blobReader) refString(max int) string {
	n := r.uint()
	if n >= uint64(len(r.blobs)) || len(r.blobs[n]) > max {
		r.fail()
		return ""
	}
	if r.strings[n] == "" {
		r.strings[n] = string(r.blobs[n])
	}
	return r.strings[n]
}
