package ring

import (
	"sync"

	"github.com/hashicorp/raft"

	"osteon/erasure/place"
)

// acknowledged is what this node, while it led, saw other servers acknowledge of what is committed. A server that comes
// back with less has lost it.
type acknowledged struct {
	mu sync.Mutex

	upTo map[raft.ServerID]uint64
}

// note takes an answer. Only what was committed when the question was asked counts: the rest may be taken back. A
// heartbeat, which names no entry, proves nothing.
func (a *acknowledged) note(id raft.ServerID, q *raft.AppendEntriesRequest, ok bool) {
	held := q.PrevLogEntry + uint64(len(q.Entries))
	if !ok || q.PrevLogEntry == 0 && len(q.Entries) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.upTo == nil {
		a.upTo = map[raft.ServerID]uint64{}
	}
	a.upTo[id] = max(a.upTo[id], min(held, q.LeaderCommitIndex))
}

// Acknowledged returns up to which committed entry this node saw the server (node, incarnation) acknowledge since Open, 0 when it
// never led meanwhile.
func (r *Ring) Acknowledged(node place.NodeID, incarnation uint64) uint64 {
	r.acked.mu.Lock()
	defer r.acked.mu.Unlock()
	return r.acked.upTo[serverID(node, incarnation)]
}

// witness is the transport, with an eye on the answers.
type witness struct {
	*raft.NetworkTransport
	acked *acknowledged
}

var _ raft.WithPreVote = witness{}

// AppendEntries implements raft.Transport.
func (w witness) AppendEntries(id raft.ServerID, target raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	err := w.NetworkTransport.AppendEntries(id, target, q, a)
	if err == nil {
		w.acked.note(id, q, a.Success)
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport.
func (w witness) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := w.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &witnessPipeline{AppendPipeline: inner, id: id, acked: w.acked, out: make(chan raft.AppendFuture), done: make(chan struct{})}
	p.wg.Go(p.pass) // ends with Close, which waits for it
	return p, nil
}

// witnessPipeline passes the answers of a pipeline on.
type witnessPipeline struct {
	raft.AppendPipeline
	id    raft.ServerID
	acked *acknowledged
	out   chan raft.AppendFuture
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

func (p *witnessPipeline) pass() {
	in := p.AppendPipeline.Consumer()
	for {
		select {
		case f := <-in:
			if f.Error() == nil { // it has its answer already
				p.acked.note(p.id, f.Request(), f.Response().Success)
			}
			select {
			case p.out <- f:
			case <-p.done:
				return
			}
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *witnessPipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline.
func (p *witnessPipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	err := p.AppendPipeline.Close()
	p.wg.Wait()
	return err
}
