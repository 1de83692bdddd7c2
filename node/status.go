package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"osteon/dicomsvc"
	"osteon/erasure/place"
	"osteon/raft/catalog"
)

// Status is what one node says of itself and of the ring as seen from it.
type Status struct {
	Ring     place.RingID `json:"ring"`
	RingName string       `json:"ring_name,omitempty"`
	Node     place.NodeID `json:"node"`
	Name     string       `json:"name"`
	Site     place.SiteID `json:"site"`
	Ready    bool         `json:"ready"`
	// NotReady says why not.
	NotReady string `json:"not_ready,omitempty"`
	Uptime   string `json:"uptime"`
	State    string `json:"state"`
	Leader   string `json:"leader,omitempty"`
	Applied  uint64 `json:"applied"`
	Commit   uint64 `json:"commit"`
	Endpoints
	// Waiting is how many stored instances the ring's catalog has not applied yet.
	Waiting  int           `json:"waiting"`
	Survive  place.Survive `json:"survive"`
	Survives Survival      `json:"survives"`
	// Single says what a stored instance survives while only one copy is acknowledged.
	Note  string       `json:"note,omitempty"`
	Nodes []NodeStatus `json:"nodes"`
	// Poison lists the objects that made this node fail while they were stored; from the third time on they
	// are refused.
	Poison []dicomsvc.Poisoned `json:"poison,omitempty"`
}

// Endpoints are where a node listens.
type Endpoints struct {
	AET   string `json:"aet,omitempty"`
	DIMSE string `json:"dimse"`
	HTTP  string `json:"http"`
	Link  string `json:"link"`
}

// NodeStatus is one member as seen from here.
type NodeStatus struct {
	Node    place.NodeID `json:"node"`
	Name    string       `json:"name"`
	Site    place.SiteID `json:"site"`
	Address string       `json:"address"`
	Role    string       `json:"role"`
	State   string       `json:"state"`
	Live    bool         `json:"live"`
	Voter   bool         `json:"voter"`
	Leader  bool         `json:"leader"`
	// Free is the free space of its disk in bytes, 0 when not known.
	Free int64 `json:"free_bytes,omitempty"`
}

// Status reports the node's and the ring's state.
func (n *Node) Status(ctx context.Context) (Status, error) {
	s := Status{
		Ring: n.id.Ring, Node: n.id.Node, Name: n.id.Name, Site: n.id.Site,
		Uptime: n.env.Now().Sub(n.started).Round(time.Second).String(), State: n.ring.State(),
		Applied: n.cat.Applied(), Commit: n.ring.CommitIndex(), Waiting: n.archive.Waiting(), Poison: n.archive.Poison(),
		Endpoints: Endpoints{
			AET: n.cfg.DIMSE.AET, DIMSE: n.servers.dimseAddress(), HTTP: n.servers.httpAddress(), Link: n.cfg.Link.Advertise,
		},
	}
	if name, err := n.cat.Setting(settingName); err == nil {
		s.RingName = string(name)
	}
	if err := n.Ready(); err != nil {
		s.NotReady = err.Error()
	} else {
		s.Ready = true
	}
	nodes := n.topo.placed()
	voters := n.voters()
	leader, led := n.ring.Leader()
	for _, m := range n.topo.nodes() {
		state := NodeStatus{
			Node: m.ID, Name: m.Name, Site: m.Site, Address: m.Address, Role: m.Role.String(), State: m.State.String(),
			Live: n.topo.live(m.ID), Voter: voters[m.ID], Leader: led && leader == m.ID, Free: n.freeOf(m.ID),
		}
		if state.Leader {
			s.Leader = m.Name
		}
		s.Nodes = append(s.Nodes, state)
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStatus) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name))
	})
	s.Survive = n.survive()
	if s.Survive == "" {
		s.Survive = place.Best(nodes)
	}
	data, err := n.dataSurvives(ctx)
	if err != nil {
		return s, err
	}
	s.Survives = Survival{
		Data: data, Stores: storesSurvive(nodes, n.cfg.Ack.Single),
		Commitment: commitmentSurvives(nodes, commitFloor(nodes)), Quorum: quorumSurvives(nodes, voters),
	}
	if len(dataNodes(nodes)) == 1 {
		s.Note = "one data node: every instance is kept once and is lost with this node's disk"
	}
	return s, nil
}

