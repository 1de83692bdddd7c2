package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"osteon/erasure/place"
	"osteon/node/link"
	"osteon/raft/catalog"
	"osteon/raft/local"
	"osteon/raft/ring"
	"osteon/raft/vault"
)

// Env are the seams that a node is given. The zero value is filled by the real ones.
type Env struct {
	FS   vfs.FS
	Rand io.Reader
	Now  func() time.Time
	Log  *slog.Logger
	// ListenPacket opens the link's socket at host:port; an empty address is any port, for one outgoing exchange.
	ListenPacket func(address string) (net.PacketConn, error)
	// Listen opens the front doors: tcp at host:port, and unix at the path of the admin socket.
	Listen func(network, address string) (net.Listener, error)
	// Dial connects to C-MOVE destinations.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Raft changes sizes and timings of Raft before it is opened; nil leaves the standard ones.
	Raft func(*ring.Config)
}

// Settings of the catalog that the node reads and writes.
const (
	settingCA      = "ring/ca"       // certificate, DER
	settingCAKey   = "ring/ca-key"   // private key sealed under caKeyLabel
	settingSurvive = "ring/survive"  // place.Survive as set at init; empty: automatic
	settingName    = "ring/name"     // for people
	caKeyLabel     = "osteon ca key" // associated data of the sealed CA key
)

// core is the part of a node that every use of its directory needs: keys, link, catalog and Raft.
type core struct {
	cfg   Config
	env   Env
	id    identity // Enrolled and Certificate: through mu once the node serves
	mu    sync.Mutex
	vault *vault.Vault
	link  *link.Link
	cat   *catalog.Catalog
	local *local.DB
	ring  *ring.Ring
	topo  *topology

	lock     io.Closer // of the directory
	standing standing
	broken   chan error // what was found to be damaged while the node runs; cap 1
}

// changeIdentity changes what identity says of the node and writes it durably.
func (c *core) changeIdentity(change func(*identity)) error {
	c.mu.Lock()
	defer c.mu.Unlock() // held over the write: the file and the memory must agree
	change(&c.id)
	return c.id.save(c.env.FS, c.cfg.Dir)
}

func (c *core) certificate() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id.Certificate
}

func (c *core) path(parts ...string) string {
	return c.env.FS.PathJoin(append([]string{c.cfg.Dir}, parts...)...)
}

func vaultConfig(cfg Config, env Env, ringID place.RingID, root vault.RootKey) vault.Config {
	return vault.Config{FS: env.FS, Dir: env.FS.PathJoin(cfg.Dir, "vault"), Ring: ringID, Root: root, Rand: env.Rand}
}

func rootKeyPath(cfg Config, env Env) string { return env.FS.PathJoin(cfg.Dir, "root.key") }

// openCore opens what is in cfg.Dir. The caller closes it.
func openCore(cfg Config, env Env, join joinHandler) (c *core, err error) {
	c = &core{cfg: cfg, env: env, broken: make(chan error, 1)}
	c.standing.vouched, c.standing.known = map[place.NodeID]bool{}, map[place.NodeID]memory{}
	c.standing.dirty = map[place.NodeID]bool{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(context.Background()))
		}
	}()
	if c.id, err = loadIdentity(env.FS, cfg.Dir); err != nil {
		return c, err
	}
	if c.lock, err = env.FS.Lock(c.path("lock")); err != nil {
		return c, fmt.Errorf("lock %s: another process serves this directory: %w", cfg.Dir, err)
	}
	if c.id.Address != "" && c.id.Address != cfg.Link.Advertise {
		return c, fmt.Errorf("%w: link.advertise is %s, but the ring was told to find this node at %s: set --link or --advertise (link.listen, link.advertise) as they were at init or join",
			ErrUsage, cfg.Link.Advertise, c.id.Address)
	}
	if err = c.id.begin(env.Rand); err != nil {
		return c, err
	}
	if err = c.id.save(env.FS, cfg.Dir); err != nil {
		return c, err
	}
	if err = c.openVault(); err != nil {
		return c, err
	}
	if err = c.giveUpDamaged(); err != nil {
		return c, err
	}
	if err = c.openCatalog(); err != nil {
		return c, err
	}
	if err = c.openLocal(); err != nil {
		return c, err
	}
	c.topo = newTopology(c.cat, c.id, env)
	if err = c.openLink(join); err != nil {
		return c, err
	}
	if err = c.openRing(); err != nil {
		return c, err
	}
	return c, nil
}

func (c *core) openVault() error {
	root, err := vault.OpenRootKeyFile(c.env.FS, rootKeyPath(c.cfg, c.env))
	if err != nil {
		return fmt.Errorf("open root key: %w: restore this one file from where its copy is kept; without it nothing in %s can be read, and the node must be replaced: remove it from the ring and join again in an empty directory", err, c.cfg.Dir)
	}
	vcfg := vaultConfig(c.cfg, c.env, c.id.Ring, root)
	vcfg.Damaged = c.fileDamaged
	if c.vault, err = vault.Open(vcfg); err != nil {
		return fmt.Errorf("open vault: %w: restore root.key and vault from the same backup of this node; without one, remove the node from the ring and join again in an empty directory", err)
	}
	return nil
}

