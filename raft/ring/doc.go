// Package ring is the consensus of a ring: Raft over the link. It hides the hashicorp/raft library (this is its only
// importer), the log on disk, snapshots, the way to the leader, and membership. Its one door is Ring.
//
//	r, err := ring.Open(ring.Config{FS: v.FS(), PlainFS: vfs.Default, Dir: dir, Self: id, Incarnation: 1,
//		Link: l, MAC: mac, Now: time.Now}, catalog)
//	if first {
//		err = r.Bootstrap()
//	}
//	index, result, err := r.Propose(ctx, command) // at any node
//	index, err = r.ReadIndex(ctx)                 // wait until the state machine applied it, then read: linearizable
//	err = r.Close(ctx)
//
// # Invariants
//
//   - An entry is acknowledged only after two fsyncs: that of the log and that of the mark, in this order.
//   - A log that ends before its mark is never used again: Open returns ErrShortLog and the node
//     must come back as a non-voter with a new incarnation, after Wipe.
//   - Every record of the log, the term and vote, the mark and every snapshot carry a keyed hash; each record's hash covers the
//     hash of the record before it. What does not match is never skipped and never replaced by something older: the node stops (Failed).
//   - There is at most one snapshot, the newest. At Open the state machine's own applied index is compared with it: a crash
//     between the arrival of a snapshot and its restore is made good then.
//   - An entry of a kind this release does not know stops the node (ErrUnknownEntry); it is not even stored.
//   - A directory may be older than what its server acknowledged (a copy brought back), and nothing on it can show that. So a server can be
//     opened Gated, as if cut off, until its owner has asked the others and calls Release; Vouch and Acknowledged help with the asking.
//   - Streams between servers name the incarnation they are meant for; a successor never answers for its predecessor.
//
// A server is called NODE#INCARNATION inside Raft, and also addressed by that name, so configurations stay valid when nodes
// change their network address. Commands must be idempotent: Propose repeats them over elections. No barrier entries are written:
// a new leader proposes an empty command instead, so that every index that ReadIndex returns is one that the state machine sees.
//
// # Formats
//
// All integers are little-endian. MAC is the first 16 bytes of Config.MAC over a label and all bytes before it.
// Config.Dir holds log/ (a Pebble database), mark (on PlainFS) and snapshots/.
//
// Keys of the log: 'l' + index (big-endian u64) for a record, 's' for the term and vote. A record:
//
//	 0 magic "OSRL" | version u8 = 1 | type u8 (0 command, 1 noop, 4 barrier, 5 configuration) | zero u16
//	 8 index u64 | term u64 | appended at u64 (Unix ns, the leader's clock; 0 none)
//	32 MAC of the record before (zeros after a snapshot or at the start)
//	48 data length u32 | extensions length u32
//	56 data | extensions
//	   MAC
//
// The term and vote:
//
//	 0 magic "OSRV" | version u8 = 1 | candidate length u8 | zero u16
//	 8 sequence u64 | current term u64 | vote term u64
//	32 candidate | MAC
//
// The mark file is two slots, one a disk page each, written in turn. The valid one with the higher sequence counts:
//
//	  0 magic "OSRM" | version u8 = 1 | candidate length u8 | zero u16
//	  8 sequence u64
//	 16 node 16 bytes | incarnation u64
//	 40 last index u64 | last term u64 | MAC of the last record, 16 bytes
//	 72 sequence of term and vote u64 | current term u64 | vote term u64
//	 96 index of the newest snapshot u64
//	104 candidate, 96 bytes, zeros behind
//	200 MAC | crc32c of bytes 0..215
//
// snapshots/CURRENT names the newest snapshot; it is replaced by rename:
//
//	 0 magic "OSRC" | version u8 = 1 | zero 3 bytes
//	 8 directory number u64 | index u64
//	24 crc32c
//
// snapshots/NUMBER/META describes the files in snapshots/NUMBER/state. META followed by the files' bytes in its order is also
// what goes over the wire:
//
//	 0 magic "OSRS" | version u8 = 1 | zero 3 bytes
//	 8 length of all of META u32 | number of files u32
//	16 index u64 | term u64 | configuration index u64
//	40 configuration length u32 | configuration (the library's encoding)
//	   per file: name length u16 | name | size u64 | BLAKE3 of its bytes, 32 bytes
//	   MAC
//
// A Raft stream begins with a greeting, after which the library's own protocol runs:
//
//	0 magic "OSRG" | version u8 = 1 | zero 3 bytes
//	8 incarnation meant u64 | incarnation of the dialler u64
//
// A request to the leader and its reply, one a stream:
//
//	0 magic "OSRF" | version u8 = 1 | verb u8 (reply: outcome) | zero u16
//	8 index u64 (reply; incarnation in a membership request) | length u32 | payload | crc32c of all before
//
// # What it does not do
//
// It does not know what commands mean, does not choose who votes (erasure/place does), does not resynchronise by itself
// after ErrShortLog, and runs one Raft group. To test it alone: go test ./raft/ring, all on in-memory links and file systems but for one test over QUIC.
package ring
