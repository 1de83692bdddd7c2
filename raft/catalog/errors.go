package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors that callers branch on.
var (
	// ErrNotFound: the catalog has no such study, instance, pack, encode, setting or token.
	ErrNotFound = errors.New("not in the catalog")
	// ErrInvalid: a command, batch or query breaks a limit or names nothing.
	ErrInvalid = errors.New("invalid")
	// ErrMalformed: bytes are not a batch or a row of this format. In an applied entry the result
	// says so; found in the database it means damage: fetch the catalog again from another node.
	ErrMalformed = errors.New("malformed")
	// ErrUnknownCommand: a log entry holds a format version or a command that this program does not
	// know. The catalog applies nothing from there on; run a newer program.
	ErrUnknownCommand = errors.New("log entry of a newer program")
	// ErrRaced: the command came too late; what it would change has been decided otherwise.
	ErrRaced = errors.New("decided otherwise already")
	// ErrExpired: the token's time is over.
	ErrExpired = errors.New("token expired")
	// ErrUsed: the token was spent by another node.
	ErrUsed = errors.New("token used already")
	// ErrDisk: a write or fsync of the database failed; it is not tried again. Restart the node when the disk is sound.
	ErrDisk = errors.New("the catalog's disk failed")
	// ErrDamaged: files of the database are damaged or missing.
	ErrDamaged = errors.New("catalog is damaged")
	// ErrClosed: the catalog is closed.
	ErrClosed = errors.New("catalog closed")
	// ErrNoProposer: Do was called before SetProposer.
	ErrNoProposer = errors.New("catalog has no proposer")
)

// damagedUnlessSystem makes err ErrDamaged unless the operating system refused something: a lock that another process holds,
// a disk that cannot be read, too many files. Pebble has no one word for files that do not make sense.
func damagedUnlessSystem(err error) error {
	var refused syscall.Errno
	if errors.As(err, &refused) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
