// Package nodetest runs whole rings inside one test process: real nodes, with their real link, Raft, gossip, catalog
// and journals, on a packet network, disks and clocks in memory that can be made to fail. Inside a testing/synctest
// bubble time is virtual: a minute of a three-node ring costs a fraction of a second.
//
//	synctest.Test(t, func(t *testing.T) {
//		ring := nodetest.New(t, nodetest.Config{Seed: 1})
//		defer ring.Close()
//		a1 := ring.Found("a1", "a") // name, site
//		b1 := ring.Join("b1", "b")
//		c1 := ring.Join("c1", "c")
//		ring.AwaitReady()
//		ring.Net.Isolate("b")                     // cut site b off
//		a1.PowerCut(0.5)                          // lose about half of what was not synced
//		a1.Start()
//		ring.Net.Heal()
//		ring.Await("b1 hears of it", func() bool { return b1.Node() != nil && b1.Node().Ready() == nil })
//		_ = c1.Node().Archive()                   // nil while the node is down
//	})
//
// # What can be made to fail
//
//   - Network: CutOneWay, Cut, Isolate, Split, Heal; Change sets delay, jitter, loss, reordering, duplication and
//     bandwidth of the paths between nodes and sites.
//   - Node: Stop (orderly), Kill (kill -9), PowerCut (with torn writes), Start, Wipe.
//   - Disk: Watch sees every operation before it happens, may fail it or end the process right there; SetFree; Copy
//     and Restore for disks that go back in time.
//   - Clock: Set, Freeze.
//
// A node that was killed goes on for a while without a network and on a copy of its disk: calls into it return
// something, which means nothing. Node.Generation tells whether the node that answered is still the one that was asked.
//
// # Rules inside a bubble
//
// Everything that waits on the ring must be started inside the bubble. The disks never make anybody wait: a wait of
// virtual time under a mutex that somebody else wants stops the bubble's clock for good. Listeners for DIMSE and HTTP
// are off; use the archive. A goroutine that a node leaves behind fails the test by itself.
//
// The same works outside a bubble, in real time.
package nodetest
