package node

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"osteon/erasure/place"
	"osteon/raft/local"
	"osteon/raft/ring"
)

// A directory that was brought back from yesterday is whole and says nothing of it. So each start draws an instance ID, the
// directory keeps the starts that led to it, and the others remember the last process that they heard of and how far its log
// was. A directory whose starts do not include that process, or whose log ends before it, is not the one that the node had.

// instanceID names one start of a node.
type instanceID [16]byte

// MarshalText writes hexadecimal digits.
func (i instanceID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, i[:]), nil }

// UnmarshalText undoes MarshalText.
func (i *instanceID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(i) {
		return fmt.Errorf("instance %.40q: want 32 hexadecimal digits", text)
	}
	copy(i[:], b)
	return nil
}

// process is one start of a node.
type process struct {
	Boot     uint64     `json:"boot"`
	Instance instanceID `json:"instance"`
}

// startsMax bounds the starts that a directory remembers, while one member of the ring or more never answers. Forgetting
// some can only make a sound directory doubtful, which costs a resynchronisation.
const startsMax = 256

// begin counts a start of this directory.
func (id *identity) begin(rand io.Reader) error {
	p := process{Boot: id.Boot + 1}
	if _, err := io.ReadFull(rand, p.Instance[:]); err != nil {
		return fmt.Errorf("draw instance: %w", err)
	}
	id.Boot = p.Boot
	if len(id.Starts) >= startsMax {
		id.Starts = slices.Delete(id.Starts, 1, 2+len(id.Starts)-startsMax)
	}
	id.Starts = append(id.Starts, p)
	return nil
}

// sighting is what a node tells another about itself.
type sighting struct {
	Incarnation uint64 `json:"incarnation"`
	// Starts are those since all others vouched for the directory, the first of these included; the last is the sender.
	Starts []process `json:"starts"`
	// Index is up to where it has had every committed entry for certain, Term the highest term that it has seen.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
}

func (s sighting) sender() process { return s.Starts[len(s.Starts)-1] }

// memory is what is known of another node.
type memory struct {
	Known       bool   `json:"known"`
	Incarnation uint64 `json:"incarnation"`
	process
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Led says that the node that answers follows a leader, or leads.
	Led bool `json:"led"`
}

// vouching is the answer to a sighting: what was known of the sender before, and who votes as far as the node that answers knows.
type vouching struct {
	memory
	Voters []place.NodeID `json:"voters,omitempty"`
	// LastTerm and LastIndex are of the last entry of the log that names the voters.
	LastTerm  uint64 `json:"last_term,omitempty"`
	LastIndex uint64 `json:"last_index,omitempty"`
}

// descends reports whether the process remembered is the sender or one before it on its directory, or of an earlier time.
func (s sighting) descends(m memory) bool {
	switch {
	case !m.Known || m.Incarnation < s.Incarnation:
		return true
	case m.Incarnation > s.Incarnation:
		return false
	}
	return m.Boot < s.Starts[0].Boot || slices.Contains(s.Starts, m.process)
}

// doubt returns why the directory of s, whose log is at end, is not the one that its node had; empty when there is no reason.
func (s sighting) doubt(m memory, end ring.End) string {
	switch {
	case !m.Known || m.Incarnation < s.Incarnation:
		return ""
	case m.Incarnation > s.Incarnation:
		return fmt.Sprintf("it holds incarnation %d of this node, the ring has had incarnation %d", s.Incarnation, m.Incarnation)
	case !s.descends(m):
		return fmt.Sprintf("the ring has met this node at its start number %d, which this directory does not know of", m.Boot)
	case m.Index > end.Index:
		return fmt.Sprintf("its log ends at entry %d, this node has had entry %d", end.Index, m.Index)
	case m.Term > end.Term:
		return fmt.Sprintf("it is in term %d, this node has been in term %d", end.Term, m.Term)
	}
	return ""
}

// take returns what is to be remembered after s, when m was before.
func (s sighting) take(m memory) memory {
	if !s.descends(m) {
		return m
	}
	if !m.Known || m.Incarnation < s.Incarnation {
		m = memory{Known: true, Incarnation: s.Incarnation}
	}
	m.process = s.sender()
	m.Index, m.Term = max(m.Index, s.Index), max(m.Term, s.Term)
	return m
}

func (m memory) record() local.Seen {
	return local.Seen{Incarnation: m.Incarnation, Boot: m.Boot, Instance: m.Instance, Index: m.Index, Term: m.Term}
}

// remember reads what the local database remembers of a node.
func remember(db *local.DB, node place.NodeID) (memory, error) {
	s, err := db.Seen(node)
	if errors.Is(err, local.ErrNotFound) {
		return memory{}, nil
	}
	return memory{
		Known: true, Incarnation: s.Incarnation, process: process{Boot: s.Boot, Instance: s.Instance}, Index: s.Index, Term: s.Term,
	}, err
}
