package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
)

const (
	joinTimeout = 60 * time.Second
	// Codes of a refused join; the text says the rest.
	joinRefused     = 1
	joinUnavailable = 2
)

// joinRequest and joinResponse are the one exchange of osteon-join/1, as JSON.
type joinRequest struct {
	Version int          `json:"version"`
	Ring    place.RingID `json:"ring"`
	Secret  []byte       `json:"secret"`
	CSR     []byte       `json:"csr"`
	Node    place.NodeID `json:"node"`
	Disk    place.DiskID `json:"disk"`
	Name    string       `json:"name"`
	Site    place.SiteID `json:"site"`
	Address string       `json:"address"`
	Witness bool         `json:"witness,omitempty"`
}

type joinResponse struct {
	Certificate []byte        `json:"certificate"`
	CA          []byte        `json:"ca"`
	Bundle      []byte        `json:"bundle"`
	Peers       []peerAddress `json:"peers"`
}

// JoinRequest names a new node; its site must be the token's where that names one.
type JoinRequest struct {
	Token    Token
	NodeName string
	Site     place.SiteID
	Witness  bool
}

// JoinResult says what Join made.
type JoinResult struct {
	Ring    place.RingID `json:"ring"`
	Node    place.NodeID `json:"node"`
	Name    string       `json:"name"`
	Site    place.SiteID `json:"site"`
	RootKey string       `json:"root_key"`
	// RootKeyNote says what the root key file does not protect against.
	RootKeyNote string `json:"root_key_note"`
}

