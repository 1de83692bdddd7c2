package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// state is the catalog as commands see and change it: what base has, overlaid with what has been
// changed since. Nothing is written to base. After a read fault all reads fail with the same
// error. It belongs to one goroutine.
type state struct {
	base   pebble.Reader
	lookup map[table]*pebble.Iterator // over base, see find
	sealed *sealedIndex               // through get
	now    time.Time                  // ring time

	under    map[string][]byte // what is pending over base already; only read
	writes   map[string][]byte // nil: deleted
	studies  map[string]*studyRow
	series   map[seriesName]*seriesRow
	patients map[PatientKey]*patientRow
	tombs    int // tombstones there are; -1: not read yet
	err      error
}

// seriesName names a series: a UID that two studies use is two series.
type seriesName struct{ study, series string }

func newState(base pebble.Reader, keys uidKeys, tables *tableCodec) *state {
	s := &state{
		base: base, tombs: -1,
		lookup:   map[table]*pebble.Iterator{},
		writes:   map[string][]byte{},
		studies:  map[string]*studyRow{},
		series:   map[seriesName]*seriesRow{},
		patients: map[PatientKey]*patientRow{},
	}
	s.sealed = newSealedIndex(s.get, keys, tables)
	return s
}

// fault keeps the first error and returns it.
func (s *state) fault(err error) error {
	if s.err == nil {
		s.err = err
	}
	return s.err
}

// get returns the value at key, nil when there is none.
func (s *state) get(key []byte) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	if v, changed := s.writes[string(key)]; changed {
		return v, nil
	}
	if v, changed := s.under[string(key)]; changed {
		return v, nil
	}
	v, err := s.find(key)
	if err != nil {
		return nil, s.fault(err)
	}
	return v, nil
}

// find reads base through one iterator for each table. Unlike Get, an iterator may ask the bloom
// filters of the lowest level, which hold most of a large catalog, and it stays in its file: new
// UIDs, the common case, cost no block.
func (s *state) find(key []byte) ([]byte, error) {
	iter := s.lookup[table(key[1])]
	if iter == nil {
		var err error
		if iter, err = s.base.NewIter(&pebble.IterOptions{UseL6Filters: true}); err != nil {
			return nil, fmt.Errorf("read the catalog: %w", err)
		}
		s.lookup[table(key[1])] = iter
	}
	if !iter.SeekPrefixGE(key) || !bytes.Equal(iter.Key(), key) {
		if err := iter.Error(); err != nil {
			return nil, fmt.Errorf("read the catalog: %w", err)
		}
		return nil, nil
	}
	v, err := iter.ValueAndErr()
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	return append(make([]byte, 0, len(v)), v...), nil
}

// close lets go of base.
func (s *state) close() {
	for _, iter := range s.lookup {
		iter.Close()
	}
}

// set writes value at key; nil deletes it.
func (s *state) set(key, value []byte) { s.writes[string(key)] = value }

// mark sets a key whose existence says it all.
func (s *state) mark(key []byte) { s.writes[string(key)] = []byte{} }

func (s *state) delete(key []byte) { s.writes[string(key)] = nil }

// readKey returns a copy of the value at key, nil when there is none.
func readKey(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	v = append(make([]byte, 0, len(v)), v...)
	return v, closer.Close()
}

// study returns the row of a study to read and change, nil when there is none.
func (s *state) study(uid string) (*studyRow, error) {
	if r, known := s.studies[uid]; known {
		return r, nil
	}
	v, err := s.get(keyStudy(uid))
	if v == nil || err != nil {
		return nil, err
	}
	r, err := decodeStudyRow(uid, v)
	if err != nil {
		return nil, s.fault(err)
	}
	s.studies[uid] = r
	return r, nil
}

// seriesOf returns the row of a series to read and change, nil when there is none.
func (s *state) seriesOf(name seriesName) (*seriesRow, error) {
	if r, known := s.series[name]; known {
		return r, nil
	}
	v, err := s.get(keySeries(name.study, name.series))
	if v == nil || err != nil {
		return nil, err
	}
	r, err := decodeSeriesRow(name.study, name.series, v)
	if err != nil {
		return nil, s.fault(err)
	}
	s.series[name] = r
	return r, nil
}

// patient returns the row of a patient to read and change, nil when there is none.
func (s *state) patient(key PatientKey) (*patientRow, error) {
	if r, known := s.patients[key]; known {
		return r, nil
	}
	v, err := s.get(keyPatient(key))
	if v == nil || err != nil {
		return nil, err
	}
	r, err := decodePatientRow(key, v)
	if err != nil {
		return nil, s.fault(err)
	}
	s.patients[key] = r
	return r, nil
}

// finish moves the rows that were held back into writes.
func (s *state) finish() {
	for uid, r := range s.studies {
		s.set(keyStudy(uid), r.encode())
		s.set(keyDue(uid), r.encodeDue())
	}
	for name, r := range s.series {
		s.set(keySeries(name.study, name.series), r.encode())
	}
	for key, r := range s.patients {
		s.set(keyPatient(key), r.encode())
	}
}

// write puts everything that changed into the batch.
func (s *state) write(to *pebble.Batch) error {
	s.finish()
	for k, v := range s.writes {
		var err error
		if v == nil {
			err = to.Delete([]byte(k), nil)
		} else {
			err = to.Set([]byte(k), v, nil)
		}
		if err != nil {
			return fmt.Errorf("write the catalog: %w", err)
		}
	}
	return nil
}

// count reads a number of tableMeta.
func (s *state) count(name string) (uint64, error) {
	v, err := s.get(keyMeta(name))
	if v == nil || err != nil {
		return 0, err
	}
	d := &decoder{b: v}
	n := d.uint()
	if err := rowError("counter", d); err != nil {
		return 0, s.fault(err)
	}
	return n, nil
}

func (s *state) setCount(name string, n uint64) { s.set(keyMeta(name), appendUint(nil, n)) }
