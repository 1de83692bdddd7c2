package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"osteon/erasure/place"
	"osteon/erasure/plant"
)

// The application protocols of the doors.
const (
	protocolMesh = "osteon/1"
	protocolLine = "osteon-bulk/1" // over TCP
	protocolJoin = "osteon-join/1"
)

// Identity is what a node shows and what it trusts. It is not changed after it was handed over.
type Identity struct {
	Ring place.RingID
	Node place.NodeID
	Site place.SiteID
	// Cert holds the node's certificate and key.
	Cert tls.Certificate
	// CA is the ring's CA, by which Cert was signed.
	CA *x509.Certificate
	// AlsoTrusted are CAs of the same ring that are being rotated in or out.
	AlsoTrusted []*x509.Certificate
}

// NewIdentity puts together the identity of the node that a signed certificate names. ca and cert are DER.
// ErrIdentity when the parts do not belong together.
func NewIdentity(ca, cert []byte, key *ecdsa.PrivateKey) (Identity, error) {
	root, err := x509.ParseCertificate(ca)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: CA certificate: %v", ErrIdentity, err)
	}
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: node certificate: %v", ErrIdentity, err)
	}
	ring, peer, err := certNames(leaf)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{Ring: ring, Node: peer.Node, Site: peer.Site, CA: root,
		Cert: tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key, Leaf: leaf}}
	return id, id.check()
}

// leaf returns the node's parsed certificate; check has seen to it that there is one.
func (id *Identity) leaf() *x509.Certificate {
	if id.Cert.Leaf != nil {
		return id.Cert.Leaf
	}
	leaf, _ := x509.ParseCertificate(id.Cert.Certificate[0])
	return leaf
}

// check reports whether certificate, key, CA and names belong together, whatever the time.
func (id *Identity) check() error {
	if id.CA == nil || len(id.Cert.Certificate) == 0 || id.Cert.PrivateKey == nil {
		return fmt.Errorf("%w: certificate, key or CA is missing", ErrIdentity)
	}
	leaf, err := x509.ParseCertificate(id.Cert.Certificate[0])
	if err != nil {
		return fmt.Errorf("%w: node certificate: %v", ErrIdentity, err)
	}
	key, ok := id.Cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(leaf.PublicKey) {
		return fmt.Errorf("%w: the key does not match the certificate", ErrIdentity)
	}
	at := leaf.NotBefore
	if id.CA.NotBefore.After(at) {
		at = id.CA.NotBefore
	}
	peer, err := id.verify([]*x509.Certificate{leaf}, at)
	if err != nil {
		return err
	}
	if peer.Node != id.Node || peer.Site != id.Site {
		return fmt.Errorf("%w: the certificate names node %s at site %q, this is node %s at site %q",
			ErrIdentity, peer.Node, peer.Site, id.Node, id.Site)
	}
	return nil
}

// certNames returns the ring, node and site that a node's certificate names.
func certNames(cert *x509.Certificate) (place.RingID, Peer, error) {
	if len(cert.URIs) != 1 {
		return place.RingID{}, Peer{}, fmt.Errorf("%w: the certificate names %d URIs instead of one node", ErrIdentity, len(cert.URIs))
	}
	ring, peer, err := parseNodeURI(cert.URIs[0])
	if err != nil {
		return ring, peer, fmt.Errorf("%w: the certificate's URI: %v", ErrIdentity, err)
	}
	return ring, peer, nil
}

// verify checks a chain shown by a peer against the ring's CAs and returns whom it names. Errors wrap ErrIdentity.
func (id *Identity) verify(chain []*x509.Certificate, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, fmt.Errorf("%w: no certificate shown", ErrIdentity)
	}
	// Nodes hold both usages; asking for the server's in either role is enough.
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: poolOf(append(id.AlsoTrusted[:len(id.AlsoTrusted):len(id.AlsoTrusted)], id.CA)...),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %v", ErrIdentity, err)
	}
	ring, peer, err := certNames(chain[0])
	if err != nil {
		return Peer{}, err
	}
	if ring != id.Ring {
		return Peer{}, fmt.Errorf("%w: the certificate is of ring %s, this is ring %s", ErrIdentity, ring, id.Ring)
	}
	return peer, nil
}

