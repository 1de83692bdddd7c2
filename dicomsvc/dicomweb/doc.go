// Package dicomweb is the HTTP front end of the archive: DICOMweb as PS3.18 §10 has it.
//
// # What it hides
//
// One door, the http.Handler that New returns, turns requests into calls of dicomsvc.Archive and its
// answers into bodies. What is known here and nowhere else is HTTP: multipart/related, media types and
// transfer syntaxes that are negotiated, ranges, entity tags, CORS, bearer tokens, and which root the
// URLs in an answer must have.
//
//	web, err := dicomweb.New(dicomweb.Config{Archive: a, Now: clock, Rand: random, Log: log})
//	http.Handle("/dicom-web/", web)
//
// # Resources
//
//	POST /studies[/{study}]                                        store (STOW-RS, §10.5)
//	GET  /studies  /series  /instances                             search (QIDO-RS, §10.6)
//	GET  /studies/{}/series  /studies/{}/instances
//	GET  /studies/{}/series/{}/instances
//	GET  /studies/{}[/series/{}[/instances/{}]]                    retrieve (WADO-RS, §10.4)
//	GET  .../metadata                                              of a study, series or instance
//	GET  .../instances/{}/frames/{list}                            frames as stored
//	GET  .../instances/{}/bulkdata/{path}                          one bulk value
//	GET  .../bulkdata                                              all of a study, series or instance
//	GET  .../pixeldata                                             all frames of a study, series or instance
//	GET  /wado?requestType=WADO                                    one instance, or its image (WADO-URI, §9)
//	OPTIONS /                                                      what the service offers (§8.9)
//
// HEAD goes with every GET, OPTIONS with everything. Nothing is rendered, transcoded by decoding pixels, or
// deleted here; /healthz and the like are the node's.
//
// # Transfer syntaxes
//
// An instance leaves as it is stored when the client takes that: transfer-syntax=* or the syntax by name.
// Without the parameter the standard says Explicit VR Little Endian (§8.7.3), and then
//
//   - what is stored with native pixels (Implicit VR, Big Endian, deflated) is rewritten in Explicit VR
//     Little Endian, no pixel changed, after the stored object was read through and its digest checked;
//   - what is stored with loss is sent as stored, by the exception in §8.7.3;
//   - what is stored compressed without loss is refused with 406 and a sentence that says what to ask for.
//
// A wildcard (*/*, no Accept at all) prefers Explicit VR Little Endian and takes any syntax: the standard
// would have 406 for lossless compressed objects, which helps nobody who did not care. A list of instances
// is looked at before the first byte leaves: it is sent whole or refused whole.
//
// Frames leave as stored, without item tags; native ones always in Little Endian, 1-bit ones moved to begin
// with their own first bit. application/octet-stream; transfer-syntax=* takes frames of any syntax, which
// is contested but what viewers ask for.
//
// # Invariants
//
//   - Memory does not grow with the size of an object, a study or an answer: the limits are in limits.go.
//     The header of an object that is rewritten is held (16 MiB at most), its bulk values are not.
//   - A body that was cut off is never taken for an object: only a boundary or the length ends a part.
//   - An answer that fails after its first byte breaks the connection (http.ErrAbortHandler); before it, it
//     becomes a problem that says what, where and what to do. Problems name no value of the request.
//   - Nothing served can run in a browser: nosniff, a policy that allows nothing, bulk values as
//     attachments of octets whatever they are.
//   - The preamble and file meta information of what is sent end here; files are made anew on the way out
//     (PS3.10 §7), so that no polyglot passes through.
//
// # Who may ask
//
// With tokens configured every request but a preflight shows one. Without any, requests are served over
// loopback addresses only, and only under a loopback name or that of the public root. A proxy on this
// machine is such a requester too: give it a token.
//
// A Server is safe for concurrent use and starts no goroutine that outlives a request.
package dicomweb