// Join enrols a new node in cfg.Dir with a token of its ring and returns; serving is a separate step.
// Errors: ErrUsage for a bad name, ErrNodeExists, ErrToken with the ring's reason, ErrRing when no address
// of the token answers or the ring has no quorum. When it fails after the ring may have listed the node, the directory keeps its
// identity: Join in it again goes on where it was.
func Join(ctx context.Context, cfg Config, env Env, req JoinRequest) (JoinResult, error) {
	env = env.filled()
	if req.Site == "" {
		req.Site = req.Token.Site
	}
	if err := checkName(req.NodeName, string(req.Site)); err != nil {
		return JoinResult{}, err
	}
	id, err := newIdentity(env, req.Token.Ring, req.NodeName, req.Site)
	if err != nil {
		return JoinResult{}, err
	}
	before, again := interruptedJoin(cfg, env)
	if again { // the ring may know this node already
		id.Node, id.Disk = before.node, before.disk
	}
	if err := beginDir(cfg, env, joinMark{id.Node, id.Disk}.String()); err != nil { // before the token is spent
		return JoinResult{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	result, err := join(ctx, cfg, env, id, req)
	if err == nil {
		err = finishDir(cfg, env)
	}
	switch {
	case err == nil:
		return result, nil
	case errors.Is(err, ErrToken) && !again:
		return JoinResult{}, errors.Join(err, vacate(cfg, env))
	default:
		return JoinResult{}, errors.Join(err, clearParts(cfg, env))
	}
}

func join(ctx context.Context, cfg Config, env Env, id identity, req JoinRequest) (JoinResult, error) {
	id.Witness, id.Address = req.Witness, cfg.Link.Advertise
	key, err := link.NewNodeKey(env.Rand)
	if err != nil {
		return JoinResult{}, err
	}
	csr, err := link.NewCSR(env.Rand, key)
	if err != nil {
		return JoinResult{}, err
	}
	request, err := json.Marshal(joinRequest{
		Version: 1, Ring: id.Ring, Secret: req.Token.Secret, CSR: csr, Node: id.Node, Disk: id.Disk,
		Name: id.Name, Site: id.Site, Address: cfg.Link.Advertise, Witness: id.Witness,
	})
	if err != nil {
		return JoinResult{}, err
	}
	answer, err := askToJoin(ctx, env, req.Token, request)
	if err != nil {
		return JoinResult{}, err
	}
	id.CA, id.Certificate, id.Peers = answer.CA, answer.Certificate, answer.Peers
	v, err := createVault(cfg, env, id.Ring, answer.Bundle)
	if err != nil {
		return JoinResult{}, err
	}
	der, err := link.MarshalKey(key)
	if err != nil {
		return JoinResult{}, err
	}
	if err := writeFile(v.FS(), env.FS.PathJoin(cfg.Dir, "link.key"), der); err != nil {
		return JoinResult{}, err
	}
	if err := id.save(env.FS, cfg.Dir); err != nil {
		return JoinResult{}, err
	}
	return JoinResult{Ring: id.Ring, Node: id.Node, Name: id.Name, Site: id.Site, RootKey: rootKeyPath(cfg, env), RootKeyNote: rootKeyNote}, nil
}

// askToJoin tries the token's addresses in turn; a refusal ends it, since the others would say the same.
func askToJoin(ctx context.Context, env Env, token Token, request []byte) (joinResponse, error) {
	var answer joinResponse
	var causes []error
	for _, address := range token.Addresses {
		response, err := joinAt(ctx, env, address, token.CA, request)
		var refused *link.RemoteError
		switch {
		case errors.As(err, &refused) && refused.Code == joinRefused:
			return answer, fmt.Errorf("%w refused: %s", ErrToken, refused.Text)
		case err != nil:
			causes = append(causes, fmt.Errorf("%s: %w", address, err))
			continue
		}
		if err := json.Unmarshal(response, &answer); err != nil {
			return answer, fmt.Errorf("read the ring's answer: %w", err)
		}
		ca, err := x509.ParseCertificate(answer.CA)
		if err != nil || link.Fingerprint(ca) != token.CA {
			return answer, fmt.Errorf("the ring's answer names another CA than the token")
		}
		return answer, nil
	}
	err := errors.Join(causes...)
	if errors.Is(err, link.ErrIdentity) {
		return answer, fmt.Errorf("%w refused: %w", ErrToken, err)
	}
	return answer, fmt.Errorf("%w: no node of the ring let this one join: %w", ErrRing, err)
}

func joinAt(ctx context.Context, env Env, address string, ca [32]byte, request []byte) ([]byte, error) {
	conn, err := env.ListenPacket("")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return link.Join(ctx, conn, address, ca, request)
}

type joinHandler func(ctx context.Context, c *core, request []byte) ([]byte, error)

func refuse(code uint8, format string, args ...any) error {
	return &link.RemoteError{Code: code, Text: fmt.Sprintf(format, args...)}
}

// admitNode is admit with a line in the log for a refusal: the admin of the ring sees it, too.
func admitNode(ctx context.Context, c *core, request []byte) ([]byte, error) {
	response, err := admit(ctx, c, request)
	if err != nil {
		c.env.Log.Warn("join refused", "why", err)
	}
	return response, err
}

// admit answers a request to join at this node: the token is used up in the catalog, then the node's
// certificate is signed and the node listed and added to Raft without a vote.
func admit(ctx context.Context, c *core, request []byte) ([]byte, error) {
	var req joinRequest
	if err := json.Unmarshal(request, &req); err != nil || req.Version != 1 {
		return nil, refuse(joinRefused, "the request is not one that this release understands; install the same release on both nodes")
	}
	if req.Ring != c.id.Ring {
		return nil, refuse(joinRefused, "the token is of another ring; make one with osteon token create at a node of this ring")
	}
	if err := checkName(req.Name, string(req.Site)); err != nil {
		return nil, refuse(joinRefused, "%v", err)
	}
	if _, _, err := net.SplitHostPort(req.Address); err != nil {
		return nil, refuse(joinRefused, "link address %.80q is not host:port; set --advertise (link.advertise)", req.Address)
	}
	nodes, err := c.cat.Nodes(ctx)
	if err != nil {
		return nil, refuse(joinUnavailable, "the catalog does not answer here; try again, or at another node")
	}
	for _, n := range nodes {
		if again, err := c.repeats(n, req); err != nil {
			return nil, refuse(joinUnavailable, "this node's local index does not answer; try another node")
		} else if again {
			continue
		}
		if n.Name == req.Name && n.State != catalog.NodeRemoved {
			return nil, refuse(joinRefused, "a node named %s is in the ring already; choose another name, or join in the directory where its own join was interrupted", req.Name)
		}
		if n.ID == req.Node || n.Disk == req.Disk {
			return nil, refuse(joinRefused, "this node's identity is in the ring already; was its directory copied? join from an empty one")
		}
	}
	ca, err := c.ca(ctx)
	if err != nil {
		return nil, refuse(joinUnavailable, "the ring's CA cannot be opened here; try another node")
	}
	certificate, err := ca.Sign(req.CSR, req.Node, req.Site, certificateValidity)
	if err != nil {
		return nil, refuse(joinRefused, "the certificate request is not valid; install the same release on both nodes")
	}
	if err := c.useToken(ctx, req); err != nil {
		return nil, err
	}
	n := catalog.Node{
		ID: req.Node, Name: req.Name, Site: req.Site, Disk: req.Disk, Address: req.Address, Incarnation: 1,
		CertFingerprint: fingerprint(certificate),
	}
	if req.Witness {
		n.Role = catalog.RoleWitness
	}
	if err := c.do(ctx, catalog.PutNode{Node: n}); err != nil {
		return nil, refuse(joinUnavailable, "the ring did not record the node: %v; the token is spent: make a new one and try again", err)
	}
	c.topo.refresh(ctx)
	if err := c.ring.AddNonvoter(ctx, n.ID, n.Incarnation); err != nil {
		c.env.Log.Warn("new node not yet in Raft, the leader adds it later", "node", n.ID, "err", err)
	}
	c.env.Log.Info("node joined", "node", n.ID, "name", n.Name, "site", n.Site)
	response := joinResponse{Certificate: certificate, CA: c.id.CA, Bundle: c.vault.Bundle()}
	for _, m := range append(nodes, c.self()) {
		if m.State != catalog.NodeRemoved && m.ID != req.Node {
			response.Peers = append(response.Peers, peerAddress{Node: m.ID, Address: m.Address})
		}
	}
	return json.Marshal(response)
}

// repeats reports whether a request is that of a listed node whose join was interrupted: the same identity, and a node that has
// never run.
func (c *core) repeats(listed catalog.Node, req joinRequest) (bool, error) {
	if listed.ID != req.Node || listed.Disk != req.Disk || listed.Name != req.Name || listed.Site != req.Site ||
		listed.State != catalog.NodeActive || listed.Incarnation != 1 {
		return false, nil
	}
	for _, s := range c.ring.Servers() {
		if s.Node == listed.ID && s.Voter {
			return false, nil
		}
	}
	st := &c.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	if _, met := st.known[listed.ID]; met {
		return false, nil
	}
	m, err := remember(c.local, listed.ID)
	return err == nil && !m.Known, err
}

// useToken spends the token in the catalog; the state machine lets one node have it.
func (c *core) useToken(ctx context.Context, req joinRequest) error {
	token := Token{Secret: req.Secret}
	recorded, err := c.cat.Token(ctx, token.hash())
	if err == nil && recorded.Site != "" && recorded.Site != req.Site {
		return refuse(joinRefused, "the token is for site %s, not %s; name that site, or make a token for the other", recorded.Site, req.Site)
	}
	results, index, err := c.cat.Do(ctx, c.system(), catalog.UseToken{Hash: token.hash(), Node: req.Node})
	if err != nil {
		return refuse(joinUnavailable, "the ring has no quorum now; try again")
	}
	if err := results[0].Err(); err != nil {
		return refuse(joinRefused, "%s", tokenReason(err))
	}
	if err := c.cat.WaitApplied(ctx, index); err != nil {
		return refuse(joinUnavailable, "the catalog did not answer in time; try again")
	}
	return nil
}

func tokenReason(err error) string {
	switch {
	case errors.Is(err, catalog.ErrUsed):
		return "it was used before; make a new one with osteon token create"
	case errors.Is(err, catalog.ErrExpired):
		return "it has expired; make a new one with osteon token create"
	default:
		return "this ring did not issue it; make one with osteon token create at a node of this ring"
	}
}

// CreateToken issues a one-time join token, valid for the given time. Site may be empty.
func (n *Node) CreateToken(ctx context.Context, site place.SiteID, valid time.Duration) (Token, error) {
	c := n.core
	secret := make([]byte, 16)
	if _, err := c.env.Rand.Read(secret); err != nil {
		return Token{}, err
	}
	ca, err := x509.ParseCertificate(c.id.CA)
	if err != nil {
		return Token{}, err
	}
	now := c.env.Now()
	t := Token{Ring: c.id.Ring, Secret: secret, CA: link.Fingerprint(ca), Site: site, Expires: now.Add(valid).UTC().Truncate(time.Second)}
	t.Addresses = append(t.Addresses, c.cfg.Link.Advertise)
	for _, m := range c.topo.nodes() {
		if m.ID != c.id.Node && m.State != catalog.NodeRemoved && len(t.Addresses) < 5 {
			t.Addresses = append(t.Addresses, m.Address)
		}
	}
	if err := c.do(ctx, catalog.PutToken{Hash: t.hash(), Expires: t.Expires, Site: site, Created: now}); err != nil {
		return Token{}, fmt.Errorf("record the token: %w", err)
	}
	return t, nil
}
