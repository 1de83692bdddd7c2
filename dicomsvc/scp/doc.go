// Package scp is the DIMSE front end of the archive: what each DIMSE service does with it.
//
// Its door is Server, which serves associations on a listener until its context ends and then drains. It
// answers C-ECHO (PS3.4 Annex A), C-STORE of every storage SOP class and transfer syntax, private ones
// too (Annex B, level 2), C-FIND, C-MOVE and C-GET of the Patient Root and Study Root models (Annex C).
//
//	s, err := scp.New(scp.Config{Archive: archive, AETitle: "OSTEON", Dial: dial, Now: time.Now})
//	err = s.Serve(ctx, listener)
//
// The package holds no state but counters; matching, versions and durability are the archive's, PDUs and
// messages package dimse's. Transfer syntaxes are stored and sent as they are; only the uncompressed ones are
// re-encoded into each other when a peer takes no other (PS3.5 Annex A).
package scp
