// Package vault holds a ring's keys and hides how they are kept, and turns a plain file system into
// one whose files are encrypted.
//
// Its door is a Vault, opened from a directory and a root key:
//
//	root, err := vault.OpenRootKeyFile(fs, "/etc/osteon/root.key")
//	v, err := vault.Open(vault.Config{FS: fs, Dir: dir, Ring: ring, Root: root, Rand: rand})
//	key, wrapped, err := v.NewKey([]byte("study"))  // wrapped may be stored anywhere
//	db, err := pebble.Open(path, &pebble.Options{FS: v.FS()})
//
// # Keys
//
// The root key stays outside the data: in a file now, behind the RootKey seam later kinds. It wraps
// the key bundle: the ring's key-encrypting keys (KEKs), each with the number of its epoch, and the
// key of the ring-wide keyed hash. KEKs wrap everything else: a study's key, a file's key. A KEK is
// random, never derived, and lies nowhere but in each node's keys file, so that destroying an epoch
// makes what it wrapped unreadable for ever. A key file that lies beside the data protects no stolen
// disk.
//
// # Formats, little-endian
//
//	keys file        "OSTVKEYS" | version u16 | 0 u16 | ring [16] | length u32 | sealed bundle | CRC32C u32
//	bundle           "OSTVBNDL" | version u16 | count u16 | ring [16] | MAC key [32]
//	                 | count x (epoch u32 | KEK [32]), epochs rising | CRC32C u32
//	root key file    "OSTVROOT" | version u16 | 0 u16 | key [32] | CRC32C u32
//	sealed by root   "OVR1" | check of the root key [8] | salt [16] | ciphertext | tag [16]
//	wrapped key      "OVK1" | epoch u32 | salt [16] | ciphertext [32] | tag [16]
//	encrypted file   header of 4096 bytes, then the body
//	header           "OSTVFILE" | version u16 | length u16 | wrapped key | zeros | CRC32C u32
//
// Sealing is deterministic and needs no randomness: salt = HMAC-SHA256(key, additional data,
// plaintext) cut to 16 bytes; AES-256-GCM under HMAC-SHA256(key, salt) with a zero nonce. Equal
// inputs give equal outputs, and that is all that an observer can learn.
//
// # The encrypting file system
//
// Every file that is created gets a random key of its own, wrapped by the newest KEK in a header that
// is synced before Create returns; so a file without a whole header has no body, and opens as empty.
// The body is AES-256-CTR, the counter being the position in the body. Links, renames and Pebble
// checkpoints keep the header and therefore the key. ReuseForWrite removes and creates, for the same
// key over the same positions with other bytes would give both away. The header takes a whole page,
// so that alignment stays what the caller thinks it is.
//
// What it does not do: it authenticates no body, so users bring their own checksums or MACs; it hides
// neither names nor sizes; bytes rewritten in place through OpenReadWrite are safe against whoever
// sees the disk once, not against one who compares two copies of it.
package vault
