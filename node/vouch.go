package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
	"osteon/raft/ring"
)

var (
	// ErrRolledBack: the directory is older than what its node had.
	ErrRolledBack = errors.New("this directory is older than what this node had: it was brought back from a copy")
	// ErrSecondProcess: another process runs under this node's ID.
	ErrSecondProcess = errors.New("another process runs as this node")
	// ErrRemoved: the ring has removed this node.
	ErrRemoved = errors.New("this node was removed from the ring")
	// ErrReopen: the node stopped in order to be opened again; Run does that.
	ErrReopen = errors.New("the node must be opened again")
)

const (
	// vouchPatience bounds how long a start waits for the others. When all of them start at once they need a moment.
	vouchPatience = 3 * time.Second
	// vouchGrace is how long the slower answers are waited for once a majority has answered.
	vouchGrace = 300 * time.Millisecond
	// vouchAgain is the pause between rounds while no majority has answered.
	vouchAgain = 500 * time.Millisecond
	// tellEvery is how often a node tells the others how far it is. What it does after the last time could go unnoticed
	// if it were rolled back.
	tellEvery = 5 * time.Second
	// rollbackPatience is how long a node whose directory is too old waits at its start for the others to elect a leader.
	rollbackPatience = 30 * time.Second
	// fenceFirst and fenceSpread are how long a node bears to be taken for a second process before it ends itself: by chance,
	// so that of two that started at the same time, each refused by some, one remains.
	fenceFirst  = 2 * time.Second
	fenceSpread = 6 * time.Second
)

// standing is what the others have said of this node, and what they have told this node of themselves.
type standing struct {
	ring atomic.Pointer[ring.Ring] // nil until Raft runs

	mu sync.Mutex

	vouched map[place.NodeID]bool // have answered this process
	doubt   string                // why this directory must not vote
	led     bool                  // whoever doubts follows a leader: the ring goes on without this node
	voters  []place.NodeID        // by the longest log that others told of
	told    ring.End              // of that log
	highest uint64                // incarnation of this node that was heard of
	dirty   map[place.NodeID]bool // memories not yet on disk
	known   map[place.NodeID]memory
}

// sighted answers what was known of a node, and remembers what it tells.
func (c *core) sighted(from place.NodeID, s sighting) ([]byte, error) {
	if len(s.Starts) == 0 || len(s.Starts) > startsMax || s.Incarnation == 0 {
		return nil, refuse(joinRefused, "the request is not one that this release understands")
	}
	before, err := c.met(from, s)
	if err != nil {
		c.env.Log.Error("remember what another node told", "node", from, "err", err)
		return nil, refuse(joinUnavailable, "this node's local index does not answer")
	}
	answer := vouching{memory: before}
	if r := c.standing.ring.Load(); r != nil {
		_, answer.Led = r.Leader()
		voters, end := r.Voters()
		answer.Voters, answer.LastTerm, answer.LastIndex = voters, end.Term, end.Index
	}
	return json.Marshal(answer)
}

// met returns what was known of a node before s. A process not met before is remembered durably at once, how far it is by flushMet.
func (c *core) met(from place.NodeID, s sighting) (memory, error) {
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock() // held over the fsync: an answer must not leave before what it rests on is durable
	before, cached := st.known[from]
	if !cached {
		var err error
		if before, err = remember(c.local, from); err != nil {
			return before, err
		}
	}
	if r := st.ring.Load(); r != nil && before.Known {
		before.Index = max(before.Index, r.Acknowledged(from, before.Incarnation))
	}
	after := s.take(before)
	st.known[from] = after
	switch {
	case !before.Known || after.process != before.process || after.Incarnation != before.Incarnation:
		delete(st.dirty, from)
		return before, c.local.PutSeen(from, after.record())
	case after != before:
		st.dirty[from] = true
	}
	return before, nil
}

// flushMet writes what was heard and seen of the others since the last time.
func (c *core) flushMet() error {
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock() // held over the fsyncs, as in met
	r := st.ring.Load()
	for node, m := range st.known {
		acked := r.Acknowledged(node, m.Incarnation)
		if acked <= m.Index && !st.dirty[node] {
			continue
		}
		m.Index = max(m.Index, acked)
		if err := c.local.PutSeen(node, m.record()); err != nil {
			return err
		}
		st.known[node] = m
		delete(st.dirty, node)
	}
	return nil
}

// others lists the members but this node: those of the catalog and those that the directory remembers.
func (c *core) others() []place.NodeID {
	var out []place.NodeID
	known := map[place.NodeID]bool{c.id.Node: true}
	for _, m := range c.topo.nodes() {
		if !known[m.ID] && m.State != catalog.NodeRemoved {
			out = append(out, m.ID)
		}
		known[m.ID] = true
	}
	for _, p := range c.rememberedPeers() {
		if !known[p.Node] {
			known[p.Node] = true
			out = append(out, p.Node)
		}
	}
	return out
}

func (c *core) rememberedPeers() []peerAddress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id.Peers
}

