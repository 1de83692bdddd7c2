package link

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// limitSilence breaks a connection whose peer is gone without a word: keep-alives notice it while nothing is sent, the user
// timeout while something is (RFC 5482), which keep-alives would not.
func limitSilence(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return // a test's network
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: lineSilence / 3, Interval: lineSilence / 3, Count: 2})
	raw, err := t.SyscallConn()
	if err != nil {
		return // closed already: the handshake will say so
	}
	_ = raw.Control(func(fd uintptr) { setUserTimeout(fd) })
}

func setUserTimeout(fd uintptr) {
	// An old kernel does without; the callers' own deadlines remain.
	_ = unix.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lineSilence.Milliseconds()))
}
