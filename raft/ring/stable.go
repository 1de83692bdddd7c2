package ring

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
)

// The keys under which the library keeps its state between restarts.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

// Set keeps the candidate of the last vote; there is no other key of bytes.
func (s *logStore) Set(key, val []byte) error {
	if string(key) != keyLastVoteCand || len(val) > candidateBytesMax {
		return fmt.Errorf("%w: stable key %.40q with %d bytes", ErrRefused, key, len(val))
	}
	return s.change(func(v *vote) { v.candidate = string(val) })
}

// Get returns the candidate of the last vote, nil when there was none.
func (s *logStore) Get(key []byte) ([]byte, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if string(key) != keyLastVoteCand || s.pos.vote.candidate == "" {
		return nil, nil
	}
	return []byte(s.pos.vote.candidate), nil
}

// SetUint64 keeps the current term or the term of the last vote.
func (s *logStore) SetUint64(key []byte, val uint64) error {
	switch string(key) {
	case keyCurrentTerm:
		return s.change(func(v *vote) { v.term = val })
	case keyLastVoteTerm:
		return s.change(func(v *vote) { v.voteTerm = val })
	}
	return fmt.Errorf("%w: stable key %.40q", ErrRefused, key)
}

// GetUint64 returns the current term or the term of the last vote, 0 when there was none.
func (s *logStore) GetUint64(key []byte) (uint64, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		return s.pos.vote.term, nil
	case keyLastVoteTerm:
		return s.pos.vote.voteTerm, nil
	}
	return 0, fmt.Errorf("%w: stable key %.40q", ErrRefused, key)
}

// change makes one change of the vote durable in the log, then in the mark.
func (s *logStore) change(set func(*vote)) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	defer s.watch()()
	next := s.pos.vote
	set(&next)
	if next == s.pos.vote {
		return nil
	}
	next.seq++
	if err := s.db.Set([]byte(keyVote), appendVote(nil, s.seal, next), pebble.Sync); err != nil {
		return fmt.Errorf("%w: write term and vote: %w", ErrDisk, err)
	}
	s.pos.vote = next
	return s.mark.write(s.pos)
}

// tail is the end of the log in memory: a run of entries, at most tailBytesMax of data.
type tail struct {
	logs  []*raft.Log
	bytes int
}

// get copies the entry of index into l if it is here.
func (t *tail) get(index uint64, l *raft.Log) bool {
	if len(t.logs) == 0 || index < t.logs[0].Index || index > t.logs[len(t.logs)-1].Index {
		return false
	}
	*l = *t.logs[index-t.logs[0].Index]
	return true
}

// add appends logs and lets go of the oldest ones. Entries are shared with the library, which never changes them.
func (t *tail) add(logs []*raft.Log) {
	if n := len(t.logs); n > 0 && t.logs[n-1].Index+1 != logs[0].Index {
		*t = tail{}
	}
	t.logs = append(t.logs, logs...)
	for _, l := range logs {
		t.bytes += len(l.Data) + len(l.Extensions)
	}
	drop := 0
	for t.bytes > tailBytesMax || len(t.logs)-drop > tailEntriesMax {
		t.bytes -= len(t.logs[drop].Data) + len(t.logs[drop].Extensions)
		t.logs[drop] = nil
		drop++
	}
	t.logs = t.logs[drop:]
}

// cut keeps the entries first to last.
func (t *tail) cut(first, last uint64) {
	kept := tail{}
	for _, l := range t.logs {
		if l.Index >= first && l.Index <= last {
			kept.logs = append(kept.logs, l)
			kept.bytes += len(l.Data) + len(l.Extensions)
		}
	}
	*t = kept
}
