// Package dimse speaks the DICOM message exchange of PS3.7 over associations
// of package dul, on both sides.
//
// A Server accepts associations and hands requests to a Handler; a Client asks
// for the services of another AE. Data sets stream: a C-STORE data set is an
// io.Reader straight over the network, read by nobody else meanwhile, so a
// slow store slows its sender. Identifiers of queries are small and arrive
// decoded.
//
//	srv, err := dimse.NewServer(dimse.ServerConfig{Handler: handler})
//	if err != nil {
//		return err
//	}
//	return srv.Serve(ctx, listener) // until ctx ends, then drains
//
//	client, err := dimse.Dial(ctx, conn, dimse.ClientConfig{...})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	res, err := client.Store(ctx, dimse.StoreArgs{SOPClass: class, SOPInstance: uid, Data: file})
//
// Invariants. Command sets are always Implicit VR Little Endian in ascending
// order of tags with a correct group length (PS3.7 §6.3.1). A data set that is
// cut short by an abort or a reset ends in an error, never in io.EOF. What a
// handler leaves unread is drained. A response and its identifier leave in one
// write.
//
// On the server one goroutine an association reads; it runs C-ECHO, C-STORE
// and the N- services itself, in order, and starts one goroutine for each
// C-FIND, C-MOVE and C-GET, so that it sees a C-CANCEL, the responses to
// C-GET's sub-operations and an abort while they run. Where an asynchronous
// window was agreed to, each C-STORE has a goroutine too, to which the reader
// lends the stream until the data set is read (overlap.go). These goroutines
// are waited for before the association is closed.
//
// The package does not decide who may call, what exists or which status a
// failure deserves: that is the handler's.
package dimse