func (c *core) catalogConfig() catalog.Config {
	return catalog.Config{
		FS: c.vault.FS(), Dir: c.path("catalog"), MAC: c.vault.MAC, Log: c.env.Log, Now: c.env.Now,
		Damaged: func(err error) { c.foundBroken("catalog", err) },
		Failed:  c.diskFailed,
	}
}

// openCatalog opens the catalog. One that cannot be opened is set aside: Raft's snapshot and log give it back, or show that
// they cannot, and then the ring does.
func (c *core) openCatalog() (err error) {
	if c.cat, err = catalog.Open(c.catalogConfig()); err == nil {
		return nil
	}
	c.env.Log.Error("catalog cannot be opened, it is made anew from Raft's snapshot and log", "err", err)
	if err := c.setAside("catalog"); err != nil {
		return err
	}
	if c.cat, err = catalog.Open(c.catalogConfig()); err != nil {
		return fmt.Errorf("open catalog: %w", err)
	}
	return nil
}

// openLocal opens the local index. One that cannot be opened is set aside: nothing in it is needed to find an instance.
func (c *core) openLocal() (err error) {
	lcfg := local.Config{
		FS: c.vault.FS(), Dir: c.path("local"), Log: c.env.Log,
		Damaged: func(err error) { c.foundBroken("local", err) }, Failed: c.diskFailed,
	}
	if c.local, err = local.Open(lcfg); err == nil || errors.Is(err, local.ErrNewer) {
		return err
	}
	c.env.Log.Error("local index cannot be opened, it is begun anew", "err", err)
	if err := c.setAside("local"); err != nil {
		return err
	}
	if c.local, err = local.Open(lcfg); err != nil {
		return fmt.Errorf("open local index: %w", err)
	}
	return nil
}

// restoreKey says what to do about a private key that does not fit the node's certificate.
const restoreKey = "restore link.key and node from the same backup of this node; without one, remove the node from the ring and join again in an empty directory"

func (c *core) openLink(join joinHandler) error {
	key, err := readFile(c.vault.FS(), c.path("link.key"), 1<<16)
	if err != nil {
		return fmt.Errorf("read the node's private key: %w: %s", err, restoreKey)
	}
	private, err := link.ParseKey(key)
	if err != nil {
		return fmt.Errorf("read the node's private key: %w: %s", err, restoreKey)
	}
	identity, err := link.NewIdentity(c.id.CA, c.id.Certificate, private)
	if err != nil {
		return fmt.Errorf("node certificate: %w: %s", err, restoreKey)
	}
	conn, err := c.env.ListenPacket(c.cfg.Link.Listen)
	if err != nil {
		return fmt.Errorf("link.listen: %w", err)
	}
	lcfg := link.Config{
		Conn: conn, Identity: identity, Boot: c.id.Boot, Rand: c.env.Rand,
		ResetKey: c.vault.MAC("osteon link reset key", c.id.Node[:]),
		Resolve:  c.topo.resolve, Allowed: c.topo.allowed,
		Now: c.env.Now, Log: c.env.Log,
	}
	if err := c.addBulk(&lcfg); err != nil {
		return errors.Join(err, conn.Close())
	}
	if join != nil {
		lcfg.Join = func(ctx context.Context, request []byte) ([]byte, error) { return join(ctx, c, request) }
	}
	if c.link, err = link.Open(lcfg); err != nil {
		err = errors.Join(fmt.Errorf("open link: %w", err), conn.Close())
		if lcfg.Listener != nil {
			err = errors.Join(err, lcfg.Listener.Close())
		}
		return err
	}
	c.link.HandleCall(link.KindAdmin, c.answerPeer) // also while this node starts: others that start ask what it knows of them
	return nil
}

// addBulk gives the link TCP for bulk, at the number of its UDP port. Where that is taken, auto goes on without: peers reach
// this node over QUIC.
func (c *core) addBulk(lcfg *link.Config) (err error) {
	if lcfg.Bulk, err = link.ParseBulk(c.cfg.Link.Bulk); err != nil || lcfg.Bulk == link.BulkQUIC {
		return err
	}
	lcfg.Dial = func(ctx context.Context, address string) (net.Conn, error) { return c.env.Dial(ctx, "tcp", address) }
	lcfg.Listener, err = c.env.Listen("tcp", lcfg.Conn.LocalAddr().String())
	if err != nil && lcfg.Bulk == link.BulkTCP {
		return fmt.Errorf("link.listen over TCP: %w: free the port, or set link.bulk to auto", err)
	}
	if err != nil {
		lcfg.Listener = nil
		c.env.Log.Warn("no TCP for bulk: other nodes send it over QUIC, at three times the processor time", "err", err)
	}
	return nil
}