func (n *Node) voters() map[place.NodeID]bool {
	voters := map[place.NodeID]bool{}
	for _, s := range n.ring.Servers() {
		if s.Voter {
			voters[s.Node] = true
		}
	}
	return voters
}

func (n *Node) freeOf(id place.NodeID) int64 {
	for _, m := range n.topo.placed() {
		if m.ID == id {
			return m.Free
		}
	}
	return 0
}

// dataSurvives is the weakest of what is stored: every pack by its shards, unsealed studies by their
// holders.
func (n *Node) dataSurvives(ctx context.Context) (place.Survive, error) {
	weakest := place.Survive("")
	note := func(s place.Survive) {
		if weakest == "" || !s.Meets(weakest) {
			weakest = s
		}
	}
	for p, err := range n.cat.AllPacks(ctx) {
		if err != nil {
			return "", err
		}
		note(place.Survives(p.Geometry, p.Placement, n.topo.live))
	}
	due, err := n.archive.Unsealed(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range due {
		s, err := n.unsealedSurvives(ctx, d.Study)
		if err != nil {
			return "", err
		}
		note(s)
	}
	if weakest == "" {
		return commitmentSurvives(n.topo.placed(), place.SurviveNone), nil
	}
	return weakest, nil
}

// unsealedSurvives is the weakest of a study's journalled versions.
func (n *Node) unsealedSurvives(ctx context.Context, study string) (place.Survive, error) {
	weakest := place.Survive("")
	for v, err := range n.archive.Versions(ctx, study) {
		if err != nil {
			return "", err
		}
		if v.State != catalog.VersionJournalled {
			continue
		}
		if s := n.copiesSurvive(v.Holders); weakest == "" || !s.Meets(weakest) {
			weakest = s
		}
	}
	return weakest, nil
}

// copiesSurvive is what whole copies at the given nodes survive: a mirror's geometry.
func (n *Node) copiesSurvive(holders []place.NodeID) place.Survive {
	if len(holders) == 0 {
		return place.SurviveNone
	}
	var placement place.Placement
	for _, h := range holders {
		for _, m := range n.topo.placed() {
			if m.ID == h {
				placement = append(placement, place.Slot{Node: m.ID, Disk: m.Disk, Site: m.Site})
			}
		}
	}
	if len(placement) == 0 {
		return place.SurviveNone
	}
	return place.Survives(place.Geometry{K: 1, M: len(placement) - 1}, placement, n.topo.live)
}

// StudyReport is what `study show` prints.
type StudyReport struct {
	Study string `json:"study"`
	// State is journalled, spooled, sealed or degraded.
	State     string          `json:"state"`
	Survives  Survival        `json:"survives"`
	Instances int             `json:"instances"`
	Series    int             `json:"series"`
	Bytes     int64           `json:"bytes"`
	Versions  []VersionReport `json:"versions"`
	Packs     []PackReport    `json:"packs"`
}

// VersionReport is one version of one instance.
type VersionReport struct {
	SOPInstanceUID string   `json:"sop_instance_uid"`
	SOPClassUID    string   `json:"sop_class_uid"`
	TransferSyntax string   `json:"transfer_syntax_uid"`
	Digest         string   `json:"sha256"`
	Bytes          int64    `json:"bytes"`
	Served         bool     `json:"served"`
	State          string   `json:"state"`
	Holders        []string `json:"holders,omitempty"`
	Pack           string   `json:"pack,omitempty"`
}

// PackReport is one pack of a study.
type PackReport struct {
	Pack     place.PackID  `json:"pack"`
	Geometry string        `json:"geometry"`
	Bytes    int64         `json:"bytes"`
	Survives place.Survive `json:"survives"`
	Shards   []ShardReport `json:"shards"`
}

// ShardReport is one shard's place.
type ShardReport struct {
	Node string       `json:"node"`
	Site place.SiteID `json:"site"`
	Live bool         `json:"live"`
}

// Study reports where a study's bytes are and what they survive now. Errors: dicomsvc.ErrNotFound.
func (n *Node) Study(ctx context.Context, uid string) (StudyReport, error) {
	r := StudyReport{Study: uid, State: "sealed", Versions: []VersionReport{}, Packs: []PackReport{}}
	study, err := n.archive.Study(ctx, uid)
	if err != nil {
		return r, err
	}
	r.Instances, r.Series, r.Bytes = study.Instances, study.Series, study.Bytes
	packs, data, err := n.packReports(ctx, study.Packs)
	if err != nil {
		return r, err
	}
	r.Packs = packs
	for _, p := range packs {
		for _, s := range p.Shards {
			if !s.Live {
				r.State = "degraded"
			}
		}
	}
	for v, err := range n.archive.Versions(ctx, uid) {
		if err != nil {
			return r, err
		}
		r.Versions = append(r.Versions, n.versionReport(v))
		if v.State != catalog.VersionJournalled {
			continue
		}
		if s := n.copiesSurvive(v.Holders); data == "" || !s.Meets(data) {
			data = s
		}
	}
	switch {
	case study.Spooled > 0:
		r.State = "spooled"
	case study.Unsealed > 0:
		r.State = "journalled"
	}
	nodes := n.topo.placed()
	r.Survives = Survival{
		Data: data, Stores: storesSurvive(nodes, n.cfg.Ack.Single),
		Commitment: commitmentSurvives(nodes, commitFloor(nodes)), Quorum: quorumSurvives(nodes, n.voters()),
	}
	return r, nil
}

func (n *Node) packReports(ctx context.Context, ids []place.PackID) (out []PackReport, weakest place.Survive, err error) {
	out = []PackReport{}
	for _, id := range ids {
		p, err := n.cat.Pack(ctx, id)
		if err != nil {
			return nil, "", err
		}
		report := PackReport{
			Pack: id, Geometry: p.Geometry.String(), Bytes: p.PlainBytes,
			Survives: place.Survives(p.Geometry, p.Placement, n.topo.live),
		}
		for _, slot := range p.Placement {
			report.Shards = append(report.Shards, ShardReport{Node: n.label(slot.Node), Site: slot.Site, Live: n.topo.live(slot.Node)})
		}
		if weakest == "" || !report.Survives.Meets(weakest) {
			weakest = report.Survives
		}
		out = append(out, report)
	}
	return out, weakest, nil
}

// label is a node's name, or its ID while the catalog does not list it.
func (n *Node) label(id place.NodeID) string {
	if name := n.topo.name(id); name != "" {
		return name
	}
	return id.String()
}

func (n *Node) versionReport(v catalog.Located) VersionReport {
	in := v.Instance
	r := VersionReport{
		SOPInstanceUID: in.SOPInstanceUID, SOPClassUID: in.SOPClassUID, TransferSyntax: in.TransferSyntaxUID,
		Digest: fmt.Sprintf("%x", in.Digest), Bytes: in.Size, Served: v.Served, State: v.State.String(),
	}
	for _, h := range v.Holders {
		r.Holders = append(r.Holders, n.label(h))
	}
	if !v.Pack.IsZero() {
		r.Pack = v.Pack.String()
	}
	return r
}

// VerifyReport is what `study verify` prints.
type VerifyReport struct {
	Study     string   `json:"study"`
	Instances int      `json:"instances"`
	Bytes     int64    `json:"bytes"`
	Good      int      `json:"good"`
	Faults    []string `json:"faults"`
}

// Verify reads every served instance of a study from where it is and compares its digest.
func (n *Node) Verify(ctx context.Context, p dicomsvc.Principal, uid string) (VerifyReport, error) {
	r := VerifyReport{Study: uid, Faults: []string{}}
	for in, err := range n.archive.Instances(ctx, p, dicomsvc.Selection{StudyInstanceUIDs: []string{uid}}) {
		if err != nil {
			return r, err
		}
		r.Instances++
		r.Bytes += in.Size
		if err := n.verifyInstance(ctx, p, in); err != nil {
			r.Faults = append(r.Faults, fmt.Sprintf("instance %d of the study: %v", r.Instances, err))
			continue
		}
		r.Good++
	}
	if r.Instances == 0 {
		return r, dicomsvc.ErrNotFound
	}
	return r, nil
}

func (n *Node) verifyInstance(ctx context.Context, p dicomsvc.Principal, in *dicomsvc.Instance) (err error) {
	o, err := n.archive.Open(ctx, p, in)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	_, err = o.WriteTo(io.Discard)
	return err
}

// freeBytes returns the free space of the file system that holds the node, 0 when it cannot be told.
func (c *core) freeBytes() int64 {
	u, err := c.env.FS.GetDiskUsage(c.cfg.Dir)
	if err != nil {
		return 0
	}
	return int64(u.AvailBytes)
}
