// Package dul is the DICOM upper layer: it turns one byte stream into one
// association and hides everything PS3.8 says about PDUs, presentation
// contexts, releases, aborts and timers.
//
// Accept answers an association on a connection somebody dialled to us,
// Connect asks for one on a connection we dialled. Both give an *Association:
// Next yields the streams of presentation data (a command set or a data set,
// joined over its fragments, never held in memory), Send writes a message,
// and ReplyRelease, Release, Abort and Close end it.
//
//	assoc, err := dul.Accept(ctx, conn, dul.AcceptorConfig{Negotiate: negotiate})
//	if err != nil {
//		return err // rejected, timed out or not DICOM: the connection is closed
//	}
//	defer assoc.Close()
//	for {
//		in, err := assoc.Next()
//		if errors.Is(err, dul.ErrReleaseRequested) {
//			return assoc.ReplyRelease()
//		}
//		if err != nil {
//			return err
//		}
//		io.Copy(dst, in)
//	}
//
// Invariants. Every PDU sent or received passes through the table of PS3.8
// §9.2 (state.go), so an illegal one is answered by the abort the table asks
// for. Streams are read by one goroutine at a time; Send, Abort and the work
// counters may be called from any. A stream that ends early ends in an error,
// never in io.EOF. No length from the peer sizes an allocation. There is no
// goroutine inside: one timer an association (watch.go) ends reads and writes
// that make no progress.
//
// A PDU on the wire (PS3.8 §9.3), integers big endian:
//
//	+------+----------+-------------+------------------------------+
//	| type | reserved | length (4)  | length bytes                 |
//	+------+----------+-------------+------------------------------+
//	P-DATA-TF body, repeated:
//	+-------------+------------+-----------------------+-----------+
//	| length (4)  | context id | bit0 command, bit1 last | fragment |
//	+-------------+------------+-----------------------+-----------+
//
// The package does not open sockets, does not know DIMSE, and does not judge
// who may call: Negotiate is given by the caller.
package dul
