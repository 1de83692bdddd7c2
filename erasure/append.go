package erasure

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"osteon/erasure/journal"
	"osteon/erasure/place"
	"osteon/erasure/plant"
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
	own     *ownCopy
	partner *partner
	sum     uint32
	size    int64
}

// Begin starts an instance of the study whose rendezvous key is study; the first bytes go to this
// node's journal and to a partner's at once. The caller ends it with Commit or Abort.
func (s *Store) Begin(ctx context.Context, study []byte) *Append {
	a := &Append{store: s, ctx: ctx, order: s.partners(study), own: s.beginOwn()}
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
	if err := a.own.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Abort forgets the instance at both holders. After Commit it does nothing.
func (a *Append) Abort() {
	a.own.abort()
	if a.partner != nil {
		a.partner.abort()
		a.partner = nil
	}
}

// Commit makes the instance durable under key with the note that either holder offers to the catalog,
// and returns once the acknowledgement rule holds (design P1). Errors: ErrNoPartner, ErrStalled, and
// journal.ErrFull or journal.ErrFenced of this node's journal. On error the local copy may stay: it was
// never acknowledged, and Config.Held is told of it.
func (a *Append) Commit(ctx context.Context, key journal.Key, note []byte) (Acked, error) {
	began := a.store.cfg.Now()
	first := a.partner
	a.partner = nil
	if first != nil {
		first.commit(key, a.size, a.sum, note)
	}
	if err := a.own.commit(ctx, key, note); err != nil {
		first.abandon()
		return Acked{}, fmt.Errorf("commit to own journal: %w", err)
	}
	r := replication{store: a.store, ctx: a.ctx, began: began, key: key, size: a.size, sum: a.sum, note: note}
	acked, err := r.settle(ctx, a.order, first)
	if err != nil {
		a.store.cfg.Held(key, note, a.store.cfg.Self) // it is in this journal all the same
	}
	return acked, err
}

// replication brings one committed instance to as many other nodes as the acknowledgement rule wants.
type replication struct {
	store *Store
	ctx   context.Context
	began time.Time // of Commit: the sender waits since then
	key   journal.Key
	size  int64
	sum   uint32
	note  []byte

	order   []place.Node               // whom to ask, best first
	waiting []place.Node               // of these, who was not asked yet
	again   []place.Node               // of these, whose connection failed and who may be asked once more
	running map[place.NodeID]time.Time // since when
	results chan partnerResult
}

type partnerResult struct {
	node place.Node
	err  error
}

// settle waits for the first partner, asks the next whenever one fails or is slow, and decides by the
// acknowledgement rule when nobody is left or the wait is over. Half of the wait is all that other sites have for
// themselves: then a node of this site is asked too, so that a silent cut through many of them ends with a copy here
// and not with a refusal. Before a refusal, whoever gossip still holds for alive is asked again: a connection to a node
// that was started again, or that a dying leader took along, breaks once.
func (r *replication) settle(ctx context.Context, order []place.Node, first *partner) (Acked, error) {
	cfg := r.store.cfg.Ack
	self := r.store.cfg.Self
	acked := Acked{Holders: []place.NodeID{self}}
	r.results = make(chan partnerResult, len(order)+1)
	r.order, r.waiting = order, slices.Clone(order)
	r.running = map[place.NodeID]time.Time{}
	if plant.Is(plant.PartnerNotAwaited) && first != nil {
		acked.Holders = append(acked.Holders, first.node.ID)
		return acked, nil
	}
	if first != nil {
		r.waiting = r.waiting[1:]
		r.running[first.node.ID] = r.store.cfg.Now()
		go func() { // ends when the partner does: it answers or is abandoned
			r.results <- partnerResult{node: first.node, err: first.wait()}
		}()
	}
	left := cfg.Wait - cfg.Wait/answerShare - r.store.cfg.Now().Sub(r.began)
	deadline := time.NewTimer(max(left, cfg.SecondAfter)) // a slow own disk leaves partners their time all the same
	defer deadline.Stop()
	halftime := time.NewTimer(max(left, cfg.SecondAfter) / 2)
	defer halftime.Stop()
	slow := time.NewTimer(cfg.SecondAfter)
	defer slow.Stop()
	pause := time.NewTimer(cfg.Wait)
	pause.Stop()
	defer pause.Stop()
	sameSite, late := false, false
	for {
		if len(r.running) == 0 && !r.startNext() {
			result, err := r.decide(acked, sameSite)
			if err == nil || !r.mayAskAgain() {
				return result, err
			}
			pause.Reset(cfg.SecondAfter / 5)
		}
		select {
		case res := <-r.results:
			delete(r.running, res.node.ID)
			if res.err != nil {
				r.store.suspect(res.node.ID)
				r.store.cfg.Log.Warn("copy at partner failed", "node", res.node.ID, "err", res.err)
				if !errors.Is(res.err, errRefused) {
					r.again = append(r.again, res.node)
				}
				if late && !sameSite {
					r.startHere()
				}
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
			r.blameLate()
			if !r.startNext() && r.mayAskAgain() {
				r.askAgain()
				r.startNext()
			}
			slow.Reset(cfg.SecondAfter)
		case <-pause.C:
			r.askAgain()
		case <-halftime.C:
			if late = cfg.Degraded == AckLocal; late && !sameSite {
				r.startHere()
			}
		case <-deadline.C:
			return r.decide(acked, sameSite)
		case <-ctx.Done():
			return Acked{}, fmt.Errorf("wait for a second copy: %w", ctx.Err())
		}
	}
}

// startNext asks the best node that was not asked yet; false: there is none.
func (r *replication) startNext() bool {
	if len(r.waiting) == 0 {
		return false
	}
	r.start(r.waiting[0])
	r.waiting = r.waiting[1:]
	return true
}

// mayAskAgain reports whether a node whose connection failed is still believed to be alive; the others are forgotten.
func (r *replication) mayAskAgain() bool {
	topology := r.store.cfg.Topology()
	r.again = slices.DeleteFunc(r.again, func(n place.Node) bool {
		return !slices.ContainsFunc(topology, func(now place.Node) bool { return now.ID == n.ID && now.Live })
	})
	return len(r.again) > 0
}

func (r *replication) askAgain() {
	r.waiting, r.again = slices.Concat(r.waiting, r.again), nil
}

// startHere asks a node of this site unless one is being asked already.
func (r *replication) startHere() {
	here := func(n place.Node) bool { return n.Site == r.store.cfg.Site }
	for id := range r.running {
		if slices.ContainsFunc(r.order, func(n place.Node) bool { return n.ID == id && here(n) }) {
			return
		}
	}
	if i := slices.IndexFunc(r.waiting, here); i >= 0 {
		r.start(r.waiting[i])
		r.waiting = slices.Delete(r.waiting, i, i+1)
	}
}

// blameLate notes who has been asked for a while and has not answered.
func (r *replication) blameLate() {
	for id, since := range r.running {
		if r.store.cfg.Now().Sub(since) >= r.store.cfg.Ack.SecondAfter*9/10 {
			r.store.late(id)
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
		acked.Spooled = !plant.Is(plant.SpoolNotMarked)
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
	r.running[node.ID] = r.store.cfg.Now()
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
