// Package scp is the DIMSE front end of the archive: what each DIMSE service does with it.
//
// Its door is Server, which serves associations on a listener until its context ends and then drains. It
// answers C-ECHO (PS3.4 Annex A), C-STORE of every storage SOP class and transfer syntax, private ones
// too (Annex B, level 2), C-FIND, C-MOVE and C-GET of the Patient Root and Study Root models (Annex C).
//
//	s, err := scp.New(scp.Config{Archive: archive, AETitle: "OSTEON", Dial: dial, Now: time.Now})
//	err = s.Serve(ctx, listener)
//
// What it promises to peers is in ../CONFORMANCE.md. Matching, versions and durability are the archive's, PDUs
// and messages package dimse's. The package holds no state but counters and the turns at C-MOVE destinations.
//
// # Invariants
//
//   - An identifier that breaks the rules of its model is refused with the element at fault; nothing is guessed.
//   - Every instance that a retrieval lists is counted once, as completed, warned of or failed, unless the peer
//     cancels; those that failed are named.
//   - An object that fails its check never passes for whole: it fails before its C-STORE begins when it is small
//     or rewritten, and costs the association, which is opened anew for the rest, when it is not.
//   - Objects leave as they are stored; native ones are rewritten by dicomsvc.Rewrite for peers that take them no
//     other way. Pixels are never decoded.
//   - Memory grows with the number of instances retrieved, by about 100 bytes each, and not with their size.
//   - Error Comments tell the sender which element or limit is at fault, and nothing of this node's inside.
package scp
