//go:build unix

package vault

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// ownerOnly takes the file from everyone but its owner, where it is a file of the operating system.
func ownerOnly(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	return unix.Fchmod(int(f.Fd()), 0o600)
}
