package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
)

// Find returns one version and where its bytes are, by its identity. ErrNotFound when it is not in
// the catalog.
func (r *Reader) Find(ctx context.Context, version VersionID) (l Located, err error) {
	err = r.read(ctx, func(v *view) (err error) {
		l, err = v.find(version)
		return err
	})
	return l, err
}

// FindEach yields those of the versions that are in the catalog, in their order, from one moment. It reads
// each table of sealed instances once where Find reads it for every one of them.
func (r *Reader) FindEach(ctx context.Context, versions []VersionID) iter.Seq2[Located, error] {
	return func(yield func(Located, error) bool) {
		err := r.read(ctx, func(v *view) error {
			for _, version := range versions {
				if err := v.examine(); err != nil {
					return err
				}
				l, err := v.find(version)
				if errors.Is(err, ErrNotFound) {
					continue
				}
				if err != nil || !yield(l, nil) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			yield(Located{}, err)
		}
	}
}

func (v *view) find(version VersionID) (Located, error) {
	key, err := v.get(keyUnsealedID(version))
	if err != nil {
		return Located{}, err
	}
	if key != nil {
		return v.unsealed(key)
	}
	found, err := v.sealed.byVersion(version)
	if err != nil {
		return Located{}, err
	}
	if found == nil {
		return Located{}, fmt.Errorf("find version %s: %w", version, ErrNotFound)
	}
	return found.located(), nil
}

// Erased reports whether a tombstone covers one of the UIDs.
func (r *Reader) Erased(ctx context.Context, uids ...string) (yes bool, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.get(keyMeta(metaTombstones))
		if row == nil || err != nil {
			return err // there is none at all
		}
		for _, uid := range uids {
			row, err := v.get(keyHash(tableTombstone, v.sealed.keys.hash(uid)))
			if err != nil || row != nil {
				yes = row != nil
				return err
			}
		}
		return nil
	})
	return yes, err
}

// SealedAfter returns the versions of up to max packs that were sealed after the one numbered pack,
// and the number of the last of these packs; numbers begin at 1 and rise in the order of sealing. It
// returns pack itself when there is none.
func (r *Reader) SealedAfter(ctx context.Context, pack uint32, max int) (versions []VersionID, last uint32, err error) {
	last = pack
	if pack == math.MaxUint32 {
		return nil, last, nil
	}
	err = r.read(ctx, func(v *view) error {
		prefix := keyOf(tablePack)
		c, err := v.scan(keyPack(pack+1), after(prefix), false)
		if err != nil {
			return err
		}
		defer c.close()
		for ; max > 0 && c.next(); max-- {
			number := bytes.TrimPrefix(c.key, prefix)
			if len(number) != 4 {
				return fmt.Errorf("%w key of a pack", ErrMalformed)
			}
			last = binary.BigEndian.Uint32(number)
			row, err := decodePackRow(c.value)
			if err != nil {
				return err
			}
			for _, first := range row.firsts {
				t, err := v.sealed.table(last, first)
				if err != nil {
					return err
				}
				for i := range t.versions {
					versions = append(versions, t.versions[i].in.Version)
				}
			}
		}
		return c.err
	})
	return versions, last, err
}

// LastPack returns the number of the pack sealed last, 0 when there is none.
func (r *Reader) LastPack(ctx context.Context) (number uint32, err error) {
	err = r.read(ctx, func(v *view) error {
		row, err := v.get(keyMeta(metaPacks))
		if row == nil || err != nil {
			return err
		}
		d := &decoder{b: row}
		number = uint32(d.uint())
		return rowError("counter", d)
	})
	return number, err
}
