// Package journal is where fresh instances land on a disk: an append-only, encrypted, group-committed
// log of objects, from which they are read until they are sealed elsewhere.
//
// Its door is a Journal:
//
//	j, err := journal.Open(journal.Config{FS: fs, Dir: dir, Ring: ring, Disk: disk, Vault: v, Rand: rand, Now: now})
//	w := j.Begin()
//	defer w.Abort()
//	io.Copy(w, src)
//	err = w.Commit(ctx, key, note) // returns after the fsync
//	o, err := j.OpenObject(key)
//
// # Invariants
//
// An object is visible if and only if its commit record and all its bytes were synced; Commit returns
// nil only after that. A frame is written once, at a place nobody wrote before, under a key that lives
// as long as its segment: every Open starts a new segment. Frames reach the file in any order, but a
// sync counts only the prefix without a gap, and commits complete in the order of their records. A
// failed write or sync fences the journal for good: nothing more is acknowledged, and nothing is
// retried. A full disk does not fence it.
//
// # Format, little-endian
//
// DIR/LOCK keeps a second process out; DIR/<segment number, 16 hex digits>.seg are the segments.
//
//	segment  header of 512 bytes, then frames
//	header   "OSTJSEGM" | version u16 | length of wrapped key u16 | ring [16] | disk [16] | segment u64
//	         | incarnation u64 | created, ns since 1970, i64 | wrapped key | zeros | CRC32C u32
//	frame    "OJF1" | type u8 | 0 [3] | object u64 | sequence u32 | length u32 | counter u32
//	         | durable u32 | CRC32C u32 over the segment number and what precedes | ciphertext | tag [16]
//	types    1 chunk of an object: sequence is its place in it, all but the last are 256 KiB
//	         2 commit record: sequence is the number of chunks
//	         3 end of the segment: nothing follows
//	record   key [32] | committed, ns since 1970, i64 | size u64 | chunk size u32 | chunks u32
//	         | offset u32 and key [32] of the commit before it in this segment, or zeros
//	         | extents u32 | extents x (segment u64 | offset u32 | chunks u32) | note
//
// A frame is sealed with AES-256-GCM under the segment's key; the nonce is the counter of the frame in
// its segment; the additional data are the segment number and the frame's header. The header's own
// checksum lets a reader find the next frame behind damage. "durable" is the length of the segment
// that was known to be synced when the frame was placed.
//
// # Damage
//
// Open reads every frame's header and every commit record, and authenticates every chunk that lies
// beyond the last known sync of its segment; all others are authenticated whenever they are read, and
// by Verify. A bad end with nothing good behind it is what a crash leaves, and is passed over. A good
// record that names something bad or missing proves damage: its key is listed by Corrupt, to be
// fetched from the other holder. After a power cut that list may name objects that were in flight and
// never acknowledged. Damage that took two adjacent commit records away leaves the first one's key
// unnamed, and a segment cut short at its end may name nothing; whoever knows what this disk should
// hold compares.
//
// What it does not do: it replicates nothing, remembers neither Release nor Drop over a restart, and
// rewrites nothing: a segment's space comes back when none of its objects is needed.
package journal
