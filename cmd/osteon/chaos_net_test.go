//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The chaos tests put every node of a ring into a network namespace of its own, cut the wires between them with
// nftables, and hold the ring to its promises meanwhile and afterwards.

// needNamespaces ends the test where network namespaces cannot be made at all: without root, or in a container
// that may not. Everywhere else what is missing is a failure.
func needNamespaces(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	probe, err := openNetns()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		t.Skipf("network namespaces cannot be made here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	probe.file.Close()
	for _, tool := range []string{"ip", "nft", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: install it (Debian packages: iproute2, nftables)", err)
		}
	}
}

// netns is a network namespace without a name. It lives as long as it is open or a process runs in it, so nothing of
// it is left when the test process ends, however it ends.
type netns struct{ file *os.File }

func newNetns(t testing.TB) *netns {
	t.Helper()
	n, err := openNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

func openNetns() (*netns, error) {
	n := &netns{}
	done := make(chan error, 1)
	go func() { // ends at once, and its thread, which is in the new namespace, with it
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		done <- err
	}()
	return n, <-done
}

// enter moves the thread of the calling goroutine into the namespace for the rest of the goroutine's life; the thread
// ends with it.
func (n *netns) enter() error {
	runtime.LockOSThread()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

// within runs f in the namespace.
func (n *netns) within(f func() error) error {
	done := make(chan error, 1)
	go func() { // ends with f
		if err := n.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// dial connects from inside the namespace. The address must be a number: a name would be looked up by another thread.
func (n *netns) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.within(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// output runs a command in the namespace and returns what it printed.
func (n *netns) output(cmd *exec.Cmd) (out []byte, err error) {
	err = n.within(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	return out, err
}

// must runs a command in the namespace, with input.
func (n *netns) must(t testing.TB, input string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := n.output(cmd)
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, input, out)
	}
	return string(out)
}

// lan is an Ethernet: a bridge in a namespace of its own, to which hosts are wired.
type lan struct {
	t     testing.TB
	hub   *netns
	hosts []*host
}

// host is a namespace on the lan. Its loopback is reached by dial; what comes over the wire may be cut.
type host struct {
	*netns
	t       testing.TB
	address string
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	needNamespaces(t)
	l := &lan{t: t, hub: newNetns(t)}
	l.hub.must(t, "link add br0 type bridge\nlink set br0 up\n", "ip", "-batch", "-")
	return l
}

// What a host does not want to hear is dropped where it arrives: the sender notices nothing, as with a broken wire.
const hostRules = `table inet chaos {
	set deaf { type ipv4_addr; }
	counter dropped { }
	chain in {
		type filter hook input priority 0; policy accept;
		ip saddr @deaf counter name dropped drop
	}
}
`

// attach wires one more host to the lan.
func (l *lan) attach() *host {
	l.t.Helper()
	h := &host{netns: newNetns(l.t), t: l.t, address: fmt.Sprintf("10.77.0.%d", len(l.hosts)+1)}
	wire := fmt.Sprintf("wire%d", len(l.hosts)+1)
	l.hosts = append(l.hosts, h)
	l.hub.must(l.t, fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/%d/fd/%d\nlink set %s master br0 up\n",
		wire, os.Getpid(), h.file.Fd(), wire), "ip", "-batch", "-")
	h.must(l.t, fmt.Sprintf("link set lo up\naddr add %s/24 dev eth0\nlink set eth0 up\n", h.address), "ip", "-batch", "-")
	h.must(l.t, hostRules, "nft", "-f", "-")
	return h
}

// deafen makes the host deaf to others: their packets are dropped.
func (h *host) deafen(to ...*host) {
	h.t.Helper()
	var addresses []string
	for _, other := range to {
		if other != h {
			addresses = append(addresses, other.address)
		}
	}
	if len(addresses) > 0 {
		h.must(h.t, fmt.Sprintf("add element inet chaos deaf { %s }\n", strings.Join(addresses, ", ")), "nft", "-f", "-")
	}
}

// heal makes every host hear all others again and returns how many packets were dropped since the last time.
func (l *lan) heal() (dropped int) {
	l.t.Helper()
	for _, h := range l.hosts {
		h.must(l.t, "flush set inet chaos deaf\n", "nft", "-f", "-")
		var answer struct {
			Nftables []struct{ Counter *struct{ Packets int } }
		}
		out := h.must(l.t, "", "nft", "-j", "reset", "counter", "inet", "chaos", "dropped")
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			l.t.Fatalf("nft printed %q: %v", out, err)
		}
		for _, object := range answer.Nftables {
			if object.Counter != nil {
				dropped += object.Counter.Packets
			}
		}
	}
	return dropped
}

// client returns an HTTP client that works in the namespace.
func (n *netns) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.dial, MaxIdleConnsPerHost: 2}}
}

// A cut drops packets in one direction only, its sender does not notice, and it heals.
func TestNamespacesAreCutOneWay(t *testing.T) {
	l := newLAN(t)
	a, b := l.attach(), l.attach()
	for _, pair := range [][2]*host{{a, b}, {b, a}} {
		if !hears(t, pair[0], pair[1], 20) { // the bridge takes a moment to see its wires
			t.Fatal("no way through an uncut lan")
		}
	}
	a.deafen(b)
	if hears(t, a, b, 1) || !hears(t, b, a, 5) {
		t.Error("the cut is not one-way")
	}
	if dropped := l.heal(); dropped == 0 {
		t.Error("nothing was dropped")
	}
	if !hears(t, a, b, 5) || !hears(t, b, a, 5) {
		t.Error("the cut did not heal")
	}
}

// hears reports whether to receives one of some packets that from sends, a fifth of a second apart.
func hears(t *testing.T, to, from *host, packets int) bool {
	t.Helper()
	var in net.PacketConn
	err := to.within(func() (err error) {
		in, err = net.ListenPacket("udp4", to.address+":9")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := from.dial(t.Context(), "udp4", to.address+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for range packets {
		if _, err := out.Write([]byte("x")); err != nil {
			t.Fatalf("the sender noticed: %v", err)
		}
		in.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, _, err := in.ReadFrom(make([]byte, 16)); err == nil {
			return true
		}
	}
	return false
}
