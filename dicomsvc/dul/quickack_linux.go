package dul

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// quickAck leaves the delayed acknowledgement mode until the kernel falls
// back into it.
func quickAck(raw syscall.RawConn) { raw.Control(setQuickAck) }

func setQuickAck(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }

// limitUnacked bounds how long sent data may stay unacknowledged.
func limitUnacked(raw syscall.RawConn) {
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedMax.Milliseconds()))
	})
}
