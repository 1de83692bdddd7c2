// Package place decides which nodes hold the shards of a pack and says what a placement survives.
//
// It hides geometry: callers state what must be survived ([Survive]) and get a [Plan] from
// [Choose], the one door; they never count shards themselves. Whatever the package claims about a
// placement it has computed by trying every loss of the class and asking whether the shards that
// are left still have the rank of the data, so uneven sites and dead nodes need no rule of their own.
//
//	plan, err := place.Choose(nodes, place.SurviveSiteNode, pack[:])
//	// plan.Geometry {5 4}, plan.Placement[i] = where shard i goes, plan.Why for the admin
//
// Invariants: a Plan never holds two shards on one node (one a node is always enough: where any
// placement survives a loss, a node with shards is left, so copies on every node survive it too);
// K and M stay within the fast kernels of the codec; the same nodes and seed give the same plan on
// every machine. The package keeps no state, does no I/O and reads no clock; all functions are safe
// for concurrent use.
//
// It deliberately does not move anything: a placement lives in the catalog and changes only there.
package place

import (
	"errors"
	"fmt"
)

// ErrNoNodes: no live node may take data.
var ErrNoNodes = errors.New("no live data node")

// ErrCannotMeet: the ring, even with every node up, cannot survive what is asked.
var ErrCannotMeet = errors.New("the ring cannot survive what is asked")

// Node is what placement knows of a node.
type Node struct {
	ID   NodeID
	Name string // what the admin calls it; used in sentences only
	Site SiteID
	Disk DiskID
	// Live says that the node answers now.
	Live bool
	// Free is the space left in bytes; 0 is unknown. Emptier nodes are chosen more often.
	Free int64
	// Cordoned nodes keep what they hold and take nothing new.
	Cordoned bool
	// Data is false for a witness, which votes and holds no shards.
	Data bool
}

// Survive is a class of losses that leaves every pack readable.
type Survive string

// The classes, weakest first. Each includes those before it.
const (
	// SurviveAuto asks for [Best]; it is never an answer.
	SurviveAuto Survive = ""
	// SurviveLost is an answer only: too few shards are left to read the pack now.
	SurviveLost Survive = "lost"
	// SurviveNone is readable, and the next loss may end that.
	SurviveNone Survive = "none"
	// SurviveNode is the loss of any one node.
	SurviveNode Survive = "node"
	// SurviveSite is the loss of any one site.
	SurviveSite Survive = "site"
	// SurviveSiteNode is the loss of any one site and of one node of another.
	SurviveSiteNode Survive = "site+node"
	// SurviveTwoSites is the loss of any two sites.
	SurviveTwoSites Survive = "two-sites"
)

// strength orders the classes; an unknown word and auto have none.
func (s Survive) strength() int {
	switch s {
	case SurviveLost:
		return 1
	case SurviveNone:
		return 2
	case SurviveNode:
		return 3
	case SurviveSite:
		return 4
	case SurviveSiteNode:
		return 5
	case SurviveTwoSites:
		return 6
	}
	return 0
}

// Valid reports whether s may stand in a configuration: a class other than lost, or auto.
func (s Survive) Valid() bool {
	return s == SurviveAuto || s.strength() >= SurviveNone.strength()
}

// Meets reports whether s is at least as strong as floor.
func (s Survive) Meets(floor Survive) bool { return s.strength() >= floor.strength() }

// Phrase says in plain words what is survived, such as "the loss of any one site".
func (s Survive) Phrase() string {
	switch s {
	case SurviveLost:
		return "nothing: too few shards are left to read it"
	case SurviveNone:
		return "no loss"
	case SurviveNode:
		return "the loss of any one node"
	case SurviveSite:
		return "the loss of any one site"
	case SurviveSiteNode:
		return "the loss of any one site and one node of another"
	case SurviveTwoSites:
		return "the loss of any two sites"
	}
	return "an unknown class"
}

// classes from strong to weak: the order in which a plan falls back.
var classes = [...]Survive{SurviveTwoSites, SurviveSiteNode, SurviveSite, SurviveNode, SurviveNone}

// Geometry is a code: K shards of data and M of parity, any K of which give the data back.
// K = 1 are M+1 equal copies; M = 0 is no redundancy.
type Geometry struct{ K, M int }

// N returns the number of shards, K+M.
func (g Geometry) N() int { return g.K + g.M }

// String returns the form "5+4".
func (g Geometry) String() string { return fmt.Sprintf("%d+%d", g.K, g.M) }

// Check returns an error unless 1 <= K <= [DataShardsMax] and 0 <= M <= [ParityShardsMax].
func (g Geometry) Check() error {
	if g.K < 1 || g.K > DataShardsMax || g.M < 0 || g.M > ParityShardsMax {
		return fmt.Errorf("geometry %d+%d: want 1 to %d data and 0 to %d parity shards",
			g.K, g.M, DataShardsMax, ParityShardsMax)
	}
	return nil
}

// Overhead returns stored bytes for each user byte.
func (g Geometry) Overhead() float64 { return float64(g.N()) / float64(g.K) }

// Phrase names the code in plain words: "3 copies", "5+4 shards".
func (g Geometry) Phrase() string {
	switch {
	case g.K == 1 && g.M == 0:
		return "a single copy"
	case g.K == 1:
		return fmt.Sprintf("%d copies", g.N())
	}
	return g.String() + " shards"
}

// Slot is where one shard lives.
type Slot struct {
	Node NodeID
	Disk DiskID
	Site SiteID
}

// Placement lists the slots by shard number; its length is Geometry.N().
type Placement []Slot

// Plan is the answer of [Choose].
type Plan struct {
	Geometry  Geometry
	Placement Placement
	// Wanted is what was asked, with auto resolved.
	Wanted Survive
	// Survives is what this placement survives, computed by [Survives] over live nodes.
	Survives Survive
	// Fallback says that dead nodes made the plan differ from that of the whole ring, or that the
	// ring cannot meet Wanted at all: worth sealing again later.
	Fallback bool
	// Why is a sentence for the admin. It names nodes and sites, never data.
	Why string
}
