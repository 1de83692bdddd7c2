package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"osteon/raft/ring"
)

// Apply applies committed log entries in order and returns one encoded list of results for each,
// nil for an entry without data or one applied before. All changes, the index and the ring time go
// into one Pebble batch. An entry that cannot be decoded changes nothing and its result says
// CodeMalformed. At an entry of a newer program, and at damage of the database, the catalog stops:
// it applies nothing from there on, its index stays, and Fault says why.
//
// Apply depends on the entries and the state alone: no clock, no randomness, no map order.
func (c *Catalog) Apply(entries []ring.Entry) [][]byte {
	results := make([][]byte, len(entries))
	db, err := c.use()
	if err != nil {
		return stopped(results)
	}
	defer db.release()
	if c.Fault() != nil {
		return stopped(results)
	}
	applied := c.Applied()
	s := newState(db, c.uids, c.tables)
	defer s.close()
	if s.now, err = readTime(db); err != nil {
		c.stop(err)
		return stopped(results)
	}
	last, n := ring.Entry{Index: applied}, 0
	for ; n < len(entries); n++ {
		if entries[n].Index <= applied {
			continue
		}
		if len(entries[n].Data) > 0 {
			if results[n], err = s.applyEntry(entries[n].Data); err != nil {
				break
			}
		}
		last = entries[n]
	}
	if last.Index > applied && s.err == nil {
		err = firstError(c.commit(db, s, last), err)
	}
	if err != nil {
		c.stop(err)
		stopped(results[n:])
	}
	return results
}

// stopped fills results for entries that were not applied.
func stopped(results [][]byte) [][]byte {
	for i := range results {
		results[i] = appendResults(nil, []Result{refuse(CodeStopped, "the catalog of this node has stopped")})
	}
	return results
}

// stop keeps the catalog from applying anything more.
func (c *Catalog) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = err
	c.advance()
	c.cfg.Log.Error("catalog stopped applying", "applied", c.applied, "err", err)
}

// applyEntry applies one entry. Its error stops the catalog.
func (s *state) applyEntry(data []byte) ([]byte, error) {
	batch, err := decodeBatch(data)
	if errors.Is(err, ErrUnknownCommand) {
		return nil, err
	}
	if err != nil {
		return appendResults(nil, []Result{refuse(CodeMalformed, "the log entry is not a batch")}), nil
	}
	if batch.Time.After(s.now) {
		s.now = batch.Time
	}
	results := make([]Result, 0, len(batch.Commands))
	for _, c := range batch.Commands {
		r, err := s.apply(c)
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return appendResults(make([]byte, 0, 16), results), nil
}

// commit writes what changed together with the index of last.
func (c *Catalog) commit(db *database, s *state, last ring.Entry) error {
	s.set(keyMeta(metaApplied), appendApplied(last))
	s.set(keyMeta(metaTime), appendTime(nil, s.now))
	batch := db.NewBatch()
	defer batch.Close()
	if err := s.write(batch); err != nil {
		return err
	}
	if err := guarded(func() error { return batch.Commit(pebble.NoSync) }); err != nil {
		return fmt.Errorf("commit to the catalog: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = last.Index
	c.advance()
	return nil
}

func appendApplied(e ring.Entry) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{rowVersion}, e.Index)
	return binary.LittleEndian.AppendUint64(b, e.Term)
}

// readApplied returns the index of the last applied entry.
func readApplied(r pebble.Reader) (uint64, error) {
	v, err := readKey(r, keyMeta(metaApplied))
	if v == nil || err != nil {
		return 0, err
	}
	if len(v) != 17 || v[0] != rowVersion {
		return 0, fmt.Errorf("%w applied index of the catalog", ErrMalformed)
	}
	return binary.LittleEndian.Uint64(v[1:]), nil
}

// readTime returns ring time.
func readTime(r pebble.Reader) (time.Time, error) {
	v, err := readKey(r, keyMeta(metaTime))
	if v == nil || err != nil {
		return time.Time{}, err
	}
	d := &decoder{b: v}
	t := d.time()
	return t, rowError("time", d)
}