// sighting is what this node tells of itself.
func (c *core) sighting(index, term uint64) sighting {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sighting{Incarnation: c.id.Incarnation, Starts: c.id.Starts, Index: index, Term: term}
}

// answered is one node's answer to a sighting.
type answered struct {
	from place.NodeID
	vouching
	err error
}

// tell asks nodes what they know of this one, all at once, and yields the answers as they come, until ctx ends. end returns
// where the log is now, asked after each answer: what it acknowledged meanwhile must not be held against it.
func (c *core) tell(ctx context.Context, nodes []place.NodeID, s sighting, end func() ring.End, done func(vouched int) bool) error {
	request, err := json.Marshal(peerRequest{Sighting: &s})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answered, len(nodes))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, node := range nodes {
		wg.Go(func() { answers <- c.askOne(ctx, node, request) }) // ends with ctx at the latest
	}
	vouched := 0
	for range nodes {
		a := <-answers
		if err := c.weigh(s, a, end); err != nil {
			return err
		}
		if a.err == nil {
			if vouched++; done != nil && done(vouched) {
				stop := time.AfterFunc(vouchGrace, cancel)
				defer stop.Stop()
			}
		}
	}
	return nil
}

func (c *core) askOne(ctx context.Context, node place.NodeID, request []byte) answered {
	a := answered{from: node}
	response, err := c.link.Call(ctx, node, link.KindAdmin, request)
	var remote *link.RemoteError
	switch {
	case errors.As(err, &remote) && remote.Code == joinRefused: // an older release: it knows nothing
	case err != nil:
		a.err = err
	default:
		a.err = json.Unmarshal(response, &a.vouching)
	}
	return a
}

// weigh takes one answer. Its error is ErrSecondProcess or ErrRemoved.
func (c *core) weigh(s sighting, a answered, end func() ring.End) error {
	var refused *link.RefusedError
	switch {
	case errors.As(a.err, &refused) && refused.Remote && refused.Code == link.RefusalDuplicate:
		return fmt.Errorf("%w: node %s serves another one, on another machine or from a copied directory: stop one of the two", ErrSecondProcess, c.name(a.from))
	case errors.As(a.err, &refused) && refused.Remote && refused.Code == link.RefusalNotAllowed:
		return fmt.Errorf("%w, says node %s: nothing in %s was touched; to use this machine again, join the ring as a new node in an empty directory, and delete this one when it is no longer needed",
			ErrRemoved, c.name(a.from), c.cfg.Dir)
	case a.err != nil:
		return nil
	}
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	st.highest = max(st.highest, a.Incarnation)
	if why := s.doubt(a.memory, end()); why != "" {
		if st.doubt == "" {
			c.env.Log.Error("this directory is older than what this node had", "why", why, "told_by", c.name(a.from))
		}
		st.doubt, st.led = why, st.led || a.Led
		return nil
	}
	st.vouched[a.from] = true
	if told := (ring.End{Term: a.LastTerm, Index: a.LastIndex}); longer(told, st.told) {
		st.voters, st.told = a.Voters, told
	}
	return nil
}

// name is how messages call another node.
func (c *core) name(id place.NodeID) string {
	if name := c.topo.name(id); name != "" {
		return name
	}
	return id.String()
}

// vouch asks the others, before Raft starts, whether this directory is the one that this node had. When it is not and the ring goes
// on without this node, the error is errStartOver; while it does not, nothing may be given up, and after some waiting the
// error is ErrRolledBack. Others are ErrSecondProcess and ErrRemoved. Too few answers are no error, and no vote: see mayVote.
func (c *core) vouch(end ring.End) error {
	others := c.others()
	if len(others) == 0 {
		return nil
	}
	c.standing.forget()
	s := c.sighting(min(end.Index, c.cat.Applied()), end.Term)
	var doubted bool
	for until := c.env.Now().Add(rollbackPatience); ; {
		if err := c.vouchOnce(others, s, end); err != nil {
			return err
		}
		err := c.rolledBack()
		switch {
		case err == nil:
			return nil
		case !doubted: // by a second process that runs? Then the others refuse this one as soon as they are in touch with it
			doubted = true
			time.Sleep(s.fenceTime())
			c.standing.forget()
			continue
		case errors.Is(err, errStartOver):
			return err
		}
		if c.env.Now().After(until) {
			return fmt.Errorf("%w. The ring has no leader without this node, so the newer directory is needed: bring it back, or start the other nodes", err)
		}
		time.Sleep(vouchAgain)
	}
}

// vouchOnce is one round of vouch.
func (c *core) vouchOnce(others []place.NodeID, s sighting, end ring.End) error {
	ctx, cancel := context.WithTimeout(context.Background(), vouchPatience)
	defer cancel()
	fixed := func() ring.End { return end }
	majority := func(vouched int) bool { return vouched+1 > (len(others)+1)/2 }
	err := c.tell(ctx, others, s, fixed, majority)
	if errors.Is(err, ErrSecondProcess) {
		err = c.secondProcess(context.Background(), others, s, fixed)
	}
	return err
}

