package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"osteon/erasure/place"
	"osteon/node/link"
)

// gossipAddr is the address under which memberlist knows a node: its ID. So an address never changes, wherever the
// node moves, and the link finds the way.
func gossipAddr(node place.NodeID) net.IP { return net.IP(node[:]) }

// gossipNet carries memberlist's packets and streams over the link.
type gossipNet struct {
	link    *link.Link
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	close   func()
}

var _ memberlist.NodeAwareTransport = (*gossipNet)(nil)

func newGossipNet(l *link.Link) *gossipNet {
	t := &gossipNet{link: l, packets: make(chan *memberlist.Packet, gossipPackets), streams: make(chan net.Conn), done: make(chan struct{})}
	t.close = sync.OnceFunc(func() { close(t.done) })
	l.HandleDatagram(func(from link.Peer, b []byte) {
		if !gossipPacketFits(b) {
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: b, From: link.NodeAddr(from.Node), Timestamp: time.Now()}:
		default:
		}
	})
	l.Handle(link.KindGossip, func(ctx context.Context, s link.Stream) {
		select {
		case t.streams <- &gossipStream{Conn: link.NetConn(s, l.Self().Node)}: // memberlist closes it
		case <-t.done:
			link.Abort(s)
		case <-ctx.Done():
			link.Abort(s)
		}
	})
	return t
}

func (t *gossipNet) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return gossipAddr(t.link.Self().Node), gossipPort, nil
}

// node reads the name of an address.
func (t *gossipNet) node(a memberlist.Address) (place.NodeID, error) {
	var node place.NodeID
	if err := node.UnmarshalText([]byte(a.Name)); err != nil {
		return node, fmt.Errorf("gossip: address without a node: %w", err)
	}
	return node, nil
}

func (t *gossipNet) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	node, err := t.node(a)
	if err != nil {
		return time.Time{}, err
	}
	// Like UDP: a node that cannot be reached swallows the packet. An error here would end the probe
	// before the node is suspected.
	if err := t.link.SendDatagram(node, b); err != nil && !errors.Is(err, link.ErrUnreachable) {
		return time.Time{}, err
	}
	return time.Now(), nil
}

func (t *gossipNet) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	node, err := t.node(a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s, err := t.link.OpenStream(ctx, node, link.ClassControl, link.KindGossip)
	if err != nil {
		return nil, err
	}
	return &gossipStream{Conn: link.NetConn(s, t.link.Self().Node)}, nil
}

func (t *gossipNet) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *gossipNet) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *gossipNet) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *gossipNet) StreamCh() <-chan net.Conn           { return t.streams }

func (t *gossipNet) Shutdown() error {
	t.close()
	return nil
}