// serverTLS answers each caller with the terms of the protocol it asks for.
func (l *Link) serverTLS() *tls.Config {
	base := l.tlsBase(protocolMesh)
	base.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		id := l.identity.Load()
		for _, p := range info.SupportedProtos {
			if p == protocolJoin && l.cfg.Join != nil {
				return l.joinServerTLS(id), nil
			}
		}
		return l.meshServerTLS(protocolMesh, id), nil
	}
	return base
}

// lineServerTLS is for callers over TCP, where only nodes of the ring are served.
func (l *Link) lineServerTLS() *tls.Config {
	base := l.tlsBase(protocolLine)
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := l.meshServerTLS(protocolLine, l.identity.Load())
		c.DynamicRecordSizingDisabled = true // small first records help browsers, not bulk
		return c, nil
	}
	return base
}

// meshServerTLS serves nodes of the ring only.
func (l *Link) meshServerTLS(protocol string, id *Identity) *tls.Config {
	c := l.tlsBase(protocol)
	c.Certificates = []tls.Certificate{id.Cert}
	c.ClientAuth = tls.RequireAnyClientCert // verified below, against the ring's CAs only
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := id.verify(state.PeerCertificates, l.cfg.Now())
		if err != nil {
			l.log.Warn("caller refused at handshake", "err", err)
		}
		return err
	}
	return c
}

// joinServerTLS shows the CA's certificate too, because the caller knows nothing but its fingerprint.
func (l *Link) joinServerTLS(id *Identity) *tls.Config {
	c := l.tlsBase(protocolJoin)
	c.Certificates = []tls.Certificate{{
		Certificate: [][]byte{id.Cert.Certificate[0], id.CA.Raw}, PrivateKey: id.Cert.PrivateKey,
	}}
	return c
}

// clientTLS dials one node: verdict receives what the check of its certificate found.
func (l *Link) clientTLS(protocol string, node place.NodeID, verdict *error) *tls.Config {
	id := l.identity.Load()
	c := l.tlsBase(protocol)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.Cert, nil }
	c.InsecureSkipVerify = true // host names mean nothing here: VerifyConnection checks the chain and the node
	c.VerifyConnection = func(state tls.ConnectionState) error {
		peer, err := id.verify(state.PeerCertificates, l.cfg.Now())
		if err == nil && peer.Node != node && !plant.Is(plant.PeerNotChecked) {
			err = fmt.Errorf("%w: asked for node %s, found node %s at site %q", ErrWrongNode, node, peer.Node, peer.Site)
		}
		*verdict = err
		return err
	}
	return c
}

// joinClientTLS trusts the CA of the given fingerprint, if the chain shown holds it.
func joinClientTLS(fingerprint [32]byte, verdict *error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocolJoin},
		// There is no name to check: VerifyConnection checks the chain against the fingerprint.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			*verdict = checkFingerprint(state.PeerCertificates, fingerprint)
			return *verdict
		},
	}
}

func checkFingerprint(chain []*x509.Certificate, fingerprint [32]byte) error {
	for _, ca := range chain {
		if sha256.Sum256(ca.Raw) != fingerprint {
			continue
		}
		ring, err := ringOf(ca)
		if err != nil {
			return err
		}
		id := Identity{Ring: ring, CA: ca}
		_, err = id.verify(chain, time.Time{}) // the zero time means now
		return err
	}
	return fmt.Errorf("%w: the answering node's ring has not the fingerprint in the token: wrong address or wrong token", ErrIdentity)
}

// handshakeKey finds the token of an unfinished handshake in its connection's context.
type handshakeKey struct{}

// countHandshake counts unfinished handshakes and refuses callers when there are too many.
func (l *Link) countHandshake(ctx context.Context, _ *quicClientInfo) (context.Context, error) {
	if l.half.Add(1) > handshakesMax {
		l.half.Add(-1)
		return nil, &RefusedError{Code: RefusalBusy, Text: "too many unfinished handshakes"}
	}
	done := onceFunc(func() { l.half.Add(-1) })
	context.AfterFunc(ctx, done)
	return context.WithValue(ctx, handshakeKey{}, done), nil
}