// rolledBack returns ErrRolledBack when this directory is in doubt, with errStartOver when the ring goes on without it.
func (c *core) rolledBack() error {
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.doubt == "":
		return nil
	case st.led:
		return fmt.Errorf("%w: %w: %s", errStartOver, ErrRolledBack, st.doubt)
	}
	return fmt.Errorf("%w: %s", ErrRolledBack, st.doubt)
}

// forget forgets what the others have said: another directory, or another incarnation, is asked about.
func (st *standing) forget() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.doubt, st.led = "", false
	st.voters, st.told = nil, ring.End{}
	clear(st.vouched)
}

// fenceTime is how long the sender waits for a second process to go away.
func (s sighting) fenceTime() time.Duration {
	return fenceFirst + fenceSpread*time.Duration(s.sender().Instance[0])/256
}

// secondProcess waits a while and asks again: the other process may be the one that ends.
func (c *core) secondProcess(ctx context.Context, nodes []place.NodeID, s sighting, end func() ring.End) error {
	wait := s.fenceTime()
	c.env.Log.Error("another process runs as this node; one of the two will end", "wait", wait.String())
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, vouchPatience)
	defer cancel()
	return c.tell(ctx, nodes, s, end, nil)
}

// mayVote lets this node take part in Raft once a majority of the voters, counting this node if it has a vote, has
// vouched for its directory. Whoever could elect a leader with this node's vote could be asked, so nothing is lost by asking. Where
// one who vouched has a longer log, the voters that it names will do: of those that this node knew before it was away one may have
// gone for ever.
func (c *core) mayVote() {
	others := c.others()
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.doubt != "" || c.ring.Released() {
		return
	}
	voters, end := c.ring.Voters()
	enough := st.majority(c.id.Node, voters)
	if len(voters) == 0 { // a node that has not been told of the others' votes yet
		enough = len(st.vouched)+1 > (len(others)+1)/2
	}
	if enough || longer(st.told, end) && st.majority(c.id.Node, st.voters) {
		c.ring.Release()
	}
}

// majority reports whether most of the voters have vouched, or are this node. mu is held.
func (st *standing) majority(self place.NodeID, voters []place.NodeID) bool {
	have := 0
	for _, id := range voters {
		if id == self || st.vouched[id] {
			have++
		}
	}
	return have > len(voters)/2
}

// longer reports whether a log that ends at a is more up to date than one that ends at b (Raft §5.4.1).
func longer(a, b ring.End) bool { return a.Term > b.Term || a.Term == b.Term && a.Index > b.Index }

// inDoubt returns why the directory is not to be trusted, empty when nobody doubts it.
func (c *core) inDoubt() string {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	return c.standing.doubt
}

// unasked returns the others that have not answered this process.
func (c *core) unasked(others []place.NodeID) (out []place.NodeID) {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	for _, id := range others {
		if !c.standing.vouched[id] {
			out = append(out, id)
		}
	}
	return out
}

// settled notes that all others have vouched: earlier starts of this directory need not be told any more.
func (c *core) settled() error {
	c.mu.Lock()
	long := len(c.id.Starts) > 1
	c.mu.Unlock()
	if !long {
		return nil
	}
	return c.changeIdentity(func(id *identity) { id.Starts = id.Starts[len(id.Starts)-1:] })
}

// standingLoop goes on asking the others until all have answered, tells them from time to time how far this node is, and
// returns what ends the node: ErrSecondProcess, ErrRemoved or ErrRolledBack.
func (n *Node) standingLoop(ctx context.Context) error {
	for told := n.env.Now(); ; {
		pause := vouchAgain
		if n.ring.Released() {
			pause = tellEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		others := n.others()
		ask := n.unasked(others)
		if n.env.Now().Sub(told) >= tellEvery {
			ask, told = others, n.env.Now()
		}
		if err := n.stand(ctx, ask); err != nil {
			return err
		}
		if len(n.unasked(others)) == 0 && n.inDoubt() == "" {
			if err := n.settled(); err != nil {
				n.env.Log.Error("write node identity", "err", err)
			}
		}
	}
}

// stand is one round of standingLoop.
func (n *Node) stand(ctx context.Context, ask []place.NodeID) error {
	end := func() ring.End { return ring.End{Index: n.ring.LastIndex(), Term: n.ring.Term()} }
	s := n.sighting(n.cat.Applied(), n.ring.Term())
	round, cancel := context.WithTimeout(ctx, vouchPatience)
	err := n.tell(round, ask, s, end, nil)
	cancel()
	if errors.Is(err, ErrSecondProcess) {
		err = n.secondProcess(ctx, ask, s, end)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	if err := n.rolledBack(); err != nil {
		return err
	}
	n.mayVote()
	if err := n.flushMet(); err != nil {
		n.env.Log.Error("remember how far the others are", "err", err)
	}
	return nil
}
