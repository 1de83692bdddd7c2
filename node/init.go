package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
	"osteon/raft/vault"
)

const (
	certificateValidity = 90 * 24 * time.Hour
	initTimeout         = 60 * time.Second
)

// InitRequest names a new ring and its first node.
type InitRequest struct {
	RingName, NodeName string
	Site               place.SiteID
}

// InitResult says what Init made.
type InitResult struct {
	Ring    place.RingID `json:"ring"`
	Node    place.NodeID `json:"node"`
	Name    string       `json:"name"`
	Site    place.SiteID `json:"site"`
	RootKey string       `json:"root_key"`
	// RootKeyNote says what the root key file does not protect against.
	RootKeyNote string `json:"root_key_note"`
}

const rootKeyNote = "Kept beside the data it protects no stolen machine or disk that holds both. " +
	"Keep a copy of it elsewhere: without it nothing in this directory can be read."

// Init founds a ring in cfg.Dir, which must hold no node: ring UUID, root key, keys, CA, the first voter.
// It leaves nothing running. Errors: ErrUsage for a bad name, ErrNodeExists.
func Init(ctx context.Context, cfg Config, env Env, req InitRequest) (InitResult, error) {
	env = env.filled()
	if err := checkName(req.NodeName, string(req.Site)); err != nil {
		return InitResult{}, err
	}
	if err := beginDir(cfg, env, "init"); err != nil {
		return InitResult{}, err
	}
	result, err := initRing(ctx, cfg, env, req)
	if err == nil {
		err = finishDir(cfg, env)
	}
	if err != nil { // without the first entries there is no ring: the directory is free for another attempt
		return InitResult{}, errors.Join(err, vacate(cfg, env))
	}
	return result, nil
}

func initRing(ctx context.Context, cfg Config, env Env, req InitRequest) (InitResult, error) {
	ringID, err := place.NewRingID(env.Rand)
	if err != nil {
		return InitResult{}, err
	}
	id, err := newIdentity(env, ringID, req.NodeName, req.Site)
	if err != nil {
		return InitResult{}, err
	}
	v, err := createVault(cfg, env, ringID, nil)
	if err != nil {
		return InitResult{}, err
	}
	ca, err := link.NewCA(ringID, env.Rand, env.Now)
	if err != nil {
		return InitResult{}, err
	}
	id.Address = cfg.Link.Advertise
	csr, err := newLinkKey(cfg, env, v)
	if err != nil {
		return InitResult{}, err
	}
	if id.Certificate, err = ca.Sign(csr, id.Node, id.Site, certificateValidity); err != nil {
		return InitResult{}, err
	}
	id.CA = ca.Certificate().Raw
	sealedKey, err := seal(v, ca.PrivateDER())
	if err != nil {
		return InitResult{}, err
	}
	if err := id.save(env.FS, cfg.Dir); err != nil {
		return InitResult{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if err := found(ctx, cfg, env, req, sealedKey); err != nil {
		return InitResult{}, err
	}
	return InitResult{
		Ring: ringID, Node: id.Node, Name: id.Name, Site: id.Site,
		RootKey: rootKeyPath(cfg, env), RootKeyNote: rootKeyNote,
	}, nil
}

// found starts Raft once, with this node as the only voter, and writes the ring's first entries.
func found(ctx context.Context, cfg Config, env Env, req InitRequest, sealedKey []byte) error {
	c, err := openCore(cfg, env, nil)
	if err != nil {
		return err
	}
	// An attempt that is given up still waits for what it asked of Raft, which answers within this time.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := c.ring.Bootstrap(); err != nil {
		return errors.Join(fmt.Errorf("found the ring: %w", err), c.close(closing))
	}
	err = c.do(ctx,
		catalog.PutSetting{Key: settingName, Value: []byte(req.RingName)},
		catalog.PutSetting{Key: settingCA, Value: c.id.CA},
		catalog.PutSetting{Key: settingCAKey, Value: sealedKey},
		catalog.PutSetting{Key: settingSurvive, Value: []byte(cfg.Survive)},
		catalog.PutNode{Node: c.self()},
	)
	if err == nil {
		err = c.changeIdentity(func(id *identity) { id.Enrolled = true })
	}
	return errors.Join(err, c.close(closing))
}

// self is this node as the catalog lists it.
func (c *core) self() catalog.Node {
	n := catalog.Node{
		ID: c.id.Node, Name: c.id.Name, Site: c.id.Site, Disk: c.id.Disk,
		Address: c.cfg.Link.Advertise, Incarnation: c.id.Incarnation,
		CertFingerprint: fingerprint(c.certificate()),
	}
	if c.id.Witness {
		n.Role = catalog.RoleWitness
	}
	return n
}

func newIdentity(env Env, ringID place.RingID, name string, site place.SiteID) (identity, error) {
	node, err := place.NewNodeID(env.Rand)
	if err != nil {
		return identity{}, err
	}
	disk, err := place.NewDiskID(env.Rand)
	if err != nil {
		return identity{}, err
	}
	return identity{Ring: ringID, Node: node, Name: name, Site: site, Disk: disk, Incarnation: 1}, nil
}

// createVault makes the root key and the keys: new ones, or those of a bundle.
func createVault(cfg Config, env Env, ringID place.RingID, bundle []byte) (*vault.Vault, error) {
	path := rootKeyPath(cfg, env)
	root, err := vault.CreateRootKeyFile(env.FS, path, env.Rand)
	if errors.Is(err, vault.ErrExists) { // put there by the admin, or by an attempt that did not get further
		root, err = vault.OpenRootKeyFile(env.FS, path)
	}
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	vcfg := vaultConfig(cfg, env, ringID, root)
	var v *vault.Vault
	if bundle == nil {
		v, err = vault.Create(vcfg)
	} else {
		v, err = vault.Install(vcfg, bundle)
	}
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return v, nil
}

// newLinkKey draws the node's key pair, keeps the private key encrypted and returns a signing request.
func newLinkKey(cfg Config, env Env, v *vault.Vault) (csr []byte, err error) {
	key, err := link.NewNodeKey(env.Rand)
	if err != nil {
		return nil, err
	}
	if csr, err = link.NewCSR(env.Rand, key); err != nil {
		return nil, err
	}
	der, err := link.MarshalKey(key)
	if err != nil {
		return nil, err
	}
	return csr, writeFile(v.FS(), env.FS.PathJoin(cfg.Dir, "link.key"), der)
}

const nameBytesMax = 64

// checkName holds names that admins give against what is safe to print, log and use in files.
func checkName(names ...string) error {
	for _, name := range names {
		if name == "" || len(name) > nameBytesMax {
			return fmt.Errorf("%w: name %.80q: want 1 to %d characters", ErrUsage, name, nameBytesMax)
		}
		for _, r := range name {
			switch {
			case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			default:
				return fmt.Errorf("%w: name %.80q: want letters, digits, '-', '_' and '.' only", ErrUsage, name)
			}
		}
	}
	return nil
}
