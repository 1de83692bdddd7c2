package ring

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/hashicorp/raft"
)

// machine is the state machine as the library sees it. The library calls it from one goroutine.
type machine struct {
	r *Ring
}

var _ raft.BatchingFSM = machine{}

// ApplyBatch implements raft.BatchingFSM: one Apply of the state machine for all logs that it has not seen yet.
func (m machine) ApplyBatch(logs []*raft.Log) []any {
	applied := m.r.fsm.Applied()
	entries := make([]Entry, 0, len(logs))
	config := false
	for _, l := range logs {
		if l.Index <= applied {
			continue // replayed after a restart
		}
		e := Entry{Index: l.Index, Term: l.Term}
		if l.Type == raft.LogCommand && len(l.Data) > 0 {
			e.Data = l.Data
		}
		config = config || l.Type == raft.LogConfiguration
		entries = append(entries, e)
	}
	out := make([]any, len(logs))
	if len(entries) == 0 || m.stopped(out) {
		return out
	}
	results := m.r.fsm.Apply(entries)
	last := entries[len(entries)-1].Index
	if len(results) != len(entries) || m.r.fsm.Applied() < last {
		m.r.fail(fmt.Errorf("%w: it is at entry %d after being given entry %d", ErrStateMachine, m.r.fsm.Applied(), last))
		m.stopped(out)
		return out
	}
	for i, result := range results {
		out[len(logs)-len(entries)+i] = result
	}
	if config {
		m.r.notifyChange()
	}
	return out
}

// stopped answers a batch with the failure of the ring, if there is one: after it nothing more is applied.
func (m machine) stopped(out []any) bool {
	err := m.r.Err()
	for i := range out {
		if err != nil {
			out[i] = err
		}
	}
	return err != nil
}

// Apply implements raft.FSM; the library uses ApplyBatch.
func (m machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM: a checkpoint, taken while nothing is applied.
func (m machine) Snapshot() (raft.FSMSnapshot, error) {
	number, err := m.r.snaps.scratch()
	if err != nil {
		return nil, err
	}
	if err := m.r.fsm.Checkpoint(m.r.snaps.statePath(number)); err != nil {
		m.r.snaps.discard(number)
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return &checkpoint{r: m.r, number: number, applied: m.r.fsm.Applied()}, nil
}

// Restore implements raft.FSM. source is a snapshot of our own store, in some wrapping of the library.
func (m machine) Restore(source io.ReadCloser) error {
	for {
		if r, ok := source.(*snapReader); ok {
			if err := m.r.restore(r.snap); err != nil {
				m.r.fail(err)
				return err
			}
			m.r.notifyChange()
			return nil
		}
		w, ok := source.(raft.ReadCloserWrapper)
		if !ok {
			return fmt.Errorf("%w: not a snapshot of this store", ErrRefused)
		}
		source = w.WrappedReadCloser()
	}
}

// restore gives the snapshot s to the state machine and makes the log agree with it.
func (r *Ring) restore(s *stored) error {
	if err := r.store.snapshotInstalled(s.meta.index, s.meta.term); err != nil {
		return err
	}
	if err := r.fsm.Restore(r.snaps.statePath(s.number)); err != nil {
		return fmt.Errorf("%w: restore snapshot of entry %d: %w", ErrStateMachine, s.meta.index, err)
	}
	if at := r.fsm.Applied(); at < s.meta.index {
		return fmt.Errorf("%w: it is at entry %d after restoring entry %d", ErrStateMachine, at, s.meta.index)
	}
	r.log.Info("snapshot restored", "index", s.meta.index, "term", s.meta.term)
	return nil
}

// checkpoint is a checkpoint of the state machine on its way to become a snapshot.
type checkpoint struct {
	r       *Ring
	number  uint64
	applied uint64
	adopted bool
}

// Persist implements raft.FSMSnapshot.
func (c *checkpoint) Persist(to raft.SnapshotSink) error {
	k, ok := to.(*sink)
	if !ok || c.applied < k.want.index {
		return fmt.Errorf("%w: checkpoint is at entry %d", ErrStateMachine, c.applied)
	}
	c.adopted = true // from here on the sink removes it
	if err := k.adopt(c.number); err != nil {
		return errors.Join(err, k.Cancel())
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (c *checkpoint) Release() {
	if !c.adopted {
		c.r.snaps.discard(c.number)
	}
}

// guard is the logStore as the library sees it. The library panics or carries on where this package wants the node to stop in good
// order: so every error that is not part of the protocol is reported to fail, and ends the goroutine that met it,
// running its deferred calls, instead of returning.
type guard struct {
	*logStore
}

func (g guard) check(err error) error {
	if err == nil || errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	g.fail(err)
	runtime.Goexit()
	return err
}

// write makes a change of the log; Pebble panics where it cannot begin a new log file.
func (g guard) write(change func() error) error {
	defer func() {
		if p := recover(); p != nil {
			g.fail(fmt.Errorf("%w: %v", ErrDisk, p))
			runtime.Goexit()
		}
	}()
	return g.check(change())
}

func (g guard) GetLog(index uint64, l *raft.Log) error { return g.check(g.logStore.GetLog(index, l)) }

func (g guard) StoreLog(l *raft.Log) error {
	return g.write(func() error { return g.logStore.StoreLog(l) })
}

func (g guard) StoreLogs(logs []*raft.Log) error {
	return g.write(func() error { return g.logStore.StoreLogs(logs) })
}

func (g guard) DeleteRange(low, high uint64) error {
	return g.write(func() error { return g.logStore.DeleteRange(low, high) })
}

func (g guard) Set(key, val []byte) error {
	return g.write(func() error { return g.logStore.Set(key, val) })
}

func (g guard) SetUint64(key []byte, v uint64) error {
	return g.write(func() error { return g.logStore.SetUint64(key, v) })
}
