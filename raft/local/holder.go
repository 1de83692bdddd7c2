package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// Held is one entry of the holder index.
type Held struct {
	Pack       place.PackID
	Encode     place.EncodeID
	Index      int
	Generation uint64
}

const holderKeyBytes = 1 + 16 + 16 + 2

func holderKey(pack place.PackID, encode place.EncodeID, index int) ([]byte, error) {
	if index < 0 || index > 0xffff {
		return nil, fmt.Errorf("shard index %d: %w", index, ErrTooLarge)
	}
	k := make([]byte, 0, holderKeyBytes)
	k = append(k, tableHolder)
	k = append(k, pack[:]...)
	k = append(k, encode[:]...)
	return binary.BigEndian.AppendUint16(k, uint16(index)), nil
}

func parseGeneration(value []byte) (uint64, error) {
	if len(value) != 9 || value[0] != recordVersion {
		return 0, fmt.Errorf("%w: holder index", ErrFormat)
	}
	return binary.LittleEndian.Uint64(value[1:]), nil
}

// Generation returns the placement generation on record for a shard. ErrNotFound when there is none.
func (d *DB) Generation(pack place.PackID, encode place.EncodeID, index int) (uint64, error) {
	key, err := holderKey(pack, encode, index)
	if err != nil {
		return 0, err
	}
	value, err := d.get(key)
	if err != nil {
		return 0, err
	}
	return parseGeneration(value)
}

// Check returns ErrStaleGeneration when a newer generation than the given one is on record for the shard.
// A shard without a record passes.
func (d *DB) Check(pack place.PackID, encode place.EncodeID, index int, generation uint64) error {
	recorded, err := d.Generation(pack, encode, index)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case generation < recorded && !plant.Is(plant.GenerationIgnored):
		return fmt.Errorf("shard %d of pack %s: %w: asked for %d, %d is on record", index, pack, ErrStaleGeneration, generation, recorded)
	}
	return nil
}

// Hold records that a shard is held for a placement generation, and returns after the fsync. ErrStaleGeneration when a newer
// one is on record; the same one again is no write.
func (d *DB) Hold(pack place.PackID, encode place.EncodeID, index int, generation uint64) error {
	key, err := holderKey(pack, encode, index)
	if err != nil {
		return err
	}
	lock := &d.locks[maphash.Bytes(d.seed, key)%lockStripes]
	lock.Lock() // over the fsync too: a newer generation must not slip in between check and write
	defer lock.Unlock()
	recorded, err := d.Generation(pack, encode, index)
	switch {
	case err == nil && recorded == generation:
		return nil
	case err == nil && recorded > generation:
		return fmt.Errorf("shard %d of pack %s: %w: asked for %d, %d is on record", index, pack, ErrStaleGeneration, generation, recorded)
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	}
	value := binary.LittleEndian.AppendUint64([]byte{recordVersion}, generation)
	return d.write(func(b *pebble.Batch) error { return b.Set(key, value, nil) })
}

// Forget drops the record of a shard that was removed. No record is no error.
func (d *DB) Forget(pack place.PackID, encode place.EncodeID, index int) error {
	key, err := holderKey(pack, encode, index)
	if err != nil {
		return err
	}
	lock := &d.locks[maphash.Bytes(d.seed, key)%lockStripes]
	lock.Lock()
	defer lock.Unlock()
	return d.write(func(b *pebble.Batch) error { return b.Delete(key, nil) })
}

// Holders yields the holder index in order of pack, encode and index. Entries that change meanwhile may be seen either way. The
// loop's body may use the database. After an error nothing follows.
func (d *DB) Holders() iter.Seq2[Held, error] {
	return func(yield func(Held, error) bool) {
		var after []byte
		for {
			page, last, err := d.holdersAfter(after)
			for _, h := range page {
				if !yield(h, nil) {
					return
				}
			}
			if err != nil {
				yield(Held{}, err)
				return
			}
			if len(page) < holderPage {
				return
			}
			after = last
		}
	}
}

// holdersAfter returns up to holderPage entries behind a key, and the last one's key.
func (d *DB) holdersAfter(after []byte) (page []Held, last []byte, err error) {
	err = d.scan([]byte{tableHolder}, after, func(key, value []byte) (bool, error) {
		if len(key) != holderKeyBytes {
			return false, fmt.Errorf("%w: holder key", ErrFormat)
		}
		generation, err := parseGeneration(value)
		if err != nil {
			return false, err
		}
		h := Held{Index: int(binary.BigEndian.Uint16(key[33:])), Generation: generation}
		copy(h.Pack[:], key[1:])
		copy(h.Encode[:], key[17:])
		page, last = append(page, h), append(last[:0], key...)
		return len(page) < holderPage, nil
	})
	return page, last, err
}
