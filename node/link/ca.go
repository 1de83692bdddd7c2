package link

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"

	"osteon/erasure/place"
)

const (
	caValidity = 20 * 365 * 24 * time.Hour
	// clockSkew is how far certificates reach back, so that a node whose clock is behind accepts them.
	clockSkew = time.Hour
)

// CA signs the certificates of one ring's nodes. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ring place.RingID
	rand io.Reader
	now  func() time.Time
}

// NewCA makes the CA of a ring: an ECDSA P-256 key and a certificate of 20 years. Keep its PrivateDER encrypted.
func NewCA(ring place.RingID, rand io.Reader, now func() time.Time) (*CA, error) {
	key, err := NewNodeKey(rand)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "osteon ring " + ring.String()},
		NotBefore:             now().Add(-clockSkew),
		NotAfter:              now().Add(caValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{ringURI(ring)},
	}
	der, err := x509.CreateCertificate(rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make ring CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make ring CA: %w", err)
	}
	return &CA{cert: cert, key: key, ring: ring, rand: rand, now: now}, nil
}

// OpenCA puts a CA together from its certificate and the bytes of PrivateDER.
// ErrIdentity when they do not belong together or the certificate is no ring's CA.
func OpenCA(cert *x509.Certificate, der []byte, rand io.Reader, now func() time.Time) (*CA, error) {
	key, err := ParseKey(der)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: the CA's key does not match its certificate", ErrIdentity)
	}
	ring, err := ringOf(cert)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, ring: ring, rand: rand, now: now}, nil
}

// Certificate returns the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Ring returns the ring that the CA signs for.
func (ca *CA) Ring() place.RingID { return ca.ring }

// PrivateDER returns the private key in PKCS #8, in plain.
func (ca *CA) PrivateDER() []byte {
	der, err := MarshalKey(ca.key)
	if err != nil {
		panic("link: CA key of P-256 cannot be marshalled") // NewCA and OpenCA let no other key in
	}
	return der
}

// Sign issues a node's certificate, in DER, for the key in csr. Names in csr are ignored: node and site are the
// caller's word. The certificate ends with the CA's at the latest. ErrIdentity when csr is not signed by its own P-256 key.
func (ca *CA) Sign(csr []byte, node place.NodeID, site place.SiteID, validity time.Duration) ([]byte, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: signing request: %v", ErrIdentity, err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: signing request: %v", ErrIdentity, err)
	}
	public, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: signing request: want a key on P-256", ErrIdentity)
	}
	if err := checkPeer(node, site); err != nil {
		return nil, err
	}
	serial, err := newSerial(ca.rand)
	if err != nil {
		return nil, err
	}
	end := ca.now().Add(validity)
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "osteon node " + node.String()},
		NotBefore:             ca.now().Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{nodeURI(ca.ring, node, site)},
	}
	der, err := x509.CreateCertificate(ca.rand, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node, err)
	}
	return der, nil
}

// Fingerprint returns the SHA-256 of the certificate, which a join token carries for the CA's.
func Fingerprint(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.Raw) }

// NewNodeKey draws a key on P-256.
func NewNodeKey(rand io.Reader) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, fmt.Errorf("draw key: %w", err)
	}
	return key, nil
}

// NewCSR returns the signing request for key, in DER. It names nothing: the CA does.
func NewCSR(rand io.Reader, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make signing request: %w", err)
	}
	return der, nil
}

// MarshalKey returns key in PKCS #8, in plain.
func MarshalKey(key *ecdsa.PrivateKey) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// ParseKey reads what MarshalKey wrote. ErrIdentity when it is not an ECDSA key on P-256.
func ParseKey(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: private key: %v", ErrIdentity, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: private key: want one on P-256", ErrIdentity)
	}
	return key, nil
}

func newSerial(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always of one length
	return new(big.Int).SetBytes(b[:]), nil
}

// checkPeer says whether node and site can stand in a certificate.
func checkPeer(node place.NodeID, site place.SiteID) error {
	switch {
	case node.IsZero():
		return fmt.Errorf("%w: no node ID", ErrIdentity)
	case site == "":
		return fmt.Errorf("%w: no site name", ErrIdentity)
	case len(site) > SiteBytesMax:
		return fmt.Errorf("%w: site name of %d bytes, at most %d are allowed", ErrIdentity, len(site), SiteBytesMax)
	}
	return nil
}

func ringURI(ring place.RingID) *url.URL {
	return &url.URL{Scheme: "osteon", Host: "ring", Path: "/" + ring.String()}
}

func nodeURI(ring place.RingID, node place.NodeID, site place.SiteID) *url.URL {
	return &url.URL{Scheme: "osteon", Host: "ring", Path: "/" + ring.String() + "/node/" + node.String(),
		RawQuery: url.Values{"site": {string(site)}}.Encode()}
}

// parseNodeURI reads what nodeURI wrote, and nothing that is merely similar.
func parseNodeURI(u *url.URL) (place.RingID, Peer, error) {
	var ring place.RingID
	var peer Peer
	const lenRing, lenPath = len("/") + 36, len("/") + 36 + len("/node/") + 36
	bad := errors.New("want osteon://ring/<ring>/node/<node>?site=<site>")
	if len(u.Path) != lenPath {
		return ring, peer, bad
	}
	if ring.UnmarshalText([]byte(u.Path[1:lenRing])) != nil || peer.Node.UnmarshalText([]byte(u.Path[lenPath-36:])) != nil {
		return ring, peer, bad
	}
	peer.Site = place.SiteID(u.Query().Get("site"))
	if checkPeer(peer.Node, peer.Site) != nil || nodeURI(ring, peer.Node, peer.Site).String() != u.String() {
		return ring, peer, bad
	}
	return ring, peer, nil
}

// ringOf returns the ring whose CA cert is.
func ringOf(cert *x509.Certificate) (place.RingID, error) {
	var ring place.RingID
	if !cert.IsCA || len(cert.URIs) != 1 || len(cert.URIs[0].Path) != 37 ||
		ring.UnmarshalText([]byte(cert.URIs[0].Path[1:])) != nil || ringURI(ring).String() != cert.URIs[0].String() {
		return ring, fmt.Errorf("%w: not the certificate of a ring's CA", ErrIdentity)
	}
	return ring, nil
}
