// Package catalog is the replicated index of a ring: what exists, which version of it is served,
// where its bytes are, and what the ring has decided. It is the state machine that raft/ring runs,
// kept in Pebble, and the only door to that database.
//
// Catalog.Do proposes commands; Catalog.Apply executes them on every replica in the same order and
// with the same outcome; Reader reads. With gives a Reader over the applied state and what this
// node holds and the ring has not applied yet, computed by the same code as Apply.
//
// # Invariants
//
//   - Apply depends on log entries and state alone. Names are folded by the proposer, and the
//     attributes that decide keys are read by attrs.go, so that replicas of different program
//     versions agree. The applied index is in the same Pebble batch as what it stands for.
//   - The first version applied under a SOP Instance UID is served. No command changes or removes a
//     version; further ones are kept beside it and raise a QC item.
//   - All counts are of served instances and change in the batch that serves them.
//   - A version is unsealed, sealed or in limbo, never two of these. Only unsealed ones have rows of
//     their own; a sealed one costs its share of a compressed table and two hash entries.
//   - Reads see one snapshot in each call.
//
// Commits are not synced: the Raft log owns durability, and after a crash the ring applies again
// what Pebble lost. An entry of a newer program stops the catalog (Fault), it is never skipped.
//
// # Log entry
//
//	"OC" | version u8 | s2(body) | CRC32C of all before, u32 LE
//	body: time | principal kind u8, name, node [16] | blobs: count, (length, bytes)... | commands: count, (number u8, fields)...
//
// Integers are LEB128 varints (signed ones zigzag), strings carry their length, times are
// nanoseconds since 1970, 0 for none. Blobs are strings and attribute sets that the items of Add
// share; fields of an item name them by number. See wire.go for the fields of each command.
//
// # Keys
//
// A key is the Raft group (u8, 0), the table (u8) and the fields below. Numbers are big-endian;
// strings have 00 written as 00 FF and end with 00 01. Values begin with a version byte unless
// they are empty. Tables are numbered once and for all:
//
//	01 name                                    applied index and term, ring time, counters
//	10 study                                   study: patient, attributes, counts, packs
//	11 study series                            series: attributes, counts, its instance tables
//	12 study series number(u32) uid version    unsealed version
//	13 version                                 key of its row in 12 or 16
//	14 uid                                     unsealed and limbo versions of a SOP Instance UID
//	15 patient-id issuer                       patient: attributes, counts
//	16 uid version                             version in limbo
//	17 study                                   what the study has to seal
//	20 patient-id study    21 name study       indexes of studies with a served instance; name is
//	22 date study          23 accession study  folded, one entry a component group
//	24 modality date study 25 series study
//	26 name patient-id issuer                  index of patients
//	30 hash of uid (8 bytes)                   places: (pack number, ordinal)..., to be confirmed
//	31 first 8 bytes of version                the same
//	32 pack(u32) ordinal(u32)                  instance table, up to 512 versions of one series
//	33 pack(u32)                               pack     34 pack-id   its number
//	35 encode                                  encode   36 encode    listed while not sealed
//	40 kind version                            QC item
//	50 node   51 token hash   52 setting   53 AE title   54 HTTP token name
//	60 uid hash   61 target id   62 target id   63 id     tombstone, overlay, hold, commitment request
//
// An instance table is version u8, length of the body, zstd of the body; table.go draws the body.
//
// # Order of a search
//
// The keys of a query choose its order, so that pages of one query fit together: by UID where
// study, series or instance UIDs are given; else by accession number, by patient ID, or by folded
// name; else newest Study Date first, for each modality in turn where modalities are given. Within
// a study series come by UID, within a series instances by number and UID.
//
// The package does not decide who may do what, when to seal, or what a study's bytes are; it holds
// no bytes of instances and never talks to another node.
package catalog
