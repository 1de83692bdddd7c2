package erasure

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
)

var (
	// ErrNoPartner means that too few other nodes took a copy for the acknowledgement rule in force.
	ErrNoPartner = errors.New("no other node took a copy in time")
	// ErrStalled means that this node's own journal did not confirm in time.
	ErrStalled = errors.New("the journal's disk does not answer")
)

// Acked says where the bytes of an acknowledged instance were fsynced.
type Acked struct {
	// Holders begins with this node.
	Holders []place.NodeID
	// Spooled: another site exists but none has a copy yet.
	Spooled bool
	// Single: no other node has a copy.
	Single bool
}

// Append is one instance on its way into two journals. It is used by one goroutine and ends with Commit
// or Abort.
type Append struct {
	store   *Store
	ctx     context.Context // of the caller of Begin: bounds the partner's copy too
	order   []place.Node    // whom to ask, best first
	local   *journal.Writer
	partner *partner
	sum     uint32
	size    int64
}

// Begin starts an instance of the study whose rendezvous key is study; the first bytes go to this
// node's journal and to a partner's at once. The caller ends it with Commit or Abort.
func (s *Store) Begin(ctx context.Context, study []byte) *Append {
	a := &Append{store: s, ctx: ctx, order: s.partners(study), local: s.journal.Begin()}
	if len(a.order) > 0 {
		a.partner = s.startPartner(ctx, a.order[0])
	}
	return a
}

// Write appends p to both copies. Only a failure of this node's own journal is an error: a partner that
// fails or stalls is replaced at Commit.
func (a *Append) Write(p []byte) (int, error) {
	if a.partner != nil {
		a.partner.write(p)
	}
	a.sum = crc32.Update(a.sum, castagnoli, p)
	a.size += int64(len(p))
	return a.local.Write(p)
}

// Abort forgets the instance at both holders. After Commit it does nothing.
func (a *Append) Abort() {
	a.local.Abort()
	if a.partner != nil {
		a.partner.abort()
		a.partner = nil
	}
}

// Commit makes the instance durable under key with the note that either holder offers to the catalog,
// and returns once the acknowledgement rule holds (design P1). Errors: ErrNoPartner, ErrStalled, and
// journal.ErrFull or journal.ErrFenced of this node's journal. On error the local copy may stay and be
// offered later: it was never acknowledged.
func (a *Append) Commit(ctx context.Context, key journal.Key, note []byte) (Acked, error) {
	done := make(chan error, 1)
	first := a.partner
	a.partner = nil
	go func() { // ends with the journal's commit, which ctx bounds
		done <- a.local.Commit(ctx, key, note)
	}()
	if first != nil {
		first.commit(key, a.size, a.sum, note)
	}
	stalled := time.NewTimer(localCommitMax)
	defer stalled.Stop()
	select {
	case err := <-done:
		if err != nil {
			first.abandon()
			return Acked{}, fmt.Errorf("commit to own journal: %w", err)
		}
	case <-stalled.C:
		first.abandon()
		return Acked{}, fmt.Errorf("commit to own journal: %w", ErrStalled)
	}
	r := replication{store: a.store, ctx: a.ctx, key: key, size: a.size, sum: a.sum, note: note}
	return r.settle(ctx, a.order, first)
}

// replication brings one committed instance to as many other nodes as the acknowledgement rule wants.
type replication struct {
	store *Store
	ctx   context.Context
	key   journal.Key
	size  int64
	sum   uint32
	note  []byte

	running int
	results chan partnerResult
}

type partnerResult struct {
	node place.Node
	err  error
}

// settle waits for the first partner, asks the next whenever one fails or is slow, and decides by the
// acknowledgement rule when nobody is left or the wait is over.
func (r *replication) settle(ctx context.Context, order []place.Node, first *partner) (Acked, error) {
	cfg := r.store.cfg.Ack
	self := r.store.cfg.Self
	acked := Acked{Holders: []place.NodeID{self}}
	r.results = make(chan partnerResult, len(order)+1)
	next := 0
	if first != nil {
		next = 1
		r.running++
		go func() { // ends when the partner does: it answers or is abandoned
			r.results <- partnerResult{node: first.node, err: first.wait()}
		}()
	}
	deadline := time.NewTimer(cfg.Wait)
	defer deadline.Stop()
	slow := time.NewTimer(cfg.SecondAfter)
	defer slow.Stop()
	sameSite := false
	for {
		for r.running == 0 && next < len(order) {
			r.start(order[next])
			next++
		}
		if r.running == 0 {
			return r.decide(acked, sameSite)
		}
		select {
		case res := <-r.results:
			r.running--
			if res.err != nil {
				r.store.suspect(res.node.ID)
				r.store.cfg.Log.Warn("copy at partner failed", "node", res.node.ID, "err", res.err)
				continue
			}
			acked.Holders = append(acked.Holders, res.node.ID)
			if res.node.Site != r.store.cfg.Site || !r.store.otherSites() {
				return acked, nil
			}
			sameSite = true
			if !r.store.otherSiteAnswers() {
				return r.decide(acked, sameSite)
			}
		case <-slow.C:
			if next < len(order) {
				r.start(order[next])
				next++
			}
			slow.Reset(cfg.SecondAfter)
		case <-deadline.C:
			return r.decide(acked, sameSite)
		case <-ctx.Done():
			return Acked{}, fmt.Errorf("wait for a second copy: %w", ctx.Err())
		}
	}
}

// decide applies the rule for when no other site took a copy.
func (r *replication) decide(acked Acked, sameSite bool) (Acked, error) {
	cfg := r.store.cfg.Ack
	otherSites := r.store.otherSites()
	switch {
	case sameSite && !otherSites:
		return acked, nil
	case sameSite && cfg.Degraded == AckLocal:
		acked.Spooled = true
		return acked, nil
	case len(acked.Holders) == 1 && (cfg.Single || r.store.alone()):
		acked.Single, acked.Spooled = true, otherSites
		return acked, nil
	default:
		return Acked{}, ErrNoPartner
	}
}

// start copies the committed instance from this node's journal to node.
func (r *replication) start(node place.Node) {
	r.running++
	go func() { // ends with the copy, which the append's context and the partner's deadlines bound
		r.results <- partnerResult{node: node, err: r.copy(node)}
	}()
}

func (r *replication) copy(node place.Node) error {
	object, err := r.store.journal.OpenObject(r.key)
	if err != nil {
		return fmt.Errorf("read own journal: %w", err)
	}
	defer object.Close()
	p := r.store.startPartner(r.ctx, node)
	if _, err := object.WriteTo(partnerWriter{p}); err != nil {
		p.abandon()
		return err
	}
	p.commit(r.key, r.size, r.sum, r.note)
	return p.wait()
}

type partnerWriter struct{ p *partner }

func (w partnerWriter) Write(b []byte) (int, error) {
	w.p.write(b)
	return len(b), nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
