package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
)

// identity is DIR/node: who this node is. It holds no secret, is written whole and reads:
//
//	osteon-node 1
//	{ JSON }
//	crc32c 0123abcd
type identity struct {
	Ring place.RingID `json:"ring"`
	Node place.NodeID `json:"node"`
	Name string       `json:"name"`
	Site place.SiteID `json:"site"`
	Disk place.DiskID `json:"disk"`
	// Incarnation is raised each time that the node joins Raft afresh; Boot each time it starts.
	Incarnation uint64 `json:"incarnation"`
	Boot        uint64 `json:"boot"`
	Witness     bool   `json:"witness,omitempty"`
	// Address is where the ring was told to find this node's link.
	Address string `json:"address,omitempty"`
	// Enrolled says that this incarnation has had the ring's log on its disk: an empty one is a loss then.
	Enrolled bool `json:"enrolled"`
	// Starts are the starts of this directory since all others vouched for it, the last such one included.
	Starts []process `json:"starts,omitempty"`
	// Distrust says why log and catalog are given up for a new incarnation at the next start. Damaged names parts of
	// the directory that are set aside then and made anew from the rest.
	Distrust string   `json:"distrust,omitempty"`
	Damaged  []string `json:"damaged,omitempty"`
	// CA and Certificate are DER.
	CA          []byte `json:"ca"`
	Certificate []byte `json:"certificate"`
	// Peers are the other members as last known: they are asked when there is no catalog to say so.
	Peers []peerAddress `json:"peers,omitempty"`
}

type peerAddress struct {
	Node    place.NodeID `json:"node"`
	Address string       `json:"address"`
}

const (
	identityMagic    = "osteon-node 1\n"
	identityBytesMax = 1 << 20
)

var (
	// ErrNoNode means that the directory holds no node yet: init or join comes first.
	ErrNoNode = errors.New("no node here")
	// ErrNodeExists means that the directory holds a node already.
	ErrNodeExists = errors.New("a node is here already")
)

// restoreNode says what to do about a file without which the node has no name.
const restoreNode = "restore this one file from the newest backup; without one, remove this node from the ring and join again in an empty directory"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func identityPath(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "node") }

// loadIdentity returns ErrNoNode when the directory or the file is missing: an unmounted volume must not
// become an empty archive.
func loadIdentity(fs vfs.FS, dir string) (identity, error) {
	var id identity
	f, err := fs.Open(identityPath(fs, dir))
	if errors.Is(err, os.ErrNotExist) {
		return id, fmt.Errorf("%w: %s has no file \"node\"; run osteon init or osteon join first, or mount the volume that holds it", ErrNoNode, dir)
	}
	if err != nil {
		return id, fmt.Errorf("read node identity: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, identityBytesMax))
	if err != nil {
		return id, fmt.Errorf("read node identity: %w", err)
	}
	body, ok := bytes.CutPrefix(raw, []byte(identityMagic))
	at := bytes.LastIndex(body, []byte("crc32c "))
	if !ok || at < 0 {
		return id, fmt.Errorf("read node identity: %s is damaged, or not a node file of this version: %s", identityPath(fs, dir), restoreNode)
	}
	want := fmt.Sprintf("%08x", crc32.Checksum(raw[:len(identityMagic)+at], castagnoli))
	if got := strings.TrimSpace(string(body[at+len("crc32c "):])); got != want {
		return id, fmt.Errorf("read node identity: %s is damaged: checksum %.8q, want %s: %s", identityPath(fs, dir), got, want, restoreNode)
	}
	if err := json.Unmarshal(body[:at], &id); err != nil {
		return id, fmt.Errorf("read node identity: %w", err)
	}
	return id, nil
}

// save writes the identity durably over an earlier one.
func (id identity) save(fs vfs.FS, dir string) error {
	body, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	out := append([]byte(identityMagic), body...)
	out = append(out, '\n')
	out = fmt.Appendf(out, "crc32c %08x\n", crc32.Checksum(out, castagnoli))
	if err := writeFile(fs, identityPath(fs, dir), out); err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return nil
}

// writeFile replaces the file at path: temporary name, fsync, rename, fsync of the directory.
func writeFile(fs vfs.FS, path string, content []byte) (err error) {
	temp := path + ".tmp"
	f, err := fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, werr := f.Write(content)
	serr := f.Sync()
	if err := errors.Join(werr, serr, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(fs vfs.FS, path string) error {
	dir, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func readFile(fs vfs.FS, path string, max int64) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, max))
}

func fileExists(fs vfs.FS, path string) bool {
	_, err := fs.Stat(path)
	return err == nil
}