func (c *core) ringConfig() ring.Config {
	cfg := ring.Config{
		FS: c.vault.FS(), PlainFS: c.env.FS, Dir: c.path("raft"),
		Self: c.id.Node, Incarnation: c.id.Incarnation, Existing: c.id.Enrolled, Link: c.link,
		MAC:   func(parts ...[]byte) [32]byte { return c.vault.MAC("osteon raft", parts...) },
		Gated: len(c.others()) > 0, Vouch: c.vouch,
		Now: c.env.Now, Log: c.env.Log,
	}
	if c.env.Raft != nil {
		c.env.Raft(&cfg)
	}
	return cfg
}

// openRing opens Raft; a log that may have forgotten what it acknowledged is given up for a new
// incarnation, which the ring takes in as a non-voter (design §6 Raft log).
func (c *core) openRing() (err error) {
	for range startOversMax {
		c.ring, err = ring.Open(c.ringConfig(), c.cat)
		if !errors.Is(err, ring.ErrShortLog) && !errors.Is(err, ring.ErrDamaged) && !errors.Is(err, errStartOver) {
			break
		}
		if err = c.startOver(err); err != nil {
			return err
		}
	}
	if errors.Is(err, ring.ErrWrongServer) {
		return fmt.Errorf("open ring: %w: mount this node's own volume; if only files were mixed up, delete %s, and the ring gives it back", err, c.path("raft"))
	}
	if err != nil {
		return fmt.Errorf("open ring: %w", err)
	}
	c.standing.ring.Store(c.ring)
	c.cat.SetProposer(c.ring)
	c.mayVote()
	return nil
}

// close closes what was opened, from the top down. Parts that were not opened are skipped.
func (c *core) close(ctx context.Context) error {
	var errs []error
	if c.ring != nil {
		errs = append(errs, c.ring.Close(ctx))
	}
	if c.link != nil {
		errs = append(errs, c.link.Close())
	}
	if c.local != nil {
		errs = append(errs, c.local.Close())
	}
	if c.cat != nil {
		errs = append(errs, closeWithin(ctx, "catalog", c.cat.Close))
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}

// closeWithin gives up waiting when ctx ends: a database whose disk hangs, or that gave up in the middle of a write, may never
// close, and the process must end all the same.
func closeWithin(ctx context.Context, what string, shut func() error) error {
	done := make(chan error, 1)
	go func() { done <- shut() }() // ends with the close, at the latest with the process
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close %s: %w", what, ctx.Err())
	}
}

// system is on whose behalf the node itself acts.
func (c *core) system() catalog.Principal {
	return catalog.Principal{Kind: catalog.PrincipalSystem, Node: c.id.Node}
}

// do proposes commands, waits until they are applied here and returns the first refusal as an error.
func (c *core) do(ctx context.Context, commands ...catalog.Command) error {
	results, index, err := c.cat.Do(ctx, c.system(), commands...)
	if err != nil {
		return err
	}
	for _, r := range results {
		if err := r.Err(); err != nil {
			return err
		}
	}
	return c.cat.WaitApplied(ctx, index)
}

// ca opens the ring's CA, whose key is sealed in the catalog.
func (c *core) ca(ctx context.Context) (*link.CA, error) {
	certificate, err := c.cat.Setting(settingCA)
	if err != nil {
		return nil, fmt.Errorf("read the ring's CA: %w", err)
	}
	sealed, err := c.cat.Setting(settingCAKey)
	if err != nil {
		return nil, fmt.Errorf("read the ring's CA: %w", err)
	}
	private, err := openSealed(c.vault, sealed)
	if err != nil {
		return nil, fmt.Errorf("open the ring's CA key: %w", err)
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("read the ring's CA: %w", err)
	}
	return link.OpenCA(cert, private, c.env.Rand, c.env.Now)
}

// A sealed CA key is: length of the wrapped key u8, wrapped key, AES-256-GCM of the DER under that key
// with a zero nonce (the key is used once).
func seal(v *vault.Vault, plain []byte) ([]byte, error) {
	key, wrapped, err := v.NewKey([]byte(caKeyLabel))
	if err != nil {
		return nil, err
	}
	aead := vault.NewAEAD(&key)
	out := append([]byte{byte(len(wrapped))}, wrapped...)
	return aead.Seal(out, make([]byte, aead.NonceSize()), plain, []byte(caKeyLabel)), nil
}

func openSealed(v *vault.Vault, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || len(sealed) < 1+int(sealed[0]) {
		return nil, errors.New("sealed value is too short")
	}
	n := 1 + int(sealed[0])
	key, err := v.Unwrap(vault.WrappedKey(sealed[1:n]), []byte(caKeyLabel))
	if err != nil {
		return nil, err
	}
	aead := vault.NewAEAD(&key)
	return aead.Open(nil, make([]byte, aead.NonceSize()), sealed[n:], []byte(caKeyLabel))
}
