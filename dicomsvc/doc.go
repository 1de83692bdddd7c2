// Package dicomsvc is the archive: the one door that every front end calls to store, find and read
// DICOM objects, and the owner of the order of durable steps behind it.
//
// The edition of the standard meant by every citation in this module is DICOM 2024e.
//
// # What it hides
//
// An Archive joins the replicated catalog (what exists and where its bytes are) with the blob store
// (the bytes). Put journals an object at two nodes before it returns; the offers loop brings the catalog
// entry to the ring afterwards; the sealing loop turns quiet studies into erasure-coded packs; Search,
// Instances, Open and Headers answer from the local catalog replica plus what this node holds that the
// ring has not applied yet.
//
// # Invariants
//
//   - No catalog record without bytes: an instance is offered only after the fsync of its journal record,
//     a pack is recorded only after every shard was fsynced, read back and verified.
//   - No byte is freed before an applied Seal lists its version.
//   - Whole objects leave with their SHA-256 checked: the last bytes are withheld when it differs.
//   - Every call carries a Principal; who may do what is decided in policy.go and nowhere else.
//
// Front ends never see shards, journals or Raft. Status codes of both protocols are chosen in status.go, and
// objects are turned from one native transfer syntax into another in rewrite.go. CONFORMANCE.md states what
// peers may rely on.
package dicomsvc
