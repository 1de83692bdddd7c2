package node

import (
	"errors"
	"fmt"
	"strings"

	"osteon/erasure/place"
	"osteon/raft/vault"
)

// Init and join fill a directory in many steps. The file DIR/unfinished is there, durably, from before the
// first of them until after the last: a directory that has it was left by a crash or an open outcome, and the command can be
// given again; the mark of a join tells who the ring may take the node for. Without it the directory is vacant or whole.

// parts are the entries of a node's directory apart from its root key.
var parts = []string{"node", "vault", "link.key", "catalog", "raft", "local", "journal", "shards"}

// leftovers are what a crash may leave beside them.
var leftovers = []string{"node.tmp", "link.key.tmp", "root.key.new", "unfinished.tmp"}

const unfinishedBytesMax = 128

// joinMark is what a join writes into DIR/unfinished: the IDs under which the ring may have listed the node.
type joinMark struct {
	node place.NodeID
	disk place.DiskID
}

func (m joinMark) String() string { return fmt.Sprintf("join %s %s", m.node, m.disk) }

// interruptedJoin returns the mark of a join that was interrupted in the directory.
func interruptedJoin(cfg Config, env Env) (m joinMark, ok bool) {
	b, err := readFile(env.FS, unfinishedPath(cfg, env), unfinishedBytesMax)
	if err != nil {
		return joinMark{}, false
	}
	words := strings.Fields(string(b))
	if len(words) != 3 || words[0] != "join" || m.node.UnmarshalText([]byte(words[1])) != nil || m.disk.UnmarshalText([]byte(words[2])) != nil {
		return joinMark{}, false
	}
	return m, true
}

func unfinishedPath(cfg Config, env Env) string { return env.FS.PathJoin(cfg.Dir, "unfinished") }

// beginDir makes the directory, refuses one that holds a node or remains of one, clears what an interrupted
// init or join left, and marks it as unfinished: "init" or a joinMark.
func beginDir(cfg Config, env Env, mark string) error {
	if err := vault.MakeDir(env.FS, cfg.Dir); err != nil {
		return fmt.Errorf("make %s: %w", cfg.Dir, err)
	}
	if fileExists(env.FS, unfinishedPath(cfg, env)) {
		if err := clearParts(cfg, env); err != nil {
			return fmt.Errorf("clear what an interrupted attempt left: %w", err)
		}
	}
	for _, name := range parts {
		if path := env.FS.PathJoin(cfg.Dir, name); fileExists(env.FS, path) {
			return fmt.Errorf("%w: %s is there; choose another directory", ErrNodeExists, path)
		}
	}
	if err := writeFile(env.FS, unfinishedPath(cfg, env), []byte(mark)); err != nil {
		return fmt.Errorf("mark %s as unfinished: %w", cfg.Dir, err)
	}
	return nil
}

// finishDir says that the directory is whole.
func finishDir(cfg Config, env Env) error {
	err := env.FS.Remove(unfinishedPath(cfg, env))
	return errors.Join(err, syncDir(env.FS, cfg.Dir))
}

// checkFinished returns ErrNoNode, with what to do, when init or join was interrupted in the directory.
func checkFinished(cfg Config, env Env) error {
	path := unfinishedPath(cfg, env)
	if !fileExists(env.FS, path) {
		return nil
	}
	mark, err := readFile(env.FS, path, unfinishedBytesMax)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	again := "run osteon init in it again"
	if strings.HasPrefix(string(mark), "join") {
		again = "run osteon join in it again, with a new token (osteon token create) where the ring says that this one was used"
	}
	return fmt.Errorf("%w: %s was left unfinished by an interrupted attempt; %s", ErrNoNode, cfg.Dir, again)
}

// vacate removes what a failed init or join made in a directory that was vacant.
func vacate(cfg Config, env Env) error {
	return errors.Join(clearParts(cfg, env), env.FS.RemoveAll(unfinishedPath(cfg, env)), syncDir(env.FS, cfg.Dir))
}

// clearParts empties the directory but for the root key, which an admin may have put there, and the mark.
func clearParts(cfg Config, env Env) error {
	var errs []error
	for _, name := range append(leftovers, parts...) {
		errs = append(errs, env.FS.RemoveAll(env.FS.PathJoin(cfg.Dir, name)))
	}
	return errors.Join(append(errs, syncDir(env.FS, cfg.Dir))...)
}
