package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// Find returns one version and where its bytes are, by its identity. ErrNotFound when it is not in
// the catalog.
func (r *Reader) Find(ctx context.Context, version VersionID) (l Located, err error) {
	err = r.read(ctx, func(v *view) error {
		key, err := v.get(keyUnsealedID(version))
		if err != nil {
			return err
		}
		if key != nil {
			l, err = v.unsealed(key)
			return err
		}
		found, err := v.sealed.byVersion(version)
		if err != nil {
			return err
		}
		if found == nil {
			return fmt.Errorf("find version %s: %w", version, ErrNotFound)
		}
		l = found.located()
		return nil
	})
	return l, err
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
