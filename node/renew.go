package node

import (
	"context"
	"fmt"
	"time"

	"osteon/node/link"
)

const (
	renewEvery = time.Hour
	// renewBefore is how long before its end a certificate is renewed: a third of its life.
	renewBefore = certificateValidity / 3
)

// renewLoop renews the node's certificate in time. Every node can: the CA's key is sealed in the catalog.
func (n *Node) renewLoop(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left := n.link.CertificateExpiry().Sub(n.env.Now())
		if left > renewBefore {
			continue
		}
		if err := n.renew(ctx); err != nil && ctx.Err() == nil {
			n.env.Log.Error("node certificate not renewed; without it the node is cut off from the ring", "left", left.Round(time.Hour).String(), "err", err)
		}
	}
}

func (n *Node) renew(ctx context.Context) error {
	der, err := readFile(n.vault.FS(), n.path("link.key"), 1<<16)
	if err != nil {
		return fmt.Errorf("read the node's private key: %w", err)
	}
	key, err := link.ParseKey(der)
	if err != nil {
		return err
	}
	csr, err := link.NewCSR(n.env.Rand, key)
	if err != nil {
		return err
	}
	ca, err := n.ca(ctx)
	if err != nil {
		return err
	}
	certificate, err := ca.Sign(csr, n.id.Node, n.id.Site, certificateValidity)
	if err != nil {
		return err
	}
	shown, err := link.NewIdentity(n.id.CA, certificate, key)
	if err != nil {
		return err
	}
	if err := n.changeIdentity(func(id *identity) { id.Certificate = certificate }); err != nil {
		return err
	}
	if err := n.link.SetIdentity(shown); err != nil {
		return err
	}
	n.env.Log.Info("node certificate renewed", "until", n.link.CertificateExpiry().UTC().Format(time.RFC3339))
	return n.announceReturn(ctx)
}
